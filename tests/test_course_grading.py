"""The machinery of the problem sets on a tiny one: building, judging, and what a hostile notebook can do."""

from __future__ import annotations

import json
import math
from pathlib import Path

import nbformat
import numpy as np
import pytest
import sympy as sp
import torch
from test_course_sets import leaks

from hitchhiker.cli import main
from hitchhiker.course import at, build, code, examples, judge, source, submission, values

WHERE = Path(__file__).parent / "data" / "assignments"
TINY = WHERE / "ps0_tiny.md"
FULL = 9.0


@pytest.fixture(scope="module")
def problem() -> source.ProblemSet:
    return source.load(TINY)


def added(notebook: nbformat.NotebookNode, *texts: str) -> nbformat.NotebookNode:
    notebook.cells += [nbformat.v4.new_code_cell(text) for text in texts]
    return notebook


def messages(verdict: judge.Verdict) -> str:
    return "\n".join([*verdict.notes, *(o.message for o in verdict.outcomes)])


# building


def test_a_variant_changes_text_and_values(problem):
    other = source.load(TINY, 1)
    assert problem.parameters == {"RATE": 3.0, "SEED": 11}
    assert other.parameters["RATE"] != 3.0
    assert other.parameters["SEED"] != 11
    assert other.parameters == source.load(TINY, 1).parameters
    assert f"at rate {other.parameters['RATE']}" in source.student(other).cells[0].source
    third = source.load(TINY, 2)
    assert all(other.parameters[name] != third.parameters[name] for name in third.parameters)


def test_the_student_notebook_is_clean_and_a_leak_is_seen(problem):
    notebook = source.student(problem)
    leaks(problem, notebook)
    for place in ("source", "metadata", "outputs"):
        leaky = source.student(problem)
        cell = next(c for c in leaky.cells if c.cell_type == "code")
        if place == "source":
            leaky.cells.append(nbformat.v4.new_markdown_cell("Four points for the word tail in the rubric."))
        elif place == "metadata":
            cell.metadata["hitchhiker"]["was"] = 'hidden_function = code("lambda z: (z - 1) ** 2")'
        else:
            cell.outputs = [nbformat.v4.new_output("stream", text="    return x.sum(-1)")]
        with pytest.raises(AssertionError, match="leaked"):
            leaks(problem, leaky)


def test_the_instructor_notebook_has_everything(problem):
    text = nbformat.writes(source.instructor(problem))
    for part in ("secret_weights", "the word tail", "hidden_function", "a tail below rounding"):
        assert part in text
    assert "NotImplementedError" not in text


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("tags: [hidden-test]", "tags: [public-test]", "0.1 needs at least one public-test and one hidden-test"),
        ("points: 2", "points: 0", "needs its points"),
        ("at rate <<rate>>", "at rate <<speed>>", "<<speed>> is none of the variants"),
        ("tags: [given]", "tags: [givn]", "unknown tag givn"),
        ('+++ {"tags": ["rubric"]}', "+++", "0.2 has no rubric"),
    ],
)
def test_a_mistake_in_a_source_is_named(tmp_path, old, new, words):
    text = TINY.read_text(encoding="utf-8")
    broken = tmp_path / "ps0_broken.md"
    broken.write_text(text.replace(":" + old, ":" + new).replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=r"ps0_broken\.md") as error:
        source.load(broken)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["build", "ps9"], "must be one of ps1"),
        (["build", "ps1", "--variant", "-1"], "variant must be an integer >= 0, got -1"),
        (["grade", "nowhere", "--set", "ps1"], "must be a folder of submissions, got 'nowhere'"),
        (["grade", ".", "--set", "ps1", "--workers", "0"], "workers must be >= 1, got 0"),
        (["grade", ".", "--set", "ps1", "--cell-seconds", "0"], "--cell-seconds must be > 0"),
    ],
)
def test_a_bad_argument_is_one_line(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["course", *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_named(capsys, tmp_path):
    (tmp_path / "taken").write_text("a file, no folder", encoding="utf-8")
    assert main(["course", "build", "ps1", "--out", str(tmp_path / "taken")]) == 1
    assert capsys.readouterr().err == f"hitchhiker: Not a directory: {tmp_path / 'taken' / 'ps1' / 'student'}\n"


def test_otter_has_the_same_tests(problem, tmp_path):
    import zipfile

    build.autograder(problem, tmp_path / "ps0.zip")
    with zipfile.ZipFile(tmp_path / "ps0.zip") as zipped:
        names = zipped.namelist()
        assert {"tests/q0_1.py", "tests/q0_3.py", "run_autograder", "setup.sh"} <= set(names)
        scope: dict = {}
        exec(zipped.read("tests/q0_3.py").decode(), scope)
    right = {"answer_0_3": sp.Symbol("lambda") * 2 * 3.0 + 3.0, "total": lambda x: x.sum(-1)}
    wrong = {**right, "total": lambda x: x.sum(0)}
    scope["test_1"].call_func(right)
    with pytest.raises(AssertionError, match="last axis"):
        scope["test_1"].call_func(wrong)


# what crosses between the two processes


def test_values_cross_unchanged():
    def no(_):
        raise AssertionError

    for value in (None, True, 3, -0.0, math.inf, 2 + 1j, "λ", [1, (2.5, None)], {1: "a", (2, 3): [4]}, np.float32(0.1)):
        back = values.decode(json.loads(json.dumps(values.encode(value, no))), no)
        assert back == value
        assert type(back) is type(value)
    for value in (torch.randn(2, 3), torch.zeros(0, 2, dtype=torch.int64), torch.ones(3, dtype=torch.bfloat16)):
        back = values.decode(values.encode(value.requires_grad_(value.is_floating_point()), no), no)
        assert torch.equal(back, value)
        assert back.dtype == value.dtype
    array = np.arange(6).reshape(2, 3)[:, ::2]
    np.testing.assert_array_equal(values.decode(values.encode(array, no), no), array)
    assert values.decode(values.encode(code("lambda z: z + 1"), no), lambda t: t) == {"code": "lambda z: z + 1"}


@pytest.mark.parametrize(
    "tree",
    [
        {"array": "AAAA", "as": "object", "shape": [1]},
        {"array": "AAAA", "as": "float64", "shape": [10**12]},
        {"tensor": "", "as": "float64", "shape": [-1, -1], "dtype": "float64"},
        {"float": "os.system"},
        [1, 2],
    ],
)
def test_forged_values_are_refused(tree):
    with pytest.raises((ValueError, KeyError, TypeError)):
        values.decode(tree, lambda t: t["ref"])


def test_at_reads_expressions():
    lam, tau = sp.symbols("λ tau")
    assert at(lam**2 * tau, lam=3, tau=0.5) == 4.5
    assert at(2, lam=1) == 2.0
    with pytest.raises(ValueError, match="also depends on tau"):
        at(lam * tau, lam=1.0)


# judging


def test_a_perfect_notebook_and_another_variants(problem):
    verdict = judge.judge(source.solved(problem), problem)
    assert (verdict.total, verdict.notes) == (FULL, []), messages(verdict)
    assert "tail below rounding" in verdict.answers["0.2"]
    old = judge.judge(source.solved(source.load(TINY, 1)), problem)
    assert all(old.points(number) < q.points for number, q in problem.questions.items() if q.kind == "coding")
    assert "says that it is ps0, variant 1" in old.notes[0]


def test_stubs_fail_with_helpful_words(problem):
    verdict = judge.judge(source.student(problem), problem)
    assert verdict.total == 0
    assert "NotImplementedError: 0.1: write expectation(f, rate)" in messages(verdict)
    assert "answer_0_3 is still three dots" in messages(verdict)


def test_lies_and_crashes_when_called_cost_only_their_question(problem):
    """One notebook: each function ends, hangs or lies when it is called, and the other question keeps its points."""
    crash = "import os\ndef expectation(f, rate):\n    os._exit(3)\n"
    verdict = judge.judge(added(source.solved(problem), crash), problem, {"call": 1})
    assert (verdict.points("0.1"), verdict.points("0.3")) == (2, 4), messages(verdict)  # the number was right
    assert "expectation: it ended its own process (exit code 3)" in messages(verdict)
    hang = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\ndef total(x):\n    while True: pass\n"
    lie = "class Any:\n    __sub__ = __abs__ = __lt__ = lambda self, *other: True\ndef expectation(f, rate):\n    return Any()\n"
    verdict = judge.judge(added(source.solved(problem), hang, lie), problem, {"call": 1})
    assert (verdict.points("0.1"), verdict.points("0.3")) == (2, 1), messages(verdict)
    assert "total: it was stopped after 1 seconds" in messages(verdict)
    assert "your answer cannot be used" in messages(verdict)


def test_magics_and_syntax_errors_do_not_stop_the_rest(problem):
    notebook = source.solved(problem)
    cells = [
        "%matplotlib inline\n!touch here\nwho = !whoami",
        "%%time\ntimed = 1",
        "%%bash\nrm -rf /",
        "def (",
        "assert timed",
    ]
    verdict = judge.judge(added(notebook, *cells), problem)
    assert verdict.total == FULL
    assert len(verdict.notes) == 1  # the syntax error
    assert "SyntaxError" in verdict.notes[0]


def test_a_missing_name_says_why(problem):
    notebook = source.solved(problem)
    for cell in notebook.cells:
        if "def total" in cell.source:
            cell.source = "1 / 0\n" + cell.source
    verdict = judge.judge(notebook, problem)
    why = "answer_0_3 is not there: ZeroDivisionError: division by zero (in your cell for 0.3, line 1: `1 / 0`)"
    assert why in [o.message for o in verdict.outcomes]


def test_an_error_shows_the_line_and_its_question(problem):
    notebook = source.student(problem)
    stub = cell_of(notebook, "stub", "0.1")
    stub.source = "def expectation(f, rate):\n    return float(1/0)\nanswer_0_1 = ("
    notebook.cells.insert(0, nbformat.v4.new_code_cell("import os\nos._exit(7)"))
    verdict = judge.judge(notebook, problem)
    assert "SyntaxError: '(' was never closed (in your cell for 0.1, line 3: `answer_0_1 = (`)" in messages(verdict)
    assert "that begins with `import os`" in messages(verdict)
    stub.source = "def expectation(f, rate):\n    return float(1/0)"
    verdict = judge.judge(notebook, problem)
    where = "(in your cell for 0.1, line 2: `return float(1/0)`)"
    assert f"expectation: ZeroDivisionError: division by zero {where}" in messages(verdict)
    assert "cell 2" not in messages(verdict)


def test_what_others_build_on_is_put_back(problem):
    notebook = source.solved(problem)
    notebook.cells = [c for c in notebook.cells if not source.tags(c) & submission.NEEDED]
    verdict = judge.judge(notebook, problem)
    assert verdict.total == FULL, messages(verdict)
    assert [note.partition("`")[2].partition("`")[0] for note in verdict.notes] == [
        'REPOSITORY = ""', "RATE = 3.0", "def readings():"
    ]  # fmt: skip
    emptied = source.solved(problem)
    cell_of(emptied, "parameters", None).source = ""
    cells, notes = submission.restored(emptied, problem)
    assert [c.source for c in cells].count("RATE = 3.0\nSEED = 11") == len(notes) == 1
    assert submission.restored(source.solved(problem), problem)[1] == []


def cell_of(notebook: nbformat.NotebookNode, tag: str, question: str | None) -> nbformat.NotebookNode:
    return next(c for c in notebook.cells if tag in source.tags(c) and c.metadata.get("question") == question)


def text(content: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_markdown_cell(content)


def split(cells: list, answer: nbformat.NotebookNode) -> None:
    answer.source = "First half."
    second = nbformat.from_dict(answer)
    second.source = "Second half."
    cells.insert(cells.index(answer) + 1, second)


def below_code(cells: list, answer: nbformat.NotebookNode) -> None:
    at = cells.index(answer)
    cells[at + 1 : at + 1] = [text("First half."), nbformat.v4.new_code_cell("1"), text("Second half.")]


def above(cells: list, answer: nbformat.NotebookNode) -> None:
    at = cells.index(answer)
    cells[at:at] = [text("First half."), text("### Part 2\nSecond half.")]


def anew(cells: list, answer: nbformat.NotebookNode) -> None:
    cells[cells.index(answer)] = text("First half.\n\nSecond half.")


def into_the_question(cells: list, answer: nbformat.NotebookNode) -> None:
    question = cells[cells.index(answer) - 2]
    question.source = question.source.replace("2. Check", "First half.\n\n2. Check") + "\n\nSecond half."


def below_a_copy_of_another_stub(cells: list, answer: nbformat.NotebookNode) -> None:
    answer.source = "First half."
    copy = nbformat.from_dict(next(c for c in cells if "stub" in source.tags(c)))
    copy.source = "log_joint(2.0)"
    at = cells.index(answer) + 1
    cells[at:at] = [copy, text("Second half.")]


def without_metadata(cells: list, answer: nbformat.NotebookNode) -> None:
    answer.source = "Second half."
    cells[cells.index(answer) - 2].source += "\n\nFirst half."
    for cell in cells:
        cell.metadata = nbformat.NotebookNode()


@pytest.mark.parametrize(
    "change", [split, below_code, above, anew, into_the_question, below_a_copy_of_another_stub, without_metadata]
)
def test_a_written_answer_is_found_wherever_it_stands(change):
    problem = source.load(source.find("ps1"))
    notebook = source.student(problem)
    assert submission.answers(notebook, problem) == {}
    change(notebook.cells, cell_of(notebook, "answer", "1.4"))
    notebook.cells = [nbformat.from_dict(c) for c in notebook.cells]
    (found,) = submission.answers(notebook, problem).items()
    assert found[0] == "1.4"
    assert found[1].index("First half.") < found[1].index("Second half.")
    assert "Show that" not in found[1]
    assert "Your answer" not in found[1]


def test_the_code_below_a_written_question_is_kept(problem):
    notebook = source.solved(problem)
    at = notebook.cells.index(cell_of(notebook, "open", "0.4"))
    cells = ["print('tried', 3)\n1 / 0", "'x' * 50_000", "40 + 2", "40 + 3;"]
    notebook.cells[at + 1 : at + 1] = [nbformat.v4.new_code_cell(code) for code in cells]
    work = judge.judge(notebook, problem).work
    assert list(work) == ["0.4"]
    assert [part["code"] for part in work["0.4"]] == cells
    first, second, third, fourth = (part["printed"] for part in work["0.4"])
    assert (first, third, fourth) == ("tried 3\n", "42\n", "")
    assert "more characters" in second
    assert len(second) < 5000
    assert "ZeroDivisionError" in work["0.4"][0]["error"]


def test_code_that_was_handed_out_is_not_shown_as_the_students():
    problem = source.load(source.find("ps1"))
    notebook = source.student(problem)
    run = judge.Run(judge._code(notebook.cells, problem), problem.limits)  # which is not started
    assert judge._work(run, problem) == {}
    next(c for c in notebook.cells if c.source.startswith("# 1.8")).source += "\nprint(3000)"
    run = judge.Run(judge._code(notebook.cells, problem), problem.limits)
    assert list(judge._work(run, problem)) == ["1.8"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x00\xff not json", "does not parse"),
        (b"[" * 100_000, "does not parse"),
        (b'{"worksheets": []}', "has no cells"),
        (b'{"cells": [1, 2]}', "does not parse"),
        (None, "a link or no ordinary file"),
    ],
)
def test_what_is_no_notebook_gets_a_message(problem, tmp_path, content, words):
    path = tmp_path / "ada.ipynb"
    if content is None:
        path.symlink_to(TINY)
    else:
        path.write_bytes(content)
    verdict = judge.judge_file(path, problem)
    assert verdict.total == 0
    assert words in verdict.notes[0]
    assert len(verdict.outcomes) == 5


def test_the_audit_hook_alone_keeps_ordinary_python_inside(problem, monkeypatch, tmp_path):
    """Without bubblewrap: the snooping notebook of the examples reaches nothing, and keeps its honest points."""
    from hitchhiker.course import sandbox

    monkeypatch.setattr(sandbox, "bubblewrap", lambda: None)
    examples.folder(problem, tmp_path / "class")
    notebook = submission.read(tmp_path / "class" / "jo_looks_around.ipynb")[0]
    verdict = judge.judge(notebook, problem)
    assert (verdict.total, verdict.notes) == (FULL, []), messages(verdict)
