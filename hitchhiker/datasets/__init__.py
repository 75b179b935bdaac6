"""Data for the models: patches of natural scenes, from the wheels that the book needs anyway or your own
images; spike trains of synthetic networks or your own recordings."""

from .natural_images import PatchSet, natural_patches
from .scenes import Scene, embedded_scenes, folder_scenes, read_image
from .spikes import SpikeData, load_spikes, parasol_cells, simulate_spikes, split_recording, synthetic_poglm
from .vanhateren import read_iml, van_hateren_scenes
from .whitening import normalize_contrast, whiten, whitening_filter, zscore

__all__ = [
    "PatchSet",
    "Scene",
    "SpikeData",
    "embedded_scenes",
    "folder_scenes",
    "load_spikes",
    "natural_patches",
    "normalize_contrast",
    "parasol_cells",
    "read_image",
    "read_iml",
    "simulate_spikes",
    "split_recording",
    "synthetic_poglm",
    "van_hateren_scenes",
    "whiten",
    "whitening_filter",
    "zscore",
]
