"""Models that learn through counts, and the registry of methods that they can be trained with."""

from .features import noise_orientation_index, orientation_index
from .glm import GLM, Observation, add_observation, choose_history, fit_glm
from .methods import Method, get_method, known_methods
from .pvae import Evaluation, PoissonVAE, ReconstructionError

__all__ = [
    "GLM",
    "Evaluation",
    "Method",
    "Observation",
    "PoissonVAE",
    "ReconstructionError",
    "add_observation",
    "choose_history",
    "fit_glm",
    "get_method",
    "known_methods",
    "noise_orientation_index",
    "orientation_index",
]
