"""Figures: a frame or arrays in, a matplotlib Figure out. Nothing is computed here. Style: `plot_style.py`."""

import textwrap

import matplotlib
import numpy as np

from napo.plot_style import (
    BLUE,
    DASHES,
    FAINT,
    GREY,
    INK,
    KIND_STYLE,
    ORANGE,
    RED,
    WIDTH,
    headline,
    label_of,
    new_figure,
    panels,
    styled,
)
from napo.plot_style import save as save  # for the notebooks

# ---- the loss -------------------------------------------------------------------------------------------------------


@styled
def loss_family(p, losses, gradients):
    """Figure 3 of the paper: the negative Box-Cox losses between MAE and BCE, and how hard each one pulls.

    p          (N,) preference probability sigma(z), in (0, 1)
    losses     dict q -> (N,) loss;  q = 0 is BCE (DPO), q = 1 is MAE
    gradients  dict q -> (N,) dL/dz
    """
    figure = new_figure(3.6)
    left, right = figure.subplots(1, 2)
    for index, q in enumerate(sorted(losses)):
        style, label = _q_style(q, index, len(losses))
        left.plot(p, losses[q], label=label, **style)
        right.plot(p, np.abs(gradients[q]), label=label, **style)
    left.set(title="Loss", xlabel=r"preference probability $\sigma(z)$", ylabel=r"$L_q$", ylim=(0, 4), xlim=(0, 1))
    right.set(title="Pull", xlabel=r"preference probability $\sigma(z)$", ylabel=r"$|\,dL_q/dz\,|$", xlim=(0, 1))
    right.set_ylim(0, 1.02)
    left.legend(loc="upper right")
    right.text(0.3, 0.86, "on pairs that look wrong (left edge)\nBCE pulls hardest, MAE not at all", fontsize=9)
    return figure


def _q_style(q, index, n):
    """BCE red and MAE blue, solid; between them purples that lighten, dashed."""
    if q == 0:
        return {"color": RED, "lw": 2.4}, "BCE (q → 0: DPO)"
    if q == 1:
        return {"color": BLUE, "lw": 2.4}, "MAE (q = 1)"
    shade = matplotlib.colormaps["plasma"](0.75 - 0.7 * index / n)
    return {"color": shade, "ls": DASHES[index % len(DASHES)], "lw": 1.6}, f"q = {q:g}"


# ---- noise ----------------------------------------------------------------------------------------------------------

MARGIN_LABELS = {
    "raw_margin": "raw margin, sum (nats)",
    "raw_mean_margin": "raw margin, mean (nats/token)",
    "margin": "reward margin, sum (nats, without β)",
    "mean_margin": "reward margin, mean (nats/token, without β)",
}


@styled
def margins_by_truth(noise, columns=("raw_margin", "raw_mean_margin"), auroc=None, title=None):
    """Figure 4 of the paper with every measured row: margins of noise and of noise-free negatives, by kind.

    noise    frame: kind, is_noise, and the columns; rows without truth are drawn (grey) only where no row has any
    columns  two raw margins (of the base, before training) or two reward margins (after the probe), never mixed
    auroc    dict (kind, column) -> (value, lo, hi), computed by the caller, for the panel titles
    Raises ValueError if raw and reward margins are mixed.
    """
    raw = {column.startswith("raw") for column in columns}
    if len(raw) != 1:
        raise ValueError("raw margins and reward margins do not share a figure")
    kinds = [kind for kind in KIND_STYLE if kind in set(noise["kind"])]
    figure = new_figure(0.5 + 2.5 * len(kinds))
    axes = figure.subplots(len(kinds), len(columns), squeeze=False)
    for kind, line in zip(kinds, axes, strict=True):
        rows = noise[noise["kind"] == kind]
        known = rows.dropna(subset=["is_noise"])
        truth = known["is_noise"].astype(bool)
        for column, ax in zip(columns, line, strict=True):
            groups = {"noise-free": known.loc[~truth, column], "noise": known.loc[truth, column]}
            _margin_panel(ax, groups if len(known) else {"truth unknown": rows[column]})
            ax.set_title(label_of(kind))
            found = (auroc or {}).get((kind, column), (np.nan,) * 3)
            if np.isfinite(found[0]):
                text = "AUROC {:.2f} [{:.2f}, {:.2f}]".format(*found)
                ax.set_title(text, loc="right", fontsize=9, fontweight="normal")
            ax.set(xlabel=MARGIN_LABELS.get(column, column), ylabel="share of rows")
    default = "Raw margin of the base, before training" if raw == {True} else "Reward margin, after the probe"
    headline(figure, title or default)
    return figure


TRUTH_STYLE = {
    "noise-free": (BLUE, None, -0.075),
    "noise": (ORANGE, "////", -0.035),
    "truth unknown": (GREY, None, -0.055),
}


def _margin_panel(ax, groups):
    """Histograms on common bins, each summing to 1, with every row as a tick below. groups: name -> Series."""
    groups = {name: values.to_numpy(float)[np.isfinite(values.to_numpy(float))] for name, values in groups.items()}
    edges = np.linspace(*_span(np.concatenate(list(groups.values()))), 31)
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


def _span(values):
    """Range of an axis for values, widened if they are all equal or none."""
    lo, hi = (values.min(), values.max()) if len(values) else (0.0, 1.0)
    return (lo, hi) if hi > lo else (lo - 0.5, hi + 0.5)


# ---- training -------------------------------------------------------------------------------------------------------


@styled
def training_curves(steps, title="Training"):
    """One training, step by step: loss, reward margins, q and the loss weights. steps: frame of steps.jsonl."""
    figure = new_figure(5.0)
    ((top_left, top_right), (bottom_left, bottom_right)) = figure.subplots(2, 2, sharex=True)
    top_left.plot(steps["step"], steps["loss"], color=INK)
    top_left.set(title="loss", ylabel="per batch")
    panels = (
        (top_right, "rewards/margins_", "reward margin ψ", "β · nats"),
        (bottom_left, "noise/q_", "q of each term", "0 = BCE, 1 = MAE"),
        (bottom_right, "noise/gamma_", "weight γ of each term", "share"),
    )
    for ax, prefix, name, unit in panels:
        _per_kind(ax, steps, prefix)
        ax.set(title=name, ylabel=unit)
    for ax in (bottom_left, bottom_right):
        ax.set(xlabel="optimiser step", ylim=(-0.03, 1.03))
    top_right.axhline(0, color=GREY, lw=0.8)
    handles, labels = top_right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=max(len(labels), 1))
    headline(figure, title)
    return figure


def _per_kind(ax, steps, prefix):
    drawn = [kind for kind in KIND_STYLE if prefix + kind in steps and steps[prefix + kind].notna().any()]
    for kind in drawn:
        colour, dash = KIND_STYLE[kind]
        ax.plot(steps["step"], steps[prefix + kind], color=colour, ls=dash, label=label_of(kind))
    if not drawn:
        ax.text(0.5, 0.5, "not used by this method", transform=ax.transAxes, ha="center", va="center", color=GREY)


# ---- comparison -----------------------------------------------------------------------------------------------------


@styled
def comparison(estimates, reference=None, title=None, columns=3):
    """Dot plot of methods, one panel per measure.

    estimates  frame: method, measure, value, lo, hi (nan = no interval), over; optional labels: method_label,
               measure_label; methods and measures are drawn in order of appearance
    reference  method whose value is drawn as a line through each panel
    """
    methods, measures = list(dict.fromkeys(estimates["method"])), list(dict.fromkeys(estimates["measure"]))
    figure, axes = panels(len(measures), columns, 0.55, 0.75 + 0.27 * len(methods))
    for ax, measure in zip(axes.flat, measures, strict=False):
        _dots(ax, estimates[estimates["measure"] == measure].set_index("method"), methods, measure, reference)
    labels = estimates.drop_duplicates("method")
    labels = labels["method_label"] if "method_label" in labels else labels["method"]
    axes[0, 0].set_yticks(range(len(methods)), list(labels))
    axes[0, 0].set_ylim(len(methods) - 0.5, -0.5)
    over = " and ".join(dict.fromkeys(estimates["over"][np.isfinite(estimates["lo"])]))
    headline(figure, title or (f"Means with 95 % intervals over {over}" if over else "Single runs, no intervals"))
    return figure


def _dots(ax, rows, methods, measure, reference):
    for height, method in enumerate(methods):
        if method not in rows.index:
            continue
        row = rows.loc[method]
        napo = str(row.get("method_label", method)).lower().startswith("napo")
        colour = INK if method == reference else RED if napo else BLUE
        marker = "D" if napo else "o"
        if np.isfinite(row["lo"]):
            ax.plot([row["lo"], row["hi"]], [height, height], color=colour, lw=2, solid_capstyle="butt", alpha=0.7)
        ax.plot(row["value"], height, marker, color=colour, ms=6)
    if reference in rows.index:
        ax.axvline(rows.loc[reference, "value"], color=GREY, lw=1, ls=DASHES[2], zorder=0)
    ax.set_title(textwrap.fill(str(rows["measure_label"].iloc[0]) if "measure_label" in rows else measure, 20))
    ax.grid(axis="y", visible=False)
    ax.locator_params(axis="x", nbins=4)


# ---- pictures -------------------------------------------------------------------------------------------------------


@styled
def pictures(rows, title=None, columns=3):
    """Contact sheet of at most 9 rows: image, question, and named answers below.

    rows  list of dicts: image (PIL or array), question, answers (dict name -> text); optional good (dict name -> bool),
          which puts a tick or a cross before the answer
    """
    rows = list(rows)[:9]
    columns = max(1, min(columns, len(rows)))
    texts = [_answer_lines(row, 96 // columns) for row in rows]
    lines = max(len(text) for text in texts)
    figure = new_figure(0.4 + -(-len(rows) // columns) * (1.9 + 0.19 * lines), layout=None)
    height = figure.get_figheight()
    figure.subplots_adjust(0.01, 0.0, 0.99, 1 - 0.4 / height, wspace=0.05, hspace=0.0)
    for ax in figure.subplots(-(-len(rows) // columns), columns, squeeze=False).flat:
        ax.axis("off")
    for ax, row, text in zip(figure.axes, rows, texts, strict=False):
        _picture_cell(ax, row["image"], text, 1.8, 1.9 + 0.19 * lines)
    if title:
        headline(figure, title, y=1 - 0.1 / height)
    return figure


def _picture_cell(ax, image, text, image_height, cell_height):
    """Image on top of the cell, lines of text under it. Heights in inches."""
    share = image_height / cell_height
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
    out = [(line, INK, "bold") for line in textwrap.wrap(row["question"], width, **limits)]
    for name, answer in row["answers"].items():
        good = row.get("good", {}).get(name)
        mark, colour = {True: ("✓ ", "#1a6b2f"), False: ("✗ ", "#b3121f"), None: ("", "#444444")}[good]
        text = f"{mark}{label_of(name)}: {answer}"
        out += [(line, colour, "normal") for line in textwrap.wrap(text, width, subsequent_indent="   ", **limits)]
    return out


@styled
def masks(images, answers=None, title="What the model sees when the image is masked"):
    """One image under each mask. images: dict name -> image or None (no image); answers: dict name -> text."""
    texts = {name: textwrap.wrap((answers or {}).get(name, ""), 84 // len(images), max_lines=4) for name in images}
    tile, below = (WIDTH - 0.1) / len(images) - 0.1, 0.1 + 0.17 * max(map(len, texts.values()))
    figure = new_figure(0.7 + tile + below, layout=None)
    height = figure.get_figheight()
    figure.subplots_adjust(0.1 / WIDTH, below / height, 1 - 0.1 / WIDTH, 1 - 0.7 / height, wspace=0.1 / tile)
    for ax, (name, image) in zip(figure.subplots(1, len(images), squeeze=False)[0], images.items(), strict=True):
        _mask_tile(ax, image)
        ax.set_title(name, fontweight="normal")
        ax.set_xlabel("\n".join(texts[name]), fontsize=9)
    headline(figure, title, y=1 - 0.1 / height)
    return figure


def _mask_tile(ax, image):
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    if image is None:
        ax.text(0.5, 0.5, "no image", ha="center", va="center", color=GREY, transform=ax.transAxes)
    else:
        _show(ax, image)
    for spine in ax.spines.values():
        spine.set(visible=True, color=FAINT)
