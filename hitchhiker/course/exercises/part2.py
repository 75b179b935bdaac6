"""Exercises of chapters 07 to 10: Campbell's theorem, moments, how many arrivals, whole distributions."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from hitchhiker import indicators
from hitchhiker.course.checking import Array, Exercise, Formula, Function, NotYet, Number

# ------------------------------------------------------------------------------------------- 07 Campbell's theorem


def _decay(t: Tensor) -> Tensor:
    return torch.exp(-torch.as_tensor(t))


def _soft_edge(t: Tensor) -> Tensor:
    return indicators.get("cubic")((1 - torch.as_tensor(t)) / 0.5)


def _ramp(t: Tensor) -> Tensor:
    return torch.as_tensor(t) / 3


def _integrals(f: Callable[[Tensor], Tensor], end: float, orders: range) -> Tensor:
    t = torch.linspace(0, end, 20_001, dtype=torch.float64)
    return torch.stack([torch.trapezoid(f(t) ** k, t) for k in orders])


def shot_noise_cumulants(f: Callable[[Tensor], Tensor], rate: float, end: float, order: int) -> Tensor:
    return rate * _integrals(f, end, range(1, order + 1))


def _raw_moments(f: Callable[[Tensor], Tensor], rate: float, end: float, order: int) -> Tensor:
    kappa, moments = shot_noise_cumulants(f, rate, end, order), [torch.ones((), dtype=torch.float64)]
    for n in range(1, order + 1):
        terms = [math.comb(n - 1, k - 1) * kappa[k - 1] * moments[n - k] for k in range(1, n + 1)]
        moments.append(torch.stack(terms).sum())
    return torch.stack(moments[1:])


# ------------------------------------------------------------------------------------------- 08 moments


def _lopsided(w: Tensor) -> Tensor:
    return (w**2 + w**0.5) / 2


def _transition() -> Tensor:
    """Positions w from 0 to 1, crowded at both ends."""
    x = torch.linspace(0, 1, 2001, dtype=torch.float64)
    return x**4 / (x**4 + (1 - x) ** 4)


def _area_and_end(f: Tensor, w: Tensor) -> Tensor:
    """∫ f du and f(1) of an indicator with the values ``f`` at ``w``; NotYet if it is none, or a symmetric one."""
    if not isinstance(f, Tensor) or f.shape != w.shape:
        raise NotYet("One value for each w is wanted, as a tensor.")
    if not torch.isfinite(f).all():
        raise NotYet("It is not a finite number everywhere between 0 and 1.")
    if f[0].abs() > 1e-6:
        raise NotYet("It does not start at 0.")
    if (f.diff() < -1e-6).any():
        raise NotYet("It falls somewhere, and should only rise.")
    if (f.diff() > 0.1).any():
        raise NotYet("It jumps.")
    if (f + f.flip(0) - 1).abs().max() < 1e-3:
        raise NotYet("It is symmetric, f(w) + f(1 - w) = 1, and the symmetric ones are known already.")
    return torch.stack([2 * torch.trapezoid(f, w), f[-1]])


# ------------------------------------------------------------------------------------------- 09 how many arrivals


def third_moment(
    kind: str,
    m: int,
    rate: float,
    temperature: float,
    *,
    ways: int = 3,
    before: int = 2,
    power: int = 2,
    rates: int = 3,
) -> Tensor:
    """E[(z)₃]; with other options the wrong ones."""
    t = torch.linspace(0, 4, 50_001, dtype=torch.float64)
    f = indicators.get(kind)((1 - t) / temperature)
    G = torch.cat([t[:1], torch.cumulative_trapezoid(f, t)])
    Q = torch.special.gammaincc(torch.tensor(float(m - before), dtype=torch.float64), rate * t)
    return ways * rate**rates * torch.trapezoid(f * G**power * Q, t)


# ------------------------------------------------------------------------------------------- 10 whole distributions


def w1_sorted(a: Tensor, b: Tensor) -> Tensor:
    return _gaps(_sorted(a), _sorted(b)).mean()


def _sorted(a: Tensor) -> Tensor:
    return torch.as_tensor(a).sort().values


def _gaps(a: Tensor, b: Tensor) -> Tensor:
    return (torch.as_tensor(a) - torch.as_tensor(b)).abs()


def _samples() -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.poisson(torch.full((200,), rate, dtype=torch.float64), generator=draw) for rate in (3.0, 4.0))
    return [(a, b), (b, 2 * a), (a - 5, b)]


EXERCISES: dict[str, Exercise] = {
    "07.1": Array(
        [5.0, 0.25, 5], 0.01, rate=20.0, parts=("the variance", "the Fano factor", "the number of the cumulant"),
        because="All orders are one integral each, and every further power of ¼ makes it four times smaller.",
        ask="three numbers in a list: variance, Fano factor, and the k of the first κ below 1% of λ",
        mistakes=[
            ([1.25, 0.25, 4], "A weight has to be integrated over the stretch where it lies, not only raised to a power."),
            ([20.0, 1.0, 5], "That would be a Poisson count's variance. Each arrival weighs a quarter, and it is squared."),
            ([5.0, 0.25, 4], "Variance and Fano factor are right. Count once more how many powers of ¼ a cumulant has."),
        ],
    ),
    "07.2": Formula(
        "v/2", "v c tau lambda",
        because="The covariance is λ∫fg, and f·f' is half the slope of f².",
        ask="an expression in v (it may use c, τ and λ as well)",
        mistakes={
            "v": "The slope of f² is not f·f'.",
            "v/(2*tau)": "Substitute u = (1 - t)/τ: dt brings a τ too.",
            "-v/2": "The sign is wrong: mind the minus in dt = -τ du, and which limit is the upper one.",
            "lambda*v/2": "The slope dz/dλ has a λ in its denominator, which takes away the one of Campbell's theorem.",
            "(v-c)/2": "What is left of the integration by parts is an integral of f², and nothing is taken from it.",
        },
    ),
    "07.3": Function(
        shot_noise_cumulants,
        cases=[(_decay, 20.0, 60.0, 4), (_soft_edge, 5.0, 3.0, 3), (_ramp, 2.0, 3.0, 2)],
        extreme=[(_decay, 1e6, 40.0, 1), (_soft_edge, 0.0, 3.0, 2)],
        batched=False, rtol=2e-3,
        because="Each cumulant of shot noise is the rate times one integral.",
        ask="a function shot_noise_cumulants(f, rate, end, order) that returns `order` numbers",
        mistakes=[
            (lambda f, rate, end, order: _integrals(f, end, range(1, order + 1)), "The rate is missing."),
            (
                lambda f, rate, end, order: rate * _integrals(f, end, range(order)),
                "The orders start one too low: κ₁ has f to the power 1.",
            ),
            (
                lambda f, rate, end, order: rate * _integrals(f, end, range(1, 2)) ** torch.arange(1, order + 1),
                "That is a power of the integral; it should be the integral of a power.",
            ),
            (
                lambda f, rate, end, order: rate ** torch.arange(1, order + 1) * _integrals(f, end, range(1, order + 1)),
                "Every cumulant has the rate to the first power only.",
            ),
            (_raw_moments, "Those are the moments E[Zᵏ], not the cumulants: pairs of arrivals are among them."),
        ],
    ),
    "08.1": Array(
        [1.0, 1 - 25 / 231, 0.1 * 231 / 50], 0.006, A=50 / 231,
        parts=("the mean factor", "the variance factor", "the temperature"),
        because="A symmetric edge keeps the mean, loses Aτ of the variance, and the sigmoid loses τ.",
        ask="three numbers in a list: mean factor and variance factor at τ = 0.5, and the temperature",
        mistakes=[
            ([1.0, 1 - 25 / 231, 0.1], "Equal temperatures are not equal losses: the sigmoid's deficit is 1."),
            ([1.0, 1 - 25 / 231, 0.1 * 50 / 231], "The edge with the smaller deficit may be the hotter one, not the colder one."),
            ([1.0, 1 - 50 / 231, 0.1 * 231 / 50], "The variance is that of τ = 1; half as hot, it loses less."),
            ([1.0, 1 - 25 / 231, 0.1 * 35 / 9], "The temperature is that of a cubic. The quintic has a deficit of its own."),
        ],
    ),
    "08.2": Function(
        _lopsided, cases=[(_transition(),)], measure=_area_and_end, expected=lambda w: [1.0, 1.0],
        parts=("the integral over the transition", "the end, w = 1"), batched=False, float32=False, rtol=1e-3,
        because="Its integral over the transition is 1, and nothing else was needed.",
        ask="a function f(w) of a tensor w = (u + 1)/2 between 0 and 1",
        mistakes=[
            (lambda w: w**2, "It counts too little: its integral over the transition is below 1, so the mean is too small."),
            (lambda w: w**0.5, "It counts too much: its integral over the transition is above 1, so the mean is too large."),
            (lambda w: w**3 * (4 - 3 * w), "It counts too little: its integral over the transition is below 1."),
        ],
    ),
    "08.3": Array(
        lambda: [245 / 1287, 350 / 429, 0.800154265625, 0.82421828125], 1e-4,
        parts=("A", "B", "the value at u = 0.3", "the slope at u = 0.3"),
        because="With these four an indicator is complete: sampler, moments and derivations read no more.",
        ask="four numbers in a list: A, B, and the value and the slope at u = 0.3",
        mistakes=[
            (
                [245 / 2574, 350 / 429, 0.800154265625, 0.82421828125],
                "A was integrated over w. It is an integral over u, which runs twice as far.",
            ),
            (
                [245 / 1287, 700 / 429, 0.800154265625, 1.6484365625],
                "The slope is that in w. The one in u is half of it, as du = 2 dw.",
            ),
            ([0.0, 0.0, 0.800154265625, 0.82421828125], "A and B are still the draft's zeros: put the computed ones in."),
        ],
    ),
    "09.1": Number(
        33.0, rtol=0.02,
        because="Only the latent at rate 100 loses anything; the others pay for it with arrivals that they cannot see.",
        ask="a number: the factor in work for a latent of rate 0.3",
        mistakes={
            440.0: "That is M over the mean rate. A window often holds more than the mean, and some have to be paid for.",
            293.3: "That is M over the mean number of arrivals in sight. A window often holds more than the mean.",
            44.0: "That is enough for a hard count, until t = 1. The cubic at τ = 0.5 looks further.",
            132.0: "One arrival is not enough: two or three come now and then.",
            66.0: "Three or more come too often for that: look at the tail of the Poisson law once more.",
            26.4: "That is one arrival more than one window in a thousand needs.",
        },
    ),
    "09.2": Formula(
        "(1 + lambda)*exp(-lambda)", "lambda", wrong_derivative="2 - (2 + lambda)*exp(-lambda)",
        because="One more unit of rate adds one count, unless the list of two is full already.",
        ask="an expression in λ: the slope of the mean at M = 2",
        mistakes={
            "1 - (1 + lambda)*exp(-lambda)": "That is the probability that the list is full; then one more arrival adds nothing.",
            "(1 + lambda + lambda**2/2)*exp(-lambda)": "Q(M, λ) is the probability of fewer than M, not of M or fewer.",
            "exp(-lambda)": "That is the slope for a list of one.",
            "1 - exp(-lambda)": "That is the mean for a list of one.",
        },
    ),
    "09.3": Function(
        third_moment,
        cases=[("cubic", 22, 20.0, 0.5), ("cubic", 6, 4.0, 0.2), ("linear", 9, 5.0, 0.8)],
        extreme=[("cubic", 22, 20.0, 1e-3), ("cubic", 200, 20.0, 0.5)],
        batched=False, rtol=2e-3,
        because="The last of three arrivals is on the list if fewer than M - 2 others came before it.",
        ask="a function third_moment(kind, m, rate, temperature) that returns a number",
        mistakes=[
            (partial(third_moment, ways=1), "Any of the three may be the latest: a factor is missing."),
            (
                partial(third_moment, before=0),
                "The first index of Q is that of a single arrival. Here two of those that came before are taken already.",
            ),
            (
                partial(third_moment, before=1),
                "The first index of Q is that of a pair. Here two of those that came before are taken already.",
            ),
            (partial(third_moment, power=1), "Two arrivals came earlier, and each brings a G."),
            (partial(third_moment, rates=2), "A triple of arrivals brings three rates."),
        ],
    ),
    "10.1": Array(
        [3.0, 3.5534], 0.02, parts=("the first distance", "the second distance"),
        because="Where the distribution functions do not cross, the distance is the gap of the means; a constant crosses.",
        ask="two numbers in a list: the two distances",
        mistakes=[
            ([3.0, 20**0.5], "The second is an average of distances, not the root of an average of squares."),
            ([3.0, 0.0], "Equal means do not make equal laws: the count still has to be moved to 20 from both sides."),
            ([43**0.5, 3.5534], "The two counts need not be drawn independently: the best coupling moves as little as possible."),
        ],
    ),
    "10.2": Formula(
        "lambda - 1 + exp(-lambda)", "lambda",
        because="It is the mean of (N - M)⁺, a few thousandths of a count with Eq. 79's M: a hard count does not mind.",
        ask="an expression in λ: the distance at M = 1",
        mistakes={
            "lambda - 1": "The clipped count is below M now and then, so its mean is less than M.",
            "1 - exp(-lambda)": "That is the mean of the clipped count; how far is it from N?",
            "1 - (1 + lambda)*exp(-lambda)": "That is how much probability is moved. The distance weighs it by how far it goes.",
            "lambda": "That is the distance from nothing at all: what is clipped off is less.",
            "lambda - 2 + (2 + lambda)*exp(-lambda)": "This is for M = 2.",
        },
    ),
    "10.3": Function(
        w1_sorted, cases=_samples, batched=False,
        because="The best coupling of two samples pairs equal ranks.",
        ask="a function w1_sorted(a, b) of two samples, that returns a number",
        mistakes=[
            (lambda a, b: _gaps(a, b).mean(), "The samples are paired as they come; pair equal ranks."),
            (lambda a, b: _gaps(a.mean(), b.mean()), "That is the gap of the means, the lower bound."),
            (lambda a, b: _gaps(_sorted(a), _sorted(b)).sum(), "The mean of the gaps is wanted, not their sum."),
            (
                lambda a, b: _gaps(_sorted(a), _sorted(b)).square().mean().sqrt(),
                "That is of order two: here distances are not squared.",
            ),
            (lambda a, b: _gaps(_sorted(a), b).mean(), "Only one of the samples is sorted."),
        ],
    ),
}  # fmt: skip
