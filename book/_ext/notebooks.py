"""`make notebooks`: book/NN_name.ipynb, made and executed from book/NN_name.md.

    python book/_ext/notebooks.py [--force] [NAME …]

One way only, source to notebook.  Made twice, a notebook is the same to the byte: cell ids are fixed, times are not
recorded, and what an execution numbers at random is renamed.  A notebook is made again when its source, the converter
or the package has changed since.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
import tempfile
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import repository
from myst_to_notebook import BOOK, Index, build_index, chapters, convert
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

ROOT = BOOK.parent
STAMPS = ROOT / "_build" / "notebooks.json"
TIMEOUT = 600  # seconds a cell


def digest(*paths: Path) -> str:
    """sha256 over names and contents of files and folders of Python, style and bibliography."""
    total = hashlib.sha256()
    for path in paths:
        files = (
            [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in {".py", ".mplstyle", ".bib"})
        )
        for file in files:
            total.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return total.hexdigest()


def package_digest() -> str:
    return digest(ROOT / "hitchhiker", ROOT / "pyproject.toml")


def converter_digest() -> str:
    names = ("myst_to_notebook.py", "setup_cell.py", "bibliography.py", "notebooks.py")
    return digest(*(BOOK / "_ext" / n for n in names), BOOK / "references.bib")


def generate(path: Path, index: Index, address: str | None = None) -> nbformat.NotebookNode:
    """The notebook of a chapter, not executed, with the digest of its source in its metadata."""
    notebook = convert(path, index, address)
    notebook.metadata["hitchhiker"] = {
        "made_from": f"book/{path.name}",
        "source_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    return notebook


def private_sockets() -> dict[str, str]:
    """Options of a ``KernelManager`` for one kernel that listens on files in the temporary folder.

    By default it listens on TCP ports, chosen a second before it binds them.  Whoever takes one in between, such as the
    notebook that runs beside it, kills the kernel.  Where files cannot be sockets, or not with names this long, the
    default stays.
    """
    path = os.path.join(tempfile.gettempdir(), f"kernel-{uuid.uuid4().hex[:12]}")
    return {} if os.name == "nt" or len(path) > 90 else {"transport": "ipc", "ip": path}


def execute(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Run it in an empty folder and make its outputs reproducible to the byte."""
    with tempfile.TemporaryDirectory() as empty:
        NotebookClient(
            notebook, timeout=TIMEOUT, kernel_name="python3", record_timing=False,
            resources={"metadata": {"path": empty}}, extra_arguments=["--log-level=ERROR"],
            config=Config(KernelManager=private_sockets()),
        ).execute()  # fmt: skip
    notebook.metadata["language_info"] = {"name": "python"}  # the executing Python's version says nothing here
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        merged: list = []
        for output in cell.outputs:
            if output.output_type == "stream" and merged and merged[-1].get("name") == output.name:
                merged[-1]["text"] += output["text"]  # how a print is cut into messages is a matter of luck
                continue
            data = output.get("data", {})
            if "text/html" in data:
                data["text/html"] = re.sub(r"altair-viz-[0-9a-f]{32}", f"altair-viz-{cell.id}", data["text/html"])
            if "text/plain" in data:
                data["text/plain"] = re.sub(r" at 0x[0-9a-f]+", "", data["text/plain"])
            if "image/png" in data and "alt" in cell.metadata:
                output["metadata"]["image/png"] = {"alt": cell.metadata["alt"]}
            merged.append(output)
        cell.outputs = merged
    return notebook


def dumps(notebook: nbformat.NotebookNode) -> str:
    return nbformat.writes(notebook) + "\n"


def publish(folder: Path) -> list[str]:
    """Write all notebooks with this copy's address filled in; return the names of those that are out of date."""
    address, index, stale = repository.address(), build_index(), []
    folder.mkdir(parents=True, exist_ok=True)
    wanted = set()
    for path in chapters():
        notebook = generate(path, index, address)
        committed = path.with_suffix(".ipynb")
        old = nbformat.read(committed, as_version=4) if committed.exists() else None
        if old is not None and old.metadata.get("hitchhiker") == notebook.metadata["hitchhiker"]:
            for new, done in zip(notebook.cells, old.cells, strict=False):
                if new.cell_type == "code" and done.cell_type == "code":
                    new.outputs, new.execution_count = done.outputs, done.execution_count
        else:
            stale.append(path.name)
        target = folder / committed.name
        wanted.add(target.name)
        text = dumps(notebook)
        if not target.exists() or target.read_text(encoding="utf-8") != text:
            target.write_text(text, encoding="utf-8")
    for extra in folder.glob("*.ipynb"):
        if extra.name not in wanted:
            extra.unlink()
    return stale


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make and execute book/NN_name.ipynb from book/NN_name.md.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="chapters, as 05_counting_arrivals; all by default")
    parser.add_argument("--force", action="store_true", help="also those that are up to date")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="chapters executed at once")
    arguments = parser.parse_args(argv)

    paths = chapters()
    unknown = set(arguments.names) - {p.stem for p in paths}
    if unknown:
        print(
            f"no such chapter: {', '.join(sorted(unknown))}; there are {', '.join(p.stem for p in paths)}",
            file=sys.stderr,
        )
        return 2
    os.environ.setdefault("PYTHONHASHSEED", "0")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # sums in one order, and two chapters at once on two cores

    try:
        index = build_index(only=set(arguments.names))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    package, converter = package_digest(), converter_digest()
    stamps = json.loads(STAMPS.read_text()) if STAMPS.exists() else {}
    todo = []
    for path in paths:
        if arguments.names and path.stem not in arguments.names:
            continue
        made = path.with_suffix(".ipynb")
        stamp = [hashlib.sha256(path.read_bytes()).hexdigest(), package, converter]
        done = made.exists() and stamps.get(path.stem) == [*stamp, hashlib.sha256(made.read_bytes()).hexdigest()]
        if not done or arguments.force:
            todo.append((path, stamp))

    def make(job: tuple[Path, list[str]]) -> str | None:
        path, stamp = job
        made = path.with_suffix(".ipynb")
        try:
            text = dumps(execute(generate(path, index)))
        except (ValueError, RuntimeError) as error:
            return str(error)
        except CellExecutionError as error:
            return f"{path.name}: a cell failed\n{error}"
        same = made.exists() and made.read_text(encoding="utf-8") == text
        if not same:
            partial = made.with_suffix(".ipynb.part")
            partial.write_text(text, encoding="utf-8")
            partial.replace(made)  # never half a notebook
        stamps[path.stem] = [*stamp, hashlib.sha256(text.encode()).hexdigest()]
        print(f"{made.relative_to(ROOT)}: {'as before' if same else 'written'}", flush=True)
        return None

    with ThreadPoolExecutor(max_workers=max(1, arguments.jobs)) as pool:
        failures = [f for f in pool.map(make, todo) if f]
    STAMPS.parent.mkdir(exist_ok=True)
    STAMPS.write_text(json.dumps(stamps, indent=1))
    if not todo:
        print("all notebooks are up to date")
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
