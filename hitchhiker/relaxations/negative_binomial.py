"""Negative binomial counts, more spread than Poisson ones: a Gamma mixture of EAT, or Gumbel-softmax (H.3)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import NegativeBinomial, constraints, register_kl
from torch.nn.functional import logsigmoid

from hitchhiker import indicators, moments, truncation
from hitchhiker.checks import as_float_tensor, as_float_tensors, common_shape, readable, require, require_count
from hitchhiker.indicators import SoftIndicator
from hitchhiker.kernels import operators
from hitchhiker.relaxations.common import RelaxedCount, check_temperature
from hitchhiker.relaxations.gumbel_softmax import GumbelSoftmaxLaw


def negative_binomial_logits(
    total_count: Float[Tensor, "*batch"], probs: Float[Tensor, "*batch"], num_categories: int
) -> Float[Tensor, "categories *batch"]:
    """Log-pmf ln Γ(m + r) - ln m! + m ln(1 - μ) of 0 … M-1 along dimension 0, less that of the likeliest.

    >>> negative_binomial_logits(torch.tensor(1.0), torch.tensor(0.5), 3)
    tensor([ 0.0000, -0.6931, -1.3863])
    """
    m = torch.arange(num_categories, dtype=torch.float64, device=probs.device).view(-1, *([1] * probs.dim()))
    logits = torch.lgamma(m + total_count.double()) - torch.lgamma(m + 1) + m * torch.log1p(-probs.double())
    return (logits - logits.detach().amax(dim=0)).to(probs.dtype)


class RelaxedNegativeBinomial(RelaxedCount):
    """Common part of the two laws: parameters r and μ, exact counts, log-pmf."""

    arg_constraints = {"total_count": constraints.positive, "probs": constraints.unit_interval}  # noqa: RUF012
    _tensors = ("total_count", "probs", "temperature")

    def __init__(self, total_count, probs, temperature, validate_args: bool | None):
        validate = validate_args is not False
        r, mu = as_float_tensors(total_count=total_count, probs=probs)
        if validate:
            require("total_count", r, lambda x: (x > 0) & (x < torch.inf), "> 0 and finite")
            require("probs", mu, lambda x: (x > 0) & (x < 1), "strictly between 0 and 1")
        self.temperature = check_temperature(temperature, mu.detach(), validate)
        shape = common_shape(total_count=r, probs=mu, temperature=self.temperature)
        self._given = {"total_count": r, "probs": mu}
        self.total_count, self.probs = r.expand(shape), mu.expand(shape)
        super().__init__(shape, validate_args=False)
        self._validate_args = validate

    def _arguments(self) -> dict[str, Any]:
        return self._given | {"temperature": self.temperature, "validate_args": self._validate_args}

    @property
    def count_mean(self) -> Float[Tensor, "*batch"]:
        """m = r(1 - μ)/μ, the mean of the negative binomial itself (counts)."""
        return self.total_count * (1 - self.probs) / self.probs

    @property
    def count_variance(self) -> Float[Tensor, "*batch"]:
        """r(1 - μ)/μ² = m/μ, the variance of the negative binomial itself (counts²)."""
        return self.count_mean / self.probs

    def _rates(self, sample_shape) -> Float[Tensor, "..."]:
        """λ ~ Gamma(r, rate μ/(1 - μ)), reparametrised (Eq. 83; numpy and scipy would take the scale (1 - μ)/μ).

        In float32 at least: torch draws no Gamma in half precision.
        """
        shape = self._extended_shape(torch.Size(sample_shape))
        r, mu = operators.working(self.total_count), operators.working(self.probs)
        return torch._standard_gamma(r.expand(shape)) * ((1 - mu) / mu)

    def sample(self, sample_shape=()) -> Float[Tensor, "..."]:
        """Integer counts (as floats) from the negative binomial itself, not from the relaxed law."""
        with torch.no_grad():
            return torch.poisson(self._rates(sample_shape)).to(self.probs.dtype)

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """ln NB(value; r, μ) in nats, extended to real ``value >= 0`` by the log-gamma function.

        At a relaxed (non-integer) value this is not the density of the relaxed law.
        """
        value = as_float_tensor("value", value, like=self.probs)
        if self._validate_args:
            common_shape(value=value, probs=self.probs)
            require("value", value, lambda x: x >= 0, ">= 0 (real values are allowed)")
        # float64 inside: at r = 10⁶ the log-gammas are 10⁷ and their difference is of order one
        r, mu, k = self.total_count.double(), self.probs.double(), value.double()
        ways = torch.lgamma(k + r) - torch.lgamma(k + 1) - torch.lgamma(r)
        return (ways + r * mu.log() + k * torch.log1p(-mu)).to(self.probs.dtype)


class EATNegativeBinomial(RelaxedNegativeBinomial):
    """Negative binomial counts relaxed in two steps: a Gamma rate, then exponential arrival times.

    λ ~ Gamma(r, rate μ/(1 - μ)), z ~ EAT(λ). Gradients reach r and μ through torch's implicit Gamma derivative and
    the pathwise derivative of the count. Drawn by the exact window sampler, so no truncation has to know the rates.

    Parameters
    ----------
    total_count : r > 0, dimensionless, shape ``(*batch)``. Small r means bursts: variance/mean = 1/μ.
    probs : μ in (0, 1), the mean is m = r(1 - μ)/μ counts. (``torch.distributions.NegativeBinomial`` calls 1 - μ ``probs``.)
    temperature : τ >= 0, dimensionless, a float or a tensor that broadcasts; no gradient. Integer counts at 0.
    indicator : name or object, as in :class:`hitchhiker.EATPoisson`.
    hard : forward the integer count of the same arrivals, keep the relaxed derivative.
    validate_args : False skips the checks.

    ``mean`` = c m and ``variance`` = v m + c² m(1 - μ)/μ are those of the relaxed law (exact; c, v of
    :mod:`hitchhiker.moments`), differentiable in r and μ. The relaxation only takes from the Poisson part of the variance.

    Raises ``ValueError`` for r <= 0, μ outside (0, 1), a negative temperature, NaN, or shapes that do not broadcast.

    First derivatives only. Under ``torch.func.vmap`` use ``randomness="different"``. With r far below 1 most
    rates are 0 to float precision, and so are counts and derivatives.

    >>> _ = torch.manual_seed(0)
    >>> q = EATNegativeBinomial(total_count=3.0, probs=0.4, temperature=0.5)
    >>> z = q.rsample((200_000,))
    >>> print(f"mean {q.mean:.1f}, sampled {z.mean():.1f}; variance {q.variance:.1f}, sampled {z.var():.1f}")
    mean 4.5, sampled 4.5; variance 10.7, sampled 10.7

    Source: Algorithm 3, Eq. (83).
    """

    def __init__(
        self,
        total_count: Float[Tensor, "*#batch"] | float,
        probs: Float[Tensor, "*#batch"] | float,
        temperature: Float[Tensor, "*#batch"] | float = 0.1,
        indicator: str | SoftIndicator = "cubic",
        hard: bool = False,
        validate_args: bool | None = None,
    ):
        self.indicator = indicators.registered(indicator)
        self.hard = hard
        super().__init__(total_count, probs, temperature, validate_args)

    def _arguments(self) -> dict[str, Any]:
        return super()._arguments() | {"indicator": self.indicator, "hard": self.hard}

    def _factor(self, factor) -> Tensor:
        """c or v at this law's temperatures, beside the parameters; 1 for hard counts."""
        tau = torch.zeros_like(self.temperature) if self.hard else self.temperature
        return torch.as_tensor(factor(self.indicator, tau), dtype=self.probs.dtype, device=self.probs.device)

    @property
    def mean(self) -> Float[Tensor, "*batch"]:
        """E[z] = c m."""
        return self._factor(moments.mean_factor) * self.count_mean

    @property
    def variance(self) -> Float[Tensor, "*batch"]:
        """Var(z) = v m + c² m(1 - μ)/μ."""
        c, v = self._factor(moments.mean_factor), self._factor(moments.variance_factor)
        return (v + c**2 * (1 - self.probs) / self.probs) * self.count_mean

    def rsample(self, sample_shape=()) -> Float[Tensor, "..."]:
        """Relaxed counts of shape ``(*sample_shape, *batch)``, reparametrised: gradients reach r and μ."""
        rates = self._rates(sample_shape)
        count = operators.arrival_time(rates, self.temperature, self.indicator.name, False, self.hard)
        return count.to(self.probs.dtype)


class GSMNegativeBinomial(GumbelSoftmaxLaw, RelaxedNegativeBinomial):
    """Negative binomial counts relaxed by Gumbel-softmax over the categories 0 … M-1, with no Gamma step.

    Parameters
    ----------
    total_count, probs, temperature : as in :class:`EATNegativeBinomial`.
    num_categories : M; None takes :func:`hitchhiker.truncation.num_categories_negative_binomial` with 10⁻⁶ left out.
        The law's tail is geometric, so M is several times the mean; memory is M numbers a sample.
    hard : forward the argmax, keep the relaxed derivative.
    validate_args : False skips the checks.

    ``mean`` and ``variance`` of the relaxed law have no closed form: ``NotImplementedError`` unless τ = 0 or ``hard``,
    where they are those of the truncated law. The argmax follows that law exactly at every τ.

    Raises ``ValueError`` as :class:`EATNegativeBinomial`. Under ``torch.compile`` give ``num_categories``; instead of
    ``torch.func.vmap``, which this sampler does not follow, give a batch of parameters.

    >>> _ = torch.manual_seed(0)
    >>> hard = GSMNegativeBinomial(total_count=3.0, probs=0.4, temperature=0.5, hard=True)
    >>> soft = GSMNegativeBinomial(total_count=3.0, probs=0.4, temperature=0.5)
    >>> n, z = hard.rsample((100_000,)), soft.rsample((100_000,))
    >>> print(f"hard: mean {hard.mean:.1f}, sampled {n.mean():.1f}; variance {hard.variance:.0f}, sampled {n.var():.0f}")
    hard: mean 4.5, sampled 4.5; variance 11, sampled 11
    >>> print(f"soft: sampled mean {z.mean():.1f}, variance {z.var():.0f}")
    soft: sampled mean 4.6, variance 6

    Source: H.3, method 2; Algorithm 2.
    """

    def __init__(
        self,
        total_count: Float[Tensor, "*#batch"] | float,
        probs: Float[Tensor, "*#batch"] | float,
        temperature: Float[Tensor, "*#batch"] | float = 0.1,
        num_categories: int | None = None,
        hard: bool = False,
        validate_args: bool | None = None,
    ):
        require_count("num_categories", num_categories, optional=True)
        self._num_categories = num_categories
        self._enough: int | None = None
        self.hard = hard
        super().__init__(total_count, probs, temperature, validate_args)

    def _arguments(self) -> dict[str, Any]:
        return super()._arguments() | {"num_categories": self._num_categories, "hard": self.hard}

    @property
    def num_categories(self) -> int:  # type: ignore[override]
        """M: the categories are 0 … M-1."""
        if self._num_categories is not None:
            return self._num_categories
        if self._enough is None:
            if not readable(self.total_count, self.probs, self.temperature):
                raise ValueError("num_categories must be given under torch.compile and torch.func, got None")
            self._enough = truncation.num_categories_negative_binomial(
                self.total_count, self.probs, self.temperature, tail=1e-6
            )
        return self._enough

    @property
    def _logits(self) -> Float[Tensor, "categories *batch"]:  # type: ignore[override]
        return negative_binomial_logits(self.total_count, self.probs, self.num_categories)


def _natural(q) -> tuple[Tensor, Tensor, Tensor]:
    """(r, ln μ, ln(1 - μ)) in float64, whichever convention the law has."""
    if isinstance(q, RelaxedNegativeBinomial):
        mu = q.probs.double()
        return q.total_count.double(), mu.log(), torch.log1p(-mu)
    logits = q.logits.double()
    return q.total_count.double(), logsigmoid(-logits), logsigmoid(logits)


@register_kl(RelaxedNegativeBinomial, RelaxedNegativeBinomial)
@register_kl(RelaxedNegativeBinomial, NegativeBinomial)
@register_kl(NegativeBinomial, RelaxedNegativeBinomial)
def _kl_negative_binomial(p, q) -> Tensor:
    """KL between the counts that p and q relax, nats; a closed form exists only for equal ``total_count``."""
    r, log_mu, log_fail = _natural(p)
    s, log_mu_q, log_fail_q = _natural(q)
    if not bool((r == s).all()):
        raise NotImplementedError(
            "the KL divergence of negative binomials has a closed form for equal total_count only; "
            "average p.log_prob(z) - q.log_prob(z) over p.sample()"
        )
    mean = r * (log_fail - log_mu).exp()
    return (r * (log_mu - log_mu_q) + mean * (log_fail - log_fail_q)).to(p.probs.dtype)
