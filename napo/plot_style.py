"""How every figure looks: colours, dashes, sizes, and how one is made and saved without pyplot or global state.

Colours are Petroff's six, which colour-blind readers separate best, always with a second cue (dash, marker, position).
Sizes suit a README, about 800 pixels wide.
"""

import io
import os
from functools import wraps
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLUE, ORANGE, RED, PURPLE, GREY, VIOLET = "#5790fc", "#f89c20", "#e42536", "#964a8b", "#9c9ca1", "#7a21dd"
INK, FAINT = "#222222", "#d9d9de"
DASHES = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)), (0, (1, 1)))
KIND_STYLE = {  # colour and dash of each kind of response, everywhere
    "chosen": (INK, "-"),
    "rejected": (BLUE, DASHES[0]),
    "language_biased": (ORANGE, DASHES[2]),
    "vision_biased": (VIOLET, DASHES[3]),
}
WIDTH, DPI = 8.0, 150  # inches, dots per inch
# fmt: off
STYLE = {
    "font.size": 10, "axes.labelsize": 10, "xtick.labelsize": 9, "ytick.labelsize": 9, "legend.fontsize": 9,
    "axes.titlesize": 10.5, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#666666",
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#ebebef", "grid.linewidth": 0.8,
    "lines.linewidth": 1.8, "legend.frameon": False, "figure.dpi": 100, "savefig.dpi": DPI,
    "axes.prop_cycle": matplotlib.cycler(color=[BLUE, ORANGE, RED, PURPLE, GREY, VIOLET]),
}
# fmt: on


class Picture(Figure):
    """A Figure that notebooks show without pyplot."""

    def _repr_png_(self):
        return png(self)


def styled(draw):
    """Run `draw` under STYLE, whatever the session's own settings are."""

    @wraps(draw)
    def wrapper(*args, **kwargs):
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapper


def new_figure(height, width=WIDTH, layout="constrained"):
    """An empty Picture. height, width in inches."""
    figure = Picture(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def png(figure, dpi=DPI):
    """The figure as PNG bytes, the same bytes for the same picture."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def save(figure, path):
    """Write the figure as a PNG file (folder made, file replaced whole); returns it, so that a cell shows it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    temporary.write_bytes(png(figure))
    os.replace(temporary, path)
    return figure


def headline(figure, title, **place):
    """The figure's title, at its left edge."""
    figure.suptitle(title, x=0.1 / WIDTH, ha="left", va="top", fontsize=12, fontweight="bold", **place)


def label_of(kind):
    """A kind of response as people read it."""
    return kind.replace("_", "-")


def panels(n, columns, margin, height):
    """(figure, axes) of n panels beside and below each other with one vertical scale; what is left of the grid is
    blank. margin and height (of a line of panels) in inches"""
    columns = min(columns, n)
    lines = -(-n // columns)
    figure = new_figure(margin + lines * height)
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for ax in axes.flat[n:]:
        ax.axis("off")
    return figure, axes
