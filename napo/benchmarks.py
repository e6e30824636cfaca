"""The official benchmarks as a model meets them: what a data folder asks, and the prediction files that answers become.

A data folder holds a benchmark's official files, in whatever sub-folders; images are found by their file name (VLind-
Bench's by its folders, since its names repeat). A folder in an official layout whose items are its own says what else
differs in `adapted.json`: "prompts" in place of VLind-Bench's templates, "words": "blanks" for texts that need no
tokenizer (the desk world's models read a vocabulary of their own). Scores are computed from the prediction files, in
`scoring.py`.
"""

import base64
import binascii
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from napo import artifacts
from napo.artifacts import BadInput, shown
from napo.datafolder import DataFolder, read_records
from napo.score import vlind

NAMES = ("vlind", "objhal", "amber", "mmhal", "pope")
AMBER_QUERIES = "query_all.json"
# Task: its own list, and how the annotations of its items start where there is the list of all only. The two agree
# but for item 13193, which asks for a computer in the list of all and for a chair in the task's own.
AMBER_TASKS = {
    "a": (AMBER_QUERIES, ("generative", "discriminative", "relation")),
    "g": ("query_generative.json", ("generative",)),
    "d": ("query_discriminative.json", ("discriminative", "relation")),
    "da": ("query_discriminative-attribute.json", ("discriminative-attribute",)),
    "de": ("query_discriminative-existence.json", ("discriminative-hallucination",)),
    "dr": ("query_discriminative-relation.json", ("discriminative-relation", "relation")),
}
AMBER_CAPTIONS = 1004  # official ids up to here ask for a caption, later ones for yes or no
OBJHAL_QUESTIONS = ("obj_halbench_300_with_image.jsonl", "objhal_300_index.jsonl")
POPE_SPLITS = ("random", "popular", "adversarial")

# VLind-Bench's own templates, by step; `noun` is the statement that the steps b1 and b2 judge.
VLIND_PROMPTS = {
    "a": "Statement: {statement}\nBased on the common sense, is the given statement true or false? "
    "Only respond in True or False.",
    "noun": "There is {noun} in the given image.",
    "b": "Statement: {statement}\nBased on the image, is the given statement true or false? "
    "Only respond in True or False.",
    "c": "Context: {context}\nStatement: {statement}\nBased on the context, is the given statement true or false? "
    "Forget real-world common sense and just follow the information provided in the context. "
    "Only respond in True or False.",
    "d": "Statement: {statement}\nBased on the image, is the given statement true or false? "
    "Forget real-world common sense and just follow the information provided in the image. "
    "Only respond in True or False.",
}
# The NaPO authors' copy differs from it in one word.
VLIND_PAPER_PROMPTS = VLIND_PROMPTS | {"a": VLIND_PROMPTS["a"].replace("on the common", "on common")}
VLIND_KEYS = {"a1": "a1_image", "a2": "a2_image", "c1": "c1_image", "c2": "c2_image"}  # b1, b2, d1, d2 stay as they are
ADAPTED = "adapted.json"


@dataclass(frozen=True)
class Question:
    """One prompt for a model; `example_id` names the example whose score it enters, `key` the question itself.

    image  a file, the base64 text that two benchmarks ship, or a PIL image
    """

    key: str
    example_id: str
    text: str
    image: Path | str | Image.Image

    def opened(self):
        """The image as RGB. Raises BadInput for one that cannot be read."""
        try:
            if isinstance(self.image, Image.Image):
                return self.image
            source = self.image if isinstance(self.image, Path) else io.BytesIO(base64.b64decode(self.image))
            with Image.open(source) as image:
                return image.convert("RGB")
        except (OSError, UnidentifiedImageError, binascii.Error, Image.DecompressionBombError) as error:
            place = shown(self.image) if isinstance(self.image, Path) else f"image of example {self.example_id}"
            raise BadInput(f"{place}: not a readable image ({error}); get it again") from error


@dataclass(frozen=True)
class Benchmark:
    """Questions, in the official order, and how their answers become the official prediction files.

    predictions  ({key: answer}, model id) -> {file name: content}
    """

    name: str
    folder: Path | None  # of its data; None for the desk world's own
    questions: tuple[Question, ...]
    predictions: Callable[[dict, str], dict]
    adapted: dict = field(default_factory=dict)  # what adapted.json says: {} for the official data
    task: str = ""  # of AMBER

    @property
    def n_examples(self):
        return len({question.example_id for question in self.questions})

    @property
    def n_generative(self):
        """The same without AMBER's yes-or-no questions, where both were asked: what the paper's columns are over."""
        if self.name != "amber" or self.task != "a":
            return self.n_examples
        return sum(int(question.example_id) <= AMBER_CAPTIONS for question in self.questions)


def read(name, folder, *, task="g", prompts="official", limit=None):
    """The benchmark of a data folder, every image found.

    task     of AMBER: a, g, d, da, de or dr
    prompts  "official", or "paper" for the wording and the choice of images of the NaPO authors' scripts (VLind-Bench)
    limit    the first so many examples only
    Raises BadInput for an unknown benchmark or task, and for files or images that are missing or not as they should be.
    """
    if name not in NAMES:
        raise BadInput(f"unknown benchmark {name!r}: use one of {', '.join(NAMES)}")
    if not Path(folder).is_dir():
        raise BadInput(f"no folder {shown(folder)} with the data of {name}: run `make data` or give another by --data")
    if task not in AMBER_TASKS:
        raise BadInput(f"unknown AMBER task {task!r}: use one of {', '.join(AMBER_TASKS)}")
    files = data_folder(name, folder)
    adapted = artifacts.read_json(files.by_name[ADAPTED]) if ADAPTED in files.by_name else {}
    readers = {
        "vlind": lambda: _vlind(files, _templates(prompts, adapted), prompts, limit),
        "objhal": lambda: _objhal(files, limit),
        "amber": lambda: _amber(files, task, limit),
        "mmhal": lambda: _mmhal(files, limit),
        "pope": lambda: _pope(files, limit),
    }
    try:
        questions, predictions = readers[name]()
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{shown(folder)}: not the files of {name} ({_reason(error)}); get them again") from error
    files.check_images(name)
    if not questions:
        raise BadInput(f"{shown(folder)}: {name} has no example here that can be asked")
    return Benchmark(name, Path(folder), tuple(questions), predictions, adapted, task if name == "amber" else "")


def data_folder(name, folder):
    """The files of a benchmark; `make data` keeps COCO's, which two of them need, in coco/ beside their folders."""
    return DataFolder(folder, *([Path(folder).parent / "coco"] if name in ("objhal", "pope") else []))


def _reason(error):
    return f"no field {error}" if isinstance(error, KeyError) else str(error)


def _json(value):
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _json_lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


# ---- VLind-Bench ----------------------------------------------------------------------------------------------------


def _templates(prompts, adapted):
    return (VLIND_PAPER_PROMPTS if prompts == "paper" else VLIND_PROMPTS) | adapted.get("prompts", {})


def _vlind(files, templates, prompts, limit):
    records, asked, questions = read_records(files.path("data.json")), {}, []
    root = files.path("data.json").parent
    for number, record in enumerate(records):
        good = vlind.good_images(record)
        if not good or (limit is not None and len(asked) >= limit):
            continue
        example_id = str(record.get("global_id", number))
        if example_id in asked:
            raise BadInput(f"{shown(files.path('data.json'))}: two records have the global_id {example_id}")
        asked[example_id] = record
        best = most_votes(record, good) if prompts == "paper" else str(record["best_img_id"])
        questions += _vlind_questions(files, root, record, example_id, templates, best, good)
    kept = records if limit is None else list(asked.values())
    return questions, lambda answers, model_id: {
        "predictions.json": _json(vlind_filled(kept, asked, answers, model_id))
    }


def most_votes(record, good):
    """The image with most votes, of several the first in the file: what the authors' script takes for the best one."""
    return max(good, key=record["aggregated_human_label_good_images"].get)


def _vlind_questions(files, root, record, example_id, prompts, best, good):
    true, false = record["true_statement"], record["false_statement"]
    nouns = [prompts["noun"].format(noun=record[key]) for key in ("existent_noun", "non-existent_noun")]
    usual = files.image_in(_vlind_folder(root, "factual", record, "factual_context"), "0")
    pictures = _vlind_folder(root, "counterfactual", record, "context")
    chosen = files.image_in(pictures, best)
    steps = [("a1", "a", false, usual), ("a2", "a", true, usual), ("b1", "b", nouns[0], chosen)]
    steps += [("b2", "b", nouns[1], chosen), ("c1", "c", true, chosen), ("c2", "c", false, chosen)]
    for image in good:
        picture = files.image_in(pictures, image)
        steps += [(f"d1:{image}", "d", true, picture), (f"d2:{image}", "d", false, picture)]
    return [
        Question(
            f"{example_id}/{step}",
            example_id,
            prompts[form].format(statement=statement, context=record["context"]),
            picture,
        )
        for step, form, statement, picture in steps
    ]


def _vlind_folder(root, kind, record, context):
    """images/<kind>/<concept>/<context_id>_<context>; if its name was changed (a full stop lost), by its number."""
    parent = root / "images" / kind / str(record["concept"])
    folder = parent / f"{record['context_id']}_{record[context]}"
    if not folder.is_dir():
        found = list(parent.glob(f"{record['context_id']}_*"))
        return found[0] if len(found) == 1 else folder
    return folder


def vlind_filled(records, asked, answers, model_id):
    """The records of data.json with the model's answers, as the official prediction script leaves them."""
    filled = []
    for number, record in enumerate(records):
        example_id, record = str(record.get("global_id", number)), dict(record)
        if example_id in asked:
            for step in ("a1", "a2", "c1", "c2", "b1", "b2"):
                answer = answers[f"{example_id}/{step}"]
                judged = {"response": answer, "answer": vlind.infer_true_or_false(answer)}
                record[f"{model_id}_pred_{VLIND_KEYS.get(step, step)}"] = judged
            for step in ("d1", "d2"):
                said = {image: answers[f"{example_id}/{step}:{image}"] for image in vlind.good_images(record)}
                record[f"{model_id}_pred_{step}"] = {
                    image: {"response": text, "answer": vlind.infer_true_or_false(text)} for image, text in said.items()
                }
        filled.append(record)
    return filled


# ---- Object HalBench ------------------------------------------------------------------------------------------------


def _objhal(files, limit):
    path = files.path(*OBJHAL_QUESTIONS)
    rows = read_records(path)[:limit]
    images = [row.get("image") or files.image(f"COCO_val2014_{int(row['image_id']):012d}") for row in rows]
    questions = [Question(str(i), str(i), row["question"], images[i]) for i, row in enumerate(rows)]

    def predictions(answers, model_id):
        lines = [
            {"question_id": i, "image_id": row["image_id"], "prompt": row["question"], "text": answers[str(i)]}
            for i, row in enumerate(rows)
        ]
        return {"obj_halbench_answer.jsonl": _json_lines([line | {"model_id": model_id} for line in lines])}

    return questions, predictions


# ---- AMBER ----------------------------------------------------------------------------------------------------------


def _amber(files, task, limit):
    types = {row["id"]: row["type"] for row in read_records(files.path("annotations.json"))}
    own, kinds = AMBER_TASKS[task]
    listed = read_records(files.path(own, AMBER_QUERIES))
    rows = [row for row in listed if types[row["id"]].startswith(kinds)][:limit]
    questions = [Question(str(row["id"]), str(row["id"]), row["query"], files.image(row["image"])) for row in rows]

    def predictions(answers, model_id):
        said = {row["id"]: answers[str(row["id"])] for row in rows}
        plain = {i: text if types[i] == "generative" else yes_or_no(text) for i, text in said.items()}
        return {"predictions.json": _json([{"id": i, "response": text} for i, text in plain.items()])}

    return questions, predictions


def yes_or_no(text):
    """ "Yes" or "No" where an answer starts with the word, else the answer: AMBER counts anything else as wrong."""
    first = re.match(r"\W*(yes|no)\b", text, re.IGNORECASE)
    return first.group(1).capitalize() if first else text


# ---- MMHal-Bench ----------------------------------------------------------------------------------------------------


def _mmhal(files, limit):
    rows = read_records(files.path("mmhal-bench_answer_template.json", "mmhal-bench_with_image.jsonl"))[:limit]
    if "mmhal-bench_with_image.jsonl" in files.by_name:  # RLHF-V's copy, same order, with the images in it
        images = [row["image"] for row in read_records(files.by_name["mmhal-bench_with_image.jsonl"])]
        if len(images) < len(rows):
            raise BadInput(
                f"mmhal-bench_with_image.jsonl has {len(images)} rows, the template {len(rows)}: get both again"
            )
    else:
        images = [files.image(str(row["image_id"]), Path(row["image_src"]).name) for row in rows]
    questions = [Question(str(i), str(i), row["question"], images[i]) for i, row in enumerate(rows)]

    def predictions(answers, model_id):
        lines = [
            {"question_id": i, "prompt": row["question"], "text": answers[str(i)], "image_id": row.get("image_id")}
            for i, row in enumerate(rows)
        ]
        return {"mmhal-bench_answer.jsonl": _json_lines([line | {"model_id": model_id} for line in lines])}

    return questions, predictions


# ---- POPE -----------------------------------------------------------------------------------------------------------


def _pope(files, limit):
    rows = {}
    for split in POPE_SPLITS:
        if (name := f"coco_pope_{split}.json") in files.by_name:
            rows[split] = read_records(files.by_name[name])[:limit]
    if not rows:
        files.path(*(f"coco_pope_{split}.json" for split in POPE_SPLITS))
    questions = [
        Question(key := f"{split}/{row['question_id']}", key, row["text"], files.image(row["image"]))
        for split, of_split in rows.items()
        for row in of_split
    ]

    def predictions(answers, model_id):
        return {
            f"coco_pope_{split}_answers.jsonl": _json_lines(
                {
                    "question": row["text"],
                    "question_id": row["question_id"],
                    "answer": answers[f"{split}/{row['question_id']}"],
                }
                for row in of_split
            )
            for split, of_split in rows.items()
        }

    return questions, predictions
