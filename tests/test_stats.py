"""napo.stats against hand-worked numbers, SciPy and scikit-learn."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats
from sklearn.metrics import roc_auc_score

from napo import auroc, stats


def long_scores(values, benchmark="objhal", method="m", base=0, seed=0, flip_rate=0.0):
    """{metric: [value per example]} -> long frame of one run."""
    rows = [
        dict(method=method, base=base, seed=seed, flip_rate=flip_rate, benchmark=benchmark, metric=metric,
             example_id=str(i), question_kind="", value=float(v))
        for metric, column in values.items() for i, v in enumerate(column)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def runs(values):
    """{(method, base, seed): value} -> frame of runs without flips."""
    rows = [dict(method=m, base=b, seed=s, flip_rate=0.0, value=v) for (m, b, s), v in values.items()]
    return pd.DataFrame(rows)


def test_a_ratio_is_formed_per_run_not_per_example():
    scores = pd.concat(
        [
            long_scores({"hallucinated": [0, 3], "mentioned": [1, 3]}, seed=0),  # 3 / 4, not the mean of 0 and 1
            long_scores({"hallucinated": [1, 0], "mentioned": [2, 8]}, seed=1),
        ]
    )
    values = stats.run_values(scores, stats.MEASURES["CHAIRi"]).set_index("seed")["value"]
    assert values.to_dict() == {0: 0.75, 1: 0.1}


def test_vlind_columns_by_hand():
    item = {"CK": [1, 1, 1, 0], "VP": [1, 0, 1, 1], "CB": [1, 1, 0, 1], "LP": [0.5, 1, 1, 1]}
    scores = long_scores(item, benchmark="vlind")
    vlind = {name: measure for name, measure in stats.MEASURES.items() if measure.benchmarks == stats.VLIND}
    got = {name: stats.run_values(scores, measure)["value"].item() for name, measure in vlind.items()}
    # passes CK: items 0-2, of these CB: 0 and 1; passes CK, CB and VP: item 0, whose LP is 0.5
    assert got == {"S_CK": 0.75, "S_VP": 0.75, "S_CB": 2 / 3, "S_LP": 0.5, "Acc_CB": 0.75, "Acc_LP": 0.875}


def test_a_ratio_over_nothing_is_nan_for_chair_and_0_for_vlind_as_upstream():
    silent = long_scores({"hallucinated": [0, 0], "mentioned": [0, 0]})
    assert math.isnan(stats.run_values(silent, stats.MEASURES["CHAIRi"])["value"].item())
    failed = long_scores({"CK": [0], "VP": [1], "CB": [1], "LP": [1]}, benchmark="vlind")
    assert stats.run_values(failed, stats.MEASURES["S_LP"])["value"].item() == 0.0


def test_a_measure_over_two_benchmarks_keeps_equal_example_ids_apart():
    factual, counterfactual = stats.VQA
    scores = pd.concat([long_scores({"accuracy": [1, 1]}, factual), long_scores({"accuracy": [0, 1]}, counterfactual)])
    assert stats.run_values(scores, stats.MEASURES["acc_overall"])["value"].item() == 0.75
    assert stats.run_values(scores, stats.MEASURES["acc_counterfactual"])["value"].item() == 0.5


def test_run_values_refuses_doubles_and_gaps():
    scores = long_scores({"hallucinated": [0, 3], "mentioned": [1, 3]})
    with pytest.raises(ValueError, match="scored twice"):
        stats.run_values(pd.concat([scores, scores]), stats.MEASURES["CHAIRi"])
    with pytest.raises(ValueError, match="without gaps"):
        stats.run_values(scores.iloc[:-1], stats.MEASURES["CHAIRi"])
    assert stats.run_values(scores, stats.MEASURES["Acc_LP"]).empty


def test_t_interval_is_scipys():
    values = [0.1, 0.3, 0.2, 0.7]
    expected = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.95)
    mean, lo, hi = stats.t_interval(values)
    assert (mean, lo, hi) == pytest.approx((0.325, expected.low, expected.high), abs=1e-12)
    assert math.isnan(stats.t_interval([0.4])[1])


def test_seeds_are_averaged_within_bases_before_the_interval():
    # base means 0.2 and 0.4 although base 1 has one run only: mean 0.3, half-width t(.975, 1) * 0.1 = 12.706 * 0.1
    frame = runs({("m", 0, 0): 0.1, ("m", 0, 1): 0.3, ("m", 1, 0): 0.4})
    got = stats.estimate(frame)
    assert (got.value, got.over, got.n_bases, got.n_seeds) == (pytest.approx(0.3), "bases", 2, 1)
    assert (got.hi - got.lo) / 2 == pytest.approx(1.27062, abs=1e-5)


def test_one_base_gives_an_interval_over_seeds_and_says_so():
    got = stats.estimate(runs({("m", 7, s): v for s, v in enumerate([0.1, 0.2, 0.3])}))
    assert (got.over, got.n_bases, got.n_seeds) == ("seeds", 1, 3)
    half = 4.30265 * 0.1 / math.sqrt(3)
    assert (got.lo, got.hi) == pytest.approx((0.2 - half, 0.2 + half), abs=1e-5)
    single = stats.estimate(runs({("m", 7, 0): 0.1}))
    assert single.value == 0.1 and math.isnan(single.lo) and single.n_seeds == 1


def test_mixed_runs_are_refused():
    with pytest.raises(ValueError, match="one method and one flip rate"):
        stats.estimate(runs({("m", 0, 0): 0.1, ("n", 0, 0): 0.3}))


def test_paired_difference_pairs_seeds_and_drops_unmatched_ones():
    frame = runs({("a", 0, 0): 0.9, ("a", 0, 1): 0.5, ("a", 0, 2): 0.0, ("b", 0, 0): 0.6, ("b", 0, 1): 0.1})
    assert stats.differences(frame, "a", "b")["value"].tolist() == pytest.approx([0.3, 0.4])
    assert stats.paired_difference(frame, "a", "b").value == pytest.approx(0.35)
    assert stats.differences(frame, "a", "missing").empty
    assert math.isnan(stats.paired_difference(frame, "a", "missing").value)


def test_the_untrained_base_stands_beside_every_seed_and_every_flip_rate():
    frame = runs({("base", 0, 0): 0.2, ("a", 0, 0): 0.5, ("a", 0, 1): 0.3})
    assert stats.differences(frame, "a", "base")["value"].tolist() == pytest.approx([0.3, 0.1])
    assert stats.differences(frame, "base", "a")["value"].tolist() == pytest.approx([-0.3, -0.1])
    flipped = pd.concat([frame, frame[frame.method == "a"].assign(flip_rate=0.4, value=0.9)])
    assert stats.differences(flipped, "a", "base", 0.4)["value"].tolist() == pytest.approx([0.7, 0.7])


def test_tost_agrees_with_the_interval_and_with_scipy():
    values = np.array([0.01, -0.02, 0.015, 0.0, 0.005])
    p = stats.tost_p(values, 0.05)
    assert p == pytest.approx(scipy_stats.ttest_1samp(values, 0.05, alternative="less").pvalue)
    for margin in (0.01, 0.018, 0.019, 0.03):
        _, lo, hi = stats.t_interval(values)
        assert (stats.tost_p(values, margin) < 0.025) == (-margin < lo and hi < margin)
    assert stats.tost_p([0.2, 0.2], 0.05) == 1.0 and stats.tost_p([0.0, 0.0], 0.05) == 0.0
    with pytest.raises(ValueError, match="positive"):
        stats.tost_p(values, 0)


def test_rate_has_wilsons_interval():
    got = stats.rate(8, 10)  # Wilson by hand: (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)
    assert (got.value, got.lo, got.hi) == pytest.approx((0.8, 0.490162, 0.943318), abs=1e-6)
    assert stats.rate(0, 20, method="exact").hi == pytest.approx(1 - 0.025 ** (1 / 20))
    assert math.isnan(stats.rate(0, 0).value)


def test_auroc_is_sklearns_with_ties():
    rng = np.random.default_rng(0)
    label = rng.random(300) < 0.3
    score = np.round(rng.normal(size=300) + label, 1)  # rounding makes ties
    got = auroc.auroc(score, label, rng)
    assert got.value == pytest.approx(roc_auc_score(label, score), abs=1e-12)
    assert got.lo < got.value < got.hi and got.over == "rows" and got.n_rows == 300
    again = auroc.auroc(score, label, np.random.default_rng(0)), auroc.auroc(score, label, np.random.default_rng(0))
    assert again[0] == again[1]


def test_auroc_interval_width_agrees_with_hanley_mcneil():
    rng = np.random.default_rng(1)
    positive, negative = rng.normal(1, 1, 100), rng.normal(0, 1, 200)
    got = auroc.auroc(np.r_[positive, negative], np.r_[np.ones(100), np.zeros(200)], rng, resamples=2000)
    a = got.value
    variance = (a * (1 - a) + 99 * (a / (2 - a) - a * a) + 199 * (2 * a * a / (1 + a) - a * a)) / (100 * 200)
    assert (got.hi - got.lo) / 2 == pytest.approx(1.96 * math.sqrt(variance), rel=0.15)


def test_stratified_auroc_does_not_reward_knowing_the_stratum():
    # within each stratum the score is useless (0.5); between them it separates perfectly
    score = np.r_[np.tile([0.0, 1.0], 50), np.tile([10.0, 11.0], 50)]
    label = np.r_[np.tile([0, 0, 0, 0, 0, 0, 0, 0, 1, 1], 10), np.tile([1, 1, 1, 1, 1, 1, 1, 1, 0, 0], 10)]
    strata = np.repeat(["a", "b"], 100)
    rng = np.random.default_rng(0)
    assert auroc.auroc(score, label, rng).value == pytest.approx(0.8)
    assert auroc.auroc(score, label, rng, strata=strata).value == pytest.approx(0.5)


def test_separation_does_not_pretend_to_certainty():
    rng = np.random.default_rng(0)
    few = auroc.auroc([3, 4, 0, 1, 2], [1, 1, 0, 0, 0], rng)
    many = auroc.auroc(np.arange(400), np.arange(400) >= 200, rng)
    assert few.value == many.value == few.hi == 1.0
    assert few.lo < 0.6 and 0.97 < many.lo < 1
    reverse = auroc.auroc([3, 4, 0, 1, 2], [0, 0, 1, 1, 1], rng)
    assert (reverse.lo, reverse.hi) == pytest.approx((0.0, 1 - few.lo), abs=1e-6)
    assert math.isnan(auroc.auroc([1, 2], [1, 1], rng).value)


# ---- over examples --------------------------------------------------------------------------------------------------


def test_a_share_of_examples_has_wilsons_interval():
    scores = long_scores({"accuracy": [1] * 8 + [0] * 2}, "pope")
    got = stats.over_examples(scores, stats.MEASURES["POPE_acc"], np.random.default_rng(0))
    assert (got.value, got.lo, got.hi) == pytest.approx((0.8, 0.490162, 0.943318), abs=1e-6)
    assert (got.over, got.n_rows) == ("examples", 10)
    percent = long_scores({"Hal": [1] * 8 + [0] * 2}, "amber")
    got = stats.over_examples(percent, stats.MEASURES["AMBER_Hal"], np.random.default_rng(0))
    assert (got.value, got.lo, got.hi) == pytest.approx((80, 49.0162, 94.3318), abs=1e-4)


def test_a_conditional_share_counts_only_those_that_got_so_far():
    item = {"CK": [1] * 10 + [0] * 30, "CB": [1] * 8 + [0] * 2 + [1] * 30}
    got = stats.over_examples(long_scores(item, "vlind"), stats.MEASURES["S_CB"], np.random.default_rng(0))
    assert (got.value, got.lo, got.hi) == pytest.approx((0.8, 0.490162, 0.943318), abs=1e-6)
    nobody = {"CK": [0] * 4, "CB": [1] * 4}
    got = stats.over_examples(long_scores(nobody, "vlind"), stats.MEASURES["S_CB"], np.random.default_rng(0))
    assert got.value == 0 and math.isnan(got.lo)


def test_bootstrap_of_a_ratio_is_as_wide_as_the_delta_method_says():
    rng = np.random.default_rng(1)
    mentioned = rng.integers(1, 6, 400)
    hallucinated = rng.binomial(mentioned, 0.3)
    scores = long_scores({"hallucinated": hallucinated, "mentioned": mentioned})
    got = stats.over_examples(scores, stats.MEASURES["CHAIRi"], np.random.default_rng(0))
    residual = hallucinated - got.value * mentioned
    half = 1.96 * residual.std(ddof=1) / math.sqrt(400) / mentioned.mean()
    assert got.value == hallucinated.sum() / mentioned.sum()
    assert (got.hi - got.lo) / 2 == pytest.approx(half, rel=0.1)
    again = stats.over_examples(scores, stats.MEASURES["CHAIRi"], np.random.default_rng(0))
    assert (again.lo, again.hi) == (got.lo, got.hi)


def test_nothing_hallucinated_has_no_bootstrap_interval():
    silent = long_scores({"hallucinated": [0] * 20, "mentioned": [2] * 20})
    got = stats.over_examples(silent, stats.MEASURES["CHAIRi"], np.random.default_rng(0))
    assert got.value == 0 and math.isnan(got.lo) and math.isnan(got.hi)


def test_over_examples_refuses_two_runs():
    scores = pd.concat([long_scores({"accuracy": [1, 0]}, "pope", seed=seed) for seed in (0, 1)])
    with pytest.raises(ValueError, match="2 runs: select one"):
        stats.over_examples(scores, stats.MEASURES["POPE_acc"], np.random.default_rng(0))


def test_mcnemar_by_hand_and_paired_interval():
    # 100 questions: both right 60, only the treatment 15, only the control 5, neither 20
    treatment = long_scores({"accuracy": [1] * 60 + [1] * 15 + [0] * 5 + [0] * 20}, "pope", method="a")
    control = long_scores({"accuracy": [1] * 60 + [0] * 15 + [1] * 5 + [0] * 20}, "pope", method="b")
    got = stats.paired_examples(treatment, control, stats.MEASURES["POPE_acc"], np.random.default_rng(0))
    exact = 2 * sum(math.comb(20, k) for k in range(6)) / 2**20
    assert (got.value, got.won, got.lost, got.n_examples) == (pytest.approx(0.1), 15, 5, 100)
    assert got.test == "McNemar, exact" and got.p == pytest.approx(exact)
    standard_error = math.sqrt((20 - 10**2 / 100) / 100**2)
    assert (got.hi - got.lo) / 2 == pytest.approx(1.96 * standard_error, rel=0.12)
    turned = stats.paired_examples(control, treatment, stats.MEASURES["POPE_acc"], np.random.default_rng(0))
    assert turned.value == -got.value and turned.p == got.p and (turned.won, turned.lost) == (5, 15)
    assert stats.mcnemar_p(0, 0) == 1 and stats.mcnemar_p(0, 6) == pytest.approx(2 / 64)


def test_pairing_uses_that_the_items_are_the_same():
    """Two captions' counts that move together: the paired interval is far narrower than that of either side."""
    rng = np.random.default_rng(2)
    mentioned = rng.integers(1, 8, 300)
    hallucinated = rng.binomial(mentioned, 0.4)
    fewer = np.maximum(hallucinated - (rng.random(300) < 0.1), 0)
    sides = [long_scores({"hallucinated": h, "mentioned": mentioned}) for h in (fewer, hallucinated)]
    rng = np.random.default_rng(0)
    paired = stats.paired_examples(*sides, stats.MEASURES["CHAIRi"], rng)
    alone = stats.over_examples(sides[0], stats.MEASURES["CHAIRi"], rng)
    assert paired.test == "bootstrap" and math.isnan(paired.p)
    assert paired.hi < 0 and paired.hi - paired.lo < 0.6 * (alone.hi - alone.lo)
    assert paired.lost == (fewer < hallucinated).sum() and paired.won == 0


def test_a_paired_test_needs_the_same_examples_and_one_run_a_side():
    a, b = (long_scores({"accuracy": values}, "pope") for values in ([1, 0, 1], [1, 0]))
    with pytest.raises(ValueError, match="not the same examples on both sides .1 are"):
        stats.paired_examples(a, b, stats.MEASURES["POPE_acc"], np.random.default_rng(0))
    with pytest.raises(ValueError, match="one run on each side"):
        stats.paired_examples(a, b, stats.MEASURES["Acc_LP"], np.random.default_rng(0))


def test_results_table_has_the_right_interval_for_each_method_and_every_reported_number():
    one = long_scores({"accuracy": [1, 0, 1, 1]}, "pope", method="one")
    several = [long_scores({"accuracy": v}, "pope", method="many", seed=i) for i, v in enumerate(([1, 0], [1, 1]))]
    beside = [
        {"measure": "POPE_acc", "paper_row": row, "table": "1", "paper": 0.5, "differs": why}
        for row, why in (("x", ""), ("y", "other data"))
    ]
    table = stats.results_table(pd.concat([one, *several]), np.random.default_rng(0), beside)
    assert list(table.columns) == stats.RESULT_COLUMNS
    assert table[["method", "over", "n", "paper_row"]].to_numpy().tolist() == [
        ["one", "examples", 4, "x"],
        ["one", "examples", 4, "y"],
        ["many", "seeds", 2, "x"],
        ["many", "seeds", 2, "y"],
    ]
    assert table["value"].tolist() == [0.75, 0.75, 0.75, 0.75]
    assert stats.results_table(one, np.random.default_rng(0))["paper"].isna().all()
