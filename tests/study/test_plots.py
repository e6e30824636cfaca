"""napo.study.plots: draws what it is given, cuts no text at the edges, and touches nothing global."""

import subprocess
import sys

import matplotlib
import numpy as np
import pandas as pd
import pytest
from drawn import check_picture
from matplotlib.text import Text
from PIL import Image

from napo.study import plot_style, plots
from napo.study.plot_style import save

P = np.linspace(0.01, 0.99, 50)
KINDS = ("language_biased", "vision_biased")


def loss_family():
    losses = {0: -np.log(P), 0.5: (1 - P**0.5) / 0.5, 1: 1 - P}
    gradients = {0: P - 1, 0.5: -(P**0.5) * (1 - P), 1: -P * (1 - P)}
    return plots.loss_family(P, losses, gradients), losses, gradients


def noise_frame():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"kind": np.repeat(KINDS, 40), "is_noise": pd.array(([True] * 8 + [False] * 32) * 2, "boolean")}
    )
    for column in plots.MARGIN_LABELS:
        frame[column] = rng.normal(size=80)
    return frame


def steps_frame():
    frame = pd.DataFrame({"step": [1, 2, 3], "loss": [0.69, 0.6, 0.5]})
    for kind in ("rejected", *KINDS):
        frame["rewards/margins_" + kind] = [0.0, 0.5, 1.0]
        frame["noise/gamma_" + kind] = [1 / 3, 0.2, 0.5]
    return frame.assign(**{"noise/q_language_biased": [0.5, 0.4, 0.3]})


def estimates_frame():
    rows = [
        dict(
            method=method,
            method_label=method * 3,
            measure=measure,
            measure_label=measure,
            value=0.5,
            lo=0.4 if i else np.nan,
            hi=0.6,
            over="seeds",
        )
        for measure in ("acc", "cover", "chair", "length")
        for i, method in enumerate(("base", "dpo_all", "napo_paper"))
    ]
    return pd.DataFrame(rows)


def picture_rows(n, question="what colour is the ball ?"):
    answers = {"before": "yellow " * 40, "after": "red"}
    image = Image.new("RGB", (48, 48), "red")
    return [dict(image=image, question=question, answers=answers, good={"before": False, "after": True})] * n


def masks():
    images = {"image": Image.new("RGB", (48, 48), "red"), "none": None, "black": Image.new("RGB", (48, 48))}
    return plots.masks(images, {name: "a yellow banana lies on the table" for name in images})


AUROC = {(kind, column): (0.89, 0.85, 0.93) for kind in KINDS for column in plots.MARGIN_LABELS}
FIGURES = {
    "loss_family": lambda: loss_family()[0],
    "raw_margins": lambda: plots.margins_by_truth(noise_frame(), auroc=AUROC),
    "reward_margins": lambda: plots.margins_by_truth(noise_frame(), ("margin", "mean_margin"), AUROC),
    "training": lambda: plots.training_curves(steps_frame()),
    "comparison": lambda: plots.comparison(estimates_frame(), reference="base"),
    "pictures": lambda: plots.pictures(picture_rows(9), title="Answers before and after"),
    "masks": masks,
}


@pytest.mark.parametrize("name", FIGURES)
def test_pictures_have_readme_width_and_nothing_is_cut_at_their_edges(name):
    check_picture(FIGURES[name]())


def test_the_loss_figure_draws_what_it_is_given():
    figure, losses, gradients = loss_family()
    left, right = figure.axes
    for line, q in zip(left.lines, losses, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), losses[q])
    for line, q in zip(right.lines, gradients, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), -gradients[q])
    assert [t.get_text() for t in left.get_legend().get_texts()] == ["BCE (q → 0: DPO)", "q = 0.5", "MAE (q = 1)"]


def test_margin_titles_never_call_one_margin_the_other():
    raw, reward = FIGURES["raw_margins"](), FIGURES["reward_margins"]()
    words = [" ".join(t.get_text() for t in figure.findobj(Text)).lower() for figure in (raw, reward)]
    assert "raw margin" in words[0] and "reward" not in words[0]
    assert "reward margin" in words[1] and "raw" not in words[1]
    with pytest.raises(ValueError, match="do not share"):
        plots.margins_by_truth(noise_frame(), ("raw_margin", "margin"))


def test_without_any_known_truth_the_margins_are_still_shown():
    unknown = noise_frame().assign(is_noise=pd.array([None] * 80, "boolean"))
    nan = float("nan")
    axes = plots.margins_by_truth(unknown, auroc={("language_biased", "raw_margin"): (nan, nan, nan)}).axes
    assert [t.get_text() for t in axes[0].get_legend().get_texts()] == ["truth unknown (n = 40)"]
    assert axes[0].get_title(loc="right") == ""
    empty = plots.margins_by_truth(unknown.assign(raw_margin=nan)).axes[0]
    assert empty.get_legend().get_texts()[0].get_text() == "truth unknown (n = 0)"


def test_margins_show_group_sizes_and_the_computed_auroc_and_leave_out_unknown_truth():
    frame = noise_frame()
    frame.loc[0, "is_noise"] = pd.NA
    axes = plots.margins_by_truth(frame, auroc={("language_biased", "raw_margin"): (0.891, 0.85, 0.93)}).axes
    assert [t.get_text() for t in axes[0].get_legend().get_texts()] == ["noise-free (n = 32)", "noise (n = 7)"]
    assert axes[0].get_title(loc="right") == "AUROC 0.89 [0.85, 0.93]" and axes[1].get_title(loc="right") == ""


def test_a_method_without_q_says_so():
    steps = steps_frame().drop(columns="noise/q_language_biased")
    figure = plots.training_curves(steps)
    assert [t.get_text() for t in figure.axes[2].texts] == ["not used by this method"]
    np.testing.assert_array_equal(figure.axes[1].lines[1].get_ydata(), steps["rewards/margins_language_biased"])


def test_comparison_draws_intervals_only_where_there_are_any():
    axes = FIGURES["comparison"]().axes
    bars = [line for line in axes[0].lines if len(line.get_xdata()) == 2 and list(line.get_xdata()) == [0.4, 0.6]]
    assert len(bars) == 2 and axes[0].get_title(loc="left") == "acc"
    assert axes[0].yaxis_inverted() and [t.get_text() for t in axes[0].get_yticklabels()][0] == "basebasebase"


def test_comparison_marks_every_napo_method_whatever_its_row_is_called():
    frame = estimates_frame().query("measure == 'acc'").assign(method=["base", "dpo_all", "lb_napo"])
    axes = plots.comparison(frame.assign(method_label=["base", "DPO", "NaPO, no vision"])).axes
    assert [line.get_marker() for line in axes[0].lines if line.get_marker() != "None"] == ["o", "o", "D"]


def test_comparison_says_what_its_intervals_are_over():
    frame = estimates_frame()
    assert plots.comparison(frame).get_suptitle() == "Means with 95 % intervals over seeds"
    assert plots.comparison(frame.assign(lo=np.nan, hi=np.nan)).get_suptitle() == "Single runs, no intervals"


@pytest.mark.parametrize("image", [Image.new("L", (8, 8), 100), np.full((8, 8), 100, np.uint8), Image.new("P", (8, 8))])
def test_grey_and_palette_images_are_shown_in_their_own_colours(image):
    drawn = plots.pictures([{"image": image, "question": "?", "answers": {}}]).findobj(matplotlib.image.AxesImage)
    red, green, blue, _ = drawn[0].make_image(None, unsampled=True)[0][0, 0]
    assert red == green == blue == (0 if getattr(image, "mode", "") == "P" else 100)


def test_pictures_shows_at_most_nine_and_marks_what_it_cuts():
    figure = plots.pictures(picture_rows(12))
    assert len(figure.findobj(matplotlib.image.AxesImage)) == 9
    words = [t.get_text() for t in figure.findobj(Text)]
    assert (
        sum(word.endswith(" …") for word in words) == 9 and sum(word.startswith("✓ after: red") for word in words) == 9
    )


def test_pictures_are_the_same_bytes_whatever_the_session_has_set(tmp_path):
    first = plot_style.png(FIGURES["masks"]())
    with matplotlib.rc_context({"font.size": 30, "axes.grid": False}):
        second = plot_style.png(FIGURES["masks"]())
    assert first == second == FIGURES["masks"]()._repr_png_()
    assert save(FIGURES["masks"](), tmp_path / "new" / "masks.png") is not None
    assert (tmp_path / "new" / "masks.png").read_bytes() == first
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["masks.png"]


@pytest.mark.parametrize("text", ["price $x^{$ ok", r"$\foo$", "$5 and $10", "\x1b[31m\x00red"])
def test_a_text_is_no_formula_and_no_terminal_code(text):
    row = {"image": Image.new("RGB", (8, 8)), "question": text, "answers": {"chosen": text}}
    for figure in (plots.pictures([row]), plots.masks({"none": None}, {"none": text})):
        plot_style.png(figure)
        words = [t.get_text() for t in figure.findobj(Text) if not t.get_parse_math()]
        assert any(word.endswith(text.replace("\x1b", r"\x1b").replace("\x00", r"\x00")) for word in words)


def test_plots_need_neither_pyplot_nor_torch_nor_the_rest_of_napo():
    code = "import sys, napo.study.plots, napo.stats.measures; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    rooms = {"napo.study", "napo.stats", "napo.workshop"}
    files = {"napo.study.plot_style", "napo.study.plots", "napo.stats.measures", "napo.stats.intervals"}
    workshop = {"napo.workshop.files", "napo.workshop.texts"}
    assert {m for m in modules if m.startswith("napo.")} == rooms | files | workshop
    assert not modules & {"matplotlib.pyplot", "torch"}
