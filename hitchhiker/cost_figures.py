"""What the stored benchmarks say, as tables and figures: time and memory beside the published algorithms.

The results come from ``python benchmarks/NAME.py`` (all of them: ``make bench``) and are read by
``sweep.stored("bench/NAME")``.
"""

from __future__ import annotations

from typing import Any

from hitchhiker.plotting import method

LAWS = ("eat-cubic", "eat-sigmoid", "gsm")
#: what we set out to reach at τ = 0.1: times faster than the published algorithm, by size and law
TARGETS = {
    ("ragged", "eat-cubic"): 150.0, ("ragged", "eat-sigmoid"): 40.0, ("ragged", "gsm"): 5.0,
    ("flat-100", "eat-cubic"): 40.0, ("flat-100", "eat-sigmoid"): 10.0, ("flat-100", "gsm"): 1.5,
}  # fmt: skip
SIZES = {"ragged": "ragged, at most 20", "flat-100": "flat, all 100"}
CURVES = {
    "largest rate": "largest rate, mean 0.3", "mean rate": "mean rate λ", "temperature": "temperature τ",
    "units": "units",
}  # fmt: skip


def origin(result: dict[str, Any]) -> str:
    """Where a stored result comes from, in two lines: command and date, machine, threads, seed, version."""
    p = result["provenance"]
    cores = p.get("processor", p["device"])
    return (
        f"{p['command']}, {p['date']}\n"
        f"{cores}, {p['threads']} thread{'s' * (p['threads'] > 1)}, seed {p['seed']}, torch {p['versions']['torch']}"
    )


def sampler_table(result: dict[str, Any]) -> None:
    """Print the benchmark of the samplers: medians in ms with (fastest–slowest), ratio, memory in outputs."""
    print("size     law          τ     ours ms (range)     published  ratio  memory")
    for r in result["rows"]:
        ours, published = r["ours"], r["published"]
        spread = f"({ours['min_ms']:.1f}–{ours['max_ms']:.1f})"
        memory = f"{ours['extra_outputs']:.0f} / {published['extra_outputs']:.0f}"
        print(
            f"{r['size']:8} {r['law']:11} {r['temperature']:<5} {ours['median_ms']:6.1f} {spread:13} "
            f"{published['median_ms']:8.0f}  {r['ratio']:5.1f}  {memory}"
        )


def plot_ratios(result: dict[str, Any]) -> Any:
    """How many times faster than the published algorithm, for each law and temperature; one panel a size."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8.0, 3.4), sharey=True)
    for ax, size in zip(axes, SIZES, strict=True):
        for i, law in enumerate(LAWS):
            rows = [r for r in result["rows"] if r["size"] == size and r["law"] == law]
            look = method(law)
            xs = [i + 0.22 * (j - 1) for j in range(len(rows))]
            ax.bar(xs, [r["ratio"] for r in rows], width=0.2, color=look.color, alpha=0.85)
            for x, r in zip(xs, rows, strict=True):
                ax.annotate(
                    f"{r['ratio']:.0f}" if r["ratio"] >= 10 else f"{r['ratio']:.1f}", (x, r["ratio"]),
                    xytext=(0, 2), textcoords="offset points", ha="center", fontsize="x-small",
                )  # fmt: skip
                ax.annotate(
                    f"{r['temperature']:g}", (x, 1.05), ha="center", va="bottom", fontsize="x-small", color="white",
                    rotation=90,
                )  # fmt: skip
            ax.hlines(TARGETS[size, law], i - 0.12, i + 0.12, color="#bbbbbb", lw=2.5, zorder=3)
        ax.set_xticks(range(len(LAWS)), [method(law).label for law in LAWS])
        ax.set_yscale("log")
        ax.set_ylim(1, 700)
        ax.set_title(SIZES[size])
    axes[0].set_ylabel("times faster than published")
    return figure


def curve(result: dict[str, Any], name: str, law: str) -> dict[float, float]:
    """x -> median milliseconds of one growth curve.  Raises ``ValueError`` for an unknown curve or law."""
    found = {r["x"]: r["median_ms"] for r in result["rows"] if r["curve"] == name and r["law"] == law}
    if not found:
        raise ValueError(f"name and law must be among {tuple(CURVES)} and {LAWS}, got {name!r} and {law!r}")
    return found


def plot_growth(result: dict[str, Any]) -> Any:
    """Time per unit against the largest rate, the mean rate, the temperature and the number of units."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, 2, figsize=(8.0, 6.0), sharey=True)
    for ax, (name, label) in zip(panels.flat, CURVES.items(), strict=True):
        for law in LAWS:
            rows = [r for r in result["rows"] if r["curve"] == name and r["law"] == law]
            scale = [1e6 / r["units"] for r in rows]  # ns a unit
            y = [r["median_ms"] * s for r, s in zip(rows, scale, strict=True)]
            low = [(r["median_ms"] - r["min_ms"]) * s for r, s in zip(rows, scale, strict=True)]
            high = [(r["max_ms"] - r["median_ms"]) * s for r, s in zip(rows, scale, strict=True)]
            look = method(law)
            ax.errorbar(
                [r["x"] for r in rows], y, yerr=[low, high], color=look.color, marker=look.marker, ls=look.dash,
                label=look.label, capsize=2,
            )  # fmt: skip
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlabel(label)
    for ax in panels[:, 0]:
        ax.set_ylabel("nanoseconds a count")
    panels[0, 0].set_title("One fast unit costs nothing")
    panels[0, 0].legend(fontsize="small")
    return figure


def step_table(result: dict[str, Any]) -> None:
    """Print the training step of each method: median ms, (fastest–slowest), relative to exact gradients."""
    print("method                         ms (range)            x exact")
    for r in result["rows"]:
        spread = f"({r['min_ms']:.1f}–{r['max_ms']:.1f})"
        print(f"{r['method']:29} {r['median_ms']:7.1f} {spread:17} {r['over_exact']:6.2f}")
