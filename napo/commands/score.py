"""`napo score BENCHMARK …`: official scores of a prediction file, as one JSON object.

Errors of the official script that distort the scores silently are listed in "notices".
"""

import json
import sys

from napo.commands import command
from napo.official import amber, mmhal, objhal, pope, similarity, vlind
from napo.official.records import read_predictions
from napo.workshop.files import atomic, shown

READERS = {  # of the options that name no file of predictions
    "coco": objhal.Coco.read,
    "synonyms": objhal.Synonyms.read,
    "amber-data": amber.Annotations.read,
    "reviews": mmhal.read_reviews,
}
BENCHMARKS = {  # name: (description, options that name the input)
    "vlind": ("VLind-Bench's six columns", ("predictions",)),
    "objhal": ("Object HalBench, judge-free", ("predictions", "coco", "synonyms")),
    "amber": ("AMBER, generative and discriminative", ("predictions", "amber-data")),
    "mmhal": ("MMHal-Bench from a judge's reviews", ("reviews",)),
    "pope": ("POPE", ("questions", "answers")),
}


def parser():
    top = command.parser("score")
    kinds = top.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    add = {}
    for name, (description, inputs) in BENCHMARKS.items():
        add[name] = kinds.add_parser(name, help=description).add_argument
        for option in inputs:
            add[name](f"--{option}", required=True, type=READERS.get(option, read_predictions), metavar="PATH")
        add[name]("--examples", metavar="FILE", help="also write one value per example and metric (JSON lines)")
    add["vlind"]("--model-id", required=True, help="prefix of the answers' keys in the records")
    add["vlind"]("--min-votes", type=int, default=2, help="votes that make an image good; default: 2")
    add["vlind"]("--style", choices=vlind.STYLES, default="all")
    add["vlind"]("--data", type=read_predictions, metavar="FILE", help="data.json, to report what is missing")
    add["objhal"](
        "--questions", type=read_predictions, metavar="FILE", help="gives rows without image_id theirs, by place"
    )
    add["amber"]("--task", choices="a g d da de dr".split(), required=True)
    add["amber"]("--similarity", default="spacy", help="spacy (default, official), exact or table:FILE")
    add["amber"]("--threshold", type=float, default=0.8, help="default: 0.8")
    return top


def score(asked):
    """The official scorer's Result for what the command line asks."""
    match asked.benchmark:
        case "vlind":
            return vlind.score(asked.predictions, asked.model_id, asked.min_votes, asked.style, asked.data)
        case "objhal":
            return objhal.score(asked.predictions, asked.coco, asked.synonyms, asked.questions)
        case "amber":
            similar = similarity.get(asked.similarity, asked.threshold) if asked.task in ("a", "g") else (None, None)
            return amber.score(asked.predictions, asked.amber_data, asked.task, *similar)
        case "mmhal":
            return mmhal.score(asked.reviews)
        case "pope":
            return pope.score(asked.questions, asked.answers)


@command.exit_status
def main(arguments=None):
    asked = parser().parse_args(arguments)
    result = score(asked)
    if asked.examples:
        with atomic(asked.examples) as path:
            path.write_text("".join(json.dumps(row) + "\n" for row in result.examples), encoding="utf-8")
        result.details["examples"] = shown(asked.examples)
    for notice in result.notices:
        print(f"note: {notice}", file=sys.stderr)
    print(json.dumps({"benchmark": result.benchmark} | result.as_json(), indent=1))
