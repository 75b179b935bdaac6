"""`hitchhiker.check`: every exercise of the book, its known mistakes, and what people hand in instead of an answer."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest
import sympy as sp
import torch
from conftest import ROOT

import hitchhiker as hh
from hitchhiker.course import checking
from hitchhiker.course.checking import Array, Choice, Formula, Function, NotYet, Number, verdict
from hitchhiker.course.exercises import EXERCISES

# ------------------------------------------------------------------------------------------------ the whole registry

each_exercise = pytest.mark.parametrize("key", sorted(EXERCISES))


@each_exercise
def test_right_answer_passes(key):
    found = verdict(key, EXERCISES[key].right)
    assert found.right is True, found.message
    assert found.message == f"right. {EXERCISES[key].because}"


@each_exercise
def test_mistakes_fail_with_their_own_words(key):
    entry = EXERCISES[key]
    for wrong, words in entry.mistakes:
        found = verdict(key, wrong)
        assert found.right is False, f"{wrong!r} passes"
        assert found.message == f"not yet. {words}"


class Mute(Exception):
    def __str__(self):
        raise self


def mute(*_):
    raise Mute


class Evil:
    def __getattr__(self, name):
        raise Mute

    __float__ = __len__ = __iter__ = __eq__ = __array__ = mute


HOSTILE = [
    "", "nonsense", "x +", True, float("nan"), -math.inf, 1j, 10**400, [], [1, [2, 3]], {}, object(), {1: 2}, sp.Symbol("q"),
    sp.zoo, sp.Eq(sp.Symbol("a"), 1), torch.zeros(0), torch.zeros(2, 3, 5), np.array(["a"]), torch.tensor([1 + 1j]), type,
    lambda *a: None, lambda *a: 1 / 0, lambda *a: "text", lambda *a: torch.zeros(7, 11), lambda: 0, lambda *a: a[0],
    lambda *a: sys.exit(3), lambda *a: torch.tensor(math.nan), lambda *a: [object()],
    mute, Evil(), lambda *a: Evil(), [None, 1], np.array([None]), "**", "__import__('os')", 9**0.5 * 1j, range(3), b"1", print,
]  # fmt: skip


@each_exercise
def test_nothing_raises_and_nothing_gives_the_answer_away(key):
    entry = EXERCISES[key]
    blank = verdict(key, ...)
    assert blank.right is None
    assert entry.ask in blank.message
    assert verdict(key, None) == blank
    messages = [verdict(key, wrong).message for wrong in HOSTILE]
    assert all(m.startswith(("not yet. ", "right. ")) for m in messages)
    assert sum(m.startswith("right. ") for m in messages) <= 1  # a rough prediction may catch one of these by chance
    said = [m for m in [*messages, blank.message, *(words for _, words in entry.mistakes)] if not m.startswith("right")]
    for secret in secrets(entry):
        for words in said:
            assert not re.search(rf"(?<![\w.]){re.escape(secret)}(?![\w.]*\w)", words), f"{secret!r} in {words!r}"
    assert not any(entry.because in words for words in said)


def secrets(entry: checking.Exercise) -> set[str]:
    """What must not be read in a message: the value as it may be written, the formula with and without blanks."""
    if isinstance(entry, Formula):
        return (
            {entry.value, entry.value.replace(" ", ""), entry.value.replace("**", "^")}
            if len(entry.value) > 3
            else set()
        )
    if isinstance(entry, Array) and not (isinstance(entry, Number) and entry.between):
        values = entry.value.double().flatten().tolist()
        written = {f"{v:.{digits}g}" for v in values for digits in (2, 3, 4, 6)}
        return {w for w in written if len(w.strip("-0.")) > 1}  # one digit alone may stand for anything
    return set()


@pytest.mark.parametrize(
    ("entry", "test"),
    [
        (Number(2.5, because="so", right=2.6), test_right_answer_passes),
        (Number(2.5, because="so", mistakes={2.5001: "close"}), test_mistakes_fail_with_their_own_words),
        (Formula("a*b", "a b", because="so", mistakes={"b*a": "the wrong way round"}), test_mistakes_fail_with_their_own_words),
        (Array([1.5, 2.5], because="so", mistakes=[((0, 0), "It is 2.5 at the end.")]),
         test_nothing_raises_and_nothing_gives_the_answer_away),
        (Number(7, because="so", mistakes={3: "That is so"}), test_nothing_raises_and_nothing_gives_the_answer_away),
    ],
)  # fmt: skip
def test_these_tests_bite(monkeypatch, entry, test):
    monkeypatch.setitem(EXERCISES, "99.1", entry)
    with pytest.raises(AssertionError):
        test("99.1")


@pytest.mark.parametrize("chapter", sorted(ROOT.glob("book/[0-9][0-9]_*.md")), ids=lambda p: p.stem)
def test_every_exercise_of_a_chapter_is_checked(chapter):
    """Three grades; after each a cell for the reader's answer; and the book's own answer is right."""
    source = chapter.read_text(encoding="utf-8")
    printed = json.dumps(json.loads(chapter.with_suffix(".ipynb").read_text(encoding="utf-8")), ensure_ascii=False)
    parts = re.split(r"\{exercise\} (Predict|Derive|Build)", source)
    assert parts[1::2][:3] == ["Predict", "Derive", "Build"]  # an instructor may add more
    for number, text in enumerate(parts[2::2], 1):
        key = f"{chapter.stem[:2]}.{number}"
        before, _, after = text.partition("{solution")
        assert f'hh.check("{key}", ...)' in before, f"{key}: no cell for the answer before the solution"
        assert f'hh.check("{key}", ' in after, f"{key}: the solution is not checked"
        assert f"{key}: right. {json.dumps(EXERCISES[key].because, ensure_ascii=False)[1:-1]}" in printed


def test_every_entry_belongs_to_a_chapter():
    there = {
        f"{path.stem[:2]}.{number}"
        for path in ROOT.glob("book/[0-9][0-9]_*.md")
        for number in range(1, path.read_text(encoding="utf-8").count("{exercise} ") + 1)
    }
    assert set(EXERCISES) <= there, f"no such exercises: {sorted(set(EXERCISES) - there)}"


# ------------------------------------------------------------------------------------------------------- the verdict


def wrong(entry: checking.Exercise, answer: object) -> str:
    found = entry.verdict(answer)
    assert found.right is False, found
    return found.message


def right(entry: checking.Exercise, answer: object) -> bool:
    return entry.verdict(answer).right is True


NUMBER = Number(6.25, because="so", rate=2.5, temperature=0.3)


@pytest.mark.parametrize(
    "answer",
    [6.25, np.float32(6.25), torch.tensor(6.25), torch.tensor([6.25]), torch.tensor(6.25, dtype=torch.float16), [6.25],
     sp.Rational(25, 4), torch.tensor(6.25, requires_grad=True), np.array(6.25), 6.2501],
)  # fmt: skip
def test_a_number_may_come_in_any_dress(answer):
    assert right(NUMBER, answer)


@pytest.mark.parametrize(
    ("answer", "words"),
    [(-6.25, "sign"), (0.16, "upside down"), (12.5, "by a factor of two"), (3.125, "factor of two is missing"),
     (2.5, "factor λ is missing"), (6.25 * 2.5, "factor λ is too many"), (-6.25 * 0.3, "factor τ and a sign"),
     (5.25, "off by one"), (7.25, "off by one"), (39.0625, "square"), (math.log(6.25), "logarithm"), (625, "per cent"),
     (-5.25, "one minus"), (6.3, "nearly"), (9, "too large"), (4, "too small"), (math.nan, "NaN"), (math.inf, "infinite"),
     ("6.25", "text"), (True, "not True"), (lambda: 6.25, "call it"), ([6.25, 1], r"shape \(2,\)"),
     (sp.Symbol("x"), "symbol"), (1j, "complex"), (object(), "not an object")],
)  # fmt: skip
def test_what_is_said_about_a_number(answer, words):
    assert re.search(words, wrong(NUMBER, answer))


def test_a_rough_prediction():
    rough = Number(between=(10, 40), because="so", mistakes={5: "that is the temperature"})
    assert right(rough, 10)
    assert right(rough, torch.tensor(39))
    assert "temperature" in wrong(rough, 5)
    assert "sign" in wrong(rough, -20)
    assert "upside down" in wrong(rough, 1 / 20)
    assert "much too small" in wrong(rough, 0)
    assert "It is too large" in wrong(rough, 60)
    assert "much too small" in wrong(rough, 0.5)
    with pytest.raises(ValueError, match="exactly one"):
        Number(because="so")


def test_what_is_said_about_an_array():
    wanted = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 7.0]])
    entry = Array(wanted, because="so", rate=2.0, mistakes=[(wanted + 0.5, "half a spike")])
    assert right(entry, wanted.tolist())
    assert right(entry, wanted.numpy())
    assert "(3, 2)" in wrong(entry, wanted.T)
    assert "transposed" in wrong(entry, wanted.T)
    assert "sign" in wrong(entry, -wanted)
    assert "half a spike" in wrong(entry, wanted + 0.5)
    assert "constant factor" in wrong(entry, 3.3 * wanted)
    assert "constant that is added" in wrong(entry, wanted - 0.3)
    assert "index (1, 2)" in wrong(entry, wanted + torch.eye(6)[5].reshape(2, 3))
    pair = Array([0.2, 0.03], because="so", parts=("the mean", "the variance"))
    assert "Look at the variance. The sign" in wrong(pair, (0.2, -0.03))
    lazy = Array(lambda: torch.ones(3), because="so")
    assert right(lazy, lazy.right)


def test_a_choice():
    entry = Choice("b", options={"a": "it grows", "b": "it falls"}, because="so", mistakes={"a": "Heat smooths."})
    assert right(entry, " B ")
    assert "Heat smooths" in wrong(entry, "a")
    assert "letters a, b" in wrong(entry, "c")
    assert "letters a, b" in wrong(entry, 2)
    with pytest.raises(ValueError, match="one of the options"):
        Choice("c", options={"a": "it grows"}, because="so")


FORMULA = Formula(
    "lambda**2*(1 + tau)", "lambda tau", because="so", wrong_derivative="lambda**3*(1 + tau)/3",
    mistakes={"lambda + tau": "that is a sum"},
)  # fmt: skip
lam, tau, x = sp.symbols("lam tau x")


@pytest.mark.parametrize(
    "answer",
    ["lambda**2*(1 + tau)", "λ^2 + λ^2*τ", "lam^2*(π + π*tau)/pi", "lam**2 + rate**2*temperature", lam**2 + lam**2 * tau,
     sp.Symbol("λ", real=True) ** 2 * (1 + sp.Symbol("tau", positive=True)), sp.exp(2 * sp.log(lam)) * (tau + 1),
     lam**2 * (sp.sin(x) ** 2 + sp.cos(x) ** 2 + tau).simplify(), sp.Sum(lam**2 * (1 + tau) / 3, (x, 1, 3))],
)  # fmt: skip
def test_an_expression_may_be_written_in_any_way(answer):
    assert right(FORMULA, answer)


@pytest.mark.parametrize(
    ("answer", "words"),
    [("-lambda**2*(1 + tau)", "sign"), (lam * (1 + tau), "factor λ is missing"), (lam**3 * (1 + tau), "factor λ is too"),
     (lam**2 * (1 + tau) * sp.pi, "constant factor"), (lam**2, "depend on τ"), (lam**2 * (1 + tau) * x, "There is x"),
     (lam**3 / 3, "respect to τ"), (lam**3 * (1 + tau) / 3, "not differentiated"), (lam + tau, "that is a sum"),
     (lam**2 * (1 + tau**3), "random values"), (3, "depend on"), (lambda lam: lam, "not a function"),
     (sp.Eq(lam, tau), "right-hand side"), ("lam +", "could not be read"), ("2 lam", "every product"),
     (sp.I * lam, "not real"), (sp.nan, "NaN"),
     ("4*N + tau", "There is N"), (1 + tau, "depend on λ"), (1 / (lam**2 * (1 + tau)), "upside down")],
)  # fmt: skip
def test_what_is_said_about_an_expression(answer, words):
    assert re.search(words, wrong(FORMULA, answer))


@pytest.mark.parametrize(
    ("answer", "words"),
    [("exp(-lambda*(1+tau)", "one \\) is missing"), ("exp(-((lambda", "3 \\) are missing"), ("lambda*(1+tau))", "\\) too many"),
     ("np.exp(-lambda)", "Leave out np\\. before exp"), ("math.sqrt(lambda)", "Leave out math\\."),
     (r"\exp(-lambda)", "backslashes"), (r"\lambda^2(1+\tau)", "backslashes"), ("lambda*(1 + \tau)", "backslashes"),
     (r"\frac{\lambda}{2}", "backslashes"),
     ("e**(-lambda)", "write exp"), ("e^(-lambda(1+tau))", "write exp"), ("1 + 2*e", "There is e in it.*write exp"),
     ("exp^(-lambda)", "exp is a function"), ("exp{-lambda}", "round brackets"), ("z = lambda**2", "right-hand side"),
     ("lambda(1 + tau)", "every product"), ("2lambda", "every product")],
)  # fmt: skip
def test_each_slip_of_spelling_has_its_own_words(answer, words):
    said = wrong(FORMULA, answer)
    assert re.search(words, said), said
    assert ("every product" in said) == ("every product" in words)


def test_what_an_editor_makes_of_operators_can_be_read():
    assert right(FORMULA, "λ²·(1 − −τ)")
    assert right(FORMULA, "λ × λ + λ²×τ")
    assert right(Formula("e**2", "e", because="so"), "e^2")  # where it is a symbol of the exercise


def test_a_curvature_taken_for_a_matrix_says_what_it_is():
    entry = EXERCISES["12.3"]

    def matrix(g, exact, H):
        first, second = (half.mean(0) - exact for half in g.chunk(2))
        return ((first @ H * second).sum(-1) / (exact @ H * exact).sum(-1)).mean()

    assert "H is a function" in wrong(entry, matrix)
    assert "H is a function" in wrong(entry, lambda g, exact, H: torch.einsum("bi,ij,bj->b", exact, H, exact).mean())
    assert "H is a function" in wrong(entry, lambda g, exact, H: exact @ H[0])


def test_integers_and_ranges_among_the_symbols():
    entry = Formula("factorial(n)*log(1 - tau)", "n tau", because="so", ranges={"n": range(2, 7), "tau": (0.1, 0.9)})
    n = sp.Symbol("n", integer=True)
    assert right(entry, sp.gamma(n + 1) * sp.log(1 - tau))
    assert "factor n" in wrong(entry, sp.gamma(n) * sp.log(1 - tau))


def reference(rate, tau):
    return rate * torch.expm1(-tau)


FUNCTION = Function(
    reference, cases=[(2.0, 0.1), (3.0, 0.7), (0.4, 1.5)], extreme=[(1.0, 1e-12), (1e6, 100.0)], atol=0.0, because="so",
    mistakes={lambda rate, tau: rate + tau: "that is a sum"},
)  # fmt: skip


def test_an_answer_that_is_more_than_a_function():
    cubic = hh.indicators.get("cubic")
    entry = Function(cubic, [-0.5, 0.2, 0.9], view=lambda soft: lambda u: soft.derivative(u), because="so")
    assert right(entry, cubic)
    assert "too small" in wrong(entry, hh.indicators.get("linear"))
    assert "no attribute 'derivative'" in wrong(entry, torch.sin)


def test_a_right_function():
    assert right(FUNCTION, reference)
    assert right(FUNCTION, lambda a, b: a * torch.special.expm1(-b))


def depends_on_global_state(rate, tau):
    torch.manual_seed(99)
    return reference(rate, tau)


def test_checking_leaves_the_generator_and_the_inputs_alone():
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    assert right(FUNCTION, depends_on_global_state)
    assert torch.equal(torch.rand(2), wanted)
    assert right(FUNCTION, lambda rate, tau: rate.mul_(torch.expm1(-tau)))
    assert right(FUNCTION, reference)


@pytest.mark.parametrize(
    ("answer", "words"),
    [(lambda rate, tau: -reference(rate, tau), "sign"), (lambda rate, tau: torch.expm1(-tau), "factor λ is missing"),
     (lambda rate, tau: 2.7 * reference(rate, tau), "constant factor"), (lambda rate, tau: rate + tau, "that is a sum"),
     (lambda rate, tau: float(rate) * math.expm1(-float(tau)), "not for a tensor"),
     (lambda rate, tau: rate * (torch.exp(-tau) - 1), "not in float32|extreme"),
     (lambda rate, tau: rate * torch.expm1(-tau) + 0 * torch.where(tau > 50, torch.nan, 0.0), "extreme one. At rate = 1e"),
     (lambda rate, tau: reference(rate, tau).float(), "dtype is lost: float64 goes in and float32"),
     (lambda rate, tau: reference(rate, tau).double(), "not in float32.*float32 goes in and float64"),
     (lambda rate, tau: torch.stack([rate, tau]), r"shape is \(2,\), and \(\) is wanted"),
     (lambda rate, tau: reference(rate, tau).mean(), "not for a tensor"), (lambda rate, tau: None, "returns None"),
     (lambda rate: rate, "raises TypeError"), (lambda rate, tau: 1 / 0, "rate = 2, tau = 0.1 it raises ZeroDivisionError"),
     (lambda rate, tau: "text", "text"), (lambda rate, tau: rate / 0, "infinite"), (3.0, "give its name"),
     (lambda rate, tau: rate * torch.nan, "At rate = 2, tau = 0.1, it is NaN"), (lambda rate, tau: exit(), "SystemExit"),
     (lambda rate, tau: torch.where(rate < 2.5, reference(rate, tau), -1.9), "At rate = 3, tau = 0.7, it is too small")],
)  # fmt: skip
def test_what_is_said_about_a_function(answer, words):
    assert re.search(words, wrong(FUNCTION, answer))


def test_a_stub_is_not_written_yet():
    def stub(rate, tau):
        raise NotImplementedError("05.3: write it")

    assert "not written yet" in wrong(FUNCTION, stub)


def test_tensors_functions_and_words_as_arguments():
    entry = Function(
        lambda f, rate, kind, n: f(rate).sum() * n, batched=False, because="so",
        cases=lambda: [(torch.square, torch.rand(3, dtype=torch.float64), "mean", 2)],
    )  # fmt: skip
    assert right(entry, lambda f, rate, kind, n: n * f(rate).sum())
    assert "rate = [" in wrong(entry, lambda f, rate, kind, n: 1 / 0)
    assert "kind = 'mean', n = 2" in wrong(entry, lambda f, rate, kind, n: 1 / 0)
    assert "not in float32" in wrong(entry, lambda f, rate, kind, n: n * f(rate.double()).sum())


def test_a_sampler_is_judged_by_what_is_measured():
    def measure(z, rate, size):
        if z.shape != (size,):
            raise NotYet("One count each.")
        return torch.stack([z.mean(), z.var()])

    entry = Function(
        lambda rate, size: torch.poisson(torch.full((size,), rate)), cases=[(4.0, 50_000)], batched=False, rtol=0.05,
        measure=measure, expected=lambda rate, size: [rate, rate], parts=("the mean", "the variance"), because="so",
    )  # fmt: skip
    assert right(entry, entry.right)
    assert "Look at the variance" in wrong(entry, lambda rate, size: torch.full((size,), rate))
    assert "One count each" in wrong(entry, lambda rate, size: torch.zeros(3))
    assert "Look at the mean. A factor of two" in wrong(entry, lambda rate, size: entry.right(rate / 2, size))


def test_the_number_may_be_written_as_on_the_page():
    assert verdict("5.2", ...) == verdict("05.2", ...)


def test_unknown_key_names_the_nearest():
    with pytest.raises(ValueError, match=r"got '05.9'; the nearest are .*05\.\d"):
        hh.check("05.9", 1)
    with pytest.raises(ValueError, match=r"got 5\.2"):
        hh.check(5.2, 1)


def test_check_prints_one_line(capsys):
    assert hh.check("05.2", "exp(-lambda*(1 + tau))") is None
    hh.check("05.2", "exp(lambda)")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("05.2: right. ")
    assert lines[1].startswith("05.2: not yet. ")
    assert len(lines) == 2


def test_importing_the_package_brings_neither_exercises_nor_sympy():
    code = (
        "import sys, hitchhiker as hh; assert not [m for m in sys.modules if 'course' in m or m == 'sympy']; hh.check;"
        "hh.check('05.1', 15); print('sympy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False", done.stdout
