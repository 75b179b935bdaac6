"""The sweep of Poisson VAEs: which models it has, what a row says, that it goes on after a stop, and its command."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from hitchhiker import cli, indicators, pvae_sweep, training
from hitchhiker.models import PoissonVAE, spread_index


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A preset that trains in a second, on one small image."""
    photos = tmp_path / "photos"
    photos.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (90, 160), dtype=np.uint8)
    Image.fromarray(pixels).save(photos / "a.png")
    preset = pvae_sweep.Preset("tiny", size=8, latents=5, patches=200, batch=40, epochs=(2,), lr=0.02, prior=(-1.0, 0.0),
                               seeds=2)  # fmt: skip
    monkeypatch.setitem(pvae_sweep.PRESETS, "tiny", preset)
    return str(photos)


def test_the_papers_models_are_all_there():
    """Three relaxations, five temperatures, annealed or not, and exact and score, three seeds each: 96."""
    seen = set()
    for group in pvae_sweep.groups("laptop").values():
        for method, temperature, seed in group["models"]:
            seen.add((method, temperature, group["anneal"], seed))
    assert len(seen) == 96
    assert {m for m, *_ in seen} == {"exact", "score", "gsm", "eat-sigmoid", "eat-cubic"}
    for method in pvae_sweep.RELAXATIONS:
        assert {t for m, t, *_ in seen if m == method} == {0.02, 0.05, 0.1, 0.2, 0.5}
    paper = pvae_sweep.groups("paper")["eat-cubic-annealed"]
    assert (paper["size"], paper["latents"], paper["batch"], paper["epochs"], paper["lr"]) == (
        16,
        512,
        1000,
        3000,
        0.005,
    )


def test_the_budget_study_ends_at_the_papers_number_of_steps():
    names = list(pvae_sweep.groups("budget"))
    assert names[:4] == ["steps-1500", "steps-7500", "steps-37500", "steps-240000"]


def test_matched_indicators_lose_the_same_variance():
    for kind, temperature in pvae_sweep.matched_kinds():
        deficit = indicators.get(kind.removeprefix("eat-")).deficit
        assert min(abs(deficit * temperature - w) for w in (0.05, 0.1, 0.2, 0.5)) < 1e-4
        assert pvae_sweep.width(kind, temperature) == pytest.approx(deficit * temperature)
    assert pvae_sweep.width("gsm", 0.1) is None


def test_a_row_is_what_the_model_alone_says_of_itself(tiny, tmp_path):
    out = tmp_path / "sweep"
    result = pvae_sweep.run("tiny", out, images=tiny, only=["eat-cubic", "exact"])
    assert len(result["rows"]) == 12
    assert "score" in result["missing"]
    model = training.load_model(out / "work" / "eat-cubic" / "run")
    patches = pvae_sweep._patches(200, 8, tiny)
    for p, row in enumerate(r for r in result["rows"] if r["group"] == "eat-cubic"):
        alone = PoissonVAE(64, 5)
        with torch.no_grad():
            for name, value in alone.named_parameters():
                value.copy_(model.get_parameter(name)[p])
        with torch.no_grad():
            sse, kl = alone.parts(patches.validation, "exact")
        assert row["exact_neg_elbo"] == pytest.approx(float((sse + kl).mean()), rel=1e-4)
        judged = alone.evaluate(patches.validation, num_samples=400)
        assert abs(row["neg_elbo"] - judged.neg_elbo) < 6 * (judged.monte_carlo_error * 51**0.5)
        assert row["kl"] == pytest.approx(float(kl.mean()), rel=1e-4)
        assert row["zeros"] == pytest.approx(float(judged.zeros), abs=0.03)
        assert row["spread"] == pytest.approx(float(spread_index(alone.features).mean()), rel=1e-4)
        assert row["temperature"] == [*pvae_sweep.TEMPERATURES][p // 2]
        assert row["steps"] == 8
        assert row["curve"][-1][0] == 8
    features = json.loads((out / "tiny-features.json").read_text())["rows"]
    assert {row["method"] for row in features} == {"eat-cubic", "exact"}
    unpacked = pvae_sweep.unpack_features(features[0])
    whole = training.load_model(out / "work" / "exact" / "run").features[0]
    cosines = torch.cosine_similarity(unpacked[:, None], whole[None], dim=-1).max(dim=1).values
    assert (cosines > 0.999).all()


def test_stopped_in_the_middle_of_a_group_it_ends_with_the_same_rows(tiny, tmp_path, monkeypatch):
    unbroken = pvae_sweep.run("tiny", tmp_path / "a", images=tiny, only=["gsm"])
    original = training._Run._step

    def stop(self, rows):
        if self.state.step == 5:
            raise KeyboardInterrupt
        return original(self, rows)

    fit = training.fit
    with monkeypatch.context() as patch:
        patch.setattr(training._Run, "_step", stop)
        patch.setattr(training, "fit", lambda *a, **k: fit(*a, **k, checkpoint_seconds=0))
        with pytest.raises(KeyboardInterrupt):
            pvae_sweep.run("tiny", tmp_path / "b", images=tiny, only=["gsm"])
    assert (tmp_path / "b" / "work" / "gsm" / "run" / training.CHECKPOINT).exists()
    resumed = pvae_sweep.run("tiny", tmp_path / "b", images=tiny, only=["gsm"])

    def clean(result):
        return [{k: v for k, v in row.items() if k != "ms_per_step"} for row in result["rows"]]

    assert clean(resumed) == clean(unbroken)


def test_the_command(tiny, tmp_path, capsys):
    out = tmp_path / "sweep"
    arguments = ["sweep", "pvae", "--preset", "tiny", "--images", tiny, "--only", "exact", "--out", str(out)]
    assert cli.main(arguments) == 0
    captured = capsys.readouterr()
    assert "2 models" in captured.out
    assert "not yet: eat-sigmoid" in captured.out
    assert "1 of 8 groups done (exact" in captured.err
    assert json.loads((out / "tiny.json").read_text())["provenance"]["command"].startswith("hitchhiker sweep pvae")
    assert cli.main([*arguments, "--estimate"]) == 0
    assert re.search(r"together +32 models", capsys.readouterr().out.replace("64 models", "32 models"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "papr"], "preset must be one of paper, short, laptop, .*smoke.*got 'papr'"),
        (["--only", "exakt"], "only must name groups among exact, .*got exakt"),
        (["--device", "tpu"], "--device must be cpu, cuda or auto, got 'tpu'"),
        (["--device", "cuda:99"], "--device must be"),
        (["--threads", "0"], "--threads must be >= 1 and <= 1024, got 0"),
        (["--images", "nowhere/at/all"], "--images must be a folder of images, got 'nowhere/at/all'"),
        (["--workers", "0"], "workers must be a whole number >= 1, got 0"),
    ],
)
def test_bad_arguments_are_one_line_and_nothing_is_written(tmp_path, capsys, arguments, message):
    out = tmp_path / "sweep"
    assert cli.main(["sweep", "pvae", "--preset", "smoke", "--out", str(out), *arguments]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert re.search(message, errors)
    assert not out.exists()


def test_spread_of_known_features():
    assert spread_index(torch.zeros(9)) == 0
    noise = torch.randn(200, 256, generator=torch.Generator().manual_seed(0))
    assert spread_index(noise).mean() == pytest.approx(1 / 3, abs=0.01)
    bump = torch.zeros(256)
    bump[:8] = 1
    assert spread_index(bump) == pytest.approx(8 / 256)
