"""The laws, each with parameters to build it from; the generic tests loop over this registry.

A law that ``hitchhiker`` exports without an entry here fails :func:`test_laws.test_every_exported_law_has_an_entry`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jaxtyping
import numpy as np
import torch
from scipy import special, stats

import hitchhiker as hh

NAN, INF = math.nan, math.inf


@dataclass(frozen=True)
class Law:
    """What the generic tests must know of a law.

    cases : arguments that must work; the values of ``tensors`` are turned into tensors, others are passed as they are.
    bad : (changes to ``cases[0]``, words that the ValueError must hold); a change to None leaves the argument out.
    tensors : names of tensor arguments to which gradients flow.
    log_pmf : reference (arguments of a case, counts) -> ln pmf of ``sample``, from scipy.
    options : options that must survive ``expand``.
    """

    cases: tuple[dict[str, Any], ...]
    bad: tuple[tuple[dict[str, Any], str], ...]
    tensors: tuple[str, ...]
    log_pmf: Callable[[dict[str, Any], np.ndarray], np.ndarray]
    options: dict[str, Any]
    relaxed: bool = True
    event_dims: int = 0  # trailing axes of the first tensor that are not batch axes

    def arguments(self, case: int = 0, dtype: torch.dtype = torch.float64, **changes: Any) -> dict[str, Any]:
        given = {**self.cases[case], **changes}
        named = (*self.tensors, "temperature")
        return {
            name: torch.tensor(value, dtype=dtype) if name in named and not isinstance(value, torch.Tensor) else value
            for name, value in given.items()
            if value is not None
        }


def poisson(arguments: dict[str, Any], k: np.ndarray) -> np.ndarray:
    rate = arguments["rate"] if "rate" in arguments else np.exp(arguments["log_rate"])
    return stats.poisson.logpmf(k, rate)


def table(arguments: dict[str, Any], k: np.ndarray) -> np.ndarray:
    logits = np.asarray(arguments["log_pmf"], dtype=float)
    logits = logits - special.logsumexp(logits, axis=-1, keepdims=True)
    logits = np.concatenate([logits, np.full((*logits.shape[:-1], 1), -INF)], axis=-1)
    found = np.moveaxis(logits, -1, 0)[np.minimum(k.ravel(), logits.shape[-1] - 1)]
    return found.reshape(len(k), *([1] * (k.ndim - found.ndim)), *found.shape[1:])


def negative_binomial(arguments: dict[str, Any], k: np.ndarray) -> np.ndarray:
    return stats.nbinom.logpmf(k, arguments["total_count"], arguments["probs"])


def com_poisson(arguments: dict[str, Any], k: np.ndarray) -> np.ndarray:
    m = np.arange(2000.0).reshape(-1, *([1] * np.ndim(arguments["rate"])))
    log_rate, nu = np.log(arguments["rate"]), np.asarray(arguments["nu"])
    normaliser = special.logsumexp(m * log_rate - nu * special.gammaln(m + 1), axis=0)
    return k * log_rate - nu * special.gammaln(k + 1) - normaliser


def erlang(arguments: dict[str, Any], k: np.ndarray) -> np.ndarray:
    """Fine counts of rate stages·λ, rounded at random to multiples of ``stages``; or rounded down if ordinary."""
    rate = arguments["rate"] if "rate" in arguments else np.exp(arguments["log_rate"])
    n, ordinary = arguments.get("stages", 2), arguments.get("ordinary", False)
    terms = [
        stats.poisson.logpmf(n * k + i, n * rate) + (0.0 if ordinary else np.log1p(-abs(i) / n))
        for i in range(0 if ordinary else 1 - n, n)
    ]
    return special.logsumexp(np.stack(np.broadcast_arrays(*terms)), axis=0)


def modulated(arguments: dict[str, Any], k: np.ndarray) -> np.ndarray:
    rate = arguments["rate"] if "rate" in arguments else np.exp(arguments["log_rate"])
    variance = np.asarray(arguments["gain_variance"])
    if arguments.get("gain", "gamma") == "gamma":
        return stats.nbinom.logpmf(k, 1 / variance, 1 / (1 + variance * rate))
    s = np.sqrt(np.log1p(variance))
    e = np.linspace(-30, 50, 4001).reshape(-1, *([1] * k.ndim))
    gain = s * e - s**2 / 2
    terms = k * (np.log(rate) + gain) - rate * np.exp(gain) - e**2 / 2
    return special.logsumexp(terms, axis=0) + np.log(0.02) - special.gammaln(k + 1) - 0.5 * np.log(2 * np.pi)


TEMPERATURE = (
    ({"temperature": -0.1}, "temperature must be >= 0 and finite, got -0.1"),
    ({"temperature": NAN}, "temperature must be >= 0 and finite, got nan"),
    ({"temperature": INF}, "temperature must be >= 0 and finite, got inf"),
    ({"temperature": torch.tensor(1j)}, "temperature must be real"),
    ({"temperature": "hot"}, "temperature must be a real number or tensor, got 'hot'"),
    ({"temperature": torch.ones(7)}, "must broadcast against each other"),
)
RATE = (
    ({"rate": -0.1}, "rate must be >= 0 and finite, got -0.1"),
    ({"rate": torch.tensor([1.0, -2.0])}, "rate must be >= 0 and finite, got -2 at index (1,)"),
    ({"rate": NAN}, "rate must be >= 0 and finite, got nan"),
    ({"rate": INF}, "rate must be >= 0 and finite, got inf"),
    ({"rate": torch.tensor([1j])}, "rate must be real, got dtype torch.complex64"),
    ({"rate": 1j}, "rate must be real"),
    ({"rate": True}, "rate must be real, got dtype torch.bool"),
    ({"rate": "fast"}, "rate must be a real number or tensor, got 'fast'"),
    ({"rate": None}, "exactly one of rate and log_rate must be given, got neither"),
    ({"log_rate": 0.0}, "exactly one of rate and log_rate must be given, got both"),
    ({"rate": None, "log_rate": NAN}, "log_rate must be a real number (or -inf) with a finite exponential, got nan"),
    ({"rate": None, "log_rate": INF}, "log_rate must be a real number (or -inf) with a finite exponential, got inf"),
    ({"rate": None, "log_rate": 1e4}, "log_rate must be a real number (or -inf) with a finite exponential, got 10000"),
)
INDICATOR = (({"indicator": "step"}, "indicator must be one of"),)


def count(name: str, optional: bool = True) -> tuple[tuple[dict[str, Any], str], ...]:
    """Values that a whole-number option must refuse."""
    values = (0, -3, 2.0, 2.5, NAN, True, "many")
    tail = " or None" if optional else ""
    return tuple(({name: value}, f"{name} must be a whole number >= 1{tail}, got {value!r}") for value in values)


REGISTRY: dict[str, Law] = {
    "EATPoisson": Law(
        cases=(
            {"rate": [0.3, 2.0, 7.0], "temperature": 0.5},
            {"log_rate": [[-1.0], [1.5]], "temperature": [0.1, 0.4, 2.0], "indicator": "sigmoid"},
            {"rate": 3.0, "temperature": 0.3, "indicator": "quintic", "num_arrivals": 12},
            {"rate": 3.0, "temperature": 0.3, "indicator": "linear", "hard": True},
            {"rate": [3.0], "temperature": 0.3, "indicator": "cosine", "num_arrivals": 12, "hard": True},
        ),
        bad=(*RATE, *TEMPERATURE, *INDICATOR, *count("num_arrivals")),
        tensors=("rate", "log_rate"),
        log_pmf=poisson,
        options={"indicator": hh.indicators.get("quintic"), "num_arrivals": 9, "hard": True},
    ),
    "GSMPoisson": Law(
        cases=(
            {"rate": [0.3, 2.0, 7.0], "temperature": 0.5},
            {"log_rate": [[-1.0], [1.5]], "temperature": [0.1, 0.4, 2.0]},
            {"rate": 3.0, "temperature": 0.3, "num_categories": 12},
            {"rate": 3.0, "temperature": 0.3, "hard": True},
        ),
        bad=(*RATE, *TEMPERATURE, *count("num_categories")),
        tensors=("rate", "log_rate"),
        log_pmf=poisson,
        options={"num_categories": 9, "hard": True},
    ),
    "GumbelSoftmaxCount": Law(
        cases=(
            {"log_pmf": [[0.0, 1.0, -1.0, 0.5], [0.0, -INF, 2.0, 0.0]], "temperature": 0.5},
            {"log_pmf": [0.0, 1.0, -1.0], "temperature": [0.1, 2.0]},
            {"log_pmf": [-3.0], "temperature": 0.5},
            {"log_pmf": [0.0, 1.0], "temperature": 0.5, "hard": True},
        ),
        bad=(
            *TEMPERATURE,
            ({"log_pmf": [NAN, 0.0]}, "log_pmf must be a log-probability (finite or -inf), got nan"),
            ({"log_pmf": [INF, 0.0]}, "log_pmf must be a log-probability (finite or -inf), got inf"),
            ({"log_pmf": [-INF, -INF]}, "log_pmf must be finite for at least one count in every row"),
            ({"log_pmf": torch.zeros(3, 0)}, "log_pmf must have shape (*batch, M) with M >= 1, got (3, 0)"),
            ({"log_pmf": 0.0}, "log_pmf must have shape (*batch, M) with M >= 1, got ()"),
            ({"log_pmf": torch.ones(2, dtype=torch.bool)}, "log_pmf must be real"),
        ),
        tensors=("log_pmf",),
        log_pmf=table,
        options={"hard": True},
        event_dims=1,
    ),
    "EATErlang": Law(
        cases=(
            {"rate": [0.3, 2.0, 7.0], "stages": 3, "temperature": 0.5},
            {"log_rate": [[-1.0], [1.5]], "stages": 2, "temperature": [0.1, 0.4, 2.0], "indicator": "cosine"},
            {"rate": 3.0, "stages": 4, "temperature": 0.3, "indicator": "linear", "hard": True},
            {"rate": [0.5, 3.0], "stages": 5, "temperature": 0.3, "ordinary": True},
        ),
        bad=(*RATE, *TEMPERATURE, *INDICATOR, *count("stages", optional=False)),
        tensors=("rate", "log_rate"),
        log_pmf=erlang,
        options={"indicator": hh.indicators.get("quintic"), "stages": 6, "ordinary": True, "hard": True},
    ),
    "EATModulatedPoisson": Law(
        cases=(
            {"rate": [0.3, 2.0, 7.0], "gain_variance": 0.5, "temperature": 0.5},
            {"log_rate": [[-1.0], [1.5]], "gain_variance": [0.1, 0.4, 1.0], "temperature": 0.2, "gain": "lognormal"},
            {"rate": 3.0, "gain_variance": 0.2, "temperature": 0.3, "indicator": "sigmoid", "hard": True},
        ),
        bad=(
            *RATE,
            *TEMPERATURE,
            *INDICATOR,
            ({"gain_variance": -0.1}, "gain_variance must be >= 0 and finite, got -0.1"),
            ({"gain_variance": NAN}, "gain_variance must be >= 0 and finite, got nan"),
            ({"gain_variance": INF}, "gain_variance must be >= 0 and finite, got inf"),
            ({"gain_variance": torch.ones(7)}, "must broadcast"),
            ({"gain": "beta"}, "gain must be one of ('gamma', 'lognormal'), got 'beta'"),
        ),
        tensors=("rate", "log_rate", "gain_variance"),
        log_pmf=modulated,
        options={"indicator": hh.indicators.get("quintic"), "gain": "lognormal", "hard": True},
    ),
    "EATNegativeBinomial": Law(
        cases=(
            {"total_count": [2.0, 5.0], "probs": 0.4, "temperature": 0.5},
            {"total_count": [[2.0], [7.0]], "probs": [0.3, 0.8], "temperature": 0.1, "indicator": "sigmoid"},
        ),
        bad=(
            *TEMPERATURE,
            *INDICATOR,
            ({"total_count": -1.0}, "total_count must be"),
            ({"total_count": NAN}, "total_count must be"),
            ({"probs": 1.5}, "probs must be"),
            ({"probs": NAN}, "probs must be"),
            ({"probs": torch.full((3,), 0.5)}, "must broadcast"),
        ),
        tensors=("total_count", "probs"),
        log_pmf=negative_binomial,
        options={"indicator": hh.indicators.get("quintic")},
    ),
    "GSMNegativeBinomial": Law(
        cases=(
            {"total_count": [2.0, 5.0], "probs": 0.4, "temperature": 0.5},
            {"total_count": [[2.0], [7.0]], "probs": [0.3, 0.8], "temperature": 0.1, "num_categories": 60},
        ),
        bad=(
            *TEMPERATURE,
            ({"total_count": -1.0}, "total_count must be"),
            ({"total_count": NAN}, "total_count must be"),
            ({"probs": -0.5}, "probs must be"),
            ({"probs": NAN}, "probs must be"),
            *count("num_categories"),
        ),
        tensors=("total_count", "probs"),
        log_pmf=negative_binomial,
        options={"num_categories": 30},
    ),
    "ConwayMaxwellPoisson": Law(
        cases=(
            {"rate": [0.5, 4.0], "nu": 1.5},
            {"rate": [[0.5], [2.0]], "nu": [0.7, 1.0, 3.0]},
        ),
        bad=(
            ({"rate": -1.0}, "rate must be"),
            ({"rate": NAN}, "rate must be"),
            ({"nu": -1.0}, "nu must be"),
            ({"nu": NAN}, "nu must be"),
            ({"nu": torch.ones(3)}, "must broadcast"),
        ),
        tensors=("rate", "nu"),
        log_pmf=com_poisson,
        options={},
        relaxed=False,
    ),
    "GSMConwayMaxwellPoisson": Law(
        cases=(
            {"rate": [0.5, 4.0], "nu": 1.5, "temperature": 0.5},
            {"rate": [[0.5], [2.0]], "nu": [0.7, 1.0, 3.0], "temperature": 0.1, "num_categories": 60},
        ),
        bad=(
            *TEMPERATURE,
            ({"rate": -1.0}, "rate must be"),
            ({"rate": NAN}, "rate must be"),
            ({"nu": -1.0}, "nu must be"),
            ({"nu": NAN}, "nu must be"),
            *count("num_categories"),
        ),
        tensors=("rate", "nu"),
        log_pmf=com_poisson,
        options={"num_categories": 30},
    ),
}

#: laws that the module has; DESIGN's others join when they are exported
EXPORTED = tuple(name for name in REGISTRY if hasattr(hh, name))
CASES = [(name, case) for name in EXPORTED for case in range(len(REGISTRY[name].cases))]


def build(
    name: str, case: int = 0, dtype: torch.dtype = torch.float64, **changes: Any
) -> torch.distributions.Distribution:
    """The law of that name from one of its cases, with some arguments changed."""
    return getattr(hh, name)(**REGISTRY[name].arguments(case, dtype, **changes))


@contextlib.contextmanager
def without_shape_checks() -> Iterator[None]:
    """What users see: in tests, jaxtyping would refuse a wrong type or shape before the module's own error."""
    was = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", was)


def samples_with_slopes(
    law: Callable[[torch.Tensor], Any], rate: float, n: int, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor]:
    """n independent pairs (z, dz/dλ): one law of n equal rates, one backward pass."""
    leaf = torch.full((n,), rate, dtype=dtype, requires_grad=True)
    z = law(leaf).rsample()
    (slope,) = torch.autograd.grad(z.sum(), leaf)
    return z.detach(), slope
