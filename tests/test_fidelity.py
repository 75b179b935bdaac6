"""Wasserstein distances: against scipy, against closed forms, and their floor."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from hitchhiker.fidelity import sampling_floor, wasserstein, wasserstein_between


@pytest.mark.parametrize("rate", [0.0, 1e-6, 0.7, 20.0, 300.0])
@pytest.mark.parametrize("n", [1, 7, 1000])
def test_first_order_is_scipys(rate, n, seed):
    rng = np.random.default_rng(seed)
    x = rng.gamma(2.0, rate / 2 + 0.1, n)
    m = np.arange(int(rate + 30 * math.sqrt(rate + 1)) + 30)
    truth = stats.wasserstein_distance(x, m, v_weights=stats.poisson.pmf(m, rate))
    assert wasserstein(x, rate) == pytest.approx(truth, rel=1e-10)
    assert wasserstein(torch.as_tensor(x).reshape(1, -1), rate) == pytest.approx(truth, rel=1e-10)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (5, 3), (400, 1000)])
def test_between_two_samples(n, m, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=n), rng.exponential(size=m)
    assert wasserstein_between(x, y) == pytest.approx(stats.wasserstein_distance(x, y), rel=1e-10)
    # second order by brute force: both samples repeated to a common size
    common = math.lcm(n, m)
    xs, ys = np.repeat(np.sort(x), common // n), np.repeat(np.sort(y), common // m)
    assert wasserstein_between(x, y, order=2) == pytest.approx(math.sqrt(np.mean((xs - ys) ** 2)), rel=1e-10)


def test_a_point_mass():
    """Against one point every coupling is the same: W_p^p = E|N - x|^p."""
    lam, x = 4.0, 2.5
    n = np.arange(100)
    p = stats.poisson.pmf(n, lam)
    for order in (1, 1.5, 2, 4):
        assert wasserstein([x], lam, order) == pytest.approx((p @ np.abs(n - x) ** order) ** (1 / order), rel=1e-12)
    assert wasserstein([x], lam, 2) == pytest.approx(math.sqrt(lam + (lam - x) ** 2), rel=1e-12)


def test_a_shift_and_the_mean():
    counts = np.repeat(np.arange(40), np.round(stats.poisson.pmf(np.arange(40), 5.0) * 1e6).astype(int))
    base = wasserstein(counts, 5.0)
    assert base < 1e-4
    assert wasserstein(counts + 0.3, 5.0) == pytest.approx(0.3, abs=1e-4)
    assert wasserstein(counts + 0.3, 5.0, order=2) == pytest.approx(0.3, abs=5e-3)
    assert wasserstein(counts * 0.9, 5.0) >= 0.5 - base  # at least the difference of the means


def test_order_two_is_the_larger():
    x = torch.poisson(torch.full((2000,), 9.0)) + 0.4 * torch.rand(2000)
    assert wasserstein(x, 9.0, order=2) > wasserstein(x, 9.0)


@pytest.mark.parametrize("rate", [2.0, 20.0, 100.0])
def test_floor_of_exact_samples(rate, seed):
    """The mean distance of 200 exact samples is the floor, within six standard errors; a rate 2% off stands out."""
    rng, n = np.random.default_rng(seed), 4000
    distances = np.array([wasserstein(rng.poisson(rate, n), rate) for _ in range(200)])
    error = distances.std() / math.sqrt(200)
    assert abs(distances.mean() - sampling_floor(rate, n)) < 6 * error
    off = np.array([wasserstein(rng.poisson(1.05 * rate, n), rate) for _ in range(20)])
    assert off.mean() > sampling_floor(rate, n) + 6 * error


def test_known_floor_between_two_samples():
    """√2 times the floor: .011 at λ = 2, .037 at 20, .083 at 100 for 50,000 draws each."""
    floors = [math.sqrt(2) * sampling_floor(rate, 50_000) for rate in (2.0, 20.0, 100.0)]
    assert floors == pytest.approx([0.011, 0.037, 0.083], rel=0.03)


def test_a_million_counts(seed):
    x = np.random.default_rng(seed).poisson(1e6, 20_000)
    assert wasserstein(x, 1e6) < 4 * sampling_floor(1e6, 20_000)
    assert wasserstein(x + 1000.0, 1e6) == pytest.approx(1000, rel=0.05)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wasserstein([], 1.0), "samples must be one or more finite numbers"),
        (lambda: wasserstein([1.0, math.nan], 1.0), "samples must be one or more finite numbers"),
        (lambda: wasserstein([1.0, -math.inf], 1.0), "samples must be one or more finite numbers"),
        (lambda: wasserstein([1.0], -1.0), "rate must be >= 0 and finite"),
        (lambda: wasserstein([1.0], 1.0, order=0.5), r"order must be >= 1 and finite, got 0\.5"),
        (lambda: wasserstein_between([1.0], [math.inf]), "samples_b must be"),
        (lambda: sampling_floor(1.0, 0), "num_samples must be >= 1, got 0"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
