"""Twelve made-up submissions of a problem set: one perfect, one half right, one of each hostile or broken kind."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from hitchhiker._files import write_atomically
from hitchhiker.course import source

SNOOP = """
import ctypes, glob, os, socket, subprocess, urllib.request
attempts = [
    lambda: open("{sources}").read(), lambda: open("{folder}/ada_perfect.ipynb").read(),
    lambda: open("../ada_perfect.ipynb").read(), lambda: open("/etc/passwd").read(), lambda: os.listdir("{folder}"),
    lambda: glob.glob("/**/*.ipynb", recursive=True)[0], lambda: np.fromfile("{sources}", dtype="uint8"),
    lambda: subprocess.check_output(["cat", "{sources}"]), lambda: os.system("true"), lambda: os.fork(),
    lambda: ctypes.CDLL(None).getpid(), lambda: ctypes.pythonapi.system(b"true"),
    lambda: open(f"/proc/{os.getppid()}/environ").read(), lambda: os.symlink("{sources}", "mine"),
    lambda: urllib.request.urlopen("http://example.org", timeout=3), lambda: socket.create_connection(("1.1.1.1", 53), 3),
]
found = []
for attempt in attempts:
    try:
        found.append(attempt())
    except (OSError, AttributeError) as error:
        print(error)
answer = str(found)
if found:
    raise SystemExit(f"the grader let me out: {found}")
"""
PATCH = """
import builtins, math
class Yes(float):
    __eq__ = __lt__ = __gt__ = __le__ = __ge__ = lambda self, other: True
    __hash__ = float.__hash__
    __sub__ = __rsub__ = __abs__ = lambda self, *other: self
builtins.abs = math.isclose = torch.allclose = torch.equal = np.allclose = lambda *anything, **options: True
import hitchhiker.course.judge, hitchhiker.course.values
hitchhiker.course.judge.judge = hitchhiker.course.judge._try = lambda *anything: ""
hitchhiker.course.values.encode = lambda *anything: {"float": "0x0.0p+0"}
for name in dir(hh):
    if name[0].isupper():
        setattr(hh, name, Yes)
"""
FORGE = """
import os, sys
for _ in range(3):
    print("all tests passed: 100%")
    print('{"question": "1.1", "name": "hidden test 1", "points": 100, "earned": 100, "message": ""}', file=sys.stderr)
for number in range(3, 20):
    try:
        os.write(number, b"\\x02\\x00\\x00\\x00{}")
    except OSError:
        pass
"""


def folder(problem: source.ProblemSet, where: Path) -> list[Path]:
    """Write the twelve notebooks into ``where``; each tells in its name what it is."""
    solved, stubs = source.solved(problem), source.student(problem)
    coding = [q.number for q in problem.questions.values() if q.kind == "coding"]
    half = set(coding[: len(coding) // 2])
    places = {"{sources}": str(problem.path.absolute()), "{folder}": str(where.absolute())}
    snoop = SNOOP
    for name, value in places.items():
        snoop = snoop.replace(name, value)
    makers: dict[str, Callable[[], str]] = {
        "ada_perfect": lambda: nbformat.writes(solved),
        "ben_half_right": lambda: nbformat.writes(_only(problem, half)),
        "cleo_endless_loop": lambda: nbformat.writes(_with(solved, "while True:\n    pass")),
        "dan_out_of_memory": lambda: nbformat.writes(_with(solved, "hoard = [bytes(10**9) for _ in range(10**4)]")),
        "eve_crash": lambda: nbformat.writes(_with(solved, "import os\nos._exit(7)")),
        "finn_moved_and_deleted": lambda: nbformat.writes(_moved(solved, coding[-1])),
        "gus_edited_tests": lambda: nbformat.writes(_edited(stubs)),
        "hana_imitates_the_grader": lambda: nbformat.writes(_with(stubs, FORGE)),
        "ines_patches_everything": lambda: nbformat.writes(_with(stubs, PATCH)),
        "jo_looks_around": lambda: nbformat.writes(_with(solved, snoop)),
        "kim_does_not_parse": lambda: nbformat.writes(solved)[: -len(nbformat.writes(solved)) // 3],
        "lee_fifty_megabytes": lambda: json.dumps(_heavy(solved)),
    }
    where.mkdir(parents=True, exist_ok=True)
    return [write_atomically(where / f"{name}.ipynb", make()) for name, make in makers.items()]


def _with(notebook: NotebookNode, text: str) -> NotebookNode:
    """The notebook with one more cell, behind the last that defines something."""
    new = copy.deepcopy(notebook)
    last = max(i for i, c in enumerate(new.cells) if c.metadata.get("question") and c.cell_type == "code")
    new.cells.insert(last, nbformat.v4.new_code_cell(text.strip(), id="added"))
    return new


def _only(problem: source.ProblemSet, numbers: set[str]) -> NotebookNode:
    """Solutions for these questions, stubs for the rest."""
    new = source.student(problem)
    solutions = {c.metadata["question"]: c for c in source.solved(problem).cells if "solution" in source.tags(c)}
    for cell in new.cells:
        if "stub" in source.tags(cell) and cell.metadata["question"] in numbers:
            cell.source = solutions[cell.metadata["question"]].source
    return new


def _moved(notebook: NotebookNode, deleted: str) -> NotebookNode:
    new = copy.deepcopy(notebook)
    new.cells = [c for c in reversed(new.cells) if c.cell_type != "code" or c.metadata.get("question") != deleted]
    return new


def _edited(notebook: NotebookNode) -> NotebookNode:
    new = copy.deepcopy(notebook)
    for cell in new.cells:
        if "public-test" in source.tags(cell):
            cell.source, cell.metadata["points"] = "assert True", 1000
    return new


def _heavy(notebook: NotebookNode) -> NotebookNode:
    new = copy.deepcopy(notebook)
    output = nbformat.v4.new_output("stream", text="x" * 1000 + "\n")
    output["text"] *= 50_000
    next(c for c in new.cells if c.cell_type == "code").outputs = [output]
    return new
