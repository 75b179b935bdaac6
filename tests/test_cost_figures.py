import pytest

from hitchhiker import cost_figures, sweep


@pytest.fixture(scope="module")
def samplers():
    return sweep.stored("bench/samplers")


def test_every_size_law_and_temperature_was_measured(samplers):
    seen = {(r["size"], r["law"], r["temperature"]) for r in samplers["rows"]}
    assert seen == {(s, law, t) for s in cost_figures.SIZES for law in cost_figures.LAWS for t in (0.02, 0.1, 0.5)}


def test_memory_does_not_grow_with_the_number_of_arrivals(samplers):
    for r in samplers["rows"]:
        assert r["ours"]["extra_outputs"] <= 4 < 30 < r["published"]["extra_outputs"]


def test_tables_say_what_is_stored(samplers, capsys):
    cost_figures.sampler_table(samplers)
    cost_figures.step_table(sweep.stored("bench/training_step"))
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 + len(samplers["rows"]) + len(sweep.stored("bench/training_step")["rows"])
    assert max(map(len, printed)) <= 76
    assert f"{samplers['rows'][0]['ratio']:.1f}" in printed[1]


def test_origin_names_command_machine_and_seed(samplers):
    text = cost_figures.origin(samplers)
    assert all(part in text for part in ("benchmarks/samplers.py", "1 thread,", "seed 0"))


def test_curves():
    growth = sweep.stored("bench/growth")
    assert list(cost_figures.curve(growth, "largest rate", "gsm")) == [10.0, 30.0, 100.0, 300.0, 1000.0]
    with pytest.raises(ValueError, match="got 'width' and 'gsm'"):
        cost_figures.curve(growth, "width", "gsm")


def test_figures_show_every_measurement(samplers):
    figure = cost_figures.plot_ratios(samplers)
    assert sum(len(ax.patches) for ax in figure.axes) == len(samplers["rows"])
    growth = cost_figures.plot_growth(sweep.stored("bench/growth"))
    assert [ax.get_xscale() for ax in growth.axes] == ["log"] * 4
