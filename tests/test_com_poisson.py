"""Conway–Maxwell–Poisson: high-precision sums, special cases, exact identities, χ² of samples and of hard choices."""

import math

import mpmath as mp
import numpy as np
import pytest
import torch
from laws import without_shape_checks
from scipy import stats
from torch.distributions import kl_divergence

from hitchhiker.relaxations import com_poisson
from hitchhiker.relaxations.com_poisson import ConwayMaxwellPoisson, GSMConwayMaxwellPoisson
from hitchhiker.testing import assert_frequencies, assert_mean

F64 = torch.float64


def law(rate, nu, **options):
    return ConwayMaxwellPoisson(torch.tensor(rate, dtype=F64), torch.tensor(nu, dtype=F64), **options)


def summed(rate, nu):
    """ln Z, mean, variance, entropy by summing the series in 40 digits from its mode outwards."""
    with mp.workdps(40):
        lam, v = mp.mpf(rate), mp.mpf(nu)
        mode = int(lam ** (1 / v)) if v > 0 else 0
        reach = int(14 * mp.sqrt((mode + 1) / v)) + 300 if v > 0 else int(-90 / mp.log(lam)) + 10
        low = max(0, mode - reach)
        w, weights = mp.mpf(1), []
        for m in range(low, mode + reach):
            weights.append(w)
            w *= lam / mp.mpf(m + 1) ** v
        z = mp.fsum(weights)
        p = [x / z for x in weights]
        mean = mp.fsum(x * (low + i) for i, x in enumerate(p))
        variance = mp.fsum(x * (low + i - mean) ** 2 for i, x in enumerate(p))
        entropy = -mp.fsum(x * mp.log(x) for x in p if x > 0)
        log_z = mp.log(z) + low * mp.log(lam) - v * mp.loggamma(low + 1)
        return tuple(float(x) for x in (log_z, mean, variance, entropy))


PAIRS = [
    (2.0, 2.0),
    (100.0, 2.0),
    (1.0, 5.0),
    (0.5, 0.0),
    (0.99, 0.0),
    (2.0, 0.3),
    (1e3, 0.8),
    (1e-8, 1.0),
    (1e6, 30.0),
]


@pytest.mark.parametrize(("rate", "nu"), [*PAIRS, (1e6, 1.0), (1e6, 3.0)])
def test_sums_in_forty_digits(rate, nu):
    q = law(rate, nu)
    found = q.log_normalizer, q.mean, q.variance, q.entropy()
    for ours, truth in zip(found, summed(rate, nu), strict=True):
        assert ours.item() == pytest.approx(truth, rel=1e-11, abs=1e-14)
    assert 0 <= q.lost_mass.item() < 1e-15


def test_a_one_percent_error_would_be_seen():
    q, truth = law(100.0, 2.02), summed(100.0, 2.0)
    assert q.mean.item() != pytest.approx(truth[1], rel=1e-3)
    assert q.variance.item() != pytest.approx(truth[2], rel=1e-3)


def test_published_special_values():
    q = law(100.0, 2.0)
    assert q.mean.item() == pytest.approx(9.7467, abs=5e-5)
    assert (q.variance / q.mean).item() == pytest.approx(0.513, abs=5e-4)  # not 1/ν = 0.5
    assert (law(2.0, 2.0).variance / law(2.0, 2.0).mean).item() == pytest.approx(0.649, abs=5e-4)


def test_nu_one_is_poisson():
    rate = torch.tensor([1e-8, 0.3, 7.0, 400.0, 1e6], dtype=F64)
    q = ConwayMaxwellPoisson(rate)
    assert torch.allclose(q.mean, rate, rtol=1e-12)
    assert torch.allclose(q.variance, rate, rtol=1e-12)
    assert torch.allclose(q.log_normalizer, rate, rtol=1e-12)
    k = torch.tensor([0.0, 1.0, 9.0, 380.0], dtype=F64).view(-1, 1)
    assert q.log_prob(k).numpy() == pytest.approx(stats.poisson.logpmf(k, rate), rel=1e-12)
    assert q.entropy()[1:4].numpy() == pytest.approx(stats.poisson.entropy(rate[1:4]), rel=1e-10)


def test_nu_zero_is_geometric_and_large_nu_bernoulli():
    k = torch.arange(30, dtype=F64)
    assert law(0.7, 0.0).log_prob(k).numpy() == pytest.approx(stats.geom.logpmf(k + 1, 0.3), rel=1e-12)
    coin = law(3.0, 200.0)
    assert coin.mean.item() == pytest.approx(0.75)
    assert coin.variance.item() == pytest.approx(0.1875)
    assert coin.log_prob(torch.tensor(2.0)).item() < -100


def test_zero_rate_is_no_count():
    q = ConwayMaxwellPoisson(torch.tensor([0.0, 2.0]), torch.tensor([[0.0], [1.5]])[1:])
    assert q.mean[0, 0] == 0
    assert q.variance[0, 0] == q.entropy()[0, 0] == 0
    assert q.log_prob(torch.tensor(0.0))[0, 0] == 0
    assert q.log_prob(torch.tensor(1.0))[0, 0] == -math.inf
    assert bool((q.sample((1000,))[:, 0, 0] == 0).all())


@pytest.mark.parametrize(("rate", "nu"), [(2.0, 2.0), (100.0, 2.0), (0.8, 0.0), (2.0, 0.4)])
def test_samples_follow_the_pmf(rate, nu):
    m = np.arange(600)
    q = law(rate, nu)
    pmf = q.log_prob(torch.as_tensor(m, dtype=F64)).exp()
    n = q.sample((200_000,))
    assert n.dtype == F64
    assert_frequencies(n, pmf)
    planted = law(rate if nu else 0.99 * rate, 1.03 * nu).log_prob(torch.as_tensor(m, dtype=F64)).exp()
    with pytest.raises(AssertionError):
        assert_frequencies(q.sample((1_000_000,)), planted)


def test_samples_of_a_batch_have_their_means():
    q = ConwayMaxwellPoisson(torch.tensor([[0.5], [1e6]], dtype=F64), torch.tensor([1.0, 2.0, 7.0], dtype=F64))
    n = q.sample((40_000,))
    assert n.shape == (40_000, 2, 3)
    assert_mean(n, q.mean)
    assert_mean((n - q.mean).square(), q.variance)


def test_gradients_by_finite_differences():
    rate = torch.tensor([0.4, 3.0, 50.0], dtype=F64, requires_grad=True)
    nu = torch.tensor([0.6, 1.0, 2.5], dtype=F64, requires_grad=True)
    k = torch.tensor([[0.0], [1.0], [4.5]], dtype=F64)
    for f in (
        lambda r, v: ConwayMaxwellPoisson(r, v).mean,
        lambda r, v: ConwayMaxwellPoisson(r, v).variance,
        lambda r, v: ConwayMaxwellPoisson(r, v).entropy(),
        lambda r, v: ConwayMaxwellPoisson(r, v).log_prob(k),
        lambda r, v: kl_divergence(ConwayMaxwellPoisson(r, v), ConwayMaxwellPoisson(2 * r, v + 0.3)),
    ):
        assert torch.autograd.gradcheck(f, (rate, nu))


def test_exponential_family_identities():
    """d ln Z/d ln λ is the mean, d mean/d ln λ the variance, d ln Z/dν = -E ln N!; the score averages to 0."""
    log_rate = torch.tensor(2.3, dtype=F64, requires_grad=True)
    nu = torch.tensor(1.7, dtype=F64, requires_grad=True)
    q = ConwayMaxwellPoisson(log_rate.exp(), nu)
    by_rate, by_nu = torch.autograd.grad(q.log_normalizer, (log_rate, nu), retain_graph=True)
    (curvature,) = torch.autograd.grad(q.mean, log_rate, retain_graph=True)
    k = torch.arange(80, dtype=F64)
    pmf = q.log_prob(k).exp().detach()
    assert by_rate.item() == pytest.approx(q.mean.item(), rel=1e-12)
    assert curvature.item() == pytest.approx(q.variance.item(), rel=1e-12)
    assert by_nu.item() == pytest.approx(-(pmf * torch.lgamma(k + 1)).sum().item(), rel=1e-12)
    (score,) = torch.autograd.grad((pmf * q.log_prob(k)).sum(), nu)
    assert abs(score.item()) < 1e-12


def test_kl_by_enumeration():
    p = ConwayMaxwellPoisson(torch.tensor([0.5, 9.0], dtype=F64), 1.5)
    q = ConwayMaxwellPoisson(torch.tensor([[2.0], [4.0]], dtype=F64), torch.tensor([0.8, 1.0], dtype=F64))
    k = torch.arange(300, dtype=F64).view(-1, 1, 1)
    truth = (p.log_prob(k).exp() * (p.log_prob(k) - q.log_prob(k))).sum(0)
    assert torch.allclose(kl_divergence(p, q), truth, rtol=1e-11)
    assert torch.allclose(kl_divergence(p, p), torch.zeros(2, dtype=F64), atol=1e-14)
    relaxed = GSMConwayMaxwellPoisson(p.rate, p.nu, 0.3)
    assert torch.allclose(kl_divergence(relaxed, q), truth, rtol=1e-11)
    assert torch.allclose(kl_divergence(relaxed, GSMConwayMaxwellPoisson(q.rate, q.nu)), truth, rtol=1e-11)
    assert kl_divergence(law(2.0, 1.0), law(0.0, 1.0)) == math.inf
    assert kl_divergence(law(0.0, 1.0), law(2.0, 1.0)).item() == pytest.approx(2.0)


def test_lost_mass_is_a_bound():
    q = law(6.0, 1.0)
    q._found = com_poisson._stretch(q.rate, q.nu, depth=8.0)
    low, high = q._found.low.item(), q._found.low.item() + q._found.width
    lost = stats.poisson.sf(high - 1, 6.0) + stats.poisson.cdf(low - 1, 6.0)
    assert lost * 0.99 < q.lost_mass.item() < 3 * lost
    assert lost > 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_dtypes(dtype):
    rate = torch.tensor([[0.5], [4.0]], dtype=dtype, requires_grad=True)
    q = ConwayMaxwellPoisson(rate, torch.tensor([0.7, 1.0, 2.0], dtype=dtype))
    assert q.batch_shape == (2, 3)
    for x in (q.mean, q.variance, q.entropy(), q.log_normalizer, q.lost_mass, q.sample()):
        assert x.shape == (2, 3)
        assert x.dtype == dtype
    assert q.log_prob(torch.zeros(5, 1, 1, dtype=dtype)).shape == (5, 2, 3)
    assert q.sample((4, 5)).shape == (4, 5, 2, 3)
    assert q.sample((0,)).shape == (0, 2, 3)
    assert not q.has_rsample
    wide = q.expand((4, 2, 3))
    assert wide.mean.shape == (4, 2, 3)
    assert torch.equal(wide.mean[3], q.mean)
    assert ConwayMaxwellPoisson(torch.empty(0, dtype=dtype)).mean.shape == (0,)
    assert ConwayMaxwellPoisson(2.0, 1.5).rate.dtype == torch.float32
    assert repr(ConwayMaxwellPoisson(2.0, 1.5)) == "ConwayMaxwellPoisson(rate=2, nu=1.5)"
    q.mean.sum().backward()
    assert rate.grad.shape == (2, 1)


def test_float32_keeps_its_digits_at_a_million():
    q = ConwayMaxwellPoisson(torch.tensor(1e6), torch.tensor(1.0))
    assert q.mean.item() == pytest.approx(1e6, rel=1e-6)
    assert q.variance.item() == pytest.approx(1e6, rel=1e-5)
    assert q.log_prob(torch.tensor(1e6)).item() == pytest.approx(stats.poisson.logpmf(10**6, 1e6), rel=1e-6)


@pytest.mark.parametrize("kind", [ConwayMaxwellPoisson, GSMConwayMaxwellPoisson])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1.0, 1.0), "rate must be >= 0 and finite, got -1"),
        ((math.nan, 1.0), "rate must be >= 0 and finite, got nan"),
        ((math.inf, 1.0), "rate must be >= 0 and finite, got inf"),
        ((1.0, -0.5), r"nu must be >= 0 and finite, got -0\.5"),
        ((1.0, math.nan), "nu must be >= 0 and finite, got nan"),
        ((1.0, 0.0), "rate must be < 1 where nu = 0"),
        ((torch.tensor([0.5, 1.5]), 0.0), r"rate must be < 1 where nu = 0 .* got 1\.5 at index \(1,\)"),
        ((torch.ones(2), torch.ones(3)), "rate and nu must broadcast"),
        ((1j, 1.0), "rate must be real"),
    ],
)
def test_bad_parameters(kind, arguments, message):
    with without_shape_checks(), pytest.raises(ValueError, match=message):
        kind(*arguments)


def test_what_is_out_of_reach_says_so():
    with pytest.raises(ValueError, match=r"rate \*\* \(1 / nu\).*below 1e15"):
        ConwayMaxwellPoisson(1e6, 0.3)
    with pytest.raises(ValueError, match="at most 1048576 counts around the mode"):
        law(1 - 1e-7, 0.0)
    with pytest.raises(ValueError, match="value must be >= 0"):
        law(1.0, 1.0).log_prob(torch.tensor(-1.0))
    with pytest.raises(ValueError, match="temperature must be >= 0 and finite"):
        GSMConwayMaxwellPoisson(1.0, 1.0, -0.1)


# --- Gumbel-softmax ---


@pytest.mark.parametrize(("rate", "nu"), [(20.0, 2.0), (0.8, 0.0), (3.0, 0.7)])
@pytest.mark.parametrize("tau", [0.0, 0.5, 2.0])
def test_hard_choice_follows_the_truncated_pmf(rate, nu, tau):
    q = GSMConwayMaxwellPoisson(torch.tensor(rate, dtype=F64), nu, tau, num_categories=6, hard=True)
    exact = law(rate, nu)
    pmf = exact.log_prob(torch.arange(6, dtype=F64)).exp()
    pmf = pmf / pmf.sum()
    n = q.rsample((150_000,))
    assert_frequencies(n, pmf)
    m = torch.arange(6, dtype=F64)
    assert q.mean.item() == pytest.approx((pmf * m).sum().item(), rel=1e-12)
    assert q.variance.item() == pytest.approx((pmf * m**2).sum().item() - (pmf * m).sum().item() ** 2, rel=1e-12)
    planted = law(rate if nu else 0.95 * rate, 1.05 * nu).log_prob(m).exp()
    with pytest.raises(AssertionError):
        assert_frequencies(n, planted / planted.sum())


def test_truncation_is_negligible_and_knows_temperature():
    for rate, nu in ((20.0, 2.0), (0.9, 0.0), (300.0, 1.0), (1e6, 3.0)):
        q = GSMConwayMaxwellPoisson(torch.tensor(rate, dtype=F64), nu, 0.0)
        assert q.mean.item() == pytest.approx(q.exact.mean.item(), rel=1e-6)
        assert q.variance.item() == pytest.approx(q.exact.variance.item(), rel=1e-5)
    numbers = [GSMConwayMaxwellPoisson(20.0, 2.0, tau).num_categories for tau in (0.1, 1.0, 3.0, 10.0)]
    assert numbers[0] == numbers[1] < numbers[2] < numbers[3]


def test_nu_one_is_the_gumbel_softmax_poisson():
    from hitchhiker.relaxations.gumbel_softmax import from_gumbels

    q = GSMConwayMaxwellPoisson(torch.tensor([0.5, 4.0], dtype=F64), 1.0, 0.4, num_categories=20)
    torch.manual_seed(5)
    z = q.rsample((3,))
    torch.manual_seed(5)
    _, noise = q._scores((3,))
    assert torch.allclose(z, from_gumbels(q.rate.expand(3, 2), noise, 0.4), rtol=1e-12)


def test_relaxed_gradients_with_frozen_noise():
    rate = torch.tensor([0.7, 9.0], dtype=F64, requires_grad=True)
    nu = torch.tensor([0.6, 1.8], dtype=F64, requires_grad=True)

    def draw(rate, nu):
        torch.manual_seed(3)
        return GSMConwayMaxwellPoisson(rate, nu, 0.6, num_categories=20).rsample((4,))

    assert torch.autograd.gradcheck(draw, (rate, nu), atol=1e-6)


def test_relaxed_gradient_of_the_mean_is_near_the_exact_one():
    """At τ = 0.1 the bias of GSM is small: the mean pathwise slope in ν is within 5% of d mean/dν."""
    nu = torch.tensor(2.0, dtype=F64, requires_grad=True)
    (truth,) = torch.autograd.grad(ConwayMaxwellPoisson(torch.tensor(20.0, dtype=F64), nu).mean, nu)
    many = torch.full((100_000,), 2.0, dtype=F64, requires_grad=True)
    z = GSMConwayMaxwellPoisson(torch.tensor(20.0, dtype=F64), many, 0.1).rsample()
    (slopes,) = torch.autograd.grad(z.sum(), many)
    error = slopes.std() / math.sqrt(len(slopes))
    assert abs(slopes.mean() - truth) < 0.05 * abs(truth) + 6 * error
    assert 6 * error < 0.2 * abs(truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_relaxed_shapes_and_options(dtype):
    q = GSMConwayMaxwellPoisson(
        torch.tensor([[0.5], [4.0]], dtype=dtype), torch.tensor([0.7, 1.0, 2.0], dtype=dtype), 0.3, num_categories=40
    )
    assert q.rsample((5,)).shape == (5, 2, 3)
    assert q.rsample().dtype == q.sample().dtype == q.log_prob(torch.ones(1, dtype=dtype)).dtype == dtype
    assert torch.equal(q.log_prob(torch.ones(1, dtype=dtype)), q.exact.log_prob(torch.ones(1, dtype=dtype)))
    assert q.rsample_simplex((5,)).shape == (5, 2, 3, 40)
    wide = q.expand((4, 2, 3))
    assert wide.num_categories == 40
    assert wide.batch_shape == wide.rsample().shape == (4, 2, 3)
    with pytest.raises(NotImplementedError, match="average rsample"):
        _ = q.mean
    assert str(GSMConwayMaxwellPoisson(2.0, 1.5, 0.5)) == "GSMConwayMaxwellPoisson(rate=2, nu=1.5, temperature=0.5)"
    with pytest.raises(ValueError, match="num_categories must be a whole number"):
        GSMConwayMaxwellPoisson(2.0, 1.5, 0.5, num_categories=0)
