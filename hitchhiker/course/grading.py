"""Grade a folder of submissions: one process each, a table, a page for each student and a summary for the class.

The grader is ours, because otter-grader runs its tests inside the student's own process, where a student's code can
change them, and needs Docker to keep submissions apart.  Otter makes the zip for Gradescope (:mod:`hitchhiker.course.build`).
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from hitchhiker._files import write_atomically
from hitchhiker.course import collect, judge, marking, reports, sandbox, source
from hitchhiker.course.submission import LARGEST

Result = dict[str, Any]
Job = dict[str, Any]
FORMAT = 2  # of the stored results: those of an older grader are not used again


def grade(
    folder: Path,
    name: str,
    variant: int | None = None,
    out: Path | None = None,
    workers: int = 2,
    written: Path | None = None,
    limits: Mapping[str, float] | None = None,
    where: Path | None = None,
    quiet: bool = False,
    force: bool = False,
    say: Callable[[str], object] = print,
) -> Path:
    """Grade every submission in ``folder`` and write ``grades.csv``, ``feedback/NAME.html`` and ``summary.html`` into ``out``.

    The variant is what most notebooks say; a set or variant that differs from that is refused unless ``force``, as is
    an ``out`` that holds another one.  A submission that was graded before, with the same file, tests and limits, is
    not graded again, so that a batch that was killed goes on where it was.  ``written`` is a table of points for the
    written questions, as ``written.csv`` that is made in ``out`` to be filled in; that one is read when it is there.
    """
    if workers < 1:
        raise ValueError(f"workers must be >= 1, got {workers}")
    if os.name != "posix":
        raise ValueError("grading needs Linux or macOS (on Windows: use WSL or Colab)")
    path = source.find(name, where)
    out = out or folder.parent / f"{folder.resolve().name}-graded"
    files = collect.files(folder, out)
    variant = collect.variant(files, source.load(path, variant or 0).name, variant, force)
    problem = source.load(path, variant)
    if not force:
        _refuse_another(out, problem)
    marks = marking.read(written or out / "written.csv", problem, needed=written is not None)
    say(f"{problem.name}, variant {variant}: {len(files)} submissions")
    hand_ins = {student: collect.choose(paths, problem) for student, paths in files.items()}
    for part in (out / "results", out / "feedback"):
        part.mkdir(parents=True, exist_ok=True)
    jobs = {
        student: {
            "path": str(hand_in.notebook.absolute()), "source": str(path.absolute()), "variant": variant,
            "limits": dict(limits or {}), "result": str((out / "results" / f"{student}.json").absolute()),
            "fingerprint": _fingerprint(hand_in.notebook, path, variant, limits or {}),
        }
        for student, hand_in in hand_ins.items() if hand_in.notebook
    }  # fmt: skip
    judged = _all(jobs, problem, workers, quiet)
    results = {student: _noted(judged.get(student), hand_in, problem) for student, hand_in in hand_ins.items()}
    write_atomically(out / "grades.csv", _table(problem, results, marks.points))
    marking.extend(out / "written.csv", problem, list(hand_ins))
    for student, hand_in in hand_ins.items():
        link = os.path.relpath(hand_in.notebook, out / "feedback") if hand_in.notebook else None
        page = reports.feedback(problem, student, results[student], marks.of(student), link)
        write_atomically(out / "feedback" / f"{student}.html", page)
    write_atomically(out / "summary.html", reports.summary(problem, results, marks.points))
    without = sorted(set(hand_ins) - set(jobs))
    say(f"{len(files)} submissions, {len(without)} without a notebook" + "".join(f"\n  {name}" for name in without))
    for student in sorted(set(marks.points) - set(hand_ins)):
        say(f"written.csv has points for {student}, who handed nothing in: they are left aside")
    return out


def _noted(result: Result | None, hand_in: collect.HandIn, problem: source.ProblemSet) -> Result:
    """The result with what there is to say about the choice of the notebook; nothing of it, if there was none."""
    if result is None:
        return judge.ungraded(problem, hand_in.note).as_dict()
    return {**result, "notes": [*filter(None, [hand_in.note]), *result["notes"]]}


def _refuse_another(out: Path, problem: source.ProblemSet) -> None:
    for result in sorted(out.glob("results/*.json")):
        held = _stored(result) or {}
        about = (held.get("set"), held.get("variant"))
        if about != (problem.name, problem.variant) and None not in about:
            raise ValueError(
                f"--out must be a new folder or one of {problem.name}, variant {problem.variant}; {out} holds "
                f"{about[0]}, variant {about[1]} (name another one, or --force to write over it)"
            )


def _all(jobs: Mapping[str, Job], problem: source.ProblemSet, workers: int, quiet: bool) -> dict[str, Result]:
    from tqdm import tqdm

    sandbox.warm()
    results: dict[str, Result] = {}
    with ThreadPoolExecutor(workers) as pool, tqdm(total=len(jobs), disable=quiet, unit="notebook") as bar:
        futures = {pool.submit(_judged, job, problem): student for student, job in jobs.items()}
        try:
            for future in as_completed(futures):
                results[futures[future]] = future.result()
                bar.set_postfix_str(futures[future])
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results


def _fingerprint(file: Path, path: Path, variant: int, limits: Mapping[str, float]) -> str:
    settings = json.dumps([FORMAT, variant, dict(limits)], sort_keys=True)
    total = hashlib.sha256(path.read_bytes() + settings.encode())
    about = os.lstat(file)
    if file.is_symlink() or not file.is_file() or about.st_size > LARGEST or not os.access(file, os.R_OK):
        total.update(repr((about.st_mode, about.st_size, about.st_mtime_ns)).encode())
    else:
        total.update(file.read_bytes())
    return total.hexdigest()


def _stored(result: Path) -> Result | None:
    try:
        return json.loads(result.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _judged(job: Job, problem: source.ProblemSet) -> Result:
    """Judge one submission in a process of its own; if that fails, say so and take no points away for good."""
    result = Path(job["result"])
    if (stored := _stored(result)) and stored.get("fingerprint") == job["fingerprint"]:
        return stored
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
    if (stored := _stored(result)) and stored.get("fingerprint") == job["fingerprint"]:
        return stored
    note = f"The grader itself failed on this notebook ({why[:300]}). Its author should hear from the instructor."
    return judge.ungraded(problem, note).as_dict()  # not stored: the next run tries again


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
    return marking.table(rows)
