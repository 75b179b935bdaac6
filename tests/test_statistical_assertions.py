"""Power: each statistical assertion accepts the truth and rejects a planted error of 1 or 2%."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from laws import samples_with_slopes
from scipy import stats

from hitchhiker import EATPoisson, GSMPoisson, moments, testing

F64 = torch.float64
TAU, RATE = 0.5, 6.0


def eat(n: int, rate: float = RATE, temperature: float = TAU, **options) -> torch.Tensor:
    return EATPoisson(rate=torch.full((n,), rate, dtype=F64), temperature=temperature, **options).rsample()


def cumulants(indicator: str, rate: float = RATE, temperature: float = TAU) -> list[float]:
    return [rate * moments.cumulant_factor(indicator, temperature, k) for k in (1, 2, 3, 4)]


def rejected(assertion, *arguments) -> bool:
    try:
        assertion(*arguments)
    except AssertionError:
        return True
    return False


# --- cumulants ---


def test_cumulants_accept_the_truth_and_see_one_percent_of_the_rate():
    n = 400_000
    testing.assert_cumulants(eat(n), cumulants("cubic"))
    for planted in (0.99, 1.01):
        assert rejected(testing.assert_cumulants, eat(n, RATE * planted), cumulants("cubic"))


def test_cumulants_see_another_indicator():
    """The same mean, variances 5% (quintic) and more apart at τ = 1; the cosine, 1% apart, needs more samples than these."""
    n = 1_000_000
    z = eat(n, temperature=1.0)
    testing.assert_cumulants(z, cumulants("cubic", temperature=1.0))
    for wrong in ("quintic", "linear", "sigmoid"):
        assert rejected(testing.assert_cumulants, z, cumulants(wrong, temperature=1.0)), wrong


def test_cumulants_see_too_few_arrivals():
    """Algorithm 1 with the paper's M for λ = 6 loses 1% of the mean at τ = 0.5; with enough arrivals none."""
    few, enough = 14, 40
    short = 1 - moments.truncated_mean_factor("cubic", TAU, RATE, few)
    assert 0.0005 < short < 0.02
    testing.assert_cumulants(eat(100_000, num_arrivals=enough), cumulants("cubic"))
    assert rejected(testing.assert_cumulants, eat(400_000, num_arrivals=few - 2), cumulants("cubic"))


def test_cumulants_see_a_variance_two_percent_off():
    z = eat(400_000)
    mean, variance, *rest = cumulants("cubic")
    for planted in (0.98, 1.02):
        assert rejected(testing.assert_cumulants, z, (mean, variance * planted, *rest))


def test_false_alarms_of_cumulants_are_rare():
    """The z-scores behind it are standard normal: over 300 true statements at two sigma, about 9% fail."""
    alarms = sum(rejected(testing.assert_cumulants, eat(2000), cumulants("cubic"), 2.0) for _ in range(300))
    p = 1 - (1 - 2 * stats.norm.sf(2)) ** 2
    assert stats.binom.cdf(alarms, 300, p) > 1e-6
    assert stats.binom.sf(alarms, 300, p) > 1e-6


# --- means ---


def test_mean_accepts_and_rejects():
    slope = samples_with_slopes(lambda r: EATPoisson(rate=r, temperature=TAU), RATE, 400_000)[1]
    testing.assert_mean(slope, 1.0)
    for planted in (0.98, 1.02):
        assert rejected(testing.assert_mean, slope, planted)


def test_mean_of_a_constant():
    ones = torch.ones(50)
    testing.assert_mean(ones, 1.0)
    assert rejected(testing.assert_mean, ones, 1.0 + 1e-6)
    assert testing.z_scores(ones, 1.0).item() == 0


def test_mean_of_many_entries_fails_if_one_does():
    z = eat(200_000)[:, None].expand(-1, 3) * torch.tensor([1.0, 1.0, 1.02])
    testing.assert_mean(z[:, :2], RATE)
    assert rejected(testing.assert_mean, z, RATE)


def test_nan_is_never_accepted():
    bad = torch.tensor([1.0, 2.0, math.nan])
    assert rejected(testing.assert_mean, bad, 1.5)
    assert rejected(testing.assert_cumulants, bad, (1.5, 1.0, 1.0, 1.0))
    assert rejected(testing.assert_same_law, bad, bad)
    assert rejected(testing.assert_frequencies, bad, torch.tensor([0.3, 0.3, 0.4]))


# --- whole laws ---


def test_same_law_accepts_and_rejects():
    """Atoms and continuous parts; a mixture that moves 2% of the mass is seen at 400,000 samples, 1% of the rate at 10⁶."""
    n = 400_000
    a, b = eat(n, 2.0, 0.2), eat(n, 2.0, 0.2)
    testing.assert_same_law(a, b)
    assert rejected(testing.assert_same_law, a, b + (torch.rand(n) < 0.02) * 10)
    assert rejected(testing.assert_same_law, a, eat(n, 2.0, 0.3))
    assert rejected(testing.assert_same_law, a, a + 1e-9)  # an atom moved by a hair
    big = 1_500_000
    assert rejected(testing.assert_same_law, eat(big, 60.0, 0.2), eat(big, 60.6, 0.2))


def test_same_law_of_slopes_sees_another_indicator():
    n = 150_000
    slopes = {
        name: samples_with_slopes(lambda r, f=name: EATPoisson(rate=r, temperature=TAU, indicator=f), 2.0, n)[1]
        for name in ("cubic", "quintic", "cosine", "linear")
    }
    for name in ("quintic", "linear"):
        assert rejected(testing.assert_same_law, slopes["cubic"], slopes[name]), name


def test_same_law_keeps_its_false_alarm_rate():
    """DKW is a bound: at a stated 10% no more than 10% of true statements fail."""
    alarms = sum(rejected(testing.assert_same_law, eat(500), eat(500), 0.1) for _ in range(200))
    assert stats.binom.sf(alarms, 200, 0.1) > 1e-6


# --- counts ---


def poisson_pmf(rate: float, top: int = 60) -> torch.Tensor:
    return torch.as_tensor(stats.poisson.pmf(np.arange(top), rate))


def test_frequencies_accept_and_reject():
    n = 400_000
    counts = torch.poisson(torch.full((n,), RATE, dtype=F64))
    testing.assert_frequencies(counts, poisson_pmf(RATE))
    for planted in (0.98, 1.02):
        assert rejected(testing.assert_frequencies, counts, poisson_pmf(RATE * planted))
    gsm = GSMPoisson(rate=torch.full((n,), RATE), num_categories=30, hard=True).rsample()
    pmf = poisson_pmf(RATE, 30)
    testing.assert_frequencies(gsm, pmf / pmf.sum())
    assert rejected(testing.assert_frequencies, gsm, poisson_pmf(RATE * 1.02))


def test_frequencies_see_one_category_missing():
    """The paper's M drops the quantile itself: 13 of 0 … 12 at λ = 6 hold 0.2% too little."""
    pmf = poisson_pmf(RATE, 14)
    cut = GSMPoisson(rate=torch.full((400_000,), RATE), num_categories=13, hard=True).rsample()
    assert rejected(testing.assert_frequencies, cut, pmf / pmf.sum())


def test_frequencies_see_rare_and_impossible_counts():
    """Cells too small for χ² of their own are pooled, not forgotten."""
    pmf = torch.tensor([0.5, 0.5 - 2e-4, 1e-4, 1e-4], dtype=F64)
    sound = torch.cat([torch.arange(2).repeat(2500)])
    testing.assert_frequencies(sound, pmf)
    assert rejected(testing.assert_frequencies, torch.cat([sound, torch.full((60,), 3)]), pmf)
    impossible = torch.tensor([0.5, 0.5, 0.0], dtype=F64)
    testing.assert_frequencies(sound, impossible)
    assert rejected(testing.assert_frequencies, torch.cat([sound, torch.tensor([2])]), impossible)
    assert rejected(testing.assert_frequencies, torch.cat([sound, torch.tensor([7])]), impossible)


def test_frequencies_refuse_relaxed_counts():
    assert rejected(testing.assert_frequencies, torch.full((1000,), 0.4), torch.tensor([1.0, 0.0]))


def test_frequencies_of_one_cell():
    testing.assert_frequencies(torch.zeros(100), torch.tensor([1.0]))


def test_frequencies_keep_their_false_alarm_rate():
    alarms = sum(
        rejected(testing.assert_frequencies, torch.poisson(torch.full((3000,), 2.0)), poisson_pmf(2.0), 0.1)
        for _ in range(200)
    )
    assert stats.binom.sf(alarms, 200, 0.1) > 1e-6
    assert stats.binom.cdf(alarms, 200, 0.1) > 1e-6


@pytest.mark.parametrize("sigmas", [6.0, 8.0])
def test_six_sigma_is_the_default(sigmas):
    assert testing.SIGMAS == 6.0
    x = torch.tensor([0.0, 1.0], dtype=F64).repeat(5000)
    shift = 7 * float(x.std()) / 100
    if sigmas > 7:
        testing.assert_mean(x, 0.5 + shift, sigmas)
    else:
        assert rejected(testing.assert_mean, x, 0.5 + shift)
