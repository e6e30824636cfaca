"""napo.study.estimate_verdict: every outcome of its rule, on numbers that can be checked by hand."""

import numpy as np
import pandas as pd
import pytest

from napo import profiles
from napo.methods import METHODS
from napo.stats import measures
from napo.study import estimate_verdict, frames, report

COLUMNS = [*measures.RUN, "benchmark", "metric", "example_id", "question_kind", "value"]
MEASURES = ("acc_counterfactual", "acc_factual")


def scores(gains, bases=range(5), measured=("vqa_counterfactual", "vqa_factual")):
    """napo_paper and dpo_all right on half of 100 questions; {method: gain on each benchmark}, a little more on odd
    bases."""
    rows = []
    for base in bases:
        for method, gain in ({"napo_paper": (0, 0), "dpo_all": (0, 0)} | gains).items():
            for benchmark, g in zip(measured, gain, strict=True):
                right = 50 + g + (base % 2 if g else 0)
                rows += [
                    (method, base, 0, 0.0, benchmark, "accuracy", str(i), "", float(i < right)) for i in range(100)
                ]
    return pd.DataFrame(rows, columns=COLUMNS)


def test_the_table_holds_both_controls_and_only_what_was_run():
    frame = estimate_verdict.table(scores({"napo_calibrated": (10, 0)}), MEASURES).set_index(
        ["treatment", "control", "measure"]
    )
    assert set(frame.index.get_level_values(0)) == {"napo_calibrated"}
    assert set(frame.index.get_level_values(1)) == {"napo_paper", "dpo_all"} and len(frame) == 4
    found = frame.loc[("napo_calibrated", "napo_paper", "acc_counterfactual")]
    assert found["value"] == pytest.approx(0.104) and found["lo"] > 0.09  # 0.10, 0.11, 0.10, 0.11, 0.10
    assert (found["n_bases"], found["over"], found["flip_rate"]) == (5, "bases", 0)


@pytest.mark.parametrize(
    ("gains", "said"),
    [
        ({"napo_calibrated": (10, 0)}, 'Yes: offered as `method="napo_calibrated"`. '),
        ({"napo_row_q": (10, 2)}, 'Yes: offered as `method="napo_row_q"`. '),
        ({"napo_calibrated": (0, 10)}, "No estimate beats it. "),
        ({"napo_calibrated": (10, -9)}, "No estimate beats it. "),
        ({"napo_calibrated": (-9, 0), "napo_row_q": (0, 0)}, "No estimate beats it. "),
    ],
)
def test_the_verdict_follows_the_rule(gains, said):
    text = estimate_verdict.verdict(estimate_verdict.table(scores(gains), MEASURES))
    assert text.startswith(said)
    assert ("losses on any measure: accuracy, factual with no injected noise." in text) == ((10, -9) in gains.values())


def test_few_bases_or_no_run_give_no_verdict():
    few = estimate_verdict.verdict(
        estimate_verdict.table(scores({"napo_calibrated": (10, 0)}, bases=range(3)), MEASURES)
    )
    assert few == "No verdict: 3 reporting bases, 5 are needed."
    assert (
        estimate_verdict.verdict(estimate_verdict.table(scores({}), MEASURES))
        == estimate_verdict.NOT_RUN
        == estimate_verdict.text(estimate_verdict.table(scores({}), MEASURES))
    )


def curves(lo, better="higher"):
    """One line of `frames.noise_curves` for each method at swap 40 %: calibrated over the paper's by lo + 0.1."""
    line = {"noise_kind": "swap", "flip_rate": 0.4, "measure": "acc_factual", "measure_label": "accuracy, factual"}
    line |= {"better": better, "value": 0.5, "lo": 0.4, "hi": 0.6, "over": "bases", "n_bases": 5, "n_seeds": 1}
    line |= {"over_paper": lo + 0.1, "over_paper_lo": lo, "over_paper_hi": lo + 0.2}
    return pd.DataFrame(
        [line | {"method": m, "flip_rate": f} for m in ("napo_calibrated", "napo_q1") for f in (0, 0.4)]
    )


def test_a_loss_under_noise_counts_and_is_named():
    clean = scores({"napo_calibrated": (10, 0)})
    frame = estimate_verdict.table(clean, MEASURES, curves(-0.3))
    assert len(frame) == 5 and frame["value"].iloc[-1] == pytest.approx(-0.2)
    text = estimate_verdict.text(frame)
    assert text.startswith("No estimate beats it") and "measure: accuracy, factual at swap 40%." in text
    assert "gains on accuracy, counterfactual: with no injected noise;" in text
    assert "| NaPO, α by the noise estimate | NaPO (paper) | swap 40% | −0.200 [−0.300, −0.100] | bases |" in text
    assert "5 comparisons; none is corrected" in text and "without the injected noise" in text
    assert estimate_verdict.verdict(estimate_verdict.table(clean, MEASURES, curves(0.1))).startswith("Yes")
    assert estimate_verdict.verdict(estimate_verdict.table(clean, MEASURES, curves(-0.1))).startswith(
        "Yes"
    )  # unclear is no loss
    assert estimate_verdict.verdict(estimate_verdict.table(clean, MEASURES, curves(-0.3, better="neither"))).startswith(
        "Yes"
    )


def test_what_is_said_not_to_be_run_under_noise_is_not():
    noisy = profiles.PROFILES["study"].noisy_methods
    assert tuple(method for method in estimate_verdict.ESTIMATES if method in noisy) == estimate_verdict.UNDER_NOISE
    assert {
        *estimate_verdict.ESTIMATES,
        *estimate_verdict.CONTROLS,
    } <= METHODS.keys() and estimate_verdict.DECISIVE in frames.UNDER_NOISE
    assert frames.CONTROL in estimate_verdict.CONTROLS and np.isin(estimate_verdict.CONTROLS, report.CORE).all()
