"""Claim: time follows the mean rate and the temperature, not the largest rate. One forward and backward pass, one CPU thread.

python benchmarks/growth.py [--device cuda]
"""

from __future__ import annotations

import time

import torch
from common import arguments, save, seconds, summary
from torch import Tensor

import hitchhiker as hh

UNITS = 512_000


def ragged(mean: float, largest: float, units: int = UNITS) -> Tensor:
    """Log-normal rates whose mean is ``mean`` and whose largest is ``largest`` exactly."""
    rate = torch.exp(torch.randn(units, generator=torch.Generator().manual_seed(0)))
    rate = rate.clamp(max=6.0) / rate.clamp(max=6.0).mean() * mean
    rate[0] = largest
    return rate


def main() -> None:
    options, started = arguments(__doc__), time.time()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []

    def measure(curve: str, x: float, rate: Tensor, temperature: float, law: str) -> None:
        leaf = rate.to(options.device).requires_grad_()

        def step() -> None:
            leaf.grad = None
            q = (
                hh.GSMPoisson(rate=leaf, temperature=temperature, validate_args=False)
                if law == "gsm"
                else hh.EATPoisson(
                    rate=leaf, temperature=temperature, indicator=law.removeprefix("eat-"), validate_args=False
                )
            )
            q.rsample().sum().backward()

        row = {"curve": curve, "x": x, "law": law, "units": rate.numel()} | summary(
            seconds(step, options.repeats, options.device)
        )
        rows.append(row)
        print(f"{curve:12} {law:12} {x:8g}  {row['median_ms']:8.1f} ms", flush=True)

    for law in ("eat-cubic", "eat-sigmoid", "gsm"):
        for largest in (10.0, 30.0, 100.0, 300.0, 1000.0):
            measure("largest rate", largest, ragged(0.3, largest), 0.1, law)
        for mean in (0.1, 1.0, 10.0, 100.0):
            measure("mean rate", mean, ragged(mean, 10 * mean, UNITS // 10), 0.1, law)
        for temperature in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0):
            measure("temperature", temperature, ragged(1.0, 20.0, UNITS // 4), temperature, law)
        for units in (1000, 10_000, 100_000, 1_000_000):
            measure("units", units, ragged(0.3, 20.0, units), 0.1, law)
    save(
        f"growth{'' if options.device == 'cpu' else '-cuda'}",
        f"python benchmarks/growth.py --device {options.device}",
        started,
        rows,
        device=options.device,
        seed=0,
    )


if __name__ == "__main__":
    main()
