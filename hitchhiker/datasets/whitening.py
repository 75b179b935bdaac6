"""From pixels to what the model sees: whitening, local contrast normalisation, z-score (section G.1).

The paper prints the filter as R(f) = f exp((f/f0)^n).  The minus sign is missing: as printed it multiplies
the corner of the spectrum by 54.6 instead of 0.018.  :func:`whitening_filter` is the one that is meant, and
``as_released=True`` the one that the authors' public code applies.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import ndimage


def whitening_filter(
    shape: tuple[int, int], f0: float = 0.5, n: float = 4.0, *, as_released: bool = False
) -> Float[ndarray, "height width"]:
    """Gain of the whitening filter for each coefficient of ``numpy.fft.fft2`` of an image of that shape.

    R(f) = f · exp(-(f/f0)^n), f = √(fy² + fx²) in cycles per pixel: it rises like f, to undo the 1/f
    amplitude of natural scenes, and falls off before the Nyquist frequency, where there is mostly noise.

    Parameters
    ----------
    shape : (height, width) in pixels.
    f0 : cut-off in cycles per pixel; n : its steepness (dimensionless).
    as_released : the filter of the authors' code.  It lays out f on a grid centred in the middle of the
        array, while the transform that it multiplies has frequency 0 in the corner, so that low
        frequencies get the gain of high ones: for 24-pixel patches 0.057 instead of 0.125 at f = 0.125
        cycles per pixel.

    Returns the gain, dimensionless, (height, width).  Raises ``ValueError`` for a shape or cut-off not
    positive.

    >>> round(float(whitening_filter((24, 24))[3, 0]), 3)
    0.125
    >>> round(float(whitening_filter((24, 24), as_released=True)[3, 0]), 3)
    0.057

    Source: section G.1; Olshausen and Field (1997).
    """
    if min(shape) < 1:
        raise ValueError(f"shape must be two positive numbers, got {shape}")
    if not (f0 > 0 and n > 0):
        raise ValueError(f"f0 and n must be > 0, got f0={f0}, n={n}")
    frequencies: Callable[[int], ndarray] = _centred_grid if as_released else np.fft.fftfreq
    fy, fx = (frequencies(side) for side in shape)
    f = np.hypot(fy[:, None], fx[None, :])
    return f * np.exp(-((f / f0) ** n))


def _centred_grid(side: int) -> ndarray:
    return np.linspace(-0.5, 0.5, side)


def whiten(
    images: Float[ndarray, "*batch height width"],
    f0: float = 0.5,
    n: float = 4.0,
    *,
    as_released: bool = False,
) -> Float[ndarray, "*batch height width"]:
    """Whiten images by :func:`whitening_filter`.

    The image is continued by reflection first, so that its left edge does not meet its right edge.
    ``as_released=True`` filters as the authors' code does, without that.  Returns the shape given, float64.

    >>> flat = whiten(np.ones((32, 32)))
    >>> bool(np.abs(flat).max() < 1e-12)
    True
    """
    images = np.asarray(images, dtype=np.float64)
    height, width = images.shape[-2:]
    if as_released:
        gain = whitening_filter((height, width), f0, n, as_released=True)
        return np.fft.ifft2(np.fft.fft2(images) * gain).real
    pad = min(32, height - 1, width - 1)
    padded = np.pad(images, [(0, 0)] * (images.ndim - 2) + [(pad, pad), (pad, pad)], mode="reflect")
    gain = whitening_filter(padded.shape[-2:], f0, n)
    filtered = np.fft.ifft2(np.fft.fft2(padded) * gain).real
    return filtered[..., pad : pad + height, pad : pad + width]


def normalize_contrast(
    images: Float[ndarray, "*batch height width"],
    kernel_size: int = 13,
    sigma: float = 0.5,
    *,
    as_released: bool = False,
) -> Float[ndarray, "*batch height width"]:
    """Local contrast normalisation: subtract the local mean, divide by the local standard deviation.

    v = x - w∗x,  s = √(w∗v²),  result v / max(s, mean(s)), where w(r) ∝ exp(-r²/σ) on ``kernel_size`` x
    ``kernel_size`` pixels that span [-1, 1]².  Dividing by no less than the image's mean s keeps flat regions
    (sky) from being blown up into noise.

    Parameters
    ----------
    images : (..., height, width), any unit.
    kernel_size : side of the window in pixels, odd.
    sigma : width of the window in units of half its side, squared.
    as_released : zeros beyond the edge, as in the authors' code, instead of a reflection.

    Returns the shape given, dimensionless.  A constant image gives zeros.  Raises ``ValueError`` for an even
    ``kernel_size`` or ``sigma <= 0``.

    >>> normalize_contrast(np.full((20, 20), 3.0)).max()
    np.float64(0.0)

    Source: section G.1 (kernel 13, σ 0.5); Jarrett et al. (2009).
    """
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")
    if not sigma > 0:
        raise ValueError(f"sigma must be > 0, got {sigma}")
    images = np.asarray(images, dtype=np.float64)
    weights = np.exp(-(np.linspace(-1, 1, kernel_size) ** 2) / sigma)
    weights /= weights.sum()  # the window is a product, so each axis on its own
    mode = "constant" if as_released else "mirror"

    def average(x: ndarray) -> ndarray:
        for axis in (-2, -1):
            x = ndimage.correlate1d(x, weights, axis=axis, mode=mode)
        return x

    v = images - average(images)
    s = np.sqrt(average(v * v))
    floor = s.mean(axis=(-2, -1), keepdims=True)
    tiny = 1e-12 * (1 + np.abs(images).max(axis=(-2, -1), keepdims=True, initial=0))
    return np.where(floor > tiny, v / np.maximum(np.maximum(s, floor), tiny), 0.0)


def zscore(images: Float[ndarray, "*batch height width"]) -> Float[ndarray, "*batch height width"]:
    """Each image minus its mean over pixels, divided by its standard deviation over pixels (unbiased, as
    torch's)."""
    mean = images.mean(axis=(-2, -1), keepdims=True)
    return (images - mean) / images.std(axis=(-2, -1), keepdims=True, ddof=1)
