"""Laws with a random gain; exact gradients and the difference estimator of any law; which law made the spikes."""

import math

import mpmath as mp
import numpy as np
import pytest
import torch
from laws import without_shape_checks

import hitchhiker as hh
from hitchhiker import dispersion, moments
from hitchhiker import dispersion_figures as df
from hitchhiker.models import GLM
from hitchhiker.models.glm import get_observation
from hitchhiker.models.negative_binomial_vae import NegativeBinomialVAE
from hitchhiker.relaxations.doubly_stochastic import GAINS, EATModulatedPoisson
from hitchhiker.testing import assert_mean, z_scores


def double(x):
    return torch.tensor(x, dtype=torch.float64)


# --- the law with a gain


@pytest.mark.parametrize("gain", GAINS)
@pytest.mark.parametrize(("rate", "variance", "tau"), [(4.0, 0.5, 0.5), (0.5, 2.0, 0.2), (10.0, 0.05, 2.0)])
def test_moments_of_the_modulated_count(gain, rate, variance, tau):
    q = EATModulatedPoisson(rate=double(rate), gain_variance=variance, gain=gain, temperature=tau)
    z = q.rsample((400_000,))
    c, v = moments.mean_factor("cubic", tau), moments.variance_factor("cubic", tau)
    assert q.mean.item() == pytest.approx(rate * c, rel=1e-12)
    assert q.variance.item() == pytest.approx(v * rate + c**2 * variance * rate**2, rel=1e-12)
    assert_mean(z, q.mean)
    assert_mean((z - q.mean).square(), q.variance)
    with pytest.raises(AssertionError):
        assert_mean(z, 1.03 * q.mean)
    with pytest.raises(AssertionError):
        assert_mean((z - q.mean).square(), 1.15 * q.variance)


@pytest.mark.parametrize("gain", GAINS)
def test_pathwise_gradients_of_mean_and_variance(gain):
    """dE z²/dλ and dE z²/dσ² of the relaxed law, from its closed form, at six sigma."""
    lam, s = double(3.0).requires_grad_(), double(0.3).requires_grad_()
    q = EATModulatedPoisson(rate=lam, gain_variance=s, gain=gain, temperature=0.4)
    truth = torch.autograd.grad(q.variance + q.mean**2, (lam, s))
    many = [x.detach().expand(300_000).clone().requires_grad_() for x in (lam, s)]
    z = EATModulatedPoisson(rate=many[0], gain_variance=many[1], gain=gain, temperature=0.4).rsample()
    for one, expected in zip(torch.autograd.grad(z.square().sum(), many), truth, strict=True):
        assert_mean(one, expected)
        with pytest.raises(AssertionError):
            assert_mean(one, 1.15 * expected)


def test_a_gamma_gain_is_the_negative_binomial():
    lam, s, n = double([0.5, 4.0, 30.0]), 0.4, torch.arange(60, dtype=torch.float64)[:, None]
    a = EATModulatedPoisson(rate=lam, gain_variance=s).log_prob(n)
    b = hh.EATNegativeBinomial(double(1 / s), 1 / (1 + s * lam)).log_prob(n)
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("gain", GAINS)
def test_small_gains_become_poisson(gain):
    n, lam = torch.arange(30, dtype=torch.float64), double(4.0)
    poisson = torch.distributions.Poisson(lam).log_prob(n)
    still = EATModulatedPoisson(rate=lam, gain_variance=0.0, gain=gain)
    torch.testing.assert_close(still.log_prob(n), poisson, rtol=1e-12, atol=1e-12)
    # the expansion and the full formula meet where one takes over from the other
    below, above = (EATModulatedPoisson(rate=lam, gain_variance=x, gain=gain).log_prob(n) for x in (0.99e-7, 1.01e-7))
    torch.testing.assert_close(below, above, rtol=1e-6, atol=1e-6)
    s = double(0.0).requires_grad_()
    (slope,) = torch.autograd.grad(EATModulatedPoisson(rate=lam, gain_variance=s, gain=gain).log_prob(double(7.0)), s)
    assert slope.item() == pytest.approx(((7 - 4) ** 2 - 7) / 2)
    s = torch.zeros(50, requires_grad=True)
    z = EATModulatedPoisson(rate=lam.float(), gain_variance=s, gain=gain, temperature=0.5).rsample()
    assert not torch.autograd.grad(z.sum(), s)[0].any()


@pytest.mark.parametrize("gain", GAINS)
def test_extremes(gain):
    rate = torch.tensor([0.0, 1e-6, 1e5], requires_grad=True)
    q = EATModulatedPoisson(rate=rate, gain_variance=0.5, gain=gain, temperature=0.5)
    z = q.rsample((200,))
    (slope,) = torch.autograd.grad(z.sum(), rate)
    assert bool(z.isfinite().all() & slope.isfinite().all())
    p = q.log_prob(torch.tensor([[0.0], [1.0]]))
    assert p[:, 0].tolist() == [0.0, -math.inf]
    (slope,) = torch.autograd.grad(p[0].sum(), rate)
    assert bool(slope.isfinite().all())


# --- exact gradients and the difference estimator


@pytest.mark.parametrize(("r", "mu"), [(3.0, 0.4), (0.3, 0.2), (12.0, 0.85)])
def test_negative_binomial_identities(r, mu):
    """∂/∂μ by a size-biased Gamma and ∂/∂r by logarithmic bursts, against the slope of the enumerated expectation."""
    for f in (torch.square, lambda n: torch.exp(-n / 3), lambda n: torch.cos(n)):
        leaves = [double(x).requires_grad_() for x in (r, mu)]
        exact = torch.autograd.grad(dispersion.expectation(f, hh.EATNegativeBinomial(*leaves), 1e-14), leaves)
        ours = dispersion.negative_binomial_slopes(f, r, mu)
        for a, b in zip(ours, exact, strict=True):
            assert a == pytest.approx(b.item(), rel=1e-7, abs=1e-9)
        # without the size bias the first identity is wrong
        n = torch.arange(2000, dtype=torch.float64)
        pmf = hh.EATNegativeBinomial(double(r), mu).log_prob(n).exp()
        assert abs(-(r / mu**2) * float((pmf * (f(n + 1) - f(n))).sum()) / exact[1].item() - 1) > 1e-3


LAWS = {
    "negative binomial": (lambda r, mu: hh.EATNegativeBinomial(r, mu), (3.0, 0.4)),
    "COM-Poisson": (lambda rate, nu: hh.ConwayMaxwellPoisson(rate, nu), (9.0, 2.0)),
    "log-normal gain": (lambda rate, s: EATModulatedPoisson(rate=rate, gain_variance=s, gain="lognormal"), (3.0, 0.5)),
    "Erlang": (lambda rate: hh.EATErlang(rate=rate, stages=3), (4.0,)),
    "Poisson": (lambda rate: hh.EATPoisson(rate=rate), (4.0,)),
}


@pytest.mark.parametrize("name", LAWS)
def test_difference_is_unbiased_for_every_law_and_parameter(name):
    build, at = LAWS[name]

    def f(n):
        return torch.exp(-n / 3)

    one = [double(x).requires_grad_() for x in at]
    exact = torch.autograd.grad(dispersion.expectation(f, build(*one)), one)
    repeats, size = 40, 2000
    many = [double(x).expand(1).clone().requires_grad_() for x in at]
    seen = torch.stack(
        [
            torch.cat(torch.autograd.grad(dispersion.count_difference(f, build(*many), size).sum(), many))
            for _ in range(repeats)
        ]
    )
    truth = torch.stack(exact)
    if name != "Poisson":
        assert bool((seen.std(dim=0) > 0).all())
    assert bool((z_scores(seen, truth).abs() < 6).all())
    assert bool((z_scores(seen, 1.1 * truth).abs() > 6).any())


def test_tables_report_what_they_leave_out():
    table, lost = dispersion.log_pmf_table(hh.EATNegativeBinomial(double([3.0, 0.2]), 0.3), 1e-9)
    assert 0 <= lost <= 1e-9
    assert bool((1 - table.exp().sum(dim=0) <= 1e-9).all())
    with pytest.raises(ValueError, match="q must have all but 1e-12 of its mass below 65536 counts"):
        dispersion.log_pmf_table(hh.EATNegativeBinomial(double(1.0), 1e-5))
    with pytest.raises(ValueError, match="tail must be between 0 and 1, got 0"):
        dispersion.log_pmf_table(hh.EATPoisson(rate=1.0), 0)


@pytest.mark.parametrize(("mean", "fano"), [(4.0, 0.5), (0.5, 0.8), (20.0, 0.25), (5.0, 2.0)])
def test_com_poisson_by_mean_and_fano_factor(mean, fano):
    rate, nu = dispersion.com_poisson_of(mean, fano)
    q = hh.ConwayMaxwellPoisson(double(rate), nu)
    assert q.mean.item() == pytest.approx(mean, rel=1e-8)
    assert (q.variance / q.mean).item() == pytest.approx(fano, rel=1e-8)


def test_wasserstein_to_a_law():
    z = torch.poisson(torch.full((2000,), 3.0), generator=torch.Generator().manual_seed(0))
    q = hh.EATPoisson(rate=3.0)
    assert dispersion.wasserstein(z, q) == pytest.approx(hh.fidelity.wasserstein(z, 3.0), abs=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dispersion.com_poisson_of(0.5, 0.4), "fano must be above 0.5 and below 1.5 at mean 0.5, got 0.4"),
        (lambda: dispersion.com_poisson_of(-1.0, 0.4), "mean must be > 0, got -1"),
        (lambda: dispersion.com_poisson_of(4.0, 9.0), "fano must be above 0 and below 5"),
        (lambda: dispersion.count_difference(torch.square, hh.EATPoisson(rate=1.0), 0), "num_samples must be"),
        (lambda: dispersion.wasserstein(torch.ones(3), hh.EATPoisson(rate=torch.ones(2))), "q must be one law"),
        (lambda: dispersion.simulate_counts(GLM(torch.zeros(1, 1, 1), torch.zeros(1)), 0, 5), "sequences must be"),
        (lambda: df.whole_law(torch.ones(1), 0.3), "fano must be 1/k for a whole k >= 1 to have Erlang waits, got 0.3"),
        (lambda: df.whole_law(torch.ones(1), 0.5, "normal"), "kind must be one of"),
        (lambda: df.spiking_model("none"), "truth must be one of"),
        (lambda: df.gradient_rows([1.0], [0.1], functions=["z"]), "functions must be among"),
        (lambda: df.fidelity_rows([1.0], [0.1], num_trials=1), "num_samples and num_trials must be >= 2"),
        (lambda: NegativeBinomialVAE(16, 3, gain_variance=0.0), "gain_variance must be > 0 and finite, got 0"),
        (lambda: NegativeBinomialVAE(16, 3, population=2), "population must be None"),
        (lambda: NegativeBinomialVAE(16, 3, decoder="mlp"), "decoder must be 'linear'"),
        (lambda: NegativeBinomialVAE(16, 3).loss(torch.zeros(2, 16), "gsm"), "method must be 'exact' or 'eat-…'"),
        (lambda: NegativeBinomialVAE(16, 3).loss(torch.zeros(2, 15), "exact"), "x must have 16 pixels"),
    ],
)
def test_bad_arguments(call, message):
    with without_shape_checks(), pytest.raises(ValueError) as error:  # noqa: PT011
        call()
    assert message in str(error.value)


def test_documented_limits_of_the_laws():
    """Small r, extreme μ, ν → 0 and a divergent normaliser: an error that names the argument, or a finite answer."""
    with pytest.raises(ValueError, match="rate must be < 1 where nu = 0"):
        hh.ConwayMaxwellPoisson(1.0, 0.0)
    assert hh.ConwayMaxwellPoisson(double(0.5), 0.0).mean.item() == pytest.approx(1.0)  # geometric
    near = hh.ConwayMaxwellPoisson(double(0.9), 1e-6)
    assert near.mean.item() == pytest.approx(9.0, rel=1e-3)
    assert near.lost_mass.item() < 1e-15
    with pytest.raises(ValueError, match="rate and nu must need at most"):
        hh.ConwayMaxwellPoisson(1.0, 1e-9)
    for mu in (0.0, 1.0):
        with pytest.raises(ValueError, match="probs must be strictly between 0 and 1"):
            hh.EATNegativeBinomial(1.0, mu)
    with pytest.raises(ValueError, match="total_count must be > 0"):
        hh.EATNegativeBinomial(0.0, 0.5)
    tiny = hh.EATNegativeBinomial(double(1e-8), 0.5)
    p = tiny.log_prob(torch.arange(3, dtype=torch.float64))
    assert p[0].item() == pytest.approx(1e-8 * math.log(0.5), rel=1e-6)  # P(0) = μ^r
    assert p[1].item() == pytest.approx(math.log(0.5e-8), rel=1e-6)
    assert not tiny.rsample((1000,)).any()


# --- observation laws and the models


@pytest.mark.parametrize(("name", "spread"), [("negative-binomial", 0.3), ("com-poisson", 2.0), ("com-poisson", 0.4)])
def test_observation_laws(name, spread):
    """Normalised, sampled from what they state, twice differentiable."""
    law, n = get_observation(name), torch.arange(400, dtype=torch.float64)[:, None]
    rate, d = double([0.5, 4.0, 11.0]), double(spread).expand(3)
    pmf = law.log_prob(n, rate, d).exp()
    torch.testing.assert_close(pmf.sum(0), torch.ones(3, dtype=torch.float64), rtol=1e-9, atol=0)
    mean = (pmf * n).sum(0)
    assert_mean(law.sample(rate.expand(50_000, 3), d), mean)
    if name == "negative-binomial":
        torch.testing.assert_close(mean, rate, rtol=1e-8, atol=0)
    inputs = (rate.clone().requires_grad_(), d.clone().requires_grad_())
    counts = double([1.0, 3.0, 20.0])
    assert torch.autograd.gradcheck(lambda a, b: law.log_prob(counts, a, b), inputs)
    assert torch.autograd.gradgradcheck(lambda a, b: law.log_prob(counts, a, b), inputs)


@pytest.mark.parametrize("truth", df.TRUTHS)
def test_the_right_law_is_recovered(truth):
    """Held-out likelihood prefers the law that made the counts, and its dispersion is within five standard errors."""
    rows = {row["law"]: row for row in df.recovery_rows(truth, sequences=20, seed=1)}
    made_by, spread = df.TRUTHS[truth]
    for law, row in rows.items():
        assert row["gain"] <= 3 * row["gain_se"] + 1e-9
        if truth != "poisson" and law == "poisson":
            assert row["gain"] < -6 * row["gain_se"]
    if spread is not None:
        for value, error in zip(rows[made_by]["dispersion"], rows[made_by]["log_error"], strict=True):
            assert abs(math.log(value / spread)) < 5 * error
            assert error < 0.2
    else:
        (nu, error) = (np.array(rows["com-poisson"][k]) for k in ("dispersion", "log_error"))
        assert (np.abs(np.log(nu)) < 5 * error).all()


def test_negative_binomial_vae_losses():
    """The closed form against whole counts, the divergence against torch's, and the limit a → 0 against the Poisson VAE."""
    torch.manual_seed(0)
    x = torch.randn(4, 16)
    model = NegativeBinomialVAE(16, 3, seed=1, gain_variance=0.5, prior_log_rates=(-1.0, 0.0), init_scale=0.3)
    with torch.no_grad():
        sse, kl = model.parts(x, "exact")
        u, v = model.log_rates(x)
        r = (1 / model.gain_variance).expand_as(u)
        p, q = (hh.EATNegativeBinomial(r, r / (r + w.exp())) for w in (u, v.expand_as(u)))
        torch.testing.assert_close(kl, torch.distributions.kl_divergence(p, q).sum(-1), rtol=1e-4, atol=1e-5)
        n = p.sample((100_000,))
        assert_mean((x - model.decode(n)).square().sum(-1), sse)
        soft = model.parts(x, "eat-cubic", 0.1, 20_000)[0]
        lost = 9 / 35 * 0.1 * (u.exp() * model.phi.square().sum(0)).sum(-1)
        torch.testing.assert_close(soft, sse - lost, rtol=0.03, atol=0.05)
        plain = hh.models.PoissonVAE(16, 3, seed=1, prior_log_rates=(-1.0, 0.0), init_scale=0.3)
        model.log_gain_variance.fill_(math.log(1e-3))
        torch.testing.assert_close(model.loss(x, "exact"), plain.loss(x, "exact"), rtol=2e-3, atol=2e-3)
    loss = model.loss(x, "eat-cubic", temperature=0.5).sum()
    assert bool(torch.autograd.grad(loss, model.log_gain_variance)[0].isfinite().all())
    assert model.evaluate(x).neg_elbo.item() == pytest.approx(model.loss(x, "exact").mean().item(), rel=1e-5)


def test_when_bursts_pay():
    """d loss/d a at a = 0 is Σ d_k m² - ½ (m - r)²: a gain pays only for features with ‖φ_k‖² below ½ (1 - r/m)²."""
    x = torch.randn(6, 16)
    model = NegativeBinomialVAE(16, 3, seed=1, gain_variance=1e-3, prior_log_rates=(-1.0, 0.0), init_scale=0.3)
    model.double()
    (slope,) = torch.autograd.grad(model.loss(x.double(), "exact").sum(), model.log_gain_variance)
    u, v = model.log_rates(x.double())
    m, r0 = u.exp(), v.exp()
    by_hand = (model.phi.square().sum(0) * m.square() - (m - r0).square() / 2).sum(0)
    torch.testing.assert_close(slope / model.gain_variance, by_hand, rtol=2e-2, atol=1e-3)


def test_figures_draw_what_was_measured():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    rows = df.fidelity_rows([0.5, 2.0], [0.5], num_samples=50, num_trials=2)
    figure = df.draw_fidelity(rows, "title", lambda fano, tau: 1.0)
    assert len(figure.axes) == 4
    slopes = df.gradient_rows([0.5], [0.5], draws=50)
    assert {row["kind"] for row in slopes} == {"eat", "gsm", "score", "difference"}
    assert len(df.draw_gradients(slopes, "z²", "title").axes) == 2
    matplotlib.pyplot.close("all")
    with pytest.raises(ValueError, match="rows must not be empty"):
        df.draw_fidelity([], "title")
    with pytest.raises(ValueError, match="unit_waits must be positive and at least one"):
        df.erlang_clock([1.0, -1.0])


@pytest.mark.parametrize("gain", GAINS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_of_the_modulated_count(gain, dtype):
    lam = torch.tensor(3.0, dtype=dtype, requires_grad=True)
    for q in (EATModulatedPoisson(lam, gain_variance=0.3, gain=gain), EATModulatedPoisson(log_rate=lam)):
        for z in (q.rsample((50,)), q.sample((50,)), q.mean, q.variance):
            assert z.dtype == dtype
            assert bool(z.isfinite().all())
        assert bool(torch.autograd.grad(q.rsample((50,)).sum(), lam)[0].isfinite())


@pytest.mark.parametrize("gain", GAINS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slopes_in_any_small_gain_variance_are_finite(gain, dtype):
    s = (10.0 ** torch.arange(-37, 1).to(dtype)).expand(500, -1).clone().requires_grad_()
    z = EATModulatedPoisson(torch.tensor(4.0, dtype=dtype), gain_variance=s, gain=gain, temperature=0.5).rsample()
    assert bool(torch.autograd.grad(z.sum(), s)[0].isfinite().all())


@pytest.mark.parametrize(("rate", "beyond"), [(1e2, 5.0), (1e6, 5.0), (1e6, -5.0), (1e6, 50.0)])
@pytest.mark.parametrize("variance", [1e-12, 9.9e-8, 1.01e-7, 9.9e-6, 1.01e-5, 1e-3])
def test_log_prob_near_poisson_has_no_jump(rate, beyond, variance):
    n = max(0.0, round(rate + beyond * math.sqrt(rate)))
    s = double(variance).requires_grad_()
    found = EATModulatedPoisson(double(rate), gain_variance=s).log_prob(double(n))
    mp.mp.dps = 50

    def truth(v):
        r, x = 1 / v, v * rate
        ways = mp.loggamma(n + r) - mp.loggamma(r) - mp.loggamma(n + 1)
        return ways + n * mp.log(x / (1 + x)) - r * mp.log(1 + x)

    v = mp.mpf(variance)
    assert found.item() == pytest.approx(float(truth(v)), abs=1e-7)
    slope = float(mp.diff(truth, v, h=v * mp.mpf(10) ** -15))
    assert torch.autograd.grad(found, s)[0].item() == pytest.approx(slope, rel=1e-3)


AT_ZERO = {
    "Poisson": (hh.EATPoisson, -1.0),
    "gamma": (lambda rate: EATModulatedPoisson(rate, gain_variance=0.5), -1.0),
    "log-normal": (lambda rate: EATModulatedPoisson(rate, gain_variance=0.5, gain="lognormal"), -1.0),
    "Erlang": (lambda rate: hh.EATErlang(rate, stages=3), -1.0),
    "Erlang, ordinary": (lambda rate: hh.EATErlang(rate, stages=3, ordinary=True), 0.0),
}


@pytest.mark.parametrize("name", AT_ZERO)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slopes_at_rate_zero(name, dtype):
    """P(0) = 1 - λ + … and P(1) = λ - …, so that d ln P(0) = -1 and dE f = f(1) - f(0); for an ordinary start, 0."""
    law, slope = AT_ZERO[name]
    rate = torch.tensor([0.0, 2.0], dtype=dtype, requires_grad=True)
    log_prob = law(rate).log_prob(torch.tensor(0.0))
    assert log_prob[0] == 0
    by_mean = dispersion.expectation(lambda n: (n - 3) ** 2, law(rate))
    by_difference = dispersion.count_difference(lambda n: (n - 3) ** 2, law(rate), 100)
    for value, expected in ((log_prob, slope), (by_mean, -5 * -slope), (by_difference, -5 * -slope)):
        found = torch.autograd.grad(value.sum(), rate)[0]
        assert found[0].item() == pytest.approx(expected, abs=1e-5)
        assert bool(found.isfinite().all())
    assert by_mean[0].item() == 9
