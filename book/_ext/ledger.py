"""The evidence ledger: book/ledger/*.yml, rendered into the pages `claims` and `errata`, and checked.

    python book/_ext/ledger.py claims     # the page's tables as plain Markdown
    python book/_ext/ledger.py check      # what is wrong with the rows, one line each

Files ``claims_*.yml`` hold claims of the paper, ``errata_*.yml`` its slips; each is a list of mappings.

    - id: fig1-mean-sigmoid                  # unique
      where: "Fig. 1, Section 3.1"           # names a section, figure, table, algorithm or equation: rows are sorted by it
      claim: what the paper says, in our words
      printed: "85% at λ = 100, τ = 0.5"
      ours: what we get, with its error
      verdict: reproduced                    # or: different, not reproduced, open
      because: why, where it is not plain    # optional; needed for "different" and "not reproduced"
      evidence: 09_how_many_arrivals#fig1-mean

    - number: 2                              # erratum; `what` may tell several rows of one number apart
      where: "Eqs. 3, 4"
      grade: C                               # E: a slip, C: numbers disagree, A: left to the implementer
      printed: …
      correct: …
      evidence: …

Evidence is one of these, or a list of them; an open row has none (an open erratum says ``open: true``).

- ``chapter#tag``: a code cell of book/chapter.md has the tag ``check-tag`` and asserts or prints what shows it;
- ``test: tests/test_x.py::test_name``;
- ``command: hitchhiker reproduce figure-1 --full``, or a goal of the Makefile, ``command: make book``.

An open row is dropped as soon as a row with evidence has its id (or number).
"""

from __future__ import annotations

import ast
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import jupytext
import yaml

BOOK = Path(__file__).resolve().parents[1]
ROOT = BOOK.parent

VERDICTS = {"reproduced": "✓", "different": "≠", "not reproduced": "✗", "open": "○"}
GRADES = {"E": "a slip", "C": "numbers disagree", "A": "left to the implementer"}
KEYS = {
    "claims": ({"id", "where", "claim", "printed", "ours", "verdict"}, {"because", "evidence"}),
    "errata": ({"number", "where", "grade", "printed", "correct"}, {"what", "evidence", "open"}),
}

#: the paper's parts in its own order; a row belongs to the one that its ``where`` names first
SECTIONS = {
    "0": "Abstract", "1": "1 Introduction", "2": "2 Background", "3.1": "3.1 Moments of the relaxed count",
    "3.2": "3.2 Whole distributions", "3.3": "3.3 Gradients", "3.4": "3.4 Training", "4": "4 Conclusions",
    "A": "A Gradient estimators", "B": "B Exponential arrival times", "C": "C Gumbel-softmax", "D": "D Moments of EAT",
    "E": "E The linear Poisson VAE", "F": "F Statistics of gradients", "G.1": "G.1 Poisson VAE, methods",
    "G.2": "G.2 POGLM, methods", "G.3": "G.3 How many arrivals", "G.4": "G.4 Gradient analysis, methods",
    "H.1": "H.1 The best temperature", "H.2": "H.2 Further results", "H.3": "H.3 Beyond Poisson",
}  # fmt: skip
FIGURES = dict(
    zip(
        range(1, 16),
        ["3.1", "3.2", "3.3", "3.4", "B", "D", "D", "H.1", "H.2", "H.2", "H.2", "H.2", "H.2", "H.2", "H.2"],
        strict=True,
    )
)
TABLES, ALGORITHMS = {1: "1", 2: "D"}, {1: "B", 2: "C", 3: "H.3"}
LAST_EQUATION = {"2": 2, "3.1": 6, "3.3": 10, "A": 15, "B": 19, "C": 28, "D": 55, "E": 69, "F": 78, "G.3": 79, "G.4": 80,
                 "H.1": 82, "H.3": 85}  # fmt: skip

Row = dict[str, Any]


# ---------------------------------------------------------------- reading


def load(kind: str, folder: Path = BOOK / "ledger") -> list[Row]:
    """The rows of all files ``kind_*.yml``, in the paper's order, open ones that have been settled left out.

    Each row also has ``file``, the name of its file.  A file that is no list of mappings is a ``ValueError``.
    """
    rows: list[Row] = []
    for path in sorted(folder.glob(f"{kind}_*.yml")):
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8")) or []
        except yaml.YAMLError as error:
            raise ValueError(f"{path.name} is no YAML: {error}") from error
        if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
            raise ValueError(f"{path.name} must be a list of mappings")
        rows += [row | {"file": path.name} for row in found]
    if kind == "errata":
        return sorted(rows, key=lambda row: (row.get("number", 0), str(row.get("what", ""))))
    order = list(SECTIONS)
    return sorted(rows, key=lambda row: order.index(section(row) or order[-1]))


def is_open(row: Row) -> bool:
    return row.get("verdict") == "open" or bool(row.get("open"))


def evidence(row: Row) -> list[str]:
    """The row's evidence as ``chapter#tag``, ``test: …`` or ``command: …``, however YAML has read it."""
    found = row.get("evidence") or []
    found = found if isinstance(found, list) else [found]
    return [f"{k}: {v}" for one in found if isinstance(one, dict) for k, v in one.items()] + [
        str(one) for one in found if not isinstance(one, dict)
    ]


def section(row: Row) -> str | None:
    """The key in ``SECTIONS`` of the part that ``where`` names first, or None.

    >>> [section({"where": w}) for w in ("Fig. 1, Section 3.1", "Eq. 79", "Appendix D.6", "Table 1", "elsewhere")]
    ['3.1', 'G.3', 'D', '1', None]
    """
    where = str(row.get("where", ""))
    match = re.search(
        r"(?P<abstract>abstract)|(?:fig(?:ure|s?\.)?s?)\s*(?P<figure>\d+)|(?:tab(?:le|\.))\s*(?P<table>\d)"
        r"|(?:alg(?:orithm|\.))\s*(?P<algorithm>\d)|(?:eq(?:uation|s?\.)?s?)\s*\(?(?P<equation>\d+)"
        r"|\b(?P<section>[1-4](?:\.\d)?|[A-H](?:\.\d)?)\b",
        where, flags=re.I,
    )  # fmt: skip
    if match is None:
        return None
    found = {k: v for k, v in match.groupdict().items() if v}
    if "abstract" in found:
        return "0"
    if "figure" in found:
        return FIGURES.get(int(found["figure"]))
    if "table" in found:
        return TABLES.get(int(found["table"]))
    if "algorithm" in found:
        return ALGORITHMS.get(int(found["algorithm"]))
    if "equation" in found:
        return next((s for s, last in LAST_EQUATION.items() if int(found["equation"]) <= last), None)
    name = found["section"].upper()
    if name == "3":
        return "3.1"
    return next((s for s in (name, name[0], f"{name[0]}.1") if s in SECTIONS), None)


# ---------------------------------------------------------------- checking


def problems(kind: str, rows: Sequence[Row], root: Path = ROOT) -> list[str]:
    """Everything that is wrong with these rows, one line each; an empty list when all is well."""
    found: list[str] = []
    needed, optional = KEYS[kind]
    names = Counter(name_of(row) for row in rows)
    found += [f"{name}: {n} rows have this name" for name, n in names.items() if n > 1]
    for row in rows:
        said: list[str] = []
        missing = sorted(k for k in needed if row.get(k) in (None, "") and not (k == "ours" and is_open(row)))
        unknown = sorted(set(row) - needed - optional - {"file"})
        said += [f"{', '.join(missing)} missing"] if missing else []
        said += [f"unknown key {', '.join(unknown)}"] if unknown else []
        if kind == "claims":
            if row.get("verdict") not in VERDICTS:
                said.append(f"verdict must be one of {', '.join(VERDICTS)}, got {row.get('verdict')!r}")
            if row.get("verdict") in {"different", "not reproduced"} and not row.get("because"):
                said.append("says no because")
            if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", str(row.get("id", ""))):
                said.append("id must be lower-case words joined by hyphens")
        else:
            if row.get("grade") not in GRADES:
                said.append(f"grade must be one of {', '.join(GRADES)}, got {row.get('grade')!r}")
            if not isinstance(row.get("number"), int):
                said.append(f"number must be an integer, got {row.get('number')!r}")
        if section(row) is None:
            said.append(f"where names no part of the paper: {row.get('where')!r}")
        proofs = evidence(row)
        if is_open(row) and proofs:
            said.append("is open and has evidence")
        if not is_open(row) and not proofs:
            said.append("has no evidence")
        for proof in proofs:
            wrong = problem_of_evidence(proof, root)
            said += [wrong] if wrong else []
        found += [f"{row.get('file', '?')}, {name_of(row)}: {one}" for one in said]
    return found


def name_of(row: Row) -> str:
    if "id" in row:
        return str(row["id"])
    return f"erratum {row.get('number')}" + (f" ({row['what']})" if row.get("what") else "")


def problem_of_evidence(proof: str, root: Path = ROOT) -> str | None:
    """Why this evidence does not exist, or None when it does."""
    if proof.startswith("test:"):
        return _problem_of_test(proof.removeprefix("test:").strip(), root)
    if proof.startswith("command:"):
        return _problem_of_command(proof.removeprefix("command:").strip(), root)
    page, _, tag = proof.partition("#")
    if not tag or not re.fullmatch(r"[\w-]+", page):
        return f"evidence must be chapter#tag, test: … or command: …, got {proof!r}"
    path = root / "book" / f"{page}.md"
    if not path.exists():
        return f"there is no page book/{page}.md"
    cells = tagged_cells(path.read_text(encoding="utf-8"))
    if f"check-{tag}" not in cells:
        return f"no cell of book/{page}.md has the tag check-{tag}"
    code, tags = cells[f"check-{tag}"]
    if "remove-cell" in tags:
        return f"the cell check-{tag} of book/{page}.md is not on the page (remove-cell)"
    if not re.search(r"\bassert|\bprint\(|\.check\(", code):
        return f"the cell check-{tag} of book/{page}.md neither asserts nor prints anything"
    return None


@cache
def tagged_cells(text: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Code and tags of each code cell of a chapter, by each of its tags (equal tags: their code joined)."""
    cells: dict[str, tuple[str, frozenset[str]]] = {}
    for cell in jupytext.reads(text, fmt="md:myst").cells:
        if cell.cell_type == "code":
            tags = frozenset(cell.metadata.get("tags", []))
            for tag in tags:
                before = cells.get(tag, ("", frozenset()))
                cells[tag] = (f"{before[0]}\n{cell.source}", before[1] | tags)
    return cells


def _problem_of_test(name: str, root: Path) -> str | None:
    file, *parts = name.split("::")
    path = root / file
    if not parts or not path.is_file():
        return f"there is no test file {file}" if not path.is_file() else f"{name!r} names no test"
    nodes: list[ast.stmt] = ast.parse(path.read_text(encoding="utf-8")).body
    for part in parts:
        bare = part.split("[")[0]
        node = next((n for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name == bare), None)
        if node is None:
            return f"{file} has no test {'::'.join(parts)}"
        nodes = node.body
    return None


def _problem_of_command(line: str, root: Path) -> str | None:
    words = shlex.split(line)
    if words[:1] == ["make"]:
        goals = set(re.findall(r"^([a-z]+):", (root / "Makefile").read_text(encoding="utf-8"), flags=re.M))
        unknown = [w for w in words[1:] if w not in goals]
        return f"the Makefile has no goal {' '.join(unknown)}" if unknown else None
    if words[:1] != ["hitchhiker"]:
        return f"a command is `hitchhiker …` or `make …`, got {line!r}"
    return _problem_of_hitchhiker(tuple(words[1:]))


@cache
def _problem_of_hitchhiker(words: tuple[str, ...]) -> str | None:
    """Parse the words as the command line would, arguments and options included, without running them."""
    try:
        import typer

        from hitchhiker.cli import app
    except ImportError as error:
        return f"`hitchhiker` has no command line here ({error})"
    try:
        import click
        from typer.main import get_command

        command, rest, context = get_command(app), list(words), None
        while True:
            context = command.make_context(command.name or "hitchhiker", rest, parent=context, resilient_parsing=False)
            if not hasattr(command, "resolve_command"):
                return None
            rest = (
                [*context._protected_args, *context.args] if hasattr(context, "_protected_args") else list(context.args)
            )
            if not rest:
                return None
            _, command, rest = command.resolve_command(context, rest)
    except (click.exceptions.Exit, typer.Exit):
        return None
    except Exception as error:
        return f"`hitchhiker {' '.join(words)}`: {getattr(error, 'message', '') or error}"


# ---------------------------------------------------------------- pages


def title(page: str, book: Path = BOOK) -> str:
    match = re.search(r"^# (.+)$", (book / f"{page}.md").read_text(encoding="utf-8"), flags=re.M)
    return match[1].strip() if match else page


def shown(row: Row, book: Path = BOOK, html: bool = True) -> str:
    """The row's evidence, as links and code."""
    parts = []
    for proof in evidence(row):
        kind, _, what = proof.partition(": ")
        if kind in {"test", "command"}:
            parts.append(f"`{what.strip()}`")
            continue
        page, _, tag = proof.partition("#")
        chapter = f"ch. {int(page[:2])}" if re.match(r"\d\d_", page) else title(page, book)
        name = escape(title(page, book), quote=True)
        link = f'<a class="reference internal" href="{page}.html#check-{tag}" title="{name}">{chapter}, {tag}</a>'
        parts.append(link if html else f"[{chapter}]({page}.md), cell `check-{tag}`")
    return ", ".join(parts)


def cell(value: Any) -> str:
    """One line, with ``|`` escaped: a table takes that back before it reads mathematics or code."""
    return " ".join(str("" if value is None else value).split()).replace("|", r"\|")


def claims_page(rows: Iterable[Row], book: Path = BOOK, html: bool = True) -> str:
    """The claims as Markdown: how many of each verdict, then one table a part of the paper."""
    rows = list(rows)
    count = Counter(row["verdict"] for row in rows)
    out = [
        "| verdict | rows |",
        "|---|---|",
        *(f"| {VERDICTS[v]} {v} | {count[v]} |" for v in VERDICTS if count[v]),
        f"| all | {len(rows)} |",
        "",
    ]
    for key, name in SECTIONS.items():
        part = [row for row in rows if section(row) == key]
        if not part:
            continue
        out += [
            f"## {name}",
            "",
            *_open("claims", html),
            "| the paper says | printed | we get | verdict |",
            "|---|---|---|---|",
        ]
        for row in part:
            anchor = f'<span id="claim-{row["id"]}"></span>' if html else ""
            because = f"{'<br>' if html else '; '}*{cell(row['because'])}*" if row.get("because") else ""
            proof = shown(row, book, html)
            out.append(
                f"| {anchor}{cell(row['claim'])} ({cell(row['where'])}) | {cell(row['printed'])} | {cell(row.get('ours')) or '—'}{because} "
                f"| {VERDICTS[row['verdict']]} {row['verdict']}{': ' + proof if proof else ''} |"
            )
        out += ["", *_close(html)]
    return "\n".join(out)


def errata_page(rows: Iterable[Row], book: Path = BOOK, html: bool = True) -> str:
    """The errata as Markdown: one table, and a second one of those not checked on a page yet."""
    rows = list(rows)
    out: list[str] = []
    for heading, part in (
        ("Checked", [r for r in rows if not is_open(r)]),
        ("Still open", [r for r in rows if is_open(r)]),
    ):
        if not part:
            continue
        out += [
            f"## {heading}",
            "",
            *_open("errata", html),
            "| where | printed | what holds | shown by |",
            "|---|---|---|---|",
        ]
        for row in part:
            anchor = f'<span id="{anchor_of(row)}"></span>' if html else ""
            proof = shown(row, book, html) or "no page yet"
            out.append(
                f"| {anchor}{row['number']}. {cell(row['where'])} ({GRADES[row['grade']]}) | {cell(row['printed'])} "
                f"| {cell(row['correct'])} | {proof} |"
            )
        out += ["", *_close(html)]
    return "\n".join(out)


def anchor_of(row: Row) -> str:
    suffix = re.sub(r"\W+", "-", str(row.get("what", "")).lower()).strip("-")
    return f"erratum-{row['number']}" + (f"-{suffix}" if suffix else "")


def _open(kind: str, html: bool) -> list[str]:
    return [f":::{{div}} ledger ledger-{kind}"] if html else []


def _close(html: bool) -> list[str]:
    return [":::", ""] if html else []


PAGES = {"claims": claims_page, "errata": errata_page}


def insert(app: Any, docname: str, source: list[str]) -> None:
    """Put the tables where a page says ``<!-- ledger: claims -->``."""

    def table(match: re.Match) -> str:
        for path in sorted((BOOK / "ledger").glob(f"{match[1]}_*.yml")):
            app.env.note_dependency(str(path))
        return PAGES[match[1]](load(match[1]))

    source[0] = re.sub(r"^<!-- ledger: (claims|errata) -->$", table, source[0], flags=re.M)


def add_targets(app: Any, doctree: Any) -> None:
    """A cell with the tag ``check-x`` can be linked to as ``page.html#check-x``."""
    from docutils import nodes

    seen: set[str] = set()
    for node in list(doctree.findall(nodes.container)):
        names = [c.removeprefix("tag_") for c in node.get("classes", []) if c.startswith("tag_check-")]
        names = [n for n in names if n not in seen]
        seen.update(names)
        if names and node.parent is not None:
            node.parent.insert(node.parent.index(node), nodes.target("", "", ids=names))


def setup(app: Any) -> dict[str, Any]:
    app.connect("source-read", insert)
    app.connect("doctree-read", add_targets)
    app.connect("env-get-outdated", lambda app, env, added, changed, removed: [p for p in PAGES if p in env.found_docs])
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def main(arguments: Sequence[str]) -> int:
    if list(arguments) not in (["claims"], ["errata"], ["check"]):
        print(__doc__, file=sys.stderr)
        return 2
    if arguments[0] == "check":
        found = [p for kind in PAGES for p in problems(kind, load(kind))]
        print("\n".join(found) or "every row has its evidence")
        return 1 if found else 0
    print(PAGES[arguments[0]](load(arguments[0]), html=False))
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    raise SystemExit(main(sys.argv[1:]))
