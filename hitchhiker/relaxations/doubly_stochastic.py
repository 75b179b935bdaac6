"""Doubly stochastic counts: a Poisson law whose rate is multiplied by a random gain (Goris et al., 2014), relaxed by EAT."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hitchhiker import indicators, moments
from hitchhiker.checks import as_float_tensor, common_shape, finite_nonnegative, require
from hitchhiker.indicators import SoftIndicator
from hitchhiker.kernels import operators
from hitchhiker.relaxations.common import RateLaw

GAINS = ("gamma", "lognormal")
#: below this gain variance, and where σ² max(n, λ) is small too, the log-pmf is its first-order expansion about the Poisson one
SMALL, SMALL_SPREAD = 1e-7, 1e-5
#: nodes of the sum over log-normal gains, in posterior standard deviations about the mode
_NODES = torch.linspace(-16.0, 14.0, 241, dtype=torch.float64)


class EATModulatedPoisson(RateLaw):
    """Poisson counts with a random gain g, E g = 1, relaxed by arrival times: z ~ EAT(gλ).

    Mean λ, variance λ + σ²λ² (σ² = Var g): the Fano factor 1 + σ²λ grows with the rate, as in cortex. The gain belongs to a
    trial: each sample and element has its own. With a Gamma gain this is the negative binomial with r = 1/σ² and
    μ = 1/(1 + σ²λ), by its mean; so that r, and not μ, stays when the rate moves.

    Parameters
    ----------
    rate, log_rate : exactly one; λ >= 0 in counts per window, shape ``(*batch)``, or ln λ. Gradients reach it.
    gain_variance : σ² >= 0, dimensionless, broadcasts with the rate; 0 is the Poisson law. Gradients reach it where σ² > 0.
    gain : ``"gamma"`` or ``"lognormal"`` (ln g ~ N(-s²/2, s²), s² = ln(1 + σ²)).
    temperature, indicator, hard : as in :class:`hitchhiker.EATPoisson`.
    validate_args : False skips the checks.

    ``mean`` = λ c and ``variance`` = λ v + c²σ²λ² are those of the relaxed law, exact for either gain and differentiable.
    ``sample`` draws whole counts. ``log_prob`` is their log-pmf, extended to real values: in closed form for the Gamma gain,
    as a sum over 241 gains (relative error below 1e-9) for the log-normal one.

    Raises ``ValueError`` for a negative, infinite or NaN gain variance, an unknown gain, and as
    :class:`hitchhiker.EATPoisson`. First derivatives only. At σ² = 0 samples have gain 1 and slope 0 in σ²; the slope of
    ``log_prob`` is right there too, ((n - λ)² - n)/2. With σ² far above 1 most Gamma gains are 0 to float precision.

    >>> _ = torch.manual_seed(0)
    >>> q = EATModulatedPoisson(rate=4.0, gain_variance=0.5, temperature=0.1)
    >>> z = q.rsample((400_000,))
    >>> print(f"mean {q.mean:.1f}, sampled {z.mean():.1f}; variance {q.variance:.0f}, sampled {z.var():.0f}")
    mean 4.0, sampled 4.0; variance 12, sampled 12

    Source: Goris, Movshon and Simoncelli (2014), whom H.3 cites; Algorithm 3 with another parametrisation.
    """

    _tensors = ("rate", "log_rate", "gain_variance", "temperature")

    def __init__(
        self,
        rate: Float[Tensor, "*#batch"] | float | None = None,
        log_rate: Float[Tensor, "*#batch"] | float | None = None,
        gain_variance: Float[Tensor, "*#batch"] | float = 0.0,
        gain: str = "gamma",
        temperature: Float[Tensor, "*#batch"] | float = 0.1,
        indicator: str | SoftIndicator = "cubic",
        hard: bool = False,
        validate_args: bool | None = None,
    ):
        self.indicator = indicators.registered(indicator)
        if gain not in GAINS:
            raise ValueError(f"gain must be one of {GAINS}, got {gain!r}")
        self.gain, self.hard = gain, hard
        given = rate if log_rate is None else log_rate
        like = as_float_tensor("rate" if log_rate is None else "log_rate", 0.0 if given is None else given).detach()
        variance = as_float_tensor("gain_variance", gain_variance, like=like)
        if validate_args is not False:
            require("gain_variance", variance, finite_nonnegative, ">= 0 and finite")
        super().__init__(rate, log_rate, temperature, validate_args, gain_variance=variance)
        self._given_variance = variance.to(self.parameter)
        #: σ², the variance of the gain
        self.gain_variance = self._given_variance.expand(self.batch_shape)

    def _arguments(self) -> dict[str, Any]:
        return super()._arguments() | {
            "gain_variance": self._given_variance, "gain": self.gain, "indicator": self.indicator, "hard": self.hard,
        }  # fmt: skip

    @property
    def count_variance(self) -> Float[Tensor, "*batch"]:
        """λ + σ²λ², the variance of the whole counts (counts²)."""
        return self.rate + self.gain_variance * self.rate.square()

    def _factor(self, factor) -> Tensor:
        tau = torch.zeros_like(self.temperature) if self.hard else self.temperature
        return torch.as_tensor(factor(self.indicator, tau), dtype=torch.float64).to(self.parameter)

    @property
    def mean(self) -> Float[Tensor, "*batch"]:
        """E[z] = λ c(τ)."""
        return self._factor(moments.mean_factor) * self.rate

    @property
    def variance(self) -> Float[Tensor, "*batch"]:
        """Var(z) = λ v(τ) + c(τ)² σ² λ²."""
        c, v = self._factor(moments.mean_factor), self._factor(moments.variance_factor)
        return v * self.rate + c.square() * self.gain_variance * self.rate.square()

    def _modulated(self, sample_shape) -> Float[Tensor, "..."]:
        """gλ, each sample with its own gain; in float32 at least, for torch draws no Gamma in half precision."""
        shape = self._extended_shape(torch.Size(sample_shape))
        variance, rate = (operators.working(x).expand(shape) for x in (self.gain_variance, self.parameter))
        # a gain this near to 1 is no different from 1, and its slope in σ² would be NaN
        steady = variance < torch.finfo(variance.dtype).eps ** 2
        variance = torch.where(steady, 1.0, variance)
        if self.gain == "gamma":
            gain = torch._standard_gamma(1 / variance) * variance
        else:
            square = torch.log1p(variance)
            gain = (square.sqrt() * torch.randn_like(variance) - square / 2).exp()
        return torch.where(steady, 1.0, gain) * (rate.exp() if self.is_log else rate)

    def rsample(self, sample_shape=()) -> Float[Tensor, "..."]:
        """Relaxed counts of shape ``(*sample_shape, *batch)``: gradients reach the rate and the gain's variance."""
        rates = self._modulated(sample_shape)
        count = operators.arrival_time(rates, self.temperature, self.indicator.name, False, self.hard)
        return count.to(self.parameter.dtype)

    def sample(self, sample_shape=()) -> Float[Tensor, "..."]:
        """Whole counts (as floats), not relaxed."""
        with torch.no_grad():
            return torch.poisson(self._modulated(sample_shape)).to(self.parameter.dtype)

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """ln P(value), nats, at real ``value >= 0``; differentiable in λ and σ². Not the density of the relaxed law."""
        value = as_float_tensor("value", value, like=self.parameter)
        if self._validate_args:
            common_shape(value=value, rate=self.parameter)
            require("value", value, lambda x: x >= 0, ">= 0 (real values are allowed)")
        n, lam, variance = torch.broadcast_tensors(value.double(), self.rate.double(), self.gain_variance.double())
        certain, impossible = (n == 0) & (lam == 0), (n > 0) & (lam == 0)
        lam = torch.where(lam == 0, 1.0, lam)
        poisson = n * lam.log() - lam - torch.lgamma(n + 1)
        near = (variance < SMALL) & (variance * torch.maximum(n, lam) < SMALL_SPREAD)
        expanded = poisson + variance / 2 * ((n - lam).square() - n)
        mixed = (self._gamma if self.gain == "gamma" else self._lognormal)(n, lam, torch.where(near, 1.0, variance))
        found = torch.where(near, expanded, mixed)
        silent = 0.0 - self.rate.double().expand_as(found)  # P(0) = 1 - λ + … for either gain
        return torch.where(certain, silent, torch.where(impossible, -torch.inf, found)).to(self.parameter.dtype)

    @staticmethod
    def _gamma(n: Tensor, lam: Tensor, variance: Tensor) -> Tensor:
        r, spread = 1 / variance, variance * lam
        # ln Γ(n + r) - ln Γ(r) - n ln r, by Stirling's formula where the two are far larger than their difference
        stirling = (n + r - 0.5) * torch.log1p(n * variance) - n - n * variance.square() / (12 * (1 + n * variance))
        ways = torch.where(variance < 1e-5, stirling, torch.lgamma(n + r) - torch.lgamma(r) + n * variance.log())
        return ways - torch.lgamma(n + 1) + n * lam.log() - (n + r) * torch.log1p(spread)

    @staticmethod
    def _lognormal(n: Tensor, lam: Tensor, variance: Tensor) -> Tensor:
        """ln ∫ Poisson(n; λ e^{sε - s²/2}) φ(ε) dε by the trapezoid rule about the mode, spectrally accurate here."""
        square = torch.log1p(variance)
        s = square.sqrt()
        with torch.no_grad():  # the mode ε solves y + ln y = level for y = s²λe^{sε - s²/2}: Newton in ln y, from above
            level = n * square + (square * lam).log() - square / 2
            log_y = torch.where(level > 1, level.clamp(min=1).log(), level)
            for _ in range(30):
                log_y = log_y - (log_y.exp() + log_y - level) / (log_y.exp() + 1)
            mode = (n * square - log_y.exp()) / s
            width = (1 + log_y.exp()).rsqrt()
            nodes = _NODES.to(n.device).view(-1, *([1] * n.dim())) * width + mode
        exponent = s * nodes - square / 2
        terms = n * (lam.log() + exponent) - lam * exponent.exp() - nodes.square() / 2
        step = (_NODES[1] - _NODES[0]).item() * width
        return torch.logsumexp(terms, dim=0) + step.log() - torch.lgamma(n + 1) - 0.5 * math.log(2 * math.pi)
