"""Grade a folder of submissions: one process each, a table, a page for each student and a summary for the class.

The grader is ours, because otter-grader runs its tests inside the student's own process, where a student's code can
change them, and needs Docker to keep submissions apart.  Otter makes the zip for Gradescope (:mod:`hitchhiker.course.build`).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hitchhiker._files import write_atomically
from hitchhiker.course import reports, sandbox, source
from hitchhiker.course.judge import LARGEST, Outcome

Result = dict[str, Any]


def submissions(folder: Path, name: str, leave_out: Path | None = None) -> dict[str, Path]:
    """Each student's name and file: ``NAME.ipynb``, or the notebook in the folder ``NAME``."""
    if not folder.is_dir():
        raise ValueError(f"FOLDER must be a folder of submissions, got {str(folder)!r}")
    found: dict[str, Path] = {}
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith((".", "__")) or (leave_out and entry.resolve() == leave_out.resolve()):
            continue
        path = entry
        if entry.is_dir() and not entry.is_symlink():
            inside = sorted(p for p in entry.iterdir() if p.suffix == ".ipynb" and not p.name.startswith("."))
            if not inside:
                continue
            path = next((p for p in inside if p.name == f"{name}.ipynb"), inside[0])
        elif entry.suffix != ".ipynb" and not entry.is_symlink():
            continue
        student = entry.stem if entry.suffix == ".ipynb" else entry.name
        if student in found:
            raise ValueError(f"{student} handed in twice: {found[student]} and {path}; keep one")
        found[student] = path
    if not found:
        raise ValueError(
            f"FOLDER must hold NAME.ipynb or NAME/something.ipynb, got {str(folder)!r} without any notebook"
        )
    return found


def grade(
    folder: Path,
    name: str,
    variant: int = 0,
    out: Path | None = None,
    workers: int = 2,
    written: Path | None = None,
    limits: Mapping[str, float] | None = None,
    where: Path | None = None,
    quiet: bool = False,
) -> Path:
    """Grade every submission in ``folder`` and write ``grades.csv``, ``feedback/NAME.html`` and ``summary.html`` into ``out``.

    A submission that was graded before, with the same file, tests and limits, is not graded again, so that a batch that
    was killed goes on where it was.  ``written`` is a table of points for the written questions, as ``written.csv``
    that is made in ``out`` to be filled in; that one is read when it is there.
    """
    from tqdm import tqdm

    if workers < 1:
        raise ValueError(f"workers must be >= 1, got {workers}")
    if os.name != "posix":
        raise ValueError("grading needs Linux or macOS (on Windows: use WSL or Colab)")
    path = source.find(name, where)
    problem = source.load(path, variant)
    out = out or folder.parent / f"{folder.resolve().name}-graded"
    students = submissions(folder, problem.name, out)
    scores = read_written(written or out / "written.csv", problem, list(students), needed=written is not None)
    for part in (out / "results", out / "feedback"):
        part.mkdir(parents=True, exist_ok=True)
    sandbox.warm()

    def one(student: str) -> Result:
        file, result = students[student], out / "results" / f"{student}.json"
        job: dict[str, Any] = {
            "path": str(file.absolute()), "source": str(path.absolute()), "variant": variant,
            "limits": dict(limits or {}), "result": str(result.absolute()),
        }  # fmt: skip
        job["fingerprint"] = _fingerprint(file, path, variant, job["limits"])
        if (done := _stored(result, job["fingerprint"])) is not None:
            return done
        return _judged(job, problem, result)

    results: dict[str, Result] = {}
    with ThreadPoolExecutor(workers) as pool, tqdm(total=len(students), disable=quiet, unit="notebook") as bar:
        jobs = {pool.submit(one, student): student for student in students}
        try:
            for job in as_completed(jobs):
                results[jobs[job]] = job.result()
                bar.set_postfix_str(jobs[job])
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    results = {student: results[student] for student in students}
    write_atomically(out / "grades.csv", _table(problem, results, scores))
    if not (out / "written.csv").exists():
        manual = [q.number for q in problem.questions.values() if q.kind != "coding"]
        write_atomically(out / "written.csv", _csv([["name", *manual], *([s] + [""] * len(manual) for s in students)]))
    for student, result in results.items():
        page = reports.feedback(problem, student, result, scores.get(student, {}))
        write_atomically(out / "feedback" / f"{student}.html", page)
    write_atomically(out / "summary.html", reports.summary(problem, results, scores))
    return out


def _fingerprint(file: Path, path: Path, variant: int, limits: dict[str, float]) -> str:
    total = hashlib.sha256(path.read_bytes() + json.dumps([variant, limits], sort_keys=True).encode())
    about = os.lstat(file)
    if file.is_symlink() or not file.is_file() or about.st_size > LARGEST:
        total.update(repr((about.st_mode, about.st_size, about.st_mtime_ns)).encode())
    else:
        total.update(file.read_bytes())
    return total.hexdigest()


def _stored(result: Path, fingerprint: str) -> Result | None:
    try:
        done = json.loads(result.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return done if done.get("fingerprint") == fingerprint else None


def _judged(job: dict[str, Any], problem: source.ProblemSet, result: Path) -> Result:
    """Judge one submission in a process of its own; if that fails, say so and take no points away for good."""
    limits = {**problem.limits, **job["limits"]}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(sandbox.PACKAGE.parent), os.environ.get("PYTHONPATH")])
    )
    try:
        done = subprocess.run(
            [sys.executable, "-m", "hitchhiker.course.judge"], input=json.dumps(job), env=environment,
            capture_output=True, text=True, errors="replace", timeout=2 * limits["total"] + 300,
        )  # fmt: skip
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    except subprocess.TimeoutExpired as error:
        why = f"it took longer than {error.timeout:g} seconds"
    stored = _stored(result, job["fingerprint"])
    if stored is not None:
        return stored
    tests = [t for q in problem.questions.values() for t in q.tests]
    return {  # not stored: the next run tries again
        "notes": [f"The grader itself failed on this notebook ({why[:300]}). Its author should hear from the instructor."],
        "outcomes": [
            asdict(Outcome(t.question, t.name, t.hidden, t.points, 0.0, "not graded")) for t in tests
        ],
        "answers": {},
        "seconds": 0.0,
    }  # fmt: skip


def read_written(
    path: Path, problem: source.ProblemSet, students: list[str], needed: bool
) -> dict[str, dict[str, float]]:
    """Points of the written questions from a table with the columns name, 1.4, …; empty fields are not graded yet."""
    if not path.exists():
        if needed:
            raise ValueError(
                f"--written must be a table with the columns name and question numbers, got no file {path}"
            )
        return {}
    scores: dict[str, dict[str, float]] = {}
    with path.open(newline="", encoding="utf-8-sig") as stream:
        rows = csv.DictReader(stream)
        if "name" not in (rows.fieldnames or ()):
            raise ValueError(f"{path}: the first line must name the columns name, 1.4, …, got {rows.fieldnames}")
        for row in rows:
            student = (row.pop("name") or "").removeprefix("'")
            if student not in students:
                raise ValueError(f"{path}: {student!r} handed nothing in; there are {', '.join(students)}"[:500])
            for number, text in row.items():
                if not (text or "").strip():
                    continue
                question = problem.questions.get(number)
                if question is None or question.kind == "coding":
                    raise ValueError(f"{path}: {number!r} is no written question of {problem.name}")
                try:
                    points = float(text)
                except ValueError:
                    points = math.nan
                if not 0 <= points <= question.points:
                    raise ValueError(
                        f"{path}: {number} of {student} must be 0 to {question.points:g} points, got {text!r}"
                    )
                scores.setdefault(student, {})[number] = points
    return scores


def _table(problem: source.ProblemSet, results: dict[str, Result], scores: dict[str, dict[str, float]]) -> str:
    rows: list[list[Any]] = [["name", *problem.questions, "automatic", "written", "to_grade", "total", "notes"]]
    for student, result in results.items():
        earned = reports.points(result)
        given = scores.get(student, {})
        manual = [q for q in problem.questions.values() if q.kind != "coding"]
        automatic, by_hand = sum(earned.values()), sum(given.values())
        to_grade = sum(q.points for q in manual if q.number not in given)
        cells = [
            f"{earned.get(q.number, 0):g}"
            if q.kind == "coding"
            else f"{given[q.number]:g}"
            if q.number in given
            else ""
            for q in problem.questions.values()
        ]
        rows.append(
            [student, *cells, f"{automatic:g}", f"{by_hand:g}" if given else "", f"{to_grade:g}",
             f"{automatic + by_hand:g}", " ".join(result["notes"])]
        )  # fmt: skip
    return _csv(rows)


def _csv(rows: list[list[Any]]) -> str:
    text = io.StringIO()
    # a field that a spreadsheet would take for a formula is marked as text
    safe = [[f"'{field}" if str(field).startswith(("=", "+", "-", "@")) else field for field in row] for row in rows]
    csv.writer(text, lineterminator="\n").writerows(safe)
    return text.getvalue()
