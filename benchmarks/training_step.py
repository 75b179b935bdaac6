"""Claim: a P-VAE training step is its matrix products. Two CPU threads, against exact gradients and dense EAT.

    python benchmarks/training_step.py [--device cuda]

Batch 1000, 256 pixels, 512 latents; the encoder is set so that rates follow a log-normal law with maximum 20.
"""

from __future__ import annotations

import math
import time

import torch
from common import algorithm_1, arguments, in_turn, save, summary

import hitchhiker as hh
from hitchhiker.models import PoissonVAE


def main() -> None:
    options, started = arguments(__doc__), time.time()
    torch.set_num_threads(2)
    torch.manual_seed(1)  # not the seed of the weights, or the first patch would be the first filter
    x = torch.randn(1000, 256, device=options.device)
    model = PoissonVAE(num_pixels=256, num_latents=512, seed=0).to(options.device)
    with torch.no_grad():  # rates as of a trained model: log-normal, 0.3 on average, the fastest at 20
        drive = x @ model.encoder.weight.T
        model.encoder.weight.mul_(0.95 / drive.std(dim=0).unsqueeze(-1))
        model.log_prior_rate.fill_(0.0)
        for _ in range(10):  # the soft upper bound of log-rates bends the scale a little
            model.log_prior_rate.add_(math.log(20.0) - model.log_rates(x)[0].max())
    rate = model.rates(x).detach()
    m = hh.truncation.paper_num_arrivals(rate)
    optimizer = torch.optim.Adamax(model.parameters(), lr=0.0)

    def step(method: str):
        def run() -> None:
            optimizer.zero_grad(set_to_none=True)
            model.loss(x, method, temperature=0.1).mean().backward()
            optimizer.step()

        return run

    def dense() -> None:
        optimizer.zero_grad(set_to_none=True)
        log_rate, log_prior = model.log_rates(x)
        z = algorithm_1(log_rate.exp(), 0.1, "cubic", m)
        kl = hh.poisson_kl(log_rate.exp(), log_prior.exp()).sum(dim=-1)
        ((x - model.decode(z)).square().sum(dim=-1) + kl).mean().backward()
        optimizer.step()

    methods = ("exact", "eat-cubic", "eat-sigmoid", "gsm", "difference", "straight-through", "moment-matched")
    functions = {name: step(name) for name in methods}
    spent = in_turn(functions, options.repeats, options.device)
    # by itself: the step after it would pay for the gigabytes that it has just given back
    functions["eat-cubic, Algorithm 1 dense"] = dense
    spent |= in_turn({"eat-cubic, Algorithm 1 dense": dense}, options.repeats, options.device)
    reference = summary(spent["exact"])["median_ms"]
    rows = []
    for name in functions:
        row = {"method": name} | summary(spent[name])
        row["over_exact"] = row["median_ms"] / reference
        rows.append(row)
        print(f"{name:30} {row['median_ms']:8.1f} ms  {row['over_exact']:6.2f} x exact", flush=True)
    settings = {
        "batch": 1000,
        "pixels": 256,
        "latents": 512,
        "max_rate": float(rate.max()),
        "mean_rate": float(rate.mean()),
        "num_arrivals": m,
    }
    save(
        f"training_step{'' if options.device == 'cpu' else '-cuda'}",
        f"python benchmarks/training_step.py --device {options.device}", started, rows, device=options.device, seed=0, **settings,
    )  # fmt: skip


if __name__ == "__main__":
    main()
