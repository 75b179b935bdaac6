"""The paper's figures as numbers: right, the same after an interruption, with their provenance; and drawn."""

from __future__ import annotations

import json

import matplotlib
import numpy as np
import pytest
import torch
from conftest import ROOT

from hitchhiker import EATPoisson, fidelity, figures, moments, reproduce
from hitchhiker.testing import assert_same_law

matplotlib.use("Agg")
FIDELITY = ("figure-1", "figure-2", "figure-9", "figure-10")
STORED = sorted(p.stem for p in (ROOT / "data" / "results" / "figures").glob("*.json") if "." not in p.stem)


@pytest.fixture(scope="module")
def rows():
    return reproduce.fidelity_rows([2.0, 20.0], [0.1, 0.5], num_samples=4000, num_trials=12, seed=3)


# ------------------------------------------------------------------ numbers


@pytest.mark.parametrize("rate", [0.1, 2.0, 20.0, 300.0])
@pytest.mark.parametrize("n", [1, 7, 5000])
def test_distances_are_those_of_the_library(rate, n):
    z = np.sort(EATPoisson(rate, None, 0.2).rsample((n,)).double().numpy())
    found = reproduce.distances(z, rate)
    assert found[0] == pytest.approx(fidelity.wasserstein(z, rate), rel=1e-9, abs=1e-12)
    assert found[1] == pytest.approx(fidelity.wasserstein(z, rate, 2), rel=1e-9, abs=1e-9)


def test_algorithm_1_in_blocks_is_algorithm_1():
    z = reproduce.algorithm_1(20.0, 35, [0.02, 0.5], ["sigmoid", "cubic"], 30_000)
    for i, tau in enumerate((0.02, 0.5)):
        for kind in ("sigmoid", "cubic"):
            law = EATPoisson(rate=20.0, temperature=tau, indicator=kind, num_arrivals=35)
            assert_same_law(z[kind][i], law.rsample((30_000,)))


def exact(row):
    kind, tau = row["method"].removeprefix("eat-"), row["temperature"]
    if row["sampler"] == "paper":
        return tuple(
            f(kind, tau, row["rate"], row["num"])
            for f in (moments.truncated_mean_factor, moments.truncated_variance_factor)
        )
    return moments.mean_factor(kind, tau), moments.variance_factor(kind, tau)


def worst_z(rows, trials):
    """The largest |z| of a moment of EAT, on the scale of a normal one (Student's t with few trials has wide tails)."""
    from scipy import stats

    scores = [
        abs(row[q] - e) / row[f"{q}_se"]
        for row in rows
        if row["method"].startswith("eat-")
        for q, e in zip(("mean", "variance"), exact(row), strict=True)
    ]
    return float(stats.norm.isf(stats.t.sf(max(scores), trials - 1)))


def test_measured_moments_are_the_exact_ones(rows):
    assert worst_z(rows, 12) < 6


def test_power_a_percent_would_be_seen():
    found = reproduce.fidelity_rows([20.0], [0.5], num_samples=20_000, num_trials=20, samplers=["enough"])
    assert worst_z(found, 20) < 6
    assert worst_z([row | {"mean": 1.01 * row["mean"]} for row in found], 20) > 6


def test_rows_are_complete(rows):
    assert len(rows) == 2 * (2 * 6 + 1)
    assert {row["num"] for row in rows if row["method"] == "eat-cubic"} == {8, 35, None}
    floor = reproduce.select(rows, method="exact", rate=20.0)[0]
    assert abs(floor["w1"] - fidelity.sampling_floor(20.0, 4000)) < 8 * floor["w1_se"]
    assert reproduce.select(rows, rate=[2.0], sampler={"paper"}, method="gsm", temperature=0.5)[0]["mean"] > 1


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="num_samples and num_trials must be >= 2, got 1 and 4"):
        reproduce.fidelity_rows(num_samples=1, num_trials=4)
    with pytest.raises(ValueError, match="samplers must be among"):
        reproduce.fidelity_rows(samplers=["best"])
    with pytest.raises(ValueError, match="figure must be one of figure-1, figure-2"):
        reproduce.get("figure-99")
    with pytest.raises(ValueError, match="already"):
        reproduce.add_recipe(reproduce.get("figure-1"))


def test_global_noise_is_left_alone():
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    reproduce.fidelity_rows([2.0], [0.5], num_samples=10, num_trials=2)
    assert torch.rand(1) == before


# ------------------------------------------------------------------ runs


@pytest.fixture
def small(monkeypatch):
    """A small recipe that can be killed after a number of cells."""
    state = {"left": 10**9, "measured": []}

    def measure(cell, settings, seed):
        if state["left"] == 0:
            raise KeyboardInterrupt
        state["left"] -= 1
        state["measured"].append(cell["rate"])
        return reproduce.fidelity_rows([cell["rate"]], [0.5], 50, 2, seed)

    recipe = reproduce.Recipe(
        "figure-0",
        "a test",
        lambda s: [{"rate": r} for r in s["rates"]],
        measure,
        None,
        {"rates": [1.0, 2.0, 5.0]},
        {"rates": [1.0]},
    )
    monkeypatch.setitem(reproduce.RECIPES, "figure-0", recipe)
    return state


def test_a_killed_run_goes_on_to_the_same_numbers(small, tmp_path):
    whole = reproduce.run("figure-0", seed=4)
    small["measured"].clear()
    small["left"] = 2
    with pytest.raises(KeyboardInterrupt):
        reproduce.run("figure-0", seed=4, folder=tmp_path)
    assert not (tmp_path / "figure-0.json").exists()
    small["left"] = 10
    again = reproduce.run("figure-0", seed=4, folder=tmp_path)
    assert small["measured"] == [1.0, 2.0, 5.0]
    assert again["rows"] == whole["rows"]
    assert json.loads((tmp_path / "figure-0.json").read_text(encoding="utf-8")) == again
    assert not (tmp_path / "figure-0.part.json").exists()


def test_another_seed_or_size_does_not_go_on(small, tmp_path):
    small["left"] = 1
    with pytest.raises(KeyboardInterrupt):
        reproduce.run("figure-0", seed=4, folder=tmp_path)
    small["left"] = 10
    assert reproduce.run("figure-0", seed=5, folder=tmp_path)["rows"] != reproduce.run("figure-0", seed=4)["rows"]
    assert reproduce.run("figure-0", full=True, seed=4)["rows"] == reproduce.run("figure-0", seed=4)["rows"][:7]


def test_provenance_says_where_it_comes_from(small):
    made = reproduce.run("figure-0", full=True, seed=4)["provenance"]
    assert made["command"] == "hitchhiker reproduce figure-0 --full --seed 4"
    assert made["seed"] == 4
    assert set(made) == {"command", "date", "device", "seed", "seconds", "versions", "commit"}
    assert made["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize("name", STORED)
def test_stored_results_have_their_provenance(name):
    result = json.loads((ROOT / "data" / "results" / "figures" / f"{name}.json").read_text(encoding="utf-8"))
    made = result["provenance"]
    assert {"command", "date", "device", "seed", "versions"} <= set(made)
    assert made["command"].split()[:2] == ["hitchhiker", "reproduce"]
    assert made["command"].split()[2] == name
    assert result["rows"]


@pytest.mark.parametrize("name", ["figure-1", "figure-9"])
def test_stored_moments_are_the_exact_ones(name):
    result = reproduce.stored(name)
    assert "dirty" not in result["provenance"]["commit"], "made by code that no commit has"
    assert result["settings"]["num_samples"] == 50_000
    assert worst_z(result["rows"], result["settings"]["num_trials"]) < 6


def test_what_is_not_stored_says_how_to_make_it(small):
    with pytest.raises(FileNotFoundError, match="hitchhiker reproduce figure-0 --full"):
        reproduce.stored("figure-0")


# ------------------------------------------------------------------ the command


@pytest.fixture
def command():
    typer = pytest.importorskip("typer")
    from typer.testing import CliRunner

    app = typer.Typer()
    reproduce.register(app)
    app.command(name="other")(lambda: None)
    return lambda *words: CliRunner().invoke(app, ["reproduce", *words])


def test_the_command_makes_numbers_and_picture(command, tmp_path):
    done = command("figure-7", "--output", str(tmp_path))
    assert done.exit_code == 0, done.output
    assert (tmp_path / "figure-7.png").stat().st_size > 5000
    rows = json.loads((tmp_path / "figure-7.json").read_text(encoding="utf-8"))["rows"]
    hot = [row for row in rows if row["method"] == "eat-sigmoid" and abs(row["temperature"] - 1) < 0.01]
    assert abs(hot[0]["mean"] - 1.31) < 0.01


@pytest.mark.parametrize("words", [["figure-99"], ["figure-1", "--fully"], ["figure-1", "--seed", "-1"], []])
def test_a_bad_command_says_so(command, words):
    assert command(*words).exit_code == 2


# ------------------------------------------------------------------ drawings


@pytest.mark.parametrize("name", FIDELITY)
def test_fidelity_figures_are_drawn(rows, name):
    import matplotlib.pyplot as plt

    figure = getattr(figures, name.replace("-", "_"))(rows, title="A finding")
    shown = [ax for ax in figure.axes if ax.get_visible()]
    assert len(shown) == {"figure-2": 2}.get(name, 4)
    figure.canvas.draw()
    plt.close(figure)


@pytest.mark.parametrize("name", ["figure-5", "figure-6", "figure-7"])
def test_schematics_are_drawn(name):
    import matplotlib.pyplot as plt

    result = reproduce.run(name)
    figure = reproduce.get(name).draw(result)
    figure.canvas.draw()
    plt.close(figure)
    assert result["rows"]


def test_figure_5_has_the_papers_three_arrivals():
    times = [row["time"] for row in reproduce.run("figure-5")["rows"]]
    assert sum(t < 1 for t in times) == 3
    assert len(times) == 4


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="rows must not be empty"):
        figures.figure_1([])


def test_every_recipe_is_whole():
    for name, recipe in reproduce.RECIPES.items():
        assert recipe.name == name
        for settings in (recipe.quick, recipe.full):
            assert json.loads(json.dumps(settings)) == settings
            labels = [json.dumps(cell) for cell in recipe.cells(dict(settings))]
            assert len(labels) == len(set(labels))
        assert recipe.numbers_of is None or recipe.numbers_of in reproduce.RECIPES
        assert recipe.about
