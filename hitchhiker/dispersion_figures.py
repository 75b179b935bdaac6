"""Chapters 25 and 26 as numbers: how faithful relaxed counts are whose variance is not their mean, and their gradients.

Relaxations are named as in the book: ``"eat"`` is the arrival-time relaxation that fits the Fano factor (a Gamma rate above
1, Erlang waits below), ``"gsm"`` Gumbel-softmax on the pmf of the same whole counts, ``"gsm-com"`` Gumbel-softmax on the
Conway-Maxwell-Poisson law of the same mean and Fano factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from hitchhiker import dispersion, figures, reproduce
from hitchhiker._random import own_random_numbers
from hitchhiker.models.glm import GLM, OBSERVATIONS, fit_glm
from hitchhiker.relaxations.com_poisson import ConwayMaxwellPoisson, GSMConwayMaxwellPoisson
from hitchhiker.relaxations.erlang import EATErlang
from hitchhiker.relaxations.gumbel_softmax import GSMPoisson, GumbelSoftmaxCount
from hitchhiker.relaxations.negative_binomial import EATNegativeBinomial, GSMNegativeBinomial

Rows = list[dict[str, Any]]
RELAXATIONS = ("eat", "gsm", "gsm-com")
#: test functions of a count: one that grows, one that saturates
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"z²": torch.square, "exp(-z/3)": lambda z: torch.exp(-z / 3)}


def stages_of(fano: float) -> int:
    """k = 1/F, the Erlang stages of a Fano factor at high rates; ``ValueError`` unless that is a whole number.

    >>> stages_of(0.25)
    4
    """
    if not 0 < fano <= 1 or abs(1 / fano - round(1 / fano)) > 1e-9:
        raise ValueError(f"fano must be 1/k for a whole k >= 1 to have Erlang waits, got {fano}")
    return round(1 / fano)


def whole_law(mean: Tensor, fano: float, kind: str = "eat") -> Distribution:
    """The law of the whole counts that a relaxation relaxes; ``mean`` may need a gradient.

    Above Fano factor 1 the negative binomial with r = mean/(F - 1) held fixed while the mean moves; below, Erlang counts of
    rate ``mean``; for ``"gsm-com"`` the Conway-Maxwell-Poisson law, of which λ moves and ν is held.
    """
    if kind not in RELAXATIONS:
        raise ValueError(f"kind must be one of {RELAXATIONS}, got {kind!r}")
    m = float(mean.detach().flatten()[0])
    if kind == "gsm-com" and fano != 1:
        rate, nu = dispersion.com_poisson_of(m, fano)
        return ConwayMaxwellPoisson(rate * mean / m, nu, validate_args=False)
    if fano > 1:
        r = m / (fano - 1)
        return EATNegativeBinomial(torch.full_like(mean, r).detach(), r / (r + mean), validate_args=False)
    return EATErlang(rate=mean, stages=stages_of(fano), validate_args=False)


def relaxed_law(kind: str, mean: Tensor, fano: float, temperature: float) -> Distribution:
    """The relaxation ``kind`` of :func:`whole_law` at a temperature."""
    whole = whole_law(mean, fano, kind)
    if kind == "eat":
        return whole.with_parameters(temperature=torch.tensor(temperature).to(mean))  # type: ignore[attr-defined]
    if fano == 1:
        return GSMPoisson(rate=mean, temperature=temperature, validate_args=False)
    if isinstance(whole, ConwayMaxwellPoisson):
        return GSMConwayMaxwellPoisson(whole.rate, whole.nu, temperature, validate_args=False)
    if isinstance(whole, EATNegativeBinomial):
        return GSMNegativeBinomial(whole.total_count, whole.probs, temperature, validate_args=False)
    one = whole.with_parameters(rate=mean.detach().flatten()[:1])  # type: ignore[attr-defined]
    size = int((dispersion.log_pmf_table(one, 1e-9)[0].exp().cumsum(dim=0) < 1 - 1e-9).sum()) + 2
    counts = torch.arange(size, dtype=mean.dtype).view(-1, *([1] * mean.dim())).expand(-1, *mean.shape)
    return GumbelSoftmaxCount(whole.log_prob(counts).movedim(0, -1), temperature, validate_args=False)


def fidelity_rows(
    fanos: Sequence[float],
    temperatures: Sequence[float],
    kinds: Sequence[str] = ("eat", "gsm"),
    mean: float = 5.0,
    num_samples: int = 4000,
    num_trials: int = 5,
    seed: int = 0,
) -> Rows:
    """Mean, variance and W1 of each relaxation beside the whole counts it stands for, with standard errors over trials.

    Returns one row for each Fano factor, kind and temperature: ``mean`` and ``variance`` relative to the whole law's,
    ``w1`` in counts, ``fano`` of the relaxed counts, each with ``…_se``.

    >>> row = fidelity_rows([2.0], [0.5], ["eat"], num_trials=2)[0]
    >>> sorted(row)[:4]
    ['fano', 'fano_se', 'kind', 'mean']
    """
    if num_samples < 2 or num_trials < 2:
        raise ValueError(f"num_samples and num_trials must be >= 2, got {num_samples} and {num_trials}")
    rows: Rows = []
    with own_random_numbers(seed), torch.no_grad():
        for target in fanos:
            for kind in kinds:
                m = torch.tensor([mean], dtype=torch.float64)
                whole = whole_law(m, target, kind)
                pmf = dispersion.log_pmf_table(whole)[0].exp().flatten()
                n = torch.arange(len(pmf), dtype=torch.float64)
                centre = float(pmf @ n)
                spread = float(pmf @ (n - centre) ** 2)
                for tau in temperatures:
                    law = relaxed_law(kind, m, target, tau)
                    seen = []
                    for _ in range(num_trials):
                        z = law.rsample((num_samples,)).flatten()
                        w1 = dispersion.wasserstein(z, whole)
                        seen.append((float(z.mean()) / centre, float(z.var()) / spread, w1, float(z.var() / z.mean())))
                    table = np.array(seen)
                    row: dict[str, Any] = {"target": target, "kind": kind, "temperature": tau}
                    error = table.std(axis=0, ddof=1) / math.sqrt(num_trials)
                    names = ("mean", "variance", "w1", "fano")
                    for name, value, se in zip(names, table.mean(axis=0), error, strict=True):
                        row |= {name: float(value), f"{name}_se": float(se)}
                    rows.append(row)
    return rows


def gradient_rows(
    fanos: Sequence[float],
    temperatures: Sequence[float],
    kinds: Sequence[str] = ("eat", "gsm"),
    functions: Sequence[str] = ("z²", "exp(-z/3)"),
    mean: float = 5.0,
    draws: int = 40_000,
    seed: int = 0,
) -> Rows:
    """Single-sample gradients of E f in the mean, beside the exact one by enumeration of the whole counts.

    Returns rows with ``bias`` (mean gradient over the exact one, less 1), ``bias_se`` and ``noise`` (standard deviation of
    one gradient over the exact one); and, as kinds ``"score"`` and ``"difference"`` at temperature 0, the score function
    with the mean of f as its baseline and :func:`hitchhiker.dispersion.count_difference`, of the first kind's law.
    """
    unknown = set(functions) - set(FUNCTIONS)
    if unknown:
        raise ValueError(f"functions must be among {sorted(FUNCTIONS)}, got {sorted(unknown)}")
    rows: Rows = []
    with own_random_numbers(seed):
        for target in fanos:
            for kind in kinds:
                exact = {name: _exact_slope(FUNCTIONS[name], kind, mean, target) for name in functions}
                for tau in temperatures:
                    leaf = torch.full((draws,), mean, dtype=torch.float64, requires_grad=True)
                    z = relaxed_law(kind, leaf, target, tau).rsample()
                    for name in functions:
                        (g,) = torch.autograd.grad(FUNCTIONS[name](z).sum(), leaf, retain_graph=True)
                        rows.append(_judged(g, exact[name], target, kind, tau, name))
            kind = kinds[0]
            for name in functions:
                f, truth = FUNCTIONS[name], _exact_slope(FUNCTIONS[name], kind, mean, target)
                n, score, weight = _scores(kind, mean, target, draws)
                rows.append(_judged((f(n) - f(n).mean()) * score, truth, target, "score", 0.0, name))
                rows.append(_judged((f(n + 1) - f(n)) * weight, truth, target, "difference", 0.0, name))
    return rows


def _exact_slope(f: Callable[[Tensor], Tensor], kind: str, mean: float, fano: float) -> float:
    leaf = torch.tensor([mean], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(dispersion.expectation(f, whole_law(leaf, fano, kind)).sum(), leaf)
    return float(slope)


def _scores(kind: str, mean: float, fano: float, draws: int) -> tuple[Tensor, Tensor, Tensor]:
    """Counts, their scores ∂ ln P/∂mean, and the weights ∂P(N > n)/∂mean / P(n) of the difference estimator."""
    leaf = torch.tensor([mean], dtype=torch.float64)

    def table(m: Tensor) -> Tensor:
        return dispersion.log_pmf_table(whole_law(m, fano, kind))[0].flatten()

    pmf = table(leaf).exp()
    score = torch.autograd.functional.jacobian(table, leaf, vectorize=True)[:, 0]
    weight = -(pmf * score).cumsum(dim=0) / pmf
    n = whole_law(leaf, fano, kind).sample((draws,)).flatten()
    index = n.long().clamp(max=len(pmf) - 1)
    return n, score[index], weight[index]


def _judged(g: Tensor, exact: float, target: float, kind: str, tau: float, function: str) -> dict[str, Any]:
    spread = float(g.std())
    return {
        "target": target, "kind": kind, "temperature": tau, "function": function, "exact": exact,
        "bias": float(g.mean()) / exact - 1, "bias_se": spread / math.sqrt(len(g)) / abs(exact),
        "noise": spread / abs(exact),
    }  # fmt: skip


# --- drawings

_LABELS = {"eat": "EAT cubic", "gsm": "GSM", "gsm-com": "GSM, COM-Poisson"}


def _look(kind: str) -> dict[str, Any]:
    from hitchhiker import plotting

    if kind == "gsm-com":
        return {"color": plotting.COLORS["gsm"], "marker": "x", "linestyle": ":", "label": _LABELS[kind]}
    return plotting.method({"eat": "eat-cubic"}.get(kind, kind)).line | {"label": _LABELS.get(kind, kind)}


def _panels(rows: Rows, heights: Sequence[str]) -> tuple[Any, Any, list[float]]:
    if not rows:
        raise ValueError("rows must not be empty")
    import matplotlib.pyplot as plt

    targets = sorted({row["target"] for row in rows})
    size = (2.1 + 1.75 * len(targets), 2.15 * len(heights) + 0.5)
    fig, axes = plt.subplots(len(heights), len(targets), figsize=size, sharex=True, sharey="row", squeeze=False)
    for column, target in zip(axes.T, targets, strict=True):
        column[0].set_title(f"F = {target:g}", fontsize="medium", loc="center")
        column[-1].set_xlabel("temperature τ")
    for row, name in zip(axes, heights, strict=True):
        row[0].set_ylabel(name)
    return fig, axes, targets


def _finish(fig: Any, axes: Any, title: str) -> Any:
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="lower center", ncol=len(labels), frameon=False, bbox_to_anchor=(0.5, -0.06))
    fig.suptitle(title)
    return fig


def draw_fidelity(rows: Rows, title: str, exact: Callable[[float, float], float] | None = None) -> Any:
    """Variance kept and W1 against temperature, a column for each Fano factor; points with two standard errors.

    ``exact(fano, temperature)``, if given, is the variance ratio in closed form of the arrival-time relaxation: a line.
    """
    fig, axes, targets = _panels(rows, ("variance kept", "W1, counts"))
    for column, target in zip(axes.T, targets, strict=True):
        for kind in dict.fromkeys(row["kind"] for row in rows):
            some = reproduce.select(rows, target=target, kind=kind)
            tau = [row["temperature"] for row in some]
            look = _look(kind)
            for ax, name in zip(column, ("variance", "w1"), strict=True):
                line = "none" if kind == "eat" and exact is not None and name == "variance" else look["linestyle"]
                ax.errorbar(
                    tau, [row[name] for row in some], [2 * row[f"{name}_se"] for row in some],
                    **(look | {"linestyle": line}), markersize=4, linewidth=1.2,
                )  # fmt: skip
            if kind == "eat" and exact is not None:
                grid = np.linspace(min(tau), max(tau), 60)
                column[0].plot(grid, [exact(target, t) for t in grid], color=look["color"], linewidth=1.2)
        column[0].axhline(1, color="#999999", linewidth=0.8, linestyle=":")
    axes[0, 0].set_ylim(0, 1.1)
    axes[1, 0].set_ylim(bottom=0)
    return _finish(fig, axes, title)


def draw_gradients(rows: Rows, function: str, title: str) -> Any:
    """Relative bias (two standard errors) and noise of one gradient against temperature, a column for each Fano factor."""
    from hitchhiker import plotting

    rows = reproduce.select(rows, function=function)
    fig, axes, targets = _panels(rows, ("bias", "noise of one gradient"))
    for column, target in zip(axes.T, targets, strict=True):
        for kind in dict.fromkeys(row["kind"] for row in rows):
            some = reproduce.select(rows, target=target, kind=kind)
            if kind in ("score", "difference"):
                style = plotting.method(kind)
                column[1].axhline(some[0]["noise"], **style.curve)
                column[0].plot([], [], **style.curve)
                continue
            tau, look = [row["temperature"] for row in some], _look(kind) | {"markersize": 4, "linewidth": 1.2}
            column[0].errorbar(tau, [row["bias"] for row in some], [2 * row["bias_se"] for row in some], **look)
            column[1].plot(tau, [row["noise"] for row in some], **look)
        column[0].axhline(0, color="#999999", linewidth=0.8, linestyle=":")
        column[1].set_yscale("log")
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10) if t > 0.8 * axes[1, 0].get_ylim()[0]]
    axes[1, 0].set_yticks(ticks, [f"{t:g}" for t in ticks])
    axes[1, 0].minorticks_off()
    return _finish(fig, axes, title)


def erlang_clock(unit_waits: Sequence[float], rate: float = 4.0, stages: int = 3, temperature: float = 0.2) -> Any:
    """A living figure of Erlang waits: ticks of a fine clock, every k-th of which counts, with sliders for all that matters.

    Parameters
    ----------
    unit_waits : e_m > 0, unit exponential draws; some 120 fill the picture at the largest rate and k.
    rate, stages, temperature : where the sliders start: 1 … 8 counts per window, 1 … 6, 0.02 … 1.

    Returns an ``altair.LayerChart``. Raises ``ImportError`` without altair, ``ValueError`` for no or negative waits.

    >>> erlang_clock([1.0, 0.5, 2.0]).to_dict()["description"][:23]
    'Ticks of a fast clock: '
    """
    waits = figures.checked_waits(unit_waits)
    alt = figures.altair_module()
    from hitchhiker import plotting

    horizon, color = 2.0, plotting.COLORS["eat-cubic"]
    sums = np.cumsum(waits).round(4).tolist()

    def slider(name: str, value: float, low: float, high: float, step: float, label: str) -> Any:
        return alt.param(name, value=value, bind=alt.binding_range(min=low, max=high, step=step, name=label))

    lam = slider("lam", rate, 1, 8, 0.1, "rate λ")
    k = slider("k", stages, 1, 6, 1, "ticks a count, k")
    phase = slider("phase", 0, 0, 5, 1, "ticks already done, J (below k)")
    tau = slider("tau", temperature, 0.02, 1, 0.02, "temperature τ")
    soft = "pow(clamp((datum.u + 1) / 2, 0, 1), 2) * (3 - 2 * clamp((datum.u + 1) / 2, 0, 1))"
    ticks = (
        alt.Chart(alt.Data(values=[{"g": g, "m": m} for m, g in enumerate(sums, start=1)]))
        .transform_calculate(t="datum.g / (k * lam)", counts="(datum.m + min(phase, k - 1)) % k == 0 ? 1 : 0")
        .transform_calculate(u="(1 - datum.t) / tau")
        .transform_calculate(f=f"datum.counts * {soft}", hard="datum.counts * (datum.t < 1 ? 1 : 0)")
    )
    shown = ticks.transform_filter(f"datum.t <= {horizon}")
    counted = shown.transform_filter("datum.counts == 1")
    total = ticks.transform_aggregate(z="sum(f)", n="sum(hard)").transform_calculate(
        says="'soft count z = ' + format(datum.z, '.2f') + '     hard count N = ' + datum.n"
    )
    time = alt.X("t:Q", title="time t, in windows", scale=alt.Scale(domain=[0, horizon], nice=False))
    height = alt.Y(
        "f:Q", title="counts as much as", scale=alt.Scale(domain=[0, 1.2]), axis=alt.Axis(values=[0, 0.5, 1])
    )
    chart = alt.layer(
        alt.Chart(alt.Data(values=[{"t": 1}])).mark_rule(strokeDash=[5, 3], color="#111111").encode(time),
        shown.mark_tick(color="#888888", thickness=1.5, size=14).encode(time, y=alt.value(224)),
        counted.mark_rule(strokeWidth=1.5, color="#555555").encode(time, height),
        counted.mark_point(filled=True, size=70, opacity=1, color=color).encode(time, height),
        total.mark_text(align="right", baseline="top", fontSize=13, fontWeight="bold", color="#222222").encode(
            x=alt.value("width"), y=alt.value(2), text="says:N"
        ),
    )
    return (
        chart.add_params(lam, k, phase, tau)
        .properties(
            width="container",
            height=230,
            description=(
                "Ticks of a fast clock: every k-th tick is a stem that counts, softly near the window's end at t = 1. Sliders "
                "move the rate, the number of ticks a count, the ticks already done at the start, and the temperature. More "
                "ticks a count make the stems more evenly spaced."
            ),
        )
        .configure_axis(labelFontSize=11, titleFontSize=12, titleFontWeight="normal", gridColor="#e4e4e4")
        .configure_view(stroke=None)
    )


# --- spike counts: which law made them?

#: the three truths: observation law and its dispersion; near Fano factor 1/2, 1 and 2 given the past
TRUTHS: dict[str, tuple[str, float | None]] = {
    "under": ("com-poisson", 2.0),
    "poisson": ("poisson", None),
    "over": ("negative-binomial", 0.25),
}


def spiking_model(truth: str) -> GLM:
    """Two neurons of about four counts a bin that hold themselves down and drive each other, with one of ``TRUTHS``.

    >>> spiking_model("over").observation
    'negative-binomial'
    """
    if truth not in TRUTHS:
        raise ValueError(f"truth must be one of {tuple(TRUTHS)}, got {truth!r}")
    law, spread = TRUTHS[truth]
    weights = torch.tensor([[[-0.25], [0.3]], [[0.3], [-0.25]]])
    return GLM(
        weights,
        torch.tensor([4.0, 4.0]),
        observation=law,
        dispersion=None if spread is None else torch.full((2,), spread),
    )


def recovery_rows(truth: str, sets: int = 1, sequences: int = 40, bins: int = 100, seed: int = 0) -> Rows:
    """Fit every observation law to simulated spikes and judge it on as many held-out sequences.

    Returns a row for each data set and law: ``gain``, held-out log-likelihood (nats a sequence) less that of the law which
    made the counts, its standard error over sequences, ``dispersion`` and ``log_error`` (the standard error of its logarithm
    from the observed information) of both neurons, and the weights' errors.

    >>> [row["law"] for row in recovery_rows("poisson", sequences=4, bins=20)]
    ['poisson', 'negative-binomial', 'com-poisson']
    """
    model, made_by = spiking_model(truth), TRUTHS[truth][0]
    rows: Rows = []
    with own_random_numbers(seed):
        for data in range(sets):
            counts = dispersion.simulate_counts(model, 2 * sequences, bins)
            train, held = counts[:sequences], counts[sequences:]
            fits = {law: fit_glm(train, 1, observation=law) for law in OBSERVATIONS}
            judged = {law: fit.log_likelihood(held) for law, fit in fits.items()}
            for law, fit in fits.items():
                gap = judged[law] - judged[made_by]
                errors = fit.errors or {}
                rows.append(
                    {
                        "truth": truth, "data": data, "law": law, "gain": float(gap.mean()),
                        "gain_se": float(gap.std() / math.sqrt(sequences)),
                        "dispersion": None if fit.dispersion is None else fit.dispersion.tolist(),
                        "log_error": None if fit.dispersion is None else errors["dispersion"].tolist(),
                        "weight_error": float((fit.weights - model.weights).abs().max()),
                        "mean": float(train.mean()),
                    }
                )  # fmt: skip
    return rows


def _recover(cell: dict, settings: dict, seed: int) -> Rows:
    sizes = {name: settings[name] for name in ("sets", "sequences", "bins")}
    return recovery_rows(cell["truth"], seed=seed, **sizes)


reproduce.add_recipe(
    reproduce.Recipe(
        "dispersion",
        "which law made the counts: GLMs of simulated spikes with Fano factors near 1/2, 1 and 2",
        lambda settings: [{"truth": truth} for truth in settings["truths"]],
        _recover,
        None,
        quick={"truths": list(TRUTHS), "sets": 2, "sequences": 40, "bins": 100},
        full={"truths": list(TRUTHS), "sets": 20, "sequences": 40, "bins": 100},
    )
)

__all__ = [
    "FUNCTIONS", "RELAXATIONS", "TRUTHS", "draw_fidelity", "draw_gradients", "erlang_clock", "fidelity_rows", "gradient_rows",
    "recovery_rows", "relaxed_law", "spiking_model", "stages_of", "whole_law",
]  # fmt: skip
