"""`make figure`: the README's figure, taken out of the executed notebook that shows it."""

from __future__ import annotations

import base64
from pathlib import Path

import nbformat
from myst_to_notebook import BOOK

CHAPTER, FIGURE = "05_counting_arrivals", "fig-truncation"
TARGET = BOOK / "_static" / "readme.png"


def image(chapter: str = CHAPTER, figure: str = FIGURE, book: Path = BOOK) -> bytes:
    """The PNG of the figure with that name; ``ValueError`` if the notebook shows none."""
    for cell in nbformat.read(book / f"{chapter}.ipynb", as_version=4).cells:
        if cell.metadata.get("figure") == figure:
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    return base64.b64decode(output["data"]["image/png"])
    raise ValueError(f"{chapter}.ipynb shows no figure called {figure}: make notebooks")


if __name__ == "__main__":
    TARGET.write_bytes(image())
    print(f"{TARGET.relative_to(BOOK.parent)}: from {CHAPTER}.ipynb")
