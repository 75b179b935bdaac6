"""Numbers behind Part V: whole laws on a grid, how far indicators agree in one unit of temperature, edges searched for.

Nothing here is needed to use the laws; the chapters call these functions where a cell would get too long.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import integrate, interpolate, optimize, special
from torch import Tensor

from hitchhiker import estimators, linear_decoder
from hitchhiker.indicators import SoftIndicator, get
from hitchhiker.relaxations.arrival_time import EATPoisson
from hitchhiker.reproduce import distances

Function = Callable[[Tensor], Tensor]

#: the least product of variance deficit and roughness of any edge from 0 to 1
BOUND = math.pi**2 / 64


# --- the law of a relaxed count, without sampling


@dataclass(frozen=True)
class GridLaw:
    """The law of z on a fine grid, and that of z with one more arrival in the window.

    values : the grid, 0, h, 2h, …, in counts.
    probabilities : of z.
    with_fraction : of z + f(s), s uniform over the window.
    certain, window : lengths of time in which an arrival counts 1, and in which it counts f: 1 - τ and 2τ for τ <= 1.
    """

    values: Tensor
    probabilities: Tensor
    with_fraction: Tensor
    certain: float
    window: float

    def mean(self, f: Function) -> float:
        """E F(z)."""
        return float((f(self.values) * self.probabilities).sum())

    def pathwise(self, f: Function) -> float:
        """∫_0^∞ E[F(z + f((1-t)/τ)) - F(z)] dt, which is E[F'(z) dz/dλ] for an F that is the integral of its slope."""
        here = f(self.values)
        one_more = float(((f(self.values + 1) - here) * self.probabilities).sum())
        some_more = float((here * (self.with_fraction - self.probabilities)).sum())
        return self.certain * one_more + self.window * some_more


def relaxed_law(
    rate: float, temperature: float, indicator: str | SoftIndicator = "cubic", step: float = 1 / 512
) -> GridLaw:
    """The law of EAT's count by Fourier transform: certain arrivals and the window's fractions are two Poisson sums.

    A fraction f(s) is shared between its two neighbours on the grid so that its mean stays; what is left of the error is
    of the order ``step²`` in the variance.

    Parameters
    ----------
    rate : λ ``> 0``, counts per window.
    temperature : τ ``> 0``.
    indicator : of compact support, name or object.
    step : of the grid, in counts; 1 over a whole number.

    Raises
    ------
    ValueError
        for arguments outside these domains.

    >>> law = relaxed_law(3.0, 0.5)
    >>> print(f"{law.mean(lambda z: z):.4f}, {law.pathwise(torch.square):.4f}")  # λ, and 2λ + 1 - 9τ/35
    3.0000, 6.8714
    """
    soft = get(indicator)
    if not soft.is_compact:
        raise ValueError(f"indicator must have compact support, got {soft.name!r}")
    for name, value in (("rate", rate), ("temperature", temperature)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be > 0 and finite, got {value}")
    per_count = round(1 / step)
    if per_count < 1 or abs(per_count * step - 1) > 1e-9:
        raise ValueError(f"step must be 1 over a whole number, got {step}")
    high = min(1.0, 1 / temperature)
    certain, window = max(0.0, 1 - temperature), temperature * (high + 1)
    nodes = -1 + (high + 1) * (np.arange(40_000) + 0.5) / 40_000
    place = soft(torch.from_numpy(nodes)).numpy() * per_count
    low = np.floor(place).astype(int)
    share = np.bincount(low, 1 - (place - low), per_count + 2) + np.bincount(low + 1, place - low, per_count + 2)
    top = rate * (certain + window)
    size = 1 << math.ceil(math.log2(per_count * (top + 12 * math.sqrt(top) + 30)))
    fraction, one = np.zeros(size), np.zeros(size)
    fraction[: share.size], one[per_count] = share / share.sum(), 1.0
    fraction_hat, one_hat = np.fft.rfft(fraction), np.fft.rfft(one)
    hat = np.exp(rate * certain * (one_hat - 1) + rate * window * (fraction_hat - 1))
    laws = [np.fft.irfft(x, size) for x in (hat, hat * fraction_hat)]
    # what is left of the transform's rounding must not meet an F that grows
    p, q = (torch.from_numpy(np.where(x > 1e-16, x, 0.0)) for x in laws)
    return GridLaw(torch.arange(size, dtype=torch.float64) / per_count, p, q, certain, window)


# --- one temperature: how far indicators agree


def spread(values: Tensor) -> tuple[float, float, float]:
    """How far methods disagree: the largest (max - min)/mean over settings, with its standard error and its floor.

    ``values`` is ``(trials, settings, methods)``.  The standard error is a jackknife over trials.  The floor is what
    as many equal methods would show by chance: the expected range of their Monte Carlo errors, at that setting.

    >>> spread(torch.tensor([1.0, 2.0, 3.0]).expand(4, 1, 3))[:2]
    (1.0, 0.0)
    """
    if values.dim() != 3 or values.shape[0] < 3 or values.shape[2] < 2:
        raise ValueError(f"values must be (trials >= 3, settings, methods >= 2), got {tuple(values.shape)}")
    values = values.double()

    def largest(mean: Tensor) -> tuple[float, int]:
        relative = (mean.amax(dim=1) - mean.amin(dim=1)) / mean.mean(dim=1)
        return float(relative.max()), int(relative.argmax())

    n = values.shape[0]
    whole, where = largest(values.mean(dim=0))
    without = torch.tensor([largest((values.sum(dim=0) - v) / (n - 1))[0] for v in values], dtype=torch.float64)
    se = math.sqrt(max(0.0, (n - 1) / n * float((without - without.mean()).square().sum())))
    noise = values[:, where].std(dim=0) / math.sqrt(n)
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(20_000, values.shape[2], generator=generator, dtype=torch.float64) * noise
    floor = float((draws.amax(dim=1) - draws.amin(dim=1)).mean() / values[:, where].mean())
    return whole, se, floor


def matched(deficits: Sequence[float], indicators: Sequence[str], unit: str) -> list[list[float]]:
    """Temperatures (settings, indicators): the same Aτ for all, or (``unit="τ"``) the same τ, the cubic's at that Aτ.

    >>> matched([0.09], ["sigmoid", "cubic"], "Aτ"), matched([0.09], ["sigmoid", "cubic"], "τ")
    ([[0.09, 0.35]], [[0.35, 0.35]])
    """
    if unit not in ("τ", "Aτ"):
        raise ValueError(f"unit must be 'τ' or 'Aτ', got {unit!r}")
    own = [get("cubic" if unit == "τ" else kind).deficit for kind in indicators]
    return [[round(d / a, 12) for a in own] for d in deficits]


def fidelity_table(
    rate: float,
    temperatures: Sequence[Sequence[float]],
    indicators: Sequence[str],
    trials: int = 10,
    draws: int = 20_000,
) -> tuple[Tensor, Tensor]:
    """(W1 to the Poisson law, variance lost over λ), each ``(trials, settings, indicators)``, from independent draws."""
    w1 = torch.empty(trials, len(temperatures), len(indicators), dtype=torch.float64)
    lost = torch.empty_like(w1)
    lam = torch.tensor(float(rate))
    for i, row in enumerate(temperatures):
        for j, (kind, tau) in enumerate(zip(indicators, row, strict=True)):
            law = EATPoisson(lam, temperature=tau, indicator=kind, validate_args=False)
            for trial in range(trials):
                z = law.rsample((draws,)).numpy().astype(np.float64)
                w1[trial, i, j] = distances(np.sort(z), float(rate))[0]
                lost[trial, i, j] = 1 - z.var(ddof=1) / rate
    return w1, lost


def noise_table(
    x: Tensor,
    decoder: Tensor,
    rate: float,
    temperatures: Sequence[Sequence[float]],
    indicators: Sequence[str],
    trials: int = 8,
    gradients: int = 40,
) -> Tensor:
    """NoiseEnergy of one-sample gradients of a linear decoder's loss, ``(trials, settings, indicators)``, unbiased.

    All units have the rate ``rate``; ``x`` is ``(batch, pixels)``, ``decoder`` ``(pixels, latents)``.
    """
    log_rate = torch.full((len(x), decoder.shape[1]), math.log(rate), dtype=x.dtype)
    exact = linear_decoder.gradient(x, decoder, log_rate)
    product = linear_decoder.HessianProduct(x, decoder, log_rate)
    f = linear_decoder.SquaredError(x, decoder)
    out = torch.empty(trials, len(temperatures), len(indicators), dtype=torch.float64)
    for i, row in enumerate(temperatures):
        for j, (kind, tau) in enumerate(zip(indicators, row, strict=True)):
            for trial in range(trials):
                leaf = log_rate.expand(gradients, *log_rate.shape).clone().requires_grad_()
                law = EATPoisson(log_rate=leaf, temperature=tau, indicator=kind, validate_args=False)
                (g,) = torch.autograd.grad(estimators.pathwise(f, law, 1).sum(), leaf)
                error = g - g.mean(dim=0)
                energy = (error * product(error)).sum(dim=(0, -1)) / (gradients - 1)
                out[trial, i, j] = (energy / (exact * product(exact)).sum(dim=-1)).mean()
    return out


# --- gradients without bias, behind a decoder


def decoder_problem(kind: str, latents: int, pixels: int = 32, seed: int = 0) -> tuple[Any, Tensor]:
    """A loss f(z) = ‖x - decoder(z)‖² on counts and the rates of one item, random but fixed.

    ``kind`` is ``"linear"`` (Φz, with its closed forms), ``"quadratic"`` (Φz plus squares of sums of counts) or
    ``"mlp"`` (64 tanh units).  Rates are log-normal around 0.6; x is decoded from true counts, plus noise.

    Raises ``ValueError`` for another kind.

    >>> f, rate = decoder_problem("mlp", 8)
    >>> f(torch.zeros(3, 8)).shape, rate.shape
    (torch.Size([3]), torch.Size([8]))
    """
    if kind not in DECODERS:
        raise ValueError(f"kind must be one of {DECODERS}, got {kind!r}")
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    rate = torch.exp(0.8 * normal(latents) - 0.5)
    phi = normal(pixels, latents) / math.sqrt(pixels)
    pairs = normal(pixels, latents) / math.sqrt(pixels)
    hidden, shift = normal(64, latents) / math.sqrt(latents), 0.3 * normal(64)
    out = 2 * normal(pixels, 64) / 8
    decode = {
        "linear": lambda z: z @ phi.T,
        "quadratic": lambda z: z @ phi.T + 0.15 * (z @ pairs.T).square(),
        "mlp": lambda z: torch.tanh(z @ hidden.T + shift) @ out.T,
    }[kind]
    x = decode(torch.poisson(rate, generator=generator)) + 0.5 * normal(pixels)
    if kind == "linear":
        return linear_decoder.SquaredError(x, phi), rate
    return lambda z: (x - decode(z)).square().sum(dim=-1), rate


DECODERS = ("linear", "quadratic", "mlp")


def rate_problem(level: float, latents: int = 64, pixels: int = 32, seed: int = 0) -> tuple[Any, Tensor]:
    """A loss ‖x - decoder(z)‖² with one hidden layer of 64 tanh units, and rates (latents,) of about ``level`` counts.

    Above one count a latent the weights shrink as level^-½, so that the counts' noise moves the hidden layer equally at all
    levels; below, one count moves it as much as it does at one.  The decoder takes counts less their mean.

    Raises ``ValueError`` for a level that is not positive.

    >>> f, rate = rate_problem(10.0)
    >>> f(torch.zeros(3, 64)).shape, bool(5 < rate.mean() < 20)
    (torch.Size([3]), True)
    """
    if not 0 < level < math.inf:
        raise ValueError(f"level must be > 0 and finite, got {level}")
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    rate = level * torch.exp(0.8 * normal(latents) - 0.32)
    hidden, shift = normal(64, latents) / math.sqrt(latents * max(1.0, level)), 0.3 * normal(64)
    out = 2 * normal(pixels, 64) / 8

    def decode(z: Tensor) -> Tensor:
        return torch.tanh((z - rate) @ hidden.T + shift) @ out.T

    x = decode(torch.poisson(rate, generator=generator)) + 0.5 * normal(pixels)
    return lambda z: (x - decode(z)).square().sum(dim=-1), rate


def one_sample_gradients(
    estimator: Callable[..., Tensor], f: Any, law: Callable[..., Any], log_rate: Tensor, draws: int, calls: int = 1
) -> Tensor:
    """``draws`` one-sample gradients in the log-rates, float64 ``(draws, latents)``, in ``calls`` calls of the estimator."""
    parts = []
    for _ in range(calls):
        leaf = log_rate.expand(draws // calls, *log_rate.shape).clone().requires_grad_()
        (g,) = torch.autograd.grad(estimator(f, law(log_rate=leaf), 1).sum(), leaf)
        parts.append(g.double())
    return torch.cat(parts)


@dataclass(frozen=True)
class Judged:
    """Of one gradient, relative to the exact one: squared bias (unbiased, may be < 0), noise Tr(Σ)/‖g‖², standard errors."""

    squared_bias: float
    squared_bias_se: float
    noise: float
    noise_se: float

    @property
    def bias(self) -> str:
        """‖b‖/‖g‖ in per cent: with its error, or an upper bound where the bias is not two standard errors from 0."""
        low, se = self.squared_bias, self.squared_bias_se
        if low < 2 * se:
            return f"< {100 * math.sqrt(max(low, 0) + 2 * se):.1f}"
        return f"{100 * math.sqrt(low):.1f} ± {100 * se / (2 * math.sqrt(low)):.1f}"


def judge(gradients: Tensor, truth: Tensor, groups: int = 20) -> Judged:
    """Bias and noise of gradients (n, K) against exact ones: (K,), or (m, K) unbiased draws whose mean stands for it.

    The noise of both means is taken off the squared bias; standard errors are jackknives over ``groups`` of the draws.

    >>> judge(torch.randn(4000, 3) + 1, torch.ones(3)).squared_bias < 0.01
    True
    """
    if gradients.dim() != 2 or len(gradients) < 2 * groups or truth.shape[-1:] != gradients.shape[-1:]:
        raise ValueError(
            f"gradients must be (n, K) with n >= {2 * groups} and truth (K,) or (m, K), "
            f"got {tuple(gradients.shape)} and {tuple(truth.shape)}"
        )
    given, truth = truth.dim() == 2, truth.double()

    def mean_and_floor(g: Tensor) -> tuple[Tensor, Tensor]:
        return g.mean(dim=0), g.var(dim=0).sum() / len(g)

    def parts(g: Tensor, t: Tensor) -> tuple[float, float]:
        goal, slack = mean_and_floor(t) if given else (t, torch.zeros((), dtype=t.dtype))
        mean, floor = mean_and_floor(g)
        signal = goal.square().sum() - slack
        return float(((mean - goal).square().sum() - floor - slack) / signal), float(len(g) * floor / signal)

    g = gradients.double()
    whole = parts(g, truth)
    chunks, others = g.tensor_split(groups), truth.tensor_split(groups) if given else [truth] * groups
    without = torch.tensor([
        parts(
            torch.cat([c for j, c in enumerate(chunks) if j != i]),
            torch.cat([c for j, c in enumerate(others) if j != i]) if given else truth,
        )
        for i in range(groups)
    ])  # fmt: skip
    se = ((groups - 1) / groups * (without - without.mean(dim=0)).square().sum(dim=0)).sqrt().tolist()
    return Judged(whole[0], se[0], whole[1], se[1])


# --- the best edge


def smoothstep(power: float) -> tuple[float, float]:
    """(A, B) of the edge with slope proportional to (1 - u²)^p: p = 0 is the ramp, 1 the cubic, 2 the quintic.

    >>> a, b = smoothstep(1.0)
    >>> round(a * 35, 9), round(b, 9)
    (9.0, 0.6)
    """
    if not 0 <= power < math.inf:
        raise ValueError(f"power must be >= 0 and finite, got {power}")
    half = 0.5
    area = special.beta(half, power + 1)
    rough = special.beta(half, 2 * power + 1) / area**2
    value = lambda u: special.betainc(power + 1, power + 1, (1 + u) / 2)  # noqa: E731
    lost = 2 * integrate.quad(lambda u: value(u) * (1 - value(u)), 0, 1, epsabs=1e-13, epsrel=1e-12)[0]
    return lost, float(rough)


@dataclass(frozen=True)
class Edge:
    """An edge found by :func:`search`: u in [-1, 1], f(u), A, B, J₂ and the objective relative to π²/64."""

    u: np.ndarray
    f: np.ndarray
    deficit: float
    roughness: float
    outer_roughness: float
    ratio: float


def search(pieces: int = 12, variance_lost: float = 0.0, seed: int = 0, symmetric: bool = True) -> Edge:
    """The best edge among monotone splines: least (1 - v)·λVar(dz/dλ) at a given loss of variance δ = Aτ.

    The slope is a cubic spline with coefficients >= 0 over ``pieces`` pieces of [-1, 1], so f is monotone and smooth;
    for compact support and τ <= 1 the objective is exactly AB + δ²J₂/A.  ``symmetric=False`` lets the two halves
    differ (only for δ = 0, where symmetry plays no part).

    Raises
    ------
    ValueError
        for fewer than 2 pieces, a δ outside [0, 0.2] (where τ = δ/A stays below 1), or both δ > 0 and no symmetry.

    >>> round(search(8).ratio, 3)
    1.0
    """
    if pieces < 2:
        raise ValueError(f"pieces must be >= 2, got {pieces}")
    if not 0 <= variance_lost <= 0.2:
        raise ValueError(f"variance_lost must be in [0, 0.2], got {variance_lost}")
    if variance_lost and not symmetric:
        raise ValueError(f"variance_lost must be 0 without symmetry, got {variance_lost}")
    knots = np.linspace(-1, 1, pieces + 1)
    padded = np.concatenate([[-1.0] * 3, knots, [1.0] * 3])
    count = pieces + 3
    nodes, weights = np.polynomial.legendre.leggauss(8)
    u = (knots[:-1, None] + (nodes + 1) / pieces).ravel()
    w = torch.from_numpy(np.tile(weights / pieces, pieces))
    basis = [interpolate.BSpline(padded, row, 3) for row in np.eye(count)]
    slopes = torch.from_numpy(np.stack([b(u) for b in basis], axis=1))
    values = torch.from_numpy(np.stack([b.antiderivative()(u) for b in basis], axis=1))
    areas = torch.from_numpy(np.array([float(b.integrate(-1, 1)) for b in basis]))
    outer = w * torch.from_numpy(u) ** 2

    def parts(raw: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        c = raw.square()
        c = c + c.flip(0) if symmetric else c
        c = c / (c @ areas)
        f, slope = values @ c, slopes @ c
        return f, (w * f * (1 - f)).sum(), (w * slope.square()).sum(), (outer * slope.square()).sum()

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        raw = torch.tensor(x, requires_grad=True)
        _, a, b, j = parts(raw)
        cost = (a * b + variance_lost**2 * j / a) / BOUND
        cost.backward()
        assert raw.grad is not None
        return float(cost.detach()), raw.grad.numpy()

    start = np.random.default_rng(seed).uniform(0.2, 1.5, count)
    best = optimize.minimize(
        objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 3000, "ftol": 1e-15, "gtol": 1e-10}
    )
    f, a, b, j = parts(torch.from_numpy(best.x))
    return Edge(u, f.numpy(), float(a), float(b), float(j), float(best.fun))


__all__ = [
    "BOUND", "DECODERS", "Edge", "GridLaw", "Judged", "decoder_problem", "fidelity_table", "judge", "matched", "noise_table",
    "one_sample_gradients", "relaxed_law", "search", "smoothstep", "spread",
]  # fmt: skip
