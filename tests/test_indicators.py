"""The soft indicators: symmetry, derivative, constants, and the bound on their product."""

import math
from dataclasses import replace

import pytest
import torch
from scipy.integrate import quad

from hitchhiker import indicators
from hitchhiker.indicators import REGISTRY, SoftIndicator, get

NAMES = sorted(REGISTRY)
GRID = torch.linspace(-3, 3, 1201, dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_is_a_soft_step(name):
    f = get(name)
    values = f(GRID)
    assert torch.allclose(values + f(-GRID), torch.ones_like(GRID), atol=1e-15)
    assert bool((values.diff() >= 0).all())
    assert f(math.inf) == 1
    assert f(-math.inf) == 0
    assert f(0.0) == 0.5
    assert torch.isnan(f(math.nan))


@pytest.mark.parametrize("name", NAMES)
def test_derivative_is_autograds(name):
    f = get(name)
    u = GRID[(GRID.abs() - 1).abs() > 1e-9].clone().requires_grad_()
    (slope,) = torch.autograd.grad(f(u).sum(), u)
    assert torch.allclose(f.derivative(u), slope, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_derivative_integrates_to_the_value(name):
    f = get(name)
    edge = 1.0 if f.is_compact else 40.0
    total, _ = quad(lambda u: float(f.derivative(u)), -edge, 0.3, epsabs=1e-13)
    assert total == pytest.approx(float(f(0.3)), abs=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_support(name):
    f = get(name)
    if not f.is_compact:
        assert f.half_width(torch.float64) > f.half_width(torch.float32) > 15
        assert float(f(-f.half_width(torch.float32))) < torch.finfo(torch.float32).eps
        return
    low, high = f.support
    assert (low, high) == (-1, 1)
    outside = GRID[GRID.abs() > 1]
    assert bool((f.derivative(outside) == 0).all())
    assert set(f(outside).tolist()) == {0.0, 1.0}
    assert f.half_width(torch.float32) == 1


@pytest.mark.parametrize("name", NAMES)
def test_constants_by_quadrature(name):
    f = get(name)
    edge = 1.0 if f.is_compact else 60.0
    a, _ = quad(lambda u: float(f(u) * (1 - f(u))), -edge, edge, epsabs=1e-13, points=[0])
    b, _ = quad(lambda u: float(f.derivative(u)) ** 2, -edge, edge, epsabs=1e-13, points=[0])
    assert f.deficit == pytest.approx(a, rel=1e-10)
    assert f.roughness == pytest.approx(b, rel=1e-10)
    assert f.deficit != pytest.approx(1.01 * a, rel=1e-10)  # a 1% error would be seen


def test_product_bound_is_reached_by_the_cosine_only():
    products = {name: get(name).deficit * get(name).roughness for name in NAMES}
    bound = math.pi**2 / 64
    assert products.pop("cosine") == pytest.approx(bound, rel=1e-14)
    assert all(p > bound * (1 + 4e-4) for p in products.values())
    assert products["cubic"] == pytest.approx(27 / 175)
    assert products["quintic"] == pytest.approx(250 / 1617)


@pytest.mark.parametrize("name", [n for n in NAMES if get(n).is_compact])
def test_smoothness_at_the_edge(name):
    """The k-th derivative is continuous at u = 1 exactly for k <= smoothness: f' there goes like (1 - u)^smoothness."""
    f = get(name)
    near, nearer = float(f.derivative(1 - 1e-3)), float(f.derivative(1 - 5e-4))
    assert math.log2(near / nearer) == pytest.approx(f.smoothness, abs=0.01)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_shape_are_kept(name, dtype):
    f = get(name)
    u = torch.zeros((2, 0, 3), dtype=dtype)
    assert f(u).dtype == f.derivative(u).dtype == dtype
    assert f(u).shape == f.derivative(u).shape == u.shape
    assert f(0.2).dtype == torch.float64


def test_get_and_register():
    cubic = get("cubic")
    assert get(cubic) is cubic
    with pytest.raises(ValueError, match=r"cosine.*cubic.*got 'Cubic'"):
        get("Cubic")
    with pytest.raises(ValueError, match="name must be new, got 'cubic'"):
        indicators.register(cubic)
    septic = SoftIndicator(
        "septic", "35*w**4 - 84*w**5 + 70*w**6 - 20*w**7", (-1.0, 1.0), 0.19, 0.82, 3,
        lambda u: ((u + 1) / 2) ** 4 * (35 + (u + 1) / 2 * (-84 + (u + 1) / 2 * (70 - 10 * (u + 1)))),
        lambda u: 35 / 32 * (1 - u * u) ** 3,
    )  # fmt: skip
    try:
        assert get(indicators.register(septic).name) is septic
    finally:
        del REGISTRY["septic"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"support": (-1.0, 2.0)}, r"support must be \(-S, S\) with S > 0, got \(-1.0, 2.0\)"),
        ({"support": (1.0, -1.0)}, "support must be"),
        ({"_value": lambda u: ((u + 1) / 2) ** 2}, r"f\(u\) \+ f\(-u\) must be 1, got 0.5 at u = 0"),
        ({"_value": lambda u: u / 0.0}, "must be 1, got nan at u = 0"),
    ],
)
def test_what_is_no_soft_indicator_is_not_registered(changes, message):
    with pytest.raises(ValueError, match=message):
        indicators.register(replace(get("cubic"), name="mine", **changes))
    assert "mine" not in REGISTRY


def test_a_name_is_not_registered():
    with pytest.raises(ValueError, match="must be a SoftIndicator, got 'x'"):
        indicators.register("x")
