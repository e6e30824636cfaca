"""napo.stats.measures against hand-worked numbers, Wilson, McNemar and the delta method."""

import math

import numpy as np
import pandas as pd
import pytest

from napo.stats import measures


def long_scores(values, benchmark="objhal", method="m", base=0, seed=0, flip_rate=0.0):
    """{metric: [value per example]} -> long frame of one run."""
    rows = [
        dict(method=method, base=base, seed=seed, flip_rate=flip_rate, benchmark=benchmark, metric=metric,
             example_id=str(i), question_kind="", value=float(v))
        for metric, column in values.items() for i, v in enumerate(column)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_a_ratio_is_formed_per_run_not_per_example():
    scores = pd.concat(
        [
            long_scores({"hallucinated": [0, 3], "mentioned": [1, 3]}, seed=0),  # 3 / 4, not the mean of 0 and 1
            long_scores({"hallucinated": [1, 0], "mentioned": [2, 8]}, seed=1),
        ]
    )
    values = measures.run_values(scores, measures.MEASURES["CHAIRi"]).set_index("seed")["value"]
    assert values.to_dict() == {0: 0.75, 1: 0.1}


def test_vlind_columns_by_hand():
    item = {"CK": [1, 1, 1, 0], "VP": [1, 0, 1, 1], "CB": [1, 1, 0, 1], "LP": [0.5, 1, 1, 1]}
    scores = long_scores(item, benchmark="vlind")
    vlind = {name: measure for name, measure in measures.MEASURES.items() if measure.benchmarks == ("vlind",)}
    got = {name: measures.run_values(scores, measure)["value"].item() for name, measure in vlind.items()}
    # passes CK: items 0-2, of these CB: 0 and 1; passes CK, CB and VP: item 0, whose LP is 0.5
    assert got == {"S_CK": 0.75, "S_VP": 0.75, "S_CB": 2 / 3, "S_LP": 0.5, "Acc_CB": 0.75, "Acc_LP": 0.875}


def test_a_ratio_over_nothing_is_nan_for_chair_and_0_for_vlind_as_upstream():
    silent = long_scores({"hallucinated": [0, 0], "mentioned": [0, 0]})
    assert math.isnan(measures.run_values(silent, measures.MEASURES["CHAIRi"])["value"].item())
    failed = long_scores({"CK": [0], "VP": [1], "CB": [1], "LP": [1]}, benchmark="vlind")
    assert measures.run_values(failed, measures.MEASURES["S_LP"])["value"].item() == 0.0


def test_a_measure_over_two_benchmarks_keeps_equal_example_ids_apart():
    factual, counterfactual = measures.MEASURES["acc_overall"].benchmarks
    scores = pd.concat([long_scores({"accuracy": [1, 1]}, factual), long_scores({"accuracy": [0, 1]}, counterfactual)])
    assert measures.run_values(scores, measures.MEASURES["acc_overall"])["value"].item() == 0.75
    assert measures.run_values(scores, measures.MEASURES["acc_counterfactual"])["value"].item() == 0.5


def test_run_values_refuses_doubles_and_gaps():
    scores = long_scores({"hallucinated": [0, 3], "mentioned": [1, 3]})
    with pytest.raises(ValueError, match="scored twice"):
        measures.run_values(pd.concat([scores, scores]), measures.MEASURES["CHAIRi"])
    with pytest.raises(ValueError, match="without gaps"):
        measures.run_values(scores.iloc[:-1], measures.MEASURES["CHAIRi"])
    assert measures.run_values(scores, measures.MEASURES["Acc_LP"]).empty


def test_a_share_of_examples_has_wilsons_interval():
    scores = long_scores({"accuracy": [1] * 8 + [0] * 2}, "pope")
    got = measures.over_examples(scores, measures.MEASURES["POPE_acc"], np.random.default_rng(0))
    assert (got.value, got.lo, got.hi) == pytest.approx((0.8, 0.490162, 0.943318), abs=1e-6)
    assert (got.over, got.n_rows) == ("examples", 10)
    percent = long_scores({"Hal": [1] * 8 + [0] * 2}, "amber")
    got = measures.over_examples(percent, measures.MEASURES["AMBER_Hal"], np.random.default_rng(0))
    assert (got.value, got.lo, got.hi) == pytest.approx((80, 49.0162, 94.3318), abs=1e-4)


def test_a_conditional_share_counts_only_those_that_got_so_far():
    item = {"CK": [1] * 10 + [0] * 30, "CB": [1] * 8 + [0] * 2 + [1] * 30}
    got = measures.over_examples(long_scores(item, "vlind"), measures.MEASURES["S_CB"], np.random.default_rng(0))
    assert (got.value, got.lo, got.hi) == pytest.approx((0.8, 0.490162, 0.943318), abs=1e-6)
    nobody = {"CK": [0] * 4, "CB": [1] * 4}
    got = measures.over_examples(long_scores(nobody, "vlind"), measures.MEASURES["S_CB"], np.random.default_rng(0))
    assert got.value == 0 and math.isnan(got.lo)


def test_bootstrap_of_a_ratio_is_as_wide_as_the_delta_method_says():
    rng = np.random.default_rng(1)
    mentioned = rng.integers(1, 6, 400)
    hallucinated = rng.binomial(mentioned, 0.3)
    scores = long_scores({"hallucinated": hallucinated, "mentioned": mentioned})
    got = measures.over_examples(scores, measures.MEASURES["CHAIRi"], np.random.default_rng(0))
    residual = hallucinated - got.value * mentioned
    half = 1.96 * residual.std(ddof=1) / math.sqrt(400) / mentioned.mean()
    assert got.value == hallucinated.sum() / mentioned.sum()
    assert (got.hi - got.lo) / 2 == pytest.approx(half, rel=0.1)
    again = measures.over_examples(scores, measures.MEASURES["CHAIRi"], np.random.default_rng(0))
    assert (again.lo, again.hi) == (got.lo, got.hi)


def test_nothing_hallucinated_has_no_bootstrap_interval():
    silent = long_scores({"hallucinated": [0] * 20, "mentioned": [2] * 20})
    got = measures.over_examples(silent, measures.MEASURES["CHAIRi"], np.random.default_rng(0))
    assert got.value == 0 and math.isnan(got.lo) and math.isnan(got.hi)


def test_over_examples_refuses_two_runs():
    scores = pd.concat([long_scores({"accuracy": [1, 0]}, "pope", seed=seed) for seed in (0, 1)])
    with pytest.raises(ValueError, match="2 runs: select one"):
        measures.over_examples(scores, measures.MEASURES["POPE_acc"], np.random.default_rng(0))


def test_mcnemar_by_hand_and_paired_interval():
    # 100 questions: both right 60, only the treatment 15, only the control 5, neither 20
    treatment = long_scores({"accuracy": [1] * 60 + [1] * 15 + [0] * 5 + [0] * 20}, "pope", method="a")
    control = long_scores({"accuracy": [1] * 60 + [0] * 15 + [1] * 5 + [0] * 20}, "pope", method="b")
    got = measures.paired_examples(treatment, control, measures.MEASURES["POPE_acc"], np.random.default_rng(0))
    exact = 2 * sum(math.comb(20, k) for k in range(6)) / 2**20
    assert (got.value, got.won, got.lost, got.n_examples) == (pytest.approx(0.1), 15, 5, 100)
    assert got.test == "McNemar, exact" and got.p == pytest.approx(exact)
    standard_error = math.sqrt((20 - 10**2 / 100) / 100**2)
    assert (got.hi - got.lo) / 2 == pytest.approx(1.96 * standard_error, rel=0.12)
    turned = measures.paired_examples(control, treatment, measures.MEASURES["POPE_acc"], np.random.default_rng(0))
    assert turned.value == -got.value and turned.p == got.p and (turned.won, turned.lost) == (5, 15)
    same = measures.paired_examples(control, control, measures.MEASURES["POPE_acc"], np.random.default_rng(0))
    assert (same.p, same.won, same.lost) == (1, 0, 0)


def test_pairing_uses_that_the_items_are_the_same():
    """Two captions' counts that move together: the paired interval is far narrower than that of either side."""
    rng = np.random.default_rng(2)
    mentioned = rng.integers(1, 8, 300)
    hallucinated = rng.binomial(mentioned, 0.4)
    fewer = np.maximum(hallucinated - (rng.random(300) < 0.1), 0)
    sides = [long_scores({"hallucinated": h, "mentioned": mentioned}) for h in (fewer, hallucinated)]
    rng = np.random.default_rng(0)
    paired = measures.paired_examples(*sides, measures.MEASURES["CHAIRi"], rng)
    alone = measures.over_examples(sides[0], measures.MEASURES["CHAIRi"], rng)
    assert paired.test == "bootstrap" and math.isnan(paired.p)
    assert paired.hi < 0 and paired.hi - paired.lo < 0.6 * (alone.hi - alone.lo)
    assert paired.lost == (fewer < hallucinated).sum() and paired.won == 0


def test_a_paired_test_needs_the_same_examples_and_one_run_a_side():
    a, b = (long_scores({"accuracy": values}, "pope") for values in ([1, 0, 1], [1, 0]))
    with pytest.raises(ValueError, match="not the same examples on both sides .1 are"):
        measures.paired_examples(a, b, measures.MEASURES["POPE_acc"], np.random.default_rng(0))
    with pytest.raises(ValueError, match="one run on each side"):
        measures.paired_examples(a, b, measures.MEASURES["Acc_LP"], np.random.default_rng(0))
