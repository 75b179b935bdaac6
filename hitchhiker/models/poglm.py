"""Hidden neurons behind spike trains: the partially observable generalized linear model (POGLM, section G.2).

    [x_t; z_t] ~ Poisson(λ_t),   λ_t = f(b + Σ_k W_k [x_{t-k}; z_{t-k}]),   k = 1 … K      the network
    z_t ~ Poisson(r_t),          r_t = softplus(encoder of x)                              the guess about what is hidden
    ELBO = E[ln p(x, z) - ln q(z | x)]

x are V neurons in view, z are H hidden ones.  Every parameter has the leading axes ``population``, so that data sets,
seeds and temperatures train together as one batch of tensors; models of a population never touch each other.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Real
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional

from hitchhiker import estimators
from hitchhiker._files import make_folder, require_entries, require_vacant, sha256, write_atomically
from hitchhiker._random import own_random_numbers, stream
from hitchhiker.checks import require_count, require_seed

from .glm import GLM, MIN_RATE, check_counts, fit_glm, get_link, lagged
from .methods import Method, get_method, known_methods
from .particle import Refined, hidden_matrix, particle_em, particle_filter, visible_drive

ENCODERS = ("conv", "forward", "forward-backward", "forward-self")
KL_FORMS = ("analytic", "sampled")
INITIAL = ("paper", "library", "small")
LOCAL_SCORE = "score:local"


def poglm_methods() -> list[str]:
    """Names of the methods that train a POGLM: those of ``known_methods()`` but "exact", and "score:local".

    >>> "eat-cubic" in poglm_methods(), "exact" in poglm_methods()
    (True, False)
    """
    return [name for name in known_methods() if name != "exact"] + [LOCAL_SCORE]


def _method(name: str | Method) -> tuple[Method, bool]:
    """The method, and whether its score credits only the bins that a hidden count can reach."""
    if name == LOCAL_SCORE:
        return get_method("score:leave-one-out"), True
    if isinstance(name, str) and name not in poglm_methods():
        raise ValueError(f"method must be one of {', '.join(poglm_methods())}, got {name!r}")
    return get_method(name), False


class POGLM(nn.Module):
    """A generalized linear model of which some neurons are hidden, with the encoder that infers them.

    Parameters
    ----------
    num_visible, num_hidden : V and H.
    history : K >= 1, bins back that a spike acts; strictly causal.
    seed : of the initial values; with a population a number (model p has seed + p) or a sequence or tensor that
        broadcasts to it, so that models which differ in temperature only can start equal.
    population : leading axes, e.g. ``(data sets, seeds, temperatures)``; ``()`` for a single model.
    encoder : what the posterior of bin t sees.  ``"conv"``: the 2·(width//2) + 1 bins around t (G.2: width 7);
        ``"forward"``: the ``width`` bins before t, as the network itself sees them; ``"forward-backward"``: ``width``
        bins before and ``width`` bins after t; ``"forward-self"``: as forward, and the ``width`` bins of hidden counts
        just drawn (sequential, slower).
    width : see above, bins.
    channels : tanh units of a hidden layer of the encoder; None for a linear one, as in G.2.
    link, max_rate : of the network: f, and the clamp of its rates (counts per bin; the authors' code has 10).
        Posterior rates are softplus, clamped likewise.
    initial : ``"paper"`` draws all from N(0, 0.5²) (G.2); ``"library"`` as torch's convolutions do, U(-1/√n, 1/√n) for n
        inputs; ``"small"`` draws small weights and starts hidden rates at 0.3.

    Attributes ``weights`` (*population, N, N, K), ``weights[..., n, m, k-1]`` from m to n, visible neurons first, and
    ``bias`` (*population, N).

    Counts may be (sequences, T, V), the same data for all models, or have leading axes that broadcast to the population,
    e.g. (data sets, 1, 1, sequences, T, V).

    Raises ``ValueError`` naming argument, value and domain.

    >>> model = POGLM(3, 2, history=1)
    >>> model.loss(torch.ones(4, 20, 3), "eat-cubic", temperature=0.1).shape
    torch.Size([4])

    Source: section G.2; encoders after Li et al. (2024a).
    """

    weights: Tensor
    bias: Tensor
    encoder_weight: Tensor
    encoder_bias: Tensor
    readout_weight: Tensor
    readout_bias: Tensor
    self_weight: Tensor

    def __init__(
        self,
        num_visible: int,
        num_hidden: int,
        history: int = 1,
        seed: int | Sequence[int] | Tensor = 0,
        *,
        population: tuple[int, ...] = (),
        encoder: str = "conv",
        width: int = 7,
        channels: int | None = None,
        link: str = "softplus",
        max_rate: float = 10.0,
        initial: str = "small",
    ):
        super().__init__()
        for name, value in (
            ("num_visible", num_visible), ("num_hidden", num_hidden), ("history", history), ("width", width),
        ):  # fmt: skip
            require_count(name, value)
        require_count("channels", channels, optional=True)
        if encoder not in ENCODERS:
            raise ValueError(f"encoder must be one of {', '.join(ENCODERS)}, got {encoder!r}")
        if initial not in INITIAL:
            raise ValueError(f"initial must be one of {', '.join(INITIAL)}, got {initial!r}")
        if not max_rate > MIN_RATE:
            raise ValueError(f"max_rate must be > {MIN_RATE}, got {max_rate}")
        if not isinstance(population, tuple) or any(not isinstance(p, int) or p < 1 for p in population):
            raise ValueError(f"population must be a tuple of whole numbers >= 1, got {population!r}")
        get_link(link)
        self.num_visible, self.num_hidden, self.history = num_visible, num_hidden, history
        self.population, self.link, self.max_rate = population, link, float(max_rate)
        self.encoder, self.width, self.channels = encoder, width, channels
        seeds = _seeds(seed, population)
        self.settings = {
            "num_visible": num_visible, "num_hidden": num_hidden, "history": history, "seed": seeds,
            "population": list(population), "encoder": encoder, "width": width, "channels": channels, "link": link,
            "max_rate": float(max_rate), "initial": initial,
        }  # fmt: skip
        self._initialise(seeds, initial)

    # --- parameters

    def _initialise(self, seeds: list[int], initial: str) -> None:
        v, h, n = self.num_visible, self.num_hidden, self.num_visible + self.num_hidden
        inputs = v * len(self.offsets)
        layers = {"encoder_weight": (self.channels or h, inputs), "encoder_bias": (self.channels or h,)}
        if self.channels is not None:
            layers |= {"readout_weight": (h, self.channels), "readout_bias": (h,)}
        if self.encoder == "forward-self":
            layers["self_weight"] = (h, h * self.width)
        shapes = {"weights": (n, n, self.history), "bias": (n,)} | layers
        # small: a hidden rate near 0.3, weights that let every unit see a little of everything
        rest = float(get_link("softplus").inverse(torch.tensor(0.3)))
        start = float(get_link(self.link).inverse(torch.tensor(0.3)))
        last = "readout" if self.channels is not None else "encoder"
        fan_in = {"weights": n * self.history, "encoder": inputs, "readout": self.channels or 0, "self": h * self.width}

        def draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
            width = 1 / math.sqrt(fan_in["weights" if name == "bias" else name.partition("_")[0]])
            if initial == "paper":
                return 0.5 * torch.randn(shape, generator=generator)
            if initial == "library":
                return width * (2 * torch.rand(shape, generator=generator) - 1)
            if name.endswith("bias"):
                return torch.full(shape, start if name == "bias" else rest if name.startswith(last) else 0.0)
            hidden_layer = name == "encoder_weight" and self.channels is not None
            return (width if hidden_layer else 0.1 * width) * torch.randn(shape, generator=generator)

        for name, shape in shapes.items():
            draws = [draw(name, shape, _generator(s, name)) for s in seeds]
            setattr(self, name, nn.Parameter(torch.stack(draws).view(*self.population, *shape)))

    @property
    def offsets(self) -> list[int]:
        """Bins relative to t at which the encoder looks at the visible counts."""
        if self.encoder == "conv":
            half = self.width // 2
            return list(range(-half, half + 1))
        before = list(range(-self.width, 0))
        return before + list(range(1, self.width + 1)) if self.encoder == "forward-backward" else before

    @property
    def sequential(self) -> bool:
        """Whether the posterior of a bin depends on hidden counts already drawn."""
        return self.encoder == "forward-self"

    @torch.no_grad()
    def start_from(self, glm: GLM, seed: int = 0, hidden_rate: float = 0.3, scale: float = 0.1) -> POGLM:
        """Begin where a visible-only model ended: the recipe that finds strong hidden inputs.

        Visible weights and biases come from ``glm`` (its longer history is cut, a shorter one padded); hidden neuron j
        starts with weights N(0, ``scale``²) and 1 on the visible neuron j (mod V), from the last bin, and with a bias
        that gives ``hidden_rate`` counts a bin.  Returns the model.
        """
        v = self.num_visible
        if glm.num_neurons != v:
            raise ValueError(f"glm must have {v} neurons, got {glm.num_neurons}")
        lags = min(self.history, glm.history)
        self.weights.zero_()
        self.weights[..., :v, :v, :lags] = self._expand(glm.weights[..., :lags], 3)
        self.bias[..., :v] = self._expand(glm.bias, 1)
        generator = torch.Generator().manual_seed(seed)
        shape = (*self.population, v, self.num_hidden)
        into = scale * torch.randn(shape, generator=generator).to(self.weights)
        for j in range(self.num_hidden):
            into[..., j % v, j] += 1.0
        self.weights[..., :v, v:, 0] = into
        self.bias[..., v:] = float(get_link(self.link).inverse(torch.tensor(float(hidden_rate))))
        return self

    def _expand(self, value: Tensor, own: int) -> Tensor:
        """A parameter of other leading axes, put where it broadcasts with the population."""
        lead, shape = value.shape[: value.dim() - own], value.shape[value.dim() - own :]
        missing = len(self.population) - len(lead)
        return value.reshape(*lead, *[1] * missing, *shape).to(self.weights)

    # --- the network

    def rates(
        self, drive: Float[Tensor, "*models bins neurons"], z: Float[Tensor, "*samples bins hidden"]
    ) -> Float[Tensor, "*samples bins neurons"]:
        """Rates of all N neurons given the visible counts' drive (:func:`visible_drive`) and hidden counts."""
        push = lagged(z, self.history).flatten(-2) @ self._hidden_matrix()
        return get_link(self.link).rate(push + drive).clamp(MIN_RATE, self.max_rate)

    def _hidden_matrix(self) -> Tensor:
        return hidden_matrix(self.weights, self.num_visible).unsqueeze(-3)

    def drive(self, counts: Tensor) -> Tensor:
        """(*population, sequences, T, N): bias and visible part of the drive."""
        return visible_drive(self.weights, self.bias, counts)

    # --- the encoder

    def window(self, counts: Tensor) -> Tensor:
        """(…, T, V·offsets): what the encoder sees at each bin; zeros beyond both ends."""
        offsets, bins = self.offsets, counts.shape[-2]
        reach = max(abs(o) for o in offsets)
        padded = functional.pad(counts, (0, 0, reach, reach))
        return torch.cat([padded[..., reach + o : reach + o + bins, :] for o in offsets], dim=-1)

    def _encode(self, counts: Tensor) -> Tensor:
        """The posterior's drive from the visible counts, (*population, sequences, T, H)."""
        u = self.window(counts) @ self.encoder_weight.mT.unsqueeze(-3) + self.encoder_bias[..., None, None, :]
        if self.channels is not None:
            u = u.tanh() @ self.readout_weight.mT.unsqueeze(-3) + self.readout_bias[..., None, None, :]
        return u

    def _posterior(self, drive: Tensor) -> Tensor:
        return functional.softplus(drive).clamp(MIN_RATE, self.max_rate)

    def posterior_rate(
        self, counts: Real[Tensor, "..."], z: Float[Tensor, "..."] | None = None
    ) -> Float[Tensor, "... hidden"]:
        """Rates of q(z | x), counts per bin: (*population, sequences, T, H).

        A sequential encoder also needs the hidden ``z`` (S, *population, sequences, T, H) whose past it looks at.
        """
        u = self._encode(counts.to(self.bias))
        if self.sequential:
            if z is None:
                raise ValueError("z must be given for the encoder 'forward-self', got None")
            u = u + lagged(z, self.width).flatten(-2) @ self.self_weight.mT.unsqueeze(-3)
        return self._posterior(u)

    def sample_posterior(
        self,
        counts: Real[Tensor, "..."],
        num_samples: int = 1,
        method: str | Method = "eat-cubic",
        temperature: Tensor | float = 0.0,
    ) -> tuple[Float[Tensor, "samples ..."], Float[Tensor, "..."]]:
        """(z, rate): hidden counts (S, *population, sequences, T, H) from q, and the rates they were drawn at.

        At temperature 0 they are whole numbers without gradient; above it the method's relaxed counts.
        """
        law = _method(method)[0].law
        tau = self._temperature(temperature)
        u = self._encode(counts.to(self.bias))
        if not self.sequential:
            rate = self._posterior(u)
            return law(rate.log(), tau).rsample((num_samples,)), rate
        matrix = self.self_weight.mT.unsqueeze(-3)
        u = u.expand(num_samples, *u.shape)
        past = u.new_zeros(*u.shape[:-2], self.width, self.num_hidden)
        zs, rates = [], []
        for t in range(u.shape[-2]):
            step = (past.flatten(-2).unsqueeze(-2) @ matrix).squeeze(-2)
            rate = self._posterior(u[..., t, :] + step)
            z = law(rate.log(), tau.squeeze(-1) if isinstance(tau, Tensor) else tau).rsample(())
            past = torch.cat([z.unsqueeze(-2), past[..., :-1, :]], dim=-2)
            zs.append(z)
            rates.append(rate)
        return torch.stack(zs, dim=-2), torch.stack(rates, dim=-2)

    def _temperature(self, temperature: Tensor | float) -> Tensor | float:
        """One τ a model, shaped to broadcast with posterior rates (*population, sequences, T, H)."""
        if not isinstance(temperature, Tensor) or temperature.dim() == 0:
            return float(temperature)
        return temperature.to(self.bias).expand(self.population)[..., None, None, None]

    # --- the objective

    def objective(self, counts: Tensor, rate: Tensor | None, kl: str = "analytic") -> BinLoss:
        """The integrand of the ELBO for these counts: z ↦ loss of each bin (see :class:`BinLoss`)."""
        return BinLoss(self, counts.to(self.bias), rate, kl)

    def loss(
        self,
        counts: Real[Tensor, "..."],
        method: str | Method = "eat-cubic",
        temperature: Tensor | float = 0.1,
        num_samples: int = 1,
        *,
        kl: str = "analytic",
    ) -> Float[Tensor, "..."]:
        """-ELBO of each sequence, nats, (*population, sequences): its gradient is the method's estimate.

        Parameters
        ----------
        counts : (…, sequences, T, V).
        method : one of :func:`poglm_methods`.  ``"difference"`` evaluates shifted counts K at a time, since a hidden
            count reaches the next K bins only: the numbers of :func:`hitchhiker.estimators.difference` at K·H evaluations.
            ``"score:local"`` credits a hidden count with those bins only.  Baselines of the score function are means
            over the other sequences (and samples) of the same model.
        temperature : τ, one number, or one a model: a tensor that broadcasts to the population.
        num_samples : S draws of all hidden counts.
        kl : ``"analytic"`` takes Σ_t KL(q_t ‖ p(z_t | past)) in closed form, which a Poisson posterior has: nothing
            depends on ln q at relaxed counts, and there is less noise.  ``"sampled"`` takes ln p(x, z) - ln q(z | x) at the
            sample, the paper's form: its ln z! cancels and a relaxed z enters linearly, so with an indicator whose mean is
            off (c ≠ 1) the KL is off by that factor, and the objective is no bound.

        Raises ``ValueError`` for counts that are not whole numbers >= 0 of V neurons, an unknown method or form, or a
        method that the encoder cannot use.
        """
        check_counts("counts", counts, self.num_visible)
        return self._loss(counts, method, temperature, num_samples, kl=kl)

    def _loss(
        self, counts: Tensor, method: str | Method, temperature: Tensor | float, num_samples: int, *, kl: str
    ) -> Tensor:
        """As :meth:`loss`, for counts that are known to be good: looking at them each step would make a GPU wait."""
        chosen, local = _method(method)
        require_count("num_samples", num_samples)
        _require_kl(kl)
        x = counts.to(self.bias)
        score = chosen.estimator is estimators.score_function
        if self.sequential:
            return self._sequential_loss(x, chosen, score, local, temperature, num_samples, kl)
        rate = self.posterior_rate(x)
        f = self.objective(x, rate, kl)
        tau = self._temperature(temperature)
        if score:
            with torch.no_grad():
                z = torch.poisson(rate.expand(num_samples, *rate.shape))
            log_q = torch.xlogy(z, rate) - rate - torch.lgamma(z + 1)
            return _score(f, z, log_q, local, _own_baseline(chosen.baseline))
        if chosen.estimator is estimators.difference:
            return _difference(f, rate, num_samples)
        law = chosen.law(rate.log(), tau if chosen.uses_temperature else 0.0)
        return chosen.estimator(f, law, num_samples)

    def _sequential_loss(self, x, chosen: Method, score: bool, local: bool, temperature, num_samples: int, kl: str):
        if local or not (score or chosen.estimator is estimators.pathwise):
            raise ValueError(
                "method must be pathwise (eat-…, gsm) or a whole-sequence score for the encoder 'forward-self', "
                f"got {LOCAL_SCORE if local else chosen.name!r}"
            )
        if not score:
            z, rate = self.sample_posterior(x, num_samples, chosen, temperature)
            return self.objective(x, rate, kl)(z).mean(dim=0)
        with torch.no_grad():
            z, _ = self.sample_posterior(x, num_samples)
        rate = self.posterior_rate(x, z)
        log_q = torch.xlogy(z, rate) - rate - torch.lgamma(z + 1)
        return _score(self.objective(x, rate, kl), z, log_q, False, _own_baseline(chosen.baseline))

    # --- judging

    @torch.no_grad()
    def elbo(self, counts: Real[Tensor, "..."], num_samples: int = 16) -> Float[Tensor, "..."]:
        """ELBO of each sequence at true integer counts, KL in closed form: (*population, sequences), nats."""
        require_count("num_samples", num_samples)
        x = counts.to(self.bias)
        total = torch.zeros(())
        for size in _chunks(num_samples, 8):
            z, rate = self.sample_posterior(x, size)
            total = total - self.objective(x, rate)(z).sum(dim=0)
        return total / num_samples

    @torch.no_grad()
    def importance_log_likelihood(self, counts: Real[Tensor, "..."], num_samples: int = 1000) -> Float[Tensor, "..."]:
        """ln (1/S) Σ p(x, z_s)/q(z_s | x), z_s ~ q: low when q misses what p holds; (*population, sequences), nats."""
        require_count("num_samples", num_samples)
        x = counts.to(self.bias)
        parts = []
        for size in _chunks(num_samples, 50):
            z, rate = self.sample_posterior(x, size)
            parts.append((-self.objective(x, rate, "sampled")(z)).logsumexp(dim=0))
        return torch.stack(parts).logsumexp(dim=0) - math.log(num_samples)

    def log_likelihood(
        self, counts: Real[Tensor, "..."], num_particles: int = 1000, generator: torch.Generator | None = None
    ) -> Float[Tensor, "..."]:
        """ln p(x) of each sequence by a particle filter, nats: (*population, sequences)."""
        return particle_filter(
            self.weights.detach(), self.bias.detach(), counts, num_particles, link=self.link, max_rate=self.max_rate,
            generator=generator,
        ).log_likelihood  # fmt: skip

    @torch.no_grad()
    def conditional_log_likelihood(
        self, counts: Real[Tensor, "..."], num_samples: int = 16
    ) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
        """(E ln p(x | z), E ln p(x, z)) with z ~ q: the text's CLL, and what the authors' code reports under that name."""
        require_count("num_samples", num_samples)
        x = counts.to(self.bias)
        z, _ = self.sample_posterior(x, num_samples)
        rate = self.rates(self.drive(x), z)
        v = self.num_visible
        seen = (torch.xlogy(x, rate[..., :v]) - rate[..., :v] - torch.lgamma(x + 1)).sum(dim=(-1, -2))
        unseen = (torch.xlogy(z, rate[..., v:]) - rate[..., v:] - torch.lgamma(z + 1)).sum(dim=(-1, -2))
        return seen.mean(dim=0), (seen + unseen).mean(dim=0)

    @torch.no_grad()
    def hidden_log_likelihood(
        self, counts: Real[Tensor, "..."], hidden: Real[Tensor, "..."], order: Tensor | None = None
    ) -> Float[Tensor, "..."]:
        """ln q(z | x) at the hidden counts that were really there, nats: the HLL of Figure 14, (*population, sequences).

        ``order`` (*population, H): which hidden neuron of the model stands for each of the truth (:func:`match_hidden`).
        """
        x, z = counts.to(self.bias), hidden.to(self.bias)
        rate = self.posterior_rate(x, z.unsqueeze(0) if self.sequential else None)
        rate = rate.squeeze(0) if self.sequential else rate
        if order is not None:
            rate = rate.gather(-1, order[..., None, None, :].expand_as(rate))
        return (torch.xlogy(z, rate) - rate - torch.lgamma(z + 1)).sum(dim=(-1, -2))

    @torch.no_grad()
    def hidden_correlation(self, counts: Real[Tensor, "..."], hidden: Real[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Pearson correlation over all bins between hidden counts that were really there and the posterior rate that follows
        each best (one hidden neuron of the model for each, by the assignment problem): (*population, H of the truth).

        Needs no true weights: what a cell hidden on purpose is judged by.  0 for a hidden neuron that never fires.
        """
        x, z = counts.to(self.bias), hidden.to(self.bias)
        rate = self.sample_posterior(x, 16)[1].mean(dim=0) if self.sequential else self.posterior_rate(x)
        rate, z = (
            v.flatten(-3, -2) - v.mean(dim=(-3, -2)).unsqueeze(-2) for v in (rate, z.expand(*rate.shape[:-1], -1))
        )
        scale = z.norm(dim=-2).unsqueeze(-1) * rate.norm(dim=-2).unsqueeze(-2)
        correlation = (z.mT @ rate) / scale.clamp(min=1e-12)  # (*population, true, of the model)
        flat = correlation.reshape(-1, *correlation.shape[-2:]).cpu().double().numpy()
        best = [torch.as_tensor(c[linear_sum_assignment(c, maximize=True)]) for c in flat]
        return torch.stack(best).view(*correlation.shape[:-2], -1).to(self.bias)

    @torch.no_grad()
    def clipped(self, counts: Real[Tensor, "..."], num_samples: int = 1) -> Float[Tensor, "..."]:
        """(*population) fraction of the network's rates that ``max_rate`` holds, with z ~ q: near 0 in a sane model."""
        require_count("num_samples", num_samples)
        x = counts.to(self.bias)
        z, _ = self.sample_posterior(x, num_samples)
        return (self.rates(self.drive(x), z) >= self.max_rate).to(x).mean(dim=(-1, -2, -3)).mean(dim=0)

    def refine(self, counts: Real[Tensor, "..."], **options: Any) -> Refined:
        """Particle EM from the present weights (:func:`hitchhiker.models.particle.particle_em`): mends their shrinkage.

        Weights and biases are changed in place; the encoder is not, so its ELBO means nothing until it is trained again
        (``fit_poglm(…, train="encoder")``).
        """
        found = particle_em(self.weights, self.bias, counts, link=self.link, max_rate=self.max_rate, **options)
        with torch.no_grad():
            self.weights.copy_(found.weights)
            self.bias.copy_(found.bias)
        return found

    def glm(self) -> GLM:
        """The network as a :class:`hitchhiker.models.GLM` of all N neurons (for complete data)."""
        return GLM(self.weights.detach(), self.bias.detach(), link=self.link, max_rate=self.max_rate)


class BinLoss:
    """The integrand of -ELBO: hidden counts (S, *population, sequences, T, H) to losses (S, *population, sequences).

    ``bins(z)`` keeps the bins.  A bin's loss is -ln p(x_t | past) plus the KL of its hidden counts: in closed form
    (``kl="analytic"``), λ ln(λ/r) - λ + r with posterior rate λ and the network's rate r; or at the sample
    (``"sampled"``), z ln(λ/r) - λ + r.
    """

    def __init__(self, model: POGLM, x: Tensor, rate: Tensor | None, kl: str = "analytic"):
        if kl not in KL_FORMS:
            raise ValueError(f"kl must be one of {', '.join(KL_FORMS)}, got {kl!r}")
        self.model, self.x, self.rate, self.kl = model, x, rate, kl
        self.drive = model.drive(x)
        self.log_rate = None if rate is None else rate.log()
        self.factorials = torch.lgamma(x + 1).sum(dim=-1)

    def bins(self, z: Tensor) -> Tensor:
        assert self.rate is not None
        assert self.log_rate is not None
        v = self.model.num_visible
        rates = self.model.rates(self.drive, z)
        log_rates = rates.log()
        seen = rates.sum(dim=-1) - (self.x * log_rates[..., :v]).sum(dim=-1)  # the hidden rates of the KL as well
        weight = self.rate if self.kl == "analytic" else z
        hidden = (weight * (self.log_rate - log_rates[..., v:]) - self.rate).sum(dim=-1)
        return seen + hidden + self.factorials

    def __call__(self, z: Tensor) -> Tensor:
        return self.bins(z).sum(dim=-1)

    @property
    def reach(self) -> tuple[int, int]:
        """(first, last) bins after t whose loss depends on z_t itself."""
        return (1 if self.kl == "analytic" else 0), self.model.history


def _window_sum(bins: Tensor, first: int, last: int) -> Tensor:
    """Σ_{k=first}^{last} bins[t + k], zeros beyond the end."""
    length = bins.shape[-1]
    padded = functional.pad(bins, (0, last))
    return sum((padded[..., k : k + length] for k in range(first, last + 1)), torch.zeros_like(bins))


def _own_baseline(name: str | None) -> str | None:
    # losses of one batch stand in for a moving average: other sequences of the same model, present weights
    return "leave_one_out" if name == "moving_average" else name


def _score(f: BinLoss, z: Tensor, log_q: Tensor, local: bool, baseline: str | None) -> Tensor:
    """Score-function surrogate; ``local`` credits each hidden count with the bins that it reaches."""
    bins = f.bins(z)
    with torch.no_grad():
        credit = _window_sum(bins, *f.reach) if local else bins.sum(dim=-1, keepdim=True)
        credit = credit.unsqueeze(-1)  # (S, *population, sequences, T or 1, 1)
        advantage = credit - _baseline(credit, baseline)
    push = (advantage * (log_q - log_q.detach())).sum(dim=(-1, -2))
    return (bins.sum(dim=-1) + push).mean(dim=0)


def _baseline(credit: Tensor, baseline: str | None) -> Tensor | float:
    """A mean over samples and sequences of the same model (and, for local credit, the same bin)."""
    if baseline is None:
        return 0.0
    samples, sequences = credit.shape[0], credit.shape[-3]
    count = samples * sequences
    total = credit.sum(dim=(0, -3), keepdim=True)
    if baseline == "batch_mean":
        return total / count
    if samples > 1:  # the other draws for the same sequence know its level best
        return (credit.sum(dim=0) - credit) / (samples - 1)
    if count == 1:
        raise ValueError("num_samples must be >= 2 for a leave-one-out baseline on a single sequence, got 1")
    return (total - credit) / (count - 1)


def _difference(f: BinLoss, rate: Tensor, num_samples: int) -> Tensor:
    """Σ over hidden counts of E[f(z + e) - f(z)], all bins of one residue class shifted at once."""
    with torch.no_grad():
        z = torch.poisson(rate.expand(num_samples, *rate.shape))
    bins = f.bins(z)
    with torch.no_grad():
        first, last = f.reach
        stride, length = last - first + 1, z.shape[-2]
        gradient = torch.zeros_like(rate)
        for phase, h in itertools.product(range(stride), range(z.shape[-1])):
            shifted = z.clone()
            shifted[..., phase::stride, h] += 1
            change = _window_sum(f.bins(shifted) - bins, first, last)
            gradient[..., phase:length:stride, h] = change.mean(dim=0)[..., phase::stride]
    return bins.sum(dim=-1).mean(dim=0) + (gradient * (rate - rate.detach())).sum(dim=(-1, -2))


def _chunks(total: int, size: int) -> list[int]:
    return [size] * (total // size) + ([total % size] if total % size else [])


def _seeds(seed: int | Sequence[int] | Tensor, population: tuple[int, ...]) -> list[int]:
    size = math.prod(population)
    if isinstance(seed, int):
        require_seed("seed", seed)
        return [seed + p for p in range(size)]
    try:
        return [int(s) for s in torch.as_tensor(seed).expand(population).flatten()]
    except RuntimeError as error:
        raise ValueError(f"seed must broadcast to the population {population}, got {seed}") from error


def _generator(seed: int, name: str) -> torch.Generator:
    # one stream a parameter, so that another encoder leaves the network's initial weights as they are
    return torch.Generator().manual_seed(stream(seed, sum(map(ord, name))))


# --- comparing with the truth


@dataclass(frozen=True)
class Recovery:
    """Estimated against true parameters after the best permutation of the hidden neurons; entries are (*population).

    Attributes
    ----------
    order : (*population, H), the model's hidden neuron that stands for each true one.
    weights_error, bias_error : mean absolute difference over all weights (biases).
    signs : share of the true weights of size above ``threshold`` whose sign is right; NaN if there is none.
    num_large : how many weights that is.
    scale : slope through 0 of estimated on true weights, over those large ones: 1 is unshrunk.
    threshold : the size.
    weights, bias : the estimates in the truth's order.
    """

    order: Tensor
    weights_error: Tensor
    bias_error: Tensor
    signs: Tensor
    num_large: Tensor
    scale: Tensor
    threshold: float
    weights: Tensor
    bias: Tensor


@torch.no_grad()
def match_hidden(weights: Tensor, bias: Tensor, true_weights: Tensor, true_bias: Tensor, num_visible: int) -> Tensor:
    """(*population, H) order of the hidden neurons that is nearest to the truth, by the assignment problem.

    The cost of putting hidden neuron i in place j is the absolute difference of its weights to and from the visible
    neurons, of its self-weight and of its bias.  Parameters broadcast over leading axes.
    """
    v, h = num_visible, bias.shape[-1] - num_visible
    lead = torch.broadcast_shapes(weights.shape[:-3], true_weights.shape[:-3])

    def described(w: Tensor, b: Tensor) -> Tensor:
        own = w[..., v:, v:, :].diagonal(dim1=-3, dim2=-2).mT  # (…, H, K)
        out, into = w[..., :v, v:, :].movedim(-2, -3).flatten(-2), w[..., v:, :v, :].flatten(-2)
        return torch.cat([out, into, own, b[..., v:, None]], dim=-1).expand(*lead, h, -1)

    mine, true = described(weights, bias), described(true_weights, true_bias)
    cost = (mine.unsqueeze(-3) - true.unsqueeze(-2)).abs().sum(dim=-1)  # (…, true j, mine i)
    orders = [torch.as_tensor(linear_sum_assignment(c)[1]) for c in cost.reshape(-1, h, h).cpu().double().numpy()]
    return torch.stack(orders).view(*lead, h).to(weights.device)


@torch.no_grad()
def recovery(
    weights: Float[Tensor, "*population neurons neurons lags"],
    bias: Float[Tensor, "*population neurons"],
    true_weights: Float[Tensor, "..."],
    true_bias: Float[Tensor, "..."],
    num_visible: int,
    threshold: float = 1.0,
) -> Recovery:
    """Compare parameters with the truth, hidden neurons permuted for the best match (see :class:`Recovery`).

    Histories may differ: the shorter one is padded with zeros.

    >>> w, b = torch.zeros(3, 3, 1), torch.zeros(3)
    >>> w[0, 1], w[0, 2] = 2.0, -3.0
    >>> swapped = w[:, [0, 2, 1]]
    >>> float(recovery(swapped, b, w, b, num_visible=1).weights_error)
    0.0
    """
    lags = max(weights.shape[-1], true_weights.shape[-1])
    w = functional.pad(weights, (0, lags - weights.shape[-1]))
    true = functional.pad(true_weights, (0, lags - true_weights.shape[-1])).to(w)
    order = match_hidden(w, bias, true, true_bias, num_visible)
    lead, n = order.shape[:-1], bias.shape[-1]
    seen = torch.arange(num_visible, device=w.device).expand(*lead, num_visible)
    index = torch.cat([seen, order + num_visible], dim=-1)
    w = w.expand(*lead, n, n, lags).gather(-3, index[..., :, None, None].expand(*lead, n, n, lags))
    w = w.gather(-2, index[..., None, :, None].expand(*lead, n, n, lags))
    b = bias.expand(*lead, n).gather(-1, index)
    large = (true.abs() > threshold).expand_as(w)
    count = large.sum(dim=(-1, -2, -3))
    right = ((w.sign() == true.sign()) & large).sum(dim=(-1, -2, -3)) / count
    square = (true.square() * large).sum(dim=(-1, -2, -3))
    scale = (w * true * large).sum(dim=(-1, -2, -3)) / square
    return Recovery(
        order, (w - true).abs().mean(dim=(-1, -2, -3)), (b - true_bias).abs().mean(dim=-1), right, count, scale,
        threshold, w, b,
    )  # fmt: skip


# --- training


@dataclass
class PoglmFit:
    """What :func:`fit_poglm` leaves.

    Attributes: ``history`` (rows with ``step`` and, as nested lists of the population's shape, ``loss`` (-ELBO a training
    sequence in nats, the method's own estimate), ``clipped`` (fraction of rates at the clamp: rates that explode) and, with
    validation, ``val_elbo`` (integer counts)); ``diverged``
    (*population), models that stopped being finite and were frozen where they last were; ``steps``; ``out``.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    diverged: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.bool))
    steps: int = 0
    out: Path | None = None

    def column(self, name: str) -> Tensor:
        """(rows, *population) of one entry of the history."""
        return torch.tensor([row[name] for row in self.history])


def fit_poglm(
    model: POGLM,
    counts: Real[Tensor, "..."],
    validation: Real[Tensor, "..."] | None = None,
    *,
    method: str | Method = "eat-cubic",
    temperature: Tensor | float = 0.1,
    num_samples: int = 1,
    kl: str = "analytic",
    steps: int = 300,
    batch_size: int | None = None,
    lr: float = 0.03,
    lr_end: float = 0.1,
    weight_decay: float = 0.0,
    clip: float = 50.0,
    train: str = "all",
    seed: int = 0,
    evaluate_every: int | None = None,
    callback: Callable[[int, POGLM], None] | None = None,
    out: str | PathLike[str] | None = None,
    resume: bool = False,
    checkpoint_every: int = 50,
) -> PoglmFit:
    """Train a POGLM, or a population of them, by AdamW on -ELBO.

    Parameters
    ----------
    model : changed in place.
    counts, validation : (…, sequences, T, V); leading axes broadcast to the population.
    method, temperature, num_samples, kl : of the gradient, see :meth:`POGLM.loss`.
    steps : optimizer steps in all.
    batch_size : sequences a step, the same ones for all models (default: all).
    lr, lr_end : learning rate, and the factor of it at which its cosine ends (1: constant).
    weight_decay : of AdamW.
    clip : largest gradient norm of each model (mean loss a sequence).
    train : ``"all"``, ``"network"`` or ``"encoder"``: which parameters move.
    seed : of batches and noise.
    evaluate_every : steps between two rows of the history (default: about 30 rows).
    callback : called as callback(step, model) with every row, e.g. to keep learning curves.
    out : folder for a checkpoint, ``checkpoint.safetensors``; None keeps nothing.
    resume : go on from it; the numbers are those of an uninterrupted run.  Other settings or counts are refused.
    checkpoint_every : steps between two checkpoints.

    Returns :class:`PoglmFit`.  A model whose loss or gradient stops being finite is frozen and reported in
    ``.diverged``; the others go on.  Raises ``ValueError`` for bad arguments before any work.

    >>> x = torch.poisson(torch.ones(10, 30, 2))
    >>> fit_poglm(POGLM(2, 1), x, steps=3).steps
    3

    Source: section G.2: ``method=…, kl="sampled", steps=500, batch_size=8, lr=1e-3, lr_end=1, weight_decay=0.01``.
    """
    x = check_counts("counts", counts, model.num_visible).to(model.bias)
    held = None if validation is None else check_counts("validation", validation, model.num_visible).to(model.bias)
    chosen, _ = _method(method)
    for name, count, optional in (
        ("num_samples", num_samples, False), ("steps", steps, False), ("batch_size", batch_size, True),
        ("evaluate_every", evaluate_every, True), ("checkpoint_every", checkpoint_every, False),
    ):  # fmt: skip
        require_count(name, count, optional=optional)
    require_seed("seed", seed)
    _require_kl(kl)
    _check_fit(model, x, chosen, temperature, lr, lr_end, weight_decay, clip, train)
    sequences = x.shape[-3]
    batch = min(batch_size or sequences, sequences)
    every = evaluate_every or max(1, steps // 30)
    moving = [
        p for name, p in model.named_parameters()
        if train == "all" or (name in ("weights", "bias")) == (train == "network")
    ]  # fmt: skip
    optimizer = torch.optim.AdamW(moving, lr=lr, weight_decay=weight_decay, foreach=True)
    fit = PoglmFit(diverged=torch.zeros(model.population, dtype=torch.bool), out=None if out is None else Path(out))
    running: list[Tensor] = []
    arguments: dict[str, Any] = {
        "method": LOCAL_SCORE if method == LOCAL_SCORE else chosen.name,
        "temperature": temperature.tolist() if isinstance(temperature, Tensor) else float(temperature),
        "num_samples": num_samples, "kl": kl, "steps": steps, "batch_size": batch, "lr": lr, "lr_end": lr_end,
        "weight_decay": weight_decay, "clip": clip, "train": train, "seed": seed, "evaluate_every": every,
    }  # fmt: skip
    if fit.out is not None:
        arguments |= {"counts": sha256(x), "validation": sha256(held)}
    with own_random_numbers(seed, model.bias.device):
        if resume:
            running = _load(fit, model, optimizer, arguments)
        start = fit.steps
        if fit.out is not None:
            if not resume:
                require_vacant("out", fit.out)
            make_folder("out", fit.out)
        for step in range(start, steps):
            progress = step / max(1, steps)
            rate = lr * (lr_end + (1 - lr_end) * 0.5 * (1 + math.cos(math.pi * progress)))
            for group in optimizer.param_groups:
                group["lr"] = rate
            part = x if batch == sequences else x[..., _batch(seed, step, sequences, batch), :, :]
            optimizer.zero_grad(set_to_none=True)
            loss = model._loss(part, chosen if method != LOCAL_SCORE else method, temperature, num_samples, kl=kl).mean(
                dim=-1
            )
            loss.sum().backward()
            _step(model, moving, optimizer, loss.detach(), clip, fit)
            running.append(loss.detach())
            if (step + 1) % every == 0 or step + 1 == steps:
                row = {"step": step + 1, "loss": torch.stack(running).mean(dim=0).tolist()}
                running = []
                with own_random_numbers(None, model.bias.device):  # looking must not change what is seen
                    row["clipped"] = model.clipped(part).tolist()
                    if held is not None:
                        row["val_elbo"] = model.elbo(held, 8).mean(dim=-1).tolist()
                    if callback is not None:
                        callback(step + 1, model)
                fit.history.append(row)
            fit.steps = step + 1
            if fit.out is not None and ((step + 1) % checkpoint_every == 0 or step + 1 == steps):
                _save(fit, model, optimizer, arguments, running)
    return fit


def _batch(seed: int, step: int, sequences: int, batch: int) -> Tensor:
    """Indices of the step's sequences: an epoch at a time, from (seed, epoch) alone."""
    epoch, within = divmod(step, sequences // batch)
    order = torch.randperm(sequences, generator=torch.Generator().manual_seed(stream(seed, epoch)))
    return order[within * batch : (within + 1) * batch]


def _step(model: POGLM, moving: list, optimizer, loss: Tensor, clip: float, fit: PoglmFit) -> None:
    """One step of each model whose numbers are finite; the others stay where they are."""
    axes = len(model.population)

    def each(values: Tensor, like: Tensor) -> Tensor:
        return values.view(*values.shape, *[1] * (like.dim() - axes))

    gradients = [p.grad for p in moving if p.grad is not None]
    norm = sum((g.square().flatten(axes).sum(dim=-1) for g in gradients), torch.zeros(())).sqrt()
    fit.diverged |= ~(torch.isfinite(loss) & torch.isfinite(norm)).cpu()
    factor = (clip / norm.clamp(min=1e-12)).clamp(max=1.0)
    bad = fit.diverged.to(loss.device)
    stuck = bool(bad.any())
    for g in gradients:
        g.mul_(each(factor, g))
        if stuck:
            g.copy_(torch.where(each(bad, g), 0.0, g))
    before = [p.detach().clone() for p in moving] if stuck else []
    optimizer.step()
    with torch.no_grad():
        for p, old in zip(moving, before, strict=False):
            p.copy_(torch.where(each(bad, p), old, p))


def _require_kl(kl: str) -> None:
    if kl not in KL_FORMS:
        raise ValueError(f"kl must be one of {', '.join(KL_FORMS)}, got {kl!r}")


def _check_fit(model, x, chosen, temperature, lr, lr_end, weight_decay, clip, train) -> None:
    for name, value in (("lr", lr), ("lr_end", lr_end), ("clip", clip)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be > 0 and finite, got {value}")
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay must be >= 0 and finite, got {weight_decay}")
    if train not in ("all", "network", "encoder"):
        raise ValueError(f"train must be 'all', 'network' or 'encoder', got {train!r}")
    tau = torch.as_tensor(temperature)
    low = float(tau.min())
    if not bool(((tau >= 0) & (tau < math.inf)).all()) or (chosen.uses_temperature and low == 0):
        raise ValueError(f"temperature must be > 0 and finite for method {chosen.name!r}, got {low}")
    if chosen.max_temperature is not None and float(tau.max()) > chosen.max_temperature:
        raise ValueError(
            f"temperature must be <= {chosen.max_temperature} for method {chosen.name!r}, got {float(tau.max())}"
        )
    for name, shape in (("temperature", tuple(tau.shape)), ("counts", tuple(x.shape[:-3]))):
        try:
            fits = torch.broadcast_shapes(shape, model.population) == torch.Size(model.population)
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(f"{name} must have leading axes that broadcast to {model.population}, got {shape}")


CHECKPOINT = "checkpoint.safetensors"


def _save(fit: PoglmFit, model: POGLM, optimizer, arguments: dict[str, Any], running: list[Tensor]) -> None:
    from hitchhiker.training import _safetensors

    assert fit.out is not None
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{key}": torch.as_tensor(value) for key, value in state.items()}
    tensors |= {"random": torch.get_rng_state(), "diverged": fit.diverged}
    if running:
        tensors["running"] = torch.stack(running)
    state = {"step": fit.steps, "history": fit.history, "model": model.settings, **arguments}
    write_atomically(fit.out / CHECKPOINT, _safetensors(tensors, {"state": json.dumps(state)}))


def _load(fit: PoglmFit, model: POGLM, optimizer, arguments: dict[str, Any]) -> list[Tensor]:
    """Take up the checkpoint in the folder, if there is one yet; returns the losses since the last row."""
    from hitchhiker.training import _read_safetensors

    if fit.out is None:
        raise ValueError("resume must be False when out is None: there is nothing to resume from")
    path = fit.out / CHECKPOINT
    if not path.exists():
        return []
    tensors, state = _read_safetensors(path, "state", ("step", "history", "model", "seed"))
    for name, value in ({"model": model.settings} | arguments).items():
        mine = json.loads(json.dumps(value))
        stored = state.get(name, mine)  # earlier checkpoints hold the model and the seed only
        if mine != stored and name in ("counts", "validation"):
            raise ValueError(f"{name} must be those of the run in {str(fit.out)!r} to resume it, got others")
        if mine != stored:
            raise ValueError(f"{name} must be {stored} to resume the run in {str(fit.out)!r}, got {value}")
    if missing := {"random", "diverged"} - set(tensors):
        raise ValueError(f"{path} cannot be read as a checkpoint: it lacks {', '.join(sorted(missing))}")
    _load_weights(model, tensors, path)
    own = optimizer.state_dict()
    own["state"] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, i, key = name.split(".")
            own["state"].setdefault(int(i), {})[key] = value
    optimizer.load_state_dict(own)
    torch.set_rng_state(tensors["random"])
    fit.diverged, fit.steps, fit.history = tensors["diverged"], state["step"], state["history"]
    return list(tensors["running"].to(model.bias)) if "running" in tensors else []


def load_poglm(folder: str | PathLike[str]) -> POGLM:
    """The model of a run's folder, as its last checkpoint has it.  ``ValueError`` naming the folder when there is none."""
    from hitchhiker.training import _read_safetensors

    path = Path(folder) / CHECKPOINT
    if not path.exists():
        raise ValueError(f"folder must hold a run ({CHECKPOINT}), got {str(folder)!r}")
    tensors, state = _read_safetensors(path, "state", ("model",))
    settings = require_entries(path, state["model"], ("population", "seed"))
    population = tuple(settings.pop("population"))
    seeds = torch.tensor(settings.pop("seed")).view(population)
    model = POGLM(**settings, seed=seeds if population else int(seeds), population=population)
    _load_weights(model, tensors, path)
    return model


def _load_weights(model: POGLM, tensors: dict[str, Tensor], path: Path) -> None:
    try:
        model.load_state_dict({n[6:]: v for n, v in tensors.items() if n.startswith("model.")})
    except RuntimeError as error:
        raise ValueError(f"{path} cannot be read as a checkpoint of this model: {error}") from error


__all__ = [
    "ENCODERS", "GLM", "POGLM", "BinLoss", "PoglmFit", "Recovery", "fit_glm", "fit_poglm", "load_poglm",
    "match_hidden", "poglm_methods", "recovery",
]  # fmt: skip
