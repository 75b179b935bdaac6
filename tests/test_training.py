import csv
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensorMode

from hitchhiker import _files, checks, training
from hitchhiker.models import PoissonVAE, get_method, known_methods
from hitchhiker.training import CHECKPOINT, METRICS, WEIGHTS, Settings, fit

ROOT = Path(__file__).resolve().parents[1]


def data(count=120, pixels=9):
    mixing = torch.randn(3, pixels, generator=torch.Generator().manual_seed(0))
    return torch.poisson(torch.ones(count, 3), generator=torch.Generator().manual_seed(1)) @ mixing


def small(seed=0, **options):
    return PoissonVAE(9, 4, seed, **{"prior_log_rates": (-2.0, -1.0), "init_scale": 0.2, **options})


OPTIONS = {"epochs": 3, "batch_size": 20, "lr": 0.02, "seed": 5}


def rows(folder):
    """metrics.csv without the column of times."""
    with open(folder / METRICS, newline="") as stream:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(stream)]


class Stop(Exception):
    pass


def stop_after(step, action=None):
    """Make the run stop dead before this step, as a kill would; returns the patched method."""
    original = training._Run._step

    def step_(self, x):
        if self.state.step == step:
            if action is not None:
                return action(self, x, original)
            raise Stop
        return original(self, x)

    return step_


# --- learning
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["exact", "eat-cubic", "score", "difference", "moment-matched"])
def test_loss_goes_down(method):
    x = data(400)
    run = fit(small(), x, x, method=method, epochs=15, batch_size=40, lr=0.1, temperature=0.2)
    losses = run.column("val_neg_elbo")
    assert losses[-1] < 0.8 * losses[0]
    assert run.steps == 15 * 10


def test_schedules():
    settings = Settings(epochs=10, temperature=(0.1, 0.5), anneal=True, anneal_kl=True, warmup_epochs=1)
    schedule = training.Schedule(settings, total=100, warmup=10)
    assert schedule.lr(0) == pytest.approx(0.0005)
    assert schedule.lr(9) == schedule.lr(10) == settings.lr
    assert schedule.lr(55) == pytest.approx((settings.lr + settings.lr_min) / 2)
    assert schedule.lr(100) == pytest.approx(settings.lr_min)
    assert schedule.temperature(0) == (1, 1)
    assert schedule.temperature(25) == pytest.approx((0.55, 0.75))
    assert schedule.temperature(50) == schedule.temperature(99) == (0.1, 0.5)
    assert schedule.beta(0) == pytest.approx(1e-4)
    assert schedule.beta(50) == pytest.approx(1)
    assert schedule.beta(99) == 1
    assert Settings(temperature=0.3).temperature == 0.3


def test_gradients_are_clipped_model_by_model():
    x = data()
    free, clipped = small([1, 1], population=2), small([1, 1], population=2)
    with torch.no_grad():
        for model in (free, clipped):
            model.decoder.weight[0] *= 20  # the first model's gradient is large, the second's is not
    a = fit(free, x, method="exact", epochs=1, batch_size=120, clip=1e9)
    fit(clipped, x, method="exact", epochs=1, batch_size=120, clip=a.column("grad_norm", 1)[0] * 1.01)
    assert a.column("grad_norm", 0)[0] > 5 * a.column("grad_norm", 1)[0]
    # Adamax ignores a constant factor, so compare what it remembers of the gradient instead of the weights
    run = training._Run(clipped, x, None, Settings(method="exact", clip=2.0, batch_size=120), None, None, 30)
    run._step(torch.arange(120))
    moments = [run.optimizer.state[p]["exp_avg"] / 0.1 for p in clipped.parameters()]
    norms = sum(m.square().flatten(1).sum(1) for m in moments).sqrt()
    torch.testing.assert_close(norms, torch.tensor([2.0, 2.0]), atol=1e-4, rtol=1e-4)


def test_population_trains_each_model_as_alone():
    x = data()
    many = small([3, 8], population=2)
    together = fit(many, x, x[:50], method="exact", **OPTIONS)
    for p, seed in enumerate((3, 8)):
        alone = small(seed)
        single = fit(alone, x, x[:50], method="exact", **OPTIONS)
        torch.testing.assert_close(many.decoder.weight[p], alone.decoder.weight)
        assert together.column("val_neg_elbo", p) == pytest.approx(single.column("val_neg_elbo"), rel=1e-5)


def test_methods_of_a_population_may_differ(tmp_path):
    """The exact models train as alone; all of them resume bit for bit."""
    x = data()
    options = {**OPTIONS, "method": ("exact", "exact", "eat-cubic", "score"), "temperature": (0.0, 0.0, 0.5, 0.0)}

    def four():
        return small([1, 2, 3, 4], population=4)

    many = four()
    fit(many, x, x[:50], out=tmp_path / "unbroken", **options)
    for p, seed in enumerate((1, 2)):
        alone = small(seed)
        fit(alone, x, method="exact", **OPTIONS)
        torch.testing.assert_close(many.decoder.weight[p], alone.decoder.weight)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training._Run, "_step", stop_after(7))
        with pytest.raises(Stop):
            fit(four(), x, x[:50], out=tmp_path / "broken", checkpoint_seconds=0, **options)
    fit(four(), x, x[:50], out=tmp_path / "broken", resume=True, **options)
    assert rows(tmp_path / "broken") == rows(tmp_path / "unbroken")


def test_callers_random_numbers_are_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    fit(small(), data(), method="eat-cubic", **OPTIONS)
    assert (torch.rand(2) == expected).all()


def test_same_seed_same_numbers_other_seed_others():
    models = [small() for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        fit(model, data(), method="eat-cubic", **{**OPTIONS, "seed": seed})
    assert (models[0].decoder.weight == models[1].decoder.weight).all()
    assert not (models[0].decoder.weight == models[2].decoder.weight).all()


# --- what is kept
# ----------------------------------------------------------------------------------------------


def test_files_of_a_run(tmp_path):
    model, x = small(), data()
    run = fit(model, x, x[:50], out=tmp_path / "run", provenance={"name": "test"}, **OPTIONS)
    folder = tmp_path / "run"
    assert sorted(p.name for p in folder.iterdir()) == sorted([CHECKPOINT, METRICS, WEIGHTS, "config.json"])
    config = json.loads((folder / "config.json").read_text())
    assert config["data"] == {"name": "test"}
    assert config["training"]["method"] == "eat-cubic"
    assert config["versions"]["torch"] == torch.__version__
    assert [int(row["epoch"]) for row in rows(folder)] == [1, 2, 3]
    assert float(rows(folder)[-1]["val_neg_elbo"]) == run.column("val_neg_elbo")[-1]
    loaded = training.load_model(folder)
    assert (loaded.rates(x) == model.rates(x)).all()


def test_your_own_modules_are_read_back(tmp_path):
    def decoder():
        return torch.nn.Sequential(torch.nn.Linear(4, 9), torch.nn.Tanh())

    x, model = data(), PoissonVAE(9, 4, decoder=decoder())
    fit(model, x, out=tmp_path, **OPTIONS)
    loaded = training.load_model(tmp_path, decoder=decoder())
    z = torch.rand(5, 4)
    assert (loaded.decode(z) == model.decode(z)).all()
    with pytest.raises(ValueError, match="decoder must be given, a Sequential of the run's structure, got None"):
        training.load_model(tmp_path)
    with pytest.raises(ValueError, match="encoder must be None for a run with the encoder 'linear'"):
        training.load_model(tmp_path, decoder=decoder(), encoder=torch.nn.Linear(9, 4))
    with pytest.raises(ValueError, match="do not fit the model"):
        training.load_model(tmp_path, decoder=torch.nn.Linear(4, 9))


def test_tensorboard_shows_the_rows_of_the_metrics(tmp_path, monkeypatch):
    seen, opened = {}, []

    class Writer:
        def __init__(self, folder, purge_step):
            opened.append((Path(folder).name, purge_step))

        def add_scalar(self, tag, value, step):
            seen[tag, step] = value

        def close(self):
            opened.append("closed")

    monkeypatch.setattr(training, "_summary_writer", lambda: Writer)
    x = data()
    run = fit(small([1, 2], population=2), x, x[:50], out=tmp_path, tensorboard=True, **OPTIONS)
    assert opened == [("tensorboard", 1), "closed"]
    for p in range(2):
        for step, value in zip(run.column("step", p), run.column("val_neg_elbo", p), strict=True):
            assert seen[f"val_neg_elbo/model {p}", step] == value
    with pytest.raises(ValueError, match="tensorboard must be False when out is None"):
        fit(small(), x, tensorboard=True, **OPTIONS)


def test_tensorboard_itself(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = fit(small(), data(), data(), out=tmp_path, tensorboard=True, **OPTIONS)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = [event.value for event in events.Scalars("val_neg_elbo")]
    assert shown == pytest.approx(run.column("val_neg_elbo"), rel=1e-6)


@pytest.mark.parametrize("method", ["eat-cubic", "gsm", "score"])
@pytest.mark.parametrize("step", [1, 8, 12])
def test_stopped_at_a_step_and_resumed_is_bit_for_bit_the_unbroken_run(tmp_path, monkeypatch, method, step):
    x = data()
    fit(small(), x, x[:50], out=tmp_path / "unbroken", method=method, checkpoint_seconds=0, **OPTIONS)
    with monkeypatch.context() as patch:
        patch.setattr(training._Run, "_step", stop_after(step))
        with pytest.raises(Stop):
            fit(small(), x, x[:50], out=tmp_path / "broken", method=method, checkpoint_seconds=0, **OPTIONS)
    torch.manual_seed(99)
    model = small()
    fit(model, x, x[:50], out=tmp_path / "broken", method=method, resume=True, **OPTIONS)
    ours, theirs = (load_file(tmp_path / name / WEIGHTS) for name in ("broken", "unbroken"))
    assert all((ours[key] == theirs[key]).all() for key in theirs)
    assert rows(tmp_path / "broken") == rows(tmp_path / "unbroken")


KILLED = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from test_training import data, small
from hitchhiker.training import fit
x = data()
fit(small(), x, x[:50], out=sys.argv[1], resume=sys.argv[2] == "resume", method="eat-cubic",
    epochs={epochs}, batch_size=20, lr=0.02, seed=5, checkpoint_seconds=0)
"""


def test_killed_without_warning_and_resumed_is_bit_for_bit_the_unbroken_run(tmp_path):
    """SIGKILL at no chosen moment, twice."""
    epochs = 40
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    code = KILLED.format(tests=str(ROOT / "tests"), epochs=epochs)

    def start(mode):
        command = [sys.executable, "-c", code, str(tmp_path / "killed"), mode]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    def step():
        checkpoint = tmp_path / "killed" / CHECKPOINT
        return checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0

    process = start("new")
    seen, limit = set(), time.monotonic() + 120
    while len(seen) < 8 and process.poll() is None and time.monotonic() < limit:
        seen.add(step())
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / WEIGHTS).exists()
    x = data()
    for _ in range(2):
        fit(
            small(), x, x[:50], out=tmp_path / "killed", resume=True, method="eat-cubic",
            epochs=epochs, batch_size=20, lr=0.02, seed=5, checkpoint_seconds=60,
        )  # fmt: skip
    fit(
        small(), x, x[:50], out=tmp_path / "unbroken", method="eat-cubic",
        epochs=epochs, batch_size=20, lr=0.02, seed=5, checkpoint_seconds=60,
    )  # fmt: skip
    ours, theirs = (load_file(tmp_path / name / WEIGHTS) for name in ("killed", "unbroken"))
    assert all((ours[key] == theirs[key]).all() for key in theirs)
    assert rows(tmp_path / "killed") == rows(tmp_path / "unbroken")


def test_interrupt_finishes_the_step_and_keeps_a_whole_checkpoint(tmp_path, monkeypatch):
    def interrupt(self, x, original):
        os.kill(os.getpid(), signal.SIGINT)
        return original(self, x)

    x = data()
    with monkeypatch.context() as patch:
        patch.setattr(training._Run, "_step", stop_after(7, interrupt))
        with pytest.raises(KeyboardInterrupt, match="stopped at step 8 of 18"):
            fit(small(), x, x[:50], out=tmp_path / "broken", checkpoint_seconds=1e9, **OPTIONS)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    run = fit(small(), x, x[:50], out=tmp_path / "broken", resume=True, **OPTIONS)
    fit(small(), x, x[:50], out=tmp_path / "unbroken", **OPTIONS)
    assert run.steps == 18
    assert rows(tmp_path / "broken") == rows(tmp_path / "unbroken")


def test_trains_in_another_thread_too():
    result = []
    thread = threading.Thread(target=lambda: result.append(fit(small(), data(), **OPTIONS)))
    thread.start()
    thread.join()
    assert result[0].steps == 18


def test_full_disk_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch):
    x, folder, writes = data(), tmp_path / "run", []

    def full(handle):
        writes.append(handle)
        if len(writes) > 12:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(_files.os, "fsync", full)
        with pytest.raises(
            training.CheckpointError, match=r"No space left.*checkpoint .* is whole \(step \d+\)"
        ) as error:
            fit(small(), x, x[:50], out=folder, checkpoint_seconds=0, **OPTIONS)
    assert error.value.errno == errno.ENOSPC
    assert not list(folder.glob(".*")), "no half-written file is left"
    fit(small(), x, x[:50], out=folder, resume=True, **OPTIONS)
    fit(small(), x, x[:50], out=tmp_path / "unbroken", **OPTIONS)
    assert rows(folder) == rows(tmp_path / "unbroken")


def test_divergence_names_step_parameter_and_checkpoint(tmp_path):
    x = data()
    model = small()

    def poison(self, batch, original):
        with torch.no_grad():
            self.model.encoder.weight[0, 0] = torch.nan
        return original(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training._Run, "_step", stop_after(4, poison))
        with pytest.raises(training.TrainingDiverged, match=r"step 4: encoder\.weight .*checkpoint\.safet") as error:
            fit(model, x, out=tmp_path, method="exact", checkpoint_seconds=0, **OPTIONS)
    assert (error.value.step, error.value.parameter, error.value.model) == (4, "encoder.weight", 0)
    stored = load_file(tmp_path / CHECKPOINT)
    assert all(torch.isfinite(t).all() for t in stored.values() if t.is_floating_point())


def test_divergence_names_the_model_of_a_population():
    many = small([1, 2, 3], population=3)
    with torch.no_grad():
        many.decoder.weight[2] = torch.inf
    with pytest.raises(training.TrainingDiverged, match=r"decoder\.weight of model 2"):
        fit(many, data(), method="exact", **OPTIONS)


# --- errors before any work
# ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "eat-qubic"}, "method must be one of .* got 'eat-qubic'"),
        ({"temperature": -0.1}, "temperature must be >= 0, got -0.1"),
        ({"temperature": float("nan")}, "temperature must be >= 0, got nan"),
        ({"temperature": 0.0}, "temperature must be > 0 for method 'eat-cubic'"),
        ({"temperature": 1.5, "method": "moment-matched"}, "temperature must be <= 1.0 for method 'moment-matched'"),
        ({"method": ("exact", "eat-cubic")}, "method must be one name or one for each of a population's None models"),
        ({"method": ("exact", "gsm"), "temperature": (0.1,)}, "temperature must have one entry for each of 2 methods"),
        ({"method": ("exact", "gsm"), "temperature": (0.1, 0.0)}, "temperature must be > 0 for method 'gsm'"),
        ({"temperature": (0.1, 0.2)}, "temperature must be one number or one for each of 1 models, got 2"),
        ({"epochs": 0}, "epochs must be a whole number >= 1, got 0"),
        ({"epochs": 1.5}, "epochs must be a whole number >= 1, got 1.5"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"num_samples": 0}, "num_samples must be"),
        ({"lr": 0.0}, "lr must be > 0 and finite, got 0.0"),
        ({"lr_min": -1.0}, "lr_min must be >= 0"),
        ({"clip": float("inf")}, "clip must be > 0 and finite, got inf"),
        ({"beta": -1.0}, "beta must be >= 0"),
        ({"warmup_epochs": 30.0}, r"warmup_epochs must be in \[0, epochs\), got 30"),
        ({"learning_rate": 0.1}, r"options must be among .*'lr'.* got \['learning_rate'\]"),
        ({"resume": True}, "resume must be False when out is None"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        fit(small(), data(), **options)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model": {}}', '{"model"'])
def test_a_damaged_configuration_is_named(tmp_path, content):
    fit(small(), data(), out=tmp_path, **OPTIONS)
    (tmp_path / training.CONFIG).write_text(content)
    with pytest.raises(ValueError, match=r"config\.json (must hold|cannot be read)"):
        fit(small(), data(), out=tmp_path, resume=True, **OPTIONS)
    with pytest.raises(ValueError, match=r"config\.json (must hold|cannot be read)"):
        training.read_config(tmp_path)


def test_a_foreign_checkpoint_is_named(tmp_path):
    fit(small(), data(), out=tmp_path, **OPTIONS)
    checkpoint, weights = (tmp_path / name for name in (CHECKPOINT, WEIGHTS))
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(weights.read_bytes())
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors must hold step"):
        fit(small(), data(), out=tmp_path, resume=True, **OPTIONS)
    weights.write_bytes(whole)
    with pytest.raises(ValueError, match=r"model\.safetensors must hold model"):
        training.load_model(tmp_path)


def test_what_a_killed_write_left_is_no_run(tmp_path):
    (tmp_path / ".config.json.abcd1234.tmp").write_text("{")
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(ValueError, match="must be a new or empty folder"):
        fit(small(), data(), out=tmp_path, **OPTIONS)
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / "notes").unlink()
    fit(small(), data(), out=tmp_path, **OPTIONS)
    assert not list(tmp_path.glob(".*"))


def test_precision_of_the_data(tmp_path):
    model, other = small(), small()
    fit(model, data().double(), data().double(), out=tmp_path / "double", **OPTIONS)
    fit(other, data(), data(), out=tmp_path / "float", **OPTIONS)
    assert torch.equal(model.phi, other.phi)
    for wrong, kind in ((data().to(torch.uint8), "torch.uint8"), (data().numpy(), "ndarray")):
        with pytest.raises(ValueError, match=f"train must be a tensor of floating point numbers, got {kind}"):
            training._check_data(model, wrong, None, Settings())


def test_a_large_seed_trains(tmp_path):
    fit(small(2**62), data(), out=tmp_path, **{**OPTIONS, "seed": 2**63 - 1})
    with pytest.raises(ValueError, match=r"seed must be below 2\^63"):
        Settings(seed=2**63)


def test_bad_data():
    with pytest.raises(ValueError, match=r"train must be \(N, 9\) with N >= 1, got shape \(3, 8\)"):
        fit(small(), torch.zeros(3, 8))
    with pytest.raises(ValueError, match="validation must be finite"):
        fit(small(), data(), torch.full((2, 9), torch.nan))
    with pytest.raises(ValueError, match="'exact' needs a linear decoder"):
        fit(small(decoder="mlp"), data(), method="exact")


def test_a_folder_in_use_is_refused_and_untouched(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="out must be a new or empty folder unless resuming"):
        fit(small(), data(), out=tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match=r"without config\.json"):
        fit(small(), data(), out=tmp_path, resume=True, **OPTIONS)
    with pytest.raises(ValueError, match="out must be a folder, got the file"):
        fit(small(), data(), out=tmp_path / "notes.txt", **OPTIONS)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_another_run_cannot_be_resumed(tmp_path):
    fit(small(), data(), out=tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match=r"lr must be 0.02 to resume the run in .*, got 0.01"):
        fit(small(), data(), out=tmp_path, resume=True, **{**OPTIONS, "lr": 0.01})
    with pytest.raises(ValueError, match=r"train must be the data of the run in .* to resume it, got other data"):
        fit(small(), data() + 1, out=tmp_path, resume=True, **OPTIONS)
    config = json.loads((tmp_path / training.CONFIG).read_text())
    del config["data_sha256"]  # as in folders of before
    training.write_json(tmp_path / training.CONFIG, config)
    fit(small(), data() + 1, out=tmp_path, resume=True, **OPTIONS)


def test_corrupt_checkpoint_is_named(tmp_path):
    fit(small(), data(), out=tmp_path, **OPTIONS)
    (tmp_path / CHECKPOINT).write_bytes(b"\0" * 20)
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors cannot be read as a checkpoint"):
        fit(small(), data(), out=tmp_path, resume=True, **OPTIONS)
    with pytest.raises(ValueError, match="folder must hold a finished run"):
        training.load_model(tmp_path / "nowhere")


# --- a progress bar
# ----------------------------------------------------------------------------------------------


def test_progress_bar_writes_to_stderr_only(capsys):
    fit(small(), data(), data(), progress=True, **OPTIONS)
    captured = capsys.readouterr()
    assert "18/18" in captured.err
    assert not captured.out


# --- a graphics card
# ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("method", ["exact", "eat-cubic"])
def test_on_a_gpu(tmp_path, method):
    x = data()
    model = small().to("cuda")
    fit(model, x, x[:50], out=tmp_path / "a", method=method, checkpoint_seconds=0, **OPTIONS)
    again = small().to("cuda")
    fit(again, x, x[:50], out=tmp_path / "a", resume=True, method=method, **OPTIONS)
    assert (again.decoder.weight == model.decoder.weight).all()
    assert torch.isfinite(model.evaluate(x.to("cuda")).neg_elbo)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("method", ["exact", "eat-cubic", "eat-sigmoid", "difference", "straight-through"])
def test_a_replayed_step_is_the_step(monkeypatch, method):
    x, runs = data(), []
    for warm_up in (training.WARM_UP, 10**9):
        monkeypatch.setattr(training, "WARM_UP", warm_up)
        model = small().to("cuda")
        runs.append((model, fit(model, x, x[:50], method=method, anneal=True, **OPTIONS)))
    for a, b in zip(runs[0][0].parameters(), runs[1][0].parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert runs[0][1].column("val_neg_elbo") == pytest.approx(runs[1][1].column("val_neg_elbo"), rel=1e-5)


def step_without_values(monkeypatch, method):
    """One step on tensors that have shapes and no values: whoever looks at one raises."""
    monkeypatch.setattr(checks, "readable", lambda *tensors: False)  # as while a CUDA graph is recorded
    with FakeTensorMode():
        run = training._Run(small(), data(), None, Settings(method=method, batch_size=20), None, None, 30)
        run.device = torch.device("cuda")  # so that the step itself does not look either
        run.optimizer.step = lambda: None  # Adamax counts on the host unless the parameters are on a GPU
        run._work()


@pytest.mark.parametrize("method", [name for name in known_methods() if get_method(name).captures])
def test_a_captured_step_never_waits_for_the_host(monkeypatch, method):
    step_without_values(monkeypatch, method)


@pytest.mark.parametrize("method", ["gsm", "moment-matched"])
def test_methods_that_look_at_values_are_not_captured(monkeypatch, method):
    assert not get_method(method).captures
    with pytest.raises(RuntimeError):
        step_without_values(monkeypatch, method)
