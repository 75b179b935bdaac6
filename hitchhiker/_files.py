"""Files of runs that can be stopped: nobody ever sees half of one, and what is read is what was meant."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_atomically(path: str | os.PathLike[str], content: bytes | str) -> Path:
    """Replace ``path`` by ``content`` in one step: temporary file beside it, flushed to disk, then renamed.

    Whatever happens (SIGKILL, power cut, full disk), ``path`` holds either its old content or all of the new.
    Raises ``OSError`` as the operating system does; the temporary file is then removed.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o644)  # mkstemp makes it private to its owner
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)
    return path


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """``value`` as indented JSON, atomically; NaN and infinity are refused, for JSON has none."""
    return write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str], required: Iterable[str] = ()) -> dict[str, Any]:
    """The JSON object in a file.  Raises ``ValueError`` naming the file: unreadable, another thing, or an entry missing."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    return require_entries(path, value, required)


def require_entries(path: str | os.PathLike[str], value: Any, required: Iterable[str]) -> dict[str, Any]:
    """``value``, which came from the file; ``ValueError`` unless it is a mapping with these entries."""
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}")
    if missing := [name for name in required if name not in value]:
        raise ValueError(f"{path} must hold {', '.join(missing)}, got only {', '.join(value) or 'an empty object'}")
    return value


def require_vacant(name: str, folder: Path, unless: str = "resuming") -> None:
    """Raise ``ValueError`` unless the folder is new or empty.

    Temporary files that a killed :func:`write_atomically` left do not count, and are removed if there is nothing else.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{name} must be a folder, got the file {str(folder)!r}")
    found = list(folder.iterdir())
    if any(not re.fullmatch(r"\..+\.tmp", path.name) for path in found):
        raise ValueError(f"{name} must be a new or empty folder unless {unless}, got {str(folder)!r}")
    for path in found:
        path.unlink()


def make_folder(name: str, folder: Path) -> None:
    """Make the folder and those above it; ``ValueError`` where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{name} must be a folder that can be made, got {str(folder)!r}: {error.strerror}") from error


def sha256(data: Any) -> str | None:
    """Hex digest of a tensor's shape and values, by which a resumed run knows its data again; None for None."""
    if data is None:
        return None
    values = data.detach().cpu().contiguous().numpy()
    return hashlib.sha256(repr(values.shape).encode() + values.tobytes()).hexdigest()


def _sync_directory(folder: Path) -> None:
    # Without this the rename itself may be lost in a power cut; some file systems do not offer it.
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
