"""The desk world's items as the official files of Object HalBench, VLind-Bench, AMBER and POPE.

`adapted.json` beside them says that blanks separate words, so the official scorers need no tokenizer.
"""

import json
from pathlib import Path

from napo.desk.language import FORMS, say
from napo.desk.questions import STATEMENT_TEXTS, parse
from napo.desk.scenes import CLASSES, missing_partners, render
from napo.official import benchmarks, datafolder

PROMPTS = {step: STATEMENT_TEXTS[basis].replace("{}", "{statement}") for step, basis in
           (("a", "common sense"), ("b", "image"), ("c", "context"), ("d", "image only"))}  # fmt: skip
PROMPTS["noun"] = FORMS["exists"].replace("{subject}", "{noun}")
ABOUT = "desk world: its own items in the official layout"


def write(name, items, folder):
    """Writes the benchmark's official files for these items into `folder`, with images and `adapted.json`."""
    folder = Path(folder)
    files, images = _FILES[name](items)
    adapted = {"about": ABOUT, "words": "blanks"} | ({"prompts": PROMPTS} if name == "vlind" else {})
    for path, content in (files | {datafolder.ADAPTED: adapted}).items():
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
    examples = {}
    for item in items:
        examples.setdefault(item.example_id, {})[item.step] = item
    records, images = [], {}
    for number, (example_id, steps) in enumerate(examples.items()):
        record = _vlind_record(example_id, number, steps)
        records.append(record)
        for step, item in steps.items():
            kind, told = ("factual", "factual_context") if step[0] == "a" else ("counterfactual", "context")
            folder = f"images/{kind}/{record['concept']}/{record['context_id']}_{record[told]}"
            images[f"{folder}/{step.partition(':')[2] or '0'}.png"] = item.scene
    return {"data.json": records}, images


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
    items = sorted(items, key=lambda item: item.question_kind != "caption")  # captions first, as in AMBER
    annotations, queries, images = [], [], {}
    for i, item in enumerate(items, 1):
        if item.question_kind == "caption":
            words = {"truth": sorted(item.scene.names), "hallu": sorted(set(missing_partners(item.scene)))}
            annotations.append({"id": i, "type": "generative", **words})
        else:
            annotations.append({"id": i, "type": "discriminative-hallucination", "truth": "no"})
        queries.append({"id": i, "image": f"AMBER_{i}.png", "query": item.question})
        images[f"images/AMBER_{i}.png"] = item.scene
    files = {
        "annotations.json": annotations,
        "relation.json": {name: [] for name in CLASSES},
        "safe_words.txt": "",
        benchmarks.AMBER_QUERIES: queries,
    }
    return files, images


def _pope_files(items):
    splits, images = {}, {}
    for item in items:
        split, _, number = item.example_id.partition("/")
        label, image = "yes" if parse(item.question).subject in item.scene.names else "no", _coco_name(int(number))
        row = {"question_id": int(number), "image": image, "text": item.question, "label": label}
        splits.setdefault(split, []).append(row)
        images[f"images/{image}"] = item.scene
    return {f"coco_pope_{split}.json": _lines(rows) for split, rows in splits.items()}, images


def _lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


_FILES = {"objhal": _objhal_files, "vlind": _vlind_files, "amber": _amber_files, "pope": _pope_files}
