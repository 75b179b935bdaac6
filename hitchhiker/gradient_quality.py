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
METRICS = ("bias_energy", "noise_energy", "cos_mean", "cos_sample")


@dataclass(frozen=True)
class GradientQuality:
    """Means over the batch and their standard errors over the Monte Carlo noise (corrected delete-a-group jackknife).

    bias_energy : bᵀHb / g*ᵀHg*, unbiased, so it can come out slightly negative when the bias is below its error.
    noise_energy : Tr(HΣ) / g*ᵀHg*, unbiased, of one estimate.
    cos_mean : cos(E ĝ, g*), with the noise removed from the part of E ĝ across g*; it can come out slightly above 1.
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
        for name in METRICS:
            plugin = getattr(self, f"{name}_plugin", None)
            rows.append(
                f"{name:13}{getattr(self, name):12.4g}{getattr(self, name + '_se'):12.2g}"
                + (f"{plugin:12.4g}" if plugin is not None else "")
            )
        return "\n".join(rows)


def _product(hessian: Hessian, exact: Tensor) -> Callable[[Tensor], Tensor]:
    if isinstance(hessian, Tensor):
        if hessian.shape != (*exact.shape, exact.shape[-1]):
            raise ValueError(f"hessian must have shape {(*exact.shape, exact.shape[-1])}, got {tuple(hessian.shape)}")
        return lambda v: torch.einsum("...ij,...j->...i", hessian, v)
    return hessian


def _check_gradients(gradients: Tensor, exact: Tensor, at_least: int = 2) -> None:
    if exact.dim() < 1 or gradients.dim() != exact.dim() + 1 or gradients.shape[1:] != exact.shape:
        raise ValueError(
            f"gradients must have shape (N, *exact.shape) = (N, {tuple(exact.shape)}), got {tuple(gradients.shape)}"
        )
    if gradients.shape[0] < at_least:
        raise ValueError(f"gradients must hold at least {at_least} estimates, got {gradients.shape[0]}")


class _Group:
    """Running sums over some of the estimates, in the dtype of the exact gradient."""

    def __init__(self, exact: Tensor):
        self.count = 0
        self.error = torch.zeros_like(exact)
        self.quadratic = exact.new_zeros(exact.shape[:-1])
        self.cosine = exact.new_zeros(exact.shape[:-1])
        self.squared_across = exact.new_zeros(exact.shape[:-1])

    def add(self, chunk: Tensor, exact: Tensor, product: Callable[[Tensor], Tensor]) -> None:
        _check_gradients(chunk, exact, at_least=0)
        error = chunk - exact
        self.count += chunk.shape[0]
        self.error += error.sum(dim=0)
        self.quadratic += (error * product(error)).sum(dim=(0, -1))
        along = (error * exact).sum(dim=-1).square() / exact.square().sum(dim=-1)
        self.squared_across += (error.square().sum(dim=-1) - along).sum(dim=0)
        self.cosine += torch.nn.functional.cosine_similarity(chunk, exact.expand_as(chunk), dim=-1).sum(dim=0)


class _Metrics:
    """The metrics of any union of groups; only inner products between the groups' sums are needed for that."""

    def __init__(self, groups: list[_Group], exact: Tensor, product: Callable[[Tensor], Tensor], signal: Tensor):
        size, items = len(groups), exact.shape[:-1].numel()
        errors = torch.stack([g.error for g in groups])
        self.count = torch.tensor([g.count for g in groups], dtype=exact.dtype, device=exact.device)
        self.energy = torch.einsum("g...k,h...k->gh...", errors, product(errors)).reshape(size, size, items)
        self.square = torch.einsum("g...k,h...k->gh...", errors, errors).reshape(size, size, items)
        self.along = (errors * exact).sum(dim=-1).reshape(size, items)
        self.quadratic, self.cosine, self.squared_across = (
            torch.stack([getattr(g, name) for g in groups]).reshape(size, items)
            for name in ("quadratic", "cosine", "squared_across")
        )
        self.signal, self.norm2 = signal.flatten(), exact.square().sum(dim=-1).flatten()

    def of(self, chosen: Tensor) -> dict[str, Tensor]:
        """Batch means for each row of ``chosen``, a 0/1 matrix (sets, groups)."""
        n = (chosen @ self.count)[:, None]
        energy, square = (torch.einsum("sg,ghb,sh->sb", chosen, x, chosen) for x in (self.energy, self.square))
        quadratic, squared_across = chosen @ self.quadratic, chosen @ self.squared_across
        # the mean's part along g* and its squared part across; only the second is too long on average, by Tr(Σ across)/N
        along = 1 + chosen @ self.along / n / self.norm2
        across = (square - (chosen @ self.along).square() / self.norm2) / n**2 / self.norm2
        excess = (squared_across / self.norm2 - n * across) / (n * (n - 1))
        values = {
            "bias_energy": (energy - quadratic) / (n * (n - 1)) / self.signal,
            "noise_energy": (quadratic - energy / n) / (n - 1) / self.signal,
            "cos_mean": along / (along.square() + across - excess).clamp(min=0).sqrt(),
            "cos_sample": chosen @ self.cosine / n,
            "bias_energy_plugin": energy / n**2 / self.signal,
            "cos_mean_plugin": along / (along.square() + across).sqrt(),
        }
        return {name: value.mean(dim=1) for name, value in values.items()}

    def standard_errors(self) -> dict[str, Tensor]:
        """Delete-one-group jackknife, less its second-order excess.

        A bias energy near 0 is a pure second-order statistic, of which the jackknife reports more than twice the variance.
        The excess is estimated by deleting pairs of groups (Efron and Stein, 1981; here exact for a pure second-order statistic
        of few groups too), and no more is taken off than such a statistic needs.
        """
        size = len(self.count)
        everything = torch.ones(1, size, dtype=self.count.dtype, device=self.count.device)
        eye = torch.eye(size, dtype=self.count.dtype, device=self.count.device)
        i, j = torch.triu_indices(size, size, offset=1)
        whole, without, without_pair = (
            self.of(w) for w in (everything, everything - eye, everything - eye[i] - eye[j])
        )
        least = (size - 2) ** 2 / (2 * size * (size - 1))
        shrink = 1 - 2 / (size - 2) + 4 / (size - 2) ** 2
        scale = (4 / (size - 2) ** 2 - 2 / (size * (size - 1))) * (size - 3) ** 2 / (2 * shrink)
        result = {}
        for name in METRICS:
            one = without[name]
            variance = (size - 1) / size * (one - one.mean()).square().sum()
            pairs = size * whole[name] - (size - 1) * (one[i] + one[j]) + (size - 2) * without_pair[name]
            excess = scale * (pairs - pairs.mean()).square().sum() / (size * (size - 1))
            result[name] = torch.maximum(variance - excess, least * variance).sqrt()
        return result


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
    _check_gradients(gradients, exact)
    return summarize_stream(gradients.tensor_split(max(1, min(60, gradients.shape[0]))), exact, hessian)


def summarize_stream(
    chunks: Iterable[Float[Tensor, "_ *batch latents"]],
    exact: Float[Tensor, "*batch latents"],
    hessian: Hessian,
    num_groups: int = 20,
) -> GradientQuality:
    """:func:`summarize` for estimates that arrive in chunks ``(n, *batch, K)``; memory O(num_groups · batch · K).

    The jackknife's groups take the chunks in turn, so give equal chunks and at least ``num_groups`` of them for a good
    standard error; with fewer than four it is NaN.
    """
    product = _product(hessian, exact)
    exact = exact.detach()
    signal = (exact * product(exact)).sum(dim=-1)
    groups: list[_Group] = []
    for i, chunk in enumerate(chunks):
        if i < num_groups:
            groups.append(_Group(exact))
        groups[i % num_groups].add(chunk.detach(), exact, product)
    count = sum(g.count for g in groups)
    if count < 2:
        raise ValueError(f"gradients must hold at least 2 estimates, got {count}")
    metrics = _Metrics(groups, exact, product, signal)
    values = {name: float(value) for name, value in metrics.of(torch.ones_like(metrics.count)[None]).items()}
    enough = len(groups) > 3 and count - sum(sorted(g.count for g in groups)[-2:]) > 1
    errors = metrics.standard_errors() if enough else dict.fromkeys(METRICS, torch.nan)
    return GradientQuality(
        **values,
        **{f"{name}_se": float(se) for name, se in errors.items()},
        indefinite=float((signal <= 0).double().mean()),
        num_samples=count,
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
    _check_gradients(gradients, exact)
    product, n, eta = _product(hessian, exact), gradients.shape[0], learning_rate
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
