"""How many arrivals and categories: the paper's rule, and that ours loses as little as it says."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from hitchhiker import moments
from hitchhiker.indicators import get
from hitchhiker.truncation import cut_of_logits, num_arrivals, num_categories, paper_num_arrivals

INDICATORS = ("sigmoid", "linear", "cubic", "quintic", "cosine")


@pytest.mark.parametrize("rate", [0.1, 1.0, 7.3, 100.0, 1e4, 1e6])
def test_paper_rule_is_the_quantile(rate):
    m = paper_num_arrivals(rate)
    assert isinstance(m, int)
    assert stats.poisson.cdf(m, rate) >= 1 - 1e-3 > stats.poisson.cdf(m - 1, rate)
    assert paper_num_arrivals(torch.tensor([rate / 3, rate], dtype=torch.float64)) == m
    assert paper_num_arrivals(rate, tail=1e-2) <= m


def test_paper_rule_on_known_values():
    assert [paper_num_arrivals(x) for x in (20.0, 100.0, np.array([[3.0, 20.0]]))] == [35, 132, 35]
    assert paper_num_arrivals(1e-4) == paper_num_arrivals(0.0) == paper_num_arrivals(torch.empty(0)) == 0


@pytest.mark.parametrize("indicator", INDICATORS)
@pytest.mark.parametrize("temperature", [0.0, 1e-6, 0.1, 0.5, 1.0, 3.0])
def test_arrivals_lose_at_most_tail(indicator, temperature):
    for rate in (1e-8, 0.03, 0.3, 1.0, 5.0, 100.0, 1e4):
        for tail in (1e-3, 1e-5):
            m = num_arrivals(rate, temperature, indicator, tail)
            at = (indicator, temperature, rate, m)
            assert moments.truncated_mean_factor(*at) >= (1 - tail) * moments.mean_factor(indicator, temperature)
            v = moments.variance_factor(indicator, temperature)
            assert moments.truncated_variance_factor(*at) >= (1 - tail) * v
            if temperature:
                gradient = moments.gradient_mean(indicator, temperature)
                assert moments.truncated_gradient_mean(*at) >= (1 - tail) * gradient
            if math.isfinite(get(indicator).support[1]):
                assert stats.poisson.sf(m, rate * (1 + temperature)) <= tail


def test_arrivals_follow_temperature_and_support():
    assert num_arrivals(100.0, 0.5) == 189 == stats.poisson.isf(1e-3, 150)
    assert num_arrivals(100.0, 0.5, "sigmoid") > 4 * num_arrivals(100.0, 0.5)
    assert num_arrivals(100.0, 1.0) > num_arrivals(100.0, 0.5) > num_arrivals(100.0)
    assert num_arrivals(torch.tensor([100.0, 1.0]), torch.tensor([[0.1], [0.5]])) == 189


def test_power_the_papers_number_would_be_caught():
    """The check above rejects M of Eq. 79, and an M 2% too small at the rate where the loss decides."""
    assert moments.truncated_mean_factor("cubic", 0.5, 100.0, paper_num_arrivals(100.0)) < 1 - 1e-3
    m = num_arrivals(100.0, 0.02)
    v = moments.variance_factor("cubic", 0.02)
    assert moments.truncated_variance_factor("cubic", 0.02, 100.0, int(0.98 * m)) < (1 - 1e-3) * v


def test_a_small_rate_beside_the_largest_is_safe_too():
    m = num_arrivals(torch.tensor([100.0, 2.0, 1e-3]), 0.02)
    for rate in (100.0, 2.0, 1e-3):
        v = moments.variance_factor("cubic", 0.02)
        assert moments.truncated_variance_factor("cubic", 0.02, rate, m) >= (1 - 1e-3) * v


@pytest.mark.parametrize("rate", [1e-8, 0.1, 1.0, 20.0, 100.0, 1e6])
@pytest.mark.parametrize("tail", [1e-3, 1e-6])
def test_categories_keep_mean_and_variance(rate, tail):
    k = num_categories(rate, tail=tail)
    assert k > stats.poisson.isf(tail, rate)  # one more than Eq. 79: category M itself is there
    low = max(0, int(rate - 40 * math.sqrt(rate) - 40))
    m = np.arange(low, k)
    p = stats.poisson.pmf(m, rate)
    p /= p.sum()
    mean = p @ m
    assert abs(mean - rate) <= tail * rate * (1 + 1e-6)
    assert p @ (m - mean) ** 2 >= (1 - tail) * rate * (1 - 1e-6)


def test_categories_know_temperature():
    numbers = [num_categories(10.0, t) for t in (0.0, 0.5, 1.0, 2.0, 5.0, 50.0)]
    assert numbers[0] == numbers[1] == numbers[2] < numbers[3] < numbers[4] < numbers[5] < 1000
    assert num_categories(10.0, torch.tensor([0.1, 2.0])) == numbers[3]


def test_zero_and_empty():
    for empty in (0.0, torch.zeros(3), torch.empty(0)):
        assert num_arrivals(empty, 0.5) == 1
        assert num_categories(empty, 0.5) == 2
    assert num_arrivals(1e-8, 0.5) == 1
    assert num_categories(1e-8, 0.5) == 2


def test_cut_of_logits_on_a_geometric():
    logits = np.log(0.5) * np.arange(200)
    cut = cut_of_logits(logits, 1e-3)
    p = 0.5 ** np.arange(1, cut + 2)
    p /= p.sum()
    m = np.arange(cut + 1)
    assert p @ m >= 1 - 1e-3
    assert p @ m**2 - (p @ m) ** 2 >= 2 * (1 - 1e-3)
    p = p[:-1] / p[:-1].sum()
    assert p @ m[:-1] ** 2 - (p @ m[:-1]) ** 2 < 2 * (1 - 1e-3)
    assert cut_of_logits(np.append(logits, -np.inf) + 700, 1e-3) == cut
    assert cut_of_logits(logits, 1e-3, first=5.0) <= cut


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf, torch.tensor([1.0, -2.0]), 1j, "many", None])
def test_bad_rates_are_refused(bad):
    for rule in (paper_num_arrivals, num_arrivals, num_categories):
        with pytest.raises(ValueError, match="rate must be"):
            rule(bad)


def test_other_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"temperature must be >= 0 and finite, got -0.1"):
        num_arrivals(1.0, -0.1)
    with pytest.raises(ValueError, match="temperature must be"):
        num_categories(1.0, math.nan)
    for tail in (0.0, 1.0, math.nan, -1e-3):
        with pytest.raises(ValueError, match="tail must be between 0 and 1"):
            num_arrivals(1.0, 0.1, tail=tail)
    with pytest.raises(ValueError, match="indicator must be one of"):
        num_arrivals(1.0, 0.1, "square")
