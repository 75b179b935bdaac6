"""Make a set's student notebook, instructor notebook and autograder from its one source."""

from __future__ import annotations

import runpy
import shutil
import tempfile
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
    ``autograder/psN.zip`` is what Gradescope wants (made by otter-grader), ``grading/`` the source and the variant's values.
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
        (folder / "autograder").mkdir(exist_ok=True)
        autograder(problem, folder / "autograder" / f"{problem.name}.zip")
        grading = folder / "grading"
        grading.mkdir(exist_ok=True)
        shutil.copyfile(path, grading / path.name)
        write_json(grading / "variant.json", {"variant": variant, "parameters": dict(problem.parameters)})
        written.append(folder)
    return written


def address() -> str | None:
    """The repository's address, for the set-up cell in Colab and for Gradescope; None when it is not known."""
    code = Path(__file__).resolve().parents[2] / "book" / "_ext" / "repository.py"
    return runpy.run_path(str(code))["address"]() if code.exists() else None


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
