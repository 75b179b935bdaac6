"""The page for instructors: its commands exist, and its table of the problem sets says what the sources say."""

from __future__ import annotations

import re

import ledger
import pytest
from conftest import ROOT

from hitchhiker.course import source

PAGE = (ROOT / "book" / "instructors.md").read_text(encoding="utf-8")


def commands(text: str) -> list[str]:
    """`make …` and `hitchhiker …` of all bash blocks, without comments and the path to the environment."""
    lines = [
        line.split("#")[0].strip()
        for block in re.findall(r"```bash\n(.*?)```", text, re.S)
        for line in block.split("\n")
    ]
    return [re.sub(r"^\.venv/bin/", "", line) for line in lines if re.match(r"make |\.venv/bin/hitchhiker ", line)]


def test_every_command_of_the_page_exists():
    found = commands(PAGE)
    assert {"make course", "hitchhiker course grade course/example --set ps1"} <= set(found)
    for line in found:
        assert ledger.problem_of_evidence(f"command: {line}") is None


def test_a_command_that_does_not_exist_is_seen():
    (line,) = commands("```bash\n.venv/bin/hitchhiker course grad FOLDER  # no such command\n```")
    assert ledger.problem_of_evidence(f"command: {line}") is not None


@pytest.mark.parametrize("name", source.available())
def test_points_and_questions_of_each_set(name):
    problem = source.load(source.find(name))
    points = {
        kind: sum(q.points for q in problem.questions.values() if q.kind == kind)
        for kind in ("coding", "written", "open")
    }
    row = re.search(rf"^\| {name[2:]} .*\|$", PAGE[PAGE.index("code, written, open") :], re.M)
    assert row, f"{name} is not in the table"
    cells = [cell.strip() for cell in row[0].strip("|").split("|")]
    assert cells[2] == ", ".join(f"{p:g}" for p in points.values())
    assert int(cells[-1]) == len(problem.questions)
