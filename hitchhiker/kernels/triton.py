"""The window and Gumbel-softmax samplers as fused Triton kernels: the rate is read once, count and slope are written once.

Used on CUDA where Triton is installed, for float32 and the indicators of :data:`CODES`; the law is that of
:mod:`hitchhiker.kernels.window`. Random numbers are Philox of (unit, draw) under a seed that torch's CUDA generator
leaves on the device, so nothing waits for the host and a captured graph draws anew at each replay.

With ``TRITON_INTERPRET=1`` the kernels run on the CPU, slowly: that is how they are tested without a GPU.
"""

# mypy: ignore-errors
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

#: indicators that have a kernel; others take the plain path
CODES = {"sigmoid": 0, "linear": 1, "cubic": 2, "quintic": 3, "cosine": 4}
BLOCK = 256


@triton.jit
def _uniform(bits):
    """A number strictly inside (0, 1) from 32 random bits, on a grid of 2^-24."""
    return ((bits >> 8).to(tl.float32) + 0.5) * 5.9604644775390625e-08


@triton.jit
def _draw(seed, unit, counter):
    return tl.philox(seed, unit, unit * 0 + counter, unit * 0, unit * 0)


@triton.jit
def _log_factorial(k):
    """ln k! in float64: Stirling's series after a shift by 8."""
    x = k + 9.0
    product = (k + 1.0) * (k + 2.0) * (k + 3.0) * (k + 4.0) * (k + 5.0) * (k + 6.0) * (k + 7.0) * (k + 8.0)
    series = 1.0 / (12.0 * x) - 1.0 / (360.0 * x * x * x) + 1.0 / (1260.0 * x * x * x * x * x)
    return (x - 0.5) * tl.log(x) - x + 0.9189385332046727 + series - tl.log(product)


@triton.jit
def _poisson(mean, seed, unit, counter):
    """(Poisson(mean) counts, next counter): inversion for small means, transformed rejection (PTRS) beyond."""
    small = mean < 10.0
    bits, _, _, _ = _draw(seed, unit, counter)
    counter += 1
    # float64: near 1 a float32 has no room for the tail
    u = (bits.to(tl.float64) + 0.5) * 2.3283064365386963e-10
    wide = mean.to(tl.float64)
    p = tl.exp(-wide)
    count = tl.zeros_like(wide)
    active = small & (u > p)
    while tl.max(active.to(tl.int32), axis=0) > 0:
        u = tl.where(active, u - p, u)
        count = tl.where(active, count + 1.0, count)
        p = tl.where(active, p * wide / tl.maximum(count, 1.0), p)
        active = active & (u > p) & (count < 150.0)
    safe = tl.where(small, 10.0, wide)
    b = 0.931 + 2.53 * tl.sqrt(safe)
    a = -0.059 + 0.02483 * b
    inverse_alpha = 1.1239 + 1.1328 / (b - 3.4)
    v_r = 0.9277 - 3.6224 / (b - 2.0)
    waiting = mean >= 10.0
    while tl.max(waiting.to(tl.int32), axis=0) > 0:
        bits_u, bits_v, _, _ = _draw(seed, unit, counter)
        counter += 1
        u = (bits_u.to(tl.float64) + 0.5) * 2.3283064365386963e-10 - 0.5
        v = (bits_v.to(tl.float64) + 0.5) * 2.3283064365386963e-10
        us = 0.5 - tl.abs(u)
        k = tl.floor((2.0 * a / us + b) * u + safe + 0.43)
        possible = (k >= 0.0) & ((us >= 0.013) | (v <= us))
        kk = tl.maximum(k, 0.0)
        bound = kk * tl.log(safe) - safe - _log_factorial(kk)
        accept = possible & (((us >= 0.07) & (v <= v_r)) | (tl.log(v * inverse_alpha / (a / (us * us) + b)) <= bound))
        count = tl.where(waiting & accept, kk, count)
        waiting = waiting & (accept == 0)
    return count.to(tl.float32), counter


@triton.jit
def _indicator(s, CODE: tl.constexpr):
    """(f(s), f'(s)) inside the support."""
    q = s * s
    if CODE == 0:
        f = 1.0 / (1.0 + tl.exp(-s))
        return f, f * (1.0 - f)
    elif CODE == 1:
        return 0.5 + 0.5 * s, 0.5 + 0.0 * s
    elif CODE == 2:
        return 0.5 + s * (0.75 - 0.25 * q), 0.75 * (1.0 - q)
    elif CODE == 3:
        return 0.5 + s * (0.9375 + q * (0.1875 * q - 0.625)), 0.9375 * (1.0 - q) * (1.0 - q)
    else:
        return 0.5 + 0.5 * tl.sin(1.5707963267948966 * s), 0.7853981633974483 * tl.cos(1.5707963267948966 * s)


@triton.jit
def _arrival_time(
    parameter_ptr, temperature_ptr, seed_ptr, count_ptr, slope_ptr, size, half,
    CODE: tl.constexpr, IS_LOG: tl.constexpr, HARD: tl.constexpr, ONE_TAU: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    unit = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = unit < size
    seed = tl.load(seed_ptr)
    x = tl.load(parameter_ptr + unit, mask=inside, other=0.0)
    tau = tl.load(temperature_ptr + (unit * 0 if ONE_TAU else unit), mask=inside, other=1.0)
    rate = tl.exp(x) if IS_LOG else x
    valid = inside & (rate < float("inf"))
    rate = tl.where(valid, rate, 0.0)
    hot = tau > 0.0
    inverse_tau = 1.0 / tl.where(hot, tau, 1.0)
    high = tl.minimum(inverse_tau, half)
    width = high + half
    certain, counter = _poisson(rate * tl.where(hot, tl.maximum(1.0 - tau * high, 0.0), 1.0), seed, unit, 0)
    number, counter = _poisson(rate * tl.where(hot, tau * width, 0.0), seed, unit, counter)
    count, crossed, slope = certain, certain, tl.zeros_like(certain)
    j = 0.0
    most = tl.max(number, axis=0)
    while j < most:
        b0, b1, b2, b3 = _draw(seed, unit, counter)
        counter += 1
        for i in tl.static_range(4):
            bits = b0 if i == 0 else (b1 if i == 1 else (b2 if i == 2 else b3))
            s = -half + width * _uniform(bits)
            f, d = _indicator(s, CODE)
            here = (j + i) < number
            count += tl.where(here, f, 0.0)
            slope += tl.where(here, d * (inverse_tau - s), 0.0)
            crossed += tl.where(here & (s > 0.0), 1.0, 0.0)
        j += 4.0
    if not IS_LOG:
        slope = tl.where(rate > 0.0, slope / tl.where(rate > 0.0, rate, 1.0), 0.0)
    nan = float("nan")
    tl.store(count_ptr + unit, tl.where(valid, crossed if HARD else count, nan), mask=inside)
    tl.store(slope_ptr + unit, tl.where(valid, slope, nan), mask=inside)


@triton.jit
def _gumbel_softmax(
    parameter_ptr, temperature_ptr, seed_ptr, log_factorial_ptr, count_ptr, slope_ptr, size, num_categories,
    IS_LOG: tl.constexpr, HARD: tl.constexpr, ONE_TAU: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    unit = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = unit < size
    seed = tl.load(seed_ptr)
    x = tl.load(parameter_ptr + unit, mask=inside, other=1.0)
    tau = tl.load(temperature_ptr + (unit * 0 if ONE_TAU else unit), mask=inside, other=1.0)
    hot = tau > 0.0
    inverse_tau = 1.0 / tl.where(hot, tau, 1.0)
    log_rate = x if IS_LOG else tl.log(x)
    possible = log_rate > float("-inf")
    # one pass over the categories: weights are kept relative to the best score so far, moments about its category
    peak = tl.full((BLOCK,), float("-inf"), tl.float32)
    winner, total = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    first, second = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for m in range(num_categories):
        bits, _, _, _ = _draw(seed, unit, m)
        u = (bits.to(tl.float64) + 0.5) * 2.3283064365386963e-10
        gumbel = -tl.log(-tl.log(u)).to(tl.float32)
        score = m * tl.where(possible, log_rate, 0.0) - tl.load(log_factorial_ptr + m) + gumbel
        score = tl.where(possible | (m == 0), score, float("-inf"))
        better = score > peak
        move = tl.where(better, winner - m, 0.0)  # re-centre the moments on the new winner
        scale = tl.where(better, tl.exp((peak - score) * inverse_tau), 1.0)
        second = scale * (second + 2.0 * move * first + move * move * total)
        first = scale * (first + move * total)
        total = scale * total
        winner = tl.where(better, m * 1.0, winner)
        peak = tl.where(better, score, peak)
        weight = tl.where(possible | (m == 0), tl.exp((score - peak) * inverse_tau), 0.0)
        lead = m - winner
        total += weight
        first += weight * lead
        second += weight * lead * lead
    mean = first / total
    slope = tl.where(hot, tl.maximum(second / total - mean * mean, 0.0) * inverse_tau, 0.0)
    count = winner if HARD else tl.where(hot, winner + mean, winner)
    if not IS_LOG:
        slope = tl.where(x > 0.0, slope / tl.where(x > 0.0, x, 1.0), 0.0)
    valid = x == x
    nan = float("nan")
    tl.store(count_ptr + unit, tl.where(valid, count, nan), mask=inside)
    tl.store(slope_ptr + unit, tl.where(valid, slope, nan), mask=inside)


def _buffers(parameter: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, bool, Tensor, Tensor, Tensor]:
    flat = parameter.detach().contiguous()
    one = temperature.numel() == 1
    tau = (temperature if one else temperature.expand(parameter.shape)).to(flat).contiguous()
    seed = torch.randint(2**31 - 1, (1,), device=flat.device)
    return flat, tau, one, seed, torch.empty_like(flat), torch.empty_like(flat)


def arrival_time(
    parameter: Tensor, temperature: Tensor, indicator: str, half: float, is_log: bool, hard: bool
) -> tuple[Tensor, Tensor]:
    """(count, dz/dparameter) of EAT; ``half`` is the indicator's half width in the parameter's precision."""
    flat, tau, one, seed, count, slope = _buffers(parameter, temperature)
    if size := flat.numel():
        options = {"CODE": CODES[indicator], "IS_LOG": is_log, "HARD": hard, "ONE_TAU": one, "BLOCK": BLOCK}
        _arrival_time[(triton.cdiv(size, BLOCK),)](flat, tau, seed, count, slope, size, half, **options)
    return count, slope


def gumbel_softmax(
    parameter: Tensor, temperature: Tensor, num_categories: int, is_log: bool, hard: bool
) -> tuple[Tensor, Tensor]:
    """(count, dz/dparameter) of GSM in one pass over the categories."""
    flat, tau, one, seed, count, slope = _buffers(parameter, temperature)
    table = torch.lgamma(torch.arange(1, num_categories + 1, dtype=flat.dtype, device=flat.device))
    if size := flat.numel():
        options = {"IS_LOG": is_log, "HARD": hard, "ONE_TAU": one, "BLOCK": BLOCK}
        _gumbel_softmax[(triton.cdiv(size, BLOCK),)](
            flat, tau, seed, table, count, slope, size, num_categories, **options
        )
    return count, slope
