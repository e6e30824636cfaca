"""The explorer's picture: four linked panels for one choice of q, beta, alpha and swap rate. Nothing is computed here.

Text is slow to draw. So axes, titles and legends are drawn once for each range and cached as pixels; a change of a
knob draws only curves, rows and one line of numbers over each panel.
"""

import io
import zlib

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Polygon, StepPatch
from PIL import Image

from napo.study.plot_style import BLUE, DASHES, FAINT, GREY, INK, ORANGE, RED, new_figure, styled

SIZE, SCREEN_DPI = (9.4, 5.6), 100  # inches, dots per inch
LOSS_STYLE = {
    "BCE": {"color": RED, "ls": DASHES[1], "lw": 1.7, "label": "BCE (DPO)"},
    "MAE": {"color": BLUE, "ls": DASHES[3], "lw": 1.7, "label": "MAE"},
    "q": {"color": INK, "ls": "-", "lw": 2.4, "label": "this q"},
}
TRUTH_STYLE = {  # colour, marker, hatch, height of the ticks under the loss
    "noise-free": (BLUE, "o", None, -0.2),
    "noise": (ORANGE, "^", "////", -0.08),
    "truth unknown": (GREY, "o", None, -0.14),
}
FRAMES_KEPT = 20  # cached axes, 2 MB of pixels each


@styled
def explorer(view):
    """All four panels as a Picture, to be saved. view: `views.View`."""
    board = Board()
    board.set_frame(view)
    board.add_content(view)
    return board.figure


class Board:
    """One figure that is redrawn for every View; `png(view)` returns it as bytes."""

    @styled
    def __init__(self):
        self.figure = new_figure(SIZE[1], SIZE[0], layout=None)
        self.figure.set_dpi(SCREEN_DPI)
        self.figure.subplots_adjust(left=0.055, right=0.985, bottom=0.09, top=0.9, wspace=0.15, hspace=0.56)
        self.axes = self.figure.subplots(2, 2).ravel()
        for ax, (title, _, _) in zip(self.axes, PANELS, strict=True):
            ax.set_title(title, y=1.11)
        self._frames = {}

    @styled
    def png(self, view):
        """The picture of `view`."""
        kind = (view.rows.other, view.rows.rule_name, view.rows.rule_unit, *_groups(view))
        if kind not in self._frames:
            self.set_frame(view)
        content = self.add_content(view)
        self.figure.canvas.restore_region(self._frame(kind, content))
        for artist in content:
            artist.axes.draw_artist(artist)
            artist.remove()
        buffer = io.BytesIO()
        pixels = Image.fromarray(np.asarray(self.figure.canvas.buffer_rgba())[..., :3])
        pixels.save(buffer, format="png", compress_level=1, compress_type=zlib.Z_RLE)
        return buffer.getvalue()

    def _frame(self, kind, content):
        """Pixels of everything but the content. Cached per kind of rows; the moving axes also per range."""
        canvas, moving = self.figure.canvas, [self.axes[1].xaxis, self.axes[2].xaxis, self.axes[3].yaxis]
        ranges = (kind, *(tuple(axis.get_view_interval()) for axis in moving))
        if kind not in self._frames:
            for artist in (*moving, *content):
                artist.set_animated(True)  # not drawn by canvas.draw
            canvas.draw()
            self._frames[kind] = canvas.copy_from_bbox(self.figure.bbox)
        if ranges not in self._frames:
            canvas.restore_region(self._frames[kind])
            for axis in moving:
                axis.axes.draw_artist(axis)
            self._frames[ranges] = canvas.copy_from_bbox(self.figure.bbox)
        if len(self._frames) > FRAMES_KEPT:
            self._frames = {key: self._frames[key] for key in (kind, ranges)}
        return self._frames[ranges]

    def set_frame(self, view):
        """Draw titles, labels and legends, which stay while the same kind of rows is shown."""
        for ax, (_, frame, _) in zip(self.axes, PANELS, strict=True):
            frame(ax, view)

    def add_content(self, view):
        """Draw curves, rows and numbers, and set the ranges of margins. Returns the artists."""
        return [artist for ax, (*_, content) in zip(self.axes, PANELS, strict=True) for artist in content(ax, view)]


def nice_range(values):
    """An axis range around `values` and 0 that ends in round numbers, so it seldom changes."""
    low, high = -_nice(-float(values.min())), _nice(float(values.max()))
    return (low, high) if high > low else (-1.0, 1.0)


def _nice(value):
    if value <= 0:
        return 0.0
    power = 10.0 ** np.floor(np.log10(value))
    return float(next(step * power for step in (1, 1.5, 2, 3, 5, 7, 10, 15) if 1.02 * value <= step * power))


def _groups(view):
    """{name of a style: (N,) bool, the rows to draw in it}."""
    if view.rows.is_noise is None:
        return {"truth unknown": np.ones(len(view.rows.margin), dtype=bool)}
    return {"noise-free": ~view.rows.is_noise, "noise": view.rows.is_noise}


def _numbers(ax, text):
    """The line of numbers under a panel's title."""
    return ax.text(0, 1.04, text, transform=ax.transAxes, fontsize=9, color="#444444")


def _margin_label(ax, text):
    """An x label that belongs to the cached frame, although the axis with its ticks moves."""
    for old in ax.texts:
        old.remove()
    ax.text(0.5, -0.155, text, transform=ax.transAxes, ha="center", va="top")
    ax.locator_params(axis="x", nbins=6)
    ax.grid(axis="x", visible=False)


def _line(ax, x, y, **style):
    """ax.plot without its search for new limits, which takes longer than the drawing."""
    return ax.add_artist(Line2D(x, y, **style))


def _area(ax, x, low, high, **style):
    corners = np.concatenate([np.stack([x, low], 1), np.stack([x, high], 1)[::-1]])
    return ax.add_artist(Polygon(corners, lw=0, **style))


def _curves(ax, x, by_loss):
    """One line for each loss."""
    return [_line(ax, x, y, **LOSS_STYLE[name]) for name, y in by_loss.items()]


def _curve_handles(*names):
    return [Line2D([], [], **LOSS_STYLE[name]) for name in names]


# ---- the four panels: what stays, and what moves with the knobs ------------------------------------------------------


def _loss_frame(ax, view):
    ax.set(xlim=(0, 1), ylim=(-0.3, 3.2), xlabel="preference probability p = σ(β · margin)", yticks=range(4))
    area = Patch(color=INK, alpha=0.16, label="gradient |dL/dz| of this q")
    rows = Line2D([], [], color=BLUE, marker="|", ls="", label="the rows")
    ax.legend(handles=[*_curve_handles("BCE", "MAE", "q"), area, rows], loc="upper right")


def _loss(ax, view):
    """Figure 3 of the paper: the losses by p, the gradient of this q as an area, each row as a tick."""
    yield _area(ax, view.p, view.loss["MAE"], view.loss["BCE"], color=FAINT, alpha=0.35)
    yield _area(ax, view.p, np.zeros_like(view.p), view.pull["q"], color=INK, alpha=0.16)
    yield from _curves(ax, view.p, view.loss)
    for name, rows in _groups(view).items():
        colour, _, _, height = TRUTH_STYLE[name]
        style = {"ls": "", "marker": "|", "color": colour, "ms": 5, "mew": 0.8}
        yield _line(ax, view.row_p[rows], np.full(rows.sum(), height), **style)
    yield _numbers(ax, f"q = {view.q:g}, β = {view.beta:g}")


def _weights_frame(ax, view):
    ax.set_ylim(0, 1.03)
    _margin_label(ax, f"margin, chosen minus {view.rows.other} (nats)")
    styles = [(f"this q, {name}", *TRUTH_STYLE[name][:2]) for name in _groups(view)]
    rows = [Line2D([], [], color=colour, marker=marker, ls="", ms=5, label=name) for name, colour, marker in styles]
    ax.legend(handles=[*_curve_handles("BCE", "MAE"), *rows], loc="upper right")


def _weights(ax, view):
    """Weight of each row in the gradient: |dL/dz| at its margin."""
    ax.set_xlim(nice_range(view.rows.margin))
    order = np.argsort(view.rows.margin)
    yield from _curves(ax, view.rows.margin[order], {name: view.weight[name][order] for name in ("BCE", "MAE")})
    for name, rows in _groups(view).items():
        colour, marker, _, _ = TRUTH_STYLE[name]
        style = {"ls": "", "marker": marker, "ms": 4 if name == "noise" else 3, "alpha": 0.75, "mew": 0}
        yield _line(ax, view.rows.margin[rows], view.weight["q"][rows], color=colour, **style)
    yield _numbers(ax, _noise_text(view))


def _noise_text(view):
    if view.noise_share is None:
        return "it is not known which rows are noise"
    shares = ", ".join(f"{name} {view.noise_share[name]:.0%}" for name in ("BCE", "q", "MAE"))
    return f"on noise: {shares}; its share of rows {view.rows.is_noise.mean():.0%}"


def _margins_frame(ax, view):
    ax.set(ylim=(0, 1.45), yticks=np.linspace(0, 1, 6), ylabel="q; rows (scaled)")
    _margin_label(ax, f"{view.rows.rule_name} ({view.rows.rule_unit})")
    styles = [(name, *TRUTH_STYLE[name]) for name in _groups(view)]
    bars = [Patch(fc=colour, ec=colour, alpha=0.55, hatch=hatch, label=name) for name, colour, _, hatch, _ in styles]
    curve = Line2D([], [], color=INK, lw=1.8, label="1 − σ(αψ)")
    mean = Line2D([], [], color=INK, marker="D", mfc="white", ls="", label="at the mean margin")
    chosen = Line2D([], [], color=INK, ls=DASHES[2], lw=1.2, label="this q")
    ax.legend(handles=[*bars, curve, mean, chosen], loc="upper left", ncols=3, columnspacing=1.2)


def _margins(ax, view):
    """Histogram of the margins in eq. 10, and the q that it gives a batch with that mean margin."""
    edges = np.linspace(*nice_range(view.rows.rule_margin), 41)
    ax.set_xlim(edges[0], edges[-1])
    counts = {name: np.histogram(view.rows.rule_margin[rows], edges)[0] for name, rows in _groups(view).items()}
    scale = 0.9 / max(1, *(count.max() for count in counts.values()))
    for name, count in counts.items():
        colour, _, hatch, _ = TRUTH_STYLE[name]
        style = {"fill": True, "alpha": 0.55, "facecolor": colour, "edgecolor": colour, "hatch": hatch}
        yield ax.add_artist(StepPatch(scale * count, edges, **style))
    yield _line(ax, view.rule_x, view.rule_q, color=INK, lw=1.8)
    yield _line(ax, ax.get_xlim(), [view.q, view.q], color=INK, lw=1.2, ls=DASHES[2])
    yield _line(ax, [view.mean_margin], [view.rule], color=INK, marker="D", ms=7, mfc="white", mew=1.8)
    yield _numbers(ax, f"α = {view.alpha:g}, mean {view.mean_margin:.3g}: eq. 10 gives q = {view.rule:.3f}")


def _toy_frame(ax, view):
    ax.set(xlim=(0, view.steps[-1]), xlabel="step of the toy's training")
    ax.grid(axis="y", visible=False)
    ax.legend(handles=_curve_handles("BCE", "MAE", "q"), loc="lower right", ncols=3)


def _toy(ax, view):
    """Test accuracy over the toy's training: mean over its worlds, 95 % intervals as bands."""
    for name, (mean, half) in view.accuracy.items():
        yield _area(ax, view.steps, mean - half, mean + half, color=LOSS_STYLE[name]["color"], alpha=0.12)
    means = {name: mean for name, (mean, _) in view.accuracy.items()}
    middle = round(20 * np.mean([mean[-1] for mean in means.values()])) / 20
    ax.set_ylim(middle - 0.15, middle + 0.1)
    yield from _curves(ax, view.steps, means)
    last = ", ".join(f"{name} {means[name][-1]:.3f}" for name in ("BCE", "q", "MAE"))
    yield _numbers(ax, f"{view.flip_rate:.0%} swapped; in the end {last}")


PANELS = (
    ("Loss, and its gradient", _loss_frame, _loss),
    ("Weight of each row in the gradient", _weights_frame, _weights),
    ("Margins, and the q they give", _margins_frame, _margins),
    ("Toy that trains: test accuracy", _toy_frame, _toy),
)
