"""The notebooks are what their sources say, run everywhere, and show no markup that Colab does not know."""

from __future__ import annotations

import os
import re
from pathlib import Path

import myst_to_notebook
import nbformat
import nbval.kernel
import notebooks
import pytest
import setup_cell
from conftest import ROOT
from myst_to_notebook import build_index, chapters, convert

CHAPTERS = chapters()
each_chapter = pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda p: p.stem)

ROLE = re.compile(r"\{[a-zA-Z][\w:+.-]*\}`")
DIRECTIVE = re.compile(r"^\s*(`{3,}|:{3,}|~{3,})\s*\{", re.M)
OTHER = re.compile(r"^\(\S+\)=\s*$|^:{3,}|^%\s|^\+\+\+|\{\{.*?\}\}|^\s*:(label|class|name|alt):", re.M)


@pytest.fixture(scope="module")
def index() -> myst_to_notebook.Index:
    return build_index()


def committed(chapter: Path) -> nbformat.NotebookNode:
    path = chapter.with_suffix(".ipynb")
    assert path.exists(), f"{path.name} is missing: make notebooks"
    return nbformat.read(path, as_version=4)


def markdown(notebook: nbformat.NotebookNode) -> str:
    text = "\n\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    return re.sub(r"\$\$.*?\$\$|\$[^$\n]+\$", "", text, flags=re.S)


def test_there_are_chapters():
    assert CHAPTERS
    extra = {p.stem for p in (ROOT / "book").glob("*.ipynb")} - {p.stem for p in CHAPTERS}
    assert not extra, f"notebooks without a source: {sorted(extra)}"


@pytest.mark.skipif(os.name == "nt", reason="files cannot be sockets there")
def test_no_two_kernels_can_want_one_port():
    made = [nbval.kernel.KernelManager(kernel_name="python3") for _ in range(2)]
    assert {m.transport for m in made} == {"ipc"}
    assert made[0].ip != made[1].ip


def test_a_kernel_whose_folder_has_too_long_a_name_takes_ports(monkeypatch):
    monkeypatch.setattr(notebooks.tempfile, "gettempdir", lambda: "/" + "x" * 100)
    assert notebooks.private_sockets() == {}


@each_chapter
def test_committed_inputs_are_those_of_the_source(chapter, index):
    made, there = convert(chapter, index), committed(chapter)
    assert [(c.cell_type, c.source, c.id) for c in there.cells] == [
        (c.cell_type, c.source, c.id) for c in made.cells
    ], f"{chapter.stem}.ipynb is not made from {chapter.name}: make notebooks"


@each_chapter
def test_committed_notebook_was_executed_in_order(chapter):
    code = [c for c in committed(chapter).cells if c.cell_type == "code"]
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
    assert not [o for c in code for o in c.outputs if o.output_type == "error"]


@each_chapter
def test_no_markup_leaks(chapter):
    text = markdown(committed(chapter))
    for pattern in (ROLE, DIRECTIVE, OTHER):
        leaks = [m[0] for m in pattern.finditer(text)]
        assert not leaks, f"{chapter.stem}.ipynb shows {leaks}"


@each_chapter
def test_no_machine_in_the_outputs(chapter):
    """No path, user or date of the machine that executed it."""
    text = chapter.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert str(ROOT) not in text
    assert not re.search(r"/(home|root|Users|tmp)/", text)


@each_chapter
def test_first_code_cell_is_the_set_up(chapter):
    first = next(c for c in committed(chapter).cells if c.cell_type == "code")
    assert first.source == setup_cell.source(None)


@each_chapter
def test_address_is_filled_in(chapter, index):
    notebook = convert(chapter, index, "https://example.org/ada/counts")
    filled = [c.source for c in notebook.cells if "https://example.org/ada/counts" in c.source]
    assert len(filled) == 1
    assert 'REPOSITORY = "https://example.org/ada/counts"' in filled[0]


@each_chapter
def test_alt_text_of_every_image(chapter):
    for cell in committed(chapter).cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                assert cell.metadata.get("alt"), f"{chapter.stem}: a figure without alt text after\n{cell.source}"
            if "vegaEmbed" in data.get("text/html", ""):
                assert re.search(r'"description": "\S', data["text/html"]), (
                    f"{chapter.stem}: a living figure without description"
                )
    for alt, target in re.findall(r"!\[(.*?)\]\((.*?)\)", markdown(committed(chapter))):
        assert alt, f"{chapter.stem}: {target} has no alt text"


def test_made_twice_is_the_same_to_the_byte(tmp_path, monkeypatch):
    """A chapter with what is random in a notebook: figures, living figures, prints, ids, object addresses."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    chapter = write(tmp_path, "07_small.md", CHAPTER)
    twice = [notebooks.dumps(notebooks.execute(convert(chapter, build_index(tmp_path)))) for _ in range(2)]
    assert twice[0] == twice[1]
    assert "altair-viz-07-small" in twice[0]
    assert "image/png" in twice[0]


# ------------------------------------------------------------------ the converter

HEAD = """\
---
kernelspec:
  name: python3
  display_name: Python 3
jupytext:
  text_representation:
    extension: .md
    format_name: myst
---

"""
SETUP = "```{code-cell} ipython3\n:tags: [setup, hide-input]\n\n" + setup_cell.TEMPLATE + "\n```\n"
CHAPTER = (
    HEAD
    + """(ch-small)=
# Small

Text.

"""
    + SETUP
    + """
```{code-cell} ipython3
---
mystnb:
  image: {alt: A line.}
  figure:
    name: fig-line
    caption: A line. It rises.
---
plt.plot([0, 1])
print("a"); print("b")
object()
plt.show()
```

```{code-cell} ipython3
import altair as alt
alt.Chart({"values": [{"x": 1}]}).mark_point().encode(x="x:Q").properties(description="A point.")
```
"""
)


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def plain(tmp_path: Path, text: str) -> str:
    """What a chapter with this text shows in a notebook."""
    write(tmp_path, "03_other.md", HEAD + "(ch-other)=\n# The other\n\n$$\na\n$$ (eq-other)\n\n" + SETUP)
    write(tmp_path, "notation.md", "# Notation\n")
    chapter = write(tmp_path, "04_this.md", HEAD + "(ch-this)=\n# This\n\n" + SETUP + "\n" + text)
    notebook = convert(chapter, build_index(tmp_path))
    return "\n\n".join(c.source for c in notebook.cells if c.cell_type == "markdown").removeprefix("# This").strip()


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("Plain `code {x}` and $a_{b}$.", "Plain `code {x}` and $a_{b}$."),
        ("% a remark\nText.", "Text."),
        ("$$\na = b\n$$ (eq-a)\n\nSee {eq}`eq-a`.", "$$\na = b \\tag{4.1}\n$$\n\nSee (4.1)."),
        ("$$ a = b $$", "$$\na = b\n$$"),
        ("```{math}\n:label: eq-b\n\na = b\n```\n\n{eq}`eq-b`", "$$\na = b \\tag{4.1}\n$$\n\n(4.1)"),
        ("See {doc}`notation`.", "See Notation."),
        ("See {doc}`the chapter <03_other>`.", "See [the chapter](03_other.ipynb)."),
        ("See {ref}`ch-other` and {eq}`eq-other`.", "See [The other](03_other.ipynb) and [(3.1)](03_other.ipynb)."),
        ("See [](#ch-other) and [it](03_other.md).", "See [The other](03_other.ipynb) and [it](03_other.ipynb)."),
        (":::{note}\nMind.\n:::", "> **Note**\n>\n> Mind."),
        (":::{admonition} Look\n:class: tip\nMind.\n:::", "> **Look**\n>\n> Mind."),
        ("::::{note}\n:::{tip}\nIn.\n:::\n::::", "> **Note**\n>\n> > **Tip**\n> >\n> > In."),
        (
            "```{prf:theorem} Campbell\n:label: thm\n\n$1$\n```\n\n{prf:ref}`thm`",
            "> **Theorem 4.1** (Campbell).\n>\n> $1$\n\nTheorem 4.1",
        ),
        (":::{prf:proof}\nEasy.\n:::", "*Proof.*\n\nEasy.\n\n∎"),
        (
            "```{exercise} Try\n:label: ex\n\nDo.\n```\n\nSee {ref}`ex`.",
            "> **Exercise 4.1** (Try).\n>\n> Do.\n\nSee Exercise 4.1.",
        ),
        (
            "```{exercise}\n:label: ex\nDo.\n```\n\n```{solution} ex\n:class: dropdown\nDone.\n```",
            "> **Exercise 4.1**.\n>\n> Do.\n\n"
            "<details><summary><b>Solution of exercise 4.1</b></summary>\n\nDone.\n\n</details>",
        ),
        ("```{code-block} python\nx = '{ref}`a`'\n```", "```python\nx = '{ref}`a`'\n```"),
        (
            "::::{grid} 2\n:::{grid-item-card} Go\n:link: 03_other\n:link-type: doc\nThere.\n:::\n::::",
            "> **[Go](03_other.ipynb)**\n>\n> There.",
        ),
        (
            "```{table} Numbers\n:name: tab\n\n| a |\n|---|\n| 1 |\n```\n\n{numref}`tab`",
            "**Table 4.1.** Numbers\n\n| a |\n|---|\n| 1 |\n\nTable 4.1",
        ),
        ("- a\n- b {math}`x`", "- a\n- b $x$"),
    ],
)  # fmt: skip
def test_plain_form(tmp_path, source, shown):
    assert plain(tmp_path, source) == shown


def test_citations_become_author_and_year_with_a_list(tmp_path):
    text = plain(tmp_path, "{cite:t}`campbell1909discontinuous` and {cite}`vafaii2024poisson,jang2016categorical`.")
    assert text.startswith("Campbell (1909) and (Vafaii et al., 2024; Jang et al., 2016).\n\n## References\n\n- ")
    assert "N. Campbell (1909). *The study of discontinuous phenomena*." in text


def test_figure_of_a_cell_has_its_caption_and_number(tmp_path):
    chapter = write(tmp_path, "07_small.md", CHAPTER + "\nSee {numref}`fig-line`.\n")
    cells = convert(chapter, build_index(tmp_path)).cells
    assert "**Figure 7.1.** A line. It rises." in [c.source for c in cells]
    assert "See Figure 7.1." in [c.source for c in cells]


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("```{plotly-thing}\n```", "directive {plotly-thing}"),
        ("{blink}`x`", "role {blink}"),
        ("{ref}`nowhere`", "'nowhere' is not defined"),
        ("{doc}`nowhere`", "no page 'nowhere'"),
        ("{cite}`nobody1900`", "'nobody1900' is cited"),
        ("```{note}\nnever closed", "not closed"),
        ("$$\na", "not closed"),
        ("```{image} x.png\n```", "no :alt: text"),
        ("{{ value }}", "substitutions"),
        ("[^a]: a footnote", "footnotes"),
        ("\\begin{align}\na\n\\end{align}", "between $$ and $$"),
    ],
)
def test_what_has_no_plain_form_is_refused(tmp_path, source, complaint):
    with pytest.raises(ValueError, match=re.escape(complaint)):
        plain(tmp_path, source)


def test_a_changed_set_up_cell_is_refused(tmp_path):
    chapter = write(tmp_path, "07_small.md", CHAPTER.replace("manual_seed(0)", "manual_seed(1)"))
    with pytest.raises(ValueError, match="set-up cell must be the template"):
        convert(chapter, build_index(tmp_path))


def test_set_up_cell_says_what_to_do_without_an_address(monkeypatch):
    monkeypatch.delenv("HITCHHIKER_REPOSITORY", raising=False)
    monkeypatch.setitem(__import__("sys").modules, "hitchhiker", None)
    code = setup_cell.source(None).split("import matplotlib")[0].replace("import hitchhiker.plotting", "")
    with pytest.raises(ModuleNotFoundError, match="set HITCHHIKER_REPOSITORY"):
        exec(code, {})
