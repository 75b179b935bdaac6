import pytest
import torch

import hitchhiker as hh
from hitchhiker import training
from hitchhiker.models import POGLM, PoissonVAE, fit_poglm
from hitchhiker.monitoring import CountMonitor

J2 = {"cubic": 3 / 35}  # ∫u²f'²


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("temperature", [0.1, 0.8])
def test_reports_theory(log, temperature):
    rate = torch.full((200_000,), 6.0)
    given = {"log_rate": rate.log()} if log else {"rate": rate}
    cubic = hh.indicators.get("cubic")
    monitor = CountMonitor()
    monitor.update(hh.EATPoisson(**given, temperature=temperature))
    seen = monitor.report()
    assert abs(seen.lost_variance - cubic.deficit * temperature) < 6 * seen.lost_variance_se
    noise = (cubic.roughness + temperature**2 * J2["cubic"]) / temperature
    assert abs(seen.slope_noise - noise) < 6 * seen.slope_noise_se
    assert seen.noise == pytest.approx(seen.slope_noise / 6)
    # it would see a temperature that is 10% off
    assert abs(seen.slope_noise - noise / 1.1) > 6 * seen.slope_noise_se


def test_noise_grows_as_rates_fall():
    noise = []
    for rate in (0.1, 1.0, 10.0):
        monitor = CountMonitor()
        monitor.update(hh.EATPoisson(rate=torch.full((100_000,), rate), temperature=0.1))
        seen = monitor.report()
        noise.append(seen.noise)
        assert abs(seen.noise - 6 / rate) < 6 * seen.noise_se + 0.02 / rate
    assert noise[0] > 8 * noise[1] > 64 * noise[2]


def test_hard_counts_lose_nothing():
    monitor = CountMonitor()
    monitor.update(hh.EATPoisson(rate=torch.full((100_000,), 2.0), temperature=0.0))
    seen = monitor.report()
    assert abs(seen.lost_variance) < 6 * seen.lost_variance_se
    assert seen.slope_noise == 0


def test_bounds_and_gsm():
    monitor = CountMonitor(max_rate=50.0, min_rate=0.01)
    monitor.update(hh.GSMPoisson(rate=torch.tensor([0.0, 0.01, 1.0, 50.0]), temperature=0.3))
    seen = monitor.report()
    assert (seen.silent, seen.clipped, seen.updates) == (0.5, 0.25, 1)
    assert "clipped 25.0%" in str(seen)


def test_training_is_the_same_with_a_monitor():
    law = hh.EATPoisson(rate=torch.ones(50), temperature=0.3)
    torch.manual_seed(0)
    alone = [law.rsample(), law.rsample()]
    torch.manual_seed(0)
    monitor = CountMonitor(every=1)
    watched = []
    for _ in range(2):
        monitor.update(law)
        watched.append(law.rsample())
    assert all(torch.equal(a, b) for a, b in zip(alone, watched, strict=True))


def test_no_gpu_is_seeded_by_a_law_on_the_cpu(monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    monkeypatch.setattr(torch.cuda, "manual_seed", seeded.append)
    before = torch.get_rng_state()
    CountMonitor().update(hh.EATPoisson(rate=torch.ones(5), temperature=0.5))
    model = PoissonVAE(4, 2)
    model.evaluate(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), 2)
    model.importance_bound(torch.zeros(3, 4), 2)
    fit_poglm(POGLM(2, 1), torch.ones(2, 5, 2), steps=1)
    training.fit(model, torch.zeros(4, 4), epochs=1)
    assert seeded == []
    assert torch.equal(torch.get_rng_state(), before)


def test_looks_only_now_and_then():
    monitor = CountMonitor(every=3)
    for _ in range(7):
        monitor.update(hh.EATPoisson(rate=torch.ones(5), temperature=0.3))
    assert monitor.report().updates == 3


def test_bad_input():
    with pytest.raises(ValueError, match=r"max_rate must be > min_rate >= 0, got 1\.0 and 2\.0"):
        CountMonitor(max_rate=1.0, min_rate=2.0)
    with pytest.raises(ValueError, match="every must be a whole number >= 1, got 0"):
        CountMonitor(every=0)
    with pytest.raises(ValueError, match="got none"):
        CountMonitor().report()
    with pytest.raises(ValueError, match="relaxed Poisson law, got Tensor"):
        CountMonitor().update(torch.ones(3))
