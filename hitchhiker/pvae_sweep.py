"""The paper's sweep of linear Poisson VAEs (section G.1, Figures 4 and 13), as populations trained together.

A *group* is one population: models that share data, batches and schedule, and differ by method, temperature and seed.
Presets: ``paper`` (its sizes), ``short`` (five models of that size, for a short time), ``laptop`` (all 96 models scaled
down), ``matched`` (further indicators at the same width Aτ, hotter cubics), ``budget`` (how far each method is from exact
gradients as training gets longer), ``averaged`` (several samples a step, annealed temperatures, RELAX), ``nonlinear`` (a
decoder with a hidden layer), ``smoke`` (seconds).
"""

from __future__ import annotations

import base64
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hitchhiker import indicators, reproduce, sweep, training
from hitchhiker._options import check_device, check_threads
from hitchhiker.checks import named
from hitchhiker.models import (
    PoissonVAE,
    noise_orientation_index,
    orientation_index,
    spread_index,
)

Model = tuple[str, float, int]  # method, temperature (0 where the method has none), seed

RELAXATIONS = ("eat-sigmoid", "eat-cubic", "gsm")
TEMPERATURES = (0.02, 0.05, 0.1, 0.2, 0.5)


@dataclass(frozen=True)
class Preset:
    """Sizes of a sweep.

    Attributes
    ----------
    about : what it is, in a line.
    size, latents, patches : side of a patch in pixels, K, and patches for training and validation together.
    batch, lr, prior, beta_annealed : as in ``training.Settings`` and ``PoissonVAE``.
    epochs : passes over the data; several for ``budget``, one a group.
    seeds : models of each kind.
    plan : ``"paper"``, ``"matched"``, ``"budget"``, ``"averaged"``, ``"short"`` or ``"nonlinear"``: which models there are.
    decoder : ``"linear"`` or ``"mlp"``.
    """

    about: str
    size: int
    latents: int
    patches: int
    batch: int
    epochs: tuple[int, ...]
    lr: float
    prior: tuple[float, float]
    seeds: int = 3
    plan: str = "paper"
    decoder: str = "linear"


_LAPTOP = Preset(
    "the paper's 96 models, scaled down: 8 x 8 pixels, 64 latents, 10,000 steps of 48 patches",
    size=8, latents=64, patches=30_000, batch=48, epochs=(20,), lr=0.02, prior=(-3.0, -2.0),
)  # fmt: skip

PRESETS: dict[str, Preset] = {
    "paper": Preset(
        "the paper's 96 models at its sizes: 16 x 16 pixels, 512 latents, 3000 epochs of 80 batches of 1000",
        size=16, latents=512, patches=100_000, batch=1000, epochs=(3000,), lr=0.005, prior=(-6.0, -4.0),
    ),
    "short": Preset(
        "five models at the paper's sizes for a short time: 1,600 and 8,000 steps of 1000 patches, each seed a group",
        size=16, latents=512, patches=100_000, batch=1000, epochs=(20, 100), lr=0.005, prior=(-6.0, -4.0), plan="short",
    ),
    "laptop": _LAPTOP,
    "matched": dataclasses.replace(
        _LAPTOP,
        about="laptop sizes: four indicators at equal width Aτ, hotter cubics, score function with 4 samples",
        plan="matched",
    ),
    "budget": Preset(
        "nine methods after 1,500, 7,500 and 37,500 steps, five of them after 240,000: laptop sizes, batches of 32",
        size=8, latents=64, patches=30_000, batch=32, epochs=(2, 10, 50, 320), lr=0.02, prior=(-3.0, -2.0), plan="budget",
    ),
    "averaged": Preset(
        "what quietens a gradient, sizes of budget: 4 and 16 samples a step, τ annealed from 1, RELAX",
        size=8, latents=64, patches=30_000, batch=32, epochs=(2, 10, 50), lr=0.02, prior=(-3.0, -2.0), plan="averaged",
    ),
    "nonlinear": dataclasses.replace(
        _LAPTOP, about="laptop sizes with a decoder of one hidden layer: ten methods after 1,000 and 4,000 steps",
        epochs=(2, 8), plan="nonlinear", decoder="mlp",
    ),
    "smoke": Preset(
        "all groups of the paper, one seed, a few steps: seconds, to see that it works",
        size=8, latents=16, patches=500, batch=100, epochs=(2,), lr=0.02, prior=(-3.0, -2.0), seeds=1,
    ),
}  # fmt: skip


# --- which models


def groups(
    preset: str | Preset, *, images: str | None = None, device: str = "cpu", threads: int = 1
) -> dict[str, dict[str, Any]]:
    """The groups of a preset: name -> settings, as :func:`hitchhiker.sweep.run` takes them.

    >>> sum(len(group["models"]) for group in groups("paper").values())
    96

    Raises ``ValueError`` with the known names.
    """
    sizes = _preset(preset)
    seeds = range(sizes.seeds)
    common = {
        "size": sizes.size, "latents": sizes.latents, "patches": sizes.patches, "batch": sizes.batch, "lr": sizes.lr,
        "prior": list(sizes.prior), "images": images, "samples": 1, "anneal": False, "epochs": sizes.epochs[0],
        "device": device, "threads": threads,
    }  # fmt: skip

    def population(kinds: Sequence[tuple[str, float]], **special: Any) -> dict[str, Any]:
        return common | special | {"models": [[m, t, s] for m, t in kinds for s in seeds]}

    per_epoch = round(sizes.patches * 0.8) // sizes.batch
    if sizes.plan == "budget":
        followed = {e: BUDGET_KINDS if e <= 50 else LONG_KINDS for e in sizes.epochs}
        parts = {f"steps-{e * per_epoch}": population(followed[e], epochs=e) for e in sizes.epochs}
        score = [("score:leave-one-out", 0.0)]
        return parts | {f"score-{e * per_epoch}": population(score, epochs=e) for e in sizes.epochs[:2]}
    if sizes.plan == "averaged":
        middle = sizes.epochs[1]
        parts = {f"samples-{n}": population(AVERAGED_KINDS, epochs=middle, samples=n) for n in (4, 16)}
        cold = [("eat-cubic", 0.1), ("eat-sigmoid", 0.1)]
        parts |= {f"annealed-{e * per_epoch}": population(cold, epochs=e, anneal=True) for e in sizes.epochs}
        control = [("relax", 0.1), ("relax", 0.5)]
        return parts | {f"relax-{e * per_epoch}": population(control, epochs=e) for e in sizes.epochs[:2]}
    if sizes.plan == "short":
        return {
            f"steps-{e * per_epoch}-seed-{s}": common | {"epochs": e, "models": [[m, t, s] for m, t in SHORT_KINDS]}
            for e in sizes.epochs
            for s in seeds
        }
    if sizes.plan == "nonlinear":
        common |= {"decoder": sizes.decoder}
        return {f"steps-{e * per_epoch}": population(NONLINEAR_KINDS, epochs=e) for e in sizes.epochs}
    if sizes.plan == "matched":
        return {
            "widths": population(matched_kinds()),
            "score-4": population([("score", 0.0)], samples=4),
        }
    result = {"exact": population([("exact", 0.0)])}
    for method in RELAXATIONS:
        kinds = [(method, t) for t in TEMPERATURES]
        result[method] = population(kinds)
        result[f"{method}-annealed"] = population(kinds, anneal=True)
    return result | {"score": population([("score", 0.0)])}


#: the methods of the budget study.  A sigmoid at τ = 0.1 is as wide as a cubic at 0.389.
BUDGET_KINDS: tuple[tuple[str, float], ...] = (
    ("exact", 0.0), ("difference", 0.0), ("straight-through", 0.0), ("moment-matched", 1.0),
    ("eat-cubic", 0.1), ("eat-cubic", 0.389), ("eat-cubic", 1.0), ("eat-sigmoid", 0.1),
)  # fmt: skip
#: those that are followed to the longest run: the exact gradient, an unbiased one, a biased one, a cold and a hot cubic
LONG_KINDS: tuple[tuple[str, float], ...] = (
    ("exact", 0.0), ("difference", 0.0), ("straight-through", 0.0), ("eat-cubic", 0.1), ("eat-cubic", 1.0),
)  # fmt: skip
#: those that are trained with several samples a step too
AVERAGED_KINDS: tuple[tuple[str, float], ...] = (
    ("difference", 0.0), ("straight-through", 0.0), ("moment-matched", 1.0), ("eat-cubic", 0.1), ("eat-cubic", 0.389),
)  # fmt: skip

#: the methods at the paper's sizes for a short time
SHORT_KINDS: tuple[tuple[str, float], ...] = (
    ("exact", 0.0), ("eat-cubic", 0.1), ("eat-cubic", 0.5), ("eat-sigmoid", 0.1), ("eat-sigmoid", 0.5),
)  # fmt: skip

#: the methods of the study with a decoder that is not linear, where there is no exact gradient
NONLINEAR_KINDS: tuple[tuple[str, float], ...] = (
    ("straight-through", 0.0), ("straight-through:midpoint", 0.0), ("difference:1", 0.0), ("moment-matched", 1.0),
    ("eat-cubic", 0.1), ("eat-cubic", 0.5), ("eat-cubic", 1.0), ("eat-sigmoid", 0.1), ("gsm", 0.1),
    ("score:leave-one-out", 0.0),
)  # fmt: skip


def matched_kinds() -> list[tuple[str, float]]:
    """(method, τ) of indicators whose variance loss Aτ is that of the sigmoid at τ = 0.1 and 0.5 (where A = 1)."""
    return [
        (f"eat-{kind}", round(width / indicators.get(kind).deficit, 4))
        for kind in ("cubic", "quintic", "cosine", "linear")
        for width in (0.1, 0.5)
    ]


def width(method: str, temperature: float) -> float | None:
    """Aτ, the variance that a relaxed count loses to leading order: one scale of temperature for all indicators.

    None for methods without an indicator.

    >>> width("eat-sigmoid", 0.1), round(width("eat-cubic", 0.389), 3)
    (0.1, 0.1)
    """
    if method == "moment-matched":
        return indicators.get("cubic").deficit * temperature
    kind = method.removeprefix("eat-")
    return indicators.get(kind).deficit * temperature if kind in indicators.REGISTRY else None


# --- one group


def measure(settings: dict[str, Any], folder: Path, progress: bool | None = None) -> sweep.Rows:
    """Train one population (resuming what is in ``folder``) and judge every model at τ = 0; one row a model.

    A row has method, temperature, seed, anneal, samples, steps; on held-out patches ``neg_elbo``, its error over patches,
    ``sse``, ``kl``, ``r2``, ``zeros``, ``lifetime_sparsity``, ``rate``, from 8 counts a patch; ``exact_neg_elbo`` in
    closed form if the decoder is linear; ``train_neg_elbo`` of as many training patches; ``oriented``, ``orientation``
    and ``spread`` of its features; ``used``, the proportion of latents whose mean rate is above 0.001; ``curve``, a
    dozen points (step, validation −ELBO); ``ms_per_step``, of the whole population.
    """
    torch.set_num_threads(settings["threads"])
    device = torch.device(settings["device"])
    patches = _patches(settings["patches"], settings["size"], settings["images"])
    model = _population(settings).to(device)
    run = folder / "run"
    fit = training.fit(
        model,
        patches.train,
        patches.validation,
        out=run,
        resume=(run / training.CONFIG).exists(),
        settings=_settings(settings),
        provenance=patches.provenance,
        progress=progress,
    )
    judged = model.evaluate(patches.validation.to(device), num_samples=8).as_dict()
    closed = _at_zero(model, patches.validation)
    learned = _at_zero(model, patches.train[: len(patches.validation)])
    features = model.features
    threshold = noise_orientation_index(model.num_pixels)
    orientation, spread = orientation_index(features), spread_index(features)
    with torch.no_grad():
        used = (model.rates(patches.validation[:2000].to(device)).mean(dim=-2) > 1e-3).double().mean(dim=-1)
    rows = []
    for p, (method, temperature, seed) in enumerate(settings["models"]):
        row = {
            "method": method, "temperature": temperature, "width": width(method, temperature), "seed": seed,
            "anneal": settings["anneal"], "samples": settings["samples"], "steps": fit.steps,
        }  # fmt: skip
        for ours, theirs in _COLUMNS.items():
            row[ours] = judged[theirs][p]
        row |= {"exact_neg_elbo": float(closed[p]), "train_neg_elbo": float(learned[p])}
        row |= {
            "oriented": float((orientation[p] > threshold).double().mean()),
            "orientation": float(orientation[p].mean()),
            "spread": float(spread[p].mean()),
            "used": float(used[p]),
            "ms_per_step": 1000 * fit.history[-1]["seconds"] / fit.steps,
        }
        row = {name: float(f"{v:.6g}") if isinstance(v, float) else v for name, v in row.items()}
        row["curve"] = _thinned(fit.column("step", p), fit.column("val_neg_elbo", p))
        rows.append(row)
    if device.type == "cuda":
        rows[0]["device"] = torch.cuda.get_device_name(device)
    return rows


_COLUMNS = {
    "neg_elbo": "neg_elbo", "patch_error": "standard_error", "sse": "sse", "kl": "kl", "r2": "r2", "zeros": "zeros",
    "lifetime_sparsity": "lifetime_sparsity", "rate": "rate",
}  # fmt: skip


def _population(settings: dict[str, Any]) -> PoissonVAE:
    models = settings["models"]
    return PoissonVAE(
        settings["size"] ** 2,
        settings["latents"],
        [seed for _, _, seed in models],
        population=len(models),
        prior_log_rates=tuple(settings["prior"]),
        decoder=settings.get("decoder", "linear"),
    )


def _settings(settings: dict[str, Any]) -> training.Settings:
    methods, temperatures, _ = zip(*settings["models"], strict=True)
    return training.Settings(
        method=methods[0] if len(set(methods)) == 1 else methods,
        temperature=tuple(map(float, temperatures)),
        anneal=settings["anneal"],
        epochs=settings["epochs"],
        batch_size=settings["batch"],
        num_samples=settings["samples"],
        lr=settings["lr"],
        # without a closed form looking is dear
        evaluate_every=None if settings.get("decoder", "linear") == "linear" else settings["epochs"],
    )


@lru_cache(maxsize=2)
def _patches(count: int, size: int, images: str | None):
    from hitchhiker import datasets

    return datasets.natural_patches(count, size, seed=0, images=images)


@torch.no_grad()
def _at_zero(model: PoissonVAE, x: Tensor) -> Tensor:
    """−ELBO at τ = 0 of each model: in closed form for a linear decoder, else from 8 counts a patch."""
    x = x.to(model.log_prior_rate.device)
    if model.phi is None:
        return model.evaluate(x, num_samples=8, seed=1).neg_elbo
    losses = [sum(model.parts(part, "exact", 0.0)) for part in x.split(1000)]
    return torch.cat(losses, dim=-1).double().mean(dim=-1)  # type: ignore[arg-type]


def _thinned(steps: list[float], values: list[float], points: int = 12) -> list[list[float]]:
    """About ``points`` of a curve, evenly spaced in ln(step), the last one among them."""
    kept: list[list[float]] = []
    last = 0.0
    for step, value in zip(steps, values, strict=True):
        if step >= last * (steps[-1] / steps[0]) ** (1 / points) or step == steps[-1]:
            kept.append([step, round(value, 3)])
            last = step
    return kept


# --- the whole sweep


def run(
    preset: str = "laptop",
    out: str | Path | None = None,
    *,
    images: str | None = None,
    device: str = "cpu",
    threads: int = 1,
    only: Sequence[str] | None = None,
    workers: int = 1,
    cluster: str | None = None,
    say: Callable[[str], None] | None = None,
) -> sweep.Result:
    """Run a preset into ``out`` (default ``runs/pvae-PRESET``), going on where a stopped run was.

    Leaves ``out/PRESET.json``, one row a model, and ``out/PRESET-features.json`` with the features of the first seed.
    The other arguments are those of :func:`groups` and :func:`hitchhiker.sweep.run`, which also say what is raised.
    """
    parts = groups(preset, images=images, device=device, threads=threads)
    folder = Path(out) if out is not None else Path("runs") / f"pvae-{preset}"
    command = f"hitchhiker sweep pvae --preset {preset}" + (f" --images {images}" if images else "")
    result = sweep.run(
        parts, measure, folder, name=preset, command=command, only=only, workers=workers, cluster=cluster, say=say
    )
    store_features(preset, parts, folder, result["provenance"])
    return result


def store_features(name: str, parts: dict[str, dict[str, Any]], out: Path, provenance: dict[str, Any]) -> Path:
    """Write the decoders of the first seed of every finished group to ``out/name-features.json``.

    At most 64 features a model, the most used first, each scaled to its largest pixel and kept in 8 bits (base64).
    """
    rows = []
    for group, settings in parts.items():
        run = out / "work" / group / "run"
        if not (run / training.WEIGHTS).exists() or settings["anneal"]:
            continue
        model = training.load_model(run)
        assert isinstance(model, PoissonVAE)
        patches = _patches(settings["patches"], settings["size"], settings["images"])
        with torch.no_grad():
            use = model.rates(patches.validation[:1000]).mean(dim=-2)
        for p, (method, temperature, seed) in enumerate(settings["models"]):
            if seed != settings["models"][0][2]:
                continue
            best = use[p].argsort(descending=True)[:64]
            pixels = model.features[p][best]
            scaled = (127 * pixels / pixels.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12)).round().to(torch.int8)
            rows.append(
                {
                    "group": group, "method": method, "temperature": temperature, "steps": settings["epochs"],
                    "count": len(best), "pixels": base64.b64encode(scaled.numpy().tobytes()).decode(),
                }
            )  # fmt: skip
    path = out / f"{name}-features.json"
    reproduce._write_result(path, {"sweep": name, "provenance": provenance, "rows": rows})
    return path


def unpack_features(row: dict[str, Any]) -> Tensor:
    """(count, pixels) of a row that :func:`store_features` wrote; each feature's largest pixel is ±1."""
    data = torch.frombuffer(bytearray(base64.b64decode(row["pixels"])), dtype=torch.int8)
    return data.view(row["count"], -1).float() / 127


def estimate(
    preset: str, *, images: str | None = None, device: str = "cpu", threads: int = 1, steps: int = 4
) -> list[dict[str, Any]]:
    """How long each group of a preset would take here: measured over ``steps`` steps after two to warm up.

    Returns rows with ``group``, ``models``, ``steps``, ``ms_per_step`` and ``hours``.
    """
    rows = []
    for name, settings in groups(preset, images=images, device=device, threads=threads).items():
        torch.set_num_threads(threads)
        x = torch.randn(settings["batch"], settings["size"] ** 2)
        model = _population(settings).to(device)
        one = dataclasses.replace(_settings(settings), epochs=2, warmup_epochs=0, evaluate_every=1)
        training.fit(model, x, settings=one, progress=False)
        more = dataclasses.replace(one, epochs=steps, evaluate_every=steps)
        start = time.monotonic()
        training.fit(model, x, settings=more, progress=False)
        ms = 1000 * (time.monotonic() - start) / steps
        total = settings["epochs"] * (round(0.8 * settings["patches"]) // settings["batch"])
        rows.append(
            {
                "group": name,
                "models": len(settings["models"]),
                "steps": total,
                "ms_per_step": ms,
                "hours": ms * total / 3.6e6,
            }
        )
    return rows


def _preset(preset: str | Preset) -> Preset:
    return preset if isinstance(preset, Preset) else named("preset", preset, PRESETS)


# --- the command


def register(app: Any) -> None:
    """Add ``pvae`` to a typer application, ``hitchhiker sweep``."""
    import typer

    described = "; ".join(f"{name}: {preset.about}" for name, preset in PRESETS.items())

    @app.command("pvae")
    def sweep_pvae(
        preset: str = typer.Option("laptop", help=described),
        out: Path = typer.Option(None, help="Folder of the sweep (default: runs/pvae-PRESET)."),  # noqa: B008
        images: Path = typer.Option(None, help="Folder of your own images (default: scenes in the wheels)."),  # noqa: B008
        only: list[str] = typer.Option(None, help="Groups to run now (may be repeated; default: all)."),  # noqa: B008
        workers: int = typer.Option(1, help="Groups at a time, each in a process of its own."),
        threads: int = typer.Option(1, help="CPU threads of a group."),
        device: str = typer.Option("cpu", help="cpu or cuda."),
        cluster: str = typer.Option(None, help="Address of a Dask scheduler to run the groups on."),
        dry: bool = typer.Option(
            False, "--estimate", help="Measure a few steps of each group and say how long it takes."
        ),
    ) -> None:
        """The paper's sweep of Poisson VAEs: one row a model, any run can be stopped and started again.

        Writes PRESET.json, PRESET-features.json and, for each group, rows/ and work/ into --out.  Started again it skips
        finished groups and resumes the one that was stopped.

        Example: hitchhiker sweep pvae --preset laptop --workers 2
        """
        where = None if images is None else str(images)
        if cluster is None:  # its machines may have what this one has not
            device = str(check_device(device))
        check_threads(threads, 1)
        if images is not None and cluster is None and not images.is_dir():
            raise ValueError(f"--images must be a folder of images, got {where!r}")
        if dry:
            rows = estimate(preset, images=where, device=device, threads=threads)
            for row in rows:
                print(f"{row['group']:24} {row['models']:3} models {row['steps']:7} steps "
                      f"{row['ms_per_step']:9.1f} ms a step {row['hours']:8.2f} h")  # fmt: skip
            print(f"{'together':24} {sum(r['models'] for r in rows):3} models {sum(r['hours'] for r in rows):46.2f} h")
            return
        folder = out if out is not None else Path("runs") / f"pvae-{preset}"
        result = run(
            preset, folder, images=where, device=device, threads=threads, only=only or None, workers=workers,
            cluster=cluster, say=lambda line: print(line, file=sys.stderr, flush=True),
        )  # fmt: skip
        left = f"; not yet: {', '.join(result['missing'])}" if result["missing"] else ""
        print(f"{len(result['rows'])} models: {folder / preset}.json{left}")


__all__ = [
    "BUDGET_KINDS", "LONG_KINDS", "NONLINEAR_KINDS", "PRESETS", "Preset", "estimate", "groups", "matched_kinds",
    "measure", "register", "run", "store_features", "unpack_features", "width",
]  # fmt: skip
