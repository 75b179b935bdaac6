"""Data for the models: patches of natural scenes, from the wheels that the book needs anyway or your own
images."""

from .natural_images import PatchSet, natural_patches
from .scenes import Scene, embedded_scenes, folder_scenes, read_image
from .vanhateren import read_iml, van_hateren_scenes
from .whitening import normalize_contrast, whiten, whitening_filter, zscore

__all__ = [
    "PatchSet",
    "Scene",
    "embedded_scenes",
    "folder_scenes",
    "natural_patches",
    "normalize_contrast",
    "read_image",
    "read_iml",
    "van_hateren_scenes",
    "whiten",
    "whitening_filter",
    "zscore",
]
