"""Statistical assertions with stated false-alarm rates.

Each returns nothing or raises ``AssertionError`` with the z-score. At the default six sigma a true statement fails once in
5·10⁸ runs; 200 such assertions share a false-alarm rate below 10⁻⁶. They assume n large enough for the normal limit.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import stats
from torch import Tensor

SIGMAS = 6.0


def z_scores(samples: Tensor, mean: Tensor | float) -> Tensor:
    """(x̄ - mean)/SE along dimension 0 with the sample standard error; a constant sample equal to the mean scores 0."""
    samples = samples.double()
    error = samples.mean(dim=0) - torch.as_tensor(mean, dtype=torch.float64, device=samples.device)
    se = samples.std(dim=0) / math.sqrt(samples.shape[0])
    return torch.where(error == 0, 0.0, error / se)


def assert_mean(samples: Tensor, mean: Tensor | float, sigmas: float = SIGMAS) -> None:
    """The mean of ``samples`` along dimension 0 is ``mean`` (any shape)."""
    z = z_scores(samples.detach(), mean)
    assert bool((z.abs() < sigmas).all()), f"mean {samples.double().mean(0)}, expected {mean}: z = {z}"


def assert_cumulants(samples: Tensor, cumulants: tuple[float, float, float, float], sigmas: float = SIGMAS) -> None:
    """Mean and variance of a one-dimensional sample, with exact standard errors from the first four cumulants κ_k."""
    k1, k2, _, k4 = cumulants
    x = samples.detach().double()
    n = x.numel()
    z_mean = (x.mean() - k1) / math.sqrt(k2 / n)
    z_variance = ((x - k1).square().mean() - k2) / math.sqrt((k4 + 2 * k2**2) / n)
    assert abs(z_mean) < sigmas, f"mean {x.mean():.6g}, expected {k1:.6g}: z = {z_mean:.1f}"
    assert abs(z_variance) < sigmas, f"variance {x.var():.6g}, expected {k2:.6g}: z = {z_variance:.1f}"


def assert_same_law(a: Tensor, b: Tensor, false_alarm: float = 1e-9) -> None:
    """Two independent one-dimensional samples have one law, by the DKW bound on both sides: valid for any law, atoms too."""
    x, y = (np.sort(sample.detach().double().flatten().cpu().numpy()) for sample in (a, b))
    assert not np.isnan(np.concatenate([x, y])).any(), "a sample holds NaN"
    grid = np.concatenate([x, y])
    gap = max(
        np.abs(np.searchsorted(x, grid, side) / len(x) - np.searchsorted(y, grid, side) / len(y)).max()
        for side in ("left", "right")
    )
    bound = sum(math.sqrt(math.log(4 / false_alarm) / (2 * n)) for n in (len(x), len(y)))
    assert gap < bound, f"largest gap between the distribution functions {gap:.4f}, allowed {bound:.4f}"


def assert_frequencies(counts: Tensor, probabilities: Tensor, false_alarm: float = 1e-9) -> None:
    """Whole-number ``counts`` follow ``probabilities`` over 0, 1, …, by χ².

    Cells of expectation below 10 are pooled into one, and that one with the smallest of the others if it is still below.
    So that a surplus of rare counts is not lost there, their number has a binomial test of its own; each test has half of
    the false-alarm rate.
    """
    n = counts.numel()
    counts, p = counts.detach().flatten().cpu(), probabilities.detach().double().cpu().numpy()
    assert bool((counts == counts.round()).all()), "counts are not whole numbers"
    observed = np.bincount(counts.long().numpy(), minlength=len(p))
    assert len(observed) == len(p), f"a count of {len(observed) - 1} is outside 0 … {len(p) - 1}"
    assert not observed[p == 0].any(), f"impossible counts {np.flatnonzero((p == 0) & (observed > 0))}"
    rare = p * n < 10
    surplus = float(stats.binom.sf(observed[rare].sum() - 1, n, p[rare].sum()))
    assert surplus > false_alarm / 2, f"{observed[rare].sum()} rare counts, expected {p[rare].sum() * n:.3g}"
    order = np.argsort(p)
    pooled = max(int((np.cumsum(p[order]) * n < 10).sum()) + 1, int(rare.sum()))
    cells = [order[:pooled], *order[pooled:, None]]
    expected = np.array([p[cell].sum() * n for cell in cells])
    found = np.array([observed[cell].sum() for cell in cells])
    statistic = float(((found - expected) ** 2 / expected).sum())
    degrees = len(cells) - 1
    tail = float(stats.chi2.sf(statistic, degrees)) if degrees else 1.0
    assert tail > false_alarm / 2, f"χ² = {statistic:.1f} on {degrees} degrees of freedom, tail {tail:.1e}"
