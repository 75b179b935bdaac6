"""Gumbel-softmax counts (GSM): any pmf on 0, 1, 2, … relaxed by a soft choice (Algorithm 2, Eqs. 20–28)."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from jaxtyping import Float, Real
from torch import Tensor
from torch.distributions import Categorical, constraints

from hitchhiker import truncation
from hitchhiker.checks import as_float_tensor, common_shape, readable, require, require_count
from hitchhiker.kernels import operators
from hitchhiker.relaxations.common import RelaxedCount, RelaxedPoisson, check_temperature


def poisson_logits(
    rate: Float[Tensor, "*batch"], num_categories: int, log: bool = False
) -> Float[Tensor, "categories *batch"]:
    """Log-pmf m ln λ - ln m! of 0 … M-1 along dimension 0 (Eq. 26), less that of the mode; with ``log``, ln λ is given."""
    # float64, and the mode as the origin: at λ = 10⁶ both terms are 10⁷, where float32 resolves 1
    m = torch.arange(num_categories, dtype=torch.float64, device=rate.device).view(-1, *([1] * rate.dim()))
    possible = rate > -torch.inf if log else rate != 0  # NaN stays NaN
    safe = torch.where(possible, rate, 1.0).double()
    power = m * (safe if log else safe.log())
    logits = torch.where(possible | (m == 0), power, -torch.inf) - torch.lgamma(m + 1)
    return (logits - logits.detach().amax(dim=0)).to(rate.dtype)


def soft_one_hot(
    logits: Float[Tensor, "categories *batch"],
    gumbels: Float[Tensor, "categories *samples"],
    temperature: Tensor | float,
) -> Float[Tensor, "categories *samples"]:
    """Soft one-hot softmax((ln π_m + g_m)/τ) along dimension 0 (Eq. 27); the hard one at τ = 0."""
    scores = logits + gumbels
    temperature = torch.as_tensor(temperature, dtype=scores.dtype, device=scores.device)
    cold = temperature == 0
    soft = torch.softmax(scores / torch.where(cold, 1.0, temperature), dim=0)
    if readable(cold, scores) and not bool(cold.any()):
        return soft
    hard = torch.zeros_like(scores).scatter(0, scores.argmax(dim=0, keepdim=True), 1.0)
    return torch.where(cold, hard, soft)


def expected_index(weights: Float[Tensor, "categories *batch"]) -> Float[Tensor, "*batch"]:
    """Σ m w_m along dimension 0: the factor m that Eq. (24) and Algorithm 2 leave out."""
    m = torch.arange(weights.shape[0], dtype=weights.dtype, device=weights.device)
    return torch.tensordot(m, weights, dims=1)


def from_gumbels(
    rate: Float[Tensor, "*#batch"] | float,
    gumbels: Float[Tensor, "categories *samples"],
    temperature: Float[Tensor, "*#batch"] | float,
) -> Float[Tensor, "*samples"]:
    """Algorithm 2 with its noise given: z = Σ_m m·softmax((m ln λ - ln m! + g_m)/τ)_m.

    Deterministic and differentiable in ``rate``; dz/dλ = Var_w(m)/(τλ) with the soft weights w.

    Parameters
    ----------
    rate : λ >= 0, counts per window; broadcasts against a slice of ``gumbels``.
    gumbels : standard Gumbel draws, one per category 0 … M-1 along dimension 0.
    temperature : τ >= 0, dimensionless; at 0 the argmax comes back.

    Returns the relaxed counts, of the shape of ``gumbels[0]``.

    >>> from_gumbels(torch.tensor(1.0), torch.zeros(4), 1.0)
    tensor(0.9375)

    Source: Algorithm 2, Eqs. (23), (24) with the factor m, (27).
    """
    rate = torch.as_tensor(rate, dtype=gumbels.dtype, device=gumbels.device).expand(gumbels.shape[1:])
    return expected_index(soft_one_hot(poisson_logits(rate, gumbels.shape[0]), gumbels, temperature))


def standard_gumbels(shape: torch.Size, like: Tensor) -> Tensor:
    """Gumbel(0, 1) noise -ln E with E ~ Exp(1), in float32 at least: in half precision, E may be exactly 0."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.empty(shape, dtype=dtype, device=like.device).exponential_().log_().neg_()


class GumbelSoftmaxLaw(RelaxedCount):
    """What every Gumbel-softmax law shares; a subclass gives ``_logits`` (categories first), ``num_categories``, ``hard``."""

    temperature: Tensor
    hard: bool
    num_categories: int
    _logits: Tensor

    def _pmf(self, moment: str) -> Float[Tensor, "categories *batch"]:
        """The truncated pmf, which the hard choice follows exactly at every τ; refused where the soft law differs from it."""
        if not self.hard and bool((self.temperature > 0).any()):
            raise NotImplementedError(
                f"the {moment} of a Gumbel-softmax count has no closed form for temperature > 0; "
                "average rsample, or use hard=True"
            )
        return torch.softmax(self._logits, dim=0)

    @property
    def mean(self) -> Float[Tensor, "*batch"]:
        return expected_index(self._pmf("mean"))

    @property
    def variance(self) -> Float[Tensor, "*batch"]:
        pmf = self._pmf("variance")
        m = torch.arange(pmf.shape[0], dtype=pmf.dtype, device=pmf.device).view(-1, *([1] * (pmf.dim() - 1)))
        return ((m - expected_index(pmf)).square() * pmf).sum(dim=0)

    def _scores(self, sample_shape) -> tuple[Tensor, Tensor]:
        """(logits, Gumbel noise), categories first, broadcastable to (M, *sample_shape, *batch)."""
        shape = torch.Size((self.num_categories, *self._extended_shape(torch.Size(sample_shape))))
        logits = self._logits
        padding = [1] * (len(shape) - logits.dim())
        return logits.reshape(self.num_categories, *padding, *logits.shape[1:]), standard_gumbels(shape, logits)

    def rsample_simplex(self, sample_shape=()) -> Float[Tensor, "... categories"]:
        """The soft one-hot vectors themselves, shape ``(*sample_shape, *batch, M)``; M-fold memory."""
        logits, noise = self._scores(sample_shape)
        return soft_one_hot(logits, noise, self.temperature).movedim(0, -1).to(logits.dtype)

    @staticmethod
    def aggregate(soft: Float[Tensor, "... categories"]) -> Float[Tensor, "..."]:
        """The relaxed count Σ_m m·soft_m of soft one-hot vectors (Eq. 24 with its factor m)."""
        return expected_index(soft.movedim(-1, 0))

    def rsample(self, sample_shape=()) -> Float[Tensor, "..."]:
        """Relaxed counts of shape ``(*sample_shape, *batch)``; gradients reach the parameters through the simplex."""
        logits, noise = self._scores(sample_shape)
        soft = expected_index(soft_one_hot(logits, noise, self.temperature))
        if self.hard:
            soft = (logits + noise).argmax(dim=0).to(soft) + (soft - soft.detach())
        return soft.to(logits.dtype)


class GSMPoisson(GumbelSoftmaxLaw, RelaxedPoisson):
    """Poisson counts relaxed by Gumbel-softmax over the categories 0 … M-1.

    z = Σ_m m·softmax((ln π_m + g_m)/τ)_m. Sampled in blocks that keep only z and dz/dλ = Var_w(m)/(τλ).

    Parameters
    ----------
    rate, log_rate : exactly one; λ >= 0 in counts per window, shape ``(*batch)``, or ln λ. Gradients reach it.
    temperature : τ >= 0, dimensionless, float or broadcasting tensor; no gradient. Integer counts at 0.
    num_categories : M; None takes :func:`hitchhiker.truncation.num_categories` at the largest rate with 10⁻⁶ of the
        mass left out.
    hard : forward the argmax, keep the relaxed derivative.
    validate_args : False skips the checks.

    ``mean`` and ``variance`` of the relaxed law have no closed form: ``NotImplementedError`` unless τ = 0 or ``hard``,
    where they are those of the truncated Poisson law. The argmax follows that law exactly at every τ.

    >>> _ = torch.manual_seed(0)
    >>> hard = GSMPoisson(rate=torch.tensor(4.0), temperature=0.5, hard=True)
    >>> soft = GSMPoisson(rate=torch.tensor(4.0), temperature=0.5)
    >>> n, z = hard.rsample((100_000,)), soft.rsample((100_000,))
    >>> print(f"hard: mean {hard.mean:.1f}, sampled {n.mean():.1f}; variance {hard.variance:.1f}, sampled {n.var():.1f}")
    hard: mean 4.0, sampled 4.0; variance 4.0, sampled 4.0
    >>> print(f"soft: sampled mean {z.mean():.1f}, variance {z.var():.1f}")
    soft: sampled mean 4.0, variance 2.2

    Source: Algorithm 2, Eqs. (20)–(27).
    """

    def __init__(
        self,
        rate: Float[Tensor, "*#batch"] | float | None = None,
        log_rate: Float[Tensor, "*#batch"] | float | None = None,
        temperature: Float[Tensor, "*#batch"] | float = 0.1,
        num_categories: int | None = None,
        hard: bool = False,
        validate_args: bool | None = None,
    ):
        require_count("num_categories", num_categories, optional=True)
        self._num_categories = num_categories
        self._enough: int | None = None
        self.hard = hard
        super().__init__(rate, log_rate, temperature, validate_args)

    def _arguments(self) -> dict[str, Any]:
        return super()._arguments() | {"num_categories": self._num_categories, "hard": self.hard}

    @property
    def num_categories(self) -> int:  # type: ignore[override]
        """M: the categories are 0 … M-1."""
        if self._num_categories is not None:
            return self._num_categories
        if self._enough is None:  # not an argument: a copy with another rate must choose again
            if not readable(self.parameter, self.temperature):
                raise ValueError("num_categories must be given under torch.compile and torch.func, got None")
            if self.parameter.numel() == 0:
                return 1
            top = float(self.parameter.detach().max())
            self._enough = truncation.num_categories(
                math.exp(top) if self.is_log else top, float(self.temperature.max()), tail=1e-6
            )
        return self._enough

    @property
    def _logits(self) -> Float[Tensor, "categories *batch"]:  # type: ignore[override]
        return poisson_logits(self.parameter, self.num_categories, log=self.is_log)

    def rsample(self, sample_shape=()) -> Float[Tensor, "..."]:
        """Relaxed counts of shape ``(*sample_shape, *batch)``, reparametrised: gradients reach the rate."""
        parameter = self.parameter.expand(self._extended_shape(torch.Size(sample_shape)))
        return operators.gumbel_softmax(parameter, self.temperature, self.num_categories, self.is_log, self.hard)


class GumbelSoftmaxCount(GumbelSoftmaxLaw):
    """Any pmf on 0, 1, …, M-1, relaxed by Gumbel-softmax.

    Parameters
    ----------
    log_pmf : shape ``(*batch, M)``, unnormalised log-probabilities (nats), -inf for impossible counts. Gradients reach it.
    temperature : τ >= 0, dimensionless; a float or a tensor that broadcasts with ``*batch``.
    hard : forward the argmax, keep the relaxed derivative.
    validate_args : False skips the checks.

    ``sample`` draws from the pmf itself; ``log_prob`` is its normalised log-probability at integer counts;
    ``mean`` and ``variance`` exist at τ = 0 or with ``hard`` only (``NotImplementedError`` otherwise).

    >>> _ = torch.manual_seed(0)
    >>> q = GumbelSoftmaxCount(torch.tensor([0.2, 0.5, 0.3]).log(), temperature=0.3, hard=True)
    >>> z = q.rsample((100_000,))
    >>> print(f"mean {q.mean:.2f}, sampled {z.mean():.2f}; variance {q.variance:.2f}, sampled {z.var():.2f}")
    mean 1.10, sampled 1.10; variance 0.49, sampled 0.49

    Source: Eqs. (22)–(27), H.3 method 2.
    """

    arg_constraints = {"log_pmf": constraints.independent(constraints.real, 1)}  # noqa: RUF012

    def __init__(
        self,
        log_pmf: Float[Tensor, "*#batch categories"],
        temperature: Float[Tensor, "*#batch"] | float = 0.1,
        hard: bool = False,
        validate_args: bool | None = None,
    ):
        validate = validate_args is not False
        log_pmf = as_float_tensor("log_pmf", log_pmf)
        if log_pmf.dim() == 0 or log_pmf.shape[-1] == 0:
            raise ValueError(f"log_pmf must have shape (*batch, M) with M >= 1, got {tuple(log_pmf.shape)}")
        if validate:
            require("log_pmf", log_pmf, lambda x: x < torch.inf, "a log-probability (finite or -inf)")
            require("log_pmf", log_pmf.amax(-1), lambda x: x > -torch.inf, "finite for at least one count in every row")
        self.temperature = check_temperature(temperature, log_pmf.detach(), validate)
        shape = common_shape(log_pmf=log_pmf[..., 0], temperature=self.temperature)
        self.log_pmf = log_pmf.expand(*shape, log_pmf.shape[-1])
        self.hard = hard
        super().__init__(shape, validate_args=False)
        self._validate_args = validate

    def _arguments(self) -> dict[str, Any]:
        return {
            "log_pmf": self.log_pmf, "temperature": self.temperature, "hard": self.hard, "validate_args": self._validate_args,
        }  # fmt: skip

    def expand(self, batch_shape, _instance=None) -> Self:
        shape = torch.Size(batch_shape)
        law = self.with_parameters(
            log_pmf=self.log_pmf.expand(*shape, self.num_categories), temperature=self.temperature.expand(shape)
        )
        law._validate_args = self._validate_args
        return law

    @property
    def num_categories(self) -> int:  # type: ignore[override]
        """M: the categories are 0 … M-1."""
        return self.log_pmf.shape[-1]

    @property
    def _logits(self) -> Tensor:  # type: ignore[override]
        return self.log_pmf.movedim(-1, 0)

    def sample(self, sample_shape=()) -> Float[Tensor, "..."]:
        """Integer counts (as floats) from the pmf itself."""
        shape = self._extended_shape(torch.Size(sample_shape))
        if 0 in shape:  # multinomial refuses to draw nothing
            return self.log_pmf.new_zeros(shape)
        with torch.no_grad():
            return (
                Categorical(logits=self.log_pmf, validate_args=False).sample(torch.Size(sample_shape)).to(self.log_pmf)
            )

    def log_prob(self, value: Real[Tensor, "..."] | float) -> Float[Tensor, "..."]:
        """Normalised log-probability (nats) of whole counts; -inf beyond M-1. Real counts are a ``ValueError``."""
        value = as_float_tensor("value", value, like=self.log_pmf)
        if self._validate_args:
            common_shape(value=value, log_pmf=self.log_pmf[..., 0])
            require("value", value, lambda x: (x >= 0) & (x == x.floor()), "whole and >= 0")
        index = value.long()
        table = torch.log_softmax(self.log_pmf, dim=-1)
        inside = (index >= 0) & (index < self.num_categories)
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        table = table.expand(*shape, self.num_categories)
        found = table.gather(-1, torch.where(inside, index, 0).expand(shape).unsqueeze(-1)).squeeze(-1)
        return torch.where(inside, found, -torch.inf)
