import itertools

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.text import Text

from hitchhiker import plotting


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def test_style_sheet_is_packaged_and_loads():
    plotting.use_style()
    assert not plt.rcParams["axes.spines.top"]


def test_no_two_methods_differ_by_hue_alone():
    for (a, x), (b, y) in itertools.combinations(plotting.METHODS.items(), 2):
        assert x.marker != y.marker, (a, b)
        assert (x.dash != y.dash) or {a, b} == {"eat-sigmoid", "exact"}, (a, b)


def test_papers_colours_are_fixed():
    expected = {"eat-sigmoid": "blue", "eat-cubic": "red", "gsm": "green"}
    for name, hue in expected.items():
        r, g, b = matplotlib.colors.to_rgb(plotting.COLORS[name])
        assert max(("red", r), ("green", g), ("blue", b), key=lambda pair: pair[1])[0] == hue
    assert plotting.method("cubic") is plotting.method("eat-cubic")
    assert plotting.method("score:leave_one_out") is plotting.METHODS["score"]


def test_unknown_method_names_the_known():
    with pytest.raises(ValueError, match=r"eat-cubic.*got 'qubic'"):
        plotting.method("qubic")


def test_show_patches_lays_out_a_grid_and_rejects_non_squares():
    fig = plotting.show_patches(torch.randn(7, 16), columns=3, title="seven")
    assert fig.axes[0].images[0].get_array().shape == (3 * 5 - 1, 3 * 5 - 1)
    with pytest.raises(ValueError, match="square number of pixels each, got 15"):
        plotting.show_patches(np.zeros((2, 15)))


def test_flat_patch_is_mid_grey_not_nan():
    fig = plotting.show_patches(np.zeros((1, 16)))
    assert (np.asarray(fig.axes[0].images[0].get_array()) == 0).all()


@pytest.mark.parametrize("side", ["right", "left"])
def test_labels_do_not_overlap_and_stand_outside(side):
    fig, ax = plt.subplots()
    for i in range(4):
        ax.plot([0, 1], [0, 1 + 1e-3 * i], label=f"line {i}")
    plotting.label_lines(ax, side=side)
    fig.canvas.draw()
    boxes = [Text.get_window_extent(t) for t in ax.texts]  # of the words alone, without the line to the curve's end
    centres = sorted((box.y0 + box.y1) / 2 for box in boxes)
    assert len(centres) == 4
    assert min(np.diff(centres)) > 10
    left_end, right_end = (ax.transData.transform((x, 0))[0] for x in (0, 1))
    for box in boxes:
        assert box.x0 > right_end if side == "right" else box.x1 < left_end
    with pytest.raises(ValueError, match="side must be 'right' or 'left', got 'top'"):
        plotting.label_lines(ax, side="top")
