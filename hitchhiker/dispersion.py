"""Laws that are not Poisson: exact expectations and gradients, an unbiased difference estimator, simulated spike counts.

Everything here asks of a law only that it can sample whole counts and knows their log-pmf, differentiably: the laws of
:mod:`hitchhiker.relaxations`, relaxed or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy import optimize
from torch import Tensor
from torch.distributions import Distribution

from hitchhiker.checks import require, require_count
from hitchhiker.fidelity import _coupled, _empirical
from hitchhiker.models.glm import GLM, MIN_RATE, get_link, get_observation
from hitchhiker.relaxations.com_poisson import ConwayMaxwellPoisson
from hitchhiker.relaxations.common import RateLaw

Function = Callable[[Tensor], Tensor]
#: counts in a table, at most
MOST = 1 << 16


def log_pmf_table(q: Distribution, tail: float = 1e-12) -> tuple[Float[Tensor, "counts *batch"], float]:
    """(ln P of 0 … M-1 along dimension 0, largest mass beyond M-1), M doubled until that mass is at most ``tail``.

    Differentiable in the law's parameters. A law in float32 is tabulated to its own precision. Raises ``ValueError`` when
    65,536 counts do not hold enough of the mass.

    >>> from hitchhiker import EATNegativeBinomial
    >>> table, lost = log_pmf_table(EATNegativeBinomial(torch.tensor(2.0, dtype=torch.float64), 0.5))
    >>> table.shape, lost < 1e-12
    (torch.Size([64]), True)
    """
    if not 0 < tail < 1:
        raise ValueError(f"tail must be between 0 and 1, got {tail}")
    size = 32
    while size <= MOST:
        counts = torch.arange(size, dtype=torch.float64).view(-1, *([1] * len(q.batch_shape)))
        found = q.log_prob(counts.expand(-1, *q.batch_shape))
        rounding, table = torch.finfo(found.dtype).eps * max(16, size // 8), found.double()
        # the last term of a falling tail bounds it where 1 - Σ has run out of digits
        lost = float((1 - table.detach().exp().sum(dim=0)).max()) if table.numel() else 0.0
        if lost <= max(tail, rounding) and bool((table[-1] < math.log(tail)).all()):
            return table, max(lost, 0.0)
        size *= 2
    raise ValueError(f"q must have all but {tail:g} of its mass below {MOST} counts, got {lost:.3g} beyond for {q!r}")


def expectation(f: Function, q: Distribution, tail: float = 1e-12) -> Float[Tensor, "*batch"]:
    """E f(N) for the whole counts N of any law, by enumeration, float64; autograd gives its exact gradients.

    ``f`` is elementwise. As :func:`hitchhiker.estimators.exact`, which is for Poisson laws, for every law with a pmf.

    >>> from hitchhiker import EATNegativeBinomial
    >>> r = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    >>> expectation(torch.square, EATNegativeBinomial(r, 0.4)).backward()
    >>> round(float(r.grad), 6)  # d/dr (m/μ + m²), m = r(1 - μ)/μ
    17.25
    """
    table, _ = log_pmf_table(q.above_zero() if isinstance(q, RateLaw) else q, tail)
    counts = torch.arange(len(table), dtype=torch.float64).view(-1, *([1] * (table.dim() - 1))).expand_as(table)
    return (f(counts) * table.exp()).sum(dim=0)


def count_difference(f: Function, q: Distribution, num_samples: int = 1) -> Float[Tensor, "*batch"]:
    """Unbiased gradients of E f(N) in every parameter of any count law, from differences of f.

    Summing by parts, ∂_θ E f(N) = Σ_n (f(n + 1) - f(n)) ∂_θ P(N > n) = E[(f(N + 1) - f(N)) w_θ(N)] with the weight
    w_θ(n) = ∂_θ P(N > n)/P(N = n). For a Poisson rate w = 1; for the mean of a negative binomial with r fixed it is
    μ(n + r)/r. The weights come from a table of the pmf, by autograd.

    Parameters
    ----------
    f : elementwise integrand; need not be differentiable.
    q : a law with ``sample`` and a differentiable ``log_prob``; its batch is that of the result.
    num_samples : S >= 1.

    Returns a surrogate, as every estimator of :mod:`hitchhiker.estimators`: its value estimates E f, its gradient ∂_θ E f.

    >>> from hitchhiker import ConwayMaxwellPoisson
    >>> _ = torch.manual_seed(0)
    >>> nu = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    >>> estimate = count_difference(torch.square, ConwayMaxwellPoisson(9.0, nu), 200_000)
    >>> exact = expectation(torch.square, ConwayMaxwellPoisson(9.0, nu))
    >>> [round(float(torch.autograd.grad(x, nu)[0]), 1) for x in (estimate, exact)]
    [-11.3, -11.3]

    Source: Cong et al. (2019); not in the paper.
    """
    require_count("num_samples", num_samples)
    table, _ = log_pmf_table(q.above_zero() if isinstance(q, RateLaw) else q)
    above = 1 - table.exp().cumsum(dim=0)
    n = q.sample((num_samples,))
    index = n.long().clamp(max=len(table) - 1)
    loss, step = f(n), (f(n + 1) - f(n)).detach().double()
    beyond = above.gather(0, index)
    weight = (beyond - beyond.detach()) / table.detach().gather(0, index).exp()
    return (loss.double() + step * weight).mean(dim=0)


def negative_binomial_slopes(f: Function, total_count: float, probs: float) -> tuple[float, float]:
    """(∂/∂r, ∂/∂μ) of E f(N), N negative binomial, from the two difference identities, summed exactly.

    ∂/∂μ E f = -(r/μ²) E[f(N' + 1) - f(N')], N' negative binomial with r + 1: the Gamma rate, weighted by itself.
    ∂/∂r E f = -ln μ · E[f(N + X) - f(N)], P(X = j) ∝ (1 - μ)^j/j: bursts arrive as a Poisson process of rate -r ln μ.

    Parameters
    ----------
    total_count, probs : r > 0 and μ in (0, 1), numbers.

    >>> slopes = negative_binomial_slopes(torch.square, 3.0, 0.4)
    >>> [round(x, 4) for x in slopes]
    [17.25, -243.75]
    """
    from hitchhiker.relaxations.negative_binomial import EATNegativeBinomial

    r, mu = (torch.tensor(x, dtype=torch.float64) for x in (total_count, probs))
    wide = log_pmf_table(EATNegativeBinomial(r + 1, mu), 1e-14)[0].exp()
    n = torch.arange(len(wide), dtype=torch.float64)
    by_probs = -(r / mu**2) * (wide * (f(n + 1) - f(n))).sum()
    pmf = log_pmf_table(EATNegativeBinomial(r, mu), 1e-14)[0].exp()
    n, size = torch.arange(len(pmf), dtype=torch.float64), torch.arange(1, len(pmf) + 1, dtype=torch.float64)
    jumps = (1 - mu) ** size / size  # -ln μ P(X = j)
    by_count = (pmf[:, None] * jumps * (f(n[:, None] + size) - f(n)[:, None])).sum()
    return float(by_count), float(by_probs)


def wasserstein(samples: Tensor, q: Distribution, order: float = 1) -> float:
    """W_p (counts) between a sample, flattened, and the whole counts of a law of one element, exactly.

    As :func:`hitchhiker.fidelity.wasserstein` for any law. Raises ``ValueError`` for a law with more than one element.

    >>> from hitchhiker import EATErlang
    >>> round(wasserstein(torch.zeros(1), EATErlang(rate=3.0, stages=2)), 6)
    3.0
    """
    if q.batch_shape.numel() != 1:
        raise ValueError(f"q must be one law, got batch shape {tuple(q.batch_shape)}")
    pmf = log_pmf_table(q)[0].exp().flatten().numpy()
    below = np.minimum(np.cumsum(pmf), 1.0)
    below[-1] = 1.0
    return _coupled(*_empirical("samples", samples), np.arange(len(pmf), dtype=float), below, order)


def com_poisson_of(mean: float, fano: float) -> tuple[float, float]:
    """(λ, ν) of the Conway-Maxwell-Poisson law with this mean and Fano factor.

    A count of mean m < 1 cannot have a Fano factor below 1 - m; this law gets there as ν → ∞. At or below it, and for
    m + 1 <= fano, where the law would be wider than a geometric one, ``ValueError``.

    >>> rate, nu = com_poisson_of(4.0, 0.5)
    >>> q = ConwayMaxwellPoisson(torch.tensor(rate, dtype=torch.float64), nu)
    >>> round(float(q.mean), 6), round(float(q.variance), 6), round(nu, 3)
    (4.0, 2.0, 2.143)
    """
    if not mean > 0:
        raise ValueError(f"mean must be > 0, got {mean}")
    nearest = abs(mean - math.floor(mean)) * (1 - abs(mean - math.floor(mean))) / mean
    if not nearest < fano < 1 + mean:
        raise ValueError(f"fano must be above {nearest:g} and below {1 + mean:g} at mean {mean:g}, got {fano}")

    def gap(point: np.ndarray) -> list[float]:
        nu = math.exp(point[1])
        q = ConwayMaxwellPoisson(torch.tensor(math.exp(nu * point[0]), dtype=torch.float64), nu)
        return [math.log(float(q.mean) / mean), math.log(float(q.variance / q.mean) / fano)]

    start = np.array([math.log(mean), -math.log(fano)])
    found = optimize.root(gap, start, tol=1e-13)
    if not found.success or max(map(abs, found.fun)) > 1e-9:
        raise ValueError(f"mean and fano must be within reach of a search, got {mean:g} and {fano:g}: {found.message}")
    nu = math.exp(found.x[1])
    return math.exp(nu * found.x[0]), nu


def symbolic_erlang_variance(indicator: str = "cubic") -> tuple[Any, Any, Any]:
    """(Var z, τ, λ): variance of the relaxed stationary count for k = 2 stages and τ <= 1, derived by sympy.

    λv(τ) - 2λ² ∫∫_{s<t} g(s) g(t) e^{-4λ(t-s)}, for the renewal density of two stages is h(x) = λ(1 - e^{-4λx}). For a
    polynomial indicator of support [-1, 1].

    >>> expression, tau, lam = symbolic_erlang_variance("linear")
    >>> round(float(expression.subs({tau: 0.5, lam: 4.0})), 4)
    1.7365
    """
    import sympy as sp

    from hitchhiker import symbolic

    tau, lam, f = symbolic.tau, symbolic.lam, symbolic.expression(indicator)
    a, y, w = 4 * lam, sp.Symbol("y", positive=True), symbolic.u
    # time runs backwards as y = (1 + τ - t)/τ, from 0 at the window's end to 2 at its start: g is f(y - 1)
    g, b = sp.expand(f.subs(w, y - 1)), a * tau
    # J(y) = ∫_0^y g(x) e^{-b(y - x)} dx solves J' = -b J + g: a polynomial part Σ (-1)^i g^(i)/b^{i+1}, and a decaying one
    steady = sum((-1) ** i * sp.diff(g, y, i) / b ** (i + 1) for i in range(sp.degree(g, y) + 1))
    start = steady.subs(y, 0)
    inside = sp.integrate(sp.expand(g * steady), (y, 0, 2)) - start * _decaying(g, b, y, 2)
    edge = sp.expand(steady.subs(y, 2) - start * sp.exp(-2 * b))  # J at the window's start
    early = 1 - tau
    before = (early - (1 - sp.exp(-a * early)) / a) / a + tau * edge * (1 - sp.exp(-a * early)) / a
    pairs = tau**2 * inside + before
    return lam * symbolic.variance_factor(indicator) - 2 * lam**2 * pairs, tau, lam


def _decaying(g: Any, b: Any, y: Any, end: int) -> Any:
    """∫_0^end g(y) e^{-by} dy of a polynomial g."""
    import sympy as sp

    total = sum(sp.diff(g, y, i) / b ** (i + 1) for i in range(sp.degree(g, y) + 1))
    return total.subs(y, 0) - sp.exp(-b * end) * total.subs(y, end)


@torch.no_grad()
def simulate_counts(model: GLM, sequences: int, bins: int) -> Float[Tensor, "*data sequences bins neurons"]:
    """Counts of a GLM with any observation law, bin by bin, silent before the first; torch's generator draws them.

    Raises ``ValueError`` for numbers below 1, or when rates leave 10⁶ a bin.

    >>> x = simulate_counts(GLM(torch.zeros(2, 2, 1), torch.zeros(2)), 5, 10)
    >>> x.shape
    torch.Size([5, 10, 2])
    """
    require_count("sequences", sequences)
    require_count("bins", bins)
    law, link = get_observation(model.observation), get_link(model.link)
    matrix = model.weights.movedim(-1, -2).flatten(-2).mT
    past = model.bias.new_zeros(*model.bias.shape[:-1], sequences, model.history, model.num_neurons)
    counts = []
    for _ in range(bins):
        rate = link.rate(past.flatten(-2) @ matrix + model.bias.unsqueeze(-2)).clamp(MIN_RATE, model.max_rate)
        require("rates of the model", rate, lambda r: r < 1e6, "below 1e6 counts a bin")
        spread = None if model.dispersion is None else model.dispersion.unsqueeze(-2).expand_as(rate)
        now = law.sample(rate, spread)
        counts.append(now)
        past = torch.cat([now.unsqueeze(-2), past[..., :-1, :]], dim=-2) if model.history else past
    return torch.stack(counts, dim=-2)


__all__ = [
    "com_poisson_of", "count_difference", "expectation", "log_pmf_table", "negative_binomial_slopes", "simulate_counts",
    "symbolic_erlang_variance", "wasserstein",
]  # fmt: skip
