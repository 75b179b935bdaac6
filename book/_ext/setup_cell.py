"""The first code cell of every chapter: one template, the same in all of them.

``python book/_ext/setup_cell.py`` prints it, ready to paste into a new chapter;
``--write`` brings the cell of every chapter up to date after a change here.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

MARKER = 'REPOSITORY = ""'

TEMPLATE = f"""\
# Needed once in Colab: get the package from the repository that this copy came from.
{MARKER}
try:
    import hitchhiker as hh
except ModuleNotFoundError as error:
    import importlib, os, subprocess, sys

    address = os.environ.get("HITCHHIKER_REPOSITORY") or REPOSITORY
    if error.name != "hitchhiker" or not address:
        raise ModuleNotFoundError("hitchhiker is missing: set HITCHHIKER_REPOSITORY to its git address and run again") from error
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", f"hitchhiker[all] @ git+{{address}}"], check=True)
    importlib.invalidate_caches()
    import hitchhiker as hh

import hitchhiker.plotting
import matplotlib.pyplot as plt
import torch

hh.plotting.use_style()
_ = torch.manual_seed(0)"""

METADATA = {"tags": ["setup", "hide-input"]}


def source(repository: str | None = None) -> str:
    """The cell's code, with the repository's address filled in where it is known."""
    return TEMPLATE.replace(MARKER, f'REPOSITORY = "{repository or ""}"')


def check(cell_source: str, chapter: str) -> None:
    """Raise ``ValueError`` unless the chapter's set-up cell is the template."""
    if cell_source.strip() != TEMPLATE:
        raise ValueError(
            f"{chapter}: the set-up cell must be the template that `python book/_ext/setup_cell.py` prints"
        )


def rewrite(book: Path) -> list[str]:
    """Bring the set-up cell of every chapter up to date; the names of those that changed."""
    changed = []
    for path in sorted(book.glob("[0-9][0-9]_*.md")):
        text = path.read_text(encoding="utf-8")
        new = re.sub(
            r"(```\{code-cell\}[^\n]*\n:tags: \[setup, hide-input\]\n\n).*?(\n```)",
            lambda match: match[1] + TEMPLATE + match[2],
            text, count=1, flags=re.S,
        )  # fmt: skip
        if new != text:
            path.write_text(new, encoding="utf-8")
            changed.append(path.name)
    return changed


if __name__ == "__main__":
    if "--write" in sys.argv:
        print("\n".join(rewrite(Path(__file__).resolve().parents[1])) or "every set-up cell is up to date")
    else:
        print("```{code-cell} ipython3\n:tags: [setup, hide-input]\n\n" + TEMPLATE + "\n```")
