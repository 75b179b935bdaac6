"""The closed forms of :mod:`hitchhiker.moments`, derived by sympy from their integrals.

This is the only module that imports sympy.  Every derivation starts from the ``formula`` of a soft
indicator and Campbell's theorem, and returns a sympy expression in the positive symbols :data:`tau` (τ),
:data:`lam` (λ) and :data:`u`.  Nothing is copied from the paper, so agreement with its equations is a
check.  Two regimes matter for indicators of support [-1, 1]: ``"cold"`` (τ <= 1, the window [1-τ, 1+τ] is
whole) and ``"hot"`` (τ > 1, it is cut at t = 0).  For the sigmoid, which has no edge, both are one.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

try:
    import sympy as sp
except ImportError as error:  # pragma: no cover
    raise ImportError('hitchhiker.symbolic needs sympy: pip install "hitchhiker[symbolic]"') from error

from hitchhiker.indicators import SoftIndicator, get

Regime = Literal["cold", "hot"]
Expression = Any  # sympy ships no types
Indicator = str | SoftIndicator

u = sp.Symbol("u", real=True)
tau, lam, r = sp.symbols("tau lambda r", positive=True)
mu = sp.Symbol("mu", positive=True)
_y = sp.Symbol("y", positive=True)  # the sigmoid's value, as a variable


def expression(indicator: Indicator) -> Expression:
    """f(u) on its support, as a sympy expression in ``u``.

    Raises ``ValueError`` if the formula is no function of ``u`` (or ``w = (u + 1)/2``) or lacks f(u) +
    f(-u) = 1.

    >>> expression("linear")
    u/2 + 1/2
    """
    soft = get(indicator)
    f = sp.sympify(soft.formula, locals={"u": u, "w": (u + 1) / 2})
    if f.free_symbols != {u} or sp.simplify(f + f.subs(u, -u) - 1) != 0:
        raise ValueError(
            f"formula must be a function of u or w = (u + 1)/2 with f(u) + f(-u) = 1, got {soft.formula!r}"
        )
    return f


def cumulant_factor(indicator: Indicator, order: int, regime: Regime = "cold") -> Expression:
    """κ_k(z)/λ = τ ∫_{-∞}^{1/τ} f^k du, evaluated in closed form.

    Parameters
    ----------
    indicator : name or object.
    order : k ``>= 1``.
    regime : ``"cold"`` for τ <= 1, ``"hot"`` for τ > 1.

    Returns
    -------
    An expression in :data:`tau`.

    Raises
    ------
    ValueError
        for another regime, a bad order, or an indicator that is neither compact nor a solution of f' =
        f(1 - f).

    >>> cumulant_factor("cubic", 2)
    1 - 9*tau/35
    """
    if regime not in ("cold", "hot"):
        raise ValueError(f"regime must be 'cold' (τ <= 1) or 'hot' (τ > 1), got {regime!r}")
    if int(order) != order or order < 1:
        raise ValueError(f"order must be an integer >= 1, got {order}")
    return _cumulant(get(indicator), int(order), regime)


@lru_cache(maxsize=256)
def _cumulant(soft: SoftIndicator, k: int, regime: Regime) -> Expression:
    f = expression(soft)
    if not soft.is_compact:
        return sp.expand(tau * _logistic_ramp(f, _y**k, 0))
    low, high = (sp.Integer(int(s)) for s in soft.support)
    if regime == "cold":
        return sp.simplify(sp.expand(tau * (_integrate(f**k, low, high) + 1 / tau - high)))
    return sp.factor(sp.expand(tau * _integrate(f**k, low, 1 / tau)))


def mean_factor(indicator: Indicator, regime: Regime = "cold") -> Expression:
    """c(τ) (Eq. 34).

    >>> mean_factor("cubic"), mean_factor("linear", "hot")
    (1, (tau + 1)**2/(4*tau))
    """
    return cumulant_factor(indicator, 1, regime)


def variance_factor(indicator: Indicator, regime: Regime = "cold") -> Expression:
    """v(τ) (Eq. 36).

    >>> variance_factor("cosine")
    1 - tau/4
    """
    return cumulant_factor(indicator, 2, regime)


def fano_factor(indicator: Indicator, regime: Regime = "cold") -> Expression:
    """F(τ) = v/c (Eq. 53).

    >>> fano_factor("quintic")
    1 - 50*tau/231
    """
    ratio = variance_factor(indicator, regime) / mean_factor(indicator, regime)
    return sp.simplify(ratio) if get(indicator).is_compact else sp.expand(ratio)


def deficit(indicator: Indicator) -> Expression:
    """A = ∫ f (1 - f) du: the variance lost per unit of temperature.

    >>> deficit("cubic"), deficit("sigmoid")
    (9/35, 1)
    """
    soft = get(indicator)
    f = expression(soft)
    if not soft.is_compact:
        _check_logistic(f)
        return sp.integrate(sp.Integer(1), (_y, 0, 1))  # f(1 - f) du = df
    return sp.simplify(_integrate(f * (1 - f), -1, 1))


def roughness(indicator: Indicator) -> Expression:
    """B = ∫ f'² du: the gradient noise per unit of 1/τ.

    >>> roughness("cubic"), roughness("sigmoid"), roughness("cosine")
    (3/5, 1/6, pi**2/16)
    """
    soft = get(indicator)
    f = expression(soft)
    if not soft.is_compact:
        _check_logistic(f)
        return sp.integrate(_y * (1 - _y), (_y, 0, 1))  # f'² du = f(1 - f) df
    return sp.simplify(_integrate(sp.diff(f, u) ** 2, -1, 1))


def outer_roughness(indicator: Indicator) -> Expression:
    """J₂ = ∫ u² f'² du, what heat adds to the noise: Var(dz/dλ) = (B + τ²J₂)/(τλ) for τ <= 1 and compact support.

    Raises ``ValueError`` for an indicator without compact support.

    >>> outer_roughness("cubic"), outer_roughness("linear")
    (3/35, 1/6)
    """
    soft = get(indicator)
    if not soft.is_compact:
        raise ValueError(f"indicator must have compact support, got {soft.name!r}")
    return sp.simplify(_integrate(u**2 * sp.diff(expression(soft), u) ** 2, -1, 1))


def gradient_mean(indicator: Indicator, regime: Regime = "cold") -> Expression:
    """E[dz/dλ] = ∫_{-∞}^{1/τ} f'(u)(1 - τu) du: Campbell's theorem for each arrival's slope.

    >>> gradient_mean("cubic"), sp.simplify(gradient_mean("cubic", "hot") - mean_factor("cubic", "hot"))
    (1, 0)
    """
    return _slope_integral(indicator, regime, 1, 1)


def gradient_variance(indicator: Indicator, regime: Regime = "cold") -> Expression:
    """Var(dz/dλ) = ∫_{-∞}^{1/τ} f'(u)²(1 - τu)² du / (τλ), in :data:`tau` and :data:`lam`.

    The sigmoid's is ``τ [-Li₂(-e^{1/τ}) - σ(1/τ)]/(3λ)``.

    >>> gradient_variance("cubic")
    3*(tau**2 + 7)/(35*lambda*tau)
    """
    ratio = _slope_integral(indicator, regime, 2, 2) / (tau * lam)
    return sp.factor(ratio) if get(indicator).is_compact else sp.expand(ratio)


def count_gradient_covariance(indicator: Indicator, regime: Regime = "cold") -> Expression:
    """Cov(z, dz/dλ) = ∫_{-∞}^{1/τ} f f' (1 - τu) du, which is v/2.

    >>> count_gradient_covariance("cubic")
    1/2 - 9*tau/70
    """
    return _slope_integral(indicator, regime, 1, 1, weight=1)


@lru_cache(maxsize=128)
def _slope_integral(indicator: Indicator, regime: Regime, power: int, times: int, weight: int = 0) -> Expression:
    """∫_{-∞}^{1/τ} f^weight f'^power (1 - τu)^times du."""
    soft = get(indicator)
    f = expression(soft)
    if not soft.is_compact:
        return _logistic_ramp(f, _y**weight * (_y * (1 - _y)) ** power, times)
    upper = sp.Integer(1) if regime == "cold" else 1 / tau
    g = f**weight * sp.diff(f, u) ** power * (1 - tau * u) ** times
    return sp.simplify(sp.expand(_integrate(g, -1, upper)))


def table2() -> dict[str, dict[str, Expression]]:
    """The formulas of Table 2, derived: ``{"sigmoid": {"c": …, "v": …, "F": …}, "cubic": …}``, τ <= 1.

    >>> table2()["cubic"]["F"]
    1 - 9*tau/35
    """
    return {
        name: {"c": mean_factor(name), "v": variance_factor(name), "F": fano_factor(name)}
        for name in ("sigmoid", "cubic")
    }


def negative_binomial_moments(mean: Expression, variance: Expression) -> tuple[Expression, Expression]:
    """Mean and variance of Algorithm 3 given c and v: a relaxed Poisson of rate ~ Gamma(r, rate μ/(1 - μ)).

    The Gamma moments are integrated from its density, then mean and variance follow by total expectation.

    >>> c, v = sp.symbols("c v")
    >>> m, s = negative_binomial_moments(c, v)
    >>> sp.factor(s.subs({c: 1, v: 1}))  # the plain negative binomial, r(1 - μ)/μ²
    -r*(mu - 1)/mu**2
    """
    beta, x = mu / (1 - mu), sp.Symbol("x", positive=True)
    b = sp.Symbol("b", positive=True)
    first, second = (
        sp.simplify(sp.integrate(x ** (r - 1 + k) * b**r * sp.exp(-b * x) / sp.gamma(r), (x, 0, sp.oo))).subs(b, beta)
        for k in (1, 2)
    )
    return sp.simplify(mean * first), sp.simplify(variance * first + mean**2 * (second - first**2))


def linear_decoder(num_pixels: int = 2, num_latents: int = 2) -> dict[str, Expression]:
    """The linear decoder's loss E‖x - Φz‖², its gradient and Hessian in u = ln λ, by brute force.

    The square is multiplied out, every monomial of z replaced by its moment (independent counts of mean
    cλ and variance vλ), and the result differentiated.  With c = v = 1 these are Eqs. 59, 64 and 69; the
    difference between the relaxed and the exact gradient is the bias of pathwise EAT.

    Parameters
    ----------
    num_pixels, num_latents : size of Φ; keep it small.

    Returns
    -------
    ``x`` (D, 1), ``decoder`` (D, K), ``rate`` (K, 1), ``c``, ``v`` : the symbols; ``loss``, ``gradient``
    (K, 1), ``hessian`` (K, K) of the exact Poisson; ``relaxed_loss`` and ``bias`` (K, 1), in c and v.

    >>> p = linear_decoder(1, 1)
    >>> sp.factor(p["bias"][0].subs(p["c"], 1))  # λ (v - 1) d
    Phi_00**2*lambda_0*(v - 1)
    """
    x = sp.Matrix(num_pixels, 1, sp.symbols(f"x_:{num_pixels}", real=True))
    phi = sp.Matrix(num_pixels, num_latents, lambda i, k: sp.Symbol(f"Phi_{i}{k}", real=True))
    rate = sp.Matrix(num_latents, 1, sp.symbols(f"lambda_:{num_latents}", positive=True))
    z = sp.symbols(f"z_:{num_latents}")
    c, v = sp.symbols("c v", positive=True)
    residual = x - phi * sp.Matrix(z)
    square = sp.Poly(sp.expand((residual.T * residual)[0]), *z)

    def expected(m: Expression, s: Expression) -> Expression:
        total = sp.Integer(0)
        for powers, coefficient in square.terms():
            moments = [[1, m * rate[k], s * rate[k] + (m * rate[k]) ** 2][n] for k, n in enumerate(powers)]
            total += coefficient * sp.prod(moments)
        return sp.expand(total)

    def by_log_rate(scalar: Expression) -> Expression:
        return sp.Matrix([rate[k] * sp.diff(scalar, rate[k]) for k in range(num_latents)])

    exact, relaxed = expected(1, 1), expected(c, v)
    gradient = by_log_rate(exact)
    return {
        "x": x,
        "decoder": phi,
        "rate": rate,
        "c": c,
        "v": v,
        "loss": exact,
        "gradient": gradient,
        "hessian": sp.Matrix([by_log_rate(g).T for g in gradient]),
        "relaxed_loss": relaxed,
        "bias": (by_log_rate(relaxed) - gradient).applyfunc(sp.expand),
    }


def evaluate(expr: Expression, **values: float) -> float:
    """The expression's value (30 digits, then a ``float``); ``values`` by symbol name, ``lambda_=`` for λ.

    Raises ``ValueError`` when a symbol is left without a value.

    >>> round(evaluate(mean_factor("sigmoid"), tau=0.5), 4)
    1.0635
    """
    given = {name.removesuffix("_"): sp.Float(value, 40) for name, value in values.items()}
    expr = sp.sympify(expr)
    if missing := sorted(s.name for s in expr.free_symbols if s.name not in given):
        raise ValueError(f"values must be given for every symbol, got none for {missing}")
    return float(expr.subs({s: given[s.name] for s in expr.free_symbols}).evalf(30))


# --- integrals ---


def _integrate(g: Expression, low: Expression, high: Expression) -> Expression:
    """∫ g du by antiderivative, term by term: sympy's definite integration tries far slower ways first."""
    expanded = sp.expand(sp.expand_trig(sp.fu(g)) if g.has(sp.sin, sp.cos) else g)
    primitive = sp.integrate(expanded, u)
    return primitive.subs(u, high) - primitive.subs(u, low)


def _check_logistic(f: Expression) -> None:
    if sp.simplify(sp.diff(f, u) - f * (1 - f)) != 0:
        raise ValueError(
            f"indicator must have compact support or satisfy f' = f(1 - f) to be integrated here, got f = {f}"
        )


def _logistic_ramp(f: Expression, g: Expression, times: int) -> Expression:
    """∫_{-∞}^{1/τ} (1 - τu)^n g(f(u)) du for logistic f, n = ``times``, a polynomial g with g(0) = 0.

    Integrating by parts n times leaves n! τ^n times the (n + 1)-fold primitive of g at u = 1/τ.  In the
    variable y = f, du = dy/(y(1 - y)), every primitive is a polynomial in y plus multiples of L_k(u) =
    -Li_k(-e^u), where L_1 is softplus and L_k' = L_{k-1}.
    """
    _check_logistic(f)
    polynomial, tails = sp.Poly(g, _y), [sp.Integer(0)] * (times + 2)
    for _ in range(times + 1):
        over_y = sp.Poly(sp.cancel(polynomial.as_expr() / _y), _y)
        edge = over_y.eval(1)
        smooth = sp.Poly(sp.cancel((over_y.as_expr() - edge) / (1 - _y)), _y)
        polynomial = smooth.integrate()
        tails = [sp.Integer(0), edge, *tails[1:-1]]
    a = {k: -sp.polylog(k, -sp.exp(1 / tau)) for k in range(2, times + 2)} | {1: sp.log(1 + sp.exp(1 / tau))}
    value = polynomial.as_expr().subs(_y, f.subs(u, 1 / tau)) + sum(tails[k] * a[k] for k in a)
    return sp.expand(sp.factorial(times) * tau**times * value)


__all__ = [
    "count_gradient_covariance",
    "cumulant_factor",
    "deficit",
    "evaluate",
    "expression",
    "fano_factor",
    "gradient_mean",
    "gradient_variance",
    "lam",
    "linear_decoder",
    "mean_factor",
    "mu",
    "negative_binomial_moments",
    "outer_roughness",
    "r",
    "roughness",
    "table2",
    "tau",
    "u",
    "variance_factor",
]
