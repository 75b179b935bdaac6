"""What to watch while a model with relaxed counts trains: lost variance, noise of the derivative, rates at their bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hitchhiker._random import own_random_numbers
from hitchhiker.checks import require_count
from hitchhiker.relaxations.common import RelaxedPoisson


@dataclass(frozen=True)
class Report:
    """What a :class:`CountMonitor` saw since the last report; each ``*_se`` is a standard error.

    Attributes
    ----------
    lost_variance : 1 - Σ Var(z)/Σ λ, the share of the Poisson variance that the relaxation loses (Aτ for EAT when cold).
    slope_noise : mean of λ·Var(dz/dλ) over units: B/τ for EAT when cold, 1 + 1/(6λ) over τ for GSM.  Whatever the rate.
    noise : ``slope_noise`` over the mean rate, Var(dz/dλ) weighted by rate: B/(τλ) for EAT when cold.  The mean slope is
        about 1, so this is noise over signal of one count, and grows as rates fall.
    clipped : share of rates at or above ``max_rate``.
    silent : share of rates at or below ``min_rate``: their gradients rest on events that hardly ever happen.
    mean_rate : λ, counts per unit.
    updates : how often laws were looked at.
    """

    lost_variance: float
    lost_variance_se: float
    slope_noise: float
    slope_noise_se: float
    clipped: float
    silent: float
    mean_rate: float
    updates: int

    @property
    def noise(self) -> float:
        return self.slope_noise / self.mean_rate if self.mean_rate else math.inf

    @property
    def noise_se(self) -> float:
        return self.slope_noise_se / self.mean_rate if self.mean_rate else math.inf

    def __str__(self) -> str:
        return (
            f"lost variance {self.lost_variance:.3f} ± {self.lost_variance_se:.3f}, "
            f"slope noise {self.slope_noise:.2f} ± {self.slope_noise_se:.2f} (over the mean rate {self.noise:.2f}), "
            f"clipped {self.clipped:.1%}, silent {self.silent:.1%}, mean rate {self.mean_rate:.3g}"
        )


class CountMonitor:
    """Looks at the laws of a training loop now and then, by two more draws of each.

    Parameters
    ----------
    max_rate : rates at or above it are reported as clipped; counts per window, > ``min_rate``.
    min_rate : rates at or below it are reported as silent, >= 0.
    every : updates between two looks, >= 1; the others cost nothing.

    ``update`` takes the law of the present step.  It draws from torch's generator, and puts the generator back: training
    goes on to the same numbers with a monitor and without.  Raises ``ValueError`` for bounds in the wrong order, or when
    ``report`` is asked for before anything was seen.

    >>> import hitchhiker as hh
    >>> monitor = CountMonitor(max_rate=100.0)
    >>> monitor.update(hh.EATPoisson(rate=torch.full((50_000,), 4.0), temperature=0.5))
    >>> print(f"{monitor.report().lost_variance:.2f}, Aτ is {9 / 35 * 0.5:.2f}")
    0.13, Aτ is 0.13
    """

    def __init__(self, max_rate: float = 200.0, min_rate: float = 1e-3, every: int = 1):
        if not 0 <= min_rate < max_rate:
            raise ValueError(f"max_rate must be > min_rate >= 0, got {max_rate} and {min_rate}")
        require_count("every", every)
        self.max_rate, self.min_rate, self.every = max_rate, min_rate, every
        self._calls = 0
        self._clear()

    def _clear(self) -> None:
        self._units = self._seen = 0
        self._clipped = self._silent = 0.0
        # sums of λ, of the half squared difference of two counts, of λ times that of two slopes, and their squares
        self._sums = torch.zeros(5, dtype=torch.float64)

    def update(self, law: RelaxedPoisson) -> None:
        """Look at the law of this step (every ``every``-th call)."""
        if not isinstance(law, RelaxedPoisson):
            raise ValueError(f"law must be a relaxed Poisson law, got {type(law).__name__}")
        self._calls += 1
        if (self._calls - 1) % self.every:
            return
        rate = law.rate.detach()
        # a stream of its own: the same every time it looks at the same step
        with own_random_numbers(self._calls, rate.device), torch.enable_grad():
            leaf = law.parameter.detach().clone().requires_grad_()
            count, slope = zip(*(self._draw(law.with_parameter(leaf), leaf) for _ in range(2)), strict=True)
        spread = (count[0] - count[1]).double().square() / 2
        per_rate = 1.0 if not law.is_log else torch.where(rate > 0, 1 / rate, 0.0)  # dz/dλ from dz/d ln λ
        rough = rate.double() * ((slope[0] - slope[1]) * per_rate).double().square() / 2
        self._sums += torch.stack(
            [rate.double().sum(), spread.sum(), rough.sum(), spread.square().sum(), rough.square().sum()]
        ).cpu()
        self._units += rate.numel()
        self._seen += 1
        self._clipped += float((rate >= self.max_rate).sum())
        self._silent += float((rate <= self.min_rate).sum())

    @staticmethod
    def _draw(law: RelaxedPoisson, leaf: Tensor) -> tuple[Tensor, Tensor]:
        z = law.rsample()
        if not z.requires_grad:  # at τ = 0
            return z, torch.zeros_like(z)
        return z.detach(), torch.autograd.grad(z.sum(), leaf)[0]

    def report(self) -> Report:
        """What was seen since the last report, which is then forgotten."""
        if not self._units:
            raise ValueError("update must see a law with at least one rate before report, got none")
        n = self._units
        rate, spread, rough, spread_2, rough_2 = (self._sums / n).tolist()
        spread_se = math.sqrt(max(0.0, spread_2 - spread**2) / n)
        found = Report(
            lost_variance=1 - spread / rate if rate else 0.0,
            lost_variance_se=spread_se / rate if rate else 0.0,
            slope_noise=rough,
            slope_noise_se=math.sqrt(max(0.0, rough_2 - rough**2) / n),
            clipped=self._clipped / n,
            silent=self._silent / n,
            mean_rate=rate,
            updates=self._seen,
        )
        self._clear()
        return found
