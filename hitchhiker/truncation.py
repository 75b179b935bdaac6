"""How many arrivals (EAT) or categories (GSM) are enough.

The paper takes one rule for both, the 1 - 10⁻³ quantile of Poisson(max λ) (Eq. 79).  It knows neither the
temperature nor the support of the indicator: a soft window reaches to ``t = 1 + τ``, so a hot sampler needs
the arrivals of ``λ (1 + τ)``, and a categorical law on ``0 … M - 1`` misses the quantile itself.
Rates are counts per window, temperatures dimensionless; every function returns a python ``int`` that is
enough for the largest rate (and temperature) it is given.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import stats
from torch import Tensor

from hitchhiker.indicators import SoftIndicator, get

Numbers = Any  # a float, an array or a tensor


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
    smallest number with ``P(N > M) <= tail`` and ``E[(N - M)⁺] <= tail · λ`` (the second only bites at
    small rates).  The arrivals that are cut are the outermost, where f is nearly 0, so the relative loss
    of mean and variance is far below ``tail`` (under 3·10⁻⁵ at the default for every indicator here,
    rates 1e-8 … 1e6 and τ <= 1); that of the mean gradient is below ``tail``.

    Parameters
    ----------
    rate : λ, counts per window, ``>= 0``.
    temperature : τ ``>= 0``, broadcastable with ``rate``; 0 means hard counts.
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

    >>> num_arrivals(100.0), num_arrivals(100.0, 0.5), num_arrivals(100.0, 0.5, "sigmoid")
    (132, 189, 879)
    """
    rates, temperatures, alpha = _checked("rate", rate), _checked("temperature", temperature), _tail(tail)
    if not rates.size or not rates.max():
        return 1
    soft = get(indicator)
    half = soft.support[1] if soft.is_compact else -2 * math.log(alpha)
    mean = (rates * (1 + half * temperatures)).max()
    return max(1, _poisson_cut(mean, alpha, alpha / (1 + half * temperatures.max())))


def num_categories(rate: Numbers, temperature: Numbers = 0.0, tail: float = 1e-3) -> int:
    """Categories 0 … K-1 that a Gumbel-softmax count needs.

    Up to τ = 1 the mean weight of category m falls like the pmf π_m, and K - 1 is the smallest number with
    ``P(N > K - 1) <= tail`` and ``E[(N - K + 1)⁺] <= tail · λ``: one category more than Eq. 79, whose M
    categories 0 … M-1 drop M itself.  Beyond τ = 1 weights fall like ``π_m^{1/τ}`` only, and the same
    rule is applied to that tempered law; as τ → ∞ they become uniform, and the relaxed mean, about K/2,
    is a matter of K and not of λ.

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
    (133, 170, 2)
    """
    rates, temperatures, alpha = _checked("rate", rate), _checked("temperature", temperature), _tail(tail)
    if not rates.size or not rates.max():
        return 2
    top, sharpness = float(rates.max()), 1 / max(1.0, float(temperatures.max()))
    if sharpness == 1:
        return max(2, _poisson_cut(top, alpha, alpha) + 1)
    spread = math.sqrt((top + 1 / sharpness) / sharpness)
    m = np.arange(int(top + 12 * spread + 40 / sharpness) + 2, dtype=np.float64)
    return max(2, quantile_of_logits(sharpness * stats.poisson.logpmf(m, top), alpha) + 1)


def quantile_of_logits(logits: np.ndarray, tail: float = 1e-3) -> int:
    """Smallest m with ``P(N > m) <= tail`` and ``E[(N - m)⁺] <= tail · E N`` for the law ``p_m ∝
    e^{logits_m}``.

    ``logits`` has shape ``(M,)``, nats, unnormalised, and must reach far enough itself.

    >>> quantile_of_logits(np.log([0.5, 0.4, 0.0999, 0.0001]))
    2
    """
    p = np.exp(logits - np.max(logits))
    p /= p.sum()
    beyond = np.append(np.cumsum(p[::-1])[::-1], 0.0)[1:]  # P(N > m)
    excess = np.cumsum(beyond[::-1])[::-1]  # E (N - m)^+
    enough = (beyond <= tail) & (excess <= tail * (np.arange(p.size) @ p))
    return int(np.argmax(enough)) if enough.any() else p.size - 1


def _poisson_cut(mean: float, tail: float, relative: float) -> int:
    """Smallest M with P(N > M) <= tail and E(N - M)⁺ <= relative · mean, N ~ Poisson(mean)."""
    m = int(stats.poisson.isf(tail, mean))
    while mean * stats.poisson.sf(m - 1, mean) - m * stats.poisson.sf(m, mean) > relative * mean:
        m += 1
    return m


def _checked(name: str, value: Numbers) -> np.ndarray:
    """``value`` as a float64 array after checking that it is finite and >= 0."""
    try:
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        array = array.astype(np.float64, casting="safe" if array.dtype.kind in "biuf" else "no")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be real and >= 0, got {value!r}") from error
    bad = ~(np.isfinite(array) & (array >= 0))
    if bad.any():
        raise ValueError(f"{name} must be finite and >= 0, got {array[bad].flat[0]}")
    return array


def _tail(tail: float) -> float:
    if not 0 < tail < 1:
        raise ValueError(f"tail must be between 0 and 1, got {tail}")
    return float(tail)


__all__ = ["num_arrivals", "num_categories", "paper_num_arrivals", "quantile_of_logits"]
