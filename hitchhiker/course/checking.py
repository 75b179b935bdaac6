"""Is this answer right, and if not, what is wrong with it?

``hitchhiker.check("05.2", answer)`` prints one line.  Beneath it, an exercise is one of five kinds: :class:`Number`,
:class:`Array`, :class:`Formula`, :class:`Function` and :class:`Choice`.  All but the last end in the same comparison:
an answer becomes a tensor of values (one, many, or one for each trial input), and those are held against the wanted
ones.  Where they differ, diagnoses are tried in order: first the exercise's own known mistakes, then for each usual
slip "would the answer be right without it?".  What is said names the slip, never the answer.

The exercises themselves are in :mod:`hitchhiker.course.exercises`, one dictionary for each part of the book.
"""

from __future__ import annotations

import difflib
import inspect
import random
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

Mistakes = Mapping[Any, str] | Iterable[tuple[Any, str]]
Close = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Verdict:
    """``right`` is None where there is nothing to judge yet; ``message`` is what the reader sees."""

    right: bool | None
    message: str


class NotYet(Exception):
    """What is wrong with an answer, in words for the reader.  A ``measure`` of :class:`Function` may raise it too."""


def check(key: str, answer: Any) -> None:
    """Say whether ``answer`` is right for the exercise ``key``, and if not, what is wrong with it.

    key: the exercise's number, ``"05.2"`` or ``"5.2"``.  answer: a number, a tensor, a sympy expression, a function or a letter,
    as the exercise asks; ``...`` shows what is wanted.  Prints one line; a wrong answer raises nothing.
    Raises ValueError for an unknown key.

    >>> check("05.2", ...)
    05.2: put your answer in place of the dots (an expression in λ, τ).
    """
    print(f"{key}: {verdict(key, answer).message}")


def verdict(key: str, answer: Any) -> Verdict:
    """The judgement that :func:`check` prints.  Raises ValueError for an unknown key and names the nearest ones."""
    from hitchhiker.course.exercises import EXERCISES

    if isinstance(key, str) and "0" + key in EXERCISES:
        key = "0" + key  # the page says exercise 5.2, the list "05.2"
    if not isinstance(key, str) or key not in EXERCISES:
        near = difflib.get_close_matches(str(key), EXERCISES, n=3, cutoff=0.3) or sorted(EXERCISES)[:3]
        raise ValueError(f"key must be the number of an exercise, got {key!r}; the nearest are {', '.join(near)}")
    return EXERCISES[key].verdict(answer)


# ---------------------------------------------------------------------------------------------------- the five kinds


class Exercise:
    """What the five kinds share.

    because: why the answer is right, one sentence; said only then.  mistakes: wrong answers and what to say to each, a
    dictionary or pairs.  ask: what is wanted, in words.  right: an example of a right answer, for the tests.
    """

    def __init__(self, because: str, mistakes: Mistakes, ask: str, right: Any):
        self.because, self.ask, self._right = because, ask, right
        self.mistakes = list(mistakes.items() if isinstance(mistakes, Mapping) else mistakes)

    @property
    def right(self) -> Any:
        """An example of a right answer."""
        return self._right

    def verdict(self, answer: Any) -> Verdict:
        if answer is None or answer is ...:
            return Verdict(None, f"put your answer in place of the dots ({self.ask}).")
        try:
            with torch.random.fork_rng(devices=[]):
                fault = self.fault(answer)
        except NotYet as found:
            fault = str(found)
        except Exception as error:  # an answer may be any object at all, and its methods may raise anything
            fault = f"It could not be read ({_first_line(error)}); wanted is {self.ask}."
        return Verdict(False, f"not yet. {fault}") if fault else Verdict(True, f"right. {self.because}")

    def fault(self, answer: Any) -> str | None:
        """What is wrong, or None.  May raise :class:`NotYet` instead."""
        raise NotImplementedError


class Array(Exercise):
    """A tensor of known shape (lists, tuples and numpy arrays of that shape are welcome).

    value: the wanted values, or a function without arguments that computes them when first needed.  rtol, atol: what
    counts as equal.  parts: names of the entries along the last axis, for messages.  variables: quantities that may be
    a factor too many or too few, as ``rate=2.5`` (λ in the message).
    """

    def __init__(
        self, value: Any, rtol: float = 1e-3, *, atol: float = 1e-9, because: str, mistakes: Mistakes = (),
        parts: Sequence[str] = (), ask: str = "", right: Any = None, **variables: float,
    ):  # fmt: skip
        super().__init__(because, mistakes, ask or _wanted_tensor(value, parts), right)
        self._value, self.rtol, self.atol, self.parts, self.variables = value, rtol, atol, tuple(parts), variables

    @property
    def right(self) -> Any:
        return self.value if self._right is None else self._right

    @cached_property
    def value(self) -> Tensor:
        return _numbers(self._value() if callable(self._value) else self._value)

    def fault(self, answer: Any) -> str | None:
        got, wanted = self.shaped(_numbers(answer, self.ask)).double(), self.value.double()
        return _compare(
            got, wanted, _tolerance(self.rtol, self.atol),
            mistakes=[(_numbers(wrong), words) for wrong, words in self.mistakes],
            variables={name: torch.full_like(wanted, v) for name, v in self.variables.items()},
            parts=self.parts, slips=self.rtol <= 0.1,
        )  # fmt: skip

    def shaped(self, got: Tensor) -> Tensor:
        if got.shape != self.value.shape:
            raise NotYet(f"Wanted is {self.ask}: {_shapes(got, self.value)}")
        return got


class Number(Array):
    """One number; or, with ``between=(low, high)``, any number of that range: for a rough prediction."""

    def __init__(
        self, value: Any = None, rtol: float = 1e-3, *, between: tuple[float, float] | None = None, ask: str = "",
        right: Any = None, **others: Any,
    ):  # fmt: skip
        if (value is None) == (between is None):
            raise ValueError("pass exactly one of value and between")
        self.between = between
        middle = value if between is None else sum(between) / 2
        super().__init__(middle, rtol, ask=ask or "a number", right=right, **others)

    def shaped(self, got: Tensor) -> Tensor:
        if got.numel() != 1:
            raise NotYet(f"One number is wanted, and this has shape {tuple(got.shape)}.")
        return got.reshape(())

    def fault(self, answer: Any) -> str | None:
        if self.between is None:
            return super().fault(answer)
        low, high = self.between
        got = self.shaped(_numbers(answer, self.ask)).item()
        if low <= got <= high:
            return None
        for wrong, words in self.mistakes:
            if abs(got - wrong) <= 0.02 * abs(wrong):
                return words
        if got != got:
            return "It is NaN."
        if low <= -got <= high:
            return "The sign is wrong."
        if got and low <= 1 / got <= high:
            return "It is upside down: this is the reciprocal."
        far = got * 10 < low or got > high * 10
        return f"It is {'much ' if far else ''}too {'small' if got < low else 'large'}."


class Choice(Exercise):
    """One letter out of several: for predictions in words.  mistakes: what to say to each of the other letters."""

    def __init__(
        self, value: str, *, options: Mapping[str, str], because: str, mistakes: Mistakes = (), ask: str = ""
    ):  # fmt: skip
        if value not in options:
            raise ValueError(f"value must be one of the options {', '.join(options)}, got {value!r}")
        listed = "; ".join(f'"{letter}" {words}' for letter, words in options.items())
        super().__init__(because, mistakes, ask or f"one letter: {listed}", value)
        self.options = options

    def fault(self, answer: Any) -> str | None:
        letters = {letter.lower(): letter for letter in self.options}
        if not isinstance(answer, str) or answer.strip().lower() not in letters:
            raise NotYet(f"One of the letters {', '.join(self.options)} is wanted, in quotes.")
        letter = letters[answer.strip().lower()]
        return None if letter == self.right else dict(self.mistakes).get(letter, "Not that one.")


class Formula(Exercise):
    """An expression: equal to the wanted one as sympy sees it, or else at random points, to twenty digits.

    value: the wanted expression, as text.  symbols: the names it may use; greek letters may be written out, or as λ.
    ranges: where random points lie, by symbol, ``{"tau": (0, 1), "k": range(1, 6)}``; 0.3 to 2.5 where nothing is said.
    wrong_derivative: where the answer is a derivative, what is differentiated: the wrong variable is then recognised.
    """

    def __init__(
        self, value: str, symbols: str, *, because: str, mistakes: Mistakes = (), ask: str = "", right: Any = None,
        ranges: Mapping[str, tuple[float, float] | range] | None = None, wrong_derivative: str | None = None,
    ):  # fmt: skip
        self.symbols = [_canonical(name) for name in symbols.replace(",", " ").split()]
        shown = ", ".join(map(_pretty, self.symbols))
        super().__init__(because, mistakes, ask or f"an expression in {shown}", value if right is None else right)
        self.value, self.parent = value, wrong_derivative
        self.ranges = {_canonical(name): where for name, where in (ranges or {}).items()}

    def fault(self, answer: Any) -> str | None:
        try:
            import sympy
        except ModuleNotFoundError as error:
            raise NotYet("Expressions need sympy: pip install sympy.") from error
        expression, wanted = self.read(answer), self.read(self.value)
        used, known = ({s.name for s in e.free_symbols} for e in (expression, wanted))
        foreign = sorted(used - set(self.symbols))
        if foreign:
            listed = ", ".join(map(_pretty, foreign))
            hint = " For a power of e write exp(…)." if "e" in foreign else ""
            raise NotYet(f"There is {listed} in it; wanted is {self.ask}.{hint}")
        if sympy.expand(expression - wanted) == 0:
            return None
        points, close = self.points(), _tolerance(1e-9, 1e-12)
        got, values = self.values(expression, points), self.values(wanted, points)
        if close(got, values).all():
            return None
        for wrong, words in self.known():
            if close(got, self.values(wrong, points)).all():
                return words
        if not torch.isfinite(got).all():
            return f"It is {'NaN' if got.isnan().any() else 'infinite'} for some values of its symbols."
        variables = {s: torch.tensor([float(p[s]) for p in points], dtype=torch.float64) for s in self.symbols}
        slip = _slip(got, values, close, variables)
        if slip:
            return slip
        extra, absent = (", ".join(sorted(map(_pretty, names))) for names in (used - known, known - used))
        if extra:
            return f"{extra} should not be in it."
        return f"It should depend on {absent} too." if absent else "It differs, at random values of its symbols."

    def known(self) -> Iterator[tuple[Any, str]]:
        """Wrong expressions and what to say to them."""
        for wrong, words in self.mistakes:
            yield self.read(wrong), words
        if self.parent is not None:
            parent = self.read(self.parent)
            yield parent, "This is not differentiated yet."
            for name in self.symbols:
                yield (
                    parent.diff(_symbol(name)),
                    f"This is the derivative with respect to {_pretty(name)}: the wrong variable.",
                )

    def read(self, answer: Any) -> Any:
        """A sympy expression in our own symbols, whatever the reader called theirs and assumed about them."""
        import sympy

        if isinstance(answer, Tensor):
            answer = answer.item()
        if isinstance(answer, str):
            answer = answer.translate(TYPESET)
            spelling = _misspelt(answer, self.symbols)
            if spelling:
                raise NotYet(spelling)
            names = {
                n: _symbol(_canonical(n))
                for n in re.findall(r"[^\W\d]\w*", answer)
                if _canonical(n) in self.symbols or (len(n) == 1 and n not in "EI")  # sympy has functions N, S and Q
            }
            text = re.sub(r"\blambda\b", "lamda", answer)  # a word of Python's own
            try:
                answer = sympy.sympify(text, locals=names | {"lamda": _symbol("lamda"), "π": sympy.pi})
            except Exception as error:  # the text is run as Python
                raise NotYet("It could not be read as an expression: is there a * in every product?") from error
        elif callable(answer) and not isinstance(answer, sympy.Basic):
            raise NotYet(f"Wanted is {self.ask}, not a function.")
        expression = sympy.sympify(answer)
        if isinstance(expression, sympy.Equality):
            raise NotYet("Give the right-hand side alone, without an equation.")
        if not isinstance(expression, sympy.Expr):
            raise NotYet(f"Wanted is {self.ask}, not {_kind(answer)}.")
        return expression.xreplace({s: _symbol(_canonical(s.name)) for s in expression.free_symbols})

    def points(self) -> list[dict[str, Any]]:
        """Six random points, the same every time."""
        import sympy

        draw, points = random.Random(0), []
        for _ in range(6):
            point: dict[str, Any] = {}
            for name in self.symbols:
                where = self.ranges.get(name, (0.3, 2.5))
                point[name] = (
                    sympy.Integer(draw.choice(where)) if isinstance(where, range) else sympy.Float(draw.uniform(*where))
                )
            points.append(point)
        return points

    def values(self, expression: Any, points: list[dict[str, Any]]) -> Tensor:
        found = []
        for point in points:
            value = expression.subs({_symbol(name): v for name, v in point.items()}).doit().evalf(20)
            try:
                found.append(complex(value))
            except TypeError as error:
                raise NotYet("It has no numerical value: is everything in it worked out?") from error
        tensor = torch.tensor(found, dtype=torch.complex128)
        if (tensor.imag.abs() > 1e-12 * (1 + tensor.real.abs())).any():
            raise NotYet("It is not real for every value of its symbols.")
        return tensor.real


class Function(Exercise):
    """A function, tried on inputs that the reader does not see.

    reference: a right one.  cases: argument tuples (a single argument may stand alone), or a function that makes them.
    batched: every float among the arguments goes in as a 0-d float64 tensor, and once more with all cases in one tensor
    (int, str, tensors and functions go in as they are).  float32: tensors are tried in float32 too and must come back so.
    extreme: further cases, tried last.  measure: what of the output is compared, ``measure(output, *arguments)``;
    expected: its wanted values, ``expected(*arguments)``, where the reference's own are not exact (a sampler's mean and
    variance, say).  parts: names of the entries along the last axis of what is compared.  view: how an answer that is more
    than a function is tried: ``view(answer)`` is one.  torch is seeded before each call.
    """

    def __init__(
        self, reference: Callable[..., Any], cases: Any, *, because: str, batched: bool = True, float32: bool = True,
        extreme: Any = (), mistakes: Mistakes = (), ask: str = "", right: Any = None, rtol: float = 1e-6,
        atol: float = 1e-9, measure: Callable[..., Any] | None = None, expected: Callable[..., Any] | None = None,
        parts: Sequence[str] = (), view: Callable[[Any], Callable[..., Any]] | None = None,
    ):  # fmt: skip
        self.names = list(inspect.signature(reference).parameters)
        ask = ask or f"a function f({', '.join(self.names)})"
        super().__init__(because, mistakes, ask, reference if right is None else right)
        self.reference, self.measure, self.expected, self.parts = reference, measure, expected, tuple(parts)
        self.cases, self.extreme, self.batched, self.float32 = cases, extreme, batched, float32
        self.rtol, self.atol, self.view = rtol, atol, view

    @cached_property
    def stages(self) -> list[tuple[str, list[Trial]]]:
        """What is tried, in order, each with the words that go before what is wrong there."""
        cases, extreme = ([self.prepared(c) for c in (g() if callable(g) else g)] for g in (self.cases, self.extreme))
        together = [_stacked(cases)] if self.batched else cases
        single = [_as_float32(case) for case in together if _tensors(case)] if self.float32 else []
        found = [("", cases)]
        if self.batched:
            found.append(("Right for one number at a time, but not for a tensor of them. ", together))
        found.append(("Right in float64, but not in float32. ", single))
        found.append(("Right for ordinary inputs, but not for an extreme one. ", extreme))
        return [(words, [Trial(case, self.wanted(case)) for case in group]) for words, group in found]

    def prepared(self, case: Any) -> tuple:
        case = case if isinstance(case, tuple) else (case,)
        return tuple(torch.tensor(a, dtype=torch.float64) if self.batched and type(a) is float else a for a in case)

    def wanted(self, case: tuple) -> Tensor:
        exact = tuple(a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in case)
        return _numbers(self.expected(*exact)) if self.expected else self.outcome(self.reference, exact)

    def fault(self, answer: Any) -> str | None:
        if not callable(answer) or isinstance(answer, Tensor):
            raise NotYet(f"Wanted is {self.ask}: give its name, without calling it. This is {_kind(answer)}.")
        for before, trials in self.stages:
            try:
                fault = self.compare([self.outcome(answer, t.arguments) for t in trials], trials)
            except NotYet as found:
                fault = str(found)
            if fault:
                return self.known(answer) or before + fault
        return None

    def known(self, answer: Callable[..., Any]) -> str | None:
        """What is to be said if the answer does the same as a known mistake, in every trial."""
        mine = self.outcomes(answer)
        if any(result is not None for result in mine):
            for theirs, words in self.known_outcomes:
                if all(map(self.same, mine, theirs)):
                    return words
        return None

    @cached_property
    def known_outcomes(self) -> list[tuple[list[Tensor | None], str]]:
        return [(self.outcomes(wrong), words) for wrong, words in self.mistakes]

    def outcomes(self, function: Callable[..., Any]) -> list[Tensor | None]:
        """What comes back in every trial; None where nothing of use does."""
        found: list[Tensor | None] = []
        for trial in (t for _, trials in self.stages for t in trials):
            try:
                found.append(self.outcome(function, trial.arguments))
            except NotYet:
                found.append(None)
        return found

    def same(self, a: Tensor | None, b: Tensor | None) -> bool:
        if a is None or b is None:
            return a is b
        return a.shape == b.shape and bool(self.close([a, b])(a.double(), b.double()).all())

    def close(self, results: Iterable[Tensor]) -> Close:
        """Equal to within the tolerance; in single precision, as far as single precision goes."""
        double = all(r.dtype == torch.float64 or not r.is_floating_point() for r in results)
        return _tolerance(self.rtol if double else max(self.rtol, 1e-4), self.atol if double else max(self.atol, 1e-6))

    def outcome(self, function: Callable[..., Any], arguments: tuple) -> Tensor:
        """What comes back, measured.  Raises :class:`NotYet` where nothing of use does."""
        own = [a.detach().clone().requires_grad_(a.requires_grad) if isinstance(a, Tensor) else a for a in arguments]
        at = self.describe(arguments)
        torch.default_generator.manual_seed(0)  # the CPU's alone: check gives it back as it was
        try:
            result = (self.view(function) if self.view else function)(*own)
        except NotImplementedError as error:
            raise NotYet(f"The function is not written yet ({_first_line(error)}).") from error
        except (Exception, SystemExit) as error:
            raise NotYet(f"At {at} it raises {_first_line(error)}.") from error
        if result is None or result is ...:
            raise NotYet(f"At {at} it returns {result}: is there a return at its end?")
        if isinstance(result, Tensor) and result.is_floating_point() and not self.measure:
            dtype = next((a.dtype for a in _tensors(own) if a.dim()), result.dtype)
            if result.dtype != dtype:
                raise NotYet(f"At {at} the dtype is lost: {_name(dtype)} goes in and {_name(result.dtype)} comes back.")
        try:
            return _numbers(self.measure(result, *own) if self.measure else result, "a tensor")
        except NotYet as found:
            raise NotYet(f"What comes back at {at} is not right. {found}") from found
        except Exception as error:
            raise NotYet(f"What comes back at {at} cannot be used: {_first_line(error)}.") from error

    def compare(self, got: list[Tensor], trials: list[Trial]) -> str | None:
        rows: list[str] = []
        values, wanted = [], []
        variables: dict[str, list[Tensor]] = {name: [] for name in self.names}
        width = len(self.parts) or 1
        for one, trial in zip(got, trials, strict=True):
            at = self.describe(trial.arguments)
            if one.shape != trial.wanted.shape and not one.numel() == trial.wanted.numel() == 1:
                raise NotYet(f"At {at}: {_shapes(one, trial.wanted)}")
            values.append(one.double().reshape(-1, width))
            wanted.append(trial.wanted.double().reshape(-1, width))
            rows += [f"At {at}"] * len(values[-1])
            for name, argument in zip(self.names, trial.arguments, strict=False):
                variables[name].append(_broadcast(argument, trial.wanted.shape).reshape(-1, width))
        if not values:
            return None
        return _compare(
            torch.cat(values), torch.cat(wanted), self.close(got), parts=self.parts, slips=self.rtol <= 0.1, rows=rows,
            variables={name: torch.cat(v) for name, v in variables.items() if v},
        )  # fmt: skip

    def describe(self, arguments: tuple) -> str:
        """``rate = 2, tau = 0.1``"""
        shown = ((n, _shown(a)) for n, a in zip(self.names, arguments, strict=False))
        return ", ".join(f"{name} = {value}" for name, value in shown if value) or "a trial input"


@dataclass(frozen=True)
class Trial:
    """Arguments, and what should come back for them."""

    arguments: tuple
    wanted: Tensor


# ---------------------------------------------------------------------------------------------- what may be wrong

#: usual slips: what to say, and how the answer looks without the slip
SLIPS: list[tuple[str, Callable[[Tensor], Tensor]]] = [
    ("The sign is wrong.", torch.neg),
    ("It is upside down: this is the reciprocal.", torch.reciprocal),
    ("It is too large by a factor of two.", lambda v: v / 2),
    ("A factor of two is missing.", lambda v: 2 * v),
    ("It is off by one.", lambda v: v - 1),
    ("It is off by one.", lambda v: v + 1),
    ("This is the square of what is wanted.", torch.sqrt),
    ("This is the square root of what is wanted.", torch.square),
    ("It should be one minus this.", lambda v: 1 - v),
    ("This is in per cent, and a fraction is wanted.", lambda v: v / 100),
    ("This is the logarithm of what is wanted.", torch.exp),
    ("The logarithm of this is wanted.", torch.log),
]


def _compare(
    got: Tensor, wanted: Tensor, close: Close, *, mistakes: Iterable[tuple[Tensor, str]] = (),
    variables: Mapping[str, Tensor] | None = None, parts: Sequence[str] = (), slips: bool = True,
    rows: Sequence[str] = (),
) -> str | None:  # fmt: skip
    """What is wrong with ``got``, in words; None if nothing is.

    All tensors have one shape.  mistakes: known wrong values.  variables: quantities that may be a factor too many or
    too few.  parts: names of the last axis.  rows: names of the first.  slips: whether to look for usual slips.
    """
    wrong = ~close(got, wanted)
    if not wrong.any():
        return None
    for known, words in mistakes:
        if known.shape == got.shape and close(got, known.double()).all():
            return words
    if len(parts) > 1 and wanted.shape[-1:] == (len(parts),):
        column = int(wrong.reshape(-1, len(parts)).any(0).nonzero()[0])
        one = {n: v[..., column] for n, v in (variables or {}).items()}
        fault = _compare(got[..., column], wanted[..., column], close, variables=one, slips=slips, rows=rows)
        return f"Look at {parts[column]}. {fault}"
    found = _slip(got, wanted, close, variables or {}) if slips else None
    return found or _first_wrong(got, wanted, wrong, rows, slips)


def _slip(got: Tensor, wanted: Tensor, close: Close, variables: Mapping[str, Tensor]) -> str | None:
    """The usual slip without which ``got`` would be right, if there is one."""

    def right(values: Tensor) -> bool:
        return bool(close(values, wanted).all())

    for name, v in variables.items():
        for words, undone in (("is too many", got / v), ("is missing", got * v), ("and a sign are wrong", -got / v)):
            if right(undone):
                return f"A factor {_pretty(name)} {words}."
    for words, undo in SLIPS:
        if right(undo(got)):
            return words
    some = wanted[torch.isfinite(wanted) & (wanted != 0)]
    if some.numel() > 2 and some.std() > 0:
        factor, gap = (got / wanted)[wanted != 0].median(), (got - wanted).median()
        if factor != 0 and right(got / factor):
            return "It is right but for a constant factor."
        if right(got - gap):
            return "It is right but for a constant that is added."
    return None


def _first_wrong(got: Tensor, wanted: Tensor, wrong: Tensor, rows: Sequence[str], slips: bool) -> str:
    """Where it is wrong first, and in which direction; what is not a number comes before all else."""
    broken = ~torch.isfinite(got) & torch.isfinite(wanted)
    index = int((broken if broken.any() else wrong).flatten().nonzero()[0])
    a, b = got.flatten()[index], wanted.flatten()[index]
    if rows:
        at = f"{rows[index // (got.numel() // len(rows))]}, "
    else:
        at = f"at index {tuple(map(int, np.unravel_index(index, got.shape)))}, " if got.dim() else ""
    if not torch.isfinite(a):
        return _sentence(f"{at}it is {'NaN' if a.isnan() else 'infinite'}.")
    if a * b < 0:
        return _sentence(f"{at}the sign is wrong, and not only that.")
    if slips and (a - b).abs() < 0.03 * b.abs():
        return _sentence(f"{at}it is nearly right, but not to the digits that are wanted.")
    return _sentence(f"{at}it is too {'small' if a < b else 'large'}.")


def _tolerance(rtol: float, atol: float) -> Close:
    """Elementwise equality; NaN equals NaN and an infinity itself."""
    return lambda a, b: torch.isclose(a, b, rtol=rtol, atol=atol, equal_nan=True)


# ------------------------------------------------------------------------------------------------------- small words


def _numbers(value: Any, ask: str = "a number") -> Tensor:
    """Whatever holds real numbers, as a detached tensor on the CPU: Python's, torch's, numpy's and sympy's."""
    if isinstance(value, str):
        raise NotYet(f"Wanted is {ask}, and this is text: leave out the quotes.")
    if isinstance(value, bool):
        raise NotYet(f"Wanted is {ask}, not {value}.")
    if callable(value) and not isinstance(value, Tensor):
        raise NotYet(f"Wanted is {ask}, and this is a function: call it.")
    if getattr(value, "free_symbols", None):
        raise NotYet(f"Wanted is {ask}, and this still has a symbol in it.")
    if isinstance(value, (list, tuple)) and value:
        parts = [_numbers(v, ask) for v in value]
        if len({p.shape for p in parts}) > 1:
            raise NotYet("Its rows have different lengths.")
        return torch.stack([p.double() for p in parts])
    if type(value) in (int, float) or not (isinstance(value, Tensor) or hasattr(value, "__array__")):
        try:
            return torch.tensor(float(value), dtype=torch.float64)
        except (TypeError, ValueError) as error:
            raise NotYet(f"Wanted is {ask}, not {_kind(value)}.") from error
    tensor = value.detach().cpu() if isinstance(value, Tensor) else torch.as_tensor(value)
    if tensor.is_complex():
        raise NotYet(f"Wanted is {ask}, and this is complex.")
    return tensor


def _shapes(got: Tensor, wanted: Tensor) -> str:
    hint = " It looks transposed." if got.dim() == 2 and got.T.shape == wanted.shape else ""
    return f"the shape is {tuple(got.shape)}, and {tuple(wanted.shape)} is wanted.{hint}"


def _wanted_tensor(value: Any, parts: Sequence[str]) -> str:
    if parts:
        return " and ".join(parts) if len(parts) < 3 else ", ".join(parts)
    return "a tensor" if callable(value) else f"a tensor of shape {tuple(_numbers(value).shape)}"


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:]


def _first_line(error: BaseException) -> str:
    try:
        text = next(iter(str(error).splitlines()), "")
    except Exception:  # somebody's own exception may fail to say what it is
        text = ""
    return f"{type(error).__name__}{f': {text[:160]}' if text else ''}"


def _kind(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shown(argument: Any) -> str:
    """An argument in a message: short values themselves, long ones by their shape, functions not at all."""
    if isinstance(argument, Tensor):
        if argument.numel() > 4:
            return f"a tensor of shape {tuple(argument.shape)}"
        values = argument.detach().double().tolist()
        return f"{values:g}" if isinstance(values, float) else str(values)
    if isinstance(argument, float):
        return f"{argument:g}"
    return repr(argument) if isinstance(argument, (int, str)) else ""


def _tensors(arguments: Iterable[Any]) -> list[Tensor]:
    return [a for a in arguments if isinstance(a, Tensor) and a.is_floating_point()]


def _as_float32(arguments: tuple) -> tuple:
    return tuple(a.float() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments)


def _stacked(cases: list[tuple]) -> tuple:
    """All numbers of the cases that share their other arguments with the first one, in one tensor an argument."""

    def others(case: tuple) -> list[Any]:
        return [a for a in case if not (isinstance(a, Tensor) and a.dim() == 0)]

    def same(a: Any, b: Any) -> bool:
        return a is b or (type(a) is type(b) and isinstance(a, (int, str)) and a == b)

    alike = [c for c in cases if all(map(same, others(c), others(cases[0])))]
    columns = zip(*alike, strict=True)
    return tuple(torch.stack(c) if isinstance(c[0], Tensor) and c[0].dim() == 0 else c[0] for c in columns)


def _broadcast(argument: Any, shape: torch.Size) -> Tensor:
    """A numeric argument beside each of the wanted values; NaN where there is none."""
    try:
        return torch.as_tensor(argument).detach().double().expand(shape)
    except (TypeError, RuntimeError, ValueError):
        return torch.full(shape, torch.nan, dtype=torch.float64)


#: what a text editor makes of operators
TYPESET = str.maketrans({"−": "-", "·": "*", "×": "*", "⋅": "*", "²": "**2", "³": "**3"})


#: what cannot be read in an expression, and what to say of it; in "\tau" Python itself has made a tab of \t
SPELLING = {
    r"\\|[\a\b\f\v]|\t(?=au|heta)": "Leave out the backslashes: exp(…), log(…) and sqrt(…) are written without, "
    "and so are lambda and tau.",
    r"\b(np|numpy|math|torch|sp|sympy)\s*\.\s*(\w+)": r"Leave out \1. before \2: functions have no prefix here, as in exp(…).",
    r"[\[\]{}]": "Only round brackets can be read: ( and ).",
    r"\b(exp|log|ln|sqrt)\s*(\*\*|\^)": r"\1 is a function: write \1(…).",
    r"(?<![=<>!])=(?!=)": "Give the right-hand side alone, without an equation.",
}


def _misspelt(text: str, symbols: Sequence[str]) -> str | None:
    """What keeps a text from being read as an expression, where one can tell: each cause by itself."""
    for pattern, says in SPELLING.items():
        if found := re.search(pattern, text):
            return found.expand(says)
    if "e" not in symbols and re.search(r"(?<![\w.])e\s*(\*\*|\^)", text):
        return "For a power of e write exp(…)."
    depth = 0
    for letter in text:
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if depth < 0:
            return "A bracket is closed that was never opened: there is a ) too many, or a ( is missing."
    if depth:
        return f"A bracket is not closed: {'one' if depth == 1 else depth} ) {'is' if depth == 1 else 'are'} missing."
    return None


#: other names that readers give to the book's symbols
ALIASES = {"lambda": "lamda", "lam": "lamda", "rate": "lamda", "temperature": "tau"}


def _canonical(name: str) -> str:
    """``lamda`` for lambda, lam, rate and λ; ``tau`` for τ: one name for each symbol, which Python can read."""
    if len(name) == 1 and not name.isascii():
        name = unicodedata.name(name, name).split()[-1].lower()
    return ALIASES.get(name, name)


def _pretty(name: str) -> str:
    """The letter for the name of a Greek one."""
    try:
        return unicodedata.lookup(f"GREEK SMALL LETTER {_canonical(name)}")
    except KeyError:
        return name


def _symbol(name: str) -> Any:
    import sympy

    return sympy.Symbol(name, positive=True)
