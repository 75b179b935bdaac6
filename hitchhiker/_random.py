"""Random numbers of a run's own: seeds of its parts, and streams that the caller gets back as they were."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


def stream(seed: int, part: int) -> int:
    """Seed of a part of the work (an epoch, a parameter), in torch's range."""
    return (seed * 1_000_003 + part) % 2**64


@contextlib.contextmanager
def own_random_numbers(seed: int | None, device: torch.device | str = "cpu") -> Iterator[None]:
    """Torch's random numbers on the CPU and on ``device`` start at ``seed`` (None: go on) and are then as they were.

    ``torch.manual_seed`` would also seed all other devices, which ``fork_rng`` does not give back.
    """
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []):
        if seed is not None and device.type not in ("cpu", "cuda"):
            torch.manual_seed(seed)
        elif seed is not None:
            torch.default_generator.manual_seed(seed)
            if on_gpu:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
        yield
