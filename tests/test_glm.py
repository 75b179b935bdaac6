import math

import pytest
import torch
from torch.nn import functional

from hitchhiker.models import GLM, Observation, choose_history, fit_glm
from hitchhiker.models import glm as module
from hitchhiker.testing import SIGMAS


def simulate(weights, bias, sequences, bins, link=functional.softplus):
    """Counts (sequences, T, N) of one model with weights (N, N, K), bin by bin: the slow, plain way."""
    x = torch.zeros(sequences, bins, len(bias))
    for t in range(bins):
        drive = bias.expand(sequences, -1)
        for k in range(1, min(t, weights.shape[-1]) + 1):
            drive = drive + x[:, t - k] @ weights[..., k - 1].T
        x[:, t] = torch.poisson(link(drive))
    return x


WEIGHTS = torch.tensor([[[0.3, -0.2], [-0.5, 0.0]], [[0.4, 0.1], [0.2, -0.3]]])
BIAS = torch.tensor([0.0, -0.5])


@pytest.mark.parametrize("link", ["softplus", "exp", "sigmoid"])
def test_the_truth_is_within_the_standard_errors(link):
    weights = 0.4 * WEIGHTS
    x = simulate(weights, BIAS, 100, 100, module.LINKS[link].rate)
    fit = fit_glm(x, history=2, link=link)
    assert bool(fit.converged.all())
    z = torch.cat([((fit.weights - weights) / fit.errors["weights"]).flatten(), (fit.bias - BIAS) / fit.errors["bias"]])
    assert bool((z.abs() < SIGMAS).all()), z
    assert 0.4 < float(z.square().mean()) < 2.5  # errors are neither far too small nor far too large


def test_rates_of_a_given_model_are_the_sum_written_out():
    x = simulate(WEIGHTS, BIAS, 3, 20)
    rate = GLM(WEIGHTS, BIAS).rate(x)
    t, n = 7, 1
    drive = BIAS[n] + sum(float(WEIGHTS[n, m, k] * x[2, t - 1 - k, m]) for m in range(2) for k in range(2))
    assert float(rate[2, t, n]) == pytest.approx(math.log1p(math.exp(drive)), rel=1e-6)
    assert float(rate[0, 0, 0]) == pytest.approx(math.log(2), rel=1e-6)  # nothing before the first bin


def test_no_gradient_is_left_and_no_step_improves():
    x = simulate(WEIGHTS, BIAS, 20, 50)
    fit = fit_glm(x, history=2, ridge=0.0)
    best = float(fit.log_likelihood(x).sum())
    for step in (0.05, -0.05):
        assert float(GLM(fit.weights + step, fit.bias).log_likelihood(x).sum()) < best
        assert float(GLM(fit.weights, fit.bias + step).log_likelihood(x).sum()) < best


def test_data_sets_in_a_batch_are_fitted_as_if_alone():
    x = torch.stack([simulate(WEIGHTS, BIAS, 10, 60), simulate(-WEIGHTS, BIAS, 10, 60)])
    both = fit_glm(x, history=2, within_bin=True)
    for d in range(2):
        alone = fit_glm(x[d], history=2, within_bin=True)
        torch.testing.assert_close(both.weights[d], alone.weights, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(both.within_bin[d], alone.within_bin, atol=1e-4, rtol=1e-3)


def test_within_bin_model_finds_shared_input_that_no_history_can():
    shared = torch.poisson(torch.full((100, 50, 1), 0.3)) * torch.ones(2)
    x = torch.poisson(0.2 + 2 * shared)
    alone, within = fit_glm(x, 3), fit_glm(x, 3, within_bin=True)
    gain = within.log_likelihood(x) - alone.log_likelihood(x)
    assert float(gain.mean() / gain.std() * 10) > SIGMAS
    assert float(within.within_bin[0, 1]) == 0 == float(within.within_bin[1, 1])  # nobody sees itself or later ones


def test_history_is_chosen_on_sequences_that_the_fit_has_not_seen():
    weights = torch.zeros(1, 1, 5)
    weights[..., 4] = 0.6
    long = simulate(weights, torch.tensor([-0.5]), 60, 100)
    noise = torch.poisson(torch.full((60, 100, 1), 0.5))
    choice = choose_history(torch.stack([long, noise]), (0, 2, 5))
    assert choice.history[0] == 5
    assert choice.model.weights.shape == (2, 1, 1, 5)
    assert set(choice.scores) == {0, 2, 5}
    if choice.history[1] < 5:
        assert not choice.model.weights[1, ..., int(choice.history[1]) :].any()


def test_a_law_with_a_dispersion_is_one_entry_and_is_fitted_with_its_error():
    def log_prob(k, mean, r):
        return (
            torch.lgamma(k + r) - torch.lgamma(k + 1) - torch.lgamma(r) + r * (r / (r + mean)).log()
            + torch.xlogy(k, mean / (mean + r))
        )  # fmt: skip

    law = Observation("my-negative-binomial", log_prob, lambda mean, r: mean, dispersion=10.0)
    x = torch.poisson(torch.distributions.Gamma(2.0, 1.0).sample((100, 100, 2)))
    fit = fit_glm(x, history=1, observation=law)
    z = (fit.dispersion.log() - math.log(2.0)) / fit.errors["dispersion"]
    assert bool((z.abs() < SIGMAS).all())
    assert float(fit.log_likelihood(x).mean()) > float(fit_glm(x, history=1).log_likelihood(x).mean()) + 10
    # Poisson counts have no such dispersion: it runs to its bound, and the likelihood is the Poisson one
    y = torch.poisson(torch.full((20, 50, 1), 1.0))
    bound = fit_glm(y, history=0, observation=law)
    torch.testing.assert_close(bound.log_likelihood(y), fit_glm(y, history=0).log_likelihood(y), atol=0.3, rtol=0)


def test_silent_neurons_are_reported_and_finite():
    x = simulate(WEIGHTS, BIAS, 10, 40)
    x[..., 1] = 0
    fit = fit_glm(x, history=2)
    assert fit.silent.tolist() == [False, True]
    assert bool(torch.isfinite(fit.log_likelihood(x)).all())
    assert float(fit.rate(x)[..., 1].max()) < 1e-4


def test_nothing_before_the_bin_leaks_forward():
    x = simulate(WEIGHTS, BIAS, 2, 30)
    model = GLM(WEIGHTS, BIAS)
    later = x.clone()
    later[:, 15:] += 3
    torch.testing.assert_close(model.rate(x)[:, :16], model.rate(later)[:, :16])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"history": -1}, "history must be a whole number >= 0"),
        ({"ridge": -1.0}, "ridge must be >= 0, got -1"),
        ({"link": "relu"}, "link must be one of softplus, exp, sigmoid, got 'relu'"),
        ({"observation": "gauss"}, "observation must be one of"),
        ({"max_rate": 0.0}, "max_rate must be > 0"),
        ({"counts": torch.rand(3, 10, 2)}, "counts must hold whole numbers >= 0"),
        ({"counts": -torch.ones(3, 10, 2)}, "counts must hold whole numbers >= 0, got -1"),
        ({"counts": torch.ones(10)}, "counts must have the shape"),
        ({"counts": torch.full((3, 10, 2), torch.nan)}, "counts must hold whole numbers >= 0, got nan"),
    ],
)
def test_bad_arguments_are_named(change, words):
    with pytest.raises(ValueError, match=words):
        fit_glm(**({"counts": torch.ones(3, 10, 2)} | change))


def test_history_needs_two_sequences():
    with pytest.raises(ValueError, match="at least 2 sequences"):
        choose_history(torch.ones(1, 10, 2))
    with pytest.raises(ValueError, match="held_out must be in"):
        choose_history(torch.ones(4, 10, 2), held_out=1.0)
