"""The Poisson VAE: an image becomes spike counts, the counts become an image again (section G.1).

    u = ln r + W x          log-rates: a learned prior rate r plus what the encoder adds
    z ~ Poisson(exp u)      counts
    x̂ = Φ z                 reconstruction
    loss = E‖x - Φz‖² + β Σ_k KL(Poisson(λ_k) ‖ Poisson(r_k))

Every parameter may carry a leading model axis, so that several models of one kind learn together as batched
products (``population=P``): seeds, temperatures and schedules then differ by model, data are shared.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from hitchhiker import estimators
from hitchhiker._random import own_random_numbers
from hitchhiker.checks import require_count, require_seed

from .methods import Method, get_method

ARCHITECTURES = ("linear", "mlp", "conv")


class ReconstructionError:
    """The integrand f(z) = ‖x - decode(z)‖² of a batch, summed over pixels; with closed forms if decoding
    is linear.

    Latents (S, *population, B, K) give losses (S, *population, B).  For a linear decoder Φ (*population,
    D, K) it carries what :mod:`hitchhiker.estimators` asks for: ``expectation(q)`` = ‖x - Φλ‖² + Σ_k λ_k
    d_k (Eq. 59) and ``curvature`` = 2 d_k, with d = diag(ΦᵀΦ).
    """

    def __init__(self, x: Float[Tensor, "*batch pixels"], decode: Callable[[Tensor], Tensor], phi: Tensor | None):
        self.x, self.decode, self._phi = x, decode, phi

    def __call__(self, z: Float[Tensor, "samples *models latents"]) -> Float[Tensor, "samples *models"]:
        return (self.x - self.decode(z)).square().sum(dim=-1)

    def __getattr__(self, name: str) -> Any:
        # The closed forms exist for a linear decoder only; the estimators look whether they are there.
        if name in {"expectation", "curvature"} and self._phi is not None:
            return self._expectation if name == "expectation" else 2 * self._norms().detach()
        raise AttributeError(name)

    def _norms(self) -> Tensor:
        assert self._phi is not None
        return self._phi.square().sum(dim=-2).unsqueeze(-2)

    def _expectation(self, q) -> Tensor:
        rate = q.rate
        return self(rate.unsqueeze(0)).squeeze(0) + (rate * self._norms()).sum(dim=-1)


@dataclass(frozen=True)
class Evaluation:
    """A model on held-out data at τ = 0: true Poisson counts, whatever it was trained with.

    Each entry is a tensor: 0-dimensional for one model, (P,) for a population.

    Attributes
    ----------
    neg_elbo : -ELBO as the paper reports it, SSE + KL per patch (nats up to a constant: observation noise
        σ² = 1/2).
    standard_error : of ``neg_elbo`` over patches, taken as independent (patches of one scene may overlap).
    monte_carlo_error : of ``neg_elbo`` for these very patches, from the randomness of the counts alone.
    nats : ``neg_elbo`` with its constant, + (D/2) ln π.
    sse, kl : the two parts, per patch.
    r2 : 1 - SSE / (sum of squares about the mean): 1 is a perfect copy, 0 the mean image.
    zeros : proportion of counts that are 0.
    lifetime_sparsity : of counts over patches, (1 - ⟨z⟩²/⟨z²⟩)/(1 - 1/n) (Vinje and Gallant, 2000),
        averaged over the latents that fired at all; 0 is a constant response, 1 a single one.
    rate : mean rate, counts per latent and patch.
    num_samples : counts drawn per patch.
    per_patch : (*population, B) -ELBO of each patch, for paired comparisons.
    """

    neg_elbo: Tensor
    standard_error: Tensor
    monte_carlo_error: Tensor
    nats: Tensor
    sse: Tensor
    kl: Tensor
    r2: Tensor
    zeros: Tensor
    lifetime_sparsity: Tensor
    rate: Tensor
    num_samples: int
    per_patch: Tensor

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers (lists for a population), without ``per_patch``: what a result file keeps."""
        return {
            name: value.tolist() if isinstance(value, Tensor) else value
            for name, value in vars(self).items()
            if name != "per_patch"
        }

    def __repr__(self) -> str:
        if self.neg_elbo.dim():
            return f"Evaluation of {self.neg_elbo.numel()} models: neg_elbo={self.neg_elbo.tolist()}"
        return (
            f"-ELBO {self.neg_elbo:.2f} ± {self.standard_error:.2f} (SSE {self.sse:.2f} + KL {self.kl:.2f}), "
            f"R² {self.r2:.3f}, zeros {self.zeros:.3f}, lifetime sparsity {self.lifetime_sparsity:.3f}"
        )


class _Dense(nn.Module):
    """x ↦ W x + b with W (*population, out, in): one matrix product for the whole population."""

    def __init__(self, weight: Tensor, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(*weight.shape[:-2], 1, weight.shape[-2])) if bias else None

    def forward(self, x: Tensor, models: slice | int = slice(None)) -> Tensor:
        """All models of a population, or some of them."""
        whole = models == slice(None)
        y = x @ (self.weight if whole else self.weight[models]).mT
        if self.bias is None:
            return y
        return y + (self.bias if whole else self.bias[models])


class PoissonVAE(nn.Module):
    """A variational autoencoder whose code is a vector of spike counts.

    Parameters
    ----------
    num_pixels : D, entries of an input; a square number for convolutions.
    num_latents : K, counts in the code.
    seed : of the initial weights; a population takes a sequence of P seeds, and its p-th model starts
        exactly where a single model with the p-th seed does.
    population : P models in one, or None for a single model (no model axis).
    encoder, decoder : "linear" (no bias, as the paper), "mlp" (one hidden layer), "conv", or your own
        module that maps (B, D) to (B, K), or (..., K) to (..., D).  Modules and convolutions: single
        models only.
    hidden : width of the hidden layer ("mlp"), or channels ("conv").
    init_scale : standard deviation of the initial encoder and decoder weights.
    prior_log_rates : (low, high) of the uniform initial log prior rates.
    max_log_rate : soft upper bound of log-rates, c - softplus(c - u): e^5.3 = 200 counts.

    Raises ``ValueError`` naming argument, value and domain.

    >>> model = PoissonVAE(num_pixels=16, num_latents=3, seed=0)
    >>> model.loss(torch.zeros(5, 16), "exact").shape
    torch.Size([5])

    Source: section G.1.  The residual log-rate, the learned prior and the soft bound are in the authors'
    public code, not in the text.
    """

    def __init__(
        self,
        num_pixels: int = 256,
        num_latents: int = 512,
        seed: int | Sequence[int] = 0,
        *,
        population: int | None = None,
        encoder: str | nn.Module = "linear",
        decoder: str | nn.Module = "linear",
        hidden: int = 128,
        init_scale: float = 0.05,
        prior_log_rates: tuple[float, float] = (-6.0, -4.0),
        max_log_rate: float = 5.3,
    ):
        super().__init__()
        seeds = _check(num_pixels, num_latents, seed, population, encoder, decoder, hidden, init_scale, prior_log_rates)
        self.num_pixels, self.num_latents = num_pixels, num_latents
        self.population = population
        self.max_log_rate = max_log_rate
        self.settings = {
            "num_pixels": num_pixels,
            "num_latents": num_latents,
            "seed": list(seeds) if population is not None else seeds[0],
            "population": population,
            "encoder": encoder if isinstance(encoder, str) else type(encoder).__name__,
            "decoder": decoder if isinstance(decoder, str) else type(decoder).__name__,
            "hidden": hidden,
            "init_scale": init_scale,
            "prior_log_rates": list(prior_log_rates),
            "max_log_rate": max_log_rate,
        }
        draws = _Draws(seeds, population)
        low, high = prior_log_rates
        self.log_prior_rate = nn.Parameter(draws.uniform(low, high, 1, num_latents))
        self.encoder = _network(encoder, "encoder", num_pixels, num_latents, hidden, init_scale, draws)
        self.decoder = _network(decoder, "decoder", num_latents, num_pixels, hidden, init_scale, draws)

    # --- what the model says of an image

    @property
    def phi(self) -> Float[Tensor, "*models pixels latents"] | None:
        """The linear decoder Φ, or None when the decoder is not linear."""
        return self.decoder.weight if isinstance(self.decoder, _Dense) else None

    @property
    def features(self) -> Float[Tensor, "*models latents pixels"]:
        """Each latent's feature: the change of the image when it fires once more, from rest (Φ's columns
        if linear)."""
        phi = self.phi
        if phi is not None:
            return phi.detach().mT
        with torch.no_grad():
            rest = torch.zeros(1, self.num_latents, device=self.log_prior_rate.device)
            one = torch.eye(self.num_latents, device=rest.device)
            return self.decode(one) - self.decode(rest)

    def log_rates(
        self, x: Float[Tensor, "*batch pixels"]
    ) -> tuple[Float[Tensor, "*models items latents"], Float[Tensor, "*models 1 latents"]]:
        """Log-rates of the posterior, ln r + encoder(x), and of the prior, ln r; both softly bounded
        above."""
        bound = self.max_log_rate
        prior = self.log_prior_rate
        posterior = prior + self.encoder(x)
        return bound - functional.softplus(bound - posterior), bound - functional.softplus(bound - prior)

    def rates(self, x: Float[Tensor, "*batch pixels"]) -> Float[Tensor, "*models items latents"]:
        """λ(x), expected counts per latent."""
        return self.log_rates(x)[0].exp()

    def decode(self, z: Float[Tensor, "*batch latents"]) -> Float[Tensor, "*decoded pixels"]:
        """The image that these counts stand for."""
        return self.decoder(z)

    # --- learning

    def parts(
        self,
        x: Float[Tensor, "*batch pixels"],
        method: str | Method | Sequence[str | Method] = "eat-cubic",
        temperature: float | Float[Tensor, "*each"] = 0.1,
        num_samples: int = 1,
        baseline: estimators.MovingAverage | Baselines | None = None,
    ) -> tuple[Float[Tensor, "*models items"], Float[Tensor, "*models items"]]:
        """The two terms of the loss per item: surrogate of E‖x - decode(z)‖², and KL in nats.

        Parameters
        ----------
        x : (B, D), shared by a population; or (P, B, D).
        method : name of :func:`known_methods` or a :class:`Method`; a population takes one, or one a model
            (equal ones side by side are sampled together).
        temperature : τ, dimensionless; a population takes one number or P.  Unused by exact, difference,
            straight-through and score.
        num_samples : S, counts drawn per item.
        baseline : the score function's memory between steps (a ``MovingAverage``).

        Returns two tensors (*population, B).  Raises ``ValueError`` for an unknown method, an x of the
        wrong width, or a method that the decoder does not allow (exact needs a linear one).
        """
        if isinstance(method, Sequence) and not isinstance(method, str) and len(method) != (self.population or -1):
            raise ValueError(
                f"method must be one, or one for each of a population's {self.population} models, got {len(method)}"
            )
        if x.shape[-1] != self.num_pixels:
            raise ValueError(f"x must have {self.num_pixels} pixels in its last dimension, got shape {tuple(x.shape)}")
        runs = self._runs(method)
        if self.phi is None and any(m.name == "exact" for m, _ in runs):
            raise ValueError("method 'exact' needs a linear decoder: its loss has a closed form; try 'difference'")
        log_rate, log_prior = self.log_rates(x)
        kl = _kl_of_log_rates(log_rate, log_prior).sum(dim=-1)
        tau = self._per_model(temperature)
        if len(runs) == 1 and not isinstance(runs[0][1], int):
            f = ReconstructionError(x, self.decode, self.phi)
            return runs[0][0].surrogate(f, log_rate, tau, num_samples, baseline), kl  # type: ignore[arg-type]
        memory = baseline if isinstance(baseline, Baselines) else Baselines(self.population or 1)
        sizes = [1 if isinstance(m, int) else m.stop - m.start for _, m in runs]
        # split, not indexed one by one: the gradient of an index fills a whole tensor with zeros, that of a split does not
        rates = log_rate.split(sizes)
        phis = [None] * len(runs) if self.phi is None else self.phi.split(sizes)
        rows = []
        for (one, models), u, phi in zip(runs, rates, phis, strict=True):
            alone = isinstance(models, int)
            if alone:
                u, phi = u.squeeze(0), None if phi is None else phi.squeeze(0)
            decode = self._decoder_of(models) if phi is None else _times(phi)
            f = ReconstructionError(x if x.dim() == 2 else x[models], decode, phi)
            own = memory[models] if isinstance(models, int) and one.baseline == "moving_average" else None
            heat = tau[models] if isinstance(tau, Tensor) and tau.dim() else tau
            row = one.surrogate(f, u, heat, num_samples, own)
            rows.append(row.unsqueeze(0) if alone else row)
        return torch.cat(rows), kl

    def loss(
        self,
        x: Float[Tensor, "*batch pixels"],
        method: str | Method | Sequence[str | Method] = "eat-cubic",
        *,
        beta: float = 1.0,
        **options,
    ) -> Float[Tensor, "*models items"]:
        """-ELBO per item up to a constant: reconstruction + β·KL (see :meth:`parts` for the options)."""
        reconstruction, kl = self.parts(x, method, **options)
        return reconstruction + beta * kl

    def _runs(self, method: str | Method | Sequence[str | Method]) -> list[tuple[Method, slice | int]]:
        """Which models share a method.  Baselines average over all losses they are given: each model needs its own."""
        if isinstance(method, (str, Method)):
            one = get_method(method)
            if self.population is None or one.baseline is None:
                return [(one, slice(None))]
            return [(one, p) for p in range(self.population)]
        runs: list[tuple[Method, slice | int]] = []
        start = 0
        for _, group in itertools.groupby(method, lambda m: m if isinstance(m, str) else m.name):
            members = list(group)
            one, stop = get_method(members[0]), start + len(members)
            runs += [(one, slice(start, stop))] if one.baseline is None else [(one, p) for p in range(start, stop)]
            start = stop
        return runs

    def _decoder_of(self, models: slice | int) -> Callable[[Tensor], Tensor]:
        """The decoder of some models of a population."""
        layers = list(self.decoder) if isinstance(self.decoder, nn.Sequential) else [self.decoder]

        def decode(z: Tensor) -> Tensor:
            for layer in layers:
                z = layer(z, models) if isinstance(layer, _Dense) else layer(z)
            return z

        return decode

    def _per_model(self, value: float | Tensor) -> float | Tensor:
        """A setting given per model, shaped to broadcast with (P, B, K)."""
        if isinstance(value, Tensor) and value.dim():
            return value.view(-1, 1, 1)
        return value

    # --- judging

    @torch.no_grad()
    def reconstruct(
        self, x: Float[Tensor, "*batch pixels"], num_samples: int = 1
    ) -> tuple[Float[Tensor, "*models items pixels"], Float[Tensor, "samples *models items latents"]]:
        """Reconstruction from true Poisson counts (τ = 0), averaged over ``num_samples`` of them; and the
        counts."""
        require_count("num_samples", num_samples)
        rates = self.rates(x)
        z = torch.poisson(rates.expand(num_samples, *rates.shape))
        return self.decode(z).mean(dim=0), z

    @torch.no_grad()
    def evaluate(
        self, x: Float[Tensor, "items pixels"], num_samples: int = 32, seed: int = 0, chunk: int = 1 << 22
    ) -> Evaluation:
        """The model on held-out patches at τ = 0: -ELBO with its errors, R², sparsity (see
        :class:`Evaluation`).

        Parameters
        ----------
        x : (B, D).
        num_samples : counts drawn per patch, at least 2 (for the Monte Carlo error).
        seed : of these draws; the caller's random numbers are left as they were.
        chunk : counts held in memory at once.
        """
        if num_samples < 2:
            raise ValueError(f"num_samples must be >= 2, got {num_samples}")
        if x.shape[-1] != self.num_pixels or x.dim() != 2 or len(x) < 2:
            raise ValueError(f"x must be (B, {self.num_pixels}) with B >= 2, got shape {tuple(x.shape)}")
        models = self.population or 1
        step = max(1, chunk // (num_samples * self.num_latents * models))
        sse, noise, kl, zeros, rate = [], [], [], [], []
        first = second = torch.zeros((), dtype=torch.float64, device=x.device)
        with own_random_numbers(seed, x.device):
            for part in x.split(step):
                log_rate, log_prior = self.log_rates(part)
                kl.append(_kl_of_log_rates(log_rate, log_prior).sum(dim=-1).double())
                rates = log_rate.exp()
                z = torch.poisson(rates.expand(num_samples, *rates.shape))
                errors = ReconstructionError(part, self.decode, None)(z).double()
                sse.append(errors.mean(dim=0))
                noise.append(errors.var(dim=0) / num_samples)
                zeros.append((z == 0).double().mean(dim=(0, -1)))
                rate.append(rates.double().mean(dim=-1))
                first = first + z.double().sum(dim=(0, -2))
                second = second + z.double().square().sum(dim=(0, -2))
        sse_, kl_ = torch.cat(sse, dim=-1), torch.cat(kl, dim=-1)
        per_patch, count = sse_ + kl_, x.shape[0]
        spread = (x.double() - x.double().mean(dim=0)).square().sum() / count
        return Evaluation(
            neg_elbo=per_patch.mean(dim=-1),
            standard_error=per_patch.std(dim=-1) / math.sqrt(count),
            monte_carlo_error=torch.cat(noise, dim=-1).sum(dim=-1).sqrt() / count,
            nats=per_patch.mean(dim=-1) + 0.5 * self.num_pixels * math.log(math.pi),
            sse=sse_.mean(dim=-1),
            kl=kl_.mean(dim=-1),
            r2=1 - sse_.mean(dim=-1) / spread,
            zeros=torch.cat(zeros, dim=-1).mean(dim=-1),
            lifetime_sparsity=_lifetime_sparsity(first, second, count * num_samples),
            rate=torch.cat(rate, dim=-1).mean(dim=-1),
            num_samples=num_samples,
            per_patch=per_patch,
        )

    @torch.no_grad()
    def importance_bound(
        self, x: Float[Tensor, "items pixels"], num_samples: int = 100, seed: int = 0
    ) -> Float[Tensor, "*models items"]:
        """Importance-weighted bound on -ln p(x) in nats per patch, never above ``nats`` in expectation.

        -ln (1/S) Σ_s p(x|z_s) p(z_s)/q(z_s|x), z_s ~ q, with observation noise σ² = 1/2 (Burda et al., 2016).
        """
        require_count("num_samples", num_samples)
        rows = []
        with own_random_numbers(seed, x.device):
            for part in x.split(max(1, (1 << 22) // (num_samples * self.num_latents * (self.population or 1)))):
                log_rate, log_prior = self.log_rates(part)
                rate, prior = log_rate.exp(), log_prior.exp()
                z = torch.poisson(rate.expand(num_samples, *rate.shape))
                log_ratio = (z * (log_prior - log_rate) - (prior - rate)).sum(dim=-1)
                error = ReconstructionError(part, self.decode, None)(z)
                log_weight = log_ratio - error - 0.5 * self.num_pixels * math.log(math.pi)
                rows.append(math.log(num_samples) - log_weight.logsumexp(dim=0))
        return torch.cat(rows, dim=-1)

    def extra_repr(self) -> str:
        many = "" if self.population is None else f", population={self.population}"
        return f"num_pixels={self.num_pixels}, num_latents={self.num_latents}{many}"


class Baselines:
    """One :class:`hitchhiker.estimators.MovingAverage` for each model of a population."""

    def __init__(self, population: int):
        self._each = [estimators.MovingAverage() for _ in range(population)]

    def __getitem__(self, model: int) -> estimators.MovingAverage:
        return self._each[model]

    def __iter__(self):
        return iter(self._each)


class _Draws:
    """Initial values from one generator a model, so that a population starts where its models alone would."""

    def __init__(self, seeds: Sequence[int], population: int | None):
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._single = population is None

    def _stack(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        values = [draw(generator) for generator in self._generators]
        return values[0] if self._single else torch.stack(values)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return self._stack(lambda g: low + (high - low) * torch.rand(shape, generator=g))

    def normal(self, scale: float, *shape: int) -> Tensor:
        return self._stack(lambda g: scale * torch.randn(shape, generator=g))


def _network(kind, role: str, n_in: int, n_out: int, hidden: int, scale: float, draws: _Draws) -> nn.Module:
    if isinstance(kind, nn.Module):
        return kind
    if kind == "linear":
        return _Dense(draws.normal(scale, n_out, n_in), bias=False)
    if kind == "mlp":
        first = _Dense(draws.normal(1 / math.sqrt(n_in), hidden, n_in), bias=True)
        return nn.Sequential(first, nn.SiLU(), _Dense(draws.normal(scale, n_out, hidden), bias=True))
    return _conv_network(role, n_in, n_out, hidden, scale, draws)


def _conv_network(role: str, n_in: int, n_out: int, channels: int, scale: float, draws: _Draws) -> nn.Module:
    """Two strided convolutions and a dense layer, or the reverse; pixels are rows of a square image."""
    pixels = n_in if role == "encoder" else n_out
    side = math.isqrt(pixels)
    small = side // 4
    flat = channels * small * small
    if role == "encoder":
        layers: list[nn.Module] = [nn.Conv2d(1, channels, 4, 2, 1), nn.Conv2d(channels, channels, 4, 2, 1)]
        network = nn.Sequential(
            _Reshape(1, side, side), layers[0], nn.SiLU(), layers[1], nn.SiLU(),
            _Reshape(flat), _Dense(draws.normal(scale, n_out, flat), bias=True),
        )  # fmt: skip
    else:
        layers = [nn.ConvTranspose2d(channels, channels, 4, 2, 1), nn.ConvTranspose2d(channels, 1, 4, 2, 1)]
        network = nn.Sequential(
            _Dense(draws.normal(1 / math.sqrt(n_in), flat, n_in), bias=True), nn.SiLU(), _Reshape(channels, small, small),
            layers[0], nn.SiLU(), layers[1], _Reshape(pixels),
        )  # fmt: skip
    with torch.no_grad():
        for layer in layers:
            weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
            # a stride of 2 both ways: an output pixel of the transposed one sees a quarter of the kernel
            fan_in = weight[0].numel() if role == "encoder" else weight[:, 0].numel() / 4
            weight.copy_(draws.normal(1 / math.sqrt(fan_in), *weight.shape))
            bias.zero_()
    return _Batched(network)


class _Reshape(nn.Module):
    def __init__(self, *shape: int):
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], *self.shape)


class _Batched(nn.Module):
    """A network for (N, n) inputs, given (..., n): samples and batch become one axis and come back."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)


def _times(phi: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda z: z @ phi.mT


def _kl_of_log_rates(u: Tensor, v: Tensor) -> Tensor:
    """KL(Poisson(e^u) ‖ Poisson(e^v)) = e^v (1 + e^δ (δ - 1)), δ = u - v: the form of section G.1 and of
    the code.

    From log-rates, because they are what the model has: no logarithm of a small rate is taken.
    """
    delta = u - v
    return u.exp() * delta - v.exp() * torch.expm1(delta)


def _lifetime_sparsity(first: Tensor, second: Tensor, count: int) -> Tensor:
    """(1 - ⟨z⟩²/⟨z²⟩)/(1 - 1/n) per latent, averaged over latents that fired; 0 when none did."""
    fired = second > 0
    sparsity = (1 - first.square() / (count * second.clamp(min=1))) / (1 - 1 / count)
    return torch.where(fired, sparsity, 0.0).sum(dim=-1) / fired.sum(dim=-1).clamp(min=1)


def _check(num_pixels, num_latents, seed, population, encoder, decoder, hidden, scale, prior) -> list[int]:
    for name, value in (("num_pixels", num_pixels), ("num_latents", num_latents), ("hidden", hidden)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    if not scale > 0:
        raise ValueError(f"init_scale must be > 0, got {scale}")
    if not (len(prior) == 2 and -math.inf < prior[0] <= prior[1] < math.inf):
        raise ValueError(f"prior_log_rates must be (low, high), finite, with low <= high, got {prior}")
    for role, kind in (("encoder", encoder), ("decoder", decoder)):
        if not isinstance(kind, nn.Module) and kind not in ARCHITECTURES:
            raise ValueError(f"{role} must be one of {ARCHITECTURES} or a module, got {kind!r}")
        if population is not None and (isinstance(kind, nn.Module) or kind == "conv"):
            raise ValueError(f"population must be None when the {role} is not 'linear' or 'mlp', got {population}")
        if kind == "conv" and (math.isqrt(num_pixels) ** 2 != num_pixels or math.isqrt(num_pixels) % 4):
            raise ValueError(
                f"num_pixels must be the square of a multiple of 4 for a convolutional {role}, got {num_pixels}"
            )
    if population is None:
        if isinstance(seed, Iterable):
            raise ValueError(f"seed must be one number unless population is given, got {seed}")
        require_seed("seed", int(seed))
        return [int(seed)]
    seeds = [int(s) for s in seed] if isinstance(seed, Iterable) else [int(seed) + p for p in range(population)]
    if population < 1 or len(seeds) != population:
        raise ValueError(f"seed must have one entry for each of the population's {population} models, got {seeds}")
    for one in seeds:
        require_seed("seed", one)
    return seeds
