"""Judging a gradient: bias and noise energy, cosines, and the terms of the equation of motion (Section 3.3, F, G.4).

A gradient estimate is ĝ = g* + b + ε with bias b and noise covariance Σ. From N estimates, the plug-in b̂ᵀHb̂ has the
expectation bᵀHb + Tr(HΣ)/N: with N = 100 that floor is most of what it shows for a good estimator. The estimates here are
free of it; the plug-in stands beside them.

Arrays: gradients ``(N, *batch, K)``, exact gradient ``(*batch, K)``. Metrics are computed per batch item and averaged, as in
G.4. Energies are divided by the signal energy g*ᵀHg* (Eq. 80) and dimensionless.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

Hessian = Tensor | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class GradientQuality:
    """Means over the batch and their standard errors over the Monte Carlo noise (delete-a-group jackknife).

    bias_energy : bᵀHb / g*ᵀHg*, unbiased, so it can come out slightly negative when the bias is below its error.
    noise_energy : Tr(HΣ) / g*ᵀHg*, unbiased, of one estimate.
    cos_mean : cos(E ĝ, g*), with the noise removed from ‖E ĝ‖² (a ratio, so consistent rather than unbiased).
    cos_sample : E cos(ĝ, g*).
    bias_energy_plugin, cos_mean_plugin : what Eqs. (7) and (9) give when E ĝ is replaced by the mean of N estimates.
    indefinite : fraction of batch items whose signal energy g*ᵀHg* is not positive; their normalised energies mean nothing.
    num_samples : N.
    """

    bias_energy: float
    bias_energy_se: float
    noise_energy: float
    noise_energy_se: float
    cos_mean: float
    cos_mean_se: float
    cos_sample: float
    cos_sample_se: float
    bias_energy_plugin: float
    cos_mean_plugin: float
    indefinite: float
    num_samples: int

    def __str__(self) -> str:
        rows = [f"{'':13}{'estimate':>12}{'± SE':>12}{'plug-in':>12}"]
        for name in ("bias_energy", "noise_energy", "cos_mean", "cos_sample"):
            plugin = getattr(self, f"{name}_plugin", None)
            rows.append(
                f"{name:13}{getattr(self, name):12.4g}{getattr(self, name + '_se'):12.2g}"
                + (f"{plugin:12.4g}" if plugin is not None else "")
            )
        return "\n".join(rows)


def _product(hessian: Hessian) -> Callable[[Tensor], Tensor]:
    if isinstance(hessian, Tensor):
        return lambda v: torch.einsum("...ij,...j->...i", hessian, v)
    return hessian


class _Sums:
    """Running sums over estimates, in the dtype of the exact gradient: all that the four metrics need."""

    def __init__(self, exact: Tensor):
        self.count = 0
        self.error = torch.zeros_like(exact)
        self.quadratic = exact.new_zeros(exact.shape[:-1])
        self.cosine = exact.new_zeros(exact.shape[:-1])
        self.squared_error = exact.new_zeros(exact.shape[:-1])

    def add(self, chunk: Tensor, exact: Tensor, product: Callable[[Tensor], Tensor]) -> None:
        error = chunk - exact
        self.count += chunk.shape[0]
        self.error += error.sum(dim=0)
        self.quadratic += (error * product(error)).sum(dim=(0, -1))
        self.squared_error += error.square().sum(dim=(0, -1))
        self.cosine += torch.nn.functional.cosine_similarity(chunk, exact.expand_as(chunk), dim=-1).sum(dim=0)

    def without(self, other: _Sums) -> _Sums:
        rest = object.__new__(_Sums)
        for name, value in vars(self).items():
            setattr(rest, name, value - getattr(other, name))
        return rest

    def metrics(self, exact: Tensor, product: Callable[[Tensor], Tensor], signal: Tensor) -> dict[str, Tensor]:
        n = self.count
        total = (self.error * product(self.error)).sum(dim=-1)
        mean = exact + self.error / n
        norm2 = exact.square().sum(dim=-1)
        dot = (mean * exact).sum(dim=-1)
        # E‖mean‖² exceeds ‖E ĝ‖² by Tr(Σ)/N, which this takes off again
        mean_norm2 = mean.square().sum(dim=-1)
        trace = (self.squared_error - self.error.square().sum(dim=-1) / n) / (n - 1)
        return {
            "bias_energy": ((total - self.quadratic) / (n * (n - 1)) / signal).mean(),
            "noise_energy": ((self.quadratic - total / n) / (n - 1) / signal).mean(),
            "cos_mean": (dot / ((mean_norm2 - trace / n).clamp(min=0) * norm2).sqrt()).mean(),
            "cos_sample": (self.cosine / n).mean(),
            "bias_energy_plugin": (total / n**2 / signal).mean(),
            "cos_mean_plugin": (dot / (mean_norm2 * norm2).sqrt()).mean(),
        }


def summarize(
    gradients: Float[Tensor, "repeats *batch latents"], exact: Float[Tensor, "*batch latents"], hessian: Hessian
) -> GradientQuality:
    """Bias and noise energy and cosines of gradient estimates, normalised as Eq. (80), with standard errors.

    Parameters
    ----------
    gradients : N >= 2 independent estimates, shape ``(N, *batch, K)``.
    exact : g*, shape ``(*batch, K)``.
    hessian : ``(*batch, K, K)``, or a function v ↦ Hv on ``(..., *batch, K)`` such as
        :class:`hitchhiker.linear_decoder.HessianProduct`, which needs no K x K matrix.

    Raises ``ValueError`` for fewer than two estimates or shapes that do not fit.

    >>> _ = torch.manual_seed(0)
    >>> g = torch.tensor([3.0, 4.0])
    >>> quality = summarize(g + torch.randn(10_000, 2), g, torch.eye(2))
    >>> print(f"noise energy {quality.noise_energy:.2f}, exact {2 / 25}")
    noise energy 0.08, exact 0.08

    Source: Eqs. (7)–(10), (80).
    """
    if gradients.dim() != exact.dim() + 1 or gradients.shape[1:] != exact.shape:
        raise ValueError(
            f"gradients must have shape (N, *exact.shape) = (N, {tuple(exact.shape)}), got {tuple(gradients.shape)}"
        )
    return summarize_stream(gradients.split(max(1, gradients.shape[0] // 64)), exact, hessian)


def summarize_stream(
    chunks: Iterable[Float[Tensor, "repeats *batch latents"]],
    exact: Float[Tensor, "*batch latents"],
    hessian: Hessian,
    num_groups: int = 20,
) -> GradientQuality:
    """:func:`summarize` for estimates that arrive in chunks ``(n, *batch, K)``; memory O(num_groups · batch · K).

    The jackknife's groups take the chunks in turn, so give at least ``2 * num_groups`` chunks for a good standard error.
    """
    if isinstance(hessian, Tensor) and hessian.shape != (*exact.shape, exact.shape[-1]):
        raise ValueError(f"hessian must have shape {(*exact.shape, exact.shape[-1])}, got {tuple(hessian.shape)}")
    product = _product(hessian)
    exact = exact.detach()
    signal = (exact * product(exact)).sum(dim=-1)
    groups: list[_Sums] = []
    for i, chunk in enumerate(chunks):
        if i < num_groups:
            groups.append(_Sums(exact))
        groups[i % num_groups].add(chunk.detach(), exact, product)
    total = _Sums(exact)
    for group in groups:
        for name, value in vars(group).items():
            setattr(total, name, getattr(total, name) + value)
    if total.count < 2 or len(groups) < 2:
        raise ValueError(
            f"gradients must hold at least 2 estimates in at least 2 chunks, got {total.count} in {len(groups)}"
        )
    values = total.metrics(exact, product, signal)
    leave_out = [total.without(group).metrics(exact, product, signal) for group in groups] if total.count > 2 else []
    result: dict[str, float] = {name: float(value) for name, value in values.items()}
    for name in ("bias_energy", "noise_energy", "cos_mean", "cos_sample"):
        spread = torch.stack([m[name] for m in leave_out]) if leave_out else torch.full((2,), torch.nan)
        n = len(spread)
        result[f"{name}_se"] = float(((n - 1) / n * (spread - spread.mean()).square().sum()).sqrt())
    result["indefinite"] = float((signal <= 0).double().mean())
    return GradientQuality(
        **{f.name: result[f.name] for f in fields(GradientQuality) if f.name != "num_samples"}, num_samples=total.count
    )


@dataclass(frozen=True)
class EquationOfMotion:
    """The six terms of the expected change of the loss in one step of size η, and their sum (units of the loss).

    The fourth is η²g*ᵀHb: Eq. (78) prints it with a factor ½ that its own text does not have.
    """

    descent: float
    alignment: float
    curvature: float
    drift: float
    bias: float
    noise: float

    @property
    def total(self) -> float:
        """E[L(t+1)] - L(t), to second order in η."""
        return sum(getattr(self, f.name) for f in fields(self))


def equation_of_motion(
    gradients: Float[Tensor, "repeats *batch latents"],
    exact: Float[Tensor, "*batch latents"],
    hessian: Hessian,
    learning_rate: float,
) -> EquationOfMotion:
    """The terms of Eq. (78), from N estimates ``(N, *batch, K)``; bias energy without the 1/N floor, summed over the batch.

    >>> g = torch.tensor([1.0, 0.0])
    >>> print(f"{equation_of_motion(g.expand(3, 2), g, 2 * torch.eye(2), 0.1).total:.4f}")  # -η + η²
    -0.0900

    Source: Eq. (78), fourth coefficient corrected.
    """
    if not learning_rate > 0:
        raise ValueError(f"learning_rate must be > 0, got {learning_rate}")
    product, n, eta = _product(hessian), gradients.shape[0], learning_rate
    error = gradients - exact
    b = error.mean(dim=0)
    quadratic = float((error * product(error)).sum() / n)
    plugin = float((b * product(b)).sum())
    noise = (quadratic - plugin) * n / (n - 1)
    curved = product(exact)
    return EquationOfMotion(
        descent=-eta * float(exact.square().sum()),
        alignment=-eta * float((b * exact).sum()),
        curvature=eta**2 / 2 * float((exact * curved).sum()),
        drift=eta**2 * float((curved * b).sum()),
        bias=eta**2 / 2 * (plugin - noise / n),
        noise=eta**2 / 2 * noise,
    )
