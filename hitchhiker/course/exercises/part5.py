"""Exercises of chapters 30 to 36: beyond the paper."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hitchhiker import estimators, indicators, moments
from hitchhiker.course.checking import Array, Choice, Exercise, Formula, Function, NotYet, Number
from hitchhiker.relaxations.arrival_time import EATPoisson

EXERCISES: dict[str, Exercise] = {}
DRAWS, PAIRS = 400_000, 100_000  # so many that six standard errors stay below the tolerances
CUBIC = indicators.get("cubic")

# ---------------------------------------------------------------------------------------------- 30: two samplers


def _arrivals(number: float, low: float, high: float, tau: float, rate: float, size: int, late: bool = True):
    """(z, dz/dλ) of the cubic from Poisson(``number``) arrivals, uniform on [low, high] of the window."""
    zero = torch.zeros(size, dtype=torch.float64)
    near = torch.poisson(zero + number).long()
    s = low + (high - low) * torch.rand(int(near.sum()), dtype=torch.float64)
    owner = torch.arange(size).repeat_interleave(near)
    pay = CUBIC.derivative(s) * (1 - tau * s if late else 1.0) / (tau * rate)
    return zero.index_add(0, owner, CUBIC(s)), zero.index_add(0, owner, pay)


def hot_window(rate: float, tau: float, size: int) -> tuple[Tensor, Tensor]:
    return _arrivals(rate * (1 + tau), -1, 1 / tau, tau, rate, size)


def _pair_moments(pair: Any, rate: float, tau: float, size: int) -> Tensor:
    try:
        z, slope = (torch.as_tensor(x).detach().double() for x in pair)
    except (TypeError, ValueError) as error:
        raise NotYet("It must return two tensors, the counts and their derivatives.") from error
    if z.shape != (size,) or slope.shape != (size,):
        raise NotYet(f"Both must have the shape ({size},); they have {tuple(z.shape)} and {tuple(slope.shape)}.")
    return torch.stack([z.mean(), slope.mean(), z.var(), slope.var(), torch.cov(torch.stack([z, slope]))[0, 1]])


def _pair_expected(rate: float, tau: float, size: int) -> list[float]:
    c, v = moments.mean_factor("cubic", tau), moments.variance_factor("cubic", tau)
    return [rate * c, c, rate * v, moments.gradient_variance("cubic", tau, rate), v / 2]


EXERCISES |= {
    "30.1": Number(
        math.exp(-2), rtol=0.02, ask="a share, between 0 and 1",
        because="The derivative is 0 when the window holds no arrival, and it expects 2λτ = 2. The mean is 1 all the same.",
        mistakes={
            math.exp(-1): "The window reaches from 1 - τ to 1 + τ: it is as wide as 2τ.",
            1 - math.exp(-2): "That is the share that has a derivative.",
            100 * math.exp(-2): "A share is wanted, not per cent.",
            0.0: "Some windows hold no arrival near their end.",
            1.0: "Some windows do hold an arrival near their end.",
        },
    ),
    "30.2": Formula(
        "(1 - 9*tau/35)/2", "tau lambda",
        because="It is half of what belongs to one arrival of the variance, at every rate, since Cov is half of d(Var z)/dλ.",
        mistakes={
            "1 - 9*tau/35": "That is v itself: integrating f f' by parts leaves a factor.",
            "1/2": "This has f² = f, which holds for a hard edge only.",
            "lambda*(1 - 9*tau/35)/2": "The slope has 1/λ in it, and Campbell's theorem multiplies by λ.",
            "-(1 - 9*tau/35)/2": "The sign is wrong: f falls with t, since u = (1 - t)/τ.",
        },
    ),
    "30.3": Function(
        hot_window, [(4.0, 2.0, PAIRS), (2.0, 1.2, PAIRS)], batched=False, float32=False, rtol=0.05,
        measure=_pair_moments, expected=_pair_expected, ask="a function hot_window(rate, tau, size) → (z, slope)",
        parts=("mean of z", "mean of dz/dλ", "variance of z", "variance of dz/dλ", "covariance"),
        because="For a hot edge all arrivals from 0 to 1 + τ are in the window, and none is before it.",
        mistakes=[
            (lambda rate, tau, size: _arrivals(2 * rate * tau, -1, 1, tau, rate, size),
             "No arrival comes before time 0, so the window is shorter than [1 - τ, 1 + τ]."),
            (lambda rate, tau, size: _arrivals(rate * (1 + tau), -1, 1, tau, rate, size),
             "The number of arrivals is right, but s = (1 - t)/τ has another range when t begins at 0."),
            (lambda rate, tau, size: _arrivals(rate * (1 + tau), -1, 1 / tau, tau, rate, size, late=False),
             "The counts are right; in the derivative a late arrival has come a longer way."),
            (lambda rate, tau, size: _arrivals(rate, 0, 1 / tau, tau, rate, size),
             "Arrivals after time 1 still count a fraction."),
        ],
    ),
}  # fmt: skip

# ------------------------------------------------------------------------------------------------ 31: what it costs


def with_slope(value: Tensor, slope: Tensor, rate: Tensor) -> Tensor:
    return value.detach() + slope.detach() * (rate - rate.detach())


def _value_and_slope(z: Any, value: Tensor, slope: Tensor, rate: Tensor) -> Tensor:
    if not isinstance(z, Tensor) or z.shape != rate.shape:
        raise NotYet("It must return a tensor of the shape of value.")
    if not z.requires_grad:
        raise NotYet("The result does not depend on rate: a backward pass finds nothing.")
    (found,) = torch.autograd.grad(z.sum(), rate, allow_unused=True)
    if found is None:
        raise NotYet("The result does not depend on rate: a backward pass finds nothing.")
    return torch.stack([z.detach(), found], dim=-1)


def _with_slope_cases() -> list[tuple[Tensor, Tensor, Tensor]]:
    rate = torch.tensor([0.3, 2.0, 11.0], dtype=torch.float64, requires_grad=True)
    counts = torch.tensor([0.0, 3.0, 9.0], dtype=torch.float64)
    return [(counts, torch.tensor([0.0, 1.7, 0.4], dtype=torch.float64), rate), (counts + 0.25, counts / 7, rate)]


EXERCISES |= {
    "31.1": Number(
        40.0, rtol=0.02, ask="a number: the mean number of arrivals in the edge",
        because="The edge holds 2λτ arrivals. The time grows by less, for two Poisson counts are drawn in any case.",
        mistakes={
            20.0: "The edge reaches from 1 - τ to 1 + τ, with the new τ.",
            120.0: "Those before the edge need not be placed: only their number is drawn.",
            80.0: "Too many: how wide is the edge, and how many arrivals come in so much time?",
            2.0: "That is the factor; the number itself is wanted.",
        },
    ),
    "31.2": Formula(
        "lambda*(1 + 24*log(2)*tau)", "lambda tau", ranges={"tau": (0.1, 1.0), "lambda": (1.0, 100.0)},
        because="The edge begins before t = 0, so every arrival up to 1 + hτ is looked at: 266 and 932 of them.",
        mistakes={
            "2*lambda*tau*24*log(2)": "That is the whole width of the edge, but its left end lies before t = 0.",
            "lambda*24*log(2)*tau": "Those before t = 1 are in the edge as well.",
            "lambda*(1 + 24*tau)": "h is where exp(-h), not 2^-h, is 2^-24.",
            "lambda*(1 + tau)": "That is for a compact edge; this one ends at 1 + hτ.",
            "24*log(2)*tau + 1": "That is a time; at rate λ, how many arrivals come in it?",
        },
    ),
    "31.3": Function(
        with_slope, _with_slope_cases, batched=False, float32=False, measure=_value_and_slope,
        expected=lambda value, slope, rate: torch.stack([value, slope], dim=-1), parts=("value", "gradient"),
        ask="a function with_slope(value, slope, rate) → tensor",
        because="The added term is zero, has the slope wanted, and keeps one tensor.",
        mistakes=[
            (lambda value, slope, rate: value + slope * rate, "The gradient is right; but the value is changed by slope · rate."),
            (lambda value, slope, rate: slope * (rate - rate.detach()), "The gradient is right; but where has the value gone?"),
            (lambda value, slope, rate: value - slope * (rate - rate.detach()),
             "The value is right; the gradient has the wrong sign."),
            (lambda value, slope, rate: value + (rate - rate.detach()), "The value is right; but the gradient is 1 everywhere."),
            (lambda value, slope, rate: value * rate / rate.detach(),
             "The value is right; but the gradient is value/rate, whatever the slope."),
        ],
    ),
}  # fmt: skip

# ------------------------------------------------------------------------------------------- 32: one temperature


def convert(temperature: float, given: str, wanted: str) -> float:
    """The lowest temperature at which ``wanted`` loses what ``given`` does, by bisection."""
    target = moments.variance_factor(given, temperature)
    low, high = 0.0, 0.1 * _rule(temperature, given, wanted)
    while moments.variance_factor(wanted, high) > target:
        low, high = high, 1.1 * high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if moments.variance_factor(wanted, middle) > target else (low, middle)
    return high


def _rule(temperature: float, given: str, wanted: str) -> float:
    return temperature * indicators.get(given).deficit / indicators.get(wanted).deficit


EXERCISES |= {
    "32.1": Array(
        [0.1, 0.1 * 231 / 50], rtol=0.01, ask="two temperatures, (sigmoid's, quintic's)",
        parts=("the sigmoid's", "the quintic's"),
        because="The product Aτ stays. The noise goes with AB: the same for the sigmoid, 7% less for the quintic.",
        mistakes=[
            ([0.3, 0.3], "Equal τ is not equal loss."),
            ([0.9, 0.3 * 150 / 231], "The ratio of the deficits is upside down."),
            ([0.1, 0.1], "That is the share lost; each indicator turns it into a temperature with its own deficit."),
            ([0.1 * 231 / 50, 0.1], "These two are exchanged."),
            ([0.9, 0.21], "It is the deficit that matters here, not the roughness."),
        ],
    ),
    "32.2": Formula(
        "3*lambda*tau/8", "lambda tau",
        because="C of the cubic is twice the area under its lower half.",
        mistakes={
            "3*lambda*tau/16": "That is one half of the edge; min(f, 1 - f) has two.",
            "3*lambda*tau/4": "Given an arrival in the window, the two distribution functions differ by half of |f⁻¹(y)|.",
            "9*lambda*tau/35": "That has the deficit in place of C: the integral of f(1 - f), not of min(f, 1 - f).",
            "lambda*tau": "That is 2λτ · ½, the mean number of arrivals on one side; how far is each from 0 or 1?",
            "3*tau/8": "More arrivals, more distance: the number in the window grows with λ.",
        },
    ),
    "32.3": Function(
        convert,
        [(0.02, "sigmoid", "cubic"), (0.5, "sigmoid", "cubic"), (0.389, "cubic", "sigmoid"), (0.3, "linear", "quintic")],
        batched=False, float32=False, rtol=1e-4, extreme=[(0.8, "linear", "cosine")],
        ask="a function convert(temperature, given, wanted) → temperature",
        because="Both lose the same share of the variance, also where the loss is no longer straight in τ.",
        mistakes=[
            (_rule, "That is the rule Aτ, which is not exact for a sigmoid or a hot edge: solve for the variance factor."),
            (lambda temperature, given, wanted: _rule(temperature, wanted, given), "given and wanted are exchanged."),
            (lambda temperature, given, wanted: convert(temperature, wanted, given), "given and wanted are exchanged."),
            (lambda temperature, given, wanted: moments.variance_factor(given, temperature),
             "That is the variance factor to be met; wanted is the temperature that meets it."),
            (lambda temperature, given, wanted: temperature, "Equal τ is not equal loss."),
        ],
    ),
}  # fmt: skip

# ---------------------------------------------------------------------------------------- 33: the best indicator


def semicircle() -> indicators.SoftIndicator:
    """f' = (2/π) √(1 - u²); A and B from the Beta integrals of that slope."""
    return indicators.SoftIndicator(
        "semicircle", "1/2 + (u*sqrt(1 - u**2) + asin(u))/pi", (-1.0, 1.0), 128 / (45 * math.pi**2), 16 / (3 * math.pi**2), 0,
        _value=lambda u: 0.5 + (u * (1 - u * u).clamp(min=0).sqrt() + torch.asin(u)) / math.pi,
        _slope=lambda u: 2 / math.pi * (1 - u * u).clamp(min=0).sqrt(),
    )  # fmt: skip


def _as_function(soft: Any) -> Callable[[Tensor], Tensor]:
    """Value, slope, deficit and roughness of an indicator, side by side for every u."""
    return lambda u: torch.stack(
        [soft(u), soft.derivative(u), torch.full_like(u, soft.deficit), torch.full_like(u, soft.roughness)], dim=-1
    )


def _semicircle(**changes: Any) -> indicators.SoftIndicator:
    return dataclasses.replace(semicircle(), **changes)


EXERCISES |= {
    "33.1": Array(
        [35 / 27, 5 / 6, 175 / 162], rtol=0.01, ask="three factors, ramp over cubic: (loss, noise, noise at equal loss)",
        parts=("the loss", "the noise", "the noise at equal loss"),
        because="Most of it is temperature: at equal loss the ramp is the noisier one, by the ratio of the products AB.",
        mistakes=[
            ([27 / 35, 6 / 5, 162 / 175], "These are cubic over ramp."),
            ([35 / 27, 5 / 6, 5 / 6], "The third is at another temperature: the ramp's, set so that both lose the same."),
            ([35 / 27, 5 / 6, 5 / 6 * 27 / 35], "For the third the ramp has to run colder, and noise goes with 1/τ."),
            ([35 / 27, 6 / 5, 175 / 162], "The second is upside down: is the ramp steeper or gentler than the cubic?"),
            ([0.3, -1 / 6, 13 / 162], "These are the changes; wanted are the factors."),
        ],
    ),
    "33.2": Formula(
        "sigma/sqrt(pi)", "sigma",
        because="Two draws differ by a Gaussian of variance 2σ², and A is half of its mean absolute value.",
        mistakes={
            "2*sigma/sqrt(pi)": "That is the mean distance of two draws: A is half of it.",
            "sigma/sqrt(2*pi)": "The difference of two draws has twice the variance of one.",
            "1/(2*sigma*sqrt(pi))": "That is the roughness B, the density of the difference at 0.",
            "1/sqrt(pi)": "Stretching the edge by σ stretches the integral of f(1 - f) too.",
            "1/(2*pi)": "That is the product AB.",
        },
    ),
    "33.3": Function(
        semicircle(), [-0.9, -0.5, -0.2, 0.1, 0.4, 0.8], extreme=[-1.0, 1.0, -2.5, 7.0], float32=False, rtol=1e-4,
        view=_as_function, parts=("f", "the slope f'", "the deficit", "the roughness"),
        ask="a SoftIndicator with the slope 2/π √(1 - u²)",
        because="Value, slope, deficit and roughness agree; its product AB is one per cent above the wall.",
        mistakes=[
            (_semicircle(deficit=semicircle().roughness, roughness=semicircle().deficit),
             "f and its slope are right; deficit and roughness are exchanged."),
            (_semicircle(deficit=CUBIC.deficit, roughness=CUBIC.roughness),
             "f and its slope are right; deficit and roughness are still the cubic's."),
            (_semicircle(_value=lambda u: (u * (1 - u * u).clamp(min=0).sqrt() + torch.asin(u)) / math.pi),
             "f should be 0 at -1 and 1 at 1; its constant is missing."),
            (_semicircle(_slope=lambda u: (1 - u * u).clamp(min=0).sqrt()),
             "f is right; its slope must have the area 1."),
        ],
    ),
}  # fmt: skip

# ----------------------------------------------------------------------------- 34: why pathwise gradients work


def one_more_arrival(F: Callable, rate: float, tau: float, size: int) -> Tensor:
    z, t = _soft(rate, tau, size), (1 + tau) * torch.rand(size, dtype=torch.float64)
    return (1 + tau) * (F(z + CUBIC((1 - t) / tau)) - F(z))


def _soft(rate: float, tau: float, size: int) -> Tensor:
    return EATPoisson(rate=torch.full((size,), rate, dtype=torch.float64), temperature=tau).rsample()


def _whole_spike(F: Callable, rate: float, tau: float, size: int) -> Tensor:
    z = _soft(rate, tau, size)
    return F(z + 1) - F(z)


def _early_only(F: Callable, rate: float, tau: float, size: int) -> Tensor:
    z, t = _soft(rate, tau, size), torch.rand(size, dtype=torch.float64)
    return F(z + CUBIC((1 - t) / tau)) - F(z)


def _not_weighed(F: Callable, rate: float, tau: float, size: int) -> Tensor:
    return one_more_arrival(F, rate, tau, size) / (1 + tau)


def _hard_difference(F: Callable, rate: float, tau: float, size: int) -> Tensor:
    n = torch.poisson(torch.full((size,), rate, dtype=torch.float64))
    return F(n + 1) - F(n)


def _mean(g: Any, F: Callable, rate: float, tau: float, size: int) -> Tensor:
    if not isinstance(g, Tensor) or g.shape != (size,):
        raise NotYet(f"It must return one estimate for each of the {size} samples, a tensor of the shape ({size},).")
    return g.detach().double().mean()


def _at_least_three(z: Tensor) -> Tensor:
    return (z >= 2.5).double()


def _pathwise_mean(F: Callable, rate: float, tau: float, size: int) -> float:
    from hitchhiker import beyond_figures

    return beyond_figures.relaxed_law(rate, tau).pathwise(F)


EXERCISES |= {
    "34.1": Choice(
        "a", options={"a": "too small", "b": "right", "c": "too large"},
        because="Between two counts a convex F lies below its chord, so D < 0, and λD falls as the rate grows.",
        mistakes={
            "b": "That would need an F whose mean over the edge is the mean of its two ends.",
            "c": "Does F lie above or below the chord between two whole numbers?",
        },
    ),
    "34.2": Formula(
        "(1 - tau)*(exp(a) - 1) + 2*tau*((exp(a) - 1)/a - 1)", "a tau", ranges={"tau": (0.05, 1.0)},
        because="With s uniform on [-1, 1] the linear edge is uniform on [0, 1].",
        mistakes={
            "(1 - tau)*(exp(a) - 1) + 2*tau*(exp(a) - 1)/a": "In the integral, exp(af) - 1 has lost its -1.",
            "(1 - tau)*(exp(a) - 1) + tau*((exp(a) - 1)/a - 1)": "The integral over s runs from -1 to 1, a stretch of length 2.",
            "(1 + tau)*(exp(a) - 1)": "An arrival in the window counts f(s), not 1.",
            "exp(a) - 1": "That is the hard count's, τ = 0.",
            "(1 - tau)*(exp(a) - 1) + 2*tau*((exp(a) - exp(-a))/(2*a) - 1)":
                "The linear edge is f = (1 + s)/2, from 0 to 1; this has f = s.",
        },
    ),
    "34.3": Function(
        one_more_arrival, [(torch.square, 2.0, 1.0, DRAWS), (torch.cos, 3.0, 0.5, DRAWS), (_at_least_three, 2.0, 0.5, DRAWS)],
        batched=False, float32=False, rtol=0.01, atol=0.01, measure=_mean, expected=_pathwise_mean,
        ask="a function one_more_arrival(F, rate, tau, size) → size estimates",
        because="It has the mean of the pathwise gradient, and needs no slope, so a step is no obstacle.",
        mistakes=[
            (_not_weighed, "The integral over t is the mean over a uniform t times the length of the stretch."),
            (_whole_spike, "The arrival that is put in counts f((1 - t)/τ), not 1."),
            (_early_only, "Arrivals after t = 1 make a difference too, up to 1 + τ."),
            (_hard_difference, "That is the difference of hard counts, whose mean is the exact gradient: take soft ones."),
        ],
    ),
}  # fmt: skip

# ---------------------------------------------------------------------------------------------- 35: without bias


def _total_noise(scale: float, f: Callable, law: Callable, log_rate: Tensor, draws: int) -> float:
    leaf = log_rate.expand(draws, *log_rate.shape).clone().requires_grad_()
    surrogate = estimators.relax(f, law(log_rate=leaf), 1, scale=scale)
    (gradients,) = torch.autograd.grad(surrogate.sum(), leaf)
    return gradients.var(dim=0).sum().item()


def best_scale(f: Callable, law: Callable, log_rate: Tensor, draws: int) -> float:
    low, middle, high = (_total_noise(a, f, law, log_rate, draws) for a in (0.0, 0.5, 1.0))
    bend = 2 * (low - 2 * middle + high)  # noise = low + b a + bend a², of which b = high - low - bend
    return (low - high + bend) / (2 * bend)


def _coarse_scale(f: Callable, law: Callable, log_rate: Tensor, draws: int) -> float:
    return min((0.0, 0.5, 1.0), key=lambda a: _total_noise(a, f, law, log_rate, draws))


def _eat(tau: float) -> Callable[..., EATPoisson]:
    return lambda log_rate: EATPoisson(log_rate=log_rate, temperature=tau)


def _scale_cases() -> list[tuple]:
    one, two = (torch.tensor(rate, dtype=torch.float64).log() for rate in ([1.0], [0.7, 2.0]))
    return [
        (torch.cos, _eat(0.3), one, 30_000),
        (torch.cos, _eat(1.0), two, 30_000),
        (torch.square, _eat(0.05), 3 * one, 30_000),
    ]


EXERCISES |= {
    "35.1": Choice(
        "b",
        options={
            "a": "all four", "b": "difference and relax", "c": "difference, midpoint and moment matching",
            "d": "midpoint and moment matching", "e": "the difference alone",
        },
        because="These two hold for every F; the others match means and variances, and a fourth power sees more than those.",
        mistakes={
            "a": "Some of them are built on the first two moments; which moments does a fourth power see?",
            "c": "Curvature is all that the midpoint knows of F, and variance all that matching mends.",
            "d": "A linear decoder makes the squared error quadratic, but not its square.",
            "e": "Look at the theorem of the control variate: what does it ask of F?",
        },
    ),
    "35.2": Formula(
        "-(4*lambda + 1)", "lambda",
        because="The third derivative of z⁴ is 24 z; with it the remainder is 4N + 1, which the midpoint leaves out.",
        mistakes={
            "4*lambda + 1": "The sign is wrong: bias is the mean of the estimate minus the exact gradient.",
            "-4*lambda": "In F'''(N + s) the s has a mean too.",
            "-24*lambda": "Now integrate it with the weight (1 - s)²/2.",
            "-1": "That is the bias for F = z³.",
            "-(6*lambda**2 + 10*lambda + 1)": "The midpoint does have the second derivative.",
        },
    ),
    "35.3": Function(
        best_scale, _scale_cases, batched=False, float32=False, rtol=0.02, atol=0.08, measure=lambda a, *_: a,
        ask="a function best_scale(f, law, log_rate, draws) → a",
        because="The noise is a parabola in a, so three of its values are enough.",
        mistakes=[
            (lambda f, law, log_rate, draws: 1.0, "Always 1 is the default; the best scale depends on f, rate and temperature."),
            (lambda f, law, log_rate, draws: 0.0, "At 0 the control variate is off."),
            (_coarse_scale, "That is the best of three trial values; the parabola through them has its minimum between."),
            (lambda f, law, log_rate, draws: -best_scale(f, law, log_rate, draws), "The sign is wrong."),
            (lambda f, law, log_rate, draws: 2 * best_scale(f, law, log_rate, draws),
             "A factor of two too much: b + 2 bend a = 0 at the minimum."),
        ],
    ),
}  # fmt: skip

# ------------------------------------------------------------------------------------------------- 36: choosing


def samples_needed(noise: Any, bias: Any, error: Any) -> Tensor:
    """How many gradients to average for a relative error √(bias² + noise/S) of ``error``; inf where no number is enough."""
    noise, bias, error = torch.broadcast_tensors(
        *(torch.as_tensor(x, dtype=torch.float64) for x in (noise, bias, error))
    )
    room = error.square() - bias.square()
    return torch.where(room > 0, noise / torch.where(room > 0, room, 1.0), math.inf)


EXERCISES |= {
    "36.1": Number(
        20.0, rtol=0.02, ask="a number: a factor",
        because="The term is inverse to the rate; to keep it one would need τ = 2, and the cubic's mean allows 1 at most.",
        mistakes={
            400.0: "The noise is inverse to the rate, not to its square.",
            0.05: "Upside down: fewer arrivals, more noise.",
            200.0: "The temperature stays what it was.",
        },
    ),
    "36.2": Formula(
        "-1/(2*(lambda - x) + 1)", "lambda x",
        because="Half a curvature is missing, whatever the rate: it is felt most where the exact gradient is small.",
        mistakes={
            "1/(2*(lambda - x) + 1)": "The sign is wrong: straight-through comes out below the exact gradient.",
            "-1": "That is the bias itself; divide it by the exact gradient.",
            "-1/(2*(lambda - x))": "In the denominator belongs the exact gradient, variance included.",
            "-1/(2*(x - lambda) + 1)": "The slope of (x - z)² has the other sign.",
        },
    ),
    "36.3": Function(
        samples_needed,
        [(1.0, 0.0, 0.5), (0.3, 0.26, 0.3), (18.8, 0.0, 0.2), (2.0, 0.1, 0.2)],
        extreme=[(0.3, 0.26, 0.2), (5.0, 0.1, 0.1)], float32=False,
        ask="a function samples_needed(noise, bias, error) → number of gradients",
        because="What bias leaves of the squared error is what noise may use; nothing left, no number is enough.",
        mistakes=[
            (lambda noise, bias, error: noise / (error - bias) ** 2, "Squares add, not the errors themselves."),
            (lambda noise, bias, error: noise / error**2 + 0 * bias, "The bias stays, however many are averaged."),
            (lambda noise, bias, error: noise / (error**2 - bias**2), "Where the bias alone is too much, no number is enough."),
        ],
    ),
}  # fmt: skip
