"""What a model with hidden spike trains says about the visible ones: by particles, and by enumeration where one can.

The model is that of :class:`hitchhiker.models.POGLM`: N = V + H neurons, visible ones first,

    x_t, z_t ~ Poisson(λ_t),   λ_t = min(f(b + Σ_k W_k [x_{t-k}; z_{t-k}]), max_rate),

silent before bin 0.  Functions take its parameters and counts (*models, sequences, T, V); leading axes broadcast.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Real
from torch import Tensor

from hitchhiker.checks import require_count

from .glm import GLM, MIN_RATE, check_counts, fit_glm, get_link, lagged


@dataclass(frozen=True)
class Filtered:
    """What :func:`particle_filter` returns.

    Attributes
    ----------
    log_likelihood : (*models, sequences) ln p(x), nats; exp of it is unbiased, itself it is low by half its variance.
    effective : (*models, sequences) smallest effective number of particles seen.
    paths : (*models, sequences, J, T, H) draws of the hidden counts given all of x, or None.
    """

    log_likelihood: Tensor
    effective: Tensor
    paths: Tensor | None = None


def visible_drive(weights: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """b + Σ_k W_k x_{t-k} of all N neurons, from the visible counts alone: (*models, sequences, T, N)."""
    history, visible = weights.shape[-1], x.shape[-1]
    matrix = (
        weights[..., :visible, :].movedim(-1, -2).flatten(-2).mT.unsqueeze(-3)
    )  # lags outside, as `lagged` has them
    return lagged(x, history).flatten(-2) @ matrix + bias[..., None, None, :]


def hidden_matrix(weights: Tensor, visible: int) -> Tensor:
    """(*models, K·H, N): what the last K bins of hidden counts, nearest first, add to the drive."""
    return weights[..., visible:, :].movedim(-1, -2).flatten(-2).mT


def _log_poisson(counts: Tensor, rate: Tensor) -> Tensor:
    return torch.xlogy(counts, rate) - rate - torch.lgamma(counts + 1)


@torch.no_grad()
def particle_filter(
    weights: Float[Tensor, "*models neurons neurons lags"],
    bias: Float[Tensor, "*models neurons"],
    counts: Real[Tensor, "..."],
    num_particles: int = 1000,
    *,
    link: str = "softplus",
    max_rate: float = math.inf,
    num_paths: int = 0,
    generator: torch.Generator | None = None,
) -> Filtered:
    """ln p(x) by a bootstrap particle filter: hidden counts from the model, weighted by the next visible bin.

    All sequences and models at once, one loop over bins.  Systematic resampling where the effective number of
    particles falls below half.

    Parameters
    ----------
    weights, bias : of all N neurons, visible first.
    counts : (*models, sequences, T, V) with V < N (V = N: nothing is hidden, and the answer is exact).
    num_particles : a sequence; the repeat error falls as its inverse square root.
    link, max_rate : of the model.
    num_paths : draws of whole hidden trajectories to return.  They share ancestors in the distant past: keep
        ``num_particles`` above T.
    generator : of the noise (default: torch's own).

    Raises ``ValueError`` for counts that are not whole numbers >= 0 or no particles.

    >>> w, b = torch.zeros(2, 2, 1), torch.zeros(2)
    >>> particle_filter(w, b, torch.zeros(1, 10, 1)).log_likelihood  # -10 ln 2: nothing depends on the hidden one
    tensor([-6.9315])

    Source: Gordon, Salmond and Smith (1993).
    """
    x = check_counts("counts", counts).to(bias)
    require_count("num_particles", num_particles)
    require_count("num_paths", num_paths, minimum=0)
    visible, history, n = x.shape[-1], weights.shape[-1], bias.shape[-1]
    if visible > n:
        raise ValueError(f"counts must have at most {n} neurons, got {visible}")
    f, hidden = get_link(link), n - visible
    drive = visible_drive(weights, bias, x)
    lead, bins = drive.shape[:-2], drive.shape[-2]
    matrix = hidden_matrix(weights, visible).unsqueeze(-3)  # (*models, 1, K·H, N)
    past = x.new_zeros(*lead, num_particles, history, hidden)
    log_weight = x.new_zeros(*lead, num_particles)
    total, least = x.new_zeros(lead), x.new_full(lead, float(num_particles))
    steps, ancestors = [], []
    for t in range(bins):
        rate = f.rate(past.flatten(-2) @ matrix + drive[..., t, None, :]).clamp(MIN_RATE, max_rate)
        seen = rate[..., :visible]
        now = x[..., t, None, :]
        log_weight = log_weight + (torch.xlogy(now, seen) - seen).sum(dim=-1)
        normal = log_weight.logsumexp(dim=-1)
        w = (log_weight - normal.unsqueeze(-1)).exp()
        effective = 1 / w.square().sum(dim=-1)
        least = torch.minimum(least, effective)
        # the log-weights keep Σ w = num_particles, so that log_weight is the running mean's share
        total = total + normal - math.log(num_particles)
        log_weight = log_weight - normal.unsqueeze(-1) + math.log(num_particles)
        poor = effective < 0.5 * num_particles
        index = None
        if bool(poor.any()):
            index = torch.where(poor.unsqueeze(-1), _systematic(w, generator), _identity(w))
            log_weight = torch.where(poor.unsqueeze(-1), 0.0, log_weight)
            rate = rate.gather(-2, index.unsqueeze(-1).expand_as(rate))
            past = past.gather(-3, index[..., None, None].expand_as(past))
        new = torch.poisson(rate[..., visible:], generator=generator)
        past = torch.cat([new.unsqueeze(-2), past[..., :-1, :]], dim=-2) if history else past
        if num_paths:
            steps.append(new)
            ancestors.append(index)
    total = total - torch.lgamma(x + 1).sum(dim=(-1, -2))
    paths = _trace(steps, ancestors, log_weight, num_paths, generator) if num_paths else None
    return Filtered(total, least, paths)


def _identity(w: Tensor) -> Tensor:
    return torch.arange(w.shape[-1], device=w.device).expand_as(w)


def _systematic(w: Tensor, generator: torch.Generator | None) -> Tensor:
    """Indices of systematic resampling along the last axis."""
    count = w.shape[-1]
    edges = w.cumsum(dim=-1)
    edges = edges / edges[..., -1:]
    start = torch.rand(*w.shape[:-1], 1, dtype=w.dtype, device=w.device, generator=generator)
    points = (torch.arange(count, dtype=w.dtype, device=w.device) + start) / count
    return torch.searchsorted(edges, points.contiguous()).clamp(max=count - 1)


def _trace(steps: list[Tensor], ancestors: list, log_weight: Tensor, num_paths: int, generator) -> Tensor:
    """Whole trajectories of some particles of the last bin, followed back through their ancestors."""
    w = log_weight.softmax(dim=-1)
    pick = torch.multinomial(w.flatten(0, -2), num_paths, replacement=True, generator=generator)
    index = pick.view(*w.shape[:-1], num_paths)
    path = []
    for t in reversed(range(len(steps))):
        path.append(steps[t].gather(-2, index.unsqueeze(-1).expand(*index.shape, steps[t].shape[-1])))
        if ancestors[t] is not None:
            index = ancestors[t].gather(-1, index)
    return torch.stack(path[::-1], dim=-2)


# --- enumeration, for tiny instances


@dataclass(frozen=True)
class Enumerated:
    """What :func:`enumerate_hidden` returns.

    Attributes: ``log_likelihood`` (sequences), nats; ``marginals`` (sequences, T, H, M), P(z_{t,h} = m | x);
    ``mean`` (sequences, T, H), E[z | x]; ``lost_mass``, the largest prior probability of a count beyond M - 1 met.
    """

    log_likelihood: Tensor
    marginals: Tensor
    mean: Tensor
    lost_mass: float


@torch.no_grad()
def enumerate_hidden(
    weights: Float[Tensor, "neurons neurons lags"],
    bias: Float[Tensor, " neurons"],
    counts: Real[Tensor, "..."],
    max_count: int = 8,
    *,
    link: str = "softplus",
    max_rate: float = math.inf,
) -> Enumerated:
    """Exact likelihood and posterior of the hidden counts by the forward-backward algorithm, counts 0 … max_count.

    The hidden counts of K bins are the state of a Markov chain with (max_count + 1)^{HK} states; at most 4096
    (``ValueError``).  Weights of one model; counts (sequences, T, V).

    >>> w, b = torch.zeros(2, 2, 1), torch.zeros(2)
    >>> exact = enumerate_hidden(w, b, torch.zeros(1, 10, 1), max_count=12)
    >>> print(f"{float(exact.log_likelihood):.4f}, E[z] = {float(exact.mean[0, 3]):.4f}")
    -6.9315, E[z] = 0.6931
    """
    x = check_counts("counts", counts).double()
    require_count("max_count", max_count)
    w, b = weights.double(), bias.double()
    visible, history, n = x.shape[-1], w.shape[-1], b.shape[-1]
    hidden = n - visible
    if weights.dim() != 3 or x.dim() != 3 or hidden < 1:
        raise ValueError(
            f"counts must be (sequences, T, V) and weights those of one model with hidden neurons, got shapes "
            f"{tuple(counts.shape)} and {tuple(weights.shape)}"
        )
    values = max_count + 1
    symbols = values**hidden
    if symbols**history > 4096:
        raise ValueError(f"max_count must leave at most 4096 states, got {max_count}: {symbols**history}")
    f = get_link(link)
    symbol = torch.tensor(list(itertools.product(range(values), repeat=hidden)), dtype=torch.float64)  # (symbols, H)
    state = torch.stack(torch.meshgrid(*[torch.arange(symbols)] * history, indexing="ij"), dim=-1).view(-1, history)
    drive = visible_drive(w, b, x)  # (S, T, N)
    push = symbol[state].flatten(-2) @ hidden_matrix(w, visible)  # (states, N), nearest bin first
    sequences, bins = x.shape[:2]
    rate = f.rate(drive[:, :, None, :] + push).clamp(MIN_RATE, max_rate)  # (S, T, states, N)
    emission = _log_poisson(x[:, :, None, :], rate[..., :visible]).sum(dim=-1)  # (S, T, states)
    move = _log_poisson(symbol, rate[..., None, visible:]).sum(dim=-1)  # (S, T, states, symbols)
    lost = float((1 - move.exp().sum(dim=-1)).max())
    older = symbols ** (history - 1)
    # a state (z_{t-1}, …, z_{t-K}) and a new z_t make the state (z_t, z_{t-1}, …, z_{t-K+1})
    forward = torch.full((sequences, symbols**history), -math.inf, dtype=torch.float64)
    forward[:, 0] = 0.0  # silence before bin 0: symbol 0 is all zeros
    before = []
    for t in range(bins):
        before.append(forward)
        joint = (forward + emission[:, t])[..., None] + move[:, t]  # (S, states, symbols)
        joint = joint.view(sequences, older, symbols, symbols).logsumexp(dim=2)  # forget the oldest bin
        forward = joint.transpose(1, 2).reshape(sequences, -1)
    log_likelihood = forward.logsumexp(dim=-1)
    backward = torch.zeros_like(forward)
    posterior = torch.empty(sequences, bins, symbols, dtype=torch.float64)
    for t in reversed(range(bins)):
        later = backward.view(sequences, symbols, older).transpose(1, 2)  # (S, older, new symbol)
        later = later.unsqueeze(2).expand(-1, -1, symbols, -1).reshape(sequences, -1, symbols)
        both = emission[:, t, :, None] + move[:, t] + later  # (S, states, symbols)
        posterior[:, t] = (before[t][..., None] + both).logsumexp(dim=1)
        backward = both.logsumexp(dim=-1)
    posterior = (posterior - log_likelihood[:, None, None]).exp()
    grid = posterior.view(sequences, bins, *[values] * hidden)
    marginals = torch.stack(
        [
            grid.sum(dim=[2 + other for other in range(hidden) if other != h]) if hidden > 1 else grid
            for h in range(hidden)
        ],
        dim=2,
    )
    mean = marginals @ torch.arange(values, dtype=torch.float64)
    return Enumerated(log_likelihood, marginals, mean, lost)


# --- learning from the particles


@dataclass(frozen=True)
class Refined:
    """What :func:`particle_em` returns: ``weights`` and ``bias`` averaged over the last iterations, and
    ``log_likelihood`` (iterations, *models), the filter's estimate a sequence before each of them (training data)."""

    weights: Tensor
    bias: Tensor
    log_likelihood: Tensor


@torch.no_grad()
def particle_em(
    weights: Float[Tensor, "*models neurons neurons lags"],
    bias: Float[Tensor, "*models neurons"],
    counts: Real[Tensor, "..."],
    *,
    iterations: int = 40,
    num_particles: int = 300,
    num_paths: int = 5,
    average: float = 0.5,
    link: str = "softplus",
    max_rate: float = math.inf,
    ridge: float = 1e-3,
    generator: torch.Generator | None = None,
) -> Refined:
    """Maximum likelihood by Monte Carlo EM: hidden trajectories from the particle filter, then a Newton step of the GLM.

    No variational posterior takes part, so nothing shrinks the weights: given the hidden counts, the model is a
    visible GLM (:func:`hitchhiker.models.fit_glm`).  Start near a good optimum, for EM finds the nearest one.

    Parameters
    ----------
    weights, bias : where to start, (*models, N, N, K) and (*models, N).
    counts : (*models, sequences, T, V) training data.
    iterations, num_particles, num_paths : EM steps; particles and drawn trajectories a sequence.
    average : share of the last iterations over which the parameters are averaged, against Monte Carlo noise.
    link, max_rate, ridge, generator : as in :func:`particle_filter` and :func:`hitchhiker.models.fit_glm`.

    Returns :class:`Refined`.  Raises ``ValueError`` for an ``average`` outside (0, 1] or bad counts.

    Source: Monte Carlo EM (Wei and Tanner, 1990) with a particle filter as its E step.
    """
    x = check_counts("counts", counts).to(bias)
    require_count("iterations", iterations)
    if not 0 < average <= 1:
        raise ValueError(f"average must be in (0, 1], got {average}")
    model = GLM(weights.detach(), bias.detach(), link=link, max_rate=max_rate)
    sums, kept, scores = [torch.zeros_like(model.weights), torch.zeros_like(model.bias)], 0, []
    for i in range(iterations):
        found = particle_filter(
            model.weights, model.bias, x, num_particles, link=link, max_rate=max_rate, num_paths=num_paths,
            generator=generator,
        )  # fmt: skip
        scores.append(found.log_likelihood.mean(dim=-1))
        assert found.paths is not None
        z = found.paths  # (*models, sequences, J, T, H)
        complete = torch.cat([x.unsqueeze(-3).expand(*z.shape[:-1], x.shape[-1]), z], dim=-1).flatten(-4, -3)
        model = fit_glm(
            complete, weights.shape[-1], link=link, max_rate=max_rate, ridge=ridge, start=model, max_iterations=1
        )
        if i >= iterations - max(1, round(average * iterations)):
            kept += 1
            sums = [sums[0] + model.weights, sums[1] + model.bias]
    return Refined(sums[0] / kept, sums[1] / kept, torch.stack(scores))
