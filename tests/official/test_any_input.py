"""Whatever a file holds, the command scores it or refuses it in one line."""

import copy
import json
import random

import pytest

from napo.commands.score import main

JUNK = [None, True, 0, -1, 1.5, "", "x", [], {}, [None], {"a": 1}, "True", float("nan"), "half \ud83d", 10**30]
ANSWER = {"response": "True", "answer": "True"}
VLIND = [
    {"global_id": str(i), "concept": "size", "aggregated_human_label_good_images": {"0": 2, "4": i}}
    | {f"m_pred_{step}": ANSWER for step in ("a1_image", "a2_image", "b1", "b2", "c1_image", "c2_image")}
    | {f"m_pred_{step}": {"0": ANSWER, "4": ANSWER} for step in ("d1", "d2")}
    for i in range(3)
]
QUESTIONS = [{"question_id": i, "text": "Is there a dog?", "label": "yes" if i % 2 else "no"} for i in range(4)]
ANSWERS = [{"question_id": i, "question": "Is there a dog?", "answer": "No, there is not."} for i in range(4)]
REVIEWS = [{"model": "m", "choices": [{"message": {"content": "Rating: 3"}}]}] * 96
ANNOTATIONS = [
    {"id": 1, "type": "discriminative-hallucination", "truth": "no"},
    {"id": 2, "type": "relation", "truth": "yes"},
    {"id": 3, "type": "generative", "truth": ["dog"], "hallu": ["cat"]},
]
RESPONSES = [{"id": 1, "response": "No"}, {"id": 2, "response": "Yes"}]
RELATIONS = {"dog": ["puppy"], "cat": []}


def damaged(value, rng):
    """A copy with one part removed, repeated or replaced, at any depth."""
    if isinstance(value, list | dict) and value and rng.random() < 0.85:
        places = list(value) if isinstance(value, dict) else range(len(value))
        place, value = rng.choice(places), copy.copy(value)
        choice = rng.random()
        if choice < 0.15:
            del value[place]
        elif choice < 0.3 and isinstance(value, list):
            value.append(value[place])
        else:
            value[place] = damaged(value[place], rng)
        return value
    return rng.choice(JUNK)


@pytest.fixture
def spoilt(write):
    """spoilt(rng, name, value) -> path of the value, damaged up to twice, and sometimes cut short."""

    def to(rng, name, value):
        for _ in range(rng.randint(0, 2)):
            value = damaged(value, rng)
        text = json.dumps(value)
        return write(name, text[: rng.randrange(len(text))] if rng.random() < 0.05 else text)

    return to


@pytest.mark.parametrize("seed", range(40))
def test_scored_or_refused(seed, spoilt, write, capsys):
    rng = random.Random(seed)
    write("amber/safe_words.txt", "light")
    spoilt(rng, "amber/relation.json", RELATIONS)
    amber = spoilt(rng, "amber/annotations.json", ANNOTATIONS).parent
    calls = [
        ["vlind", "--model-id", "m", "--predictions", spoilt(rng, "v.json", VLIND)],
        ["pope", "--questions", spoilt(rng, "q.json", QUESTIONS), "--answers", spoilt(rng, "a.json", ANSWERS)],
        ["mmhal", "--reviews", spoilt(rng, "r.json", REVIEWS)],
        ["amber", "--task", "d", "--amber-data", amber, "--predictions", spoilt(rng, "p.json", RESPONSES)],
    ]
    for arguments in calls:
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        if status == 0:
            assert json.loads(out, parse_constant=pytest.fail)["benchmark"] == arguments[0]
        else:
            assert status == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1


def test_most_damage_is_seen(spoilt, capsys):
    """The inputs above are not all refused, nor all let through."""
    rng, ended = random.Random(1), []
    for _ in range(60):
        ended.append(main(["vlind", "--model-id", "m", "--predictions", str(spoilt(rng, "v.json", VLIND))]))
    capsys.readouterr()
    assert 10 < sum(status == 2 for status in ended) < 50
