"""What runs that can be stopped share: files that nobody ever sees half of, data known again, seeds of their parts."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
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


def is_vacant(folder: Path) -> bool:
    """Whether there is nothing in the folder, or no such folder.

    Temporary files that a killed :func:`write_atomically` left do not count, and are removed if there is nothing else.
    """
    if not folder.exists():
        return True
    found = list(folder.iterdir())
    if any(not re.fullmatch(r"\..+\.tmp", path.name) for path in found):
        return False
    for path in found:
        path.unlink()
    return True


def sha256(data: Any) -> str | None:
    """Hex digest of a tensor's shape and values, by which a resumed run knows its data again; None for None."""
    if data is None:
        return None
    values = data.detach().cpu().contiguous().numpy()
    return hashlib.sha256(repr(values.shape).encode() + values.tobytes()).hexdigest()


def require_seed(name: str, seed: int) -> None:
    """Raise ``ValueError`` unless torch and JSON readers take the seed."""
    if abs(seed) >= 2**63:
        raise ValueError(f"{name} must be below 2^63, got {seed}")


def stream(seed: int, part: int) -> int:
    """Seed of a part of the work (an epoch, a parameter), in torch's range."""
    return (seed * 1_000_003 + part) % 2**64


@contextlib.contextmanager
def own_random_numbers(seed: int | None, device: Any = "cpu") -> Iterator[None]:
    """Torch's random numbers on the CPU and on ``device`` start at ``seed`` (None: go on) and are then as they were.

    ``torch.manual_seed`` would also seed all other devices, which ``fork_rng`` does not give back.
    """
    import torch

    device = torch.device(device)
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []):
        if seed is not None and device.type not in ("cpu", "cuda"):
            torch.manual_seed(seed)
        elif seed is not None:
            torch.default_generator.manual_seed(seed)
            if on_gpu:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
        yield


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
