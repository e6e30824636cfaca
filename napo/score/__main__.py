"""python -m napo.score BENCHMARK …: official scores of a prediction file, as one JSON object.

Exit 2 and one line if the input cannot be scored; what the official script would silently get wrong is in "notices".
"""

import argparse
import json
import sys

from napo import artifacts
from napo.artifacts import BadInput, shown
from napo.score import amber, mmhal, objhal, pope, similarity, vlind
from napo.score.records import read_predictions


class Parser(argparse.ArgumentParser):
    """One line for a wrong call, as for any other bad input."""

    def error(self, message):
        print(f"error: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def _vlind(a):
    annotations = read_predictions(a.data) if a.data else None
    return vlind.score(read_predictions(a.predictions), a.model_id, a.min_votes, a.style, annotations)


def _objhal(a):
    questions = read_predictions(a.questions) if a.questions else None
    synonyms = objhal.Synonyms.read(a.synonyms)
    return objhal.score(read_predictions(a.predictions), objhal.Coco.read(a.coco), synonyms, questions)


def _amber(a):
    if a.task in ("a", "g"):
        similar, about = similarity.get(a.similarity, a.threshold)
    else:
        similar = about = None
    return amber.score(read_predictions(a.predictions), amber.Annotations.read(a.amber_data), a.task, similar, about)


def _mmhal(a):
    return mmhal.score(mmhal.read_reviews(a.reviews))


def _pope(a):
    return pope.score(read_predictions(a.questions), read_predictions(a.answers))


def parser():
    top = Parser(prog="python -m napo.score", description="Official benchmark scores of prediction files.")
    kinds = top.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK", parser_class=Parser)
    add = {name: kinds.add_parser(name, help=text) for name, text in HELP.items()}
    for name, file in FILES:
        add[name].add_argument(f"--{file}", required=True, metavar="PATH")
    add["vlind"].add_argument("--model-id", required=True, help="prefix of the answers' keys in the records")
    add["vlind"].add_argument("--min-votes", type=int, default=2, help="votes that make an image good; default: 2")
    add["vlind"].add_argument("--style", choices=vlind.STYLES, default="all")
    add["vlind"].add_argument("--data", metavar="FILE", help="data.json, to report what is missing")
    add["objhal"].add_argument("--questions", metavar="FILE", help="gives rows without image_id theirs, by place")
    add["amber"].add_argument("--task", choices="a g d da de dr".split(), required=True)
    add["amber"].add_argument("--similarity", default="spacy", help="spacy (default, official), exact or table:FILE")
    add["amber"].add_argument("--threshold", type=float, default=0.8, help="default: 0.8")
    for one in add.values():
        one.add_argument("--examples", metavar="FILE", help="also write one value per example and metric (JSON lines)")
    return top


HELP = {
    "vlind": "VLind-Bench's six columns",
    "objhal": "Object HalBench, judge-free",
    "amber": "AMBER, generative and discriminative",
    "mmhal": "MMHal-Bench from a judge's reviews",
    "pope": "POPE",
}
FILES = [
    ("vlind", "predictions"),
    ("objhal", "predictions"),
    ("objhal", "coco"),
    ("objhal", "synonyms"),
    ("amber", "predictions"),
    ("amber", "amber-data"),
    ("mmhal", "reviews"),
    ("pope", "questions"),
    ("pope", "answers"),
]
SCORERS = {"vlind": _vlind, "objhal": _objhal, "amber": _amber, "mmhal": _mmhal, "pope": _pope}


def write_examples(rows, path):
    """One JSON object per line, whole or not at all."""
    with artifacts.atomic(path) as temporary:
        lines = (json.dumps(row) + "\n" for row in rows)
        temporary.write_text("".join(lines), encoding="utf-8")


def main(arguments=None):
    """The command; returns the exit status."""
    asked = parser().parse_args(arguments)
    try:
        result = SCORERS[asked.benchmark](asked)
        if asked.examples:
            write_examples(result.examples, asked.examples)
            result.details["examples"] = shown(asked.examples)
    except BadInput as error:
        print("error: " + " ".join(str(error).split("\n")), file=sys.stderr)
        return 2
    for notice in result.notices:
        print(f"note: {notice}", file=sys.stderr)
    print(json.dumps({"benchmark": result.benchmark} | result.as_json(), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
