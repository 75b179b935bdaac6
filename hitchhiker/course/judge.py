"""Grade one notebook: its code runs in a process of its own, the pristine tests run here and ask that process for values.

Nothing that a student writes is run in this process, and no test ever enters the student's: of a test, only the
arguments of its calls cross over.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import functools
import io
import json
import math
import os
import re
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from hitchhiker.course import source, submission, values
from hitchhiker.course.sandbox import Failed, Process, Stopped

MOST_RESTARTS = 8
MOST_CODE, MOST_PRINTED, MOST_WORK = 8000, 4000, 30  # characters of a cell, of what it printed; cells a question


@dataclass
class Outcome:
    """One test's result: its points, or the message that says what is wrong."""

    question: str
    name: str
    hidden: bool
    points: float
    earned: float
    message: str = ""


@dataclass
class Verdict:
    """All that is known about one submission."""

    set: str
    variant: int
    outcomes: list[Outcome] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # about the whole notebook, for the student
    answers: dict[str, str] = field(default_factory=dict)  # written answers, as Markdown
    work: dict[str, list[dict[str, str]]] = field(default_factory=dict)  # the code below them, and what it printed
    seconds: float = 0.0

    def points(self, question: str) -> float:
        return sum(o.earned for o in self.outcomes if o.question == question)

    @property
    def total(self) -> float:
        return sum(o.earned for o in self.outcomes)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Proxy:
    """Something of the student's that is not plain data: it can be called, asked for an attribute or, if it is a sympy
    expression, for its value with ``.at``.  ``symbols`` are the names of an expression's symbols."""

    def __init__(self, run: Run, name: str, tree: Mapping[str, Any]):
        self._run, self._name, self._ref = run, name, int(tree["ref"])
        self._type = str(tree.get("type"))[:80]
        self.symbols = None if tree.get("symbols") is None else {str(s) for s in tree["symbols"]}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        arguments = [values.encode(list(args), _reference), values.encode(kwargs, _reference)]
        return self._run.ask(self._name, do="call", ref=self._ref, arguments=arguments, seed=self._run.next_seed())

    def at(self, **where: float) -> float:
        return self._run.ask(self._name, do="at", ref=self._ref, values=values.encode(where, _reference))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._run.ask(f"{self._name}.{name}", do="attribute", ref=self._ref, name=name)

    def __repr__(self) -> str:
        return f"a {self._type}"


def _reference(value: Any) -> dict[str, Any]:
    if isinstance(value, Proxy):
        return {"ref": value._ref}
    raise TypeError(f"a test passes plain data, tensors, arrays and code(…) to a student's function, not {value!r}")


@dataclass(frozen=True)
class Cell:
    """A cell to run: ``code`` is plain Python, ``text`` what the student wrote, without magics replaced."""

    name: str
    section: str
    order: int
    text: str
    code: str
    added: bool  # or changed

    def where(self, line: Any = None) -> str:
        """How a student finds it: ``in your cell for 1.6, line 2: `return 0` ``."""
        lines = self.text.splitlines()
        below = f"for {self.section}" if re.fullmatch(r"\d+\.\d+", self.section) else f"below “{self.section}”"
        if isinstance(line, int) and 0 < line <= len(lines) and lines[line - 1].strip():
            return f"in your cell {below}, line {line}: `{lines[line - 1].strip()[:100]}`"
        return f"in your cell {below} that begins with `{submission.first_line(self.text)}`"


class Run:
    """A submission's notebook, run once or, after a crash, again without the cell that crashed."""

    def __init__(self, cells: list[Cell], limits: dict[str, float]):
        self.cells, self.limits = cells, limits
        self.named = {cell.name: cell for cell in cells}
        self.skipped: dict[str, str] = {}  # cell and why it is not run again
        self.errors: dict[str, str] = {}
        self.printed: dict[str, str] = {}
        self.process: Process | None = None
        self.restarts, self.seed = 0, 0
        self.until = time.monotonic() + limits["total"]
        self.deadly: dict[str, str] = {}  # what ended the process is not called again
        self.last: Any = None

    def start(self) -> Process:
        while self.process is None or self.process.ended:
            if self.restarts > MOST_RESTARTS:
                raise Stopped("the notebook stopped its process too often")
            if time.monotonic() > self.until:
                raise Stopped(f"the notebook ran longer than {self.limits['total']:g} seconds")
            self.restarts += 1
            self.errors = {}
            self.process = Process(self.limits)
            for cell in self.cells:
                if cell.name in self.skipped:
                    continue
                left = min(self.limits["cell"], self.until - time.monotonic())
                if left <= 0:
                    why = "it was not run: the time for the whole notebook was used up"
                    self.skipped[cell.name] = f"{why} ({cell.where()})"
                    continue
                try:
                    self.printed[cell.name] = self.process.ask(left, do="run", name=cell.name, source=cell.code)[1]
                except Failed as error:
                    self.printed[cell.name] = error.text
                    self.errors[cell.name] = self.say(error, cell)
                except Stopped as error:
                    self.skipped[cell.name] = f"{error} ({cell.where()})"
                    break
        return self.process

    def say(self, error: Failed, cell: Cell | None = None) -> str:
        """The error, and where in the notebook it came from."""
        cell = self.named.get(str(error.error["cell"]), cell)
        return str(error) if cell is None else f"{error} ({cell.where(error.error['line'])})"

    def next_seed(self) -> int:
        self.seed += 1
        return self.seed

    def ask(self, label: str, **request: Any) -> Any:
        left = min(self.limits["call"], max(self.until - time.monotonic(), 1.0))
        if self.process is None or label in self.deadly:
            raise Problem(f"{label}: {self.deadly.get(label, 'the notebook does not run')}")
        try:
            tree, _ = self.process.ask(left, **request)
        except Failed as error:
            raise Problem(f"{label}: {self.say(error)}") from None
        except Stopped as error:
            self.deadly[label] = str(error)
            raise Problem(f"{label}: {error}") from None
        try:
            self.last = values.decode(tree, lambda t: Proxy(self, label, t))
        except Exception as error:
            raise Problem(f"{label} gave something that cannot be read ({error})") from None
        return self.last

    def names(self, wanted: set[str]) -> dict[str, Any]:
        """Those of the names that the notebook defines, with their values."""
        found = {}
        for name in sorted(wanted):
            try:
                tree, _ = self.start().ask(self.limits["call"], do="get", name=name)
                found[name] = values.decode(tree, functools.partial(Proxy, self, name))
            except Failed as error:
                if error.error["type"] != "KeyError":
                    raise Problem(f"{name}: {self.say(error)}") from None
            except (ValueError, TypeError, KeyError, LookupError, OverflowError) as error:
                raise Problem(f"{name} cannot be read ({error})") from None
        return found

    def close(self) -> None:
        if self.process is not None:
            self.process.close()


class Problem(Exception):
    """Something that the student should read: the code raised, stopped, or gave what cannot be read."""


def judge(notebook: NotebookNode, problem: source.ProblemSet, limits: Mapping[str, float] | None = None) -> Verdict:
    """Run a notebook and every test of its problem set.

    ``limits`` overrides those of the set: ``cell``, ``call`` and ``total`` in seconds, ``memory`` in gigabytes.
    """
    began = time.monotonic()
    verdict = Verdict(problem.name, problem.variant)
    allowed = {**problem.limits, **(limits or {})}
    says = submission.stated(notebook)
    if says and says != (problem.name, problem.variant):
        verdict.notes.append(
            f"This notebook says that it is {says[0]}, variant {says[1]}; "
            f"it was graded as {problem.name}, variant {problem.variant}."[:300]
        )
    verdict.answers = submission.answers(notebook, problem)
    whole, notes = submission.restored(notebook, problem)
    verdict.notes += notes
    cells = _code(whole, problem)
    run = Run(cells, allowed)
    try:
        scope = _scope(problem)
        wanted = {t: _wanted(t.code, scope) for q in problem.questions.values() for t in q.tests}
        everything = set().union(*wanted.values()) if wanted else set()
        ordered = sorted(cells, key=lambda cell: cell.order)
        if ordered != cells and len(_found(run, everything)) < len(everything):
            again = Run(ordered, allowed)
            if len(_found(again, everything)) > len(_found(run, everything)):
                run, again = again, run
                verdict.notes.append("Cells were moved; run in their original order, more of your answers are there.")
            again.close()
        for question in problem.questions.values():
            for test in question.tests:
                message = _try(test, run, scope, wanted[test])
                verdict.outcomes.append(
                    Outcome(
                        test.question, test.name, test.hidden, test.points, 0.0 if message else test.points, message
                    )
                )
        verdict.notes += [f"A cell was left out: {why}." for why in run.skipped.values()]
        verdict.notes += [f"A cell failed: {why}" for why in list(run.errors.values())[:20]]
        verdict.work = _work(run, problem)
    finally:
        run.close()
    verdict.seconds = round(time.monotonic() - began, 2)
    return verdict


def _found(run: Run, names: set[str]) -> set[str]:
    try:
        return set(run.names(names))
    except (Stopped, Failed, Problem):
        return set()


def _code(cells: list[NotebookNode], problem: source.ProblemSet) -> list[Cell]:
    """The cells to run; tests that are still as they were handed out are not run twice."""
    from IPython.core.inputtransformer2 import TransformerManager

    tests = {t.code.strip() for q in problem.questions.values() for t in q.tests}
    found = []
    for number, (cell, place) in enumerate(zip(cells, submission.places(cells, problem), strict=True), 1):
        if cell.cell_type != "code" or not cell.source.strip() or cell.source.strip() in tests:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                code = TransformerManager().transform_cell(cell.source)
            except Exception:
                code = cell.source  # does not parse: the cell itself will say so
        added = place.original is None or place.original.source.strip() != cell.source.strip()
        found.append(Cell(f"cell {number}", place.section, place.order, cell.source, code, added))
    return found


def _work(run: Run, problem: source.ProblemSet) -> dict[str, list[dict[str, str]]]:
    """The student's code below questions that a person grades, and what it printed here."""
    work: dict[str, list[dict[str, str]]] = {}
    for cell in run.cells:
        if cell.added and submission.by_hand(problem, cell.section):
            why = run.errors.get(cell.name) or run.skipped.get(cell.name, "")
            parts = {"code": _cut(cell.text, MOST_CODE), "printed": _cut(run.printed.get(cell.name, ""), MOST_PRINTED)}
            work.setdefault(cell.section, []).append(parts | {"error": why})
    return {number: cells[:MOST_WORK] for number, cells in work.items()}


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}\n… and {len(text) - most} more characters"


def _scope(problem: source.ProblemSet) -> dict[str, Any]:
    """The names that tests share: pristine modules, the variant's values, what given cells define."""
    import numpy as np
    import sympy as sp
    import torch

    import hitchhiker as hh

    scope = {"hh": hh, "torch": torch, "np": np, "math": math, "sp": sp, "code": values.code, "at": values.at}
    default = torch.get_default_dtype()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            for text in problem.given:
                exec(compile(text, "<given>", "exec"), scope)
    finally:
        scope["__dtype__"] = torch.get_default_dtype()
        torch.set_default_dtype(default)
    return scope


def _wanted(code: str, scope: Mapping[str, Any]) -> set[str]:
    """The names that a test takes from the student."""
    tree = ast.parse(code)
    used: set[str] = set()
    made: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else made).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            made.add(node.name)
        elif isinstance(node, ast.arg):
            made.add(node.arg)
        elif isinstance(node, ast.alias):
            made.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            made.add(node.name)
    return used - made - set(scope) - set(dir(builtins))


def _try(test: source.Test, run: Run, scope: Mapping[str, Any], wanted: set[str]) -> str:
    """The empty string if a test passes, else what is wrong."""
    import numpy as np
    import torch

    default = torch.get_default_dtype()
    try:
        found = run.names(wanted)
        for name in sorted(wanted - set(found)):
            return _missing(name, run)
        for name, value in found.items():
            if isinstance(value, Proxy) and value._type == "ellipsis":
                return f"{name} is still three dots: put your answer in their place"
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002  (a test may use the old interface)
        torch.set_default_dtype(scope["__dtype__"])
        run.last, run.seed = None, 0
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(compile(test.code, f"<{test.question} {test.name}>", "exec"), {**scope, **found})
    except AssertionError as error:
        return str(error) or "the answer is not right"
    except (Problem, Stopped, Failed) as error:
        return str(error)
    except Exception as error:
        if run.last is None or isinstance(run.last, Proxy):
            what = f"the last thing your code gave was {run.last!r}" if run.seed else "before your code was called"
        else:
            shape = f" of shape {tuple(run.last.shape)}" if hasattr(run.last, "shape") else ""
            what = f"the last thing your code gave was of type {type(run.last).__name__}{shape}"
        return f"your answer cannot be used: {type(error).__name__}: {error} ({what})"[:600]
    finally:
        torch.set_default_dtype(default)
    return ""


def _missing(name: str, run: Run) -> str:
    """Why a name is not there: the cell that should make it raised, was left out, or is gone."""
    for why in (run.errors, run.skipped):
        for cell in run.cells:
            if cell.name in why and _makes(cell.code, name):
                return f"{name} is not there: {why[cell.name]}"
    return f"{name} is not defined in your notebook: was a cell deleted or renamed?"


def _makes(text: str, name: str) -> bool:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return name in text
    return any(
        (isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store) and n.id == name)
        or (isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == name)
        for n in ast.walk(tree)
    )


def judge_file(path: Path, problem: source.ProblemSet, limits: Mapping[str, float] | None = None) -> Verdict:
    """:func:`judge` for a submitted file; one that is no notebook gets no points and a message."""
    try:
        notebook, notes = submission.read(path)
    except submission.NotANotebook as error:
        return ungraded(problem, f"This was not graded: {error}.")
    verdict = judge(notebook, problem, limits)
    verdict.notes = notes + verdict.notes
    return verdict


def ungraded(problem: source.ProblemSet, note: str) -> Verdict:
    """No points, and why."""
    tests = [t for q in problem.questions.values() for t in q.tests]
    outcomes = [Outcome(t.question, t.name, t.hidden, t.points, 0.0, "not graded") for t in tests]
    return Verdict(problem.name, problem.variant, outcomes, [note])


def main() -> None:
    """What :mod:`hitchhiker.course.grading` starts for each submission: a job as JSON on stdin, a result in a file."""
    import sys
    import threading

    from hitchhiker._files import write_json
    from hitchhiker.course.child import follow_parent

    threading.Thread(target=follow_parent, args=(os.getppid(),), daemon=True).start()
    job = json.load(sys.stdin)
    problem = source.load(Path(job["source"]), job["variant"])
    verdict = judge_file(Path(job["path"]), problem, job["limits"])
    write_json(job["result"], {**verdict.as_dict(), "fingerprint": job["fingerprint"]})


if __name__ == "__main__":
    main()
