"""EATErlang: exact moments of stationary and ordinary counts, window sampler against fine arrivals, difference identity."""

import math

import numpy as np
import pytest
import torch

import hitchhiker as hh
from hitchhiker import dispersion, moments
from hitchhiker.relaxations.erlang import EATErlang, erlang_mean, erlang_variance, from_fine_exponentials
from hitchhiker.testing import assert_frequencies, assert_mean, assert_same_law

CASES = [
    (0.3, 2, 0.5, "cubic"),
    (4.0, 4, 0.2, "cubic"),
    (6.0, 3, 1.0, "cosine"),
    (1.0, 5, 2.5, "quintic"),
    (2.0, 2, 0.1, "sigmoid"),
]


def assert_variance(z, variance):
    """Six sigma, with the standard error of a sample variance from the sample's own fourth moment."""
    centred = z.double() - z.double().mean()
    assert_mean(centred.square(), variance)


@pytest.mark.parametrize("ordinary", [False, True])
@pytest.mark.parametrize(("rate", "stages", "tau", "indicator"), CASES)
def test_moments_of_the_relaxed_count(rate, stages, tau, indicator, ordinary):
    n = 20_000 if indicator == "sigmoid" else 150_000
    q = EATErlang(
        rate=torch.tensor(rate, dtype=torch.float64),
        stages=stages,
        temperature=tau,
        indicator=indicator,
        ordinary=ordinary,
    )
    z = q.rsample((n,))
    assert_mean(z, q.mean)
    assert_variance(z, q.variance)
    if not ordinary:  # the rate of arrivals is all that a mean needs: Campbell's factor, whatever k
        assert q.mean.item() == pytest.approx(rate * moments.mean_factor(indicator, tau), rel=1e-12)
    if n > 100_000:
        for wrong in (lambda: assert_mean(z, 1.05 * q.mean), lambda: assert_variance(z, 1.1 * q.variance)):
            with pytest.raises(AssertionError):
                wrong()


@pytest.mark.parametrize("ordinary", [False, True])
@pytest.mark.parametrize(("rate", "stages"), [(0.3, 2), (3.0, 4), (12.0, 3), (2.0, 1)])
def test_closed_forms_of_whole_counts_are_those_of_the_pmf(rate, stages, ordinary):
    q = EATErlang(rate=torch.tensor(rate, dtype=torch.float64), stages=stages, ordinary=ordinary)
    n = torch.arange(200, dtype=torch.float64)
    pmf = q.log_prob(n).exp()
    mean = (pmf * n).sum()
    assert pmf.sum().item() == pytest.approx(1.0, rel=1e-12)
    assert mean.item() == pytest.approx(erlang_mean("cubic", 0.0, rate, stages, ordinary), rel=1e-11)
    assert (pmf * (n - mean) ** 2).sum().item() == pytest.approx(
        erlang_variance("cubic", 0.0, rate, stages, ordinary), rel=1e-10
    )
    for tau in (0.0, 0.4):
        hard = EATErlang(rate=rate, stages=stages, temperature=tau, ordinary=ordinary, hard=True)
        assert_frequencies(hard.rsample((40_000,)), pmf)
    assert_frequencies(q.sample((40_000,)), pmf)
    planted = EATErlang(rate=rate * 1.04, stages=stages, ordinary=ordinary).log_prob(n).exp()
    with pytest.raises(AssertionError):
        assert_frequencies(q.sample((400_000,)), planted)


def test_an_ordinary_start_loses_counts_and_a_random_phase_mends_it():
    """Hermite's identity, Σ_j floor((n + j)/k) = n, makes the mean exact at every rate; phase 0 is (k - 1)/(2k) short."""
    for k in (2, 5):
        n = np.arange(40)
        assert (sum((n + j) // k for j in range(k)) == n).all()
        assert erlang_mean("cubic", 0.0, 20.0, k, ordinary=True) == pytest.approx(20 - (k - 1) / (2 * k), abs=1e-9)
    counts = EATErlang(rate=0.2, stages=5).sample((200_000,))
    assert_mean(counts, 0.2)
    with pytest.raises(AssertionError):
        assert_mean(EATErlang(rate=0.2, stages=5, ordinary=True).sample((200_000,)), 0.2)


def test_one_stage_is_the_poisson_relaxation():
    q, p = EATErlang(rate=3.0, stages=1, temperature=0.4), hh.EATPoisson(rate=3.0, temperature=0.4)
    assert_same_law(q.rsample((40_000,)), p.rsample((40_000,)))
    assert q.variance.item() == pytest.approx(p.variance.item(), rel=1e-6)
    n = torch.arange(30.0)
    torch.testing.assert_close(q.log_prob(n), p.log_prob(n), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tau", [0.5, 2.0])
def test_window_sampler_has_the_joint_law_of_fine_arrivals(tau):
    """Count and slope: the window sampler against autograd through every fine arrival."""
    k, size = 3, 40_000
    rate = torch.full((size,), 2.5, dtype=torch.float64, requires_grad=True)
    z = EATErlang(rate=rate, stages=k, temperature=tau).rsample()
    (slope,) = torch.autograd.grad(z.sum(), rate)
    noise = torch.empty(90, size, dtype=torch.float64).exponential_()
    phase = torch.randint(k, (size,)).double()
    whole = from_fine_exponentials(rate, noise, k, phase, tau)
    (other,) = torch.autograd.grad(whole.sum(), rate)
    assert_same_law(z, whole)
    assert_same_law(slope, other)
    assert_same_law(z + 0.7 * slope, whole + 0.7 * other)
    assert_mean(slope, moments.mean_factor("cubic", tau))
    with pytest.raises(AssertionError):
        assert_same_law(z, from_fine_exponentials(rate, noise, k, 0.0, tau))


def test_fine_arrivals_are_differentiable():
    rate = torch.tensor([1.5, 3.0], dtype=torch.float64, requires_grad=True)
    noise = torch.empty(40, 2, dtype=torch.float64).exponential_()
    assert torch.autograd.gradcheck(lambda r: from_fine_exponentials(r, noise, 2, 1.0, 0.6, "quintic"), (rate,))


@pytest.mark.parametrize(("rate", "stages"), [(0.7, 2), (4.0, 4)])
def test_gradient_is_a_difference_under_the_ordinary_count(rate, stages):
    """d/dλ E f(N) = E[f(N° + 1) - f(N°)], N° the ordinary count: Palm's law stands where the Poisson's stood for k = 1."""
    leaf = torch.tensor(rate, dtype=torch.float64, requires_grad=True)
    for f in (torch.square, lambda z: torch.exp(-z / 2), torch.cos):
        (exact,) = torch.autograd.grad(dispersion.expectation(f, EATErlang(rate=leaf, stages=stages)), leaf)
        palm = EATErlang(rate=leaf.detach(), stages=stages, ordinary=True)
        step = dispersion.expectation(lambda n, f=f: f(n + 1) - f(n), palm)
        assert step.item() == pytest.approx(exact.item(), rel=1e-9)
        wrong = dispersion.expectation(lambda n, f=f: f(n + 1) - f(n), EATErlang(rate=leaf.detach(), stages=stages))
        assert abs(wrong.item() / exact.item() - 1) > 1e-3


def test_symbolic_variance_for_two_stages():
    """sympy integrates the cubic against the renewal density of k = 2: the quadrature agrees to ten digits."""
    from hitchhiker.dispersion import symbolic_erlang_variance

    expression, tau, lam = symbolic_erlang_variance()
    for t, r in ((0.3, 2.0), (1.0, 0.5), (0.7, 6.0)):
        value = float(expression.subs({tau: t, lam: r}).evalf(40))
        assert value == pytest.approx(erlang_variance("cubic", t, r, 2), rel=1e-10)


def test_variance_for_many_arrivals_in_the_window():
    """(λ/k) v(τ) from the smooth edge and (1 - 1/k²)/12 from the one hard edge that is left, at t = 0."""
    for k in (2, 4):
        v = moments.variance_factor("cubic", 0.5)
        limit = 200 / k * v + (1 - 1 / k**2) / 12
        assert erlang_variance("cubic", 0.5, 200.0, k) == pytest.approx(limit, rel=1e-4)


def test_extremes():
    rate = torch.tensor([0.0, 1e-8, 1e5], requires_grad=True)
    z = EATErlang(rate=rate, stages=3, temperature=0.3).rsample((20,))
    (slope,) = torch.autograd.grad(z.sum(), rate)
    assert bool(z.isfinite().all() & slope.isfinite().all())
    assert not z[:, 0].any()
    assert slope[0] == 0
    assert abs(z[:, 2].mean() - 1e5) < 6 * math.sqrt(1e5 / 3 / 20)
    log_rate = torch.tensor([-math.inf], requires_grad=True)
    z = EATErlang(log_rate=log_rate, stages=2, temperature=0.3).rsample((10,))
    assert not z.any()
    assert torch.autograd.grad(z.sum(), log_rate)[0].tolist() == [0.0]
    p = EATErlang(rate=0.0, stages=2).log_prob(torch.tensor([0.0, 1.0]))
    assert p.tolist() == [0.0, -math.inf]
    assert EATErlang(rate=0.0, stages=2, temperature=0.5).variance.item() == 0


def test_second_derivatives_and_fractional_counts_are_refused():
    rate = torch.tensor([2.0], requires_grad=True)
    (slope,) = torch.autograd.grad(
        EATErlang(rate=rate, temperature=1.0).rsample((50,)).square().sum(), rate, create_graph=True
    )
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        torch.autograd.grad(slope.sum(), rate)
    with pytest.raises(ValueError, match=r"value must be whole and >= 0, got 0\.5"):
        EATErlang(rate=2.0).log_prob(torch.tensor(0.5))
