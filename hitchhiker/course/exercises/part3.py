"""Exercises of chapters 11 to 13: exact gradients, judging a gradient, the best temperature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hitchhiker import linear_decoder
from hitchhiker.course.checking import Array, Exercise, Formula, Function, Number

# ------------------------------------------------------------------------------------------- 11 exact gradients


def _steps(u0: float, gate: float) -> int:
    """Steps of 0.05 until the rate is 1.25, down the gradient times λ^(gate - 1)."""
    one, x, u, steps = torch.eye(1), torch.tensor([3.0]), torch.tensor([float(u0)]), 0
    while u.exp() < 1.25:
        u = u - 0.05 * linear_decoder.gradient(x, one, u) * u.exp() ** (gate - 1)
        steps += 1
    return steps


def natural_steps(u0: float) -> int:
    return _steps(u0, 0)


# ------------------------------------------------------------------------------------------- 12 judging a gradient

Product = Callable[[Tensor], Tensor]


class _Curvature:
    """Hv for a fixed positive H of three latents.  It says what it is to those who take it for a matrix."""

    H = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 3.0]], dtype=torch.float64)

    def __call__(self, v: Tensor) -> Tensor:
        return v @ self.H.to(v.dtype)

    @classmethod
    def no_matrix(cls, *_: Any, **__: Any) -> Any:
        raise TypeError("H is a function and no matrix: H(v) applies it to v, of shape (K,) or (batch, K)")

    __matmul__ = __rmatmul__ = __mul__ = __rmul__ = __getitem__ = __torch_function__ = no_matrix


_curvature = _Curvature()


def _gradients() -> list[tuple[Tensor, Tensor, Product]]:
    draw = torch.Generator().manual_seed(0)
    exact = torch.randn(5, 3, generator=draw, dtype=torch.float64)
    g = exact + 0.3 + torch.randn(40, 5, 3, generator=draw, dtype=torch.float64)
    return [(g, exact, _curvature), (10 * g[:2], 10 * exact, _curvature)]


def _normalised(first: Tensor, second: Tensor, exact: Tensor, H: Product) -> Tensor:
    return ((first * H(second)).sum(dim=-1) / (exact * H(exact)).sum(dim=-1)).mean()


def split_bias_energy(g: Tensor, exact: Tensor, H: Product) -> Tensor:
    first, second = (part.mean(dim=0) - exact for part in g.chunk(2))
    return _normalised(first, second, exact, H)


def _plug_in(g: Tensor, exact: Tensor, H: Product) -> Tensor:
    return _normalised(g.mean(dim=0) - exact, g.mean(dim=0) - exact, exact, H)


def _same_half(g: Tensor, exact: Tensor, H: Product) -> Tensor:
    first = g.chunk(2)[0].mean(dim=0) - exact
    return _normalised(first, first, exact, H)


def _every_other(g: Tensor, exact: Tensor, H: Product) -> Tensor:
    return _normalised(g[::2].mean(dim=0) - exact, g[1::2].mean(dim=0) - exact, exact, H)


def _no_truth(g: Tensor, exact: Tensor, H: Product) -> Tensor:
    first, second = (part.mean(dim=0) for part in g.chunk(2))
    return _normalised(first, second, exact, H)


def _flat(g: Tensor, exact: Tensor, H: Product) -> Tensor:
    first, second = (part.mean(dim=0) - exact for part in g.chunk(2))
    return _normalised(first, second, exact, lambda v: v)


def _raw(g: Tensor, exact: Tensor, H: Product) -> Tensor:
    first, second = (part.mean(dim=0) - exact for part in g.chunk(2))
    return (first * H(second)).sum(dim=-1).mean()


# ------------------------------------------------------------------------------------------- 13 the best temperature


def _cold(f: Any, rate: float) -> tuple[float, float]:
    from hitchhiker import temperature_figures

    return temperature_figures.leading_bias(f.value, rate), temperature_figures.leading_variance(f.slope, rate)


def choose(f: Any, rate: float, S: int) -> float:
    return min(1.0, _uncapped(f, rate, S))


def _uncapped(f: Any, rate: float, S: int) -> float:
    bias, variance = _cold(f, rate)
    return (variance / (2 * bias**2 * S)) ** (1 / 3)


def _without_two(f: Any, rate: float, S: int) -> float:
    bias, variance = _cold(f, rate)
    return min(1.0, (variance / (bias**2 * S)) ** (1 / 3))


def _square_root(f: Any, rate: float, S: int) -> float:
    bias, variance = _cold(f, rate)
    return min(1.0, (variance / (2 * bias**2 * S)) ** 0.5)


def _unsquared(f: Any, rate: float, S: int) -> float:
    bias, variance = _cold(f, rate)
    return min(1.0, (variance / (2 * abs(bias) * S)) ** (1 / 3))


def _functions(*cases: tuple[str, float, int]) -> Callable[[], list[tuple[Any, float, int]]]:
    def made() -> list[tuple[Any, float, int]]:
        from hitchhiker.temperature_figures import FUNCTIONS

        return [(FUNCTIONS[name], rate, S) for name, rate, S in cases]

    return made


EXERCISES: dict[str, Exercise] = {
    "11.1": Number(
        -2.0, rtol=0.01, rate=5.0, tau=0.6,
        because="The bias is -Aτ λ d, and the image is not in it.",
        ask="a number: the bias of this unit's gradient",
        mistakes={
            -9 * 0.6 / 35 * 10: "That is the cubic's bias. The linear indicator loses more variance.",
            -1.0: "Each spike costs the squared length d, which is missing.",
            -6.0: "The indicator's deficit is missing.",
            -10.0: "That would be the whole penalty; only what the variance loses is biased.",
            8.0: "That is the penalty that is left. The bias is what is missing.",
            0.0: "The mean is unbiased, but the loss sees the variance as well.",
        },
    ),
    "11.2": Formula(
        "lambda*(log(lambda/r) + 1)", "lambda r", wrong_derivative="lambda*log(lambda/r) - lambda + r",
        because="It is negative below r/e, and the gate λ is in front of it too: a silent unit is pulled up, but slowly.",
        ask="an expression in λ and r: the second derivative with respect to u",
        mistakes={
            "lambda*log(lambda/r)": "That is the first derivative with respect to u; differentiate once more.",
            "1/lambda": "That is the second derivative with respect to λ, and u is wanted.",
            "log(lambda/r) + 1": "The chain rule is missing: λ itself moves with u.",
            "lambda": "The gate λ depends on u as well: the product rule has two terms.",
            "lambda*(log(lambda/r) - 1)": "The derivative of ln(λ/r) with respect to u adds, it does not take away.",
        },
    ),
    "11.3": Function(
        natural_steps, cases=[(-1.0,), (-2.0,), (-3.0,)], extreme=[(-4.0,), (0.5,)], batched=False,
        because="Without its gate a unit feels the same pull however silent it is: the time grows like -u₀, not like e^(-u₀).",
        ask="a function natural_steps(u0) that returns the number of steps",
        mistakes=[
            (lambda u0: _steps(u0, 1), "The gate is still there: divide the gradient by the Fisher information."),
            (lambda u0: _steps(u0, 0.5), "The gradient is divided by the root of the Fisher information; divide by all of it."),
            (lambda u0: natural_steps(u0) + 1, "One step too many is counted: a unit that is awake already needs none."),
        ],
    ),
    "12.1": Number(
        25_000, rtol=0.01,
        because="From there on the floor, NoiseEnergy/N, is below the bias.",
        ask="a number of gradients",
        mistakes={
            158.0: "That is the root of it. The energy of a mean's noise falls like 1/N already.",
            50_000: "That many make the floor half of the bias, not equal to it.",
            12_500: "Then the floor is still twice the bias.",
            4e-5: "That is the floor's size over the noise; turn it around.",
        },
    ),
    "12.2": Formula(
        "1/sqrt(1 + V/N)", "V N", ranges={"V": (1, 40), "N": (50, 200)},
        because="For 0.75 at N = 100 the raw variance has to be 78: the \"about 100\" of the paper's Figure 12.",
        ask="an expression in V and N",
        mistakes={
            "1/(1 + V/N)": "That is the cosine's square.",
            "1/sqrt(1 + V)": "That is the cosine of a single gradient; here N of them are averaged.",
            "1/(1 + sqrt(V/N))": "Lengths at right angles do not add; their squares do.",
            "1/sqrt(1 + V/N**2)": "The variance of a mean of N falls like 1/N.",
            "sqrt(1 + V/N)": "That is the noisy mean's length over the exact one's. A cosine has it the other way round.",
            "sqrt(1 - V/N)": "The noise adds to the length of the mean; nothing is taken away from the exact gradient.",
        },
    ),
    "12.3": Function(
        split_bias_energy, cases=_gradients, batched=False, float32=False,
        because="The errors of two halves are independent, so their noise averages to nothing in the product.",
        ask="a function split_bias_energy(g, exact, H) that returns a number",
        mistakes=[
            (_plug_in, "This is the plug-in: every gradient meets itself."),
            (_same_half, "Both factors are from the same half, so its gradients meet themselves."),
            (_every_other, "As good as two halves, but the first half and the second half were asked for."),
            (_no_truth, "The exact gradient has to be taken from each mean first."),
            (_flat, "The curvature is missing: H belongs between the two errors, and in the signal."),
            (_raw, "Divide by the signal's energy, patch by patch."),
            (
                lambda g, exact, H: split_bias_energy(g, exact, H) * len(exact),
                "The patches are to be averaged, not added up.",
            ),
        ],
    ),
    "13.1": Array(
        [0.2, 2.0], 0.02, parts=("the temperature", "the factor"),
        because="τ* falls like S^(-1/3), and so do bias and noise; an unbiased estimator would gain the root of 8.",
        ask="two numbers in a list: the new best temperature and the factor by which the error falls",
        mistakes=[
            ([0.05, 8.0], "Neither falls like 1/S: look at the power in the formula for τ*."),
            ([0.4 / 8**0.5, 8**0.5], "That is the rate of an estimator without bias. Here the temperature has to follow."),
            ([0.2, 8**0.5], "The temperature is right. With it the noise falls by less than the number of samples suggests."),
            ([0.4, 8**0.5], "At the old temperature the bias stays, and it would soon be all of the error."),
            ([0.8, 2.0], "More samples tolerate more noise, and so they want it colder, not hotter."),
            ([0.2, 4.0], "That is the factor of the mean squared error; its root is wanted."),
        ],
    ),
    "13.2": Formula(
        "1/(1 + 2*k)", "k", ranges={"k": range(1, 6)},
        because="One third for every function of this chapter, where k = 1.",
        ask="an expression in k",
        mistakes={
            "2*k/(1 + 2*k)": "That is the part of the variance.",
            "1/(2*k)": "That is the bias compared with the variance; the whole is their sum.",
            "1/2": "They are equal where the two curves cross, but the minimum of the sum is where their slopes cancel.",
            "1/(1 + k)": "It is the bias squared that enters, so its power of τ is twice as large.",
            "1/3": "That is right for k = 1 only.",
        },
    ),
    "13.3": Function(
        choose, cases=_functions(("sqrt", 2.0, 2000), ("square", 5.0, 500), ("power", 2.0, 50_000)),
        extreme=_functions(("square", 5.0, 1), ("z", 5.0, 500)), batched=False, rtol=1e-3,
        because="Two numbers of the function, and no sample, say how cold it wants to be.",
        ask="a function choose(f, rate, S) that returns a temperature",
        mistakes=[
            (_uncapped, "Right where it is cold, but the cold law does not hold above 1: stop there."),
            (_without_two, "A factor of two got lost where the derivative of τ² was taken."),
            (_square_root, "The root is of the third order: set the derivative of β²τ² + V/(Sτ) to zero."),
            (_unsquared, "The bias enters squared."),
        ],
    ),
}  # fmt: skip
