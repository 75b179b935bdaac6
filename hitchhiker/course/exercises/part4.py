"""Exercises of chapters 20 to 26: models of images and of spike trains, and counts that are not Poisson."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

import hitchhiker as hh
from hitchhiker import datasets, dispersion
from hitchhiker.course.checking import Exercise, Formula, Function, NotYet, Number

# ------------------------------------------------------------------------------------------ 20.3: a relaxed VAE's loss


def _relaxed_loss(x: Tensor, W: Tensor, Phi: Tensor, log_r: Tensor, tau: float) -> Tensor:
    return _loss(x, W, Phi, log_r, tau)


def _loss(
    x: Tensor, W: Tensor, Phi: Tensor, log_r: Tensor, tau: float, *, draw: str = "relaxed", divergence: str = "forward",
    rest: bool = True, pixels: Callable[[Tensor], Tensor] = lambda missed: missed.square().sum(1),
) -> Tensor:  # fmt: skip
    """The right loss, and with options the wrong ones."""
    u = log_r * rest + x @ W.T
    q = hh.EATPoisson(log_rate=u, temperature=tau)
    z = {"relaxed": q.rsample, "whole": q.sample, "none": u.exp}[draw]()
    kl = {
        "forward": lambda: hh.poisson_kl(u.exp(), log_r.exp()),
        "backward": lambda: hh.poisson_kl(log_r.exp().expand_as(u), u.exp()),
        "of the counts": lambda: hh.poisson_kl(z, log_r.exp()),
        "none": lambda: torch.zeros_like(u),
    }[divergence]()
    return pixels(x - z @ Phi.T) + kl.sum(1)


def _expected_loss(x: Tensor, W: Tensor, Phi: Tensor, log_r: Tensor, tau: float) -> Tensor:
    """Eq. 59 with the cubic's share of the variance, a mean over the repeats of each patch."""
    lam, norms = (log_r + x @ W.T).exp(), Phi.square().sum(0)
    exact = (x - lam @ Phi.T).square().sum(1) + (1 - 9 * tau / 35) * (lam @ norms)
    return _by_patch(exact + hh.poisson_kl(lam, log_r.exp()).sum(1), x)


def _by_patch(loss: Any, x: Tensor, *_: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.shape != x.shape[:1]:
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise NotYet(f"One loss for each patch is wanted: shape {tuple(x.shape[:1])} here, not {shape}.")
    return loss.reshape(2, -1).mean(1)


def _small_models() -> list[tuple]:
    """Two patches, 10,000 times each, for a model of three quiet counters; in the last case the divergence weighs most."""
    log_r = torch.tensor([-0.9, -1.4, -0.7], dtype=torch.float64)
    made = []
    for encoder, decoder, tau in ((0.3, 0.7, 1.0), (0.3, 0.7, 0.1), (1.2, 0.25, 0.5)):
        noise = torch.Generator().manual_seed(0)
        W, Phi, x = (torch.randn(shape, generator=noise).double() for shape in ((3, 4), (4, 3), (2, 4)))
        x = decoder * Phi @ log_r.exp() + 0.5 * x
        made.append((x.repeat_interleave(10_000, 0), encoder * W, decoder * Phi, log_r, tau))
    return made


# ---------------------------------------------------------------------------------------------- 21.3: a filtered grating


def _gain_of(cycles: int, as_released: bool, *, turns: float = 1.0) -> float:
    y = torch.cos(2 * math.pi * turns * cycles * torch.arange(24) / 24)[:, None].expand(24, 24)
    return _gain(y, torch.as_tensor(datasets.whitening_filter((24, 24), as_released=as_released)))


def _gain(y: Tensor, gains: Tensor) -> float:
    return (torch.fft.ifft2(torch.fft.fft2(y) * gains).real.std() / y.std()).item()


def _shifted_gain(cycles: int, as_released: bool) -> float:
    """The filter once more with frequency 0 in the middle."""
    y = torch.cos(2 * math.pi * cycles * torch.arange(24) / 24)[:, None].expand(24, 24)
    R = torch.as_tensor(datasets.whitening_filter((24, 24), as_released=as_released))
    return _gain(y, torch.fft.fftshift(R))


# ------------------------------------------------------------------------------------ 22.3: a difference of two counts


def product(z: Tensor) -> Tensor:
    return z[:, 0] * z[:, 1]


def first_squared(z: Tensor) -> Tensor:
    return z[:, 0] ** 2 + z[:, 1]


def decaying(z: Tensor) -> Tensor:
    return torch.exp(-z[:, 0] / 2) * (1 + z[:, 1])


def _difference(f: Callable, rates: Tensor, draws: int) -> Tensor:
    z = torch.poisson(rates.expand(draws, 2))
    return torch.stack([(f(z + torch.eye(2)[k]) - f(z)).mean() for k in range(2)])


def _backward_difference(f: Callable, rates: Tensor, draws: int) -> Tensor:
    z = torch.poisson(rates.expand(draws, 2))
    return torch.stack([(f(z) - f(z - torch.eye(2)[k])).mean() for k in range(2)])


def _both_at_once(f: Callable, rates: Tensor, draws: int) -> Tensor:
    z = torch.poisson(rates.expand(draws, 2))
    return (f(z + 1) - f(z)).mean().expand(2)


def _straight_through(f: Callable, rates: Tensor, draws: int) -> Tensor:
    z = torch.poisson(rates.expand(draws, 2)).requires_grad_()
    return torch.autograd.grad(f(z).mean() * draws, z)[0].mean(0)


def _exact_difference(f: Callable, rates: Tensor, draws: int) -> Tensor:
    """Summed over a table of both counts."""
    n = torch.arange(60.0, dtype=torch.float64)
    p, q = (torch.distributions.Poisson(r).log_prob(n).exp() for r in rates.double())
    weight, z = torch.outer(p, q).flatten(), torch.cartesian_prod(n, n)
    return torch.stack([weight @ (f(z + torch.eye(2).double()[k]) - f(z)) for k in range(2)])


# -------------------------------------------------------------------------------------------- 23.3: forward algorithm

_BIAS, _TO_VISIBLE, _TO_HIDDEN = (0.5, -2.0), 3.0, 0.5  # the tiny network of the chapter


def _forward(x: Tensor, top: int = 7) -> Tensor:
    return _filter(x, top)


def _filter(
    x: Tensor, top: int, *, uniform: bool = False, best: bool = False, late: bool = False, logs: bool = True
) -> Tensor:
    """The forward algorithm, and with options wrong ones."""
    m = torch.arange(top + 1.0, dtype=torch.float64)
    move = torch.distributions.Poisson(softplus(_BIAS[1] + _TO_HIDDEN * m)).log_prob(m[:, None]).T
    sees = torch.distributions.Poisson(softplus(_BIAS[0] + _TO_VISIBLE * m))
    alpha = torch.full_like(m, -math.log(top + 1)) if uniform else torch.where(m == 0, 0.0, -torch.inf).double()
    add = (lambda a: a.amax(0)) if best else (lambda a: a.logsumexp(0))
    for now in x:
        seen = sees.log_prob(now.double())
        alpha = add(alpha[:, None] + move) + seen if late else add((alpha + seen)[:, None] + move)
        alpha = alpha if logs else alpha.exp().log()
    return add(alpha)


def _trains() -> list[tuple]:
    noise = torch.Generator().manual_seed(3)
    longer = torch.poisson(torch.full((25,), 1.2), generator=noise)
    return [
        (torch.tensor([0.0]), 7),
        (torch.tensor([2.0, 4.0, 1.0]), 8),
        (torch.tensor([1.0, 8.0, 0.0, 7.0, 2.0]), 2),
        (longer, 7),
    ]


def _long_train() -> list[tuple]:
    return [(torch.poisson(torch.full((600,), 1.2), generator=torch.Generator().manual_seed(4)), 5)]


# ---------------------------------------------------------------------------------------------- 24.3: rank correlation


def _ranks(values: list[float]) -> list[float]:
    return torch.tensor(values, dtype=torch.float64).argsort().argsort().double().tolist()


def _correlation(a: list[float], b: list[float]) -> float:
    return torch.corrcoef(torch.tensor([a, b], dtype=torch.float64))[0, 1].item()


def _means(rows: list[dict], *by: str) -> tuple[list[float], ...]:
    kinds = sorted({tuple(row[c] for c in by) for row in rows})
    groups = [[row for row in rows if tuple(row[c] for c in by) == kind] for kind in kinds]
    return tuple([sum(row[name] for row in some) / len(some) for some in groups] for name in ("elbo", "gain"))


def _rank_correlation(rows: list[dict]) -> float:
    return _correlation(*map(_ranks, _means(rows, "method", "temperature")))


def _made_up_runs() -> list[tuple]:
    """Six kinds of training, two seeds each: seeds that differ widely, and one outlier."""
    made = []
    for seed in range(4):
        noise = torch.Generator().manual_seed(seed)
        rows = []
        for method in ("difference", "eat-cubic", "gsm"):
            for temperature in (0.1, 1.0):
                centre, gain = (torch.randn(2, generator=noise, dtype=torch.float64) * 3).tolist()
                for run in range(2):
                    jump = (torch.randn(2, generator=noise, dtype=torch.float64) * 2).tolist()
                    row = {"method": method, "temperature": temperature, "seed": run, "data_set": 0, "refined": False}
                    rows.append(row | {"elbo": centre + jump[0], "gain": math.sinh(gain + jump[1])})
        made.append((rows,))
    return made


# -------------------------------------------------------------------------------------- 25.3: bursts, 26.3: a stationary clock


def falling(n: Tensor) -> Tensor:
    return torch.exp(-n / 3)


def itself(n: Tensor) -> Tensor:
    return n


def squared(n: Tensor) -> Tensor:
    return n**2


def _burst_gradient(f: Callable, r: float, mu: float, size: int) -> Tensor:
    n = hh.EATNegativeBinomial(torch.tensor(r).double(), mu).sample((size,))
    return -math.log(mu) * (f(n + _bursts(mu, size)) - f(n))


def _bursts(mu: float, size: int) -> Tensor:
    u, v = torch.rand(2, size, dtype=torch.float64)
    return 1 + (v.log() / torch.log1p(-(mu**u))).floor()


def _single_counts(f: Callable, r: float, mu: float, size: int) -> Tensor:
    n = hh.EATNegativeBinomial(torch.tensor(r).double(), mu).sample((size,))
    return -math.log(mu) * (f(n + 1) - f(n))


def _geometric_bursts(f: Callable, r: float, mu: float, size: int) -> Tensor:
    n = hh.EATNegativeBinomial(torch.tensor(r).double(), mu).sample((size,))
    x = 1 + (torch.rand(size, dtype=torch.float64).log() / math.log(1 - mu)).floor()
    return -math.log(mu) * (f(n + x) - f(n))


def _without_rate(f: Callable, r: float, mu: float, size: int) -> Tensor:
    return _burst_gradient(f, r, mu, size) / -math.log(mu)


def _times_count(f: Callable, r: float, mu: float, size: int) -> Tensor:
    return r * _burst_gradient(f, r, mu, size)


def _mean_of_all(estimates: Any, f: Callable, r: float, mu: float, size: int) -> Tensor:
    return _one_each(estimates, size).double().mean()


def _one_each(values: Any, size: int) -> Tensor:
    values = torch.as_tensor(values)
    if values.shape != (size,):
        shape = tuple(values.shape)
        raise NotYet(f"One value for each of `size` draws is wanted: shape {(size,)} here, not {shape}.")
    return values


def _slope(f: Callable, r: float, mu: float, size: int) -> float:
    return dispersion.negative_binomial_slopes(f, r, mu)[0]


def _stationary_counts(rate: float, k: int, size: int) -> Tensor:
    return _counts(rate, k, size, torch.randint(1, k + 1, (1, size)).double())


def _counts(rate: float, k: int, size: int, first: Tensor, scale: Tensor | float = 1.0, speed: float = 0.0) -> Tensor:
    """Counts of Gamma waits of which the first has the shapes ``first``, and is scaled."""
    shapes = torch.cat([first, torch.full((20, size), float(k))])
    waits = torch.distributions.Gamma(shapes, speed or k * rate).sample()
    return (torch.cat([waits[:1] * scale, waits[1:]]).cumsum(0) < 1).sum(0)


def _ordinary_counts(rate: float, k: int, size: int) -> Tensor:
    return _counts(rate, k, size, torch.full((1, size), float(k)))


def _uniform_age(rate: float, k: int, size: int) -> Tensor:
    return _counts(rate, k, size, torch.full((1, size), float(k)), scale=torch.rand(size))


def _one_tick_early(rate: float, k: int, size: int) -> Tensor:
    return _counts(rate, k, size, torch.randint(0, k, (1, size)).clamp(min=1e-6).double())


def _slow_ticks(rate: float, k: int, size: int) -> Tensor:
    return _counts(rate, k, size, torch.randint(1, k + 1, (1, size)).double(), speed=rate)


def _frequencies(counts: Any, rate: float, k: int, size: int) -> Tensor:
    counts = _one_each(counts, size).double()
    if (counts != counts.round()).any():
        raise NotYet("Counts are whole numbers, and some of these are not.")
    return torch.stack([(counts == n).double().mean() for n in range(10)])


def _erlang_pmf(rate: float, k: int, size: int) -> Tensor:
    q = hh.EATErlang(rate=torch.tensor(rate, dtype=torch.float64), stages=k)
    return q.log_prob(torch.arange(10, dtype=torch.float64)).exp()


# --------------------------------------------------------------------------------------------------------- the entries

EXERCISES: dict[str, Exercise] = {
    "20.1": Number(
        between=(1.5, 7.0),
        right=3.5,
        ask="a number: nats a patch behind, negative if ahead",
        because="Measured: three to four nats, with little more than a fifth of the spikes. A log-rate's gradient "
        "carries the rate as a factor (Eq. 64), so quiet counters wake up slowly.",
        mistakes={
            0.0: "The start is forgotten in the end, but twelve epochs are not the end.",
            -3.5: "A quiet start would have to be a help. What factor does the gradient for a log-rate carry?",
        },
    ),
    "20.2": Formula(
        "d*(1 + 2*r)/2",
        symbols="d r",
        because="At λ = r the derivative is d(1 + 2r) - 2a. Even at r = 0 a feature must match by d/2 before it pays to "
        "fire: d is the price of randomness.",
        mistakes={
            "d*r": "The variance of the count is missing from the expected squared error.",
            "d/2": "The square of the mean reconstruction is missing from the expected squared error.",
            "d*(1 + r)/2": "The derivative of dλ² has a factor that is missing here.",
            "d*(1 + 2*r)": "The cross term of the square comes twice: -2aλ.",
            "d*(1 + 2*r)/2 - log(r)/2": "At λ = r the slope of the divergence is ln(λ/r), not ln λ.",
        },
    ),
    "20.3": Function(
        _relaxed_loss,
        _small_models,
        batched=False,
        float32=False,
        rtol=0.0,
        atol=0.25,
        measure=_by_patch,
        expected=_expected_loss,
        ask="a function relaxed_loss(x, W, Phi, log_r, tau) that draws once for each patch",
        because="Its mean is the exact loss less 9τ/35 of the counts' variance, at three temperatures, over 10,000 draws.",
        mistakes=[
            (lambda *a: _loss(*a, draw="whole"), "The mean is that of whole counts, at every τ: are these relaxed?"),
            (lambda *a: _loss(*a, draw="none"), "Nothing random is left: the rate stands where a draw should be."),
            (lambda *a: _loss(*a, rest=False), "The log-rates do not start from the resting rate."),
            (lambda *a: _loss(*a, divergence="none"), "The divergence is missing."),
            (lambda *a: _loss(*a, divergence="backward"), "The divergence's two rates are swapped."),
            (lambda *a: _loss(*a, divergence="of the counts"), "The divergence is between rates, not counts."),
            (
                lambda *a: _loss(*a, pixels=lambda missed: missed.square().mean(1)),
                "The squared error is a sum over pixels, not a mean.",
            ),
            (
                lambda x, W, Phi, log_r, tau: _loss(x, W, Phi, log_r, 1.0),
                "The temperature that it is given is not used.",
            ),
        ],
    ),
    "21.1": Number(
        0.594,
        rtol=0.005,
        ask="a number: the temperature",
        because="What a count loses is Aτ, and the quintic's A = 50/231 is smaller than the cubic's 9/35.",
        mistakes={
            0.421: "The quintic is the steeper one: at the same temperature it is narrower, not wider.",
            0.5: "At the same temperature the quintic is narrower: compare ∫f(1 - f) of the two.",
            0.129: "That is the share of the variance that the cubic loses.",
            0.108: "That is the share of the variance that the quintic loses at τ = 0.5.",
            0.1: "That is the sigmoid's temperature.",
        },
    ),
    "21.2": Formula(
        "(1 + log(2*s))/2",
        symbols="s",
        ranges={"s": (0.6, 4.0)},
        because="The best variance is c = s. At s = ½ the cost is s, the squared error of leaving the direction out.",
        mistakes={
            "log(2*s)/2": "The quadratic term is missing: at the best variance it is not zero.",
            "s": "That is what leaving the direction out costs; something above the noise is worth modelling.",
            "(1 + log(s))/2": "The ½ ln π is left out, not ½ ln 2π.",
            "(1 + log(2*pi*s))/2": "In the paper's convention ½ ln π is left out.",
            "1 + log(2*s)": "Both terms of a Gaussian's logarithm have a half.",
        },
    ),
    "21.3": Function(
        _gain_of,
        [(1, False), (4, False), (10, False), (2, True), (5, True), (9, True)],
        batched=False,
        float32=False,
        rtol=0.03,
        ask="a function gain_of(cycles, as_released) that returns a number",
        because="It agrees at six gratings, three for each filter.",
        mistakes=[
            (lambda cycles, as_released: _gain_of(cycles, False), "Both filters come out as the one that is meant."),
            (lambda cycles, as_released: _gain_of(cycles, True), "Both filters come out as the released one."),
            (
                lambda cycles, as_released: _gain_of(cycles, as_released, turns=0.5),
                "The grating has half as many cycles as it should: a cycle is 2π.",
            ),
            (_shifted_gain, "The filter is shifted: `whitening_filter` has frequency 0 where `fft2` has it."),
        ],
    ),
    "22.1": Number(
        0.5,
        rtol=0.02,
        ask="a number of spikes, positive if the rate comes out too high",
        because="The exact slope -2a + d(2λ + 1) vanishes at a/d - ½, the straight-through one, -2a + 2dλ, at a/d: half a "
        "spike too many for every latent, whatever its feature.",
        mistakes={
            1.0: "That is f''/2 over d: the slope itself has a factor 2d in λ.",
            0.0: "Straight-through averages f'(N); the exact slope averages f(N + 1) - f(N). For a square they differ.",
        },
    ),
    "22.2": Formula(
        "(K - 1)*S",
        symbols="K S",
        ranges={"K": range(2, 9)},
        because="KΔ with probability 1/K has the variance KΔ² - Δ². Relative to the squared gradient that is 63 here.",
        mistakes={
            "K*S": "That is the mean square; the squared mean has to be taken off.",
            "(K**2 - 1)*S": "The chance of being chosen is missing in the mean square.",
            "(1 - 1/K)*S": "The chosen difference is scaled, and its square with it.",
            "(K - 1)*S/K": "The chosen difference is scaled, and its square with it.",
            "K*(K - 1)*S": "This scales the variance once too often.",
        },
    ),
    "22.3": Function(
        _difference,
        [
            (product, torch.tensor([2.0, 5.0]), 20_000),
            (first_squared, torch.tensor([1.5, 0.7]), 20_000),
            (decaying, torch.tensor([0.6, 3.0]), 20_000),
        ],
        batched=False,
        float32=False,
        rtol=0.0,
        atol=0.12,
        expected=_exact_difference,
        measure=lambda found, f, rates, draws: torch.as_tensor(found),
        parts=("the first latent", "the second latent"),
        ask="a function difference_by_hand(f, rates, draws) that returns two numbers",
        because="It agrees with sums over a table of both counts, for three functions and three pairs of rates.",
        mistakes=[
            (_backward_difference, "This goes one spike down; the identity goes one spike up."),
            (_both_at_once, "Each latent needs a spike of its own; here both get one."),
            (_straight_through, "That is the slope of f at whole counts, straight-through; a difference is wanted."),
            (lambda f, rates, draws: _difference(f, rates, draws).flip(0), "The two latents are swapped."),
            (
                lambda f, rates, draws: rates * _difference(f, rates, draws),
                "That is the slope in the log-rates: each has its rate as a factor too many.",
            ),
        ],
    ),
    "23.1": Number(
        0.87,
        rtol=0.0,
        atol=0.02,
        ask="a probability",
        because="Likelihoods multiply: the odds, 0.47 for one witness, gain a factor of nearly four for each of the others.",
        mistakes={
            0.96: "Probabilities do not add up like that: three times one third for one witness each. What multiplies?",
            0.69: "That treats the witnesses as three separate chances of being right. They share one hidden count.",
            0.64: "That is with one more witness; there are two more.",
            0.32: "The other two witnesses say nothing new here; but they do.",
        },
    ),
    "23.2": Formula(
        "-s**2/2",
        symbols="s",
        because="Unbiased means e^(μ + s²/2) = p. At s = 0.4 the filter is 0.08 nats low: little beside tens of nats.",
        mistakes={
            "-s**2": "The mean of exp(sv) for a standard normal v has an exponent that is smaller by a factor.",
            "-s/2": "The variance belongs here, not the standard deviation.",
            "0": "The logarithm of an unbiased estimate is not unbiased (Jensen).",
            "exp(s**2/2)": "That is the mean of exp of a centred normal; a logarithm is wanted.",
            "log(1 + s**2)": "That is for a normal p̂; here its logarithm is normal.",
        },
    ),
    "23.3": Function(
        _forward,
        _trains,
        extreme=_long_train,
        batched=False,
        float32=False,
        rtol=1e-4,
        atol=1e-4,
        measure=lambda value, *_: value,  # in whatever precision
        ask="a function forward(x, top) that returns ln p(x)",
        because="The same as summing over all paths, and it neither overflows nor vanishes after 600 bins.",
        mistakes=[
            (lambda x, top=7: _filter(x, top, uniform=True), "Before the first bin the hidden neuron is silent."),
            (
                lambda x, top=7: _filter(x, top, best=True),
                "That is the single best path; all of them are to be summed.",
            ),
            (
                lambda x, top=7: _filter(x, top, late=True),
                "The hidden count acts one bin later: weigh by x before the move, not after.",
            ),
            (
                lambda x, top=7: _filter(x, top, logs=False),
                "After many bins the probabilities are below the smallest float: keep logarithms throughout.",
            ),
            (lambda x, top=7: _filter(x, 7), "The largest hidden count that it is given, `top`, is not used."),
        ],
    ),
    "24.1": Number(
        3.0,
        rtol=0.02,
        ask="a number: the weight w",
        because="The best q is then the exact posterior, the bound is the likelihood, and that is largest at the truth.",
        mistakes={
            1.63: "That is where the Poisson posterior leaves it.",
            1.77: "That is where the relaxed counts leave it.",
            0.0: "The hidden count would then explain nothing.",
        },
    ),
    "24.2": Formula(
        "-w**2*exp(b + w*lambda)*v*lambda/2",
        symbols="b w v lambda",
        because="A ridge on w, as strong as the posterior is wide. At τ = 1 the cubic has v = 0.74: a quarter is gone.",
        mistakes={
            "-w**2*exp(b + w*lambda)*v*lambda": "The second-order term of a Taylor series has a factor that is missing here.",
            "-w**2*exp(b + w*lambda)*v/2": "The variance of z is v times something.",
            "-w**2*exp(b + w*lambda)*lambda/2": "That is for whole counts; the relaxation's variance factor is missing.",
            "-w*exp(b + w*lambda)*v*lambda/2": "Differentiate in z once more: each time brings down a w.",
            "-lambda**2*exp(b + w*lambda)*v*lambda/2": "That is differentiated twice in w; the expansion is in z.",
            "-w**2*exp(b + w*lambda)*v**2*lambda**2/2": "That has the square of the variance.",
        },
    ),
    "24.3": Function(
        _rank_correlation,
        _made_up_runs,
        batched=False,
        float32=False,
        rtol=1e-6,
        ask="a function rank_correlation(rows) that returns one number",
        because="It agrees on four made-up tables of runs, whose gains have outliers.",
        mistakes=[
            (
                lambda rows: _correlation(*_means(rows, "method", "temperature")),
                "That is the correlation of the values; their ranks are wanted.",
            ),
            (
                lambda rows: _correlation(*map(_ranks, _means(rows, "method", "temperature", "seed"))),
                "Average the seeds of a kind before ranking.",
            ),
            (
                lambda rows: _correlation(*map(_ranks, _means(rows, "method"))),
                "A method at two temperatures counts as two kinds.",
            ),
        ],
    ),
    "25.1": Number(
        0.75,
        rtol=0.01,
        ask="a number between 0 and 1",
        because="The loss is 9τ/35F: half the temperature and twice the Fano factor make it four times smaller.",
        mistakes={
            0.25: "That is what stays lost.",
            0.5: "Only one of the two changes is counted: the loss is proportional to τ and to 1/F.",
            0.0: "Halving one and doubling the other would cancel in a product; is it a product?",
            0.0964: "That is a share of the whole variance; a share of the lost part is asked for.",
        },
    ),
    "25.2": Formula(
        "d*m**2 - (m - rho)**2/2",
        symbols="d m rho",
        because="Far above rest bursts pay for a feature with d < ½, whose spike moves the picture by less than the "
        "observation noise; near rest they never pay.",
        mistakes={
            "d*m**2": "The divergence changes to first order too.",
            "-(m - rho)**2/2": "The reconstruction noise changes too.",
            "d*m**2 + (m - rho)**2/2": "A wider posterior is nearer to a wide prior: look at the sign of the divergence's part.",
            "d*m**2 - m*(m - rho)": "The second terms of the logarithms' series are of first order too, by the 1/a in front.",
            "d*m**2 + (m**2 - rho**2)/2": "The m in front of the logarithm is missing, only 1/a is there.",
            "d*m**2 - (m - rho)**2": "The expansion of ln(1 + am) has a half in its second term.",
            "d*m": "That is the Poisson part of the noise, which does not change with a.",
        },
    ),
    "25.3": Function(
        _burst_gradient,
        [(falling, 3.0, 0.4, 40_000), (itself, 0.8, 0.6, 40_000), (squared, 2.0, 0.7, 40_000)],
        batched=False,
        float32=False,
        rtol=0.05,
        atol=0.0,
        measure=_mean_of_all,
        expected=_slope,
        ask="a function burst_gradient(f, r, mu, size) that returns `size` estimates",
        because="Unbiased for a falling, a linear and a quadratic function, over 40,000 draws each.",
        mistakes=[
            (_single_counts, "This adds one count; a burst may hold more."),
            (_geometric_bursts, "These bursts are geometric; the logarithmic law divides by j."),
            (_without_rate, "That is the effect of one burst. By how much does the rate of bursts grow with r?"),
            (_times_count, "That is the slope in ln r: it has a factor r too many."),
        ],
    ),
    "26.1": Number(
        0.8,
        rtol=0.03,
        ask="a number: the Fano factor at 0.2 counts a window",
        because="A window holds one count or none, so the variance is λ(1 - λ): almost as for a Poisson cell.",
        mistakes={
            0.01: "1/k is the limit of many counts a window; here is less than one.",
            1.0: "Close: but this cell never counts twice in a window, and a Poisson cell does.",
            0.16: "That is the variance; divide by the mean.",
            0.2: "That is the mean.",
        },
    ),
    "26.2": Formula(
        "(1 - exp(-4*lambda))/4",
        symbols="lambda",
        because="Half of the probability that P is odd. At high rates (k - 1)/2k is missing, at low rates all of λ.",
        mistakes={
            "1/4": "That is what it tends to; the number of ticks is not yet as likely odd as even at low rates.",
            "lambda": "That is what it tends to at low rates, where no second tick comes.",
            "(1 - exp(-4*lambda))/2": "That is in ticks; two of them make a count.",
            "(1 - exp(-2*lambda))/4": "Ticks come at the rate 2λ, and E[(-1)^P] has another 2.",
            "(1 + exp(-4*lambda))/4": "Nothing is left over where the number of ticks is even.",
            "lambda*exp(-2*lambda)": "That is one tick only; three, five, … leave one over too.",
        },
    ),
    "26.3": Function(
        _stationary_counts,
        [(3.0, 4, 10_000), (0.6, 2, 10_000), (1.5, 9, 10_000)],
        extreme=[(2.0, 1, 10_000)],
        batched=False,
        float32=False,
        rtol=0.0,
        atol=0.03,
        measure=_frequencies,
        parts=[f"the frequency of {n}" for n in range(10)],
        expected=_erlang_pmf,
        ask="a function stationary_counts(rate, k, size)",
        because="The frequencies of 10,000 counts agree with the pmf, for four clocks, one of them Poisson.",
        mistakes=[
            (_ordinary_counts, "Every first wait has all its ticks: that is the ordinary process, begun at a count."),
            (_uniform_age, "Cutting a fresh wait at a random point forgets that long waits are hit more often."),
            (_one_tick_early, "Some first waits have no tick left: at least one is still to come."),
            (
                lambda rate, k, size: torch.poisson(torch.full((size,), rate)),
                "These are Poisson counts: every k-th tick counts, and the others do not.",
            ),
            (_slow_ticks, "The ticks come at the rate of counts; there are k for each count."),
        ],
    ),
}
