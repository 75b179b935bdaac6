"""Figures of the paper, one function each.  Static ones return a matplotlib figure, living ones an altair chart.

A living figure needs ``altair`` (``pip install "hitchhiker[plot]"``) and carries its alt text as ``description``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hitchhiker.plotting import method

_FORMULAS = {  # of the scaled time u = (1 - t)/τ, in vega's language
    "sigmoid": "1 / (1 + exp(-datum.u))",
    "cubic": "pow(clamp((datum.u + 1) / 2, 0, 1), 2) * (3 - 2 * clamp((datum.u + 1) / 2, 0, 1))",
}


def arrival_clock(unit_waits: Sequence[float], rate: float = 4.0, temperature: float = 0.4, horizon: float = 2.0) -> Any:
    """Figure 5 as a living figure: one set of waits, sliders for the rate and the temperature, soft counts of both kinds.

    Arrivals are ``t_m = (e_1 + … + e_m)/λ`` for the given unit waits ``e``; each is drawn as a stem of the height that
    it counts, ``f((1 - t_m)/τ)``, and the title sums them up (Eqs. 17–19).

    Parameters
    ----------
    unit_waits : e_m > 0, unit exponential draws; enough of them to pass ``horizon`` at the largest rate, 8.
    rate : λ at which the slider starts, 1 … 8 counts per window.
    temperature : τ at which the slider starts, 0.02 … 1.
    horizon : the latest time that is shown, in windows.

    Returns an ``altair.LayerChart``.  Raises ``ImportError`` without altair, ``ValueError`` for no or negative waits.

    >>> arrival_clock([1.0, 0.5, 2.0]).to_dict()["description"][:30]
    'Arrivals on a clock: a slider '

    Source: Figure 5, Algorithm 1.
    """
    waits = [float(e) for e in unit_waits]
    if not waits or min(waits) <= 0:
        raise ValueError(f"unit_waits must be positive and at least one, got {waits[:5]}")
    try:
        import altair as alt
    except ImportError as error:
        raise ImportError('living figures need altair: pip install "hitchhiker[plot]"') from error

    sums = [round(sum(waits[: m + 1]), 4) for m in range(len(waits))]
    grid = [round(horizon * i / 200, 4) for i in range(201)]
    tau = alt.param("tau", value=temperature, bind=alt.binding_range(min=0.02, max=1, step=0.02, name="temperature τ"))
    lam = alt.param("lam", value=rate, bind=alt.binding_range(min=1, max=8, step=0.1, name="rate λ"))
    names = list(_FORMULAS)
    kind = alt.param("kind", value="cubic", bind=alt.binding_radio(options=names, name="soft indicator"))
    value = "kind == 'sigmoid' ? " + _FORMULAS["sigmoid"] + " : " + _FORMULAS["cubic"]
    color = alt.expr(f"kind == 'sigmoid' ? '{method('sigmoid').color}' : '{method('cubic').color}'")

    time = alt.X("t:Q", title="time t, in windows", scale=alt.Scale(domain=[0, horizon], nice=False))
    height = alt.Y("f:Q", title="counts as much as", scale=alt.Scale(domain=[0, 1.15]), axis=alt.Axis(values=[0, 0.5, 1]))
    curve = (
        alt.Chart(alt.Data(values=[{"t": t} for t in grid]))
        .transform_calculate(u="(1 - datum.t) / tau")
        .transform_calculate(f=value)
    )
    arrivals = (
        alt.Chart(alt.Data(values=[{"g": g, "m": m} for m, g in enumerate(sums, start=1)]))
        .transform_calculate(t="datum.g / lam")
        .transform_calculate(u="(1 - datum.t) / tau")
        .transform_calculate(f=value, hard="datum.t < 1 ? 1 : 0")
    )
    shown = arrivals.transform_filter(f"datum.t <= {horizon}")
    total = arrivals.transform_aggregate(z="sum(f)", n="sum(hard)").transform_calculate(
        says="'soft count z = ' + format(datum.z, '.2f') + '     hard count N = ' + datum.n"
    )
    chart = alt.layer(
        curve.mark_area(opacity=0.12, color=color).encode(time, height),
        curve.mark_line(strokeWidth=2, color=color).encode(time, height),
        alt.Chart(alt.Data(values=[{"t": 1}])).mark_rule(strokeDash=[5, 3], color="#111111").encode(time),
        shown.mark_rule(strokeWidth=1.5, color="#555555").encode(time, height),
        shown.mark_point(filled=True, size=70, opacity=1, color=color).encode(
            time, height, tooltip=[alt.Tooltip("m:O", title="arrival"), alt.Tooltip("t:Q", format=".2f"), alt.Tooltip("f:Q", format=".2f")]
        ),
        shown.mark_text(dy=-11, fontSize=11, color="#222222").encode(time, height, text=alt.Text("f:Q", format=".2f")),
        total.mark_text(align="right", baseline="top", fontSize=13, fontWeight="bold", color="#222222").encode(
            x=alt.value("width"), y=alt.value(2), text="says:N"
        ),
    )  # fmt: skip
    return (
        chart.add_params(lam, tau, kind)
        .properties(
            width="container",
            height=230,
            description=(
                "Arrivals on a clock: a slider moves the rate, another the temperature. Arrivals well before t = 1 count 1, "
                "arrivals well after it count 0, and those near t = 1 count a fraction that changes smoothly as they slide past."
            ),
        )
        .configure_axis(labelFontSize=11, titleFontSize=12, titleFontWeight="normal", gridColor="#e4e4e4")
        .configure_view(stroke=None)
    )


# --- Figures 1, 2, 9, 10: distributional fidelity, from the rows of hitchhiker.reproduce.fidelity_rows
# ----------------------------------------------------------------------------------------------------

_FIDELITY_METHODS = ("eat-sigmoid", "eat-cubic", "gsm")
#: what the paper prints of Figure 1 at λ = 100, τ = 0.5 (Section 3.1); for the sigmoid's variance "below 20%"
PRINTED_MOMENTS = {
    "mean": {"eat-sigmoid": 0.85},
    "variance": {"eat-cubic": 0.73, "gsm": 0.60, "eat-sigmoid": 0.20},
}


def figure_1(rows: Sequence[dict[str, Any]], theory: bool = True) -> Any:
    """Figure 1: mean and variance over those of the Poisson, against τ; filled at the paper's M, hollow with all arrivals.

    Parameters
    ----------
    rows : of :func:`hitchhiker.reproduce.fidelity_rows`, any number of rates (a column each).
    theory : draw the exact moments of EAT as lines, of Algorithm 1 with that M and of the law with all arrivals.

    Returns a matplotlib figure: points with two standard errors, and where λ = 100 is shown the paper's printed values.
    """
    return _moment_panels(rows, theory, columns=3)


def figure_9(rows: Sequence[dict[str, Any]], theory: bool = True) -> Any:
    """Figure 9: Figure 1 over more rates.  Arguments as :func:`figure_1`."""
    return _moment_panels(rows, theory, columns=5)


def figure_2(rows: Sequence[dict[str, Any]]) -> Any:
    """Figure 2: W1 from the Poisson law against τ, one column a rate; the grey line is where exact samples of that size are."""
    return _distance_panels(rows, ("w1",), columns=3)


def figure_10(rows: Sequence[dict[str, Any]]) -> Any:
    """Figure 10: W1 and W2 against τ over more rates."""
    return _distance_panels(rows, ("w1", "w2"), columns=5)


def _rates_of(rows: Sequence[dict[str, Any]]) -> list[float]:
    if not rows:
        raise ValueError("rows must not be empty")
    return sorted({row["rate"] for row in rows})


def _temperature_axis(ax: Any) -> None:
    ax.set_xscale("log")
    ax.set_xticks([0.02, 0.05, 0.1, 0.2, 0.5], ["0.02", "0.05", "0.1", "0.2", "0.5"])
    ax.minorticks_off()


def _moment_panels(rows: Sequence[dict[str, Any]], theory: bool, columns: int) -> Any:
    import matplotlib.pyplot as plt

    rates = _rates_of(rows)
    columns = min(columns, len(rates))
    bands = -(-len(rates) // columns)
    figure, axes = plt.subplots(
        2 * bands, columns, figsize=(1.2 + 2.1 * columns, 4.2 * bands), squeeze=False, sharex=True
    )
    for ax in axes.flat:
        ax.set_visible(False)
    for i, rate in enumerate(rates):
        for j, quantity in enumerate(("mean", "variance")):
            ax = axes[2 * (i // columns) + j, i % columns]
            ax.set_visible(True)
            _moment_panel(ax, [row for row in rows if row["rate"] == rate], rate, quantity, theory)
            if j == 0:
                ax.set_title(f"λ = {rate:g}")
            else:
                ax.set_xlabel("temperature τ")
            if i % columns == 0:
                ax.set_ylabel(f"{quantity} / λ")
    _key(figure, axes[0, 0])
    return figure


def _moment_panel(ax: Any, rows: Sequence[dict[str, Any]], rate: float, quantity: str, theory: bool) -> None:
    ax.axhline(1, color="#111111", linewidth=0.8, linestyle=(0, (4, 4)))
    for name in _FIDELITY_METHODS:
        look = method(name)
        for sampler, face, dash in (("paper", look.color, "-"), ("enough", "white", (0, (2, 2)))):
            part = sorted(
                (r for r in rows if r["method"] == name and r["sampler"] == sampler), key=lambda r: r["temperature"]
            )
            if not part:
                continue
            x = [r["temperature"] for r in part]
            ax.errorbar(
                x, [r[quantity] for r in part], [2 * r[f"{quantity}_se"] for r in part], linestyle="none",
                color=look.color, marker=look.marker, markerfacecolor=face, label=look.label if sampler == "paper" else None,
            )  # fmt: skip
            if theory and name != "gsm":
                grid, line = _exact_moments(name.removeprefix("eat-"), rate, part[0]["num"], quantity, x[0], x[-1])
            else:
                grid, line = x, [r[quantity] for r in part]
            ax.plot(grid, line, color=look.color, linewidth=1.2, linestyle=dash)
    if rate == 100:
        for name, value in PRINTED_MOMENTS[quantity].items():
            below = quantity == "variance" and name == "eat-sigmoid"
            ax.plot(0.56, value, marker=7 if below else 4, color=method(name).color, markersize=7, clip_on=False)
    _temperature_axis(ax)


def _exact_moments(kind: str, rate: float, num: int | None, quantity: str, low: float, high: float) -> tuple[Any, Any]:
    """The exact factor on a grid of temperatures; of Algorithm 1 when ``num`` is given."""
    import numpy as np

    from hitchhiker import moments

    grid = np.geomspace(low, high, 25)
    if num is None:
        return grid, (moments.mean_factor if quantity == "mean" else moments.variance_factor)(kind, grid)
    truncated = moments.truncated_mean_factor if quantity == "mean" else moments.truncated_variance_factor
    return grid, truncated(kind, grid, rate, num)


def _distance_panels(rows: Sequence[dict[str, Any]], quantities: Sequence[str], columns: int) -> Any:
    import matplotlib.pyplot as plt

    rates = _rates_of(rows)
    columns = min(columns, len(rates))
    bands = -(-len(rates) // columns)
    lines = bands * len(quantities)
    figure, axes = plt.subplots(lines, columns, figsize=(1.2 + 2.1 * columns, 2.4 * lines), squeeze=False, sharex=True)
    for ax in axes.flat:
        ax.set_visible(False)
    for i, rate in enumerate(rates):
        for j, quantity in enumerate(quantities):
            ax = axes[len(quantities) * (i // columns) + j, i % columns]
            ax.set_visible(True)
            _distance_panel(ax, [row for row in rows if row["rate"] == rate], quantity)
            if j == 0:
                ax.set_title(f"λ = {rate:g}")
            if j == len(quantities) - 1:
                ax.set_xlabel("temperature τ")
            if i % columns == 0:
                ax.set_ylabel(f"{quantity.upper()}, counts")
    _key(figure, axes[0, 0])
    return figure


def _distance_panel(ax: Any, rows: Sequence[dict[str, Any]], quantity: str) -> None:
    for row in rows:
        if row["method"] == "exact":
            ax.axhline(row[quantity], color="#808080", linewidth=0.9, linestyle=(0, (4, 4)))
    for name in _FIDELITY_METHODS:
        look = method(name)
        for sampler, face, dash in (("paper", look.color, "-"), ("enough", "white", (0, (2, 2)))):
            part = sorted(
                (r for r in rows if r["method"] == name and r["sampler"] == sampler), key=lambda r: r["temperature"]
            )
            if part:
                ax.errorbar(
                    [r["temperature"] for r in part], [r[quantity] for r in part], [2 * r[f"{quantity}_se"] for r in part],
                    color=look.color, marker=look.marker, markerfacecolor=face, linewidth=1.2, linestyle=dash,
                    label=look.label if sampler == "paper" else None,
                )  # fmt: skip
    ax.set_yscale("log")
    _temperature_axis(ax)


def _key(figure: Any, ax: Any) -> None:
    """One legend above the panels: the methods, and filled against hollow."""
    handles, labels = ax.get_legend_handles_labels()
    filled = ax.plot([], [], color="#555555", marker="o", linestyle="-")[0]
    hollow = ax.plot([], [], color="#555555", marker="o", linestyle=(0, (2, 2)), markerfacecolor="white")[0]
    figure.legend(
        [*handles, filled, hollow], [*labels, "M of Eq. 79", "M large enough"], loc="outside upper center", ncols=5,
        fontsize="small",
    )  # fmt: skip
