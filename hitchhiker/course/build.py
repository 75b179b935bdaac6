"""Make a set's student notebook, instructor notebook and autograder from its one source."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import nbformat

from hitchhiker._files import write_atomically, write_json
from hitchhiker.course import source


def build(
    names: Sequence[str] = (), variant: int = 0, out: Path = Path("course"), where: Path | None = None
) -> list[Path]:
    """Build the named sets (all by default) into ``out/psN``; the folders that were written.

    ``student/psN.ipynb`` is what to hand out, ``instructor/psN.ipynb`` has the solutions, rubrics and hidden tests,
    ``grading/`` the pristine tests of this variant.
    """
    written = []
    for name in names or source.available(where):
        path = source.find(name, where)
        problem = source.load(path, variant)
        folder = out / problem.name
        for kind, notebook in (
            ("student", source.student(problem, address())),
            ("instructor", source.instructor(problem, address())),
        ):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            write_atomically(folder / kind / f"{problem.name}.ipynb", nbformat.writes(notebook) + "\n")
        grading = folder / "grading"
        grading.mkdir(exist_ok=True)
        shutil.copyfile(path, grading / path.name)
        write_json(grading / "variant.json", {"variant": variant, "parameters": dict(problem.parameters)})
        written.append(folder)
    return written


def address() -> str | None:
    """The repository's address for the set-up cell in Colab: ``HITCHHIKER_REPOSITORY``, else the git remote ``origin``."""
    given = os.environ.get("HITCHHIKER_REPOSITORY", "").strip()
    if given:
        return given
    root = Path(__file__).resolve().parents[2]
    try:
        remote = subprocess.run(
            ["git", "-C", str(root), "config", "--get", "remote.origin.url"],
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()
    except OSError:
        return None
    return remote if remote.startswith("https://") and "@" not in remote else None
