import functools
import hashlib
import http.server
import os
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hitchhiker import datasets
from hitchhiker.datasets import natural_patches, scenes, vanhateren

# --- whitening
# -------------------------------------------------------------------------------------------------


def test_whitening_gain_at_known_frequencies():
    gain = datasets.whitening_filter((24, 24))
    f = np.fft.fftfreq(24)
    assert gain[0, 0] == 0
    assert gain[3, 0] == pytest.approx(0.125 * np.exp(-((0.125 / 0.5) ** 4)), rel=1e-12)
    # the corner of the spectrum is damped; as printed in the paper (no minus sign) it would be multiplied
    # by 54.6
    corner = np.hypot(f[12], f[12])
    assert gain[12, 12] / corner == pytest.approx(0.0183, abs=1e-4)
    assert np.exp((corner / 0.5) ** 4) == pytest.approx(54.6, abs=0.01)


def test_released_filter_has_the_gain_of_another_frequency():
    assert datasets.whitening_filter((24, 24), as_released=True)[3, 0] == pytest.approx(0.057, abs=5e-4)


def test_whitening_scales_a_sine_by_its_gain():
    """A sine far from the edges keeps its frequency and gets the gain of that frequency."""
    x = np.arange(256)
    wave = np.broadcast_to(np.sin(2 * np.pi * x / 8), (256, 256))
    ratio = np.std(datasets.whiten(wave)[96:160, 96:160]) / np.std(wave[96:160, 96:160])
    assert ratio == pytest.approx(0.125 * np.exp(-(0.25**4)), rel=1e-3)


def test_natural_patches_are_white_up_to_the_cut_off():
    """The filter's purpose: raw power falls by three orders of magnitude, whitened power stays within a
    factor of 4."""

    def power(patches):
        images = patches.train.numpy().reshape(-1, 16, 16)
        spectrum = (np.abs(np.fft.fft2(images)) ** 2).mean(0)
        return (spectrum[0, 1:6] + spectrum[1:6, 0]) / 2  # 0.06 to 0.31 cycles per pixel

    whitened = power(natural_patches(2000, seed=1))
    raw = power(natural_patches(2000, seed=1, stages=("zscore",)))
    assert whitened.max() / whitened.min() < 4
    assert raw.max() / raw.min() > 8


def test_contrast_normalisation_against_the_plain_sum():
    """Against a double loop over the 13 x 13 window, at one pixel."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 44)) * np.linspace(1, 9, 44)
    grid = np.linspace(-1, 1, 13)
    w = np.exp(-(grid[:, None] ** 2 + grid[None, :] ** 2) / 0.5)
    w /= w.sum()

    def average(y, i, j):
        return (w * y[i - 6 : i + 7, j - 6 : j + 7]).sum()

    v = np.full_like(x, np.nan)
    for i in range(6, 34):
        for j in range(6, 38):
            v[i, j] = x[i, j] - average(x, i, j)
    result = datasets.normalize_contrast(x)
    local = np.sqrt(average(v**2, 20, 30))
    # the floor is the mean local deviation, so the busy right side is divided by its own
    assert result[20, 30] == pytest.approx(v[20, 30] / local, rel=1e-10)


def test_contrast_normalisation_does_not_blow_up_flat_regions():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 120))
    x[:, :60] *= 1e-3
    result = datasets.normalize_contrast(x)
    assert result[10:50, 10:45].std() < 0.01
    assert result[10:50, 75:110].std() > 0.5


@pytest.mark.parametrize(("name", "value"), [("kernel_size", 4), ("kernel_size", -1), ("sigma", 0.0)])
def test_contrast_normalisation_rejects(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .* got {value}"):
        datasets.normalize_contrast(np.zeros((20, 20)), **{name: value})


# --- patches
# ---------------------------------------------------------------------------------------------------


def index_images():
    """Images in which every pixel has a value of its own, below 2^24 so that float32 keeps it."""
    shapes = [(80, 150), (64, 200)]
    start, images = 0, []
    for height, width in shapes:
        images.append(np.arange(start, start + height * width, dtype=float).reshape(height, width))
        start += height * width
    return images


@pytest.mark.parametrize("as_released", [False, True])
def test_train_and_validation_share_no_pixel(as_released):
    patches = natural_patches(1500, images=index_images(), stages=(), seed=5, as_released=as_released)
    train = set(patches.train.flatten().int().tolist())
    validation = set(patches.validation.flatten().int().tolist())
    assert len(train) > 1000
    assert len(validation) > 500
    assert not train & validation


def test_no_validation_pixel_reaches_a_training_patch_through_a_filter():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(96, 200))
    other = image.copy()
    other[:, 160:] = rng.normal(size=(96, 40)) * 7  # the validation strip is the right fifth
    first, second = (natural_patches(500, images=[x], seed=1) for x in (image, other))
    assert (first.train == second.train).all()
    assert not (first.validation == second.validation).all()


def test_origins_point_at_the_pixels():
    images = index_images()
    patches = natural_patches(200, images=images, stages=(), seed=2)
    for pixels, (scene, row, column) in zip(patches.validation.numpy(), patches.validation_origin, strict=True):
        np.testing.assert_array_equal(pixels.reshape(16, 16), images[scene][row : row + 16, column : column + 16])
    assert len(np.unique(patches.train_origin, axis=0)) == len(patches.train), "never the same place twice"


def test_embedded_scenes_are_natural_and_patches_are_standardised():
    patches = natural_patches(2000, seed=3)
    names = {scene["name"] for scene in patches.provenance["scenes"]}
    assert names == {"china.jpg", "flower.jpg", "chelsea.png", "grass.png", "gravel.png"}
    assert patches.train.shape == (1600, 256)
    assert patches.validation.shape == (400, 256)
    assert patches.train.dtype.is_floating_point
    assert patches.train.mean(1).abs().max() < 1e-5
    np.testing.assert_allclose(patches.train.std(1), 1, atol=1e-5)
    kurtosis = (patches.train**4).mean() / (patches.train**2).mean() ** 2
    assert kurtosis > 3.2, "natural scenes are heavier-tailed than noise"


def test_same_seed_same_patches_other_seed_others():
    a, b, c = (natural_patches(60, seed=s) for s in (1, 1, 2))
    assert (a.train == b.train).all()
    assert not (a.train == c.train).all()


def test_flat_sky_is_left_out():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(100, 300))
    image[:50] *= 1e-3
    patches = natural_patches(400, images=[image], seed=0)
    assert patches.train_origin[:, 1].min() > 30


def test_as_released_differs_and_is_standardised_before_the_crop():
    ours, theirs = natural_patches(200, seed=0), natural_patches(200, seed=0, as_released=True)
    assert theirs.train.shape == ours.train.shape
    assert theirs.train.std(1).sub(1).abs().max() > 0.01


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_patches": 1}, "num_patches must be >= 2, got 1"),
        ({"size": 1}, "size must be >= 2 pixels, got 1"),
        ({"stages": ("blur",)}, r"stages must be among .* got \('blur',\)"),
        ({"validation_fraction": 1.0}, r"validation_fraction must be in \(0, 1\), got 1.0"),
        ({"margin": -1}, "margin must be >= 0 pixels, got -1"),
        ({"min_std": float("nan")}, "min_std must be >= 0, got nan"),
        ({"images": []}, "images must hold at least one image"),
        ({"images": [np.zeros((99, 99))]}, "array 0 has one grey level"),
        ({"images": [np.full((99, 99), np.nan)]}, "array 0 must be finite"),
        ({"images": [np.eye(40)]}, "array 0 must be at least 32 pixels high and 64 wide, got 40 x 40"),
        ({"num_patches": 10**7, "images": [np.random.default_rng(0).normal(size=(80, 90))]}, "have only"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        natural_patches(**arguments)


# --- the user's own folder
# -------------------------------------------------------------------------------------


def noise_image(path, size=(120, 90), mode="L"):
    rng = np.random.default_rng(0)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)


def test_folder_of_images(tmp_path):
    noise_image(tmp_path / "a.png")
    noise_image(tmp_path / "b.jpg", mode="RGB")
    (tmp_path / "notes.txt").write_text("not an image")
    patches = natural_patches(50, images=tmp_path)
    assert [scene["name"] for scene in patches.provenance["scenes"]] == ["a.png", "b.jpg"]
    assert patches.provenance["scenes"][0]["sha256"] == hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()


def test_sixteen_bit_images_keep_their_depth(tmp_path):
    values = np.arange(100 * 100, dtype=np.uint16).reshape(100, 100)
    Image.fromarray(values).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(scenes.read_image(tmp_path / "deep.png").pixels, values)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere', which does not exist"):
        natural_patches(50, images=tmp_path / "nowhere")


def test_empty_folder_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=rf"{tmp_path.name}' with none"):
        natural_patches(50, images=tmp_path)


@pytest.mark.parametrize("content", [b"", b"this is no image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_broken_image_is_named(tmp_path, content):
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.png cannot be read as an image"):
        natural_patches(50, images=tmp_path)


def test_truncated_image_is_named(tmp_path):
    noise_image(tmp_path / "half.png")
    whole = (tmp_path / "half.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"half\.png"):
        natural_patches(50, images=tmp_path)


# --- van Hateren
# -----------------------------------------------------------------------------------------------


def iml_bytes():
    rng = np.random.default_rng(0)
    return rng.integers(80, 4000, (1024, 1536)).astype(">u2").tobytes()


def test_iml_byte_order_and_rows(tmp_path):
    data = bytearray(iml_bytes())
    data[0:2], data[2:4] = b"\x01\x02", b"\x00\x07"
    data[2 * 1536 : 2 * 1536 + 2] = b"\x00\x09"
    (tmp_path / "x.iml").write_bytes(data)
    pixels = datasets.read_iml(tmp_path / "x.iml")
    assert (pixels[0, 0], pixels[0, 1], pixels[1, 0]) == (258, 7, 9)


@pytest.mark.parametrize("data", [b"", b"abc", b"\0" * vanhateren.NUM_BYTES, b"\1" * (vanhateren.NUM_BYTES + 1)])
def test_bad_iml_is_named(tmp_path, data):
    (tmp_path / "imk00001.iml").write_bytes(data)
    with pytest.raises(ValueError, match=r"imk00001\.iml"):
        datasets.read_iml(tmp_path / "imk00001.iml")


def real_iml():
    candidates = [Path(__file__).parents[2] / "shared" / "data" / "vanhateren_test.iml"]
    if "HITCHHIKER_VANHATEREN" in os.environ:
        candidates.insert(0, Path(os.environ["HITCHHIKER_VANHATEREN"]))
    return next((path for path in candidates if path.exists()), None)


@pytest.mark.skipif(real_iml() is None, reason="no van Hateren image (set HITCHHIKER_VANHATEREN to an .iml file)")
def test_reader_on_a_real_image():
    pixels = datasets.read_iml(real_iml())
    assert pixels.shape == (1024, 1536)
    horizontal = np.corrcoef(pixels[:, :-1].ravel(), pixels[:, 1:].ravel())[0, 1]
    vertical = np.corrcoef(pixels[:-1].ravel(), pixels[1:].ravel())[0, 1]
    assert min(horizontal, vertical) > 0.8, "wrong byte order or width destroys the correlation of neighbours"
    if hashlib.sha256(real_iml().read_bytes()).hexdigest().startswith("17d90074"):
        assert (pixels.min(), pixels.max()) == (88, 7828)
    patches = natural_patches(500, images=real_iml())
    assert patches.train.shape == (400, 256)


@pytest.fixture
def server(tmp_path):
    """A web server on this machine that holds imk00001.iml and a broken imk00002.iml."""
    folder = tmp_path / "www"
    folder.mkdir()
    (folder / "imk00001.iml").write_bytes(iml_bytes())
    (folder / "imk00002.iml").write_bytes(b"<html>moved</html>")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}/", folder
        httpd.shutdown()
        thread.join()


def test_download_is_cached_and_hashed(server, tmp_path):
    url, folder = server
    arguments = {"cache": tmp_path / "cache", "base_url": url, "progress": False}
    (scene,) = datasets.van_hateren_scenes([1], **arguments)
    assert scene.pixels.max() == pytest.approx(np.log(3999))
    (folder / "imk00001.iml").unlink()
    (again,) = datasets.van_hateren_scenes([1], **arguments)  # from the cache
    assert again.sha256 == scene.sha256


def test_broken_download_is_named_and_not_kept(server, tmp_path):
    url, _ = server
    with pytest.raises(ValueError, match=r"imk00002\.iml must have 3,145,728 bytes"):
        datasets.van_hateren_scenes([2], cache=tmp_path / "cache", base_url=url, progress=False)
    assert not list((tmp_path / "cache").glob("*.iml*"))


def test_unreachable_server_falls_back_visibly(tmp_path, monkeypatch):
    import pooch

    def refuse(*arguments, **keywords):
        raise ConnectionError("refused")

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", refuse)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    arguments = {"cache": tmp_path / "cache", "base_url": "http://127.0.0.1:9/", "progress": False}
    with pytest.warns(UserWarning, match="using the embedded natural scenes instead"):
        fallen = datasets.van_hateren_scenes([1], **arguments)
    assert [scene.name for scene in fallen] == [name for name, *_ in scenes.EMBEDDED]
    with (
        pytest.raises(ConnectionError, match=r"imk00001\.iml could not be downloaded"),
        warnings.catch_warnings(),
    ):
        datasets.van_hateren_scenes([1], fallback=False, **arguments)


@pytest.mark.parametrize("number", [0, 45, 4213])
def test_van_hateren_numbers(number):
    with pytest.raises(ValueError, match=f"numbers must be .* got {number}"):
        datasets.van_hateren_scenes([number])
