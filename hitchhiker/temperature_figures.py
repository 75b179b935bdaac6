"""The paper's Figure 8 as numbers: which temperature gives the best gradient of E f(z), for seven functions f (H.1).

All methods give a pair (z, dz/dλ), and every function's gradient is f'(z)·dz/dλ: one set of draws serves all of them.
From bias and standard deviation of a single gradient follows the error of a mean of any number of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import special
from torch import Tensor

from hitchhiker import gradient_figures, indicators, truncation
from hitchhiker._random import own_random_numbers
from hitchhiker.reproduce import Recipe, Rows, add_recipe


@dataclass(frozen=True)
class TestFunction:
    """f(z), f'(z), and a label."""

    __test__ = False  # not for pytest, whatever its name says

    label: str
    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]


def _half_over_root(z: Tensor) -> Tensor:
    # at z = 0 the slope is infinite, but dz/dλ is 0 there: the product's limit is 0
    return torch.where(z > 0, 0.5 * torch.where(z > 0, z, 1.0).rsqrt(), 0.0)


def _logistic_slope(z: Tensor) -> Tensor:
    return torch.sigmoid(z) * torch.sigmoid(-z)


#: the functions of H.1 that depend on the sample alone; z²/λ is treated apart
FUNCTIONS: dict[str, TestFunction] = {
    "z": TestFunction("z", lambda z: z, torch.ones_like),
    "sqrt": TestFunction("√z", lambda z: z.clamp(min=0).sqrt(), _half_over_root),
    "square": TestFunction("z²", torch.square, lambda z: 2 * z),
    "power": TestFunction(
        "z^1.5 - 2z", lambda z: z.clamp(min=0) ** 1.5 - 2 * z, lambda z: 1.5 * z.clamp(min=0).sqrt() - 2
    ),
    "cosine": TestFunction("cos²(z)", lambda z: torch.cos(z) ** 2, lambda z: -torch.sin(2 * z)),
    "sigmoid": TestFunction("sigmoid(z)", torch.sigmoid, _logistic_slope),
}


def exact_gradient(f: Callable[[Tensor], Tensor], rate: float, largest: int | None = None) -> float:
    """d/dλ E f(N) = Σ_n (f(n + 1) - f(n)) p(n), over all counts that matter; or Eq. (82) cut at ``largest``.

    The difference form has no cancellation between terms of both signs when f hardly changes.

    >>> round(exact_gradient(torch.square, 3.0), 6), round(exact_gradient(torch.square, 20.0, largest=40), 3)
    (7.0, 40.951)

    Source: Eqs. (81), (82).
    """
    top = int(rate + 40 * math.sqrt(rate) + 80) if largest is None else largest
    n = torch.arange(top + 1, dtype=torch.float64)
    p = torch.exp(n * math.log(rate) - rate - torch.lgamma(n + 1))
    if largest is None:
        return float(((f(n + 1) - f(n)) * p).sum())
    return float((f(n) * p * (n / rate - 1)).sum())


def single_gradients(
    method: str, rate: float, temperature: float, draws: int, num: int | None = None
) -> tuple[Tensor, Tensor]:
    """``draws`` pairs (z, dz/dλ) of one relaxed count, float64."""
    lam = torch.full((draws,), math.log(rate), dtype=torch.float64).requires_grad_()
    z = gradient_figures.law(method, lam, temperature, num).rsample()
    (slope,) = torch.autograd.grad(z.sum(), lam)
    return z.detach(), slope / rate  # dz/dλ from dz/d ln λ


def leading_bias(f: Callable[[Tensor], Tensor], rate: float, indicator: str = "cubic") -> float:
    """β of the bias βτ + O(τ²) of pathwise EAT, for a compact indicator: d/dλ of λ E[∫F(N + f(s))ds - F(N) - F(N + 1)].

    The bracket is what an arrival near the edge does to E F: it counts f(s) instead of 0 or 1.

    >>> round(leading_bias(torch.square, 2.0) * 35)
    -9
    """
    soft = indicators.get(indicator)
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(60))

    def gain(n: Tensor) -> Tensor:
        between = (f(n[:, None] + soft(nodes)) * weights).sum(dim=1)
        return between - f(n) - f(n + 1)

    n = torch.arange(int(rate + 40 * math.sqrt(rate) + 80), dtype=torch.float64)
    p = torch.exp(n * math.log(rate) - rate - torch.lgamma(n + 1))
    # d/dλ [λ E D(N)] = E D(N) + λ E[D(N + 1) - D(N)]
    return float((p * (gain(n) + rate * (gain(n + 1) - gain(n)))).sum())


def leading_variance(slope: Callable[[Tensor], Tensor], rate: float, indicator: str = "cubic") -> float:
    """V of the single-gradient variance V/τ + O(1) of pathwise EAT, for a compact indicator: ∫E[F'(N + f)²] f'² ds / λ.

    >>> round(leading_variance(torch.ones_like, 2.0), 6)  # B/λ
    0.3
    """
    soft = indicators.get(indicator)
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(60))
    n = torch.arange(int(rate + 40 * math.sqrt(rate) + 80), dtype=torch.float64)
    p = torch.exp(n * math.log(rate) - rate - torch.lgamma(n + 1))
    inner = (slope(n[:, None] + soft(nodes)) ** 2 * soft.derivative(nodes) ** 2 * weights).sum(dim=1)
    return float((p * inner).sum() / rate)


def square_variance(rate: float, temperature: float, indicator: str = "cubic") -> float:
    """Exact variance of one gradient 2z·dz/dλ of E z², for a compact indicator and τ <= 1.

    z and dz/dλ are sums over one Poisson process, so their joint cumulants are integrals, and E[z²(dz/dλ)²] follows.

    >>> round(square_variance(5.0, 1e-6) * 1e-6 / leading_variance(lambda z: 2 * z, 5.0), 4)
    1.0
    """
    if not 0 < temperature <= 1:
        raise ValueError(f"temperature must be in (0, 1], got {temperature}")
    soft = indicators.get(indicator)
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(60))
    count = soft(nodes)
    slope = soft.derivative(nodes) * (1 - temperature * nodes) / (temperature * rate)

    def k(i: int, j: int) -> float:
        early = rate * (1 - temperature) if j == 0 else 0.0
        return early + rate * temperature * float((count**i * slope**j * weights).sum())

    second = (
        k(2, 2) + 2 * k(2, 1) * k(0, 1) + 2 * k(1, 2) * k(1, 0) + k(2, 0) * k(0, 2) + 2 * k(1, 1) ** 2
        + k(2, 0) * k(0, 1) ** 2 + k(0, 2) * k(1, 0) ** 2 + 4 * k(1, 1) * k(1, 0) * k(0, 1) + (k(1, 0) * k(0, 1)) ** 2
    )  # fmt: skip
    return 4 * (second - (k(1, 1) + k(1, 0) * k(0, 1)) ** 2)


def temperature_rows(
    rate: float,
    temperatures: Sequence[float],
    methods: Sequence[str] = ("eat-sigmoid", "eat-cubic", "gsm"),
    draws: int = 200_000,
    samplers: Sequence[str] = ("enough",),
) -> Rows:
    """Bias and spread of a single gradient at each temperature, for each method and function.

    ``samplers`` are ``"enough"``, with all arrivals, and ``"paper"``, with M the 99% quantile of H.1.

    Each row has lists over ``temperatures``: ``bias`` with ``bias_se``, standard deviation ``sd``, and ``mae``, the mean
    absolute error of one gradient, with ``mae_se``; and ``exact``, the truth.  z²/λ comes twice: ``"ratio"`` is its total
    derivative against the total gradient 1, ``"ratio-mixed"`` the same against Eq. (82), where λ in f is held fixed.
    """
    found: dict[tuple[str, str, str], list[tuple[float, ...]]] = {}
    truth = {name: exact_gradient(f.value, rate) for name, f in FUNCTIONS.items()}
    truth |= {"ratio": 1.0, "ratio-mixed": 2 + 1 / rate}
    for method, sampler, tau in itertools.product(methods, samplers, temperatures):
        num = None if sampler == "enough" else max(2, truncation.paper_num_arrivals(rate, 0.01))
        z, slope = single_gradients(method, rate, tau, draws, num)
        for name, target in truth.items():
            total = 2 * z * slope / rate - (z / rate) ** 2
            error = (total if name.startswith("ratio") else FUNCTIONS[name].slope(z) * slope) - target
            sd, off, root = float(error.std()), error.abs(), math.sqrt(draws)
            values = (float(error.mean()), sd / root, sd, float(off.mean()), float(off.std()) / root)
            found.setdefault((name, method, sampler), []).append(values)
    columns = ("bias", "bias_se", "sd", "mae", "mae_se")
    return [
        {"function": name, "method": method, "sampler": sampler, "rate": rate, "exact": float(f"{truth[name]:.6g}")}
        | {"temperatures": list(temperatures)}
        | {c: [float(f"{v:.4g}") for v in column] for c, column in zip(columns, zip(*values, strict=True), strict=True)}
        for (name, method, sampler), values in found.items()
    ]


def mean_absolute_error(row: dict[str, Any], num_samples: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """MAE of a mean of ``num_samples`` gradients at each temperature of a row, and its standard error.

    For one gradient it was measured.  For more it is E|X|, X normal with the mean's bias and variance, which is
    accurate from some twenty on.
    """
    if num_samples == 1:
        return np.array(row["mae"]), np.array(row["mae_se"])
    bias, se = np.array(row["bias"]), np.array(row["bias_se"])
    sd = np.maximum(np.array(row["sd"]) / math.sqrt(num_samples), 1e-300)
    ratio = np.minimum(np.abs(bias) / sd, 30)  # beyond, the error is the bias to all digits
    mae = sd * math.sqrt(2 / math.pi) * np.exp(-(ratio**2) / 2) + np.abs(bias) * special.erf(ratio / math.sqrt(2))
    return mae, se * special.erf(ratio / math.sqrt(2)) + 1e-3 * mae


def best_temperature(row: dict[str, Any], num_samples: int = 1) -> tuple[float, float, float]:
    """(τ*, lowest, highest): the temperature of least MAE, and the range that two standard errors cannot tell from it."""
    mae, se = mean_absolute_error(row, num_samples)
    tau, best = np.array(row["temperatures"]), int(np.argmin(mae))
    tied = tau[mae - 2 * se <= mae[best] + 2 * se[best]]
    return float(tau[best]), float(tied.min()), float(tied.max())


def _measure(cell: dict, settings: dict, seed: int) -> Rows:
    with own_random_numbers(seed):
        low, high, count = settings["temperatures"]
        grid = [float(f"{t:.4g}") for t in np.geomspace(low, high, count)]
        return temperature_rows(cell["rate"], grid, draws=settings["draws"], samplers=("enough", "paper"))


def _draw(result: dict[str, Any]) -> Any:
    from hitchhiker import figures  # matplotlib is an extra

    return figures.figure_8(result["rows"])


_RATES = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0]
add_recipe(
    Recipe(
        "figure-8", "the temperature of least gradient error, for seven functions",
        lambda settings: [{"rate": rate} for rate in settings["rates"]], _measure, _draw,
        quick={"rates": [0.5, 5.0], "temperatures": [0.03, 10.0, 11], "draws": 20_000},
        full={"rates": _RATES, "temperatures": [0.01, 20.0, 24], "draws": 40_000},
    )
)  # fmt: skip
