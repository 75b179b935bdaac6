"""From a chapter's MyST source to a plain notebook that Colab, JupyterLab and VS Code show well.

Those show neither directives nor roles.  What follows knows every directive and role that the book uses and turns each
into plain Markdown; an unknown one is a ``ValueError`` that names the page and the line, so that nothing leaks.
"""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import jupytext
import nbformat
import setup_cell
import yaml
from bibliography import author_year, reference
from jupytext.myst import MystMetadataParsingError

BOOK = Path(__file__).resolve().parents[1]

ADMONITIONS = {
    "note": "Note", "tip": "Tip", "hint": "Hint", "important": "Important", "warning": "Warning", "caution": "Caution",
    "danger": "Danger", "attention": "Attention", "error": "Error", "seealso": "See also", "admonition": "",
    "dropdown": "", "margin": "", "sidebar": "", "topic": "", "card": "", "grid-item-card": "", "tab-item": "",
}  # fmt: skip
PROOFS = {
    "theorem", "lemma", "corollary", "proposition", "definition", "remark", "example", "algorithm", "assumption",
    "conjecture", "axiom", "criterion", "observation", "property", "notation",
}  # fmt: skip
TRANSPARENT = {"grid", "grid-item", "tab-set", "card-carousel", "div", "container", "rst-class", "epigraph"}
DROPPED = {"bibliography", "tableofcontents", "contents", "index", "toctree"}
FENCE = re.compile(r"^(?P<indent>\s*)(?P<fence>`{3,}|:{3,}|~{3,})(?:\{(?P<name>[\w:+.-]+)\})?(?P<rest>.*)$")
INLINE = re.compile(
    r"(?P<code>(?<![`\\}])(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`))"
    r"|\{(?P<role>[A-Za-z][\w:.+-]*)\}(?P<rticks>`+)(?P<content>.+?)(?P=rticks)"
    r"|(?P<math>(?<![\\$])\$(?!\$)(?:\\.|[^$\\])+\$)"
    r"|(?P<link>(?<!!)\[(?P<text>[^\]\[]*)\]\((?P<target>[^()\s]*)\))",
    re.S,
)


@dataclass
class Label:
    """Something that a cross-reference can point at."""

    page: str
    kind: str  # section, figure, equation, exercise, theorem, …
    number: str  # "5.2", or "" for what has none
    title: str


@dataclass
class Index:
    """The labels and the titles of all pages."""

    labels: dict[str, Label] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)


@dataclass
class Directive:
    name: str
    argument: str
    options: dict[str, str]
    body: list[str]
    line: int


def chapters(book: Path = BOOK) -> list[Path]:
    """The executable chapters, ``NN_name.md``, in order."""
    return sorted(p for p in book.glob("*.md") if re.match(r"\d\d_", p.name))


def chapter_number(name: str) -> int | None:
    """5 for ``05_counting_arrivals``: figures, theorems and exercises are numbered by the file's prefix."""
    match = re.match(r"(\d\d)_", name)
    return int(match[1]) if match else None


def build_index(book: Path = BOOK, only: set[str] | None = None) -> Index:
    """Read every page once and note what can be pointed at.

    With ``only``, other pages that cannot be read are passed over: someone may be writing them.
    """
    index = Index()
    for path in sorted(book.glob("*.md")):
        try:
            _Page(path, index).scan()
        except ValueError:
            if not only or path.stem in only:
                raise
    return index


def convert(path: Path, index: Index, repository: str | None = None) -> nbformat.NotebookNode:
    """The chapter ``path`` as a notebook without outputs."""
    return _Page(path, index).notebook(repository)


class _Page:
    def __init__(self, path: Path, index: Index):
        self.path, self.index, self.name = path, index, path.stem
        self.counters: Counter[str] = Counter()
        self.cited: list[str] = []
        self.pending: str | None = None  # a `(label)=` waiting for its heading

    # ------------------------------------------------------------------ reading

    def read(self) -> nbformat.NotebookNode:
        try:
            return jupytext.reads(self.path.read_text(encoding="utf-8"), fmt="md:myst")
        except MystMetadataParsingError as error:
            raise self.error(str(error)) from error

    def scan(self) -> None:
        """Convert once for the labels alone; what is unresolved is found when it is converted for good."""
        self.scanning = True
        for _ in self.cells():
            pass

    def notebook(self, repository: str | None) -> nbformat.NotebookNode:
        self.scanning = False
        source = self.read()
        cells = list(self.cells(repository))
        if self.cited:
            listed = "\n".join(f"- {reference(key)}" for key in sorted(set(self.cited)))
            cells.append(nbformat.v4.new_markdown_cell(f"## References\n\n{listed}"))
        for number, cell in enumerate(cells):
            cell["id"] = f"{self.name.replace('_', '-')[:48]}-{number:03d}"
        metadata = {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
        if "title" in source.metadata:
            metadata["title"] = source.metadata["title"]
        return nbformat.from_dict({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5})

    def cells(self, repository: str | None = None) -> Iterator[nbformat.NotebookNode]:
        setups = 0
        self.folded = False
        for cell in self.read().cells:
            if cell.cell_type == "markdown":
                text, attachments = self.markdown(cell.source)
                if text.strip():
                    new = nbformat.v4.new_markdown_cell(text)
                    if attachments:
                        new["attachments"] = attachments
                    yield new
                continue
            if cell.cell_type != "code":
                raise self.error(f"a cell of type {cell.cell_type!r} is not supported")
            metadata = dict(cell.metadata)
            tags = list(metadata.get("tags", []))
            code = cell.source
            if "setup" in tags:
                setups += 1
                setup_cell.check(code, self.path.name)
                code = setup_cell.source(repository)
            alone = "# NBVAL_CHECK_OUTPUT" in cell.source.splitlines()  # then nbval reads it, and a tag too is an error
            if "# NBVAL_CHECK_OUTPUT" in cell.source and not alone and "nbval-check-output" not in tags:
                tags.append("nbval-check-output")
            hidden = self.folded or any(t in tags for t in ("hide-input", "hide-cell", "remove-cell", "remove-input"))
            new = nbformat.v4.new_code_cell(code)
            if tags:
                new.metadata["tags"] = tags
            if hidden:  # folded in JupyterLab; Colab shows it
                new.metadata["jupyter"] = {"source_hidden": True}
            image = metadata.get("mystnb", {})
            alt = image.get("image", {}).get("alt")
            if alt:
                new.metadata["alt"] = " ".join(alt.split())
            name = image.get("figure", {}).get("name")
            if name:
                new.metadata["figure"] = name
            yield new
            caption = image.get("figure", {}).get("caption")
            if caption:
                number = self.number("figure", image["figure"].get("name"), self.first_sentence(caption))
                yield nbformat.v4.new_markdown_cell(f"**Figure {number}.** {self.inline(caption.strip())}")
        if setups != 1 and not self.scanning:
            raise self.error(f"a chapter has exactly one set-up cell (tag `setup`), found {setups}")

    # ------------------------------------------------------------------ labels

    def error(self, what: str, line: int | None = None) -> ValueError:
        return ValueError(f"{self.path.name}{'' if line is None else f' (line {line} of its cell)'}: {what}")

    @staticmethod
    def first_sentence(text: str) -> str:
        return " ".join(text.split()).split(". ")[0].rstrip(".")

    def number(self, kind: str, label: str | None, title: str = "") -> str:
        """The next number of this kind, as the book prints it."""
        self.counters[kind] += 1
        chapter = chapter_number(self.name)
        number = f"{chapter}.{self.counters[kind]}" if chapter is not None else str(self.counters[kind])
        if label:
            self.note(label, kind, number, title)
        return number

    def note(self, label: str, kind: str, number: str, title: str) -> None:
        known = self.index.labels.get(label)
        if known and (known.page, known.kind) != (self.name, kind):
            raise self.error(f"the label {label!r} is already used on the page {known.page}")
        self.index.labels[label] = Label(self.name, kind, number, title)

    def find(self, label: str) -> Label | None:
        found = self.index.labels.get(label)
        if found is None and not self.scanning:
            raise self.error(f"the label {label!r} is not defined on any page")
        return found

    def link(self, text: str, page: str) -> str:
        """Text that leads to another chapter's notebook; plain where that page is no notebook."""
        if page == self.name:
            return text
        title = self.index.titles.get(page, page)
        if chapter_number(page) is None:
            return text if text == title else f"{text} (page “{title}” of the book)"
        return f"[{text}]({page}.ipynb)"

    # ------------------------------------------------------------------ blocks

    def markdown(self, source: str) -> tuple[str, dict]:
        self.attachments: dict = {}
        text = "\n".join(self.blocks(source.split("\n")))
        return re.sub(r"\n{3,}", "\n\n", text).strip(), self.attachments

    def blocks(self, lines: list[str]) -> list[str]:
        out: list[str] = []
        paragraph: list[str] = []

        def flush() -> None:
            if paragraph:
                out.extend(self.inline("\n".join(paragraph)).split("\n"))
                paragraph.clear()

        i = 0
        while i < len(lines):
            line = lines[i]
            fence = FENCE.match(line)
            if fence:
                flush()
                body, i = self.until_close(lines, i, fence["fence"], fence["indent"])
                if fence["name"]:
                    options, body = self.options(body)
                    directive = Directive(fence["name"], fence["rest"].strip(), options, body, i)
                    rendered = self.directive(directive)
                    out += ["", *(fence["indent"] + r if r else r for r in rendered), ""]
                elif fence["fence"].startswith(":"):
                    raise self.error("a fence of colons needs a directive's name", i)
                else:
                    out += [line, *(fence["indent"] + b for b in body), fence["indent"] + fence["fence"]]
                continue
            stripped = line.strip()
            target = re.fullmatch(r"\(([^()\s]+)\)=", stripped)
            if target:
                flush()
                self.pending = target[1]
            elif stripped.startswith("$$"):
                flush()
                tex, label, i = self.display_math(lines, i)
                indent = line[: len(line) - len(line.lstrip())]
                out += [indent + part for part in self.equation(tex, label)]
                continue
            elif re.match(r"%(\s|$)", line):
                pass
            elif stripped.startswith("\\begin{"):
                raise self.error("write displayed equations between $$ and $$", i)
            elif re.match(r"\[\^[^\]]+\]:", stripped):
                raise self.error("footnotes do not reach Colab; write the sentence in the text", i)
            elif re.match(r"#{1,6} ", line):
                flush()
                out.append(self.heading(line))
            elif not stripped:
                flush()
                out.append(line)
            else:
                paragraph.append(line)
            i += 1
        flush()
        return out

    def heading(self, line: str) -> str:
        marks, title = line.split(" ", 1)
        title = self.inline(title.strip())
        if len(marks) == 1 and self.name not in self.index.titles:
            self.index.titles[self.name] = title
        if self.pending:
            self.note(self.pending, "section", "", title)
            self.pending = None
        return f"{marks} {title}"

    def until_close(self, lines: list[str], start: int, fence: str, indent: str) -> tuple[list[str], int]:
        for j in range(start + 1, len(lines)):
            closing = lines[j].strip()
            if len(closing) >= len(fence) and set(closing) == {fence[0]}:
                return [x.removeprefix(indent) for x in lines[start + 1 : j]], j + 1
        raise self.error(f"the block {lines[start].strip()!r} is not closed", start + 1)

    @staticmethod
    def options(body: list[str]) -> tuple[dict[str, str], list[str]]:
        if body and body[0].strip() == "---":
            end = next(j for j in range(1, len(body)) if body[j].strip() == "---")
            return yaml.safe_load("\n".join(body[1:end])) or {}, body[end + 1 :]
        options, j = {}, 0
        while j < len(body) and (match := re.match(r":([\w-]+):(?:\s+(.*))?$", body[j])):
            options[match[1]] = (match[2] or "").strip()
            j += 1
            while j < len(body) and re.match(r"\s+\S", body[j]):  # a value may go on, indented
                options[match[1]] += " " + body[j].strip()
                j += 1
        return options, body[j:]

    def display_math(self, lines: list[str], start: int) -> tuple[str, str | None, int]:
        joined = lines[start].strip()[2:]
        j = start
        while "$$" not in joined:
            j += 1
            if j == len(lines):
                raise self.error("a displayed equation is not closed", start + 1)
            joined += "\n" + lines[j].strip()
        tex, after = joined.split("$$", 1)
        label = re.fullmatch(r"\s*\(([^()\s]+)\)\s*", after)
        if after.strip() and not label:
            raise self.error(f"unexpected text after a displayed equation: {after.strip()!r}", j + 1)
        return tex.strip("\n"), label[1] if label else None, j + 1

    def equation(self, tex: str, label: str | None) -> list[str]:
        tag = f" \\tag{{{self.number('equation', label)}}}" if label else ""
        return ["$$", *f"{tex.strip()}{tag}".split("\n"), "$$"]

    # ------------------------------------------------------------------ directives

    @staticmethod
    def quote(lines: list[str]) -> list[str]:
        text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")
        return [f"> {line}".rstrip() for line in text.split("\n")]

    def directive(self, d: Directive) -> list[str]:
        name = d.name.removeprefix("prf:")
        argument = self.inline(d.argument)
        if d.name in DROPPED:
            return []
        if d.name == "math":
            return self.equation("\n".join([d.argument, *d.body]).strip(), d.options.get("label"))
        if d.name in {"code-block", "code", "sourcecode"}:
            return [f"```{d.argument}", *d.body, "```"]
        if d.name in ADMONITIONS:
            title = argument or ADMONITIONS[d.name]
            body = self.blocks(d.body)
            if d.name in {"card", "grid-item-card"} and d.options.get("link"):
                title = self.card_link(title, d.options)
            return self.quote([f"**{title}**", "", *body]) if title else self.quote(body)
        if d.name in TRANSPARENT:
            return self.blocks(d.body)
        if d.name.startswith("prf:") and name in PROOFS:
            number = self.number(name, d.options.get("label"), argument)
            head = f"**{name.capitalize()} {number}**" + (f" ({argument})" if argument else "") + "."
            return self.quote([head, "", *self.blocks(d.body)])
        if d.name == "prf:proof":
            return ["*Proof.*", "", *self.blocks(([d.argument] if d.argument else []) + d.body), "", "∎"]
        if d.name in {"exercise", "exercise-start"}:
            number = "" if "nonumber" in d.options else self.number("exercise", d.options.get("label"), argument)
            head = f"**Exercise {number}".rstrip() + "**" + (f" ({argument})" if argument else "") + "."
            return self.quote([head, "", *self.blocks(d.body)])
        if d.name in {"solution", "solution-start"}:
            found = self.find(d.argument.strip())
            number = found.number if found else ""
            self.folded = d.name == "solution-start"
            if self.folded:  # code cells follow, which no <details> can hold
                return [f"**Solution of exercise {number}.**", "", *self.blocks(d.body)]
            return [
                f"<details><summary><b>Solution of exercise {number}</b></summary>",
                "",
                *self.blocks(d.body),
                "",
                "</details>",
            ]
        if d.name in {"exercise-end", "solution-end"}:
            self.folded = False
            return []
        if d.name in {"figure", "image"}:
            return self.figure(d)
        if d.name in {"table", "list-table"}:
            return self.table(d, argument)
        if d.name in {"button-ref", "button-link"}:
            label = " ".join(d.body).strip() or d.argument
            url = d.argument if d.name == "button-link" else None
            return [f"[{label}]({url})" if url else self.role("doc", f"{label} <{d.argument}>", d.line)]
        if d.name == "glossary":
            return self.blocks(d.body)
        if self.scanning and chapter_number(self.name) is None:  # a page that never becomes a notebook
            return []
        raise self.error(f"the directive {{{d.name}}} has no plain form yet: add it to myst_to_notebook.py", d.line)

    def card_link(self, title: str, options: dict[str, str]) -> str:
        link = options["link"]
        return f"[{title}]({link})" if "://" in link else self.role("doc", f"{title} <{link}>", 0)

    def figure(self, d: Directive) -> list[str]:
        alt = " ".join(d.options.get("alt", "").split())
        if not alt:
            raise self.error(f"the image {d.argument} has no :alt: text", d.line)
        path = self.path.parent / d.argument.lstrip("/")
        target = d.argument
        if "://" not in d.argument:  # the notebook travels alone: the image goes inside it
            suffix = path.suffix.lstrip(".").lower()
            mime = {"png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg", "svg": "image/svg+xml"}[suffix]
            self.attachments[path.name] = {mime: base64.b64encode(path.read_bytes()).decode()}
            target = f"attachment:{path.name}"
        out = [f"![{alt}]({target})"]
        if d.name == "figure":
            caption = "\n".join(self.blocks(d.body)).strip()
            if caption:
                number = self.number("figure", d.options.get("name"), self.first_sentence(caption))
                out += ["", f"**Figure {number}.** {caption}"]
        return out

    def table(self, d: Directive, caption: str) -> list[str]:
        number = self.number("table", d.options.get("name"), caption)
        if d.name == "list-table":
            raise self.error("write the table in Markdown inside {table}", d.line)
        return [f"**Table {number}.** {caption}", "", *self.blocks(d.body)]

    # ------------------------------------------------------------------ inline

    def inline(self, text: str) -> str:
        def replace(match: re.Match) -> str:
            if match["role"]:
                return self.role(match["role"], match["content"], None)
            if match["link"] is not None:
                return self.markdown_link(match["text"], match["target"])
            return match[0]

        if re.search(r"\{\{.*?\}\}", re.sub(r"\$[^$]*\$|`[^`]*`", "", text)):
            raise self.error("substitutions {{…}} have no plain form")
        return INLINE.sub(replace, text)

    def markdown_link(self, text: str, target: str) -> str:
        if target.startswith("#"):
            return self.role("ref", f"{text} <{target[1:]}>" if text else target[1:], None)
        page = re.fullmatch(r"(?:\./)?([\w-]+)(?:\.md)?(?:#.*)?", target)
        if page and (self.path.parent / f"{page[1]}.md").exists():
            return self.role("doc", f"{text} <{page[1]}>" if text else page[1], None)
        return f"[{self.inline(text)}]({target})"

    def role(self, name: str, content: str, line: int | None) -> str:
        content = " ".join(content.split())
        titled = re.fullmatch(r"(.*?)\s*<([^<>]+)>", content)
        text, target = (titled[1], titled[2]) if titled else ("", content)
        if name.startswith("cite"):
            return self.cite(name, content)
        if name in {"ref", "numref", "prf:ref", "eq"}:
            return self.reference(name, text, target)
        if name == "doc":
            page = target.strip("/").removesuffix(".md")
            if not (self.path.parent / f"{page}.md").exists():
                raise self.error(f"there is no page {page!r}")
            return self.link(text or self.index.titles.get(page, page), page)
        if name == "math":
            return f"${content}$"
        if name in {"sub", "sup", "kbd"}:
            return f"<{name}>{content}</{name}>"
        if name == "abbr":
            return re.sub(r"\s*\(.*\)$", "", content)
        if name in {"term", "guilabel", "menuselection"}:
            return f"*{text or target}*"
        if name in {"code", "literal", "file", "command", "program", "samp"} or re.match(
            r"(py:)?(func|class|mod|meth|attr|data|obj|exc)$", name
        ):
            return f"`{(text or target).lstrip('~!')}`"
        raise self.error(f"the role {{{name}}} has no plain form yet: add it to myst_to_notebook.py", line)

    def cite(self, role: str, content: str) -> str:
        keys = [k.strip() for k in content.split(",")]
        self.cited += keys
        if self.scanning:
            return ""
        pairs = [author_year(k) for k in keys]
        if role in {"cite:t", "cite:ts"}:
            return ", ".join(f"{who} ({year})" for who, year in pairs)
        if role in {"cite:year"}:
            return ", ".join(year for _, year in pairs)
        if role in {"cite", "cite:p"}:
            return "(" + "; ".join(f"{who}, {year}" for who, year in pairs) + ")"
        raise self.error(f"cite with {{cite}}, {{cite:p}} or {{cite:t}}, not {{{role}}}")

    def reference(self, role: str, text: str, target: str) -> str:
        found = self.find(target)
        if found is None:
            return ""
        if role == "eq":
            return f"({found.number})" if found.page == self.name else self.link(f"({found.number})", found.page)
        kind = found.kind.capitalize()
        if text:
            shown = text.replace("%s", found.number).replace("{number}", found.number).replace("{name}", found.title)
        elif (found.number and role != "ref") or (found.number and found.kind in {"exercise", *PROOFS}):
            shown = f"{kind} {found.number}"
        else:
            shown = found.title or f"{kind} {found.number}"
        return self.link(shown, found.page)
