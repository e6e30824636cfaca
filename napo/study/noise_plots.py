"""The study's figures: a frame of `frames.py` in, a matplotlib Figure out. Nothing is computed here.

Where the profile did not run something, the figure is a note that says so. The style is in `plot_style.py`.
"""

import textwrap

import numpy as np
from matplotlib.ticker import MaxNLocator

from napo.engine.preferences import BIASED
from napo.study import plot_style
from napo.study.frames import CONTROL
from napo.study.markdown import level
from napo.study.plot_style import BLUE, DASHES, FAINT, GREY, INK, KIND_STYLE, ORANGE, PURPLE, RED, VIOLET, label_of

LEVEL = ["noise_kind", "flip_rate"]  # columns that name a level of injected noise
NOISE_STYLE = {  # colour, dash, marker and name
    "leak": (ORANGE, DASHES[1], "^", "leak: good answers replace biased ones"),
    "swap": (BLUE, "-", "o", "swap: chosen and rejected change places"),
}
DETECTOR_STYLE = {  # colour and dash
    "right": (RED, "-"),
    "raw_margin": (BLUE, DASHES[0]),
    "raw_mean_margin": (BLUE, DASHES[2]),
    "margin": (VIOLET, DASHES[1]),
    "mean_margin": (VIOLET, DASHES[2]),
    "n_tokens": (GREY, DASHES[3]),
    "differs": (INK, DASHES[4]),
}
Q_STYLE = {  # colour, dash and name of each q in the figures over training
    "napo_paper": (RED, DASHES[0], "q of the paper"),
    "napo_authors": (PURPLE, DASHES[3], "q of the authors' code, halved"),
    "napo_calibrated": (BLUE, DASHES[1], "q with α by the kit's estimate"),
    "napo_row_q": (VIOLET, DASHES[2], "q per row, the kit's estimate"),
}


@plot_style.styled
def note(text, height=1.2):
    """A figure that says why there is nothing to draw."""
    figure = plot_style.new_figure(height)
    figure.text(0.02, 0.5, text, va="center", fontsize=10, color="#444444", wrap=True)
    return figure


@plot_style.styled
def noise_curves(curves, measure):
    """One measure of `frames.noise_curves` against injected noise: a panel per method; thin lines: CONTROL."""
    curves = curves[curves["measure"] == measure]
    if curves.empty:
        return note("This profile injects no noise: make reproduce PROFILE=study")
    labels = dict(zip(curves["method"], curves["method_label"], strict=True))
    methods = sorted(labels, key=lambda method: method != CONTROL)
    figure, axes = plot_style.panels(len(methods), 3, 1.1, 1.85, sharex=True)
    for ax, method in zip(axes.flat, methods, strict=False):
        _noise_panel(ax, curves, method)
        ax.set_title(textwrap.fill(labels[method], 32), fontsize=9)
    if curves["value"].between(0, 1).all():  # shares stay in [0, 1], however wide their intervals
        lo, hi = axes[0, 0].get_ylim()
        axes[0, 0].set_ylim(max(lo, -0.02), min(hi, 1.02))
    axes[0, 0].yaxis.set_major_locator(MaxNLocator(5))
    for ax in axes.flat[max(len(methods) - 3, 0) : len(methods)]:
        ax.tick_params(labelbottom=True)
    seeds = str(curves["seeds"].iloc[0])
    seeds = f"seed {seeds} alone" if seeds.isdecimal() else f"seeds {seeds}"
    explained = f"across: rows with injected noise (%); {plot_style.over(curves, 'bands')}; {seeds}"
    if CONTROL in methods:
        explained += f"; thin grey lines: {labels[CONTROL]}"
    plot_style.legend_below(figure, axes, 2, title=explained, title_fontsize=9)
    return plot_style.headline(figure, f"{curves['measure_label'].iloc[0]}, against noise in the labels")


def _noise_panel(ax, curves, method):
    for noise_kind, of_kind in curves.groupby("noise_kind"):
        colour, dash, marker, name = NOISE_STYLE[noise_kind]
        if method != CONTROL:
            beside = of_kind[of_kind["method"] == CONTROL]
            ax.plot(100 * beside["flip_rate"], beside["value"], color="#666666", ls=dash, lw=1)
        rows, style = of_kind[of_kind["method"] == method], {"color": colour, "ls": dash, "marker": marker, "ms": 4}
        plot_style.banded(ax, 100 * rows["flip_rate"], rows, alpha=0.2, label=name, **style)


@plot_style.styled
def q_over_training(curves):
    """q of each method over the steps, as the noise rate that it implies, beside the true share of wrong labels.

    curves  frame of `frames.over_training`; a row of panels per kind, a column per level of injected noise
    """
    curves = curves[curves["name"].isin(["q", "true"]) & curves["kind"].isin(BIASED)]
    levels = list(curves.groupby(LEVEL, sort=False))
    if not levels:
        return note("No training with an adaptive q was run with this profile.")
    figure, axes = plot_style.panels(len(BIASED) * len(levels), len(levels), 0.9, 2.1, sharex=True)
    for column, (at, rows) in zip(axes.T, levels, strict=True):
        for ax, kind in zip(column, BIASED, strict=True):
            _q_panel(ax, rows[rows["kind"] == kind])
        column[0].set_title(level(*at))
        column[-1].set_xlabel("optimiser step")
    for ax, kind in zip(axes[:, 0], BIASED, strict=True):
        ax.set_ylabel(f"{label_of(kind)}:\nshare of wrong labels")
    plot_style.legend_below(figure, axes, 3)
    return plot_style.headline(figure, f"Does q follow the noise? ({plot_style.over(curves, 'bands')})")


def _q_panel(ax, rows):
    truth = rows[rows["name"] == "true"].groupby("step", as_index=False)[["value", "lo", "hi"]].mean()
    _over_steps(ax, truth, alpha=0.12, color=INK, lw=2.2, label="true share in the batches")
    for method, (colour, dash, name) in Q_STYLE.items():
        found = rows[(rows["method"] == method) & (rows["name"] == "q")]
        _over_steps(ax, found, color=colour, ls=dash, label=name)
    ax.set_ylim(0, 1)


def _over_steps(ax, rows, **style):
    if len(rows):
        plot_style.banded(ax, rows["step"], rows, **style)


@plot_style.styled
def gamma_over_training(curves, labels):
    """The weight of each loss term over the optimiser steps: a panel per method and level of injected noise.

    curves  frame of `frames.over_training`;  labels  {method: title}, the methods to draw
    """
    curves = curves[(curves["name"] == "gamma") & curves["method"].isin(labels)]
    by_level = {method: curves[curves["method"] == method].groupby(LEVEL, sort=False) for method in labels}
    drawn = [(method, at, rows) for method, levels in by_level.items() for at, rows in levels]
    if not drawn:
        return note("No training with weights that change was run with this profile.")
    figure, axes = plot_style.panels(len(drawn), 4, 1.1, 2.0, sharex=True)
    for ax, (method, at, rows) in zip(axes.flat, drawn, strict=False):
        for kind, (colour, dash) in KIND_STYLE.items():
            _over_steps(ax, rows[rows["kind"] == kind], color=colour, ls=dash, label=label_of(kind))
        ax.axhline(1 / 3, color=GREY, lw=0.8)
        ax.set_title(f"{labels[method]},\n{level(*at)}", fontsize=9)
        ax.set_ylim(0, 1)
    for ax in axes[-1]:
        ax.set_xlabel("optimiser step")
    for ax in axes[:, 0]:
        ax.set_ylabel("weight γ")
    plot_style.legend_below(figure, axes, 3)
    return plot_style.headline(figure, f"The weight of each loss term ({plot_style.over(curves, 'bands')})")


@plot_style.styled
def forest(rows, title):
    """Differences of two methods, a panel per measure: ours with intervals, the paper's as hollow diamonds.

    rows  lines of `frames.paper_tables`; differences of shares (of percentages for the measures in percent)
    """
    if rows.empty:
        return note(f"{title}: none of these was run with this profile.")
    lines, measures = list(rows["label"].unique()), rows["measure"].unique()
    figure, axes = plot_style.panels(len(measures), 4, 1.0, 0.75 + 0.3 * len(lines))
    for ax, measure in zip(axes.flat, measures, strict=False):
        _forest_panel(ax, rows[rows["measure"] == measure], lines)
    axes[0, 0].set_yticks(range(len(lines)), lines)
    axes[0, 0].set_ylim(len(lines) - 0.5, -0.5)
    explained = f"arrow: the better side; {plot_style.over(rows, 'bars')}"
    plot_style.legend_below(figure, axes, 3, title=explained, title_fontsize=9)
    return plot_style.headline(figure, title)


def _forest_panel(ax, rows, lines):
    ax.axvline(0, color=INK, lw=0.8)
    small = {"fontsize": 7.5, "color": "#666666", "va": "center"}
    for row in rows.itertuples():
        height = lines.index(row.label)
        if np.isfinite(row.paper):
            label = "paper, LLaVA-1.5-7B, one run"
            ax.plot(row.paper, height + 0.2, "D", color=ORANGE, mfc="white", ms=6, label=label)
        else:
            ax.text(0, height + 0.25, " paper: two protocols", **small)
        if np.isfinite(row.value):
            ax.plot([row.lo, row.hi], [height - 0.12] * 2, color=BLUE, lw=2.2, solid_capstyle="butt")
            ax.plot(row.value, height - 0.12, "o", color=BLUE, ms=5, label="ours, desk world")
        else:
            ax.text(0, height - 0.15, " not run", **small)
    better = {"higher": " →", "lower": " ←"}.get(rows["better"].iloc[0], "")
    ax.set_title(rows["measure_label"].iloc[0] + better, fontsize=9.5)
    ax.grid(axis="y", visible=False)
    ax.margins(x=0.12)
    ax.xaxis.set_major_locator(MaxNLocator(3, symmetric=True))


@plot_style.styled
def roc(curves, labels, auroc=None):
    """ROC curves of every detector of noise, a panel per kind of biased answer.

    curves  frame of `frames.roc`;  labels  {detector: name};  auroc  {(kind, detector): (value, lo, hi)} for the legend
    """
    if curves.empty:
        return note("The truth of these rows is not known: no ROC curve.")
    kinds, auroc = curves["kind"].unique(), auroc or {}
    figure = plot_style.new_figure(5.4)
    axes, below = figure.subplots(2, len(kinds), squeeze=False, height_ratios=(2.3, 1))
    for ax, empty, kind in zip(axes, below, kinds, strict=True):
        empty.axis("off")
        ax.plot([0, 1], [0, 1], color=FAINT, lw=1)
        for detector, (colour, dash) in DETECTOR_STYLE.items():
            rows = curves[(curves["kind"] == kind) & (curves["detector"] == detector)]
            found, *_ = auroc.get((kind, detector), (np.nan,))
            label = (f"{found:.2f}  " if np.isfinite(found) else "") + labels[detector]
            if len(rows):
                ax.plot(rows["false_positives"], rows["true_positives"], color=colour, ls=dash, label=label)
        ax.set(title=label_of(kind), xlabel="false alarms among good labels")
        legend = empty.legend(*ax.get_legend_handles_labels(), loc="upper left", fontsize=8, borderaxespad=0)
        legend.set_in_layout(False)  # else its width narrows the panel
    axes[0].set_ylabel("noise found")
    return plot_style.headline(figure, "Finding noise: ROC of every detector, mean over bases (numbers: AUROC)")


@plot_style.styled
def estimated_noise(levels):
    """The estimated rate of wrong labels against the true one: a point per base and line of `noise_levels.table`."""
    if levels.empty:
        return note("The truth of these rows is not known: no true rate to compare with.")
    kinds = levels["kind"].unique()
    figure, (axes,) = plot_style.panels(len(kinds), len(kinds), 0, 3.9)
    for ax, kind in zip(axes, kinds, strict=True):
        ax.plot([0, 0.7], [0, 0.7], color=GREY, lw=1, label="estimate = truth")
        for noise_kind, (colour, _, marker, _) in NOISE_STYLE.items():
            rows = levels[(levels["kind"] == kind) & (levels["noise_kind"] == noise_kind)]
            bars = np.stack([rows["estimated"] - rows["lo"], rows["hi"] - rows["estimated"]]).clip(min=0)
            style = {"fmt": marker, "color": colour, "ms": 5, "elinewidth": 1, "alpha": 0.8}
            label = f"{noise_kind}, 0 to {rows['rate'].max():.0%}"
            ax.errorbar(rows["true"], rows["estimated"], bars, label=label, **style)
        ax.set(title=label_of(kind), xlabel="true share of wrong labels", aspect="equal", xlim=(0, 0.7), ylim=(0, 0.7))
    axes[0].set_ylabel("estimated without the truth")
    axes[0].legend(loc="upper left")
    return plot_style.headline(figure, "The noise rate from forward passes of the base (bars: 95 % over rows)")


@plot_style.styled
def posterior_by_evidence(table, rates):
    """Probability that a row's label is wrong against the evidence for its rejected answer, a point per row.

    table  frame kind, evidence, posterior;  rates  {kind: {"rate", "lo", "hi"}} for the panels' titles
    """
    figure, (axes,) = plot_style.panels(len(rates), len(rates), 0, 3.2)
    for ax, (kind, rate) in zip(axes, rates.items(), strict=True):
        rows = table[table["kind"] == kind]
        ax.plot(rows["evidence"], rows["posterior"], ".", color=KIND_STYLE[kind][0], ms=4, alpha=0.6)
        ax.axvline(0, color=INK, lw=0.8)
        found = f"{rate['rate']:.0%} [{rate['lo']:.0%}, {rate['hi']:.0%}] wrong"
        ax.set(title=f"{label_of(kind)}:\n{found}", ylim=(-0.03, 1.03), xlabel="evidence for the answer (nats)")
    axes[0].set_ylabel("P(label is wrong)")
    return figure
