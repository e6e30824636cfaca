"""Items and scores of the desk benchmarks, for answers with known scores."""

import pytest

from napo.desk import layout
from napo.desk.benchmark_items import NAMES, VQA, asked, items
from napo.desk.questions import full_answer, parse
from napo.desk.scenes import missing_partners, prior_scene, split_of
from napo.evaluation import asking
from napo.official import benchmarks
from napo.profiles import Decoding
from tools.desk_bases.summary import score, summarise


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
    captions = headline("objhal", truthful)
    assert (captions["CHAIRs"], captions["CHAIRi"], captions["coverage"]) == (0, 0, 1)
    assert set(headline("vlind", truthful).values()) == {1.0}
    amber = headline("amber", truthful)
    assert (amber["Hal"], amber["imagined"], amber["accuracy"]) == (0, 0, 1) and amber["covered"] == amber["present"]
    assert headline("pope", truthful) == {"accuracy": 1, "said_yes": 0.5}


def test_the_prior_is_wrong_on_every_counterfactual_item():
    assert headline("vqa_counterfactual", prejudiced)["accuracy"] == 0
    vlind = headline("vlind", prejudiced)
    assert (vlind["S_CK"], vlind["Acc_LP"], vlind["S_LP"]) == (1, 0, 0)
    assert headline("objhal", prejudiced)["CHAIRs"] > 0.5
    amber = headline("amber", prejudiced)
    assert amber["Hal"] > 0.5 and amber["imagined"] > 0.5  # what it imagines is what AMBER's list expects


def test_a_caption_of_the_prior_imagines_the_missing_partner():
    item = next(i for i in items("amber", 40) if i.question_kind == "caption" and missing_partners(i.scene))
    named, expected = item.scene.things[0].name, missing_partners(item.scene)[0]
    rows = score("amber", [item, items("amber", 2)[1]], [f"there is a {named} and a {expected} .", "no ."])
    values = {row["metric"]: row["value"] for row in rows if row["question_kind"] == "generative"}
    assert (values["hallucinated"], values["imagined"], values["mentioned"], values["covered"]) == (1, 1, 2, 1)


def test_pope_items_are_half_yes_and_its_adversary_asks_for_what_is_expected():
    asked = items("pope", 80)
    for split in ("random", "adversarial"):
        there = [parse(i.question).subject in i.scene.names for i in asked if i.example_id.startswith(split)]
        assert len(there) == 40 and sum(there) == 20
    for item in asked:
        subject = parse(item.question).subject
        if item.example_id.startswith("adversarial") and subject not in item.scene.names:
            assert subject in missing_partners(item.scene) or not missing_partners(item.scene)


def test_caption_scores_by_hand():
    item = next(item for item in items("objhal", 40) if len(item.scene.things) == 2)
    named = item.scene.things[0].name
    absent = next(name for name in ("frog", "boat", "crab") if name not in item.scene.names)
    rows = score("objhal", [item], [f"there is a {named} and a {absent} ."])
    values = {row["metric"]: row["value"] for row in rows}
    assert values == {"CHAIRs": 1, "hallucinated": 1, "mentioned": 2, "covered": 1, "present": 2, "tokens": 8}


def test_a_model_that_says_nothing_keeps_its_rows():
    asked = items("objhal", 4)
    rows = score("objhal", asked, [""] * 4)
    assert sum(row["value"] for row in rows if row["metric"] == "mentioned") == 0 and len(rows) == 4 * 6


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


@pytest.mark.parametrize("name", [name for name in NAMES if name not in VQA])
def test_official_files_hold_the_items_questions_and_pictures(name, tmp_path):
    own = items(name, 12)
    layout.write(name, own, tmp_path / "data")
    benchmark = benchmarks.read(name, tmp_path / "data", task="a")
    asked = {(question.text, question.opened().tobytes()) for question in benchmark.questions}
    assert asked == {(item.question, item.image.tobytes()) for item in own}
    assert len(benchmark.questions) == len(own) and benchmark.adapted["words"] == "blanks"


def test_questions_of_the_desk_alone_are_asked_without_files(tmp_path):
    own = items("vqa_factual", 5)
    benchmark = asked("vqa_factual", own)
    assert [q.text for q in benchmark.questions] == [item.question for item in own]
    log = tmp_path / "log.jsonl"
    log.write_text("".join(asking._line(log, q.key, "a") for q in benchmark.questions))
    answers = asking.ask(benchmark, None, Decoding(), log)
    assert benchmark.predictions(answers, "m")["predictions.jsonl"].count("\n") == 5
