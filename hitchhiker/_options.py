"""What the commands share: which options were typed, and whether a run can go on, have its device and its threads."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

MOST_THREADS = 1024


def flag(name: str) -> str:
    """``--data-set`` for ``data_set``."""
    return f"--{name.replace('_', '-')}"


def typed(context: Any, names: Iterable[str]) -> set[str]:
    """Those options of a typer command that were given, rather than left at their defaults."""
    sources = {name: context.get_parameter_source(name) for name in names}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def require_same(stored: Mapping[str, Any], given: Mapping[str, Any], explicit: Collection[str], out: Path) -> None:
    """Raise ``ValueError`` where an option that was typed differs from that of the run in ``out``, which is resumed."""
    for name in sorted(explicit):
        if name in stored and stored[name] != given[name]:
            raise ValueError(f"{flag(name)} must be {stored[name]} to resume {out}, got {given[name]}")


def check_threads(threads: int, least: int) -> None:
    """Raise ``ValueError`` for a number of threads that torch would not survive."""
    if not least <= threads <= MOST_THREADS:
        raise ValueError(f"--threads must be >= {least} and <= {MOST_THREADS}, got {threads}")


def check_device(name: str) -> torch.device:
    """The device that ``--device`` names; ``ValueError`` when it is not to be had here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device must be cpu, cuda or auto, got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu, cuda or auto, got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device must be cpu here (no CUDA device is available), got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device must be one of {torch.cuda.device_count()} CUDA devices, got {name!r}")
    return device
