"""`make book`: the executed book in _build/html, with warnings as errors.

Executed chapters are kept in a cache by their code.  They also depend on the package, which the cache does not know:
when a file of `hitchhiker/` changes, cache and pages are made anew; when the book's own machinery does, the pages are.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time

import notebooks
import repository
from notebooks import BOOK, ROOT

BUILD = ROOT / "_build"
HTML = BUILD / "html"
STATE = BUILD / "state.json"


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
    if before.get("package") != state["package"]:
        shutil.rmtree(BUILD / ".jupyter_cache", ignore_errors=True)
    if before != state:
        shutil.rmtree(BUILD / ".doctrees", ignore_errors=True)
        shutil.rmtree(HTML, ignore_errors=True)
    STATE.unlink(missing_ok=True)  # written again only when all went well

    environment = os.environ | {"PYTHONHASHSEED": "0"}
    environment.setdefault("OMP_NUM_THREADS", "2")
    command = [
        sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(BOOK), "--path-output", str(ROOT),
        "--config", str(ROOT / "_config.yml"), "--toc", str(ROOT / "_toc.yml"), "-W", "--keep-going", "-q",
    ]  # fmt: skip
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout
        for line in process.stdout:
            if (
                "running over TCP without encryption" not in line
            ):  # every kernel says so; it listens to this machine alone
                print(line, end="", flush=True)
    code = process.returncode
    if code:
        # Sphinx does not read a page again that it has read: the next run must warn again
        shutil.rmtree(BUILD / ".doctrees", ignore_errors=True)
        print("the book did not build; a failed cell's traceback is in _build/html/reports/", file=sys.stderr)
        return code
    stale = notebooks.publish(HTML / "notebooks")
    BUILD.mkdir(exist_ok=True)
    STATE.write_text(json.dumps(state, indent=1))
    if stale:
        print(f"out of date beside {', '.join(stale)}: run `make notebooks`")
    if state["address"] is None:
        print(repository.NOTICE)
    print(f"the book is in {(HTML / 'index.html').relative_to(ROOT)} ({time.monotonic() - started:.0f} s)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
