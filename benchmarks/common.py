"""What the benchmarks share: the published algorithms written densely, honest timing, memory, provenance."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from hitchhiker import indicators, reproduce

RESULTS = Path(__file__).resolve().parents[1] / "data" / "results" / "bench"


def algorithm_1(rate: Tensor, temperature: float, indicator: str, num_arrivals: int) -> Tensor:
    """The paper's Algorithm 1 as it is printed: exponentials, cumulative sum, soft indicator, sum; autograd does the rest."""
    waits = torch.distributions.Exponential(rate, validate_args=False).rsample((num_arrivals,))
    times = waits.cumsum(dim=0)
    u = (1 - times) / temperature
    if indicator == "cubic":
        w = ((u + 1) / 2).clamp(0, 1)
        return (3 * w**2 - 2 * w**3).sum(dim=0)
    return (torch.sigmoid(u) if indicator == "sigmoid" else indicators.get(indicator)(u)).sum(dim=0)


def algorithm_2(rate: Tensor, temperature: float, num_categories: int) -> Tensor:
    """The paper's Algorithm 2 with its factor m: torch's Gumbel-softmax over all categories, autograd does the rest."""
    m = torch.arange(num_categories, dtype=rate.dtype, device=rate.device)
    logits = m * rate.unsqueeze(-1).log() - torch.lgamma(m + 1)
    return torch.nn.functional.gumbel_softmax(logits, tau=temperature) @ m


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(function: Callable[[], object], repeats: int = 7, device: str = "cpu") -> list[float]:
    """Wall seconds of ``repeats`` calls after one warm-up."""
    function()
    spent = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
        spent.append(time.perf_counter() - start)
    return spent


def in_turn(
    functions: dict[str, Callable[[], object]], repeats: int = 7, device: str = "cpu"
) -> dict[str, list[float]]:
    """Seconds of each function, called in turn A B A B …, so that a machine that slows down slows all of them."""
    for function in functions.values():
        function()
    spent: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            synchronize(device)
            start = time.perf_counter()
            function()
            synchronize(device)
            spent[name].append(time.perf_counter() - start)
    return spent


def summary(spent: list[float]) -> dict[str, float]:
    """Median, least and most milliseconds."""
    return {
        "median_ms": 1e3 * statistics.median(spent), "min_ms": 1e3 * min(spent), "max_ms": 1e3 * max(spent),
        "repeats": len(spent),
    }  # fmt: skip


def peak_extra_mib(function: Callable[[], object], device: str = "cpu") -> float:
    """Memory in MiB that a call needs at its peak beyond what was held before it (Linux and CUDA; NaN elsewhere)."""
    function()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again at what is held now
        before = _status("VmRSS")
        function()
        return (_status("VmHWM") - before) / 2**10
    except OSError:
        return float("nan")


def _status(key: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1])


def processor() -> str:
    """The processor's model, as far as the machine tells."""
    try:
        names = [
            x.split(":")[1].strip()
            for x in Path("/proc/cpuinfo").read_text().splitlines()
            if x.startswith("model name")
        ]
        return names[0] if names else "unknown"
    except OSError:
        return "unknown"


def save(name: str, command: str, started: float, rows: list[dict], device: str = "cpu", **settings) -> Path:
    """Write ``data/results/bench/NAME.json`` with where the numbers come from."""
    record = reproduce.provenance(command, settings.get("seed", 0), time.time() - started, device)
    record |= {"processor": processor(), "threads": torch.get_num_threads()}
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    text = json.dumps({"benchmark": name, "settings": settings, "provenance": record, "rows": rows}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
    print(f"{path.relative_to(RESULTS.parents[2])} ({time.time() - started:.0f} s)")
    return path


def arguments(description: str) -> argparse.Namespace:
    """Options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("argument --device: cuda must be available, and no CUDA device is visible here")
    return options


def alone(script: str, *args: str) -> float:
    """What a fresh process prints: memory measured there is not blurred by what earlier cases left behind."""
    out = subprocess.run([sys.executable, script, *args], capture_output=True, text=True, check=True)
    return float(out.stdout.strip().splitlines()[-1])
