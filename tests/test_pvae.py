import math

import pytest
import torch

import hitchhiker as hh
from hitchhiker import estimators, linear_decoder
from hitchhiker.models import (
    PoissonVAE,
    ReconstructionError,
    get_method,
    known_methods,
    noise_orientation_index,
    orientation_index,
)
from hitchhiker.models.pvae import _kl_of_log_rates

UNBIASED = [
    "exact",
    "difference",
    "relax",
    "difference:2",
    "straight-through:midpoint",
    "moment-matched",
    "score:none",
    "score:leave-one-out",
]


def small(seed=0, **options):
    """A model with rates of order one, so that counts matter."""
    options = {"prior_log_rates": (-1.0, 0.5), "init_scale": 0.3, **options}
    return PoissonVAE(9, 4, seed, **options)


def data(count=6, pixels=9):
    return torch.randn(count, pixels, generator=torch.Generator().manual_seed(1))


# --- the loss
# --------------------------------------------------------------------------------------------------


def test_log_rates_are_residual_and_softly_bounded():
    model, x = PoissonVAE(9, 4, 0), data()
    posterior, prior = model.log_rates(x)
    expected = model.log_prior_rate + x @ model.encoder.weight.T
    torch.testing.assert_close(posterior, expected, atol=1e-3, rtol=1e-3)  # far below the bound it is the identity
    torch.testing.assert_close(prior, model.log_prior_rate, atol=1e-3, rtol=1e-3)
    assert -6.01 < prior.min() < prior.max() < -3.99
    assert model.rates(1e3 * x).max() <= math.exp(5.3) + 1e-3
    assert torch.isfinite(model.rates(1e6 * x)).all()


def test_kl_is_that_of_two_poisson_laws_and_zero_at_the_prior():
    model, x = small(), data()
    posterior, prior = model.log_rates(x)
    torch.testing.assert_close(_kl_of_log_rates(posterior, prior), hh.poisson_kl(posterior.exp(), prior.exp()))
    _, kl = model.parts(torch.zeros(3, 9), "exact")
    assert (kl == 0).all()


def test_exact_loss_is_the_closed_form_and_the_mean_over_counts():
    model, x = small(), data()
    sse, _ = model.parts(x, "exact")
    closed = linear_decoder.reconstruction_loss(x, model.phi, model.log_rates(x)[0])
    torch.testing.assert_close(sse, closed)
    torch.manual_seed(0)
    counts = torch.poisson(model.rates(x).expand(40_000, 6, 4))
    errors = (x - counts @ model.phi.T).square().sum(-1)
    z = (errors.mean(0) - closed) / (errors.std(0) / 200)
    assert z.abs().max() < 6


@pytest.mark.parametrize("name", [n for n in known_methods() if n not in {"gsm", "eat-sigmoid"}])
def test_every_method_estimates_the_loss_and_trains_all_parameters(name):
    torch.manual_seed(0)
    model, x = small(), data()
    loss = model.loss(x, name, temperature=0.1, num_samples=64)
    assert loss.shape == (6,)
    loss.sum().backward()
    for parameter in model.parameters():
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.abs().max() > 0


@pytest.mark.parametrize("name", UNBIASED)
@pytest.mark.parametrize("target", ["log_prior_rate", "decoder.weight"])
def test_unbiased_methods_have_the_exact_gradient_on_average(name, target):
    """Six standard errors for each entry, over independent repeats."""
    model, x = small(), data()

    def gradient(method, num_samples):
        parameter = model.get_parameter(target)
        (g,) = torch.autograd.grad(model.loss(x, method, temperature=0.5, num_samples=num_samples).sum(), parameter)
        return g.flatten()

    torch.manual_seed(2)
    exact = gradient("exact", 1)
    repeats = torch.stack([gradient(name, 50) for _ in range(60)])
    error = repeats.std(0) / math.sqrt(60)
    z = (repeats.mean(0) - exact) / error.clamp(min=1e-4 * exact.abs().max())
    assert z.abs().max() < 6


def test_the_same_check_catches_plain_straight_through():
    """Power: its bias, ½ of the curvature term, is seen by the test above."""
    model, x = small(), data()
    torch.manual_seed(2)

    def gradient(method):
        loss = model.loss(x, method, num_samples=400).sum()
        return torch.autograd.grad(loss, model.log_prior_rate)[0].flatten()

    exact = gradient("exact")
    repeats = torch.stack([gradient("straight-through") for _ in range(40)])
    assert ((repeats.mean(0) - exact) / (repeats.std(0) / math.sqrt(40))).abs().max() > 6


def test_closed_forms_are_there_only_for_a_linear_decoder():
    linear, mlp, x = small(), small(decoder="mlp"), data()
    assert hasattr(ReconstructionError(x, linear.decode, linear.phi), "expectation")
    assert not hasattr(ReconstructionError(x, mlp.decode, mlp.phi), "expectation")
    assert not hasattr(ReconstructionError(x, mlp.decode, mlp.phi), "curvature")
    with pytest.raises(ValueError, match="'exact' needs a linear decoder"):
        mlp.loss(x, "exact")


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_other_architectures_train_and_evaluate(kind):
    torch.manual_seed(0)
    model = PoissonVAE(64, 5, 0, encoder=kind, decoder=kind, hidden=8)
    x = data(10, 64)
    for name in ("eat-cubic", "difference", "straight-through", "score:leave-one-out"):
        model.loss(x, name).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert model.features.shape == (5, 64)
    assert model.reconstruct(x, 3)[0].shape == (10, 64)
    assert torch.isfinite(model.evaluate(x).neg_elbo)


def test_your_own_modules():
    decoder = torch.nn.Sequential(torch.nn.Linear(4, 9), torch.nn.Tanh())
    model = PoissonVAE(9, 4, encoder=torch.nn.Linear(9, 4), decoder=decoder)
    assert model.loss(data(), "eat-cubic").shape == (6,)


# --- a population
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["exact", "score"])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_population_starts_where_its_models_alone_do(name, kind):
    if name == "exact" and kind == "mlp":
        pytest.skip("exact needs a linear decoder")
    x, options = data(), {"encoder": kind, "decoder": kind, "hidden": 5}
    many, alone = small([3, 8], population=2, **options), [small(s, **options) for s in (3, 8)]
    for p, model in enumerate(alone):
        for key, value in model.named_parameters():
            assert (many.get_parameter(key)[p] == value).all(), key
    loss = many.loss(x, name, num_samples=3)
    assert loss.shape == (2, 6)
    if name == "exact":
        torch.testing.assert_close(loss, torch.stack([m.loss(x, "exact") for m in alone]))
        loss.sum().backward()
        alone[1].loss(x, "exact").sum().backward()
        torch.testing.assert_close(many.decoder.weight.grad[1], alone[1].decoder.weight.grad)


@pytest.mark.parametrize("name", ["eat-cubic", "gsm", "difference", "moment-matched", "straight-through:midpoint"])
def test_population_gradients_have_the_right_mean(name):
    """Each model's gradient, averaged, is within six standard errors of the same model's alone (exact
    where it is)."""
    torch.manual_seed(0)
    many, x = small([3, 8], population=2), data()
    alone = small(8)

    def gradient(model):
        loss = model.loss(x, name, temperature=0.5, num_samples=40).sum()
        return torch.autograd.grad(loss, model.log_prior_rate)[0]

    a = torch.stack([gradient(many)[1] for _ in range(30)])
    b = torch.stack([gradient(alone) for _ in range(30)])
    z = (a.mean(0) - b.mean(0)) / ((a.var(0) + b.var(0)) / 30).sqrt()
    assert z.abs().max() < 6


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_models_of_a_population_may_have_different_methods(kind):
    """Each model's mean gradient is that of the same model alone with its own method and temperature."""
    torch.manual_seed(0)
    methods = ["difference", "eat-cubic", "eat-cubic", "score", "straight-through"]
    temperatures = torch.tensor([0.0, 0.2, 0.9, 0.0, 0.0])
    options = {"decoder": kind, "hidden": 5}
    many, x = small(range(5), population=5, **options), data()

    def gradient(model, method, temperature):
        loss = model.loss(x, method, temperature=temperature, num_samples=40)
        return torch.autograd.grad(loss.sum(), model.log_prior_rate)[0]

    draws = torch.stack([gradient(many, methods, temperatures) for _ in range(30)])
    together = draws.mean(0), draws.var(0)
    for p, method in enumerate(methods):
        alone = small(p, **options)
        draws = torch.stack([gradient(alone, method, float(temperatures[p])) for _ in range(30)])
        z = (together[0][p] - draws.mean(0)) / ((together[1][p] + draws.var(0)) / 30).sqrt()
        assert z.abs().max() < 6, method


def test_exact_beside_sampled_models():
    x, many = data(), small([3, 8], population=2)
    loss = many.loss(x, ["exact", "eat-cubic"])
    torch.testing.assert_close(loss[0], small(3).loss(x, "exact"))
    with pytest.raises(ValueError, match="method must be one, or one for each of a population's 2 models, got 3"):
        many.loss(x, ["exact"] * 3)
    with pytest.raises(ValueError, match="population's None models, got 1"):
        small().loss(x, ["exact"])


def test_temperatures_of_a_population_differ_by_model():
    """At τ = 0.01 almost all counts are whole, at τ = 1 almost none."""
    torch.manual_seed(0)
    many = small([1, 1], population=2)
    seen = []
    decode = many.decode
    many.decode = lambda z: seen.append(z.detach()) or decode(z)
    many.loss(data(), "eat-cubic", temperature=torch.tensor([0.01, 1.0]), num_samples=50)
    whole = (seen[0] == seen[0].round()).double().mean(dim=(0, 2, 3))
    assert whole[0] > 0.9
    assert whole[1] < 0.6


# --- evaluation
# ------------------------------------------------------------------------------------------------


def test_evaluation_agrees_with_the_closed_form_and_states_its_error():
    model, x = small(), data(200)
    result = model.evaluate(x, num_samples=100)
    sse, kl = (part.mean() for part in model.parts(x, "exact"))
    assert abs(result.neg_elbo - (sse + kl)) < 6 * result.monte_carlo_error
    assert result.monte_carlo_error < 0.05 * result.standard_error * 10
    torch.testing.assert_close(result.kl.float(), kl)
    per_patch = result.per_patch
    assert result.standard_error == pytest.approx(float(per_patch.std() / math.sqrt(200)))
    assert result.nats - result.neg_elbo == pytest.approx(4.5 * math.log(math.pi))


def test_monte_carlo_error_is_the_spread_over_seeds():
    model, x = small(), data(50)
    runs = torch.stack([model.evaluate(x, num_samples=10, seed=s).neg_elbo for s in range(60)])
    ratio = runs.std() / model.evaluate(x, num_samples=10).monte_carlo_error
    assert 0.6 < ratio < 1.5  # a standard deviation of 60 draws is known to 9%


def test_evaluation_limits():
    """A silent model: SSE is the data's own, no KL, nothing but zeros."""
    model, x = small(), data(50)
    with torch.no_grad():
        model.log_prior_rate.fill_(-40)
        model.encoder.weight.zero_()
    result = model.evaluate(x)
    torch.testing.assert_close(result.sse.float(), x.square().sum(1).mean())
    assert (result.kl, result.zeros, result.lifetime_sparsity) == (0, 1, 0)


def test_lifetime_sparsity_of_known_responses():
    from hitchhiker.models.pvae import _lifetime_sparsity

    counts = torch.tensor([[1.0, 4.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]).double()
    # constant: 0; one response in four: 1; never: not counted
    value = _lifetime_sparsity(counts.sum(0), counts.square().sum(0), 4)
    assert value == pytest.approx(0.5)


def test_evaluation_leaves_the_callers_random_numbers_alone():
    model, x = small(), data(20)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    model.evaluate(x)
    model.importance_bound(x)
    assert (torch.rand(3) == expected).all()


def test_importance_bound_tightens_with_samples():
    model, x = small(), data(50)
    elbo = model.evaluate(x, 200).nats
    assert model.importance_bound(x, 500).mean() < elbo
    ones = torch.stack([model.importance_bound(x, 1, seed).mean() for seed in range(40)])
    assert abs(ones.mean() - elbo) < 6 * ones.std() / math.sqrt(40)  # with one sample it is the ELBO


def test_importance_bound_tends_to_the_marginal_likelihood():
    """One latent: ln p(x) by summing over all counts."""
    model = PoissonVAE(2, 1, prior_log_rates=(0.0, 0.0), init_scale=0.3)
    x = data(4, 2)
    counts = torch.arange(60.0)
    prior = model.log_rates(x)[1].exp().squeeze()
    log_prior = counts * prior.log() - prior - torch.lgamma(counts + 1)
    errors = (x[:, None] - model.decode(counts[:, None])).square().sum(-1)
    truth = -(log_prior - errors - math.log(math.pi)).logsumexp(1)
    torch.testing.assert_close(model.importance_bound(x, 20_000), truth, atol=0.03, rtol=0)


# --- features
# --------------------------------------------------------------------------------------------------


def test_orientation_index_of_gratings_blobs_and_noise():
    y, x = torch.meshgrid(torch.arange(16.0) - 7.5, torch.arange(16.0) - 7.5, indexing="ij")
    envelope = torch.exp(-(x**2 + y**2) / 18)
    for angle in (0.0, 0.4, math.pi / 4, 2.0):
        gabor = envelope * torch.cos(2 * math.pi * (x * math.cos(angle) + y * math.sin(angle)) / 5)
        assert orientation_index(gabor.flatten()) > 0.75
    ring = envelope * torch.cos(2 * math.pi * (x**2 + y**2).sqrt() / 5)
    assert orientation_index(ring.flatten()) < 0.05
    assert orientation_index(torch.ones(256)) == 0
    assert 0.15 < noise_orientation_index(256) < 0.25
    with pytest.raises(ValueError, match="square number of pixels, got 15"):
        orientation_index(torch.zeros(15))


# --- methods and errors
# ----------------------------------------------------------------------------------------


def test_registry():
    for name in known_methods():
        assert get_method(name).name in {name, "score:moving-average"}
    assert get_method("score").baseline == "moving_average"
    assert get_method("eat-sigmoid").estimator is estimators.pathwise
    with pytest.raises(ValueError, match=r"method must be one of .*eat-cubic.* got 'eat-qubic'"):
        get_method("eat-qubic")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_latents": 0}, "num_latents must be >= 1, got 0"),
        ({"init_scale": 0.0}, "init_scale must be > 0, got 0.0"),
        ({"prior_log_rates": (-4, -6)}, r"prior_log_rates must be \(low, high\)"),
        ({"encoder": "cnn"}, r"encoder must be one of .* got 'cnn'"),
        ({"decoder": "conv", "num_pixels": 10}, "num_pixels must be the square of a multiple of 4 .* got 10"),
        ({"population": 2, "encoder": "conv", "num_pixels": 16}, "population must be None"),
        ({"population": 2, "seed": [1]}, "seed must have one entry for each"),
        ({"seed": [1, 2]}, "seed must be one number unless population is given"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        PoissonVAE(**{"num_pixels": 9, "num_latents": 4, **arguments})


@pytest.mark.parametrize("num_samples", [0, -1])
@pytest.mark.parametrize("name", ["reconstruct", "importance_bound"])
def test_no_samples_are_refused(name, num_samples):
    with pytest.raises(ValueError, match="num_samples must be a whole number >= 1"):
        getattr(PoissonVAE(4, 2), name)(torch.zeros(3, 4), num_samples)


def test_bad_input():
    with pytest.raises(ValueError, match="x must have 9 pixels"):
        small().loss(torch.zeros(3, 8))
    with pytest.raises(ValueError, match="num_samples must be >= 2, got 1"):
        small().evaluate(data(), 1)
