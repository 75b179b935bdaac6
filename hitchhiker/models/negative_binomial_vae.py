"""A Poisson VAE whose counts may be burstier than Poisson: negative binomial posterior and prior (H.3 put to use).

    N_k | x ~ negative binomial, mean m_k = exp(ln r_k + (W x)_k), gain variance a_k
    loss = E‖x - ΦN‖² + Σ_k KL(NB(m_k, a_k) ‖ NB(r_k, a_k))

One gain variance a_k >= 0 a latent is learned, shared by posterior and prior, so that both terms have closed forms; a = 0 is
the Poisson VAE.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hitchhiker import estimators
from hitchhiker.relaxations.doubly_stochastic import EATModulatedPoisson

from .gaussian_vae import GaussianEvaluation
from .methods import Method, get_method
from .pvae import PoissonVAE, ReconstructionError


class NegativeBinomialVAE(PoissonVAE):
    """Linear encoder and decoder, negative binomial counts; trained by :func:`hitchhiker.training.fit`.

    Parameters
    ----------
    num_pixels, num_latents, seed, options : of :class:`PoissonVAE`; no population.
    gain_variance : a > 0 at the start, the same for all latents.

    ``method`` is ``"exact"`` (closed form) or ``"eat-…"`` (Algorithm 3: a Gamma gain, then arrival times).
    Raises ``ValueError`` for others, for a population, another decoder than a linear one, or ``gain_variance <= 0``.

    >>> model = NegativeBinomialVAE(num_pixels=16, num_latents=3, gain_variance=0.2)
    >>> model.loss(torch.zeros(5, 16), "exact").shape, [round(a, 2) for a in model.gain_variance.tolist()]
    (torch.Size([5]), [0.2, 0.2, 0.2])
    """

    def __init__(
        self, num_pixels: int = 256, num_latents: int = 512, seed: int = 0, *, gain_variance: float = 0.1, **options
    ):
        if not 0 < gain_variance < math.inf:
            raise ValueError(f"gain_variance must be > 0 and finite, got {gain_variance}")
        if options.get("population") is not None:
            raise ValueError(f"population must be None for negative binomial counts, got {options['population']}")
        if options.get("decoder", "linear") != "linear":
            raise ValueError(f"decoder must be 'linear' for negative binomial counts, got {options['decoder']!r}")
        super().__init__(num_pixels, num_latents, seed, **options)
        self.log_gain_variance = nn.Parameter(torch.full((num_latents,), math.log(gain_variance)))
        self.settings |= {"gain_variance": gain_variance, "code": "negative binomial"}

    @property
    def gain_variance(self) -> Float[Tensor, " latents"]:
        """a_k, the squared coefficient of variation of each latent's gain: its counts have variance m + a m²."""
        return self.log_gain_variance.exp()

    def parts(
        self,
        x: Float[Tensor, "*batch pixels"],
        method: str | Method = "eat-cubic",  # type: ignore[override]
        temperature: float | Tensor = 0.1,
        num_samples: int = 1,
        baseline=None,
    ) -> tuple[Float[Tensor, " items"], Float[Tensor, " items"]]:
        """Surrogate of E‖x - ΦN‖² and KL in nats, per item; arguments as :meth:`PoissonVAE.parts`."""
        method = get_method(method)
        if method.name != "exact" and not method.name.startswith("eat-"):
            raise ValueError(f"method must be 'exact' or 'eat-…' for negative binomial counts, got {method.name!r}")
        if x.shape[-1] != self.num_pixels:
            raise ValueError(f"x must have {self.num_pixels} pixels in its last dimension, got shape {tuple(x.shape)}")
        u, v = self.log_rates(x)
        m, a, phi = u.exp(), self.gain_variance, self.phi
        assert phi is not None
        # KL of negative binomials with one r = 1/a: m (u - v) - (m + r) ln((1 + a m)/(1 + a e^v))
        kl = (m * (u - v) - (m + 1 / a) * (torch.log1p(a * m) - torch.log1p(a * v.exp()))).sum(dim=-1)
        if method.name == "exact":
            spread = ((m + a * m.square()) * phi.square().sum(dim=0)).sum(dim=-1)
            return (x - self.decode(m)).square().sum(dim=-1) + spread, kl
        law = EATModulatedPoisson(
            log_rate=u, gain_variance=a, temperature=temperature, indicator=method.name[4:], validate_args=False
        )
        return estimators.pathwise(ReconstructionError(x, self.decode, phi), law, num_samples), kl

    @torch.no_grad()
    def evaluate(self, x: Float[Tensor, "items pixels"], **_) -> GaussianEvaluation:  # type: ignore[override]
        """The model on held-out patches with its true whole counts (τ = 0), in closed form."""
        sse, kl = (part.double() for part in self.parts(x, "exact"))
        total = sse + kl
        spread = (x.double() - x.double().mean(dim=0)).square().sum() / len(x)
        return GaussianEvaluation(
            neg_elbo=total.mean(), standard_error=total.std() / math.sqrt(len(x)),
            nats=total.mean() + 0.5 * self.num_pixels * math.log(math.pi),
            sse=sse.mean(), kl=kl.mean(), r2=1 - sse.mean() / spread, per_patch=total,
        )  # fmt: skip

    def reconstruct(self, x, num_samples: int = 1):
        raise NotImplementedError("counts of a NegativeBinomialVAE are drawn by EATModulatedPoisson(…).sample()")

    def importance_bound(self, x, num_samples: int = 100, seed: int = 0):
        raise NotImplementedError("the importance bound of a NegativeBinomialVAE is not here")
