"""Natural scenes: those inside the scikit-image and scikit-learn wheels, and the user's own."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import numpy as np
from numpy import ndarray

#: file, package, path inside the wheel, licence.  All five are part of the wheels: nothing is downloaded.
EMBEDDED = (
    ("china.jpg", "sklearn", "datasets/images", "CC BY 2.0, danielbuechele"),
    ("flower.jpg", "sklearn", "datasets/images", "CC BY 2.0, vultilion"),
    ("chelsea.png", "skimage", "data", "CC0, Stéfan van der Walt"),
    ("grass.png", "skimage", "data", "CC0, Lukas Mitterhofer (linolafett)"),
    ("gravel.png", "skimage", "data", "CC0, Rob Tuytel"),
)

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".iml")


@dataclass(frozen=True)
class Scene:
    """One grey image and where it comes from: ``pixels`` (height, width) float64, any unit."""

    name: str
    pixels: ndarray = field(repr=False)
    source: str = "array"
    licence: str = "not stated"
    sha256: str | None = None

    def provenance(self) -> dict:
        """What a result should remember of this scene (JSON)."""
        return {
            "name": self.name,
            "source": self.source,
            "licence": self.licence,
            "sha256": self.sha256,
            "shape": list(self.pixels.shape),
        }


def embedded_scenes() -> list[Scene]:
    """The five natural scenes that come inside the scikit-image and scikit-learn wheels, as grey images.

    Raises ``ImportError`` with the command to run when a package is missing.
    """
    return [
        read_image(_package_folder(package) / folder / name, source=f"{package} wheel", licence=licence)
        for name, package, folder, licence in EMBEDDED
    ]


def folder_scenes(path: str | PathLike[str]) -> list[Scene]:
    """All images in a folder (not its subfolders), by name; or the one image when ``path`` is a file.

    Other files are passed over.  Raises ``ValueError`` naming the folder when it is missing or has no
    image, and naming the file when one with an image's suffix cannot be read.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return [read_image(path)]
    if not path.is_dir():
        raise ValueError(f"images must be a folder of images, got {str(path)!r}, which does not exist")
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not files:
        raise ValueError(f"images must be a folder with files {', '.join(SUFFIXES)}, got {str(path)!r} with none")
    return [read_image(file) for file in files]


def read_image(path: str | PathLike[str], *, source: str | None = None, licence: str = "not stated") -> Scene:
    """Read one image file as grey levels.

    Colour becomes luma, 0.2126 R + 0.7152 G + 0.0722 B, of the stored (gamma-coded) values, which are nearly
    logarithmic already; ``.iml`` files are linear and become log intensities.  Raises ``ValueError``
    naming the file when it is empty, corrupt, no image, or one grey level throughout.
    """
    path = Path(path)
    if path.suffix.lower() == ".iml":
        from .vanhateren import log_intensity, read_iml

        pixels = log_intensity(read_iml(path))
    else:
        pixels = _read_with_pillow(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    scene = Scene(path.name, pixels, source or str(path), licence, digest)
    check_scene(scene)
    return scene


def check_scene(scene: Scene) -> None:
    """Raise ``ValueError`` naming the scene unless it is a two-dimensional, finite, not constant image."""
    if scene.pixels.ndim != 2:
        raise ValueError(f"image {scene.source} must have two dimensions, got shape {scene.pixels.shape}")
    if not np.isfinite(scene.pixels).all():
        raise ValueError(f"image {scene.source} must be finite, got NaN or infinity")
    if scene.pixels.size == 0 or scene.pixels.min() == scene.pixels.max():
        raise ValueError(f"image {scene.source} has one grey level throughout: not a scene")


def _read_with_pillow(path: Path) -> ndarray:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError('reading images needs pillow: pip install "hitchhiker[train]"') from error
    try:
        with Image.open(path) as image:
            if image.mode in {"1", "L", "LA", "I", "F"} or image.mode.startswith("I;16"):
                grey = image.convert("L") if image.mode in {"1", "LA"} else image
                return np.asarray(grey, dtype=np.float64)
            red, green, blue = np.moveaxis(np.asarray(image.convert("RGB"), dtype=np.float64), -1, 0)
            return 0.2126 * red + 0.7152 * green + 0.0722 * blue
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"image {path} cannot be read as an image: {error}") from error


def _package_folder(package: str) -> Path:
    # find_spec does not run the package: importing scikit-learn takes seconds, finding its folder none.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        name = {"sklearn": "scikit-learn", "skimage": "scikit-image"}[package]
        raise ImportError(f'the embedded scenes are inside {name}: pip install "hitchhiker[train]"')
    return Path(spec.submodule_search_locations[0])
