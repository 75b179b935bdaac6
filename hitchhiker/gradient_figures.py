"""The paper's Figures 3, 11 and 12 as numbers: gradients judged on a decoder that has learned natural images (G.4).

All units have one rate, as in the paper.  Then the mean of any relaxed gradient follows from three scalars, E z,
E dz/dλ and d Var(z)/dλ, and its bias is known to many digits without a gradient being drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hitchhiker import estimators, gradient_quality, linear_decoder, moments, truncation
from hitchhiker._random import own_random_numbers
from hitchhiker.relaxations.arrival_time import EATPoisson
from hitchhiker.relaxations.common import RelaxedPoisson
from hitchhiker.relaxations.gumbel_softmax import GSMPoisson
from hitchhiker.reproduce import TEMPERATURES, Recipe, Rows, add_recipe, stored

PATHWISE = ("eat-sigmoid", "eat-cubic", "gsm")
#: the rates of Figure 11
RATES = (0.1, 0.5, 1.0, 2.0, 5.0, 8.0, 10.0, 15.0, 20.0, 30.0, 40.0, 70.0, 100.0)


# --- a dictionary of natural images


@lru_cache(maxsize=2)
def trained_decoder(
    num_latents: int = 128, num_steps: int = 6000, size: int = 16, num_patches: int = 20_000, seed: int = 0
) -> tuple[Float[Tensor, "pixels latents"], Float[Tensor, "patches pixels"], dict[str, float]]:
    """A linear P-VAE trained with exact gradients on the embedded natural scenes.

    Parameters
    ----------
    num_latents, size : K, and the side of a patch in pixels.
    num_steps : of Adamax with batches of 250; learning rate 0.01, cosine to 0; β from 0 to 1 over the first half.
    num_patches : train and validation together.
    seed : of weights, patches and batches.

    Returns the decoder Φ (D, K), validation patches, and how good it is: ``neg_elbo``, its standard error, ``r2``.
    """
    from hitchhiker.datasets import natural_patches  # pillow and scikit-image are an extra
    from hitchhiker.models import PoissonVAE

    patches = natural_patches(num_patches, size, seed)
    model = PoissonVAE(size * size, num_latents, seed)
    optimizer = torch.optim.Adamax(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    generator = torch.Generator().manual_seed(seed)
    for step in range(num_steps):
        batch = patches.train[torch.randint(len(patches.train), (250,), generator=generator)]
        optimizer.zero_grad()
        model.loss(batch, "exact", beta=min(1.0, 2 * step / num_steps)).mean().backward()
        optimizer.step()
        schedule.step()
    judged = model.evaluate(patches.validation[:1000])
    assert model.phi is not None
    quality = {"neg_elbo": float(judged.neg_elbo), "neg_elbo_se": float(judged.standard_error), "r2": float(judged.r2)}
    return model.phi.detach(), patches.validation, quality


# --- the exact mean of a relaxed gradient


def count_response(
    method: str, rate: float, temperature: float, num: int | None = None, draws: int = 1_000_000, groups: int = 20
) -> Float[Tensor, "groups 3"]:
    """(E z, E dz/dλ, d Var(z)/dλ) of one relaxed count: all that a linear decoder's mean gradient needs.

    Parameters
    ----------
    method : ``"eat-…"``, for which they are exact (one row), or ``"gsm"``, for which each of ``groups`` rows is an
        independent estimate from ``draws / groups`` samples.
    rate, temperature : λ ``> 0``, τ ``> 0``.
    num : M of the truncated sampler (arrivals or categories); None for M = ∞ (GSM: enough categories).

    >>> count_response("eat-cubic", 2.0, 0.5).tolist()[0][:2]
    [2.0, 1.0]
    """
    if method == "gsm":
        return torch.stack([_sampled_response(rate, temperature, num, draws // groups) for _ in range(groups)])
    kind = method.removeprefix("eat-")
    if num is None:
        c, v = moments.mean_factor(kind, temperature), moments.variance_factor(kind, temperature)
        return torch.tensor([[rate * c, c, v]], dtype=torch.float64)

    def variance(at: float) -> float:
        return at * moments.truncated_variance_factor(kind, temperature, at, num)

    step = 1e-3 * rate
    slope = (variance(rate + step) - variance(rate - step)) / (2 * step)
    mean = rate * moments.truncated_mean_factor(kind, temperature, rate, num)
    return torch.tensor(
        [[mean, moments.truncated_gradient_mean(kind, temperature, rate, num), slope]], dtype=torch.float64
    )


def _sampled_response(rate: float, temperature: float, num: int | None, draws: int) -> Tensor:
    lam = torch.full((draws,), float(rate)).requires_grad_()
    z = GSMPoisson(lam, temperature=temperature, num_categories=num, validate_args=False).rsample()
    (slope,) = torch.autograd.grad(z.sum(), lam)
    z, slope = z.detach().double(), slope.double()
    # d Var(z)/dλ = 2 Cov(z, dz/dλ)
    covariance = ((z - z.mean()) * (slope - slope.mean())).sum() / (draws - 1)
    return torch.stack([z.mean(), slope.mean(), 2 * covariance])


def mean_gradient(
    x: Float[Tensor, "*batch pixels"],
    decoder: Float[Tensor, "pixels latents"],
    rate: float,
    response: Float[Tensor, "groups 3"],
) -> Float[Tensor, "groups *batch latents"]:
    """E ĝ of a pathwise gradient in the log-rates when every unit has this rate, from :func:`count_response`.

    λ [2 μ' Φᵀ(Φμ - x) + s' d], with mean μ, its slope μ' and the slope s' of the variance.
    """
    mean, slope, spread = (r.reshape(-1, *([1] * x.dim())) for r in response.unbind(dim=1))
    pull = 2 * (mean * decoder.sum(dim=1) - x) @ decoder
    return rate * (slope * pull + spread * decoder.square().sum(dim=0))


# --- measuring


def law(method: str, log_rate: Tensor, temperature: float, num: int | None) -> RelaxedPoisson:
    """The relaxed law of a pathwise method; ``num`` arrivals or categories, None for all that are needed."""
    if method == "gsm":
        return GSMPoisson(log_rate=log_rate, temperature=temperature, num_categories=num, validate_args=False)
    kind = method.removeprefix("eat-")
    return EATPoisson(log_rate=log_rate, temperature=temperature, indicator=kind, num_arrivals=num, validate_args=False)


def gradient_rows(
    decoder: Float[Tensor, "pixels latents"],
    x: Float[Tensor, "batch pixels"],
    rate: float = 20.0,
    temperatures: Sequence[float] = TEMPERATURES,
    num_gradients: int = 100,
    samplers: Sequence[str] = ("paper", "enough"),
    draws: int = 1_000_000,
    others: Sequence[str] = ("score:batch_mean", "score:leave_one_out", "difference"),
) -> Rows:
    """Quality of each method's one-sample gradient at one rate for all units: as the paper reports it, and the truth.

    Returns a row for each method, temperature (None where it plays no part) and sampler (``"paper"``: M of Eq. 79,
    ``"enough"``: no truncation).  ``…_plugin`` is what Eqs. 7–10 give from ``num_gradients`` estimates;
    ``bias_energy`` and ``cos_mean`` are the truth, from :func:`count_response` (exact for EAT and the score function,
    with ``bias_energy_se`` for GSM); ``noise_energy`` and ``cos_sample`` are measured, with ``…_se``.
    ``raw_bias`` = ‖b‖²/‖g*‖² (also ``…_plugin``), ``raw_variance`` = Tr(Σ)/‖g*‖²; ``indefinite`` is the share of
    patches with g*ᵀHg* <= 0.

    Source: Figures 3, 11 and 12; section G.4.
    """
    decoder, x = decoder.double(), x.double()
    log_rate = torch.full((len(x), decoder.shape[1]), math.log(rate), dtype=torch.float64)
    exact = linear_decoder.gradient(x, decoder, log_rate)
    product = linear_decoder.HessianProduct(x, decoder, log_rate)
    f = linear_decoder.SquaredError(x.float(), decoder.float())
    rows = []

    def judge(method: str, estimator, q, truth: Tensor, **where: Any) -> None:
        stream = estimators.gradient_stream(estimator, f, q, 1)
        gradients = torch.stack([next(stream).double() for _ in range(num_gradients)])
        rows.append({"method": method, "rate": rate, **where} | _judged(gradients, truth, exact, product))

    m = truncation.paper_num_arrivals(rate)
    for sampler in samplers:
        num = m if sampler == "paper" else None
        for method in PATHWISE:
            for tau in temperatures:
                truth = mean_gradient(x, decoder, rate, count_response(method, rate, tau, num, draws))
                q = law(method, log_rate.float(), tau, num)
                judge(method, estimators.pathwise, q, truth, temperature=tau, sampler=sampler)
    hard = EATPoisson(log_rate=log_rate.float(), temperature=0.0, validate_args=False)
    for method in others:
        shrink = 1 - 1 / len(x) if method == "score:batch_mean" else 1.0
        judge(method, _estimator(method), hard, shrink * exact[None], temperature=None, sampler="exact")
    return rows


def _estimator(method: str):
    if method.startswith("score:"):
        return partial(estimators.score_function, baseline=method.removeprefix("score:"))
    return getattr(estimators, method)


def _judged(
    gradients: Tensor, truth: Tensor, exact: Tensor, product: linear_decoder.HessianProduct
) -> dict[str, float]:
    quality = gradient_quality.summarize(gradients, exact, product)
    norm2 = exact.square().sum(dim=-1)
    bias = truth.mean(dim=0) - exact
    if len(truth) > 1:  # an estimate of the mean gradient in independent parts: take its own noise off again
        known = gradient_quality.summarize(truth, exact, product)
        bias_energy, bias_energy_se = known.bias_energy, known.bias_energy_se
        spread = truth.var(dim=0).sum(dim=-1) / len(truth)
    else:
        bias_energy = float(((bias * product(bias)).sum(dim=-1) / (exact * product(exact)).sum(dim=-1)).mean())
        bias_energy_se, spread = 0.0, torch.zeros_like(norm2)
    found = gradients.mean(dim=0) - exact
    values = {
        "bias_energy": bias_energy,
        "bias_energy_se": bias_energy_se,
        "bias_energy_plugin": quality.bias_energy_plugin,
        "bias_energy_unbiased": quality.bias_energy,
        "bias_energy_unbiased_se": quality.bias_energy_se,
        "noise_energy": quality.noise_energy,
        "noise_energy_se": quality.noise_energy_se,
        "cos_mean": float(torch.cosine_similarity(exact + bias, exact, dim=-1).mean()),
        "cos_mean_plugin": quality.cos_mean_plugin,
        "cos_sample": quality.cos_sample,
        "cos_sample_se": quality.cos_sample_se,
        "raw_bias": float(((bias.square().sum(dim=-1) - spread) / norm2).mean()),
        "raw_bias_plugin": float((found.square().sum(dim=-1) / norm2).mean()),
        "raw_variance": float((gradients.var(dim=0).sum(dim=-1) / norm2).mean()),
        "indefinite": quality.indefinite,
    }
    return {name: float(f"{value:.5g}") for name, value in values.items()}


# --- recipes


def dictionary_rows(settings: dict[str, Any]) -> Rows:
    """A trained decoder as rows, one for each latent, longest first; the first row also says how good it is."""
    decoder, _, quality = trained_decoder(**settings["decoder"])
    order = decoder.square().sum(dim=0).argsort(descending=True)
    rows: Rows = [
        {"latent": k, "feature": [round(w, 4) for w in decoder[:, i].tolist()]} for k, i in enumerate(order.tolist())
    ]
    rows[0] |= {name: float(f"{value:.5g}") for name, value in quality.items()}
    return rows


def decoder_of(result: dict[str, Any]) -> Float[Tensor, "pixels latents"]:
    """The decoder Φ (D, K) of a stored ``dictionary``."""
    return torch.tensor([row["feature"] for row in result["rows"]]).T.contiguous()


def _decoder_and_patches(settings: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Φ and validation patches: trained now, or, for ``{"stored": NAME}``, the ones that came with the package."""
    wanted = settings["decoder"]
    if "stored" not in wanted:
        return trained_decoder(**wanted)[:2]
    from hitchhiker.datasets import natural_patches

    result = stored(wanted["stored"])
    made = {"size": 16, "num_patches": 20_000, "seed": 0} | result["settings"]["decoder"]
    return decoder_of(result), natural_patches(made["num_patches"], made["size"], made["seed"]).validation


def _gradients(cell: dict, settings: dict, seed: int) -> Rows:
    decoder, patches = _decoder_and_patches(settings)
    options = {k: settings[k] for k in ("temperatures", "num_gradients", "draws")}
    with own_random_numbers(seed):
        return gradient_rows(decoder, patches[: settings["batch"]], cell["rate"], **options)


def _drawn(name: str):
    def draw(result: dict[str, Any]) -> Any:
        from hitchhiker import figures  # matplotlib is an extra

        return getattr(figures, name)(result["rows"])

    return draw


def _recipes() -> Iterator[Recipe]:
    quick: dict[str, Any] = {"decoder": {"num_latents": 32, "num_steps": 300, "size": 8, "num_patches": 3000}}
    quick |= {"temperatures": list(TEMPERATURES), "num_gradients": 100, "batch": 12, "draws": 200_000}
    paper: dict[str, Any] = {"decoder": {"num_latents": 512, "num_steps": 3000}, "batch": 90, "draws": 1_000_000}
    # thirteen rates at K = 512 take hours: the stored dictionary of 128 does it in minutes
    smaller: dict[str, Any] = {"decoder": {"stored": "dictionary"}, "batch": 24}
    for name, about, rates, size, same in (
        ("figure-3", "gradient quality at λ = 20: as printed, and the truth", [20.0], paper, None),
        ("figure-12", "raw bias and variance of gradients at λ = 20", [20.0], paper, "figure-3"),
        ("figure-11", "gradient quality at thirteen rates", list(RATES), smaller, None),
    ):
        some = rates if len(rates) == 1 else [0.5, 5.0, 50.0]
        yield Recipe(
            name, about, lambda settings: [{"rate": rate} for rate in settings["rates"]], _gradients,
            _drawn(name.replace("-", "_")), quick | {"rates": some}, quick | size | {"rates": rates}, numbers_of=same,
        )  # fmt: skip
    yield Recipe(
        "dictionary", "a decoder that has learned natural images, with exact gradients", lambda settings: [{"part": "all"}],
        lambda cell, settings, seed: dictionary_rows(settings), _drawn("dictionary"),
        {"decoder": quick["decoder"]}, {"decoder": {"num_latents": 128, "num_steps": 6000}},
    )  # fmt: skip


for _recipe in _recipes():
    add_recipe(_recipe)
