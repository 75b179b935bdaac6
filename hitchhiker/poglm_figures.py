"""Pictures of the sweeps of :mod:`hitchhiker.poglm_sweep`: Figures 4 (bottom), 14 and 15, and strong coupling.

Each function takes stored results (``hitchhiker.sweep.stored("poglm/released-0")``) and returns a figure.  Levels differ
between data sets, so likelihoods are shown against the visible-only GLM of the same data set, paired by test sequence or
by mean: above 0, hidden neurons were worth having.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hitchhiker import plotting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = list[dict[str, Any]]
Result = dict[str, Any]

#: column -> (name on the axis, whether it is shown relative to the data set's visible-only GLM)
METRICS: dict[str, tuple[str, bool]] = {
    "elbo": ("ELBO − GLM", True),
    "mll": ("MLL − GLM", True),
    "cll": ("CLL − mean of all runs", False),
    "hll": ("HLL − mean of all runs", False),
    "weights_error": ("weights error", False),
    "bias_error": ("bias error", False),
}


def runs(results: Sequence[Result] | Result) -> Rows:
    """The rows of models of one or several sweeps, with ``elbo`` and ``mll`` relative to the visible-only GLM and ``cll``
    and ``hll`` to the mean of the data set's runs, so that data sets can be averaged."""
    made: Rows = []
    for result in [results] if isinstance(results, dict) else results:
        rows = [row for row in result["rows"] if "elbo" in row]
        for data_set in sorted({row["data_set"] for row in rows}):
            own = _where(rows, data_set=data_set)
            (glm,) = _where(result["rows"], data_set=data_set, baseline="glm")
            means = {name: np.mean([row[name] for row in own]) for name in ("cll", "hll")}
            for row in own:
                shifted = {name: row[name] - glm["mll"] for name in ("elbo", "mll")}
                if row.get("importance") is not None:
                    shifted["importance"] = row["importance"] - glm["mll"]
                made.append(row | shifted | {name: row[name] - mean for name, mean in means.items()})
    return made


def baseline(results: Sequence[Result] | Result, name: str, column: str = "gain") -> tuple[float, float]:
    """(mean, its error over data sets) of a column of a baseline: ``"glm"``, ``"within-bin"``, ``"constant"``, ``"truth"``."""
    listed = [results] if isinstance(results, dict) else results
    values = [row[column] for result in listed for row in _where(result["rows"], baseline=name)]
    if not values:
        raise ValueError(f"name must be a baseline of the results, got {name!r}")
    return mean_and_error(values)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error; the error of a single value is NaN.

    >>> mean_and_error([1.0, 3.0])
    (2.0, 1.0)
    """
    array = np.asarray(values, dtype=float)
    error = array.std(ddof=1) / math.sqrt(len(array)) if len(array) > 1 else math.nan
    return float(array.mean()), float(error)


def summary(rows: Rows, metric: str, **wanted: Any) -> tuple[float, float]:
    """Mean of a metric over seeds and data sets, and its standard error over runs."""
    chosen = [row[metric] for row in _where(rows, **wanted) if row[metric] is not None]
    if not chosen:
        raise ValueError(f"no run has {metric!r} with {wanted}")
    return mean_and_error(chosen)


def paired(rows: Rows, metric: str, one: tuple[str, float], other: tuple[str, float]) -> tuple[float, float]:
    """Mean over networks of the metric of ``one`` (method, temperature) less that of ``other``, and its standard error."""

    def at(kind: tuple[str, float], data_set: int) -> float:
        return summary(rows, metric, method=kind[0], temperature=kind[1], data_set=data_set)[0]

    return mean_and_error([at(one, d) - at(other, d) for d in sorted({row["data_set"] for row in rows})])


def best_temperature(rows: Rows, method: str, samples: int = 1) -> float:
    """The τ with the best mean ELBO."""
    taus = sorted({row["temperature"] for row in _where(rows, method=method, samples=samples)})
    return max(taus, key=lambda tau: summary(rows, "elbo", method=method, samples=samples, temperature=tau)[0])


def against_temperature(results: Sequence[Result] | Result, metrics: Sequence[str] = tuple(METRICS)) -> Figure:
    """Figure 14 (and with ``metrics=("elbo",)`` the bottom of Figure 4): left the score function against samples a step,
    right the relaxations against τ at one sample.  Bars are standard errors over runs."""
    plt = _pyplot()
    rows = runs(results)
    columns = min(2, len(metrics))
    lines = math.ceil(len(metrics) / columns)
    fig, axes = plt.subplots(
        lines, 2 * columns, figsize=(4.6 * columns, 2.35 * lines), sharey=False, squeeze=False,
        gridspec_kw={"width_ratios": [1, 2.2] * columns},
    )  # fmt: skip
    for i, metric in enumerate(metrics):
        left, right = axes[i // columns][2 * (i % columns)], axes[i // columns][2 * (i % columns) + 1]
        right.sharey(left)
        counts = sorted({row["samples"] for row in _where(rows, method="score")})
        _points(left, rows, metric, "score", "samples", counts)
        for method in ("eat-cubic", "eat-sigmoid", "gsm"):
            taus = sorted({row["temperature"] for row in _where(rows, method=method, samples=1)})
            _points(right, rows, metric, method, "temperature", taus, samples=1)
        _references(right, results, metric)
        left.set_ylabel(METRICS[metric][0])
        right.tick_params(labelleft=False)
        left.set_xscale("log")
        left.set_xticks(counts, [str(c) for c in counts])
        left.minorticks_off()
        if i // columns == lines - 1:
            left.set_xlabel("samples a step")
            right.set_xlabel("temperature τ")
    axes[0][1].legend(fontsize="x-small", loc="best")
    axes[0][0].set_title("score", fontsize="small")
    return fig


def against_samples(results: Sequence[Result] | Result, metrics: Sequence[str] = tuple(METRICS)) -> Figure:
    """Figure 15: every method at its best τ (by mean ELBO at one sample) against samples a step."""
    plt = _pyplot()
    rows = runs(results)
    columns = min(3, len(metrics))
    lines = math.ceil(len(metrics) / columns)
    fig, axes = plt.subplots(lines, columns, figsize=(3.1 * columns, 2.4 * lines), squeeze=False)
    counts = sorted({row["samples"] for row in rows})
    for ax, metric in zip(axes.flat, metrics, strict=False):
        for method in ("score", "eat-cubic", "eat-sigmoid", "gsm"):
            tau = best_temperature(rows, method)
            _points(ax, rows, metric, method, "samples", counts, temperature=tau)
        _references(ax, results, metric)
        ax.set_xscale("log")
        ax.set_xticks(counts, [str(c) for c in counts])
        ax.minorticks_off()
        ax.set_ylabel(METRICS[metric][0])
    for ax in axes[-1]:
        ax.set_xlabel("samples a step")
    axes.flat[0].legend(fontsize="x-small")
    return fig


def _points(ax: Axes, rows: Rows, metric: str, method: str, axis: str, at: Sequence[float], **wanted: Any) -> None:
    found = [summary(rows, metric, method=method, **{axis: value}, **wanted) for value in at]
    style = plotting.method(method)
    ax.errorbar(at, [m for m, _ in found], [e for _, e in found], markersize=3.5, linewidth=1, **style.line)


def _references(ax: Axes, results: Sequence[Result] | Result, metric: str) -> None:
    """What needs no model with hidden neurons: the GLM at 0, or parameters that are all 0."""
    if METRICS[metric][1]:
        ax.axhline(0, color="#111111", linewidth=1)
    elif metric in ("weights_error", "bias_error"):
        level = baseline(results, "truth", "zero_" + metric)[0]
        ax.axhline(level, color="#111111", linewidth=1, linestyle=(0, (1, 2)))
        ax.annotate("all zero", (1, level), xycoords=("axes fraction", "data"), xytext=(-2, 2),
                    textcoords="offset points", ha="right", fontsize="x-small")  # fmt: skip


# --- strong coupling

#: the methods of the learning curves, in the order in which they are drawn
CURVES = (
    ("eat-cubic", 1.0, "EAT cubic, τ = 1"), ("eat-sigmoid", 0.5, "EAT sigmoid, τ = 0.5"), ("gsm", 0.5, "GSM, τ = 0.5"),
    ("difference", 0.0, "difference"), ("score:local", 0.0, "score, local"),
    ("score:leave-one-out", 0.0, "score, whole sequence"),
)  # fmt: skip


def learning_curves(result: Result, column: str = "gain") -> Figure:
    """Test likelihood over training under strong coupling, against the visible-only GLM, mean over networks and seeds.

    ``column``: ``"gain"`` (particle filter, nats a sequence), ``"elbo"`` (less the GLM's likelihood) or ``"scale"`` (slope
    of estimated on true large weights).  Right, where it was run: particle EM from the cubic's last step.
    """
    plt = _pyplot()
    position = {"elbo": 1, "gain": 2, "scale": 3}[column]
    level = {row["data_set"]: row["mll"] for row in _where(result["rows"], baseline="glm")}
    models = [row for row in result["rows"] if "curve" in row]
    refined = _where(models, refined=True) if column != "elbo" else []
    fig, axes = plt.subplots(
        1, 2 if refined else 1, figsize=(7.6, 3.6), sharey=True, squeeze=False,
        gridspec_kw={"width_ratios": [1.9, 1], "wspace": 0.25} if refined else None,
    )  # fmt: skip
    ax = axes[0][0]

    def average(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        shift = [level[row["data_set"]] if column == "elbo" else 0.0 for row in rows]
        values = [[point[position] - s for point in row["curve"]] for row, s in zip(rows, shift, strict=True)]
        return np.array([p[0] for p in rows[0]["curve"]]), np.mean(values, axis=0)

    for method, tau, label in CURVES:
        rows = _where(models, method=method, temperature=tau, refined=False)
        if rows:
            style = plotting.method(method)
            dash = (0, (1, 3)) if method == "score:leave-one-out" else style.dash
            ax.plot(*average(rows), color=style.color, linestyle=dash, label=label)
    if refined:
        steps, values = average(refined)
        last = len(average(_where(models, method="eat-cubic", temperature=1.0, refined=False))[0]) - 1
        style = plotting.method("ours")
        axes[0][1].plot(steps[last:] - steps[last], values[last:], color=style.color, marker=style.marker)
        axes[0][1].set_xlabel("iterations")
        axes[0][1].set_title("then particle EM", fontsize="small")
    for each in axes[0]:
        each.axhline(1.0 if column == "scale" else 0.0, color="#111111", linewidth=1)
        known = {"gain": ("truth", "within-bin"), "elbo": ("truth",), "scale": ()}[column]
        for name in known:
            height = baseline(result, name)[0]
            each.axhline(height, color="#777777", linewidth=1, linestyle=(0, (1, 2)))
            if each is axes[0][-1]:
                words = "true parameters" if name == "truth" else "within-bin GLM"
                each.annotate(words, (1, height), xycoords=("axes fraction", "data"), xytext=(-3, 3), ha="right",
                              textcoords="offset points", fontsize="x-small", color="#555555")  # fmt: skip
    if column != "scale":
        low, high = ax.get_ylim()
        ax.set_ylim(max(low, -40.0), high + 0.05 * (high - low))
    ax.set_xlabel("step of training")
    ax.set_ylabel({"gain": "test ln p(x) − GLM (nats a sequence)", "elbo": "test ELBO − GLM (nats a sequence)",
                   "scale": "estimated / true weight"}[column])  # fmt: skip
    plotting.label_lines(ax)
    return fig


def recovered_weights(result: Result, method: str = "eat-cubic", temperature: float = 1.0) -> Figure:
    """Estimated against true weights of all networks, after training and after particle EM, hidden neurons matched."""
    plt = _pyplot()
    models = [row for row in result["rows"] if "weights" in row]
    panels = [("after variational training", _where(models, method=method, temperature=temperature, refined=False)),
              ("after particle EM", _where(models, refined=True))]  # fmt: skip
    panels = [(title, rows) for title, rows in panels if rows]
    fig, axes = plt.subplots(1, len(panels), figsize=(3.6 * len(panels), 3.4), sharex=True, sharey=True, squeeze=False)
    visible = len(panels[0][1][0]["weights"]) - 2
    for ax, (title, rows) in zip(axes[0], panels, strict=True):
        true, found = (np.array([row[name] for row in rows]) for name in ("true_weights", "weights"))
        into = np.zeros(true.shape[1:], dtype=bool)
        into[:visible, visible:] = True
        for mask, label, style in ((~into, "the others", "exact"), (into, "hidden to visible", "ours")):
            dress = plotting.method(style)
            ax.plot(true[:, mask].ravel(), found[:, mask].ravel(), linestyle="none", marker=dress.marker, markersize=4,
                    color=dress.color, alpha=0.5, label=label)  # fmt: skip
        ends = [true.min(), true.max()]
        ax.plot(ends, ends, color="#777777", linewidth=1)
        ax.set_title(title)
        ax.set_xlabel("true weight")
    axes[0][0].set_ylabel("estimated weight")
    axes[0][0].legend(fontsize="small")
    return fig


def _where(rows: Rows, **wanted: Any) -> Rows:
    """The rows with these values; models and baselines share a list and not all columns."""
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]


def _pyplot() -> Any:
    return plotting._pyplot()


__all__ = [
    "CURVES", "METRICS", "against_samples", "against_temperature", "baseline", "best_temperature", "learning_curves",
    "mean_and_error", "paired", "recovered_weights", "runs", "summary",
]  # fmt: skip
