"""Models that learn through counts, and the registry of methods that they can be trained with."""

from .features import noise_orientation_index, orientation_index, spread_index
from .gaussian_vae import GaussianEvaluation, GaussianVAE, best_linear_gaussian
from .glm import GLM, Observation, add_observation, choose_history, fit_glm
from .methods import Method, get_method, known_methods
from .negative_binomial_vae import NegativeBinomialVAE
from .particle import enumerate_hidden, particle_em, particle_filter
from .poglm import POGLM, PoglmFit, Recovery, fit_poglm, load_poglm, match_hidden, poglm_methods, recovery
from .pvae import Evaluation, PoissonVAE, ReconstructionError

__all__ = [
    "GLM",
    "POGLM",
    "Evaluation",
    "GaussianEvaluation",
    "GaussianVAE",
    "Method",
    "NegativeBinomialVAE",
    "Observation",
    "PoglmFit",
    "PoissonVAE",
    "ReconstructionError",
    "Recovery",
    "add_observation",
    "best_linear_gaussian",
    "choose_history",
    "enumerate_hidden",
    "fit_glm",
    "fit_poglm",
    "get_method",
    "known_methods",
    "load_poglm",
    "match_hidden",
    "noise_orientation_index",
    "orientation_index",
    "particle_em",
    "particle_filter",
    "poglm_methods",
    "recovery",
    "spread_index",
]
