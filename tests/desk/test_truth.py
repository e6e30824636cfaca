"""Answers of every question kind, judged by hand beforehand."""

import pytest

from napo.desk.questions import KINDS, Claim, ask, full_answer, question, statement_question
from napo.desk.scenes import Scene, Thing, sample_scene
from napo.desk.truth import judge

# A red frog top left, a blue whale bottom right, on grass. The prior says: frogs green, whales on water.
SCENE = Scene((Thing("frog", "red", 0), Thing("whale", "blue", 3)), "grass")

GOOD, WRONG, WORDY, BOTH = (True, True), (False, True), (True, False), (False, False)
CASES = [
    # question kind, subject, answer, (right, to the point)
    ("colour", "frog", "the frog is red .", GOOD),
    ("colour", "frog", "the frog is green .", WRONG),
    ("colour", "frog", "there is a red frog .", GOOD),  # that the frog is there was presupposed
    ("colour", "frog", "the frog is red . the frog is on grass .", WORDY),
    ("colour", "frog", "the frog is red . the frog is red .", WORDY),  # said twice
    ("colour", "frog", "the frog is red . the frog is blue .", WRONG),  # contradiction: one of the two is false
    ("colour", "frog", "the whale is blue .", BOTH),  # true, but not asked for
    ("colour", "frog", "", WRONG),
    ("colour", "frog", "the frog is red", BOTH),  # cut off
    ("colour", "frog", "the frog is red . frog frog .", WORDY),
    ("background", "whale", "the whale is on grass .", GOOD),
    ("background", "whale", "the whale is on water .", WRONG),
    ("background", "whale", "the frog is on grass .", BOTH),
    ("background", "whale", "the whale is on grass . there are two objects .", WORDY),
    ("where", "whale", "the whale is at the bottom right .", GOOD),
    ("where", "whale", "the whale is at the top right .", WRONG),
    ("where", "whale", "there is a blue whale at the bottom right .", WORDY),  # its colour was not asked for
    ("existence", "frog", "yes , there is a frog .", GOOD),
    ("existence", "frog", "yes .", GOOD),
    ("existence", "frog", "no , there is no frog .", WRONG),
    ("existence", "duck", "no , there is no duck .", GOOD),
    ("existence", "duck", "yes , there is a duck .", WRONG),
    ("existence", "duck", "yes , there is no duck .", BOTH),  # no form of the language: broken
    ("existence", "frog", "yes , there is a frog . the frog is red .", WORDY),
    ("existence", "frog", "yes , there is a whale .", BOTH),
    ("count", "", "there are two objects .", GOOD),
    ("count", "", "there is one object .", WRONG),
    ("count", "", "there are two objects . there is a red frog .", WORDY),
    ("caption", "", "there is a red frog and a blue whale .", GOOD),
    ("caption", "", "there is a frog .", GOOD),  # a short caption need not name everything
    ("caption", "", "there is a green frog .", WRONG),
    ("caption", "", "there is a red frog and a yellow duck .", WRONG),
    ("caption", "", "there is a red frog . the frog is on grass .", WORDY),
    ("caption", "", "there is no duck .", BOTH),
    (
        "detailed_caption",
        "",
        "there is a red frog at the top left . there is a blue whale . the frog is on grass .",
        GOOD,
    ),
    ("detailed_caption", "", "there is a red frog at the top left .", WRONG),  # the whale is missing
    ("detailed_caption", "", "there is a red frog and a blue whale at the top left .", WRONG),
    ("detailed_caption", "", "there is a red frog and a blue whale .", WRONG),  # a caption, but no detail
    ("detailed_caption", "", "there is a red frog and a blue whale . there are two objects .", GOOD),
    (
        "detailed_caption",
        "",
        "there is a red frog and a blue whale . the frog is on grass . there is a red frog .",
        WORDY,
    ),
    ("detailed_caption", "", "", WRONG),
]


@pytest.mark.parametrize(("kind", "subject", "answer", "expected"), CASES)
def test_hand_worked_answers(kind, subject, answer, expected):
    judged = judge(SCENE, question(kind, subject).text, answer)
    assert (judged.right, judged.to_the_point) == expected
    assert judged.good == (expected == GOOD)


RED, GREEN = Claim("colour", "frog", "red"), Claim("colour", "frog", "green")
STATEMENTS = [
    # statement, basis, context, answer, (right, to the point)
    (RED, "image", None, "true .", GOOD),
    (RED, "image only", None, "false .", WRONG),
    (GREEN, "image", None, "false .", GOOD),
    (GREEN, "image", None, "false . the frog is red .", WORDY),
    (GREEN, "common sense", None, "true .", GOOD),
    (RED, "common sense", None, "true .", WRONG),
    (Claim("background", "whale", "water"), "common sense", None, "true .", GOOD),
    (GREEN, "context", GREEN, "true .", GOOD),  # whatever the image shows
    (RED, "context", GREEN, "true .", WRONG),
    (Claim("exists", "duck", ""), "image", None, "false .", GOOD),
    (RED, "image", None, "true . false .", WRONG),
    (RED, "image", None, "yes .", BOTH),
    (RED, "image", None, "", WRONG),
]


@pytest.mark.parametrize(("statement", "basis", "context", "answer", "expected"), STATEMENTS)
def test_hand_worked_verdicts(statement, basis, context, answer, expected):
    judged = judge(SCENE, statement_question(statement, basis, context).text, answer)
    assert (judged.right, judged.to_the_point) == expected


def test_hallucinated_and_irrelevant_are_counted():
    judged = judge(SCENE, question("caption").text, "there is a red frog and a yellow duck and a black hat .")
    assert judged.hallucinated == {"duck", "hat"} and judged.mentioned == {"frog", "duck", "hat"}
    judged = judge(SCENE, question("count").text, "there are two objects . the frog is red . the frog is on grass .")
    assert judged.irrelevant == 2 and not judged.hallucinated


def test_full_answers_are_good(rng):
    for kind in KINDS:
        for _ in range(50):
            scene = sample_scene(rng, "uniform", "base")
            asked = ask(scene, kind, rng)
            assert judge(scene, asked.text, full_answer(scene, asked)).good, (scene, asked)


def test_unknown_question_is_refused():
    with pytest.raises(ValueError, match="not a question of the desk world"):
        judge(SCENE, "who are you ?", "the frog is red .")
