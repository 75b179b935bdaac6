"""Negative binomial laws: exact cumulants at six sigma, χ² of hard counts, gradients of known expectations."""

import math

import numpy as np
import pytest
import torch
from laws import without_shape_checks
from scipy import stats
from torch.distributions import NegativeBinomial, kl_divergence

from hitchhiker import moments
from hitchhiker.relaxations.negative_binomial import EATNegativeBinomial, GSMNegativeBinomial
from hitchhiker.testing import assert_cumulants, assert_frequencies, assert_mean

LAWS = [EATNegativeBinomial, GSMNegativeBinomial]


def cumulants(r, mu, indicator, tau):
    """κ1 … κ4 of Algorithm 3: the Gamma's log-mgf -r ln(1 - x/β) at the Poisson sum's, as a power series."""
    factors = [moments.cumulant_factor(indicator, tau, k) for k in (1, 2, 3, 4)]
    x = np.array([0, *(f / math.factorial(k) for k, f in enumerate(factors, 1))]) * (1 - mu) / mu
    total, power = np.zeros(5), np.array([1.0, 0, 0, 0, 0])
    for j in (1, 2, 3, 4):
        power = np.convolve(power, x)[:5]
        total += r * power / j
    return tuple(total[k] * math.factorial(k) for k in (1, 2, 3, 4))


@pytest.mark.parametrize(
    ("r", "mu", "tau", "indicator"),
    [(3.0, 0.4, 0.5, "cubic"), (0.5, 0.3, 0.1, "cubic"), (8.0, 0.7, 1.0, "sigmoid"), (2.0, 0.5, 3.0, "cosine")],
)
def test_moments_of_the_relaxed_law(r, mu, tau, indicator):
    q = EATNegativeBinomial(torch.tensor(r, dtype=torch.float64), mu, tau, indicator)
    k = cumulants(r, mu, indicator, tau)
    assert q.mean.item() == pytest.approx(k[0], rel=1e-12)
    assert q.variance.item() == pytest.approx(k[1], rel=1e-12)
    z = q.rsample((800_000,))
    assert_cumulants(z, k)
    for wrong in ((1.02 * k[0], *k[1:]), (k[0], 1.03 * k[1], *k[2:])):
        with pytest.raises(AssertionError):
            assert_cumulants(z, wrong)


def test_scale_instead_of_rate_would_be_seen():
    """The Gamma of Algorithm 3 takes a rate; read as a scale, the mean of (2, 0.25) would be 2/3 and not 6."""
    z = EATNegativeBinomial(2.0, 0.25, 0.5).rsample((100_000,))
    assert_mean(z, 6.0)
    with pytest.raises(AssertionError):
        assert_mean(z, 2 / 3)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("r", "mu"), [(3.0, 0.4), (0.3, 0.2), (40.0, 0.9)])
def test_whole_counts_follow_the_pmf(law, r, mu):
    pmf = torch.as_tensor(np.append(stats.nbinom.pmf(np.arange(400), r, mu), stats.nbinom.sf(399, r, mu)))
    planted = torch.as_tensor(stats.nbinom.pmf(np.arange(401), r * 1.04, mu))
    for hard, tau in ((True, 0.5), (False, 0.0)):
        z = law(r, mu, tau, hard=hard).rsample((50_000,))
        assert bool((z == z.round()).all())
        assert_frequencies(z, pmf)
    assert_frequencies(law(r, mu, 0.5).sample((100_000,)), pmf)
    with pytest.raises(AssertionError):
        assert_frequencies(law(r, mu, 0.5).sample((800_000,)), planted)


@pytest.mark.parametrize("law", LAWS)
def test_log_prob_is_scipys_and_torchs(law):
    r, mu = torch.tensor([[0.3], [5.0], [1e6]], dtype=torch.float64), torch.tensor([0.2, 0.97], dtype=torch.float64)
    k = torch.tensor([0.0, 1.0, 7.0, 60.0, 3e4], dtype=torch.float64).view(-1, 1, 1)
    ours = law(r, mu).log_prob(k)
    assert ours.numpy() == pytest.approx(stats.nbinom.logpmf(k, r, mu), rel=1e-8)
    torchs = NegativeBinomial(r, 1 - mu, validate_args=False).log_prob(k)
    assert ours.numpy() == pytest.approx(torchs.numpy(), rel=1e-8)
    between = law(3.0, 0.5).log_prob(torch.tensor([1.0, 1.5, 2.0]))
    assert between[1] > between[[0, 2]].min() - 0.1  # smooth in between


def test_float32_log_prob_keeps_its_digits():
    """ln Γ(k + r) - ln Γ(r) at r = 10⁶ in float32 alone would be wrong by whole nats."""
    small = EATNegativeBinomial(torch.tensor(1e6), torch.tensor(0.999)).log_prob(torch.tensor(1000.0))
    assert small.dtype == torch.float32
    truth = stats.nbinom.logpmf(1000, 1e6, float(torch.tensor(0.999)))
    assert small.item() == pytest.approx(truth, rel=1e-4)


@pytest.mark.parametrize(("tau", "indicator"), [(0.4, "cubic"), (1.5, "sigmoid")])
def test_pathwise_gradients_of_known_expectations(tau, indicator):
    """E z² of the relaxed law in closed form, its slope in r and μ by autograd; the sampled slopes agree at six sigma."""
    r, mu = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (2.5, 0.35))
    q = EATNegativeBinomial(r, mu, tau, indicator)
    slopes = torch.autograd.grad(q.variance + q.mean**2, (r, mu))
    many = [x.detach().expand(300_000).clone().requires_grad_() for x in (r, mu)]
    z = EATNegativeBinomial(*many, tau, indicator).rsample()
    sampled = torch.autograd.grad(z.square().sum(), many)
    for one, truth in zip(sampled, slopes, strict=True):
        assert_mean(one, truth)
        with pytest.raises(AssertionError):
            assert_mean(one, 1.05 * truth)


def test_hard_forward_keeps_the_relaxed_slope():
    r = torch.full((200_000,), 2.5, dtype=torch.float64, requires_grad=True)
    z = EATNegativeBinomial(r, 0.35, 0.5, hard=True).rsample()
    (slope,) = torch.autograd.grad(z.sum(), r)
    assert_mean(slope, 0.65 / 0.35)  # dm/dr, c = 1


def test_gumbel_softmax_with_frozen_noise():
    r = torch.tensor([0.7, 3.0], dtype=torch.float64, requires_grad=True)
    mu = torch.tensor([0.3, 0.6], dtype=torch.float64, requires_grad=True)

    def draw(r, mu):
        torch.manual_seed(3)
        return GSMNegativeBinomial(r, mu, 0.6, num_categories=30).rsample((4,))

    assert torch.autograd.gradcheck(draw, (r, mu), atol=1e-6)


def test_gumbel_softmax_simplex():
    q = GSMNegativeBinomial(torch.tensor([0.7, 3.0]), 0.5, 0.6)
    soft = q.rsample_simplex((5,))
    assert soft.shape == (5, 2, q.num_categories)
    assert torch.allclose(soft.sum(-1), torch.ones(5, 2))
    assert q.aggregate(soft).shape == (5, 2)


@pytest.mark.parametrize("mu", [0.03, 0.5, 0.98])
def test_gumbel_softmax_truncation_is_negligible(mu):
    q = GSMNegativeBinomial(torch.tensor(3.0, dtype=torch.float64), mu, 0.0)
    assert q.mean.item() == pytest.approx(stats.nbinom.mean(3.0, mu), rel=1e-6)
    assert q.variance.item() == pytest.approx(stats.nbinom.var(3.0, mu), rel=1e-5)
    few = GSMNegativeBinomial(torch.tensor(3.0, dtype=torch.float64), mu, 0.0, num_categories=3)
    assert few.mean.item() < stats.nbinom.mean(3.0, mu)
    with pytest.raises(NotImplementedError, match="average rsample, or use hard=True"):
        _ = GSMNegativeBinomial(3.0, mu, 0.1).mean


def test_hot_gumbel_softmax_takes_more_categories():
    numbers = [GSMNegativeBinomial(3.0, 0.5, tau).num_categories for tau in (0.1, 1.0, 2.0, 8.0)]
    assert numbers[0] == numbers[1] < numbers[2] < numbers[3]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_dtypes(law, dtype):
    r, mu = torch.tensor([[1.0], [2.0]], dtype=dtype, requires_grad=True), torch.tensor([0.2, 0.5, 0.9], dtype=dtype)
    q = law(r, mu, torch.tensor(0.3))
    assert q.batch_shape == (2, 3)
    assert q.event_shape == ()
    for z in (q.rsample(), q.sample(), q.log_prob(torch.ones(3, dtype=dtype)), q.count_mean):
        assert z.shape == (2, 3)
        assert z.dtype == dtype
    z = q.rsample((4, 5))
    assert z.shape == (4, 5, 2, 3)
    z.sum().backward()
    assert r.grad.shape == (2, 1)
    assert bool(torch.isfinite(r.grad).all())
    assert not q.sample((2,)).requires_grad
    assert law(r, mu[:0], 0.3).rsample((2,)).shape == (2, 2, 0)
    assert law(1.0, 0.5).rsample((0,)).shape == (0,)
    assert law(2, torch.tensor(0.5, dtype=dtype)).total_count.dtype == dtype


@pytest.mark.parametrize("law", LAWS)
def test_expand_keeps_every_option(law):
    options = {"indicator": "quintic"} if law is EATNegativeBinomial else {"num_categories": 17}
    q = law(torch.tensor([1.0, 2.0]), 0.5, 0.3, hard=True, **options)
    wide = q.expand((3, 2))
    assert wide.rsample().shape == (3, 2)
    assert wide.hard
    assert wide.batch_shape == (3, 2)
    if law is EATNegativeBinomial:
        assert wide.indicator is q.indicator
    else:
        assert wide.num_categories == 17
    assert str(law(2.0, 0.5, 0.25)).startswith(f"{law.__name__}(total_count=2, probs=0.5, temperature=0.25")


def test_extremes():
    tiny = EATNegativeBinomial(torch.tensor([1e-3, 1e-8, 1e6]), torch.tensor([0.5, 1e-6, 0.999999]), 0.3)
    z = tiny.rsample((1000,))
    assert bool(torch.isfinite(z).all())
    assert bool((z >= 0).all())
    r = torch.tensor([1e-3, 5.0], requires_grad=True)
    EATNegativeBinomial(r, 0.5, 1e-6).rsample((100,)).sum().backward()
    assert bool(torch.isfinite(r.grad).all())
    hot = EATNegativeBinomial(5.0, 0.5, 50.0)
    assert_mean(hot.rsample((100_000,)), hot.mean)


@pytest.mark.parametrize("law", LAWS)
def test_kl(law):
    r = torch.tensor([0.4, 3.0], dtype=torch.float64)
    p, q = law(r, 0.3, 0.1), law(r, torch.tensor([0.5, 0.31], dtype=torch.float64), 0.9)
    k = torch.arange(600, dtype=torch.float64).view(-1, 1)
    truth = (p.log_prob(k).exp() * (p.log_prob(k) - q.log_prob(k))).sum(0)
    assert torch.allclose(kl_divergence(p, q), truth, rtol=1e-10)
    assert torch.allclose(kl_divergence(p, NegativeBinomial(r, 1 - q.probs)), truth, rtol=1e-10)
    assert torch.allclose(kl_divergence(NegativeBinomial(r, 1 - p.probs), q), truth, rtol=1e-10)
    assert bool((kl_divergence(p, p) == 0).all())
    with pytest.raises(NotImplementedError, match="equal total_count"):
        kl_divergence(p, law(r + 1, 0.5))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 0.5), "total_count must be > 0 and finite, got 0"),
        ((torch.tensor([1.0, -2.0]), 0.5), r"total_count must be > 0 and finite, got -2 at index \(1,\)"),
        ((math.nan, 0.5), "total_count must be > 0"),
        ((math.inf, 0.5), "total_count must be > 0"),
        ((1.0, 0.0), "probs must be strictly between 0 and 1, got 0"),
        ((1.0, 1.0), "probs must be strictly between 0 and 1, got 1"),
        ((1.0, math.nan), "probs must be"),
        ((1.0, 1j), "probs must be real"),
        ((1.0, 0.5, -0.1), r"temperature must be >= 0 and finite, got -0\.1"),
        ((torch.ones(2), torch.full((3,), 0.5)), "must broadcast against each other"),
    ],
)
def test_bad_parameters(law, arguments, message):
    with without_shape_checks(), pytest.raises(ValueError, match=message):
        law(*arguments)


def test_other_bad_arguments():
    with pytest.raises(ValueError, match="value must be >= 0"):
        EATNegativeBinomial(1.0, 0.5).log_prob(torch.tensor(-1.0))
    with pytest.raises(ValueError, match="indicator must be one of"):
        EATNegativeBinomial(1.0, 0.5, indicator="step")
    with pytest.raises(ValueError, match="num_categories must be a whole number >= 1 or None, got 0"):
        GSMNegativeBinomial(1.0, 0.5, num_categories=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    r = torch.tensor([3.0, 2.0], dtype=dtype, requires_grad=True)
    eat, gsm = EATNegativeBinomial(r, 0.4, 0.5), GSMNegativeBinomial(r, 0.4, 0.5)
    for z in (eat.rsample((20_000,)), gsm.rsample((5,)), eat.sample((5,)), eat.mean, eat.variance):
        assert z.dtype == dtype
        assert bool(z.isfinite().all())
    torch.testing.assert_close(eat.rsample((20_000,)).double().mean(0), r.double() * 1.5, rtol=0.06, atol=0)
    assert bool(torch.autograd.grad(eat.rsample((50,)).sum(), r)[0].isfinite().all())
