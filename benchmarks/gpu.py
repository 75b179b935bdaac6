"""Claim: on a GPU counts cost a few copies of their memory, and a linear Poisson VAE of the paper's size trains in a minute.

    python benchmarks/gpu.py [--units 64000000] [--epochs 3000]

Needs CUDA and Triton.  The copy beside the sampler moves 12 bytes a unit: a rate read, a count and a slope written.
"""

from __future__ import annotations

import argparse
import time

import torch
from common import algorithm_1, in_turn, save, summary

import hitchhiker as hh
from hitchhiker.kernels.operators import kernels_for
from hitchhiker.models import PoissonVAE
from hitchhiker.training import fit


def sampler(units: int, repeats: int) -> dict:
    """EAT with the cubic at rate 1 and τ = 0.1, beside a copy of 12 bytes a unit and Algorithm 1."""
    rate = torch.ones(units, device="cuda", requires_grad=True)
    parts = max(1, units // 4_000_000)  # Algorithm 1 keeps several M-fold tensors: in slices they fit
    m = hh.truncation.paper_num_arrivals(1.0)
    words = torch.empty(units * 3 // 2, device="cuda"), torch.empty(units * 3 // 2, device="cuda")

    def ours() -> None:
        rate.grad = None
        hh.EATPoisson(rate=rate, temperature=0.1, validate_args=False).rsample().backward(torch.ones_like(rate))

    def forward() -> None:
        with torch.no_grad():
            hh.EATPoisson(rate=rate, temperature=0.1, validate_args=False).rsample()

    def published() -> None:
        for piece in rate.detach().chunk(parts):
            leaf = piece.requires_grad_()
            algorithm_1(leaf, 0.1, "cubic", m).sum().backward()

    functions = {"ours": ours, "ours, sampling alone": forward, "published": published}
    functions["copy"] = lambda: words[1].copy_(words[0])  # 6 bytes a unit read and 6 written
    spent = {name: summary(s) for name, s in in_turn(functions, repeats, "cuda").items()}
    kernels = kernels_for(rate)
    return {
        "what": "sampler", "units": units, "path": "plain torch" if kernels is None else kernels.__name__.split(".")[-1],
        "over_copy": spent["ours, sampling alone"]["median_ms"] / spent["copy"]["median_ms"],
        "ratio": spent["published"]["median_ms"] / spent["ours"]["median_ms"],
        "bandwidth_gb_s": 12e-6 * units / spent["copy"]["median_ms"],
    } | spent  # fmt: skip


def training(method: str, epochs: int) -> dict:
    """Seconds of ``epochs`` of 80 batches of 1000, 256 → 512 → 256, data resident, validation left out."""
    x = torch.randn(80_000, 256, generator=torch.Generator().manual_seed(0)).cuda()
    model = PoissonVAE(256, 512, seed=0).cuda()
    fit(model, x, method=method, epochs=1, batch_size=1000)  # compiles kernels
    torch.cuda.synchronize()
    start = time.perf_counter()
    run = fit(model, x, method=method, epochs=epochs, batch_size=1000)
    torch.cuda.synchronize()
    spent = time.perf_counter() - start
    return {"what": "training", "method": method, "epochs": epochs, "steps": run.steps, "seconds": spent}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=64_000_000)
    parser.add_argument("--epochs", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=7)
    options, started = parser.parse_args(), time.time()
    if not torch.cuda.is_available():
        parser.error("this benchmark needs a CUDA device, and none is visible here")
    rows = [sampler(options.units, options.repeats)]
    print(f"sampler: {rows[0]['over_copy']:.1f} copies of 12 bytes, {rows[0]['ratio']:.0f}x Algorithm 1", flush=True)
    for method in ("exact", "eat-cubic", "eat-sigmoid"):
        rows.append(training(method, options.epochs))
        print(f"{method}: {rows[-1]['seconds']:.1f} s for {rows[-1]['steps']} steps", flush=True)
    save(
        "gpu",
        f"python benchmarks/gpu.py --units {options.units} --epochs {options.epochs}",
        started,
        rows,
        device="cuda",
        seed=0,
    )


if __name__ == "__main__":
    main()
