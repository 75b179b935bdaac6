"""The paper's figures as numbers: measured again, stored with where they come from, drawn by :mod:`hitchhiker.figures`.

``hitchhiker reproduce figure-1`` measures at a size that fits a minute, ``--full`` at the paper's.  A run is a list
of independent cells, each with its own seed: killed at any moment and started again, it goes on after the last
finished cell and ends with the same numbers.  A new figure is one :class:`Recipe` in ``RECIPES``.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import math
import platform
import subprocess
import sys
import sysconfig
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

import hitchhiker
from hitchhiker import _files, indicators, moments, truncation
from hitchhiker._random import own_random_numbers
from hitchhiker.relaxations.arrival_time import EATPoisson
from hitchhiker.relaxations.gumbel_softmax import GSMPoisson

Rows = list[dict[str, Any]]
Result = dict[str, Any]

#: the temperatures of the paper's Figures 1, 2, 9 and 10, and rates over the range of the last two (it does not list them)
TEMPERATURES = (0.02, 0.05, 0.1, 0.2, 0.5)
RATES = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)


# --- measuring: moments and distances (Figures 1, 2, 9, 10)


def fidelity_rows(
    rates: Sequence[float] = (2.0, 20.0, 100.0),
    temperatures: Sequence[float] = TEMPERATURES,
    num_samples: int = 4000,
    num_trials: int = 8,
    seed: int = 0,
    samplers: Sequence[str] = ("paper", "enough"),
) -> Rows:
    """Mean, variance, W1 and W2 of each relaxed count beside the Poisson law, with their standard errors over trials.

    Parameters
    ----------
    rates, temperatures : the grid; λ ``> 0`` in counts per window, τ ``> 0``.
    num_samples, num_trials : samples a trial, and trials ``>= 2``; the paper's are 50,000 and 100.
    seed : of all noise.  Trials are independent; within one, temperatures and indicators share their arrivals.
    samplers : ``"paper"`` is Algorithms 1 and 2 with M from Eq. 79, ``"enough"`` the window sampler (M = ∞) and
        enough categories.

    Returns
    -------
    One row for each rate, temperature, method (``eat-sigmoid``, ``eat-cubic``, ``gsm``; and ``exact``, true Poisson
    draws, once a rate at temperature 0) and sampler.  ``mean`` and ``variance`` are divided by λ; ``w1`` and ``w2``
    are in counts, from the law itself; each has its ``…_se``.  ``num`` is M, or None for M = ∞.

    Raises
    ------
    ValueError
        for sizes that are too small or an unknown sampler.

    >>> row = fidelity_rows([2.0], [0.5], num_samples=1000, num_trials=2)[0]
    >>> row["method"], row["sampler"], row["num"]
    ('eat-sigmoid', 'paper', 8)

    Source: Figures 1, 2, 9 and 10.
    """
    if num_samples < 2 or num_trials < 2:
        raise ValueError(f"num_samples and num_trials must be >= 2, got {num_samples} and {num_trials}")
    if unknown := set(samplers) - {"paper", "enough"}:
        raise ValueError(f"samplers must be among 'paper' and 'enough', got {sorted(unknown)}")
    seen: dict[tuple, list[tuple[float, ...]]] = {}
    with own_random_numbers(seed), torch.no_grad():
        for rate in rates:
            for _ in range(num_trials):
                for key, z in _one_trial(rate, temperatures, num_samples, samplers):
                    seen.setdefault(key, []).append(_summary(z, rate))
    rows = []
    for (rate, temperature, method, sampler, num), values in seen.items():
        table = np.array(values)
        row = {"rate": rate, "temperature": temperature, "method": method, "sampler": sampler, "num": num}
        errors = table.std(axis=0, ddof=1) / math.sqrt(num_trials)
        for name, value, error in zip(("mean", "variance", "w1", "w2"), table.mean(axis=0), errors, strict=True):
            row |= {name: float(f"{value:.6g}"), f"{name}_se": float(f"{error:.3g}")}
        rows.append(row)
    return rows


def algorithm_1(
    rate: float, num_arrivals: int, temperatures: Sequence[float], kinds: Sequence[str], num_samples: int
) -> dict[str, Tensor]:
    """Algorithm 1 at several temperatures and indicators from the same arrivals, in blocks that stay in the cache.

    Returns ``{indicator: (temperatures, num_samples)}``, float32.

    >>> algorithm_1(2.0, 8, [0.1, 0.5], ["cubic"], 100)["cubic"].shape
    torch.Size([2, 100])
    """
    soft = {kind: indicators.get(kind) for kind in kinds}
    out = {kind: torch.empty(len(temperatures), num_samples) for kind in kinds}
    block = max(64, 200_000 // num_arrivals)
    for start in range(0, num_samples, block):
        size = min(block, num_samples - start)
        early = 1 - torch.empty(num_arrivals, size).exponential_(rate).cumsum(dim=0)
        for i, temperature in enumerate(temperatures):
            u = early / temperature
            for kind in kinds:
                out[kind][i, start : start + size] = soft[kind](u).sum(dim=0)
    return out


def _one_trial(rate: float, temperatures: Sequence[float], n: int, samplers: Sequence[str]) -> Iterable:
    kinds = ("sigmoid", "cubic")
    lam = torch.tensor(rate)
    if "paper" in samplers:
        m = truncation.paper_num_arrivals(rate)
        counts = algorithm_1(rate, m, temperatures, kinds, n)
        for i, tau in enumerate(temperatures):
            for kind in kinds:
                yield (rate, tau, f"eat-{kind}", "paper", m), counts[kind][i]
            yield (rate, tau, "gsm", "paper", m), GSMPoisson(lam, temperature=tau, num_categories=m).rsample((n,))
    if "enough" in samplers:
        for tau in temperatures:
            for kind in kinds:
                yield (rate, tau, f"eat-{kind}", "enough", None), EATPoisson(lam, None, tau, kind).rsample((n,))
            law = GSMPoisson(lam, temperature=tau)
            yield (rate, tau, "gsm", "enough", law.num_categories), law.rsample((n,))
    yield (rate, 0.0, "exact", "exact", None), torch.poisson(lam.expand(n))


def _summary(z: Tensor, rate: float) -> tuple[float, float, float, float]:
    values = np.sort(z.numpy())
    wide = values.astype(np.float64)
    return (wide.mean() / rate, wide.var(ddof=1) / rate, *distances(wide, rate))


def distances(ordered: np.ndarray, rate: float) -> tuple[float, float]:
    """W1 and W2 between an ordered sample and Poisson(λ), as :func:`hitchhiker.fidelity.wasserstein`, some ten times faster.

    Sample i has the quantiles from (i-1)/n to i/n, where the Poisson's is constant but for the few that hold a jump.

    >>> distances(np.array([0.0]), 3.0)[0]
    3.0
    """
    count, jumps = _quantiles(float(rate), ordered.size)
    apart = np.abs(ordered - count)
    w1, w2 = apart.sum() / ordered.size, np.square(apart).sum() / ordered.size
    index, level, weight = jumps
    apart = np.abs(ordered[index] - level)
    w1, w2 = w1 + (weight * apart).sum(), w2 + (weight * np.square(apart)).sum()
    return float(w1), math.sqrt(max(w2, 0.0))


@lru_cache(maxsize=4)
def _quantiles(rate: float, n: int) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The Poisson quantile just above i/n for every sample i; and corrections (i, count, weight) where one jumps."""
    reach = 40 * math.sqrt(rate + 1) + 40
    below = stats.poisson.cdf(np.arange(math.ceil(rate + reach)), rate)
    below[-1] = 1.0
    grid = np.arange(n + 1) / n
    low = np.searchsorted(below, grid[:-1], side="right")
    high = np.searchsorted(below, grid[1:], side="left")
    index: list[int] = []
    level: list[int] = []
    weight: list[float] = []
    for i in np.flatnonzero(high > low).tolist():
        edges = np.concatenate([[grid[i]], below[low[i] : high[i]], [grid[i + 1]]])
        inside = np.diff(edges)
        inside[0] -= 1 / n  # the main sum has counted all of sample i at the lower count
        index += [i] * inside.size
        level += range(low[i], high[i] + 1)
        weight += inside.tolist()
    return low.astype(float), (np.array(index, int), np.array(level, float), np.array(weight, float))


# --- recipes


@dataclass(frozen=True)
class Recipe:
    """How one figure is made.

    Parameters
    ----------
    name, about : ``figure-1``, and a line for the list of figures.
    numbers_of : another figure that shows the same numbers, whose run is this one's; None for its own.
    cells : settings -> the independent parts, each a JSON-able mapping.
    measure : ``(cell, settings, seed) -> rows``, a list of JSON-able mappings.
    draw : ``(result) -> matplotlib figure``, from :mod:`hitchhiker.figures`, or None.
    quick, full : settings that fit a minute on two cores, and the paper's.
    """

    name: str
    about: str
    cells: Callable[[dict], list[dict]]
    measure: Callable[[dict, dict, int], Rows]
    draw: Callable[[Result], Any] | None
    quick: dict[str, Any]
    full: dict[str, Any]
    numbers_of: str | None = None


RECIPES: dict[str, Recipe] = {}


def add_recipe(recipe: Recipe) -> Recipe:
    """Make a figure known to ``hitchhiker reproduce``; a second one of the same name is a ``ValueError``."""
    if recipe.name in RECIPES:
        raise ValueError(f"there is a recipe {recipe.name!r} already")
    RECIPES[recipe.name] = recipe
    return recipe


def _by_rate(settings: dict) -> list[dict]:
    return [{"rate": rate} for rate in settings["rates"]]


def _fidelity(cell: dict, settings: dict, seed: int) -> Rows:
    options = {k: settings[k] for k in ("temperatures", "num_samples", "num_trials")}
    return fidelity_rows([cell["rate"]], seed=seed, **options)


def _drawn(name: str) -> Callable[[Result], Any]:
    def draw(result: Result) -> Any:
        from hitchhiker import figures  # matplotlib is an extra

        return getattr(figures, name)(result["rows"])

    return draw


_GRID = {"temperatures": list(TEMPERATURES)}
_QUICK = _GRID | {"num_samples": 4000, "num_trials": 8}
_FULL = _GRID | {"num_samples": 50_000, "num_trials": 100}
for _name, _about, _rates, _same in (
    ("figure-1", "moments against temperature at three rates", [2.0, 20.0, 100.0], None),
    ("figure-2", "Wasserstein-1 distance against temperature at three rates", [2.0, 20.0, 100.0], "figure-1"),
    ("figure-9", "moments against temperature at nine rates", list(RATES), None),
    ("figure-10", "Wasserstein distances against temperature at nine rates", list(RATES), "figure-9"),
):
    add_recipe(
        Recipe(
            _name,
            _about,
            _by_rate,
            _fidelity,
            _drawn(_name.replace("-", "_")),
            quick=_QUICK | {"rates": _rates},
            full=_FULL | {"rates": _rates},
            numbers_of=_same,
        )
    )


def _whole(settings: dict) -> list[dict]:
    return [{}]


def _one_draw(cell: dict, settings: dict, seed: int) -> Rows:
    """Waits and arrival times of one window: the first draw that has the paper's number of arrivals."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        waits = torch.empty(settings["arrivals"] + 1).exponential_(settings["rate"], generator=generator)
        times = waits.cumsum(0)
        if times[-2] < 1 <= times[-1]:
            return [
                {"arrival": m, "wait": round(w, 4), "time": round(t, 4)}
                for m, (w, t) in enumerate(zip(waits.tolist(), times.tolist(), strict=True), start=1)
            ]


def _indicator_table(cell: dict, settings: dict, seed: int) -> Rows:
    u = torch.linspace(-settings["reach"], settings["reach"], settings["points"], dtype=torch.float64)
    curves = {kind: indicators.get(kind)(u) for kind in ("sigmoid", "cubic")}
    return [
        {"u": round(float(x), 6)} | {k: float(f"{float(f[i]):.6g}") for k, f in curves.items()} for i, x in enumerate(u)
    ]


def _factor_table(cell: dict, settings: dict, seed: int) -> Rows:
    rows: Rows = []
    for kind in ("sigmoid", "cubic"):
        for tau in np.linspace(settings["coldest"], settings["hottest"], settings["points"]).tolist():
            c, v = moments.mean_factor(kind, tau), moments.variance_factor(kind, tau)
            factors = {"mean": c, "variance": v, "fano": v / c}
            rows.append(
                {"method": f"eat-{kind}", "temperature": round(tau, 6)} | {k: round(x, 8) for k, x in factors.items()}
            )
    return rows


for _name, _about, _measure, _settings in (
    ("figure-5", "one draw of the arrival clock", _one_draw, {"rate": 3.0, "arrivals": 3}),
    ("figure-6", "soft indicators", _indicator_table, {"reach": 4.0, "points": 161}),
    ("figure-7", "mean, variance and Fano factors", _factor_table, {"coldest": 0.01, "hottest": 2.0, "points": 120}),
):
    add_recipe(
        Recipe(_name, _about, _whole, _measure, _drawn(_name.replace("-", "_")), quick=_settings, full=_settings)
    )


# --- running and storing


def run(
    name: str,
    full: bool = False,
    seed: int = 0,
    folder: str | Path | None = None,
    say: Callable[[str], None] | None = None,
) -> Result:
    """Measure a figure again; with ``folder``, store it there as ``name.json`` and go on where a killed run stopped.

    Parameters
    ----------
    name : of a recipe, ``figure-1``; where two figures show the same numbers, the file has the first one's name.
    full : the paper's size instead of the quick one.
    seed : of all noise; each cell has its own stream, so that its numbers depend neither on interruptions nor on
        which other cells there are.
    folder : where ``name.json`` and, until it is finished, ``name.part.json`` lie; None keeps nothing.
    say : called with a line after each cell.

    Returns
    -------
    ``{"figure", "settings", "provenance", "rows"}``, JSON-able.

    Raises
    ------
    ValueError
        for an unknown figure.
    """
    recipe = get(get(name).numbers_of or name)
    name = recipe.name
    settings = dict(recipe.full if full else recipe.quick)
    part = None if folder is None else Path(folder) / f"{name}.part.json"
    done: dict[str, Rows] = {}
    spent = 0.0
    key = {"figure": name, "settings": settings, "seed": seed}
    if part is not None:
        part.parent.mkdir(parents=True, exist_ok=True)
        before = json.loads(part.read_text(encoding="utf-8")) if part.exists() else {}
        if before.get("key") == key:
            done, spent = before["done"], before["seconds"]
    cells = recipe.cells(settings)
    for cell in cells:
        label = ", ".join(f"{k} {v}" for k, v in cell.items())
        if label in done:
            continue
        start = time.monotonic()
        cell_seed = int(np.random.SeedSequence([seed, zlib.crc32(label.encode())]).generate_state(1)[0])
        done[label] = recipe.measure(cell, settings, cell_seed)
        spent += time.monotonic() - start
        if part is not None:
            _files.write_json(part, {"key": key, "done": done, "seconds": spent})
        if say is not None:
            say(f"{name}: {len(done)} of {len(cells)} done ({label}), {spent:.0f} s so far")
    command = f"hitchhiker reproduce {name}" + (" --full" if full else "") + (f" --seed {seed}" if seed else "")
    rows = [row for cell_rows in done.values() for row in cell_rows]
    result = {
        "figure": name, "settings": settings, "provenance": provenance(command, seed, spent), "rows": rows,
    }  # fmt: skip
    if part is not None:
        _write_result(part.with_name(f"{name}.json"), result)
        part.unlink(missing_ok=True)
    return result


def get(name: str) -> Recipe:
    """The recipe of a figure; ``ValueError`` with the known names otherwise."""
    if name not in RECIPES:
        known = ", ".join(sorted(RECIPES, key=lambda n: int(n.rpartition("-")[2]) if n[-1].isdigit() else 99))
        raise ValueError(f"figure must be one of {known}, got {name!r}")
    return RECIPES[name]


def provenance(command: str, seed: int, seconds: float, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Where a result comes from: command, date, device, seed, versions, commit and time."""
    return {
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": torch.cuda.get_device_name(device)
        if torch.device(device).type == "cuda"
        else f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)",
        "seed": seed,
        "seconds": round(seconds, 1),
        "versions": {"python": platform.python_version(), "hitchhiker": hitchhiker.__version__}
        | {name: _version(name) for name in ("torch", "numpy", "scipy", "numba")},
        "commit": _commit(),
    }


def stored(name: str) -> Result:
    """A result that came with the package: of ``data/results/figures`` in a copy of the repository, or of the installation.

    >>> stored("figure-1")["provenance"]["command"]
    'hitchhiker reproduce figure-1 --full'

    Raises ``FileNotFoundError`` that says how to make it.
    """
    try:
        path = locate(f"figures/{get(name).numbers_of or name}.json")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}: make it with `hitchhiker reproduce {name} --full --output FOLDER`"
        ) from error
    return json.loads(path.read_text(encoding="utf-8"))


def locate(file: str) -> Path:
    """Where a file of ``data/results`` is: in this copy of the repository, or in the installation.

    >>> locate("figures/figure-1.json").name
    'figure-1.json'

    Raises ``FileNotFoundError`` naming the file.
    """
    package = Path(__file__).resolve().parent
    installed = Path("share", "hitchhiker", "results", file)
    places = [
        package.parent / "data" / "results" / file, package.parent / installed,
        Path(sysconfig.get_path("data")) / installed,
    ]  # fmt: skip
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        listed = importlib.metadata.files("hitchhiker") or []
        places += [Path(str(path.locate())) for path in listed if path.as_posix().endswith(f"results/{file}")]
    for place in places:
        if place.exists():
            return place
    raise FileNotFoundError(f"no stored result {file}")


def select(rows: Rows, **wanted: Any) -> Rows:
    """The rows in which every named column has the given value (or one of the given list, tuple or set).

    >>> select([{"rate": 2.0, "method": "gsm"}, {"rate": 20.0, "method": "gsm"}], rate=2.0)
    [{'rate': 2.0, 'method': 'gsm'}]
    """

    def fits(row: dict) -> bool:
        return all(row[k] in v if isinstance(v, (list, tuple, set)) else row[k] == v for k, v in wanted.items())

    return [row for row in rows if fits(row)]


def _write_result(path: Path, result: Result) -> None:
    """One row a line: small, and a change can be read in a diff."""
    head = {k: v for k, v in result.items() if k != "rows"}
    lines = ",\n".join("  " + json.dumps(row, ensure_ascii=False, allow_nan=False) for row in result["rows"])
    text = json.dumps(head, indent=1, ensure_ascii=False)[:-2] + f',\n "rows": [\n{lines}\n ]\n}}\n'
    _files.write_atomically(path, text)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


# --- the command


def register(app: Any) -> None:
    """Add the command ``reproduce`` to a typer application."""
    import typer

    def known(name: str) -> str:
        try:
            return get(name).name
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error

    @app.command()
    def reproduce(
        figure: str = typer.Argument(..., callback=known, help="one of " + ", ".join(RECIPES)),
        full: bool = typer.Option(False, "--full", help="the paper's size: minutes to an hour"),
        seed: int = typer.Option(0, min=0, help="of all random numbers"),
        output: Path = typer.Option("runs/figures", file_okay=False, help="where the numbers and the picture go"),  # noqa: B008
    ) -> None:
        """Make a figure of the paper again: FIGURE.json with its numbers, FIGURE.png."""
        result = run(figure, full, seed, output, say=lambda line: print(line, file=sys.stderr, flush=True))
        recipe = get(figure)
        made = [output / f"{result['figure']}.json"]
        if recipe.draw is not None:
            from matplotlib.figure import Figure

            from hitchhiker import plotting

            plotting.use_style()
            drawn = recipe.draw(result)
            assert isinstance(drawn, Figure)
            made.append(output / f"{figure}.png")
            drawn.savefig(made[-1])
        print(f"{recipe.about}: " + " and ".join(str(path) for path in made))


__all__ = [
    "RATES", "RECIPES", "TEMPERATURES", "Recipe", "add_recipe", "algorithm_1", "distances", "fidelity_rows", "get",
    "provenance", "register", "run", "select", "stored",
]  # fmt: skip

# Figures 3, 8, 11 and 12 and the dispersed counts add their recipes here, last, for they need what stands above.
from hitchhiker import dispersion_figures as _dispersion_figures  # noqa: E402, F401
from hitchhiker import gradient_figures as _gradient_figures  # noqa: E402, F401
from hitchhiker import temperature_figures as _temperature_figures  # noqa: E402, F401
