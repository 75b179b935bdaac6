"""Conway–Maxwell–Poisson counts, less (ν > 1) or more (ν < 1) spread than Poisson ones: exact, and by Gumbel-softmax.

The pmf λ^m / (m!)^ν / Z has no closed normaliser.  Here Z is a sum over a stretch of counts around the mode, wide enough
that what is left out is below float64 resolution; a bound on it is reported as ``lost_mass``.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Self

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, constraints, register_kl

from hitchhiker.checks import (
    as_float_tensor,
    as_float_tensors,
    common_shape,
    finite_nonnegative,
    readable,
    require,
    require_count,
)
from hitchhiker.relaxations.common import check_temperature
from hitchhiker.relaxations.gumbel_softmax import GumbelSoftmaxLaw

#: counts summed over for one parameter pair, at most
MAX_WIDTH = 1 << 20
#: the pmf is followed until it has fallen by e^-DEPTH from its mode
DEPTH = 44.0


def com_logits(
    rate: Float[Tensor, "*#shape"], nu: Float[Tensor, "*#shape"], counts: Float[Tensor, "*#shape"]
) -> Float[Tensor, "*#shape"]:
    """m ln λ - ν ln m! at the given counts (Eq. 85), in float64; arguments broadcast. At λ = 0 only m = 0 is possible.

    >>> com_logits(torch.tensor(2.0), torch.tensor(2.0), torch.arange(3.0))
    tensor([0.0000, 0.6931, 0.0000], dtype=torch.float64)
    """
    counts, possible = counts.double(), rate > 0
    log_rate = torch.where(possible, rate, 1.0).double().log()
    logits = counts * log_rate - nu.double() * torch.lgamma(counts + 1)
    return torch.where(possible | (counts == 0), logits, -torch.inf)


class _Stretch(NamedTuple):
    """Counts ``low … low + width - 1`` hold all of the mass but ``lost``."""

    low: Tensor
    width: int
    lost: Tensor


def _stretch(rate: Tensor, nu: Tensor, depth: float = DEPTH) -> _Stretch:
    """The counts around the mode where the pmf is above e^-depth of its largest value, and a bound on the rest.

    Beyond them the pmf falls at least geometrically (its logarithm is concave), which gives the bound.
    """
    rate, nu = rate.detach().double(), nu.detach().double()
    mode = torch.where(nu > 0, (rate.log() / nu).exp(), 0.0).floor()
    require("rate ** (1 / nu), near the mean,", mode, lambda x: x < 1e15, "below 1e15 for the exact law")
    peak = com_logits(rate, nu, mode)

    def deep(m: Tensor) -> Tensor:
        return com_logits(rate, nu, m) < peak - depth

    def reach(sign: int) -> Tensor:
        """Distance from the mode at which the pmf is deep enough, at most a quarter too far."""
        step = torch.full_like(mode, 4.0)
        while not bool((found := deep(torch.clamp(mode + sign * step, min=0)) | (mode + sign * step < 0)).all()):
            step = torch.where(found, step, 2 * step)
            require("rate", step, lambda x: x < 1e15, "such that the pmf falls off within 1e15 counts")
        for _ in range(3):
            shorter = (0.8 * step).ceil()
            step = torch.where(deep(torch.clamp(mode + sign * shorter, min=0)), shorter, step)
        return step

    low, high = (mode - reach(-1)).clamp(min=0), mode + reach(1)
    widest = float((high - low).max()) + 1 if mode.numel() else 1.0
    if widest > MAX_WIDTH:
        worst = int((high - low).argmax())
        raise ValueError(
            f"rate and nu must need at most {MAX_WIDTH} counts around the mode, got {widest:.3g} at "
            f"rate {rate.flatten()[worst]:g}, nu {nu.flatten()[worst]:g}; the spread is about sqrt(rate^(1/nu)/nu)"
        )
    width = int(widest)
    z = torch.logsumexp(com_logits(rate, nu, _counts(low, width)), dim=0)
    above, below = low + width, (low - 1).clamp(min=0)
    fall_above, fall_below = rate / (above + 1) ** nu, torch.where(rate > 0, below**nu / rate, 0.0)
    tail = (com_logits(rate, nu, above) - z).exp() / (1 - fall_above)
    head = torch.where(low > 0, (com_logits(rate, nu, below) - z).exp() / (1 - fall_below), 0.0)
    return _Stretch(low, width, tail + head)


def _counts(low: Float[Tensor, "*batch"], width: int) -> Float[Tensor, "counts *batch"]:
    return low + torch.arange(width, dtype=low.dtype, device=low.device).view(-1, *([1] * low.dim()))


def _checked_pair(rate, nu, validate: bool) -> tuple[Tensor, Tensor]:
    rate, nu = as_float_tensors(rate=rate, nu=nu)
    if validate:
        require("rate", rate, finite_nonnegative, ">= 0 and finite")
        require("nu", nu, finite_nonnegative, ">= 0 and finite")
        common_shape(rate=rate, nu=nu)
        require(
            "rate",
            torch.where(nu > 0, 0.0, rate),
            lambda x: x < 1,
            "< 1 where nu = 0 (the geometric law; otherwise the pmf cannot be normalised)",
        )
    return rate, nu


class ConwayMaxwellPoisson(Distribution):
    """The Conway–Maxwell–Poisson law itself: P(m) = λ^m / (m!)^ν / Z(λ, ν) on 0, 1, 2, …

    ν = 1 is Poisson(λ), ν = 0 geometric, ν → ∞ Bernoulli(λ/(1 + λ)). λ is not the mean, which is near λ^{1/ν}, and 1/ν is the
    Fano factor only asymptotically (λ = 100, ν = 2: mean 9.7467, Fano 0.513).

    Parameters
    ----------
    rate : λ >= 0, shape ``(*batch)``, finite; λ < 1 where ν = 0. Gradients reach it (0 at λ = 0).
    nu : ν >= 0, dimensionless, broadcasts with ``rate``. Gradients reach it.
    validate_args : False skips the checks.

    ``mean``, ``variance``, ``log_prob``, ``entropy`` and the KL divergence between two such laws are sums over the counts
    around the mode, differentiable in both parameters; what is left out is bounded by :attr:`lost_mass` (below 10⁻¹⁵).
    ``sample`` inverts the cumulative distribution; there is no ``rsample``, use :class:`GSMConwayMaxwellPoisson`.
    How far the sums reach is read off the parameters, so ``torch.compile`` and ``torch.func.vmap`` do not follow.

    Raises ``ValueError`` for parameters outside these domains, and when more than 2²⁰ counts would be needed: the stretch is
    some 20·√(λ^{1/ν}/ν) counts wide, so λ = 10⁶ is within reach for ν >= 0.7. All elements share the widest.

    >>> _ = torch.manual_seed(0)
    >>> q = ConwayMaxwellPoisson(rate=torch.tensor(100.0), nu=torch.tensor(2.0))
    >>> n = q.sample((200_000,))
    >>> print(f"mean {q.mean:.2f}, sampled {n.mean():.2f}; variance {q.variance:.1f}, sampled {n.var():.1f}")
    mean 9.75, sampled 9.75; variance 5.0, sampled 5.0

    Source: Eq. (84).
    """

    arg_constraints = {"rate": constraints.nonnegative, "nu": constraints.nonnegative}  # noqa: RUF012
    support = constraints.nonnegative_integer
    has_rsample = False

    def __init__(
        self,
        rate: Float[Tensor, "*#batch"] | float,
        nu: Float[Tensor, "*#batch"] | float = 1.0,
        validate_args: bool | None = None,
    ):
        validate = validate_args is not False
        rate, nu = _checked_pair(rate, nu, validate)
        shape = common_shape(rate=rate, nu=nu)
        self._given = {"rate": rate, "nu": nu}
        self.rate, self.nu = rate.expand(shape), nu.expand(shape)
        self._found: _Stretch | None = None
        super().__init__(shape, validate_args=False)
        self._validate_args = validate
        if validate and readable(rate, nu):
            _ = self._range  # a law out of reach is refused here, not at its first use

    def expand(self, batch_shape, _instance=None) -> Self:
        """The same law with its parameters expanded to ``batch_shape``."""
        shape = torch.Size(batch_shape)
        law = type(self)(self.rate.expand(shape), self.nu.expand(shape), validate_args=False)
        law._validate_args = self._validate_args
        return law

    def __repr__(self) -> str:
        shown = (f"{t.item():g}" if t.dim() == 0 else str(tuple(t.shape)) for t in self._given.values())
        return "{}(rate={}, nu={})".format(type(self).__name__, *shown)

    @property
    def _range(self) -> _Stretch:
        if self._found is None:
            self._found = _stretch(self.rate, self.nu)
        return self._found

    @property
    def lost_mass(self) -> Float[Tensor, "*batch"]:
        """A bound on the probability of all counts that the sums leave out."""
        return self._range.lost.to(self.rate.dtype)

    def _table(self) -> tuple[Float[Tensor, "counts *batch"], Float[Tensor, "counts *batch"]]:
        """(counts, log-pmf less that of the lowest count) over the stretch, float64."""
        counts = _counts(self._range.low, self._range.width)
        possible = self.rate > 0
        # summed ratios: m ln λ and ln m! are 10⁷ at λ = 10⁶, and their difference would have lost seven digits
        ratios = torch.where(possible, self.rate, 1.0).double().log() - self.nu.double() * counts[1:].log()
        logits = torch.cat([torch.zeros_like(counts[:1]), ratios]).cumsum(dim=0)
        return counts, torch.where(possible | (counts == 0), logits, -torch.inf)

    def _log_normalizer(self) -> Float[Tensor, "*batch"]:
        lowest = com_logits(self.rate, self.nu, self._range.low.unsqueeze(0))[0]
        return lowest + torch.logsumexp(self._table()[1], dim=0)

    @property
    def log_normalizer(self) -> Float[Tensor, "*batch"]:
        """ln Z(λ, ν) = ln Σ_m λ^m/(m!)^ν, nats."""
        return self._log_normalizer().to(self.rate.dtype)

    def _central(self) -> tuple[Tensor, Tensor, Tensor]:
        counts, logits = self._table()
        pmf = torch.softmax(logits, dim=0)
        return counts, pmf, (pmf * counts).sum(dim=0)

    @property
    def mean(self) -> Float[Tensor, "*batch"]:
        """E N = d ln Z/d ln λ, counts."""
        return self._central()[2].to(self.rate.dtype)

    @property
    def variance(self) -> Float[Tensor, "*batch"]:
        """Var N, counts²."""
        counts, pmf, mean = self._central()
        return (pmf * (counts - mean).square()).sum(dim=0).to(self.rate.dtype)

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """value ln λ - ν ln Γ(value + 1) - ln Z in nats; real ``value >= 0`` are allowed."""
        value = as_float_tensor("value", value, like=self.rate)
        if self._validate_args:
            common_shape(value=value, rate=self.rate)
            require("value", value, lambda x: x >= 0, ">= 0 (real values are allowed)")
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        logits = com_logits(self.rate.expand(shape), self.nu.expand(shape), value.expand(1, *shape))[0]
        return (logits - self._log_normalizer()).to(self.rate.dtype)

    def entropy(self) -> Float[Tensor, "*batch"]:
        """-Σ P ln P, nats."""
        logits = torch.log_softmax(self._table()[1], dim=0)
        return -(logits.exp() * torch.where(logits > -torch.inf, logits, 0.0)).sum(dim=0).to(self.rate.dtype)

    def sample(self, sample_shape=()) -> Float[Tensor, "..."]:
        """Whole counts (as floats), by inversion."""
        sample_shape = torch.Size(sample_shape)
        with torch.no_grad():
            _, logits = self._table()
            below = torch.softmax(logits, dim=0).cumsum(dim=0).movedim(0, -1).contiguous()
            draws = torch.rand((*self.batch_shape, sample_shape.numel()), dtype=below.dtype, device=below.device)
            index = torch.searchsorted(below, draws * below[..., -1:], right=True).clamp(max=below.shape[-1] - 1)
            counts = self._range.low.unsqueeze(-1) + index
            return counts.movedim(-1, 0).reshape(*sample_shape, *self.batch_shape).to(self.rate.dtype)


class GSMConwayMaxwellPoisson(GumbelSoftmaxLaw):
    """Conway–Maxwell–Poisson counts relaxed by Gumbel-softmax over the categories 0 … M-1.

    The softmax does not need Z: the logits are m ln λ - ν ln m!.

    Parameters
    ----------
    rate, nu : as in :class:`ConwayMaxwellPoisson`. Gradients reach both.
    temperature : τ >= 0, dimensionless, float or broadcasting tensor; no gradient. Integer counts at 0.
    num_categories : M; None goes on until the (beyond τ = 1, tempered) pmf has fallen by a factor of 10⁹ from its mode.
        Memory is M numbers a sample, so this is for means up to some thousands.
    hard : forward the argmax, keep the relaxed derivative.
    validate_args : False skips the checks.

    ``sample`` and ``log_prob`` are those of the exact law. ``mean`` and ``variance`` of the relaxed law have no closed form:
    ``NotImplementedError`` unless τ = 0 or ``hard``, where they are those of the truncated law. The argmax follows that
    law exactly at every τ.

    Raises ``ValueError`` as :class:`ConwayMaxwellPoisson`, and for a negative temperature. Under ``torch.compile`` give
    ``num_categories``; instead of ``torch.func.vmap``, which this sampler does not follow, give a batch of parameters.

    >>> _ = torch.manual_seed(0)
    >>> hard = GSMConwayMaxwellPoisson(rate=20.0, nu=2.0, temperature=0.3, hard=True)
    >>> soft = GSMConwayMaxwellPoisson(rate=20.0, nu=2.0, temperature=0.3)
    >>> n, z = hard.rsample((200_000,)), soft.rsample((200_000,))
    >>> print(f"hard: mean {hard.mean:.1f}, sampled {n.mean():.1f}; variance {hard.variance:.0f}, sampled {n.var():.0f}")
    hard: mean 4.2, sampled 4.2; variance 2, sampled 2
    >>> print(f"soft: sampled mean {z.mean():.1f}, variance {z.var():.0f}")
    soft: sampled mean 4.2, variance 2

    Source: Eqs. (84), (85), Algorithm 2.
    """

    arg_constraints = {"rate": constraints.nonnegative, "nu": constraints.nonnegative}  # noqa: RUF012
    _tensors = ("rate", "nu", "temperature")

    def __init__(
        self,
        rate: Float[Tensor, "*#batch"] | float,
        nu: Float[Tensor, "*#batch"] | float = 1.0,
        temperature: Float[Tensor, "*#batch"] | float = 0.1,
        num_categories: int | None = None,
        hard: bool = False,
        validate_args: bool | None = None,
    ):
        require_count("num_categories", num_categories, optional=True)
        validate = validate_args is not False
        rate, nu = _checked_pair(rate, nu, validate)
        self.temperature = check_temperature(temperature, rate.detach(), validate)
        shape = common_shape(rate=rate, nu=nu, temperature=self.temperature)
        self._given = {"rate": rate, "nu": nu}
        self.rate, self.nu = rate.expand(shape), nu.expand(shape)
        self._num_categories = num_categories
        self._enough: int | None = None
        self.hard = hard
        Distribution.__init__(self, shape, validate_args=False)
        self._validate_args = validate

    def _arguments(self) -> dict[str, Any]:
        return self._given | {
            "temperature": self.temperature, "num_categories": self._num_categories,
            "hard": self.hard, "validate_args": self._validate_args,
        }  # fmt: skip

    @property
    def exact(self) -> ConwayMaxwellPoisson:
        """The law that is relaxed."""
        law = ConwayMaxwellPoisson(self.rate, self.nu, validate_args=False)
        law._validate_args = self._validate_args
        return law

    @property
    def num_categories(self) -> int:  # type: ignore[override]
        """M: the categories are 0 … M-1."""
        if self._num_categories is not None:
            return self._num_categories
        if self._enough is None:
            if not readable(self.rate, self.nu, self.temperature):
                raise ValueError("num_categories must be given under torch.compile and torch.func, got None")
            if self.rate.numel() == 0:
                return 2
            # the tempered law π^{1/τ} is again Conway–Maxwell–Poisson
            heat = self.temperature.double().clamp(min=1.0)
            stretch = _stretch(
                self.rate.detach().double() ** (1 / heat), self.nu.detach().double() / heat, math.log(1e9)
            )
            self._enough = max(2, int(stretch.low.max()) + stretch.width)
        return self._enough

    @property
    def _logits(self) -> Float[Tensor, "categories *batch"]:  # type: ignore[override]
        m = torch.arange(self.num_categories, dtype=torch.float64, device=self.rate.device)
        logits = com_logits(self.rate, self.nu, m.view(-1, *([1] * self.rate.dim())))
        return (logits - logits.detach().amax(dim=0)).to(self.rate.dtype)

    def sample(self, sample_shape=()) -> Float[Tensor, "..."]:
        """Whole counts (as floats) from the exact law."""
        return self.exact.sample(sample_shape)

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The exact law's log-pmf (nats), extended to real ``value >= 0``; not the density of the relaxed law."""
        return self.exact.log_prob(value)


@register_kl(ConwayMaxwellPoisson, ConwayMaxwellPoisson)
def _kl_exact(p: ConwayMaxwellPoisson, q: ConwayMaxwellPoisson) -> Tensor:
    """Σ P (ln P - ln Q) over the counts that hold p's mass, nats."""
    shape = common_shape(p=p.rate, q=q.rate)
    p, q = p.expand(shape), q.expand(shape)
    counts, logits = p._table()
    mine = torch.log_softmax(logits, dim=0)
    other = com_logits(q.rate, q.nu, counts) - q._log_normalizer()
    possible = mine > -torch.inf
    gap = torch.where(possible, mine, 0.0) - torch.where(possible, other, 0.0)
    return (mine.exp() * gap).sum(dim=0).to(p.rate.dtype)


@register_kl(GSMConwayMaxwellPoisson, GSMConwayMaxwellPoisson)
@register_kl(GSMConwayMaxwellPoisson, ConwayMaxwellPoisson)
@register_kl(ConwayMaxwellPoisson, GSMConwayMaxwellPoisson)
def _kl_relaxed(p, q) -> Tensor:
    """KL between the exact laws that p and q relax."""
    return _kl_exact(*(law.exact if isinstance(law, GSMConwayMaxwellPoisson) else law for law in (p, q)))
