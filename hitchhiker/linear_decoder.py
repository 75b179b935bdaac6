"""A model with exact gradients: the linear Poisson VAE's reconstruction loss in closed form (Appendix E).

x ∈ ℝ^D is reconstructed as Φz, z ~ Poisson(λ), λ = e^u ∈ ℝ^K. A batch has B items. Everything is in the units of x².
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from hitchhiker.checks import common_shape
from hitchhiker.relaxations.common import RelaxedPoisson


def _checked(x: Tensor, decoder: Tensor, log_rate: Tensor | None = None) -> None:
    if decoder.dim() != 2:
        raise ValueError(f"decoder must have shape (D, K), got {tuple(decoder.shape)}")
    if x.dim() < 1 or x.shape[-1] != decoder.shape[0]:
        raise ValueError(f"x must have shape (*batch, D) with D = {decoder.shape[0]}, got {tuple(x.shape)}")
    if log_rate is not None and (log_rate.dim() < 1 or log_rate.shape[-1] != decoder.shape[1]):
        raise ValueError(
            f"log_rate must have shape (*batch, K) with K = {decoder.shape[1]}, got {tuple(log_rate.shape)}"
        )
    if log_rate is not None:
        common_shape(x=x[..., 0], log_rate=log_rate[..., 0])


def _mse_and_penalty(x: Tensor, decoder: Tensor, rate: Tensor) -> Tensor:
    residual = x - rate @ decoder.T
    return residual.square().sum(dim=-1) + rate @ decoder.square().sum(dim=0)


def reconstruction_loss(
    x: Float[Tensor, "*batch data"], decoder: Float[Tensor, "data latents"], log_rate: Float[Tensor, "*batch latents"]
) -> Float[Tensor, "*batch"]:
    """E‖x - Φz‖² = ‖x - Φλ‖² + λᵀd, with d = diag(ΦᵀΦ), for z ~ Poisson(e^u).

    ``x`` data ``(*batch, D)``; ``decoder`` Φ ``(D, K)``; ``log_rate`` u ``(*batch, K)``. Returns ``(*batch,)``.

    >>> x, Phi = torch.tensor([1.0, 0.0]), torch.eye(2)
    >>> reconstruction_loss(x, Phi, torch.zeros(2))
    tensor(3.)

    Source: Eqs. (57)–(60).
    """
    _checked(x, decoder, log_rate)
    return _mse_and_penalty(x, decoder, log_rate.exp())


def gradient(
    x: Float[Tensor, "*batch data"], decoder: Float[Tensor, "data latents"], log_rate: Float[Tensor, "*batch latents"]
) -> Float[Tensor, "*batch latents"]:
    """∇_u of :func:`reconstruction_loss`: λ ⊙ (2Gλ - 2Φᵀx + d), G = ΦᵀΦ. Returns ``(*batch, K)``.

    G is never formed. A unit with λ_k ≈ 0 has no gradient (a dead unit).

    >>> gradient(torch.tensor([1.0, 0.0]), torch.eye(2), torch.zeros(2))
    tensor([1., 3.])

    Source: Eq. (64).
    """
    _checked(x, decoder, log_rate)
    rate = log_rate.exp()
    return rate * (2 * (rate @ decoder.T - x) @ decoder + decoder.square().sum(dim=0))


def hessian(
    x: Float[Tensor, "*batch data"], decoder: Float[Tensor, "data latents"], log_rate: Float[Tensor, "*batch latents"]
) -> Float[Tensor, "*batch latents latents"]:
    """∇²_u of :func:`reconstruction_loss`: diag(g) + 2ΛGΛ. Returns ``(*batch, K, K)``; it can be indefinite.

    For K in the hundreds use :class:`HessianProduct`, which forms no K x K matrix.

    >>> hessian(torch.tensor([1.0, 0.0]), torch.eye(2), torch.zeros(2))
    tensor([[3., 0.],
            [0., 5.]])

    Source: Eq. (69).
    """
    _checked(x, decoder, log_rate)
    rate = log_rate.exp()
    curved = 2 * rate.unsqueeze(-1) * (decoder.T @ decoder) * rate.unsqueeze(-2)
    return torch.diag_embed(gradient(x, decoder, log_rate)) + curved


class HessianProduct:
    """v ↦ Hv for H of :func:`hessian`, in O(B·D·K) and without forming H.

    Call it with ``v`` of shape ``(..., *batch, K)``. Source: Eq. (69).

    >>> H = HessianProduct(torch.tensor([1.0, 0.0]), torch.eye(2), torch.zeros(2))
    >>> H(torch.tensor([1.0, 1.0]))
    tensor([3., 5.])
    """

    def __init__(self, x: Tensor, decoder: Tensor, log_rate: Tensor):
        self._gradient = gradient(x, decoder, log_rate)
        self._rate, self._decoder = log_rate.exp(), decoder

    def __call__(self, v: Float[Tensor, "... latents"]) -> Float[Tensor, "... latents"]:
        return self._gradient * v + 2 * self._rate * (((self._rate * v) @ self._decoder.T) @ self._decoder)


class SquaredError:
    """The integrand f(z) = ‖x - Φz‖², with the closed forms that :mod:`hitchhiker.estimators` use.

    ``x`` has shape ``(*batch, D)``, ``decoder`` Φ ``(D, K)``; latents ``(S, *batch, K)`` give losses ``(S, *batch)``.
    ``curvature`` is ∂²f/∂z_k² = 2d_k. ``expectation(q)`` is Eq. (59). Gradients reach ``decoder`` in all of them.

    >>> f = SquaredError(torch.tensor([[1.0, 0.0]]), torch.eye(2))
    >>> f(torch.tensor([[[1.0, 2.0]]])), f.curvature
    (tensor([[4.]]), tensor([2., 2.]))
    """

    def __init__(self, x: Float[Tensor, "*batch data"], decoder: Float[Tensor, "data latents"]):
        _checked(x, decoder)
        self.x, self.decoder = x, decoder

    def __call__(self, z: Float[Tensor, "samples *batch latents"]) -> Float[Tensor, "samples *batch"]:
        return (self.x - z @ self.decoder.T).square().sum(dim=-1)

    @property
    def curvature(self) -> Float[Tensor, "latents"]:
        """∂²f/∂z_k² = 2d_k, a constant."""
        return 2 * self.decoder.detach().square().sum(dim=0)

    def expectation(self, q: RelaxedPoisson) -> Float[Tensor, "*batch"]:
        """E[f(N)] for N ~ Poisson(q.rate), Eq. (59)."""
        return _mse_and_penalty(self.x, self.decoder, q.rate)
