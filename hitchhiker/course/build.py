"""Make a set's student notebook, instructor notebook and autograder from its one source."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from hitchhiker._files import write_atomically, write_json
from hitchhiker.course import source

ROOT = Path(__file__).resolve().parents[2]


def build(
    names: Sequence[str] = (),
    variant: int = 0,
    out: Path = Path("course"),
    where: Path | None = None,
    outputs: bool = False,
) -> list[Path]:
    """Build the named sets (all by default) into ``out/psN``, or ``out/psN-variantV``; the folders that were written.

    ``student/psN.ipynb`` is what to hand out, ``instructor/psN.ipynb`` has the solutions, rubrics and hidden tests (and,
    if ``outputs``, what they print and plot), ``autograder/psN.zip`` is what Gradescope wants (made by otter-grader),
    ``grading/`` the source and the variant's values.
    """
    written, home = [], address()
    for name in names or source.available(where):
        path = source.find(name, where)
        problem = source.load(path, variant)
        folder = out / f"{problem.name}{suffix(variant)}"
        solutions = source.instructor(problem, home)
        if outputs:
            run(solutions)
        for kind, notebook in (("student", source.student(problem, home)), ("instructor", solutions)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            write_atomically(folder / kind / f"{problem.name}.ipynb", nbformat.writes(notebook) + "\n")
        (folder / "autograder").mkdir(exist_ok=True)
        autograder(problem, folder / "autograder" / f"{problem.name}.zip")
        grading = folder / "grading"
        grading.mkdir(exist_ok=True)
        shutil.copyfile(path, grading / path.name)
        write_json(grading / "variant.json", {"variant": variant, "parameters": dict(problem.parameters)})
        written.append(folder)
    return written


def run(notebook: NotebookNode) -> None:
    """Fill in the outputs.  A cell that fails is a ``ValueError``."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    found = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    with tempfile.TemporaryDirectory() as empty:
        client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": empty}})
        try:
            client.execute(env=found)
        except CellExecutionError as error:
            raise ValueError(f"the instructor notebook fails: {error.ename}: {error.evalue}") from error


def suffix(variant: int) -> str:
    """Variants other than 0 have folders of their own, so that none overwrites another."""
    return f"-variant{variant}" if variant else ""


def address(root: Path = ROOT) -> str | None:
    """The repository's address, for the set-up cell in Colab and for Gradescope; None when it is not known.

    It ends in ``@commit`` if this commit can be had there, so that what students install does not change under them.
    """
    code = ROOT / "book" / "_ext" / "repository.py"
    if not code.exists():
        return None
    repository = runpy.run_path(str(code))
    where = repository["address"](root)
    if where is None:
        return None
    for line in _git(root, "config", "--get-regexp", r"^remote\..*\.url$"):
        key, _, url = line.partition(" ")
        name = key.removeprefix("remote.").removesuffix(".url")
        held = _git(root, "branch", "-r", "--contains", "HEAD", "--list", f"{name}/*")
        if held and repository["normalise"](url) == where:
            return f"{where}@{_git(root, 'rev-parse', 'HEAD')[0]}"
    return where


def pinned(where: str) -> bool:
    return re.search(r"@[0-9a-f]{40,}$", where) is not None


def _git(root: Path, *arguments: str) -> list[str]:
    try:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True).stdout.splitlines()
    except OSError:
        return []


OTTER_TEST = """\
from otter.test_files import test_case

OK_FORMAT = False
name = {question!r}
points = None
GIVEN = {given!r}
TESTS = {tests!r}


def run(test, env):
    scope = {{}}
    exec("import math, numpy as np, sympy as sp, torch, hitchhiker as hh\\nfrom hitchhiker.course import at, code", scope)
    for text in GIVEN:
        exec(text, scope)
    scope["torch"].manual_seed(0)
    exec(TESTS[test], {{**env, **scope}})

"""
OTTER_CASE = """
@test_case(name={label!r}, points={points!r}, hidden={hidden!r})
def test_{number}(env):
    run({number}, env)

"""


def autograder(problem: source.ProblemSet, path: Path) -> None:
    """The zip for Gradescope, made by otter-grader from the same tests.

    On Gradescope each submission has a container of its own, but there the tests run inside the student's process: a
    determined student can tamper with them.  ``hitchhiker course grade`` keeps the two apart.
    """
    from otter.generate import main as generate

    where = address()
    with tempfile.TemporaryDirectory() as empty:
        for question in problem.questions.values():
            if question.kind != "coding":
                continue
            text = OTTER_TEST.format(
                question=question.number, given=problem.given, tests=[test.code for test in question.tests]
            )
            for number, test in enumerate(question.tests):
                label = f"{question.number} {test.name}"
                text += OTTER_CASE.format(label=label, points=test.points, hidden=test.hidden, number=number)
            (Path(empty) / f"q{question.number.replace('.', '_')}.py").write_text(text, encoding="utf-8")
        requirements = Path(empty) / "requirements.txt"
        requirements.write_text(
            "--extra-index-url https://download.pytorch.org/whl/cpu\n"
            + (f"hitchhiker[all] @ git+{where}\n" if where else "torch\n"),
            encoding="utf-8",
        )
        generate(
            tests_dir=empty, output_path=str(path), requirements=str(requirements), no_config=True, no_environment=True
        )
