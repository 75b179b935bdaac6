"""The window and Gumbel-softmax samplers as compiled CPU loops (numba): the rate is read once, count and slope written once.

Used where numba is installed, tensors are float32 or float64 on the CPU and the indicator is one of :data:`CODES`; the law is
that of :mod:`hitchhiker.kernels.window`. Random numbers are SplitMix64 of a counter; each block of units has its own
stream, seeded from torch's generator, so that results do not depend on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from hitchhiker.kernels.window import HUGE, MANY, NODES, WEIGHTS

#: indicators that have a compiled form; others take the plain path
CODES = {"sigmoid": 0, "linear": 1, "cubic": 2, "quintic": 3, "cosine": 4}
BLOCK = 8192
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)
_UNIT = 2.0**-53

_options: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}
_inline: dict[str, Any] = {**_options, "inline": "always"}
# sums may be reordered (that is what lets them use vector registers); NaN and inf keep their meaning
_fast: dict[str, Any] = {**_options, "fastmath": {"reassoc", "contract", "nsz"}}


def _compile(options: dict[str, Any]) -> Callable[[Callable], Any]:
    """numba's ``njit``; where no folder for its cache can be written, each process compiles anew."""

    def compiled(function: Callable) -> Any:
        try:
            return njit(**options)(function)
        except RuntimeError:
            return njit(**{**options, "cache": False})(function)

    return compiled


@_compile(_inline)
def _word(state):
    """64 random bits from a counter state."""
    z = (state ^ (state >> _S30)) * _MIX_1
    z = (z ^ (z >> _S27)) * _MIX_2
    return z ^ (z >> _S31)


@_compile(_inline)
def _uniform(state):
    """A number strictly inside (0, 1) from a counter state."""
    return (np.float64(_word(state) >> _S11) + 0.5) * _UNIT


@_compile(_options)
def _poisson(mean, state):
    """(Poisson(mean), new state): inversion for small means, Hörmann's transformed rejection (PTRS, 1993) beyond."""
    if mean < 10.0:
        state += _GOLDEN
        u = _uniform(state)
        if u <= 1.0 - mean:  # since e^-x >= 1 - x, this is a 0 without computing the exponential
            return 0.0, state
        p = math.exp(-mean)
        k = 0
        while u > p and k < 150:  # beyond 150, less than 1e-100 of the mass is left
            u -= p
            k += 1
            p *= mean / k
        return float(k), state
    root = math.sqrt(mean)
    b = 0.931 + 2.53 * root
    a = -0.059 + 0.02483 * b
    v_r = 0.9277 - 3.6224 / (b - 2.0)
    while True:
        state += _GOLDEN
        u = _uniform(state) - 0.5
        state += _GOLDEN
        v = _uniform(state)
        us = 0.5 - abs(u)
        k = math.floor((2.0 * a / us + b) * u + mean + 0.43)
        if us >= 0.07 and v <= v_r:
            return float(k), state
        if k < 0 or (us < 0.013 and v > us):
            continue
        inverse_alpha = 1.1239 + 1.1328 / (b - 3.4)
        accept = math.log(v * inverse_alpha / (a / (us * us) + b))
        if accept <= k * math.log(mean) - mean - math.lgamma(k + 1.0):
            return float(k), state


@_compile(_inline)
def _logistic(s):
    """1/(1 + e^-s) for |s| <= 40, absolute error below 1e-11, without a library call: loops over it use vector registers."""
    y = -0.03125 * s
    p = 1.0 + y * (1.0 + y * (0.5 + y * (1 / 6 + y * (1 / 24 + y * (1 / 120 + y * (1 / 720 + y * (1 / 5040)))))))
    p *= p
    p *= p
    p *= p
    p *= p
    p *= p
    return 1.0 / (1.0 + p)


# Taylor coefficients of sin(πs/2) in odd and cos(πs/2) in even powers of s: the next terms are below 1e-13 for |s| <= 1
_SIN = tuple((-1) ** k * (math.pi / 2) ** (2 * k + 1) / math.factorial(2 * k + 1) for k in range(10))
_COS = tuple((-1) ** k * (math.pi / 2) ** (2 * k) / math.factorial(2 * k) for k in range(10))


@_compile(_inline)
def _indicator(code, s):
    """(f(s), f'(s)) inside the support."""
    q = s * s
    if code == 2:
        return 0.5 + s * (0.75 - 0.25 * q), 0.75 * (1.0 - q)
    if code == 0:
        f = _logistic(s)
        return f, f * (1.0 - f)
    if code == 1:
        return 0.5 + 0.5 * s, 0.5
    if code == 3:
        return 0.5 + s * (0.9375 + q * (0.1875 * q - 0.625)), 0.9375 * (1.0 - q) * (1.0 - q)
    sine, cosine = _SIN[9], _COS[9]
    for k in range(8, -1, -1):
        sine = sine * q + _SIN[k]
        cosine = cosine * q + _COS[k]
    return 0.5 + 0.5 * s * sine, 0.25 * math.pi * cosine


@_compile(_fast)
def _sum_block(code, buffer, number, low, width, inverse_tau, state):
    """Σ f(s), Σ f'(s)(1/τ - s), #{s > 0} over at most ``buffer.size`` independent uniform s."""
    for j in range(number):
        buffer[j] = low + width * _uniform(state + np.uint64(j + 1) * _GOLDEN)
    fraction, slope, crossed = 0.0, 0.0, 0.0
    # one loop an indicator: a test inside would keep the compiler from vectorising
    if code == 0:
        for j in range(number):
            f, d = _indicator(0, buffer[j])
            fraction += f
            slope += d * (inverse_tau - buffer[j])
    elif code == 2:
        for j in range(number):
            f, d = _indicator(2, buffer[j])
            fraction += f
            slope += d * (inverse_tau - buffer[j])
    elif code == 4:
        for j in range(number):
            f, d = _indicator(4, buffer[j])
            fraction += f
            slope += d * (inverse_tau - buffer[j])
    else:
        for j in range(number):
            f, d = _indicator(code, buffer[j])
            fraction += f
            slope += d * (inverse_tau - buffer[j])
    for j in range(number):
        crossed += 1.0 if buffer[j] > 0.0 else 0.0
    return fraction, slope, crossed


_F32 = np.float32
_EXP = tuple(_F32((-1 / 32) ** k / math.factorial(k)) for k in range(7))


@_compile(_fast)
def _sigmoid_block(words, number, low, width, inverse_tau, state):
    """:func:`_sum_block` of the sigmoid in single precision: it has the widest window, so here the time goes.

    Each 64-bit word gives two uniform s. e^-s is a polynomial of degree 6 in -s/32, raised to the 32nd power: relative
    error below 4e-6 for |s| <= 8, where all but a 3,000th of the sum comes from.
    """
    for j in range((number + 1) // 2):
        words[j] = _word(state + np.uint64(j + 1) * _GOLDEN)
    signed = words.view(np.int32)
    middle, scale, top = _F32(low + 0.5 * width), _F32(width * 2.0**-32), _F32(inverse_tau)
    fraction, slope, crossed = _F32(0), _F32(0), 0
    for j in range(number):
        s = middle + scale * _F32(signed[j])
        p = _EXP[5] + s * _EXP[6]
        p = _EXP[0] + s * (_EXP[1] + s * (_EXP[2] + s * (_EXP[3] + s * (_EXP[4] + s * p))))
        p *= p
        p *= p
        p *= p
        p *= p
        p *= p
        f = _F32(1) / (_F32(1) + p)
        fraction += f
        slope += p * f * f * (top - s)
    for j in range(number):
        crossed += middle + scale * _F32(signed[j]) > 0
    return float(fraction), float(slope), float(crossed)


@_compile(_options)
def _normals(state):
    """(two independent standard normal numbers, new state), by Box and Muller."""
    state += _GOLDEN
    radius = math.sqrt(-2.0 * math.log(_uniform(state)))
    state += _GOLDEN
    angle = 2.0 * math.pi * _uniform(state)
    return radius * math.cos(angle), radius * math.sin(angle), state


@_compile(_options)
def _full_window(code, hard, number, half, high, inverse_tau, state):
    """(Σ f(s), Σ f'(s)(1/τ - s), new state) as :func:`hitchhiker.kernels.window.sample_full_window`; Σ 1[s > 0] if hard."""
    x1, x2, g1, g2, xg = 0.0, 0.0, 0.0, 0.0, 0.0
    for side in range(2):
        for j in range(NODES.size):
            length = half if side == 0 else high
            s = 0.5 * length * (1.0 + NODES[j]) * (-1.0 if side == 0 else 1.0)
            share = 0.5 * length * WEIGHTS[j] / (half + high)
            f, d = _indicator(code, s)
            x = float(side) if hard else f
            g = d * (inverse_tau - s)
            x1 += share * x
            x2 += share * x * x
            g1 += share * g
            g2 += share * g * g
            xg += share * x * g
    first, second, state = _normals(state)
    root, along = math.sqrt(number), xg / math.sqrt(x2)
    across = math.sqrt(max(0.0, g2 - along * along))
    total = number * x1 + root * math.sqrt(x2) * first
    return np.floor(total + 0.5) if hard else total, number * g1 + root * (along * first + across * second), state


@_compile(_options)
def _arrival_times(code, half, rates, temperature, is_log, hard, seed, start, stop, count, slope):
    state = np.uint64(seed)
    one_tau = temperature.size == 1
    buffer, words = np.empty(256), np.empty(128, dtype=np.uint64)
    single = code == 0 and count.itemsize == 4
    state += _GOLDEN
    gap = -math.log(_uniform(state))
    for i in range(start, stop):
        if i == start or not one_tau:
            tau = float(temperature[0 if one_tau else i])
            inverse_tau = 1.0 / tau if tau > 0.0 else math.inf
            high = min(half, inverse_tau)
            width = high + half
            window = tau * width if tau > 0.0 else 0.0
            before = max(0.0, 1.0 - tau * high) if tau > 0.0 else 1.0
        rate = float(rates[i])
        if not rate < math.inf:  # NaN in, NaN out
            count[i], slope[i] = math.nan, math.nan
            continue
        total = rate * (before + window)
        if gap >= total and total < 2.0:
            gap -= total
            count[i], slope[i] = 0.0, 0.0
            continue
        n, g, crossed = 0.0, 0.0, 0.0
        if total < 2.0:
            # the windows of quiet units, end to end, hold one Poisson process: an exponential gap leads to the next arrival
            while gap < total:
                t = gap / rate
                if t < before:
                    n += 1.0
                    crossed += 1.0
                else:
                    s = high - (t - before) * inverse_tau
                    f, d = _indicator(code, s)
                    n += f
                    g += d * (inverse_tau - s)
                    crossed += 1.0 if s > 0.0 else 0.0
                state += _GOLDEN
                gap -= math.log(_uniform(state))
            gap -= total
        else:
            if rate * before > HUGE:
                first, _, state = _normals(state)
                certain = np.floor(rate * before + math.sqrt(rate * before) * first + 0.5)
            else:
                certain, state = _poisson(rate * before, state)
            n, crossed, left = certain, certain, 0
            if rate * window > MANY:
                f, g, state = _full_window(code, hard, rate * window, half, high, inverse_tau, state)
                n, crossed = n + f, crossed + f
            else:
                fractional, state = _poisson(rate * window, state)
                left = int(fractional)
            while left > 0:
                number = min(left, buffer.size)
                if single:
                    f, d, c = _sigmoid_block(words, number, -half, width, inverse_tau, state)
                else:
                    f, d, c = _sum_block(code, buffer, number, -half, width, inverse_tau, state)
                state += np.uint64(number) * _GOLDEN
                n, g, crossed, left = n + f, g + d, crossed + c, left - number
        count[i] = crossed if hard else n
        slope[i] = g if is_log or g == 0.0 else g / rate


@_compile(_options)
def _unseen_poisson(rate, zero_mass, seen, number, unseen, state):
    """(a Poisson(rate) count given that it is not among the first ``number`` of ``seen``, new state)."""
    if rate < 10.0:  # inversion over the categories that are left
        state += _GOLDEN
        u = _uniform(state) * unseen
        p, k = zero_mass, 0
        while k < 150:
            fresh = True
            for j in range(number):
                fresh = fresh and seen[j] != k
            if fresh:
                if u <= p:
                    break
                u -= p
            k += 1
            p *= rate / k
        return k, state
    while True:
        drawn, state = _poisson(rate, state)
        k = int(drawn)
        fresh = True
        for j in range(number):
            fresh = fresh and seen[j] != k
        if fresh:
            return k, state


@_compile(_options)
def _race(num_categories, log_factorial, log_rate, inverse_tau, seen, state):
    """GSM by a race: (winning category, mean and second moment about it of the soft weights, new state).

    (π_m/E_m)^{1/τ} with exponential E_m is T_m^{-1/τ}, and T_m = E_m/π_m is the first event of category m in a Poisson
    process of rate 1 whose events carry independent categories from π. The next new category comes at the rate of the
    categories not yet seen. Later ones weigh less, and the first few say it all.
    """
    rate = math.exp(log_rate)
    zero_mass = math.exp(-rate)
    number, winner = 0, -1
    time, log_first, unseen = 0.0, 0.0, 1.0
    total, first, second = 0.0, 0.0, 0.0
    while number < seen.size and unseen > 1e-12:
        state += _GOLDEN
        time -= math.log(_uniform(state)) / unseen
        weight = 1.0
        if winner >= 0:
            lag = (math.log(time) - log_first) * inverse_tau
            if lag > 23.0:  # a weight of 1e-10
                break
            weight = math.exp(-lag)
        category, state = _unseen_poisson(rate, zero_mass, seen, number, unseen, state)
        seen[number] = category
        number += 1
        if category >= num_categories:  # outside the truncated law: known, but not in the race
            unseen -= math.exp(category * log_rate - rate - math.lgamma(category + 1.0))
            continue
        unseen -= math.exp(category * log_rate - rate - log_factorial[category])
        if winner < 0:
            winner, log_first = category, math.log(time)
        lead = category - winner
        total += weight
        first += weight * lead
        second += weight * lead * lead
    return winner, first / total, second / total, state


@_compile(_options)
def _direct(num_categories, log_factorial, log_rate, tau, scores, state):
    """GSM from one Gumbel draw a category, as :func:`_race` returns it, over the categories that can matter.

    Left out are those whose weight stays below 1e-10 of the largest: ln π_m < ln π_peak - 23 max(1, τ).
    """
    rate = math.exp(log_rate)
    mode = int(min(rate, num_categories - 1.0))  # a rate beyond 2^63 is no integer
    floor = mode * log_rate - log_factorial[mode] - 23.0 * max(1.0, tau)
    low = mode
    while low > 0 and (low - 1) * log_rate - log_factorial[low - 1] > floor:
        low -= 1
    peak, index, high = -math.inf, low, low
    while high < num_categories:
        logit = high * log_rate - log_factorial[high]
        if high > mode and logit < floor:
            break
        state += _GOLDEN
        score = logit - math.log(-math.log(_uniform(state)))
        scores[high] = score
        if score > peak:
            peak, index = score, high
        high += 1
    if tau == 0.0:
        return index, 0.0, 0.0, state
    total, first, second = 0.0, 0.0, 0.0
    for m in range(low, high):
        lag = (peak - scores[m]) / tau
        if lag < 40.0:  # e^-40 is below the resolution of float64
            weight = math.exp(-lag)
            lead = m - index
            total += weight
            first += weight * lead
            second += weight * lead * lead
    return index, first / total, second / total, state


@_compile(_options)
def _gumbel_softmax(
    num_categories, log_factorial, parameter, temperature, is_log, hard, seed, start, stop, count, slope
):
    state = np.uint64(seed)
    one_tau = temperature.size == 1
    scores = np.empty(num_categories)
    seen = np.empty(256, dtype=np.int64)
    for i in range(start, stop):
        x = float(parameter[i])
        log_rate = x if is_log else math.log(x)
        tau = float(temperature[0 if one_tau else i])
        if math.isnan(x):
            count[i], slope[i] = math.nan, math.nan
            continue
        if log_rate == -math.inf:  # at rate 0 the count 0 is certain
            count[i], slope[i] = 0.0, 0.0
            continue
        # a race takes at most about e^{23τ} events, a direct draw about as many terms as the law has categories; a
        # truncation below the rate leaves the race too few of its events
        root = math.exp(0.5 * log_rate)
        if 23.0 * tau < math.log(min(60.0, 9.0 + 13.0 * root)) and num_categories > 1.0 + root * root:
            inverse_tau = 1.0 / tau if tau > 0.0 else math.inf
            index, mean, second, state = _race(num_categories, log_factorial, log_rate, inverse_tau, seen, state)
        else:
            index, mean, second, state = _direct(num_categories, log_factorial, log_rate, tau, scores, state)
        # moments about the winner lose no digits
        g = max(0.0, second - mean * mean) / tau if tau > 0.0 else 0.0
        count[i] = index if hard else index + mean
        slope[i] = g if is_log else g / x


_pool: ThreadPoolExecutor | None = None


def _run(kernel, parameter: Tensor, temperature: Tensor, *arguments) -> tuple[Tensor, Tensor]:
    """Call ``kernel(…, seed, start, stop, count, slope)`` for blocks of units, on torch's number of threads."""
    global _pool
    count = torch.empty(parameter.shape, dtype=parameter.dtype)
    slope = torch.empty(parameter.shape, dtype=parameter.dtype)
    flat = parameter.detach().contiguous().view(-1).numpy()
    wide = temperature if temperature.numel() == 1 else temperature.expand(parameter.shape)
    tau = wide.to(torch.float64).contiguous().view(-1).numpy()
    blocks = range(0, flat.size, BLOCK)
    seeds = torch.randint(2**62, (len(blocks),)).numpy()
    out = count.view(-1).numpy(), slope.view(-1).numpy()

    def block(i: int) -> None:
        start = i * BLOCK
        kernel(*arguments[:-2], flat, tau, *arguments[-2:], seeds[i], start, min(start + BLOCK, flat.size), *out)

    pending = iter(range(len(blocks)))  # whoever is free takes the next block; its stream is its own

    def work() -> None:
        for i in pending:
            block(i)

    others = min(torch.get_num_threads(), len(blocks)) - 1
    if others > 0 and (_pool is None or _pool._max_workers < others):
        _pool = ThreadPoolExecutor(others, thread_name_prefix="hitchhiker")
    # this thread works too: torch's own threads may still be spinning on the other cores
    waiting = [_pool.submit(work) for _ in range(others)] if _pool is not None else []
    work()
    for other in waiting:
        other.result()
    return count, slope


def arrival_time(
    parameter: Tensor, temperature: Tensor, indicator: str, half: float, is_log: bool, hard: bool
) -> tuple[Tensor, Tensor]:
    """(count, dz/dparameter) of EAT; ``half`` is the indicator's half width in the parameter's precision."""
    rates = parameter.detach().exp() if is_log else parameter  # all at once, in vector registers
    return _run(_arrival_times, rates, temperature, CODES[indicator], half, is_log, hard)


def gumbel_softmax(
    parameter: Tensor, temperature: Tensor, num_categories: int, is_log: bool, hard: bool
) -> tuple[Tensor, Tensor]:
    """(count, dz/dparameter) of GSM."""
    log_factorial = torch.lgamma(torch.arange(1, num_categories + 1, dtype=torch.float64)).numpy()
    return _run(_gumbel_softmax, parameter, temperature, num_categories, log_factorial, is_log, hard)
