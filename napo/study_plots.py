"""The study's figures: a frame of `study.py` in, a matplotlib Figure out; nothing is computed here.
Style: `plot_style.py`.

What a profile did not run is named in the figure instead of drawn.
"""

import textwrap

import numpy as np
from matplotlib.ticker import MaxNLocator

from napo.plot_style import (
    BLUE,
    DASHES,
    FAINT,
    GREY,
    INK,
    KIND_STYLE,
    ORANGE,
    PURPLE,
    RED,
    VIOLET,
    headline,
    label_of,
    new_figure,
    panels,
    styled,
)

NOISE_STYLE = {"leak": (ORANGE, DASHES[1], "^"), "swap": (BLUE, "-", "o")}  # colour, dash, marker of a kind of noise
DETECTOR_STYLE = {  # colour and dash
    "right": (RED, "-"),
    "raw_margin": (BLUE, DASHES[0]),
    "raw_mean_margin": (BLUE, DASHES[2]),
    "margin": (VIOLET, DASHES[1]),
    "mean_margin": (VIOLET, DASHES[2]),
    "n_tokens": (GREY, DASHES[3]),
    "differs": (INK, DASHES[4]),
}
Q_STYLE = {  # colour, dash and name of each estimate of the noise in the figures over training
    "napo_paper": (RED, DASHES[0], "q of the paper"),
    "napo_authors": (PURPLE, DASHES[3], "q of the authors' code, halved"),
    "napo_calibrated": (BLUE, DASHES[1], "q with α by the kit's estimate"),
    "napo_row_q": (VIOLET, DASHES[2], "q per row, the kit's estimate"),
}


@styled
def note(text, height=1.2):
    """A figure that says why there is none."""
    figure = new_figure(height)
    figure.text(0.02, 0.5, text, va="center", fontsize=10, color="#444444", wrap=True)
    return figure


# ---- methods under noise --------------------------------------------------------------------------------------------


@styled
def noise_curves(curves, measure, control="dpo_all", columns=3):
    """One measure against the share of noise put in, a panel per method, with bands; the control thin in every panel.

    curves  frame of `study.noise_curves`
    """
    curves = curves[curves["measure"] == measure]
    if curves.empty:
        return note("No noise was put into the labels with this profile: make reproduce PROFILE=study")
    methods = [method for method in dict.fromkeys(curves["method"]) if method != control]
    methods = [control, *methods] if control in set(curves["method"]) else methods
    lines = -(-len(methods) // columns)
    figure = new_figure(1.1 + 1.85 * lines)
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for ax, method in zip(axes.flat, methods, strict=False):
        for noise_kind, (colour, dash, marker) in NOISE_STYLE.items():
            of_kind = curves[curves["noise_kind"] == noise_kind]
            if of_kind.empty:
                continue
            beside = of_kind[of_kind["method"] == control]
            if method != control:
                ax.plot(100 * beside["flip_rate"], beside["value"], color="#666666", ls=dash, lw=1)
            _band(ax, of_kind[of_kind["method"] == method], colour, dash, marker, noise_kind)
        ax.set_title(textwrap.fill(_label(curves, method), 32), fontsize=9)
    _share_axis(axes[0, 0], curves["value"])
    for ax in axes.flat[len(methods) :]:
        ax.axis("off")
    for ax in axes.flat[max(len(methods) - columns, 0) : len(methods)]:
        ax.tick_params(labelbottom=True)
    axes[0, 0].yaxis.set_major_locator(MaxNLocator(5))
    explained = f"across: rows with noise put in (%); {_bands(curves)}; {_seeds(curves)}"
    if control in methods:
        explained += f"; thin grey lines: {_label(curves, control)}"
    figure.legend(*_legend(axes), loc="outside lower center", ncols=2, title=explained, title_fontsize=9)
    headline(figure, f"{curves['measure_label'].iloc[0]}, against noise in the labels")
    return figure


def _bands(rows, what="bands"):
    """What the intervals of a frame are over: "bands: 95 % over bases"."""
    over = " and ".join(dict.fromkeys(rows["over"][np.isfinite(rows["lo"])]))
    return f"{what}: 95 % over {over}" if over else "single runs"


def _seeds(curves):
    """Which seeds a frame of `study.noise_curves` holds."""
    seeds = str(curves["seeds"].iloc[0])
    return f"seed {seeds} alone" if seeds.isdecimal() else f"seeds {seeds}"


def _label(curves, method):
    return curves.loc[curves["method"] == method, "method_label"].iloc[0]


def _share_axis(ax, values):
    """Shares live in [0, 1], however wide their intervals."""
    if values.between(0, 1).all():
        lo, hi = ax.get_ylim()
        ax.set_ylim(max(lo, -0.02), min(hi, 1.02))


def _band(ax, rows, colour, dash, marker, name):
    names = {"leak": "leak: biased answers replaced by good ones", "swap": "swap: chosen and rejected change places"}
    x = 100 * rows["flip_rate"]
    ax.plot(x, rows["value"], color=colour, ls=dash, marker=marker, ms=4, label=names.get(name, name))
    ax.fill_between(x, rows["lo"], rows["hi"], color=colour, alpha=0.2, lw=0)


# ---- over training --------------------------------------------------------------------------------------------------


@styled
def q_over_training(curves, kinds=("language_biased", "vision_biased")):
    """q of each method over the optimiser steps, as the noise rate that it names, and the true share of wrong labels.

    curves  frame of `study.over_training`; a row of panels per kind, a column per noise put in
    """
    curves = curves[curves["name"].isin(["q", "true"]) & curves["kind"].isin(kinds)]
    conditions = _conditions(curves)
    if not conditions:
        return note("No training with an adaptive q was run with this profile.")
    figure = new_figure(0.9 + 2.1 * len(kinds))
    axes = figure.subplots(len(kinds), len(conditions), squeeze=False, sharex=True, sharey=True)
    for ax, condition in zip(axes[0], conditions, strict=True):
        ax.set_title(_condition(*condition))
    for line, kind in zip(axes, kinds, strict=True):
        for ax, (noise_kind, rate) in zip(line, conditions, strict=True):
            here = curves[(curves["kind"] == kind) & (curves["noise_kind"] == noise_kind)]
            _q_panel(ax, here[here["flip_rate"] == rate])
        line[0].set_ylabel(f"{label_of(kind)}:\nshare of wrong labels")
    for ax in axes[-1]:
        ax.set_xlabel("optimiser step")
    figure.legend(*_legend(axes), loc="outside lower center", ncols=3)
    headline(figure, f"Does q follow the noise? ({_bands(curves)})")
    return figure


def _q_panel(ax, rows):
    truth = rows[rows["name"] == "true"].groupby("step", as_index=False)[["value", "lo", "hi"]].mean()
    if len(truth):
        ax.plot(truth["step"], truth["value"], color=INK, lw=2.2, label="true share in the batches")
        ax.fill_between(truth["step"], truth["lo"], truth["hi"], color=INK, alpha=0.12, lw=0)
    for method, (colour, dash, name) in Q_STYLE.items():
        found = rows[(rows["method"] == method) & (rows["name"] == "q")].sort_values("step")
        if len(found):
            ax.plot(found["step"], found["value"], color=colour, ls=dash, label=name)
            ax.fill_between(found["step"], found["lo"], found["hi"], color=colour, alpha=0.15, lw=0)
    ax.set_ylim(0, 1)


def _legend(axes):
    """Handles and labels of all panels, each label once."""
    found = {}
    for ax in axes.flat:
        found |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    return list(found.values()), list(found)


@styled
def gamma_over_training(curves, labels):
    """The weight of each loss term over the optimiser steps: a panel per method and noise put in.

    curves  frame of `study.over_training`;  labels  {method: title}, the methods to draw
    """
    curves = curves[(curves["name"] == "gamma") & curves["method"].isin(labels)]
    panels = [(m, *c) for m in labels for c in _conditions(curves[curves["method"] == m])]
    if not panels:
        return note("No training with weights that change was run with this profile.")
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    figure = new_figure(1.1 + 2.0 * lines)
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for ax, (method, noise_kind, rate) in zip(axes.flat, panels, strict=False):
        here = curves[(curves["method"] == method) & (curves["noise_kind"] == noise_kind)]
        for kind, (colour, dash) in KIND_STYLE.items():
            rows = here[(here["kind"] == kind) & (here["flip_rate"] == rate)].sort_values("step")
            if len(rows):
                ax.plot(rows["step"], rows["value"], color=colour, ls=dash, label=label_of(kind))
                ax.fill_between(rows["step"], rows["lo"], rows["hi"], color=colour, alpha=0.15, lw=0)
        ax.axhline(1 / 3, color=GREY, lw=0.8)
        ax.set_title(f"{labels[method]},\n{_condition(noise_kind, rate)}", fontsize=9)
        ax.set_ylim(0, 1)
    for ax in axes.flat[len(panels) :]:
        ax.axis("off")
    for ax in axes[-1]:
        ax.set_xlabel("optimiser step")
    for line in axes:
        line[0].set_ylabel("weight γ")
    figure.legend(*_legend(axes), loc="outside lower center", ncols=3)
    headline(figure, f"The weight of each loss term ({_bands(curves)})")
    return figure


def _condition(noise_kind, rate):
    return f"{noise_kind} {rate:.0%}" if rate else "no noise put in"


def _conditions(curves):
    return list(dict.fromkeys(zip(curves["noise_kind"], curves["flip_rate"], strict=True)))


# ---- the paper's tables ---------------------------------------------------------------------------------------------


@styled
def forest(rows, title, columns=4):
    """Differences of two methods, ours with intervals and the paper's as hollow diamonds; a panel per measure.

    rows  frame of `study.paper_tables`, differences as shares (percent where `paper.py` says so) of one or more tables
    """
    if rows.empty:
        return note(f"{title}: none of these was run with this profile.")
    lines, measures = list(dict.fromkeys(rows["label"])), list(dict.fromkeys(rows["measure"]))
    figure, axes = panels(len(measures), columns, 1.0, 0.75 + 0.3 * len(lines))
    for ax, measure in zip(axes.flat, measures, strict=False):
        _forest_panel(ax, rows[rows["measure"] == measure].set_index("label"), lines)
    axes[0, 0].set_yticks(range(len(lines)), lines)
    axes[0, 0].set_ylim(len(lines) - 0.5, -0.5)
    explained = f"arrow: the better side; {_bands(rows, 'bars')}"
    figure.legend(*_legend(axes), loc="outside lower center", ncols=3, title=explained, title_fontsize=9)
    headline(figure, title)
    return figure


def _forest_panel(ax, rows, lines):
    ax.axvline(0, color=INK, lw=0.8)
    for height, label in enumerate(lines):
        if label not in rows.index:
            continue
        row = rows.loc[label]
        if np.isfinite(row["paper"]):
            mark = {"color": ORANGE, "mfc": "white", "ms": 6, "label": "paper, LLaVA-1.5-7B, one run"}
            ax.plot(row["paper"], height + 0.2, "D", **mark)
        else:
            ax.text(0, height + 0.25, " paper: two protocols", fontsize=7.5, color="#666666", va="center")
        if not np.isfinite(row["value"]):
            ax.text(0, height - 0.15, " not run", fontsize=7.5, color="#666666", va="center")
            continue
        if np.isfinite(row["lo"]):
            ax.plot([row["lo"], row["hi"]], [height - 0.12] * 2, color=BLUE, lw=2.2, solid_capstyle="butt")
        ax.plot(row["value"], height - 0.12, "o", color=BLUE, ms=5, label="ours, desk world")
    better = {"higher": " →", "lower": " ←"}.get(rows["better"].iloc[0], "")
    ax.set_title(rows["measure_label"].iloc[0] + better, fontsize=9.5)
    ax.grid(axis="y", visible=False)
    ax.margins(x=0.12)
    ax.xaxis.set_major_locator(MaxNLocator(3, symmetric=True))


# ---- noise ----------------------------------------------------------------------------------------------------------


@styled
def roc(curves, labels, auroc=None):
    """ROC curves of every detector of noise, a panel per kind of biased answer.

    curves  frame of `study.roc`;  labels  {detector: name};  auroc  {(kind, detector): (value, lo, hi)} for the legend
    """
    if curves.empty:
        return note("The truth of these rows is not known: no ROC curve.")
    kinds = list(dict.fromkeys(curves["kind"]))
    figure = new_figure(5.4)
    axes, below = figure.subplots(2, len(kinds), squeeze=False, height_ratios=(2.3, 1))
    for ax, empty, kind in zip(axes, below, kinds, strict=True):
        empty.axis("off")
        ax.plot([0, 1], [0, 1], color=FAINT, lw=1)
        for detector, (colour, dash) in DETECTOR_STYLE.items():
            rows = curves[(curves["kind"] == kind) & (curves["detector"] == detector)]
            if rows.empty:
                continue
            found = (auroc or {}).get((kind, detector), (np.nan,))[0]
            name = f"{found:.2f}  " if np.isfinite(found) else ""
            ax.plot(
                rows["false_positives"], rows["true_positives"], color=colour, ls=dash, label=name + labels[detector]
            )
        ax.set(title=label_of(kind), xlabel="false alarms among good labels")
        legend = empty.legend(*ax.get_legend_handles_labels(), loc="upper left", fontsize=8, borderaxespad=0)
        legend.set_in_layout(False)  # or its width would narrow the panel
    axes[0].set_ylabel("noise found")
    headline(figure, "Finding noise: ROC of every detector, mean over bases (numbers: AUROC)")
    return figure


@styled
def estimated_noise(levels):
    """The estimated rate of wrong labels against the true one, a point per base and level, a panel per biased kind.

    levels  frame of `noise_levels.table`, all bases
    """
    if levels.empty:
        return note("The truth of these rows is not known: no true rate to compare with.")
    kinds = list(dict.fromkeys(levels["kind"]))
    figure = new_figure(3.9)
    axes = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    for ax, kind in zip(axes, kinds, strict=True):
        ax.plot([0, 0.7], [0, 0.7], color=GREY, lw=1, label="estimate = truth")
        for noise_kind, (colour, _, marker) in NOISE_STYLE.items():
            rows = levels[(levels["kind"] == kind) & (levels["noise_kind"] == noise_kind)]
            bars = np.stack([rows["estimated"] - rows["lo"], rows["hi"] - rows["estimated"]]).clip(min=0)
            style = {"fmt": marker, "color": colour, "ms": 5, "elinewidth": 1, "alpha": 0.8}
            ax.errorbar(
                rows["true"], rows["estimated"], bars, label=f"{noise_kind}, 0 to {rows['rate'].max():.0%}", **style
            )
        ax.set(title=label_of(kind), xlabel="true share of wrong labels", aspect="equal", xlim=(0, 0.7), ylim=(0, 0.7))
    axes[0].set_ylabel("estimated, without truth")
    axes[0].legend(loc="upper left")
    headline(figure, "The noise rate from forward passes of the base (bars: 95 % over rows)")
    return figure


@styled
def posterior_by_evidence(table, rates):
    """Every row of a preference set: the evidence for its rejected answer against the probability that the label is
    wrong.

    table  frame kind, evidence, posterior;  rates  {kind: {"rate", "lo", "hi"}} for the panels' titles
    """
    figure = new_figure(3.2)
    axes = figure.subplots(1, len(rates), sharey=True, squeeze=False)[0]
    for ax, (kind, rate) in zip(axes, rates.items(), strict=True):
        rows = table[table["kind"] == kind]
        ax.plot(rows["evidence"], rows["posterior"], ".", color=KIND_STYLE[kind][0], ms=4, alpha=0.6)
        ax.axvline(0, color=INK, lw=0.8)
        found = f"{rate['rate']:.0%} [{rate['lo']:.0%}, {rate['hi']:.0%}] wrong"
        ax.set(title=f"{label_of(kind)}:\n{found}", ylim=(-0.03, 1.03))
        ax.set_xlabel("evidence for the answer (nats)")
    axes[0].set_ylabel("P(label is wrong)")
    return figure
