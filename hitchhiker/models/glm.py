"""Generalised linear models of spike trains by maximum likelihood: every neuron in view, many data sets at once.

    λ_{t,n} = f(b_n + Σ_k Σ_m w_{n,m,k} x_{t-k,m}),   k = 1 … K bins back,   x_{t,n} ~ P(λ_{t,n})

f is a *link* (``LINKS``), P an *observation law* (``OBSERVATIONS``; one entry each, a dispersion that is fitted
too if it has one).  Bins before the first count as silent.  Nothing here is hidden: this is what a model with
hidden neurons (:class:`hitchhiker.models.POGLM`) has to beat.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Real
from torch import Tensor
from torch.nn import functional

from hitchhiker.checks import named, require_count
from hitchhiker.relaxations.com_poisson import ConwayMaxwellPoisson
from hitchhiker.relaxations.doubly_stochastic import EATModulatedPoisson

# --- links and observation laws: one entry each


@dataclass(frozen=True)
class Link:
    """A link f from drive to rate, and its inverse (for starting a bias at a given rate)."""

    name: str
    rate: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]


LINKS: dict[str, Link] = {
    link.name: link
    for link in (
        Link("softplus", functional.softplus, lambda r: r + torch.log(-torch.expm1(-r))),
        Link("exp", torch.exp, torch.log),
        Link("sigmoid", torch.sigmoid, torch.logit),
    )
}


def get_link(name: str | Link) -> Link:
    """The link of that name; ``ValueError`` with the known names."""
    return name if isinstance(name, Link) else named("link", name, LINKS)


@dataclass(frozen=True)
class Observation:
    """The law of a count given its rate.

    Attributes
    ----------
    name : as in ``observation=``.
    log_prob : (counts, rate, dispersion) -> ln P in nats, elementwise and twice differentiable in the last two;
        ``dispersion`` is positive, or None for a law without one.  What "rate" means is the law's own affair.
    sample : (rate, dispersion) -> whole counts (as floats) of the rate's shape.
    dispersion : where a fit starts it (> 0), or None for a law without a dispersion.
    about : one line that says what the dispersion is.
    """

    name: str
    log_prob: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    sample: Callable[[Tensor, Tensor | None], Tensor]
    dispersion: float | None = None
    about: str = ""


def _poisson_log_prob(counts: Tensor, rate: Tensor, dispersion: Tensor | None = None) -> Tensor:
    return torch.xlogy(counts, rate) - rate - torch.lgamma(counts + 1)


OBSERVATIONS: dict[str, Observation] = {}


def add_observation(law: Observation) -> Observation:
    """Register a law, so that ``observation=law.name`` finds it.  ``ValueError`` if the name is taken."""
    if law.name in OBSERVATIONS:
        raise ValueError(f"name must be new, got {law.name!r}")
    if law.dispersion is not None and not law.dispersion > 0:
        raise ValueError(f"dispersion must be > 0 or None, got {law.dispersion}")
    OBSERVATIONS[law.name] = law
    return law


def get_observation(name: str | Observation) -> Observation:
    """The observation law of that name; ``ValueError`` with the known names."""
    return name if isinstance(name, Observation) else named("observation", name, OBSERVATIONS)


add_observation(Observation("poisson", _poisson_log_prob, lambda rate, dispersion: torch.poisson(rate)))


def _modulated_log_prob(counts: Tensor, rate: Tensor, dispersion: Tensor | None = None) -> Tensor:
    assert dispersion is not None
    r, spread = 1 / dispersion, dispersion * rate
    ways = torch.lgamma(counts + r) - torch.lgamma(r) - torch.lgamma(counts + 1)
    return ways + counts * (spread.log() - torch.log1p(spread)) - r * torch.log1p(spread)


def _modulated_sample(rate: Tensor, dispersion: Tensor | None) -> Tensor:
    assert dispersion is not None
    return EATModulatedPoisson(rate=rate, gain_variance=dispersion, validate_args=False).sample()


#: a smaller ν counts as this one: its law has a Fano factor near 20, and the sum over counts grows like 1/ν
MIN_NU = 0.05


def _com_log_prob(counts: Tensor, rate: Tensor, dispersion: Tensor | None = None) -> Tensor:
    """ν (n ln rate - ln n!) - ln Z: the Conway-Maxwell-Poisson law whose λ is rate^ν, so that the rate is near the mean."""
    assert dispersion is not None
    nu = dispersion.clamp(min=MIN_NU)
    # the pmf falls below e^-36 of its peak, float64's last digit, where its relative entropy is 36/ν
    top, depth, most = float(rate.detach().max()), 36 / float(nu.detach().min()), 8
    while (last := top + most) * math.log(last / top) - most < depth:
        most *= 2
    m = torch.arange(int(last) + 1, dtype=rate.dtype, device=rate.device).view(-1, *([1] * rate.dim()))
    log_rate = rate.log()
    normaliser = torch.logsumexp(nu * (m * log_rate - torch.lgamma(m + 1)), dim=0)
    return nu * (counts * log_rate - torch.lgamma(counts + 1)) - normaliser


def _com_sample(rate: Tensor, dispersion: Tensor | None) -> Tensor:
    assert dispersion is not None
    rate, nu = torch.broadcast_tensors(rate, dispersion.clamp(min=MIN_NU))
    return ConwayMaxwellPoisson((nu * rate.log()).exp(), nu, validate_args=False).sample()


add_observation(
    Observation(
        "negative-binomial", _modulated_log_prob, _modulated_sample, 0.1,
        "variance of a Gamma gain on the rate: mean rate, variance rate + dispersion·rate², r = 1/dispersion",
    )
)  # fmt: skip
add_observation(
    Observation(
        "com-poisson", _com_log_prob, _com_sample, 1.0,
        "ν, about 1/Fano: below 1 over-dispersed, above 1 under-dispersed; λ is rate^ν, so that the mean is near the rate",
    )
)  # fmt: skip


# --- small parts shared with the models of hidden neurons


def lagged(counts: Float[Tensor, "*batch bins neurons"], history: int) -> Float[Tensor, "*batch bins lags neurons"]:
    """The last ``history`` bins before each bin, the nearest first; zeros before the start.

    >>> lagged(torch.tensor([[1.0], [2.0], [3.0]]), 2)[..., 0]
    tensor([[0., 0.],
            [1., 0.],
            [2., 1.]])
    """
    bins = counts.shape[-2]
    if history == 0:
        return counts.new_zeros(*counts.shape[:-1], 0, counts.shape[-1])
    padded = functional.pad(counts, (0, 0, history, 0))
    return torch.stack([padded[..., history - k : history - k + bins, :] for k in range(1, history + 1)], dim=-2)


def check_counts(name: str, counts: Tensor, neurons: int | None = None, least_dim: int = 3) -> Tensor:
    """Whole numbers >= 0 of shape (…, sequences, T, N), as a float tensor; ``ValueError`` otherwise."""
    counts = torch.as_tensor(counts)
    if counts.dim() < least_dim or (neurons is not None and counts.shape[-1] != neurons):
        wanted = f"(…, sequences, bins, {'neurons' if neurons is None else neurons})"
        raise ValueError(f"{name} must have the shape {wanted}, got {tuple(counts.shape)}")
    if 0 in counts.shape:
        raise ValueError(f"{name} must not be empty, got shape {tuple(counts.shape)}")
    if not counts.is_floating_point():
        counts = counts.to(torch.get_default_dtype())
    bad = ~((counts >= 0) & (counts < math.inf) & (counts == counts.round()))
    if bool(bad.any()):
        where = tuple(bad.nonzero()[0].tolist())
        raise ValueError(f"{name} must hold whole numbers >= 0, got {counts[where].item():g} at index {where}")
    return counts


# --- the model


@dataclass(frozen=True)
class GLM:
    """A fitted (or given) model of N neurons in view; leading axes ``*data`` are independent models.

    Attributes
    ----------
    weights : (*data, N, N, K), ``weights[..., n, m, k-1]`` is what a spike of neuron m does to neuron n k bins later
        (in units of the drive).
    bias : (*data, N).
    within_bin : (*data, N, N) strictly lower triangular or None: neuron n also sees neurons m < n of its own bin,
        an exact chain rule that makes the model stronger than any history can be.
    dispersion : (*data, N) > 0, or None for a law without one.
    link, observation : names or objects of ``LINKS`` and ``OBSERVATIONS``.
    max_rate : rates are clamped there (counts per bin); gradients are 0 beyond it.
    errors : standard errors from the observed information, same names and shapes as the parameters; the
        dispersion's is that of ln(dispersion).  Empty for a model that was not fitted.
    iterations : Newton steps taken; 0 for a model that was not fitted.
    converged : (*data, N), whether each neuron's gradient vanished.
    silent : (*data, N), neurons without one spike in the data of the fit: their rate is 0 in truth, their bias only low.
    """

    weights: Tensor
    bias: Tensor
    within_bin: Tensor | None = None
    dispersion: Tensor | None = None
    link: str | Link = "softplus"
    observation: str | Observation = "poisson"
    max_rate: float = math.inf
    errors: dict[str, Tensor] | None = None
    iterations: int = 0
    converged: Tensor | None = None
    silent: Tensor | None = None

    @property
    def num_neurons(self) -> int:
        return self.bias.shape[-1]

    @property
    def history(self) -> int:
        """K, bins."""
        return self.weights.shape[-1]

    def rate(self, counts: Real[Tensor, "*batch bins neurons"]) -> Float[Tensor, "*batch bins neurons"]:
        """Rates (counts per bin) given the past of (*data, sequences, T, N) counts."""
        x = counts.to(self.bias)
        features = lagged(x, self.history).flatten(-2)
        matrix = self.weights.movedim(-1, -2).flatten(-2)  # (*data, N, K·N), lags outside as in `features`
        drive = _times(features, matrix)
        if self.within_bin is not None:
            drive = drive + _times(x, self.within_bin)
        drive = drive + self.bias[..., None, None, :]
        return get_link(self.link).rate(drive).clamp(MIN_RATE, self.max_rate)

    def log_likelihood(self, counts: Real[Tensor, "..."]) -> Float[Tensor, "*sequences"]:
        """ln p of each sequence, nats, summed over bins and neurons: (*data, sequences)."""
        counts = check_counts("counts", counts, self.num_neurons)
        spread = None if self.dispersion is None else self.dispersion.double()[..., None, None, :]
        # float64: with a large dispersion a log-pmf is a small difference of large numbers
        x = counts.double()
        log_prob = get_observation(self.observation).log_prob(x, self.rate(x).double(), spread)
        return log_prob.sum(dim=(-1, -2)).to(self.bias)


#: a fitted dispersion stays between its inverse and it: a Poisson-like law has none to find
MAX_DISPERSION = 1e6
#: rates are not allowed below it, so that a spike where none was expected costs much but not everything
MIN_RATE = 1e-6


def fit_glm(
    counts: Real[Tensor, "..."],
    history: int = 1,
    *,
    within_bin: bool = False,
    link: str | Link = "softplus",
    observation: str | Observation = "poisson",
    max_rate: float = math.inf,
    ridge: float = 1e-3,
    start: GLM | None = None,
    max_iterations: int = 100,
    tolerance: float = 1e-6,
) -> GLM:
    """Maximum likelihood by damped Newton steps, in float64, for all data sets and neurons at once.

    Parameters
    ----------
    counts : (*data, sequences, T, N) whole numbers >= 0; each leading index is fitted alone.
    history : K >= 0 bins; 0 leaves a constant rate.
    within_bin : let neuron n see neurons m < n of the same bin (see :class:`GLM`).
    link, observation, max_rate : see :class:`GLM`.
    ridge : penalty ½·ridge·Σw² on the summed log-likelihood; it only keeps weights finite where the data do not.
    start : a model of the same shape to start from.
    max_iterations, tolerance : it stops when half the Newton decrement is below ``tolerance`` nats everywhere.

    Returns a :class:`GLM` with standard errors.  Raises ``ValueError`` for counts that are not whole numbers >= 0.
    Silent neurons are reported in ``.silent``, not NaN.

    >>> _ = torch.manual_seed(0)
    >>> model = fit_glm(torch.poisson(torch.full((20, 100, 2), 0.5)))
    >>> bool((model.weights.abs() < 0.3).all())
    True
    """
    counts = check_counts("counts", counts)
    require_count("history", history, minimum=0)
    require_count("max_iterations", max_iterations)
    if not ridge >= 0:
        raise ValueError(f"ridge must be >= 0, got {ridge}")
    if not max_rate > 0:
        raise ValueError(f"max_rate must be > 0, got {max_rate}")
    law, f = get_observation(observation), get_link(link)
    x = counts.double()
    lead, n = x.shape[:-3], x.shape[-1]
    target = x.flatten(-3, -2)
    features = lagged(x, history).flatten(-2)
    columns = n * history + (n if within_bin else 0)
    seen = torch.ones(n, columns, dtype=torch.bool, device=x.device)
    if within_bin:
        features = torch.cat([features, x], dim=-1)
        seen[:, n * history :] = torch.ones(n, n, device=x.device).tril(-1).bool()
    design = torch.cat([features, torch.ones_like(x[..., :1])], dim=-1).flatten(-3, -2)
    problem = _Newton(design, target, seen, law, f, max_rate, ridge)
    theta = problem.begin(start, history, within_bin)
    theta, converged, steps = problem.climb(theta, max_iterations, tolerance)
    errors = problem.standard_errors(theta)
    silent = target.sum(dim=-2) == 0

    def parts(values: Tensor) -> dict[str, Tensor]:
        found = {
            "weights": values[..., : n * history].unflatten(-1, (history, n)).movedim(-2, -1)
            if history
            else values.new_zeros(*lead, n, n, 0),
            "bias": values[..., columns],
        }
        if within_bin:
            found["within_bin"] = values[..., n * history : columns]
        if law.dispersion is not None:
            found["dispersion"] = values[..., columns + 1]
        return {name: value.to(counts.dtype) for name, value in found.items()}

    fitted = parts(theta)
    if law.dispersion is not None:
        fitted["dispersion"] = _dispersion(fitted["dispersion"])
    return GLM(
        **fitted, link=link, observation=observation, max_rate=max_rate, errors=parts(errors), iterations=steps,
        converged=converged, silent=silent,
    )  # fmt: skip


class _Newton:
    """The concave (or nearly so) problem of every data set and neuron, as one batch (*data, N).

    θ of a neuron: its weights (columns of the design), its bias, and ln(dispersion) where the law has one.
    """

    def __init__(self, design, target, seen, law: Observation, link: Link, max_rate: float, ridge: float):
        self.design, self.target, self.law, self.link = design, target, law, link
        self.max_rate = max_rate
        columns = seen.shape[-1]
        extra = 2 if law.dispersion is not None else 1
        free = torch.cat([seen, seen.new_ones(seen.shape[0], extra)], dim=-1)
        self.free = free.to(design)  # (N, P)
        penalty = torch.zeros_like(self.free)
        penalty[:, :columns] = ridge
        self.penalty = penalty
        self.columns = columns

    def begin(self, start: GLM | None, history: int, within_bin: bool) -> Tensor:
        lead, n = self.target.shape[:-2], self.target.shape[-1]
        theta = self.design.new_zeros(*lead, n, self.free.shape[-1])
        if start is None:
            mean = self.target.mean(dim=-2).clamp(min=1e-4)
            top = 0.95 * self.max_rate
            if self.link.name == "sigmoid":
                top = min(top, 0.95)
            theta[..., self.columns] = self.link.inverse(mean.clamp(max=top))
            if self.law.dispersion is not None:
                theta[..., self.columns + 1] = math.log(self.law.dispersion)
            return theta
        if start.weights.shape[-3:] != (n, n, history) or (start.within_bin is None) == within_bin:
            raise ValueError(
                f"start must be a model of {n} neurons, history {history} and within_bin={within_bin}, got weights of "
                f"shape {tuple(start.weights.shape)}"
            )
        theta[..., : n * history] = start.weights.movedim(-1, -2).flatten(-2).double()
        if start.within_bin is not None:
            theta[..., n * history : self.columns] = start.within_bin.double()
        theta[..., self.columns] = start.bias.double()
        if start.dispersion is not None and self.law.dispersion is not None:
            theta[..., self.columns + 1] = start.dispersion.double().log()
        return theta

    def _rate(self, drive: Tensor) -> Tensor:
        return self.link.rate(drive).clamp(MIN_RATE, self.max_rate)

    def _drive(self, theta: Tensor) -> Tensor:
        return self.design @ theta[..., : self.columns + 1].mT

    def value(self, theta: Tensor) -> Tensor:
        """Penalised log-likelihood of each neuron, (*data, N)."""
        spread = None
        if self.law.dispersion is not None:
            spread = _dispersion(theta[..., self.columns + 1]).unsqueeze(-2)
        found = self.law.log_prob(self.target, self._rate(self._drive(theta)), spread).sum(dim=-2)
        return found - 0.5 * (self.penalty * theta.square()).sum(dim=-1)

    def derivatives(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient (*data, N, P) and minus the Hessian (*data, N, P, P)."""
        with torch.enable_grad():
            drive = self._drive(theta).detach().requires_grad_()
            spread = None
            if self.law.dispersion is not None:
                spread = theta[..., self.columns + 1].unsqueeze(-2).expand_as(drive).detach().clone().requires_grad_()
            log_prob = self.law.log_prob(
                self.target, self._rate(drive), None if spread is None else _dispersion(spread)
            ).sum()
            unknown = [drive] if spread is None else [drive, spread]
            first = torch.autograd.grad(log_prob, unknown, create_graph=True, materialize_grads=True)
            second = [
                torch.autograd.grad(g.sum(), unknown, retain_graph=True, materialize_grads=True)
                if g.requires_grad
                else [torch.zeros_like(u) for u in unknown]
                for g in first
            ]
        x = self.design
        size = self.columns + 1
        gradient = theta.new_zeros(theta.shape)
        curvature = theta.new_zeros(*theta.shape, theta.shape[-1])
        gradient[..., :size] = first[0].detach().mT @ x
        for i in range(theta.shape[-2]):
            bend = second[0][0][..., i].unsqueeze(-1)
            curvature[..., i, :size, :size] = -(x * bend).mT @ x
        if spread is not None:
            gradient[..., size] = first[1].detach().sum(dim=-2)
            cross = -(second[0][1].mT @ x)
            curvature[..., :size, size] = cross
            curvature[..., size, :size] = cross
            curvature[..., size, size] = -second[1][1].sum(dim=-2)
        gradient = (gradient - self.penalty * theta) * self.free
        mask = self.free.unsqueeze(-1) * self.free.unsqueeze(-2)
        curvature = curvature * mask + torch.diag_embed(self.penalty * self.free + (1 - self.free))
        return gradient, curvature

    @torch.no_grad()
    def climb(self, theta: Tensor, max_iterations: int, tolerance: float) -> tuple[Tensor, Tensor, int]:
        value = self.value(theta)
        damping = torch.full_like(value, 1e-9)
        identity = torch.eye(theta.shape[-1], dtype=theta.dtype, device=theta.device)
        done = torch.zeros_like(value, dtype=torch.bool)
        steps = 0
        gradient, curvature = self.derivatives(theta)
        while steps < max_iterations:
            steps += 1
            scale = curvature.diagonal(dim1=-1, dim2=-2).abs().amax(dim=-1) + 1e-12
            damped = curvature + (damping * scale)[..., None, None] * identity
            step, failed = torch.linalg.solve_ex(damped, gradient)
            step = torch.where((failed != 0)[..., None] | ~torch.isfinite(step), 0.0, step)
            gain = (gradient * step).sum(dim=-1)
            tried = theta + step
            new = self.value(tried)
            better = (new >= value - 1e-9) & torch.isfinite(new) & (gain >= 0)
            done = better & (gain / 2 < tolerance)
            theta = torch.where(better[..., None], tried, theta)
            value = torch.where(better, new, value)
            damping = torch.where(better, damping / 10, (damping * 10).clamp(min=1e-6)).clamp(1e-12, 1e12)
            if bool(done.all()):
                break
            gradient, curvature = self.derivatives(theta)
        return theta, done, steps

    @torch.no_grad()
    def standard_errors(self, theta: Tensor) -> Tensor:
        _, curvature = self.derivatives(theta)
        inverse = torch.linalg.pinv(curvature, hermitian=True)
        return inverse.diagonal(dim1=-1, dim2=-2).clamp(min=0).sqrt() * self.free


# --- how much history?


@dataclass(frozen=True)
class HistoryChoice:
    """What :func:`choose_history` found.

    Attributes: ``model`` (fitted to all the data, the history chosen for each data set; shorter ones are padded with
    zero weights), ``history`` (*data) in bins, ``scores`` {history: (*data) mean held-out log-likelihood a
    sequence, nats}.
    """

    model: GLM
    history: Tensor
    scores: dict[int, Tensor]


def choose_history(
    counts: Real[Tensor, "..."],
    histories: Sequence[int] = (0, 1, 2, 3, 5, 10, 20),
    *,
    held_out: float = 0.25,
    **options,
) -> HistoryChoice:
    """Fit each history to the first sequences, keep the one that predicts the last ones best, fit it to all.

    Parameters
    ----------
    counts : (*data, sequences, T, N), at least 2 sequences.
    histories : candidates, bins.
    held_out : fraction of the sequences that judge.
    options : of :func:`fit_glm`.

    Raises ``ValueError`` for an empty list, a fraction outside (0, 1) or a single sequence.
    """
    counts = check_counts("counts", counts)
    if not histories:
        raise ValueError("histories must name at least one number of bins, got none")
    if not 0 < held_out < 1:
        raise ValueError(f"held_out must be in (0, 1), got {held_out}")
    sequences = counts.shape[-3]
    judges = max(1, round(held_out * sequences))
    if judges >= sequences:
        raise ValueError(f"counts must have at least 2 sequences to hold some out, got {sequences}")
    learn, judge = counts.split([sequences - judges, judges], dim=-3)
    scores, models = {}, {}
    for history in sorted(set(histories)):
        scores[history] = fit_glm(learn, history, **options).log_likelihood(judge).mean(dim=-1)
        models[history] = fit_glm(counts, history, **options)
    names = list(scores)
    best = torch.stack([scores[h] for h in names]).argmax(dim=0)
    return HistoryChoice(_choose(models, names, best), torch.tensor(names)[best.cpu()], scores)


def _choose(models: dict[int, GLM], names: list[int], best: Tensor) -> GLM:
    """For each data set the model of its best history, all padded to the longest."""
    longest = models[names[-1]]

    def pick(values: list[Tensor]) -> Tensor:
        stacked = torch.stack(values)
        index = best.view(1, *best.shape, *([1] * (stacked.dim() - 1 - best.dim())))
        return stacked.gather(0, index.expand(1, *stacked.shape[1:]))[0]

    def padded(weights: Tensor) -> Tensor:
        return functional.pad(weights, (0, longest.history - weights.shape[-1]))

    def each(name: str) -> Tensor | None:
        values = [getattr(models[h], name) for h in names]
        return None if values[0] is None else pick(values)

    errors = {}
    for name in longest.errors or {}:
        values = [(models[h].errors or {})[name] for h in names]
        errors[name] = pick([padded(v) for v in values] if name == "weights" else values)
    weights, bias = pick([padded(models[h].weights) for h in names]), each("bias")
    assert bias is not None
    return replace(
        longest, weights=weights, bias=bias, within_bin=each("within_bin"), dispersion=each("dispersion"),
        converged=each("converged"), errors=errors,
    )  # fmt: skip


def _dispersion(log_dispersion: Tensor) -> Tensor:
    top = math.log(MAX_DISPERSION)
    return log_dispersion.clamp(-top, top).exp()


def _times(features: Tensor, matrix: Tensor) -> Tensor:
    """features (*data, sequences, T, F) times matrix (*data, N, F): (*data, sequences, T, N)."""
    return features @ matrix.mT.unsqueeze(-3)
