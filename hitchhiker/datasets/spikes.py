"""Spike counts in bins: synthetic networks of which a part is hidden, your own recordings, and four real cells.

Counts have the shape (sequences, T bins, N neurons), as floats that are whole numbers.  In a network the visible
neurons come first, the hidden ones last.
"""

from __future__ import annotations

import io
import math
import sys
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Real
from torch import Tensor

from hitchhiker._random import stream
from hitchhiker.checks import require_count, require_seed
from hitchhiker.models.glm import check_counts, get_link

#: what a damaged archive raises, besides OSError: RuntimeError is an encrypted or unknown compression
_DAMAGED = (EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error)
PRESETS = ("paper", "released", "strong")
PARASOL_URL = "https://pillowlab.princeton.edu/data/data_RGCs.zip"
PARASOL_TERMS = (
    "Macaque parasol cells recorded by Uzzell & Chichilnisky (2004), shared by the Pillow lab for tutorial use only: "
    "not to be passed on; for anything else ask the authors."
)


@dataclass(frozen=True)
class SpikeData:
    """Spike counts for training and for test, and, where they are known, the truth behind them.

    Attributes
    ----------
    train, test : (*data, sequences, T, V) counts of the visible neurons.
    train_hidden, test_hidden : the same of the hidden ones, (…, H), or None.
    weights, bias : of the network that made them, (*data, N, N, K) and (*data, N) with N = V + H, or None.
    link, max_rate : of that network; rates are clamped at ``max_rate`` counts a bin.
    clipped : (*data) fraction of its rates that the clamp held.
    preset, provenance : where the counts come from.
    """

    train: Tensor
    test: Tensor
    train_hidden: Tensor | None = None
    test_hidden: Tensor | None = None
    weights: Tensor | None = None
    bias: Tensor | None = None
    link: str = "softplus"
    max_rate: float = math.inf
    clipped: Tensor | None = None
    preset: str = "recording"
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def num_visible(self) -> int:
        return self.train.shape[-1]

    @property
    def num_hidden(self) -> int:
        """H, 0 when the hidden neurons are not known."""
        return 0 if self.train_hidden is None else self.train_hidden.shape[-1]

    @property
    def silent(self) -> Tensor:
        """(*data) visible neurons that never fire in training."""
        return (self.train.sum(dim=(-3, -2)) == 0).sum(dim=-1)

    @property
    def silent_sequences(self) -> Tensor:
        """(*data) training sequences without one visible spike: they say little, and no model is at fault."""
        return (self.train.sum(dim=(-2, -1)) == 0).sum(dim=-1)

    def __getitem__(self, index: Any) -> SpikeData:
        """One data set of several (or a slice of them)."""
        if self.train.dim() <= 3:
            raise IndexError("there is one data set only")

        def part(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[index]

        return SpikeData(
            self.train[index], self.test[index], part(self.train_hidden), part(self.test_hidden),
            part(self.weights), part(self.bias), self.link, self.max_rate, part(self.clipped), self.preset,
            self.provenance,
        )  # fmt: skip

    def __repr__(self) -> str:
        rate = self.train.mean()
        return (
            f"SpikeData({self.preset}: train {tuple(self.train.shape)}, test {tuple(self.test.shape)}, "
            f"{self.num_hidden} hidden, {rate:.2f} counts a bin)"
        )


def spectral_radius(weights: Float[Tensor, "*data to source lags"]) -> Float[Tensor, "*data"]:
    """Largest eigenvalue of Σ_k max(W_k, 0): below 1, a softplus or ReLU network cannot explode.

    softplus is 1-Lipschitz and non-negative, so the mean rates obey m <= f(b) + Σ_k max(W_k, 0) m.

    >>> spectral_radius(torch.tensor([[[0.5]]]))
    tensor(0.5000)
    """
    return torch.linalg.eigvals(weights.clamp(min=0).sum(dim=-1).double()).abs().amax(dim=-1).to(weights.dtype)


@torch.no_grad()
def simulate_spikes(
    weights: Float[Tensor, "*data neurons neurons lags"],
    bias: Float[Tensor, "*data neurons"],
    num_sequences: int,
    length: int,
    *,
    link: str = "softplus",
    max_rate: float = math.inf,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, "*data sequences bins neurons"], Float[Tensor, "*data"]]:
    """Counts of a network, bin by bin: x_t ~ Poisson(min(f(b + Σ_k W_k x_{t-k}), max_rate)), silent before bin 0.

    Returns the counts and the fraction of rates that the clamp held.  Raises ``ArithmeticError`` when counts leave
    10⁶ a bin: a network that explodes needs weaker weights or a clamp.

    >>> x, clipped = simulate_spikes(torch.zeros(2, 2, 1), torch.zeros(2), 5, 10)
    >>> x.shape, float(clipped)
    (torch.Size([5, 10, 2]), 0.0)
    """
    require_count("num_sequences", num_sequences)
    require_count("length", length)
    history, neurons, f = weights.shape[-1], bias.shape[-1], get_link(link)
    matrix = weights.movedim(-1, -2).flatten(-2).mT  # (*data, K·N, N), the nearest lag first
    past = weights.new_zeros(*bias.shape[:-1], num_sequences, history, neurons)
    counts: list[Tensor] = []
    held = weights.new_zeros(bias.shape[:-1])
    for _ in range(length):
        rate = f.rate(past.flatten(-2) @ matrix + bias.unsqueeze(-2))
        held += (rate > max_rate).to(held).mean(dim=(-1, -2)) / length
        rate = rate.clamp(max=max_rate)
        if not bool((rate < 1e6).all()):
            raise ArithmeticError(
                f"rates must stay below 1e6 counts a bin, got {float(rate.max()):g} after {len(counts)} bins: "
                "use weaker weights (spectral_radius below 1) or max_rate"
            )
        now = torch.poisson(rate, generator=generator)
        counts.append(now)
        past = torch.cat([now.unsqueeze(-2), past[..., :-1, :]], dim=-2) if history else past
    return torch.stack(counts, dim=-2), held


def synthetic_poglm(
    preset: str = "paper",
    num_sets: int = 10,
    *,
    num_train: int = 40,
    num_test: int = 20,
    length: int = 100,
    num_visible: int = 3,
    num_hidden: int = 2,
    seed: int = 0,
) -> SpikeData:
    """Spike trains of networks with hidden neurons, one network a data set.

    Parameters
    ----------
    preset : which networks.  ``"paper"``: as section G.2 says, weights U(-2, 2) over three bins and biases U(-.5, .5); with
        softplus all of them explode, so rates are clamped at 10 as in the authors' code, and the clamp holds a fifth to
        three quarters of them (``.clipped``).  ``"released"``: what the authors' code makes of it; its convolution keeps
        the initial weights of its library, U(-1/√15, 1/√15) for 5 inputs and 3 bins (sizes up to .258), and rates stay
        below the clamp.  ``"strong"``: hidden neurons that matter, and rates that are stable by construction
        (:func:`spectral_radius` below 1).  It has one bin of history; hidden to visible weights of size 2 to 4, positive
        with probability .7, else times -.6; visible to visible U(-.3, .3), visible to hidden U(-.1, .1), hidden to itself
        .5; biases .5 visible and -2 hidden.  Rare, strong, shared input: no history of the visible neurons replaces it.
    num_sets, num_train, num_test, length : data sets, sequences of each kind, bins.
    num_visible, num_hidden : V and H.
    seed : the numbers of a data set depend on the seed and its index only, not on ``num_sets``.

    Returns a :class:`SpikeData` with leading axis ``num_sets``.  Raises ``ValueError`` for an unknown preset or a
    size below 1.

    >>> data = synthetic_poglm("strong", 1)[0]
    >>> data.train.shape, data.weights.shape
    (torch.Size([40, 100, 3]), torch.Size([5, 5, 1]))

    Source: section G.2 ("paper"); the authors' public code ("released"); beyond the paper ("strong").
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    for name, value in (
        ("num_sets", num_sets), ("num_train", num_train), ("num_test", num_test), ("length", length),
        ("num_visible", num_visible), ("num_hidden", num_hidden),
    ):  # fmt: skip
        require_count(name, value)
    require_count("seed", seed, minimum=0)
    require_seed("seed", seed)
    max_rate = 100.0 if preset == "strong" else 10.0
    draw = _strong if preset == "strong" else _uniform(2.0 if preset == "paper" else None)
    parts = []
    for index in range(num_sets):
        generator = torch.Generator().manual_seed(stream(seed, index))
        weights, bias = draw(num_visible, num_hidden, generator)
        counts, clipped = simulate_spikes(
            weights, bias, num_train + num_test, length, max_rate=max_rate, generator=generator
        )
        parts.append((counts, clipped, weights, bias))
    counts, clipped, weights, bias = (torch.stack(p) for p in zip(*parts, strict=True))
    train, test = counts.split([num_train, num_test], dim=1)
    v = num_visible
    return SpikeData(
        train[..., :v], test[..., :v], train[..., v:], test[..., v:], weights, bias, "softplus", max_rate, clipped, preset,
        {"preset": preset, "num_sets": num_sets, "num_train": num_train, "num_test": num_test, "length": length,
         "num_visible": num_visible, "num_hidden": num_hidden, "seed": seed},
    )  # fmt: skip


def _uniform(bound: float | None) -> Callable[[int, int, torch.Generator], tuple[Tensor, Tensor]]:
    def draw(visible: int, hidden: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        n, history = visible + hidden, 3
        top = 1 / math.sqrt(n * history) if bound is None else bound
        weights = top * (2 * torch.rand(n, n, history, generator=generator) - 1)
        return weights, torch.rand(n, generator=generator) - 0.5

    return draw


def _strong(visible: int, hidden: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One network of the preset "strong", by rejection."""
    n = visible + hidden
    least = min(2, visible)
    bias = torch.cat([torch.full((visible,), 0.5), torch.full((hidden,), -2.0)])

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    for _ in range(10_000):
        weights = torch.zeros(n, n)
        positive = torch.rand(visible, hidden, generator=generator) < 0.7
        weights[:visible, visible:] = uniform(2.0, 4.0, visible, hidden) * torch.where(positive, 1.0, -0.6)
        weights[:visible, :visible] = uniform(-0.3, 0.3, visible, visible)
        weights[visible:, :visible] = uniform(-0.1, 0.1, hidden, visible)
        weights[visible:, visible:] = 0.5 * torch.eye(hidden)
        columns = weights[:visible, visible:] / weights[:visible, visible:].norm(dim=0)
        similar = (columns.T @ columns - torch.eye(hidden)).max()
        enough = bool((positive.sum(dim=0) >= least).all())
        if enough and similar < 0.7 and spectral_radius(weights[..., None]) < 1:
            return weights[..., None], bias
    raise ValueError(
        f"num_visible and num_hidden must leave room for distinct, stable hidden inputs, got {visible} and {hidden}"
    )


# --- recordings


def load_spikes(path: str | PathLike[str], key: str | None = None) -> Float[Tensor, "bins neurons"]:
    """Spike counts (T, N) from a ``.npz`` file: whole numbers >= 0, T bins, N neurons.

    ``key`` names the array; needed only if the file holds several.  Raises ``ValueError`` naming the file and what
    is wrong: missing, not an .npz, no such array, wrong shape, negative, fractional or not finite.
    """
    path = Path(path)
    try:
        archive = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it is a single .npy array")
    except OSError as error:
        raise ValueError(f"spikes {path} cannot be read: {error.strerror or error}") from error
    except _DAMAGED as error:
        raise ValueError(f"spikes {path} must be an .npz archive of counts: {error}") from error
    with archive:
        names = archive.files
        if key is None and len(names) != 1:
            raise ValueError(f"key must name one of the arrays of {path}, {names}, got none")
        name = names[0] if key is None else key
        if name not in names:
            raise ValueError(f"key must name one of the arrays of {path}, {names}, got {name!r}")
        try:
            counts = archive[name]
        except (OSError, *_DAMAGED) as error:
            raise ValueError(f"array {name!r} of {path} must hold plain numbers: {error}") from error
    if counts.dtype == bool:
        counts = counts.astype(np.int64)
    if counts.dtype.kind not in "iuf":
        raise ValueError(f"array {name!r} of {path} must hold plain numbers, got {counts.dtype}")
    if counts.ndim != 2 or 0 in counts.shape:
        raise ValueError(f"array {name!r} of {path} must be (T bins, N neurons), got shape {counts.shape}")
    tensor = check_counts(f"array {name!r} of {path}", torch.from_numpy(counts.astype(np.float64)), least_dim=2)
    return tensor.to(torch.get_default_dtype())


def split_recording(
    counts: Real[Tensor, "..."],
    length: int = 100,
    *,
    hide: Sequence[int] = (),
    test_fraction: float = 0.25,
    provenance: dict[str, Any] | None = None,
) -> SpikeData:
    """A recording (T, N) as sequences of ``length`` bins; the last ``test_fraction`` of them are for test.

    Neurons in ``hide`` are taken out and kept as the hidden ones: a model may infer them and be told how well.
    Bins that do not fill a sequence are dropped.  Raises ``ValueError`` when less than two sequences come out.
    """
    counts = check_counts("counts", counts, least_dim=2).to(torch.get_default_dtype())
    require_count("length", length)
    bins, neurons = counts.shape
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction must be in (0, 1), got {test_fraction}")
    hidden = sorted(set(hide))
    if any(not 0 <= n < neurons for n in hidden) or len(hidden) >= neurons:
        raise ValueError(f"hide must name some, not all, of the neurons 0 … {neurons - 1}, got {list(hide)}")
    sequences = bins // length
    if sequences < 2:
        raise ValueError(f"length must leave at least two sequences of {bins} bins, got {length}")
    x = counts[: sequences * length].view(sequences, length, neurons)
    tests = min(sequences - 1, max(1, round(test_fraction * sequences)))
    train, test = x.split([sequences - tests, tests])
    seen = [n for n in range(neurons) if n not in hidden]
    return SpikeData(
        train[..., seen], test[..., seen],
        train[..., hidden] if hidden else None, test[..., hidden] if hidden else None,
        provenance=dict(provenance or {}) | {"length": length, "hidden_cells": hidden, "test_fraction": test_fraction},
    )  # fmt: skip


def read_parasol_cells(path: str | PathLike[str], bin_seconds: float = 0.01) -> Float[Tensor, "bins cells"]:
    """Spike counts (T, cells) from the zip archive of the Pillow lab: ``SpTimes.mat``, spike times in seconds.

    Bins start at 0 s; the last incomplete one is dropped.  Raises ``ValueError`` for a file of another form.
    """
    from scipy.io import loadmat

    if not (0 < bin_seconds < math.inf):
        raise ValueError(f"bin_seconds must be > 0 and finite, got {bin_seconds}")
    try:
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if n.rpartition("/")[2] == "SpTimes.mat"]
            if not names:
                raise ValueError(f"{path} must hold SpTimes.mat, got {archive.namelist()[:8]}")
            packed = archive.read(names[0])
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} must be a zip archive: {error}") from error
    try:
        contents = loadmat(io.BytesIO(packed))
    except Exception as error:  # SciPy's reader raises whatever the bytes lead it to
        raise ValueError(f"SpTimes.mat of {path} must be a MATLAB file: {error}") from error
    if "SpTimes" not in contents:
        raise ValueError(f"SpTimes.mat of {path} must hold SpTimes, got {[k for k in contents if k[0] != '_']}")
    cells = [np.asarray(times, dtype=np.float64).ravel() for times in contents["SpTimes"].ravel()]
    if not cells or any(len(t) == 0 or not np.isfinite(t).all() or (t < 0).any() for t in cells):
        raise ValueError(f"SpTimes of {path} must be lists of times >= 0 s, got {[len(t) for t in cells]} spikes")
    bins = int(max(t.max() for t in cells) / bin_seconds)
    edges = np.arange(bins + 1) * bin_seconds
    counts = np.stack([np.histogram(t, edges)[0] for t in cells], axis=1)
    return torch.from_numpy(counts).to(torch.get_default_dtype())


def parasol_cells(
    bin_seconds: float = 0.01,
    *,
    hide: int | None = 3,
    length: int = 200,
    cache: str | PathLike[str] | None = None,
    url: str = PARASOL_URL,
    known_hash: str | None = None,
    progress: bool = True,
) -> SpikeData:
    """Four macaque parasol cells under a flickering light, 20 minutes, downloaded once; one is hidden on purpose.

    Their terms are printed on stderr and kept in ``provenance``: for tutorial use only, never to be passed on.

    Parameters
    ----------
    bin_seconds : width of a bin.
    hide : the cell that the model does not see (0 … 3), or None.
    length : bins a sequence.
    cache : folder that keeps the file (default: the system's cache folder of ``hitchhiker``).
    url, known_hash : address and SHA-256, if you have it.
    progress : show a progress bar.

    Raises ``ConnectionError`` when the download fails, ``ValueError`` for a file of another form.

    Source: Uzzell and Chichilnisky (2004); Pillow et al. (2005).
    """
    import pooch

    print(f"hitchhiker: {PARASOL_TERMS}", file=sys.stderr)
    folder = Path(cache) if cache is not None else Path(pooch.os_cache("hitchhiker")) / "parasol"
    try:
        path = pooch.retrieve(
            url, known_hash, fname="data_RGCs.zip", path=folder,
            downloader=pooch.HTTPDownloader(progressbar=progress, timeout=60),
        )  # fmt: skip
    except OSError as error:  # requests' exceptions are OSErrors
        raise ConnectionError(f"{url} could not be downloaded: {error}") from error
    try:
        counts = read_parasol_cells(path, bin_seconds)
    except ValueError:
        Path(path).unlink(missing_ok=True)  # an error page must not stay in the cache
        raise
    return split_recording(
        counts, length, hide=() if hide is None else (hide,),
        provenance={"source": url, "terms": PARASOL_TERMS, "bin_seconds": bin_seconds},
    )  # fmt: skip


__all__ = [
    "PARASOL_TERMS", "PRESETS", "SpikeData", "load_spikes", "parasol_cells", "read_parasol_cells",
    "simulate_spikes", "spectral_radius", "split_recording", "synthetic_poglm",
]  # fmt: skip
