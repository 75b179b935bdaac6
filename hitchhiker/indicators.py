"""Soft indicators: the functions that relax "did this arrival come before t = 1?".

An arrival at time ``t`` counts ``f((1 - t) / τ)`` instead of ``1[t < 1]`` (Eq. 19).  A new indicator is one
entry in :data:`REGISTRY` (or one call of :func:`register`); samplers, closed-form moments and the sympy
derivations read everything they need from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class SoftIndicator:
    """A soft indicator f: ℝ → [0, 1], non-decreasing, with f(u) + f(-u) = 1.

    Attributes
    ----------
    name : the name by which :func:`get` finds it.
    formula : f on its support as a sympy-readable string, in ``u`` or in ``w = (u + 1) / 2``.
    support : ``(low, high)``, dimensionless: f = 0 below, f = 1 above.
    deficit : A = ∫ f (1 - f) du, the variance lost per unit of temperature (dimensionless).
    roughness : B = ∫ f'(u)² du, the gradient noise per unit of 1/τ (dimensionless).
    smoothness : k if f is k times continuously differentiable (``math.inf`` for C^∞).
    """

    name: str
    formula: str
    support: tuple[float, float]
    deficit: float
    roughness: float
    smoothness: float
    _value: Callable[[Tensor], Tensor] = field(repr=False, compare=False)
    _slope: Callable[[Tensor], Tensor] = field(repr=False, compare=False)

    @property
    def is_compact(self) -> bool:
        """Whether the support is bounded, so that arrivals outside [1 - τ, 1 + τ] count exactly 0 or 1."""
        return math.isfinite(self.support[1])

    def __call__(self, u: Tensor | float) -> Tensor:
        """f(u), elementwise; ``u = (1 - t) / τ`` is dimensionless, ±inf allowed."""
        u = _tensor(u)
        return self._value(u.clamp(*self.support)) if self.is_compact else self._value(u)

    def derivative(self, u: Tensor | float) -> Tensor:
        """f'(u), elementwise; exactly 0 outside the support."""
        u = _tensor(u)
        if not self.is_compact:
            return self._slope(u)
        low, high = self.support
        return torch.where((u >= low) & (u <= high), self._slope(u.clamp(low, high)), torch.zeros_like(u))

    def __reduce__(self):
        """Pickled by name, as functions are, so that laws can be saved and sent to other processes."""
        return (get, (self.name,)) if REGISTRY.get(self.name) is self else super().__reduce__()

    def half_width(self, dtype: torch.dtype) -> float:
        """S such that |u| > S is 0 or 1 to the resolution of ``dtype``: 1 when compact, about 17 for a float32 sigmoid."""
        return self.support[1] if self.is_compact else -math.log(torch.finfo(dtype).eps / 2)


def _tensor(u: Tensor | float) -> Tensor:
    return u if isinstance(u, Tensor) else torch.as_tensor(u, dtype=torch.float64)


def _entry(
    name: str, formula: str, deficit: float, roughness: float, smoothness: float, value, slope, half: float = 1.0
):
    return SoftIndicator(name, formula, (-half, half), deficit, roughness, smoothness, value, slope)


def _cubic(u: Tensor) -> Tensor:
    w = (u + 1) / 2
    return w * w * (3 - 2 * w)


def _quintic(u: Tensor) -> Tensor:
    w = (u + 1) / 2
    return w**3 * (10 + w * (6 * w - 15))


def _sigmoid_slope(u: Tensor) -> Tensor:
    f = torch.sigmoid(u)
    return f * torch.sigmoid(-u)


REGISTRY: dict[str, SoftIndicator] = {
    e.name: e
    for e in (
        _entry("sigmoid", "1/(1 + exp(-u))", 1.0, 1 / 6, math.inf, torch.sigmoid, _sigmoid_slope, half=math.inf),
        _entry("linear", "w", 1 / 3, 1 / 2, 0, lambda u: (u + 1) / 2, lambda u: torch.full_like(u, 0.5)),
        _entry("cubic", "3*w**2 - 2*w**3", 9 / 35, 3 / 5, 1, _cubic, lambda u: 0.75 * (1 - u * u)),
        _entry("quintic", "6*w**5 - 15*w**4 + 10*w**3", 50 / 231, 5 / 7, 2, _quintic, lambda u: 0.9375 * (1 - u * u) ** 2),
        _entry(
            "cosine", "(1 + sin(pi*u/2))/2", 1 / 4, math.pi**2 / 16, 1,
            lambda u: (1 + torch.sin(u * (math.pi / 2))) / 2,
            lambda u: torch.cos(u * (math.pi / 2)) * (math.pi / 4),
        ),
    )
}  # fmt: skip


def get(indicator: str | SoftIndicator) -> SoftIndicator:
    """The soft indicator of that name (an indicator object passes through).

    Raises ``ValueError`` with the known names when there is none of that name.

    >>> cubic = get("cubic")
    >>> float(cubic(0.5)), float(cubic.derivative(0.0))
    (0.84375, 0.75)
    """
    if isinstance(indicator, SoftIndicator):
        return indicator
    if indicator not in REGISTRY:
        raise ValueError(f"indicator must be one of {sorted(REGISTRY)} or a SoftIndicator, got {indicator!r}")
    return REGISTRY[indicator]


def registered(indicator: str | SoftIndicator) -> SoftIndicator:
    """As :func:`get`, but only of what is in the registry: the samplers know an indicator by its name.

    Raises ``ValueError`` for an unknown name, or an object that is not the registered one of its name.

    >>> registered("cubic").name
    'cubic'
    """
    found = get(indicator)
    if get(found.name) is not found:
        raise ValueError(f"indicator must be registered first (hitchhiker.indicators.register), got {found!r}")
    return found


def register(indicator: SoftIndicator) -> SoftIndicator:
    """Make ``indicator`` known by its name to every law, moment and derivation.

    Raises ``ValueError`` for what is no :class:`SoftIndicator`, a taken name, a support that is not (-S, S) with S > 0, and
    where f(u) + f(-u) is not 1 (seen at a few points).
    """
    if not isinstance(indicator, SoftIndicator):
        raise ValueError(f"indicator must be a SoftIndicator, got {indicator!r}")
    low, high = indicator.support
    if not (low == -high and high > 0):
        raise ValueError(f"support must be (-S, S) with S > 0, got {indicator.support}")
    u = torch.linspace(0, 1, 9, dtype=torch.float64) * min(high, 8.0)
    total = indicator(u) + indicator(-u)
    if not torch.allclose(total, torch.ones_like(u), rtol=0, atol=1e-6):
        worst = int((total - 1).abs().nan_to_num(torch.inf).argmax())
        raise ValueError(f"f(u) + f(-u) must be 1, got {total[worst]:g} at u = {u[worst]:g}")
    if indicator.name in REGISTRY:
        raise ValueError(f"indicator name must be new, got {indicator.name!r}; known: {sorted(REGISTRY)}")
    REGISTRY[indicator.name] = indicator
    return indicator
