"""Claim: relaxed counts cost what the data cost. Forward and backward against the published algorithms, one CPU thread.

    python benchmarks/samplers.py [--device cuda]

Sizes and temperatures: (1000, 512) log-normal rates with maximum 20, and (100, 512) rates of 100; τ in 0.02, 0.1, 0.5.
"""

from __future__ import annotations

import sys
import time

import torch
from common import algorithm_1, algorithm_2, alone, arguments, in_turn, peak_extra_mib, save, summary
from torch import Tensor

import hitchhiker as hh
from hitchhiker.kernels.operators import kernels_for

LAWS = ("eat-cubic", "eat-sigmoid", "gsm")
SIZES = ("ragged", "flat-100")
TEMPERATURES = (0.02, 0.1, 0.5)


def rates(size: str, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if size == "ragged":
        rate = torch.exp(1.2 * torch.randn(1000, 512, generator=generator) - 1.9).clamp(max=20.0)
        rate.view(-1)[0] = 20.0
    else:
        rate = torch.full((100, 512), 100.0)
    return rate.to(device)


def cases(law: str, rate: Tensor, temperature: float) -> dict:
    """Ours and the published algorithm, each one forward and backward pass."""
    m = hh.truncation.paper_num_arrivals(rate)  # both published algorithms take M from Eq. 79
    leaf = rate.clone().requires_grad_()

    def ours() -> None:
        leaf.grad = None
        q = (
            hh.GSMPoisson(rate=leaf, temperature=temperature, num_categories=m + 1, validate_args=False)
            if law == "gsm"
            else hh.EATPoisson(
                rate=leaf, temperature=temperature, indicator=law.removeprefix("eat-"), validate_args=False
            )
        )
        q.rsample().sum().backward()

    def published() -> None:
        leaf.grad = None
        z = (
            algorithm_2(leaf, temperature, m)
            if law == "gsm"
            else algorithm_1(leaf, temperature, law.removeprefix("eat-"), m)
        )
        z.sum().backward()

    return {"ours": ours, "published": published}


def memory(law: str, size: str, temperature: str, which: str, device: str) -> None:
    torch.set_num_threads(1)
    print(peak_extra_mib(cases(law, rates(size, device), float(temperature))[which], device))


def main() -> None:
    options, started = arguments(__doc__), time.time()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for size in SIZES:
        rate = rates(size, options.device)
        unit = rate.numel() * rate.element_size() / 2**20
        kernels = kernels_for(rate)
        for law in LAWS:
            for temperature in TEMPERATURES:
                spent = in_turn(cases(law, rate, temperature), options.repeats, options.device)
                row = {
                    "law": law, "size": size, "shape": list(rate.shape), "max_rate": float(rate.max()),
                    "mean_rate": float(rate.mean()), "temperature": temperature,
                    "path": "plain torch" if kernels is None else kernels.__name__.split(".")[-1],
                    "ratio": summary(spent["published"])["median_ms"] / summary(spent["ours"])["median_ms"],
                    "output_mib": unit,
                }  # fmt: skip
                for which in ("ours", "published"):
                    row[which] = summary(spent[which])
                    extra = alone(__file__, "memory", law, size, str(temperature), which, options.device)
                    row[which]["extra_mib"], row[which]["extra_outputs"] = extra, extra / unit
                rows.append(row)
                print(
                    f"{size:9} {law:12} τ={temperature:<5} ours {row['ours']['median_ms']:8.1f} ms "
                    f"published {row['published']['median_ms']:8.1f} ms  {row['ratio']:6.1f}x  "
                    f"memory {row['ours']['extra_outputs']:5.1f} / {row['published']['extra_outputs']:6.1f} outputs",
                    flush=True,
                )
    name = "samplers" if options.device == "cpu" else f"samplers-{options.device}"
    save(name, f"python benchmarks/samplers.py --device {options.device}", started, rows, device=options.device, seed=0)


if __name__ == "__main__":
    memory(*sys.argv[2:]) if sys.argv[1:2] == ["memory"] else main()
