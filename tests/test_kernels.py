"""From noise to samples: hand-computed values, plain numpy, exact moments, and whole laws against Algorithms 1 and 2."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from laws import samples_with_slopes
from numpy.polynomial import legendre
from scipy import special, stats

from hitchhiker import EATPoisson, GSMPoisson, GumbelSoftmaxCount, indicators, moments, testing
from hitchhiker.kernels import operators, window
from hitchhiker.relaxations.arrival_time import from_unit_exponentials
from hitchhiker.relaxations.gumbel_softmax import from_gumbels, poisson_logits, soft_one_hot

NAMES = sorted(indicators.REGISTRY)
TEMPERATURES = [0.02, 0.1, 0.5, 1.0, 3.0]
every_indicator = pytest.mark.parametrize("name", NAMES)


GAUSS = legendre.leggauss(200)


class Backend(NamedTuple):
    name: str
    dtype: torch.dtype


NUMPY = {
    "sigmoid": (special.expit, lambda u: special.expit(u) * special.expit(-u)),
    "linear": (lambda u: (1 + u) / 2, lambda u: 0 * u + 0.5),
    "cubic": (lambda u: (2 + 3 * u - u**3) / 4, lambda u: 3 * (1 - u**2) / 4),
    "quintic": (lambda u: (8 + 15 * u - 10 * u**3 + 3 * u**5) / 16, lambda u: 15 * (1 - u**2) ** 2 / 16),
    "cosine": (lambda u: (1 + np.sin(np.pi * u / 2)) / 2, lambda u: np.pi * np.cos(np.pi * u / 2) / 4),
}


@pytest.fixture(params=["plain", "compiled", "cuda"])
def backend(request, monkeypatch):
    """Every way to draw, and the dtype to draw in: plain torch, compiled loops where numba is, a GPU where there is one."""
    if request.param == "plain":
        monkeypatch.setattr(operators, "kernels_for", lambda *_: None)
    elif request.param == "compiled" and operators.kernels_for(torch.ones(1)) is None:
        pytest.skip("numba is not installed")
    elif request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    torch.set_default_device("cuda" if request.param == "cuda" else "cpu")
    yield Backend(request.param, torch.float32 if request.param == "cuda" else torch.float64)
    torch.set_default_device("cpu")


def numpy_indicator(name: str, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(f, f') with the support's edges, in plain numpy."""
    value, slope = NUMPY[name]
    if name == "sigmoid":
        return value(u), slope(u)
    return np.where(u > 1, 1, np.where(u < -1, 0, value(u))), np.where(abs(u) <= 1, slope(u), 0)


def numpy_arrival_time(rate, e, tau, name):
    """Algorithm 1 and its derivative: z = Σ f(u), dz/dλ = Σ f'(u) t/(τλ)."""
    t = np.cumsum(e, axis=0) / rate
    f, slope = numpy_indicator(name, (1 - t) / tau)
    return f.sum(axis=0), (slope * t / (tau * rate)).sum(axis=0)


def numpy_gumbel_softmax(rate, g, tau):
    """Algorithm 2 and its derivative: z = Σ m w_m, dz/dλ = Var_w(m)/(τλ)."""
    m = np.arange(len(g)).reshape(-1, *([1] * (g.ndim - 1)))
    scores = (m * np.log(rate) - special.gammaln(m + 1) + g) / tau
    w = np.exp(scores - scores.max(axis=0))
    w = w / w.sum(axis=0)
    z = (m * w).sum(axis=0)
    return z, ((m * m * w).sum(axis=0) - z**2) / (tau * rate)


def value_and_slope(function, rate: torch.Tensor, *arguments) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = rate.clone().requires_grad_()
    z = function(leaf, *arguments)
    return z.detach(), torch.autograd.grad(z.sum(), leaf)[0]


# --- noise given ---


def test_from_unit_exponentials_by_hand():
    """λ = 2, e = (0.8, 1.1, 5): arrivals at 0.4, 0.95, 3.45; at τ = 0.5, u = 1.2, 0.1, -4.9."""
    rate, e = torch.tensor(2.0, dtype=torch.float64), torch.tensor([0.8, 1.1, 5.0], dtype=torch.float64)
    by_hand = {
        "cubic": (1 + 0.57475, 0.7425 * 0.95),
        "linear": (1 + 0.55, 0.5 * 0.95),
        "quintic": (1 + 0.593126875, 0.9375 * 0.9801 * 0.95),
        "cosine": (1 + 0.5782172325201155, math.pi / 4 * 0.9876883405951378 * 0.95),
        "sigmoid": (
            0.7685247834990175 + 0.52497918747894 + 0.007391541344281971,
            0.17789444064680573 * 0.4 + 0.24937604019289197 * 0.95 + 0.00733690646083709 * 3.45,
        ),
    }
    assert set(by_hand) == set(NAMES), "compute the new indicator's values by hand"
    for name, (z, slope) in by_hand.items():
        found = value_and_slope(from_unit_exponentials, rate, e, 0.5, name)
        assert float(found[0]) == pytest.approx(z, rel=1e-13)
        assert float(found[1]) == pytest.approx(slope, rel=1e-13)
    hard = value_and_slope(from_unit_exponentials, rate, e, 0.0)
    assert [float(x) for x in hard] == [2.0, 0.0]
    nothing = value_and_slope(from_unit_exponentials, 0 * rate, e, 0.5)
    assert [float(x) for x in nothing] == [0.0, 0.0]


def test_from_gumbels_by_hand():
    """λ = 1 and no noise: scores 0, 0, -ln 2, -ln 6."""
    rate, g = torch.tensor(1.0, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    for tau, w in ((1.0, np.array([6, 6, 3, 1]) / 16), (0.5, np.array([36, 36, 9, 1]) / 82)):
        m = np.arange(4)
        z, slope = value_and_slope(from_gumbels, rate, g, tau)
        assert float(z) == pytest.approx(w @ m, rel=1e-14)
        assert float(slope) == pytest.approx((w @ m**2 - (w @ m) ** 2) / tau, rel=1e-13)
    g = torch.tensor([0.0, 1.0, 4.0, 0.0], dtype=torch.float64)
    assert [float(x) for x in value_and_slope(from_gumbels, rate, g, 0.0)] == [2.0, 0.0]
    assert [float(x) for x in value_and_slope(from_gumbels, 0 * rate, g, 0.5)] == [0.0, 0.0]


@every_indicator
@pytest.mark.parametrize("tau", [0.02, 0.3, 1.0, 2.5])
def test_from_unit_exponentials_is_algorithm_1(name, tau, seed):
    rng = np.random.default_rng(seed)
    rate, e = rng.uniform(0.1, 8, (4, 50)), rng.exponential(size=(40, 4, 50))
    z, slope = numpy_arrival_time(rate, e, tau, name)
    found = value_and_slope(from_unit_exponentials, torch.as_tensor(rate), torch.as_tensor(e), tau, name)
    np.testing.assert_allclose(found[0], z, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found[1], slope, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tau", [0.05, 0.3, 1.0, 2.5])
def test_from_gumbels_is_algorithm_2(tau, seed):
    rng = np.random.default_rng(seed)
    rate, g = rng.uniform(0.1, 8, (4, 50)), rng.gumbel(size=(30, 4, 50))
    z, slope = numpy_gumbel_softmax(rate, g, tau)
    found = value_and_slope(from_gumbels, torch.as_tensor(rate), torch.as_tensor(g), tau)
    np.testing.assert_allclose(found[0], z, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found[1], slope, rtol=1e-11, atol=1e-12)


@every_indicator
def test_gradcheck_with_frozen_noise(name):
    rate = torch.tensor([0.5, 2.0, 6.0], dtype=torch.float64, requires_grad=True)
    e = torch.empty(20, 3, dtype=torch.float64).exponential_()
    assert torch.autograd.gradcheck(lambda r: from_unit_exponentials(r, e, 0.7, name), rate)
    assert torch.autograd.gradcheck(lambda r: from_gumbels(r, -e.log(), 0.7), rate)


def test_one_rate_for_many_columns_of_noise():
    """A plain number or a scalar broadcasts against the noise, temperatures too."""
    e = torch.empty(20, 3, dtype=torch.float64).exponential_()
    tau = torch.tensor([0.0, 0.4, 2.0], dtype=torch.float64)
    for function, noise in ((from_unit_exponentials, e), (from_gumbels, -e.log())):
        full = function(torch.full((3,), 2.0, dtype=torch.float64), noise, tau)
        assert torch.equal(function(2.0, noise, tau), full)
        assert torch.equal(function(torch.tensor(2.0, dtype=torch.float64), noise, tau), full)


def test_temperature_tensor_mixes_hard_and_soft():
    """One call with τ = 0 and τ > 0 side by side, values and slopes as apart."""
    rate = torch.full((3,), 2.0, dtype=torch.float64)
    e = torch.empty(20, 3, dtype=torch.float64).exponential_()
    tau = torch.tensor([0.0, 0.4, 2.0], dtype=torch.float64)
    for function, noise in ((from_unit_exponentials, e), (from_gumbels, -e.log())):
        z, slope = value_and_slope(function, rate, noise, tau)
        for i in range(3):
            apart = value_and_slope(function, rate[i], noise[:, i], float(tau[i]))
            assert float(z[i]) == pytest.approx(float(apart[0]), rel=1e-14)
            assert float(slope[i]) == pytest.approx(float(apart[1]), rel=1e-14)


@every_indicator
def test_from_window_is_algorithm_1_seen_from_the_window(name):
    """The same arrivals by their scaled times: same count, same derivative, same hard count."""
    tau, rate = 0.4, 5.0
    e = torch.empty(60, 1, dtype=torch.float64).exponential_()
    times = e.cumsum(0)[:, 0] / rate
    f = indicators.get(name)
    low, high = window.window_bounds(torch.tensor(tau, dtype=torch.float64), f)
    s = (1 - times) / tau
    inside = (s >= low) & (s <= high)
    certain = (s > high).sum().double()[None]
    unit = torch.zeros(int(inside.sum()), dtype=torch.long)
    z, slope, hard = window.from_window(certain, s[inside], unit, torch.tensor(tau, dtype=torch.float64), f)
    expected = value_and_slope(from_unit_exponentials, torch.tensor([rate], dtype=torch.float64), e, tau, name)
    torch.testing.assert_close(z, expected[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(slope / rate, expected[1], rtol=1e-12, atol=1e-12)
    assert float(hard) == int((times < 1).sum())


def test_soft_category_is_from_gumbels():
    rate, tau = torch.tensor([0.3, 4.0], dtype=torch.float64), torch.tensor([0.3, 1.5], dtype=torch.float64)
    g = -torch.empty(25, 2, dtype=torch.float64).exponential_().log()
    m = torch.arange(25.0, dtype=torch.float64)[:, None]
    z, slope = window.soft_category(rate.log(), g, tau, m, torch.lgamma(m + 1), hard=False)
    expected = value_and_slope(from_gumbels, rate, g, tau)
    torch.testing.assert_close(z, expected[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(slope / rate, expected[1], rtol=1e-11, atol=1e-14)
    hard, kept = window.soft_category(rate.log(), g, tau, m, torch.lgamma(m + 1), hard=True)
    torch.testing.assert_close(hard, (poisson_logits(rate, 25) + g).argmax(dim=0).double())
    torch.testing.assert_close(kept, slope)
    weights = soft_one_hot(poisson_logits(rate, 25), g, tau)
    torch.testing.assert_close(weights.sum(0), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close((m * weights).sum(0), z)


# --- exact moments ---


def cumulants(name: str, tau: float, rate: float) -> list[float]:
    return [rate * moments.cumulant_factor(name, tau, k) for k in (1, 2, 3, 4)]


def slope_cumulants(name: str, tau: float, rate: float) -> list[float]:
    """κ_k(dz/dλ) = λτ ∫ [f'(u)(1 - τu)/(τλ)]^k du, by Campbell."""
    half = 1.0 if name != "sigmoid" else 40.0
    x, w = GAUSS
    high = min(half, 1 / tau)
    u, w = (high + half) / 2 * (x + 1) - half, w * (high + half) / 2
    h = NUMPY[name][1](u) * (1 - tau * u) / (tau * rate)
    return [float(rate * tau * (w @ h**k)) for k in (1, 2, 3, 4)]


def draws(name: str, tau: float, rate: float, budget: float) -> int:
    """How many samples a number of arrivals buys."""
    half = indicators.get(name).half_width(torch.float64)
    return int(min(200_000, budget / (rate * (1 + half * tau))))


@every_indicator
@pytest.mark.parametrize("tau", TEMPERATURES)
def test_moments_of_count_and_slope_are_exact(name, tau, backend):
    """Mean and variance of z and of dz/dλ, and their covariance v/2, at six sigma with exact standard errors."""
    rate = 6.0
    n = draws(name, tau, rate, 3e6 if backend.name != "plain" else 1e6)
    z, slope = samples_with_slopes(
        lambda r: EATPoisson(rate=r, temperature=tau, indicator=name), rate, n, backend.dtype
    )
    testing.assert_cumulants(z, cumulants(name, tau, rate))
    testing.assert_cumulants(slope, slope_cumulants(name, tau, rate))
    assert slope_cumulants(name, tau, rate)[0] == pytest.approx(moments.gradient_mean(name, tau), rel=1e-9)
    assert slope_cumulants(name, tau, rate)[1] == pytest.approx(moments.gradient_variance(name, tau, rate), rel=1e-9)
    product = (z - cumulants(name, tau, rate)[0]) * (slope - moments.gradient_mean(name, tau))
    testing.assert_mean(product, moments.count_gradient_covariance(name, tau))


@pytest.mark.parametrize("rate", [0.05, 1.2, 3.0, 60.0])
def test_moments_hold_at_small_and_large_rates_in_float32(rate, backend):
    """On both sides of the compiled kernel's switch at two expected arrivals, and of its Poisson sampler's at ten."""
    tau = 0.5
    z, slope = samples_with_slopes(lambda r: EATPoisson(rate=r, temperature=tau), rate, 60_000, torch.float32)
    assert z.dtype == slope.dtype == torch.float32
    testing.assert_cumulants(z, cumulants("cubic", tau, rate))
    testing.assert_cumulants(slope, slope_cumulants("cubic", tau, rate))


def test_temperature_of_each_unit(backend):
    """A tensor of temperatures: each unit has the moments of its own."""
    tau = torch.tensor([0.0, 0.1, 1.0, 3.0], dtype=backend.dtype)
    z = EATPoisson(rate=torch.tensor(5.0, dtype=backend.dtype), temperature=tau).rsample((60_000,))
    for i, t in enumerate(tau.tolist()):
        testing.assert_cumulants(z[:, i], cumulants("cubic", t, 5.0))


@pytest.mark.parametrize(("name", "tau", "m"), [("sigmoid", 0.5, 9), ("cubic", 0.5, 9), ("cosine", 3.0, 12)])
def test_moments_of_algorithm_1_with_few_arrivals(name, tau, m):
    z, slope = samples_with_slopes(
        lambda r: EATPoisson(rate=r, temperature=tau, indicator=name, num_arrivals=m), 6.0, 150_000
    )
    mean = 6.0 * moments.truncated_mean_factor(name, tau, 6.0, m)
    testing.assert_mean(z, mean)
    testing.assert_mean((z - mean).square(), 6.0 * moments.truncated_variance_factor(name, tau, 6.0, m))
    testing.assert_mean(slope, moments.truncated_gradient_mean(name, tau, 6.0, m))
    with pytest.raises(AssertionError):  # M = ∞ is another law
        testing.assert_mean(z, 6.0 * moments.mean_factor(name, tau))


# --- whole laws ---


def assert_same_joint_law(a: tuple[torch.Tensor, torch.Tensor], b: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Both marginals, the product and two fixed oblique projections of (z, dz/dλ)."""
    for view in (
        lambda z, g: z,
        lambda z, g: g,
        lambda z, g: z * g,
        lambda z, g: z + 0.7 * g,
        lambda z, g: z - 1.3 * g,
    ):
        # at low temperatures most values are whole to rounding, and kernels drop weights below 1e-10
        testing.assert_same_law(view(*a).round(decimals=6), view(*b).round(decimals=6))


def algorithm_1(name: str, tau: float, rate: float, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(z, dz/dλ) with so many arrivals that none is missing."""
    half = 1.0 if name != "sigmoid" else 30.0
    m = int(stats.poisson.isf(1e-12, rate * (1 + half * tau))) + 1
    parts = [
        samples_with_slopes(
            lambda r: EATPoisson(rate=r, temperature=tau, indicator=name, num_arrivals=m), rate, min(n, 25_000)
        )
        for _ in range(max(1, n // 25_000))
    ]
    z, slope = zip(*parts, strict=True)
    return torch.cat(z), torch.cat(slope)


@pytest.mark.parametrize(
    ("name", "tau", "rate"),
    [(n, 0.5, 2.0) for n in NAMES]
    + [("cubic", 0.05, 2.0), ("cubic", 3.0, 2.0), ("linear", 1.0, 0.4), ("quintic", 2.0, 7.0)],
)
def test_window_sampler_is_algorithm_1(name, tau, rate, backend):
    n = 100_000
    short = samples_with_slopes(lambda r: EATPoisson(rate=r, temperature=tau, indicator=name), rate, n, backend.dtype)
    assert_same_joint_law(short, algorithm_1(name, tau, rate, n))


def test_joint_law_is_not_that_of_another_sampler(backend):
    """Power: another indicator, a rate 6% off, too few arrivals and a broken pairing are all seen."""
    n, tau, rate = 100_000, 0.5, 2.0
    short = samples_with_slopes(lambda r: EATPoisson(rate=r, temperature=tau), rate, n, backend.dtype)
    with pytest.raises(AssertionError):
        assert_same_joint_law(short, algorithm_1("quintic", tau, rate, n))
    with pytest.raises(AssertionError):
        assert_same_joint_law(short, algorithm_1("cubic", tau, rate * 1.06, n))
    with pytest.raises(AssertionError):
        assert_same_joint_law(
            short, samples_with_slopes(lambda r: EATPoisson(rate=r, temperature=tau, num_arrivals=5), rate, n)
        )
    with pytest.raises(AssertionError):  # right marginals, wrong pairing
        assert_same_joint_law(short, (short[0], short[1].roll(1)))


@pytest.mark.parametrize("rate", [0.4, 9.0, 11.0, 300.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cold_counts_are_poisson(rate, dtype, backend):
    """χ² of the count at τ = 0, across the switches of the Poisson sampler."""
    z = EATPoisson(rate=torch.full((100_000,), rate, dtype=dtype), temperature=0.0).rsample()
    testing.assert_frequencies(z, torch.as_tensor(stats.poisson.pmf(np.arange(int(rate + 15 * rate**0.5 + 25)), rate)))


@pytest.mark.parametrize(("name", "tau"), [("cubic", 0.5), ("sigmoid", 0.2), ("linear", 2.0)])
@pytest.mark.parametrize("num_arrivals", [None, 60])
def test_hard_counts_are_poisson_and_keep_the_relaxed_slope(name, tau, num_arrivals, backend):
    """The integer forward is exactly Poisson; its backward has the law of the relaxed one and belongs to the same arrivals."""
    rate, n = 4.0, 60_000

    def law(hard):
        return lambda r: EATPoisson(rate=r, temperature=tau, indicator=name, num_arrivals=num_arrivals, hard=hard)

    count, slope = samples_with_slopes(law(True), rate, n, backend.dtype)
    testing.assert_frequencies(count, torch.as_tensor(stats.poisson.pmf(np.arange(60), rate)))
    testing.assert_cumulants(slope, slope_cumulants(name, tau, rate))
    # Cov(N, dz/dλ) = ∫_{u > 0} f'(u)(1 - τu) du: Campbell for the pair
    u = np.linspace(0, min(1 / tau, 40.0 if name == "sigmoid" else 1.0), 200_001)
    covariance = np.trapezoid(NUMPY[name][1](u) * (1 - tau * u), u)
    testing.assert_mean((count - rate) * (slope - moments.gradient_mean(name, tau)), covariance)
    torch.manual_seed(0)
    _, soft = samples_with_slopes(law(False), rate, 1000, backend.dtype)
    torch.manual_seed(0)
    _, hard = samples_with_slopes(law(True), rate, 1000, backend.dtype)
    torch.testing.assert_close(hard, soft, rtol=1e-12, atol=1e-12)


GSM_CASES = [(0.3, 0.05), (4.0, 0.05), (4.0, 0.17), (4.0, 0.5), (4.0, 3.0), (30.0, 0.1), (30.0, 0.6)]


@pytest.mark.parametrize(("rate", "tau"), GSM_CASES)
def test_gumbel_softmax_is_algorithm_2(rate, tau, backend):
    """(z, dz/dλ) of the sampler against autograd through stored noise."""
    n, m = 60_000, int(stats.poisson.isf(1e-9, rate)) + 3
    short = samples_with_slopes(lambda r: GSMPoisson(rate=r, temperature=tau, num_categories=m), rate, n, backend.dtype)
    g = -torch.empty(m, n, dtype=torch.float64).exponential_().log()
    stored = value_and_slope(from_gumbels, torch.full((n,), rate, dtype=torch.float64), g, tau)
    assert_same_joint_law(short, stored)


def test_gumbel_softmax_is_not_another_law(backend):
    n = 60_000
    short = samples_with_slopes(lambda r: GSMPoisson(rate=r, temperature=0.5, num_categories=20), 4.0, n, backend.dtype)
    for rate, tau, m in ((4.25, 0.5, 20), (4.0, 0.6, 20), (4.0, 0.5, 8)):
        g = -torch.empty(m, n, dtype=torch.float64).exponential_().log()
        with pytest.raises(AssertionError):
            assert_same_joint_law(
                short, value_and_slope(from_gumbels, torch.full((n,), rate, dtype=torch.float64), g, tau)
            )


@pytest.mark.parametrize("tau", [0.0, 0.05, 0.5, 3.0])
@pytest.mark.parametrize(("rate", "m"), [(0.3, 6), (4.0, 25), (4.0, 5), (12.0, 8), (40.0, 110)])
def test_argmax_follows_the_truncated_pmf_at_every_temperature(rate, m, tau, backend):
    pmf = stats.poisson.pmf(np.arange(m), rate)
    q = GSMPoisson(rate=torch.full((60_000,), rate), temperature=tau, num_categories=m, hard=True)
    testing.assert_frequencies(q.rsample(), torch.as_tensor(pmf / pmf.sum()))
    if m > rate:
        simplex = GSMPoisson(rate=torch.tensor(rate), temperature=tau, num_categories=m).rsample_simplex((20_000,))
        torch.testing.assert_close(simplex.sum(-1), torch.ones(20_000))
        testing.assert_frequencies(simplex.argmax(-1), torch.as_tensor(pmf / pmf.sum()))


def test_gumbel_softmax_hard_keeps_the_relaxed_slope(backend):
    rate, tau, n = 4.0, 0.5, 60_000
    pairs = [
        samples_with_slopes(
            lambda r, h=hard: GSMPoisson(rate=r, temperature=tau, num_categories=25, hard=h), rate, n, backend.dtype
        )
        for hard in (True, False)
    ]
    testing.assert_same_law(pairs[0][1], pairs[1][1])
    torch.manual_seed(0)
    hard = samples_with_slopes(
        lambda r: GSMPoisson(rate=r, temperature=tau, num_categories=25, hard=True), rate, 500, backend.dtype
    )
    torch.manual_seed(0)
    soft = samples_with_slopes(
        lambda r: GSMPoisson(rate=r, temperature=tau, num_categories=25), rate, 500, backend.dtype
    )
    torch.testing.assert_close(hard[1], soft[1])
    assert bool(((hard[0] - soft[0]).abs() < 6).all())


def test_simplex_and_sampler_agree(backend):
    """aggregate(rsample_simplex) has the law and the slopes of rsample."""
    n, rate = 40_000, 3.0
    leaf = torch.full((n,), rate, dtype=torch.float64, requires_grad=True)
    q = GSMPoisson(rate=leaf, temperature=0.4, num_categories=20)
    z = q.aggregate(q.rsample_simplex())
    (slope,) = torch.autograd.grad(z.sum(), leaf)
    short = samples_with_slopes(
        lambda r: GSMPoisson(rate=r, temperature=0.4, num_categories=20), rate, n, backend.dtype
    )
    assert_same_joint_law(short, (z.detach(), slope))


# --- the operators ---


def test_blocks_do_not_change_the_law(monkeypatch):
    """Arrivals beyond one block, of one unit and of many, are all counted."""
    monkeypatch.setattr(operators, "kernels_for", lambda *_: None)
    monkeypatch.setattr(window, "BLOCK", 64)
    q = EATPoisson(rate=torch.tensor([500.0, 0.5, 30.0, 3.0], dtype=torch.float64), temperature=0.5)
    z = q.rsample((300,))
    testing.assert_mean(z, q.mean)
    testing.assert_mean((z - q.mean).square(), q.variance)
    gsm = GSMPoisson(rate=torch.full((5000,), 3.0, dtype=torch.float64), temperature=0.5, num_categories=15, hard=True)
    pmf = stats.poisson.pmf(np.arange(15), 3.0)
    testing.assert_frequencies(gsm.rsample(), torch.as_tensor(pmf / pmf.sum()))


def test_units_are_independent(backend):
    """No correlation between neighbours, nor between units whole blocks of the compiled kernel apart."""
    z = EATPoisson(rate=torch.full((40_000,), 5.0, dtype=backend.dtype), temperature=0.5).rsample()
    for lag in (1, 2, 8192, 16384):
        product = (z[lag:] - 5) * (z[:-lag] - 5)
        testing.assert_mean(product, 0.0)
    first, second = (EATPoisson(rate=torch.full((20_000,), 5.0), temperature=0.5).rsample() for _ in range(2))
    testing.assert_mean((first - 5) * (second - 5), 0.0)


def test_nan_never_passes_for_a_count(backend):
    """Unvalidated NaN reaches the result, or is refused by torch.poisson."""
    rate = torch.tensor([1.0, math.nan], dtype=backend.dtype)
    for law, options in ((EATPoisson, {}), (GSMPoisson, {"num_categories": 5})):
        for parameter in ("rate", "log_rate"):
            q = law(**{parameter: rate}, **options, validate_args=False)
            if backend.name == "plain" and law is EATPoisson:
                with pytest.raises(RuntimeError, match="invalid Poisson rate"):
                    q.rsample((3,))
            else:
                assert q.rsample((3,)).isnan().tolist() == [[False, True]] * 3


def test_rates_beyond_all_reason(backend):
    """A rate that no integer holds: the last category for a truncated law, a normal count for arrivals."""
    log_rate = torch.tensor([0.0, 15.0, 44.0, 60.0, 80.0], dtype=backend.dtype)
    for tau in (0.05, 0.5):
        z = GSMPoisson(log_rate=log_rate, num_categories=10, temperature=tau).rsample((20,))
        assert bool(((z >= 0) & (z <= 9)).all())
        torch.testing.assert_close(z[:, 2:], torch.full_like(z[:, 2:], 9.0))
    if backend.name != "cuda":
        q = EATPoisson(log_rate=log_rate[2:])
        torch.testing.assert_close(q.rsample() / q.mean, torch.ones(3, dtype=backend.dtype), rtol=1e-7, atol=0)


@every_indicator
@pytest.mark.parametrize("tau", [0.1, 0.5, 3.0])
@pytest.mark.parametrize("rate", [3e8, 1e13])
def test_normal_sums_over_a_full_window(name, tau, rate, backend):
    """Beyond 2^22 arrivals in a window: moments of count and slope and their covariance, at six sigma."""
    if backend.name == "cuda":
        pytest.skip("the Triton kernel draws every arrival")

    def law(r, hard=False):
        return EATPoisson(rate=r, temperature=tau, indicator=name, hard=hard)

    z, slope = samples_with_slopes(law, rate, 20_000, backend.dtype)
    testing.assert_cumulants(z, cumulants(name, tau, rate))
    testing.assert_cumulants(slope, slope_cumulants(name, tau, rate))
    product = (z - cumulants(name, tau, rate)[0]) * (slope - moments.gradient_mean(name, tau))
    testing.assert_mean(product, moments.count_gradient_covariance(name, tau))
    with pytest.raises(AssertionError):
        testing.assert_mean(product, 1.5 * moments.count_gradient_covariance(name, tau))
    n, slope = samples_with_slopes(lambda r: law(r, hard=True), rate, 20_000, backend.dtype)
    assert bool((n == n.round()).all())
    testing.assert_cumulants(n, [rate] * 4)
    testing.assert_cumulants(slope, slope_cumulants(name, tau, rate))
    # Cov(hard count, dz/dλ) = ∫_0 f'(u)(1 - τu) du
    x, w = GAUSS
    high = min(1.0 if name != "sigmoid" else 40.0, 1 / tau)
    u = high * (x + 1) / 2
    shared = float(high / 2 * w @ (NUMPY[name][1](u) * (1 - tau * u)))
    testing.assert_mean((n - rate) * (slope - moments.gradient_mean(name, tau)), shared)


@pytest.mark.parametrize("rate", [1e-30, 1e-300, 1e-320])
def test_rates_below_all_reason(rate, backend):
    """No count, and a slope that is 0 and not 0/0."""
    for law in (EATPoisson, lambda rate: GSMPoisson(rate=rate, num_categories=6, temperature=0.5)):
        z, slope = samples_with_slopes(law, rate, 50, backend.dtype)
        assert not z.round(decimals=6).any()
        assert bool(slope.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept(dtype):
    rate = torch.tensor([0.0, 2.0], dtype=dtype, requires_grad=True)
    for q in (EATPoisson(rate=rate, temperature=0.5), GSMPoisson(rate=rate, temperature=0.5, num_categories=10)):
        z = q.rsample((50,))
        assert z.dtype == dtype
        assert bool(torch.autograd.grad(z.sum(), rate)[0].isfinite().all())


def test_where_no_cache_can_be_written_the_loops_are_compiled_anew(monkeypatch):
    """An installation and a home that are both read-only: numba then raises a RuntimeError as it decorates."""
    numba = pytest.importorskip("numba")
    from hitchhiker.kernels import compiled

    def read_only(cache, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return numba.njit(**options)

    monkeypatch.setattr(compiled, "njit", read_only)
    assert compiled._compile(compiled._options)(lambda x: x + 1)(1) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_has_the_mean_of_the_law(dtype):
    """A logarithm rounded to three digits would shift a mean of 100 by about one."""
    rate = torch.full((100_000,), 100.0, dtype=dtype)
    for law in (GSMPoisson, EATPoisson):
        z = law(rate=rate, temperature=0.05).rsample().double()
        assert z.mean().item() == pytest.approx(100, abs=0.2)
    log_rate = torch.tensor(4.6, dtype=dtype)
    z = EATPoisson(log_rate=log_rate.expand(100_000)).rsample().double()
    assert z.mean().item() == pytest.approx(log_rate.double().exp().item(), abs=0.2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_noise_is_finite(dtype):
    q = GumbelSoftmaxCount(torch.tensor([0.2, 0.5, 0.3], dtype=dtype).log(), 0.3)
    z = q.rsample((100_000,))
    assert z.dtype == q.rsample_simplex().dtype == dtype
    assert bool(z.isfinite().all())
