"""Figures of the sweep: the statistics behind them, and that each draws what it is given."""

import base64

import matplotlib
import pytest
import torch

from hitchhiker import plotting, pvae_figures, pvae_sweep, sweep

matplotlib.use("Agg")


def rows():
    """Two seeds; method m is always 1 above exact, the score function 3."""
    made = []
    above = {"exact": 0.0, "eat-sigmoid": 1.0, "eat-cubic": 1.0, "gsm": 1.0, "score": 3.0}
    for method, gap in above.items():
        for tau in (0.02, 0.1, 0.5) if gap == 1 else (0.0,):
            for seed in (0, 1):
                for steps in (10, 100):
                    made.append({
                        "method": method, "temperature": tau, "seed": seed, "steps": steps, "anneal": False, "samples": 1,
                        "width": pvae_sweep.width(method, tau), "neg_elbo": 50 + seed + gap + tau,
                    })  # fmt: skip
    return made


def test_gaps_are_paired_by_seed():
    """Seeds differ by 1, pairs by exactly the gap: the error of the gap is 0."""
    gaps = pvae_figures.behind_exact(rows(), "neg_elbo", "method", "temperature", "steps")
    assert gaps["gsm", 0.1, 10] == (pytest.approx(1.1), pytest.approx(0, abs=1e-9))
    mean, error, values = pvae_figures.over_seeds(rows(), "neg_elbo", "method", "temperature", "steps")["gsm", 0.1, 10]
    assert (mean, error) == (pytest.approx(51.6), pytest.approx(0.5))
    assert values == pytest.approx([51.1, 52.1])


def test_each_figure_draws():
    plotting.use_style()
    some = [r for r in rows() if r["steps"] == 10]
    figure = pvae_figures.figure_4_top(some)
    assert {"EAT sigmoid", "EAT cubic", "GSM"} <= {text.get_text() for text in figure.axes[0].texts}
    figure = pvae_figures.against_width(some, kinds=["eat-sigmoid", "eat-cubic"])
    (line,) = (line for line in figure.axes[0].lines if line.get_label() == "EAT cubic")
    assert list(line.get_xdata()) == pytest.approx([0.02 * 9 / 35, 0.1 * 9 / 35, 0.5 * 9 / 35])
    figure = pvae_figures.budget(
        [r | {"exact_neg_elbo": r["neg_elbo"]} for r in rows()], kinds=[("exact", 0.0), ("eat-cubic", 0.1)]
    )
    (line,) = (line for line in figure.axes[0].lines if line.get_label() == "cubic, τ = 0.1")
    assert list(line.get_ydata()) == pytest.approx([1.1, 1.1])


def test_features_survive_being_stored():
    pixels = torch.randn(9, 64, generator=torch.Generator().manual_seed(0))
    scaled = 127 * pixels / pixels.abs().amax(dim=1, keepdim=True)
    packed = base64.b64encode(scaled.round().to(torch.int8).numpy().tobytes()).decode()
    row = {"method": "exact", "temperature": 0.0, "count": 9, "pixels": packed}
    assert (pvae_sweep.unpack_features(row) - scaled / 127).abs().max() <= 0.5 / 127 + 1e-6
    figure = pvae_figures.figure_13([row], [("all", "exact", 0.0)], count=9)
    assert figure.axes[0].get_title(loc="left") == "all"


@pytest.mark.parametrize("name", ["laptop", "matched", "nonlinear", "budget"])
def test_stored_sweeps_are_whole_and_say_where_they_come_from(name):
    result = sweep.stored(f"pvae/{name}")
    assert {"command", "date", "device", "seed", "versions"} <= set(result["provenance"])
    assert result["groups"] == {k: v for k, v in pvae_sweep.groups(name).items()}
    finished = [g for g in result["groups"] if g not in result["missing"]]
    assert len(result["rows"]) == sum(len(result["groups"][g]["models"]) for g in finished)
    if name != "budget":  # whose longest run may still be missing; the page says what is there
        assert not result["missing"]
