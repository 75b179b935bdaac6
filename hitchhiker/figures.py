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


def altair_module() -> Any:
    """altair, or an ``ImportError`` that says how to get it."""
    try:
        import altair
    except ImportError as error:
        raise ImportError('living figures need altair: pip install "hitchhiker[plot]"') from error
    return altair


def checked_waits(unit_waits: Sequence[float]) -> list[float]:
    """The waits of a living clock as a list.  Raises ``ValueError`` for none, or one that is not positive."""
    waits = [float(e) for e in unit_waits]
    if not waits or min(waits) <= 0:
        raise ValueError(f"unit_waits must be positive and at least one, got {waits[:5]}")
    return waits


def arrival_clock(
    unit_waits: Sequence[float], rate: float = 4.0, temperature: float = 0.4, horizon: float = 2.0
) -> Any:
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
    waits = checked_waits(unit_waits)
    alt = altair_module()

    sums = [round(sum(waits[: m + 1]), 4) for m in range(len(waits))]
    grid = [round(horizon * i / 200, 4) for i in range(201)]
    tau = alt.param("tau", value=temperature, bind=alt.binding_range(min=0.02, max=1, step=0.02, name="temperature τ"))
    lam = alt.param("lam", value=rate, bind=alt.binding_range(min=1, max=8, step=0.1, name="rate λ"))
    names = list(_FORMULAS)
    kind = alt.param("kind", value="cubic", bind=alt.binding_radio(options=names, name="soft indicator"))
    value = "kind == 'sigmoid' ? " + _FORMULAS["sigmoid"] + " : " + _FORMULAS["cubic"]
    color = alt.expr(f"kind == 'sigmoid' ? '{method('sigmoid').color}' : '{method('cubic').color}'")

    time = alt.X("t:Q", title="time t, in windows", scale=alt.Scale(domain=[0, horizon], nice=False))
    height = alt.Y(
        "f:Q", title="counts as much as", scale=alt.Scale(domain=[0, 1.15]), axis=alt.Axis(values=[0, 0.5, 1])
    )
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
            time, height,
            tooltip=[alt.Tooltip("m:O", title="arrival"), *(alt.Tooltip(f"{x}:Q", format=".2f") for x in "tf")],
        ),
        shown.transform_filter("datum.f > 0.005 && datum.f < 0.995")
        .mark_text(dy=-11, fontSize=11, color="#222222")
        .encode(time, height, text=alt.Text("f:Q", format=".2f")),
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


# --- Figures 5, 6, 7 on paper


def figure_5(rows: Sequence[dict[str, Any]], title: str | None = None) -> Any:
    """Figure 5: waits, arrival times and the window's end, of one draw; ``rows`` have ``arrival``, ``wait`` and ``time``."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(6.4, 2.4))
    start = 0.0
    for row in rows:
        inside = row["time"] < 1
        color = "#c8342b" if inside else "#808080"
        ax.plot([start, row["time"]], [row["arrival"]] * 2, color=color, linestyle="-" if inside else (0, (3, 2)))
        ax.plot(row["time"], row["arrival"], marker="o" if inside else "x", color=color)
        ax.annotate(f"$t_{row['arrival']}$", (row["time"], row["arrival"]), xytext=(6, -3), textcoords="offset points")
        start = row["time"]
    ax.axvline(1, color="#111111", linewidth=1, linestyle=(0, (4, 4)))
    ax.set(xlim=(0, max(1.1, start * 1.08)), ylim=(len(rows) + 0.6, 0.4), xlabel="time, in windows", ylabel="arrival m")
    ax.set_yticks([row["arrival"] for row in rows])
    ax.set_title(title or f"{sum(row['time'] < 1 for row in rows)} arrivals before the window closes")
    return figure


def figure_6(rows: Sequence[dict[str, Any]], title: str | None = None) -> Any:
    """Figure 6: soft indicators against u; ``rows`` have ``u``, ``sigmoid`` and ``cubic``."""
    import matplotlib.pyplot as plt

    from hitchhiker.plotting import label_lines

    figure, ax = plt.subplots(figsize=(6.4, 3.0))
    u = [row["u"] for row in rows]
    ax.plot(u, [float(x > 0) for x in u], color="#111111", linewidth=1, linestyle=(0, (4, 4)), label="hard")
    for kind in ("sigmoid", "cubic"):
        ax.plot(u, [row[kind] for row in rows], **method(kind).curve)
    for edge in (-1, 1):
        ax.axvline(edge, color="#808080", linewidth=0.8, linestyle=":")
    ax.set(xlabel="u = (1 - t)/τ", ylabel="weight of an arrival")
    ax.set_title(title or "The cubic is exactly 0 below -1 and exactly 1 above 1")
    label_lines(ax)
    return figure


def figure_7(rows: Sequence[dict[str, Any]], title: str | None = None) -> Any:
    """Figure 7: mean, variance and Fano factors against τ; ``rows`` have ``method``, ``temperature`` and the three."""
    import matplotlib.pyplot as plt

    from hitchhiker.plotting import label_lines

    figure, axes = plt.subplots(1, 3, figsize=(8.2, 2.9), sharex=True)
    for ax, name, says in zip(axes, ("mean", "variance", "fano"), ("mean c", "variance v", "Fano v/c"), strict=True):
        ax.axvspan(0.02, 0.5, color="#eeeeee", zorder=0)
        ax.axhline(1, color="#111111", linewidth=0.8, linestyle=(0, (4, 4)))
        for kind in ("eat-sigmoid", "eat-cubic"):
            part = [row for row in rows if row["method"] == kind]
            ax.plot([row["temperature"] for row in part], [row[name] for row in part], **method(kind).curve)
        ax.set(xlabel="temperature τ", title=says)
    label_lines(axes[-1])
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11.5, fontweight="bold")
    return figure


# --- Figures 1, 2, 9, 10: distributional fidelity, from the rows of hitchhiker.reproduce.fidelity_rows

_FIDELITY_METHODS = ("eat-sigmoid", "eat-cubic", "gsm")
#: what the paper prints of Figure 1 at λ = 100, τ = 0.5 (Section 3.1); for the sigmoid's variance "below 20%"
PRINTED_MOMENTS = {
    "mean": {"eat-sigmoid": 0.85},
    "variance": {"eat-cubic": 0.73, "gsm": 0.60, "eat-sigmoid": 0.20},
}


def figure_1(rows: Sequence[dict[str, Any]], theory: bool = True, title: str | None = None) -> Any:
    """Figure 1: mean and variance over those of the Poisson, against τ; filled at the paper's M, hollow with all arrivals.

    Parameters
    ----------
    rows : of :func:`hitchhiker.reproduce.fidelity_rows`, any number of rates (a column each).
    theory : draw the exact moments of EAT as lines, of Algorithm 1 with that M and of the law with all arrivals.
    title : the finding.

    Returns a matplotlib figure: points with two standard errors, and where λ = 100 is shown the paper's printed values.
    """
    return _moment_panels(rows, theory, 3, title)


def figure_9(rows: Sequence[dict[str, Any]], theory: bool = True, title: str | None = None) -> Any:
    """Figure 9: Figure 1 over more rates.  Arguments as :func:`figure_1`."""
    return _moment_panels(rows, theory, 5, title)


def figure_2(rows: Sequence[dict[str, Any]], title: str | None = None) -> Any:
    """Figure 2: W1 from the Poisson law against τ, one column a rate; the grey line is where exact samples of that size are."""
    return _distance_panels(rows, ("w1",), 3, title)


def figure_10(rows: Sequence[dict[str, Any]], title: str | None = None) -> Any:
    """Figure 10: W1 and W2 against τ over more rates."""
    return _distance_panels(rows, ("w1", "w2"), 5, title)


def _rates_of(rows: Sequence[dict[str, Any]]) -> list[float]:
    if not rows:
        raise ValueError("rows must not be empty")
    return sorted({row["rate"] for row in rows})


def _temperature_axis(ax: Any) -> None:
    ax.set_xscale("log")
    ax.set_xticks([0.02, 0.05, 0.1, 0.2, 0.5], ["0.02", "0.05", "0.1", "0.2", "0.5"])
    ax.minorticks_off()


def _moment_panels(rows: Sequence[dict[str, Any]], theory: bool, columns: int, title: str | None) -> Any:
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
                ax.tick_params(labelbottom=True)
            if i % columns == 0:
                ax.set_ylabel(f"{quantity} / λ")
    _key(figure, axes[0, 0])
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11.5, fontweight="bold")
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

    grid = np.geomspace(low, high, 12)
    if num is None:
        return grid, (moments.mean_factor if quantity == "mean" else moments.variance_factor)(kind, grid)
    truncated = moments.truncated_mean_factor if quantity == "mean" else moments.truncated_variance_factor
    return grid, truncated(kind, grid, rate, num)


def _distance_panels(rows: Sequence[dict[str, Any]], quantities: Sequence[str], columns: int, title: str | None) -> Any:
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
                ax.tick_params(labelbottom=True)
            if i % columns == 0:
                ax.set_ylabel(f"{quantity.upper()}, counts")
    _key(figure, axes[0, 0])
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11.5, fontweight="bold")
    return figure


def _distance_panel(ax: Any, rows: Sequence[dict[str, Any]], quantity: str) -> None:
    from matplotlib import ticker

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
    _temperature_axis(ax)
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    ax.yaxis.set_minor_locator(ticker.NullLocator())


def _key(figure: Any, ax: Any) -> None:
    """One legend below the panels: the methods, and filled against hollow."""
    handles, labels = ax.get_legend_handles_labels()
    filled = ax.plot([], [], color="#555555", marker="o", linestyle="-")[0]
    hollow = ax.plot([], [], color="#555555", marker="o", linestyle=(0, (2, 2)), markerfacecolor="white")[0]
    figure.legend(
        [*handles, filled, hollow], [*labels, "M of Eq. 79", "M large enough"], loc="outside lower center", ncols=5,
        fontsize="small",
    )  # fmt: skip


# --- Figures 3, 11, 12: gradients, from the rows of hitchhiker.gradient_figures.gradient_rows

#: panel: its name, the column with the truth, the column with what Eqs. 7-10 give from a hundred gradients
_GRADIENT_PANELS = {
    "CosMean": ("cos_mean", "cos_mean_plugin"),
    "CosSample": ("cos_sample", "cos_sample"),
    "BiasEnergy": ("bias_energy", "bias_energy_plugin"),
    "NoiseEnergy": ("noise_energy", "noise_energy"),
    "bias, ‖b‖²/‖g‖²": ("raw_bias", "raw_bias_plugin"),
    "variance, Tr Σ/‖g‖²": ("raw_variance", "raw_variance"),
}


def figure_3(rows: Sequence[dict[str, Any]], title: str | None = None) -> Any:
    """Figure 3: cosines and energies against τ; hollow as the paper estimates them, filled the truth with all arrivals.

    ``rows`` are those of :func:`hitchhiker.gradient_figures.gradient_rows` for one rate.  Returns a matplotlib figure.
    """
    return _gradient_panels(rows, ("CosMean", "CosSample", "BiasEnergy", "NoiseEnergy"), 2, title)


def figure_11(rows: Sequence[dict[str, Any]], title: str | None = None) -> Any:
    """Figure 11: Figure 3 over several rates, a column each."""
    return _gradient_panels(rows, ("CosMean", "CosSample", "BiasEnergy", "NoiseEnergy"), None, title)


def figure_12(rows: Sequence[dict[str, Any]], title: str | None = None) -> Any:
    """Figure 12: the same without the Hessian, in units of the squared length of the exact gradient."""
    return _gradient_panels(rows, ("bias, ‖b‖²/‖g‖²", "variance, Tr Σ/‖g‖²"), 2, title)


def dictionary(rows: Sequence[dict[str, Any]], title: str | None = None) -> Any:
    """The columns of a trained decoder as images, longest first."""
    import numpy as np

    from hitchhiker.plotting import show_patches

    return show_patches(np.array([row["feature"] for row in rows]), 16 if len(rows) >= 64 else 8, title=title)


def _gradient_panels(
    rows: Sequence[dict[str, Any]], names: Sequence[str], columns: int | None, title: str | None
) -> Any:
    import matplotlib.pyplot as plt

    rates = _rates_of(rows)
    if columns is None:  # a column a rate, a line a quantity
        columns, lines = len(rates), len(names)
        cells = [(names[i], rate) for i in range(lines) for rate in rates]
        size = (1.2 + 2.0 * columns, 1.0 + 1.9 * lines)
    else:
        lines = -(-len(names) // columns)
        cells = [(name, rates[0]) for name in names]
        size = (3.6 * columns, 0.9 + 2.7 * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, sharex=True)
    for ax, (name, rate) in zip(axes.flat, cells, strict=True):
        _gradient_panel(ax, [row for row in rows if row["rate"] == rate], name)
        if len(rates) == 1:
            ax.set_title(name, fontsize=10.5, fontweight="normal")
        elif ax in axes[0]:
            ax.set_title(f"λ = {rate:g}", fontsize=10.5, fontweight="normal")
        if ax in axes[-1]:
            ax.set_xlabel("temperature τ")
        if len(rates) > 1 and ax in axes[:, 0]:
            ax.set_ylabel(name)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    for face, text in (("#555555", "truth, all arrivals"), ("white", "as in the paper: 100 gradients, M of Eq. 79")):
        dash = "-" if face != "white" else (0, (2, 2))
        handles += axes[0, 0].plot([], [], color="#555555", marker="o", linestyle=dash, markerfacecolor=face)
        labels.append(text)
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11.5, fontweight="bold")
    return figure


def _gradient_panel(ax: Any, rows: Sequence[dict[str, Any]], name: str) -> None:
    truth, plugin = _GRADIENT_PANELS[name]
    temperatures = sorted({row["temperature"] for row in rows if row["temperature"] is not None})
    for kind in (*_FIDELITY_METHODS, "score:batch_mean"):
        look = method(kind)
        here = sorted((r for r in rows if r["method"] == kind), key=lambda r: r["temperature"] or 0)
        for sampler, column, face, dash in (
            ("enough", truth, look.color, "-"), ("paper", plugin, "white", (0, (2, 2))),
        ):  # fmt: skip
            part = [r for r in here if r["sampler"] in (sampler, "exact")]
            if not part:
                continue
            x = [r["temperature"] for r in part]
            y = [r[column] for r in part]
            if part[0]["temperature"] is None:  # no temperature: a line across
                x, y = [temperatures[0], temperatures[-1]], [y[0], y[0]]
            label = look.label if sampler == "enough" else None
            seen = [j for j, value in enumerate(y) if not _is_lost(part[min(j, len(part) - 1)], column, value)]
            ax.plot(
                [x[j] for j in seen], [y[j] for j in seen], color=look.color, marker=look.marker, markerfacecolor=face,
                linewidth=1.2, linestyle=dash, label=label,
            )  # fmt: skip
            for j in set(range(len(y))) - set(seen):  # below its own error: only a bound is known
                bound = 2 * part[min(j, len(part) - 1)]["bias_energy_se"]
                if bound > 0 and column == "bias_energy":
                    ax.plot(x[j], bound, color=look.color, marker=7, linestyle="none")
    if name not in ("CosMean", "CosSample"):
        ax.set_yscale("log")
    _temperature_axis(ax)


def _is_lost(row: dict[str, Any], column: str, value: float) -> bool:
    if column in ("bias_energy", "raw_bias"):
        return row["bias_energy"] <= 2 * row["bias_energy_se"] or value <= 0
    return False


def monte_carlo_floor(rows: Sequence[dict[str, Any]], start: float = 2.0) -> Any:
    """Figure 3c as a living figure: a slider moves N, the number of gradients from which BiasEnergy is estimated.

    Dashed: what the plug-in reports on average, truth + NoiseEnergy/N.  Solid: the truth.

    Parameters
    ----------
    rows : of :func:`hitchhiker.gradient_figures.gradient_rows` for one rate, with the sampler ``"enough"``.
    start : log10 of N at which the slider starts; the paper has 2.

    Returns an ``altair.LayerChart``.  Raises ``ImportError`` without altair.
    """
    alt = altair_module()

    data = [
        {
            "method": method(row["method"]).label,
            "tau": row["temperature"],
            # where the truth is lost in its own error, its upper bound stands for it
            "truth": max(row["bias_energy"], 2 * row["bias_energy_se"], 1e-12),
            "noise": row["noise_energy"],
        }
        for row in rows
        if row["sampler"] == "enough"
    ]
    names = [method(name).label for name in _FIDELITY_METHODS]
    colors = [method(name).color for name in _FIDELITY_METHODS]
    n = alt.param("logn", value=start, bind=alt.binding_range(min=1, max=7, step=0.1, name="log10 of N gradients"))
    x = alt.X(
        "tau:Q",
        title="temperature τ",
        scale=alt.Scale(type="log", domain=[0.018, 0.6]),
        axis=alt.Axis(values=[0.02, 0.05, 0.1, 0.2, 0.5]),
    )
    axis = alt.Axis(values=[1e-8, 1e-6, 1e-4, 1e-2, 1], format=".0e")
    scale = alt.Scale(type="log", domain=[1e-9, 10], clamp=True)
    color = alt.Color(
        "method:N", title=None, scale=alt.Scale(domain=names, range=colors), legend=alt.Legend(orient="top")
    )
    shape = alt.Shape("method:N", title=None, scale=alt.Scale(domain=names, range=["circle", "square", "triangle-up"]))
    base = alt.Chart(alt.Data(values=data)).transform_calculate(plugin="datum.truth + datum.noise / pow(10, logn)")
    truth, plugin = (
        alt.Y(f"{c}:Q", title="normalised BiasEnergy", scale=scale, axis=axis) for c in ("truth", "plugin")
    )
    says = (
        alt.Chart(alt.Data(values=[{}]))
        .transform_calculate(
            says="'dashed: mean of N = ' + format(round(pow(10, logn)), ',') + ' gradients;  solid: the truth'"
        )
        .mark_text(align="left", baseline="bottom", fontSize=12, color="#222222")
        .encode(x=alt.value(6), y=alt.value(14), text="says:N")
    )
    return (
        alt.layer(
            base.mark_line(strokeWidth=2).encode(x, truth, color),
            base.mark_point(filled=True, size=50, opacity=1).encode(x, truth, color, shape),
            base.mark_line(strokeWidth=1.5, strokeDash=[5, 4]).encode(x, plugin, color),
            base.mark_point(filled=False, size=50).encode(x, plugin, color, shape),
            says,
        )
        .add_params(n)
        .properties(
            width="container",
            height=280,
            description=(
                "BiasEnergy against temperature for three relaxations. Solid lines are the truth, dashed lines what a plug-in "
                "estimate from N gradients reports on average. With N = 100 the dashed lines lie far above the solid ones and "
                "fall with temperature; as a slider raises N to ten million they sink on to the truth, which rises with "
                "temperature."
            ),
        )
        .configure_axis(labelFontSize=11, titleFontSize=12, titleFontWeight="normal", gridColor="#e4e4e4")
        .configure_view(stroke=None)
    )


# --- Figure 8: temperatures, from the rows of hitchhiker.temperature_figures.temperature_rows

_FUNCTION_LOOKS = {  # name: label, colour, marker, dash
    "z": ("z", "#111111", "o", "-"),
    "sqrt": ("√z", "#1f6fb4", "s", (0, (5, 1.5))),
    "square": ("z²", "#c8342b", "^", "-"),
    "power": ("z^1.5 - 2z", "#2f8f4e", "v", (0, (3, 1.2, 1, 1.2))),
    "cosine": ("cos²(z)", "#56a0d3", "D", (0, (1, 1))),
    "sigmoid": ("sigmoid(z)", "#b58900", "P", (0, (4, 1, 1, 1, 1, 1))),
    "ratio-mixed": ("z²/λ against Eq. 82", "#d46fa8", "X", (0, (6, 2))),
    "ratio": ("z²/λ against its own gradient", "#7b3fa0", "*", (0, (2, 1))),
}


def figure_8(
    rows: Sequence[dict[str, Any]],
    num_samples: Sequence[int] = (1, 500),
    sampler: str = "enough",
    title: str | None = None,
) -> Any:
    """Figure 8: the temperature of least mean absolute error against λ, a column a method, a line a number of samples.

    Parameters
    ----------
    rows : of :func:`hitchhiker.temperature_figures.temperature_rows`.
    num_samples : how many gradients are averaged.
    sampler : ``"enough"``, or ``"paper"`` for M at the 99% quantile.
    title : the finding.

    Returns a matplotlib figure; the band is where the paper finds all best temperatures, 0.1 … 1.
    """
    import matplotlib.pyplot as plt

    from hitchhiker.temperature_figures import best_temperature

    rates = _rates_of(rows)
    size = (8.6, 1.2 + 2.4 * len(num_samples))
    figure, axes = plt.subplots(len(num_samples), 3, figsize=size, squeeze=False, sharex=True, sharey=True)
    for line, n in enumerate(num_samples):
        for ax, kind in zip(axes[line], _FIDELITY_METHODS, strict=True):
            ax.axhspan(0.1, 1, color="#eeeeee", zorder=0)
            for name, (label, color, marker, dash) in _FUNCTION_LOOKS.items():
                part = [r for r in rows if (r["function"], r["method"], r["sampler"]) == (name, kind, sampler)]
                part.sort(key=lambda r: r["rate"])
                if part:
                    best = [best_temperature(row, n)[0] for row in part]
                    ax.plot(
                        rates,
                        best,
                        color=color,
                        marker=marker,
                        linestyle=dash,
                        linewidth=1.2,
                        markersize=4.5,
                        label=label,
                    )
            ax.set(xscale="log", yscale="log")
            if line == 0:
                ax.set_title(method(kind).label, fontsize=10.5, fontweight="normal")
            if line == len(num_samples) - 1:
                ax.set_xlabel("rate λ")
        axes[line, 0].set_ylabel(f"best τ, mean of {n}" if n > 1 else "best τ, one sample")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize="small")
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11.5, fontweight="bold")
    return figure
