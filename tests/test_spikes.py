import contextlib
import functools
import http.server
import math
import threading
import zipfile

import numpy as np
import pytest
import torch
from scipy.io import savemat

from hitchhiker import datasets
from hitchhiker.datasets import spikes
from hitchhiker.testing import SIGMAS, assert_mean


@pytest.mark.parametrize("preset", spikes.PRESETS)
def test_sizes_and_counts(preset):
    data = datasets.synthetic_poglm(preset, 2, num_train=4, num_test=3, length=20)
    assert data.train.shape == (2, 4, 20, 3)
    assert data.test_hidden.shape == (2, 3, 20, 2)
    for counts in (data.train, data.test, data.train_hidden, data.test_hidden):
        assert bool(((counts >= 0) & (counts == counts.round())).all())
    assert data.weights.shape == (2, 5, 5, 1 if preset == "strong" else 3)
    assert data[1].train.shape == (4, 20, 3)
    torch.testing.assert_close(data[1].weights, data.weights[1])


def test_parameters_are_those_of_section_g2():
    data = datasets.synthetic_poglm("paper", 40, num_train=1, num_test=1, length=2)
    w, b = data.weights, data.bias
    assert 1.99 < w.abs().max() <= 2
    assert 0.45 < b.abs().max() <= 0.5
    assert_mean(w.flatten(), 0.0)
    assert_mean(w.flatten().square(), 4 / 3)  # variance of U(-2, 2)
    assert_mean(b.flatten().square(), 1 / 12)
    released = datasets.synthetic_poglm("released", 40, num_train=1, num_test=1, length=2).weights
    assert 0.257 < released.abs().max() <= 1 / math.sqrt(15)


def test_the_papers_networks_hit_the_clamp_and_strong_ones_do_not():
    paper = datasets.synthetic_poglm("paper", 10)
    assert float(paper.clipped.min()) > 0.1
    assert float(paper.train.max()) < 40  # the clamp is at a rate of 10
    strong = datasets.synthetic_poglm("strong", 10)
    assert float(strong.clipped.max()) == 0
    assert float(spikes.spectral_radius(strong.weights).max()) < 1
    assert strong.silent.tolist() == [0] * 10


def test_strong_networks_are_as_described():
    data = datasets.synthetic_poglm("strong", 5, num_train=1, num_test=1, length=2)
    into = data.weights[:, :3, 3:, 0]
    assert bool(((into > 2) & (into < 4) | (into < -1.2) & (into > -2.4)).all())
    assert bool(((into > 0).sum(dim=1) >= 2).all())
    torch.testing.assert_close(data.weights[:, 3:, 3:, 0], 0.5 * torch.eye(2).expand(5, 2, 2))


def test_rates_of_the_generator_follow_its_past():
    """Counts minus the rates that their own past implies have mean 0 and the variance of Poisson counts."""
    weights = torch.tensor([[[0.3, -0.2], [-0.5, 0.1]], [[0.4, 0.0], [0.2, -0.3]]])
    bias = torch.tensor([0.2, -0.4])
    x, clipped = datasets.simulate_spikes(weights, bias, 200, 100, max_rate=3.0)
    drive = bias + sum(
        torch.nn.functional.pad(x, (0, 0, k, 0))[:, :100] @ weights[..., k - 1].T for k in (1, 2)
    )  # fmt: skip
    raw = torch.nn.functional.softplus(drive)
    rate = raw.clamp(max=3.0)
    z = (x - rate) / rate.sqrt()
    assert_mean(z.flatten(), 0.0)
    assert_mean(z.square().flatten(), 1.0)
    assert_mean((z[:, 1:] * z[:, :-1]).flatten(), 0.0)
    assert float(clipped) == pytest.approx(float((raw > 3).float().mean()), abs=1e-6)
    # the same test must notice a rate that is 5% off
    assert abs(float(((x - 1.05 * rate) / rate.sqrt()).mean() * math.sqrt(z.numel()))) > SIGMAS


def test_a_data_set_does_not_depend_on_how_many_there_are():
    one, three = datasets.synthetic_poglm("released", 1), datasets.synthetic_poglm("released", 3)
    torch.testing.assert_close(one.train[0], three.train[0])
    other = datasets.synthetic_poglm("released", 1, seed=1)
    assert not torch.equal(one.train, other.train)


def test_explosion_is_an_error_not_nan():
    with pytest.raises(ArithmeticError, match="rates must stay below 1e6"):
        datasets.simulate_spikes(torch.full((2, 2, 1), 3.0), torch.zeros(2), 2, 100)


def test_long_recordings():
    data = datasets.synthetic_poglm("strong", 1, num_train=1, num_test=1, length=1500)
    assert data.train.shape == (1, 1, 1500, 3)
    assert float(data.train.mean()) < 10


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"preset": "weak"}, "preset must be one of paper, released, strong, got 'weak'"),
        ({"length": 0}, "length must be a whole number >= 1, got 0"),
        ({"num_hidden": 0}, "num_hidden must be"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_bad_sizes_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        datasets.synthetic_poglm(**arguments)


# --- files


def test_counts_from_a_file(tmp_path):
    counts = np.arange(12).reshape(6, 2).astype(np.uint8)
    np.savez(tmp_path / "one.npz", counts)
    np.savez(tmp_path / "two.npz", spikes=counts, time=np.arange(6.0))
    assert datasets.load_spikes(tmp_path / "one.npz").tolist() == counts.tolist()
    assert datasets.load_spikes(tmp_path / "two.npz", "spikes").dtype == torch.get_default_dtype()
    with pytest.raises(ValueError, match="key must name one of the arrays"):
        datasets.load_spikes(tmp_path / "two.npz")
    with pytest.raises(ValueError, match="got 'other'"):
        datasets.load_spikes(tmp_path / "two.npz", "other")
    with pytest.raises(ValueError, match=r"must be \(T bins, N neurons\), got shape \(6,\)"):
        datasets.load_spikes(tmp_path / "two.npz", "time")


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.array([[1.0, -1.0]]), "whole numbers >= 0, got -1 at index"),
        (np.array([[1.0, 0.5]]), "whole numbers >= 0, got 0.5"),
        (np.array([[1.0, np.nan]]), "whole numbers >= 0, got nan"),
        (np.array([["a", "b"]]), "must hold plain numbers"),
        (np.array([[1, None]], dtype=object), "must hold plain numbers"),
        (np.zeros((0, 3)), "must be"),
        (np.zeros((2, 3, 4)), "must be"),
        (np.array([[1j]]), "must hold plain numbers"),
    ],
)
def test_bad_files_are_named(tmp_path, array, words):
    path = tmp_path / "bad.npz"
    np.savez(path, array)
    with pytest.raises(ValueError, match=words) as caught:
        datasets.load_spikes(path)
    assert str(path) in str(caught.value)


def test_files_that_are_no_archives(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        datasets.load_spikes(tmp_path / "none.npz")
    np.save(tmp_path / "single.npy", np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"must be an \.npz archive"):
        datasets.load_spikes(tmp_path / "single.npy")
    (tmp_path / "text.npz").write_text("spikes")
    with pytest.raises(ValueError, match=r"must be an \.npz archive"):
        datasets.load_spikes(tmp_path / "text.npz")


def test_damaged_archives_are_named(tmp_path):
    path = tmp_path / "bad.npz"
    np.savez_compressed(path, np.arange(400).reshape(200, 2))
    whole = path.read_bytes()
    damaged = [whole[:n] for n in (0, 1, 4, 60, len(whole) - 30)]
    damaged += [whole[:n] + bytes([whole[n] ^ 255]) + whole[n + 1 :] for n in range(0, len(whole), 7)]
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        with contextlib.suppress(ValueError):  # a flipped byte of a date does no harm
            datasets.load_spikes(path)
            refused -= 1
        refused += 1
    assert refused > len(damaged) // 2


def test_a_recording_is_cut_and_a_cell_hidden():
    counts = torch.arange(23 * 3).view(23, 3).float()
    data = datasets.split_recording(counts, 5, hide=[1], test_fraction=0.25)
    assert data.train.shape == (3, 5, 2)
    assert data.test.shape == (1, 5, 2)
    assert data.num_hidden == 1
    torch.testing.assert_close(data.train_hidden.flatten(), counts[:15, 1])
    assert int(data.silent) == 0 == int(data.silent_sequences)
    torch.testing.assert_close(data.test[0], counts[15:20][:, [0, 2]])
    counts[5:10] = 0
    counts[:, 2] = 0
    quiet = datasets.split_recording(counts, 5, hide=[1])
    assert (int(quiet.silent), int(quiet.silent_sequences)) == (1, 1)
    for bad, words in (({"length": 20}, "at least two sequences"), ({"hide": [3]}, "hide must name"),
                       ({"hide": [0, 1, 2]}, "hide must name"), ({"test_fraction": 1.0}, "test_fraction")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            datasets.split_recording(counts, **({"length": 5} | bad))


# --- the parasol cells, on a file of their format


def archive(path, cells, name="data_RGCs/SpTimes.mat", key="SpTimes"):
    column = np.empty((1, len(cells)), dtype=object)
    for i, times in enumerate(cells):
        column[0, i] = np.asarray(times, dtype=float)[:, None]
    savemat(path.parent / "SpTimes.mat", {key: column})
    with zipfile.ZipFile(path, "w") as made:
        made.write(path.parent / "SpTimes.mat", name)
        made.writestr("data_RGCs/README.txt", "tutorial use only")
    return path


@pytest.fixture
def address(tmp_path):
    """A web server on this machine that offers the files of the test's folder."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


def test_parasol_format(tmp_path, capsys, address):
    rng = np.random.default_rng(0)
    cells = [np.sort(rng.uniform(0, 30, size=n)) for n in (300, 200, 400, 250)]
    path = archive(tmp_path / "made.zip", cells)
    counts = spikes.read_parasol_cells(path, 0.01)
    assert abs(counts.shape[0] - 3000) <= 5
    edges = np.arange(counts.shape[0] + 1) * 0.01
    np.testing.assert_array_equal(counts[:, 2], np.histogram(cells[2], edges)[0])
    data = datasets.parasol_cells(
        0.01, hide=3, length=100, cache=tmp_path / "cache", url=address + "made.zip", progress=False
    )
    assert data.train.shape[1:] == (100, 3)
    assert data.num_hidden == 1
    assert "tutorial use only" in capsys.readouterr().err
    assert "tutorial use only" in data.provenance["terms"]


def test_parasol_files_of_another_form(tmp_path):
    (tmp_path / "page.zip").write_text("<html>")
    with pytest.raises(ValueError, match="must be a zip archive"):
        spikes.read_parasol_cells(tmp_path / "page.zip")
    with pytest.raises(ValueError, match=r"must hold SpTimes\.mat"):
        spikes.read_parasol_cells(archive(tmp_path / "a.zip", [[1.0]], name="Stim.mat"))
    with pytest.raises(ValueError, match="must hold SpTimes, got"):
        spikes.read_parasol_cells(archive(tmp_path / "b.zip", [[1.0]], key="Other"))
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as packed:
        packed.writestr("SpTimes.mat", b"no MATLAB file at all" * 20)
    with pytest.raises(ValueError, match=r"SpTimes\.mat of .*d\.zip must be a MATLAB file"):
        spikes.read_parasol_cells(tmp_path / "d.zip")
    with pytest.raises(ValueError, match="lists of times >= 0"):
        spikes.read_parasol_cells(archive(tmp_path / "c.zip", [[1.0], [-1.0]]))
    with pytest.raises(ValueError, match="bin_seconds must be"):
        spikes.read_parasol_cells(tmp_path / "c.zip", 0.0)


def test_parasol_download_that_fails(tmp_path, address):
    with pytest.raises(ConnectionError, match="could not be downloaded"):
        datasets.parasol_cells(cache=tmp_path / "cache", url=address + "nowhere.zip", progress=False)
    (tmp_path / "page.zip").write_text("<html>")
    with pytest.raises(ValueError, match="must be a zip archive"):
        datasets.parasol_cells(cache=tmp_path / "cache", url=address + "page.zip", progress=False)
    assert not list((tmp_path / "cache").glob("*.zip"))  # an error page does not stay
