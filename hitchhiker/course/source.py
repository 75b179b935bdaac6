"""A problem set's one source: a MyST notebook whose tagged cells become a student's copy, an instructor's copy and tests.

Tags of a code cell: ``setup`` and ``given`` (the student gets it, and the grader runs it too, so that tests may use its
names), ``parameters`` (replaced by the variant's values), ``stub`` and ``solution``, ``public-test`` and ``hidden-test``.
Tags of a markdown cell: ``written`` and ``open`` (a question for a person to grade), ``solution`` (its model answer) and
``rubric``.  Cells without a tag are given to the student and run nowhere else.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbformat import NotebookNode

#: of a whole notebook, of a cell, of one call of the student's code (seconds), and of memory (gigabytes)
LIMITS = {"total": 900.0, "cell": 120.0, "call": 60.0, "memory": 4.0}
CODE_TAGS = {"setup", "given", "parameters", "stub", "solution", "public-test", "hidden-test"}
TEXT_TAGS = {"written", "open", "solution", "rubric"}
SECRET = {"solution", "rubric", "hidden-test"}


@dataclass(frozen=True)
class Test:
    """One test cell: what it asks of which question, for how many points."""

    question: str
    name: str  # "public test 1"
    points: float
    code: str
    hidden: bool


@dataclass(frozen=True)
class Question:
    """One question: a coding question has tests, a written one a rubric and a person who reads the answer."""

    number: str
    kind: str  # coding, written or open
    points: float
    tests: tuple[Test, ...] = ()
    rubric: str = ""
    title: str = ""
    varies: bool = True  # another variant's solution must fail it


@dataclass(frozen=True)
class ProblemSet:
    """A source, with the values of one variant filled in."""

    name: str
    title: str
    variant: int
    parameters: Mapping[str, Any]
    cells: tuple[NotebookNode, ...]
    questions: Mapping[str, Question]
    meta: Mapping[str, Any]
    path: Path

    @property
    def limits(self) -> dict[str, float]:
        return {**LIMITS, **self.meta.get("limits", {})}

    @property
    def given(self) -> list[str]:
        """The code that student and grader both run before any test."""
        return [c.source for c in self.cells if tags(c) & {"setup", "given", "parameters"}]


def tags(cell: NotebookNode) -> set[str]:
    return set(cell.metadata.get("tags", []))


def folder() -> Path:
    """Where the sources lie: ``book/assignments`` of the repository this package runs from, or of the current folder."""
    for root in (Path(__file__).resolve().parents[2], Path.cwd()):
        if (root / "book" / "assignments").is_dir():
            return root / "book" / "assignments"
    raise ValueError(
        "book/assignments is not here: the problem sets come with the repository, not with the package; "
        "clone it and run this command in it"
    )


def available(where: Path | None = None) -> dict[str, Path]:
    """Name of each set and its source: ``{"ps1": …/ps1_name.md}``."""
    return {path.stem.split("_")[0]: path for path in sorted((where or folder()).glob("ps*_*.md"))}


def find(name: str, where: Path | None = None) -> Path:
    """The source of a set, by its name or, for one that was kept (``course/ps1/grading``), by its path."""
    if name.endswith(".md") and Path(name).is_file():
        return Path(name)
    known = available(where)
    if name not in known:
        raise ValueError(f"the problem set must be one of {', '.join(known) or 'none (no sources)'}, got {name!r}")
    return known[name]


def draw(choices: Mapping[str, list[Any]], variant: int) -> dict[str, Any]:
    """The variant's values: 0 takes the first of each list, any other draws one of the rest, always the same.

    >>> draw({"rate": [3.0, 2.0], "seed": [11, 23]}, 0)
    {'rate': 3.0, 'seed': 11}
    """
    if variant == 0:
        return {name: values[0] for name, values in choices.items()}
    drawn = {}
    for name, values in choices.items():
        # every list is walked in an order of its own, so that neighbouring variants share no value
        order = random.Random(name).sample(range(1, len(values)), len(values) - 1) or [0]
        drawn[name] = values[order[(variant - 1) % len(order)]]
    return drawn


def repeated(problem: ProblemSet) -> list[str]:
    """Names of the values that an earlier variant has too, because their list is shorter."""
    lists = problem.meta.get("variants", {})
    return [name for name, values in lists.items() if problem.variant >= len(values)]


def load(path: Path, variant: int = 0) -> ProblemSet:
    """Read a source and fill in a variant; a mistake in it is a ``ValueError`` that names file, question and remedy."""
    if not isinstance(variant, int) or variant < 0:
        raise ValueError(f"variant must be an integer >= 0, got {variant!r}")
    notebook = jupytext.reads(path.read_text(encoding="utf-8"), fmt="md:myst")
    meta = notebook.metadata.get("course")
    if not meta or "set" not in meta or "title" not in meta:
        raise ValueError(f"{path.name}: the front matter needs course: with set and title")
    parameters = draw(meta.get("variants", {}), variant)
    shown = {name: str(value) for name, value in parameters.items()}
    values = {name.upper(): value for name, value in parameters.items()}

    def fill(match: re.Match[str]) -> str:
        if match[1] not in shown:
            raise ValueError(f"{path.name}: <<{match[1]}>> is none of the variants ({', '.join(shown)})")
        return shown[match[1]]

    cells = []
    for number, cell in enumerate(notebook.cells):
        unknown = tags(cell) - (CODE_TAGS if cell.cell_type == "code" else TEXT_TAGS) - {"hide-input", "hide-output"}
        if unknown:
            raise ValueError(f"{path.name}: unknown tag {', '.join(sorted(unknown))} of the cell\n{cell.source[:200]}")
        source = cell.source
        if "parameters" in tags(cell):
            source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
        elif cell.cell_type == "markdown":
            source = re.sub(r"<<(\w+)>>", fill, source)
        new = (nbformat.v4.new_code_cell if cell.cell_type == "code" else nbformat.v4.new_markdown_cell)(source)
        new.id, new.metadata = f"{meta['set']}-{number}", NotebookNode(cell.metadata)
        cells.append(new)
    return ProblemSet(
        meta["set"], meta["title"], variant, values, tuple(cells), _questions(path.name, cells), dict(meta), path
    )


def _questions(file: str, cells: list[NotebookNode]) -> dict[str, Question]:
    found: dict[str, dict[str, Any]] = {}
    last = None
    for cell in cells:
        kinds = tags(cell) & (CODE_TAGS | TEXT_TAGS) - {"setup", "given", "parameters"}
        if not kinds:
            continue
        (kind,) = kinds if len(kinds) == 1 else _fail(file, f"one tag a cell, got {', '.join(sorted(kinds))}")
        number = str(cell.metadata.get("question", last if kind in {"solution", "rubric"} else ""))
        if not number:
            _fail(file, f"a {kind} cell needs its question:\n{cell.source[:200]}")
        last = cell.metadata["question"] = number
        parts = found.setdefault(number, {"tests": []})
        if kind.endswith("-test"):
            hidden = kind == "hidden-test"
            index = 1 + sum(t.hidden == hidden for t in parts["tests"])
            name, points = f"{kind.replace('-', ' ')} {index}", float(cell.metadata.get("points", 0))
            if points <= 0:
                _fail(file, f"{name} of {number} needs its points")
            parts["tests"].append(Test(number, name, points, cell.source, hidden))
        elif kind == "solution" and cell.cell_type == "code":
            parts.setdefault("program", cell)  # an experiment may have several
        elif kind in parts:
            _fail(file, f"question {number} has two cells tagged {kind}")
        else:
            parts[kind] = cell
    text = "\n\n".join(c.source for c in cells if c.cell_type == "markdown")
    titles = dict(re.findall(r"^#+ (\S+) (.+?)(?: \([^)]*\))?$", text, re.M))
    questions = {}
    for number, parts in found.items():
        asked, title = parts.get("written") or parts.get("open"), titles.get(number, "")
        if asked:
            needed = {"solution", "rubric"}
        else:
            needed = {"stub", "program"}
            if {t.hidden for t in parts["tests"]} != {True, False}:
                _fail(file, f"coding question {number} needs at least one public-test and one hidden-test")
        for kind in sorted(needed - set(parts)):
            _fail(file, f"question {number} has no {'solution' if kind == 'program' else kind} cell")
        if asked:
            kind, points = "written" if "written" in parts else "open", float(asked.metadata.get("points", 0))
            questions[number] = Question(number, kind, points, (), parts["rubric"].source, title)
        else:
            tests = tuple(parts["tests"])
            varies = bool(parts["stub"].metadata.get("varies", True))
            questions[number] = Question(number, "coding", sum(t.points for t in tests), tests, "", title, varies)
    return questions


def _fail(file: str, message: str) -> Any:
    raise ValueError(f"{file}: {message}")


def student(problem: ProblemSet, address: str | None = None) -> NotebookNode:
    """The notebook that students get: no solution, model answer, rubric or hidden test is anywhere in it."""
    return _notebook(problem, list(_student_cells(problem)), address)


def instructor(problem: ProblemSet, address: str | None = None) -> NotebookNode:
    """The notebook with everything, each solution in place of its stub."""
    return _notebook(problem, [_copy(c) for c in problem.cells if "stub" not in tags(c)], address)


def solved(problem: ProblemSet) -> NotebookNode:
    """What a perfect student hands in: the student's notebook with each stub replaced by its solution."""
    return _notebook(problem, [c for c in map(_copy, problem.cells) if not tags(c) & {"stub", "rubric", "hidden-test"}])


def _copy(cell: NotebookNode) -> NotebookNode:
    new = (nbformat.v4.new_code_cell if cell.cell_type == "code" else nbformat.v4.new_markdown_cell)(cell.source)
    kept = {k: v for k, v in cell.metadata.items() if k in {"tags", "question", "points"}}
    new.id, new.metadata = cell.id, NotebookNode(kept)
    return new


def _student_cells(problem: ProblemSet) -> Iterator[NotebookNode]:
    for cell in problem.cells:
        if cell.cell_type == "markdown" and "solution" in tags(cell):
            answer = nbformat.v4.new_markdown_cell(f"*Your answer to {cell.metadata['question']}.*")
            answer.id = cell.id
            answer.metadata = NotebookNode({"tags": ["answer"], "question": cell.metadata["question"]})
            yield answer
        elif not tags(cell) & SECRET:
            new = _copy(cell)
            if "public-test" in tags(cell):
                new.metadata["editable"] = new.metadata["deletable"] = False
            yield new


def _notebook(problem: ProblemSet, cells: list[NotebookNode], address: str | None = None) -> NotebookNode:
    for cell in cells:
        if "setup" in tags(cell) and address:
            cell.source = cell.source.replace('REPOSITORY = ""', f'REPOSITORY = "{address}"')
        cell.metadata["hitchhiker"] = {"cell": int(cell.id.rsplit("-", 1)[1])}  # where it belongs, if it is moved
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata = NotebookNode(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python"},
        hitchhiker={"set": problem.name, "variant": problem.variant},
    )
    nbformat.validate(notebook)
    return notebook
