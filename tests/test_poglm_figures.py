import itertools

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from hitchhiker import poglm_figures as figures


def benchmark(data_set):
    """A sweep whose levels differ by data set, and whose methods differ by known amounts."""
    level = -300.0 - 100 * data_set
    rows = [{"group": "baselines", "data_set": data_set, "baseline": name, "mll": level + gain, "gain": gain,
             "zero_weights_error": 0.13, "zero_bias_error": 0.25}
            for name, gain in (("glm", 0.0), ("within-bin", 1.0), ("constant", -3.0), ("truth", 2.0))]  # fmt: skip
    kinds = [("score", 0.0), *itertools.product(("eat-cubic", "eat-sigmoid", "gsm"), (0.1, 0.5))]
    for (method, tau), samples, seed in itertools.product(kinds, (1, 2), (0, 1, 2)):
        lost = {"score": 3.0, "eat-cubic": 0.5, "eat-sigmoid": 0.5 + 2 * tau, "gsm": 1.0}[method] / samples
        rows.append(
            {"data_set": data_set, "method": method, "temperature": tau, "samples": samples, "seed": seed,
             "elbo": level - lost - 0.01 * (seed - 1), "mll": level - lost / 2, "cll": level - 1, "hll": -200.0,
             "weights_error": 0.1, "bias_error": 0.1, "importance": None}
        )  # fmt: skip
    return {"rows": rows}


def strong():
    rows = [{"data_set": d, "baseline": name, "mll": -500.0 + gain, "gain": gain}
            for d in (0, 1) for name, gain in (("glm", 0.0), ("within-bin", 20.0), ("truth", 50.0))]  # fmt: skip
    eye = (2 * np.eye(5)).tolist()
    for (method, tau, _), d in itertools.product(figures.CURVES, (0, 1)):
        curve = [[step, -500.0 + step / 10, step / 10, 0.4] for step in (0, 150, 300)]
        row = {"data_set": d, "method": method, "temperature": tau, "seed": 0, "refined": False, "curve": curve,
               "weights": eye, "true_weights": eye}  # fmt: skip
        rows.append(row)
        if method == "eat-cubic":
            rows.append(row | {"refined": True, "curve": [*curve, [310, -450.0, 48.0, 0.9]]})
    return {"rows": rows}


def heights_of(container):
    return [float(y) for y in container.lines[0].get_ydata()]


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def test_levels_of_data_sets_are_taken_out():
    rows = figures.runs([benchmark(0), benchmark(1)])
    mean, error = figures.summary(rows, "elbo", method="eat-cubic", temperature=0.1, samples=1)
    assert mean == pytest.approx(-0.5)
    assert error == pytest.approx(0.01 * np.sqrt(4 / 5) / np.sqrt(6))
    assert figures.summary(rows, "mll", method="score", samples=2)[0] == pytest.approx(-0.75)
    assert figures.best_temperature(rows, "eat-sigmoid") == 0.1
    assert figures.baseline([benchmark(0), benchmark(1)], "truth") == (2.0, 0.0)
    with pytest.raises(ValueError, match="no run has 'importance'"):
        figures.summary(rows, "importance", method="gsm")
    with pytest.raises(ValueError, match="name must be a baseline"):
        figures.baseline(benchmark(0), "nobody")


def test_figures_draw_what_the_rows_say():
    results = [benchmark(0), benchmark(1)]
    fig = figures.against_temperature(results)
    fig.canvas.draw()
    assert len(fig.axes) == 12
    right = figures.against_temperature(results, ("elbo",)).axes[1]
    assert [c.get_label() for c in right.containers] == ["EAT cubic", "EAT sigmoid", "GSM"]
    assert heights_of(right.containers[1]) == pytest.approx([-0.7, -1.5])
    fig = figures.against_samples(results)
    fig.canvas.draw()
    assert heights_of(fig.axes[0].containers[0]) == pytest.approx([-3.0, -1.5])


@pytest.mark.parametrize("column", ["gain", "elbo", "scale"])
def test_learning_curves(column):
    fig = figures.learning_curves(strong(), column)
    fig.canvas.draw()
    labels = [line.get_label() for line in fig.axes[0].get_lines() if not line.get_label().startswith("_")]
    assert labels == [label for _, _, label in figures.CURVES]
    assert len(fig.axes) == (1 if column == "elbo" else 2)
    first = fig.axes[0].get_lines()[0].get_ydata()
    assert first[-1] == pytest.approx(0.4 if column == "scale" else 30.0)


def test_recovered_weights():
    fig = figures.recovered_weights(strong())
    fig.canvas.draw()
    assert [ax.get_title(loc="left") or ax.get_title() for ax in fig.axes] == [
        "after variational training",
        "after particle EM",
    ]
