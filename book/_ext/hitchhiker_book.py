"""The book's own Sphinx extension: offline JavaScript, living figures, alt text, buttons and figure numbers."""

from __future__ import annotations

import importlib.util
import json
import re
from html import escape
from pathlib import Path
from typing import Any

import repository
import vl_convert
from docutils import nodes
from myst_to_notebook import chapter_number
from sphinx.application import Sphinx
from sphinx.environment.collectors.toctree import TocTreeCollector
from sphinx.util import logging
from sphinx.util.fileutil import copy_asset

LOGGER = logging.getLogger(__name__)
ALTAIR = re.compile(r'<div id="altair-viz-\w+">')
VEGA = "vega.js"


# ---------------------------------------------------------------- figures


def living_figure(html: str) -> tuple[str, str]:
    """Altair's HTML, which loads vega from a CDN, as HTML that uses the book's own copy; and its alt text.

    The alt text is the chart's ``description`` (``chart.properties(description=…)``).
    """
    start = html.index("})(", html.index("displayChart")) + len("})(")
    spec, _ = json.JSONDecoder().raw_decode(html[start:])
    alt = " ".join(spec.get("description", "").split())
    data = json.dumps(spec, separators=(",", ":")).replace("</", "<\\/")
    return (
        f'<div class="living-figure" role="group" aria-label="{escape(alt, quote=True)}">'
        f'<script type="application/json">{data}</script>'
        f"<noscript>{escape(alt)}</noscript></div>"
    ), alt


def finish_figures(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Every image and living figure has an alt text, and living figures use local JavaScript."""
    for image in doctree.findall(nodes.image):
        alt = image.get("alt", "").strip()
        if not alt or alt == image.get("uri"):
            LOGGER.warning(
                "the figure %s has no alt text (in a code cell: mystnb: {image: {alt: …}})",
                image.get("uri"), location=image, type="hitchhiker", subtype="alt",
            )  # fmt: skip
    for block in doctree.findall(nodes.literal_block):  # the tests' mark is not for readers
        code = re.sub(r"[ \t]*# NBVAL_\w+", "", block.astext())
        if code != block.astext():
            block.rawsource = code
            block.children = [nodes.Text(code)]
    for raw in list(doctree.findall(nodes.raw)):
        if "html" in raw.get("format", "") and ALTAIR.search(raw.astext()):
            html, alt = living_figure(raw.astext())
            if not alt:
                LOGGER.warning(
                    "a living figure has no alt text: chart.properties(description=…)",
                    location=raw, type="hitchhiker", subtype="alt",
                )  # fmt: skip
            raw.replace_self(nodes.raw("", html, format="html"))


def number_by_file(app: Sphinx) -> None:
    """Figure 5.2 is the second figure of 05_…: the number stays when chapters are added, and notebooks agree."""
    original = TocTreeCollector.assign_figure_numbers

    def assign(self: TocTreeCollector, env: Any) -> list[str]:
        before = env.toc_fignumbers
        original(self, env)
        for docname, kinds in env.toc_fignumbers.items():
            chapter = chapter_number(docname)
            for labels in kinds.values():
                for i, label in enumerate(labels, start=1):
                    labels[label] = (i,) if chapter is None else (chapter, i)
        return [d for d, kinds in env.toc_fignumbers.items() if kinds != before.get(d)]

    if original.__name__ != "assign":
        TocTreeCollector.assign_figure_numbers = assign  # type: ignore[method-assign]


def escape_markup(line: str) -> str:
    """Docstrings are written to be read in a terminal: |u|, (*batch) and exponential_ are no markup."""
    parts = re.split(r"(``.*?``|:\w[\w:]*:`.*?`|`[^`]+`_*)", line)
    for i in range(0, len(parts), 2):
        text = re.sub(r"(?<!\w)\*(\*?\w[^*]*?\w\*?)\*(?!\w)", "\0\\1\0", parts[i])  # keep *emphasis*
        text = re.sub(r"[*|]", lambda match: "\\" + match[0], text)
        parts[i] = re.sub(r"(?<=\w)_(?=\W|$)", r"\\_", text).replace("\0", "*")
    return "".join(parts)


def plain_docstrings(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Numpy's sections as a bold word and a list; unlike in napoleon a section ends where the text goes on."""
    out: list[str] = []
    listing, code = False, False
    for i, line in enumerate(lines):
        following = lines[i + 1] if i + 1 < len(lines) else ""
        if re.fullmatch(r"\s*-{4,}\s*", line):
            continue
        if re.fullmatch(r"-{4,}\s*", following) and line.strip():
            listing = line.strip() in {"Parameters", "Attributes", "Raises", "Properties"}
            out += ["", f"**{line.strip()}**", ""]
            continue
        code = line.lstrip().startswith((">>>", "...")) or (code and bool(line.strip()))
        if not code:
            line = escape_markup(line)
        entry = re.match(r"(\S.*?)\s+:\s+(.*)$", line) or re.match(r"([A-Z]\w+(?:Error|Exception))()$", line)
        if listing and entry:
            out.append(f"* ``{entry[1].replace('`', '').replace(chr(92), '')}``: {entry[2]}".rstrip())
        elif listing and line.startswith(" "):
            out.append("  " + line.lstrip())
        else:
            if listing and line.strip():
                listing = False
                out.append("")
            out.append(line)
    lines[:] = out


# ---------------------------------------------------------------- pages


def buttons(pagename: str, address: str | None) -> list[dict[str, Any]]:
    """The header buttons of a chapter: the notebook, and Colab where the repository's address is known."""
    found: list[dict[str, Any]] = []
    colab = repository.colab_url(address, pagename)
    if colab:
        found.append(
            {
                "text": "Colab",
                "tooltip": "Open in Colab",
                "icon": "fas fa-rocket",
                "url": colab,
                "label": "colab-button",
            }
        )
    found.append(
        {
            "text": "Notebook", "tooltip": "Download the notebook", "icon": "fas fa-download",
            "url": f"notebooks/{pagename}.ipynb", "label": "download-notebook-button",
        }
    )  # fmt: skip
    return [{"type": "link", **button} for button in found]


def finish_page(app: Sphinx, pagename: str, templatename: str, context: dict, doctree: nodes.document | None) -> None:
    if chapter_number(pagename) is not None:
        context["header_buttons"] = buttons(pagename, app.config.hitchhiker_address) + context.get("header_buttons", [])
    if 'class="living-figure"' in context.get("body", ""):
        app.add_js_file(VEGA)  # large, so only where it is needed


def copy_scripts(app: Sphinx, exception: Exception | None) -> None:
    """MathJax and vega from the wheels that carry them, so that pages are complete without a network."""
    if exception is not None or app.builder.format != "html":
        return
    static = Path(app.outdir) / "_static"
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    assert spec is not None
    assert spec.origin is not None
    if not (static / "mathjax").exists():
        copy_asset(str(Path(spec.origin).parent / "static" / "mathjax"), str(static / "mathjax"))
    if not (static / VEGA).exists():
        (static / VEGA).write_text(f"(function () {{\n{vl_convert.javascript_bundle()}\n}})();\n", encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    app.setup_extension("sphinx.ext.autodoc")
    app.add_config_value("hitchhiker_address", repository.address(), "html", types=(str, type(None)))
    number_by_file(app)
    app.connect("autodoc-process-docstring", plain_docstrings, priority=900)
    app.connect("doctree-resolved", finish_figures, priority=900)
    app.connect("html-page-context", finish_page, priority=900)
    app.connect("build-finished", copy_scripts)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
