"""Every problem set in book/assignments: solved it gets all points, its stubs and another variant's answers get none."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import warnings

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch

from hitchhiker.course import judge, source

SETS = source.available()
VARIANTS = (0, 2)
pytestmark = pytest.mark.slow


def core(notebook: nbformat.NotebookNode, problem: source.ProblemSet) -> nbformat.NotebookNode:
    """The cells that coding questions need: what only shows something takes most of the time and changes no answer."""
    coding = {q.number for q in problem.questions.values() if q.kind == "coding"}
    short = copy.deepcopy(notebook)
    short.cells = [
        c
        for c in short.cells
        if c.cell_type == "code" and source.tags(c) and c.metadata.get("question") in {*coding, None}
    ]
    return short


def report(verdict: judge.Verdict) -> str:
    return "\n".join([*(f"{o.question} {o.name}: {o.message}" for o in verdict.outcomes if o.message), *verdict.notes])


@pytest.mark.parametrize("name", SETS)
def test_the_solved_notebook_gets_full_points(name):
    problem = source.load(SETS[name])
    verdict = judge.judge(source.solved(problem), problem)
    assert verdict.total == sum(q.points for q in problem.questions.values() if q.kind == "coding"), report(verdict)
    assert not verdict.notes, report(verdict)  # every cell ran


@pytest.mark.parametrize("name", SETS)
def test_another_variant_has_its_own_answers(name):
    problem, other = (source.load(SETS[name], variant) for variant in VARIANTS)
    right = judge.judge(core(source.solved(other), other), other)
    assert right.total == sum(q.points for q in other.questions.values() if q.kind == "coding"), report(right)
    wrong = judge.judge(core(source.solved(other), other), problem)
    for question in problem.questions.values():
        if question.kind == "coding" and question.varies:
            assert wrong.points(question.number) < question.points, f"{question.number} has last year's answer"


@pytest.mark.parametrize("name", SETS)
def test_stubs_get_no_points_and_helpful_messages(name):
    problem = source.load(SETS[name])
    verdict = judge.judge(core(source.student(problem), problem), problem)
    for outcome in verdict.outcomes:
        assert outcome.earned == 0, f"{outcome.question} {outcome.name} gives points for nothing"
        assert "NotImplementedError" in outcome.message or "three dots" in outcome.message, outcome
    assert not verdict.notes, report(verdict)  # a stub is no error until it is called


@pytest.mark.parametrize("name", SETS)
def test_a_students_own_run_says_which_answer_is_missing(name):
    """In the student's kernel, where no judge looks: the test of a stub fails with the number of its question."""
    notebook, names, default = (
        source.student(source.load(SETS[name])),
        {"__name__": "__main__"},
        torch.get_default_dtype(),
    )
    missing, unhelpful = set(), []
    try:
        for cell in notebook.cells:
            if cell.cell_type != "code":
                continue
            try:
                with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    exec(compile(cell.source, "cell", "exec"), names)
            except (AssertionError, NotImplementedError) as error:
                number = str(error).partition(":")[0]
                missing.add(number)
                if number != cell.metadata.get("question", number):
                    unhelpful.append(error)
            except NameError as error:  # a given cell below one of the student's
                if "public-test" in source.tags(cell):
                    unhelpful.append(error)
    finally:
        torch.set_default_dtype(default)
        plt.close("all")
    assert not unhelpful
    coding = {q.number for q in source.load(SETS[name]).questions.values() if q.kind == "coding"}
    assert coding <= missing


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", SETS)
def test_the_student_notebook_has_no_solution_or_hidden_test(name, variant):
    problem = source.load(SETS[name], variant)
    leaks(problem, source.student(problem))


def leaks(problem: source.ProblemSet, notebook: nbformat.NotebookNode) -> None:
    """Fail if a line of a solution, model answer, rubric or hidden test is anywhere in the notebook's file."""

    def lines(cells):
        return {line.strip() for c in cells for line in c.source.splitlines()}

    secret = lines(c for c in problem.cells if source.tags(c) & source.SECRET)
    public = lines(c for c in problem.cells if not source.tags(c) & source.SECRET)
    text = json.dumps(json.loads(nbformat.writes(notebook)), ensure_ascii=False)
    for line in secret - public:
        if len(line) > 8:
            assert json.dumps(line, ensure_ascii=False)[1:-1] not in text, f"leaked: {line}"
    assert not {tag for c in notebook.cells for tag in source.tags(c)} & source.SECRET
    assert all(not c.get("outputs") for c in notebook.cells)
    shown = {key for c in notebook.cells for key in c.metadata}
    assert shown <= {"tags", "question", "points", "editable", "deletable", "hitchhiker"}
