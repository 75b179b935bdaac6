"""What crosses between the grader and a student's process: plain data as JSON, never pickle, never code from the student.

``code`` and ``at`` let a test pass a function in and read an expression's value; they do the same in a student's own
notebook, where nothing is crossed.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from typing import Any

import numpy as np

_DTYPES = {
    "bool",
    "uint8",
    "int8",
    "int16",
    "int32",
    "int64",
    "float16",
    "float32",
    "float64",
    "complex64",
    "complex128",
}
_NAMES = {"λ": "lam", "lambda": "lam", "lamda": "lam", "τ": "tau"}
MAX_BYTES = 64_000_000


class Code:
    """A function written down as text: callable here, and it can be passed to a student's function over there."""

    def __init__(self, source: str):
        self.source = source
        self._function: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._function is None:
            import sympy
            import torch

            import hitchhiker

            self._function = eval(  # the text comes from a test cell of ours
                self.source, {"torch": torch, "np": np, "math": math, "sp": sympy, "hh": hitchhiker}
            )
        return self._function(*args, **kwargs)


def code(source: str) -> Code:
    """A function from its text, such as ``code("lambda z: z**2")``; ``torch, np, math, sp, hh`` are in its scope."""
    return Code(source)


def at(expression: Any, **values: float) -> float:
    """The number that an expression has at these values, by the names of its symbols: ``at(expr, lam=2.0, tau=0.1)``.

    λ may be called ``lam`` or ``lambda`` and τ ``tau``, however the symbol itself is spelt.  A symbol left without a
    value is a ``ValueError``.

    >>> import sympy as sp
    >>> at(sp.Symbol("lambda") ** 2, lam=3.0)
    9.0
    """
    if hasattr(expression, "at"):
        return expression.at(**values)
    import sympy

    expression = sympy.sympify(expression) if not isinstance(expression, str) else _refuse(expression)
    known = {_NAMES.get(name, name): value for name, value in values.items()}
    symbols = {s: _NAMES.get(s.name, s.name) for s in expression.free_symbols}
    missing = sorted(name for name in symbols.values() if name not in known)
    if missing:
        raise ValueError(f"the expression also depends on {', '.join(missing)}")
    value = complex(expression.evalf(30, subs={s: known[name] for s, name in symbols.items()}))
    return value.real if value.imag == 0 else _refuse(value)


def _refuse(value: Any) -> Any:
    raise ValueError(f"a sympy expression with a real value was expected, got {type(value).__name__} {value}"[:200])


def encode(value: Any, refer: Callable[[Any], Any], depth: int = 0) -> Any:
    """A value as JSON; ``refer`` says how something that is not plain data is written."""
    if depth > 50:
        raise ValueError("the value is nested more than 50 deep")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Code):
        return {"code": value.source}
    if isinstance(value, int):
        return int(value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, float) and not isinstance(value, np.generic):
        return {"float": float.hex(value)}
    if isinstance(value, complex) and not isinstance(value, np.generic):
        return {"complex": [value.real.hex(), value.imag.hex()]}
    if isinstance(value, list | tuple | set | frozenset):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [encode(item, refer, depth + 1) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(part, refer, depth + 1) for part in pair] for pair in value.items()]}
    if isinstance(value, np.ndarray | np.generic) and value.dtype.name in _DTYPES:
        return _array(np.asarray(value), "scalar" if isinstance(value, np.generic) else "array")
    if type(value).__module__.partition(".")[0] == "torch":
        import torch

        if isinstance(value, torch.Tensor):
            plain = value.detach().cpu().resolve_conj().resolve_neg()
            if plain.dtype == torch.bfloat16:
                plain = plain.float()
            if plain.layout != torch.strided:
                plain = plain.to_dense()
            return {**_array(plain.numpy(), "tensor"), "dtype": str(value.dtype).removeprefix("torch.")}
    return refer(value)


def _array(value: np.ndarray, kind: str) -> dict[str, Any]:
    if value.nbytes > MAX_BYTES // 2:
        raise ValueError(f"the array is too large to hand over: shape {value.shape}, {value.nbytes / 1e6:.0f} MB")
    data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
    return {kind: data, "as": value.dtype.name, "shape": list(value.shape)}


def decode(tree: Any, resolve: Callable[[dict[str, Any]], Any]) -> Any:
    """The value that was written; ``resolve`` makes something of what is not plain data.  Bad data: ``ValueError``."""
    if not isinstance(tree, dict):
        if isinstance(tree, list):
            raise ValueError("no value is written so")
        return tree
    if "float" in tree:
        return float.fromhex(tree["float"])
    if "complex" in tree:
        return complex(*map(float.fromhex, tree["complex"]))
    if "list" in tree:
        return [decode(item, resolve) for item in tree["list"]]
    if "tuple" in tree:
        return tuple(decode(item, resolve) for item in tree["tuple"])
    if "dict" in tree:
        return {decode(key, resolve): decode(item, resolve) for key, item in tree["dict"]}
    if "code" in tree:
        return resolve(tree)
    for kind in ("array", "scalar", "tensor"):
        if kind in tree:
            if tree["as"] not in _DTYPES:
                raise ValueError(f"unknown dtype {tree['as']!r}")
            data = bytearray(base64.b64decode(tree[kind]))
            value = np.frombuffer(data, dtype=tree["as"]).reshape([int(n) for n in tree["shape"]])
            if kind == "tensor":
                import torch

                tensor = torch.from_numpy(value)
                dtype = getattr(torch, str(tree["dtype"]), None)
                return tensor.to(dtype) if isinstance(dtype, torch.dtype) else tensor
            return value if kind == "array" else value[()]
    return resolve(tree)
