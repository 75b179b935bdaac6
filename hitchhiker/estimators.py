"""Gradient estimators for E[f(z)] under a law with a rate, all with one contract.

Every estimator takes ``(f, q, num_samples)`` and returns a *surrogate* of shape ``lead``:

- its value estimates E[f];
- the gradient of its sum is the gradient estimate for the rate (or log-rate, or whatever produced it), and the
  ordinary gradient for everything else inside ``f`` (a decoder's weights, say).

``f`` maps samples ``(S, *rate.shape)`` to losses ``(S, *lead)``. ``lead`` is ``rate.shape`` without the trailing axes
that ``f`` sums over: an elementwise ``f`` keeps them all, a decoder's loss on latents ``(S, B, K)`` returns ``(S, B)``.

An integrand may be an object that carries closed forms: ``f.expectation(q)`` (used by :func:`exact`) and
``f.curvature``, the diagonal ∂²f/∂z_k² of a quadratic f (used by :func:`difference` and :func:`straight_through`).
:class:`hitchhiker.linear_decoder.SquaredError` is one.

========================  ==========================================  ================================================
estimator                 bias                                        cost beside one evaluation of f
========================  ==========================================  ================================================
:func:`pathwise`          that of the relaxation (O(τ))               one backward pass
:func:`score_function`    none (batch_mean: shrinks by 1/n)           none; noise grows with the number of latents
:func:`difference`        none                                        K evaluations, or one backward pass if quadratic
:func:`straight_through`  O(f''); midpoint: none for quadratic f      one backward pass (midpoint: one more)
:func:`moment_matched`    none for quadratic f, else as pathwise      one backward pass
:func:`relax`             none (f the integral of its slope)          two evaluations, one backward pass
:func:`exact`             none, no noise                              enumeration, or a closed form
========================  ==========================================  ================================================
"""

from __future__ import annotations

import inspect
import math
import weakref
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from hitchhiker import truncation
from hitchhiker.checks import require, require_count
from hitchhiker.kernels import window
from hitchhiker.relaxations.arrival_time import EATPoisson
from hitchhiker.relaxations.common import RelaxedPoisson

Integrand = Callable[[Tensor], Tensor]


def _evaluate(f: Integrand, z: Tensor, q: Distribution) -> tuple[Tensor, int]:
    """f(z) and the number of trailing latent axes that f sums over; what is no tensor of losses is a ``ValueError``."""
    loss = f(z)
    if not isinstance(loss, Tensor) or loss.is_complex():
        raise ValueError(f"f must return a real tensor of losses, got {type(loss).__name__}")
    if not loss.is_floating_point():  # counts or flags are losses too
        loss = loss.to(z.dtype)
    expected = z.shape[: loss.dim()]
    if loss.dim() < 1 or loss.shape != expected:
        raise ValueError(
            f"f must map samples (S, *rate.shape) = {tuple(z.shape)} to losses (S, *lead) with leading axes kept, "
            f"got shape {tuple(loss.shape)}"
        )
    return loss, z.dim() - loss.dim()


def _connected(loss: Tensor, z: Tensor) -> Tensor:
    """``loss`` on the graph of ``z`` even where f does not depend on it: then its gradient is zero, not missing."""
    return loss + z[:0].sum()


def _sum_trailing(x: Tensor, axes: int) -> Tensor:
    return x.sum(dim=tuple(range(-axes, 0))) if axes else x


def _require_poisson(q: Distribution, estimator: str) -> RelaxedPoisson:
    if not isinstance(q, RelaxedPoisson):
        raise ValueError(f"q must be a Poisson law with a rate for estimators.{estimator}, got {type(q).__name__}")
    return q


def _attach(value: Tensor, gradient: Tensor, q: RelaxedPoisson, axes: int) -> Tensor:
    """``value`` with the estimated gradient d/dλ attached to the rate; the value is unchanged."""
    rate = q.rate
    # exp(-inf) · 0 and inf · 0 stay out: a detached difference is exactly zero wherever the rate is finite
    return value + _sum_trailing(gradient.detach() * (rate - rate.detach()), axes)


def pathwise(f: Integrand, q: Distribution, num_samples: int = 1) -> Float[Tensor, "*lead"]:
    """Reparametrised gradient through the relaxed sample: (1/S) Σ f(z_s), z_s = q.rsample().

    For any law with ``rsample``. ``f`` must be differentiable and accept real z >= 0.

    Biased as the relaxation is: for EAT, E[F'(z) dz/dλ] = ∫_0^∞ E[F(z + f((1-t)/τ)) - F(z)] dt, which tends to the exact
    E[F(N+1) - F(N)] as τ → 0. Its noise falls with τ. Do not use it for f with an infinite slope at 0, nor at τ = 0,
    where it is zero (``ValueError``).

    >>> _ = torch.manual_seed(0)
    >>> rate = torch.tensor(3.0, requires_grad=True)
    >>> pathwise(torch.square, EATPoisson(rate=rate, temperature=0.5), 400_000).backward()
    >>> print(f"{rate.grad:.1f}, exact {2 * 3 + 1}")
    6.9, exact 7

    Source: Eq. (15).
    """
    require_count("num_samples", num_samples)
    if not q.has_rsample:
        raise ValueError(f"q must be a law with rsample for estimators.pathwise, got {type(q).__name__}")
    temperature = getattr(q, "temperature", None)
    if isinstance(temperature, Tensor):
        require("temperature", temperature, lambda t: t > 0, "> 0 for pathwise gradients")
    z = q.rsample((num_samples,))
    loss, _ = _evaluate(f, z, q)
    return _connected(loss, z).mean(dim=0)


class MovingAverage:
    """Exponential moving average of past losses, a baseline for :func:`score_function`.

    ``value`` is the average over *earlier* calls only, (1 - weight)·old + weight·new, corrected for its start at zero,
    so it is independent of the present sample and adds no bias. The paper's ℓ̄_t (G.1) already contains the present
    loss, with weight 0.9, which shrinks the gradient by that weight over the batch size.
    """

    def __init__(self, weight: float = 0.1):
        if not 0 < weight <= 1:
            raise ValueError(f"weight must be in (0, 1], got {weight}")
        self.weight = weight
        self._sum: Tensor | float = 0.0
        self._norm = 0.0

    @property
    def value(self) -> Tensor | float:
        """The baseline for the next call, in units of the loss; 0 before any call."""
        return self._sum / self._norm if self._norm else 0.0

    def update(self, loss: Tensor) -> None:
        """Take the mean of ``loss`` into the average."""
        self._sum = (1 - self.weight) * self._sum + self.weight * loss.detach().mean()
        self._norm = (1 - self.weight) * self._norm + self.weight


_averages: weakref.WeakKeyDictionary[Any, dict[Any, MovingAverage]] = weakref.WeakKeyDictionary()


def _average_of(f: Integrand) -> MovingAverage:
    """The average that lives as long as ``f``, or, for a method, as long as its object."""
    owner, method = (f.__self__, f.__func__) if inspect.ismethod(f) else (f, None)
    try:
        return _averages.setdefault(owner, {}).setdefault(method, MovingAverage())
    except TypeError as error:
        raise ValueError(
            f"baseline must be a MovingAverage for an f of type {type(owner).__name__}, which cannot be remembered ({error})"
        ) from error


BASELINES = (None, "moving_average", "batch_mean", "leave_one_out")


def score_function(
    f: Integrand, q: Distribution, num_samples: int = 1, baseline: str | MovingAverage | None = None
) -> Float[Tensor, "*lead"]:
    """Score-function (REINFORCE) gradient: (f(z) - b) ∇ ln q(z) with integer z ~ q.sample().

    For any law with ``sample`` and ``log_prob``; ``f`` need not be differentiable in z.

    ``baseline``:

    - ``None``: unbiased, noisiest.
    - ``"moving_average"``: earlier losses only, unbiased. The average lives as long as ``f`` (or a method's
      object); in a training loop that makes a new ``f`` each step pass one :class:`MovingAverage` instead.
    - ``"batch_mean"``: the mean of all S·lead losses, own one included: the gradient shrinks by 1 - 1/n, n = S·|lead|.
    - ``"leave_one_out"``: the mean of the *other* S - 1 losses of the same item; with S = 1, of the other items. Unbiased.
      Needs at least two losses (``ValueError``).

    Its noise grows with the number of latents that share a loss. Use it when f is a black box.

    >>> _ = torch.manual_seed(0)
    >>> rate = torch.tensor(3.0, requires_grad=True)
    >>> q = EATPoisson(rate=rate, temperature=0.1)
    >>> score_function(torch.square, q, 200_000, baseline="leave_one_out").backward()
    >>> print(f"{rate.grad:.1f}, exact {2 * 3 + 1}")
    7.0, exact 7

    Source: Eq. (14); baselines of G.1 and G.4 with their slips mended.
    """
    require_count("num_samples", num_samples)
    if not isinstance(baseline, MovingAverage) and baseline not in BASELINES:
        raise ValueError(f"baseline must be one of {BASELINES} or a MovingAverage, got {baseline!r}")
    z = q.sample((num_samples,))
    loss, axes = _evaluate(f, z, q)
    log_prob = _sum_trailing(q.log_prob(z), axes)
    advantage = loss.detach() - _baseline(baseline, loss.detach(), f)
    return (loss + advantage * (log_prob - log_prob.detach())).mean(dim=0)


def _baseline(baseline: str | MovingAverage | None, loss: Tensor, f: Integrand) -> Tensor | float:
    if baseline is None:
        return 0.0
    if baseline == "moving_average":
        baseline = _average_of(f)
    if isinstance(baseline, MovingAverage):
        value = baseline.value
        baseline.update(loss)
        return value
    if baseline == "batch_mean":
        return loss.mean()
    if baseline == "leave_one_out":
        if loss.shape[0] > 1:
            return (loss.sum(dim=0) - loss) / (loss.shape[0] - 1)
        if loss.numel() != 1:
            return (loss.sum() - loss) / (loss.numel() - 1)
        raise ValueError("num_samples must be >= 2 for baseline='leave_one_out' on a single item, got 1")
    raise AssertionError(baseline)


def difference(
    f: Integrand,
    q: RelaxedPoisson,
    num_samples: int = 1,
    coordinates: int | None = None,
    curvature: Float[Tensor, "*#latents"] | float | None = None,
) -> Float[Tensor, "*lead"]:
    """The exact identity ∂/∂λ_k E[f(N)] = E[f(N + e_k) - f(N)], estimated at integer samples: unbiased for every f.

    Poisson laws only. ``f`` need not be differentiable. Costs K further evaluations for K latents that share a loss (one
    for an elementwise f), or:

    - ``coordinates=n``: n random latents a call, each scaled by K/n: unbiased, noisier.
    - ``curvature``: the diagonal ∂²f/∂z_k² of a *quadratic* f (default: ``f.curvature`` if f has it and no
      ``coordinates`` are asked for): then f(z + e_k) - f(z) = ∂_k f(z) + ½ ∂²_k f, and one backward pass does it all.

    Use it whenever you can afford it; for a linear decoder it costs no more than backprop.

    >>> _ = torch.manual_seed(0)
    >>> rate = torch.tensor(3.0, requires_grad=True)
    >>> difference(torch.square, EATPoisson(rate=rate), 200_000).backward()
    >>> print(f"{rate.grad:.1f}, exact {2 * 3 + 1}")
    7.0, exact 7

    Source: the Poisson case of measure-valued (GO, stochastic-triple) gradients; not in the paper.
    """
    q = _require_poisson(q, "difference")
    require_count("num_samples", num_samples)
    require_count("coordinates", coordinates, optional=True)
    if coordinates is None and curvature is None:
        curvature = getattr(f, "curvature", None)
    if coordinates is not None and curvature is not None:
        raise ValueError(f"coordinates must be None where a curvature is given, got {coordinates}")
    if curvature is not None:
        return _surrogate_from_slope(f, q, num_samples, lambda z, slope, axes: slope + 0.5 * curvature)
    z = q.sample((num_samples,))
    loss, axes = _evaluate(f, z, q)
    if axes == 0:
        with torch.no_grad():
            gradient = (_evaluate(f, z + 1, q)[0] - loss).mean(dim=0)
        return _attach(loss.mean(dim=0), gradient, q, 0)
    with torch.no_grad():
        latents = z.shape[z.dim() - axes :]
        size = math.prod(latents)
        chosen = (
            range(size) if coordinates is None or coordinates >= size else torch.randperm(size)[:coordinates].tolist()
        )
        scale = size / max(len(chosen), 1)
        gradient = torch.zeros(*z.shape[1 : z.dim() - axes], size, dtype=z.dtype, device=z.device)
        for k in chosen:
            step = torch.zeros(size, dtype=z.dtype, device=z.device)
            step[k] = 1
            gradient[..., k] = scale * (_evaluate(f, z + step.view(latents), q)[0] - loss).mean(dim=0)
    return _attach(loss.mean(dim=0), gradient.view(z.shape[1:]), q, axes)


def straight_through(
    f: Integrand,
    q: RelaxedPoisson,
    num_samples: int = 1,
    correction: str | None = None,
    curvature: Float[Tensor, "*#latents"] | float | None = None,
    num_probes: int = 1,
) -> Float[Tensor, "*lead"]:
    """Integer samples forward, dz/dλ = 1 backward: the gradient is E[f'(N)] instead of E[f(N+1) - f(N)].

    Poisson laws only; ``f`` must be differentiable. Its bias is -½E[f''] + …, 22% of the gradient of a linear decoder's
    loss at λ = 1. ``correction="midpoint"`` adds ½ ∂²f/∂z_k², which makes quadratic f unbiased and leaves an O(f''')
    bias otherwise. The second derivative is ``curvature`` (or ``f.curvature``) if given, exact for an elementwise f, and
    else estimated by ``num_probes`` Rademacher probes (unbiased, noisier).

    >>> _ = torch.manual_seed(0)
    >>> for correction in (None, "midpoint"):
    ...     rate = torch.tensor(3.0, requires_grad=True)
    ...     straight_through(torch.square, EATPoisson(rate=rate), 200_000, correction).backward()
    ...     print(f"{rate.grad:.1f}")
    6.0
    7.0

    Source: beyond the paper.
    """
    q = _require_poisson(q, "straight_through")
    require_count("num_samples", num_samples)
    require_count("num_probes", num_probes)
    if correction not in (None, "midpoint"):
        raise ValueError(f"correction must be None or 'midpoint', got {correction!r}")
    if correction is None:
        return _surrogate_from_slope(f, q, num_samples, lambda z, slope, axes: slope)
    curvature = getattr(f, "curvature", None) if curvature is None else curvature
    if curvature is not None:
        return _surrogate_from_slope(f, q, num_samples, lambda z, slope, axes: slope + 0.5 * curvature)

    def corrected(z: Tensor, slope: Tensor, axes: int) -> Tensor:
        second = torch.zeros_like(slope)
        if slope.requires_grad:
            probes = num_probes if axes else 1
            for _ in range(probes):
                sign = torch.ones_like(slope) if axes == 0 else torch.randint_like(slope, 2) * 2 - 1
                (product,) = torch.autograd.grad(slope, z, sign, retain_graph=True, allow_unused=True)
                second += 0 if product is None else sign * product / probes
        return slope + 0.5 * second

    return _surrogate_from_slope(f, q, num_samples, corrected, second_order=True)


def _surrogate_from_slope(f, q, num_samples, gradient_of, second_order: bool = False) -> Tensor:
    """Evaluate f at integer counts, turn its slope ∂f/∂z into d/dλ by ``gradient_of(z, slope, axes)``, attach it."""
    z = q.sample((num_samples,)).requires_grad_()
    with torch.enable_grad():
        loss, axes = _evaluate(f, z, q)
        loss = _connected(loss, z)
        (slope,) = torch.autograd.grad(
            loss.sum(), z, retain_graph=True, create_graph=second_order, materialize_grads=True
        )
        gradient = gradient_of(z, slope, axes).mean(dim=0)
    return _attach(loss.mean(dim=0), gradient, q, axes)


def moment_matched(f: Integrand, q: EATPoisson, num_samples: int = 1) -> Float[Tensor, "*lead"]:
    """Pathwise EAT with the lost variance put back: z' = z + √(λ(1 - v))·ε, ε ~ N(0, 1).

    z' has the Poisson mean and variance, hence an exactly unbiased gradient for every quadratic f, at every τ at which
    the mean is unbiased (an indicator with support [-S, S] and Sτ <= 1; else ``ValueError``). So τ can be hot, where the
    noise is small. ``f`` must accept slightly negative z.

    >>> _ = torch.manual_seed(0)
    >>> rate = torch.tensor(3.0, requires_grad=True)
    >>> moment_matched(torch.square, EATPoisson(rate=rate, temperature=1.0), 200_000).backward()
    >>> print(f"{rate.grad:.1f}, exact {2 * 3 + 1}")
    7.0, exact 7

    Source: beyond the paper; v is Eq. (36).
    """
    require_count("num_samples", num_samples)
    if not isinstance(q, EATPoisson) or q.num_arrivals is not None or q.hard:
        raise ValueError(
            f"q must be an EATPoisson without num_arrivals or hard for estimators.moment_matched, got {q!r}"
        )
    if not q.indicator.is_compact:
        raise ValueError(f"indicator must have compact support for an unbiased mean, got {q.indicator.name!r}")
    hottest = 1 / q.indicator.support[1]  # where the soft edge still lies within t > 0
    require(
        "temperature", q.temperature, lambda t: (t > 0) & (t <= hottest), f"in (0, {hottest:g}] for an unbiased mean"
    )
    z = q.rsample((num_samples,))
    lost = (q.rate - q.variance).clamp(min=0)
    # √ has an infinite slope at 0: a unit that never fires has nothing to add
    spread = torch.where(lost > 0, torch.where(lost > 0, lost, 1.0).sqrt(), 0.0)
    z = z + spread * torch.randn_like(z)
    loss, _ = _evaluate(f, z, q)
    return _connected(loss, z).mean(dim=0)


def relax(f: Integrand, q: EATPoisson, num_samples: int = 1, scale: float = 1.0) -> Float[Tensor, "*lead"]:
    """Score function with EAT as its control variate: unbiased at every temperature if f is the integral of its slope.

    Hard count N and soft count z come from the same arrivals at times t, u = (1 - t)/τ, and the gradient is

        (f(N) - a f(z)) (N/λ - 1) + a f'(z) Σ_t f_soft'(u) min(t, 1)/(τλ),

    ``a`` being ``scale``. The second and third terms have the same mean (Mecke's formula), so any ``a`` is unbiased; 0 is
    the plain score function. What the score multiplies is only how far f(N) and f(z) are apart. Its noise grows with the
    number of latents, as that of the score function, but with τ too, while the last term is quiet when hot: there is a
    best temperature. The value is that of f at integer counts, and so is the gradient for everything else in f.

    ``f`` must be differentiable and accept real z >= 0. Raises ``ValueError`` for a law that is not an untruncated
    :class:`EATPoisson`, a temperature that is not positive, or a scale that is not finite.

    >>> _ = torch.manual_seed(0)
    >>> rate = torch.tensor(3.0, requires_grad=True)
    >>> relax(torch.square, EATPoisson(rate=rate, temperature=0.5), 400_000).backward()
    >>> print(f"{rate.grad:.1f}, exact {2 * 3 + 1}")
    7.0, exact 7

    Source: beyond the paper; the construction of REBAR and RELAX.
    """
    require_count("num_samples", num_samples)
    if not isinstance(q, EATPoisson) or q.num_arrivals is not None or q.hard:
        raise ValueError(f"q must be an EATPoisson without num_arrivals or hard for estimators.relax, got {q!r}")
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite, got {scale}")
    require("temperature", q.temperature, lambda t: t > 0, "> 0 for a soft control variate")
    rate = q.rate.detach()
    counts, z, early = window.sample_coupled(
        rate.expand(num_samples, *rate.shape), q.temperature.to(rate.dtype), q.indicator
    )
    loss, axes = _evaluate(f, counts, q)
    with torch.enable_grad():
        z.requires_grad_()
        soft_loss = _connected(_evaluate(f, z, q)[0], z)
        (slope,) = torch.autograd.grad(soft_loss.sum(), z)
    apart = loss.detach() - scale * soft_loss.detach()
    apart = apart.view(*apart.shape, *([1] * axes))
    possible = rate > 0  # at rate 0 there is no arrival to learn from
    gradient = apart * (counts - rate) + scale * slope * early
    gradient = torch.where(possible, gradient / torch.where(possible, rate, 1.0), 0.0).mean(dim=0)
    return _attach(loss.mean(dim=0), gradient, q, axes)


def exact(
    f: Integrand, q: RelaxedPoisson, num_samples: int | None = None, tail: float = 1e-12
) -> Float[Tensor, "*lead"]:
    """E[f(N)] itself, without noise, for Poisson N: ``f.expectation(q)`` if f has it, else enumeration.

    Enumeration needs an elementwise ``f`` (each rate has its own scalar problem) and goes on to counts whose remaining
    probability is below ``tail`` at the largest rate. ``num_samples`` is accepted for the common contract and unused.

    Raises ``ValueError`` when f sums over latents and carries no closed form.

    >>> rate = torch.tensor(3.0, requires_grad=True)
    >>> exact(torch.square, EATPoisson(rate=rate)).backward()
    >>> print(f"{rate.grad:.4f}")
    7.0000

    Source: Eqs. (59), (82).
    """
    q = _require_poisson(q, "exact")
    if hasattr(f, "expectation"):
        return f.expectation(q)
    top = float(q.rate.detach().max()) if q.rate.numel() else 0.0
    counts = torch.arange(truncation.num_categories(top, tail=tail) + 1, dtype=q.rate.dtype, device=q.rate.device)
    counts = counts.view(-1, *([1] * q.rate.dim())).expand(-1, *q.rate.shape)
    loss, axes = _evaluate(f, counts, q)
    if axes:
        raise ValueError(
            f"f must be elementwise or carry an expectation(q) for estimators.exact, got losses of shape {tuple(loss.shape)} "
            f"for counts of shape {tuple(counts.shape)}"
        )
    # the log-pmf is a small difference of large numbers: float64, or a rate of 1000 would cost float32 half its digits
    pmf = q.with_parameter(q.parameter.double()).above_zero().log_prob(counts.double()).exp()
    return (pmf * loss).sum(dim=0).to(loss.dtype)


def gradient_samples(
    estimator: Callable[..., Tensor], f: Integrand, q: RelaxedPoisson, num_samples: int, num_repeats: int
) -> Float[Tensor, "repeats *batch"]:
    """``num_repeats`` independent gradient estimates with respect to the parameter q was built from (rate or log-rate).

    ``estimator`` is one of this module's functions (``functools.partial`` for its options). Returns shape
    ``(num_repeats, *rate.shape)``.

    >>> q = EATPoisson(log_rate=torch.zeros(4), temperature=0.1)
    >>> gradient_samples(pathwise, torch.square, q, num_samples=10, num_repeats=3).shape
    torch.Size([3, 4])
    """
    require_count("num_repeats", num_repeats)
    _require_poisson(q, "gradient_samples")
    stream = gradient_stream(estimator, f, q, num_samples)
    return torch.stack([next(stream) for _ in range(num_repeats)])


def gradient_stream(estimator: Callable[..., Tensor], f: Integrand, q: RelaxedPoisson, num_samples: int):
    """Endless independent gradient estimates of shape ``rate.shape``, one at a time (see :func:`gradient_samples`)."""
    while True:
        leaf = q.parameter.detach().clone().requires_grad_()
        surrogate = estimator(f, q.with_parameter(leaf), num_samples)
        (gradient,) = torch.autograd.grad(surrogate.sum(), leaf)
        yield gradient
