"""references.bib as plain text: what a notebook shows instead of a `{cite}` role."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from pybtex.database import Entry, parse_file
from pybtex.richtext import Text

BIB = Path(__file__).resolve().parents[1] / "references.bib"


@functools.cache
def entries(path: Path = BIB) -> dict[str, Entry]:
    """All entries by key."""
    return dict(parse_file(str(path)).entries)


@functools.cache
def _plain(latex: str) -> str:
    return re.sub(r"\s+", " ", str(Text.from_latex(latex))).strip()


def _field(entry: Entry, name: str) -> str:
    return _plain(entry.fields.get(name, ""))


def _last_names(entry: Entry) -> list[str]:
    return [_plain(" ".join(p.prelast_names + p.last_names)) for p in entry.persons.get("author", [])]


def author_year(key: str) -> tuple[str, str]:
    """("Vafaii et al.", "2024"): how the text names a work.

    >>> author_year("vafaii2024poisson")
    ('Vafaii et al.', '2024')
    """
    if key not in entries():
        raise ValueError(f"{key!r} is cited but is not in {BIB.name}")
    names = _last_names(entries()[key])
    who = names[0] if len(names) == 1 else " and ".join(names) if len(names) == 2 else f"{names[0]} et al."
    return who, _field(entries()[key], "year")


def reference(key: str) -> str:
    """One line of Markdown: authors, year, title, where, link."""
    entry = entries()[key]
    people = []
    for p in entry.persons.get("author", []):
        initials = " ".join(f"{_plain(n)[0]}." for n in p.first_names + p.middle_names)
        people.append(f"{initials} {_plain(' '.join(p.prelast_names + p.last_names))}".strip())
    authors = people[0] if len(people) == 1 else ", ".join(people[:-1]) + f" and {people[-1]}"
    where = [_field(entry, n) for n in ("journal", "booktitle", "publisher", "note") if _field(entry, n)]
    text = f"{authors} ({_field(entry, 'year')}). *{_field(entry, 'title')}*." + "".join(f" {w}." for w in where)
    doi, url = entry.fields.get("doi"), entry.fields.get("url")
    link = f"https://doi.org/{doi}" if doi else url
    return f"{text} [{link}]({link})" if link else text
