"""napo.explorer.panels: the explorer's picture shows what it is given, again and again, and leaves nothing behind."""

import io

import numpy as np
import pytest
from PIL import Image

from napo.explorer import panels, views
from napo.study import plot_style

SETTING = {"q": 0.5, "beta": 0.1, "alpha": 0.5, "flip_rate": 0.2}
REAL = views.Rows(np.array([-1.0, 2.0, 3.0]), np.array([-0.1, 0.2, 0.3]), None, "vision-biased", "mean", "nats/token")


@pytest.fixture(scope="module")
def board():
    return panels.Board()


def pixels(picture):
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)


@pytest.mark.parametrize("change", [{"q": 0.9}, {"beta": 0.3}, {"alpha": 0.1}, {"flip_rate": 0.0}, {"rows": REAL}])
def test_a_change_is_seen_and_going_back_gives_the_same_picture(board, change):
    first, other = views.look(**SETTING), views.look(**(SETTING | change))
    before, changed, after = board.png(first), board.png(other), board.png(first)
    assert before == after == panels.Board().png(first)
    assert changed == panels.Board().png(other)
    assert (np.abs(pixels(before) - pixels(changed)) > 40).any(axis=2).sum() > 100
    assert not any(ax.lines or ax.patches or ax.collections for ax in board.axes)


def moved(a, b):
    """Which of the four panels differ between two settings: loss, weights, margins, toy."""
    difference = pixels(panels.Board().png(views.look(**a))) != pixels(panels.Board().png(views.look(**b)))
    height, width = difference.shape[0] // 2, difference.shape[1] // 2
    cells = [difference[top : top + height, left : left + width] for top in (0, height) for left in (0, width)]
    return [bool(cell.any()) for cell in cells]


def test_views_are_linked():
    fixed = SETTING | {"rows": REAL}
    assert moved(fixed, fixed | {"alpha": 0.9}) == [False, False, True, False]
    assert moved(fixed, fixed | {"flip_rate": 0.3}) == [False, False, False, True]
    assert moved(fixed, fixed | {"q": 0.9}) == [True, True, True, True]
    assert moved(SETTING, SETTING | {"flip_rate": 0.3}) == [True, True, True, True]


def test_curves_and_dots_are_the_numbers_given():
    view = views.look(**SETTING)
    loss, weights, margins, toy = panels.explorer(view).axes
    drawn = {tuple(np.round(line.get_ydata(), 6)) for ax in (loss, toy) for line in ax.lines}
    for name in ("BCE", "MAE", "q"):
        assert tuple(np.round(view.loss[name], 6)) in drawn and tuple(np.round(view.accuracy[name][0], 6)) in drawn
    dots = np.concatenate([line.get_ydata() for line in weights.lines if line.get_ls() == "None"])
    np.testing.assert_allclose(np.sort(dots), np.sort(view.weight["q"]))
    heights = {patch.get_facecolor()[:3]: patch.get_data().values for patch in margins.patches}
    counts = np.array([values.sum() for values in heights.values()])
    np.testing.assert_allclose(counts / counts.sum(), [0.8, 0.2])


def test_the_picture_to_save_is_not_cut_at_its_edges():
    image = pixels(plot_style.png(panels.explorer(views.look(**SETTING))))
    edge = np.concatenate([image[:2].ravel(), image[-2:].ravel(), image[:, :2].ravel(), image[:, -2:].ravel()])
    assert (edge == 255).all() and image.shape[1] == panels.SIZE[0] * plot_style.DPI


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([-86, 126], (-100, 150)),
        ([0.3, 12], (0, 15)),
        ([-0.0071, -0.002], (-0.01, 0)),
        ([-1, 5], (-1.5, 7)),
        ([0, 0], (-1, 1)),
    ],
)
def test_ranges_are_round_and_hold_0_and_every_value(values, expected):
    assert panels.nice_range(np.array(values, float)) == pytest.approx(expected)
