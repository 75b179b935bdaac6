"""Every estimator against exact enumeration: unbiased where it says so, its stated bias where it does not."""

from __future__ import annotations

import dataclasses
import itertools
import math
from functools import partial

import pytest
import torch
from laws import without_shape_checks
from torch.distributions import Poisson

import hitchhiker as hh
from hitchhiker import EATPoisson, GSMPoisson, GumbelSoftmaxCount, moments, testing
from hitchhiker.estimators import (
    MovingAverage,
    difference,
    exact,
    gradient_samples,
    moment_matched,
    pathwise,
    relax,
    score_function,
    straight_through,
)
from hitchhiker.linear_decoder import SquaredError, gradient

F64 = torch.float64
RATES = [0.3, 2.0, 7.0]
N = 100_000

# the seven functions of H.1 (z²/λ apart, below), and what every estimator must get right first
INTEGRANDS = {
    "constant": lambda z: torch.full_like(z, 3.0),
    "linear": lambda z: 2 * z + 1,
    "quadratic": lambda z: z * z - 3 * z,
    "z": lambda z: z,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "power": lambda z: z**1.5 - 2 * z,
    "cosine": lambda z: z.cos().square(),
    "sigmoid": torch.sigmoid,
}
QUADRATIC = ["constant", "linear", "quadratic", "z", "square"]
SMOOTH = [name for name in INTEGRANDS if name != "sqrt"]  # a finite slope at 0
every_rate = pytest.mark.parametrize("rate", RATES)
integrands = partial(pytest.mark.parametrize, "name")


def expectation(g, rate: float) -> float:
    """E g(N) for N ~ Poisson(rate), by enumeration."""
    k = torch.arange(200, dtype=F64)
    return float((Poisson(torch.tensor(rate, dtype=F64)).log_prob(k).exp() * g(k)).sum())


def exact_gradient(f, rate: float) -> float:
    """d/dλ E f(N), by enumeration of Σ f(k) d/dλ pmf(k): nothing that an estimator uses."""
    return expectation(lambda k: f(k) * (k / rate - 1), rate)


def derivative(f, k: torch.Tensor, order: int = 1) -> torch.Tensor:
    k = k.clone().requires_grad_()
    value = f(k)
    for _ in range(order):
        if not value.requires_grad:
            return torch.zeros_like(k)
        (value,) = torch.autograd.grad(value.sum(), k, create_graph=True, materialize_grads=True)
    return value.detach()


def estimates(estimator, f, rate: float, n: int = N, num_samples: int = 1, law=EATPoisson, **options):
    """n independent (surrogate, gradient) pairs: one elementwise problem of n equal rates."""
    leaf = torch.full((n,), rate, dtype=F64, requires_grad=True)
    surrogate = estimator(f, law(rate=leaf, **options), num_samples)
    assert surrogate.shape == (n,)
    (slope,) = torch.autograd.grad(surrogate.sum(), leaf)
    return surrogate.detach(), slope


def assert_mean(samples: torch.Tensor, truth) -> None:
    """At six sigma; an estimate without noise must be right to rounding."""
    truth = torch.as_tensor(truth, dtype=F64)
    noisy = samples.std(dim=0) > 1e-10
    torch.testing.assert_close(
        torch.where(noisy, 0.0, samples.mean(dim=0) - truth), torch.zeros_like(samples[0]), rtol=0, atol=1e-9
    )
    if noisy.any():
        testing.assert_mean(samples[..., noisy], truth.expand(samples.shape[1:])[noisy])


class Frozen(EATPoisson):
    """A Poisson law whose next sample is given, so that expectations over samples can be enumerated."""

    frozen: torch.Tensor

    def sample(self, sample_shape=()):
        assert self.frozen.shape == (*sample_shape, *self.batch_shape)
        return self.frozen.clone()


def enumerated_gradient(estimator, f, rates: list[float], num_samples: int, top: int) -> torch.Tensor:
    """The exact expectation of a gradient estimate, over all samples with counts up to ``top``."""
    shape = (num_samples, len(rates))
    rate = torch.tensor(rates, dtype=F64)
    log_pmf = Poisson(rate).log_prob(torch.arange(top + 1, dtype=F64)[:, None])
    total = torch.zeros(len(rates), dtype=F64)
    for counts in itertools.product(range(top + 1), repeat=num_samples * len(rates)):
        leaf = rate.clone().requires_grad_()
        q = Frozen(rate=leaf, validate_args=False)
        q.frozen = torch.tensor(counts, dtype=F64).view(shape)
        (slope,) = torch.autograd.grad(estimator(f, q, num_samples).sum(), leaf)
        total += slope * log_pmf.gather(0, q.frozen.long()).sum().exp()
    return total


# --- unbiased for every integrand ---

UNBIASED = {
    "difference": (difference, 1),
    "score": (score_function, 1),
    "score, leave one out": (partial(score_function, baseline="leave_one_out"), 4),
    "score, leave other items out": (partial(score_function, baseline="leave_one_out"), 1),
}


@pytest.mark.parametrize("estimator", UNBIASED)
@integrands(list(INTEGRANDS))
@every_rate
def test_unbiased_for_every_integrand(estimator, name, rate):
    function, num_samples = UNBIASED[estimator]
    f = INTEGRANDS[name]
    value, slope = estimates(function, f, rate, num_samples=num_samples)
    assert_mean(value, expectation(f, rate))
    assert_mean(slope, exact_gradient(f, rate))


@integrands(list(INTEGRANDS))
@every_rate
def test_exact_is_exact(name, rate):
    for dtype, tolerance in ((F64, 1e-11), (torch.float32, 2e-6)):
        leaf = torch.tensor(rate, dtype=dtype, requires_grad=True)
        value = exact(INTEGRANDS[name], EATPoisson(rate=leaf))
        (slope,) = torch.autograd.grad(value, leaf)
        assert value.dtype == slope.dtype == dtype
        scale = 1 + expectation(lambda k: INTEGRANDS[name](k).abs(), rate)
        assert value.item() == pytest.approx(expectation(INTEGRANDS[name], rate), abs=tolerance * scale)
        assert float(slope) == pytest.approx(exact_gradient(INTEGRANDS[name], rate), abs=tolerance * scale * 10)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_exact_at_a_large_rate_and_at_zero(dtype):
    """E N² = λ + λ², also where a float32 log-pmf would be a difference of numbers near 10⁴; one-sided at λ = 0."""
    rate = torch.tensor([0.0, 1e-8, 3.0, 1000.0], dtype=dtype, requires_grad=True)
    value = exact(torch.square, EATPoisson(rate=rate))
    (slope,) = torch.autograd.grad(value.sum(), rate)
    torch.testing.assert_close(value, (rate + rate**2).detach(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(slope[1:], (1 + 2 * rate[1:]).detach(), rtol=1e-6, atol=1e-9)


def test_difference_at_rate_zero():
    """Where no sample ever fires, the difference still has the one-sided derivative f(1) - f(0)."""
    value, slope = estimates(difference, lambda z: (z + 1) ** 2, 0.0, n=10)
    assert value.tolist() == [1.0] * 10
    assert slope.tolist() == [3.0] * 10


# --- unbiased for quadratic integrands ---


@integrands(QUADRATIC)
@every_rate
@pytest.mark.parametrize(
    ("indicator", "temperature"), [("cubic", 0.1), ("cubic", 1.0), ("linear", 0.7), ("cosine", 1.0)]
)
def test_moment_matched_is_unbiased_for_quadratics(name, rate, indicator, temperature):
    f = INTEGRANDS[name]
    value, slope = estimates(moment_matched, f, rate, indicator=indicator, temperature=temperature)
    assert_mean(value, expectation(f, rate))
    assert_mean(slope, exact_gradient(f, rate))


@integrands(QUADRATIC)
@every_rate
def test_midpoint_and_curvature_are_unbiased_for_quadratics(name, rate):
    f = INTEGRANDS[name]
    second = 2.0 if name in ("quadratic", "square") else 0.0
    for estimator in (
        partial(straight_through, correction="midpoint"),
        partial(straight_through, correction="midpoint", curvature=second),
        partial(difference, curvature=second),
    ):
        value, slope = estimates(estimator, f, rate)
        assert_mean(value, expectation(f, rate))
        assert_mean(slope, exact_gradient(f, rate))


# --- biased, by what they state ---


@integrands(SMOOTH)
@every_rate
def test_straight_through_estimates_the_mean_slope(name, rate):
    f = INTEGRANDS[name]
    value, slope = estimates(straight_through, f, rate)
    assert_mean(value, expectation(f, rate))
    assert_mean(slope, expectation(partial(derivative, f), rate))


@integrands([name for name in SMOOTH if name != "power"])  # z^1.5 has no second derivative at 0
@every_rate
def test_midpoint_adds_half_the_mean_curvature(name, rate):
    f = INTEGRANDS[name]
    _, slope = estimates(partial(straight_through, correction="midpoint"), f, rate)
    assert_mean(slope, expectation(lambda k: derivative(f, k) + derivative(f, k, 2) / 2, rate))


def test_biases_that_are_stated_are_seen():
    """Power: at this size a straight-through bias of 1 in 5 and a pathwise one of 4% are far from the truth."""
    _, slope = estimates(straight_through, torch.square, 2.0)
    with pytest.raises(AssertionError):
        assert_mean(slope, exact_gradient(torch.square, 2.0))
    _, slope = estimates(pathwise, torch.square, 2.0, temperature=0.8)
    with pytest.raises(AssertionError):
        assert_mean(slope, exact_gradient(torch.square, 2.0))
    with pytest.raises(AssertionError):  # and 1% of the rate
        assert_mean(estimates(difference, torch.square, 2.0, 4 * N)[1], exact_gradient(torch.square, 2.02))


@every_rate
@pytest.mark.parametrize(
    ("indicator", "temperature"), [("cubic", 0.1), ("cubic", 1.0), ("cubic", 2.0), ("sigmoid", 0.5)]
)
def test_pathwise_moments_of_the_relaxed_law(rate, indicator, temperature):
    """d/dλ of E z = cλ and of E z² = vλ + c²λ²."""
    c, v = (moments.cumulant_factor(indicator, temperature, k) for k in (1, 2))
    for f, value, slope in (
        (lambda z: 2 * z + 1, 2 * c * rate + 1, 2 * c),
        (torch.square, v * rate + (c * rate) ** 2, v + 2 * c * c * rate),
        (lambda z: torch.full_like(z, 3.0), 3.0, 0.0),
    ):
        found = estimates(pathwise, f, rate, indicator=indicator, temperature=temperature)
        assert_mean(found[0], value)
        assert_mean(found[1], slope)


@integrands(["power", "cosine", "sigmoid"])
@pytest.mark.parametrize("temperature", [0.2, 1.0, 2.0])
def test_pathwise_is_a_difference_over_arrivals(name, temperature):
    """E[F'(z) dz/dλ] = ∫_0^∞ E[F(z + f((1-t)/τ)) - F(z)] dt (Mecke), t uniform over [0, 1 + τ]."""
    f, rate, n = INTEGRANDS[name], 2.0, 150_000
    _, slope = estimates(pathwise, f, rate, n, temperature=temperature)
    z = EATPoisson(rate=torch.full((n,), rate, dtype=F64), temperature=temperature).rsample()
    t = (1 + temperature) * torch.rand(n, dtype=F64)
    jump = (1 + temperature) * (f(z + hh.indicators.get("cubic")((1 - t) / temperature)) - f(z))
    testing.assert_mean(slope - jump, 0.0)


@every_rate
def test_pathwise_through_a_square_root_is_not_finite(rate):
    """P(z = 0) > 0, where √z has an infinite slope: autograd's inf · 0. The docstring warns of it."""
    _, slope = estimates(pathwise, torch.sqrt, rate, temperature=0.1)
    silent = slope.isnan()
    chance = math.exp(-rate * 1.1)
    assert abs(silent.double().mean() - chance) < 6 * math.sqrt(chance / N)
    assert slope[~silent].isfinite().all()


@every_rate
def test_an_integrand_that_depends_on_the_rate(rate):
    """z²/λ of H.1: E = 1 + λ, so the gradient is 1. The estimators add the slope in λ at fixed z by themselves."""
    c, v = (moments.cumulant_factor("sigmoid", 0.5, k) for k in (1, 2))
    for estimator, options, truth in (
        (difference, {}, 1.0),
        (partial(score_function, baseline="leave_one_out"), {}, 1.0),
        (partial(straight_through, correction="midpoint"), {}, 1.0),
        (straight_through, {}, 1 - 1 / rate),
        (partial(moment_matched), {"temperature": 1.0}, 1.0),
        (pathwise, {"temperature": 0.5}, 1.0),
        (pathwise, {"temperature": 0.5, "indicator": "sigmoid"}, c * c),
    ):
        leaf = torch.full((N,), rate, dtype=F64, requires_grad=True)
        surrogate = estimator(lambda z, leaf=leaf: z * z / leaf, EATPoisson(rate=leaf, **options), 1)
        assert_mean(torch.autograd.grad(surrogate.sum(), leaf)[0], truth)
    leaf = torch.tensor(rate, dtype=F64, requires_grad=True)
    value = exact(lambda z: z * z / leaf, EATPoisson(rate=leaf))
    assert float(torch.autograd.grad(value, leaf)[0]) == pytest.approx(1.0, rel=1e-10)
    assert c * c > 1.05  # the cases above are not all the same
    assert v < 1


# --- baselines, by enumeration ---


@pytest.mark.parametrize(
    ("rates", "num_samples", "top"), [([0.6], 1, 18), ([0.6, 1.1], 1, 18), ([0.6], 2, 18), ([0.3], 3, 8)]
)
def test_baselines_shrink_as_they_say(rates, num_samples, top):
    """Own loss in the baseline: (1 - 1/n) of the gradient, n losses in all. Left out: all of it."""

    def f(z):
        return z * z + 2

    truth = torch.tensor([exact_gradient(f, r) for r in rates], dtype=F64)
    n = num_samples * len(rates)
    close = partial(torch.testing.assert_close, rtol=1e-6, atol=1e-6)
    close(enumerated_gradient(score_function, f, rates, num_samples, top), truth)
    batch_mean = partial(score_function, baseline="batch_mean")
    close(enumerated_gradient(batch_mean, f, rates, num_samples, top), (1 - 1 / n) * truth)
    if n > 1:
        leave_one_out = partial(score_function, baseline="leave_one_out")
        close(enumerated_gradient(leave_one_out, f, rates, num_samples, top), truth)

    def fixed_average(f, q, num_samples):
        baseline = MovingAverage()
        baseline.update(torch.tensor(1.7))
        return score_function(f, q, num_samples, baseline=baseline)

    close(enumerated_gradient(fixed_average, f, rates, num_samples, top), truth)


def test_moving_average_is_of_earlier_losses_only():
    average = MovingAverage(weight=0.25)
    assert average.value == 0.0
    for loss, mean in ((4.0, 4.0), (8.0, (0.75 * 4 + 8) / 1.75), (0.0, (0.5625 * 4 + 0.75 * 8) / (0.5625 + 0.75 + 1))):
        average.update(torch.tensor([loss - 1, loss + 1]))
        assert float(average.value) == pytest.approx(mean)


def test_moving_average_by_name_belongs_to_the_integrand():
    """The second call with the same f has a baseline, the first and one with another f have none."""
    q = EATPoisson(rate=torch.full((2000,), 2.0, dtype=F64, requires_grad=True))

    def noise(f):
        surrogate = score_function(f, q, 1, baseline="moving_average")
        return float(torch.autograd.grad(surrogate.sum(), q.parameter)[0].std())

    def f(z):
        return z + 100

    assert noise(f) > 20 * noise(f)
    assert noise(lambda z: z + 100) > 20 * noise(f)


@integrands(["quadratic", "cosine"])
def test_baselines_only_lower_the_noise(name):
    f, rate = (lambda z: INTEGRANDS[name](z) + 50), 2.0
    plain = estimates(score_function, f, rate, 20_000, num_samples=4)[1]
    for baseline in ("leave_one_out", "batch_mean"):
        other = estimates(partial(score_function, baseline=baseline), f, rate, 20_000, num_samples=4)[1]
        assert other.std() < 0.4 * plain.std()


# --- the linear decoder, whose gradient is known ---

K, D = 3, 4
PHI = torch.tensor([[0.6, -0.3, 0.2], [0.1, 0.8, -0.5], [-0.4, 0.2, 0.9], [0.3, 0.3, 0.1]], dtype=F64)
X = torch.tensor([1.0, -0.5, 2.0, 0.3], dtype=F64)
LOG_RATE = torch.tensor([-0.5, 0.7, 0.2], dtype=F64)
TRUTH = gradient(X, PHI, LOG_RATE)


class BlackBox:
    """The same squared error without its closed forms."""

    def __init__(self, x, decoder):
        self.f = SquaredError(x, decoder)

    def __call__(self, z):
        return self.f(z)


def decoder_gradients(estimator, n=N, num_samples=1, integrand=SquaredError, **options):
    leaf = LOG_RATE.expand(n, K).clone().requires_grad_()
    surrogate = estimator(integrand(X.expand(n, D), PHI), EATPoisson(log_rate=leaf, **options), num_samples)
    assert surrogate.shape == (n,)
    return surrogate.detach(), torch.autograd.grad(surrogate.sum(), leaf)[0]


@pytest.mark.parametrize(
    ("estimator", "integrand", "num_samples"),
    [
        (difference, SquaredError, 1),
        (difference, BlackBox, 1),
        (partial(difference, coordinates=7), BlackBox, 1),
        (score_function, BlackBox, 1),
        (partial(score_function, baseline="leave_one_out"), BlackBox, 3),
        (partial(straight_through, correction="midpoint"), SquaredError, 1),
        (partial(straight_through, correction="midpoint"), BlackBox, 1),
        (partial(straight_through, correction="midpoint", num_probes=3), BlackBox, 2),
    ],
)
def test_unbiased_on_a_linear_decoder(estimator, integrand, num_samples):
    value, slope = decoder_gradients(estimator, integrand=integrand, num_samples=num_samples, n=60_000)
    assert_mean(slope, TRUTH)
    assert_mean(value, float(hh.linear_decoder.reconstruction_loss(X, PHI, LOG_RATE)))


@pytest.mark.parametrize("integrand", [SquaredError, BlackBox])
@pytest.mark.parametrize("coordinates", [1, 2])
def test_random_coordinates_are_unbiased(coordinates, integrand):
    """All items of a call share the coordinates drawn, so calls are what is averaged; the others get exactly 0."""
    estimator = partial(difference, coordinates=coordinates)
    calls = torch.stack([decoder_gradients(estimator, n=50, integrand=integrand)[1].mean(0) for _ in range(600)])
    assert_mean(calls, TRUTH)
    assert bool(((calls != 0).sum(1) == coordinates).all())


@pytest.mark.parametrize(("indicator", "temperature"), [("cubic", 0.3), ("cubic", 1.0), ("quintic", 0.8)])
def test_moment_matched_on_a_linear_decoder(indicator, temperature):
    value, slope = decoder_gradients(moment_matched, indicator=indicator, temperature=temperature)
    assert_mean(slope, TRUTH)
    assert_mean(value, float(hh.linear_decoder.reconstruction_loss(X, PHI, LOG_RATE)))


def test_exact_on_a_linear_decoder():
    value, slope = decoder_gradients(exact, n=2)
    torch.testing.assert_close(slope, TRUTH.expand(2, K), rtol=1e-12, atol=0)
    truth = hh.linear_decoder.reconstruction_loss(X, PHI, LOG_RATE)
    torch.testing.assert_close(value, truth.expand(2), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("indicator", "temperature"), [("cubic", 0.2), ("cubic", 1.0), ("cubic", 2.0), ("sigmoid", 0.5), ("linear", 1.0)]
)
def test_pathwise_bias_on_a_linear_decoder(indicator, temperature):
    """b = λ ⊙ (2(c² - 1)Gλ - 2(c - 1)Φᵀx + (v - 1)d); for the cubic and τ <= 1 that is -(9τ/35) λ ⊙ d."""
    rate, d = LOG_RATE.exp(), PHI.square().sum(0)
    c, v = (moments.cumulant_factor(indicator, temperature, k) for k in (1, 2))
    bias = rate * (2 * (c * c - 1) * (PHI.T @ PHI @ rate) - 2 * (c - 1) * PHI.T @ X + (v - 1) * d)
    if indicator == "cubic" and temperature <= 1:
        torch.testing.assert_close(bias, -(9 * temperature / 35) * rate * d, rtol=1e-12, atol=1e-14)
    _, slope = decoder_gradients(pathwise, indicator=indicator, temperature=temperature)
    assert_mean(slope, TRUTH + bias)
    with pytest.raises(AssertionError):
        assert_mean(slope, TRUTH if temperature > 0.5 else TRUTH - bias)


def test_straight_through_bias_on_a_linear_decoder():
    _, slope = decoder_gradients(straight_through)
    assert_mean(slope, TRUTH - LOG_RATE.exp() * PHI.square().sum(0))


def test_squared_error_expectation_by_enumeration():
    """K = 2: E‖x - Φz‖² over all pairs of counts, and its gradients in rate and decoder."""
    rate = torch.tensor([[0.7, 2.5], [1.5, 0.0]], dtype=F64)
    x, phi = torch.randn(2, 3, dtype=F64), torch.randn(3, 2, dtype=F64, requires_grad=True)
    k = torch.arange(40, dtype=F64)
    pairs = torch.cartesian_prod(k, k)[:, None, :].expand(-1, 2, 2)
    weight = Poisson(rate, validate_args=False).log_prob(pairs).nan_to_num(nan=0.0).sum(-1).exp()
    f = SquaredError(x, phi)
    brute = (weight * f(pairs)).sum(0)
    closed = f.expectation(EATPoisson(rate=rate))
    torch.testing.assert_close(closed, brute, rtol=1e-10, atol=1e-12)
    (of_brute,), (of_closed,) = (torch.autograd.grad(v.sum(), phi) for v in (brute, closed))
    torch.testing.assert_close(of_closed, of_brute, rtol=1e-10, atol=1e-12)


# --- the contract ---

ALL = {
    "pathwise": pathwise,
    "score_function": score_function,
    "score_function, batch mean": partial(score_function, baseline="batch_mean"),
    "score_function, leave one out": partial(score_function, baseline="leave_one_out"),
    "difference": difference,
    "difference, one coordinate": partial(difference, coordinates=1),
    "straight_through": straight_through,
    "straight_through, midpoint": partial(straight_through, correction="midpoint"),
    "moment_matched": moment_matched,
}
every_estimator = pytest.mark.parametrize("estimator", ALL.values(), ids=ALL.keys())


@every_estimator
@pytest.mark.parametrize("axes", [0, 1, 2, 3])
def test_lead_is_what_the_integrand_leaves(estimator, axes):
    """The surrogate has shape lead and estimates E f; its gradient has the rate's shape."""
    rate = torch.linspace(0.5, 3.0, 24, dtype=F64).view(2, 3, 4).requires_grad_()

    def f(z):
        loss = z + 0.1 * z * z
        return loss.sum(dim=tuple(range(-axes, 0))) if axes else loss

    surrogate = estimator(f, EATPoisson(rate=rate, temperature=0.1), 3000)
    assert surrogate.shape == rate.shape[: 3 - axes]
    value = (rate + 0.1 * (rate + rate**2)).detach()
    value = value.sum(dim=tuple(range(-axes, 0))) if axes else value
    torch.testing.assert_close(surrogate.detach(), value, rtol=0.1, atol=0.15)
    (slope,) = torch.autograd.grad(surrogate.sum(), rate)
    assert slope.shape == rate.shape
    assert bool(slope.isfinite().all())


@every_estimator
def test_a_constant_integrand_has_gradient_zero_not_none(estimator):
    rate = torch.tensor([0.5, 2.0], dtype=F64, requires_grad=True)
    for f in (torch.ones_like, lambda z: torch.ones(z.shape[:-1], dtype=z.dtype)):
        surrogate = estimator(f, EATPoisson(rate=rate, temperature=0.1), 2000)
        torch.testing.assert_close(surrogate.detach(), torch.ones_like(surrogate))
        (slope,) = torch.autograd.grad(surrogate.sum(), rate)
        assert bool((slope.abs() < 0.3).all())


@every_estimator
def test_empty_batch(estimator):
    rate = torch.ones(0, 3, requires_grad=True)
    surrogate = estimator(lambda z: z.sum(-1), EATPoisson(rate=rate, temperature=0.1), 2)
    assert surrogate.shape == (0,)
    assert torch.autograd.grad(surrogate.sum(), rate)[0].shape == (0, 3)


@every_estimator
def test_other_parameters_get_their_ordinary_gradient(estimator, seed):
    """∂/∂W of the mean loss at the samples drawn: the same as autograd on the same noise."""
    W, offset = torch.randn(4, 3, dtype=F64, requires_grad=True), torch.zeros(4, dtype=F64, requires_grad=True)
    rate = torch.full((5, 3), 2.0, dtype=F64, requires_grad=True)
    q = EATPoisson(rate=rate, temperature=0.5)

    def f(z):
        return (torch.tanh(z @ W.T + offset)).square().sum(-1)

    torch.manual_seed(seed)
    surrogate = estimator(f, q, 7)
    found = torch.autograd.grad(surrogate.sum(), (W, offset, rate))
    torch.manual_seed(seed)
    z = q.rsample((7,)) if estimator in (pathwise, moment_matched) else q.sample((7,))
    if estimator is moment_matched:
        z = z + (q.rate - q.variance).sqrt() * torch.randn_like(z)
    loss = f(z.detach()).mean(0)
    torch.testing.assert_close(surrogate.detach(), loss.detach())
    torch.testing.assert_close(found[:2], torch.autograd.grad(loss.sum(), (W, offset)), rtol=1e-10, atol=1e-12)
    assert found[2].abs().sum() > 0


@every_estimator
def test_gradient_samples(estimator):
    """Shape, the parameter q was built from, and dz/d ln λ = λ dz/dλ."""
    rate = torch.tensor([[0.5, 2.0, 3.0]], dtype=F64)
    mean = {}
    for parameter, value in (("rate", rate), ("log_rate", rate.log())):
        q = EATPoisson(**{parameter: value}, temperature=0.3)
        torch.manual_seed(0)
        g = gradient_samples(estimator, lambda z: (z * z).sum(-1), q, num_samples=4, num_repeats=5)
        assert g.shape == (5, 1, 3)
        assert not g.requires_grad
        assert not torch.equal(g[0], g[1])
        mean[parameter] = g
    torch.testing.assert_close(mean["log_rate"], rate * mean["rate"], rtol=1e-8, atol=1e-10)


def test_gradient_samples_of_a_constant():
    q = EATPoisson(rate=torch.ones(2))
    assert not gradient_samples(pathwise, torch.ones_like, q, num_samples=3, num_repeats=2).any()


def test_chain_to_what_produced_the_rate():
    """The gradient goes on to an encoder's weights, through rate and through log_rate alike."""
    w = torch.tensor([0.2, -0.1], dtype=F64, requires_grad=True)
    x = torch.randn(20_000, 2, dtype=F64)
    for q in (EATPoisson(log_rate=x @ w), EATPoisson(rate=(x @ w).exp())):
        samples = torch.autograd.grad(difference(torch.square, q, 1).sum(), w)[0] / len(x)
        u = (x @ w).detach()
        truth = ((u.exp() + 2 * u.exp() ** 2)[:, None] * x).mean(0)
        torch.testing.assert_close(samples, truth, rtol=0.1, atol=0.1)


# --- other laws ---


def test_pathwise_and_score_for_gumbel_softmax():
    rate, n = 3.0, 40_000
    _, slope = estimates(pathwise, torch.square, rate, n, law=GSMPoisson, temperature=0.4, num_categories=18)
    leaf = torch.full((n,), rate, dtype=F64, requires_grad=True)
    noise = -torch.empty(18, n, dtype=F64).exponential_().log()
    stored = hh.relaxations.gumbel_softmax.from_gumbels(leaf, noise, 0.4).square()
    testing.assert_mean(slope - torch.autograd.grad(stored.sum(), leaf)[0], 0.0)
    for estimator in (difference, score_function):
        _, slope = estimates(estimator, torch.square, rate, law=GSMPoisson)
        assert_mean(slope, 2 * rate + 1)


def test_score_function_for_any_pmf():
    """∂/∂ln p_m E f = p_m (f(m) - E f)."""
    n, logits = N, torch.tensor([0.0, 1.0, -1.0, 0.5], dtype=F64)
    leaf = logits.expand(n, 4).clone().requires_grad_()
    surrogate = score_function(torch.square, GumbelSoftmaxCount(leaf), 1)
    p, f = logits.softmax(0), torch.arange(4.0, dtype=F64).square()
    assert_mean(torch.autograd.grad(surrogate.sum(), leaf)[0], p * (f - p @ f))


def test_score_function_for_torchs_own_poisson():
    leaf = torch.full((N,), 2.0, dtype=F64, requires_grad=True)
    surrogate = score_function(torch.square, Poisson(leaf), 1)
    assert_mean(torch.autograd.grad(surrogate.sum(), leaf)[0], 5.0)


# --- errors ---

EAT = EATPoisson(rate=torch.ones(2, 3))
TABLE = GumbelSoftmaxCount(torch.zeros(3, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        *[
            (partial(e, torch.square, EAT, n), f"num_samples must be a whole number >= 1, got {n!r}")
            for e in (pathwise, score_function, difference, straight_through, moment_matched)
            for n in (0, -1, 2.5, None, True)
        ],
        (partial(gradient_samples, pathwise, torch.square, EAT, 1, 0), "num_repeats must be a whole number >= 1, got 0"),
        (partial(pathwise, torch.square, EATPoisson(rate=1.0, temperature=0.0)), "temperature must be > 0 for pathwise"),
        (partial(pathwise, torch.square, Poisson(torch.ones(2))), "q must be a law with rsample"),
        (partial(score_function, torch.square, EAT, 1, "mean"), "baseline must be one of"),
        (partial(score_function, torch.square, EATPoisson(rate=1.0), 1, "leave_one_out"), "num_samples must be >= 2"),
        *[
            (partial(e, torch.square, TABLE), f"q must be a Poisson law with a rate for estimators.{e.__name__}")
            for e in (difference, straight_through, exact)
        ],
        (partial(gradient_samples, pathwise, torch.square, TABLE, 1, 1), "q must be a Poisson law with a rate"),
        (partial(difference, torch.square, EAT, 1, coordinates=0), "coordinates must be a whole number >= 1 or None, got 0"),
        (partial(difference, torch.square, EAT, 1, coordinates=1, curvature=2.0), "coordinates must be None where"),
        (partial(straight_through, torch.square, EAT, 1, "mid"), "correction must be None or 'midpoint', got 'mid'"),
        (partial(straight_through, torch.square, EAT, 1, "midpoint", num_probes=0), "num_probes must be a whole number"),
        (partial(moment_matched, torch.square, GSMPoisson(rate=1.0)), "q must be an EATPoisson without num_arrivals or hard"),
        (partial(moment_matched, torch.square, EATPoisson(rate=1.0, num_arrivals=4)), "q must be an EATPoisson"),
        (partial(moment_matched, torch.square, EATPoisson(rate=1.0, hard=True)), "q must be an EATPoisson without num_arrivals"),
        (partial(moment_matched, torch.square, EATPoisson(rate=1.0, indicator="sigmoid")), "indicator must have compact support"),
        (partial(moment_matched, torch.square, EATPoisson(rate=1.0, temperature=1.5)), "temperature must be in (0, 1]"),
        (partial(moment_matched, torch.square, EATPoisson(rate=1.0, temperature=0.0)), "temperature must be in (0, 1]"),
        (partial(exact, lambda z: z.sum(-1), EAT), "f must be elementwise or carry an expectation(q)"),
        *[
            (partial(e, f, EAT), "f must map samples (S, *rate.shape) = (1, 2, 3) to losses (S, *lead) with leading axes kept")
            for e in (pathwise, score_function, difference, straight_through, moment_matched)
            for f in (lambda z: z.mean(), lambda z: z.sum(1), lambda z: z.sum((0, 1)))
        ],
        *[(partial(MovingAverage, w), f"weight must be in (0, 1], got {w}") for w in (0, 1.5, -0.1, math.nan)],
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong(call, message):
    with without_shape_checks(), pytest.raises(ValueError) as error:  # noqa: PT011
        call()
    assert message in str(error.value)


# --- relax: a control variate that is unbiased at every temperature ---


@pytest.mark.parametrize(
    ("indicator", "temperature"), [("cubic", 0.2), ("linear", 1.0), ("cosine", 3.0), ("sigmoid", 0.5)]
)
@integrands(list(SMOOTH))
def test_relax_is_unbiased(name, indicator, temperature):
    f = INTEGRANDS[name]
    value, slope = estimates(relax, f, 2.0, temperature=temperature, indicator=indicator)
    assert_mean(value, expectation(f, 2.0))
    assert_mean(slope, exact_gradient(f, 2.0))


def test_relax_would_show_a_wrong_control():
    """The same with t in place of min(t, 1), the slope that pathwise uses, is biased: the test above can fail."""
    leaf = torch.full((N,), 2.0, dtype=F64)
    counts, z, early = hh.kernels.window.sample_coupled(leaf, torch.tensor(0.5, dtype=F64), hh.indicators.get("cubic"))
    right = (counts**2 - z**2) * (counts - 2) / 2 + 2 * z * early / 2
    assert_mean(right, 5.0)
    with pytest.raises(AssertionError):
        assert_mean(right + 0.1 * z * early, 5.0)


def test_coupled_counts_are_those_of_algorithm_1():
    rate, tau = torch.full((N,), 3.0, dtype=F64), torch.tensor(0.4, dtype=F64)
    cubic = hh.indicators.get("cubic")
    hard, soft, early = hh.kernels.window.sample_coupled(rate, tau, cubic)
    times = torch.empty(40, N, dtype=F64).exponential_().cumsum(dim=0) / 3
    u = (1 - times) / 0.4
    there = ((times < 1).to(F64).sum(0), cubic(u).sum(0), (cubic.derivative(u) * times.clamp(max=1)).sum(0) / 0.4)
    for a, b, c in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, -1, 0.2), (-0.5, 1, 1)):
        testing.assert_same_law(
            a * hard + b * soft + c * early, sum(x * y for x, y in zip((a, b, c), there, strict=True))
        )


def test_relax_is_unbiased_behind_a_decoder_for_any_scale():
    """Many latents and a loss that couples them: against the difference with all coordinates, and its own scales."""
    torch.manual_seed(3)
    w = torch.randn(5, 4, dtype=F64, requires_grad=True)
    f = lambda z: (z @ w.T - 1).tanh().square().sum(dim=-1)  # noqa: E731
    rate = torch.tensor([0.3, 1.0, 2.0, 4.0], dtype=F64)

    def many(estimator):
        leaf = rate.expand(40_000, 4).clone().requires_grad_()
        surrogate = estimator(f, EATPoisson(rate=leaf, temperature=0.4), 1)
        return torch.autograd.grad(surrogate.sum(), (leaf, w))

    truth, truth_w = many(difference)
    for scale in (0.0, 0.7, 1.0):
        found, found_w = many(partial(relax, scale=scale))
        se = ((truth.var(dim=0) + found.var(dim=0)) / 40_000).sqrt()
        assert ((truth.mean(dim=0) - found.mean(dim=0)).abs() < 6 * se).all()
        torch.testing.assert_close(found_w / 40_000, truth_w / 40_000, rtol=0.1, atol=0.05)


def test_relax_is_quieter_than_the_score():
    def variance(scale):
        return estimates(partial(relax, scale=scale), torch.square, 5.0, temperature=0.5)[1].var()

    assert variance(1.0) < 0.2 * variance(0.0)


def test_relax_refuses():
    q = EATPoisson(rate=torch.tensor([0.0, 1.0]), temperature=0.5)
    assert relax(torch.square, q).isfinite().all()
    with pytest.raises(ValueError, match="scale must be finite"):
        relax(torch.square, q, scale=math.nan)
    with pytest.raises(ValueError, match="temperature must be > 0"):
        relax(torch.square, EATPoisson(rate=1.0, temperature=0.0))
    for bad in (GSMPoisson(rate=1.0), EATPoisson(rate=1.0, num_arrivals=5), EATPoisson(rate=1.0, hard=True)):
        with pytest.raises(ValueError, match="q must be an EATPoisson"):
            relax(torch.square, bad)


@pytest.mark.parametrize("log", [False, True])
def test_exact_has_a_gradient_at_rate_zero(log):
    rate = torch.tensor([0.0, 1.0], dtype=torch.float64)
    leaf = (rate.log() if log else rate).requires_grad_()
    law = EATPoisson(log_rate=leaf) if log else EATPoisson(rate=leaf)
    value = exact(lambda z: (z + 1) ** 2, law)
    assert torch.allclose(value, torch.tensor([1.0, 5.0], dtype=torch.float64))
    (slope,) = torch.autograd.grad(value.sum(), leaf)
    assert torch.allclose(slope, torch.tensor([0.0 if log else 3.0, 5.0], dtype=torch.float64))


@pytest.mark.parametrize("estimator", [score_function, difference, relax, pathwise, straight_through, moment_matched])
@pytest.mark.parametrize("f", [lambda z: (z > 1).any(-1), lambda z: (z > 1).sum(-1)], ids=["flags", "whole numbers"])
def test_losses_may_be_flags_or_whole_numbers(estimator, f):
    rate = torch.rand(4, 3).requires_grad_()
    surrogate = estimator(f, EATPoisson(rate=rate, temperature=0.5), 50)
    assert surrogate.shape == (4,)
    assert surrogate.dtype == rate.dtype
    surrogate.sum().backward()
    assert rate.grad.isfinite().all()
    if estimator in (pathwise, straight_through, moment_matched):  # a step has no slope
        assert not rate.grad.any()


def test_a_loss_that_is_no_tensor():
    with pytest.raises(ValueError, match="f must return a real tensor of losses, got float"):
        pathwise(lambda z: 1.0, EATPoisson(rate=torch.ones(2)))


def test_a_step_weighed_by_a_parameter_gives_the_rate_no_gradient_not_none():
    weight, rate = torch.ones(3, requires_grad=True), torch.ones(4, 3, requires_grad=True)
    for estimator in (pathwise, moment_matched, relax):
        weight.grad = rate.grad = None
        estimator(lambda z: (weight * (z > 0.5)).sum(-1), EATPoisson(rate=rate, temperature=0.5), 20).sum().backward()
        assert rate.grad is not None
        assert weight.grad.any()


def test_moving_average_of_a_method_lives_as_long_as_its_object():
    class Model:
        __slots__ = ("__weakref__", "level")

        def loss(self, z):
            return 100 + z

    model, q = Model(), EATPoisson(rate=torch.ones(1000))
    for _ in range(2):
        score_function(model.loss, q, baseline="moving_average")
    noise = [gradient_samples(partial(score_function, baseline=b), model.loss, q, 1, 5).std()
             for b in (None, "moving_average")]  # fmt: skip
    assert noise[1] < 0.2 * noise[0]

    class Bare:
        __slots__ = ()

        def __call__(self, z):
            return z

    with pytest.raises(ValueError, match="baseline must be a MovingAverage for an f of type Bare"):
        score_function(Bare(), q, baseline="moving_average")


def test_moment_matching_asks_for_the_support_of_the_indicator(monkeypatch):
    wide = dataclasses.replace(hh.indicators.get("linear"), name="wide", support=(-2.0, 2.0))
    monkeypatch.setitem(hh.indicators.REGISTRY, "wide", wide)
    law = EATPoisson(rate=torch.ones(3), temperature=0.6, indicator=wide)
    with pytest.raises(ValueError, match=r"temperature must be in \(0, 0.5\]"):
        moment_matched(torch.square, law)


@pytest.mark.parametrize("rate", [1e4, 1e6])
def test_log_prob_keeps_its_digits_in_single_precision(rate):
    value = torch.tensor(rate + rate**0.5)
    found = EATPoisson(rate=torch.tensor(rate)).log_prob(value)
    truth = Poisson(torch.tensor(rate, dtype=torch.float64)).log_prob(value.double())
    assert found.dtype == torch.float32
    assert abs(found.double() - truth) < 1e-5


def test_log_prob_of_infinity():
    with pytest.raises(ValueError, match="value must be >= 0 and finite"):
        EATPoisson(rate=torch.ones(1)).log_prob(torch.tensor(math.inf))
