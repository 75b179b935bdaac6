"""Exponential arrival times (EAT): a Poisson count relaxed by a soft look at the clock (Algorithm 1, Eqs. 16–19)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hitchhiker import indicators, moments
from hitchhiker.checks import require_count
from hitchhiker.indicators import SoftIndicator
from hitchhiker.kernels import operators
from hitchhiker.relaxations.common import RelaxedPoisson


def from_unit_exponentials(
    rate: Float[Tensor, "*#batch"] | float,
    exponentials: Float[Tensor, "arrivals *samples"],
    temperature: Float[Tensor, "*#batch"] | float,
    indicator: str | SoftIndicator = "cubic",
) -> Float[Tensor, "*samples"]:
    """Algorithm 1 with its noise given: z = Σ_m f((1 - t_m)/τ), t_m = (e_1 + … + e_m)/λ.

    Deterministic and differentiable (to any order the indicator allows) in ``rate``.

    Parameters
    ----------
    rate : λ >= 0, counts per window; broadcasts against a slice of ``exponentials``.
    exponentials : unit exponential draws, arrivals along dimension 0.
    temperature : τ >= 0, dimensionless; at 0 the hard count #{t_m < 1} comes back.
    indicator : name or object.

    Returns the relaxed counts, of the shape of one slice ``exponentials[0]``. At λ = 0 the count and its gradient are 0.

    >>> from_unit_exponentials(torch.tensor(2.0), torch.tensor([1.0, 0.9, 5.0]), 0.5)
    tensor(1.5747)

    Source: Algorithm 1, Eqs. (17) and (19).
    """
    f = indicators.get(indicator)
    # a Python float goes straight to this dtype: by way of float32 it would be 10⁻⁸ off
    rate, temperature = (
        torch.as_tensor(x, dtype=exponentials.dtype, device=exponentials.device) for x in (rate, temperature)
    )
    possible = rate > 0
    times = exponentials.cumsum(dim=0) / torch.where(possible, rate, 1.0)
    hard = (times < 1).to(times)
    cold = temperature == 0
    soft = f((1 - times) / torch.where(cold, 1.0, temperature))
    return (torch.where(cold, hard, soft) * possible).sum(dim=0)


class EATPoisson(RelaxedPoisson):
    """Poisson counts relaxed by exponential arrival times.

    z = Σ_m f((1 - t_m)/τ) over the arrival times t_m of a Poisson process of rate λ; as τ → 0 it becomes the Poisson
    count. By default all arrivals are there (M = ∞), drawn by the exact window sampler in O(1 + λτ) operations a
    unit; with ``num_arrivals=M`` it is Algorithm 1 with M arrivals, as the paper samples. Where a window holds more than
    2²² arrivals (λτ beyond some millions) their sums are drawn as normal numbers with the exact moments.

    Parameters
    ----------
    rate, log_rate : exactly one; λ >= 0 in counts per window, shape ``(*batch)``, or ln λ. Gradients reach it.
    temperature : τ >= 0, dimensionless, a float or a tensor that broadcasts with the rate; no gradient. At τ = 0,
        ``rsample`` gives integer counts without gradient.
    indicator : ``"cubic"`` (the paper's), ``"sigmoid"``, ``"linear"``, ``"quintic"``, ``"cosine"``, or a registered object.
    num_arrivals : M of Algorithm 1; None for the exact law. A small M loses counts: see
        :func:`hitchhiker.truncation.num_arrivals`.
    hard : forward the integer count of the same arrivals, keep the relaxed derivative.
    validate_args : False skips the checks, which look at every rate once (and wait for a GPU).

    Properties ``mean`` = λ c(τ) and ``variance`` = λ v(τ) are those of the relaxed law itself (Campbell's theorem,
    exact), differentiable in λ; with ``num_arrivals`` they are the exact finite-M values, without gradient.

    Raises ``ValueError`` for a negative, infinite or NaN rate or temperature, or both/none of rate and log_rate.

    Valid for any τ; the mean is unbiased (c = 1) for compactly supported indicators and τ <= 1. At λ = 0 every sample
    and its gradient are 0, although the gradient's expectation just above 0 is c: use
    :func:`hitchhiker.estimators.difference` if rates start at exactly 0. P(z = 0) > 0, so √z, ln z and other
    functions with an infinite slope at 0 give NaN gradients there (∞ · 0). First derivatives only. Under
    ``torch.func.vmap`` use ``randomness="different"``.

    >>> _ = torch.manual_seed(0)
    >>> q = EATPoisson(rate=torch.tensor(4.0), temperature=0.5)
    >>> z = q.rsample((100_000,))
    >>> print(f"mean {q.mean:.1f}, sampled {z.mean():.1f}; variance {q.variance:.1f}, sampled {z.var():.1f}")
    mean 4.0, sampled 4.0; variance 3.5, sampled 3.5

    Source: Algorithm 1, Eqs. (3), (4), (19).
    """

    def __init__(
        self,
        rate: Float[Tensor, "*#batch"] | float | None = None,
        log_rate: Float[Tensor, "*#batch"] | float | None = None,
        temperature: Float[Tensor, "*#batch"] | float = 0.1,
        indicator: str | SoftIndicator = "cubic",
        num_arrivals: int | None = None,
        hard: bool = False,
        validate_args: bool | None = None,
    ):
        self.indicator = indicators.registered(indicator)
        require_count("num_arrivals", num_arrivals, optional=True)
        self.num_arrivals = num_arrivals
        self.hard = hard
        super().__init__(rate, log_rate, temperature, validate_args)

    def _arguments(self) -> dict[str, Any]:
        return super()._arguments() | {
            "indicator": self.indicator, "num_arrivals": self.num_arrivals, "hard": self.hard,
        }  # fmt: skip

    @property
    def mean(self) -> Float[Tensor, "*batch"]:
        """E[z] = λ c(τ), or its exact finite-M value (Eq. 34)."""
        return self._moment(moments.mean_factor, moments.truncated_mean_factor)

    @property
    def variance(self) -> Float[Tensor, "*batch"]:
        """Var(z) = λ v(τ), or its exact finite-M value (Eq. 36)."""
        return self._moment(moments.variance_factor, moments.truncated_variance_factor)

    def _moment(self, exact, truncated) -> Tensor:
        """λ times a moment factor, computed once for each distinct (τ, λ)."""
        tau = torch.zeros_like(self.temperature) if self.hard else self.temperature
        if self.num_arrivals is None:
            values, where = tau.double().unique(return_inverse=True)
            factors = [exact(self.indicator, float(t)) for t in values]
            return self.rate * self._beside_rate(factors)[where].view(tau.shape)
        pairs = torch.stack([tau.expand(self.batch_shape).flatten(), self.rate.detach().flatten()]).double()
        values, where = pairs.unique(dim=1, return_inverse=True)
        factors = [truncated(self.indicator, float(t), float(r), self.num_arrivals) for t, r in values.T]
        # a finite-M factor depends on λ, and its slope is not here: better no gradient than a wrong one
        return self.rate.detach() * self._beside_rate(factors)[where].view(self.batch_shape)

    def _beside_rate(self, factors: list[float]) -> Tensor:
        return torch.tensor(factors, dtype=self.parameter.dtype, device=self.parameter.device)

    def rsample(self, sample_shape=()) -> Float[Tensor, "..."]:
        """Relaxed counts of shape ``(*sample_shape, *batch)``, reparametrised: gradients reach the rate."""
        shape = self._extended_shape(torch.Size(sample_shape))
        parameter = self.parameter.expand(shape)
        if self.num_arrivals is None:
            return operators.arrival_time(parameter, self.temperature, self.indicator.name, self.is_log, self.hard)
        noise = torch.empty((self.num_arrivals, *shape), dtype=parameter.dtype, device=parameter.device).exponential_()
        rate = self.rate.expand(shape)
        soft = from_unit_exponentials(rate, noise, self.temperature, self.indicator)
        if not self.hard:
            return soft
        with torch.no_grad():
            integer = from_unit_exponentials(rate, noise, 0.0, self.indicator)
        return integer + (soft - soft.detach())
