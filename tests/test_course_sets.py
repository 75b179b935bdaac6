"""Every problem set in book/assignments: solved it gets all points, its stubs and another variant's answers get none."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import json
import re
import warnings

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch

import hitchhiker as hh
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
        if len(line) > 8 and re.search(r"\w", line):  # the rule below a table's head is no secret
            assert json.dumps(line, ensure_ascii=False)[1:-1] not in text, f"leaked: {line}"
    assert not {tag for c in notebook.cells for tag in source.tags(c)} & source.SECRET
    assert all(not c.get("outputs") for c in notebook.cells)
    shown = {key for c in notebook.cells for key in c.metadata}
    assert shown <= {"tags", "question", "points", "editable", "deletable", "hitchhiker"}


@pytest.mark.parametrize("name", SETS)
def test_the_head_says_what_the_set_holds(name):
    """One head for all: the title of the reports, and a table of questions, points and kinds."""
    problem = source.load(SETS[name])
    head = problem.cells[0].source
    assert re.match(r"# (.+)\n", head)[1] == problem.title
    assert problem.title.startswith(f"Problem set {name[2:]}. ")
    table = [[v.strip() for v in row.strip("|").split("|")[1:]] for row in re.findall(r"^\|.*\|$", head, re.M)]
    numbers, _, points, kinds = table
    assert numbers == list(problem.questions)
    assert points == [f"{q.points:g}" for q in problem.questions.values()]
    assert kinds == ["code" if q.kind == "coding" else q.kind for q in problem.questions.values()]
    assert "*What you need*" in head
    assert "*Time*" in head


def uniform_and_right_slope(KIND, POWER, TAU, **_):
    """Problem set 2, 2.7: the mean slope with places uniform in time, and the right one."""
    s = torch.linspace(-1, 1, 20_001, dtype=torch.float64)
    slope = hh.indicators.get(KIND).derivative(s)
    steady = torch.trapezoid(slope * (1 - TAU * s), s) * ((1 + TAU) ** POWER - (1 - TAU) ** POWER) / (2 * POWER * TAU)
    return float(steady), float(torch.trapezoid(slope * (1 - TAU * s) ** POWER, s))


@pytest.mark.parametrize("variant", range(25))  # its lists repeat after twelve
def test_uniform_places_show_in_the_slope_of_every_variant(variant):
    uniform, right = uniform_and_right_slope(**source.load(SETS["ps2"], variant).parameters)
    assert abs(uniform / right - 1) > 0.01


def test_a_ramp_on_which_they_hardly_show_is_seen():
    uniform, right = uniform_and_right_slope("quintic", 3.5, 0.45)  # its terms of second order cancel
    assert abs(uniform / right - 1) < 0.001


# ------------------------------------------------------------------------------ unusual and right, plausible and wrong


def solution(problem: source.ProblemSet, question: str) -> str:
    return next(
        c.source
        for c in problem.cells
        if c.cell_type == "code" and "solution" in source.tags(c) and c.metadata.get("question") == question
    )


def answered(name: str, question: str, text: str, needs: str) -> judge.Verdict:
    """The verdict on one question, answered by ``text``; the questions that it needs are solved, all others missing."""
    problem = source.load(SETS[name])
    notebook, cells = source.solved(problem), []
    for cell in notebook.cells:
        number, kinds = cell.metadata.get("question"), source.tags(cell)
        if cell.cell_type == "code" and kinds & {"setup", "given", "parameters", "solution"}:
            if number == question:
                cell.source, text = text, ""
            if number in {None, question, *needs.split()}:
                cells.append(cell)
    notebook.cells = cells
    return judge.judge(notebook, dataclasses.replace(problem, questions={question: problem.questions[question]}))


LIST = """
def window(rate, tau, size):
    return soft_count(torch.empty(400, size, dtype=torch.float64).exponential_(), rate, tau)
"""
NUMPY_JOINT = """
from scipy import stats

def log_joint(x):
    z = np.arange(80)
    return stats.poisson.logpmf(z, PRIOR) + stats.norm.logpdf(np.asarray(x)[..., None], GAIN * z / (z + HALF), SIGMA)
"""
NUMPY_BELIEF = """
from scipy import stats

def belief(x):
    z, rate = np.arange(21), f(B + W * torch.arange(21.0).double()[:, None]).numpy()
    logs = stats.poisson.logpmf(z, r) + stats.poisson.logpmf(np.asarray(x)[..., None, :], rate).sum(-1)
    p = np.exp(logs - logs.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)
"""
# set, question, what it needs, what is replaced in the solution (or the whole answer), what the tests say
ANSWERS = [
    ("ps1", "1.1", "", NUMPY_JOINT, ""),
    ("ps1", "1.1", "", ("COUNTS), SIGMA)", "COUNTS), SIGMA**2)"), "whether SIGMA is a standard deviation"),
    ("ps1", "1.6", "1.1 1.2 1.3 1.5", ("estimate, 0.0)).sum().item()", "estimate, 0.0)).sum()"), ""),
    ("ps1", "1.6", "1.1 1.2 1.3 1.5", ("torch.where(s > 0, estimate, 0.0)", "estimate"), "pairs with equal rewards"),
    ("ps2", "2.6", "2.1 2.2 2.3", ("return z,", "hard = hard.long()\n    return z,"), ""),
    ("ps2", "2.6", "2.1 2.2 2.3", LIST, "is there a list of arrivals that ends"),
    ("ps3", "3.4", "3.1 3.3", ("answer_3_4 = float(", "answer_3_4 = sp.Float("), ""),
    ("ps4", "1.1", "", ("(rate @ Phi.T - x) @ Phi + d", "rate @ Phi.T @ Phi - 2 * Phi.T @ x + d"), "gradient: RuntimeError"),
    ("ps4", "1.1", "", ("return rate * (2", "return -rate * (2"), "a small step against it must lower E f"),
    ("ps4", "2.1", "1.1", ("(c - 1) * x @ Phi", "(c - 1) * Phi.T @ x"), "bias: RuntimeError"),
    ("ps5", "1.2", "1.1", ("error = error - (1 - v)", "error = error + (1 - v)"), "runs['biased']"),
    ("ps5", "2.1", "", ("return float(f.deficit * tau), float(noise)", "return torch.tensor([f.deficit * tau, noise])"), ""),
    ("ps5", "2.1", "", (" * (1 - tau * s)).square()", ").square()"), "the weight (1 - τs) is missing"),
    ("ps6", "1.1", "", NUMPY_BELIEF, ""),
    ("ps6", "2.1", "1.1", ("return float(forward[-1].logsumexp(0))", "return forward[-1].logsumexp(0)"), ""),
    ("ps6", "2.1", "1.1", ("rate[..., 2:])", "rate[..., 2:]).log_softmax(-1)"), "without renormalising"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "question", "needs", "change", "says"), ANSWERS)
def test_unusual_answers_pass_and_wrong_ones_do_not(name, question, needs, change, says):
    text = change
    if isinstance(change, tuple):
        given = solution(source.load(SETS[name]), question)
        assert change[0] in given
        text = given.replace(*change)
    verdict = answered(name, question, text, needs)
    full = sum(o.points for o in verdict.outcomes)
    assert (verdict.total == full) == (not says), report(verdict)
    assert says in report(verdict)
