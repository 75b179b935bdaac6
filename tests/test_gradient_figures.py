"""Figures 3, 8, 11, 12: the exact mean gradient against samples, the leading-order laws, drawing."""

from __future__ import annotations

import math

import pytest
import torch

from hitchhiker import estimators, figures, linear_decoder, reproduce
from hitchhiker import gradient_figures as gf
from hitchhiker import temperature_figures as tf
from hitchhiker.testing import assert_mean


@pytest.fixture(scope="module")
def problem():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 5, generator=generator) / 2, torch.randn(6, generator=generator)


@pytest.mark.parametrize(("method", "num"), [("eat-cubic", None), ("eat-sigmoid", None), ("eat-cubic", 4), ("gsm", 6)])
def test_mean_gradient_is_that_of_samples(problem, method, num):
    decoder, x = problem
    torch.manual_seed(1)
    n, rate = 60_000, 3.0
    u = torch.full((n, 5), math.log(rate)).requires_grad_()
    f = linear_decoder.SquaredError(x.expand(n, 6), decoder)
    (g,) = torch.autograd.grad(estimators.pathwise(f, gf.law(method, u, 0.5, num), 1).sum(), u)
    response = gf.count_response(method, rate, 0.5, num, draws=2_000_000)
    mean = gf.mean_gradient(x.double(), decoder.double(), rate, response).mean(dim=0)
    assert_mean(g, mean)
    exact = linear_decoder.gradient(x, decoder, u[0].detach())
    with pytest.raises(AssertionError):  # power: the bias is seen
        assert_mean(g if method != "eat-cubic" or num else g.repeat(20, 1), exact, sigmas=4)


def test_exact_gradients_and_the_cut_sum():
    assert tf.exact_gradient(torch.square, 20.0) == pytest.approx(41, rel=1e-12)
    assert tf.exact_gradient(tf.FUNCTIONS["z"].value, 0.1) == pytest.approx(1, rel=1e-12)
    for f in tf.FUNCTIONS.values():  # two formulas, one number
        assert tf.exact_gradient(f.value, 2.0) == pytest.approx(tf.exact_gradient(f.value, 2.0, largest=80), rel=1e-9)


@pytest.mark.parametrize("name", list(tf.FUNCTIONS))
def test_slopes_are_derivatives(name):
    z = torch.linspace(0.1, 9, 50, dtype=torch.float64).requires_grad_()
    f = tf.FUNCTIONS[name]
    (slope,) = torch.autograd.grad(f.value(z).sum(), z)
    assert torch.allclose(slope, f.slope(z.detach()))


def test_square_variance_and_leading_bias_against_samples():
    torch.manual_seed(2)
    z, slope = tf.single_gradients("eat-cubic", 2.0, 0.4, 200_000)
    g = 2 * z * slope
    assert_mean(g, 5 - 9 * 0.4 / 35)
    assert_mean((g - g.mean()).square(), tf.square_variance(2.0, 0.4))
    assert tf.leading_bias(torch.square, 7.0, "linear") == pytest.approx(-1 / 3)


def test_the_square_root_has_no_nan():
    rows = tf.temperature_rows(0.3, [0.2, 1.0], ["eat-cubic"], draws=2000, samplers=("enough", "paper"))
    assert {r["sampler"] for r in rows} == {"enough", "paper"}
    assert all(math.isfinite(v) for r in rows for c in ("bias", "sd", "mae") for v in r[c])


def test_figures_are_drawn(problem):
    decoder, x = problem
    rows = gf.gradient_rows(decoder, x.expand(3, 6), 2.0, (0.1, 0.5), num_gradients=20, draws=2000)
    for draw in (figures.figure_3, figures.figure_11, figures.figure_12):
        assert draw(rows, title="t").axes
    assert figures.monte_carlo_floor(rows).to_dict()["description"]
    more = tf.temperature_rows(1.0, [0.1, 1.0], draws=500)
    assert figures.figure_8(more).axes


@pytest.mark.parametrize("name", ["dictionary", "figure-3", "figure-8", "figure-11"])
def test_stored_results_say_where_they_come_from(name):
    result = reproduce.stored(name)
    assert result["provenance"]["command"] == f"hitchhiker reproduce {name} --full"
    assert result["settings"] == reproduce.get(name).full
    assert result["rows"]
