"""The sympy derivations: they print the paper's formulas, and their numbers are those of moments and quadrature."""

import importlib
import math
import sys

import numpy as np
import pytest
import sympy as sp
from scipy import integrate, stats

from hitchhiker import moments, symbolic
from hitchhiker.indicators import REGISTRY, SoftIndicator, get
from hitchhiker.symbolic import lam, mu, r, tau

NAMES = sorted(REGISTRY)
REGIMES = [("cold", (0.02, 0.5, 1.0)), ("hot", (1.0, 1.7, 50.0))]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("regime", "taus"), REGIMES)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_cumulants_are_those_of_moments(name, regime, taus, order):
    formula = symbolic.cumulant_factor(name, order, regime)
    for t in taus:
        assert symbolic.evaluate(formula, tau=t) == pytest.approx(moments.cumulant_factor(name, t, order), rel=1e-10)
    wrong = formula * sp.Rational(101, 100)
    assert symbolic.evaluate(wrong, tau=taus[1]) != pytest.approx(
        moments.cumulant_factor(name, taus[1], order), rel=1e-10
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("regime", "taus"), REGIMES)
def test_gradient_moments_are_those_of_moments(name, regime, taus):
    variance = symbolic.gradient_variance(name, regime)
    covariance, mean = symbolic.count_gradient_covariance(name, regime), symbolic.gradient_mean(name, regime)
    for t in taus:
        value = symbolic.evaluate(variance, tau=t, lambda_=3.0)
        assert value == pytest.approx(moments.gradient_variance(name, t, 3.0), rel=1e-10)
        assert symbolic.evaluate(mean, tau=t) == pytest.approx(moments.gradient_mean(name, t), rel=1e-10)
        value = symbolic.evaluate(covariance, tau=t)
        assert value == pytest.approx(moments.count_gradient_covariance(name, t), rel=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_formula_is_the_function(name):
    f, formula = get(name), sp.lambdify(symbolic.u, symbolic.expression(name), "math")
    for x in (-0.99, -0.3, 0.0, 0.7, 1.0):
        assert float(f(x)) == pytest.approx(formula(x), abs=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_by_scipy_quadrature_from_the_formula(name):
    """A third way: the integral of the formula string by adaptive quadrature."""
    formula = sp.lambdify(symbolic.u, symbolic.expression(name), "math")
    low = -1.0 if get(name).is_compact else -45.0
    for t in (1.3, 4.0):
        for order in (1, 2, 3):
            value, _ = integrate.quad(lambda x, k=order: formula(x) ** k, low, 1 / t, epsabs=1e-13, epsrel=1e-13)
            derived = symbolic.evaluate(symbolic.cumulant_factor(name, order, "hot"), tau=t)
            assert derived == pytest.approx(t * value, rel=1e-10)


def test_the_papers_expressions():
    a, b = sp.log(1 + sp.exp(1 / tau)), 1 / (1 + sp.exp(-1 / tau))
    beta = (1 + tau) / (2 * tau)
    pairs = [
        (symbolic.mean_factor("sigmoid"), tau * a),  # Eq. 5
        (symbolic.variance_factor("sigmoid"), tau * (a - b)),
        (symbolic.fano_factor("sigmoid"), 1 - b / a),  # Eq. 54
        (symbolic.mean_factor("cubic"), 1),  # Eq. 46
        (symbolic.variance_factor("cubic"), 1 - 9 * tau / 35),  # Eq. 49
        (symbolic.fano_factor("cubic"), 1 - 9 * tau / 35),  # Eq. 55
        (symbolic.mean_factor("cubic", "hot"), tau * beta**3 * (2 - beta)),  # Eq. 52
        (
            symbolic.variance_factor("cubic", "hot"),
            tau * (18 * beta**5 / 5 - 4 * beta**6 + sp.Rational(8, 7) * beta**7),
        ),
    ]
    for derived, printed in pairs:
        assert sp.simplify(derived - printed) == 0
    assert symbolic.table2() == {
        name: {"c": symbolic.mean_factor(name), "v": symbolic.variance_factor(name), "F": symbolic.fano_factor(name)}
        for name in ("sigmoid", "cubic")
    }


@pytest.mark.parametrize("name", [n for n in NAMES if get(n).is_compact])
def test_cold_identities(name):
    """c = 1, v = 1 - Aτ, Cov = v/2, Var(dz/dλ) = (B + τ²J₂)/(τλ), and both regimes meet at τ = 1."""
    a, b = symbolic.deficit(name), symbolic.roughness(name)
    f = symbolic.expression(name)
    j2 = sp.integrate(sp.expand_trig(symbolic.u**2 * sp.diff(f, symbolic.u) ** 2), (symbolic.u, -1, 1))
    assert symbolic.mean_factor(name) == 1
    assert sp.simplify(symbolic.variance_factor(name) - (1 - a * tau)) == 0
    assert sp.simplify(symbolic.count_gradient_covariance(name) - (1 - a * tau) / 2) == 0
    assert sp.simplify(symbolic.gradient_variance(name) - (b + tau**2 * j2) / (tau * lam)) == 0
    for order in (1, 2, 3):
        hot, cold = (symbolic.cumulant_factor(name, order, regime).subs(tau, 1) for regime in ("hot", "cold"))
        assert sp.simplify(hot - cold) == 0


@pytest.mark.parametrize("name", NAMES)
def test_hot_gradient_mean_is_c(name):
    difference = symbolic.gradient_mean(name, "hot") - symbolic.mean_factor(name, "hot")
    assert sp.simplify(difference) == 0


def test_constants_are_the_registered_ones():
    for name in NAMES:
        assert float(symbolic.deficit(name)) == pytest.approx(get(name).deficit, rel=1e-14)
        assert float(symbolic.roughness(name)) == pytest.approx(get(name).roughness, rel=1e-14)
    assert sp.simplify(symbolic.deficit("cosine") * symbolic.roughness("cosine") - sp.pi**2 / 64) == 0
    # the bound itself: ∫_0^1 √(f(1 - f)) df squared
    x = sp.Symbol("x")
    bound = sp.integrate(sp.expand_trig(sp.sin(2 * x) ** 2 / 2), (x, 0, sp.pi / 2))  # f = sin² x
    assert bound**2 == sp.pi**2 / 64


def test_sigmoid_edges():
    """The mean's excess is the cut at t = 0 and nothing else: c - 1 = τ ln(1 + e^{-1/τ})."""
    excess = symbolic.mean_factor("sigmoid") - 1 - tau * sp.log(1 + sp.exp(-1 / tau))
    assert abs(symbolic.evaluate(excess, tau=0.5)) < 1e-25
    dilogarithm = tau * (-sp.polylog(2, -sp.exp(1 / tau)) - 1 / (1 + sp.exp(-1 / tau))) / (3 * lam)
    assert sp.simplify(symbolic.gradient_variance("sigmoid") - dilogarithm) == 0


def test_linear_decoder_identities():
    """Eqs. 59, 64, 69 and the bias of pathwise EAT, on two pixels and two latents."""
    p = symbolic.linear_decoder(2, 2)
    x, phi, rate, c, v = (p[k] for k in ("x", "decoder", "rate", "c", "v"))
    gram = phi.T * phi
    d = sp.Matrix([gram[k, k] for k in range(2)])
    scale = sp.diag(*rate)
    gradient = scale * (2 * gram * rate - 2 * phi.T * x + d)
    residual = x - phi * rate
    assert sp.expand(p["loss"] - (residual.T * residual)[0] - (rate.T * d)[0]) == 0  # Eq. 59
    assert (p["gradient"] - gradient).applyfunc(sp.expand) == sp.zeros(2, 1)  # Eq. 64
    hessian = sp.diag(*gradient) + 2 * scale * gram * scale
    assert (p["hessian"] - hessian).applyfunc(sp.expand) == sp.zeros(2, 2)  # Eq. 69
    bias = scale * (2 * (c**2 - 1) * gram * rate - 2 * (c - 1) * phi.T * x + (v - 1) * d)
    assert (p["bias"] - bias).applyfunc(sp.expand) == sp.zeros(2, 1)


def test_linear_decoder_against_enumeration():
    p = symbolic.linear_decoder(1, 2)
    values = {"x_0": 1.3, "Phi_00": 0.7, "Phi_01": -1.1, "lambda_0": 0.8, "lambda_1": 2.1}
    n = np.arange(60)
    weight = np.outer(stats.poisson.pmf(n, 0.8), stats.poisson.pmf(n, 2.1))
    loss = (weight * (1.3 - 0.7 * n[:, None] + 1.1 * n) ** 2).sum()
    assert symbolic.evaluate(p["loss"], **values) == pytest.approx(loss, rel=1e-12)


def test_negative_binomial_moments():
    c, v = sp.symbols("c v", positive=True)
    mean, variance = symbolic.negative_binomial_moments(c, v)
    m = r * (1 - mu) / mu
    assert sp.simplify(mean - c * m) == 0
    assert sp.simplify(variance - (v * m + c**2 * m * (1 - mu) / mu)) == 0
    numbers = {
        "c": moments.mean_factor("sigmoid", 0.5),
        "v": moments.variance_factor("sigmoid", 0.5),
        "r": 3.0,
        "mu": 0.2,
    }
    assert symbolic.evaluate(variance, **numbers) == pytest.approx(
        moments.negative_binomial_variance("sigmoid", 0.5, 3.0, 0.2), rel=1e-12
    )


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"regime must be 'cold' .* got 'warm'"):
        symbolic.mean_factor("cubic", "warm")
    with pytest.raises(ValueError, match="order must be an integer >= 1, got 0"):
        symbolic.cumulant_factor("cubic", 0)
    with pytest.raises(ValueError, match=r"values must be given .* \['tau'\]"):
        symbolic.evaluate(symbolic.mean_factor("sigmoid"))

    def made(formula, half):
        return SoftIndicator("made", formula, (-half, half), 0.2, 0.8, 1, lambda u: u, lambda u: u)

    with pytest.raises(ValueError, match=r"f\(u\) \+ f\(-u\) = 1"):
        symbolic.expression(made("w**2", 1.0))
    with pytest.raises(ValueError, match=r"f' = f\(1 - f\)"):
        symbolic.mean_factor(made("(1 + erf(u))/2", math.inf))


def test_without_sympy_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sympy", None)
    monkeypatch.delitem(sys.modules, "hitchhiker.symbolic")
    with pytest.raises(ImportError, match=r'needs sympy: pip install "hitchhiker\[symbolic\]"'):
        importlib.import_module("hitchhiker.symbolic")
