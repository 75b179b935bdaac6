"""Exercises of chapters 01 to 06: foundations, and the first two relaxed counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from hitchhiker import indicators, moments
from hitchhiker.course.checking import Array, Exercise, Formula, Function, NotYet, Number
from hitchhiker.indicators import SoftIndicator as Indicator

CUBIC, LINEAR = indicators.get("cubic"), indicators.get("linear")


def _float64(*values: Any) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(v, dtype=torch.float64) for v in values)


# ------------------------------------------------------------------------------- 01.3: how many trials tell F from 1


def _trials_needed(fano: float, level: float = 0.975, power: float = 0.9) -> int:
    n = np.arange(3, 20_000)
    return int(n[np.argmax(stats.chi2.sf(stats.chi2.ppf(level, n - 1) / fano, n - 1) >= power)])


# --------------------------------------------------------------------------------- 02.3: the mean of the true posterior


def _log_joint(x: Tensor, weight: float, prior_rate: float) -> tuple[Tensor, Tensor]:
    """Up to a constant, over counts on a further last axis; and those counts."""
    z = torch.arange(80, dtype=x.dtype)
    return -((x[..., None] - weight * z) ** 2) + z * math.log(prior_rate) - torch.lgamma(z + 1), z


def _posterior_mean(x: Tensor, weight: float = 1.0, prior_rate: float = 2.0) -> Tensor:
    log_joint, z = _log_joint(x, weight, prior_rate)
    return (torch.softmax(log_joint, -1) * z).sum(-1)


def _with_exp(x: Tensor, weight: float = 1.0, prior_rate: float = 2.0) -> Tensor:
    log_joint, z = _log_joint(x, weight, prior_rate)
    joint = log_joint.exp()
    return (joint * z).sum(-1) / joint.sum(-1)


def _most_probable(x: Tensor, weight: float = 1.0, prior_rate: float = 2.0) -> Tensor:
    log_joint, z = _log_joint(x, weight, prior_rate)
    return z[log_joint.argmax(-1)]


def _without_prior(x: Tensor, weight: float = 1.0, prior_rate: float = 2.0) -> Tensor:
    z = torch.arange(80, dtype=x.dtype)
    return (torch.softmax(-((x[..., None] - weight * z) ** 2), -1) * z).sum(-1)


# -------------------------------------------------------------------------------- 03.3: a baseline without the own sample


def _leave_one_out(loss: Tensor, score: Tensor) -> Tensor:
    others = (loss.sum() - loss) / (len(loss) - 1)
    return ((loss - others) * score).mean()


# -------------------------------------------------------------------------------- 04.3: one more spike in each latent

Loss = Callable[[Tensor], Tensor]
RATES = [0.5, 1.0, 2.0, 3.0]


def _squares(z: Tensor) -> Tensor:
    return (z**2).sum(-1)


def _more_than_six(z: Tensor) -> Tensor:
    return (z.sum(-1) > 6).to(z.dtype)


def _differences(f: Loss, rate: Tensor, num_samples: int) -> tuple[Tensor, list[Tensor]]:
    z = torch.poisson(rate.expand(num_samples, -1))
    return z, [f(z + step) - f(z) for step in torch.eye(len(rate), dtype=rate.dtype)]


def _difference_gradient(f: Loss, rate: Tensor, num_samples: int) -> Tensor:
    return torch.stack([d.mean() for d in _differences(f, rate, num_samples)[1]])


def _exact_gradient(f: Loss, rate: Tensor, num_samples: int) -> Tensor:
    if f is _squares:
        return 2 * rate + 1
    total = rate.sum()  # f changes only at a total of six
    return (6 * total.log() - total - math.lgamma(7)).exp().expand(len(rate))


def _total_difference(f: Loss, rate: Tensor, num_samples: int) -> Tensor:
    z = torch.poisson(rate.expand(num_samples, -1))
    return (f(z + 1) - f(z)).mean().expand(len(rate))


def _one_gradient_each(g: Any, f: Loss, rate: Tensor, num_samples: int) -> Tensor:
    if not isinstance(g, Tensor) or g.shape != rate.shape:
        raise NotYet("One mean is wanted for each rate, in a tensor of the shape of `rate`.")
    return g


# ------------------------------------------------------------------------------------------ 06.3: a count with extra zeros


def _log_poisson(rate: Tensor, M: int) -> Tensor:
    m = torch.arange(M, dtype=torch.float64)
    return m * rate.log() - rate - torch.lgamma(m + 1)


def _zero_inflated(p: Tensor, rate: Tensor, M: int) -> Tensor:
    logits = torch.log1p(-p) + _log_poisson(rate, M)
    return torch.cat([torch.logaddexp(p.log(), logits[0]).view(1), logits[1:]])


def _only_extra_zeros(p: Tensor, rate: Tensor, M: int) -> Tensor:
    return torch.cat([p.log().view(1), (torch.log1p(-p) + _log_poisson(rate, M))[1:]])


def _poisson_kept_whole(p: Tensor, rate: Tensor, M: int) -> Tensor:
    logits = _log_poisson(rate, M)
    return torch.cat([torch.logaddexp(p.log(), logits[0]).view(1), logits[1:]])


def _normalised(log_pmf: Any, p: Tensor, rate: Tensor, M: int) -> Tensor:
    """The log-pmf, whatever constant was left off, and its slopes in p and the rate."""
    if not isinstance(log_pmf, Tensor) or log_pmf.shape != (M,):
        raise NotYet("One logarithm is wanted for each of the counts, in a tensor of shape (M,).")
    pmf = torch.softmax(log_pmf.double(), -1)
    mean = (pmf * torch.arange(M, dtype=torch.float64)).sum()
    try:
        slopes = torch.autograd.grad(mean, (p, rate), retain_graph=True)
    except RuntimeError as error:
        raise NotYet("No gradient reaches p and rate: is there an .item() or a new tensor on the way?") from error
    return torch.cat([pmf, torch.stack(slopes)])


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
    "01.1": Number(
        0.891,
        rtol=0.004,
        ask="a number: the variance with weak inputs, minus the one with strong inputs",
        because="A sum of independent events has variance Σ p(1 − p): weak inputs keep nearly all of the Poisson variance, "
        "strong ones are too predictable.",
        mistakes={
            0.0: "Equal means do not make equal variances: how predictable is an input that fires with p = 0.3?",
            0.9: "Nearly. The weak neuron is not exactly Poisson either.",
            -0.9: "The weak neuron comes first. And it is not exactly Poisson.",
        },
    ),
    "01.2": Formula(
        "(1 + lambda*s**2)**(-1/s**2)",
        symbols="lambda s",
        ask="an expression in λ and s, the standard deviation of the gain",
        because="Averaging exp(−λg) over the gain gives the negative binomial's probability of 0. A moody neuron is silent more "
        "often than a Poisson one.",
        mistakes={
            "exp(-lambda)": "That is the Poisson neuron's. Average it over the gain.",
            "(1 + lambda*s)**(-1/s)": "The shape of the Gamma law follows from its variance, and s is the standard deviation.",
            "(1 + lambda)**(-1/s**2)": "The scale of the gain is not one: its mean is one, and its shape is not.",
            "1 + lambda*s**2": "That is the Fano factor, the first part of the question. How often is the neuron silent?",
        },
    ),
    "01.3": Function(
        _trials_needed,
        cases=[1.5, 2.0, 3.0, 1.2],
        extreme=[1.05, 12.0],
        batched=False,
        ask="a function trials_needed(fano) that returns a whole number",
        because="The power first reaches nine in ten at just that number of trials.",
        mistakes={
            lambda fano: _trials_needed(fano) - 1: "These are the degrees of freedom, and trials are one more.",
            lambda fano: _trials_needed(
                fano, level=0.95
            ): "The threshold is the 97.5% point, so that a two-sided test has 5% false alarms.",
            lambda fano: _trials_needed(fano, power=0.5): "That finds the neuron in every second case only.",
        },
    ),
    "02.1": Number(
        between=(0.02, 0.18),
        ask="a number: the gap in nats",
        because="It shrinks a lot. A vague measurement leaves the posterior near the prior, which is Poisson itself.",
        mistakes={0.0: "Not quite: what little the measurement says still does not fit a Poisson law."},
    ),
    "02.2": Formula(
        "2*w*(x - w*lambda) - w**2 - log(lambda/r)",
        symbols="lambda x w r",
        ask="an expression in λ, x, w and r: the slope of the ELBO in λ",
        because="Write 2w(x − wλ) − w² as 2w[(x − w/2) − wλ]: the fit is to x − w/2. Half a spike is taken off the target.",
        wrong_derivative="-(x - w*lambda)**2 - w**2*lambda - lambda*log(lambda/r) + lambda - r",
        mistakes={
            "2*w*(x - w*lambda) - log(lambda/r)": "The counting noise is missing: a squared error has the variance of wz in it.",
            "2*w*(x - w*lambda) - w**2 + log(lambda/r)": "The KL term is subtracted in the ELBO.",
            "2*w*(x - w*lambda) - w**2 - log(lambda/r) - 1": "The KL has a term −λ too, whose slope cancels something.",
            "2*(x - w*lambda) - w**2 - log(lambda/r)": "An inner derivative is missing in the squared error.",
            "2*w*(x - w*lambda) - w**2": "Only the reconstruction term is differentiated. Where is the KL?",
            "2*w*(x - w*lambda) - w - log(lambda/r)": "The variance of wz is not w times that of z.",
        },
    ),
    "02.3": Function(
        _posterior_mean,
        cases=lambda: [
            (*_float64([0.0, 5.0, 2.3]), 1.0, 2.0),
            (*_float64([[1.0, -1.0], [4.0, 6.0]]), 0.5, 2.0),
            (*_float64([3.0]), 2.0, 7.0),
        ],
        extreme=lambda: [(*_float64([-40.0, 60.0]), 1.0, 2.0)],
        batched=False,
        float32=False,  # the chapter's own list of counts is float64
        ask="a function posterior_mean(x, weight, prior_rate) of a whole tensor x",
        because="Also for a tensor of any shape, another weight and prior, and where exp of the joint is 0.",
        mistakes={
            _with_exp: "Right for ordinary x. At x = -40 every exp of the joint is 0, and 0/0 is NaN: stay in log space.",
            _most_probable: "This is the most probable count, and the mean is wanted.",
            _without_prior: "The prior is missing.",
        },
    ),
    "03.1": Number(
        228.3,
        rtol=0.005,
        ask="a number: the standard deviation of one estimate",
        rate=20.0,
        because="The constant multiplies the score, whose standard deviation is 1/√λ: about 1020/√20.",
        mistakes={
            4.9: "A constant has no gradient, but the score is multiplied by it all the same.",
            1004.9: "The constant is not added to the noise: it is multiplied by something.",
            1000 / 20**0.5: "Nearly. The loss is not 1000 but 1000 and a count.",
        },
    ),
    "03.2": Number(
        0.4399,
        ask="a number: the gradient that they follow, at λ = 4",
        because="The product rule adds the gradient of the entropy, so the entropy counts twice: they maximise ELBO + H(q).",
        mistakes={
            0.3069: "That is the gradient of the ELBO. What does the product rule add to it?",
            0.1331: "That is the part that is added. What is the sum?",
            0.1738: "The sign of the added part: −∂E[ln q] is the slope of the entropy, and it is positive here.",
        },
    ),
    "03.3": Function(
        _leave_one_out,
        cases=lambda: [
            _float64([3.0, 7.0], [0.4, -0.3]),
            _float64([1.0, 4.0, 9.0, 2.5, 0.0], [0.5, -1.0, 2.0, 0.3, -0.7]),
            _float64([2.0, 2.0, 2.0], [1.0, -3.0, 0.2]),
        ],
        extreme=lambda: [_float64([1e6, 1e6 + 1, 1e6 + 2], [1.0, -2.0, 0.5])],
        batched=False,
        ask="a function leave_one_out(loss, score), both of shape (S,), that returns one number",
        because="A baseline made of the other samples does not look at its own score, so nothing of the gradient is lost.",
        mistakes={
            lambda loss, score: (
                (loss - loss.mean()) * score
            ).mean(): "The own sample is still in the mean: a share of the gradient is lost.",
            lambda loss, score: (loss * score).mean(): "There is no baseline in it.",
            lambda loss, score: (
                _leave_one_out(loss, score) * len(loss)
            ): "The mean over the samples is wanted, not the sum.",
            lambda loss, score: ((loss - (loss.sum() - loss) / len(loss)) * score).mean(): "The others are one fewer "
            "than all.",
            lambda loss, score: ((loss - (loss.sum() - loss)) * score).mean(): "The mean of the others is wanted, "
            "not their sum.",
            lambda loss, score: (
                loss - (loss.sum() - loss) / (len(loss) - 1)
            ): "That is the reward. It still has to meet the score.",
        },
    ),
    "04.1": Array(
        [math.exp(-3), math.exp(-3) * (1 - math.exp(-3))],
        rtol=5e-3,
        parts=("the gradient", "the variance"),
        ask="two numbers: (gradient, variance)",
        rate=3.0,
        because="One more spike matters only if there was none: f(z + 1) − f(z) is a coin that is 1 when the neuron is silent.",
        mistakes=[
            (
                (1 - math.exp(-3), math.exp(-3) * (1 - math.exp(-3))),
                "That is the chance that it fires, and not its slope.",
            ),
            ((math.exp(-3), 0.0), "The difference is not the same every time: it is 1 sometimes and 0 otherwise."),
            ((0.0, 0.0), "The slope of f is 0 wherever it exists, and the gradient is in the jump."),
        ],
    ),
    "04.2": Formula(
        "n*(2*(n - 1)*p + 1)",
        symbols="n p",
        ask="an expression in n and p: the slope of E z² in p",
        because="(z′ + 1)² − z′² = 2z′ + 1, and z′ counts the n − 1 other coins. With np = λ it tends to n(2λ + 1).",
        ranges={"n": range(2, 9), "p": (0.1, 0.9)},
        wrong_derivative="n*p*(1 - p) + n**2*p**2",
        mistakes={
            "n*(2*n*p + 1)": "The coin that is turned over is not among the others: how many are left for z′?",
            "2*(n - 1)*p + 1": "That is one coin's slope, and p is the bias of all of them.",
            "2*n*p + 1": "That is the Poisson result. Here p belongs to n coins, and z′ counts fewer than z.",
            "2*n**2*p": "f(z + 1) − f(z) is a difference: (z + 1)² − z² is more than 2z.",
        },
    ),
    "04.3": Function(
        _difference_gradient,
        cases=lambda: [
            (_squares, *_float64(RATES), 40_000),
            (_more_than_six, *_float64(RATES), 40_000),
            (_squares, *_float64([4.0, 0.3]), 40_000),
        ],
        extreme=lambda: [(_squares, *_float64([0.0, 1000.0]), 10_000)],
        batched=False,
        float32=False,
        rtol=0.08,  # six standard errors
        measure=_one_gradient_each,
        expected=_exact_gradient,
        ask="a function difference_gradient(f, rate, num_samples) that returns a tensor of the shape of `rate`",
        because="One more spike in each latent, and f may be any black box: a threshold has no slope, and its gradient is right.",
        mistakes={
            _total_difference: "This adds a spike to all latents at once: one at a time.",
            lambda f, rate, num_samples: (
                _difference_gradient(f, rate, num_samples) * rate
            ): "This is the gradient in the log-rate.",
            lambda f, rate, num_samples: (
                f(torch.poisson(rate.expand(num_samples, -1))).mean().expand(len(rate))
            ): "This is the mean of f. What changes with one spike more?",
        },
    ),
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
    "06.1": Number(
        65.5,
        rtol=1e-3,
        ask="a number: the relaxed count at λ = 100 and M = 132 as τ grows without bound",
        because="All weights become equal, whatever the rate: it goes to (M − 1)/2. A very hot soft count says more about M "
        "than about λ.",
        mistakes={
            66.0: "Nearly: the list begins with the count 0.",
            100.0: "Heat flattens the weights, and the rate is forgotten.",
            0.0: "The weights do not vanish: they add up to one at any temperature.",
            131.0: "Heat makes all counts equally likely, and not the largest.",
        },
    ),
    "06.2": Formula(
        "(M - 1)**2/(4*tau)",
        symbols="M tau",
        because="Reached by half the weight on 0 and half on the largest count. The list should be no longer than the law "
        "needs.",
        ranges={"M": range(2, 30)},
        mistakes={
            "M**2/(4*tau)": "The M counts begin with 0: how far apart are the first and the last?",
            "(M - 1)**2/4": "That is the largest variance. What is it divided by in the derivative?",
            "(M - 1)**2/(12*tau)": "That is for weights spread evenly. Which weights have the largest variance?",
            "(M**2 - 1)/(12*tau)": "That is for equal weights. Which weights have the largest variance?",
            "(M - 1)/(2*tau)": "That is the standard deviation, and the derivative holds the variance.",
            "(M - 1)**2/tau": "The squared distance between first and last count is more than the variance can be.",
        },
    ),
    "06.3": Function(
        _zero_inflated,
        cases=lambda: [
            (*(a.requires_grad_() for a in _float64(p, rate)), M)
            for p, rate, M in ((0.3, 5.0, 25), (0.8, 0.5, 10), (0.05, 12.0, 40))
        ],
        extreme=lambda: [
            (*(a.requires_grad_() for a in _float64(p, rate)), M)
            for p, rate, M in ((1e-9, 3.0, 20), (0.5, 900.0, 1200))
        ],
        batched=False,
        float32=False,
        measure=_normalised,
        ask="a function zero_inflated(p, rate, M) that returns the log-pmf, of shape (M,)",
        because="Zeros come from both sources, and the gradient reaches p and the rate.",
        mistakes={
            _only_extra_zeros: "The Poisson count may be 0 as well: its zeros are missing.",
            _poisson_kept_whole: "The Poisson part is there with probability 1 − p only.",
            lambda p, rate, M: _zero_inflated(
                p, rate, M
            ).exp(): "These are probabilities: their logarithms are wanted.",
            lambda p, rate, M: torch.log1p(-p) + _log_poisson(rate, M): "The extra zeros are missing.",
            lambda p, rate, M: _zero_inflated(1 - p, rate, M): "p and 1 − p are interchanged.",
        },
    ),
}
