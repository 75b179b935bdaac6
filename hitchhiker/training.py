"""Training that can be stopped at any moment and goes on to the same numbers.

:func:`fit` trains one model, or a population of models that share their data.  With ``out=DIR`` it leaves
there

    config.json             every setting, the versions, where the data came from
    metrics.csv             one row a logged epoch (and a model)
    checkpoint.safetensors  weights, optimizer, all random states, history: enough to go on
    model.safetensors       the weights, when training is done
    tensorboard/            the metrics once more, if wanted

A checkpoint is one file, replaced in one step, so a kill, a full disk or a power cut leaves the last one
whole.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import math
import platform
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from hitchhiker._files import (
    make_folder,
    read_json,
    require_entries,
    require_vacant,
    sha256,
    write_atomically,
    write_json,
)
from hitchhiker._random import own_random_numbers, stream
from hitchhiker.checks import require_seed
from hitchhiker.models.gaussian_vae import GaussianVAE
from hitchhiker.models.methods import get_method
from hitchhiker.models.pvae import ARCHITECTURES, Baselines, PoissonVAE

CHECKPOINT, CONFIG, METRICS, WEIGHTS = "checkpoint.safetensors", "config.json", "metrics.csv", "model.safetensors"
BOARD = "tensorboard"
#: steps on a GPU before one is recorded as a CUDA graph
WARM_UP = 3
COLUMNS = (
    "epoch", "step", "model", "neg_elbo", "sse", "kl", "grad_norm", "lr", "temperature", "beta",
    "val_neg_elbo", "val_sse", "val_kl", "seconds",
)  # fmt: skip


class TrainingDiverged(ArithmeticError):
    """A loss or gradient stopped being finite.

    Attributes: ``step``, ``parameter`` (the first one with a value or gradient that is not finite),
    ``model`` (its number in the population) and ``checkpoint`` (the last good one, or None).
    """

    def __init__(self, step: int, parameter: str, model: int, checkpoint: Path | None):
        self.step, self.parameter, self.model, self.checkpoint = step, parameter, model, checkpoint
        where = f"; the last good checkpoint is {checkpoint}" if checkpoint else ""
        super().__init__(f"training diverged at step {step}: {parameter} of model {model} is not finite{where}")


class CheckpointError(OSError):
    """A file of the run could not be written; the message names the last whole checkpoint."""


@dataclass(frozen=True)
class Settings:
    """How to train.  Raises ``ValueError`` naming argument, value and domain.

    Attributes
    ----------
    method : a name of ``hitchhiker.models.known_methods()``; a population takes one, or one a model.
    temperature : τ >= 0, dimensionless; a population takes one number or one a model.
    anneal : let τ fall linearly from 1 to ``temperature`` over the first half of the steps.
    epochs : passes over the training data; each drops the last incomplete batch.
    batch_size : items a step (the whole data set if it has fewer).
    num_samples : counts drawn per item and step.
    lr, lr_min : learning rate of Adamax, and where its cosine schedule ends.
    warmup_epochs : linear rise of the learning rate at the start (default: 5, but at most a twentieth of
        all).
    clip : largest norm of the gradient of each model.
    beta : weight of the KL term at the end of its schedule.
    anneal_kl : let it rise linearly from 1e-4 over the first half of the steps, as in the authors' code.
    seed : of the order of the data and of the counts drawn.
    evaluate_every : epochs between two logged rows (default: about 50 rows in all).
    """

    method: str | tuple[str, ...] = "eat-cubic"
    temperature: float | tuple[float, ...] = 0.1
    anneal: bool = False
    epochs: int = 20
    batch_size: int = 100
    num_samples: int = 1
    lr: float = 0.005
    lr_min: float = 1e-5
    warmup_epochs: float | None = None
    clip: float = 500.0
    beta: float = 1.0
    anneal_kl: bool = False
    seed: int = 0
    evaluate_every: int | None = None

    def __post_init__(self):
        for name in ("method", "temperature"):  # lists, as JSON gives them back, become tuples
            if isinstance(getattr(self, name), (list, tuple)):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        pairs = self._pairs()
        for name, t in pairs:
            method = get_method(name)
            if not 0 <= t < math.inf:
                raise ValueError(f"temperature must be >= 0, got {t}")
            if method.uses_temperature and t == 0:
                raise ValueError(f"temperature must be > 0 for method {name!r} (at 0 no gradient passes), got {t}")
            if method.max_temperature is not None and t > method.max_temperature:
                raise ValueError(f"temperature must be <= {method.max_temperature} for method {name!r}, got {t}")
        for name, least in (("epochs", 1), ("batch_size", 1), ("num_samples", 1), ("evaluate_every", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value >= least):
                raise ValueError(f"{name} must be a whole number >= {least}, got {value}")
        require_seed("seed", self.seed)
        for name in ("lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be > 0 and finite, got {getattr(self, name)}")
        for name in ("lr_min", "beta"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be >= 0 and finite, got {getattr(self, name)}")
        if self.warmup_epochs is not None and not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(f"warmup_epochs must be in [0, epochs), got {self.warmup_epochs}")

    def _pairs(self) -> list[tuple[str, float]]:
        """(method, temperature) of each model; one pair when all have the same."""
        methods, temperatures = self.method, self.temperature
        if isinstance(methods, str):
            each = temperatures if isinstance(temperatures, tuple) else (temperatures,)
            return [(methods, t) for t in each]
        each = temperatures if isinstance(temperatures, tuple) else (temperatures,) * len(methods)
        if len(each) != len(methods):
            raise ValueError(f"temperature must have one entry for each of {len(methods)} methods, got {len(each)}")
        return list(zip(methods, each, strict=True))


@dataclass(frozen=True)
class Schedule:
    """Learning rate, temperature and KL weight as functions of the step alone: nothing to save, nothing to
    lose."""

    settings: Settings
    total: int
    warmup: int

    def lr(self, step: int) -> float:
        """Linear warm-up, then a cosine from ``lr`` to ``lr_min``."""
        s = self.settings
        if step < self.warmup:
            return s.lr * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.total - self.warmup)
        return s.lr_min + (s.lr - s.lr_min) * 0.5 * (1 + math.cos(math.pi * progress))

    def temperature(self, step: int) -> tuple[float, ...]:
        """τ of each model (one entry when all share it)."""
        final = self.settings.temperature
        finals = final if isinstance(final, tuple) else (final,)
        if not self.settings.anneal:
            return finals
        return tuple(t + (1.0 - t) * max(0.0, 1 - 2 * step / self.total) for t in finals)

    def beta(self, step: int) -> float:
        """Weight of the KL term."""
        s = self.settings
        if not s.anneal_kl:
            return s.beta
        return min(s.beta, 1e-4 + (s.beta - 1e-4) * 2 * step / self.total)


@dataclass
class Fit:
    """What training leaves: the history, the settings, and how far it came."""

    history: list[dict[str, Any]]
    settings: Settings
    steps: int
    out: Path | None = None

    def column(self, name: str, model: int = 0) -> list[float]:
        """One column of the history for one model, over the logged epochs."""
        if name not in COLUMNS:
            raise ValueError(f"name must be one of {COLUMNS}, got {name!r}")
        return [row[name] for row in self.history if row["model"] == model]


@dataclass
class _State:
    """Everything that changes while training, besides the model."""

    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    #: (4, models): -ELBO, SSE, KL and gradient norm, summed over the steps of the current epoch
    sums: Tensor = field(default_factory=lambda: torch.zeros(4, 1, dtype=torch.float64))


def fit(
    model: PoissonVAE | GaussianVAE,
    train: Float[Tensor, "items pixels"],
    validation: Float[Tensor, "held pixels"] | None = None,
    *,
    out: str | PathLike[str] | None = None,
    resume: bool = False,
    settings: Settings | None = None,
    provenance: dict[str, Any] | None = None,
    progress: bool | None = None,
    checkpoint_seconds: float = 30.0,
    tensorboard: bool = False,
    **options: Any,
) -> Fit:
    """Train a model (or a population) by Adamax on -ELBO.

    Parameters
    ----------
    model : changed in place.  A population trains as one: same batches for all, gradients clipped model by
        model.
    train, validation : (N, D) float tensors; moved to the model's device and precision.  Validation is at τ = 0: in
        closed form for a linear decoder, else from 8 counts a patch.
    out : folder for configuration, metrics, checkpoints and weights; None keeps nothing.
    resume : go on from the checkpoint in ``out`` (from the start when there is none yet).
    settings : a :class:`Settings`; or give its fields as ``options`` (``method="exact"``, ``epochs=10``, …).
    provenance : of the data, kept in ``config.json``.
    progress : a progress bar with remaining time on stderr; None shows one on a terminal only.
    checkpoint_seconds : least time between two checkpoints; 0 writes one after every step.
    tensorboard : write the metrics to ``out/tensorboard`` too (needs the package tensorboard).

    Returns a :class:`Fit`.  Raises ``ValueError`` for bad settings or data, a folder that is not empty or
    holds another run, before anything is written; :class:`TrainingDiverged`; :class:`CheckpointError` (an
    ``OSError``) when the disk is full.  Ctrl-C finishes the step, writes a checkpoint and raises
    ``KeyboardInterrupt``.

    The same seed gives the same numbers on the same device and number of threads, resumed or not.

    >>> x = torch.randn(200, 16)
    >>> run = fit(PoissonVAE(16, 4), x, x[:50], method="exact", epochs=2, batch_size=50)
    >>> run.steps, len(run.column("val_neg_elbo"))
    (8, 2)

    Source: section G.1 (Adamax, 0.005, cosine, clip 500).
    """
    if settings is not None and options:
        raise ValueError(f"settings and options must not both be given, got {sorted(options)} too")
    settings = settings or _settings(options)
    _check_data(model, train, validation, settings)
    dtype = next(model.parameters()).dtype
    train, validation = train.to(dtype), None if validation is None else validation.to(dtype)
    if tensorboard and out is None:
        raise ValueError("tensorboard must be False when out is None: there is nowhere to write to")
    board = _summary_writer() if tensorboard else None
    run = _Run(model, train, validation, settings, out, provenance, checkpoint_seconds)
    if run.folder is not None:
        _need_safetensors()
        run.open(resume)
    elif resume:
        raise ValueError("resume must be False when out is None: there is nothing to resume from")
    with _own_random_streams(settings.seed, run.device), _deferred_interrupt() as interrupted:
        if run.folder is not None and (run.folder / CHECKPOINT).exists():
            run.load()
        elif run.folder is not None:
            run.checkpoint()
        if board is not None and run.folder is not None:
            # what was logged after the checkpoint that a run resumes from is not shown
            run.board = board(str(run.folder / BOARD), purge_step=run.state.step + 1)
        with contextlib.closing(run), _progress_bar(run, progress) as advance:
            run.train(advance, interrupted)
    return Fit(run.state.history, settings, run.state.step, run.folder)


class _Run:
    """One training run: the loop, and what is kept of it."""

    def __init__(
        self,
        model: PoissonVAE | GaussianVAE,
        train: Tensor,
        validation: Tensor | None,
        settings: Settings,
        out: str | PathLike[str] | None,
        provenance: dict[str, Any] | None,
        checkpoint_seconds: float,
    ):
        self.model, self.settings = model, settings
        self.device = next(model.parameters()).device
        self.models = model.population or 1
        self.train_data = train.to(self.device)
        self.validation = None if validation is None else validation.to(self.device)
        self.folder = None if out is None else Path(out)
        self.checkpoint_seconds = checkpoint_seconds
        self.state = _State(sums=torch.zeros(4, self.models, dtype=torch.float64, device=self.device))
        self.batch = min(settings.batch_size, len(train))
        self.steps_per_epoch = len(train) // self.batch
        total = settings.epochs * self.steps_per_epoch
        warmup = settings.warmup_epochs
        if warmup is None:
            warmup = min(5.0, settings.epochs / 20)
        self.schedule = Schedule(settings, total, round(warmup * self.steps_per_epoch))
        self.evaluate_every = settings.evaluate_every or max(1, settings.epochs // 50)
        names = (settings.method,) if isinstance(settings.method, str) else settings.method
        methods = tuple(get_method(name) for name in names)
        self.method = methods[0] if isinstance(settings.method, str) else methods
        remembers = any(method.baseline == "moving_average" for method in methods)
        self.baselines = Baselines(self.models) if remembers else None
        # What changes from step to step lies in tensors of their own, so that a step can be replayed as a CUDA graph.
        gpu = self.device.type == "cuda"
        self.rows = torch.zeros(self.batch, dtype=torch.long, device=self.device)
        self.tau = torch.tensor(self.schedule.temperature(0), device=self.device)
        self.beta = torch.zeros((), device=self.device)
        self.lr = torch.tensor(settings.lr, device=self.device) if gpu else settings.lr
        self.number = torch.zeros((), dtype=torch.long, device=self.device)
        self.failed_at = torch.full((self.models,), -1, device=self.device)
        self.optimizer = torch.optim.Adamax(
            model.parameters(), lr=self.lr, foreach=True if gpu else None, capturable=gpu
        )
        built_in = all(model.settings[role] in ARCHITECTURES for role in ("encoder", "decoder"))
        self.capture = gpu and built_in and all(method.captures for method in methods)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.warm = 0
        self.names = [name for name, _ in model.named_parameters()]
        self.config = {
            "model": model.settings,
            "training": dataclasses.asdict(settings),
            "data": provenance or {},
            "items": {"train": len(train), "validation": 0 if validation is None else len(validation)},
        }
        if self.folder is not None:
            self.config["data_sha256"] = {"train": sha256(train), "validation": sha256(validation)}
        self.board: Any = None
        self.saved_at = -math.inf
        self.saved_step: int | None = None
        self.started = time.monotonic()

    # --- the loop

    def train(self, advance, interrupted) -> None:
        before = self.state.seconds
        self.started = time.monotonic()
        order = self._order(self.state.step // self.steps_per_epoch)
        while self.state.step < self.schedule.total:
            epoch, within = divmod(self.state.step, self.steps_per_epoch)
            if within == 0:
                order = self._order(epoch)
            self._step(order[within * self.batch : (within + 1) * self.batch])
            self.state.step += 1
            self.state.seconds = before + time.monotonic() - self.started
            if within + 1 == self.steps_per_epoch:
                self._finish_epoch(epoch + 1)
            last = self.state.step == self.schedule.total
            if last or interrupted() or time.monotonic() - self.saved_at >= self.checkpoint_seconds:
                self.checkpoint()
            advance(self.state)
            if interrupted() and not last:
                raise KeyboardInterrupt(f"stopped at step {self.state.step} of {self.schedule.total}")
        if self.folder is not None:
            described = json.dumps({"model": self.model.settings}, sort_keys=True)
            self._write(WEIGHTS, _safetensors(self._weights(), {"config": described}))

    def _order(self, epoch: int) -> Tensor:
        # From (seed, epoch) alone, so that a resumed run sees the same batches.
        generator = torch.Generator().manual_seed(stream(self.settings.seed, epoch))
        return torch.randperm(len(self.train_data), generator=generator).to(self.device)

    def _step(self, rows: Tensor) -> None:
        step = self.state.step
        self.rows.copy_(rows)
        self.number.fill_(step)
        self.beta.fill_(self.schedule.beta(step))
        for tau, value in zip(self.tau, self.schedule.temperature(step), strict=True):
            tau.fill_(value)
        if isinstance(self.lr, Tensor):
            self.lr.fill_(self.schedule.lr(step))
        else:
            for group in self.optimizer.param_groups:
                group["lr"] = self.schedule.lr(step)
        if self.graph is not None:
            self.graph.replay()
        elif not self.capture:
            self._work()
        else:
            self._warm_up()

    def _warm_up(self) -> None:
        """A few steps as they come, on a stream of their own, then the next one is recorded for all that follow."""
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            self._work()
        torch.cuda.current_stream(self.device).wait_stream(side)
        self.warm += 1
        if self.warm == WARM_UP:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):  # records, runs nothing
                self._work()
            self.graph = graph

    def _work(self) -> None:
        """One step on what :meth:`_step` has laid out.  On a GPU nothing in here waits for the host."""
        memory = self.baselines
        self.optimizer.zero_grad(set_to_none=True)
        sse, kl = self.model.parts(
            self.train_data[self.rows],
            self.method,
            self.tau if len(self.tau) > 1 else self.tau[0],
            self.settings.num_samples,
            memory if memory is None or self.model.population else memory[0],  # type: ignore[arg-type]
        )
        sse, kl = sse.mean(dim=-1), kl.mean(dim=-1)
        loss = sse + self.beta * kl
        loss.sum().backward()  # models of a population have no parameter in common
        norm = self._clip()
        failed = ~(torch.isfinite(loss.detach()) & torch.isfinite(norm)).reshape(-1)
        self.failed_at.copy_(torch.where(failed & (self.failed_at < 0), self.number, self.failed_at))
        # elsewhere looking means waiting: before the next row or checkpoint is early enough
        if self.device.type == "cpu":
            self._raise_if_diverged()
        self.optimizer.step()
        row = torch.stack([(sse + kl).detach(), sse.detach(), kl.detach(), norm]).double()
        self.state.sums.add_(row.reshape(4, -1))

    def _raise_if_diverged(self) -> None:
        if bool((self.failed_at >= 0).any()):
            steps = self.failed_at.tolist()
            step, model = min((at, p) for p, at in enumerate(steps) if at >= 0)
            raise TrainingDiverged(step, self._culprit(), model, self._last_checkpoint())

    def _clip(self) -> Tensor:
        """Scale each model's gradient to a norm of at most ``clip``; returns the norms before."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        axes = 1 if self.model.population else 0
        norm = sum(g.square().flatten(axes).sum(dim=-1) for g in gradients)
        assert isinstance(norm, Tensor)
        norm = norm.sqrt()
        factor = (self.settings.clip / norm.clamp(min=1e-12)).clamp(max=1.0)
        for g in gradients:
            g.mul_(factor.view(-1, *([1] * (g.dim() - 1))) if axes else factor)
        return norm.detach()

    def _culprit(self) -> str:
        for name, parameter in self.model.named_parameters():
            if not torch.isfinite(parameter).all():
                return name
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                return f"the gradient of {name}"
        return "the loss"

    def _finish_epoch(self, epoch: int) -> None:
        average = self.state.sums / self.steps_per_epoch
        self.state.sums.zero_()
        if epoch % self.evaluate_every and epoch != self.settings.epochs:
            return
        self._raise_if_diverged()
        means = average.tolist()
        held = self._validate()
        last = self.state.step - 1
        temperature = self.schedule.temperature(last)
        for p in range(self.models):
            row = {
                "epoch": epoch, "step": self.state.step, "model": p,
                "neg_elbo": means[0][p], "sse": means[1][p], "kl": means[2][p], "grad_norm": means[3][p],
                "lr": self.schedule.lr(last), "temperature": temperature[p % len(temperature)],
                "beta": self.schedule.beta(last),
                **{name: None if held is None else held[name][p] for name in ("val_neg_elbo", "val_sse", "val_kl")},
                "seconds": round(self.state.seconds, 3),
            }  # fmt: skip
            self.state.history.append(row)
        self._append_metrics(self.state.history[-self.models :])
        self._show_on_board(self.state.history[-self.models :])

    def _show_on_board(self, rows: Sequence[dict[str, Any]]) -> None:
        if self.board is None:
            return
        for row in rows:
            where = f"/model {row['model']}" if self.model.population else ""
            for name, value in row.items():
                if value is not None and name not in {"epoch", "step", "model"}:
                    self.board.add_scalar(name + where, value, row["step"])

    def close(self) -> None:
        """Finish what is open."""
        if self.board is not None:
            self.board.close()

    @torch.no_grad()
    def _validate(self) -> dict[str, list[float]] | None:
        if self.validation is None:
            return None
        if self.model.phi is None:
            result = self.model.evaluate(self.validation, num_samples=8)
            sse, kl = result.sse, result.kl
        else:  # at τ = 0 the closed form of a linear decoder has no sampling noise
            parts = [self.model.parts(x, "exact", 0.0) for x in self.validation.split(2000)]
            sse, kl = (torch.cat(p, dim=-1).double().mean(dim=-1) for p in zip(*parts, strict=True))
        columns = {"val_neg_elbo": sse + kl, "val_sse": sse, "val_kl": kl}
        return {name: value.reshape(-1).tolist() for name, value in columns.items()}

    # --- what is kept

    def open(self, resume: bool) -> None:
        """Make the folder and its configuration, or check that it holds this very run."""
        folder = self.folder
        assert folder is not None
        if not resume:
            require_vacant("out", folder)
            make_folder("out", folder)
            self._write_config()
            return
        if not (folder / CONFIG).exists():
            raise ValueError(f"out must be the folder of a run to resume, got {str(folder)!r} without {CONFIG}")
        stored = read_json(folder / CONFIG, ("model", "training", "items"))
        mine = json.loads(json.dumps(self.config))
        for part in ("model", "training", "items"):
            for name, value in mine[part].items():
                if stored[part].get(name) != value:
                    raise ValueError(
                        f"{name} must be {stored[part].get(name)} to resume the run in {str(folder)!r}, got {value}"
                    )
        for name, value in mine["data_sha256"].items():
            if stored.get("data_sha256", mine["data_sha256"])[name] != value:  # earlier runs have none
                raise ValueError(f"{name} must be the data of the run in {str(folder)!r} to resume it, got other data")

    def _write_config(self) -> None:
        versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
        machine = {"device": str(self.device), "threads": torch.get_num_threads()}
        self._write(CONFIG, json.dumps(self.config | {"versions": versions, "machine": machine}, indent=2) + "\n")

    def checkpoint(self) -> None:
        """Write all state as one file, in one step."""
        if self.folder is None or self.saved_step == self.state.step:
            return
        self._raise_if_diverged()
        if self.saved_step is None:
            self._rewrite_metrics()
        tensors = {f"model.{name}": value for name, value in self._weights().items()}
        for i, name in enumerate(self.names):
            parameter = self.optimizer.param_groups[0]["params"][i]
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{name}.{key}"] = torch.as_tensor(value)
        tensors["random.torch"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.device)
        tensors["sums"] = self.state.sums
        python_version, python_words, python_gauss = random.getstate()
        numpy_state: Any = np.random.get_state(legacy=False)  # noqa: NPY002
        numpy_state["state"]["key"] = numpy_state["state"]["key"].tolist()
        state = {
            "step": self.state.step,
            "seconds": self.state.seconds,
            "history": self.state.history,
            "random.python": [python_version, list(python_words), python_gauss],
            "random.numpy": numpy_state,
            "baselines": None if self.baselines is None else [[float(b._sum), b._norm] for b in self.baselines],
        }
        self._write(CHECKPOINT, _safetensors(tensors, {"state": json.dumps(state)}))
        self.saved_at, self.saved_step = time.monotonic(), self.state.step

    def load(self) -> None:
        """Take up the checkpoint in the folder."""
        assert self.folder is not None
        path = self.folder / CHECKPOINT
        tensors, state = _read_safetensors(
            path, "state", ("step", "seconds", "history", "random.python", "random.numpy", "baselines")
        )
        try:
            self._take_up(tensors, state)
        except (KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"{path} cannot be read as a checkpoint of this run: {error}") from error
        self._rewrite_metrics()

    def _take_up(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        self.model.load_state_dict({n[6:]: v for n, v in tensors.items() if n.startswith("model.")})
        for i, name in enumerate(self.names):
            prefix = f"optimizer.{name}."
            own = {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
            if own:
                parameter = self.optimizer.param_groups[0]["params"][i]
                # without capture Adamax counts its steps on the CPU, which is where the file's tensors are
                self.optimizer.state[parameter] = {key: value.to(self.device) for key, value in own.items()}
        torch.set_rng_state(tensors["random.torch"])
        if "random.cuda" in tensors and self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random.cuda"], self.device)
        version, words, gauss = state["random.python"]
        random.setstate((version, tuple(words), gauss))
        numpy_state = state["random.numpy"]
        numpy_state["state"]["key"] = np.array(numpy_state["state"]["key"], dtype=np.uint32)
        np.random.set_state(numpy_state)  # noqa: NPY002 - the caller's f may use the global stream
        if self.baselines is not None:
            for baseline, (total, norm) in zip(self.baselines, state["baselines"], strict=True):
                baseline._sum, baseline._norm = torch.tensor(total, device=self.device), norm
        self.state.sums.copy_(tensors["sums"])
        self.state.step, self.state.seconds, self.state.history = state["step"], state["seconds"], state["history"]
        self.saved_step = self.state.step
        self.saved_at = time.monotonic()

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in self.model.state_dict().items()}

    def _last_checkpoint(self) -> Path | None:
        path = None if self.folder is None else self.folder / CHECKPOINT
        return path if path is not None and path.exists() else None

    def _write(self, name: str, content: bytes | str) -> None:
        assert self.folder is not None
        path = self.folder / name
        try:
            write_atomically(path, content)
        except OSError as error:
            raise self._cannot_write(path, error) from error

    def _cannot_write(self, path: Path, error: OSError) -> CheckpointError:
        last = self._last_checkpoint()
        kept = f"the checkpoint {last} is whole (step {self.saved_step})" if last else "there is no checkpoint yet"
        return CheckpointError(error.errno, f"{path} could not be written: {error.strerror or error}; {kept}")

    def _rewrite_metrics(self) -> None:
        self._write(METRICS, _csv_text([dict(zip(COLUMNS, COLUMNS, strict=True)), *self.state.history]))

    def _append_metrics(self, rows: list[dict[str, Any]]) -> None:
        if self.folder is None:
            return
        path = self.folder / METRICS
        try:
            with open(path, "a", encoding="utf-8", newline="") as stream:
                stream.write(_csv_text(rows))
        except OSError as error:
            raise self._cannot_write(path, error) from error


# --- reading a run back


def load_model(
    folder: str | PathLike[str], *, encoder: nn.Module | None = None, decoder: nn.Module | None = None
) -> PoissonVAE | GaussianVAE:
    """The trained model of a finished run's folder.

    Parameters
    ----------
    folder : the run's ``out``.
    encoder, decoder : modules of the same structure, for a run with your own; their weights are overwritten.

    Raises ``ValueError`` naming the folder when it holds no finished run, or the module that is missing or does not fit.
    """
    _need_safetensors()
    folder = Path(folder)
    if not (folder / WEIGHTS).exists():
        raise ValueError(f"folder must hold a finished run ({WEIGHTS}), got {str(folder)!r}")
    tensors, described = _read_safetensors(folder / WEIGHTS, "config", ("model",))
    settings = require_entries(folder / WEIGHTS, described["model"], ("encoder", "decoder"))
    for role, module in (("encoder", encoder), ("decoder", decoder)):
        own = settings[role] not in ARCHITECTURES
        if own and module is None:
            raise ValueError(f"{role} must be given, a {settings[role]} of the run's structure, got None")
        if module is not None:
            if not own:
                raise ValueError(f"{role} must be None for a run with the {role} {settings[role]!r}, got a module")
            settings[role] = module
    gaussian = settings.pop("code", "poisson") == "gaussian"
    if gaussian:
        settings = {name: value for name, value in settings.items() if name not in {"encoder", "decoder"}}
    model = GaussianVAE(**settings) if gaussian else PoissonVAE(**settings)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"the weights in {str(folder)!r} do not fit the model: {error}") from error
    return model


def read_config(folder: str | PathLike[str]) -> dict[str, Any]:
    """``config.json`` of a run's folder.  Raises ``ValueError`` naming the folder when there is none."""
    path = Path(folder) / CONFIG
    if not path.exists():
        raise ValueError(f"out must be the folder of a run to resume, got {str(folder)!r} without {CONFIG}")
    return read_json(path, ("model", "training", "data"))


# --- small parts


def _settings(options: dict[str, Any]) -> Settings:
    names = [f.name for f in dataclasses.fields(Settings)]
    unknown = sorted(set(options) - set(names))
    if unknown:
        raise ValueError(f"options must be among {names}, got {unknown}")
    return Settings(**options)


def _check_data(model: PoissonVAE | GaussianVAE, train: Tensor, validation: Tensor | None, settings: Settings) -> None:
    for name, data in (("train", train), ("validation", validation)):
        if data is None:
            continue
        if not (isinstance(data, Tensor) and data.is_floating_point()):
            kind = data.dtype if isinstance(data, Tensor) else type(data).__name__
            raise ValueError(f"{name} must be a tensor of floating point numbers, got {kind}")
        if data.dim() != 2 or data.shape[1] != model.num_pixels or len(data) == 0:
            raise ValueError(f"{name} must be (N, {model.num_pixels}) with N >= 1, got shape {tuple(data.shape)}")
        if not bool(torch.isfinite(data).all()):
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    names = (settings.method,) if isinstance(settings.method, str) else settings.method
    if "exact" in names and model.phi is None:
        raise ValueError("method 'exact' needs a linear decoder: its loss has a closed form; try 'difference'")
    models = model.population or 1
    if isinstance(settings.temperature, tuple) and len(settings.temperature) != models:
        raise ValueError(
            f"temperature must be one number or one for each of {models} models, got {len(settings.temperature)}"
        )
    if not isinstance(settings.method, str) and len(settings.method) != model.population:
        raise ValueError(
            f"method must be one name or one for each of a population's {model.population} models, "
            f"got {len(settings.method)}"
        )


def _need_safetensors() -> None:
    try:
        import safetensors.torch  # noqa: F401
    except ImportError as error:
        raise ImportError('keeping a run needs safetensors: pip install "hitchhiker[train]"') from error


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("TensorBoard metrics need a package: pip install tensorboard") from error
    return SummaryWriter


def _safetensors(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    from safetensors.torch import save

    return save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, metadata)


def _read_safetensors(path: Path, entry: str, required: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, and what the file's metadata say under ``entry``.  Raises ``ValueError`` naming the file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            found = json.loads((file.metadata() or {}).get(entry, "{}"))
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read as a checkpoint: {error}") from error
    return tensors, require_entries(path, found, required)


def _csv_text(rows: Sequence[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    csv.DictWriter(buffer, COLUMNS, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


@contextlib.contextmanager
def _own_random_streams(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch, numpy and Python for the run, and give the caller's streams back afterwards."""
    python_state = random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002
    with own_random_numbers(seed, device):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002


@contextlib.contextmanager
def _deferred_interrupt():
    """Ctrl-C sets a flag that is looked at between steps; a second one stops at once.

    Signals can be caught in the main thread only; elsewhere Ctrl-C acts as it always does.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked: list[int] = []

    def remember(number, frame):
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    previous = signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def _progress_bar(run: _Run, wanted: bool | None):
    """A bar with loss and remaining time, or nothing."""
    show = sys.stderr.isatty() if wanted is None else wanted
    if show:
        try:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        except ImportError:
            show = False
    if not show:
        yield lambda state: None
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps, left"),
        TimeRemainingColumn(), TextColumn("{task.fields[loss]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=4) as bar:
        method = run.settings.method
        title = method if isinstance(method, str) else f"{len(method)} models"
        task = bar.add_task(title, total=run.schedule.total, completed=run.state.step, loss="")

        def advance(state: _State) -> None:
            loss = ""
            if state.history:
                row = state.history[-1]
                value = row["neg_elbo"] if row["val_neg_elbo"] is None else row["val_neg_elbo"]
                loss = f"{'-ELBO' if row['val_neg_elbo'] is None else 'validation -ELBO'} {value:.2f}"
            bar.update(task, completed=state.step, loss=loss)

        yield advance


__all__ = [
    "CheckpointError",
    "Fit",
    "Schedule",
    "Settings",
    "TrainingDiverged",
    "fit",
    "load_model",
    "read_config",
    "write_json",
]
