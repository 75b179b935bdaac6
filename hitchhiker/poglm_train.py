"""``hitchhiker train poglm``: hidden neurons behind your spike counts, or behind a synthetic network's."""

from __future__ import annotations

import copy
import math
import shlex
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from hitchhiker._files import make_folder, read_json, require_vacant, write_json
from hitchhiker._options import flag, require_same, typed
from hitchhiker._random import own_random_numbers
from hitchhiker.checks import require_count
from hitchhiker.datasets.spikes import PRESETS, SpikeData, load_spikes, parasol_cells, split_recording, synthetic_poglm
from hitchhiker.models.glm import choose_history, fit_glm
from hitchhiker.models.poglm import CHECKPOINT, POGLM, fit_poglm, recovery

try:
    import typer
except ImportError:  # training needs no command
    typer = None  # type: ignore[assignment]

CONFIG, EVALUATION = "config.json", "evaluation.json"
NEEDED = (
    "spikes", "key", "parasol", "preset", "data_set", "length", "hidden", "history", "method", "temperature", "samples",
    "steps", "lr", "encoder", "width", "channels", "max_rate", "particles", "refine", "seed",
)  # fmt: skip


def train_poglm(
    out: str | Path, given: dict[str, Any], *, explicit: Collection[str] = (), resume: bool = False
) -> dict[str, Any]:
    """Train one model into the folder ``out`` and judge it; returns what ``evaluation.json`` keeps.

    ``given`` holds the command's arguments (see ``hitchhiker train poglm --help``).  A resumed run takes them from
    ``config.json``; those in ``explicit``, which the user typed, must agree with it.
    Raises ``ValueError`` for a bad argument before anything is written.
    """
    out = Path(out)
    config = out / CONFIG
    if resume:
        if not config.exists():
            raise ValueError(f"--out must be the folder of a run to resume, got {str(out)!r} without {CONFIG}")
        stored = read_json(config, NEEDED)
        require_same(stored, given, explicit, out)
        given = stored
    else:
        require_vacant("--out", out, "--resume is given")
    _check(given, explicit)
    data = _data(given)
    if len(data.test) < 2:
        raise ValueError(f"--length must leave at least two sequences for test, got {given['length']}")
    chosen = choose_history(data.train, max_rate=given["max_rate"])
    glm = fit_glm(data.train, given["history"], max_rate=given["max_rate"])
    model = POGLM(
        data.num_visible, given["hidden"], given["history"], given["seed"], encoder=given["encoder"],
        width=given["width"], channels=given["channels"] or None, max_rate=given["max_rate"],
    ).start_from(glm, given["seed"])  # fmt: skip
    options = {
        "method": given["method"], "temperature": given["temperature"], "num_samples": given["samples"],
        "steps": given["steps"], "lr": given["lr"], "seed": given["seed"],
    }  # fmt: skip
    probe = copy.deepcopy(model)  # all refusals come before a folder is made
    fit_poglm(probe, data.train[:2], **(options | {"steps": min(1, options["steps"])}))
    make_folder("--out", out)
    write_json(config, given)
    fit = fit_poglm(model, data.train, data.test, out=out / "run", resume=True, **options)
    test = data.test
    reference = chosen.model.log_likelihood(test)
    with own_random_numbers(given["seed"]):
        result: dict[str, Any] = {
            "elbo": float(model.elbo(test).mean()),
            "importance_log_likelihood": float(model.importance_log_likelihood(test).mean()),
            **_gain("", model.log_likelihood(test, given["particles"]), reference),
            "glm_log_likelihood": float(reference.mean()),
            "glm_history": int(chosen.history),
            "clipped": float(model.clipped(test)),
            "diverged": bool(fit.diverged),
            "silent_neurons": int(data.silent),
            "silent_sequences": int(data.silent_sequences),
        }
        if data.test_hidden is not None:
            result["hidden_correlation"] = model.hidden_correlation(test, data.test_hidden).tolist()
        if given["refine"]:
            model.refine(data.train, iterations=given["refine"])
            result |= _gain("refined_", model.log_likelihood(test, given["particles"]), reference)
        if data.weights is not None and data.bias is not None and data.num_hidden == given["hidden"]:
            found = recovery(model.weights.detach(), model.bias.detach(), data.weights, data.bias, data.num_visible)
            result |= {
                "weights_error": float(found.weights_error), "bias_error": float(found.bias_error),
                "signs": float(found.signs) if int(found.num_large) else None, "large_weights": int(found.num_large),
            }  # fmt: skip
    result["weights"], result["bias"] = model.weights.tolist(), model.bias.tolist()
    write_json(out / EVALUATION, result)
    return result


def _gain(prefix: str, values: torch.Tensor, reference: torch.Tensor) -> dict[str, float]:
    gain = values - reference
    return {
        f"{prefix}log_likelihood": float(values.mean()),
        f"{prefix}gain_on_glm": float(gain.mean()),
        f"{prefix}gain_error": float(gain.std() / math.sqrt(len(gain))),
    }


def _check(given: dict[str, Any], explicit: Collection[str]) -> None:
    """What only the judging would stumble over, and sources of counts that exclude each other."""
    require_count("--particles", given["particles"])
    require_count("--refine", given["refine"], minimum=0)
    source = "spikes" if given["spikes"] is not None else "parasol" if given["parasol"] else "preset"
    others = {"spikes": ("parasol", "preset", "data_set"), "parasol": ("preset", "data_set"), "preset": ()}[source]
    for name in others:
        if name in explicit and given[name] is not False:
            raise ValueError(f"--{source} and {flag(name)} exclude each other, got {given[source]} and {given[name]}")
    if given["key"] is not None and source != "spikes":
        raise ValueError(f"--key must name an array of --spikes, got {given['key']!r} without --spikes")


def _data(given: dict[str, Any]) -> SpikeData:
    if given["spikes"] is not None:
        counts = load_spikes(given["spikes"], given["key"])
        return split_recording(counts, given["length"], provenance={"source": given["spikes"]})
    if given["parasol"]:
        return parasol_cells(length=given["length"])
    if given["preset"] not in PRESETS:
        raise ValueError(f"--preset must be one of {', '.join(PRESETS)}, got {given['preset']!r}")
    if given["data_set"] < 0:
        raise ValueError(f"--data-set must be >= 0, got {given['data_set']}")
    return synthetic_poglm(given["preset"], given["data_set"] + 1, length=given["length"])[given["data_set"]]


def register(app: Any) -> None:
    """Add ``poglm`` to a typer application, ``hitchhiker train``."""

    @app.command("poglm")
    def train(
        context: typer.Context,
        out: Path = typer.Option(..., help="Folder of the run: new or empty, unless --resume."),  # noqa: B008
        spikes: Path = typer.Option(None, help="Your counts: an .npz with one array (T bins, N neurons)."),  # noqa: B008
        key: str = typer.Option(None, help="Name of the array in --spikes, if it holds several."),
        parasol: bool = typer.Option(False, "--parasol", help="Download four macaque cells (see the terms); hide one."),
        preset: str = typer.Option("strong", help="Synthetic network: " + ", ".join(PRESETS) + "."),
        data_set: int = typer.Option(0, help="Which synthetic network."),
        length: int = typer.Option(100, help="Bins a sequence."),
        hidden: int = typer.Option(2, help="Hidden neurons of the model."),
        history: int = typer.Option(1, help="Bins back that a spike acts."),
        method: str = typer.Option("eat-cubic", help="How gradients pass the hidden counts."),
        temperature: float = typer.Option(0.1, help="Temperature τ of the relaxation, dimensionless."),
        samples: int = typer.Option(1, help="Hidden counts drawn a step."),
        steps: int = typer.Option(300, help="Steps of the optimizer, each on all sequences."),
        lr: float = typer.Option(0.03, help="Learning rate at the start; it falls to a tenth."),
        encoder: str = typer.Option("conv", help="conv, forward, forward-backward or forward-self."),
        width: int = typer.Option(7, help="Bins that the encoder sees."),
        channels: int = typer.Option(32, help="Hidden units of the encoder; 0 for a linear one."),
        max_rate: float = typer.Option(100.0, help="Clamp of the rates, counts a bin."),
        particles: int = typer.Option(1000, help="Of the particle filter that judges."),
        refine: int = typer.Option(0, help="Iterations of particle EM after training."),
        seed: int = typer.Option(0, min=0, help="Of initial weights and noise."),
        resume: bool = typer.Option(False, "--resume", help="Go on with the run in --out, with its own settings."),
    ) -> None:
        """Train a model with hidden neurons on spike counts, and compare it with a visible-only GLM.

        Writes config.json, evaluation.json and run/checkpoint.safetensors into --out.  Stopped, it goes on with
        `hitchhiker train poglm --out DIR --resume` to the same numbers.

        Example: hitchhiker train poglm --preset strong --refine 30 --out runs/hidden
        """
        given = {name: value for name, value in locals().items() if name not in {"context", "out", "resume"}}
        given["spikes"] = None if spikes is None else str(spikes)
        try:
            result = train_poglm(out, given, explicit=typed(context, given), resume=resume)
        except KeyboardInterrupt:
            if (out / CONFIG).exists():
                again = shlex.join(["hitchhiker", "train", "poglm", "--out", str(out), "--resume"])
                print(f"hitchhiker: stopped; go on with: {again}", file=sys.stderr)
                raise typer.Exit(130) from None
            raise
        print(
            f"{read_json(out / CONFIG)['method']}: test log-likelihood a sequence {result['log_likelihood']:.2f}, "
            f"visible-only GLM {result['glm_log_likelihood']:.2f}: "
            f"gain {result['gain_on_glm']:.2f} ± {result['gain_error']:.2f} nats"
        )
        if "refined_log_likelihood" in result:
            print(f"refined: gain {result['refined_gain_on_glm']:.2f} ± {result['refined_gain_error']:.2f} nats")
        print(f"written to {out}: {CONFIG}, {EVALUATION}, run/{CHECKPOINT}")


__all__ = ["register", "train_poglm"]
