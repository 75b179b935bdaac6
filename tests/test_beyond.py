"""Part V: joint laws, whole laws on a grid, collapse and the search for edges, each against an independent witness."""

import math

import numpy as np
import pytest
import torch

import hitchhiker as hh
from hitchhiker import beyond_figures as bf
from hitchhiker import moments, symbolic, temperature_figures


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# --- the joint law of count and derivative


def pairs(indicator, tau, rate, size):
    lam = torch.full((size,), rate, dtype=torch.float64, requires_grad=True)
    z = hh.EATPoisson(rate=lam, temperature=tau, indicator=indicator).rsample()
    (slope,) = torch.autograd.grad(z.sum(), lam)
    return z.detach(), slope


def largest_z_score(z, slope, indicator, tau, rate):
    worst = 0.0
    for a, b in ((0.7, 0.0), (0.0, 0.5), (0.7, -2.0), (2.0, 0.5), (6.0, 2.0)):
        want = moments.characteristic_function(indicator, tau, rate, a, b)
        for x, target in (
            (torch.cos(a * z + b * slope), want.real),
            (torch.sin(a * z + b * slope), want.imag),
        ):
            worst = max(worst, abs(float((x.mean() - target) / (x.std() / math.sqrt(len(x))))))
    return worst


@pytest.mark.parametrize(("indicator", "tau"), [("cubic", 0.5), ("linear", 1.0), ("cosine", 2.5), ("sigmoid", 0.3)])
def test_characteristic_function_is_that_of_samples(indicator, tau):
    z, slope = pairs(indicator, tau, 3.0, 60_000)
    assert largest_z_score(z, slope, indicator, tau, 3.0) < 6
    assert largest_z_score(z, 1.03 * slope, indicator, tau, 3.0) > 6  # it can fail
    assert largest_z_score(z, slope[torch.randperm(len(slope))], indicator, tau, 3.0) > 6


def test_characteristic_function_gives_the_moments():
    h = 1e-4
    values = moments.characteristic_function("cubic", 0.4, 2.0, [h, 0.0, h], [0.0, h, h])
    log = np.log(values)
    assert log[0].imag / h == pytest.approx(2.0, rel=1e-6)
    assert -2 * log[0].real / h**2 == pytest.approx(2 * moments.variance_factor("cubic", 0.4), rel=1e-5)
    assert -2 * log[1].real / h**2 == pytest.approx(moments.gradient_variance("cubic", 0.4, 2.0), rel=1e-5)
    both = -(log[2] - log[0] - log[1]).real / h**2
    assert both == pytest.approx(moments.count_gradient_covariance("cubic", 0.4), rel=1e-5)
    assert moments.characteristic_function("sigmoid", 0.4, 2.0, 0.0) == 1


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("cubic", 0.0, 1.0, 1.0), "temperature"),
        (("cubic", 0.5, 0.0, 1.0), "rate"),
        (("cubic", 0.5, 1.0, math.nan), "count"),
        (("cubic", 0.5, 1.0, 1.0, math.inf), "slope"),
        (("cube", 0.5, 1.0, 1.0), "indicator"),
    ],
)
def test_characteristic_function_refuses(arguments, name):
    with pytest.raises(ValueError, match=name):
        moments.characteristic_function(*arguments)


# --- one temperature


@pytest.mark.parametrize("name", ["linear", "cubic", "quintic", "cosine"])
def test_noise_is_roughness_and_outer_roughness(name):
    b, j = (float(g(name)) for g in (symbolic.roughness, symbolic.outer_roughness))
    for tau in (0.1, 1.0):
        assert moments.gradient_variance(name, tau, 2.0) == pytest.approx((b + tau**2 * j) / (2 * tau), rel=1e-12)
    assert moments.gradient_variance(name, 1.5, 2.0) != pytest.approx((b + 1.5**2 * j) / 3, rel=1e-6)


def test_outer_roughness_needs_compact_support():
    with pytest.raises(ValueError, match="indicator must have compact support"):
        symbolic.outer_roughness("sigmoid")


def test_spread():
    values = torch.tensor([[1.0, 1.2], [2.0, 2.1]]) + 0.01 * torch.randn(200, 2, 2)
    whole, se, floor = bf.spread(values)
    assert abs(whole - 0.2 / 1.1) < 6 * se
    assert 0 < se < 0.003
    same, _, floor = bf.spread(1 + 0.1 * torch.randn(50, 1, 5))
    assert 0.3 * floor < same < 3 * floor
    with pytest.raises(ValueError, match="values must be"):
        bf.spread(torch.ones(2, 3, 4))


def test_matched_temperatures_lose_the_same_variance():
    kinds = ["linear", "cubic", "quintic", "cosine"]
    (row,) = bf.matched([0.1], kinds, "Aτ")
    for kind, tau in zip(kinds, row, strict=True):
        assert 1 - moments.variance_factor(kind, tau) == pytest.approx(0.1, rel=1e-9)
    assert len(set(bf.matched([0.1], kinds, "τ")[0])) == 1
    with pytest.raises(ValueError, match="unit must be"):
        bf.matched([0.1], kinds, "A")


def test_tables_agree_with_closed_forms():
    temperatures = [[0.2, 0.4]]
    w1, lost = bf.fidelity_table(5.0, temperatures, ["cubic", "linear"], trials=6, draws=5000)
    for j, kind in enumerate(("cubic", "linear")):
        error = lost[:, 0, j].std() / math.sqrt(6)
        assert abs(lost[:, 0, j].mean() - (1 - moments.variance_factor(kind, temperatures[0][j]))) < 8 * error
    assert (w1 > 0.1).all()
    x, decoder = torch.zeros(1, 1), torch.ones(1, 1)
    noise = bf.noise_table(x, decoder, 2.0, [[0.3]], ["cubic"], trials=10, gradients=400)
    # g = λ·2z·dz/dλ, g* = λ(2λ + 1), H = g* + 2λ²
    g = 2.0 * (2 * 2 + 1)
    exact = 4 * temperature_figures.square_variance(2.0, 0.3) / g**2
    assert abs(noise.mean() - exact) < 6 * noise.std() / math.sqrt(10)


# --- the law on a grid


def test_grid_law_has_the_moments_and_the_gradient():
    for kind, tau in (("cubic", 0.3), ("linear", 1.0), ("quintic", 2.0)):
        law = bf.relaxed_law(2.5, tau, kind)
        c, v = moments.mean_factor(kind, tau), moments.variance_factor(kind, tau)
        assert float(law.probabilities.sum()) == pytest.approx(1, abs=1e-12)
        assert law.mean(lambda z: z) == pytest.approx(2.5 * c, rel=1e-6)
        assert law.mean(torch.square) == pytest.approx(2.5 * v + (2.5 * c) ** 2, rel=1e-5)
        assert law.pathwise(torch.square) == pytest.approx(v + 2 * 2.5 * c**2, rel=1e-5)


@pytest.mark.parametrize("name", sorted(temperature_figures.FUNCTIONS))
def test_pathwise_mean_is_a_difference_of_laws(name):
    """E F'(z) dz/dλ = d/dλ E F(z): the left by Mecke's formula, the right by moving the rate."""
    f = temperature_figures.FUNCTIONS[name].value
    h = 1e-4
    moved = (bf.relaxed_law(2.0 + h, 0.4).mean(f) - bf.relaxed_law(2.0 - h, 0.4).mean(f)) / (2 * h)
    assert bf.relaxed_law(2.0, 0.4).pathwise(f) == pytest.approx(moved, abs=2e-6)


def test_pathwise_mean_is_what_is_sampled():
    root = temperature_figures.FUNCTIONS["power"]
    z, slope = pairs("cubic", 0.5, 3.0, 100_000)
    hh.testing.assert_mean(root.slope(z) * slope, bf.relaxed_law(3.0, 0.5).pathwise(root.value))
    with pytest.raises(AssertionError):
        hh.testing.assert_mean(1.05 * root.slope(z) * slope, bf.relaxed_law(3.0, 0.5).pathwise(root.value))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [((0.0, 0.5), "rate"), ((1.0, 0.0), "temperature"), ((1.0, 0.5, "sigmoid"), "indicator"), ((1.0, 0.5, "cubic", 0.3), "step")],
)  # fmt: skip
def test_grid_law_refuses(arguments, name):
    with pytest.raises(ValueError, match=name):
        bf.relaxed_law(*arguments)


# --- the best edge


def test_smoothsteps():
    for power, name in ((0, "linear"), (1, "cubic"), (2, "quintic")):
        soft = hh.indicators.get(name)
        assert bf.smoothstep(power) == pytest.approx((soft.deficit, soft.roughness), rel=1e-9)
    with pytest.raises(ValueError, match="power must be"):
        bf.smoothstep(-1)


@pytest.mark.parametrize("symmetric", [True, False])
def test_search_comes_near_the_bound_and_never_below(symmetric):
    found = bf.search(8, seed=1, symmetric=symmetric)
    assert 1 - 1e-12 < found.ratio < 1 + 1e-3
    assert found.ratio == pytest.approx(found.deficit * found.roughness / bf.BOUND, rel=1e-9)
    assert (np.diff(found.f) >= 0).all()
    if symmetric:
        assert np.abs(found.f - hh.indicators.get("cosine")(torch.from_numpy(found.u)).numpy()).max() < 0.02


def test_search_at_finite_temperature():
    hot = bf.search(10, 0.2)
    assert (
        1
        < hot.ratio
        < min(
            (s.deficit * s.roughness + 0.04 * float(symbolic.outer_roughness(s.name)) / s.deficit) / bf.BOUND
            for s in (hh.indicators.get(n) for n in ("linear", "cubic", "quintic", "cosine"))
        )
    )
    for bad in ({"pieces": 1}, {"variance_lost": 0.3}, {"variance_lost": 0.1, "symmetric": False}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            bf.search(**bad)


# --- gradients behind a decoder


def test_judge_finds_a_planted_bias_and_no_other():
    truth = torch.tensor([3.0, 4.0])
    g = truth + torch.randn(20_000, 2)
    clean, biased = bf.judge(g, truth), bf.judge(g + torch.tensor([0.5, 0.0]), truth)
    assert abs(clean.squared_bias) < 6 * clean.squared_bias_se
    assert clean.bias.startswith("<")
    assert abs(biased.squared_bias - 0.25 / 25) < 6 * biased.squared_bias_se
    assert abs(biased.noise - 2 / 25) < 6 * biased.noise_se
    sampled = bf.judge(g + torch.tensor([0.5, 0.0]), truth + torch.randn(5000, 2))
    assert abs(sampled.squared_bias - 0.01) < 6 * sampled.squared_bias_se
    assert sampled.squared_bias_se > biased.squared_bias_se
    with pytest.raises(ValueError, match="gradients must be"):
        bf.judge(g[:10], truth)


@pytest.mark.parametrize("kind", bf.DECODERS)
def test_unbiased_gradients_agree_behind_every_decoder(kind):
    f, rate = bf.decoder_problem(kind, 6)
    law = lambda **given: hh.EATPoisson(temperature=0.5, validate_args=False, **given)  # noqa: E731
    plain = lambda z: f(z)  # noqa: E731  without its closed forms
    truth = bf.one_sample_gradients(hh.estimators.difference, plain, law, rate.log(), 20_000, calls=4)
    found = bf.one_sample_gradients(hh.estimators.relax, f, law, rate.log(), 20_000)
    judged = bf.judge(found, truth)
    assert abs(judged.squared_bias) < 6 * judged.squared_bias_se
    off = bf.judge(bf.one_sample_gradients(hh.estimators.straight_through, f, law, rate.log(), 20_000), truth)
    assert off.squared_bias > 6 * off.squared_bias_se
    assert off.noise < judged.noise


def test_decoder_problem_refuses():
    with pytest.raises(ValueError, match="kind must be one of"):
        bf.decoder_problem("deep", 4)
