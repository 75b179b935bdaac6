"""The Gaussian VAE: its closed forms against sampling, its optimum against probabilistic principal components."""

import math

import pytest
import torch

from hitchhiker import training
from hitchhiker.models import GaussianVAE, best_linear_gaussian
from hitchhiker.training import fit


def data(count=500, scales=(2.0, 1.5, 1.0, 0.4)):
    generator = torch.Generator().manual_seed(0)
    rotation, _ = torch.linalg.qr(torch.randn(len(scales), len(scales), generator=generator))
    return torch.randn(count, len(scales), generator=generator) * torch.tensor(scales) @ rotation


def test_closed_form_is_the_mean_over_codes():
    torch.manual_seed(0)
    model, x = GaussianVAE(4, 3, init_scale=0.5), data(5)
    sse, kl = model.parts(x)
    mean, log_scale = model.code(x)
    q = torch.distributions.Normal(mean, log_scale.exp())
    z = q.sample((40_000,))
    errors = (x - model.decoder(z)).square().sum(-1)
    assert ((errors.mean(0) - sse) / (errors.std(0) / 200)).abs().max() < 6
    standard = torch.distributions.Normal(0.0, 1.0)
    torch.testing.assert_close(kl, torch.distributions.kl_divergence(q, standard).sum(-1))


@pytest.mark.parametrize("num_latents", [2, 4])
def test_training_ends_at_the_known_optimum(num_latents):
    """Within 3% of what no linear Gaussian VAE can beat, and never below it."""
    x = data()
    model = GaussianVAE(4, num_latents)
    fit(model, x, method="exact", epochs=150, batch_size=100, lr=0.05)
    best, ours = best_linear_gaussian(x, x, num_latents), float(model.evaluate(x).neg_elbo)
    assert best - 1e-6 < ours < 1.03 * best


def test_the_optimum_is_the_marginal_likelihood_of_principal_components():
    x = data().double()
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    phi = vectors[:, -2:] * (values[-2:] - 0.5).sqrt()
    law = torch.distributions.MultivariateNormal(torch.zeros(4).double(), phi @ phi.T + 0.5 * torch.eye(4))
    expected = -law.log_prob(x).mean() - 2 * math.log(math.pi)
    assert best_linear_gaussian(x, x, 2) == pytest.approx(float(expected))
    silent = best_linear_gaussian(0.1 * x, 0.1 * x, 2)
    assert silent == pytest.approx(float(0.01 * x.square().sum(1).mean()))  # too little variance to pay for a code


def test_a_run_is_kept_and_read_back(tmp_path):
    x, model = data(), GaussianVAE(4, 3)
    fit(model, x, x[:50], out=tmp_path, method="exact", epochs=2)
    loaded = training.load_model(tmp_path)
    assert isinstance(loaded, GaussianVAE)
    assert loaded.evaluate(x).as_dict() == model.evaluate(x).as_dict()


def test_bad_arguments():
    with pytest.raises(ValueError, match="num_latents must be >= 1, got 0"):
        GaussianVAE(4, 0)
    with pytest.raises(ValueError, match="method must be 'exact' for a GaussianVAE, got 'eat-cubic'"):
        fit(GaussianVAE(4, 3), data(), method="eat-cubic")
    with pytest.raises(ValueError, match="num_latents must be >= 1, got 0"):
        best_linear_gaussian(data(), data(), 0)
