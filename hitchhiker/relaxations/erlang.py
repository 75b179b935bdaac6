"""Counts with Erlang waits, less spread than Poisson ones: every k-th arrival of a Poisson process, relaxed (beyond H.3).

The fine process has rate kλ, and every k-th of its arrivals counts. How far the window's start is from the last count, in
fine arrivals, is the *phase*. With a uniform phase the counts are stationary (an equilibrium renewal process), and their
mean is λ at every λ. With phase 0 (an ordinary renewal process, which starts right after a count) the first wait is too long.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.polynomial import legendre
from torch import Tensor

from hitchhiker import indicators, moments
from hitchhiker.checks import as_float_tensor, common_shape, require, require_count
from hitchhiker.indicators import SoftIndicator
from hitchhiker.kernels import operators, window
from hitchhiker.relaxations.common import RateLaw


def from_fine_exponentials(
    rate: Float[Tensor, "*#batch"] | float,
    exponentials: Float[Tensor, "arrivals *samples"],
    stages: int,
    phase: Float[Tensor, "*#samples"] | float,
    temperature: Float[Tensor, "*#batch"] | float,
    indicator: str | SoftIndicator = "cubic",
) -> Float[Tensor, "*samples"]:
    """The relaxed count with its noise given: z = Σ f((1 - t_m)/τ) over the fine arrivals m with m + phase ≡ 0 mod k.

    Deterministic and differentiable in ``rate``, the teaching twin of :class:`EATErlang`.

    Parameters
    ----------
    rate : λ >= 0, counts per window.
    exponentials : unit exponential waits of the fine process along dimension 0; its arrivals are t_m = (e_1 + … + e_m)/(kλ).
    stages : k, how many fine arrivals make a count.
    phase : 0 … k-1, fine arrivals since the last count when the window opens.
    temperature : τ >= 0; 0 gives whole counts.

    >>> from_fine_exponentials(torch.tensor(2.0), torch.ones(9), 2, 0.0, 0.5)  # counts at t = 0.5, 1, 1.5, 2
    tensor(1.5000)
    """
    f = indicators.get(indicator)
    rate, tau, phase = (
        torch.as_tensor(x, dtype=exponentials.dtype, device=exponentials.device) for x in (rate, temperature, phase)
    )
    m = torch.arange(1, len(exponentials) + 1, dtype=exponentials.dtype, device=exponentials.device)
    counts = (m.view(-1, *([1] * (exponentials.dim() - 1))) + phase) % stages == 0
    times = exponentials.cumsum(dim=0) / torch.where(rate > 0, stages * rate, 1.0)
    soft = f((1 - times) / torch.where(tau > 0, tau, 1.0))
    return (torch.where(tau > 0, soft, (times < 1).to(times)) * counts * (rate > 0)).sum(dim=0)


def sample_erlang(
    parameter: Tensor, temperature: Tensor, indicator: str, stages: int, ordinary: bool, is_log: bool, hard: bool
) -> tuple[Tensor, Tensor]:
    """(count, dz/dparameter) by the window theorem: only the counts in [1 - Sτ, 1 + Sτ] are fractional.

    Before the window, Poisson(kλ(1 - Sτ)) fine arrivals decide the certain counts and the phase at its edge; in it, fine
    arrivals are uniform, and every k-th of them in order of time counts. Exact, O(1 + kλτ) a unit, no truncation.
    """
    f = indicators.get(indicator)
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    lam = (parameter.to(dtype).exp() if is_log else parameter.to(dtype)).flatten()
    undefined = torch.where(torch.isfinite(lam), 0.0, torch.nan).to(dtype)
    fine = stages * torch.nan_to_num(lam.double(), 0.0, 0.0, 0.0)
    tau = temperature.to(dtype).expand(parameter.shape).flatten()
    low, high = window.window_bounds(tau, f)
    width = torch.where(tau > 0, tau * (high - low), 0.0)
    before = torch.where(tau > 0, (1 - tau * high).clamp(min=0), 1.0)
    phase = torch.zeros_like(fine) if ordinary else torch.randint_like(fine, stages)
    passed = torch.poisson(fine * before) + phase
    certain = torch.div(passed, stages, rounding_mode="floor")
    phase = passed - stages * certain
    inside = torch.poisson(fine * width).long()
    z, slope, whole = (torch.zeros_like(lam) for _ in range(3))
    ends, start = inside.cumsum(0), 0
    while start < inside.numel():  # as many units at once as fit a block, one at least
        behind = ends[start] - inside[start]
        stop = max(start + 1, int(torch.searchsorted(ends, behind + window.BLOCK, right=True)))
        some, share = slice(start, stop), inside[start:stop]
        unit = torch.repeat_interleave(torch.arange(stop - start, device=lam.device), share)
        early = torch.rand(unit.numel(), dtype=torch.float64, device=lam.device)
        # a stable sort of unit + share-of-the-window: an earlier unit stays earlier where the sum rounds up
        early = early[torch.argsort(unit + early, stable=True)].to(dtype)
        rank = torch.arange(1, unit.numel() + 1, device=lam.device) - (share.cumsum(0) - share)[unit]
        counts = (rank + phase[some][unit]) % stages == 0
        unit = unit[counts]
        s = high[some][unit] - (high - low)[some][unit] * early[counts]
        z[some], slope[some], whole[some] = window.from_window(torch.zeros_like(z[some]), s, unit, tau[some][unit], f)
        start = stop
    value = certain + (whole if hard else z) + undefined
    if not is_log:
        slope = torch.where(lam > 0, slope / lam, 0.0)
    return tuple(x.to(parameter.dtype).view(parameter.shape) for x in (value, slope))  # type: ignore[return-value]


def erlang_mean(
    indicator: str | SoftIndicator, temperature: float, rate: float, stages: int, ordinary: bool = False
) -> float:
    """Mean (counts) of the relaxed count: λ c(τ) if stationary, for every k; ∫ g(t) h(t) dt if ordinary.

    g(t) = f((1 - t)/τ) is what a count at time t adds, and h the renewal density, the rate of counts a time t after a count:
    h(t) = λ Σ_j ω^j e^{-kλt(1 - ω^j)}, ω = e^{2πi/k}. At τ = 0 the ordinary mean is λ - (k - 1)/(2k) + terms that vanish
    like e^{-kλ(1 - cos(2π/k))}.

    >>> round(erlang_mean("cubic", 0.0, 4.0, 4), 4), round(erlang_mean("cubic", 0.0, 4.0, 4, ordinary=True), 4)
    (4.0, 3.625)
    """
    soft, lam, k, tau = indicators.get(indicator), float(rate), int(stages), float(temperature)
    stationary = lam * moments.mean_factor(soft, tau)
    if not ordinary or k == 1 or lam == 0:
        return stationary
    if tau == 0:
        omega = _roots(k)
        return float(lam - (k - 1) / (2 * k) - (np.exp(k * lam * (omega - 1)) / (1 / omega - 1)).sum().real / k)
    edges = moments._window_edges(soft, tau)
    t, weight = _nodes(np.concatenate([_fine_edges(lam, k, edges[-1]), edges]))
    return stationary + float(np.sum(weight * moments._value(soft, (1 - t) / tau) * _excess(lam, k, t)))


def erlang_variance(
    indicator: str | SoftIndicator, temperature: float, rate: float, stages: int, ordinary: bool = False
) -> float:
    """Variance (counts²) of the relaxed count, exact: λ∫g² + 2λ ∫ (h(x) - λ) ∫ g(t) g(t + x) dt dx if stationary.

    With g and h of :func:`erlang_mean`. The first term is the Poisson's, the second is what the waits' regularity takes
    away. At τ = 0, λ/k + (k² - 1)/(6k²) - (1/2k²) Σ_j e^{-kλ(1 - cos θ_j)} cos(kλ sin θ_j)/sin²(θ_j/2), θ_j = 2πj/k.

    >>> round(erlang_variance("cubic", 0.0, 4.0, 2), 4), round(erlang_variance("cubic", 0.5, 4.0, 2), 4)
    (2.125, 1.8144)
    """
    soft, lam, k, tau = indicators.get(indicator), float(rate), int(stages), float(temperature)
    if lam == 0:
        return 0.0
    if k == 1:
        return lam * moments.variance_factor(soft, tau)
    if tau == 0:
        return _whole_variance(lam, k, ordinary)
    edges = moments._window_edges(soft, tau)
    fine, kinks = _fine_edges(lam, k, edges[-1]), np.abs(np.subtract.outer(edges, edges)).ravel()
    if not ordinary:
        x, weight = _nodes(np.concatenate([fine, kinks[kinks < fine[-1]]]))
        pairs = _overlaps(soft, tau, edges, x, lambda t: lam)
        return lam * moments.variance_factor(soft, tau) + 2 * float(np.sum(weight * _excess(lam, k, x) * pairs))
    x, weight = _nodes(np.concatenate([fine, kinks]))
    every = np.unique(np.concatenate([fine, edges]))
    pairs = _overlaps(soft, tau, every, x, lambda t: lam + _excess(lam, k, t))
    t, single = _nodes(every)
    first, square = (
        float(np.sum(single * moments._value(soft, (1 - t) / tau) ** p * (lam + _excess(lam, k, t)))) for p in (1, 2)
    )
    return square + 2 * float(np.sum(weight * (lam + _excess(lam, k, x)) * pairs)) - first**2


def _whole_variance(lam: float, k: int, ordinary: bool) -> float:
    omega = _roots(k)
    decay = np.exp(k * lam * (omega - 1))
    if not ordinary:
        return float(lam / k + (k * k - 1) / (6 * k * k) - (decay.real / (1 - omega.real)).sum() / (k * k))
    # Var(P - P mod k)/k² from the law of the fine count's remainder, P ~ Poisson(kλ), by Fourier sums over its residues
    residue = np.arange(k)
    phases = np.exp(-2j * np.pi * np.outer(residue, np.arange(k)) / k)
    roots = np.exp(2j * np.pi * np.arange(k) / k)
    share = (phases @ np.exp(k * lam * (roots - 1))).real / k
    tilted = (phases @ (k * lam * roots * np.exp(k * lam * (roots - 1)))).real / k  # E[P; P ≡ residue]
    mean, second = share @ residue, share @ residue**2
    covariance = tilted @ residue - k * lam * mean
    return float((k * lam + second - mean**2 - 2 * covariance) / (k * k))


def _roots(k: int) -> np.ndarray:
    return np.exp(2j * np.pi * np.arange(1, k) / k)


def _excess(lam: float, k: int, x: np.ndarray) -> np.ndarray:
    """h(x) - λ."""
    omega = _roots(k).reshape(-1, *([1] * x.ndim))
    return lam * (omega * np.exp(-k * lam * (1 - omega) * x)).sum(axis=0).real


def _fine_edges(lam: float, k: int, end: float) -> np.ndarray:
    """Panels on which h - λ is smooth, as far as it is above 1e-17: it decays like e^{-kλx(1 - cos(2π/k))}, and swings."""
    return np.linspace(0, min(end, 40 / (k * lam * (1 - math.cos(2 * math.pi / k)))), 24 + 4 * k)


def _overlaps(soft: SoftIndicator, tau: float, edges: np.ndarray, x: np.ndarray, density) -> np.ndarray:
    """∫_0^∞ density(t) g(t) g(t + x) dt at each x, by Gauss-Legendre between the kinks of all factors."""
    node, weight = legendre.leggauss(12)
    out = []
    for part in np.array_split(x, 1 + x.size * edges.size // 20_000):
        cuts = np.concatenate([np.broadcast_to(edges, (part.size, edges.size)), edges - part[:, None]], axis=1)
        cuts = np.clip(np.sort(cuts, axis=1), 0.0, edges[-1])
        half = np.diff(cuts, axis=1)[..., None] / 2
        t = cuts[:, :-1, None] + half * (1 + node)
        g = moments._value(soft, (1 - t) / tau) * moments._value(soft, (1 - t - part[:, None, None]) / tau)
        out.append(np.sum(half * weight * g * density(t), axis=(1, 2)))
    return np.concatenate(out)


def _nodes(edges: np.ndarray, order: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and weights on the panels between ``edges``."""
    edges, (node, weight) = np.unique(edges), legendre.leggauss(order)
    half = np.diff(edges)[:, None] / 2
    return (edges[:-1, None] + half * (1 + node)).ravel(), (half * weight).ravel()


class EATErlang(RateLaw):
    """Under-dispersed counts relaxed by arrival times: every k-th arrival of a Poisson process of rate kλ.

    Waits are Erlang: sums of k exponential ones, more regular than a single one. The Fano factor of the whole counts is
    1/k + (1 - 1/k²)/(6λ) - … for large λ, and 1 - λ for small λ, as for any count that is 0 or 1.

    Parameters
    ----------
    rate, log_rate : exactly one; λ >= 0 in counts per window, shape ``(*batch)``, or ln λ. Gradients reach it.
    stages : k >= 1, fine arrivals a count; 1 is :class:`hitchhiker.EATPoisson`.
    temperature : τ >= 0, dimensionless, a float or a broadcasting tensor; no gradient. Whole counts at 0.
    indicator : name or object, as in :class:`hitchhiker.EATPoisson`.
    ordinary : start right after a count instead of at a random phase: then the mean falls short by about (k - 1)/(2k).
    hard : forward the whole count of the same arrivals, keep the relaxed derivative.
    validate_args : False skips the checks.

    Stationary counts have the mean λ c(τ), whatever k: a mean needs the rate of arrivals alone. So the cubic is unbiased for
    τ <= 1 here too. ``variance`` is exact (:func:`erlang_variance`), without gradient, and so is the ordinary process's
    mean. ``sample`` and ``log_prob`` are those of the whole counts: stationary, the fine count rounded at random to a
    multiple of k, ``P(n) = Σ_{i=1-k}^{k-1} (1 - abs(i)/k) Poisson(nk + i; kλ)``.

    Raises ``ValueError`` for rates and temperatures as :class:`hitchhiker.EATPoisson`, and for ``stages`` that is no whole
    number >= 1: it is not learned by gradient. First derivatives only; ``torch.compile`` and ``torch.func.vmap`` do not
    follow the sampler (give a batch of rates).

    >>> _ = torch.manual_seed(0)
    >>> q = EATErlang(rate=6.0, stages=4, temperature=0.3)
    >>> z = q.rsample((200_000,))
    >>> print(f"mean {q.mean:.1f}, sampled {z.mean():.1f}; variance {q.variance:.1f}, sampled {z.var():.1f}")
    mean 6.0, sampled 6.0; variance 1.5, sampled 1.5

    Source: H.3 names Erlang waits for under-dispersion and leaves them; the rest is ours.
    """

    def __init__(
        self,
        rate: Float[Tensor, "*#batch"] | float | None = None,
        log_rate: Float[Tensor, "*#batch"] | float | None = None,
        stages: int = 2,
        temperature: Float[Tensor, "*#batch"] | float = 0.1,
        indicator: str | SoftIndicator = "cubic",
        ordinary: bool = False,
        hard: bool = False,
        validate_args: bool | None = None,
    ):
        self.indicator = indicators.registered(indicator)
        require_count("stages", stages)
        self.stages, self.ordinary, self.hard = int(stages), ordinary, hard
        super().__init__(rate, log_rate, temperature, validate_args)

    def _arguments(self) -> dict[str, Any]:
        return super()._arguments() | {
            "stages": self.stages, "indicator": self.indicator, "ordinary": self.ordinary, "hard": self.hard,
        }  # fmt: skip

    @property
    def mean(self) -> Float[Tensor, "*batch"]:
        """E[z] = λ c(τ), or ∫ g h for the ordinary process (exact, no gradient)."""
        if self.ordinary:
            return self._each(lambda tau, lam: erlang_mean(self.indicator, tau, lam, self.stages, ordinary=True))
        tau = torch.zeros_like(self.temperature) if self.hard else self.temperature
        factor = torch.as_tensor(moments.mean_factor(self.indicator, tau), dtype=torch.float64)
        return self.rate * factor.to(self.parameter)

    @property
    def variance(self) -> Float[Tensor, "*batch"]:
        """Var(z), exact; no gradient."""
        return self._each(lambda tau, lam: erlang_variance(self.indicator, tau, lam, self.stages, self.ordinary))

    def _each(self, formula) -> Tensor:
        """``formula(τ, λ)``, computed once for each distinct pair."""
        tau = torch.zeros_like(self.temperature) if self.hard else self.temperature
        pairs = torch.stack([tau.expand(self.batch_shape).flatten(), self.rate.detach().flatten()]).double()
        values, where = pairs.unique(dim=1, return_inverse=True)
        found = torch.tensor([formula(float(t), float(r)) for t, r in values.T], dtype=torch.float64)
        return found.to(self.parameter.device)[where].view(self.batch_shape).to(self.parameter.dtype)

    def rsample(self, sample_shape=()) -> Float[Tensor, "..."]:
        """Relaxed counts of shape ``(*sample_shape, *batch)``, reparametrised: gradients reach the rate."""
        parameter = self.parameter.expand(self._extended_shape(torch.Size(sample_shape)))
        options = (self.indicator.name, self.stages, self.ordinary, self.is_log, self.hard)
        return operators._WithSlope.apply(sample_erlang, parameter, self.temperature, *options)[0]

    def sample(self, sample_shape=()) -> Float[Tensor, "..."]:
        """Whole counts (as floats), not relaxed."""
        with torch.no_grad():
            fine = torch.poisson(
                self.stages * self.rate.double().expand(self._extended_shape(torch.Size(sample_shape)))
            )
            if not self.ordinary:
                fine = fine + torch.randint_like(fine, self.stages)
            return torch.div(fine, self.stages, rounding_mode="floor").to(self.parameter.dtype)

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """ln P(value) of the whole counts, nats; whole ``value >= 0``. Differentiable in the rate; 2k - 1 terms."""
        value = as_float_tensor("value", value, like=self.parameter)
        if self._validate_args:
            common_shape(value=value, rate=self.parameter)
            require("value", value, lambda x: (x >= 0) & (x == x.floor()), "whole and >= 0")
        k, shape = self.stages, torch.broadcast_shapes(value.shape, self.batch_shape)
        reach = torch.arange(0 if self.ordinary else 1 - k, k, dtype=torch.float64, device=value.device)
        weight = torch.zeros_like(reach) if self.ordinary else torch.log1p(-reach.abs() / k)
        tail = [1] * len(shape)
        fine = value.double().expand(shape) * k + reach.view(-1, *tail)
        lam = self.rate.double().expand(shape) * k
        # a rate of 0 leaves the fine count 0 alone; elsewhere its logarithm would be -inf · 0
        log_lam = torch.where(lam > 0, torch.where(lam > 0, lam, 1.0).log(), 0.0)
        known = torch.where(fine >= 0, fine, 0.0)
        terms = known * log_lam - lam - torch.lgamma(known + 1) + weight.view(-1, *tail)
        possible = (fine >= 0) & ((lam > 0) | (fine == 0))
        found = torch.logsumexp(torch.where(possible, terms, -torch.inf), dim=0)
        # at rate 0 the terms that vanish there have slopes too: P(0) = 1 - λ + …, or flat where k arrivals must come first
        silent = 0.0 - lam / k if k == 1 or not self.ordinary else torch.zeros_like(lam)
        return torch.where((lam == 0) & (value == 0), silent, found).to(self.parameter.dtype)
