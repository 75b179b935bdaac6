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
import stat
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from hitchhiker.course import source, values
from hitchhiker.course.sandbox import Failed, Process, Stopped

LARGEST = 100_000_000  # bytes of a submitted file
MOST_CELLS = 1000
MOST_RESTARTS = 8


class NotANotebook(ValueError):
    """The submitted file cannot be read as a notebook; the message says why."""


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


class Run:
    """A submission's notebook, run once or, after a crash, again without the cell that crashed."""

    def __init__(self, cells: list[tuple[str, str]], limits: dict[str, float]):
        self.cells, self.limits = cells, limits
        self.skipped: dict[str, str] = {}  # cell and why it is not run again
        self.errors: dict[str, str] = {}
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
            for name, text in self.cells:
                if name in self.skipped:
                    continue
                left = min(self.limits["cell"], self.until - time.monotonic())
                if left <= 0:
                    self.skipped[name] = "it was not run: the time for the whole notebook was used up"
                    continue
                try:
                    self.process.ask(left, do="run", name=name, source=text)
                except Failed as error:
                    self.errors[name] = str(error)
                except Stopped as error:
                    self.skipped[name] = str(error)
                    break
        return self.process

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
            raise Problem(f"{label}: {error}") from None
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
                    raise Problem(f"{name}: {error}") from None
            except (ValueError, TypeError, KeyError, LookupError, OverflowError) as error:
                raise Problem(f"{name} cannot be read ({error})") from None
        return found

    def close(self) -> None:
        if self.process is not None:
            self.process.close()


class Problem(Exception):
    """Something that the student should read: the code raised, stopped, or gave what cannot be read."""


def read(path: Path) -> tuple[NotebookNode, list[str]]:
    """The notebook in a submitted file, and notes for the student.  :class:`NotANotebook` says why it cannot be read."""
    notes = []
    try:
        about = os.lstat(path)
    except OSError as error:
        raise NotANotebook(f"the file cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(about.st_mode):
        raise NotANotebook("the file is a link or no ordinary file; hand in the notebook itself")
    if about.st_size > LARGEST:
        raise NotANotebook(
            f"the file has {about.st_size / 1e6:.0f} MB, more than {LARGEST / 1e6:.0f} MB; "
            "clear the outputs (Edit, Clear all outputs) and hand it in again"
        )
    if about.st_size > 10_000_000:
        notes.append(
            f"The file has {about.st_size / 1e6:.0f} MB. Its stored outputs were left aside; please clear them."
        )
    try:
        raw = json.loads(path.read_bytes())
        if not isinstance(raw, dict) or not isinstance(raw.get("cells"), list):
            raise NotANotebook("the file is not a Jupyter notebook (version 4): it has no cells")
        cells = []
        for number, cell in enumerate(raw["cells"][:MOST_CELLS]):
            text = cell.get("source", "")
            text = "".join(text) if isinstance(text, list) else str(text)
            make = nbformat.v4.new_code_cell if cell.get("cell_type") == "code" else nbformat.v4.new_markdown_cell
            new = make(text)
            metadata = cell.get("metadata")
            new.metadata = NotebookNode(metadata if isinstance(metadata, dict) else {})
            new.id = f"cell-{number + 1}"
            cells.append(new)
    except (ValueError, RecursionError, TypeError, AttributeError) as error:
        if isinstance(error, NotANotebook):
            raise
        raise NotANotebook(f"the file does not parse as a notebook ({type(error).__name__}: {error})"[:300]) from error
    notebook = nbformat.v4.new_notebook(cells=cells)
    metadata = raw.get("metadata")
    notebook.metadata = NotebookNode(metadata if isinstance(metadata, dict) else {})
    return notebook, notes


def judge(notebook: NotebookNode, problem: source.ProblemSet, limits: Mapping[str, float] | None = None) -> Verdict:
    """Run a notebook and every test of its problem set.

    ``limits`` overrides those of the set: ``cell``, ``call`` and ``total`` in seconds, ``memory`` in gigabytes.
    """
    began = time.monotonic()
    verdict = Verdict(problem.name, problem.variant)
    allowed = {**problem.limits, **(limits or {})}
    cells = _code(notebook, problem)
    stated = notebook.metadata.get("hitchhiker")
    if isinstance(stated, dict) and (stated.get("set"), stated.get("variant")) != (problem.name, problem.variant):
        verdict.notes.append(
            f"This notebook says that it is {stated.get('set')}, variant {stated.get('variant')}; "
            f"it was graded as {problem.name}, variant {problem.variant}."[:300]
        )
    verdict.answers = _answers(notebook)
    run = Run(cells, allowed)
    try:
        scope = _scope(problem)
        wanted = {t: _wanted(t.code, scope) for q in problem.questions.values() for t in q.tests}
        everything = set().union(*wanted.values()) if wanted else set()
        ordered = _in_order(notebook, cells)
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
        verdict.notes += [f"{name.capitalize()} was left out: {why}." for name, why in run.skipped.items()]
        verdict.notes += [f"{name.capitalize()} failed: {why}" for name, why in list(run.errors.items())[:20]]
    finally:
        run.close()
    verdict.seconds = round(time.monotonic() - began, 2)
    return verdict


def _found(run: Run, names: set[str]) -> set[str]:
    try:
        return set(run.names(names))
    except (Stopped, Failed, Problem):
        return set()


def _code(notebook: NotebookNode, problem: source.ProblemSet) -> list[tuple[str, str]]:
    """(name, Python) of the cells to run; tests that are still as they were handed out are not run twice."""
    from IPython.core.inputtransformer2 import TransformerManager

    tests = {t.code.strip() for q in problem.questions.values() for t in q.tests}
    cells = []
    for number, cell in enumerate(notebook.cells, 1):
        if cell.cell_type != "code" or not cell.source.strip() or cell.source.strip() in tests:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                text = TransformerManager().transform_cell(cell.source)
            except Exception:
                text = cell.source  # does not parse: the cell itself will say so
        cells.append((f"cell {number}", text))
    return cells


def _in_order(notebook: NotebookNode, cells: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The cells in the order in which they were handed out; a new one stays behind the one above it."""
    homes, place = {}, -1
    for number, cell in enumerate(notebook.cells, 1):
        about = cell.metadata.get("hitchhiker")
        home = about.get("cell") if isinstance(about, dict) else None
        place = home if isinstance(home, int) else place
        homes[f"cell {number}"] = place
    return sorted(cells, key=lambda cell: homes[cell[0]])


def _answers(notebook: NotebookNode) -> dict[str, str]:
    """The written answers: the cell that says so, and every text cell that the student added below it."""
    answers: dict[str, str] = {}
    current = None
    for cell in notebook.cells:
        names = cell.metadata.get("tags")
        names = names if isinstance(names, list) else []
        if "answer" in names or ("solution" in names and cell.cell_type == "markdown"):
            current = str(cell.metadata.get("question"))
            answers[current] = cell.source
        elif cell.cell_type == "markdown" and current and "hitchhiker" not in cell.metadata:
            answers[current] += "\n\n" + cell.source
        else:
            current = None
    return answers


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
        for cell, text in run.cells:
            if cell in why and _makes(text, name):
                return f"{name} is not there, because {cell} failed: {why[cell]}"
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
        notebook, notes = read(path)
    except NotANotebook as error:
        nothing = Verdict(problem.name, problem.variant, notes=[f"This was not graded: {error}."])
        tests = (t for q in problem.questions.values() for t in q.tests)
        nothing.outcomes = [Outcome(t.question, t.name, t.hidden, t.points, 0.0, "not graded") for t in tests]
        return nothing
    verdict = judge(notebook, problem, limits)
    verdict.notes = notes + verdict.notes
    return verdict


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
