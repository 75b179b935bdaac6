"""How many arrivals (EAT) or categories (GSM) are enough.

The paper takes one rule for both, the 1 - 10⁻³ quantile of Poisson(max λ) (Eq. 79).  It knows neither the
temperature nor the support of the indicator: a soft window reaches to ``t = 1 + τ``, so a hot sampler needs
the arrivals of ``λ (1 + τ)``, and a categorical law on ``0 … M - 1`` misses the quantile itself.
Rates are counts per window, temperatures dimensionless; every function returns a python ``int`` that is
enough for the largest rate (and temperature) it is given.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy import stats

from hitchhiker import moments
from hitchhiker.indicators import SoftIndicator, get
from hitchhiker.moments import Numbers, _checked


def paper_num_arrivals(rate: Numbers, tail: float = 1e-3) -> int:
    """The paper's M = ⌈invCDF_{max λ}(1 - α)⌉, the same for EAT and GSM (Eq. 79, α = 10⁻³).

    Use it to reproduce the paper; use :func:`num_arrivals` and :func:`num_categories` for work: with this
    M the relaxed sigmoid count at λ = 100, τ = 0.5 has 85% of its mean, and rates below ``tail`` get no
    arrival at all.

    Parameters
    ----------
    rate : counts per window, ``>= 0``; of an array or tensor the maximum counts.
    tail : α, the probability that a Poisson count exceeds M.

    Returns
    -------
    M as an ``int``; 0 when no rate exceeds about ``tail``.

    Raises
    ------
    ValueError
        for a negative, NaN or infinite rate, or ``tail`` outside (0, 1).

    >>> import torch
    >>> paper_num_arrivals(100.0), paper_num_arrivals(torch.tensor([0.1, 20.0]))
    (132, 35)
    """
    rates, alpha = _checked("rate", rate), _tail(tail)
    return int(stats.poisson.isf(alpha, rates.max())) if rates.size else 0


def num_arrivals(
    rate: Numbers, temperature: Numbers = 0.0, indicator: str | SoftIndicator = "cubic", tail: float = 1e-3
) -> int:
    """Arrivals that Algorithm 1 needs so that cutting it there is not felt.

    An arrival counts while ``(1 - t)/τ > -S``, so N ~ Poisson(λ(1 + Sτ)) arrivals matter.  M is the
    smallest number with ``P(N > M) <= tail`` at which the mean, the variance and (τ > 0) the mean
    gradient of Algorithm 1, which :mod:`hitchhiker.moments` has exactly, fall short of those of M = ∞ by
    at most ``tail`` of them.  The first rule decides at large rates and warm temperatures, where the loss
    is far smaller than ``tail``; the second elsewhere.

    Parameters
    ----------
    rate : λ, counts per window, ``>= 0``.
    temperature : τ ``>= 0``, broadcastable with ``rate``; 0 means hard counts, min(N, M).
    indicator : name or object.  S is the half width of its support; for the sigmoid, which has none,
        ``S = 2 ln(1/tail)``: what lies beyond adds ``τ·ln(1 + e^{-S}) < τ·tail²`` of the rate.
    tail : as above.

    Returns
    -------
    M ``>= 1``, an ``int``.  ``M · rate.numel()`` numbers are drawn, so the window sampler (the default of
    :class:`hitchhiker.EATPoisson`), which needs no M, is cheaper.

    Raises
    ------
    ValueError
        for negative, NaN or infinite rates or temperatures, or ``tail`` outside (0, 1).

    >>> num_arrivals(100.0, 0.5), num_arrivals(100.0, 0.5, "sigmoid"), num_arrivals(1e-8, 0.5)
    (189, 879, 1)
    """
    rates, temperatures, alpha = _checked("rate", rate), _checked("temperature", temperature), _tail(tail)
    soft = get(indicator)
    if not rates.size or not temperatures.size or not rates.max():
        return 1
    return _arrivals(float(rates.max()), float(temperatures.max()), soft, alpha)


def num_categories(rate: Numbers, temperature: Numbers = 0.0, tail: float = 1e-3) -> int:
    """Categories 0 … K-1 that a Gumbel-softmax count needs.

    Up to τ = 1 the mean weight of category m falls like the pmf π_m.  K is the smallest number with
    ``P(N > K - 1) <= tail`` at which the Poisson cut to 0 … K-1 and renormalised keeps its mean and
    variance to within ``tail`` of them.  The first rule alone is one category more than Eq. 79, whose M
    categories 0 … M-1 drop M itself; the second adds a few.  Beyond τ = 1 weights fall like ``π_m^{1/τ}``
    only, and the same rules are applied to that tempered law.  As τ → ∞ the weights become uniform, and
    the relaxed mean, about K/2, is a matter of K, not of λ.

    Parameters
    ----------
    rate : λ, counts per window, ``>= 0``.
    temperature : τ ``>= 0``, broadcastable with ``rate``.
    tail : as above.

    Returns
    -------
    K ``>= 2``, an ``int``.

    Raises
    ------
    ValueError
        for negative, NaN or infinite rates or temperatures, or ``tail`` outside (0, 1).

    >>> num_categories(100.0, 0.5), num_categories(100.0, 4.0), num_categories(1e-8)
    (142, 189, 2)
    """
    rates, temperatures, alpha = _checked("rate", rate), _checked("temperature", temperature), _tail(tail)
    if not rates.size or not temperatures.size or not rates.max():
        return 2
    top, heat = float(rates.max()), max(1.0, float(temperatures.max()))
    # The tempered law has mode λ and variance about heat·λ; the tails are at worst those of a geometric.
    reach = 14 * math.sqrt(heat * (top + heat)) + 60 * heat
    m = np.arange(max(0, int(top - reach)), int(top + reach) + 2, dtype=np.float64)
    return 1 + int(m[0]) + cut_of_logits(stats.poisson.logpmf(m, top) / heat, alpha, first=m[0])


def num_categories_negative_binomial(
    total_count: Numbers, probs: Numbers, temperature: Numbers = 0.0, tail: float = 1e-3
) -> int:
    """Categories 0 … K-1 that a negative binomial Gumbel-softmax count needs.

    The smallest K, for the worst element, with ``P(N >= K) <= tail`` and a second moment beyond K so small that the
    variance loses about ``tail`` of itself; that tail moment is a survival function with r + 2.  Beyond τ = 1 the
    tempered law ``π_m^{1/τ}`` counts (see :func:`num_categories`), with the largest r and the smallest μ.

    Parameters
    ----------
    total_count : r ``> 0``; broadcasts against ``probs``.
    probs : μ in (0, 1); the mean is r(1 - μ)/μ counts.
    temperature : τ ``>= 0``.
    tail : as in :func:`num_categories`.

    Raises
    ------
    ValueError
        for parameters outside these domains.

    >>> num_categories_negative_binomial(3.0, 0.4), num_categories_negative_binomial(3.0, 0.4, 4.0)
    (32, 102)
    """
    r, mu = np.broadcast_arrays(_checked("total_count", total_count), _checked("probs", probs))
    heat, alpha = _checked("temperature", temperature), _tail(tail)
    moments._nb_moments(r, mu)  # the domains
    if not r.size or not heat.size:
        return 2
    if heat.max() > 1:
        return 1 + _hot_negative_binomial(float(r.max()), float(mu.min()), float(heat.max()), alpha)
    mean = r * (1 - mu) / mu
    allowed = alpha / (1 + mean * mu)  # Var / E N², since Var = mean/μ
    last = np.maximum(stats.nbinom.isf(alpha, r, mu), stats.nbinom.isf(allowed, r + 2, mu) + 2)
    return max(2, 1 + int(last.max()))


def _hot_negative_binomial(r: float, mu: float, heat: float, tail: float) -> int:
    reach = int(r * (1 - mu) / mu) + 64
    while True:
        m = np.arange(reach, dtype=np.float64)
        logits = stats.nbinom.logpmf(m, r, mu) / heat
        if logits[-1] < logits.max() - 40:
            return cut_of_logits(logits, tail)
        reach *= 2


def cut_of_logits(logits: np.ndarray, tail: float = 1e-3, first: float = 0.0) -> int:
    """Index of the last category needed of ``p_m ∝ e^{logits}``, m = first, first + 1, …

    The smallest index i with ``P(beyond i) <= tail`` at which the law cut there and renormalised keeps
    its mean and variance to within ``tail`` of them.

    Parameters
    ----------
    logits : shape ``(M,)``, nats, unnormalised; must itself reach far enough.
    tail : largest probability and relative loss.
    first : the count that ``logits[0]`` belongs to.

    >>> cut_of_logits(np.log([0.5, 0.4, 0.09999, 0.00001]))
    2
    """
    p = np.exp(logits - np.max(logits))
    p /= p.sum()
    m = first + np.arange(p.size)
    centre = p @ m
    kept = np.cumsum(p)
    shift = np.cumsum(p * (m - centre)) / kept  # mean kept, about the whole mean
    spread = np.cumsum(p * (m - centre) ** 2) / kept - shift**2
    beyond = np.append(np.cumsum(p[::-1])[::-1], 0.0)[1:]
    enough = (beyond <= tail) & (-shift <= tail * centre) & (spread >= (1 - tail) * spread[-1])
    return int(np.argmax(enough)) if enough.any() else p.size - 1


@lru_cache(maxsize=256)
def _arrivals(rate: float, temperature: float, soft: SoftIndicator, tail: float) -> int:
    half = soft.support[1] if soft.is_compact else -2 * math.log(tail)
    enough = max(1, int(stats.poisson.isf(tail, rate * (1 + half * temperature))))
    if _loss(rate, temperature, soft, enough) <= tail:
        return enough
    short, step = enough, max(1, int(math.sqrt(enough) / 4))
    while _loss(rate, temperature, soft, enough) > tail:
        short, enough = enough, enough + step
    while enough - short > 1:
        middle = (short + enough) // 2
        short, enough = (short, middle) if _loss(rate, temperature, soft, middle) <= tail else (middle, enough)
    return enough


def _loss(rate: float, temperature: float, soft: SoftIndicator, m: int) -> float:
    """Largest relative shortfall of Algorithm 1 with m arrivals among mean, variance and mean gradient."""
    at = (soft, temperature, rate, m)
    c, v = moments.mean_factor(soft, temperature), moments.variance_factor(soft, temperature)
    losses = [1 - moments.truncated_mean_factor(*at) / c, 1 - moments.truncated_variance_factor(*at) / v]
    if temperature > 0:
        losses.append(1 - moments.truncated_gradient_mean(*at) / c)
    return max(losses)


def _tail(tail: float) -> float:
    if not 0 < tail < 1:
        raise ValueError(f"tail must be between 0 and 1, got {tail}")
    return float(tail)


__all__ = ["cut_of_logits", "num_arrivals", "num_categories", "num_categories_negative_binomial", "paper_num_arrivals"]
