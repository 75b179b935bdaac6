"""Generic tests: every law, every case of the registry in laws.py; then what is particular to the Poisson laws."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
import pickle
import subprocess
import sys
import typing

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from laws import CASES, EXPORTED, INF, REGISTRY, build, without_shape_checks
from torch.distributions import Distribution, Poisson, constraints, kl_divergence

import hitchhiker as hh
from hitchhiker import estimators, gradient_quality, linear_decoder, testing
from hitchhiker.relaxations import arrival_time, common, gumbel_softmax

every_case = pytest.mark.parametrize(("name", "case"), CASES)
every_law = pytest.mark.parametrize("name", EXPORTED)
RELAXED = [name for name in EXPORTED if REGISTRY[name].relaxed]
every_relaxed_law = pytest.mark.parametrize("name", RELAXED)
every_relaxed_case = pytest.mark.parametrize(("name", "case"), [c for c in CASES if REGISTRY[c[0]].relaxed])
POISSON = ["EATPoisson", "GSMPoisson"]


def draw(q: Distribution, sample_shape=()) -> torch.Tensor:
    return q.rsample(sample_shape) if q.has_rsample else q.sample(sample_shape)


def test_every_exported_law_has_an_entry():
    exported = {n for n in dir(hh) if inspect.isclass(getattr(hh, n)) and issubclass(getattr(hh, n), Distribution)}
    assert exported == set(EXPORTED), "add the new law to tests/laws.py"


@every_case
def test_law_is_a_distribution_with_its_parameters_in_their_domains(name, case):
    q = build(name, case)
    assert isinstance(q, Distribution)
    assert q.has_rsample is REGISTRY[name].relaxed
    for parameter, constraint in q.arg_constraints.items():
        assert bool(constraint.check(getattr(q, parameter)).all()), parameter
    assert bool(q.support.check(draw(q, (50,))).all())


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(name, case, dtype):
    q = build(name, case, dtype)
    sample = q.sample()
    assert {draw(q).dtype, sample.dtype, q.log_prob(sample).dtype} == {dtype}
    try:
        assert {q.mean.dtype, q.variance.dtype, q.stddev.dtype} == {dtype}
    except NotImplementedError:
        assert "GSM" in name or "Gumbel" in name


@every_case
def test_batch_and_sample_shapes(name, case):
    q = build(name, case)
    arguments = REGISTRY[name].arguments(case)
    shapes = [
        v.shape[: v.dim() - REGISTRY[name].event_dims * (k == "log_pmf")]
        for k, v in arguments.items()
        if isinstance(v, torch.Tensor)
    ]
    assert q.batch_shape == torch.broadcast_shapes(*shapes)
    assert q.event_shape == ()
    for sample_shape in [(), (5,), (2, 0), (2, 3)]:
        expected = (*sample_shape, *q.batch_shape)
        assert draw(q, sample_shape).shape == q.sample(sample_shape).shape == expected
        assert q.log_prob(q.sample(sample_shape)).shape == expected
    with contextlib.suppress(NotImplementedError):
        assert q.mean.shape == q.variance.shape == q.batch_shape


@settings(max_examples=25, deadline=None, database=None, derandomize=True)
@given(shapes=hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=3, min_side=0))
@pytest.mark.parametrize("name", POISSON)
@pytest.mark.parametrize("parameter", ["rate", "log_rate"])
def test_rate_and_temperature_broadcast(name, parameter, shapes):
    """Any pair of shapes that broadcast, empty ones too, with the gradient of the parameter's own shape."""
    (first, second), result = shapes.input_shapes, shapes.result_shape
    leaf, tau = torch.full(first, 0.7, requires_grad=True), torch.full(second, 0.3)
    q = getattr(hh, name)(**{parameter: leaf}, temperature=tau)
    z = q.rsample((2,))
    assert z.shape == (2, *result)
    assert q.batch_shape == result
    (slope,) = torch.autograd.grad(z.sum(), leaf)
    assert slope.shape == first


@every_law
def test_expand_keeps_every_option(name):
    q = build(name, 0, **REGISTRY[name].options)
    wide = q.expand((4, *q.batch_shape))
    assert type(wide) is type(q)
    assert wide.batch_shape == (4, *q.batch_shape)
    for option, value in REGISTRY[name].options.items():
        assert getattr(wide, option) == value
    assert draw(wide, (2,)).shape == (2, *wide.batch_shape)
    counts = q.sample()
    torch.testing.assert_close(wide.log_prob(counts), q.log_prob(counts).expand(wide.batch_shape))
    assert wide.expand(wide.batch_shape).batch_shape == wide.batch_shape
    with pytest.raises(RuntimeError):
        q.expand((7,))


@every_relaxed_law
def test_gradients_pass_through_expand(name):
    leaf = REGISTRY[name].tensors[0]
    arguments = REGISTRY[name].arguments(0)
    arguments[leaf].requires_grad_()
    q = getattr(hh, name)(**arguments).expand((200, *build(name, 0).batch_shape))
    (slope,) = torch.autograd.grad(q.rsample().sum(), arguments[leaf])
    assert slope.shape == arguments[leaf].shape
    assert bool(slope.isfinite().all())
    assert bool((slope != 0).any())


@every_case
def test_repr_names_the_law_and_its_options(name, case):
    text = repr(build(name, case))
    assert text.startswith(f"{name}(")
    for option, value in REGISTRY[name].cases[case].items():
        assert f"{option}=" in text
        if not isinstance(value, list):
            assert f"{option}={value:g}" in text if isinstance(value, float) else f"{option}={value}" in text


@every_case
def test_sample_gives_whole_counts_from_the_law_that_log_prob_states(name, case):
    """χ² of ``sample`` against scipy's pmf, and ``log_prob`` equal to it."""
    arguments = REGISTRY[name].arguments(case)
    q = build(name, case)
    counts = q.sample((20_000,))
    assert not counts.requires_grad
    assert bool((counts == counts.round()).all())
    plain = {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    k = np.arange(400).reshape(-1, *([1] * len(q.batch_shape)))
    reference = np.broadcast_to(REGISTRY[name].log_pmf(plain, k), (400, *q.batch_shape)).reshape(400, -1)
    ours = q.log_prob(torch.as_tensor(k, dtype=torch.float64)).reshape(400, -1).numpy()
    near = reference > -700
    np.testing.assert_allclose(ours[near], reference[near], rtol=1e-10, atol=1e-10)
    assert (ours[~near] < -600).all()
    for item in range(reference.shape[1]):
        testing.assert_frequencies(counts.reshape(20_000, -1)[:, item], torch.as_tensor(np.exp(reference[:, item])))


@every_relaxed_case
def test_relaxed_mean_and_variance_are_those_of_the_law_sampled(name, case):
    q = build(name, case)
    try:
        mean, variance = q.mean, q.variance
    except NotImplementedError:
        assert bool((q.temperature > 0).any())
        assert not q.hard
        return
    z = q.rsample((100_000,))
    testing.assert_mean(z, mean)
    testing.assert_mean((z - mean).square(), variance)
    with pytest.raises(AssertionError):
        testing.assert_mean(z, mean * 1.03 + 1e-3)


@every_case
def test_seed_reproduces(name, case):
    q = build(name, case)
    draws = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        draws.append((draw(q, (200,)), q.sample((200,))))
    assert torch.equal(draws[0][0], draws[1][0])
    assert torch.equal(draws[0][1], draws[1][1])
    if draws[0][0].max() > 0:
        assert not torch.equal(draws[0][0], draws[2][0])


@every_relaxed_case
def test_gradient_reaches_every_parameter_and_not_the_temperature(name, case):
    arguments = REGISTRY[name].arguments(case)
    leaves = [arguments[n].requires_grad_() for n in REGISTRY[name].tensors if n in arguments]
    temperature = arguments["temperature"].requires_grad_()
    z = getattr(hh, name)(**arguments).rsample((300,))
    *slopes, of_temperature = torch.autograd.grad(z.square().sum(), [*leaves, temperature], allow_unused=True)
    for leaf, slope in zip(leaves, slopes, strict=True):
        assert slope.shape == leaf.shape
        assert bool(slope.isfinite().all())
        assert bool((slope != 0).any()) or leaf.shape[-1:] == (1,)
    assert of_temperature is None or not of_temperature.any()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [(name, changes, message) for name in EXPORTED for changes, message in REGISTRY[name].bad],
)
def test_bad_parameters_are_named_with_their_value_and_domain(name, changes, message):
    raw = {**REGISTRY[name].cases[0], **changes}
    arguments = {k: torch.tensor(v) if isinstance(v, list) else v for k, v in raw.items() if v is not None}
    with without_shape_checks(), pytest.raises(ValueError) as error:  # noqa: PT011
        getattr(hh, name)(**arguments)
    assert message in str(error.value)


@every_law
def test_bad_counts_are_refused_by_log_prob(name):
    q = build(name)
    with without_shape_checks():
        for bad in (-1.0, math.nan):
            with pytest.raises(ValueError, match=f"value must be .*, got {bad:g}"):
                q.log_prob(torch.full(q.batch_shape, bad, dtype=torch.float64))
        with pytest.raises(ValueError, match="value must be real"):
            q.log_prob(torch.zeros(q.batch_shape, dtype=torch.complex64))
        with pytest.raises(ValueError, match="must broadcast"):
            q.log_prob(torch.zeros(11, dtype=torch.float64))
    lax = build(name, validate_args=False)
    assert lax.log_prob(torch.full(q.batch_shape, math.nan, dtype=torch.float64)).shape == q.batch_shape


@every_law
def test_validate_args_false_builds_anything(name):
    first = REGISTRY[name].tensors[0]
    build(name, **{first: torch.full_like(REGISTRY[name].arguments()[first], math.nan)}, validate_args=False)


@every_law
def test_divergence_from_itself_is_zero(name):
    q = build(name)
    try:
        torch.testing.assert_close(kl_divergence(q, q), torch.zeros(q.batch_shape, dtype=torch.float64))
    except NotImplementedError:
        assert name not in POISSON


@every_law
def test_empty_batch_one_element_and_strides(name):
    tensors = REGISTRY[name].arguments()
    event = REGISTRY[name].event_dims

    def law(change):
        changed = {k: change(v) if k in REGISTRY[name].tensors else v for k, v in tensors.items() if k != "temperature"}
        return getattr(hh, name)(**changed, **({"temperature": 0.3} if REGISTRY[name].relaxed else {}))

    def flat(v):
        return v.reshape(-1, *v.shape[v.dim() - event :])

    empty = law(lambda v: flat(v)[:0])
    assert draw(empty, (3,)).shape == empty.sample((3,)).shape == (3, 0)
    assert empty.log_prob(torch.zeros(3, 0, dtype=torch.float64)).shape == (3, 0)
    one = law(lambda v: flat(v)[:1])
    assert draw(one, (3,)).shape == (3, 1)

    def strided(v):
        wide = torch.stack([flat(v)[:1].expand(6, *flat(v).shape[1:])] * 2, dim=1)[:, 0]
        assert not wide.is_contiguous() or wide.dim() == 0
        return wide

    q, dense = law(strided), law(lambda v: strided(v).contiguous())
    torch.manual_seed(1)
    a = draw(q, (4,))
    torch.manual_seed(1)
    torch.testing.assert_close(a, draw(dense, (4,)))


@every_case
def test_law_can_be_saved(name, case):
    """Pickle and deepcopy give the same law, options included."""
    q = build(name, case)
    for twin in (pickle.loads(pickle.dumps(q)), copy.deepcopy(q)):
        assert repr(twin) == repr(q)
        torch.manual_seed(0)
        a = draw(q, (5,))
        torch.manual_seed(0)
        assert torch.equal(draw(twin, (5,)), a)


@pytest.mark.parametrize("name", POISSON)
def test_numbers_of_every_kind_are_rates(name):
    """Python and numpy numbers become torch's default dtype, arrays too; tensors keep theirs, whole ones become floats."""
    with without_shape_checks():
        for rate in (3, 3.0, np.float64(3), np.int64(3), np.array(3.0), torch.tensor(3), torch.tensor(3.0)):
            q = getattr(hh, name)(rate=rate, temperature=np.float64(0.5))
            assert q.rsample().dtype == torch.float32
            assert q.rate.item() == 3
        assert getattr(hh, name)(rate=[1.0, 2.0]).batch_shape == (2,)
        assert (
            getattr(hh, name)(rate=torch.tensor(3.0, dtype=torch.float64), temperature=1).rsample().dtype
            == torch.float64
        )


@every_relaxed_law
def test_another_device_is_refused(name):
    arguments = REGISTRY[name].arguments()
    arguments["temperature"] = torch.full(build(name).batch_shape, 0.3, device="meta")
    with without_shape_checks(), pytest.raises(ValueError, match="temperature must be on the device of the other"):
        getattr(hh, name)(**arguments)


def test_signatures_resolve():
    """A shape whose quotes a linter removed is a NameError for whoever reads the hints."""
    for module in (arrival_time, gumbel_softmax, common, estimators, linear_decoder, gradient_quality):
        for owner in (
            module,
            *(c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__),
        ):
            for member in vars(owner).values():
                function = getattr(member, "fget", None) or getattr(member, "__func__", member)
                if inspect.isfunction(function) and function.__module__ == module.__name__:
                    assert typing.get_type_hints(function, localns={"_NormalisedShape": None}) is not None


# --- Poisson laws ---


@pytest.mark.parametrize("name", POISSON)
@pytest.mark.parametrize("parameter", ["rate", "log_rate"])
def test_log_prob_is_torch_poisson_extended_by_lgamma(name, parameter):
    rate = torch.tensor([0.2, 3.0, 50.0], dtype=torch.float64)
    q = getattr(hh, name)(**{parameter: rate if parameter == "rate" else rate.log()})
    k = torch.arange(80.0, dtype=torch.float64)[:, None]
    torch.testing.assert_close(q.log_prob(k), Poisson(rate).log_prob(k), rtol=1e-13, atol=1e-12)
    torch.testing.assert_close(q.log_prob(k.long()), q.log_prob(k), rtol=0, atol=0)  # integer counts lose no digits
    z = torch.tensor([0.0, 0.25, 2.5, 17.1], dtype=torch.float64)[:, None]
    by_hand = z * rate.log() - rate - torch.lgamma(z + 1)
    torch.testing.assert_close(q.log_prob(z), by_hand, rtol=1e-14, atol=1e-13)


@pytest.mark.parametrize("name", POISSON)
def test_log_prob_of_nothing_at_rate_zero(name):
    """P(N = 0) = 1 and P(N = 1) = 0 at λ = 0, with finite slopes where the value is finite."""
    rate = torch.tensor(0.0, requires_grad=True)
    q = getattr(hh, name)(rate=rate)
    assert q.log_prob(torch.tensor([0.0, 1.0])).tolist() == [0.0, -INF]
    assert torch.autograd.grad(q.log_prob(torch.tensor(0.0)), rate)[0].item() == -1.0
    log_rate = torch.tensor([-INF], requires_grad=True)
    log_prob = getattr(hh, name)(log_rate=log_rate).log_prob(torch.zeros(1))
    assert log_prob.tolist() == [0.0]
    assert torch.autograd.grad(log_prob.sum(), log_rate)[0].tolist() == [0.0]
    # in the value, the slope at 0 is that of lgamma: ln λ + γ
    z = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(getattr(hh, name)(rate=torch.tensor([2.0], dtype=torch.float64)).log_prob(z), z)
    assert float(slope) == pytest.approx(math.log(2) + 0.5772156649015329, rel=1e-12)


@pytest.mark.parametrize("name", POISSON)
def test_two_backward_passes_need_no_retained_graph(name):
    log_rate = torch.zeros(3, requires_grad=True)
    q = getattr(hh, name)(log_rate=log_rate)
    for _ in range(2):
        (q.rsample().sum() + q.rate.sum() + q.log_prob(torch.ones(3)).sum()).backward()
    assert log_rate.grad.isfinite().all()


@pytest.mark.parametrize("name", POISSON)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_rates(name, dtype):
    """Rate 0 never counts and has slope 0; 1e-8 all but never; 1e6 (EAT) has its mean and standard deviation."""
    rate = torch.tensor([0.0, 1e-8], dtype=dtype, requires_grad=True)
    for temperature in (0.0, 1e-6, 0.5, 1.0, 50.0):
        q = getattr(hh, name)(
            rate=rate, temperature=temperature, **({"num_categories": 5} if name == "GSMPoisson" else {})
        )
        z = q.rsample((100,))
        assert not z[:, 0].any()
        assert bool(z.isfinite().all())
        assert temperature == 50 or z[:, 1].max() < 1e-3
        if temperature > 0:
            (slope,) = torch.autograd.grad(z.sum(), rate)
            assert slope[0] == 0
            assert bool(slope.isfinite().all())
    assert not getattr(hh, name)(rate=rate).sample((100,)).any()
    log_rate = torch.tensor([-INF], dtype=dtype, requires_grad=True)
    z = getattr(hh, name)(
        log_rate=log_rate, temperature=0.5, **({"num_categories": 5} if name == "GSMPoisson" else {})
    ).rsample((10,))
    assert not z.any()
    assert torch.autograd.grad(z.sum(), log_rate)[0].tolist() == [0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_million_counts(dtype):
    q = hh.EATPoisson(rate=torch.full((60,), 1e6, dtype=dtype, requires_grad=True), temperature=0.1)
    z = q.rsample()
    (slope,) = torch.autograd.grad(z.sum(), q.parameter)
    variance = 1e6 * (1 - 0.9 / 35)
    assert abs(z.double().mean() - 1e6) < 6 * math.sqrt(variance / 60)
    assert 0.3 < z.double().var() / variance < 2.2
    noise = hh.moments.gradient_variance("cubic", 0.1, 1e6)
    assert abs(slope.double().mean() - 1) < 6 * math.sqrt(noise / 60)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gumbel_logits_at_a_million(dtype):
    """ln π_m is a difference of numbers near 10⁷: the pmf must still be the Poisson's."""
    for rate in (20.0, 1e4, 1e6):
        q = hh.GSMPoisson(rate=torch.tensor(rate, dtype=dtype), hard=True)
        pmf = torch.softmax(q._logits, dim=0).double()
        m = torch.arange(len(pmf), dtype=torch.float64)
        exact = Poisson(torch.tensor(rate, dtype=torch.float64)).log_prob(m).exp()
        assert 0.5 * (pmf - exact / exact.sum()).abs().sum() < 1e-6
        assert float(q.mean) == pytest.approx(rate, rel=1e-5)
        assert float(q.variance) == pytest.approx(rate, rel=1e-4 if dtype == torch.float64 else 1e-2)


@pytest.mark.parametrize("name", POISSON)
def test_temperature_zero_is_the_integer_count_without_gradient(name):
    rate = torch.full((20_000,), 3.0, requires_grad=True)
    q = getattr(hh, name)(rate=rate, temperature=0.0)
    z = q.rsample()
    pmf = Poisson(torch.tensor(3.0, dtype=torch.float64)).log_prob(torch.arange(40.0, dtype=torch.float64)).exp()
    testing.assert_frequencies(z, pmf)
    assert not torch.autograd.grad(z.sum(), rate, allow_unused=True)[0].any()
    torch.testing.assert_close(q.mean, rate, rtol=1e-5, atol=0)
    torch.testing.assert_close(q.variance, rate, rtol=1e-4, atol=0)


@pytest.mark.parametrize("temperature", [1e-6, 50.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_temperatures_have_their_moments(temperature, dtype):
    q = hh.EATPoisson(rate=torch.tensor(3.0, dtype=dtype), temperature=temperature)
    k = [3.0 * hh.moments.cumulant_factor("cubic", temperature, order) for order in (1, 2, 3, 4)]
    testing.assert_cumulants(q.rsample((100_000,)), k)


@pytest.mark.parametrize("name", POISSON)
def test_only_the_log_rate_needs_a_gradient(name):
    """dz/d ln λ = λ dz/dλ, from the same noise."""
    rate = torch.tensor([0.5, 4.0], dtype=torch.float64)
    slopes = []
    for parameter, value in (("rate", rate), ("log_rate", rate.log())):
        leaf = value.clone().requires_grad_()
        torch.manual_seed(0)
        z = getattr(hh, name)(
            **{parameter: leaf}, temperature=0.5, **({"num_categories": 40} if name == "GSMPoisson" else {})
        ).rsample((50,))
        slopes.append(torch.autograd.grad(z.sum(), leaf)[0])
    torch.testing.assert_close(slopes[1], rate * slopes[0], rtol=1e-8, atol=1e-8)


def test_mean_and_variance_carry_the_gradient_they_state():
    rate = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    q = hh.EATPoisson(rate=rate, temperature=2.0)
    (slope,) = torch.autograd.grad(q.mean + q.variance, rate)
    c, v = (hh.moments.cumulant_factor("cubic", 2.0, k) for k in (1, 2))
    assert float(slope) == pytest.approx(c + v, rel=1e-12)
    # with finitely many arrivals the factors depend on λ: no gradient rather than a wrong one
    cut = hh.EATPoisson(rate=rate, temperature=2.0, num_arrivals=4)
    assert not cut.mean.requires_grad
    assert float(cut.mean) == pytest.approx(3 * hh.moments.truncated_mean_factor("cubic", 2.0, 3.0, 4), rel=1e-12)


def test_gumbel_categories_follow_the_rate():
    """The default number of categories is chosen anew for another rate; a given one is kept."""
    q = hh.GSMPoisson(rate=torch.tensor(1.0))
    few = q.num_categories
    assert q.with_parameter(torch.tensor(100.0)).num_categories > few
    assert q.expand((3,)).num_categories == few
    kept = hh.GSMPoisson(rate=torch.tensor(1.0), num_categories=7).with_parameter(torch.tensor(100.0))
    assert kept.num_categories == 7


def test_second_derivative_is_refused():
    rate = torch.tensor([2.0], requires_grad=True)
    for q in (hh.EATPoisson(rate=rate, temperature=1.0), hh.GSMPoisson(rate=rate, temperature=1.0)):
        (slope,) = torch.autograd.grad(q.rsample((50,)).square().sum(), rate, create_graph=True)
        with pytest.raises(NotImplementedError, match="first derivatives only"):
            torch.autograd.grad(slope.sum(), rate)


def test_second_derivative_of_algorithm_1():
    """Autograd sees every arrival there: ∂²/∂λ² of f((1 - e/λ)/τ) with f'' = -1.5u in the window."""
    rate, e, tau = torch.tensor(2.0, dtype=torch.float64, requires_grad=True), 1.8, 0.5
    z = arrival_time.from_unit_exponentials(rate, torch.tensor([e], dtype=torch.float64), tau)
    (slope,) = torch.autograd.grad(z, rate, create_graph=True)
    (second,) = torch.autograd.grad(slope, rate)
    u = (1 - e / 2) / tau
    by_hand = -1.5 * u * (e / (4 * tau)) ** 2 - 0.75 * (1 - u * u) * 2 * e / (8 * tau)
    assert float(second) == pytest.approx(by_hand, rel=1e-12)


# --- KL ---


def test_poisson_kl_is_exact_near_and_far():
    """Against 40-digit arithmetic; float32 keeps its digits where λ and r all but agree."""
    import mpmath as mp

    q = torch.tensor([1e-8, 0.3, 1.0, 5.0, 5.0, 5.0, 1e6, 1e6, 1e3], dtype=torch.float64)
    r = torch.tensor([1e-3, 4.0, 1.0, 5.0000001, 4.1, 6.2, 1.0001e6, 2e6, 1e-8], dtype=torch.float64)

    def exact(a: float, b: float) -> float:
        with mp.workdps(40):
            return float(mp.mpf(a) * mp.log(mp.mpf(a) / mp.mpf(b)) - mp.mpf(a) + mp.mpf(b))

    truth = torch.tensor([exact(float(a), float(b)) for a, b in zip(q, r, strict=True)], dtype=torch.float64)
    torch.testing.assert_close(hh.poisson_kl(q, r), truth, rtol=1e-13, atol=0)
    q32, r32 = q.float(), r.float()
    truth = torch.tensor([exact(float(a), float(b)) for a, b in zip(q32, r32, strict=True)])
    torch.testing.assert_close(hh.poisson_kl(q32, r32), truth, rtol=2e-5, atol=0)


def test_poisson_kl_gradients():
    q = torch.tensor([0.3, 5.0, 5.0, 1e3], dtype=torch.float64, requires_grad=True)
    r = torch.tensor([2.0, 5.1, 9.0, 1.0], dtype=torch.float64, requires_grad=True)
    of_q, of_r = torch.autograd.grad(hh.poisson_kl(q, r).sum(), (q, r))
    torch.testing.assert_close(of_q, (q / r).log().detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(of_r, (1 - q / r).detach(), rtol=1e-12, atol=0)
    # zeros: the limits, and no NaN in either slope
    q, r = torch.tensor([0.0, 0.0, 2.0], requires_grad=True), torch.tensor([0.0, 3.0, 0.0], requires_grad=True)
    kl = hh.poisson_kl(q, r)
    assert kl.tolist() == [0.0, 3.0, INF]
    of_q, of_r = torch.autograd.grad(kl[:2].sum(), (q, r))
    assert of_q[:2].tolist() == [0.0, 0.0]
    assert of_r[:2].tolist() == [1.0, 1.0]


def test_registered_divergences_are_the_poisson_ones():
    eat = hh.EATPoisson(rate=torch.tensor([0.5, 3.0], dtype=torch.float64), temperature=0.7)
    gsm = hh.GSMPoisson(log_rate=torch.tensor([0.0, 1.0], dtype=torch.float64))
    poisson = Poisson(torch.tensor([2.0, 0.1], dtype=torch.float64))
    for p in (eat, gsm, poisson):
        for q in (eat, gsm, poisson):
            torch.testing.assert_close(kl_divergence(p, q), kl_divergence(Poisson(p.rate), Poisson(q.rate)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1.0, 1.0), "posterior_rate must be >= 0 and finite, got -1"),
        ((1.0, math.nan), "prior_rate must be >= 0 and finite, got nan"),
        ((INF, 1.0), "posterior_rate must be >= 0 and finite, got inf"),
        ((torch.ones(2), torch.ones(3)), "posterior_rate and prior_rate must broadcast"),
        ((1j, 1.0), "posterior_rate must be real"),
    ],
)
def test_poisson_kl_errors(arguments, message):
    with without_shape_checks(), pytest.raises(ValueError) as error:  # noqa: PT011
        hh.poisson_kl(*arguments)
    assert message in str(error.value)


# --- torch's transforms ---


@pytest.mark.parametrize("name", POISSON)
def test_vmap_and_grad(name):
    """One law a row under vmap, its gradient under torch.func.grad, each row with its own noise."""
    rate = torch.tensor([0.5, 3.0, 3.0], dtype=torch.float64)
    tau = torch.tensor([0.5, 0.1, 0.1], dtype=torch.float64)
    options = {"num_categories": 30} if name == "GSMPoisson" else {}

    def loss(r, t):
        return getattr(hh, name)(rate=r, temperature=t, **options).rsample((4000,)).mean()

    value = torch.func.vmap(loss, randomness="different")(rate, tau)
    slope = torch.func.vmap(torch.func.grad(loss), randomness="different")(rate, tau)
    assert value.shape == slope.shape == (3,)
    assert value[1] != value[2]
    assert bool(((value - rate).abs() < 6 * (rate / 4000).sqrt() + 0.05).all())  # GSM's own bias is below 0.05
    assert bool(((slope - 1).abs() < 0.5).all())
    with pytest.raises(RuntimeError, match="randomness"):
        torch.func.vmap(loss)(rate, tau)
    scores = torch.func.vmap(lambda r: getattr(hh, name)(rate=r, **options).log_prob(torch.tensor(2.0)))(rate)
    torch.testing.assert_close(scores, Poisson(rate).log_prob(torch.tensor(2.0, dtype=torch.float64)))


def test_vmap_over_the_noise_to_sample_functions():
    e = torch.empty(3, 9, dtype=torch.float64).exponential_()
    rate, tau = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    for function, noise in ((arrival_time.from_unit_exponentials, e), (gumbel_softmax.from_gumbels, -e.log())):
        rows = torch.stack([function(r, n, t) for r, n, t in zip(rate, noise, tau, strict=True)])
        torch.testing.assert_close(torch.func.vmap(function)(rate, noise, tau), rows, rtol=1e-14, atol=0)
        torch.testing.assert_close(function(rate, noise.T, tau), rows, rtol=1e-14, atol=0)


def test_gsm_asks_for_its_categories_where_it_cannot_look():
    with pytest.raises(ValueError, match="num_categories must be given"):
        torch.func.vmap(lambda r: hh.GSMPoisson(rate=r).rsample(), randomness="different")(torch.ones(3))


COMPILED = """
import torch, hitchhiker as hh
@torch.compile(fullgraph=True)
def eat(rate):
    q = hh.EATPoisson(rate=rate, temperature=0.5)
    return q.rsample((4000,)).square().mean() + q.log_prob(torch.ones(2)).sum()
@torch.compile(fullgraph=True, backend="aot_eager")  # the graph alone, without the compiler's half minute
def gsm(log_rate):
    q = hh.GSMPoisson(log_rate=log_rate, temperature=0.5, num_categories=12)
    return q.rsample((4000,)).mean()
rate, log_rate = torch.tensor([1.0, 3.0], requires_grad=True), torch.zeros(2, requires_grad=True)
torch.manual_seed(0)
(eat(rate) + gsm(log_rate)).backward()
print(*rate.grad.tolist(), *log_rate.grad.tolist())
"""


@pytest.mark.slow
def test_torch_compile_without_graph_breaks():
    """In a process of its own, without the wrappers that check shapes."""
    run = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    slopes = torch.tensor([float(x) for x in run.stdout.split()])
    # (2λ + v)/2 + (1/λ - 1) for the rates and about λ/2 = 0.5 for the log-rates
    v = hh.moments.variance_factor("cubic", 0.5)
    expected = torch.tensor([(2 + v) / 2, (6 + v) / 2 + 1 / 3 - 1, 0.5, 0.5])
    torch.testing.assert_close(slopes, expected, rtol=0, atol=0.25)


def test_constraints_are_torchs():
    assert hh.EATPoisson.support is constraints.nonnegative
    assert hh.EATPoisson.arg_constraints == {"rate": constraints.nonnegative, "log_rate": constraints.real}
