"""Diagnostics against synthetic gradients whose bias and noise covariance are known."""

from __future__ import annotations

import math
import weakref

import pytest
import torch
from laws import without_shape_checks

from hitchhiker import testing
from hitchhiker.gradient_quality import METRICS, equation_of_motion, summarize, summarize_stream
from hitchhiker.linear_decoder import HessianProduct, gradient, hessian

F64 = torch.float64
K = 3
ROOT = torch.tensor([[1.0, 0.0, 0.0], [0.4, 0.8, 0.0], [-0.3, 0.2, 1.5]], dtype=F64)  # Σ = ROOT ROOTᵀ
H = torch.tensor([[2.0, 0.3, 0.0], [0.3, 1.0, -0.4], [0.0, -0.4, 3.0]], dtype=F64)
EXACT = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
SIGNAL = float(EXACT @ H @ EXACT)
BIAS = torch.tensor([0.3, 0.1, -0.2], dtype=F64)
BIAS_ENERGY = float(BIAS @ H @ BIAS) / SIGNAL
NOISE_ENERGY = float((H @ ROOT @ ROOT.T).trace()) / SIGNAL


def gradients(n: int, bias: torch.Tensor | float, *lead: int) -> torch.Tensor:
    return EXACT + bias + torch.randn(n, *lead, K, dtype=F64) @ ROOT.T


def repeated(repeats: int, n: int, bias, chunks: int | None = None) -> dict[str, torch.Tensor]:
    """Every field of many independent summaries."""
    found = []
    for _ in range(repeats):
        g = gradients(n, bias)
        found.append(summarize(g, EXACT, H) if chunks is None else summarize_stream(g.tensor_split(chunks), EXACT, H))
    return {name: torch.tensor([getattr(q, name) for q in found], dtype=F64) for name in vars(found[0])}


@pytest.mark.parametrize("bias", [0.0, BIAS], ids=["unbiased", "biased"])
def test_energies_are_unbiased_and_standard_errors_calibrated(bias):
    """At six sigma over repeats. Stated standard errors are the spread seen, up to what 400 repeats can tell.

    An uncorrected jackknife states 1.45 times the spread of a bias energy whose truth is 0.
    """
    found = repeated(400, 100, bias, chunks=20)
    truth = BIAS_ENERGY if isinstance(bias, torch.Tensor) else 0.0
    testing.assert_mean(found["bias_energy"], truth)
    testing.assert_mean(found["noise_energy"], NOISE_ENERGY)
    # what the plug-in shows: the bias energy and the floor Tr(HΣ)/N beside it
    testing.assert_mean(found["bias_energy_plugin"], truth + NOISE_ENERGY / 100)
    if truth == 0:  # power: the floor itself is seen
        with pytest.raises(AssertionError):
            testing.assert_mean(found["bias_energy_plugin"], truth)
    for name in METRICS:
        ratio = float(found[f"{name}_se"].square().mean().sqrt() / found[name].std())
        assert abs(ratio - 1) < 0.3, (name, ratio)


def test_floor_falls_with_the_number_of_estimates():
    """Zero bias: the plug-in shows Tr(HΣ)/N at N = 20 and at N = 200."""
    for n in (20, 200):
        found = repeated(150, n, 0.0, chunks=10)
        testing.assert_mean(found["bias_energy_plugin"] * n, NOISE_ENERGY)
        testing.assert_mean(found["bias_energy"], 0.0)


def test_cosines():
    """cos(Eĝ, g*) without the floor, E cos(ĝ, g*) as it is."""
    quality = summarize(gradients(40_000, BIAS), EXACT, H)
    truth = float(torch.cosine_similarity(EXACT + BIAS, EXACT, dim=0))
    assert abs(quality.cos_mean - truth) < 6 * quality.cos_mean_se
    assert 0 < quality.cos_mean_se < 0.01
    sample = torch.cosine_similarity(gradients(400_000, BIAS), EXACT, dim=-1)
    error = math.hypot(quality.cos_sample_se, float(sample.std()) / math.sqrt(len(sample)))
    assert abs(quality.cos_sample - float(sample.mean())) < 6 * error
    # few noisy estimates: the plug-in cosine is far too low, the corrected one is not
    found = repeated(300, 20, 0.0, chunks=20)
    low, corrected = found["cos_mean_plugin"].mean(), found["cos_mean"].mean()
    plain = 1 / math.sqrt(1 + float((ROOT @ ROOT.T).trace()) / 20 / float(EXACT @ EXACT))
    assert abs(low - plain) < 0.01
    assert abs(corrected - 1) < 0.5 * abs(low - 1)


def test_perfect_gradients():
    quality = summarize(EXACT.expand(10, K), EXACT, H)
    assert quality.bias_energy == quality.noise_energy == quality.bias_energy_plugin == 0
    assert quality.cos_mean == pytest.approx(1, abs=1e-12)
    assert quality.cos_sample == pytest.approx(1, abs=1e-12)
    assert quality.num_samples == 10
    assert quality.indefinite == 0


def test_streaming_equals_summarize():
    """Any cut into chunks gives the same numbers; the standard errors need not be the same, but alike."""
    g = gradients(240, BIAS, 4)
    exact, matrix = EXACT.expand(4, K), H.expand(4, K, K)
    whole = summarize(g, exact, matrix)
    for chunks in (g.split(1), g.split(7), g.tensor_split(20)):
        stream = summarize_stream(iter(chunks), exact, matrix)
        assert stream.num_samples == 240
        for name in (*METRICS, "bias_energy_plugin", "cos_mean_plugin"):
            assert getattr(stream, name) == pytest.approx(getattr(whole, name), rel=1e-10, abs=1e-12)
        for name in METRICS:
            assert getattr(stream, f"{name}_se") == pytest.approx(getattr(whole, f"{name}_se"), rel=0.7)


def test_batch_is_the_mean_of_its_items():
    g = gradients(60, 0.1, 2, 2)
    exact = EXACT * torch.tensor([[1.0, 2.0], [0.5, 3.0]], dtype=F64)[..., None]
    matrix = H.expand(2, 2, K, K)
    whole = summarize(g, exact, matrix)
    apart = [summarize(g[:, i, j], exact[i, j], H) for i in range(2) for j in range(2)]
    for name in (*METRICS, "bias_energy_plugin", "cos_mean_plugin"):
        assert getattr(whole, name) == pytest.approx(sum(getattr(q, name) for q in apart) / 4, rel=1e-10)


def test_products_do_for_matrices():
    """A function v ↦ Hv gives what the matrix gives: a linear decoder's, formed and not formed."""
    x, decoder, u = torch.randn(3, 4, dtype=F64), torch.randn(4, 6, dtype=F64), torch.zeros(3, 6, dtype=F64)
    exact = gradient(x, decoder, u)
    g = exact + torch.randn(50, 3, 6, dtype=F64)
    formed, product = (summarize(g, exact, h) for h in (hessian(x, decoder, u), HessianProduct(x, decoder, u)))
    for name in vars(formed):
        assert getattr(formed, name) == pytest.approx(getattr(product, name), rel=1e-9, abs=1e-9)


def test_indefinite_items_are_flagged():
    matrix = torch.stack([H, -H, H, H])
    quality = summarize(gradients(30, 0.0, 4), EXACT.expand(4, K), matrix)
    assert quality.indefinite == 0.25


def test_streaming_keeps_no_estimates():
    """Each chunk is gone when the next two have come."""
    seen = []

    def chunks():
        for _ in range(200):
            assert sum(chunk() is not None for chunk in seen) <= 1
            chunk = gradients(1, 0.0)
            seen.append(weakref.ref(chunk))
            yield chunk

    assert summarize_stream(chunks(), EXACT, H).num_samples == 200


def test_few_estimates_have_no_standard_error():
    for n in (2, 3):
        quality = summarize(gradients(n, 0.0), EXACT, H)
        assert quality.num_samples == n
        assert math.isfinite(quality.bias_energy)
        assert math.isnan(quality.bias_energy_se)
    assert math.isfinite(summarize(gradients(4, 0.0), EXACT, H).bias_energy_se)


def test_table():
    text = str(summarize(gradients(50, 0.0), EXACT, H))
    assert [line.split()[0] for line in text.splitlines()] == ["estimate", *METRICS]
    assert "plug-in" in text


# --- Eq. 78 ---

ETA = 0.3


def test_six_terms_are_the_change_of_a_quadratic_loss():
    """E[L(u - ηĝ)] - L(u) for L = gᵀδ + ½δᵀHδ, exactly: from b and Σ, and from the steps themselves."""
    truth = {
        "descent": -ETA * EXACT @ EXACT,
        "alignment": -ETA * BIAS @ EXACT,
        "curvature": ETA**2 / 2 * EXACT @ H @ EXACT,
        "drift": ETA**2 * EXACT @ H @ BIAS,
        "bias": ETA**2 / 2 * BIAS @ H @ BIAS,
        "noise": ETA**2 / 2 * (H @ ROOT @ ROOT.T).trace(),
    }
    g = gradients(50_000, BIAS)
    motion = equation_of_motion(g, EXACT, H, ETA)
    # the six sum to the mean change over these very steps, without any Monte Carlo error
    step = -ETA * g
    change = (step @ EXACT + 0.5 * (step @ H * step).sum(-1)).mean()
    assert motion.total == pytest.approx(float(change), rel=1e-10)
    halved = motion.total - motion.drift / 2  # as printed in Eq. 78
    assert halved != pytest.approx(float(change), rel=1e-2)
    assert motion.descent == pytest.approx(float(truth["descent"]), rel=1e-12)
    assert motion.curvature == pytest.approx(float(truth["curvature"]), rel=1e-12)
    parts = [equation_of_motion(part, EXACT, H, ETA) for part in g.split(250)]
    for name, value in truth.items():
        samples = torch.tensor([getattr(part, name) for part in parts], dtype=F64)
        if samples.std() > 1e-12:
            testing.assert_mean(samples, value)
    samples = torch.tensor([part.drift for part in parts], dtype=F64)
    with pytest.raises(AssertionError):
        testing.assert_mean(samples, truth["drift"] / 2)


def test_motion_sums_over_the_batch():
    g = gradients(40, BIAS, 2)
    whole = equation_of_motion(g, EXACT.expand(2, K), H.expand(2, K, K), ETA)
    apart = [equation_of_motion(g[:, i], EXACT, H, ETA).total for i in range(2)]
    assert whole.total == pytest.approx(sum(apart), rel=1e-10)
    product = equation_of_motion(g, EXACT.expand(2, K), lambda v: v @ H, ETA)
    assert product.total == pytest.approx(whole.total, rel=1e-10)


# --- errors ---


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: summarize(torch.zeros(5, 2), EXACT, H), "gradients must have shape (N, *exact.shape) = (N, (3,)), got (5, 2)"),
        (lambda: summarize(torch.zeros(3), EXACT, H), "gradients must have shape"),
        (lambda: summarize(torch.zeros(1, 3), EXACT, H), "gradients must hold at least 2 estimates, got 1"),
        (lambda: summarize(torch.zeros(5, 3), EXACT, H[:2]), "hessian must have shape (3, 3), got (2, 3)"),
        (lambda: summarize_stream([], EXACT, H), "gradients must hold at least 2 estimates, got 0"),
        (lambda: summarize_stream([torch.zeros(4, 2)], EXACT, H), "gradients must have shape"),
        (lambda: equation_of_motion(torch.zeros(5, 3), EXACT, H, 0.0), "learning_rate must be > 0, got 0.0"),
        (lambda: equation_of_motion(torch.zeros(5, 3), EXACT, H, math.nan), "learning_rate must be > 0, got nan"),
        (lambda: equation_of_motion(torch.zeros(1, 3), EXACT, H, 0.1), "gradients must hold at least 2 estimates, got 1"),
        (lambda: equation_of_motion(torch.zeros(5, 2), EXACT, H, 0.1), "gradients must have shape"),
        (lambda: equation_of_motion(torch.zeros(5, 3), EXACT, H[:, :2], 0.1), "hessian must have shape"),
    ],
)  # fmt: skip
def test_errors(call, message):
    with without_shape_checks(), pytest.raises(ValueError) as error:  # noqa: PT011
        call()
    assert message in str(error.value)
