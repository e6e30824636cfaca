"""What the official benchmarks ask a model, and the prediction files that its answers become.

A data folder holds a benchmark's official files, in any sub-folders. Images are found by file name; VLind-Bench's names
repeat, so its images are found by folder. A folder with other items in an official layout (the desk world's) says so
in `adapted.json`: "prompts" replace VLind-Bench's templates; "words": "blanks" says that blanks separate words, so
scoring needs no tokenizer.
"""

import base64
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from napo.official import amber, vlind
from napo.official.datafolder import DataFolder
from napo.official.records import read_records, shipped
from napo.workshop import pictures
from napo.workshop.files import BadInput, first_line, shown

AMBER_QUERIES = "query_all.json"
# Task: its own list of questions, and how the types of its annotations start.
AMBER_TASKS = {name: (task["list"], tuple(task["types"])) for name, task in amber.TASKS.items()}
AMBER_CAPTIONS = 1004  # official ids up to this one ask for a caption, later ones for yes or no
OBJHAL_QUESTIONS = ("obj_halbench_300_with_image.jsonl", "objhal_300_index.jsonl")
POPE_SPLITS = ("random", "popular", "adversarial")

VLIND_PROMPTS = shipped("vlind.toml")["prompts"]
# The NaPO authors' copy differs in one word.
VLIND_PAPER_PROMPTS = VLIND_PROMPTS | {"a": VLIND_PROMPTS["a"].replace("on the common", "on common")}


@dataclass(frozen=True)
class Question:
    """One prompt for a model."""

    key: str  # names the question
    example_id: str  # names the example whose score it enters
    text: str
    image: Path | str | Image.Image  # a file, the base64 text that two benchmarks ship, or a PIL image

    def opened(self):
        """The image as RGB. Raises BadInput if it cannot be read."""
        try:
            if isinstance(self.image, Image.Image):
                return self.image
            return pictures.rgb(self.image if isinstance(self.image, Path) else base64.b64decode(self.image))
        except Exception as error:  # decoders raise whatever they like on damage
            place = shown(self.image) if isinstance(self.image, Path) else f"image of example {self.example_id}"
            raise BadInput(f"{place}: not a readable image ({first_line(error)}); get it again") from error


@dataclass(frozen=True)
class Benchmark:
    """Questions in the official order, and how answers become the official prediction files."""

    name: str
    folder: Path | None  # its data; None for items that are made here (the desk world's own)
    questions: tuple[Question, ...]
    predictions: Callable[[dict, str], dict]  # ({question key: answer}, model id) -> {file name: content}
    adapted: dict = field(default_factory=dict)  # content of adapted.json; {} for official data
    task: str = ""  # of AMBER
    files: tuple[Path, ...] = ()  # what it was read from

    @property
    def n_generative(self):
        """The number of examples that the paper's columns count: all, but for AMBER's yes-or-no questions."""
        examples, both = {question.example_id for question in self.questions}, (self.name, self.task) == ("amber", "a")
        return sum(int(example) <= AMBER_CAPTIONS for example in examples) if both else len(examples)


def read(name, folder, *, task="g", prompts="official", limit=None):
    """The Benchmark of a data folder.

    task     of AMBER: a, g, d, da, de or dr
    prompts  "official", or "paper" for VLind-Bench's wording and choice of images in the NaPO authors' scripts
    limit    the first so many examples only
    Raises BadInput for an unknown benchmark or task, and for missing or faulty files and missing images.
    """
    if name not in NAMES:
        raise BadInput(f"unknown benchmark {name!r}: use one of {', '.join(NAMES)}")
    if not Path(folder).is_dir():
        raise BadInput(f"no folder {shown(folder)} with the data of {name}: run `make data` or give another by --data")
    if task not in AMBER_TASKS:
        raise BadInput(f"unknown AMBER task {task!r}: use one of {', '.join(AMBER_TASKS)}")
    files = DataFolder(name, folder)
    adapted = files.adapted
    try:
        questions, predictions = _READERS[name](files, limit, task, prompts)
    except (KeyError, TypeError, AttributeError, OSError) as error:
        reason = f"no field {error}" if isinstance(error, KeyError) else first_line(error)[:150]
        raise BadInput(f"{shown(folder)}: not the files of {name} ({reason}); get them again") from error
    files.check_images()
    if not questions:
        raise BadInput(f"{shown(folder)}: {name} has no example that can be asked: get its files again")
    keys = Counter(question.key for question in questions)
    for question in questions:
        if keys[question.key] > 1 or not isinstance(question.text, str):
            wrong = "is no text" if keys[question.key] == 1 else "stands there twice"
            raise BadInput(f"{shown(folder)}: question {question.key[:100]} of {name} {wrong}: get its files again")
    task, made_from = task if name == "amber" else "", tuple(dict.fromkeys(files.read))
    return Benchmark(name, Path(folder), tuple(questions), predictions, adapted, task, made_from)


def _json(value):
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _json_lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _vlind(files, limit, task, prompts):
    path, asked, questions = files.path("data.json"), {}, []
    records = read_records(path)
    templates = (VLIND_PAPER_PROMPTS if prompts == "paper" else VLIND_PROMPTS) | files.adapted.get("prompts", {})
    for example_id, record in zip(vlind.identities_of(records), records, strict=True):
        good = vlind.good_images(record)
        if not good or len(asked) == limit:
            continue
        if example_id in asked:
            raise BadInput(f"{shown(path)}: two records have the global_id {example_id}; get it again")
        asked[example_id] = record
        best = str(record["best_img_id"])
        if prompts == "paper":  # the authors' script takes the image with most votes, of several the first in the file
            best = max(good, key=record["aggregated_human_label_good_images"].get)
        for step, statement, picture in _vlind_steps(files, record, templates["noun"], best, good):
            text = templates[step[0]].format(statement=statement, context=record["context"])
            questions.append(Question(f"{example_id}/{step}", example_id, text, picture))
    kept = records if limit is None else list(asked.values())

    def predictions(answers, model_id):
        return {"predictions.json": _json(vlind_filled(kept, asked, answers, model_id))}

    return questions, predictions


def _vlind_steps(files, record, noun, best, good):
    """[(step, statement, image)] of one record."""
    true, false = record["true_statement"], record["false_statement"]
    usual = files.image_in(_vlind_folder(files, "factual", record, "factual_context"), "0")
    pictures = _vlind_folder(files, "counterfactual", record, "context")
    chosen = files.image_in(pictures, best)
    there, absent = (noun.format(noun=record[name]) for name in ("existent_noun", "non-existent_noun"))
    steps = [("a1", false, usual), ("a2", true, usual), ("b1", there, chosen), ("b2", absent, chosen)]
    steps += [("c1", true, chosen), ("c2", false, chosen)]
    for image in good:
        picture = files.image_in(pictures, image)
        steps += [(f"d1:{image}", true, picture), (f"d2:{image}", false, picture)]
    return steps


def _vlind_folder(files, kind, record, context):
    """images/<kind>/<concept>/<context_id>_<context>; by its number if the name was changed (a full stop lost)."""
    parent = files.path("data.json").parent / "images" / kind / str(record["concept"])
    folder = parent / f"{record['context_id']}_{record[context]}"
    by_number = [] if folder.is_dir() else list(parent.glob(f"{record['context_id']}_*"))
    return by_number[0] if len(by_number) == 1 else folder


def vlind_filled(records, asked, answers, model_id):
    """The records of data.json with the model's answers, as the official prediction script writes them."""

    def judged(key):
        return {"response": answers[key], "answer": vlind.infer_true_or_false(answers[key])}

    filled = []
    for example_id, record in zip(vlind.identities_of(records), records, strict=True):
        said = {}
        if example_id in asked:
            said = {step: judged(f"{example_id}/{step[:2]}") for step in vlind.SINGLE}
            good = vlind.good_images(record)
            said |= {d: {image: judged(f"{example_id}/{d}:{image}") for image in good} for d in vlind.PER_IMAGE}
        filled.append(record | {f"{model_id}_pred_{step}": answer for step, answer in said.items()})
    return filled


def _objhal(files, limit, task, prompts):
    rows = read_records(files.path(*OBJHAL_QUESTIONS))[:limit]
    images = [row.get("image") or files.image(f"COCO_val2014_{int(row['image_id']):012d}") for row in rows]
    return _by_place(rows, images, "obj_halbench_answer.jsonl")


def _by_place(rows, images, file):
    """Questions that are known by their place, and their answers as LLaVA's scripts write them."""
    questions = [Question(str(i), str(i), row["question"], images[i]) for i, row in enumerate(rows)]

    def predictions(answers, model_id):
        lines = []
        for i, row in enumerate(rows):
            line = {"question_id": i, "image_id": row.get("image_id"), "prompt": row["question"]}
            lines.append(line | {"text": answers[str(i)], "model_id": model_id})
        return {file: _json_lines(lines)}

    return questions, predictions


def _amber(files, limit, task, prompts):
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
    """ "Yes" or "No" if an answer starts with that word, else the answer. AMBER counts all other answers as wrong."""
    first = re.match(r"\W*(yes|no)\b", text, re.IGNORECASE)
    return first.group(1).capitalize() if first else text


def _mmhal(files, limit, task, prompts):
    with_image = "mmhal-bench_with_image.jsonl"  # RLHF-V's copy, in the same order, holds the images
    rows = read_records(files.path("mmhal-bench_answer_template.json", with_image))[:limit]
    if with_image in files.by_name:
        images = [row["image"] for row in read_records(files.path(with_image))]
        if len(images) < len(rows):
            raise BadInput(f"{with_image} has {len(images)} rows, the template {len(rows)}: get both again")
    else:
        images = [files.image(str(row["image_id"]), Path(row["image_src"]).name) for row in rows]
    return _by_place(rows, images, "mmhal-bench_answer.jsonl")


def _pope(files, limit, task, prompts):
    names = {split: f"coco_pope_{split}.json" for split in POPE_SPLITS}
    files.path(*names.values())  # raises BadInput if there is none
    there = [split for split, name in names.items() if name in files.by_name]
    rows = [(split, row) for split in there for row in read_records(files.path(names[split]))[:limit]]
    keys = [f"{split}/{row['question_id']}" for split, row in rows]
    images = [files.image(row["image"]) for _, row in rows]
    questions = [Question(key, key, rows[i][1]["text"], images[i]) for i, key in enumerate(keys)]

    def predictions(answers, model_id):
        lines = {split: [] for split in there}
        for key, (split, row) in zip(keys, rows, strict=True):
            lines[split].append({"question": row["text"], "question_id": row["question_id"], "answer": answers[key]})
        return {f"coco_pope_{split}_answers.jsonl": _json_lines(of_split) for split, of_split in lines.items()}

    return questions, predictions


_READERS = {"vlind": _vlind, "objhal": _objhal, "amber": _amber, "mmhal": _mmhal, "pope": _pope}
NAMES = tuple(_READERS)
