"""hitchhiker: gradients through Poisson counts.

A rate becomes a *law*, the law gives a *sample*, the sample goes through your function, an *estimator* turns that
into a gradient, *diagnostics* judge the gradient, a *trainer* uses it.

>>> import torch, hitchhiker as hh
>>> rate = torch.tensor([0.5, 4.0], requires_grad=True)
>>> z = hh.EATPoisson(rate=rate, temperature=0.1).rsample((1000,))
>>> z.shape
torch.Size([1000, 2])
"""

import importlib
from typing import Any

from hitchhiker import estimators, fidelity, gradient_quality, indicators, linear_decoder, moments, truncation
from hitchhiker.relaxations.arrival_time import EATPoisson
from hitchhiker.relaxations.com_poisson import ConwayMaxwellPoisson, GSMConwayMaxwellPoisson
from hitchhiker.relaxations.common import poisson_kl
from hitchhiker.relaxations.doubly_stochastic import EATModulatedPoisson
from hitchhiker.relaxations.erlang import EATErlang
from hitchhiker.relaxations.gumbel_softmax import GSMPoisson, GumbelSoftmaxCount
from hitchhiker.relaxations.negative_binomial import EATNegativeBinomial, GSMNegativeBinomial

__all__ = [
    "ConwayMaxwellPoisson",
    "EATErlang",
    "EATModulatedPoisson",
    "EATNegativeBinomial",
    "EATPoisson",
    "GSMConwayMaxwellPoisson",
    "GSMNegativeBinomial",
    "GSMPoisson",
    "GumbelSoftmaxCount",
    "estimators",
    "fidelity",
    "gradient_quality",
    "indicators",
    "linear_decoder",
    "moments",
    "poisson_kl",
    "truncation",
]
__version__ = "0.1.0"

#: rooms of their own, which the core never imports: they are there as soon as they are named
_ROOMS = (
    "course",
    "datasets",
    "dispersion",
    "figures",
    "models",
    "plotting",
    "reproduce",
    "symbolic",
    "testing",
    "training",
)


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"hitchhiker.{name}")
    if name == "check":
        return importlib.import_module("hitchhiker.course").check
    raise AttributeError(f"module 'hitchhiker' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOMS, "check"])
