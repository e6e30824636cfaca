"""From answers to official prediction files, and from these to official scores: which annotations each scorer reads."""

from dataclasses import dataclass, replace
from pathlib import Path

from napo import artifacts, asking
from napo.artifacts import shown
from napo.benchmarks import OBJHAL_QUESTIONS, POPE_SPLITS, data_folder
from napo.score import amber, mmhal, objhal, pope, similarity, vlind, words
from napo.score.records import read_predictions

COCO_KINDS, COCO_PARTS = ("instances", "captions"), ("train", "val")


@dataclass(frozen=True)
class Scoring:
    """What a user chooses about scores."""

    similarity: str = "spacy"  # of AMBER's words: spacy (official), exact or table:FILE
    reviews: str = ""  # of MMHal-Bench: the judge's reviews, a file or folder


def predict(asked, answers, folder, model_id):
    """Path of folder/predictions/, with a folder of official prediction files for each benchmark."""

    def make(path):
        table = artifacts.read_parquet(answers, "04")
        for benchmark in asked:
            rows = table[table["benchmark"] == benchmark.name]
            files = benchmark.predictions(dict(zip(rows["key"], rows["answer"], strict=True)), model_id)
            (path / benchmark.name).mkdir(parents=True)
            for name, content in files.items():
                (path / benchmark.name / name).write_text(content, encoding="utf-8")
        path.mkdir(exist_ok=True)

    settings = {"model_id": model_id, "questions": {b.name: asking.digest(b) for b in asked}}
    return artifacts.build(folder / "predictions", make, settings=settings, modules=("benchmarks",), inputs=[answers])


def results(asked, predictions, model_id, chosen):
    """{benchmark name: list of the official scorers' Results} of the benchmarks with a scorer of their own."""
    return {b.name: score(b, predictions / b.name, model_id, chosen) for b in asked if b.name in SCORERS}


def score(benchmark, folder, model_id, scoring=Scoring()):
    """Results of the official scorer for one benchmark's prediction files: a list, one per POPE split, else of one.

    benchmark  benchmarks.Benchmark;  folder  of its prediction files;  model_id  the one they were written with
    Empty for MMHal-Bench without reviews: its answers need a judge first. Raises BadInput.
    """
    files = data_folder(benchmark.name, benchmark.folder)
    return SCORERS[benchmark.name](benchmark, files, Path(folder), model_id, scoring)


def check(benchmark, scoring=Scoring()):
    """Raises BadInput now for what would be missing after hours of asking: annotations, NLTK, spaCy's model."""
    if benchmark.name not in SCORERS:
        return
    files, plain = data_folder(benchmark.name, benchmark.folder), plain_words(benchmark)
    if benchmark.name == "objhal":
        _coco_folder(files)
        objhal.Synonyms.read(files.path("synonyms_refine.txt"))
        (plain or words.lemmas)("a dog")
    if benchmark.name == "amber":
        amber.Annotations.read(files.path("annotations.json").parent)
        if benchmark.task in ("a", "g"):
            similarity.get(scoring.similarity)
            (plain or words.nouns)("a dog")


def annotations(benchmark):
    """The files that a benchmark's scores depend on besides its prediction files."""
    if benchmark.name not in SCORERS:
        return []
    files = data_folder(benchmark.name, benchmark.folder)
    names = {
        "vlind": ["data.json"],
        "objhal": ["synonyms_refine.txt", *(f"{kind}_{part}2014.json" for kind in COCO_KINDS for part in COCO_PARTS)],
        "amber": ["annotations.json", "relation.json", "safe_words.txt"],
        "mmhal": [],
        "pope": [name for split in POPE_SPLITS if (name := f"coco_pope_{split}.json") in files.by_name],
    }
    return [files.path(name) for name in names[benchmark.name]]


def plain_words(benchmark):
    """The callable that takes an adapted benchmark's texts apart; None for the official ones: NLTK does."""
    return str.split if benchmark.adapted.get("words") == "blanks" else None


def _vlind(benchmark, files, folder, model_id, scoring):
    records = read_predictions(files.path("data.json")) if benchmark.adapted else None  # else 302 are expected
    return [vlind.score(read_predictions(folder / "predictions.json"), model_id, annotations=records)]


def _objhal(benchmark, files, folder, model_id, scoring):
    coco, synonyms = objhal.Coco.read(_coco_folder(files)), objhal.Synonyms.read(files.path("synonyms_refine.txt"))
    questions = read_predictions(files.path(*OBJHAL_QUESTIONS))
    captions = read_predictions(folder / "obj_halbench_answer.jsonl")
    lemmas, own = plain_words(benchmark) or words.lemmas, bool(benchmark.adapted)
    return [objhal.score(captions, coco, synonyms, questions, lemmas, allow_silence=own)]


def _coco_folder(files):
    return [files.path(f"{kind}_{part}2014.json") for kind in COCO_KINDS for part in COCO_PARTS][0].parent


def _amber(benchmark, files, folder, model_id, scoring):
    similar, about = similarity.get(scoring.similarity) if benchmark.task in ("a", "g") else (None, "")
    annotations = amber.Annotations.read(files.path("annotations.json").parent)
    answers = read_predictions(folder / "predictions.json")
    nouns = plain_words(benchmark) or words.nouns
    return [amber.score(answers, annotations, benchmark.task, similar, about, nouns)]


def _mmhal(benchmark, files, folder, model_id, scoring):
    return [mmhal.score(mmhal.read_reviews(scoring.reviews))] if scoring.reviews else []


def _pope(benchmark, files, folder, model_id, scoring):
    results = []
    for split in POPE_SPLITS:
        answers = folder / f"coco_pope_{split}_answers.jsonl"
        if answers.exists():
            result = pope.score(read_predictions(files.path(f"coco_pope_{split}.json")), read_predictions(answers))
            rows = [row | {"example_id": f"{split}/{row['example_id']}"} for row in result.examples]
            results.append(replace(result, examples=rows, details=result.details | {"split": split}))
    return results


SCORERS = {"vlind": _vlind, "objhal": _objhal, "amber": _amber, "mmhal": _mmhal, "pope": _pope}


def as_json(results):
    """One object for one or several results of a benchmark, as the command line prints it."""
    if len(results) == 1:
        return {"benchmark": results[0].benchmark} | results[0].as_json()
    return {"benchmark": results[0].benchmark, "splits": {r.details["split"]: r.as_json() for r in results}}


def unscored(name, folder, limit):
    """Why there are answers and no score, and what to do."""
    if limit:
        return f"the first {limit} examples only, so no score; run without --limit for one"
    return (
        f"no score yet: a judge has to review the answers in {shown(folder)}/predictions (`python -m napo.score.judge "
        "--help`); then run the same command again with --reviews FILE"
    )
