"""Sweeps: finished groups are kept, failures do not spread, other settings are refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hitchhiker import sweep

ROOT = Path(__file__).resolve().parents[1]
GROUPS = {"one": {"x": 1}, "two": {"x": 2}, "three": {"x": 3}}


def square(settings, folder):
    """Leaves a trace in its folder, so that a test can count how often it ran."""
    with open(folder / "calls", "a") as stream:
        stream.write("x")
    if settings.get("fail"):
        raise ArithmeticError("planted")
    return [{"x": settings["x"], "square": settings["x"] ** 2}]


def calls(out, group):
    path = out / "work" / group / "calls"
    return len(path.read_text()) if path.exists() else 0


def run(out, groups=GROUPS, **options):
    return sweep.run(groups, square, out, name="table", command="make table", **options)


def test_rows_and_where_they_come_from(tmp_path):
    lines = []
    result = run(tmp_path / "new" / "sweep", seed=7, say=lines.append)
    assert [row["square"] for row in result["rows"]] == [1, 4, 9]
    assert [row["group"] for row in result["rows"]] == list(GROUPS)
    assert result["missing"] == []
    assert result["provenance"]["command"] == "make table"
    assert result["provenance"]["seed"] == 7
    assert {"date", "device", "seconds", "versions", "commit"} <= set(result["provenance"])
    assert json.loads((tmp_path / "new" / "sweep" / "table.json").read_text()) == result
    assert len(lines) == 3
    assert "3 of 3 groups done (three" in lines[-1]


def test_finished_groups_are_not_run_again(tmp_path):
    first = run(tmp_path, only=["two"])
    assert first["missing"] == ["one", "three"]
    second = run(tmp_path)
    assert second["rows"] == run(tmp_path)["rows"]
    assert [calls(tmp_path, group) for group in GROUPS] == [1, 1, 1]


@pytest.mark.parametrize("content", ["", "[]", '"soon"', "NaN"])
def test_damaged_files_of_a_sweep(tmp_path, content):
    clock = tmp_path / "work" / "one" / "seconds.json"
    clock.parent.mkdir(parents=True)
    clock.write_text(content)
    run(tmp_path)
    rows = tmp_path / "rows" / "one.json"
    assert 0 <= json.loads(rows.read_text())["seconds"] < 60
    rows.write_text(content)
    with pytest.raises(ValueError, match=r"one\.json (must hold|cannot be read)"):
        run(tmp_path)


def test_rows_come_in_the_order_of_the_groups_however_they_were_run(tmp_path):
    for group in ("three", "one", "two"):
        result = run(tmp_path, only=[group])
    assert [row["x"] for row in result["rows"]] == [1, 2, 3]


def test_a_failing_group_does_not_stop_the_others_and_is_tried_again(tmp_path):
    with pytest.raises(sweep.SweepFailed, match=r"1 of 3 groups failed.*two: ArithmeticError: planted") as failure:
        run(tmp_path, GROUPS | {"two": {"x": 2, "fail": True}})
    assert list(failure.value.errors) == ["two"]
    assert [row["x"] for row in json.loads((tmp_path / "table.json").read_text())["rows"]] == [1, 3]
    assert len(run(tmp_path)["rows"]) == 3
    assert [calls(tmp_path, group) for group in GROUPS] == [1, 2, 1]


def test_interrupt_stops_at_once_and_keeps_what_is_done(tmp_path):
    def stop(settings, folder):
        if settings["x"] == 2:
            raise KeyboardInterrupt
        return square(settings, folder)

    with pytest.raises(KeyboardInterrupt):
        sweep.run(GROUPS, stop, tmp_path, name="table", command="")
    assert [row["x"] for row in run(tmp_path)["rows"]] == [1, 2, 3]
    assert [calls(tmp_path, group) for group in GROUPS] == [1, 1, 1]


SLOW = """
import sys, time
sys.path.insert(0, {tests!r})
from test_sweep import GROUPS, square
from hitchhiker import sweep
def slow(settings, folder):
    rows = square(settings, folder)
    time.sleep(0 if settings["x"] == 1 else 60)
    return rows
sweep.run(GROUPS, slow, sys.argv[1], name="table", command="")
"""


def test_killed_without_warning_it_goes_on_after_the_last_finished_group(tmp_path):
    code = SLOW.format(tests=str(ROOT / "tests"))
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=os.environ | {"PYTHONPATH": str(ROOT)})
    limit = time.monotonic() + 60
    while not calls(tmp_path, "two") and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [row["x"] for row in run(tmp_path)["rows"]] == [1, 2, 3]
    assert [calls(tmp_path, group) for group in GROUPS] == [1, 2, 1]


def test_workers_give_the_same_rows(tmp_path):
    assert run(tmp_path / "a", workers=2)["rows"] == run(tmp_path / "b")["rows"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": ["four"]}, "only must name groups among one, two, three, got four"),
        ({"workers": 0}, "workers must be a whole number >= 1, got 0"),
        ({"groups": {"a/b": {}}}, r"groups must have names of letters.*got 'a/b'"),
        ({"groups": {"one": {"x": 5}}}, "the group one has other x"),
    ],
)
def test_bad_arguments(tmp_path, options, message):
    run(tmp_path, only=["one"])
    before = (tmp_path / "table.json").read_bytes()
    with pytest.raises(ValueError, match=message):
        run(tmp_path, **options)
    assert (tmp_path / "table.json").read_bytes() == before


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(ValueError, match="out must be a folder, got the file"):
        run(tmp_path / "notes")


def test_not_a_number_is_refused(tmp_path):
    with pytest.raises(sweep.SweepFailed, match="nan"):
        sweep.run({"a": {}}, lambda s, f: [{"x": float("nan")}], tmp_path, command="")
    assert not (tmp_path / "rows" / "a.json").exists()


def test_stored_results_are_found_by_path():
    assert sweep.stored("figures/figure-1")["figure"] == "figure-1"
    with pytest.raises(FileNotFoundError, match=r"no stored result pvae/nothing\.json"):
        sweep.stored("pvae/nothing")


def test_cluster(tmp_path):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster:
        assert len(run(tmp_path, cluster=cluster.scheduler_address)["rows"]) == 3
