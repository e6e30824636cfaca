"""Damaged prediction files: refused in one line, or scored as a straightforward count of the file says."""

import json
import random

import pytest
from mutations import Tries, damaged_bytes, damaged_value

from napo.commands.score import main

RIGHT, WRONG = {"response": "True", "answer": "True"}, {"response": "False.", "answer": "False"}


def vlind_records():
    records = []
    for i in range(4):
        record = {"global_id": str(i), "concept": "size", "aggregated_human_label_good_images": {"0": 2, "4": i}}
        for k, step in enumerate(("a1_image", "a2_image", "b1", "b2", "c1_image", "c2_image")):
            record[f"m_pred_{step}"] = (RIGHT, WRONG)[(k + (i == 3)) % 2]
        records.append(record | {f"m_pred_{d}": {"0": RIGHT, "4": WRONG} for d in ("d1", "d2")})
    return records


def pope_questions():
    return [{"question_id": i, "text": f"Is there a dog {i}?", "label": ("yes", "no")[i % 2]} for i in range(6)]


def pope_answers():
    said = ("Yes, there is.", "No, not one.", "no", "Yes.", "It is not.", "I think so")
    return [{"question_id": i, "question": f"Is there a dog {i}?", "answer": text} for i, text in enumerate(said)]


def mmhal_reviews():
    return [{"model": "m", "choices": [{"message": {"content": f"Fine. Rating: {i % 7}"}}]} for i in range(96)]


def amber_answers():
    return [{"id": 1, "response": "No"}, {"id": 2, "response": "Yes"}, {"id": 4, "response": "maybe"}]


def objhal_answers():
    said = ("a dog and a cat", "no animal", "two cats on a table")
    return [{"question_id": i, "image_id": 40 + i, "text": text} for i, text in enumerate(said)]


# ---- the same numbers, counted in a straightforward way --------------------------------------------------------------


def count_vlind(records):
    """Share of the instances with a good image whose two statements of commonsense bias are judged right."""
    said = lambda record, step: record.get(f"m_pred_{step}", record.get(f"m_{step}"))["answer"]  # noqa: E731
    kept = []
    for record in records:
        votes = record["aggregated_human_label_good_images"]
        if any(votes[image] >= 2 for image in votes if image in [str(i) for i in range(12)]):
            kept.append((said(record, "c1_image"), said(record, "c2_image")) == ("True", "False"))
    return "Acc_CB", sum(kept) / len(kept)


def count_pope(answers):
    right = [(text_of(a, "answer", "text"), q["label"]) for a, q in zip(answers, pope_questions(), strict=False)]
    return "acc", sum(says_no(text) == (label == "no") for text, label in right) / len(right)


def says_no(text):
    return bool({"No", "not", "no"} & set(text.split(".")[0].replace(",", "").split(" ")))


def count_mmhal(reviews):
    ratings = []
    for review in reviews:
        text = review["choices"][0]["message"]["content"].lower()
        found = [rating for rating in range(7) if f"rating: {rating}" in text]
        ratings.append(found[0] if len(found) == 1 else 0)
    return "score", sum(ratings) / 96


def count_amber(answers):
    truth = {1: "No", 2: "Yes", 4: "No"}
    said = [(truth[item], text_of(a, "response", "text")) for a in answers if (item := number_of(a)) in truth]
    return "Accuracy", sum(gold == text for gold, text in said) / (len(said) + 0.001) * 100


def number_of(answer):
    return answer["id"] if "id" in answer else answer["question_id"]


def count_objhal(answers):
    captions = [text_of(a, "text", "answer").replace("Assistant:", "").strip() for a in answers]
    return "avg_word_len", sum(len(caption.split(" ")) for caption in captions) / len(captions)


def text_of(record, *names):
    return next(record[name] for name in names if name in record)


# ---- the commands ----------------------------------------------------------------------------------------------------


def amber_folder(folder):
    annotations = [
        {"id": 1, "type": "discriminative-hallucination", "truth": "no"},
        {"id": 2, "type": "relation", "truth": "yes"},
        {"id": 3, "type": "generative", "truth": ["dog"], "hallu": ["cat"]},
        {"id": 4, "type": "discriminative-attribute-state", "truth": "no"},
    ]
    (folder / "annotations.json").write_text(json.dumps(annotations))
    (folder / "relation.json").write_text(json.dumps({"dog": ["puppy"], "cat": []}))
    (folder / "safe_words.txt").write_text("light")


def coco_folder(folder):
    categories = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    images = [{"id": 40 + i} for i in range(3)]
    objects = [{"image_id": 40 + i, "category_id": 1 + i % 2} for i in range(3)]
    for part in ("train", "val"):
        instances = {"images": images, "annotations": objects, "categories": categories}
        (folder / f"instances_{part}2014.json").write_text(json.dumps(instances))
        captions = [{"image_id": 40, "caption": "A dog."}]
        (folder / f"captions_{part}2014.json").write_text(json.dumps({"images": images, "annotations": captions}))
    (folder / "synonyms.txt").write_text("dog, puppy\ncat, kitten\n")


SCORERS = {
    "vlind": (vlind_records, count_vlind, "--model-id m --predictions FILE"),
    "pope": (pope_answers, count_pope, "--questions DATA/questions.jsonl --answers FILE"),
    "mmhal": (mmhal_reviews, count_mmhal, "--reviews FILE"),
    "amber": (amber_answers, count_amber, "--task d --amber-data DATA --predictions FILE"),
    "objhal": (objhal_answers, count_objhal, "--coco DATA --synonyms DATA/synonyms.txt --predictions FILE"),
}


@pytest.fixture
def data(tmp_path):
    """The small official files that the scorers need beside the predictions."""
    folder = tmp_path / "data"
    folder.mkdir()
    amber_folder(folder)
    coco_folder(folder)
    (folder / "questions.jsonl").write_text("".join(json.dumps(q) + "\n" for q in pope_questions()))
    return folder


def spoilt(records, rng):
    """Text of a prediction file, damaged as values, as bytes, or only written in another way."""
    how = rng.random()
    for _ in range(0 if how < 0.05 else rng.choice((1, 1, 2))):
        records = damaged_value(records, rng) if how < 0.75 else records
    lines = rng.random() < 0.5 and isinstance(records, list)
    text = "\n".join(map(json.dumps, records)) if lines else json.dumps(records, indent=rng.choice((None, 1)))
    content = text.encode()
    return damaged_bytes(content, rng) if how >= 0.75 and content else content


def plain_records(content):
    """The records of a file that a scorer accepted: a JSON list, or JSON lines."""
    text = content.decode("utf-8-sig")
    return (
        json.loads(text)
        if text.lstrip()[:1] == "["
        else [json.loads(line) for line in text.split("\n") if line.strip()]
    )


def attack(name, seeds, data, place, capsys, count):
    make, straightforward, call = SCORERS[name]
    tries = Tries(place)
    for seed in seeds:
        content = spoilt(make(), random.Random(f"{name} {seed}"))
        file = place / "predictions.json"
        file.write_bytes(content)
        arguments = [part.replace("FILE", str(file)).replace("DATA", str(data)) for part in call.split()]
        out = tries.command(f"{name} {seed}", lambda arguments=arguments: main([name, *arguments]), capsys)
        if out is not None:
            measure, value = straightforward(plain_records(content))
            said = json.loads(out, parse_constant=pytest.fail)[measure]
            tries.note(said == pytest.approx(value), f"{name} {seed}: {measure} {said}, counted {value}")
    tries.done(f"predictions, {name}", count)


def usable(name, request):
    """Object HalBench's words come from NLTK's data."""
    if name == "objhal":
        request.getfixturevalue("shared")


@pytest.mark.parametrize("name", SCORERS)
def test_some_damaged_predictions(name, data, tmp_path, capsys, count, request):
    usable(name, request)
    attack(name, range(40), data, tmp_path, capsys, count)


@pytest.mark.parametrize("name", SCORERS)
def test_many_damaged_predictions(everything, name, data, tmp_path, capsys, count, request):
    usable(name, request)
    attack(name, range(40, 160), data, tmp_path, capsys, count)


@pytest.mark.parametrize("name", SCORERS)
def test_undamaged_predictions_are_scored(name, data, tmp_path, capsys, request):
    usable(name, request)
    make, straightforward, call = SCORERS[name]
    file = tmp_path / "good.json"
    file.write_text(json.dumps(make()))
    arguments = [part.replace("FILE", str(file)).replace("DATA", str(data)) for part in call.split()]
    assert main([name, *arguments]) == 0
    measure, value = straightforward(make())
    assert json.loads(capsys.readouterr().out)[measure] == pytest.approx(value)
