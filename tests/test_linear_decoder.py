"""Eqs. 59, 64 and 69 against brute-force enumeration, autograd and torch.func."""

from __future__ import annotations

import math

import pytest
import torch
from laws import without_shape_checks
from torch.distributions import Poisson

from hitchhiker import EATPoisson, linear_decoder
from hitchhiker.linear_decoder import HessianProduct, SquaredError, gradient, hessian, reconstruction_loss

F64 = torch.float64


@pytest.fixture
def problem(seed) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x (5, 4), Φ (4, 3), u (5, 3)."""
    torch.manual_seed(seed)
    return torch.randn(5, 4, dtype=F64), torch.randn(4, 3, dtype=F64), 0.7 * torch.randn(5, 3, dtype=F64)


def enumerated(x: torch.Tensor, decoder: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
    """E‖x - Φz‖² over all z with counts below 30, one item."""
    k = torch.arange(30, dtype=F64)
    z = torch.cartesian_prod(*[k] * decoder.shape[1])
    weight = Poisson(rate).log_prob(z).sum(-1).exp()
    return (weight * (x - z @ decoder.T).square().sum(-1)).sum()


def test_loss_and_gradient_by_enumeration(problem):
    """The expectation itself, and its gradient, know nothing of the closed forms."""
    x, decoder, u = problem
    u = u[0].clamp(max=0.8).requires_grad_()
    brute = enumerated(x[0], decoder, u.exp())
    torch.testing.assert_close(reconstruction_loss(x[0], decoder, u), brute, rtol=1e-10, atol=0)
    (slope,) = torch.autograd.grad(brute, u)
    torch.testing.assert_close(gradient(x[0], decoder, u).detach(), slope, rtol=1e-9, atol=1e-9)


def test_hessian_by_enumeration():
    decoder = torch.tensor([[0.5, -1.0], [0.3, 0.8]], dtype=F64)
    x, u = torch.tensor([1.0, -2.0], dtype=F64), torch.tensor([0.2, -0.4], dtype=F64)
    brute = torch.func.hessian(lambda v: enumerated(x, decoder, v.exp()))(u)
    torch.testing.assert_close(hessian(x, decoder, u), brute, rtol=1e-9, atol=1e-9)


def test_by_hand():
    """D = K = 1, x = 3, Φ = 2, λ = 1: L = (3 - 2)² + 4 = 5, g = 8 - 12 + 4 = 0, H = g + 2·4 = 8."""
    x, decoder, u = torch.tensor([3.0]), torch.tensor([[2.0]]), torch.zeros(1)
    assert reconstruction_loss(x, decoder, u).item() == 5
    assert gradient(x, decoder, u).item() == 0
    assert hessian(x, decoder, u).item() == 8


def test_gradient_and_hessian_are_derivatives_of_the_loss(problem):
    x, decoder, u = problem
    leaf = u.clone().requires_grad_()
    (slope,) = torch.autograd.grad(reconstruction_loss(x, decoder, leaf).sum(), leaf)
    torch.testing.assert_close(gradient(x, decoder, u), slope, rtol=1e-12, atol=1e-12)
    for i in range(len(x)):
        twice = torch.func.hessian(lambda v, i=i: reconstruction_loss(x[i], decoder, v))(u[i])
        torch.testing.assert_close(hessian(x, decoder, u)[i], twice, rtol=1e-12, atol=1e-12)
    rows = torch.func.vmap(lambda a, v: torch.func.hessian(lambda w: reconstruction_loss(a, decoder, w))(v))(x, u)
    torch.testing.assert_close(hessian(x, decoder, u), rows, rtol=1e-12, atol=1e-12)


def test_hessian_product_needs_no_matrix(problem):
    x, decoder, u = problem
    product, matrix = HessianProduct(x, decoder, u), hessian(x, decoder, u)
    for lead in [(), (7,), (2, 3)]:
        v = torch.randn(*lead, 5, 3, dtype=F64)
        torch.testing.assert_close(product(v), torch.einsum("bij,...bj->...bi", matrix, v), rtol=1e-12, atol=1e-12)


def test_hessian_can_be_indefinite():
    """One unit, Φ = λ = 1, x = 10: H = g + 2 = (2 - 20 + 1) + 2."""
    assert hessian(torch.tensor([10.0]), torch.ones(1, 1), torch.zeros(1)).item() == -15


@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (0,)])
def test_batch_shapes(batch):
    x, decoder, u = torch.randn(*batch, 4), torch.randn(4, 3), torch.zeros(*batch, 3)
    assert reconstruction_loss(x, decoder, u).shape == batch
    assert gradient(x, decoder, u).shape == (*batch, 3)
    assert hessian(x, decoder, u).shape == (*batch, 3, 3)
    assert HessianProduct(x, decoder, u)(torch.zeros(6, *batch, 3)).shape == (6, *batch, 3)
    f = SquaredError(x, decoder)
    assert f(torch.zeros(6, *batch, 3)).shape == (6, *batch)
    assert f.curvature.shape == (3,)
    assert f.expectation(EATPoisson(log_rate=u)).shape == batch


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_dtype_is_kept(dtype):
    x, decoder, u = torch.randn(5, 4, dtype=dtype), torch.randn(4, 3, dtype=dtype), torch.zeros(5, 3, dtype=dtype)
    for function in (reconstruction_loss, gradient, hessian):
        assert function(x, decoder, u).dtype == dtype


def test_silent_units():
    """λ = 0 through log_rate = -inf: no loss, gradient or curvature from that unit."""
    x, decoder = torch.tensor([1.0, 2.0]), torch.eye(2)
    u = torch.tensor([-math.inf, 0.0])
    assert reconstruction_loss(x, decoder, u).item() == 1 + 1 + 1
    assert gradient(x, decoder, u).tolist() == [0.0, -1.0]
    assert hessian(x, decoder, u).tolist() == [[0.0, 0.0], [0.0, 1.0]]


def test_squared_error_has_the_derivatives_it_states(problem):
    x, decoder, u = problem
    f = SquaredError(x, decoder)
    z = torch.randn(2, 5, 3, dtype=F64)
    second = torch.func.hessian(lambda v: f(v[None, None].expand(1, 5, 3))[0, 0])(z[0, 0])
    torch.testing.assert_close(second.diagonal(), f.curvature, rtol=1e-12, atol=0)
    torch.testing.assert_close(f.expectation(EATPoisson(log_rate=u)), reconstruction_loss(x, decoder, u))


def test_decoder_learns_from_every_form(problem):
    """∂/∂Φ of E f is that of the closed form: 2(Φλ - x)λᵀ + 2Φ diag(λ)."""
    x, decoder, u = problem
    leaf, rate = decoder.clone().requires_grad_(), u.exp()
    truth = 2 * (rate @ decoder.T - x).T @ rate + 2 * decoder * rate.sum(0)
    for value in (reconstruction_loss(x, leaf, u), SquaredError(x, leaf).expectation(EATPoisson(log_rate=u))):
        torch.testing.assert_close(torch.autograd.grad(value.sum(), leaf)[0], truth, rtol=1e-12, atol=1e-12)


X, PHI, U = torch.zeros(5, 4), torch.zeros(4, 3), torch.zeros(5, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X, torch.zeros(3), U), "decoder must have shape (D, K), got (3,)"),
        ((torch.zeros(5, 6), PHI, U), "x must have shape (*batch, D) with D = 4, got (5, 6)"),
        ((X, PHI, torch.zeros(5, 4)), "log_rate must have shape (*batch, K) with K = 3, got (5, 4)"),
        ((torch.tensor(1.0), PHI, U), "x must have shape (*batch, D) with D = 4, got ()"),
        ((X, PHI, torch.zeros(6, 3)), "x and log_rate must broadcast against each other"),
    ],
)
def test_errors(arguments, message):
    for function in (reconstruction_loss, gradient, hessian, HessianProduct):
        with without_shape_checks(), pytest.raises(ValueError) as error:  # noqa: PT011
            function(*arguments)
        assert message in str(error.value)
    if "log_rate" not in message:
        with without_shape_checks(), pytest.raises(ValueError) as error:  # noqa: PT011
            SquaredError(*arguments[:2])
        assert message in str(error.value)


def test_every_public_function_is_here():
    public = {n for n, v in vars(linear_decoder).items() if getattr(v, "__module__", "") == linear_decoder.__name__}
    assert {n for n in public if not n.startswith("_")} == {
        "reconstruction_loss", "gradient", "hessian", "HessianProduct", "SquaredError",
    }  # fmt: skip
