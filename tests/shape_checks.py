"""What checks the module's signatures in tests: jaxtyping's shapes, by beartype, as jaxtyping's import hook applies it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

PACKAGE = Path(__file__).resolve().parents[1] / "hitchhiker"
#: torch reads the bare signatures of its custom operators
UNCHECKED = {"kernels"}

_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int may stand for a float


def check(function: Callable) -> Callable:
    """Check what has shapes in its signature; beartype does not know ``Self`` outside a decorated class."""
    hints = getattr(function, "__annotations__", {}).values()
    written = " ".join(h if isinstance(h, str) else str(h) for h in hints)
    return _beartype(function) if "[Tensor" in written and "Self" not in written else function


def install() -> None:
    """From now on, importing a module of ``hitchhiker`` wraps its functions in these checks."""
    names = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    install_import_hook([f"hitchhiker.{n}" for n in sorted(names - UNCHECKED - {"__init__"})], "shape_checks.check")
