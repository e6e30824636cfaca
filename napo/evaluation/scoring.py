"""From answers to official prediction files, and from these to official scores."""

from dataclasses import dataclass, replace
from pathlib import Path

from napo.evaluation import asking
from napo.official import amber, mmhal, objhal, pope, similarity, vlind, words
from napo.official.benchmarks import NAMES, OBJHAL_QUESTIONS, POPE_SPLITS
from napo.official.datafolder import DataFolder
from napo.official.records import read_predictions
from napo.workshop import artifacts
from napo.workshop.files import read_parquet, shown

COCO_FILES = [f"{kind}_{part}2014.json" for kind in ("instances", "captions") for part in ("train", "val")]
# Files that a scorer reads besides the prediction files and those with the questions.
ANNOTATIONS = {"objhal": ["synonyms_refine.txt", *COCO_FILES], "amber": ["relation.json", "safe_words.txt"]}


@dataclass(frozen=True)
class Scoring:
    """What a user chooses about scores."""

    similarity: str = "spacy"  # of AMBER's words: spacy (official), exact or table:FILE
    reviews: str = ""  # a judge's reviews of MMHal-Bench's answers: a file or folder


def predict(asked, answers, folder, model_id):
    """Path of folder/predictions/, made unless current: a folder of official prediction files for each benchmark."""

    def make(path):
        table = read_parquet(answers, "04")
        path.mkdir()
        for benchmark in asked:
            rows = table[table["benchmark"] == benchmark.name]
            files = benchmark.predictions(dict(zip(rows["key"], rows["answer"], strict=True)), model_id)
            (path / benchmark.name).mkdir()
            for name, content in files.items():
                (path / benchmark.name / name).write_text(content, encoding="utf-8")

    settings = {"model_id": model_id, "questions": {b.name: asking.digest(b) for b in asked}}
    depends = {"settings": settings, "stage": "evaluation", "desk": any(b.folder is None for b in asked)}
    inputs = [answers, *(file for benchmark in asked for file in benchmark.files)]
    return artifacts.build(folder / "predictions", make, **depends, inputs=inputs)


def results(asked, predictions, model_id, chosen):
    """{benchmark name: list of the official scorer's Results}, for benchmarks with an official scorer."""
    return {b.name: score(b, predictions / b.name, model_id, chosen) for b in asked if b.name in NAMES}


def score(benchmark, folder, model_id, chosen=Scoring()):
    """Results of the official scorer for one benchmark: a list of one, or of one per POPE split.

    benchmark  benchmarks.Benchmark
    folder     its prediction files
    model_id   the model id in these files
    Empty for MMHal-Bench without reviews, whose answers need a judge first. Raises BadInput.
    """
    files, folder = DataFolder(benchmark.name, benchmark.folder), Path(folder)
    match benchmark.name:
        case "vlind":
            records = read_predictions(files.path("data.json")) if benchmark.adapted else None  # None: 302 are expected
            return [vlind.score(read_predictions(folder / "predictions.json"), model_id, annotations=records)]
        case "objhal":
            captions = read_predictions(folder / "obj_halbench_answer.jsonl")
            coco = objhal.Coco.read(files.path(COCO_FILES[0]).parent)
            synonyms = objhal.Synonyms.read(files.path("synonyms_refine.txt"))
            questions, lemmas = read_predictions(files.path(*OBJHAL_QUESTIONS)), _words(benchmark, words.lemmas)
            return [objhal.score(captions, coco, synonyms, questions, lemmas, allow_silence=bool(benchmark.adapted))]
        case "amber":
            similar = similarity.get(chosen.similarity) if benchmark.task in ("a", "g") else (None, "")
            answers, known = read_predictions(folder / "predictions.json"), _amber_annotations(files)
            return [amber.score(answers, known, benchmark.task, *similar, _words(benchmark, words.nouns))]
        case "mmhal":
            return [mmhal.score(mmhal.read_reviews(chosen.reviews))] if chosen.reviews else []
        case "pope":
            there = [(split, folder / f"coco_pope_{split}_answers.jsonl") for split in POPE_SPLITS]
            return [_pope_split(files, split, answers) for split, answers in there if answers.exists()]


def _pope_split(files, split, answers):
    result = pope.score(read_predictions(files.path(f"coco_pope_{split}.json")), read_predictions(answers))
    rows = [row | {"example_id": f"{split}/{row['example_id']}"} for row in result.examples]
    return replace(result, examples=rows, details=result.details | {"split": split})


def _amber_annotations(files):
    return amber.Annotations.read(files.path("annotations.json").parent)


def check(benchmark, chosen=Scoring()):
    """Raises BadInput if annotations, NLTK or spaCy's model are missing: before hours of asking, not after."""
    annotations(benchmark, chosen)
    if benchmark.name == "objhal":
        objhal.Synonyms.read(DataFolder("objhal", benchmark.folder).path("synonyms_refine.txt"))
        _words(benchmark, words.lemmas)("a dog")
    if benchmark.name == "amber":
        _amber_annotations(DataFolder("amber", benchmark.folder))
        if benchmark.task in ("a", "g"):
            similarity.get(chosen.similarity)
            _words(benchmark, words.nouns)("a dog")


def annotations(benchmark, chosen=Scoring()):
    """All files that a benchmark's scores depend on besides its prediction files. Raises BadInput if one is missing."""
    found = list(benchmark.files)
    if benchmark.name in ANNOTATIONS:
        files = DataFolder(benchmark.name, benchmark.folder)
        found += [files.path(name) for name in ANNOTATIONS[benchmark.name]]
    if benchmark.name == "amber" and (table := similarity.table_file(chosen.similarity)):
        found.append(table)
    return found


def _words(benchmark, official):
    """The function that finds a text's words: blanks separate those of the desk world, official texts need NLTK."""
    return str.split if benchmark.adapted.get("words") == "blanks" else official


def as_json(results):
    """One object for the results of a benchmark, as the command line prints it."""
    if len(results) == 1:
        return {"benchmark": results[0].benchmark} | results[0].as_json()
    return {"benchmark": results[0].benchmark, "splits": {r.details["split"]: r.as_json() for r in results}}


def unscored(folder, limit):
    """Why a benchmark has answers but no score, and the remedy."""
    if limit:
        return f"the first {limit} examples only, so no score; run without --limit for one"
    todo = f"have the answers in {shown(folder)}/predictions reviewed (`napo judge --help`)"
    return f"no score yet: {todo}, then run the same command again with --reviews FILE"
