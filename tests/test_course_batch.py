"""A folder of twelve made-up submissions, graded as an instructor would, killed and gone on with."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from hitchhiker.course import examples, grading, source

WHERE = Path(__file__).parent / "data" / "assignments"
ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow
LIMITS = {"cell": 8.0, "memory": 3.0}


@pytest.fixture(scope="module")
def problem() -> source.ProblemSet:
    return source.load(WHERE / "ps0_tiny.md")


@pytest.fixture(scope="module")
def graded(problem, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("class")
    examples.folder(problem, folder / "handed-in")
    return grading.grade(folder / "handed-in", "ps0", limits=LIMITS, where=WHERE, quiet=True)


def rows(graded: Path) -> dict[str, dict[str, str]]:
    with (graded / "grades.csv").open(encoding="utf-8") as stream:
        return {row["name"]: row for row in csv.DictReader(stream)}


POINTS = {
    "ada_perfect": 9, "ben_half_right": 5, "cleo_endless_loop": 9, "dan_out_of_memory": 9, "eve_crash": 9,
    "finn_moved_and_deleted": 5, "gus_edited_tests": 0, "hana_imitates_the_grader": 0, "ines_patches_everything": 0,
    "jo_looks_around": 9, "kim_does_not_parse": 0, "lee_fifty_megabytes": 9,
}  # fmt: skip
WORDS = {
    "cleo_endless_loop": "stopped after 8 seconds", "dan_out_of_memory": "MemoryError", "eve_crash": "ended its own process",
    "finn_moved_and_deleted": "answer_0_3 is not defined in your notebook", "gus_edited_tests": "write expectation(f, rate)",
    "hana_imitates_the_grader": "wrote to the grader's channel", "ines_patches_everything": "failed",
    "kim_does_not_parse": "does not parse", "lee_fifty_megabytes": "50 MB",
}  # fmt: skip


@pytest.mark.parametrize("student", POINTS)
def test_each_gets_what_it_deserves_and_a_message(graded, student):
    row = rows(graded)[student]
    assert float(row["automatic"]) == POINTS[student], row
    assert float(row["total"]) == POINTS[student]
    assert (row["0.2"], row["written"], row["to_grade"]) == ("", "", "9")
    page = BeautifulSoup((graded / "feedback" / f"{student}.html").read_text(encoding="utf-8"), "html.parser")
    assert WORDS.get(student, "passed") in page.get_text()


def test_pages_show_no_test_and_need_no_network(graded, problem):
    hidden = {line for q in problem.questions.values() for t in q.tests for line in t.code.splitlines() if t.hidden}
    for page in [*graded.glob("feedback/*.html"), graded / "summary.html"]:
        text = page.read_text(encoding="utf-8")
        tree = BeautifulSoup(text, "html.parser")
        assert not any(line in tree.get_text() for line in hidden)
        assert not tree.find_all(["script", "link", "img", "iframe"])
        assert tree.find("meta", attrs={"name": "viewport"})
    summary = BeautifulSoup((graded / "summary.html").read_text(encoding="utf-8"), "html.parser")
    assert summary.find("svg")["aria-label"]
    assert len([a for a in summary.find_all("a") if (graded / a["href"]).exists()]) == len(POINTS)


def test_written_points_are_merged(graded, problem, capsys):
    table = graded / "written.csv"
    assert table.read_text(encoding="utf-8").splitlines()[0] == "name,0.2,0.2 comment,0.4,0.4 comment"
    mine = "name,0.2,0.2 comment,0.4\nada_perfect,3.5,Say *why*.,5\nzoe,1,,\n"
    table.write_text(mine, encoding="utf-8")
    late = graded.parent / "handed-in" / "late"
    late.mkdir()
    (late / "ps0.pdf").touch()
    began = time.monotonic()
    grading.grade(graded.parent / "handed-in", "ps0", limits=LIMITS, where=WHERE, quiet=True)
    assert time.monotonic() - began < 20  # nothing was run again
    row = rows(graded)["ada_perfect"]
    assert (row["0.2"], row["written"], row["to_grade"], row["total"]) == ("3.5", "8.5", "0", "17.5")
    row = rows(graded)["late"]
    assert (row["total"], row["notes"]) == ("0", "No .ipynb was found, only ps0.pdf.")
    said = capsys.readouterr().out
    assert "13 submissions, 1 without a notebook\n  late" in said
    assert "points for zoe, who handed nothing in" in said
    assert table.read_text(encoding="utf-8").startswith(mine)
    assert [line for line in table.read_text(encoding="utf-8").splitlines() if line.startswith("late")] == ["late,,,"]
    tree = BeautifulSoup((graded / "feedback" / "ada_perfect.html").read_text(encoding="utf-8"), "html.parser")
    assert "17.5 of 18 in all" in tree.get_text()
    assert tree.find("em", string="why")
    assert (graded / "feedback" / tree.find("a")["href"]).resolve() == graded.parent / "handed-in" / "ada_perfect.ipynb"
    table.unlink()
    shutil.rmtree(late)


def test_a_killed_batch_goes_on(graded, tmp_path):
    """SIGKILL after the first result; the same command then grades the rest, and only the rest."""
    folder = tmp_path / "handed-in"
    folder.mkdir()
    for name in ("ada", "ben"):
        shutil.copyfile(graded.parent / "handed-in" / "ada_perfect.ipynb", folder / f"{name}.ipynb")
    shutil.copyfile(graded.parent / "handed-in" / "cleo_endless_loop.ipynb", folder / "cleo.ipynb")
    text = (
        "from pathlib import Path; from hitchhiker.course import grading; "
        f"grading.grade(Path({str(folder)!r}), 'ps0', workers=1, limits={LIMITS}, where=Path({str(WHERE)!r}), quiet=True)"
    )
    batch = subprocess.Popen([sys.executable, "-c", text], env={**os.environ, "PYTHONPATH": str(ROOT)})
    results, until = tmp_path / "handed-in-graded" / "results", time.monotonic() + 200
    while not (results / "ada.json").exists() and time.monotonic() < until:
        time.sleep(0.1)
    batch.send_signal(signal.SIGKILL)
    batch.wait()
    first = (results / "ada.json").stat().st_mtime_ns
    assert not (results / "cleo.json").exists()
    out = grading.grade(folder, "ps0", workers=1, limits=LIMITS, where=WHERE, quiet=True)
    assert (results / "ada.json").stat().st_mtime_ns == first
    assert [row["automatic"] for row in rows(out).values()] == ["9", "9", "9"]
    assert not [p for p in results.iterdir() if p.suffix != ".json"]
