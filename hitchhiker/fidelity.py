"""How far a sample is from the Poisson law it stands for: exact Wasserstein distances in one dimension.

The distance is between the empirical law of the sample and the law itself, so no second random sample
adds its own noise. It still has a floor: n exact Poisson draws are at about :func:`sampling_floor` from
their law, and two samples of n are √2 times further apart (λ = 100, n = 50,000: 0.06 and 0.08).  A
smaller distance than that says nothing. Two more readings: W1 is at least the difference of the means,
and a continuous relaxation of a lattice law stays near W1 = 1/4 once its fractional window holds a few
arrivals (2λτ above about 2), however good its moments are.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats
from torch import Tensor

from hitchhiker.moments import _checked

Sample = Tensor | np.ndarray | list


def wasserstein(samples: Sample, rate: float, order: float = 1) -> float:
    """W_p between a sample and Poisson(λ): ``(∫_0^1 |F_n⁻¹(q) - F⁻¹(q)|^p dq)^{1/p}``, summed exactly.

    Parameters
    ----------
    samples : any shape, flattened; relaxed or integer counts.
    rate : λ ``>= 0``, counts per window.
    order : p ``>= 1``.

    Returns
    -------
    The distance in counts, a ``float``.

    Raises
    ------
    ValueError
        for an empty sample, NaN or infinite values, a bad rate or ``order < 1``.

    >>> import torch
    >>> draws = torch.poisson(torch.full((50_000,), 20.0), generator=torch.manual_seed(0))
    >>> wasserstein(draws, 20.0) < 2 * sampling_floor(20.0, 50_000)
    True
    >>> round(wasserstein([0.0], 3.0), 6)  # all mass at 0: the mean
    3.0

    Source: Section 3.2 and Fig. 9 report W1 and W2.
    """
    rates = _checked("rate", rate)
    if rates.size != 1:
        raise ValueError(f"rate must be one number, got shape {rates.shape}")
    lam = float(rates)
    reach = 40 * math.sqrt(lam + 1) + 40
    counts = np.arange(max(0, math.floor(lam - reach)), math.ceil(lam + reach) + 1, dtype=np.float64)
    return _coupled(*_empirical("samples", samples), counts, stats.poisson.cdf(counts, lam), order)


def wasserstein_between(samples_a: Sample, samples_b: Sample, order: float = 1) -> float:
    """W_p between two samples (of any sizes, flattened), in counts.

    For ``order=1`` this is ``scipy.stats.wasserstein_distance``.  Errors as :func:`wasserstein`.

    >>> wasserstein_between([0.0, 1.0], [0.5, 3.5], order=1)
    1.5
    """
    return _coupled(*_empirical("samples_a", samples_a), *_empirical("samples_b", samples_b), order)


def sampling_floor(rate: float, num_samples: int) -> float:
    """Expected W1 between n exact Poisson(λ) draws and their law: ``Σ_m √(2 F(m)(1 - F(m))/(πn))``.

    The normal approximation of E|F_n - F|, good once n is some hundreds.

    Parameters
    ----------
    rate : λ ``>= 0``, counts per window.
    num_samples : n ``>= 1``.

    Raises
    ------
    ValueError
        for a bad rate or number.

    >>> [round(sampling_floor(lam, 50_000), 3) for lam in (2.0, 20.0, 100.0)]
    [0.008, 0.026, 0.058]
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be >= 1, got {num_samples}")
    lam = float(_checked("rate", rate))
    counts = np.arange(math.ceil(lam + 40 * math.sqrt(lam + 1) + 40))
    below = stats.poisson.cdf(counts, lam)
    return float(np.sum(np.sqrt(2 * below * stats.poisson.sf(counts, lam) / (math.pi * num_samples))))


def _empirical(name: str, samples: Sample) -> tuple[np.ndarray, np.ndarray]:
    values = samples.detach().cpu().numpy() if isinstance(samples, Tensor) else np.asarray(samples)
    values = np.sort(values.astype(np.float64).ravel())
    if not values.size or not np.isfinite(values[[0, -1]]).all():
        raise ValueError(f"{name} must be one or more finite numbers, got {values.size} with NaN, inf or none")
    return values, np.arange(1, values.size + 1) / values.size


def _coupled(a: np.ndarray, below_a: np.ndarray, b: np.ndarray, below_b: np.ndarray, order: float) -> float:
    """W_p of two laws on the line from their sorted values and cumulative probabilities: couple equal quantiles."""
    if not 1 <= order < math.inf:
        raise ValueError(f"order must be >= 1 and finite, got {order}")
    q = np.concatenate([[0.0], np.union1d(below_a, below_b)])
    q = q[q <= 1]
    middle = (q[1:] + q[:-1]) / 2
    x = a[np.minimum(np.searchsorted(below_a, middle), a.size - 1)]
    y = b[np.minimum(np.searchsorted(below_b, middle), b.size - 1)]
    return float(np.sum(np.diff(q) * np.abs(x - y) ** order) ** (1 / order))


__all__ = ["sampling_floor", "wasserstein", "wasserstein_between"]
