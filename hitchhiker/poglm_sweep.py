"""Sweeps of models with hidden neurons: the paper's 528 runs (section G.2, Figures 4, 14, 15), and strong coupling.

A group is one population: models that share method, samples a step and batches, and differ by temperature and seed (and,
in ``longer`` and ``strong``, by network).  Networks are those of :func:`hitchhiker.datasets.synthetic_poglm`:

- ``released``, ``paper``: the paper's recipe on one data set a sweep.  Weights start as torch's convolutions do
  (``released``) or from N(0, 0.5²) (``paper``, as the text says: 500 steps of 0.001 are then too few).  408 runs are
  distinct; the paper's 528 count the score function, which has no temperature, once for each of eleven.
- ``longer``: the first five ``released`` networks at once for 2,000 steps instead of 500, one sample, three temperatures:
  is the paper's recipe long enough?
- ``strong``: hidden neurons that matter; five networks, gradients compared, then particle EM.

Every row has the metrics of Figure 14 on test sequences, the likelihood by particle filter, and what it gains on the
visible-only GLM, sequence by sequence.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hitchhiker import sweep
from hitchhiker._random import own_random_numbers
from hitchhiker.checks import require_count
from hitchhiker.datasets.spikes import PRESETS, SpikeData, synthetic_poglm
from hitchhiker.models.glm import GLM, choose_history, fit_glm
from hitchhiker.models.particle import particle_filter
from hitchhiker.models.poglm import POGLM, fit_poglm, recovery

TEMPERATURES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
RELAXATIONS = ("eat-cubic", "eat-sigmoid", "gsm")
SAMPLES = (1, 2, 5, 10)
SEEDS = (0, 1, 2)
#: what can be run: networks by the paper's recipe or under strong coupling, and ``longer``, the released ones trained longer
SWEEPS = (*PRESETS, "longer")
HISTORIES = (0, 1, 2, 3, 5, 10, 20)
#: a weight counts as large, so that its sign should be found, above this
THRESHOLDS = {"paper": 1.0, "released": 0.15, "strong": 1.0}
#: method and temperature of the comparison under strong coupling
STRONG = (
    ("eat-cubic", 0.1), ("eat-cubic", 0.5), ("eat-cubic", 1.0), ("eat-sigmoid", 0.1), ("eat-sigmoid", 0.5),
    ("gsm", 0.1), ("gsm", 0.5), ("moment-matched", 1.0), ("difference", 0.0), ("straight-through", 0.0), ("score:local", 0.0),
    ("score:leave-one-out", 0.0),
)  # fmt: skip

#: encoders compared under strong coupling, with their widths in bins
ENCODERS = (("conv", 1), ("forward", 7), ("forward-backward", 3), ("forward-self", 3))


def groups(
    preset: str = "released", data_set: int = 0, *, samples: Sequence[int] = SAMPLES
) -> dict[str, dict[str, Any]]:
    """The groups of one sweep, as :func:`hitchhiker.sweep.run` takes them.

    >>> counts = [len(g.get("temperatures", [])) * len(g.get("seeds", [])) for g in groups("released").values()]
    >>> sum(counts)
    408

    Raises ``ValueError`` for an unknown preset or a negative data set.
    """
    if preset not in SWEEPS:
        raise ValueError(f"preset must be one of {', '.join(SWEEPS)}, got {preset!r}")
    require_count("data_set", data_set, minimum=0)
    for count in samples:
        require_count("samples", count)
    if preset == "strong":
        return _strong_groups(data_set)
    temperatures, steps = list(TEMPERATURES), 500
    common: dict[str, Any] = {"preset": preset, "data_set": data_set}
    if preset == "longer":
        common |= {"preset": "released", "networks": 5}
        temperatures, steps, samples = [0.1, 0.3, 0.5], 2000, [1]
    recipe = common | {"steps": steps, "batch": 8, "lr": 1e-3, "seeds": list(SEEDS), "particles": 100,
                       "initial": "paper" if preset == "paper" else "library"}  # fmt: skip
    made: dict[str, dict[str, Any]] = {"baselines": common | {"kind": "baselines", "particles": 1000}}
    for count in samples:
        for method in (*RELAXATIONS, "score"):
            made[f"{method}-{count}"] = recipe | {
                "kind": "benchmark", "method": method, "temperatures": [0.0] if method == "score" else temperatures,
                "samples": count, "importance": 1000 if count == 1 and preset != "longer" else 0,
            }  # fmt: skip
    return made


def _strong_groups(data_set: int) -> dict[str, dict[str, Any]]:
    common = {"preset": "strong", "data_set": data_set, "networks": 5}
    recipe = common | {
        "kind": "strong", "steps": 300, "lr": 0.03, "channels": 32, "width": 7, "seeds": [0, 1], "particles": 1000,
        "importance": 1000,
    }  # fmt: skip
    made: dict[str, dict[str, Any]] = {"baselines": common | {"kind": "baselines", "particles": 2000}}
    for method, temperature in STRONG:
        name = f"{method}-{temperature}" if temperature else method
        made[name.replace(":", "-")] = recipe | {"method": method, "temperatures": [temperature]}
    for encoder, width in ENCODERS:
        special = {"method": "eat-cubic", "temperatures": [1.0], "encoder": encoder, "width": width, "seeds": [0]}
        made[f"encoder-{encoder}-{width}"] = recipe | special
    made["gradients"] = recipe | {"kind": "gradients", "methods": [list(kind) for kind in STRONG], "repeats": 200}
    made["refined"] = recipe | {"method": "eat-cubic", "temperatures": [1.0], "iterations": 60, "em_particles": 250}
    return made


def measure(settings: dict[str, Any], folder: Path) -> sweep.Rows:
    """Train and judge one group; one row a model (a data set, for the baselines)."""
    torch.set_num_threads(settings.get("threads", 1))
    with own_random_numbers(0):
        kinds = {"baselines": _baselines, "benchmark": _benchmark, "strong": _strong, "gradients": _gradients}
        return [_plain(row) for row in kinds[settings["kind"]](settings, folder)]


def _data(settings: dict[str, Any]) -> SpikeData:
    first, count = settings["data_set"], settings.get("networks", 1)
    return synthetic_poglm(settings["preset"], first + count)[first:]


def visible_baseline(data: SpikeData, within_bin: bool = False) -> tuple[GLM, Tensor]:
    """The visible-only GLM by maximum likelihood, its history chosen on a quarter of the training sequences."""
    choice = choose_history(data.train, HISTORIES, within_bin=within_bin, max_rate=data.max_rate)
    return choice.model, choice.history


def _baselines(settings: dict[str, Any], folder: Path) -> sweep.Rows:
    """One row a data set and baseline: log-likelihood of the test sequences, and its gain on the visible-only GLM."""
    data = _data(settings)
    assert data.weights is not None
    assert data.bias is not None
    assert data.clipped is not None
    assert data.test_hidden is not None
    glm, history = visible_baseline(data)
    within, within_history = visible_baseline(data, within_bin=True)
    constant = fit_glm(data.train, 0, max_rate=data.max_rate)
    kept = {
        "glm": glm.log_likelihood(data.test), "within-bin": within.log_likelihood(data.test),
        "constant": constant.log_likelihood(data.test),
    }  # fmt: skip
    repeats = torch.stack(
        [
            particle_filter(
                data.weights, data.bias, data.test, settings["particles"], max_rate=data.max_rate
            ).log_likelihood
            for _ in range(4)
        ]
    )
    kept["truth"] = repeats.mean(dim=0)
    complete = GLM(data.weights, data.bias, max_rate=data.max_rate)
    kept["joint-truth"] = complete.log_likelihood(torch.cat([data.test, data.test_hidden], dim=-1))
    rows = []
    threshold = THRESHOLDS[settings["preset"]]
    silence = recovery(
        torch.zeros_like(data.weights),
        torch.zeros_like(data.bias),
        data.weights,
        data.bias,
        data.num_visible,
        threshold,
    )
    for d in range(data.train.shape[0]):
        for name, values in kept.items():
            row = {"data_set": settings["data_set"] + d, "baseline": name} | _scores(values[d], kept["glm"][d])
            if name in ("glm", "within-bin"):
                row["history"] = int((history if name == "glm" else within_history)[d])
            if name == "truth":
                row["repeat_sd"] = float(repeats[:, d].mean(dim=-1).std())
                row["clipped"] = float(data.clipped[d])
                row["zero_weights_error"] = float(silence.weights_error[d])
                row["zero_bias_error"] = float(silence.bias_error[d])
                row["num_large"] = int(silence.num_large[d])
            rows.append(row)
    return rows


def _scores(values: Tensor, glm: Tensor) -> dict[str, float]:
    """Mean over test sequences and its error, and the paired gain on the visible-only GLM."""
    root = math.sqrt(len(values))
    gain = values - glm
    return {
        "mll": float(values.mean()), "mll_se": float(values.std() / root),
        "gain": float(gain.mean()), "gain_se": float(gain.std() / root),
    }  # fmt: skip


def _judge(
    model: POGLM, data: SpikeData, glm: Tensor, settings: dict[str, Any], generator: torch.Generator
) -> list[dict[str, Any]]:
    """The metrics of every model of a population (leading axis of the data first), flattened."""
    assert data.weights is not None
    assert data.bias is not None
    assert data.test_hidden is not None
    missing = len(model.population) - 1

    def shared(x: Tensor) -> Tensor:
        return x.view(x.shape[0], *[1] * missing, *x.shape[1:])

    test, hidden = shared(data.test), shared(data.test_hidden)
    weights, bias = model.weights.detach(), model.bias.detach()
    found = recovery(
        weights, bias, shared(data.weights), shared(data.bias), data.num_visible, THRESHOLDS[settings["preset"]]
    )
    columns: dict[str, Tensor] = {}
    elbo = model.elbo(test, 16)
    columns["elbo"], columns["elbo_se"] = elbo.mean(dim=-1), elbo.std(dim=-1) / math.sqrt(elbo.shape[-1])
    filtered = model.log_likelihood(test, settings["particles"], generator)
    if settings["importance"]:
        columns["importance"] = model.importance_log_likelihood(test, settings["importance"]).mean(dim=-1)
    conditional, joint = model.conditional_log_likelihood(test, 8)
    columns |= {"cll": conditional.mean(dim=-1), "joint": joint.mean(dim=-1)}
    columns["hll"] = model.hidden_log_likelihood(test, hidden, found.order).mean(dim=-1)
    columns |= {
        "weights_error": found.weights_error, "bias_error": found.bias_error, "signs": found.signs, "scale": found.scale,
        "clipped": model.clipped(test),
    }  # fmt: skip
    reference = shared(glm)
    rows = []
    for index in (
        torch.cartesian_prod(*[torch.arange(p) for p in model.population]).view(-1, len(model.population)).tolist()
    ):
        at = tuple(index)
        row = {name: float(values[at]) for name, values in columns.items()}
        rows.append(row | _scores(filtered[at], reference.expand(*model.population, -1)[at]))
    return rows


def _benchmark(settings: dict[str, Any], folder: Path) -> sweep.Rows:
    """The paper's recipe: (networks, seeds, temperatures) at once, AdamW 1e-3, 500 steps of 8 sequences."""
    data = _data(settings)
    assert data.weights is not None
    taus, seeds = settings["temperatures"], settings["seeds"]
    population = (data.train.shape[0], len(seeds), len(taus))
    model = POGLM(
        data.num_visible, data.num_hidden, data.weights.shape[-1], torch.tensor(seeds)[:, None],
        population=population, encoder="conv", width=7, max_rate=data.max_rate, initial=settings["initial"],
    )  # fmt: skip
    fit = fit_poglm(
        model, data.train[:, None, None], method=settings["method"],
        temperature=torch.tensor(taus) if taus != [0.0] else 0.0, num_samples=settings["samples"], kl="sampled",
        steps=settings["steps"], batch_size=settings["batch"], lr=settings["lr"], lr_end=1.0, weight_decay=0.01,
        clip=1e9, seed=settings["data_set"], evaluate_every=settings["steps"],
        out=folder / "run", resume=True, checkpoint_every=250,
    )  # fmt: skip
    glm, _ = visible_baseline(data)
    judged = _judge(model, data, glm.log_likelihood(data.test), settings, torch.Generator().manual_seed(0))
    final, diverged = fit.column("loss")[-1].flatten(), fit.diverged.flatten()
    places = itertools.product(range(data.train.shape[0]), seeds, taus)
    return [
        {"data_set": settings["data_set"] + d, "method": settings["method"], "temperature": tau,
         "samples": settings["samples"], "seed": seed, "diverged": bool(diverged[i]), "train_loss": float(final[i])}
        | judged[i]
        for i, (d, seed, tau) in enumerate(places)
    ]  # fmt: skip


def _strong(settings: dict[str, Any], folder: Path) -> sweep.Rows:
    """Networks x seeds at once from the visible-only GLM; then, if asked, particle EM.  Rows carry a learning curve."""
    data = _data(settings)
    assert data.weights is not None
    assert data.bias is not None
    taus, seeds = settings["temperatures"], settings["seeds"]
    population = (data.train.shape[0], len(seeds))
    train, test = data.train[:, None], data.test[:, None]
    weights, bias = data.weights[:, None], data.bias[:, None]
    model = POGLM(
        data.num_visible, data.num_hidden, 1, torch.tensor(seeds), population=population,
        encoder=settings.get("encoder", "conv"), width=settings["width"], channels=settings["channels"], max_rate=data.max_rate,
    ).start_from(fit_glm(data.train, 1, max_rate=data.max_rate))  # fmt: skip
    chosen, _ = visible_baseline(data)
    glm = chosen.log_likelihood(data.test)
    noise = torch.Generator().manual_seed(0)
    curves: list[dict[str, Any]] = []

    def look(step: int, now: POGLM) -> None:
        w, b = now.weights.detach(), now.bias.detach()
        found = recovery(w, b, weights, bias, data.num_visible)
        held = now.log_likelihood(test, 200, noise)
        curves.append({"step": step, "gain": held.mean(dim=-1) - glm.mean(dim=-1, keepdim=True), "scale": found.scale,
                       "elbo": now.elbo(test, 8).mean(dim=-1)})  # fmt: skip

    look(0, model)
    fit = fit_poglm(
        model, train, method=settings["method"], temperature=taus[0], steps=settings["steps"], lr=settings["lr"],
        evaluate_every=30, callback=look,
    )  # fmt: skip
    if "iterations" in settings:
        before = settings["steps"]
        stages = 3
        for stage in range(stages):
            model.refine(
                train, iterations=settings["iterations"] // stages, num_particles=settings["em_particles"], num_paths=3,
                average=0.3 if stage < stages - 1 else 0.8, generator=noise,
            )  # fmt: skip
            look(before + (stage + 1) * (settings["iterations"] // stages), model)
        # the encoder catches up with the new network, so that its ELBO means something again
        fit_poglm(model, train, method=settings["method"], temperature=taus[0], steps=150, lr=0.01, train="encoder")
    judged = _judge(model, data, glm, settings, noise)
    rows = []
    for i, row in enumerate(judged):
        d, s = divmod(i, len(seeds))
        found = recovery(
            model.weights[d, s].detach(), model.bias[d, s].detach(), data.weights[d], data.bias[d], data.num_visible
        )
        curve = [[c["step"], *(round(float(c[name][d, s]), 3) for name in ("elbo", "gain", "scale"))] for c in curves]
        # another encoder is another experiment: no "refined", so that nothing averages over it by accident
        special = (
            {name: settings[name] for name in ("encoder", "width")}
            if "encoder" in settings
            else {"refined": "iterations" in settings}
        )
        rows.append(
            {"data_set": settings["data_set"] + d, "method": settings["method"], "temperature": taus[0], "seed": seeds[s],
             "diverged": bool(fit.diverged[d, s])} | special | row
            | {"curve": curve, "weights": found.weights[..., 0].tolist(), "bias": found.bias.tolist(),
               "true_weights": data.weights[d, ..., 0].tolist(), "true_bias": data.bias[d].tolist()}
        )  # fmt: skip
    return rows


def _gradients(settings: dict[str, Any], folder: Path) -> sweep.Rows:
    """Bias and noise of each method's gradient for the encoder, one network, before and after training.

    Equal models of a population are independent gradients.  The reference is the unbiased difference, four samples each.
    ``noise`` is the variance of one gradient over the squared length of the reference, ``bias`` the squared length of the
    mean error over the same, both summed over the encoder's parameters and unbiased (a bias of 0 may come out negative).
    """
    data = _data(settings)[0]
    repeats = settings["repeats"]
    options = {
        "encoder": "conv",
        "width": settings["width"],
        "channels": settings["channels"],
        "max_rate": data.max_rate,
    }
    model = POGLM(data.num_visible, data.num_hidden, 1, 0, **options)
    model.start_from(fit_glm(data.train, 1, max_rate=data.max_rate))
    rows = []
    for stage in ("start", "trained"):
        if stage == "trained":
            fit_poglm(model, data.train, method="difference", steps=settings["steps"], lr=settings["lr"])
        copies = POGLM(data.num_visible, data.num_hidden, 1, 0, population=(repeats,), **options)
        copies.load_state_dict({name: p.expand(repeats, *p.shape) for name, p in model.state_dict().items()})
        reference = _encoder_gradients(copies, data.train, "difference", 0.0, 4)
        goal, loose = reference.mean(dim=0), float(reference.var(dim=0).sum()) / repeats
        signal = float(goal.square().sum()) - loose
        for method, tau in settings["methods"]:
            found = _encoder_gradients(copies, data.train, method, tau, 1)
            noise = float(found.var(dim=0).sum())
            error = float((found.mean(dim=0) - goal).square().sum()) - noise / repeats - loose
            rows.append({"kind": "gradient", "stage": stage, "method": method, "temperature": tau,
                         "noise": noise / signal, "bias": error / signal,
                         "bias_floor": (noise / repeats + loose) / signal})  # fmt: skip
    return rows


def _encoder_gradients(copies: POGLM, counts: Tensor, method: str, temperature: float, samples: int) -> Tensor:
    """(repeats, parameters) of the encoder, for the mean loss of a sequence."""
    copies.zero_grad(set_to_none=True)
    copies.loss(counts, method, temperature, samples).mean(dim=-1).sum().backward()
    kept = [
        p.grad.flatten(1)
        for name, p in copies.named_parameters()
        if name not in ("weights", "bias") and p.grad is not None
    ]
    return torch.cat(kept, dim=-1).double()


def _plain(value: Any) -> Any:
    """Six digits, and None where JSON has no number."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _plain(v) for name, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value


# --- the whole sweep


def run(
    preset: str = "released",
    data_set: int = 0,
    out: str | Path | None = None,
    *,
    samples: Sequence[int] = SAMPLES,
    only: Sequence[str] | None = None,
    workers: int = 1,
    cluster: str | None = None,
    say: Callable[[str], None] | None = None,
) -> sweep.Result:
    """Run one sweep into ``out`` (default ``runs/poglm-PRESET-SET``), going on where a stopped run was.

    Leaves ``out/PRESET-SET.json``, one row a model.  Arguments and errors: :func:`groups`, :func:`hitchhiker.sweep.run`.
    """
    name = f"{preset}-{data_set}"
    parts = groups(preset, data_set, samples=samples)
    folder = Path(out) if out is not None else Path("runs") / f"poglm-{name}"
    command = f"hitchhiker sweep poglm --preset {preset} --data-set {data_set}"
    if tuple(samples) != SAMPLES:
        command += "".join(f" --samples {count}" for count in samples)
    return sweep.run(
        parts, measure, folder, name=name, command=command, only=only, workers=workers, cluster=cluster, say=say
    )


def register(app: Any) -> None:
    """Add ``poglm`` to a typer application, ``hitchhiker sweep``."""
    import typer

    @app.command("poglm")
    def sweep_poglm(
        preset: str = typer.Option("released", help="Networks or recipe: " + ", ".join(SWEEPS) + "."),
        data_set: int = typer.Option(0, help="Which one (paper: 0 … 9); longer, strong: the first of five networks."),
        samples: list[int] = typer.Option(list(SAMPLES), help="Samples a step (may be repeated)."),  # noqa: B008
        out: Path = typer.Option(None, help="Folder of the sweep (default: runs/poglm-PRESET-SET)."),  # noqa: B008
        only: list[str] = typer.Option(None, help="Groups to run now (may be repeated; default: all)."),  # noqa: B008
        workers: int = typer.Option(1, help="Groups at a time, each in a process of its own."),
        cluster: str = typer.Option(None, help="Address of a Dask scheduler to run the groups on."),
    ) -> None:
        """The paper's sweep of models with hidden neurons, or the strong-coupling experiment (--preset strong).

        Writes PRESET-SET.json, one row a model.  Started again it skips finished groups.

        Example: hitchhiker sweep poglm --preset released --data-set 0 --workers 2
        """
        folder = out if out is not None else Path("runs") / f"poglm-{preset}-{data_set}"
        result = run(
            preset, data_set, folder, samples=samples, only=only or None, workers=workers, cluster=cluster,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )  # fmt: skip
        left = f"; not yet: {', '.join(result['missing'])}" if result["missing"] else ""
        print(f"{len(result['rows'])} rows: {folder / f'{preset}-{data_set}'}.json{left}")


__all__ = [
    "ENCODERS",
    "HISTORIES", "RELAXATIONS", "SAMPLES", "SEEDS", "STRONG", "SWEEPS", "TEMPERATURES", "THRESHOLDS", "groups", "measure",
    "register", "run", "visible_baseline",
]  # fmt: skip
