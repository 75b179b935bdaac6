"""Exact sampling of relaxed counts in plain torch, on any device.

Both samplers return the pair (z, dz/d ln λ). It has exactly the law of the dense algorithm it replaces, and it is
all that a backward pass needs.
"""

from __future__ import annotations

import torch
from numpy.polynomial import legendre
from torch import Tensor

from hitchhiker.indicators import SoftIndicator

#: arrivals (EAT) or unit-category pairs (GSM) held in memory at once
BLOCK = 1 << 20
#: beyond so many arrivals in a window, their sums are normal to within the resolution of any test: no loop over them
MANY = 2.0**22
#: beyond it a Poisson count is a rounded normal one: its log-pmf has no digits left to accept or reject by
HUGE = 2.0**40
#: Gauss-Legendre nodes and weights on [-1, 1] for the moments of a window
NODES, WEIGHTS = legendre.leggauss(64)


def window_bounds(temperature: Tensor, indicator: SoftIndicator) -> tuple[Tensor, Tensor]:
    """(low, high) of the scaled time s = (1 - t)/τ in which an arrival counts a fraction: [-S, min(S, 1/τ)]."""
    half = indicator.half_width(temperature.dtype)
    return torch.full_like(temperature, -half), (1 / temperature).clamp(max=half)


def from_window(
    certain: Tensor, scaled_times: Tensor, unit: Tensor, temperature: Tensor, indicator: SoftIndicator
) -> tuple[Tensor, Tensor, Tensor]:
    """The deterministic part: (z, dz/d ln λ, hard count) from N0 certain arrivals and the window's scaled times s.

    z = N0 + Σ f(s),  dz/d ln λ = Σ f'(s)(1 - τs)/τ,  hard count = N0 + #{s > 0};  ``unit[i]`` says whose arrival
    ``scaled_times[i]`` is, and ``temperature`` has one entry per arrival.
    """
    fraction = indicator(scaled_times)
    slope = indicator.derivative(scaled_times) * (1 / temperature - scaled_times)
    zero = torch.zeros_like(certain)
    return (
        certain.index_add(0, unit, fraction),
        zero.index_add(0, unit, slope),
        certain.index_add(0, unit, (scaled_times > 0).to(certain)),
    )


def poisson(mean: Tensor) -> Tensor:
    """Poisson counts, by rounded normal ones for means beyond :data:`HUGE`; infinite means are NaN."""
    huge = mean > HUGE
    count = torch.poisson(torch.where(huge, 0.0, mean))
    if not bool(huge.any()):
        return count
    wide = mean[huge].double()
    count[huge] = (wide + wide.sqrt() * torch.randn_like(wide)).round().to(count.dtype)
    return count


def sample_full_window(
    number: Tensor, temperature: Tensor, indicator: SoftIndicator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(Σ f, slope of it, #{s > 0}, slope of it) over Poisson(``number``) arrivals in the window, as normal numbers.

    With x = (f, f'(1/τ - s)) of one uniform arrival the mean is Λ E x and the covariance Λ E x xᵀ; so too for the step in
    the place of f. Each sum comes with a slope of its own, and the two pairs are not one joint draw.
    """
    number, tau = number.double(), temperature.double()
    low, high = window_bounds(temperature, indicator)
    low, high = low.double(), high.double()
    node, weight = (torch.as_tensor(x, dtype=torch.float64, device=tau.device)[:, None] for x in (NODES, WEIGHTS))
    s = torch.cat([low / 2 * (1 - node), high / 2 * (1 + node)])  # on either side of the step at 0
    share = torch.cat([-low / 2 * weight, high / 2 * weight]) / (high - low)
    g = indicator.derivative(s) * (1 / tau - s)
    out = []
    for x in (indicator(s), (s > 0).double()):
        spread = (share * x * x).sum(0).sqrt()
        along = (share * x * g).sum(0) / spread
        across = ((share * g * g).sum(0) - along.square()).clamp(min=0).sqrt()
        first, second = torch.randn_like(number), torch.randn_like(number)
        out.append(number * (share * x).sum(0) + number.sqrt() * spread * first)
        out.append(number * (share * g).sum(0) + number.sqrt() * (along * first + across * second))
    return out[0], out[1], out[2].round(), out[3]


def sample_arrival_time(
    rate: Tensor, temperature: Tensor, indicator: SoftIndicator, hard: bool
) -> tuple[Tensor, Tensor]:
    """(count, dz/d ln λ) of EAT by the window theorem: O(1 + λτ) work a unit, no truncation.

    Only arrivals with |1 - t| <= Sτ are fractional. Their number is Poisson(λτ(s_high - s_low)), their scaled times
    are independent and uniform, and the arrivals before the window are Poisson(λ(1 - τ s_high)).
    """
    shape, rate, temperature = rate.shape, rate.flatten(), temperature.expand(rate.shape).flatten()
    low, high = window_bounds(temperature, indicator)
    # at τ = 0, 0 · (high - low) would be 0 · inf for 1/τ: the window is empty there
    width = torch.where(temperature > 0, temperature * (high - low), 0.0)
    before = torch.where(temperature > 0, (1 - temperature * high).clamp(min=0), 1.0)
    count = poisson(rate * before)
    hard_count, slope = count.clone(), torch.zeros_like(count)
    many = rate * width > MANY
    remaining = torch.poisson(torch.where(many, 0.0, rate * width)).long()
    if bool(many.any()):
        soft, soft_slope, crossed, hard_slope = sample_full_window((rate * width)[many], temperature[many], indicator)
        count[many] += soft.to(count)
        hard_count[many] += crossed.to(count)
        slope[many] = (hard_slope if hard else soft_slope).to(slope)
    units = torch.arange(remaining.numel(), device=rate.device)
    while (total := int(remaining.sum())) > 0:
        if total <= BLOCK:
            batch = remaining
        else:  # a slice of the arrivals; a single unit may need several
            start = remaining.cumsum(0) - remaining
            batch = torch.minimum(remaining, (BLOCK - start).clamp(min=0))
        unit = torch.repeat_interleave(units, batch)
        s = low[unit] + (high[unit] - low[unit]) * torch.rand(unit.numel(), dtype=rate.dtype, device=rate.device)
        fraction, derivative, crossed = from_window(torch.zeros_like(count), s, unit, temperature[unit], indicator)
        count, slope, hard_count = count + fraction, slope + derivative, hard_count + crossed
        remaining = remaining - batch
    undefined = torch.where(torch.isfinite(rate), 0.0, torch.nan)  # NaN in, NaN out
    return ((hard_count if hard else count) + undefined).view(shape), slope.view(shape)


def sample_coupled(rate: Tensor, temperature: Tensor, indicator: SoftIndicator) -> tuple[Tensor, Tensor, Tensor]:
    """(hard count, soft count, Σ f'(s) min(t, 1)/τ) of the same arrivals, by the window theorem; t = 1 - τs.

    The third is dz/d ln λ less what of it remains when the hard count is held fixed, as a control variate needs it. All
    the window's arrivals are in memory at once, so keep rate·τ times the number of units below some 10⁷.
    """
    shape, rate, temperature = rate.shape, rate.flatten(), temperature.expand(rate.shape).flatten()
    low, high = window_bounds(temperature, indicator)
    soft = torch.poisson(rate * (1 - temperature * high).clamp(min=0))
    near = torch.poisson(rate * temperature * (high - low)).long()
    unit = torch.repeat_interleave(torch.arange(near.numel(), device=rate.device), near)
    s = low[unit] + (high[unit] - low[unit]) * torch.rand(unit.numel(), dtype=rate.dtype, device=rate.device)
    hard = soft.index_add(0, unit, (s > 0).to(soft))
    early = indicator.derivative(s) * (1 / temperature[unit] - s.clamp(min=0))
    slope = torch.zeros_like(soft).index_add(0, unit, early)
    return hard.view(shape), soft.index_add(0, unit, indicator(s)).view(shape), slope.view(shape)


def sample_gumbel_softmax(
    log_rate: Tensor, temperature: Tensor, num_categories: int, hard: bool
) -> tuple[Tensor, Tensor]:
    """(count, dz/d ln λ) of GSM, unit block by unit block, so that no simplex of the whole batch is stored.

    With soft weights w over the categories m, z = Σ m w_m and dz/d ln λ = Var_w(m)/τ.
    """
    shape, log_rate, temperature = log_rate.shape, log_rate.flatten(), temperature.expand(log_rate.shape).flatten()
    m = torch.arange(num_categories, dtype=log_rate.dtype, device=log_rate.device)[:, None]
    log_factorial = torch.lgamma(m + 1)
    count, slope = torch.empty_like(log_rate), torch.empty_like(log_rate)
    step = max(1, min(BLOCK >> 3, BLOCK // num_categories))
    for start in range(0, log_rate.numel(), step):
        u, tau = log_rate[start : start + step], temperature[start : start + step]
        noise = torch.empty(num_categories, u.numel(), dtype=u.dtype, device=u.device).exponential_().log_().neg_()
        count[start : start + step], slope[start : start + step] = soft_category(u, noise, tau, m, log_factorial, hard)
    return count.view(shape), slope.view(shape)


def soft_category(
    log_rate: Tensor, gumbels: Tensor, temperature: Tensor, m: Tensor, log_factorial: Tensor, hard: bool
) -> tuple[Tensor, Tensor]:
    """The deterministic part of GSM: (count, dz/d ln λ) from Gumbel noise with the categories along dimension 0."""
    # at rate 0 the first category is certain; m · (-inf) at m = 0 would be NaN
    logits = torch.where(m == 0, 0.0, m * log_rate) - log_factorial + gumbels
    peak, index = logits.max(dim=0)
    weights = torch.exp((logits - peak) / torch.where(temperature > 0, temperature, 1.0))
    weights = weights / weights.sum(dim=0)
    mean = (m * weights).sum(dim=0)
    variance = ((m - mean).square() * weights).sum(dim=0)
    frozen = temperature == 0
    soft = torch.where(frozen, index.to(mean), mean)
    slope = torch.where(frozen, 0.0, variance / torch.where(frozen, 1.0, temperature))
    return (index.to(mean) if hard else soft), slope
