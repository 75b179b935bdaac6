"""`make book`: the executed book in _build/html, with warnings as errors.

Executed chapters are kept in a cache by their code.  They also depend on the package, which the cache does not know:
when a file of `hitchhiker/` changes, cache and pages are made anew; when the book's own machinery does, the pages are.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import notebooks
import repository
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from jupyter_cache.executors.utils import single_nb_execution
from myst_nb.core.read import read_myst_markdown_notebook
from notebooks import BOOK, ROOT

BUILD = ROOT / "_build"
HTML = BUILD / "html"
STATE = BUILD / "state.json"


def inputs() -> str:
    """sha256 of every file that a page can depend on."""
    total = hashlib.sha256()
    for folder in ("book", "hitchhiker", "tests", "data"):
        for file in sorted((ROOT / folder).rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                total.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    for name in ("_config.yml", "_toc.yml", "pyproject.toml", "requirements.txt", "Makefile"):
        total.update((ROOT / name).read_bytes() + b"\0")
    return total.hexdigest()


def listed() -> list[Path]:
    """The chapters of the table of contents."""
    contents = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    return [p for p in notebooks.chapters() if re.search(rf"file: {re.escape(p.stem)}\s*$", contents, re.M)]


def execute_ahead(jobs: int) -> None:
    """Run the chapters that the cache does not have, several at once; Sphinx would run them one after another.

    A chapter that fails is left to Sphinx, which runs it again and reports the failure.
    """
    cache = get_cache(BUILD / ".jupyter_cache")
    todo = []
    for path in listed():
        notebook = read_myst_markdown_notebook(path.read_text(encoding="utf-8"), add_source_map=True, path=str(path))
        try:
            cache.match_cache_notebook(notebook)
        except KeyError:
            todo.append((path, notebook))

    def execute(job: tuple) -> tuple:
        with tempfile.TemporaryDirectory() as folder:
            return *job, single_nb_execution(
                job[1], cwd=folder, timeout=notebooks.TIMEOUT, allow_errors=False, extra_arguments=["--log-level=ERROR"]
            )

    if len(todo) < 2 or jobs < 2:
        return
    print(f"executing {len(todo)} chapters, {jobs} at once", flush=True)
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        for path, notebook, result in pool.map(execute, todo):
            if result.err is None:
                bundle = CacheBundleIn(notebook, str(path), data={"execution_seconds": result.time})
                cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)


def main() -> int:
    started = time.monotonic()
    state = {
        "package": notebooks.package_digest(),
        "machinery": notebooks.digest(
            BOOK / "_ext", BOOK / "references.bib", ROOT / "_config.yml", ROOT / "requirements.txt"
        ),
        "address": repository.address(),
    }
    before = json.loads(STATE.read_text()) if STATE.exists() else {}
    everything = state | {"inputs": inputs()}
    if before == everything and (HTML / "index.html").exists():
        print("the book in _build/html/index.html is up to date")
        return 0
    if before.get("package") != state["package"]:
        shutil.rmtree(BUILD / ".jupyter_cache", ignore_errors=True)
    if {k: before.get(k) for k in state} != state:
        shutil.rmtree(BUILD / ".doctrees", ignore_errors=True)
        shutil.rmtree(HTML, ignore_errors=True)
    BUILD.mkdir(exist_ok=True)
    STATE.write_text(json.dumps({"package": state["package"]}))  # the rest only when all has gone well

    os.environ["PYTHONHASHSEED"] = "0"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    execute_ahead(jobs=min(2, os.cpu_count() or 1))
    command = [
        sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(BOOK), "--path-output", str(ROOT),
        "--config", str(ROOT / "_config.yml"), "--toc", str(ROOT / "_toc.yml"), "-W", "--keep-going", "-q",
    ]  # fmt: skip
    noise = "running over TCP without encryption"  # every kernel says so; it listens to this machine alone
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            if noise not in line:
                print(line, end="", flush=True)
    code = process.returncode
    if code:
        # Sphinx does not read a page again that it has read: the next run must warn again
        shutil.rmtree(BUILD / ".doctrees", ignore_errors=True)
        print("the book did not build; a failed cell's traceback is in _build/html/reports/", file=sys.stderr)
        return code
    stale = notebooks.publish(HTML / "notebooks")
    STATE.write_text(json.dumps(everything, indent=1))
    if stale:
        print(f"out of date beside {', '.join(stale)}: run `make notebooks`")
    if state["address"] is None:
        print(repository.NOTICE)
    print(f"the book is in {(HTML / 'index.html').relative_to(ROOT)} ({time.monotonic() - started:.0f} s)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
