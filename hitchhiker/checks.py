"""Argument checks shared by the module: a ``ValueError`` names the argument, the value and what is allowed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from numbers import Integral
from typing import TypeVar

import torch
from torch import Tensor

Entry = TypeVar("Entry")


def as_float_tensor(name: str, value: Tensor | float, like: Tensor | None = None) -> Tensor:
    """``value`` as a real floating tensor (integers become the default dtype); complex and boolean are refused."""
    if isinstance(value, Tensor):
        tensor = value
    else:
        try:
            # torch would take a Python float through float32, and a float64 law would be 10⁻⁸ off
            device = None if like is None else like.device
            if type(value) in (int, float):  # filled in place: a copy from the host would wait for a GPU
                tensor = torch.full((), value, dtype=torch.float64 if type(value) is float else None, device=device)
            else:
                tensor = torch.as_tensor(
                    value, dtype=torch.float64 if isinstance(value, float) else None, device=device
                )
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{name} must be a real number or tensor, got {value!r}") from error
        if tensor.is_floating_point():  # Python and numpy numbers follow torch's default, or the tensor beside them
            tensor = tensor.to(torch.get_default_dtype() if like is None else like.dtype)
    if tensor.dtype == torch.bool or tensor.is_complex():
        raise ValueError(f"{name} must be real, got dtype {tensor.dtype}; pass a floating tensor")
    if not tensor.is_floating_point():
        tensor = tensor.to(torch.get_default_dtype() if like is None else like.dtype)
    if like is not None and tensor.device != like.device and tensor.numel() != 1:
        raise ValueError(f"{name} must be on the device of the other parameters, {like.device}, got {tensor.device}")
    return tensor


def readable(*tensors: Tensor) -> bool:
    """Whether values may be looked at: not under torch.compile, inside torch.func, or while a CUDA graph is recorded."""
    if torch.compiler.is_compiling():
        return False
    if any(t.is_cuda for t in tensors) and torch.cuda.is_current_stream_capturing():
        return False
    return not any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in tensors)


def require(name: str, tensor: Tensor, holds: Callable[[Tensor], Tensor], domain: str) -> None:
    """Raise ``ValueError`` unless ``holds`` is true of every element (NaN never is)."""
    values = tensor.detach()
    if not readable(values) or values.numel() == 0:
        return
    good = holds(values)
    if bool(good.all()):
        return
    worst = values[~good].flatten()[0].item()
    where = tuple((~good).nonzero()[0].tolist())
    raise ValueError(f"{name} must be {domain}, got {worst:g}" + (f" at index {where}" if where else ""))


def finite_nonnegative(x: Tensor) -> Tensor:
    return (x >= 0) & (x < torch.inf)


def require_count(name: str, value: int | None, minimum: int = 1, optional: bool = False) -> None:
    """Raise ``ValueError`` unless ``value`` is an integer of at least ``minimum`` (or, if ``optional``, None)."""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, (int, Integral)) or value < minimum:
        raise ValueError(f"{name} must be a whole number >= {minimum}{' or None' if optional else ''}, got {value!r}")


def require_seed(name: str, seed: int) -> None:
    """Raise ``ValueError`` unless torch and JSON readers take the seed."""
    if abs(seed) >= 2**63:
        raise ValueError(f"{name} must be below 2^63, got {seed}")


def named(argument: str, name: str, registry: Mapping[str, Entry]) -> Entry:
    """The registry's entry of that name; ``ValueError`` with the known names."""
    if name not in registry:
        raise ValueError(f"{argument} must be one of {', '.join(registry)}, got {name!r}")
    return registry[name]


def common_shape(**tensors: Tensor) -> torch.Size:
    """The shape that the named tensors broadcast to; ``ValueError`` with their shapes if there is none."""
    try:
        return torch.broadcast_shapes(*(t.shape for t in tensors.values()))
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items())
        raise ValueError(f"{' and '.join(tensors)} must broadcast against each other, got shapes {shapes}") from None


def as_float_tensors(**values: Tensor | float) -> list[Tensor]:
    """The named values as real tensors of one floating dtype and device; plain numbers follow the tensors beside them."""
    given = [as_float_tensor(name, v) for name, v in values.items() if isinstance(v, Tensor)]
    like = next((t for t in given if t.dim()), given[0] if given else None)
    tensors = [as_float_tensor(name, v, like=like) for name, v in values.items()]
    # as in torch's own arithmetic, a scalar tensor does not widen a larger one
    dtype = reduce(torch.promote_types, [t.dtype for t in tensors if t.dim()] or [t.dtype for t in tensors])
    return [t.to(device=tensors[0].device if like is None else like.device, dtype=dtype) for t in tensors]
