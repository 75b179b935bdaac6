"""Exercises of chapters 01 to 06: foundations, and the first two relaxed counts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hitchhiker import indicators, moments
from hitchhiker.course.checking import Exercise, Formula, Function, NotYet, Number
from hitchhiker.indicators import SoftIndicator as Indicator

CUBIC, LINEAR = indicators.get("cubic"), indicators.get("linear")

# ----------------------------------------------------------------------------------- 05.3: only what is near the edge


def _window_sampler(rate: float, tau: float, f: Indicator, size: int) -> Tensor:
    return _edge_counts(rate * (1 - tau), 2 * rate * tau, f, size)


def _edge_counts(certain: float, near: float, f: Indicator, size: int, low: float = -1.0) -> Tensor:
    """Soft counts: in the mean, ``certain`` arrivals before the edge and ``near`` ones inside it, u from low to 1."""
    whole, edge = torch.poisson(torch.tensor([[certain], [near]], dtype=torch.float64).expand(2, size))
    u = torch.rand(int(edge.sum()), dtype=torch.float64) * (1 - low) + low
    return whole.index_add(0, torch.arange(size).repeat_interleave(edge.long()), f(u))


def _mean_and_variance(z: Any, rate: float, tau: float, f: Indicator, size: int) -> Tensor:
    if not isinstance(z, Tensor) or z.shape != (size,):
        raise NotYet("One soft count is wanted for each of `size` windows, in a tensor of shape (size,).")
    return torch.stack([z.double().mean(), z.double().var()])


def _campbell(rate: float, tau: float, f: Indicator, size: int) -> list[float]:
    return [rate, rate * moments.variance_factor(f, tau)]


EXERCISES: dict[str, Exercise] = {
    "05.1": Number(
        between=(8.0, 30.0),
        ask="a number: how many times smaller the loss becomes",
        because="Both look little beyond the window; what is left at τ = 0.1 is about the loss of the hard count itself, "
        "a fifteenth.",
        mistakes={
            5.0: "The loss is not proportional to the temperature: it is a tail probability, and tails fall faster.",
            1.0: "It does change: a colder counter looks less far beyond the window's end.",
        },
    ),
    "05.2": Formula(
        "exp(-lambda*(1 + tau))",
        symbols="lambda tau",
        because="No arrival before 1 + τ, where f becomes 0. At z = 0 the slope of the root is infinite and that of z is 0: "
        "their product is NaN.",
        mistakes={
            "exp(-lambda)": "That is the hard count's. The soft counter looks beyond the end of the window.",
            "exp(-lambda*(1 - tau))": "That is the chance that nothing is counted in full; what comes later still counts "
            "in part.",
            "exp(-2*lambda*tau)": "That is the chance of an empty edge. What came before it counts too.",
            "lambda*(1 + tau)": "That is how many arrivals are expected there; what is the chance of none?",
        },
    ),
    "05.3": Function(
        _window_sampler,
        cases=[(20.0, 0.5, CUBIC, 100_000), (3.0, 1.0, LINEAR, 100_000), (0.5, 0.1, CUBIC, 100_000)],
        extreme=[(0.0, 0.5, CUBIC, 1000), (2000.0, 0.01, CUBIC, 20_000)],
        batched=False,
        rtol=0.04,  # more than six standard errors
        measure=_mean_and_variance,
        expected=_campbell,
        parts=("the mean", "the variance"),
        ask="a function window_sampler(rate, tau, f, size) that returns a tensor of shape (size,)",
        because="Mean and variance are the exact ones at every rate and temperature tried, and no arrival was cut off.",
        mistakes={
            lambda rate, tau, f, size: _edge_counts(
                rate * (1 - tau), rate * tau, f, size
            ): "The edge reaches to both sides of the end of the window: how wide is it?",
            lambda rate, tau, f, size: _edge_counts(
                rate, 2 * rate * tau, f, size
            ): "Arrivals in the edge are counted twice: which ones are certain?",
            lambda rate, tau, f, size: _edge_counts(
                rate * (1 - tau), 2 * rate * tau, f, size, low=0.0
            ): "Only half of the edge is filled: on which sides of the window's end may an arrival be?",
            lambda rate, tau, f, size: torch.poisson(
                torch.full((size,), rate, dtype=torch.float64)
            ): "These are hard counts: arrivals in the edge count in part.",
        },
    ),
}
