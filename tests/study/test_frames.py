"""napo.study.frames: frames by hand - differences under noise, curves, q against the truth, the paper's tables, ROC."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from small_report import some_scores

from napo import profiles
from napo.comparison.cells import cell_folder
from napo.evaluation import evaluate
from napo.methods import METHODS
from napo.noise import detectors
from napo.profiles import Cell
from napo.stats import measures
from napo.study import frames, paper, report, sections
from napo.workshop.files import BadInput

COLUMNS = [*measures.RUN, "benchmark", "metric", "example_id", "question_kind", "value"]


def study(**found):
    """A Study of these frames, the others empty."""
    empty = {field.name: pd.DataFrame() for field in dataclasses.fields(sections.Study)}
    return sections.Study(**empty | found)


def text_of(title, **found):
    return dict(sections.texts(study(**found)))[title]


def scores_of(method, base, seed, flip_rate, right, n=10):
    """`right` of n counterfactual questions answered rightly."""
    key = (method, base, seed, flip_rate, "vqa_counterfactual", "accuracy")
    return [(*key, str(i), "", float(i < right)) for i in range(n)]


@pytest.fixture(scope="module")
def scores():
    return some_scores()


@pytest.fixture
def profile(monkeypatch):
    """Two bases, two methods under noise at 0 and 0.4: swaps cost DPO four questions and q = 1 one, leaks nothing."""
    chosen = dataclasses.replace(
        profiles.PROFILES["study"],
        bases=(0, 1),
        seeds=(0, 1),
        noisy_seeds=(0,),
        methods=("base", "dpo_all", "napo_q1", "sft"),
        noisy_methods=("dpo_all", "napo_q1"),
        flip_rates=(0.0, 0.4),
    )

    def load(profile, runs_dir, noise_kind):
        assert set(profile.methods) == {"dpo_all", "napo_q1"} and profile.seeds == (0,)  # no cell more is read
        rows = []
        for base in (0, 1):
            for method, lost in (("dpo_all", 4), ("napo_q1", 1)):
                rows += scores_of(method, base, 0, 0.0, 8 + base)
                rows += scores_of(method, base, 0, 0.4, 8 + base - (lost if noise_kind == "swap" else 0))
        return pd.DataFrame(rows, columns=COLUMNS)

    monkeypatch.setattr(evaluate, "load_scores", load)
    return chosen


def test_noise_curves_compare_the_seeds_that_have_all_rates(profile):
    curves = frames.noise_curves(profile, measures=("acc_counterfactual",)).set_index(
        ["noise_kind", "flip_rate", "method"]
    )
    assert set(curves["measure"]) == {"acc_counterfactual"} and len(curves) == 2 * 2 * 2
    swapped = curves.loc[("swap", 0.4, "napo_q1")]
    assert swapped["value"] == pytest.approx(0.75) and swapped["n_bases"] == 2
    assert swapped["gain"] == pytest.approx(0.3) and swapped["gain_lo"] == pytest.approx(0.3)
    assert curves.loc[("swap", 0.0, "napo_q1"), "value"] == pytest.approx(0.85)  # seed 1 has no noisy runs: left out
    assert curves.loc[("leak", 0.4, "napo_q1"), "gain"] == pytest.approx(0)
    assert curves.loc[("swap", 0.4, "dpo_all"), "gain"] == 0


def test_without_injected_noise_there_are_no_curves(profile):
    without = dataclasses.replace(profile, flip_rates=(0.0,))
    assert frames.noise_curves(without).empty
    assert text_of("Methods under noise", curves=frames.noise_curves(without)) == sections.NO_NOISE


def test_the_page_states_every_difference_and_their_number(profile):
    curves = frames.noise_curves(profile)
    text = text_of("Methods under noise", curves=curves)
    assert "| method | none | leak 40% | swap 40% |" in text
    assert "| fixed q = 1, equal weights | 0.00 [0.00, 0.00] | 0.00 [0.00, 0.00] | 0.30 [0.30, 0.30] |" in text
    assert "6 comparisons; none is corrected" in text  # of two measures: all questions here are counterfactual
    counted = sections.comparisons(study(curves=curves, estimates=pd.DataFrame({"value": [0.1, 0.2]})))
    assert list(counted.values()) == [6, 2, 0]
    assert "with seed 0 alone" in text and f"under {sections.MOST_CELLS} trainings" in text
    assert "alone" not in text_of("Methods under noise", curves=curves.assign(seeds="0, 1"))


def write_steps(folder, q, true, gamma=0.5):
    folder.mkdir(parents=True)
    lines = [
        {"step": i + 1, "loss": 0.5, "noise/q_language_biased": a, "noise/true_language_biased": b}
        | {"noise/gamma_language_biased": gamma}
        for i, (a, b) in enumerate(zip(q, true, strict=True))
    ]
    (folder / "steps.jsonl").write_text("\n".join(map(json.dumps, lines)))


@pytest.fixture
def trainings(profile, tmp_path):
    """Steps of the paper's and the authors' method on two bases: q follows the noise on base 0, and not on base 1."""
    chosen = dataclasses.replace(profile, methods=("napo_paper", "napo_authors"), noisy_methods=("napo_paper",))
    true = np.tile([0.1, 0.3], 12)
    for cell in chosen.cells():
        q = 0.4 + (true if cell.base == 0 else -true) / 10
        write_steps(cell_folder(chosen, cell, tmp_path), q, true)
    return chosen, tmp_path


def test_steps_hold_what_was_logged_and_the_rate_that_a_q_names(trainings):
    profile, runs = trainings
    watched = frames.steps(profile, ("napo_paper", "napo_authors"), runs)
    assert set(watched["name"]) == {"q", "gamma", "true"} and set(watched["kind"]) == {"language_biased"}
    first = watched[watched["step"] == 1].set_index(["method", "base", "seed", "noise_kind", "flip_rate", "name"])
    assert first.loc[("napo_paper", 0, 0, "", 0.0, "q"), "value"] == pytest.approx(0.41)
    assert first.loc[("napo_authors", 0, 0, "", 0.0, "q"), "value"] == pytest.approx(0.205)
    assert first.loc[("napo_paper", 1, 0, "leak", 0.4, "q"), "value"] == pytest.approx(0.39)
    runs_of = watched.groupby(["method", "base", "seed", "noise_kind"]).ngroups
    assert runs_of == 2 * 2 * 2 + 2 * 2  # clean ones of both; the paper's with swaps and leaks


def test_curves_are_means_of_neighbouring_steps_over_bases(trainings):
    profile, runs = trainings
    over = frames.over_training(frames.steps(profile, ("napo_paper",), runs))
    clean = over[(over["name"] == "true") & (over["noise_kind"] == "")]
    assert len(clean) == frames.POINTS and clean["step"].iloc[:2].tolist() == [1.5, 3.5]
    assert clean["value"].tolist() == pytest.approx([0.2] * frames.POINTS)
    q = over[(over["name"] == "q") & (over["noise_kind"] == "")]
    assert q["value"].iloc[0] == pytest.approx(0.4) and q["lo"].iloc[0] < 0.4 < q["hi"].iloc[0]


def test_q_use_says_how_far_q_moves_and_whether_with_the_noise(trainings):
    profile, runs = trainings
    use = frames.q_use(frames.steps(profile, ("napo_paper",), runs)).set_index("noise_kind").loc[""]
    assert (use["q_lo"], use["q_hi"]) == pytest.approx((0.37, 0.43)) and use["q"] == pytest.approx(0.4)
    assert use["true"] == pytest.approx(0.2)
    assert use["correlation"] == pytest.approx(0) and use["lo"] == pytest.approx(0 - 12.706, rel=1e-3)  # +1 and -1
    constant = frames.steps(profile, ("napo_paper",), runs).assign(value=0.5)
    assert frames.q_use(constant)["correlation"].isna().all()


def test_no_watched_training_gives_empty_frames(trainings):
    profile, runs = trainings
    watched = frames.steps(profile, ("napo_row_q",), runs)
    assert watched.empty and frames.over_training(watched).empty and frames.q_use(watched).empty


def vlind(method, base, cb):
    values = {"CB": cb, "LP": 5, "CK": 10, "VP": 10}
    return [
        (method, base, 0, 0.0, "vlind", metric, str(i), "", float(i < n))
        for metric, n in values.items()
        for i in range(10)
    ]


def test_paper_tables_set_our_difference_beside_the_papers():
    rows = [r for base in (0, 1) for m, cb in (("napo_paper", 7), ("dpo_original", 4)) for r in vlind(m, base, cb)]
    table = frames.paper_tables(pd.DataFrame(rows, columns=COLUMNS)).set_index(["label", "measure"])
    found = table.loc[("NaPO − DPO", "Acc_CB")]
    assert found["value"] == pytest.approx(0.3) and found["paper"] == pytest.approx(0.589 - 0.394)
    assert found["n_bases"] == 2
    assert np.isnan(table.loc[("mDPO − DPO", "Acc_CB"), "value"])
    assert set(table.index.get_level_values("measure")) == {"Acc_CB", "Acc_LP"}  # no captions were scored
    assert {c.label for c in paper.COMPARISONS} == set(table.index.get_level_values("label"))
    text = text_of(sections.TABLES, tables=table.reset_index())
    assert "| 1 | NaPO − DPO | Acc_CB ↑ | 0.300 [0.300, 0.300] | 0.195 |" in text
    assert "| 1 | mDPO − DPO | Acc_CB ↑ | – | −0.391 |" in text
    assert "2 comparisons of ours, none corrected" in text and paper.MISPRINT in text
    assert "MMHal-Bench needs a chat model as judge and has no counterpart in the desk world" in text
    assert "without a line: CHAIR_s, CHAIR_i, AMBER CHAIR, AMBER Cover" in text and "Two protocols" not in text


def test_a_copied_row_of_the_paper_has_no_difference_and_the_page_says_why():
    captions = {"hallucinated": 1.0, "mentioned": 4.0}
    rows = [
        (method, 0, 0, 0.0, "objhal", metric, str(i), "", value)
        for method in ("base", "dpo_original") for metric, value in captions.items() for i in range(10)
    ]  # fmt: skip
    table = frames.paper_tables(pd.DataFrame(rows, columns=COLUMNS))
    found = table.set_index("label").loc["base model − DPO"]
    assert found["value"] == 0 and np.isnan(found["paper"])
    text = text_of(sections.TABLES, tables=table)
    assert "| 1 | base model − DPO | CHAIR_i ↓ | 0.000 | – |" in text and "Two protocols have no difference" in text


def test_roc_by_hand():
    """Two noisy rows of value 1 and 3, two good ones of 2 and 4, on one base."""
    frame = pd.DataFrame(
        {"base": 0, "kind": "language_biased", "part": "measured", "question_kind": ""}, index=range(4)
    )
    frame["is_noise"] = pd.array([True, True, False, False], "boolean")
    frame = frame.assign(raw_margin=[1.0, 3.0, 2.0, 4.0], raw_mean_margin=0.0, margin=0.0, mean_margin=0.0)
    curves = frames.roc(frame.assign(n_tokens=5, equals_chosen=False))
    raw = curves[curves["detector"] == "raw_margin"].set_index("false_positives")["true_positives"]
    assert (raw.iloc[0], raw.loc[0.5], raw.iloc[-1]) == (0.5, 1.0, 1.0)
    flat = curves[curves["detector"] == "n_tokens"]
    np.testing.assert_allclose(flat["true_positives"], flat["false_positives"])
    area = np.trapezoid(raw.to_numpy(), raw.index)
    of_table = detectors.noise_table(frame.assign(n_tokens=5, equals_chosen=False), np.random.default_rng(0))
    assert area == pytest.approx(of_table.set_index("detector").loc["raw_margin", "auroc"], abs=0.01)
    one_label = frame.assign(n_tokens=5, equals_chosen=False, is_noise=pd.array([True] * 4, "boolean"))
    assert frames.roc(one_label).empty


def test_every_method_that_is_shown_exists():
    assert {*report.CORE, *frames.WATCHED, *frames.COMPARED.values()} <= METHODS.keys()
    assert set(frames.UNDER_NOISE) <= measures.MEASURES.keys()


def test_the_cells_of_the_study_hold_what_its_figures_need():
    cells = set(profiles.PROFILES["study"].cells())
    for noise_kind in profiles.NOISE_KINDS:
        for rate in profiles.NOISE_LEVELS[1:]:
            assert Cell(frames.CONTROL, 0, 0, rate, noise_kind) in cells


def test_the_list_is_as_short_as_the_report_says_and_would_not_be_with_every_seed():
    whole = profiles.PROFILES["study"]
    assert len(whole.cells()) < sections.MOST_CELLS < len(dataclasses.replace(whole, noisy_seeds=()).cells())


def pope(method, right, seed=0):
    """One run's answers to POPE."""
    rows = [(method, 0, seed, 0.0, "pope", "accuracy", str(i), "", float(value)) for i, value in enumerate(right)]
    return pd.DataFrame(rows, columns=COLUMNS)


def test_results_table_has_the_right_interval_for_each_method_and_every_reported_number():
    one = pope("one", [1, 0, 1, 1])
    several = [pope("many", v, i) for i, v in enumerate(([1, 0], [1, 1]))]
    beside = [
        {"measure": "POPE_acc", "paper_row": row, "table": "1", "paper": 0.5, "differs": why}
        for row, why in (("x", ""), ("y", "other data"))
    ]
    table = frames.results_table(pd.concat([one, *several]), np.random.default_rng(0), beside)
    assert list(table.columns) == frames.RESULT_COLUMNS
    assert table[["method", "over", "n", "paper_row"]].to_numpy().tolist() == [
        ["one", "examples", 4, "x"],
        ["one", "examples", 4, "y"],
        ["many", "seeds", 2, "x"],
        ["many", "seeds", 2, "y"],
    ]
    assert table["value"].tolist() == [0.75, 0.75, 0.75, 0.75]
    assert frames.results_table(one, np.random.default_rng(0))["paper"].isna().all()


def test_estimates_by_hand(scores):
    table = frames.estimates(scores).set_index(["method", "measure"])
    napo = table.loc[("napo_paper", "acc_counterfactual")]
    half = 12.7062 * 0.1 / 2  # t(.975, 1) * sd / sqrt(2), sd = 0.1 / sqrt(2)
    assert (napo["value"], napo["hi"] - napo["value"]) == pytest.approx((0.55, half), abs=1e-4)
    assert (napo["over"], napo["n_seeds"], napo["method_label"]) == ("seeds", 2, "NaPO (paper)")
    assert table.loc[("base", "CHAIRi"), "value"] == 0.25 and np.isnan(table.loc[("base", "CHAIRi"), "lo"])
    assert list(table.index.get_level_values(0).unique()) == ["base", "dpo_original", "napo_paper"]
    assert "pref_rejected" not in table.index.get_level_values(1)


def test_development_bases_and_swapped_labels_stay_out_of_the_tables(scores):
    other = scores[scores.method == "napo_paper"].assign(value=0.0)
    both = pd.concat([scores, other.assign(base=100), other.assign(flip_rate=0.4)])
    pd.testing.assert_frame_equal(frames.estimates(both), frames.estimates(scores))


def test_tables_at_a_flip_rate_show_the_untrained_base_beside_it(scores):
    flipped = scores[(scores.method == "napo_paper") & (scores.metric == "CB")].assign(value=0.0, flip_rate=0.4)
    table = frames.estimates(pd.concat([scores, flipped]), ("Acc_CB",), flip_rate=0.4)
    assert table.set_index("method")["value"].to_dict() == {"base": 0.5, "napo_paper": 0.0}


def run(method, values, benchmark="pope", metric="accuracy"):
    """A run whose examples have these values."""
    rows = [(method, 0, 0, 0.0, benchmark, metric, str(i), "", float(value)) for i, value in enumerate(values)]
    return pd.DataFrame(rows, columns=COLUMNS)


def ability(before, after, name="POPE_acc"):
    return frames.general_ability(frames.paired(after, before, np.random.default_rng(0))).loc[name]


def test_a_loss_a_gain_and_a_draw_are_told_apart():
    base = run("base", [1] * 80 + [0] * 20)
    fell = ability(base, run("napo", [1] * 60 + [0] * 40))
    assert fell["verdict"] == "fell" and fell["value"] == pytest.approx(-0.2) and fell["hi"] < 0
    assert (fell["before"], fell["after"], fell["n_examples"]) == (pytest.approx(0.8), pytest.approx(0.6), 100)
    assert ability(base, run("napo", [1] * 95 + [0] * 5))["verdict"] == "rose"
    assert ability(base, run("napo", [0] + [1] * 79 + [1] + [0] * 19))["verdict"] == "no change seen"


def test_log_probs_of_chosen_answers_are_guarded_in_nats():
    values = -1 - np.random.default_rng(0).random(200)
    before, after = (
        run(m, v, "heldout_pairs", "chosen_logps_per_token") for m, v in (("base", values), ("x", values - 0.3))
    )
    found = ability(before, after, "chosen_logp")
    assert found["verdict"] == "fell" and found["value"] == pytest.approx(-0.3)


def test_what_was_not_asked_is_said_and_not_made_up():
    compared = frames.paired(run("napo", [1, 0, 1]), run("base", [1, 0, 1]), np.random.default_rng(0))
    table = frames.general_ability(compared)
    assert tuple(table.index) == frames.GUARDED and list(compared) == frames.PAIRED_COLUMNS
    assert list(table["verdict"])[1:] == ["not asked", "not asked"] and table["before"].isna().sum() == 2
    assert table["label"].iloc[0] == "POPE accuracy" and table["label"].notna().all()
    nothing = frames.paired(compared.iloc[:0].reindex(columns=COLUMNS), run("x", []), np.random.default_rng(0))
    assert nothing.empty and set(frames.general_ability(nothing)["verdict"]) == {"not asked"}


def test_runs_on_other_examples_are_refused():
    with pytest.raises(BadInput, match="not the same examples.*run notebook 04 again"):
        ability(run("base", [1, 0, 1]), run("napo", [1, 0]))
    with pytest.raises(BadInput, match="one run on each side; run notebook 04 again"):
        ability(run("base", [1, 0, 1]), run("napo", [1, 0, 1], benchmark="vlind"))
