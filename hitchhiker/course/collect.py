"""Who handed in what: each entry of a folder becomes a student, and one of the student's notebooks is graded."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nbformat import NotebookNode

from hitchhiker.course import source, submission


@dataclass(frozen=True)
class HandIn:
    """One student's notebook, or None, and what there is to say about the choice."""

    notebook: Path | None
    note: str = ""


def files(folder: Path, leave_out: Path | None = None) -> dict[str, list[Path]]:
    """Each student's files: ``NAME.ipynb`` (or any other file called NAME), and all that is in the folder ``NAME``."""
    if not folder.is_dir():
        raise ValueError(f"FOLDER must be a folder of submissions, got {str(folder)!r}")
    found: dict[str, list[Path]] = {}
    for entry in sorted(folder.iterdir()):
        if _visible(entry.name) and not (leave_out and entry.resolve() == leave_out.resolve()):
            found.setdefault(_student(entry), []).extend(_inside(entry))
    if not any(_notebooks(paths) for paths in found.values()):
        raise ValueError(
            f"FOLDER must hold NAME.ipynb or NAME/something.ipynb, got {str(folder)!r} without any notebook"
        )
    return found


def _visible(name: str) -> bool:
    return not name.startswith((".", "__"))


def _student(entry: Path) -> str:
    if entry.is_dir() and entry.suffix.lower() != ".ipynb":
        return entry.name
    return Path(entry.stem).stem if Path(entry.stem).suffix.lower() == ".ipynb" else entry.stem


def _inside(entry: Path) -> list[Path]:
    if entry.is_symlink() or not entry.is_dir():
        return [entry]
    found = []
    for parent, folders, names in os.walk(entry):
        folders[:] = sorted(filter(_visible, folders))
        found += [Path(parent, name) for name in sorted(filter(_visible, names))]
    return found


def _notebooks(paths: list[Path]) -> list[Path]:
    return [path for path in paths if path.suffix.lower() == ".ipynb" or path.is_symlink()]


def _read(path: Path) -> NotebookNode | None:
    try:
        return submission.read(path)[0]
    except submission.NotANotebook:
        return None


def variant(found: Mapping[str, list[Path]], name: str, asked: int | None, force: bool = False) -> int:
    """The variant to grade: the one asked for, else what most notebooks say.

    A set or a variant other than what most notebooks say is a ``ValueError``, unless ``force``.
    """
    notebooks = [_read(path) for paths in found.values() for path in _notebooks(paths)]
    says = Counter(filter(None, (submission.stated(n) for n in notebooks if n is not None)))
    here = Counter({number: count for (about, number), count in says.items() if about == name})
    chosen = asked if asked is not None else here.most_common(1)[0][0] if here else 0
    if says and not force:
        (most, count), total = says.most_common(1)[0], says.total()
        if 2 * count > total and most != (name, chosen):
            raise ValueError(
                f"--set and --variant must be {most[0]} and {most[1]}, as {count} of {total} notebooks say, "
                f"got {name} and {chosen}; --force grades them all the same"
            )
    return chosen


def choose(paths: list[Path], problem: source.ProblemSet) -> HandIn:
    """Which of a student's files is graded: of this set, not as it was handed out, the newest; and which are not."""
    notebooks = _notebooks(paths)
    if not notebooks:
        names = ", ".join(path.name for path in paths[:5]) + (", …" if len(paths) > 5 else "")
        return HandIn(None, f"No .ipynb was found, {f'only {names}' if names else 'the folder is empty'}.")
    if len(notebooks) == 1:
        return HandIn(notebooks[0])
    ranks = {path: _rank(path, problem) for path in notebooks}
    best, *rest = sorted(notebooks, key=lambda path: ranks[path][0], reverse=True)
    top = os.path.commonpath([path.parent for path in notebooks])
    left = "; ".join(f"{path.relative_to(top)} ({ranks[path][1]})" for path in rest[:5])
    return HandIn(best, f"{len(notebooks)} notebooks were handed in: {best.relative_to(top)} was graded, not {left}.")


def _rank(path: Path, problem: source.ProblemSet) -> tuple[tuple[float, ...], str]:
    """The higher, the rather it is graded; and why it was not."""
    notebook = _read(path)
    if notebook is None:
        return (0,), "it cannot be read"
    says = submission.stated(notebook) or (problem.name, problem.variant)
    if says != (problem.name, problem.variant):
        return (1,), f"it is {says[0]}, variant {says[1]}"
    if submission.untouched(notebook, problem):
        return (2,), "as it was handed out"
    return (3, path.lstat().st_mtime, path.stem == problem.name), "not the newest"
