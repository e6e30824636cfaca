"""Figures: a frame or arrays in, a matplotlib Figure out. Nothing is computed here; the style is in `plot_style.py`."""

import textwrap

import matplotlib
import numpy as np

from napo.study import plot_style
from napo.study.plot_style import BLUE, DASHES, FAINT, GREY, INK, KIND_STYLE, ORANGE, RED, WIDTH, label_of
from napo.workshop.texts import printable


@plot_style.styled
def loss_family(p, losses, gradients):
    """Figure 3 of the paper: the negative Box-Cox losses between MAE and BCE, and their gradients.

    p  (N,) preference probability sigma(z);  losses, gradients  dicts q -> (N,) L and dL/dz; q = 0: BCE, q = 1: MAE
    """
    figure = plot_style.new_figure(3.6)
    left, right = figure.subplots(1, 2)
    for index, q in enumerate(sorted(losses)):
        style, label = _q_style(q, index, len(losses))
        left.plot(p, losses[q], label=label, **style)
        right.plot(p, np.abs(gradients[q]), label=label, **style)
    across = {"xlabel": "preference probability σ(z)", "xlim": (0, 1)}
    left.set(title="Loss", ylabel="L, by q", ylim=(0, 4), **across)
    right.set(title="Pull", ylabel="|dL/dz|, by q", ylim=(0, 1.02), **across)
    left.legend(loc="upper right")
    right.text(0.3, 0.86, "on pairs that look wrong (left edge)\nBCE pulls hardest, MAE not at all", fontsize=9)
    return figure


def _q_style(q, index, n):
    """Style and label of a loss: BCE red, MAE blue, both solid; dashed and in lighter purples between them."""
    if q == 0:
        return {"color": RED, "lw": 2.4}, "BCE (q → 0: DPO)"
    if q == 1:
        return {"color": BLUE, "lw": 2.4}, "MAE (q = 1)"
    shade = matplotlib.colormaps["plasma"](0.75 - 0.7 * index / n)
    return {"color": shade, "ls": DASHES[index % len(DASHES)], "lw": 1.6}, f"q = {q:g}"


TRUTH_STYLE = {  # colour, hatch, height of the ticks
    "noise-free": (BLUE, None, -0.075),
    "noise": (ORANGE, "////", -0.035),
    "truth unknown": (GREY, None, -0.055),
}
MARGIN_LABELS = {
    "raw_margin": "raw margin, sum (nats)",
    "raw_mean_margin": "raw margin, mean (nats/token)",
    "margin": "reward margin, sum (nats, without β)",
    "mean_margin": "reward margin, mean (nats/token, without β)",
}


@plot_style.styled
def margins_by_truth(noise, columns=("raw_margin", "raw_mean_margin"), auroc=None):
    """Figure 4 of the paper with every measured row: margins of noise and of noise-free negatives, by kind.

    noise    frame: kind, is_noise, and the columns; rows of unknown truth are drawn (grey) only if no truth is known
    columns  two raw margins (of the base, before training) or two reward margins (after the probe)
    auroc    {(kind, column): (value, lo, hi)} for the panel titles
    Raises ValueError if raw and reward margins are mixed.
    """
    raw = {column.startswith("raw") for column in columns}
    if len(raw) != 1:
        raise ValueError("raw margins and reward margins do not share a figure")
    kinds = [kind for kind in KIND_STYLE if kind in set(noise["kind"])]
    figure = plot_style.new_figure(0.5 + 2.5 * len(kinds))
    axes = figure.subplots(len(kinds), len(columns), squeeze=False)
    for kind, line in zip(kinds, axes, strict=True):
        rows = noise[noise["kind"] == kind]
        known = rows.dropna(subset=["is_noise"])
        truth = known["is_noise"].astype(bool)
        for column, ax in zip(columns, line, strict=True):
            groups = {"noise-free": known.loc[~truth, column], "noise": known.loc[truth, column]}
            _margin_panel(ax, groups if len(known) else {"truth unknown": rows[column]})
            ax.set(title=label_of(kind), xlabel=MARGIN_LABELS[column], ylabel="share of rows")
            found = (auroc or {}).get((kind, column), (np.nan,) * 3)
            if np.isfinite(found[0]):
                text = "AUROC {:.2f} [{:.2f}, {:.2f}]".format(*found)
                ax.set_title(text, loc="right", fontsize=9, fontweight="normal")
    title = "Raw margin of the base, before training" if raw == {True} else "Reward margin, after the probe"
    return plot_style.headline(figure, title)


def _margin_panel(ax, groups):
    """Histograms on common bins, each summing to 1, with every row as a tick below. groups: {name: Series}."""
    groups = {name: values.astype(float).dropna().to_numpy() for name, values in groups.items()}
    edges = np.histogram_bin_edges(np.concatenate(list(groups.values())), 30)
    for name, values in groups.items():
        colour, hatch, below = TRUTH_STYLE[name]
        weights = np.full(len(values), 1 / max(len(values), 1))
        style = {"hatch": hatch, "alpha": 0.55, "color": colour, "edgecolor": colour, "lw": 1.2}
        ax.hist(values, edges, weights=weights, histtype="stepfilled", label=f"{name} (n = {len(values)})", **style)
        tick = {"marker": "|", "ls": "", "color": colour, "ms": 5, "mew": 0.8, "clip_on": False}
        ax.plot(values, np.full(len(values), below), transform=ax.get_xaxis_transform(), **tick)
    ax.axvline(0, color=INK, lw=0.8)
    ax.tick_params(axis="x", pad=9)
    ax.set_ylim(0, 1.4 * ax.get_ylim()[1])  # room for the legend
    ax.legend(loc="upper right")


@plot_style.styled
def training_curves(steps, title="Training"):
    """One training, step by step: loss, reward margins, q and the loss weights. steps: frame of steps.jsonl."""
    figure = plot_style.new_figure(5.0)
    axes = figure.subplots(2, 2, sharex=True)
    loss, margins, q, gamma = axes.flat
    loss.plot(steps["step"], steps["loss"], color=INK)
    loss.set(title="loss", ylabel="per batch")
    _per_kind(margins, steps, "rewards/margins_", title="reward margin ψ", ylabel="β · nats")
    below = {"xlabel": "optimiser step", "ylim": (-0.03, 1.03)}
    _per_kind(q, steps, "noise/q_", title="q of each term", ylabel="0 = BCE, 1 = MAE", **below)
    _per_kind(gamma, steps, "noise/gamma_", title="weight γ of each term", ylabel="share", **below)
    margins.axhline(0, color=GREY, lw=0.8)
    plot_style.legend_below(figure, axes, 3)
    return plot_style.headline(figure, title)


def _per_kind(ax, steps, prefix, **settings):
    ax.set(**settings)
    drawn = [kind for kind in KIND_STYLE if prefix + kind in steps and steps[prefix + kind].notna().any()]
    for kind in drawn:
        colour, dash = KIND_STYLE[kind]
        ax.plot(steps["step"], steps[prefix + kind], color=colour, ls=dash, label=label_of(kind))
    if not drawn:
        ax.text(0.5, 0.5, "not used by this method", transform=ax.transAxes, ha="center", va="center", color=GREY)


@plot_style.styled
def comparison(estimates, reference=None):
    """Dot plot of methods, one panel per measure.

    estimates  frame of `frames.estimates`; methods and measures are drawn in order of appearance
    reference  method whose value is drawn as a line through each panel
    """
    methods, measures = list(estimates["method"].unique()), estimates["measure"].unique()
    figure, axes = plot_style.panels(len(measures), 3, 0.55, 0.75 + 0.27 * len(methods))
    for ax, measure in zip(axes.flat, measures, strict=False):
        _dots(ax, estimates[estimates["measure"] == measure].set_index("method"), methods, reference)
    axes[0, 0].set_yticks(range(len(methods)), list(estimates.drop_duplicates("method")["method_label"]))
    axes[0, 0].set_ylim(len(methods) - 0.5, -0.5)
    over = " and ".join(estimates["over"][np.isfinite(estimates["lo"])].unique())
    return plot_style.headline(
        figure, f"Means with 95 % intervals over {over}" if over else "Single runs, no intervals"
    )


def _dots(ax, rows, methods, reference):
    for method, row in rows.iterrows():
        height, napo = methods.index(method), row["method_label"].lower().startswith("napo")
        colour = INK if method == reference else RED if napo else BLUE
        if np.isfinite(row["lo"]):
            ax.plot([row["lo"], row["hi"]], [height, height], color=colour, lw=2, solid_capstyle="butt", alpha=0.7)
        ax.plot(row["value"], height, "D" if napo else "o", color=colour, ms=6)
    if reference in rows.index:
        ax.axvline(rows.loc[reference, "value"], color=GREY, lw=1, ls=DASHES[2], zorder=0)
    ax.set_title(textwrap.fill(rows["measure_label"].iloc[0], 20))
    ax.grid(axis="y", visible=False)
    ax.locator_params(axis="x", nbins=4)


@plot_style.styled
def pictures(rows, title=None):
    """Contact sheet of at most 9 rows: image, question, and named answers below.

    rows  dicts: image (PIL or array), question, answers ({name: text}); optional good ({name: bool}): a tick or a cross
    """
    rows = list(rows)[:9]
    columns = min(3, len(rows))
    texts = [_answer_lines(row, 96 // columns) for row in rows]
    n_lines, cell_height = -(-len(rows) // columns), 1.9 + 0.19 * max(map(len, texts))
    height = 0.4 + n_lines * cell_height
    figure = plot_style.new_figure(height, layout=None)
    figure.subplots_adjust(0.01, 0.0, 0.99, 1 - 0.4 / height, wspace=0.05, hspace=0.0)
    for ax in figure.subplots(n_lines, columns, squeeze=False).flat:
        ax.axis("off")
    for ax, row, text in zip(figure.axes, rows, texts, strict=False):
        _picture_cell(ax, row["image"], text, cell_height)
    if title:
        plot_style.headline(figure, title, y=1 - 0.1 / height)
    return figure


def _picture_cell(ax, image, text, cell_height):
    """Draw an image, 1.8 inches high, with lines of text below it."""
    share = 1.8 / cell_height
    inset = ax.inset_axes((0.0, 1 - share, 1.0, share))
    _show(inset, image)
    inset.set_anchor("NW")
    inset.axis("off")
    for index, (line, colour, weight) in enumerate(text):
        y = 1 - share - (0.08 + 0.19 * index) / cell_height
        ax.text(0, y, line, transform=ax.transAxes, va="top", fontsize=9, color=colour, fontweight=weight)


def _show(ax, image):
    """Draw a PIL image of any mode, or an array, pixel by pixel."""
    pixels = image.convert("RGB") if hasattr(image, "convert") else image
    ax.imshow(np.asarray(pixels), cmap="gray", vmin=0, vmax=255, interpolation="nearest")


def _answer_lines(row, width):
    """(line, colour, weight) of a question and its answers, wrapped to `width` characters."""
    limits = {"max_lines": 3, "placeholder": " …"}
    out = [(line, INK, "bold") for line in textwrap.wrap(printable(row["question"]), width, **limits)]
    for name, answer in row["answers"].items():
        good = row.get("good", {}).get(name)
        mark, colour = {True: ("✓ ", "#1a6b2f"), False: ("✗ ", "#b3121f"), None: ("", "#444444")}[good]
        text = f"{mark}{label_of(name)}: {printable(answer)}"
        out += [(line, colour, "normal") for line in textwrap.wrap(text, width, subsequent_indent="   ", **limits)]
    return out


@plot_style.styled
def masks(images, answers=None):
    """One image under each mask. images: {name: image, or None for no image};  answers: {name: text}."""
    texts = {
        name: textwrap.wrap(printable((answers or {}).get(name, "")), 84 // len(images), max_lines=4) for name in images
    }
    tile, below = (WIDTH - 0.1) / len(images) - 0.1, 0.1 + 0.17 * max(map(len, texts.values()))
    figure = plot_style.new_figure(0.7 + tile + below, layout=None)
    height = figure.get_figheight()
    figure.subplots_adjust(0.1 / WIDTH, below / height, 1 - 0.1 / WIDTH, 1 - 0.7 / height, wspace=0.1 / tile)
    for ax, (name, image) in zip(figure.subplots(1, len(images), squeeze=False)[0], images.items(), strict=True):
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
        ax.set_title(name, fontweight="normal")
        ax.set_xlabel("\n".join(texts[name]), fontsize=9)
        for spine in ax.spines.values():
            spine.set(visible=True, color=FAINT)
        if image is None:
            ax.text(0.5, 0.5, "no image", ha="center", va="center", color=GREY, transform=ax.transAxes)
        else:
            _show(ax, image)
    return plot_style.headline(figure, "What the model sees when the image is masked", y=1 - 0.1 / height)
