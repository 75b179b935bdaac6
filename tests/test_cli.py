import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from hitchhiker import cli, training

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "train",
    "pvae",
    "--latents",
    "8",
    "--size",
    "8",
    "--patches",
    "300",
    "--epochs",
    "2",
    "--batch",
    "40",
    "--quiet",
]


@pytest.fixture
def run(capsys):
    """Run the command in this process; returns (exit code, stdout, stderr)."""

    def call(*arguments):
        code = cli.main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def photos(tmp_path):
    """A folder with one image, which is quicker to filter than the embedded scenes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (90, 160), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    return folder


def test_train_writes_what_it_promises_and_resumes_a_finished_run(run, photos, tmp_path):
    out = tmp_path / "new" / "run"
    code, text, errors = run(*SMALL, "--images", photos, "--seed", 3, "--out", out)
    assert (code, errors) == (0, "")
    assert "eat-cubic, 12 steps: validation at τ = 0: -ELBO" in text
    names = {"checkpoint.safetensors", "config.json", "evaluation.json", "metrics.csv", "model.safetensors"}
    assert {p.name for p in out.iterdir()} == names
    config = json.loads((out / "config.json").read_text())
    assert config["training"]["temperature"] == 0.1
    assert config["model"]["num_latents"] == 8
    assert config["data"]["scenes"][0]["name"] == "a.png"
    with open(out / "metrics.csv", newline="") as stream:
        assert [row["epoch"] for row in csv.DictReader(stream)] == ["1", "2"]
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert evaluation["neg_elbo"] == pytest.approx(evaluation["sse"] + evaluation["kl"])
    assert evaluation["importance_bound"] < evaluation["nats"]  # 100 samples against one
    weights = (out / "model.safetensors").read_bytes()
    code, _, _ = run("train", "pvae", "--out", out, "--resume", "--quiet")
    assert code == 0
    assert (out / "model.safetensors").read_bytes() == weights
    assert training.load_model(out).num_latents == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "eat-qubic"], r"method must be one of .*eat-cubic.*, got 'eat-qubic'"),
        (["--temperature", "-0.1"], r"temperature must be >= 0, got -0\.1"),
        (
            ["--images", "nowhere/at/all"],
            r"images must be a folder of images, got 'nowhere/at/all', which does not exist",
        ),
        (["--epochs", "0"], "epochs must be a whole number >= 1, got 0"),
        (["--epochs", "many"], "--epochs.*many|many.*--epochs|--epochs.*integer"),
        (["--latents", "0"], "num_latents must be >= 1, got 0"),
        (["--patches", "1"], "num_patches must be >= 2, got 1"),
        (["--lr", "-1"], r"lr must be > 0 and finite, got -1\.0"),
        (["--encoder", "cnn"], "encoder must be one of .* got 'cnn'"),
        (["--method", "exact", "--decoder", "mlp"], "'exact' needs a linear decoder"),
        (["--device", "tpu"], "--device must be cpu, cuda or auto, got 'tpu'"),
        (["--seed", str(2**63)], r"seed must be below 2\^63"),
        (["--device", "meta"], "--device must be cpu, cuda or auto, got 'meta'"),
        (["--device", "mps"], "--device must be cpu, cuda or auto, got 'mps'"),
        (["--threads", "100000000"], "--threads must be >= 0 and <= 1024, got 100000000"),
        (["--checkpoint-every", "nan"], "--checkpoint-every must be >= 0 and finite, got nan"),
        (["--checkpoint-every", "-1"], r"--checkpoint-every must be >= 0 and finite, got -1\.0"),
        (["--prior", "-inf", "0"], "prior_log_rates must be"),
        (["--threads", "-1"], "--threads must be >= 0 and <= 1024, got -1"),
        (["--van-hateren", "-2"], "--van-hateren must be >= 0, got -2"),
        (["--prior", "-4", "-6"], "prior_log_rates must be"),
        (["--colour", "red"], "--colour"),
        (["--resume"], r"out must be the folder of a run to resume, got .* without config\.json"),
    ],
)
def test_bad_argument_is_one_line_and_exit_code_2_and_nothing_is_written(run, tmp_path, arguments, message):
    out = tmp_path / "run"
    code, text, errors = run("train", "pvae", "--out", out, *arguments)
    assert code == 2
    assert text == ""
    assert errors.count("\n") == 1
    assert re.search(message, errors), errors
    assert not out.exists()


def test_a_folder_in_use_is_refused(run, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    code, _, errors = run(*SMALL, "--out", tmp_path)
    assert code == 2
    assert "--out must be a new or empty folder unless --resume is given" in errors
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    code, _, errors = run(*SMALL, "--out", tmp_path / "notes.txt")
    assert (code, "got the file" in errors) == (2, True)


def test_resume_with_another_setting_is_refused(run, photos, tmp_path):
    run(*SMALL, "--images", photos, "--out", tmp_path / "run")
    code, _, errors = run("train", "pvae", "--out", tmp_path / "run", "--resume", "--epochs", 9)
    assert code == 2
    assert "--epochs must be 2 to resume" in errors
    assert "got 9" in errors


def test_missing_out_is_named(run):
    code, _, errors = run("train", "pvae")
    assert (code, errors.count("\n")) == (2, 1)
    assert "--out" in errors


def test_full_disk_is_one_line(run, photos, tmp_path, monkeypatch):
    from hitchhiker import _files

    calls = []

    def full(handle):
        calls.append(handle)
        if len(calls) > 6:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(_files.os, "fsync", full)
    code, _, errors = run(*SMALL, "--images", photos, "--out", tmp_path / "run", "--checkpoint-every", 0)
    assert (code, errors.count("\n")) == (1, 1)
    assert "No space left on device; the checkpoint" in errors
    monkeypatch.undo()
    assert run("train", "pvae", "--out", tmp_path / "run", "--resume", "--quiet")[0] == 0


def test_missing_packages_are_one_line(run, monkeypatch):
    monkeypatch.setattr(cli, "typer", None)
    code, _, errors = run("train", "pvae")
    assert (code, errors.count("\n")) == (1, 1)
    assert 'pip install "hitchhiker[train]"' in errors


def test_help_names_every_option_and_example(run):
    code, text, _ = run("train", "pvae", "--help")
    assert code == 0
    for option in ("--method", "--temperature", "--epochs", "--latents", "--patches", "--seed", "--out", "--resume"):
        assert option in text
    assert "τ" in text
    assert "Example: hitchhiker train pvae" in text
    assert run()[0] == 0
    assert "train" in run("--help")[1]
    assert run("--version")[1].strip()
    assert "eat-cubic" in run("methods")[1]


def test_ctrl_c_is_one_line_with_the_command_that_goes_on(photos, tmp_path):
    """As a user does it: another process, ``python -m hitchhiker``, SIGINT; then --resume; then the
    unbroken run."""
    command = [sys.executable, "-m", "hitchhiker", *SMALL, "--images", str(photos), "--checkpoint-every", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    out = tmp_path / "run"
    process = subprocess.Popen(
        [*command, "--epochs", "2000", "--out", str(out)], env=environment, stderr=subprocess.PIPE, text=True
    )
    limit = time.monotonic() + 120
    while not (out / "metrics.csv").exists() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.count("\n") == 1
    assert f"go on with: hitchhiker train pvae --out {out} --resume" in errors
    assert load_file(out / "checkpoint.safetensors")
    assert not list(out.glob(".*"))
