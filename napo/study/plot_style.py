"""The look of every figure: colours, dashes, sizes; and how figures are made and saved without pyplot or global state.

Colours are Petroff's six, which colour-blind readers separate best. Every colour comes with a second cue: dash, marker
or position. Sizes suit a README, about 800 pixels wide.
"""

import io
from functools import wraps

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from napo.workshop.files import atomic

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
    "text.parse_math": False, "text.usetex": False,  # a $ in a row's text is no formula
    "axes.prop_cycle": matplotlib.cycler(color=[BLUE, ORANGE, RED, PURPLE, GREY, VIOLET]),
}
# fmt: on


class Picture(Figure):
    """A Figure that a notebook shows without pyplot."""

    def _repr_png_(self):
        return png(self)


def styled(draw):
    """Decorator: draw under STYLE, whatever matplotlib settings the session has."""

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


def png(figure):
    """The figure as PNG bytes; equal pictures give equal bytes."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def save(figure, path):
    """Write the figure as a PNG file, whole or not at all. Returns it, so that a cell shows it."""
    with atomic(path) as temporary:
        temporary.write_bytes(png(figure))
    return figure


def headline(figure, title, **place):
    """Set the figure's title at its left edge. Returns the figure."""
    figure.suptitle(title, x=0.1 / WIDTH, ha="left", va="top", fontsize=12, fontweight="bold", **place)
    return figure


def label_of(kind):
    """A kind of response in words: "language-biased"."""
    return kind.replace("_", "-")


def panels(n, columns, margin, height, sharex=False):
    """(figure, axes) of n panels in rows of at most `columns`, with one vertical scale; the rest of the grid is blank.

    margin, height  inches: of the whole figure beside its panels, and of a row of panels
    """
    rows, columns = -(-n // min(columns, n)), min(columns, n)
    figure = new_figure(margin + rows * height)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=True)
    for ax in axes.flat[n:]:
        ax.axis("off")
    return figure, axes


def legend_below(figure, axes, ncols, **settings):
    """One legend under the figure with the labels of all panels, each once."""
    found = {}
    for ax in axes.flat:
        found |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=ncols, **settings)


def banded(ax, x, rows, alpha=0.15, **style):
    """A line through the column `value` of a frame, with its interval (columns lo, hi) as a band."""
    ax.plot(x, rows["value"], **style)
    ax.fill_between(x, rows["lo"], rows["hi"], color=style["color"], alpha=alpha, lw=0)


def over(rows, what):
    """What the intervals of a frame are over: "bands: 95 % over bases"."""
    units = " and ".join(dict.fromkeys(rows["over"][rows["lo"].notna()]))
    return f"{what}: 95 % over {units}" if units else "single runs"
