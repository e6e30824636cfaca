"""The weak labeller and the noise labels on answers by hand; sampling from an untrained model."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from napo.desk import speak
from napo.desk.pairs import choose, label_noise, labeller_score, preference_rows
from napo.desk.questions import question
from napo.desk.scenes import Scene, Thing, from_json, prior_scene, render, to_json
from tools.desk_bases import skeleton

SCENE = Scene((Thing("frog", "red", 0),), "water")
ANSWERS = ["the frog is green .", "the frog is red .", "", "the frog is blue ."]


@pytest.fixture(scope="module")
def untrained():
    torch.manual_seed(0)
    processor = skeleton.make_processor()
    return skeleton.make_model(processor.tokenizer).eval(), processor


def test_labeller_sees_truth_or_prior(rng):
    asked = question("colour", "frog")
    truthful = {choose(SCENE, asked, ANSWERS, rng, truth_share=1)[0] for _ in range(20)}
    prejudiced = {choose(SCENE, asked, ANSWERS, rng, truth_share=0)[0] for _ in range(20)}
    assert (truthful, prejudiced) == ({"the frog is red ."}, {"the frog is green ."})


def test_labeller_does_not_mind_irrelevant_details(rng):
    asked = question("colour", "frog")
    wordy = "the frog is red . there is one object ."
    assert labeller_score(SCENE, asked, wordy) == labeller_score(SCENE, asked, "the frog is red .") == 1
    assert choose(SCENE, asked, [wordy, "the frog is red ."], rng, truth_share=1) is None


def test_labeller_prefers_captions_that_name_more():
    asked = question("caption")
    usual = prior_scene(SCENE)
    assert labeller_score(SCENE, asked, "there is a red frog .") == 1
    assert labeller_score(SCENE, asked, "there is a red frog and a green boat .") == pytest.approx((2 / 4 + 1) / 2)
    assert labeller_score(usual, asked, "there is a green frog and a red berry .") == 1
    assert labeller_score(SCENE, asked, "") == 0


def test_noise_is_a_good_answer_labelled_rejected():
    row = {"scene": to_json(SCENE), "question": question("colour", "frog").text}
    rows = [
        row | {"language_biased": "the frog is green .", "vision_biased": "the frog is red ."},
        row | {"language_biased": "the frog is red .", "vision_biased": "there is one object ."},
    ]
    labelled = label_noise(rows)
    assert [r["is_noise_language_biased"] for r in labelled] == [False, True]
    assert [r["is_noise_vision_biased"] for r in labelled] == [True, False]
    assert "is_noise_language_biased" not in rows[0]


def test_batched_answers_equal_single_ones(untrained):
    model, processor = untrained
    images = [render(SCENE), render(prior_scene(SCENE)), render(SCENE)]
    questions = ["what colour is the frog ?", "", "describe the image in detail ."]
    together = speak.answer(model, processor, questions, images)
    apart = [speak.answer(model, processor, [q], [i])[0] for q, i in zip(questions, images, strict=True)]
    assert together == apart


def test_sampling_follows_its_generator(untrained):
    model, processor = untrained
    draws = [
        speak.answer(
            model, processor, ["describe the image ."] * 4, None, generator=torch.Generator().manual_seed(seed)
        )
        for seed in (0, 0, 1)
    ]
    assert draws[0] == draws[1] != draws[2] and len(set(draws[0])) == 4


def test_rows_of_the_shipped_base(shipped):
    rows = preference_rows(*shipped, 40, 16, seed=0)
    again = preference_rows(*shipped, 40, 16, seed=0)
    assert [row["split"] for row in rows] == ["train"] * 40 + ["heldout"] * 16
    assert len({row["row_id"] for row in rows}) == 56
    assert all(row["chosen"] and row["rejected"] and row["chosen"] != row["rejected"] for row in rows)
    assert [(r["question"], r["chosen"]) for r in rows] == [(r["question"], r["chosen"]) for r in again]
    scenes = [
        {to_json(_still(row["scene"])) for row in rows if row["split"] == split} for split in ("train", "heldout")
    ]
    assert not scenes[0] & scenes[1]
    assert np.asarray(rows[0]["image"]).shape == (48, 48, 3)


def _still(scene):
    return replace(from_json(scene), seed=0)
