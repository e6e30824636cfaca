"""The desk world's items in the official formats of Object HalBench, VLind-Bench, AMBER and POPE, and their scores.

The scorers are those of the real benchmarks. The desk world needs no tokenizer: words are what blanks separate.
"""

import json
from pathlib import Path

from napo import benchmarks
from napo.score import amber, objhal, pope, vlind
from napo.world.language import FORMS, say
from napo.world.questions import STATEMENT_TEXTS, parse
from napo.world.scenes import CLASSES, missing_partners, render

MODEL_ID = "desk"
PROMPTS = {step: STATEMENT_TEXTS[basis].replace("{}", "{statement}") for step, basis in
           (("a", "common sense"), ("b", "image"), ("c", "context"), ("d", "image only"))}  # fmt: skip
PROMPTS["noun"] = FORMS["exists"].replace("{subject}", "{noun}")
ABOUT = "desk world: items of its own in the official layout"


def write(name, items, folder):
    """The benchmark's official files for these items, images and `adapted.json` included, in a new folder."""
    folder = Path(folder)
    files, images = _FILES[name](items)
    adapted = {"about": ABOUT, "words": "blanks"} | ({"prompts": PROMPTS} if name == "vlind" else {})
    for path, content in (files | {benchmarks.ADAPTED: adapted}).items():
        text = content if isinstance(content, str) else json.dumps(content, indent=1)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    for path, scene in images.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        render(scene).save(folder / path)


def _objhal_files(items):
    rows = [{"position": i, "image_id": i, "question": item.question} for i, item in enumerate(items)]
    numbers = {name: i + 1 for i, name in enumerate(CLASSES)}
    categories = [{"id": i, "name": name} for name, i in numbers.items()]
    things = [(i, thing.name) for i, item in enumerate(items) for thing in item.scene.things]
    annotations = [{"id": k, "image_id": i, "category_id": numbers[name]} for k, (i, name) in enumerate(things)]
    images = [{"id": i, "file_name": _coco_name(i)} for i in range(len(items))]
    none = {"images": [], "annotations": [], "categories": categories}
    files = {
        benchmarks.OBJHAL_QUESTIONS[-1]: _lines(rows),
        "synonyms_refine.txt": "\n".join(CLASSES) + "\n",
        "instances_val2014.json": {"images": images, "annotations": annotations, "categories": categories},
        "instances_train2014.json": none,
        "captions_val2014.json": {"images": images, "annotations": []},
        "captions_train2014.json": none,
    }
    return files, {f"images/{_coco_name(i)}": item.scene for i, item in enumerate(items)}


def _coco_name(number):
    return f"COCO_val2014_{number:012d}.png"


def _vlind_files(items):
    records, images = _vlind_records(items), {}
    for item in items:
        record = next(record for record in records if record["global_id"] == item.example_id)
        kind, told = ("factual", "factual_context") if item.step[0] == "a" else ("counterfactual", "context")
        picture = item.step.partition(":")[2] or "0"
        folder = f"images/{kind}/{record['concept']}/{record['context_id']}_{record[told]}"
        images[f"{folder}/{picture}.png"] = item.scene
    return {"data.json": records}, images


def _vlind_records(items):
    """Records of data.json, from what the items ask."""
    examples = {}
    for item in items:
        examples.setdefault(item.example_id, {})[item.step] = item
    return [_vlind_record(example_id, i, steps) for i, (example_id, steps) in enumerate(examples.items())]


def _vlind_record(example_id, number, steps):
    true, false, there, absent = (parse(steps[step].question).statement for step in ("a2", "a1", "b1", "b2"))
    return {
        "global_id": example_id,
        "context_id": str(number),
        "context": say(true),
        "factual_context": say(false),
        "true_statement": say(true),
        "false_statement": say(false),
        "concept": steps["a1"].question_kind,
        "existent_noun": there.subject,
        "non-existent_noun": absent.subject,
        "best_img_id": "0",
        "aggregated_human_label_good_images": {step[3:]: 3 for step in steps if step.startswith("d1:")},
    }


def _amber_files(items):
    queries, annotations = [], _amber_annotations(items)
    for annotation, item in zip(annotations, _amber_order(items), strict=True):
        image = f"AMBER_{annotation['id']}.png"
        queries.append({"id": annotation["id"], "image": image, "query": item.question})
    files = {
        "annotations.json": annotations,
        "relation.json": {name: [] for name in CLASSES},
        "safe_words.txt": "",
        benchmarks.AMBER_QUERIES: queries,
    }
    return files, {f"images/{q['image']}": item.scene for q, item in zip(queries, _amber_order(items), strict=True)}


def _amber_order(items):
    """Captions first, as in AMBER."""
    return sorted(items, key=lambda item: item.question_kind != "caption")


def _amber_annotations(items):
    annotations = []
    for i, item in enumerate(_amber_order(items), 1):
        if item.question_kind == "caption":
            words = {"truth": sorted(item.scene.names), "hallu": sorted(set(missing_partners(item.scene)))}
            annotations.append({"id": i, "type": "generative", **words})
        else:
            annotations.append({"id": i, "type": "discriminative-hallucination", "truth": "no"})
    return annotations


def _pope_files(items):
    files, images = {}, {}
    for split, rows in _pope_questions(items).items():
        files[f"coco_pope_{split}.json"] = _lines(rows)
    for item in items:
        images[f"images/{_coco_name(int(item.example_id.partition('/')[2]))}"] = item.scene
    return files, images


def _pope_questions(items):
    """{split: POPE's rows}, from what the items ask."""
    rows = {}
    for item in items:
        split, _, number = item.example_id.partition("/")
        label = "yes" if parse(item.question).subject in item.scene.names else "no"
        row = {"question_id": int(number), "image": _coco_name(int(number)), "text": item.question, "label": label}
        rows.setdefault(split, []).append(row)
    return rows


def _lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


_FILES = {"objhal": _objhal_files, "vlind": _vlind_files, "amber": _amber_files, "pope": _pope_files}


# ---- scores ----------------------------------------------------------------------------------------------------------


def score(name, items, answers):
    """Long rows of the official scorer, without any file: what it makes of the files of `write` and these answers."""
    return _SCORERS[name](items, answers)


def _score_objhal(items, answers):
    objects = {i: sorted(item.scene.names) for i, item in enumerate(items)}
    coco = objhal.Coco(objects, {}, frozenset(objects))
    captions = [{"image_id": i, "text": text} for i, text in enumerate(answers)]
    synonyms = objhal.Synonyms.of([[name] for name in CLASSES])
    return objhal.score(captions, coco, synonyms, lemmas=str.split, allow_silence=True).examples


def _score_vlind(items, answers):
    records = _vlind_records(items)
    said = {item.key: answer for item, answer in zip(items, answers, strict=True)}
    asked_of = {record["global_id"]: record for record in records}
    return vlind.score(benchmarks.vlind_filled(records, asked_of, said, MODEL_ID), MODEL_ID).examples


def _score_amber(items, answers):
    said = {item.key: answer for item, answer in zip(items, answers, strict=True)}
    annotations = amber.Annotations(_amber_annotations(items), {name: [] for name in CLASSES}, frozenset([""]))
    predictions = [
        {
            "id": i,
            "response": said[item.key] if item.question_kind == "caption" else benchmarks.yes_or_no(said[item.key]),
        }
        for i, item in enumerate(_amber_order(items), 1)
    ]
    return amber.score(predictions, annotations, "a", str.__eq__, nouns=str.split).examples


def _score_pope(items, answers):
    rows = []
    for split, questions in _pope_questions(items).items():
        said = [answer for item, answer in zip(items, answers, strict=True) if item.example_id.startswith(f"{split}/")]
        result = pope.score(questions, [{"answer": answer} for answer in said])
        rows += [row | {"example_id": f"{split}/{row['example_id']}"} for row in result.examples]
    return rows


_SCORERS = {"objhal": _score_objhal, "vlind": _score_vlind, "amber": _score_amber, "pope": _score_pope}
