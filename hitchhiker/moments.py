"""Closed forms: mean, variance and higher cumulants of relaxed counts and of their gradients.

A relaxed count is a sum over the arrivals of a Poisson process, so Campbell's theorem gives every
cumulant as one integral, ``κ_k(z) = λ·τ ∫_{-∞}^{1/τ} f(u)^k du`` (Eqs. 29-36).  All factors here are such
integrals over λ, for any indicator and any τ >= 0, to about 1e-13.  Algorithm 1 with a finite M has other
moments; those are here too, exactly.

Temperatures and rates may be floats, arrays or tensors; a scalar gives a ``float``, anything else a
float64 array of the broadcast shape.  No gradients flow through this module: factors depend on τ, never
on what is learned.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.polynomial import legendre
from scipy import special
from torch import Tensor

from hitchhiker.indicators import SoftIndicator, get

Numbers = Any  # a float, an array or a tensor
Indicator = str | SoftIndicator
Factor = Any  # float for scalar arguments, else a float64 array
Integrand = Callable[[np.ndarray], np.ndarray]

_NODES = 24


# --- the untruncated law (M = ∞)


def mean_factor(indicator: Indicator, temperature: Numbers) -> Factor:
    """c(τ) with E z = λ c(τ), ``c = τ ∫_{-∞}^{1/τ} f`` (Eq. 34; dimensionless).

    1 for τ <= 1 and any indicator of support [-1, 1]; ``1 + τ ln(1 + e^{-1/τ})`` for the sigmoid (Eq. 5);
    the cubic beyond τ = 1 is ``τ β³(2 - β)``, β = (1 + τ)/(2τ) (Eq. 52).

    Parameters
    ----------
    indicator : name or object.
    temperature : τ ``>= 0``, dimensionless, any shape; 0 gives 1.

    Raises
    ------
    ValueError
        for a negative, NaN or infinite temperature, or an unknown indicator.

    >>> round(mean_factor("sigmoid", 0.5), 4), mean_factor("cubic", 0.5), round(mean_factor("cubic", 2.0), 4)
    (1.0635, 1.0, 1.0547)
    """
    return cumulant_factor(indicator, temperature, 1)


def variance_factor(indicator: Indicator, temperature: Numbers) -> Factor:
    """v(τ) with Var z = λ v(τ), ``v = τ ∫_{-∞}^{1/τ} f²`` (Eq. 36; dimensionless).

    ``1 - Aτ`` for τ <= 1 and compact support, A the indicator's ``deficit``: 1 - 9τ/35 for the cubic (Eq.
    49). Arguments and errors as :func:`mean_factor`.

    >>> round(variance_factor("sigmoid", 0.5), 4), round(variance_factor("cubic", 0.5), 4)
    (0.6231, 0.8714)
    """
    return cumulant_factor(indicator, temperature, 2)


def fano_factor(indicator: Indicator, temperature: Numbers) -> Factor:
    """F(τ) = v/c, variance over mean (Eq. 53); below 1 for every τ > 0.  Arguments as :func:`mean_factor`.

    >>> round(fano_factor("sigmoid", 1.0), 4), round(fano_factor("cubic", 1.0), 4)
    (0.4433, 0.7429)
    """
    return cumulant_factor(indicator, temperature, 2) / cumulant_factor(indicator, temperature, 1)


def cumulant_factor(indicator: Indicator, temperature: Numbers, order: int) -> Factor:
    """κ_k(z)/λ = τ ∫_{-∞}^{1/τ} f(u)^k du; 1 for every order at τ = 0, as for the Poisson.

    Orders 1 and 2 are the mean and variance factors.  Orders 2 and 4 give the exact standard error of a
    sample variance, ``√((κ4 + 2 κ2²)/n)``.  The sigmoid has the closed form ``τ [ln(1 + e^{1/τ}) -
    Σ_{j<k} σ(1/τ)^j / j]``; compact indicators are integrated by Gauss-Legendre, which is exact for the
    polynomial ones.

    Parameters
    ----------
    indicator : name or object.
    temperature : τ ``>= 0``, dimensionless, any shape.
    order : k ``>= 1``.

    Raises
    ------
    ValueError
        for a bad temperature, an unknown indicator, or an order that is no integer ``>= 1``.

    >>> [round(cumulant_factor("linear", 1.0, k), 4) for k in (1, 2, 3)]  # 2/(k + 1)
    [1.0, 0.6667, 0.5]
    """
    if isinstance(order, bool) or int(order) != order or order < 1:
        raise ValueError(f"order must be an integer >= 1, got {order}")
    soft, k = get(indicator), int(order)
    if soft is get("sigmoid"):
        return _each(lambda tau: _sigmoid_cumulant(tau, k), temperature=temperature)
    return _each(lambda tau: _cumulant(soft, tau, k), temperature=temperature)


def gradient_mean(indicator: Indicator, temperature: Numbers) -> Factor:
    """E[dz/dλ] = c(τ), for every τ > 0: the pathwise derivative of the count has the mean's derivative.

    At τ = 0 the derivative is 0 almost surely while its limit is 1, so τ = 0 is refused.

    Raises
    ------
    ValueError
        for a temperature that is not positive and finite, or an unknown indicator.

    >>> gradient_mean("cubic", 0.5)
    1.0
    """
    _positive_temperature(temperature)
    return mean_factor(indicator, temperature)


def gradient_variance(indicator: Indicator, temperature: Numbers, rate: Numbers) -> Factor:
    """Var(dz/dλ) = ∫_{-∞}^{1/τ} f'(u)² (1 - τu)² du / (τλ), per count².

    For τ <= 1 and compact support this is ``(B + τ² ∫u²f'²)/(τλ)``, B the indicator's ``roughness``; for
    the cubic ``(3/5 + 3τ²/35)/(τλ)``.  It diverges as τ → 0: hard counts carry no pathwise gradient.

    Parameters
    ----------
    indicator : name or object.
    temperature : τ ``> 0``.
    rate : λ ``> 0``, counts per window, broadcast against ``temperature``.

    Raises
    ------
    ValueError
        for temperatures or rates that are not positive and finite, or an unknown indicator.

    >>> round(gradient_variance("cubic", 0.5, 1.0), 6) == round((3 / 5 + 3 / 140) / 0.5, 6)
    True
    """
    _positive_temperature(temperature)
    if (bad := _checked("rate", rate)).size and bad.min() == 0:
        raise ValueError("rate must be > 0, got 0.0: the variance of dz/dλ grows like 1/rate")
    soft = get(indicator)

    def at(tau: float, lam: float) -> float:
        return _integral(soft, tau, lambda u: (_slope(soft, u) * (1 - tau * u)) ** 2) / (tau * lam)

    return _each(at, temperature=temperature, rate=rate)


def count_gradient_covariance(indicator: Indicator, temperature: Numbers) -> Factor:
    """Cov(z, dz/dλ) = v(τ)/2 for every τ > 0 and λ: half the derivative of the variance λv.

    Arguments and errors as :func:`gradient_mean`.

    >>> round(count_gradient_covariance("cubic", 0.5), 4)
    0.4357
    """
    _positive_temperature(temperature)
    return variance_factor(indicator, temperature) / 2


def characteristic_function(
    indicator: Indicator, temperature: Numbers, rate: Numbers, count: Numbers, slope: Numbers = 0.0
) -> Any:
    """E exp(i(a z + b dz/dλ)) of the relaxed count and its derivative, M = ∞: their whole joint law in one formula.

    ``exp(λτ ∫_{-∞}^{1/τ} [exp(i(a f + b f'(1 - τu)/(τλ))) - 1] du)``, Campbell's theorem for a sum over a Poisson
    process.

    Parameters
    ----------
    indicator : name or object.
    temperature, rate : τ ``> 0``, λ ``> 0`` in counts per window.
    count, slope : the real arguments a and b, finite, per count and per unit of dz/dλ.

    Returns
    -------
    complex128, an array of the broadcast shape (a ``complex`` for scalars).

    Raises
    ------
    ValueError
        for temperatures or rates that are not positive and finite, or an unknown indicator.

    >>> p = characteristic_function("cubic", 0.5, 3.0, [1e-4, 0.0], [0.0, 1e-4])
    >>> print((p.imag / 1e-4).round(4))  # E z and E dz/dλ
    [3. 1.]
    """
    _positive_temperature(temperature)
    if (bad := _checked("rate", rate)).size and bad.min() == 0:
        raise ValueError("rate must be > 0, got 0.0")
    soft = get(indicator)
    for name, value in (("count", count), ("slope", slope)):
        if not np.isfinite(value).all():
            raise ValueError(f"{name} must be real and finite, got {value}")
    tau, lam, a, b = np.broadcast_arrays(*(np.asarray(x, dtype=np.float64) for x in (temperature, rate, count, slope)))
    out = np.empty(tau.shape, dtype=np.complex128)
    for i in np.ndindex(out.shape):
        t, r, x, y = (float(v[i]) for v in (tau, lam, a, b))

        def phase(u: np.ndarray, t: float = t, r: float = r, x: float = x, y: float = y) -> np.ndarray:
            return x * _value(soft, u) + y * _slope(soft, u) * (1 - t * u) / (t * r)

        # enough nodes for a few turns of the phase in each panel
        extra = 2 * math.ceil(abs(x) + abs(y) / (t * r))
        window = _integral(soft, t, lambda u: np.cos(phase(u)) - 1, extra) + 1j * _integral(
            soft, t, lambda u: np.sin(phase(u)), extra
        )
        before = max(1 / t - _half_width(soft), 0.0) * (np.exp(1j * x) - 1)
        out[i] = np.exp(r * t * (window + before))
    return complex(out[()]) if out.ndim == 0 else out


def negative_binomial_mean(indicator: Indicator, temperature: Numbers, total_count: Numbers, probs: Numbers) -> Factor:
    """Mean of the relaxed negative binomial of Algorithm 3: ``c m``, m = r(1 - μ)/μ counts.

    Parameters
    ----------
    indicator, temperature : as :func:`mean_factor`.
    total_count : r ``> 0``, dimensionless.
    probs : μ in (0, 1).

    Raises
    ------
    ValueError
        for parameters outside these domains.

    >>> round(negative_binomial_mean("cubic", 0.5, 3.0, 0.25), 4)
    9.0
    """
    m, _ = _nb_moments(total_count, probs)
    return _plain(mean_factor(indicator, temperature) * m)


def negative_binomial_variance(
    indicator: Indicator, temperature: Numbers, total_count: Numbers, probs: Numbers
) -> Factor:
    """Variance of the relaxed negative binomial of Algorithm 3: ``v m + c² m (1 - μ)/μ``.

    The first term is the relaxed Poisson's, the second the Gamma rate's, which the relaxation leaves
    alone when c = 1: an overdispersed count loses less of its variance.  Arguments and errors as
    :func:`negative_binomial_mean`.

    >>> round(negative_binomial_variance("cubic", 0.5, 3.0, 0.25), 4), 9 / 0.25  # relaxed, hard
    (34.8429, 36.0)
    """
    m, excess = _nb_moments(total_count, probs)
    c, v = mean_factor(indicator, temperature), variance_factor(indicator, temperature)
    return _plain(v * m + c**2 * excess)


# --- Algorithm 1 as written: M arrivals


def truncated_mean_factor(indicator: Indicator, temperature: Numbers, rate: Numbers, num_arrivals: Numbers) -> Factor:
    """E[z_M]/λ for Algorithm 1 with M arrivals: ``∫_0^∞ f((1-t)/τ) Q(M, λt) dt``.

    Q(M, x) = P(Poisson(x) < M) is the chance that an arrival at t is among the first M.  This, not Eq.
    34, is what a sampler with too small an M has: it depends on λ and falls short of c(τ).

    Parameters
    ----------
    indicator : name or object.
    temperature : τ ``>= 0``; 0 is the clipped count min(N, M).
    rate : λ ``>= 0``, counts per window; 0 gives the limit c(τ).
    num_arrivals : M ``>= 1``.

    Raises
    ------
    ValueError
        for arguments outside these domains.

    >>> [round(truncated_mean_factor(f, 0.5, 100.0, 132), 4) for f in ("sigmoid", "cubic")]
    [0.8488, 0.9892]
    """
    soft = get(indicator)
    return _each(
        lambda tau, lam, m: _Truncated(soft, tau, lam, m).mean(),
        temperature=temperature,
        rate=rate,
        num_arrivals=num_arrivals,
    )


def truncated_variance_factor(
    indicator: Indicator, temperature: Numbers, rate: Numbers, num_arrivals: Numbers
) -> Factor:
    """Var(z_M)/λ for Algorithm 1 with M arrivals.

    With ``G(t) = ∫_0^t f``, pairs of distinct arrivals contribute ``E[(z)_2] = 2λ² ∫ f G Q(M-1, λt) dt``,
    hence ``Var = λ ∫ f² Q(M, λt) dt + E[(z)_2] - (E z_M)²``.  Arguments and errors as
    :func:`truncated_mean_factor`.

    >>> [round(truncated_variance_factor(f, 0.5, 100.0, 132), 4) for f in ("sigmoid", "cubic")]
    [0.1535, 0.6737]
    """
    soft = get(indicator)
    return _each(
        lambda tau, lam, m: _Truncated(soft, tau, lam, m).variance(),
        temperature=temperature,
        rate=rate,
        num_arrivals=num_arrivals,
    )


def truncated_gradient_mean(indicator: Indicator, temperature: Numbers, rate: Numbers, num_arrivals: Numbers) -> Factor:
    """E[dz_M/dλ] for Algorithm 1 with M arrivals: ``∫ f'((1-t)/τ) (t/τ) Q(M, λt) dt``.

    Truncation hurts the gradient more than the count: arrivals beyond t = 1 carry half of it.
    Arguments and errors as :func:`truncated_mean_factor`, but τ ``> 0``.

    >>> [round(truncated_gradient_mean(f, 0.5, 100.0, 132), 3) for f in ("sigmoid", "cubic")]
    [0.396, 0.854]
    """
    _positive_temperature(temperature)
    soft = get(indicator)
    return _each(
        lambda tau, lam, m: _Truncated(soft, tau, lam, m).gradient_mean(),
        temperature=temperature,
        rate=rate,
        num_arrivals=num_arrivals,
    )


class _Truncated:
    """The integrals of Algorithm 1 with M arrivals at one (τ, λ, M), on panels fitted to f and to Q."""

    def __init__(self, soft: SoftIndicator, tau: float, lam: float, m: float):
        if m < 1 or m != int(m):
            raise ValueError(f"num_arrivals must be an integer >= 1, got {m}")
        self.soft, self.tau, self.lam, self.m = soft, tau, lam, m
        edges = _window_edges(soft, tau)
        # Q falls from 1 to 0 around λt = M, over √M; panels must be narrower than that.
        spread = math.sqrt(m)
        if lam > 0:
            falls = np.arange(m - 14 * spread, m + 14 * spread + 40, spread / 2) / lam
            edges = np.concatenate([edges, falls[(falls > 0) & (falls < edges.max())]])
        edges = np.unique(edges)
        x, w = _gauss(_NODES)
        self.half = np.diff(edges)[:, None] / 2
        self.t = edges[:-1, None] + self.half * (1 + x)
        self.w = self.half * w
        self.u = (1 - self.t) / tau if tau > 0 else np.full_like(self.t, np.inf)
        self.f = _value(soft, self.u)

    def q(self, m: float) -> np.ndarray:
        return special.gammaincc(m, self.lam * self.t) if m > 0 else np.zeros_like(self.t)

    def running(self, g: np.ndarray) -> np.ndarray:
        """∫_0^t g, at the nodes."""
        panels = np.sum(self.w * g, axis=1, keepdims=True)
        before = np.cumsum(panels, axis=0) - panels
        return before + self.half * (g @ _antiderivative(_NODES).T)

    def mean(self) -> float:
        return float(np.sum(self.w * self.f * self.q(self.m)))

    def variance(self) -> float:
        f, q = self.f, self.q(self.m)
        # (E z)² is written as a running integral too, so that the O(λ²) terms cancel node by node.
        pairs = self.running(f) * self.q(self.m - 1) - q * self.running(f * q)
        return float(np.sum(self.w * f * (f * q + 2 * self.lam * pairs)))

    def gradient_mean(self) -> float:
        slope = _slope(self.soft, self.u)
        return float(np.sum(self.w * slope * self.t * self.q(self.m))) / self.tau


# --- quadrature


def _cumulant(soft: SoftIndicator, tau: float, k: int) -> float:
    if tau == 0:
        return 1.0
    whole = max(1 / tau - _half_width(soft), 0.0)  # the stretch where f = 1
    return tau * (_integral(soft, tau, lambda u: _value(soft, u) ** k, extra=2 * k) + whole)


def _sigmoid_cumulant(tau: float, k: int) -> float:
    if tau == 0:
        return 1.0
    s = special.expit(1 / tau)
    j = np.arange(1, k)
    if s > 0.9:
        return 1 + tau * (math.log1p(math.exp(-1 / tau)) - float(np.sum(s**j / j)))
    j = np.arange(k, k + 400)  # the same as the tail of ln(1/(1 - s)): no cancellation at high orders
    return tau * float(np.sum(s**j / j))


def _integral(soft: SoftIndicator, tau: float, g: Integrand, extra: int = 0) -> float:
    """∫ g(u) du over the support of f', cut at u = 1/τ; exact for polynomials of degree < 2 (24 + extra)."""
    half_width = _half_width(soft)
    high = min(half_width, 1 / tau)
    edges = np.linspace(-half_width, high, 1 + max(2, math.ceil(high + half_width)))
    x, w = _gauss(_NODES + extra)
    half = np.diff(edges)[:, None] / 2
    return float(np.sum(half * w * g(edges[:-1, None] + half * (1 + x))))


def _half_width(soft: SoftIndicator) -> float:
    return soft.half_width(torch.float64)


def _window_edges(soft: SoftIndicator, tau: float) -> np.ndarray:
    """Panel edges in t on which f((1 - t)/τ) is smooth."""
    if tau == 0:
        return np.array([0.0, 1.0])
    half = _half_width(soft)
    inner = 1 + tau * np.linspace(-half, half, 1 + 2 * math.ceil(half))
    return np.concatenate([[0.0], inner[inner > 0]])


@lru_cache(maxsize=32)
def _gauss(n: int) -> tuple[np.ndarray, np.ndarray]:
    return legendre.leggauss(n)


@lru_cache(maxsize=4)
def _antiderivative(n: int) -> np.ndarray:
    """Matrix that takes values at the n Gauss nodes to ∫_{-1}^x at the same nodes."""
    x, _ = _gauss(n)
    to_series = np.linalg.inv(legendre.legvander(x, n - 1))
    integrals = np.stack([legendre.legval(x, legendre.legint(row, lbnd=-1)) for row in np.eye(n)], axis=1)
    return integrals @ to_series


def _value(soft: SoftIndicator, u: np.ndarray) -> np.ndarray:
    return soft(torch.as_tensor(u, dtype=torch.float64)).numpy()


def _slope(soft: SoftIndicator, u: np.ndarray) -> np.ndarray:
    return soft.derivative(torch.as_tensor(u, dtype=torch.float64)).numpy()


# --- arguments


def _each(formula: Callable[..., float], **arguments: Numbers) -> Factor:
    """``formula`` at every element of the broadcast arguments, equal ones computed once."""
    arrays = np.broadcast_arrays(*(_checked(name, value) for name, value in arguments.items()))
    known: dict[tuple[float, ...], float] = {}
    out = np.empty(arrays[0].shape)
    for index in np.ndindex(out.shape):
        key = tuple(float(a[index]) for a in arrays)
        if key not in known:
            known[key] = formula(*key)
        out[index] = known[key]
    return _plain(out)


def _plain(out: Any) -> Factor:
    return float(out) if np.ndim(out) == 0 else out


def _checked(name: str, value: Numbers) -> np.ndarray:
    """``value`` as a float64 array after checking that it is finite and >= 0."""
    try:
        if isinstance(value, Tensor):
            value = value.detach().cpu()
            value = value.double() if value.is_floating_point() else value  # numpy knows no bfloat16
        array = np.asarray(value)
        array = array.astype(np.float64, casting="safe" if array.dtype.kind in "biuf" else "no")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be real, >= 0 and finite, got {value!r}") from error
    bad = ~(np.isfinite(array) & (array >= 0))
    if bad.any():
        raise ValueError(f"{name} must be >= 0 and finite, got {array[bad].flat[0]}")
    return array


def _positive_temperature(temperature: Numbers) -> None:
    if (tau := _checked("temperature", temperature)).size and tau.min() == 0:
        raise ValueError("temperature must be > 0, got 0.0: hard counts have no pathwise gradient")


def _nb_moments(total_count: Numbers, probs: Numbers) -> tuple[np.ndarray, np.ndarray]:
    r, mu = _checked("total_count", total_count), _checked("probs", probs)
    if r.size and r.min() == 0:
        raise ValueError("total_count must be > 0, got 0.0")
    if mu.size and not (mu.min() > 0 and mu.max() < 1):
        raise ValueError(f"probs must be between 0 and 1, got {mu[(mu <= 0) | (mu >= 1)].flat[0]}")
    mean = r * (1 - mu) / mu
    return mean, mean * (1 - mu) / mu


__all__ = [
    "characteristic_function",
    "count_gradient_covariance",
    "cumulant_factor",
    "fano_factor",
    "gradient_mean",
    "gradient_variance",
    "mean_factor",
    "negative_binomial_mean",
    "negative_binomial_variance",
    "truncated_gradient_mean",
    "truncated_mean_factor",
    "truncated_variance_factor",
    "variance_factor",
]
