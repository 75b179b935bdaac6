"""The evidence ledger: every row has evidence that exists; every erratum and every equation of the appendices has its place."""

from __future__ import annotations

import re

import ledger
import pytest
from conftest import ROOT

PAGE = """# A page

```{code-cell} ipython3
:tags: [check-mean, hide-input]

assert abs(mean - 1) < 0.01
```

```{code-cell} ipython3
:tags: [check-picture]

draw()
```

```{code-cell} ipython3
---
tags: [check-long, remove-cell]
---
assert True
```
"""
TEST = "def test_one():\n    pass\n\nclass TestTwo:\n    def test_three(self):\n        pass\n"
CLAIM = {"id": "a-claim", "where": "Fig. 1", "claim": "so", "printed": "1", "ours": "1.00(1)", "verdict": "reproduced",
         "evidence": "09_page#mean"}  # fmt: skip
ERRATUM = {"number": 1, "where": "Eq. 24", "grade": "E", "printed": "a", "correct": "b", "evidence": "09_page#mean"}


@pytest.fixture
def small(tmp_path):
    """A repository with one page, one test file and a Makefile."""
    (tmp_path / "book").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "book" / "09_page.md").write_text(PAGE)
    (tmp_path / "tests" / "test_x.py").write_text(TEST)
    (tmp_path / "Makefile").write_text("book: x\n\nbench: y\n")
    return tmp_path


# ------------------------------------------------------------------ the real rows


@pytest.mark.parametrize("kind", ["claims", "errata"])
def test_every_row_is_whole_and_its_evidence_exists(kind):
    rows = ledger.load(kind)
    assert rows
    found = ledger.problems(kind, rows)
    assert not found, "\n".join(found)


def test_every_erratum_has_a_row():
    assert {row["number"] for row in ledger.load("errata")} == set(range(1, 42))


def test_every_figure_table_and_algorithm_has_a_row():
    text = " ".join(str(row["where"]) for row in ledger.load("claims"))
    assert {int(n) for n in numbers(r"(?:Figs?\.|Figures?)", text)} >= set(range(1, 16))
    assert {int(n) for n in numbers(r"(?:Tables?|Tab\.)", text)} >= {1, 2}
    assert {int(n) for n in numbers(r"(?:Algorithms?|Alg\.)", text)} >= {1, 2, 3}


def numbers(word: str, text: str) -> set[int]:
    """The numbers after ``word``, in lists and ranges: "Eqs. (7), (8) and 10", "Eqs. 29–36", "Eq. 5"."""
    one = r"\(?\d+\)?"
    joint = r"\s*(?:–|-|to|,\s*and|,|and|&)\s*"
    found: set[int] = set()
    for match in re.finditer(rf"{word}\s*({one}(?:{joint}{one})*)", text):
        for part in re.finditer(rf"({one})(?:\s*(?:–|-|to)\s*({one}))?", match[1]):
            low = int(part[1].strip("()"))
            high = int(part[2].strip("()")) if part[2] else low
            found |= set(range(low, high + 1))
    return found


# ------------------------------------------------------------------ a planted fault is caught


def test_good_rows_have_no_problems(small):
    good = [
        CLAIM,
        CLAIM | {"id": "b", "evidence": "test: tests/test_x.py::test_one"},
        CLAIM | {"id": "c", "evidence": {"test": "tests/test_x.py::TestTwo::test_three[cubic]"}},
        CLAIM | {"id": "d", "evidence": ["command: make bench", "09_page#mean"]},
        CLAIM | {"id": "e", "verdict": "open", "ours": None, "evidence": None},
    ]
    assert ledger.problems("claims", good, small) == []
    assert ledger.problems("errata", [ERRATUM, ERRATUM | {"number": 2, "open": True, "evidence": None}], small) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"evidence": "09_page#gone"}, "no cell of book/09_page.md has the tag check-gone"),
        ({"evidence": "08_gone#mean"}, "there is no page book/08_gone.md"),
        ({"evidence": "09_page#picture"}, "neither asserts nor prints"),
        ({"evidence": "09_page#long"}, "is not on the page"),
        ({"evidence": "page nine"}, "evidence must be chapter#tag, test: … or command: …"),
        ({"evidence": "test: tests/test_gone.py::test_one"}, "there is no test file tests/test_gone.py"),
        ({"evidence": "test: tests/test_x.py::test_gone"}, "tests/test_x.py has no test test_gone"),
        ({"evidence": "test: tests/test_x.py"}, "names no test"),
        ({"evidence": "command: make coffee"}, "the Makefile has no goal coffee"),
        ({"evidence": "command: rm -rf /"}, "a command is `hitchhiker …` or `make …`"),
        ({"evidence": "command: hitchhiker reproduce figure-99"}, "figure-99"),
        ({"evidence": "command: hitchhiker make-tea"}, "make-tea"),
        ({"evidence": "command: hitchhiker reproduce figure-1 --fully"}, "--fully"),
        ({"evidence": None}, "has no evidence"),
        ({"evidence": ["09_page#mean", "09_page#gone"]}, "check-gone"),
        ({"verdict": "perhaps"}, "verdict must be one of"),
        ({"verdict": "different"}, "says no because"),
        ({"verdict": "open"}, "is open and has evidence"),
        ({"where": "somewhere"}, "where names no part of the paper"),
        ({"printed": None}, "printed missing"),
        ({"colour": "red"}, "unknown key colour"),
        ({"id": "Two Words"}, "lower-case words"),
    ],
    ids=lambda x: str(next(iter(x.items()))) if isinstance(x, dict) else None,
)
def test_a_planted_fault_is_caught(small, change, said):
    found = ledger.problems("claims", [CLAIM | change], small)
    assert len(found) == 1
    assert said in found[0]


def test_two_rows_of_one_name_are_caught(small):
    assert ledger.problems("claims", [CLAIM, CLAIM], small) == ["a-claim: 2 rows have this name"]
    assert ledger.problems("errata", [ERRATUM, ERRATUM | {"grade": "C"}], small) == ["erratum 1: 2 rows have this name"]
    assert ledger.problems("errata", [ERRATUM, ERRATUM | {"what": "the other half"}], small) == []


def test_bad_errata_are_caught(small):
    found = ledger.problems("errata", [ERRATUM | {"grade": "F"}, ERRATUM | {"number": "two"}], small)
    assert "grade must be one of" in found[0]
    assert "number must be an integer" in found[1]


def test_commands_that_exist_are_known():
    for command in ("hitchhiker reproduce figure-1 --full", "hitchhiker reproduce figure-10", "make book"):
        assert ledger.problem_of_evidence(f"command: {command}") is None


# ------------------------------------------------------------------ pages


def test_nothing_is_left_open():
    assert not [row for kind in ("claims", "errata") for row in ledger.load(kind) if ledger.is_open(row)]


def test_notation_has_one_row_a_letter():
    """Erratum 41: the paper's M has three meanings."""
    table = (ROOT / "book/notation.md").read_text(encoding="utf-8").split("```")[1]
    letters = [re.findall(r"\$([^$]+)\$", row.split("|")[1]) for row in table.splitlines() if row.startswith("| $")]
    letters = [re.split(r"[ =(_]", letter)[0] for row in letters for letter in row]
    assert len(letters) > 25
    assert len(letters) == len(set(letters)), sorted(letters)


def test_rows_are_sorted_by_the_paper(tmp_path):
    (tmp_path / "claims_09.yml").write_text(
        "- {id: a, where: Fig. 2, claim: x, printed: y, ours: z, verdict: reproduced, evidence: 'p#t'}\n"
        "- {id: b, where: Fig. 1, claim: x, printed: y, ours: z, verdict: reproduced, evidence: 'p#t'}\n"
    )
    assert [row["id"] for row in ledger.load("claims", tmp_path)] == ["b", "a"]
    (tmp_path / "claims_10.yml").write_text("- a\n")
    with pytest.raises(ValueError, match=r"claims_10\.yml must be a list of mappings"):
        ledger.load("claims", tmp_path)


def test_tables_hold_every_row_and_link_to_its_chapter(small):
    text = ledger.claims_page([CLAIM, CLAIM | {"id": "b", "verdict": "open", "evidence": None}], small / "book")
    assert "| ✓ reproduced | 1 |" in text
    assert '<a class="reference internal" href="09_page.html#check-mean" title="A page">ch. 9, mean</a>' in text
    assert '<span id="claim-a-claim"></span>so (Fig. 1)' in text
    assert r"$p(x\|z)$" in ledger.claims_page([CLAIM | {"claim": "$p(x|z)$"}], small / "book")
    plain = ledger.errata_page([ERRATUM], small / "book", html=False)
    assert "1. Eq. 24 (a slip) | a | b | [ch. 9](09_page.md), cell `check-mean` |" in plain


def test_where_sorts_by_the_paper():
    places = {"Fig. 1, Section 3.1": "3.1", "Figs. 9 and 10": "H.2", "Eqs. 29–36": "D", "Eq. (79)": "G.3", "G.4": "G.4",
              "Algorithm 2": "C", "Table 2": "D", "Abstract": "0", "Section 3": "3.1", "Appendix H": "H.1", "H.3": "H.3",
              "the caption of Fig. 12": "H.2", "Eq. 24 and Algorithm 2": "C"}  # fmt: skip
    assert {where: ledger.section({"where": where}) for where in places} == places


def test_built_pages_have_every_row(site):
    from bs4 import BeautifulSoup

    for kind, anchor in (("claims", lambda row: f"claim-{row['id']}"), ("errata", ledger.anchor_of)):
        page = BeautifulSoup((site / f"{kind}.html").read_text(encoding="utf-8"), "html.parser")
        there = {tag["id"] for tag in page.find_all(id=True)}
        missing = {anchor(row) for row in ledger.load(kind)} - there
        assert not missing


# ------------------------------------------------------------------ equations

# Which chapter shows which equations of the paper. Everything in Appendices A to F, and what Parts I to III use besides.
EQUATIONS = {
    "02": [1, 2, 11, 12], "03": [13, 14], "04": [15], "05": [16, 17, 18, 19], "06": list(range(20, 29)),
    "07": [3, 4, *range(29, 37)], "08": [5, 6, *range(37, 56)], "09": [79], "11": list(range(56, 70)),
    "12": [7, 8, 9, 10, *range(70, 79), 80], "13": [81, 82],
}  # fmt: skip


def test_the_list_is_whole():
    listed = sorted(n for equations in EQUATIONS.values() for n in equations)
    assert listed == list(range(1, 83))


@pytest.mark.parametrize("prefix", EQUATIONS)
def test_every_equation_is_on_a_page(prefix):
    chapters = sorted((ROOT / "book").glob(f"{prefix}_*.md"))
    if not chapters:
        pytest.xfail(f"chapter {prefix} is not written yet")
    text = chapters[0].read_text(encoding="utf-8")
    missing = set(EQUATIONS[prefix]) - numbers(r"(?:Eqs?\.|[Ee]quations?)~?", text)
    assert not missing, f"{chapters[0].name} shows no Eq. {sorted(missing)}"


def test_numbers_are_read_in_lists_and_ranges():
    text = "Eq. 5, the paper's Eqs. 29–36 and Eqs. (7), (8) and 10; equations 61 to 63; Eq. (79). In Eq. 3, 4 terms."
    found = numbers(r"(?:Eqs?\.|[Ee]quations?)", text)
    assert found >= {5, 7, 8, 10, 61, 62, 63, 79, *range(29, 37)}
    assert 6 not in found
