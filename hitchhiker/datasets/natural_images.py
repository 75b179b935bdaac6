"""Patches of natural scenes, prepared as in section G.1, with train and validation pixels kept apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from os import PathLike

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from scipy import ndimage
from torch import Tensor

from .scenes import Scene, check_scene, embedded_scenes, folder_scenes
from .whitening import normalize_contrast, whiten, zscore

STAGES = ("whiten", "contrast", "zscore")
_RELEASED_CROP = 4  # the authors filter patches of 24 pixels and keep the inner 16


@dataclass(frozen=True)
class PatchSet:
    """Image patches in two sets that have no pixel in common.

    Attributes
    ----------
    train, validation : (N, size²) float32, pixels row by row, z-scored unless other ``stages`` were asked
        for.
    size : side of a patch in pixels.
    train_origin, validation_origin : (N, 3) int: number of the scene, row and column of the patch's first
        pixel.
    provenance : scenes with their licences and hashes, seed, and every setting (JSON).
    """

    train: Float[Tensor, "train pixels"] = field(repr=False)
    validation: Float[Tensor, "validation pixels"] = field(repr=False)
    size: int
    train_origin: ndarray = field(repr=False)
    validation_origin: ndarray = field(repr=False)
    provenance: dict = field(repr=False)

    def __repr__(self) -> str:
        names = ", ".join(scene["name"] for scene in self.provenance["scenes"][:5])
        return (
            f"PatchSet({len(self.train)} train, {len(self.validation)} validation, "
            f"{self.size}x{self.size} pixels, from {names})"
        )


@dataclass(frozen=True)
class _Region:
    """A rectangle of one scene that belongs to one of the two sets, and its filtered pixels."""

    scene: int
    top: int
    left: int
    pixels: ndarray


def natural_patches(
    num_patches: int = 10_000,
    size: int = 16,
    seed: int = 0,
    *,
    images: str | PathLike[str] | Sequence[Scene | ndarray] | None = None,
    as_released: bool = False,
    stages: Iterable[str] = STAGES,
    validation_fraction: float = 0.2,
    margin: int = 8,
    min_std: float = 0.5,
) -> PatchSet:
    """Whitened patches of natural scenes, split so that no pixel is in both train and validation.

    Each scene is cut by a vertical line into a train part (left) and a validation part (right) *before*
    anything is filtered, so that no validation pixel reaches a training patch even through a filter.
    Then, a part at a time: whitening R(f) = f·exp(-(f/0.5)^4), local contrast normalisation (13 pixels, σ
    = 0.5), patches at random places (never the same place twice; they may overlap within a set), and
    z-score of each patch.

    Parameters
    ----------
    num_patches : train and validation together; the paper has 100,000.
    size : side of a patch in pixels.
    seed : of the choice of places (the cut between train and validation does not depend on it).
    images : None for the scenes inside the scikit-image and scikit-learn wheels; a folder of images; or
        scenes, as ``Scene`` objects or two-dimensional arrays (see also ``van_hateren_scenes``).
    as_released : prepare as the authors' public code does: each patch is filtered on its own, 8 pixels
        wider, by the filter with its grid off centre (see ``whitening_filter``), and z-scored before it is
        cropped.
    stages : which of "whiten", "contrast" and "zscore" to do, in this order; ``()`` gives raw pixels.
    validation_fraction : share of the patches, and of each scene's width, for validation; in (0, 1).
    margin : pixels left out at the edges of a part, where filters see beyond it (not used when
        ``as_released``).
    min_std : patches with a smaller standard deviation after contrast normalisation are left out: in flat sky
        there is nothing but noise and compression blocks.

    Returns a :class:`PatchSet`.  Raises ``ValueError`` naming argument, value and domain, or the file or
    folder at fault; ``ImportError`` when the packages that hold the embedded scenes are missing.

    >>> patches = natural_patches(100, seed=3)
    >>> patches.train.shape, patches.validation.shape
    (torch.Size([80, 256]), torch.Size([20, 256]))

    Source: section G.1, with the sign of the filter's exponent mended.
    """
    stages = tuple(stages)
    _check(num_patches, size, stages, validation_fraction, margin, min_std)
    scenes = _scenes(images)
    # In the authors' order a patch is filtered with a border of its own, so a part needs no margin.
    border = _RELEASED_CROP if as_released else margin
    regions = _split(scenes, size, border, validation_fraction)
    num_validation = max(1, min(num_patches - 1, round(num_patches * validation_fraction)))
    counts = {"train": num_patches - num_validation, "validation": num_validation}
    sets = {}
    for number, (part, count) in enumerate(counts.items()):
        rng = np.random.default_rng([seed, number])
        sets[part] = _draw(regions[part], count, part, size, border, stages, as_released, min_std, rng)
    provenance = {
        "scenes": [scene.provenance() for scene in scenes],
        "num_patches": num_patches,
        "size": size,
        "seed": seed,
        "stages": list(stages),
        "as_released": as_released,
        "validation_fraction": validation_fraction,
        "margin": margin,
        "min_std": min_std,
    }
    return PatchSet(sets["train"][0], sets["validation"][0], size, sets["train"][1], sets["validation"][1], provenance)


def _check(num_patches, size, stages, validation_fraction, margin, min_std) -> None:
    if num_patches < 2:
        raise ValueError(f"num_patches must be >= 2, got {num_patches}")
    if size < 2:
        raise ValueError(f"size must be >= 2 pixels, got {size}")
    if not set(stages) <= set(STAGES):
        raise ValueError(f"stages must be among {STAGES}, got {stages}")
    if not 0 < validation_fraction < 1:
        raise ValueError(f"validation_fraction must be in (0, 1), got {validation_fraction}")
    if margin < 0:
        raise ValueError(f"margin must be >= 0 pixels, got {margin}")
    if not min_std >= 0:
        raise ValueError(f"min_std must be >= 0, got {min_std}")


def _scenes(images) -> list[Scene]:
    if images is None:
        return embedded_scenes()
    if isinstance(images, (str, PathLike)):
        return folder_scenes(images)
    scenes = [
        image if isinstance(image, Scene) else Scene(f"array {i}", np.asarray(image, np.float64), f"array {i}")
        for i, image in enumerate(images)
    ]
    if not scenes:
        raise ValueError("images must hold at least one image, got none")
    for scene in scenes:
        check_scene(scene)
    return scenes


def _split(scenes: list[Scene], size: int, border: int, fraction: float) -> dict[str, list[_Region]]:
    """Cut each scene once, left of its validation strip; both parts must hold at least one patch."""
    least = size + 2 * border
    regions: dict[str, list[_Region]] = {"train": [], "validation": []}
    for i, scene in enumerate(scenes):
        height, width = scene.pixels.shape
        strip = max(least, round(width * fraction))
        if height < least or width - strip < least:
            raise ValueError(
                f"image {scene.source} must be at least {least} pixels high and {2 * least} wide, "
                f"got {height} x {width}"
            )
        cut = width - strip
        regions["train"].append(_Region(i, 0, 0, scene.pixels[:, :cut]))
        regions["validation"].append(_Region(i, 0, cut, scene.pixels[:, cut:]))
    return regions


def _draw(regions, count, part, size, border, stages, as_released, min_std, rng) -> tuple[Tensor, ndarray]:
    """``count`` distinct places among all usable ones of these regions, and the patches there."""
    # The released filter lets through a little of the mean grey level, which is arbitrary: take it out first.
    released = as_released and "whiten" in stages
    filtered = [
        region.pixels - region.pixels.mean() if released
        else region.pixels if as_released
        else _filter(region.pixels, stages)
        for region in regions
    ]  # fmt: skip
    usable = []
    for number, pixels in enumerate(filtered):
        top_left = _patch_std(pixels, size)
        keep = np.zeros(top_left.shape, bool)
        inner = slice(border, -border or None)
        threshold = min_std if "contrast" in stages and not as_released else 0.0
        keep[inner, inner] = top_left[inner, inner] > max(threshold, 1e-6 * pixels.std())
        rows, columns = np.nonzero(keep)
        usable.append(np.stack([np.full(len(rows), number), rows, columns], axis=1))
    places = np.concatenate(usable)
    if len(places) < count:
        raise ValueError(
            f"num_patches asks for {count} {part} patches, but these images have only {len(places)} places "
            "with enough contrast: ask for fewer or give more images"
        )
    places = places[rng.choice(len(places), count, replace=False)]
    patches = np.empty((count, size, size))
    pad = _RELEASED_CROP if as_released else 0
    for number, pixels in enumerate(filtered):
        mine = np.flatnonzero(places[:, 0] == number)
        side = size + 2 * pad
        windows = np.lib.stride_tricks.sliding_window_view(pixels, (side, side))
        chosen = windows[places[mine, 1] - pad, places[mine, 2] - pad]
        patches[mine] = _prepare_as_released(chosen, stages) if as_released else chosen
    if "zscore" in stages and not as_released:
        patches = zscore(patches)
    offsets = np.array([[region.scene, region.top, region.left] for region in regions])
    origin = offsets[places[:, 0]] + np.concatenate([np.zeros((count, 1), int), places[:, 1:]], axis=1)
    return torch.from_numpy(patches.reshape(count, -1).astype(np.float32)), origin


def _filter(pixels: ndarray, stages: tuple[str, ...]) -> ndarray:
    if "whiten" in stages:
        pixels = whiten(pixels)
    return normalize_contrast(pixels) if "contrast" in stages else pixels


def _prepare_as_released(windows: ndarray, stages: tuple[str, ...]) -> ndarray:
    if "whiten" in stages:
        windows = whiten(windows, as_released=True)
    if "contrast" in stages:
        windows = normalize_contrast(windows, as_released=True)
    if "zscore" in stages:
        windows = zscore(windows)
    return windows[..., _RELEASED_CROP:-_RELEASED_CROP, _RELEASED_CROP:-_RELEASED_CROP]


def _patch_std(pixels: ndarray, size: int) -> ndarray:
    """Standard deviation of the patch whose first pixel is here, for every place where a whole patch fits."""
    pixels = pixels - pixels.mean()

    def average(x: ndarray) -> ndarray:
        # origin moves the window so that it starts at the pixel instead of being centred on it
        return ndimage.uniform_filter(x, size, origin=-(size // 2))[: x.shape[0] - size + 1, : x.shape[1] - size + 1]

    return np.sqrt(np.maximum(average(pixels**2) - average(pixels) ** 2, 0.0))
