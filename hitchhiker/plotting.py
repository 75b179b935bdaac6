"""One look for every figure: the style sheet, a fixed dress for each method, helpers that hide decoration.

A method is told from another by colour *and* by marker *and* by dash, so that no figure depends on hue alone.
Nothing in the core of the module imports this file; matplotlib comes with ``pip install "hitchhiker[plot]"``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class MethodStyle:
    """How one method is drawn everywhere: ``label``, ``color``, ``marker``, ``dash`` (a line style)."""

    label: str
    color: str
    marker: str
    dash: Any

    @property
    def line(self) -> dict[str, Any]:
        """Keyword arguments for ``ax.plot``: colour, dash, marker and label."""
        return {"color": self.color, "linestyle": self.dash, "marker": self.marker, "label": self.label}

    @property
    def curve(self) -> dict[str, Any]:
        """The same without the marker, for dense curves."""
        return {"color": self.color, "linestyle": self.dash, "label": self.label}

    @property
    def points(self) -> dict[str, Any]:
        """Keyword arguments for ``ax.errorbar`` or ``ax.plot`` of separate points."""
        return {"color": self.color, "linestyle": "none", "marker": self.marker, "label": self.label}


#: The dress of each method.  Blue, red, green, grey and black are the paper's; purple is for what is ours.
METHODS: dict[str, MethodStyle] = {
    "eat-sigmoid": MethodStyle("EAT sigmoid", "#1f6fb4", "o", "-"),
    "eat-cubic": MethodStyle("EAT cubic", "#c8342b", "s", (0, (5, 1.5))),
    "gsm": MethodStyle("GSM", "#2f8f4e", "^", (0, (3, 1.2, 1, 1.2))),
    "score": MethodStyle("score function", "#808080", "v", (0, (1, 1))),
    "exact": MethodStyle("exact", "#111111", "D", "-"),
    "difference": MethodStyle("difference", "#7b3fa0", "P", (0, (7, 2))),
    "eat-linear": MethodStyle("EAT linear", "#7b3fa0", "<", (0, (1, 2))),
    "eat-quintic": MethodStyle("EAT quintic", "#7b3fa0", ">", (0, (4, 1, 1, 1, 1, 1))),
    "eat-cosine": MethodStyle("EAT raised cosine", "#7b3fa0", "h", (0, (2, 1))),
    "moment-matched": MethodStyle("EAT moment-matched", "#7b3fa0", "X", (0, (6, 1, 1, 1))),
    "straight-through": MethodStyle("straight-through", "#7b3fa0", "d", (0, (3, 3))),
    "relax": MethodStyle("score with EAT control", "#7b3fa0", "p", (0, (2, 2, 6, 2))),
    "ours": MethodStyle("ours", "#7b3fa0", "*", (0, (8, 1.5))),
}

_ALIASES = {"sigmoid": "eat-sigmoid", "cubic": "eat-cubic", "linear": "eat-linear", "quintic": "eat-quintic",
            "cosine": "eat-cosine", "score-function": "score"}  # fmt: skip

#: Colour of each method by name: ``COLORS["eat-cubic"]``.
COLORS: dict[str, str] = {name: style.color for name, style in METHODS.items()}

#: Encoder quantities red, decoder quantities blue, as in the paper's equations.
ENCODER_COLOR, DECODER_COLOR = "#c8342b", "#1f6fb4"


def use_style() -> None:
    """Give every figure made from now on the book's look.

    Raises ``ImportError`` with the command to run when matplotlib is missing.

    >>> use_style()
    >>> method("eat-cubic").color
    '#c8342b'
    """
    plt = _pyplot()
    with resources.as_file(resources.files("hitchhiker") / "hitchhiker.mplstyle") as sheet:
        plt.style.use(sheet)


def method(name: str) -> MethodStyle:
    """The fixed look of a method, by its name (``"eat-cubic"``, or the indicator's name ``"cubic"``).

    A name with a suffix after ``:`` (``"score:leave_one_out"``) has the look of the part before it.
    Raises ``ValueError`` with the known names otherwise.

    >>> method("cubic").marker, method("exact").label
    ('s', 'exact')
    """
    base = name.lower().replace("_", "-").split(":")[0]
    base = _ALIASES.get(base, base)
    if base not in METHODS:
        raise ValueError(f"method must be one of {sorted(METHODS)}, got {name!r}")
    return METHODS[base]


def label_lines(ax: Axes, *, pad: float = 4.0, min_gap: float = 11.0, side: str = "right") -> None:
    """Write each labelled line's name at its right (or left) end, in its own colour, instead of a legend.

    Parameters
    ----------
    ax : the axes, whose limits should be final.
    pad : space between the line's end and its name, in points.
    min_gap : least distance between two names, in points; closer ones are moved apart, and joined to their line's end.
    side : ``"right"``, or ``"left"`` where the lines end at different places but start together.

    Raises ``ValueError`` for another side.
    """
    if side not in ("right", "left"):
        raise ValueError(f"side must be 'right' or 'left', got {side!r}")
    right = side == "right"
    fig: Any = ax.get_figure()
    fig.canvas.draw()
    points_per_pixel = 72.0 / fig.dpi
    entries = []
    for line in ax.get_lines():
        label = str(line.get_label())
        x, y = (np.asarray(v, dtype=float) for v in (line.get_xdata(), line.get_ydata()))
        seen = np.isfinite(x) & np.isfinite(y)
        if label.startswith("_") or not seen.any():
            continue
        end = int(np.flatnonzero(seen)[np.argmax(x[seen] if right else -x[seen])])
        _, pixel_y = ax.transData.transform((x[end], y[end]))
        entries.append((float(pixel_y) * points_per_pixel, label, line.get_color(), (x[end], y[end])))
    entries.sort(key=lambda e: e[0])
    heights = _spread([e[0] for e in entries], min_gap)
    for (height, label, color, end_point), placed in zip(entries, heights, strict=True):
        moved = placed - height
        leader = {"arrowstyle": "-", "color": color, "lw": 0.6, "shrinkA": 1, "shrinkB": 3, "relpos": (not right, 0.5)}
        ax.annotate(
            label, end_point, xytext=((pad if right else -pad) * (2 if abs(moved) > 3 else 1), moved),
            textcoords="offset points", color=color, va="center", ha="left" if right else "right", fontsize="small",
            annotation_clip=False, arrowprops=leader if abs(moved) > 3 else None,
        )  # fmt: skip


def _spread(heights: list[float], min_gap: float) -> list[float]:
    """Sorted heights moved as little as possible, so that neighbours are at least ``min_gap`` apart (least squares).

    >>> _spread([0.0, 1.0, 50.0], 10.0)
    [-4.5, 5.5, 50.0]
    """
    blocks: list[tuple[float, int]] = []  # (mean of height - rank * gap, size): pooled until they rise
    for rank, height in enumerate(heights):
        mean, size = height - rank * min_gap, 1
        while blocks and blocks[-1][0] >= mean:
            other, count = blocks.pop()
            mean, size = (mean * size + other * count) / (size + count), size + count
        blocks.append((mean, size))
    level = [mean for mean, size in blocks for _ in range(size)]
    return [mean + rank * min_gap for rank, mean in enumerate(level)]


def label_at(
    ax: Axes, x: float, y: float, text: str, *, color: str = "#222222", dx: float = 5.0, dy: float = 5.0
) -> None:
    """Write ``text`` beside the point ``(x, y)`` (data units), ``dx, dy`` points away."""
    ax.annotate(text, (x, y), xytext=(dx, dy), textcoords="offset points", color=color, fontsize="small")


def show_patches(
    patches: Any,
    columns: int | None = None,
    *,
    title: str | None = None,
    shared_scale: bool | float = False,
    ax: Axes | None = None,
    cell: float = 0.42,
    gap: int = 1,
) -> Figure:
    """Show flattened square images as a grid, on a grey scale symmetric about 0.

    Parameters
    ----------
    patches : (N, D) array or tensor, or (N, s, s); D = s * s pixels.
    columns : images a row (default: as square as possible).
    title : the finding that the figure shows.
    shared_scale : one grey scale for all (True, or the value that is white), or each image on its own (False).
    ax : axes to draw on (default: a new figure).
    cell : side of one image in inches, when a new figure is made.
    gap : pixels of white between two images.

    Returns the figure.  Raises ``ValueError`` when D is not a square.
    """
    plt = _pyplot()
    if hasattr(patches, "detach"):
        patches = patches.detach().cpu().numpy()
    images = np.asarray(patches, dtype=float)
    if images.ndim == 2:
        side = math.isqrt(images.shape[1])
        if side * side != images.shape[1]:
            raise ValueError(f"patches must have a square number of pixels each, got {images.shape[1]}")
        images = images.reshape(len(images), side, side)
    if images.ndim != 3 or len(images) == 0:
        raise ValueError(f"patches must be (N, D) or (N, s, s) with N >= 1, got shape {images.shape}")
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = -(-len(images) // columns)
    height, width = images.shape[1:]
    scale = np.abs(images).max(axis=(1, 2), keepdims=True)
    if shared_scale:
        scale = np.full_like(scale, scale.max() if shared_scale is True else shared_scale)
    images = images / np.where(scale > 0, scale, 1.0)
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap), np.nan)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        canvas[top : top + height, left : left + width] = image
    if ax is None:
        _, ax = plt.subplots(figsize=(cell * columns, cell * rows + (0.35 if title else 0)))
    ax.imshow(canvas, cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
    ax.set_axis_off()
    if title:
        ax.set_title(title)
    figure: Any = ax.get_figure()
    return figure


def show_rows(rows: Sequence[tuple[str, Any]], *, title: str | None = None, cell: float = 0.55) -> Figure:
    """Show several sets of patches as labelled rows of one grid, on one grey scale.

    ``rows`` is a sequence of ``(name, patches)``; all patches (N, D), the same N and D.  Returns the figure.
    """
    plt = _pyplot()
    arrays = (p.detach().cpu() if hasattr(p, "detach") else p for _, p in rows)
    stacked = np.concatenate([np.asarray(a, dtype=float) for a in arrays])
    columns = len(stacked) // len(rows)
    fig, ax = plt.subplots(figsize=(cell * columns + 1.3, cell * len(rows) + (0.4 if title else 0)))
    # a single bright pixel must not make all the others grey
    show_patches(stacked, columns, shared_scale=float(np.quantile(np.abs(stacked), 0.99)) or True, ax=ax)
    side = math.isqrt(stacked.shape[1])
    for i, (name, _) in enumerate(rows):
        ax.text(-3, i * (side + 1) + side / 2, name, ha="right", va="center", fontsize="small")
    if title:
        ax.set_title(title)
    return fig


def _pyplot():
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError('figures need matplotlib: pip install "hitchhiker[plot]"') from error
    return plt
