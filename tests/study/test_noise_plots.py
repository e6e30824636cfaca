"""napo.study.noise_plots: what is drawn is what was given, what is missing is said, nothing is cut at README width."""

import itertools

import numpy as np
import pandas as pd
import pytest
from drawn import check_picture

from napo.noise import detectors
from napo.study import noise_plots, paper

KINDS = ("language_biased", "vision_biased")
NONE = pd.DataFrame()


def curves_frame(rates=(0.0, 0.2, 0.4)):
    rows = []
    for noise_kind, method, (i, rate) in itertools.product(
        ("swap", "leak"), ("dpo_all", "oracle", "napo_paper", "napo_q1"), enumerate(rates)
    ):
        value = 0.6 - 0.1 * i * (1 + (noise_kind == "leak")) + 0.02 * len(method)
        line = {"noise_kind": noise_kind, "method": method, "method_label": f"method {method}", "flip_rate": rate}
        line |= {"measure": "acc", "measure_label": "accuracy", "over": "bases", "seeds": "0"}
        rows.append(line | {"value": value, "lo": value - 0.05, "hi": value + 0.05})
    return pd.DataFrame(rows)


def training_frame():
    rows = []
    for method, kind, name, (noise_kind, rate), step in itertools.product(
        ("napo_paper", "napo_row_q"), ("rejected", *KINDS), ("q", "true", "gamma"), (("", 0.0), ("leak", 0.4)), (3, 8)
    ):
        line = {"method": method, "kind": kind, "name": name, "noise_kind": noise_kind, "flip_rate": rate}
        value = {"q": 0.5, "true": 0.2, "gamma": 0.3}[name] + rate / 10 + step / 100
        rows.append(line | {"step": step, "value": value, "lo": value - 0.02, "hi": value + 0.02, "over": "bases"})
    return pd.DataFrame(rows)


def forest_frame():
    rows = []
    for i, (c, measure) in enumerate(itertools.product(paper.COMPARISONS[:3], ("Acc_CB", "Acc_LP", "CHAIRs"))):
        value = np.nan if c.treatment == "mdpo" else 0.01 * i
        line = {"table": c.table, "label": c.label, "measure": measure, "measure_label": measure, "better": "higher"}
        rows.append(line | {"value": value, "lo": value - 0.03, "hi": value + 0.03, "paper": 0.1, "over": "bases"})
    return pd.DataFrame(rows)


def roc_frame():
    grid = np.linspace(0, 1, 11)
    parts = [
        pd.DataFrame({"kind": kind, "detector": name, "false_positives": grid, "true_positives": np.sqrt(grid)})
        for kind in KINDS
        for name in noise_plots.DETECTOR_STYLE
    ]
    return pd.concat(parts)


def levels_frame():
    rows = [
        {"kind": kind, "noise_kind": noise_kind, "rate": rate, "true": 0.2 + rate, "estimated": 0.15 + rate}
        | {"lo": 0.1 + rate, "hi": 0.22 + rate}
        for kind, noise_kind, rate in itertools.product(KINDS, ("swap", "leak"), (0.0, 0.2, 0.4))
    ]
    return pd.DataFrame(rows)


def posterior_figure():
    table = pd.DataFrame({"kind": ["rejected"] * 20, "evidence": np.linspace(-5, 5, 20), "posterior": 0.5})
    return noise_plots.posterior_by_evidence(table, {"rejected": {"rate": 0.25, "lo": 0.2, "hi": 0.31}})


def gamma_figure():
    return noise_plots.gamma_over_training(training_frame(), {"napo_paper": "the kit's rule"})


AUROC = {(kind, "right"): (0.97, 0.9, 0.99) for kind in KINDS}
FIGURES = {
    "noise_curves": lambda: noise_plots.noise_curves(curves_frame(), "acc"),
    "q": lambda: noise_plots.q_over_training(training_frame()),
    "gamma": gamma_figure,
    "forest": lambda: noise_plots.forest(forest_frame(), "Table 1"),
    "roc": lambda: noise_plots.roc(roc_frame(), detectors.NOISE_DETECTORS, AUROC),
    "levels": lambda: noise_plots.estimated_noise(levels_frame()),
    "posterior": posterior_figure,
    "note": lambda: noise_plots.note("Not run."),
}


@pytest.mark.parametrize("name", FIGURES)
def test_pictures_have_readme_width_and_nothing_is_cut_at_their_edges(name):
    check_picture(FIGURES[name]())


@pytest.mark.parametrize(
    ("draw", "text"),
    [
        (lambda: noise_plots.noise_curves(curves_frame(), "Cover"), "This profile injects no noise"),
        (lambda: noise_plots.q_over_training(training_frame().iloc[:0]), "No training with an adaptive q"),
        (lambda: noise_plots.gamma_over_training(training_frame(), {"napo_literal": "x"}), "weights that change"),
        (lambda: noise_plots.forest(NONE, "Table 2"), "Table 2: none of these was run"),
        (lambda: noise_plots.roc(NONE, {}), "truth of these rows is not known"),
        (lambda: noise_plots.estimated_noise(NONE), "truth of these rows is not known"),
    ],
)
def test_what_was_not_run_is_said_and_not_drawn(draw, text):
    figure = draw()
    assert not figure.axes and text in figure.texts[0].get_text()


def line(ax, label):
    return next(found for found in ax.lines if found.get_label().startswith(label))


def test_noise_curves_draw_both_kinds_and_the_control_in_every_panel():
    frame = curves_frame()
    panels = {ax.get_title("left"): ax for ax in FIGURES["noise_curves"]().axes if ax.axison}
    assert list(panels) == [f"method {name}" for name in ("dpo_all", "oracle", "napo_paper", "napo_q1")]
    ax = panels["method napo_paper"]
    for noise_kind in ("leak", "swap"):
        rows = frame[(frame["method"] == "napo_paper") & (frame["noise_kind"] == noise_kind)]
        np.testing.assert_allclose(line(ax, noise_kind).get_ydata(), rows["value"])
        np.testing.assert_allclose(line(ax, noise_kind).get_xdata(), [0, 20, 40])
    assert len(ax.lines) == 4 and len(panels["method dpo_all"].lines) == 2  # itself is not drawn twice
    assert len(ax.collections) == 2  # a band for each kind
    assert "seed 0 alone" in FIGURES["noise_curves"]().legends[0].get_title().get_text()


def test_a_kind_of_noise_that_was_not_injected_is_not_in_the_legend():
    frame = curves_frame()
    (legend,) = noise_plots.noise_curves(frame[frame["noise_kind"] == "leak"], "acc").legends
    assert [text.get_text().split(":")[0] for text in legend.get_texts()] == ["leak"]


def test_shares_stay_in_their_range_however_wide_the_bands():
    wide = curves_frame().assign(lo=-3.0, hi=4.0)
    lo, hi = noise_plots.noise_curves(wide, "acc").axes[0].get_ylim()
    assert lo >= -0.02 and hi <= 1.02


def test_q_stands_beside_the_true_share():
    ax = FIGURES["q"]().axes[0]
    frame = training_frame()
    here = frame[(frame["kind"] == "language_biased") & (frame["noise_kind"] == "")]
    truth = here[(here["name"] == "true") & (here["method"] == "napo_paper")]
    np.testing.assert_allclose(line(ax, "true share").get_ydata(), truth["value"])
    for method in ("napo_paper", "napo_row_q"):
        rows = here[(here["name"] == "q") & (here["method"] == method)]
        np.testing.assert_allclose(line(ax, noise_plots.Q_STYLE[method][2]).get_ydata(), rows["value"])


def test_forest_draws_ours_the_papers_and_what_was_not_run():
    figure = FIGURES["forest"]()
    ax, frame = figure.axes[0], forest_frame()
    rows = frame[frame["measure"] == "Acc_CB"]
    assert [t.get_text() for t in ax.get_yticklabels()] == list(rows["label"])
    ours = [found.get_xdata()[0] for found in ax.lines if found.get_marker() == "o"]
    assert ours == pytest.approx(rows["value"].dropna())
    papers = [found.get_xdata()[0] for found in ax.lines if found.get_marker() == "D"]
    assert papers == pytest.approx(rows["paper"])
    assert [t.get_text() for t in ax.texts] == [" not run"]


def test_forest_says_where_the_paper_has_no_difference():
    frame = forest_frame()
    frame.loc[(frame["measure"] == "Acc_CB") & (frame["label"] == "NaPO − DPO"), "paper"] = np.nan
    ax = noise_plots.forest(frame, "Table 1").axes[0]
    assert sorted(t.get_text() for t in ax.texts) == [" not run", " paper: two protocols"]
    assert len([found for found in ax.lines if found.get_marker() == "D"]) == 2


def test_the_estimate_is_drawn_against_the_truth():
    frame = levels_frame()
    ax = FIGURES["levels"]().axes[0]
    for container in ax.containers:
        noise_kind = container.get_label().split(",")[0]
        rows = frame[(frame["kind"] == "language_biased") & (frame["noise_kind"] == noise_kind)]
        assert list(container[0].get_xdata()) == pytest.approx(list(rows["true"]))
        assert list(container[0].get_ydata()) == pytest.approx(list(rows["estimated"]))
    assert len(ax.containers) == 2


def test_every_detector_of_the_report_has_a_style():
    assert set(noise_plots.DETECTOR_STYLE) | {"paper_right"} == set(detectors.NOISE_DETECTORS)
