"""What a student handed in, cell by cell beside what was handed out: nothing of it is run here."""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from hitchhiker.course import source
from hitchhiker.course.source import tags

LARGEST = 100_000_000  # bytes of a submitted file
MOST_CELLS = 1000
NEEDED = {"setup", "parameters", "given"}  # what others build on: put back if it is gone


class NotANotebook(ValueError):
    """The submitted file cannot be read as a notebook; the message says why."""


@dataclass(frozen=True)
class Place:
    """Where a cell belongs."""

    section: str  # a question's number, or the heading that it stands below
    order: int  # of the cell that was handed out, or of the one above a cell that the student added
    original: NotebookNode | None = None  # what was handed out; None for an added cell

    @property
    def was_set_up(self) -> bool:
        return self.original is not None and "setup" in tags(self.original)


def read(path: Path) -> tuple[NotebookNode, list[str]]:
    """The notebook in a submitted file, and notes for the student.  :class:`NotANotebook` says why it cannot be read."""
    notes = []
    try:
        about = os.lstat(path)
    except OSError as error:
        raise NotANotebook(f"the file cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(about.st_mode):
        raise NotANotebook("the file is a link or no ordinary file; hand in the notebook itself")
    if about.st_size > LARGEST:
        raise NotANotebook(
            f"the file has {about.st_size / 1e6:.0f} MB, more than {LARGEST / 1e6:.0f} MB; "
            "clear the outputs (Edit, Clear all outputs) and hand it in again"
        )
    if about.st_size > 10_000_000:
        notes.append(
            f"The file has {about.st_size / 1e6:.0f} MB. Its stored outputs were left aside; please clear them."
        )
    try:
        raw = json.loads(path.read_bytes())
        if not isinstance(raw, dict) or not isinstance(raw.get("cells"), list):
            raise NotANotebook("the file is not a Jupyter notebook (version 4): it has no cells")
        cells = []
        for number, cell in enumerate(raw["cells"][:MOST_CELLS]):
            text = cell.get("source", "")
            text = "".join(text) if isinstance(text, list) else str(text)
            make = nbformat.v4.new_code_cell if cell.get("cell_type") == "code" else nbformat.v4.new_markdown_cell
            new = make(text.encode("utf-8", "replace").decode())  # half of a surrogate pair cannot be written again
            metadata = cell.get("metadata")
            new.metadata = NotebookNode(metadata if isinstance(metadata, dict) else {})
            new.id = f"cell-{number + 1}"
            cells.append(new)
    except (OSError, ValueError, RecursionError, TypeError, AttributeError) as error:
        if isinstance(error, NotANotebook):
            raise
        raise NotANotebook(f"the file does not parse as a notebook ({type(error).__name__}: {error})"[:300]) from error
    notebook = nbformat.v4.new_notebook(cells=cells)
    metadata = raw.get("metadata")
    notebook.metadata = NotebookNode(metadata if isinstance(metadata, dict) else {})
    return notebook, notes


def stated(notebook: NotebookNode) -> tuple[str, int] | None:
    """Set and variant that the notebook says it is."""
    about = notebook.metadata.get("hitchhiker")
    if not isinstance(about, dict) or not isinstance(about.get("variant"), int):
        return None
    return str(about.get("set")), about["variant"]


def untouched(notebook: NotebookNode, problem: source.ProblemSet) -> bool:
    """Whether every cell is as it was handed out (the set-up cell aside, which holds an address)."""
    given = {cell.source.strip() for cell in source.student(problem).cells}
    return all(
        not cell.source.strip() or cell.source.strip() in given or place.was_set_up
        for cell, place in zip(notebook.cells, places(notebook.cells, problem), strict=True)
    )


def handed_out(problem: source.ProblemSet) -> list[tuple[NotebookNode, str]]:
    """The cells that students get, each with its section."""
    found, section = [], ""
    for cell in source.student(problem).cells:
        if cell.cell_type == "markdown" and (headings := re.findall(r"^#+ (.+)$", cell.source, re.M)):
            numbers = [heading.split()[0] for heading in headings]
            section = next((n for n in reversed(numbers) if n in problem.questions), headings[0].strip())
        section = cell.metadata.get("question", section)
        found.append((cell, section))
    return found


def places(cells: list[NotebookNode], problem: source.ProblemSet) -> list[Place]:
    """Where each submitted cell belongs: found by its text, its metadata or its heading, else below the cell above it.

    Of two cells with the same metadata, as a cell that was split leaves them, the first is the one handed out.
    """
    known = [(cell, Place(section, _home(cell), cell)) for cell, section in handed_out(problem)]
    by_text = {cell.source.strip(): place for cell, place in known}
    by_heading = {_heading(cell): place for cell, place in known if _heading(cell)}
    by_home = {(_home(cell), str(cell.metadata.get("question"))): place for cell, place in known}
    taken: set[int] = {-1}
    found = []
    last = Place("", -1)
    for cell in cells:
        home, question = _home(cell), str(cell.metadata.get("question"))
        match = by_text.get(cell.source.strip()) or by_home.get((home, question)) or by_heading.get(_heading(cell))
        if match and match.order not in taken:
            last = match
        elif match or home < 0:
            last = Place(last.section, last.order)
        else:  # of an instructor's notebook, or of another edition of the set
            last = Place(question if question in problem.questions else last.section, home)
        taken.add(last.order)
        found.append(last)
    return found


def _home(cell: NotebookNode) -> int:
    about = cell.metadata.get("hitchhiker")
    home = about.get("cell") if isinstance(about, dict) else None
    return home if isinstance(home, int) else -1


def _heading(cell: NotebookNode) -> str:
    first = first_line(cell.source)
    return first if cell.cell_type == "markdown" and first.startswith("#") else ""


def first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")[:100]


def restored(notebook: NotebookNode, problem: source.ProblemSet) -> tuple[list[NotebookNode], list[str]]:
    """The notebook's cells with missing set-up, parameter and given cells put back, and a note for each."""
    cells, notes = list(notebook.cells), []
    for original in (cell for cell, _ in handed_out(problem) if tags(cell) & NEEDED):
        now = places(cells, problem)
        code = [p for c, p in zip(cells, now, strict=True) if c.cell_type == "code" and c.source.strip()]
        if any(p.original and p.order == _home(original) for p in code):
            continue
        above = [(p.order, i) for i, p in enumerate(now) if p.original and p.order < _home(original)]
        cells.insert(max(above)[1] + 1 if above else 0, original)
        notes.append(f"The cell that began with `{first_line(original.source)}` is gone; it was run as handed out.")
    return cells, notes


def answers(notebook: NotebookNode, problem: source.ProblemSet) -> dict[str, str]:
    """The written answers as Markdown: all text below a question's heading that was not handed out there."""
    asked: dict[str, set[str]] = {}
    for cell, section in handed_out(problem):
        if cell.cell_type == "markdown":
            asked.setdefault(section, set()).update(line.strip() for line in cell.source.splitlines())
    found: dict[str, list[str]] = {}
    for cell, place in zip(notebook.cells, places(notebook.cells, problem), strict=True):
        if cell.cell_type == "markdown" and by_hand(problem, place.section):
            lines = [
                line for line in cell.source.splitlines() if len(line) < 4 or line.strip() not in asked[place.section]
            ]
            if re.search(r"\w", text := "\n".join(lines).strip()):
                found.setdefault(place.section, []).append(text)
    return {number: "\n\n".join(texts) for number, texts in found.items()}


def by_hand(problem: source.ProblemSet, section: str) -> bool:
    """Whether a person grades what stands in this section."""
    return section in problem.questions and problem.questions[section].kind != "coding"
