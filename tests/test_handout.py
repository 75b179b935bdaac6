"""The handout: up to date, every formula true of the module, one sheet of paper."""

from __future__ import annotations

import math
import re
import subprocess

import browser as browsers
import handout
import numpy as np
import pytest
import sympy as sp
import torch
from handout import J2, A, B, N, S, V, beta, k
from scipy import integrate, special

import hitchhiker as hh
from hitchhiker import estimators, indicators, linear_decoder, moments, symbolic
from hitchhiker import temperature_figures as tf
from hitchhiker.symbolic import lam, r, tau, u

COMPACT = [name for name, soft in indicators.REGISTRY.items() if soft.is_compact]
SQUARE = tf.FUNCTIONS["square"]


def test_the_page_is_up_to_date():
    assert handout.PAGE.read_text() == handout.page(), "run `python book/_ext/handout.py --write`"


def test_a_formula_of_the_module_that_changes_is_seen(monkeypatch):
    handout.values.cache_clear()
    monkeypatch.setattr(symbolic, "deficit", lambda name: sp.Rational(1, 7))
    assert handout.page() != handout.PAGE.read_text()
    handout.values.cache_clear()


def test_every_place_of_the_text_has_a_value(monkeypatch, tmp_path):
    text = tmp_path / "handout.md"
    text.write_text(handout.TEMPLATE.read_text().replace("<<kl>>", "<<kkl>>"))
    monkeypatch.setattr(handout, "TEMPLATE", text)
    with pytest.raises(ValueError, match="differ by"):
        handout.page()


# ------------------------------------------------------------------ laws


def test_window_theorem_is_the_law_of_arrival_times():
    rate, t = 3.0, 0.4
    cubic = indicators.get("cubic")
    s, w = np.polynomial.legendre.leggauss(200)
    f, slope = (g(torch.from_numpy(s)).numpy() for g in (cubic, cubic.derivative))
    for a, b in ((0.7, 0.0), (0.0, 0.5), (-1.1, 0.3)):
        window = 0.5 * (w * np.exp(1j * (a * f + b * slope * (1 - t * s) / (t * rate)))).sum()
        law = np.exp(rate * (1 - t) * (np.exp(1j * a) - 1) + 2 * rate * t * (window - 1))
        assert abs(law - moments.characteristic_function("cubic", t, rate, a, b)) < 1e-10


def test_definitions_by_hand_have_the_module_s_slopes():
    rate = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    arrivals = torch.empty(60, dtype=torch.float64).exponential_().cumsum(0) / rate
    f = indicators.get("cubic")
    (slope,) = torch.autograd.grad(f((1 - arrivals) / 0.3).sum(), rate)
    t = arrivals.detach()
    torch.testing.assert_close(slope, (f.derivative((1 - t) / 0.3) * t / (0.3 * 3.0)).sum())

    m, noise = torch.arange(40, dtype=torch.float64), -torch.rand(40, dtype=torch.float64).log().neg().log()
    w = torch.softmax((m * rate.log() - rate - torch.lgamma(m + 1) + noise) / 0.3, dim=0)
    z = (m * w).sum()
    (slope,) = torch.autograd.grad(z, rate)
    torch.testing.assert_close(slope, ((m - z) ** 2 * w).sum().detach() / (0.3 * 3.0))


@pytest.mark.parametrize("name", COMPACT)
def test_moments_of_compact_indicators(name):
    f = symbolic.expression(name)
    a = symbolic.deficit(name)
    whole = {i: lam * (1 + tau * (symbolic._integrate(f**i, -1, 1) - 1)) for i in (1, 2, 3, 4)}
    for i, expected in whole.items():  # cold: the integral of Campbell's theorem, 1 up to u = -1 … 1/τ
        assert sp.simplify(expected - lam * symbolic.cumulant_factor(name, i)) == 0
    assert sp.simplify(whole[2] - lam * (1 - a * tau)) == 0
    assert sp.simplify(whole[3] - lam * (1 - sp.Rational(3, 2) * a * tau)) == 0
    printed = ((B + tau**2 * J2) / (tau * lam)).subs({B: symbolic.roughness(name), J2: symbolic.outer_roughness(name)})
    assert sp.simplify(printed - symbolic.gradient_variance(name)) == 0
    assert sp.simplify(symbolic.count_gradient_covariance(name) - (1 - a * tau) / 2) == 0


def test_campbell_s_integral_as_printed():
    soft = sp.Piecewise((0, u < -1), ((u + 1) / 2, u < 1), (1, True))
    for order in (1, 2, 3):
        integrand = handout.cumulant().subs(k, order).replace(sp.Function("f"), lambda x: soft.subs(u, x))
        for t in (sp.Rational(1, 2), sp.Integer(3)):
            got = sp.Mul(*[arg.subs(tau, t).doit() for arg in integrand.args]) / lam
            assert math.isclose(float(got), moments.cumulant_factor("linear", float(t), order), rel_tol=1e-10)


def test_sigmoid_and_hot_cubic():
    mean, spread = handout.sigmoid_factors()
    for t in (0.1, 0.7, 3.0):
        c = symbolic.evaluate(mean, tau=t)
        assert math.isclose(c, moments.mean_factor("sigmoid", t), rel_tol=1e-12)
        assert math.isclose(symbolic.evaluate(spread, tau=t, c=c), moments.variance_factor("sigmoid", t), rel_tol=1e-12)
    hot = symbolic.evaluate(symbolic.mean_factor("cubic", "hot"), tau=3.0)
    assert math.isclose(hot, moments.mean_factor("cubic", 3.0), rel_tol=1e-12)


def test_mean_with_m_arrivals():
    rate, t, m = 20.0, 0.5, 25
    f = indicators.get("cubic")
    integrand = lambda x: float(f((1 - x) / t)) * special.gammaincc(m, rate * x)  # noqa: E731
    mean = rate * integrate.quad(integrand, 0, 1 + t, epsabs=1e-11)[0]
    assert math.isclose(mean, rate * moments.truncated_mean_factor("cubic", t, rate, m), rel_tol=1e-9)


# ------------------------------------------------------------------ gradients


def test_linear_decoder_as_printed():
    torch.manual_seed(1)
    x, phi = torch.randn(3, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    rate = torch.tensor([0.7, 2.0], dtype=torch.float64)
    gram = phi.T @ phi
    d, spread = gram.diagonal(), torch.diag(rate)
    g = rate * (2 * gram @ rate - 2 * phi.T @ x + d)
    loss = (x - phi @ rate).square().sum() + rate @ d
    torch.testing.assert_close(linear_decoder.reconstruction_loss(x, phi, rate.log()), loss)
    torch.testing.assert_close(linear_decoder.gradient(x, phi, rate.log()), g)
    torch.testing.assert_close(linear_decoder.hessian(x, phi, rate.log()), torch.diag(g) + 2 * spread @ gram @ spread)
    p = symbolic.linear_decoder(2, 2)
    lengths = sp.Matrix([sum(e**2 for e in p["decoder"].col(i)) for i in range(2)])
    bias = p["bias"].subs({p["c"]: 1, p["v"]: 1 - A * tau})
    assert sp.simplify(bias + A * tau * p["rate"].multiply_elementwise(lengths)) == sp.zeros(2, 1)


def test_kl_as_printed():
    ours = symbolic.evaluate(handout.poisson_kl(), lambda_=2.5, r=0.8)
    assert math.isclose(ours, float(hh.poisson_kl(*torch.tensor([2.5, 0.8], dtype=torch.float64))))
    assert handout.poisson_kl().subs(lam, r) == 0


def test_best_temperature_is_the_least_error():
    best = handout.best_temperature().subs({beta: -2, V: 3, S: 7}) ** sp.Rational(1, 3)
    error = (beta**2 * tau**2 + V / (S * tau)).subs({beta: -2, V: 3, S: 7})
    assert abs(float(sp.diff(error, tau).subs(tau, best))) < 1e-12
    assert float(sp.diff(error, tau, 2).subs(tau, best)) > 0
    assert math.isclose(float((4 * best**2) / error.subs(tau, best)), 1 / 3)


@pytest.mark.parametrize("rate", [0.3, 1.7, 6.0])
def test_errors_of_integer_estimators_by_enumeration(rate):
    n = torch.arange(120, dtype=torch.float64)
    p = torch.exp(n * math.log(rate) - rate - torch.lgamma(n + 1))
    score, mean = n / rate - 1, rate**2 + rate
    samples = {
        "score": n**2 * score, "baseline": (n**2 - mean) * score, "difference": (n + 1) ** 2 - n**2,
        "straight": 2 * n, "midpoint": 2 * n + 1,
    }  # fmt: skip
    for name, g in samples.items():
        bias, noise = (symbolic.evaluate(e, lambda_=rate) for e in handout.square_errors()[name])
        found = float((p * g).sum())
        assert abs(found - (2 * rate + 1) - bias) < 1e-9, name
        assert math.isclose(float((p * (g - found) ** 2).sum()), noise, rel_tol=1e-9), name


def test_bias_of_straight_through_by_order():
    cube, step = N**3, handout.poisson_mean((N + 1) ** 3 - N**3)
    first, second, third = (handout.poisson_mean(sp.diff(cube, N, i)) for i in (1, 2, 3))
    assert sp.expand(first - step + second / 2 + third / 6) == 0
    assert sp.expand(first + second / 2 - step + third / 6) == 0


@pytest.mark.parametrize("rate", [0.5, 5.0])
def test_errors_of_cold_arrival_times(rate):
    bias, noise = (symbolic.evaluate(e, lambda_=rate, tau=1.0) for e in handout.square_errors()["pathwise"])
    assert math.isclose(bias, tf.leading_bias(SQUARE.value, rate), rel_tol=1e-9)
    assert math.isclose(noise, tf.leading_variance(SQUARE.slope, rate), rel_tol=1e-9)
    assert math.isclose(noise, tf.square_variance(rate, 1e-7) * 1e-7, rel_tol=1e-5)


def test_errors_of_cold_gumbel_softmax(seed):
    rate, t, draws = 2.0, 0.02, 200_000
    bias, noise = (symbolic.evaluate(e, lambda_=rate, tau=1.0) for e in handout.square_errors()["gsm"])
    # noise: every pair of counts, every weight between them
    n = torch.arange(60, dtype=torch.float64)
    p = torch.exp(n * math.log(rate) - rate - torch.lgamma(n + 1))
    y, w = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(20))
    y, w = (y + 3) / 4, w / 4  # y = σ(x), x > 0
    first, second = n[:, None, None], n[None, :, None]
    slope = 2 * (second + (first - second) * y) * (first - second) ** 2 / rate
    enumerated = (p[:, None, None] * p[None, :, None] * w * slope**2 * y * (1 - y)).sum()
    assert math.isclose(float(enumerated), noise, rel_tol=1e-9)
    # bias: the soft count beside the hard one of the same noise, E z² - E N² = τ·bias·λ
    m = torch.arange(20, dtype=torch.float64)
    gumbel = -torch.rand(draws, 20, dtype=torch.float64).log().neg().log()
    scores = m * math.log(rate) - torch.lgamma(m + 1) + gumbel
    z, hard = (torch.softmax(scores / t, -1) * m).sum(-1), scores.argmax(-1)
    lost = (z**2 - hard**2) / t
    assert abs(lost.mean() - bias * rate) < 6 * lost.std() / draws**0.5 + 0.1 * rate * t / 0.02


@pytest.mark.parametrize("estimator", [estimators.moment_matched, estimators.relax])
def test_mended_estimators_are_unbiased_and_as_noisy_as_a_cold_pathwise(estimator, seed):
    rate, t, draws = 2.0, 0.01, 400_000
    leaf = torch.full((draws,), rate, dtype=torch.float64, requires_grad=True)
    estimator(torch.square, hh.EATPoisson(rate=leaf, temperature=t)).sum().backward()
    g = leaf.grad
    hh.testing.assert_mean(g, 2 * rate + 1)
    noise = symbolic.evaluate(handout.square_errors()["pathwise"][1], lambda_=rate) / t
    error = float(((g - g.mean()) ** 2).std()) / draws**0.5
    assert abs(float(g.var()) - noise) < 6 * error + 0.05 * noise


# ------------------------------------------------------------------ paper


@pytest.mark.skipif(browsers.CHROMIUM is None, reason="there is no browser to print with")
@pytest.mark.parametrize("paper", ["A4", "letter"])
def test_one_sheet(site, tmp_path, paper):
    page = site / "handout.html"
    assert "handout.css" in page.read_text()
    here, pdf = tmp_path / "handout.html", tmp_path / "handout.pdf"
    head = f'<head><base href="{site.as_uri()}/"><style>@page {{ size: {paper} }}</style>'
    here.write_text(page.read_text(encoding="utf-8").replace("<head>", head, 1), encoding="utf-8")
    subprocess.run(
        [browsers.CHROMIUM, *[f for f in browsers.FLAGS if "debugging" not in f], f"--user-data-dir={tmp_path / 'profile'}",
         "--virtual-time-budget=20000", f"--print-to-pdf={pdf}", "--no-pdf-header-footer", here.as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    sheets = len(re.findall(rb"/Type /Page\b", pdf.read_bytes()))
    assert sheets == 1
