"""The two samplers as torch operators: opaque to ``torch.compile``, batched by ``torch.func.vmap``, first derivatives.

An operator returns (count, dz/dparameter). The backward pass multiplies by the stored derivative; noise is drawn
from torch's generator of the device, so ``torch.manual_seed`` fixes it.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from hitchhiker import indicators
from hitchhiker.kernels import window


def arrival_time(parameter: Tensor, temperature: Tensor, indicator: str, is_log: bool, hard: bool) -> Tensor:
    """EAT counts of the parameter's shape, differentiable in the parameter (λ, or ln λ with ``is_log``)."""
    return _WithSlope.apply(_arrival_time, parameter, temperature, indicator, is_log, hard)[0]


def gumbel_softmax(parameter: Tensor, temperature: Tensor, num_categories: int, is_log: bool, hard: bool) -> Tensor:
    """GSM counts of the parameter's shape, differentiable in the parameter (λ, or ln λ with ``is_log``)."""
    return _WithSlope.apply(_gumbel_softmax, parameter, temperature, num_categories, is_log, hard)[0]


class _WithSlope(torch.autograd.Function):
    """Runs an operator that returns (count, slope); backward is grad · slope."""

    generate_vmap_rule = True

    @staticmethod
    def forward(operator, parameter, temperature, *options):
        return operator(parameter, temperature, *options)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])
        ctx.num_options = len(inputs) - 3

    @staticmethod
    def backward(ctx, grad_count, _):
        (slope,) = ctx.saved_tensors
        return None, _FirstDerivativeOnly.apply(grad_count, slope), None, *([None] * ctx.num_options)


class _FirstDerivativeOnly(torch.autograd.Function):
    """grad · slope, which refuses to be differentiated: the slope's own derivative is not kept."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad, slope):
        return grad * slope

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, _):
        raise NotImplementedError(
            "a relaxed count has first derivatives only; for higher ones use num_arrivals=M, which autograd sees whole"
        )


@cache
def _kernels(device: str) -> ModuleType | None:
    """The fast kernels of a kind of device, or None where what they need is not installed (same law, plain path)."""
    try:
        if device == "cpu":
            from hitchhiker.kernels import compiled

            return compiled
        if device == "cuda":
            from hitchhiker.kernels import triton

            return triton
    except ImportError:
        pass
    return None


def kernels_for(parameter: Tensor, indicator: str | None = None) -> ModuleType | None:
    """The module whose ``arrival_time`` and ``gumbel_softmax`` serve this tensor, None for the plain path."""
    supported = (torch.float32, torch.float64) if parameter.device.type == "cpu" else (torch.float32,)
    kernels = _kernels(parameter.device.type) if parameter.dtype in supported else None
    if kernels is None or (indicator is not None and indicator not in kernels.CODES):
        return None
    return kernels


def working(x: Tensor) -> Tensor:
    """Half precision is computed in float32, logarithms and exponentials included."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _plain(sampler, parameter: Tensor, argument: Tensor, *options, is_log: bool) -> tuple[Tensor, Tensor]:
    """(count, dz/dparameter) by a sampler of :mod:`hitchhiker.kernels.window`."""
    count, slope = sampler(argument, *options)
    if not is_log:  # at λ = 0 no arrival ever comes and the derivative of every sample is 0
        slope = torch.where(parameter > 0, slope / parameter, 0.0)
    return count.to(parameter.dtype), slope.to(parameter.dtype)


@torch.library.custom_op("hitchhiker::arrival_time", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _arrival_time(
    parameter: Tensor, temperature: Tensor, indicator: str, is_log: bool, hard: bool
) -> tuple[Tensor, Tensor]:
    if (kernels := kernels_for(parameter, indicator)) is not None:
        half = indicators.get(indicator).half_width(parameter.dtype)
        return kernels.arrival_time(parameter, temperature, indicator, half, is_log, hard)
    rate = working(parameter).exp() if is_log else working(parameter)
    options = (temperature.to(rate.dtype), indicators.get(indicator), hard)
    return _plain(window.sample_arrival_time, parameter, rate, *options, is_log=is_log)


@torch.library.custom_op("hitchhiker::gumbel_softmax", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _gumbel_softmax(
    parameter: Tensor, temperature: Tensor, num_categories: int, is_log: bool, hard: bool
) -> tuple[Tensor, Tensor]:
    if (kernels := kernels_for(parameter)) is not None:
        return kernels.gumbel_softmax(parameter, temperature, num_categories, is_log, hard)
    log_rate = working(parameter) if is_log else working(parameter).log()
    options = (temperature.to(log_rate.dtype), num_categories, hard)
    return _plain(window.sample_gumbel_softmax, parameter, log_rate, *options, is_log=is_log)


def _outputs_like(parameter, temperature, *_):
    return torch.empty_like(parameter, memory_format=torch.contiguous_format), torch.empty_like(
        parameter, memory_format=torch.contiguous_format
    )


def _vmap_rule(operator):
    def rule(info, in_dims, parameter, temperature, *options):
        if info.randomness != "different":
            raise RuntimeError(f"vmap over a sampler needs randomness='different', got {info.randomness!r}")
        parameter = (
            parameter.movedim(in_dims[0], 0)
            if in_dims[0] is not None
            else parameter.expand(info.batch_size, *parameter.shape)
        )
        if in_dims[1] is not None:  # keep the batch first while the rest broadcasts from the right
            temperature = temperature.movedim(in_dims[1], 0)
            padding = [1] * (parameter.dim() - temperature.dim())
            temperature = temperature.reshape(info.batch_size, *padding, *temperature.shape[1:])
        return operator(parameter, temperature, *options), (0, 0)

    return rule


for _operator in (_arrival_time, _gumbel_softmax):
    _operator.register_fake(_outputs_like)
    _operator.register_vmap(_vmap_rule(_operator))
