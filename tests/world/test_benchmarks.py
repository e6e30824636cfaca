"""Items and scores of the desk benchmarks, on answers whose scores are known beforehand."""

import pytest

from napo.world import benchmarks
from napo.world.benchmarks import NAMES, items, score, summarise
from napo.world.questions import full_answer, parse
from napo.world.scenes import prior_scene, split_of


def truthful(item):
    return full_answer(item.scene, parse(item.question))


def prejudiced(item):
    asked = parse(item.question)
    return full_answer(prior_scene(item.scene, asked.subject), asked)


def headline(name, speaker, n=24):
    asked = items(name, n)
    return summarise(score(name, asked, [speaker(item) for item in asked]))[name]


@pytest.mark.parametrize("split", ["dev", "test"])
@pytest.mark.parametrize("name", NAMES)
def test_items_lie_in_their_split(name, split):
    asked = items(name, 24, split=split)
    seen = [item.scene for item in asked if not item.step.startswith("a")]  # common sense is asked of a usual picture
    assert {split_of(scene) for scene in seen} == {split}
    assert items(name, 24, split=split) == asked
    assert items(name, 24, seed=1, split=split) != asked


def test_truth_scores_one_everywhere():
    assert headline("vqa_factual", truthful)["accuracy"] == 1
    assert headline("vqa_counterfactual", truthful)["accuracy"] == 1
    captions = headline("captions", truthful)
    assert (captions["CHAIRs"], captions["CHAIRi"], captions["coverage"], captions["irrelevant"]) == (0, 0, 1, 0)
    assert set(headline("vlind", truthful).values()) == {1.0}


def test_the_prior_is_wrong_on_every_counterfactual_item():
    assert headline("vqa_counterfactual", prejudiced)["accuracy"] == 0
    vlind = headline("vlind", prejudiced)
    assert (vlind["S_CK"], vlind["Acc_LP"], vlind["S_LP"]) == (1, 0, 0)
    assert headline("captions", prejudiced)["CHAIRs"] > 0.5


def test_caption_scores_by_hand():
    item = next(item for item in items("captions", 40) if len(item.scene.things) == 2)
    named = item.scene.things[0].name
    absent = next(name for name in ("frog", "boat", "crab") if name not in item.scene.names)
    rows = score("captions", [item], [f"there is a {named} and a {absent} ."])
    values = {row["metric"]: row["value"] for row in rows}
    assert values == {
        "CHAIRs": 1,
        "hallucinated": 1,
        "mentioned": 2,
        "covered": 1,
        "present": 2,
        "irrelevant": 0,
        "tokens": 8,
    }


def test_vlind_scores_by_hand():
    """Two instances of 12 items; the second fails one common-sense question, the first one of its pictures."""
    asked = items("vlind", 6)
    assert len(asked) == 2 * 12
    answers = [truthful(item) for item in asked]
    steps = [item.step for item in asked]
    flip = {"true .": "false .", "false .": "true ."}
    for example, step in ((0, "d1:2"), (1, "a2")):
        answers[12 * example + steps.index(step)] = flip[answers[12 * example + steps.index(step)]]
    expected = {"S_CK": 0.5, "S_VP": 1, "S_CB": 1, "S_LP": 2 / 3, "Acc_CB": 1, "Acc_LP": 5 / 6}
    assert summarise(score("vlind", asked, answers))["vlind"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "verdict"), [("true .", "true"), ("False, it is", "false"), ("not true", "NA"), ("", "NA")]
)
def test_verdicts_are_read_as_vlind_bench_does(answer, verdict):
    assert benchmarks._verdict(answer) == verdict
