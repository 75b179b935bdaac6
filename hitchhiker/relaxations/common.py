"""What all relaxed Poisson laws share: one rate, one temperature, exact counts, the Poisson log-pmf and its KL."""

from __future__ import annotations

from typing import Any, Self

import torch
from jaxtyping import Float, Real
from torch import Tensor
from torch.distributions import Distribution, Poisson, constraints, register_kl

from hitchhiker.checks import as_float_tensor, as_float_tensors, common_shape, finite_nonnegative, require


class RelaxedCount(Distribution):
    """A law on [0, ∞) that relaxes a count; subclasses list their constructor's arguments in ``_arguments``.

    ``_tensors`` names the tensor arguments that broadcast against each other; ``expand`` and
    ``with_parameters`` rebuild the law from them, so options such as ``hard`` survive.
    """

    support = constraints.nonnegative
    has_rsample = True
    _tensors: tuple[str, ...] = ()

    def _arguments(self) -> dict[str, Any]:
        raise NotImplementedError

    def with_parameters(self, **tensors: Tensor) -> Self:
        """The same law with some tensor arguments replaced (not validated again)."""
        return type(self)(**{**self._arguments(), **tensors, "validate_args": False})

    def expand(self, batch_shape, _instance=None) -> Self:
        """The same law with its parameters expanded to ``batch_shape``; every option is kept."""
        shape = torch.Size(batch_shape)
        arguments = self._arguments()
        law = self.with_parameters(
            **{name: arguments[name].expand(shape) for name in self._tensors if isinstance(arguments[name], Tensor)}
        )
        law._validate_args = self._validate_args
        return law

    def __repr__(self) -> str:
        parts = []
        for name, value in self._arguments().items():
            if name == "validate_args" or value is None or value is False:
                continue
            if isinstance(value, Tensor):
                value = (
                    f"{value.item():g}"
                    if value.dim() == 0 and not torch.compiler.is_compiling()
                    else tuple(value.shape)
                )
            parts.append(f"{name}={getattr(value, 'name', value)}")
        return f"{type(self).__name__}({', '.join(parts)})"


def check_temperature(temperature: Tensor | float, like: Tensor, validate: bool) -> Tensor:
    """The temperature as a tensor of ``like``'s dtype and device, without gradient, refused unless finite and >= 0."""
    tensor = as_float_tensor("temperature", temperature, like=like).detach()
    if validate:
        require("temperature", tensor, finite_nonnegative, ">= 0 and finite")
    return tensor.to(like)


class RateLaw(RelaxedCount):
    """A relaxed count with one rate: exactly one of ``rate`` (λ >= 0, counts per window) and ``log_rate`` (ln λ) is given,
    and gradients reach that one. ``others`` are further tensors of the law, which broadcast with the rate.
    """

    arg_constraints = {"rate": constraints.nonnegative, "log_rate": constraints.real}  # noqa: RUF012
    _tensors: tuple[str, ...] = ("rate", "log_rate", "temperature")

    def __init__(self, rate, log_rate, temperature, validate_args: bool | None, **others: Tensor):
        if (rate is None) == (log_rate is None):
            raise ValueError(
                "exactly one of rate and log_rate must be given, got " + ("both" if rate is not None else "neither")
            )
        validate = validate_args is not False
        name = "rate" if log_rate is None else "log_rate"
        parameter = as_float_tensor(name, rate if log_rate is None else log_rate)
        if validate and log_rate is None:
            require("rate", parameter, finite_nonnegative, ">= 0 and finite")
        elif validate:
            require(
                "log_rate",
                parameter,
                lambda u: u.exp() < torch.inf,
                "a real number (or -inf) with a finite exponential",
            )
        self.temperature = check_temperature(temperature, parameter.detach(), validate)
        shape = common_shape(**{name: parameter, "temperature": self.temperature}, **others)
        #: the tensor that gradients reach: the rate or the log-rate, whichever was given
        self.parameter = parameter.expand(shape)
        self.is_log = log_rate is not None
        super().__init__(shape, validate_args=False)
        self._validate_args = validate

    def _arguments(self) -> dict[str, Any]:
        return {
            "rate": None if self.is_log else self.parameter,
            "log_rate": self.parameter if self.is_log else None,
            "temperature": self.temperature,
            "validate_args": self._validate_args,
        }

    # computed anew each time: a cached exp() would tie two backward passes to one graph
    @property
    def rate(self) -> Tensor:
        """λ, counts per window."""
        return self.parameter.exp() if self.is_log else self.parameter

    @property
    def log_rate(self) -> Tensor:
        """ln λ."""
        return self.parameter if self.is_log else self.parameter.log()

    def with_parameter(self, parameter: Tensor) -> Self:
        """The same law with another rate (or log-rate, whichever this law was built from)."""
        return self.with_parameters(**{"log_rate" if self.is_log else "rate": parameter})

    def above_zero(self) -> Self:
        """The same law with rates of 0 a trifle above it: there P(1) = λ has a slope, and its logarithm has none."""
        if self.is_log:
            return self
        trifle = max(1e-30, torch.finfo(self.parameter.dtype).tiny)
        return self.with_parameter(torch.where(self.parameter == 0, self.parameter + trifle, self.parameter))


class RelaxedPoisson(RateLaw):
    """Common part of :class:`EATPoisson` and :class:`GSMPoisson`: exact counts and log-pmf of the Poisson law."""

    def sample(self, sample_shape=()) -> Float[Tensor, "..."]:
        """Integer counts (as floats) from the true Poisson law, not from the relaxed one."""
        with torch.no_grad():
            return torch.poisson(self.rate.expand(self._extended_shape(torch.Size(sample_shape))))

    def log_prob(self, value: Real[Tensor, "..."] | float) -> Float[Tensor, "..."]:
        """ln Poisson(value; λ) in nats, extended to real ``value >= 0`` by the log-gamma function.

        At a relaxed (non-integer) value this is not the density of the relaxed law.
        """
        value, parameter = as_float_tensors(value=value, rate=self.parameter)
        if self._validate_args:
            common_shape(value=value, rate=parameter)
            require("value", value, finite_nonnegative, ">= 0 and finite (real values are allowed)")
        dtype = value.dtype
        # a small difference of large numbers: at a rate of a million float32 would be a third of a nat off
        wide = dtype if value.device.type == "mps" else torch.float64
        value, parameter = value.to(wide), parameter.to(wide)
        rate = parameter.exp() if self.is_log else parameter
        # 0 · ln 0 = 0 with slope 0: an empty count at rate 0 has probability one
        certain = (value == 0) & (rate == 0)
        safe = torch.where(certain, 0.0 if self.is_log else 1.0, parameter)
        return (value * (safe if self.is_log else safe.log()) - rate - torch.lgamma(value + 1)).to(dtype)


def poisson_kl(
    posterior_rate: Float[Tensor, "*#batch"] | float, prior_rate: Float[Tensor, "*#batch"] | float
) -> Float[Tensor, "*batch"]:
    """Kullback–Leibler divergence KL(Poisson(λ) ‖ Poisson(r)) = λ ln(λ/r) - λ + r, elementwise, in nats.

    Arguments are rates >= 0 (counts per window), broadcast against each other. Zero rates follow the limits: λ = 0
    gives r, r = 0 < λ gives inf. Near λ = r a series in (λ-r)/(λ+r) replaces the difference of large numbers, so
    that float32 keeps full relative accuracy. The slope at λ = 0, which is -inf in truth, is returned as 0: that of
    ln λ → -inf. A negative, infinite or NaN rate, or shapes that do not broadcast, raise ``ValueError``.

    >>> poisson_kl(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 3.0]))
    tensor([0.3069, 3.0000])

    Source: the closed-form KL term of the P-VAE's ELBO (Eq. 2).
    """
    q, r = as_float_tensors(posterior_rate=posterior_rate, prior_rate=prior_rate)
    for name, rate in (("posterior_rate", q), ("prior_rate", r)):
        require(name, rate, finite_nonnegative, ">= 0 and finite")
    shape = common_shape(posterior_rate=q, prior_rate=r)
    q, r = q.expand(shape), r.expand(shape)
    x = (q - r) / (q + r)
    near = x.abs() < 0.1
    # both branches see harmless values where the other one is taken, or their gradients would be NaN
    qn, rn = torch.where(near, q, 1.0), torch.where(near, r, 1.0)
    xn = (qn - rn) / (qn + rn)
    series = sum((xn ** (2 * j + 1) / (2 * j + 1) for j in range(8, 0, -1)), torch.zeros_like(xn))
    close = (qn - rn) * xn + 2 * qn * series
    silent, impossible = q == 0, (r == 0) & (q > 0)
    unused = near | silent | impossible
    qf, rf = torch.where(unused, 1.0, q), torch.where(unused, 1.0, r)
    far = qf * (qf / rf).log() - qf + rf
    return torch.where(silent, r, torch.where(impossible, torch.inf, torch.where(near, close, far)))


@register_kl(RelaxedPoisson, RelaxedPoisson)
@register_kl(RelaxedPoisson, Poisson)
@register_kl(Poisson, RelaxedPoisson)
def _kl_poisson(p, q) -> Tensor:
    """KL between the Poisson laws that p and q relax; the relaxed laws' own KL has no tractable form."""
    return poisson_kl(p.rate, q.rate)
