"""Figures of trained Poisson VAEs, from the rows of :mod:`hitchhiker.pvae_sweep`: Figure 4 (top), Figure 13, and ours.

All losses are validation −ELBO at τ = 0 (SSE + KL, lower is better); the paper's Figure 4 shows its negative.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from hitchhiker.plotting import label_lines, method, show_patches
from hitchhiker.pvae_sweep import RELAXATIONS, unpack_features
from hitchhiker.reproduce import select

Rows = list[dict[str, Any]]


def over_seeds(rows: Rows, column: str, *keys: str) -> dict[tuple, tuple[float, float, list[float]]]:
    """Mean, standard error and values of a column over the rows that agree in ``keys``, in the order of appearance.

    >>> rows = [{"method": "gsm", "x": 1.0}, {"method": "gsm", "x": 3.0}]
    >>> over_seeds(rows, "x", "method")
    {('gsm',): (2.0, 1.0, [1.0, 3.0])}
    """
    groups: dict[tuple, list[float]] = {}
    for row in rows:
        groups.setdefault(tuple(row[k] for k in keys), []).append(row[column])
    return {key: (float(np.mean(v)), _error(v), v) for key, v in groups.items()}


def behind_exact(rows: Rows, column: str, *keys: str, among: Rows | None = None) -> dict[tuple, tuple[float, float]]:
    """Mean and standard error over seeds of how far ``column`` is above that of exact gradients with the same seed and steps.

    Models of one seed start equal and see the same batches, so the differences are paired.  ``among`` holds the exact
    models (default: the rows themselves).

    >>> rows = [{"method": m, "seed": s, "steps": 9, "x": v} for m, s, v in (("exact", 0, 1.0), ("gsm", 0, 3.0))]
    >>> behind_exact(rows + [r | {"seed": 1} for r in rows], "x", "method")[("gsm",)]
    (2.0, 0.0)
    """
    exact = {(r["seed"], r["steps"]): r[column] for r in (among or rows) if r["method"] == "exact"}
    groups: dict[tuple, list[float]] = {}
    for row in rows:
        groups.setdefault(tuple(row[k] for k in keys), []).append(row[column] - exact[row["seed"], row["steps"]])
    return {key: (float(np.mean(v)), _error(v)) for key, v in groups.items()}


def _error(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def _bars(ax: Any, x: Sequence[Any], y: Sequence[Any], error: Sequence[Any], style: dict[str, Any]) -> None:
    """A labelled line with bars of ± 2 standard errors."""
    ax.plot(x, y, **style)
    ax.errorbar(x, y, 2 * np.array(error), fmt="none", ecolor=style["color"])


def figure_4_top(rows: Rows, column: str = "neg_elbo", ax: Any = None) -> Any:
    """−ELBO against temperature, three relaxations, exact gradients and the score function (the paper's Figure 4, top).

    Lines are means over seeds without annealing, bars ± 2 standard errors, open marks single models.
    """
    import matplotlib.pyplot as plt

    figure, ax = (None, ax) if ax is not None else plt.subplots()
    for name in RELAXATIONS:
        mine = select(rows, method=name, anneal=False)
        seen = over_seeds(mine, column, "temperature")
        x = [key[0] for key in seen]
        y, error = ([v[i] for v in seen.values()] for i in (0, 1))
        _bars(ax, x, y, error, method(name).line)
        ax.plot([r["temperature"] for r in mine], [r[column] for r in mine], linestyle="none", mfc="none",
                marker=method(name).marker, color=method(name).color, alpha=0.5, ms=4)  # fmt: skip
    ax.set(xscale="log", xlabel="temperature τ", ylabel="validation −ELBO", xticks=[0.02, 0.05, 0.1, 0.2, 0.5])
    ax.set_xlim(0.017, 1.3)
    ax.minorticks_off()
    ax.set_xticklabels(["0.02", "0.05", "0.1", "0.2", "0.5"])
    level(ax, rows, column, "exact", "exact")
    level(ax, select(rows, samples=1), column, "score", "score function, 1 sample", at=0.6)
    label_lines(ax)
    return figure


def level(ax: Any, rows: Rows, column: str, name: str, label: str, at: float = 0.99) -> None:
    """A horizontal line with a band of ± 2 standard errors for a method without a temperature; its name ends at ``at``."""
    seen = over_seeds(select(rows, method=name), column, "method")
    if not seen:
        return
    mean, error, _ = next(iter(seen.values()))
    style = method(name)
    ax.axhline(mean, color=style.color, linestyle=style.dash, lw=1.2)
    ax.axhspan(mean - 2 * error, mean + 2 * error, color=style.color, alpha=0.12, lw=0)
    ax.annotate(
        label, (at, mean), xycoords=ax.get_yaxis_transform(), xytext=(0, 3), textcoords="offset points",
        ha="right", va="bottom", color=style.color, fontsize="small",
    )  # fmt: skip


def against_width(rows: Rows, column: str = "neg_elbo", kinds: Iterable[str] | None = None, ax: Any = None) -> Any:
    """A column against Aτ, to leading order the variance that a relaxed count loses: one scale of temperature for all."""
    import matplotlib.pyplot as plt

    figure, ax = (None, ax) if ax is not None else plt.subplots()
    kinds = kinds or ("eat-sigmoid", "eat-cubic", "eat-quintic", "eat-cosine", "eat-linear")
    for name in kinds:
        seen = over_seeds(select(rows, method=name, anneal=False), column, "width")
        seen = dict(sorted(seen.items()))
        y, error = ([v[i] for v in seen.values()] for i in (0, 1))
        _bars(ax, [key[0] for key in seen], y, error, method(name).line)
    ax.set(xscale="log", xlabel="width Aτ of the soft edge")
    ax.set_xlim(0.004, 0.7)
    level(ax, rows, column, "exact", "exact")
    return figure


#: dash and marker of the methods of the budget study; colour is that of the method
_BUDGET = {
    ("exact", 0.0): "exact", ("difference", 0.0): "difference", ("straight-through", 0.0): "straight-through",
    ("moment-matched", 1.0): "moment-matched, τ = 1", ("eat-cubic", 0.1): "cubic, τ = 0.1",
    ("eat-cubic", 0.389): "cubic, τ = 0.39", ("eat-cubic", 1.0): "cubic, τ = 1", ("eat-sigmoid", 0.1): "sigmoid, τ = 0.1",
    ("score:leave-one-out", 0.0): "score, leave-one-out",
}  # fmt: skip
_DASHES = {0.1: "-", 0.389: (0, (5, 1.5)), 1.0: (0, (2, 1))}
_MARKS = {0.1: "s", 0.389: "^", 1.0: "o"}


def budget(rows: Rows, column: str = "exact_neg_elbo", kinds: Sequence[tuple[str, float]] | None = None) -> Any:
    """How far each method's models are above those trained with exact gradients for as many steps."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots()
    kinds = [key for key in (kinds or _BUDGET) if key[0] != "exact"]
    for name, temperature in kinds:
        gaps = behind_exact(select(rows, method=name, temperature=temperature), column, "steps", among=rows)
        x = sorted(key[0] for key in gaps)
        if not x:
            continue
        y, error = ([gaps[(s,)][i] for s in x] for i in (0, 1))
        style = dict(method(name).line, label=_BUDGET[name, temperature])
        if name == "eat-cubic":
            style |= {"linestyle": _DASHES[temperature], "marker": _MARKS[temperature]}
        _bars(ax, x, y, error, style)
    ax.axhline(0, color=method("exact").color, lw=1.2)
    ax.set(xscale="log", xlabel="steps of training", ylabel="validation −ELBO above exact gradients'")
    ticks = sorted({row["steps"] for row in rows})
    ax.minorticks_off()
    ax.set_xticks(ticks, [f"{t:,}" for t in ticks])
    ax.set_xlim(ticks[0] / 40, ticks[-1] * 1.5)
    label_lines(ax, pad=7, side="left")
    return figure


def figure_13(rows: Rows, panels: Sequence[tuple[str, str, float]], count: int = 36, columns: int = 3) -> Any:
    """Features side by side; ``panels`` are (title, method, temperature), the most used features first (Figure 13)."""
    import matplotlib.pyplot as plt

    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(2.6 * columns, 2.75 * lines), squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, (title, name, temperature) in zip(axes.flat, panels, strict=False):
        (row,) = select(rows, method=name, temperature=temperature)
        show_patches(unpack_features(row)[:count], math.isqrt(count), title=title, ax=ax)
        ax.title.set_color(method(name).color)
    return figure


__all__ = ["against_width", "behind_exact", "budget", "figure_4_top", "figure_13", "level", "over_seeds"]
