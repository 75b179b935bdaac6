"""The van Hateren natural image database: reader and download of single files.

The images are linear in light intensity, 1536 x 1024 pixels, two bytes each, most significant first, no
header. They are free for scientific, non-commercial use with citation of van Hateren and van der Schaaf
(1998).
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable
from os import PathLike
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from .._files import read_json, write_json
from .scenes import Scene, embedded_scenes

HEIGHT, WIDTH = 1024, 1536
NUM_BYTES = HEIGHT * WIDTH * 2
BASE_URL = "http://pirsquared.org/research/vhatdb/"
MISSING = frozenset({45})
LICENCE = "free for scientific, non-commercial use with citation of van Hateren & van der Schaaf (1998)"


def read_iml(path: str | PathLike[str]) -> Float[ndarray, "1024 1536"]:
    """Light intensity (linear, arbitrary unit) of one ``.iml`` file, (1024, 1536), row by row from the top
    left.

    Raises ``ValueError`` naming the file when it is missing, not 3,145,728 bytes long, or has one value
    throughout.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"image {path} cannot be read: {error.strerror}") from error
    if len(data) != NUM_BYTES:
        raise ValueError(f"image {path} must have {NUM_BYTES:,} bytes (1536 x 1024, 16 bit), got {len(data):,}")
    pixels = np.frombuffer(data, dtype=">u2").reshape(HEIGHT, WIDTH).astype(np.float64)
    if pixels.min() == pixels.max():
        raise ValueError(f"image {path} has the value {pixels.min():.0f} everywhere: not a scene")
    return pixels


def log_intensity(pixels: ndarray) -> ndarray:
    """ln(max(intensity, 1)): contrast is a ratio of intensities, so differences of logs are what counts."""
    return np.log(np.maximum(pixels, 1.0))


def van_hateren_scenes(
    numbers: Iterable[int] = range(1, 21),
    *,
    cache: str | PathLike[str] | None = None,
    base_url: str = BASE_URL,
    fallback: bool = True,
    progress: bool = True,
) -> list[Scene]:
    """Download (once) and read van Hateren images, as log intensities.

    Parameters
    ----------
    numbers : image numbers, 1 to 4212 without 45.
    cache : folder that keeps the files (default: the system's cache folder of ``hitchhiker``).
    base_url : address of the folder that holds ``imk00001.iml`` …
    fallback : when the download fails, warn and return the embedded scenes (True), or raise (False).
    progress : show a progress bar.

    Each file is retried three times, written in one step, checked for its length, and its SHA-256 is kept in
    ``sha256.json`` on first sight, so that a file that changes later is noticed.  Raises ``ValueError`` for a
    number out of range or a file of the wrong length or content, ``ConnectionError`` when a download fails
    and ``fallback`` is False.
    """
    import pooch

    numbers = list(numbers)
    for number in numbers:
        if not 1 <= number <= 4212 or number in MISSING:
            raise ValueError(f"numbers must be in 1..4212 and not 45, got {number}")
    folder = Path(cache) if cache is not None else Path(pooch.os_cache("hitchhiker")) / "van-hateren"
    folder.mkdir(parents=True, exist_ok=True)
    known = _known_hashes(folder)
    names = [f"imk{number:05d}.iml" for number in numbers]
    store = pooch.create(
        path=folder, base_url=base_url, registry={name: known.get(name) for name in names}, retry_if_failed=3
    )
    downloader = pooch.HTTPDownloader(progressbar=progress, timeout=60)
    scenes = []
    for name in names:
        try:
            path = Path(store.fetch(name, downloader=downloader))
        except OSError as error:  # requests' exceptions are OSErrors
            if not fallback:
                raise ConnectionError(f"{base_url}{name} could not be downloaded: {error}") from error
            warnings.warn(
                f"{base_url}{name} could not be downloaded ({type(error).__name__}); "
                "using the embedded natural scenes instead",
                stacklevel=2,
            )
            return embedded_scenes()
        try:
            pixels = read_iml(path)
        except ValueError:
            path.unlink(missing_ok=True)  # an error page or a broken transfer must not stay in the cache
            raise
        known[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        scenes.append(Scene(name, log_intensity(pixels), base_url + name, LICENCE, known[name]))
    write_json(folder / "sha256.json", known)
    return scenes


def _known_hashes(folder: Path) -> dict[str, str]:
    record = folder / "sha256.json"
    return read_json(record) if record.exists() else {}
