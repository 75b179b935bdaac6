"""The built book: complete without a network, an alt text on every figure, no dead link, readable on a phone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import browser as browsers
import hitchhiker_book
import pytest
import repository
from bs4 import BeautifulSoup
from conftest import ROOT
from myst_to_notebook import chapters

CHAPTERS = [p.stem for p in chapters()]


@cache
def soup(page: Path) -> BeautifulSoup:
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


def pages(site: Path) -> list[Path]:
    return sorted(p for p in site.rglob("*.html") if "_static" not in p.parts)


def is_external(address: str) -> bool:
    return bool(re.match(r"(https?:)?//", address))


def loaded(tag) -> list[str]:
    """The addresses that a browser fetches by itself for this tag (a plain link to click on is not one)."""
    found = [tag.get(a) for a in ("src", "poster", "data") if tag.get(a)]
    found += [part.split()[0] for part in (tag.get("srcset") or "").split(",") if part.strip()]
    if tag.name == "link" and set(tag.get("rel", [])) & {
        "stylesheet",
        "icon",
        "preload",
        "modulepreload",
        "prefetch",
        "preconnect",
    }:
        found.append(tag.get("href", ""))
    found += re.findall(r"url\(\s*['\"]?([^'\")]+)", tag.get("style", ""))
    return [f for f in found if not f.startswith("data:")]


def test_every_page_of_the_contents_is_built(site):
    listed = re.findall(r"(?:file|root): (\S+)", (ROOT / "_toc.yml").read_text())
    assert {p.stem for p in pages(site)} >= set(listed)
    assert set(CHAPTERS) <= set(listed), "a chapter is not in _toc.yml"


def test_nothing_is_loaded_from_elsewhere(site):
    fetched = {(p.name, a) for p in pages(site) for t in soup(p).find_all(True) for a in loaded(t) if is_external(a)}
    assert not fetched
    for sheet in site.rglob("*.css"):
        text = re.sub(r"/\*.*?\*/", "", sheet.read_text(encoding="utf-8", errors="replace"), flags=re.S)
        outside = [a for a in re.findall(r"(?:url\(|@import)\s*['\"]?([^'\")\s;]+)", text) if is_external(a)]
        assert not outside, f"{sheet.relative_to(site)} loads {outside}"
    for page in pages(site):
        for script in soup(page).find_all("script", src=None):
            assert not re.search(r"(?:import\(|importScripts\(|\.src\s*=)\s*['\"](?:https?:)?//", script.text), (
                page.name
            )


def test_every_local_link_leads_somewhere(site):
    dead = []
    for page in pages(site):
        for tag in soup(page).find_all(True):
            for address in {*loaded(tag), tag.get("href") or ""}:
                parts = urlsplit(address)
                if parts.scheme or is_external(address) or not (parts.path or parts.fragment):
                    continue
                target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
                target = target / "index.html" if target.is_dir() else target
                if not target.exists():
                    dead.append((page.name, address))
                elif parts.fragment and target.suffix == ".html" and tag.name == "a":
                    names = soup(target).find(attrs={"id": unquote(parts.fragment)})
                    if names is None:
                        dead.append((page.name, address))
    assert not dead


def test_every_figure_has_an_alt_text(site):
    missing = []
    for page in pages(site):
        for image in soup(page).find_all("img"):
            alt, source = (image.get("alt") or "").strip(), image.get("src", "")
            if not alt or alt == source or re.fullmatch(r"[\w./-]+\.(png|svg|jpe?g)", alt):
                missing.append((page.name, source))
        for figure in soup(page).select(".living-figure"):
            if not figure.get("aria-label"):
                missing.append((page.name, "living figure"))
    assert not missing


def test_living_figures_use_the_book_s_own_copy(site):
    for page in pages(site):
        text = page.read_text(encoding="utf-8")
        assert "altair-viz" not in text, page.name
        for figure in soup(page).select(".living-figure"):
            assert "mark" in figure.script.text
            assert json.loads(figure.script.text)
            assert "_static/vega.js" in text


def test_no_markup_leaks(site):
    for page in pages(site):
        article = soup(page).find("article")
        if article is None or page.stem in {"search", "genindex", "py-modindex"}:
            continue
        text = " ".join(
            s
            for s in article.find_all(string=True)
            if not s.find_parent(["pre", "code", "script"]) and not s.find_parent(class_="math")
        )
        leaks = re.findall(r"\{[a-z][\w:]*\}`|:{3,}\s*\{|\(\w[\w-]*\)=", text)
        assert not leaks, f"{page.name}: {leaks}"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_buttons_of_a_chapter(site, chapter):
    page = soup(site / f"{chapter}.html")
    notebook = page.find("a", href=f"notebooks/{chapter}.ipynb")
    assert notebook is not None
    made = json.loads((site / "notebooks" / f"{chapter}.ipynb").read_text(encoding="utf-8"))
    address = repository.address()
    assert f'REPOSITORY = "{address or ""}"' in "".join(
        next(c for c in made["cells"] if c["cell_type"] == "code")["source"]
    )
    colab = [a["href"] for a in page.find_all("a", href=True) if "colab.research" in a["href"]]
    wanted = repository.colab_url(address, chapter)
    assert set(colab) == ({wanted} if wanted else set())


def test_solutions_are_folded(site):
    for chapter in CHAPTERS:
        page = soup(site / f"{chapter}.html")
        assert page.select(".exercise"), f"{chapter} has no exercise"
        assert all("dropdown" in s["class"] for s in page.select("div.solution")), f"{chapter} shows a solution"


# ------------------------------------------------------------------ the repository's address


@pytest.mark.parametrize(
    ("remote", "address"),
    [
        ("git@github.com:ada/counts.git", "https://github.com/ada/counts"),
        ("ssh://git@github.com:22/ada/counts.git", "https://github.com/ada/counts"),
        ("https://github.com/ada/counts", "https://github.com/ada/counts"),
        ("https://ada:token@github.com/ada/counts.git/", "https://github.com/ada/counts"),
        ("git@gitlab.example.org:group/sub/counts.git", "https://gitlab.example.org/group/sub/counts"),
        ("/srv/git/counts.git", None),
        ("../counts", None),
        ("file:///srv/git/counts.git", None),
        ("work:ada/counts", None),
        (r"C:\Users\ada\counts", None),
        ("", None),
    ],
)
def test_normalised_address(remote, address):
    assert repository.normalise(remote) == address


def test_address_of_a_fork(tmp_path, monkeypatch):
    monkeypatch.delenv(repository.VARIABLE, raising=False)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert repository.address(tmp_path) is None
    subprocess.run(["git", "-C", str(tmp_path), "remote", "add", "origin", "git@github.com:bob/fork.git"], check=True)
    assert repository.address(tmp_path) == "https://github.com/bob/fork"
    monkeypatch.setenv(repository.VARIABLE, "https://github.com/eve/other.git")
    assert repository.address(tmp_path) == "https://github.com/eve/other"
    monkeypatch.setenv(repository.VARIABLE, "over there")
    with pytest.raises(ValueError, match="HITCHHIKER_REPOSITORY must be"):
        repository.address(tmp_path)


def test_colab_button_only_where_the_address_is_known():
    with_address = hitchhiker_book.buttons("05_x", "https://github.com/ada/counts")
    assert [b["url"] for b in with_address] == [
        "https://colab.research.google.com/github/ada/counts/blob/gh-pages/notebooks/05_x.ipynb", "notebooks/05_x.ipynb",
    ]  # fmt: skip
    for address in (None, "https://gitlab.example.org/ada/counts"):
        assert [b["label"] for b in hitchhiker_book.buttons("05_x", address)] == ["download-notebook-button"]


# ------------------------------------------------------------------ what the build refuses


SMALL_CONFIG = """\
extensions = ["myst_nb", "hitchhiker_book"]
html_theme = "sphinx_book_theme"
nb_execution_mode = "off"
suppress_warnings = ["myst.domains"]
"""


def build(folder: Path, text: str, *, address: str = "") -> subprocess.CompletedProcess:
    (folder / "conf.py").write_text(SMALL_CONFIG + (f"hitchhiker_address = {address!r}\n" if address else ""))
    (folder / "index.md").write_text("# Small\n\n```{toctree}\n05_page\n```\n")
    (folder / "05_page.md").write_text(text)
    (folder / "dot.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>')
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); "
        "from sphinx.cmd.build import main; raise SystemExit(main(sys.argv[1:]))"
    )
    flags = ["-q", "-W", "--keep-going", "-b", "html"]
    return subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "book" / "_ext"), *flags, str(folder), str(folder / "out")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_figure_without_alt_text_fails_the_build(tmp_path):
    done = build(tmp_path, "# Page\n\n```{image} dot.svg\n```\n")
    assert done.returncode == 1
    assert "dot.svg has no alt text" in done.stderr


def test_a_page_with_an_address_has_both_buttons(tmp_path):
    done = build(tmp_path, "# Page\n\n```{image} dot.svg\n:alt: A dot.\n```\n", address="https://github.com/ada/counts")
    assert done.returncode == 0, done.stderr
    html = (tmp_path / "out" / "05_page.html").read_text()
    assert "colab.research.google.com/github/ada/counts/blob/gh-pages/notebooks/05_page.ipynb" in html
    assert "notebooks/05_page.ipynb" in html
    assert (tmp_path / "out" / "_static" / "mathjax" / "tex-chtml.js").exists()
    assert (tmp_path / "out" / "_static" / "vega.js").stat().st_size > 500_000


def test_a_living_figure_is_made_local_and_needs_a_description():
    altair = pytest.importorskip("altair")
    chart = altair.Chart({"values": [{"a": "</script>"}]}).mark_point()
    for description in ("", 'Two "points".'):
        html = chart.properties(description=description)._repr_mimebundle_()["text/html"]
        local, alt = hitchhiker_book.living_figure(html)
        assert alt == description
        assert "http" not in re.sub(r'"\$schema":"[^"]*"', "", local)
        assert "</script>" not in local.split("json>")[-1].split("</script><noscript>")[0]
        spec = BeautifulSoup(local, "html.parser").find("script").text
        assert json.loads(spec)["datasets" if "datasets" in json.loads(spec) else "data"]


# ------------------------------------------------------------------ in a browser, network cut

needs_browser = pytest.mark.skipif(browsers.CHROMIUM is None, reason="no chromium on this machine")
WIDTHS = """() => ({
  page: document.documentElement.scrollWidth,
  math: document.querySelectorAll("mjx-container").length,
  raw: document.querySelectorAll(".math").length,
  errors: document.querySelectorAll("mjx-merror, .mjx-error").length,
  living: document.querySelectorAll(".living-figure").length,
  drawn: document.querySelectorAll(".living-figure svg").length,
  broken: [...document.images].filter(i => i.complete && !i.naturalWidth && i.src).map(i => i.src),
  text: document.querySelector("article").innerText.length,
})"""


@pytest.fixture(scope="module")
def chromium():
    with browsers.browser() as running:
        yield running


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.filterwarnings("default")
def test_pages_are_whole_without_a_network(site, chromium, width):
    for page in pages(site):
        if soup(page).find("article") is None or page.stem in {"search", "genindex", "py-modindex"}:
            continue
        seen = chromium.look(page, width, WIDTHS)
        assert seen["page"] <= width, f"{page.name} is {seen['page']} px wide in a window of {width}"
        assert seen["math"] >= seen["raw"], f"{page.name}: {seen['raw'] - seen['math']} formulas are raw TeX"
        assert seen["errors"] == 0, f"{page.name}: MathJax does not understand a formula"
        assert seen["drawn"] == seen["living"], f"{page.name}: a living figure is not drawn"
        assert not seen["broken"], f"{page.name}: {seen['broken']}"
        assert seen["text"] > 0
