"""Closed-form moments against high-precision quadrature, nested integrals, enumeration and direct simulation."""

import math

import mpmath as mp
import numpy as np
import pytest
import torch
from scipy import integrate, stats

from hitchhiker import moments
from hitchhiker.indicators import REGISTRY, get
from hitchhiker.truncation import paper_num_arrivals

NAMES = sorted(REGISTRY)
SIGMAS = 6.0

# the formulas once more, independently of the module, in 30 digits
FORMULA = {
    "sigmoid": lambda u: 1 / (1 + mp.exp(-u)),
    "linear": lambda u: (1 + u) / 2,
    "cubic": lambda u: (2 + 3 * u - u**3) / 4,
    "quintic": lambda u: (8 + 15 * u - 10 * u**3 + 3 * u**5) / 16,
    "cosine": lambda u: (1 + mp.sin(mp.pi * u / 2)) / 2,
}


def integral(name, tau, g, extra=0):
    """∫ g over u < 1/τ on the support of f' (plus the stretch where f = 1, weighted by ``extra``)."""
    tau = mp.mpf(tau)
    edge = 1 if name != "sigmoid" else 90
    points = [p for p in (-edge, -20, -5, -1, 0, 1, 5, 20) if -edge <= p < min(edge, 1 / tau)]
    return mp.quad(g, [*points, min(edge, 1 / tau)]) + extra * max(1 / tau - edge, 0)


# --- M = ∞ ---


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("order", [1, 2, 3, 4, 9])
def test_cumulants_by_quadrature(name, order):
    with mp.workdps(30):
        for tau in (1e-6, 0.02, 0.3, 1.0, 1.0001, 2.5, 50.0):
            truth = mp.mpf(tau) * integral(name, tau, lambda u: FORMULA[name](u) ** order, extra=1)
            assert moments.cumulant_factor(name, tau, order) == pytest.approx(float(truth), rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_high_orders_keep_their_digits(name):
    with mp.workdps(40):
        for tau in (0.3, 3.0, 50.0):
            truth = mp.mpf(tau) * integral(name, tau, lambda u: FORMULA[name](u) ** 40, extra=1)
            assert moments.cumulant_factor(name, tau, 40) == pytest.approx(float(truth), rel=1e-10)


def test_the_papers_formulas():
    for tau in (0.02, 0.1, 0.5, 1.0):
        assert moments.mean_factor("cubic", tau) == pytest.approx(1, abs=1e-14)  # Eq. 46
        assert moments.variance_factor("cubic", tau) == pytest.approx(1 - 9 * tau / 35, rel=1e-14)  # Eq. 49
    for tau in (0.1, 1.0, 7.0):
        softplus, sigmoid = math.log1p(math.exp(1 / tau)), 1 / (1 + math.exp(-1 / tau))
        assert moments.mean_factor("sigmoid", tau) == pytest.approx(tau * softplus, rel=1e-14)  # Eq. 5
        assert moments.variance_factor("sigmoid", tau) == pytest.approx(tau * (softplus - sigmoid), rel=1e-13)
        assert moments.fano_factor("sigmoid", tau) == pytest.approx(1 - sigmoid / softplus, rel=1e-13)  # Eq. 54
    for tau in (1.5, 20.0):
        b = (1 + tau) / (2 * tau)
        assert moments.mean_factor("cubic", tau) == pytest.approx(tau * b**3 * (2 - b), rel=1e-13)  # Eq. 52
        v = tau * (18 * b**5 / 5 - 4 * b**6 + 8 * b**7 / 7)
        assert moments.variance_factor("cubic", tau) == pytest.approx(v, rel=1e-13)


@pytest.mark.parametrize(
    ("tau", "row"),
    [(0.1, (1.00, 0.90, 0.90, 0.97)), (0.5, (1.06, 0.62, 0.59, 0.87)), (1.0, (1.31, 0.58, 0.44, 0.74))],
)
def test_table_2(tau, row):
    c, v = moments.mean_factor("sigmoid", tau), moments.variance_factor("sigmoid", tau)
    values = c, v, moments.fano_factor("sigmoid", tau), moments.variance_factor("cubic", tau)
    assert tuple(round(x, 2) for x in values) == row


@pytest.mark.parametrize("name", NAMES)
def test_leading_order_and_cold_formulas(name):
    f, tau = get(name), 1e-3
    assert 1 - moments.variance_factor(f, tau) == pytest.approx(f.deficit * tau, rel=1e-9)
    noise = tau * 4.0 * moments.gradient_variance(f, tau, 4.0)
    assert noise == pytest.approx(f.roughness, rel=1e-4)
    if f.is_compact:
        assert moments.mean_factor(f, [0.2, 1.0]) == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_moments_by_quadrature(name):
    with mp.workdps(30):
        f = FORMULA[name]
        for tau in (1e-6, 0.7, 2.5, 50.0):
            t = mp.mpf(tau)
            mean = integral(name, tau, lambda u, t=t: mp.diff(f, u) * (1 - t * u))
            variance = integral(name, tau, lambda u, t=t: (mp.diff(f, u) * (1 - t * u)) ** 2) / t
            covariance = integral(name, tau, lambda u, t=t: f(u) * mp.diff(f, u) * (1 - t * u))
            assert moments.gradient_mean(name, tau) == pytest.approx(float(mean), rel=1e-12)
            assert moments.gradient_variance(name, tau, 1.0) == pytest.approx(float(variance), rel=1e-12)
            assert moments.count_gradient_covariance(name, tau) == pytest.approx(float(covariance), rel=1e-12)
    assert moments.gradient_variance(name, 0.3, 5.0) == pytest.approx(moments.gradient_variance(name, 0.3, 1.0) / 5)


def arrivals(rng, rate, stop, n):
    """(sample index, time) of n Poisson processes of this rate on [0, stop]."""
    numbers = rng.poisson(rate * stop, n)
    return np.repeat(np.arange(n), numbers), rng.uniform(0, stop, numbers.sum())


def z_scores(x, k1, k2, k4):
    """How many exact standard errors the sample mean and variance are off."""
    n = x.size
    return (x.mean() - k1) / math.sqrt(k2 / n), (np.mean((x - k1) ** 2) - k2) / math.sqrt((k4 + 2 * k2**2) / n)


@pytest.mark.parametrize("name", ["sigmoid", "linear", "cubic", "cosine"])
@pytest.mark.parametrize("tau", [0.4, 1.7])
def test_by_simulating_the_process(name, tau, seed):
    """Many Poisson processes: z and dz/dλ have the moments above; a 2% error (sigmoid: 3%) would be seen."""
    f = get(name)
    lam, edge, n, wrong = (3.0, 1.0, 800_000, 1.02) if f.is_compact else (1.0, 18.0, 400_000, 1.03)
    unit, t = arrivals(np.random.default_rng(seed), lam, 1 + tau * edge, n)
    u = torch.as_tensor((1 - t) / tau)
    z = np.bincount(unit, f(u).numpy(), n)
    slope = np.bincount(unit, (f.derivative(u).numpy() * t / tau) / lam, n)

    k = [lam * moments.cumulant_factor(f, tau, order) for order in (1, 2, 4)]
    assert all(abs(score) < SIGMAS for score in z_scores(z, *k))
    assert abs(z_scores(z, wrong * k[0], *k[1:])[0]) > SIGMAS
    assert abs(z_scores(z, k[0], wrong * k[1], k[2])[1]) > SIGMAS

    kappa4 = integrate.quad(
        lambda s: float(f.derivative((1 - s) / tau)) ** 4 * s**4, max(0, 1 - edge * tau), 1 + edge * tau,
        points=[0.5, 1.0, 1 + tau], limit=200,
    )[0] / (tau**4 * lam**3)  # fmt: skip
    g = moments.gradient_mean(f, tau), moments.gradient_variance(f, tau, lam), kappa4
    assert all(abs(score) < SIGMAS for score in z_scores(slope, *g))
    assert abs(z_scores(slope, wrong * g[0], *g[1:])[0]) > SIGMAS
    assert abs(z_scores(slope, g[0], wrong * g[1], g[2])[1]) > SIGMAS

    products = (z - k[0]) * (slope - g[0])
    covariance = moments.count_gradient_covariance(f, tau)
    assert abs(products.mean() - covariance) < SIGMAS * products.std() / math.sqrt(n)


# --- Algorithm 1 with M arrivals ---


def test_finite_m_reference_values():
    """What Figure 1 shows at λ = 100, τ = 0.5 is the truncation at M = 132, not the indicators."""
    values = {
        "sigmoid": (0.8488, 0.1535, 0.396),
        "cubic": (0.9892, 0.6737, 0.854),
    }
    for name, (mean, variance, gradient) in values.items():
        assert moments.truncated_mean_factor(name, 0.5, 100.0, 132) == pytest.approx(mean, abs=5e-5)
        assert moments.truncated_variance_factor(name, 0.5, 100.0, 132) == pytest.approx(variance, abs=5e-5)
        assert moments.truncated_gradient_mean(name, 0.5, 100.0, 132) == pytest.approx(gradient, abs=5e-4)
    assert 1 - moments.truncated_mean_factor("cubic", 0.5, 100.0, 189) == pytest.approx(1.9e-7, rel=0.02)
    assert moments.truncated_variance_factor("cubic", 0.5, 100.0, 189) == pytest.approx(0.871415, abs=5e-7)
    rates = [0.1, 2.0, 5.0, 10.0, 20.0, 50.0]
    found = [moments.truncated_mean_factor("sigmoid", 0.5, lam, paper_num_arrivals(lam)) for lam in rates]
    assert found == pytest.approx([1.058, 1.051, 1.022, 0.992, 0.950, 0.890], abs=6e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tau", [0.3, 1.0, 4.0])
def test_one_and_two_arrivals_by_nested_integrals(name, tau):
    """M = 1 is one integral over an exponential, M = 2 two; no Poisson process, no Campbell."""
    f, lam = get(name), 1.7
    x, w = np.polynomial.legendre.leggauss(80)
    edge = 1 + tau * (1 if f.is_compact else 40)
    knots = np.unique(np.clip([0, 1 - tau, 1, 1 + tau, 1 + 4 * tau, 1 + 12 * tau, edge], 0, edge))

    def nodes(a):
        """Gauss nodes on [a, edge], piece by piece; beyond ``edge`` f is 0."""
        k = np.concatenate([[a], knots[knots > a]])
        half = np.diff(k)[:, None] / 2
        return (k[:-1, None] + half * (1 + x)).ravel(), (half * w).ravel()

    def value(t):
        return f(torch.as_tensor((1 - t) / tau)).numpy()

    t1, w1 = nodes(0.0)
    f1, p1 = value(t1), lam * np.exp(-lam * t1)
    one, one2 = w1 @ (p1 * f1), w1 @ (p1 * f1**2)
    assert moments.truncated_mean_factor(f, tau, lam, 1) * lam == pytest.approx(one, rel=1e-10)
    assert moments.truncated_variance_factor(f, tau, lam, 1) * lam == pytest.approx(one2 - one**2, rel=1e-10)

    second = []  # E[f(t2) | t1], E[f(t2)² | t1]
    for a in t1:
        t2, w2 = nodes(a)
        p2 = w2 * lam * np.exp(-lam * (t2 - a))
        second.append((p2 @ value(t2), p2 @ value(t2) ** 2))
    m2, s2 = np.array(second).T
    mean = w1 @ (p1 * (f1 + m2))
    square = w1 @ (p1 * (f1**2 + 2 * f1 * m2 + s2))
    assert moments.truncated_mean_factor(f, tau, lam, 2) * lam == pytest.approx(mean, rel=1e-10)
    assert moments.truncated_variance_factor(f, tau, lam, 2) * lam == pytest.approx(square - mean**2, rel=1e-9)


@pytest.mark.parametrize(("lam", "m"), [(0.3, 1), (2.0, 3), (20.0, 25), (20.0, 35)])
def test_at_zero_temperature_it_is_the_clipped_count(lam, m):
    n = np.arange(400)
    p, clipped = stats.poisson.pmf(n, lam), np.minimum(n, m)
    mean = p @ clipped
    variance = p @ (clipped - mean) ** 2
    assert moments.truncated_mean_factor("cubic", 0.0, lam, m) * lam == pytest.approx(mean, rel=1e-12)
    assert moments.truncated_variance_factor("sigmoid", 0.0, lam, m) * lam == pytest.approx(variance, rel=1e-11)


@pytest.mark.parametrize("name", ["sigmoid", "cubic"])
@pytest.mark.parametrize(("lam", "tau", "m"), [(20.0, 0.5, 24), (3.0, 1.5, 6), (100.0, 0.5, 132)])
def test_algorithm_1_by_simulation(name, lam, tau, m, seed):
    """Algorithm 1 as printed, 60,000 draws; one arrival more or less would be seen in mean or variance."""
    rng, f, n = np.random.default_rng(seed), get(name), 60_000
    t = np.cumsum(rng.exponential(1 / lam, (n, m)), axis=1)
    u = torch.as_tensor((1 - t) / tau)
    z = f(u).sum(1).numpy()
    slope = (f.derivative(u).numpy() * t).sum(1) / (tau * lam)
    mean, spread = z.mean(), z.std()
    fourth = np.mean((z - mean) ** 4)
    se_mean, se_variance = spread / math.sqrt(n), math.sqrt((fourth - spread**4) / n)

    def scores(arrivals):
        at = (f, tau, lam, arrivals)
        return (
            (mean - lam * moments.truncated_mean_factor(*at)) / se_mean,
            (spread**2 - lam * moments.truncated_variance_factor(*at)) / se_variance,
            (slope.mean() - moments.truncated_gradient_mean(*at)) * math.sqrt(n) / slope.std(),
        )

    assert max(map(abs, scores(m))) < SIGMAS
    assert max(map(abs, scores(m + 1))) > SIGMAS
    assert max(map(abs, scores(m - 1))) > SIGMAS


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("lam", "tau", "m"), [(20.0, 0.5, 35), (0.5, 2.0, 3), (1e4, 0.1, 10_500)])
def test_truncated_gradient_is_the_means_derivative(name, lam, tau, m):
    h = 1e-4 * lam
    points = [lam + k * h for k in (-2, -1, 1, 2)]
    e = [x * moments.truncated_mean_factor(name, tau, x, m) for x in points]
    derivative = (e[0] - 8 * e[1] + 8 * e[2] - e[3]) / (12 * h)
    assert moments.truncated_gradient_mean(name, tau, lam, m) == pytest.approx(derivative, rel=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_many_arrivals_are_all_of_them(name):
    for lam, tau in ((1e-8, 0.5), (3.0, 1e-6), (3.0, 50.0), (1000.0, 0.2)):
        half = 1 if get(name).is_compact else 38
        m = int(lam * (1 + half * tau) * 1.5 + 40 * math.sqrt(lam * (1 + half * tau)) + 60)
        at = (name, tau, lam, m)
        assert moments.truncated_mean_factor(*at) == pytest.approx(moments.mean_factor(name, tau), rel=1e-10)
        assert moments.truncated_variance_factor(*at) == pytest.approx(moments.variance_factor(name, tau), rel=1e-9)
        assert moments.truncated_gradient_mean(*at) == pytest.approx(moments.gradient_mean(name, tau), rel=1e-10)


def test_a_million_counts():
    """At λ = 10⁶ the O(λ²) terms of the variance cancel to 10⁻⁸ or better."""
    v = moments.truncated_variance_factor("cubic", 0.5, 1e6, 1_520_000)
    assert v == pytest.approx(moments.variance_factor("cubic", 0.5), rel=1e-8)


def test_zero_rate_gives_the_limit():
    assert moments.truncated_mean_factor("sigmoid", 0.5, 0.0, 1) == pytest.approx(moments.mean_factor("sigmoid", 0.5))
    assert moments.truncated_variance_factor("cubic", 0.5, 0.0, 1) == pytest.approx(1 - 9 / 70)


# --- the negative binomial of Algorithm 3 ---


def test_negative_binomial_by_conditioning_on_the_rate():
    """Law of total variance, with the Gamma expectation done numerically instead of in closed form."""
    r, mu, tau = 2.5, 0.3, 1.4
    law = stats.gamma(r, scale=(1 - mu) / mu)
    x, w = np.polynomial.legendre.leggauss(200)
    q = (1 + x) / 2
    lam = law.ppf(q**2 * (3 - 2 * q))  # a smooth change of variable tames the tail
    weight = w / 2 * 6 * q * (1 - q)
    for name in NAMES:
        c, v = moments.mean_factor(name, tau), moments.variance_factor(name, tau)
        mean = weight @ (c * lam)
        variance = weight @ (v * lam + (c * lam) ** 2) - mean**2
        assert moments.negative_binomial_mean(name, tau, r, mu) == pytest.approx(mean, rel=1e-6)
        assert moments.negative_binomial_variance(name, tau, r, mu) == pytest.approx(variance, rel=1e-5)
    assert moments.negative_binomial_mean("cubic", 0.5, 2.0, 0.25) == pytest.approx(6.0)
    hard = moments.negative_binomial_variance("cubic", 0.0, [1.0, 2.0], 0.25)
    assert hard == pytest.approx(stats.nbinom.var([1.0, 2.0], 0.25))


# --- arguments ---


def test_shapes_and_types():
    taus = np.array([[0.0, 0.1, 0.5], [1.0, 2.0, 50.0]])
    c = moments.mean_factor("sigmoid", taus)
    assert c.shape == taus.shape
    assert c.dtype == np.float64
    assert c[0, 0] == 1.0
    assert isinstance(moments.mean_factor("cubic", torch.tensor(0.5)), float)
    assert moments.variance_factor("cubic", torch.tensor([0.1, 0.5], requires_grad=True)).shape == (2,)
    both = moments.truncated_mean_factor("cubic", taus[:, :1], [1.0, 2.0, 3.0], 5)
    assert both.shape == (2, 3)
    assert both[1, 2] == moments.truncated_mean_factor("cubic", 1.0, 3.0, 5)
    assert moments.gradient_variance("cubic", 0.5, torch.tensor([1.0, 4.0])).shape == (2,)
    assert moments.mean_factor("cubic", []).shape == (0,)


@pytest.mark.parametrize("order", [1, 2, 3, 7])
@pytest.mark.parametrize("name", NAMES)
def test_zero_temperature_is_poisson(name, order):
    assert moments.cumulant_factor(name, 0.0, order) == 1.0
    assert moments.cumulant_factor(name, 1e-6, order) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: moments.mean_factor("cubic", -0.1), r"temperature must be >= 0 and finite, got -0\.1"),
        (lambda: moments.mean_factor("cubic", math.nan), r"temperature must be >= 0 and finite, got nan"),
        (lambda: moments.mean_factor("cubic", torch.tensor([0.1, math.inf])), "temperature must be .* got inf"),
        (lambda: moments.mean_factor("cubic", 1j), "temperature must be real"),
        (lambda: moments.mean_factor("cube", 0.1), "indicator must be one of"),
        (lambda: moments.cumulant_factor("cubic", 0.1, 0), "order must be an integer >= 1, got 0"),
        (lambda: moments.cumulant_factor("cubic", 0.1, 1.5), r"order must be an integer >= 1, got 1\.5"),
        (lambda: moments.gradient_mean("cubic", 0.0), "temperature must be > 0"),
        (lambda: moments.gradient_variance("cubic", 0.1, 0.0), "rate must be > 0"),
        (lambda: moments.truncated_mean_factor("cubic", 0.1, -1.0, 3), "rate must be >= 0"),
        (lambda: moments.truncated_mean_factor("cubic", 0.1, 1.0, 0), "num_arrivals must be an integer >= 1"),
        (lambda: moments.truncated_variance_factor("cubic", 0.1, 1.0, 2.5), "num_arrivals must be an integer"),
        (lambda: moments.negative_binomial_mean("cubic", 0.1, 0.0, 0.5), "total_count must be > 0"),
        (lambda: moments.negative_binomial_mean("cubic", 0.1, 1.0, 1.0), r"probs must be between 0 and 1, got 1\.0"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
