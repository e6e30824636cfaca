"""The guard sees what fell, says what was not asked, and refuses to compare unlike runs."""

import numpy as np
import pytest

from napo import evaluate, guard
from napo.artifacts import BadInput
from napo.benchmarks import Benchmark, Question


def scores(method, right, benchmark="pope", metric="accuracy"):
    """A run whose examples have these values."""
    records = [
        {"benchmark": benchmark, "metric": metric, "example_id": str(i), "question_kind": "", "value": float(value)}
        for i, value in enumerate(right)
    ]
    return evaluate.long_table(records, {"method": method, "base": 0, "seed": 0, "flip_rate": 0.0})


def line(before, after, name="POPE_acc"):
    return guard.table(before, after, np.random.default_rng(0)).set_index("measure").loc[name]


def test_a_loss_a_gain_and_a_draw_are_told_apart():
    base = scores("base", [1] * 80 + [0] * 20)
    fell = line(base, scores("napo", [1] * 60 + [0] * 40))
    assert fell["verdict"] == "fell" and fell["difference"] == pytest.approx(-0.2) and fell["hi"] < 0
    assert (fell["before"], fell["after"], fell["n"]) == (pytest.approx(0.8), pytest.approx(0.6), 100)
    assert line(base, scores("napo", [1] * 95 + [0] * 5))["verdict"] == "rose"
    swapped = scores("napo", [0] + [1] * 79 + [1] + [0] * 19)
    assert line(base, swapped)["verdict"] == "no change seen"


def test_log_probs_of_chosen_answers_are_guarded_in_nats():
    rng = np.random.default_rng(0)
    values = -1 - rng.random(200)
    before, after = (
        scores(m, v, "heldout_pairs", "chosen_logps_per_token") for m, v in (("base", values), ("x", values - 0.3))
    )
    found = line(before, after, "chosen_logp")
    assert found["verdict"] == "fell" and found["difference"] == pytest.approx(-0.3)


def test_what_was_not_asked_is_said_and_not_made_up():
    base = scores("base", [1, 0, 1])
    table = guard.table(base, scores("napo", [1, 0, 1]), np.random.default_rng(0))
    assert list(table["measure"]) == list(guard.GUARDED) and list(table.columns) == guard.COLUMNS
    assert list(table["verdict"])[1:] == ["not asked", "not asked"] and table["before"].isna().sum() == 2
    page = guard.markdown(table)
    assert page.count("not asked") == 2 and "POPE accuracy" in page and page.count("\n") == 4


def test_runs_on_other_examples_are_refused():
    with pytest.raises(BadInput, match="guard for general ability.*not the same examples.*run notebook 04 again"):
        line(scores("base", [1, 0, 1]), scores("napo", [1, 0]))
    with pytest.raises(BadInput, match="guard for general ability"):
        line(scores("base", [1, 0, 1]), scores("napo", [1, 0, 1], benchmark="vlind"))


def test_only_ambers_captions_count_as_the_papers_examples():
    questions = tuple(Question(str(i), str(i), "?", None) for i in (1, 1004, 1005, 15_220))
    assert Benchmark("amber", None, questions, dict, task="a").n_generative == 2
    assert Benchmark("amber", None, questions, dict, task="g").n_generative == 4
    assert Benchmark("pope", None, questions, dict).n_generative == 4
