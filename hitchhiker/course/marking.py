"""``written.csv``: what a person gave for the written questions, with comments for the student."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hitchhiker._files import write_atomically
from hitchhiker.course import source


@dataclass
class Marks:
    """Points and comments of each student, by the question's number."""

    points: dict[str, dict[str, float]] = field(default_factory=dict)
    comments: dict[str, dict[str, str]] = field(default_factory=dict)

    def of(self, student: str) -> tuple[Mapping[str, float], Mapping[str, str]]:
        return self.points.get(student, {}), self.comments.get(student, {})


def read(path: Path, problem: source.ProblemSet, needed: bool = False) -> Marks:
    """A table with the columns name, 1.4, 1.4 comment, …; an empty field is not graded yet."""
    if not path.exists() and not needed:
        return Marks()
    marks = Marks()
    for row in _rows(path)[1]:
        student = (row.pop("name") or "").removeprefix("'")
        for column, text in row.items():
            number, _, kind = column.partition(" ")
            question = problem.questions.get(number)
            if not (text or "").strip():
                continue
            if question is None or question.kind == "coding" or kind not in ("", "comment"):
                raise ValueError(f"{path}: {column!r} is no written question of {problem.name}, nor a comment on one")
            if kind:
                marks.comments.setdefault(student, {})[number] = text
                continue
            try:
                points = float(text)
            except ValueError:
                points = math.nan
            if not 0 <= points <= question.points:
                raise ValueError(f"{path}: {number} of {student} must be 0 to {question.points:g} points, got {text!r}")
            marks.points.setdefault(student, {})[number] = points
    return marks


def _rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    if not path.exists():
        raise ValueError(f"--written must be a table with the columns name and question numbers, got no file {path}")
    try:
        rows = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: must be saved as UTF-8 (in Excel: CSV UTF-8)") from error
    columns = list(rows.fieldnames or ())
    if "name" not in columns:
        raise ValueError(f"{path}: the first line must name the columns name, 1.4, …, got {columns}")
    found = list(rows)
    for row in found:
        if None in row:
            raise ValueError(
                f"{path}: the line of {row['name']} has more fields than the first; quote text with commas"
            )
    return columns, found


def extend(path: Path, problem: source.ProblemSet, students: list[str]) -> None:
    """Add a line for each student who has none; what is there already is left as it is."""
    if not path.exists():
        numbers = [q.number for q in problem.questions.values() if q.kind != "coding"]
        head = ["name", *(column for number in numbers for column in (number, f"{number} comment"))]
        write_atomically(path, table([head, *([student] + [""] * (len(head) - 1) for student in students)]))
        return
    columns, rows = _rows(path)
    known = {(row["name"] or "").removeprefix("'") for row in rows}
    at = columns.index("name")
    lines = [[""] * at + [student] + [""] * (len(columns) - at - 1) for student in students if student not in known]
    if lines:
        data = path.read_bytes()
        write_atomically(path, data.rstrip(b"\r\n") + b"\n" + table(lines).encode())


def table(rows: list[list[Any]]) -> str:
    """The rows as CSV; a field that a spreadsheet would take for a formula is marked as text."""
    text = io.StringIO()
    safe = [[f"'{field}" if str(field).startswith(("=", "+", "-", "@")) else field for field in row] for row in rows]
    csv.writer(text, lineterminator="\n").writerows(safe)
    return text.getvalue()
