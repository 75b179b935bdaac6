"""A linear Gaussian VAE, for scale: the same data, observation noise and decoder, a code of normal numbers.

    μ = W x,  z ~ N(μ, diag σ(x)²),  x̂ = Φ z
    loss = E‖x - Φz‖² + KL(N(μ, σ²) ‖ N(0, 1))

Its loss has a closed form, and so has its optimum: probabilistic principal components.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hitchhiker import estimators

from .methods import Method, get_method
from .pvae import _Dense, _Draws


@dataclass(frozen=True)
class GaussianEvaluation:
    """A Gaussian VAE on held-out data, in closed form; the entries mean what they mean in :class:`Evaluation`."""

    neg_elbo: Tensor
    standard_error: Tensor
    nats: Tensor
    sse: Tensor
    kl: Tensor
    r2: Tensor
    per_patch: Tensor

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, without ``per_patch``."""
        return {name: float(value) for name, value in vars(self).items() if name != "per_patch"}

    def __repr__(self) -> str:
        return (
            f"-ELBO {self.neg_elbo:.2f} ± {self.standard_error:.2f} (SSE {self.sse:.2f} + KL {self.kl:.2f}), "
            f"R² {self.r2:.3f}"
        )


class GaussianVAE(nn.Module):
    """Linear encoder of means and log standard deviations, linear decoder, standard normal prior.

    Parameters
    ----------
    num_pixels, num_latents : D and K, both ``>= 1``.
    seed : of the initial weights.
    init_scale : standard deviation of the initial weights.

    It is trained by ``training.fit(model, x, method="exact", …)``, as the linear Poisson VAE with exact gradients is.
    Raises ``ValueError`` naming argument, value and domain.

    >>> model = GaussianVAE(num_pixels=16, num_latents=3)
    >>> model.loss(torch.zeros(5, 16)).shape
    torch.Size([5])

    Source: Kingma and Welling (2013); in the paper's family of models, the one without spikes.
    """

    population = None

    def __init__(self, num_pixels: int = 256, num_latents: int = 512, seed: int = 0, *, init_scale: float = 0.05):
        super().__init__()
        for name, value in (("num_pixels", num_pixels), ("num_latents", num_latents)):
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        if not init_scale > 0:
            raise ValueError(f"init_scale must be > 0, got {init_scale}")
        self.num_pixels, self.num_latents = num_pixels, num_latents
        self.settings = {
            "num_pixels": num_pixels, "num_latents": num_latents, "seed": seed, "init_scale": init_scale,
            "encoder": "linear", "decoder": "linear", "code": "gaussian",
        }  # fmt: skip
        draws = _Draws([seed], None)
        self.encoder = _Dense(draws.normal(init_scale, num_latents, num_pixels), bias=False)
        self.decoder = _Dense(draws.normal(init_scale, num_pixels, num_latents), bias=False)
        self.log_scale = _Dense(draws.normal(0.1 * init_scale, num_latents, num_pixels), bias=True)

    @property
    def phi(self) -> Float[Tensor, "pixels latents"]:
        """The decoder Φ."""
        return self.decoder.weight

    @property
    def features(self) -> Float[Tensor, "latents pixels"]:
        """Φ's columns."""
        return self.phi.detach().mT

    def code(self, x: Float[Tensor, "*batch pixels"]) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of the code."""
        return self.encoder(x), self.log_scale(x)

    def parts(
        self,
        x: Float[Tensor, "items pixels"],
        method: str | Method | Sequence[str | Method] = "exact",
        temperature: float | Tensor = 0.0,
        num_samples: int = 1,
        baseline: estimators.MovingAverage | None = None,
    ) -> tuple[Float[Tensor, " items"], Float[Tensor, " items"]]:
        """E‖x - Φz‖² = ‖x - Φμ‖² + Σ_k σ_k² d_k and the KL term, per item, in closed form.

        The other arguments are those of :meth:`PoissonVAE.parts`; ``method`` must be ``"exact"``.
        """
        if not isinstance(method, (str, Method)) or get_method(method).name != "exact":
            got = method.name if isinstance(method, Method) else method
            raise ValueError(f"method must be 'exact' for a GaussianVAE, got {got!r}")
        if x.shape[-1] != self.num_pixels:
            raise ValueError(f"x must have {self.num_pixels} pixels in its last dimension, got shape {tuple(x.shape)}")
        mean, log_scale = self.code(x)
        variance = (2 * log_scale).exp()
        sse = (x - self.decoder(mean)).square().sum(dim=-1) + variance @ self.phi.square().sum(dim=0)
        kl = 0.5 * (mean.square() + variance - 1 - 2 * log_scale).sum(dim=-1)
        return sse, kl

    def loss(self, x: Float[Tensor, "items pixels"], *, beta: float = 1.0) -> Float[Tensor, " items"]:
        """-ELBO per item up to a constant: reconstruction + β·KL."""
        sse, kl = self.parts(x)
        return sse + beta * kl

    @torch.no_grad()
    def evaluate(self, x: Float[Tensor, "items pixels"]) -> GaussianEvaluation:
        """The model on held-out patches."""
        sse, kl = (part.double() for part in self.parts(x))
        per_patch, count = sse + kl, len(x)
        spread = (x.double() - x.double().mean(dim=0)).square().sum() / count
        return GaussianEvaluation(
            neg_elbo=per_patch.mean(),
            standard_error=per_patch.std() / math.sqrt(count),
            nats=per_patch.mean() + 0.5 * self.num_pixels * math.log(math.pi),
            sse=sse.mean(),
            kl=kl.mean(),
            r2=1 - sse.mean() / spread,
            per_patch=per_patch,
        )


def best_linear_gaussian(
    train: Float[Tensor, "items pixels"], validation: Float[Tensor, "held pixels"], num_latents: int
) -> float:
    """-ELBO on ``validation`` of the linear Gaussian VAE that is optimal for ``train``: nothing is trained.

    With noise σ² = 1/2 the optimum is that of probabilistic principal components, and its bound is tight: a direction
    with second moment s in ``train`` gets the variance c = max(s, 1/2) (the leading ``num_latents`` only, others 1/2),
    and costs ½ ln 2c + s'/2c on data with second moment s' there.

    >>> x = torch.randn(4000, 3) * torch.tensor([3.0, 1.0, 0.1])
    >>> 2.0 < best_linear_gaussian(x, x, 2) < 4.0
    True

    Source: Tipping and Bishop (1999).
    """
    if num_latents < 1:
        raise ValueError(f"num_latents must be >= 1, got {num_latents}")
    a, b = train.double(), validation.double()
    values, vectors = torch.linalg.eigh(a.T @ a / len(a))
    values, vectors = values.flip(0), vectors.flip(1)
    variance = values.clamp(min=0.5)
    variance[num_latents:] = 0.5
    moments = (b @ vectors).square().mean(dim=0)
    return float((0.5 * (2 * variance).log() + 0.5 * moments / variance).sum())
