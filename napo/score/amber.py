"""AMBER: captions against the objects of an image (generative), and yes-or-no questions (discriminative).

Metric: junyangwang0410/AMBER inference.py. All numbers are in percent, as there. Oddities that count stand where they
happen. NaPO's log calls Cog "Ha" and Hal "Ha_p".
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from napo.artifacts import BadInput, shown
from napo.score import words
from napo.score.records import (
    Result,
    blank,
    integer_of,
    long_rows,
    read_json,
    read_text,
    repeated,
    some,
    text_of,
    where,
)

TINY = 0.001  # where every denominator starts, so that nothing divides by zero: an empty score is 0, never undefined
PARTS = {
    "discriminative-attribute-state": "State",
    "discriminative-attribute-number": "Number",
    "discriminative-attribute-action": "Action",
    "discriminative-hallucination": "Existence",
    "discriminative-relation": "Relation",
    "relation": "Relation",
}
SECTIONS = {  # name: the parts it pools, in the official order
    "Discriminative": ("State", "Number", "Action", "Existence", "Relation"),
    "Existence": ("Existence",),
    "Attribute": ("State", "Number", "Action"),
    "State": ("State",),
    "Number": ("Number",),
    "Action": ("Action",),
    "Relation": ("Relation",),
}
TASKS = {  # what is shown; all predictions are always counted
    "g": (),
    "de": ("Existence",),
    "da": ("Attribute", "State", "Number", "Action"),
    "dr": ("Relation",),
    "d": tuple(SECTIONS),
    "a": tuple(SECTIONS),
}
TITLES = {"Discriminative": "Descriminative Task", "Existence": "Exsitence"}  # spelt as officially
SIZE = 15220  # annotations of the published version


@dataclass(frozen=True)
class Annotations:
    """records: annotations by place, id = place + 1; associations: word → words that mean much the same; safe: words
    that are never hallucinated; vocabulary: words that count at all."""

    records: list[dict]
    associations: dict[str, list[str]]
    safe: frozenset[str]

    @property
    def vocabulary(self):
        return frozenset(self.associations) | {word for found in self.associations.values() for word in found}

    @classmethod
    def read(cls, folder):
        """From annotations.json, relation.json and safe_words.txt in a folder (or its data/). Raises BadInput."""
        folder = Path(folder)
        if not (folder / "annotations.json").exists() and (folder / "data" / "annotations.json").exists():
            folder /= "data"
        records = read_json(folder / "annotations.json")
        associations = read_json(folder / "relation.json", dict)
        safe = frozenset(read_text(folder / "safe_words.txt").split("\n"))
        for word, found in associations.items():
            if not isinstance(found, list) or not all(isinstance(other, str) for other in found):
                raise BadInput(
                    f"{shown(folder / 'relation.json')}: {word!r} has no list of words: get AMBER's data again"
                )
        for i, record in enumerate(records):
            problem = _wrong(record, i, associations)
            if problem:
                raise BadInput(f"{shown(folder / 'annotations.json')}, record {i}: {problem}: get AMBER's data again")
        return cls(records, associations, safe)

    def ids(self, generative):
        """Ids of one kind."""
        return [record["id"] for record in self.records if (record["type"] == "generative") == generative]


def _wrong(record, i, associations):
    """What is wrong with an annotation; None if nothing. Ids must be places: the official script looks up by place."""
    if not isinstance(record, dict) or record.get("id") != i + 1:
        return f"its id should be {i + 1}"
    if record.get("type") == "generative":
        lists = [record.get("truth"), record.get("hallu")]
        if not all(isinstance(found, list) for found in lists):
            return "truth and hallu must be lists of words"
        strange = [word for found in lists for word in found if not isinstance(word, str) or word not in associations]
        return f"{strange[0]!r} is not in relation.json (files of different versions?)" if strange else None
    if not isinstance(record.get("type"), str) or record["type"] not in PARTS:
        return f"unknown type {record.get('type')!r}"
    return None if record.get("truth") in ("yes", "no") else "truth must be yes or no"


def score(predictions, annotations, task, similar, about="", nouns: Callable[[str], list[str]] = words.nouns):
    """Result of the official script.

    predictions  records {id, response} (official) or {question_id, text} (NaPO's)
    annotations  Annotations
    task         "g" generative, "d" discriminative, "de", "da", "dr" existence, attribute, relation, "a" all
    similar      similar(word, other) -> bool; see similarity.get. `about` says which, for the record
    nouns        response -> its nouns; NLTK by default, any other callable does without
    Raises BadInput for ids that have no annotation, and where the task has no answers at all.
    """
    ids = _ids(predictions, annotations)
    responses = [text_of(predictions, i, "response", "text") for i in range(len(predictions))]
    pairs = [(annotations.records[i - 1], response) for i, response in zip(ids, responses, strict=True)]
    captions = [(a, response) for a, response in pairs if a["type"] == "generative"]
    answers = [(a, response) for a, response in pairs if a["type"] != "generative"]
    _refuse_empty(task, captions, answers)
    result = Result("amber", {}, notices=list(getattr(predictions, "notices", [])) + repeated(predictions, ids, "id"))
    result.notices += _missing(task, set(ids), annotations)
    if task in ("a", "g"):
        _score_captions(result, captions, annotations, similar, about, nouns)
    if task != "g":
        _score_answers(result, answers, task)
    return result


def _ids(predictions, annotations):
    """Ids, each of which must have an annotation: the official script takes the last annotation for id 0, and fails
    beyond the end."""
    ids = [integer_of(predictions, i, "id", "question_id") for i in range(len(predictions))]
    for i, found in enumerate(ids):
        if not 1 <= found <= len(annotations.records):
            raise BadInput(
                f"{where(predictions, i)}: id {found} has no annotation (ids go from 1 to {len(annotations.records)}): "
                "remove it, or use annotations of the same version"
            )
    return ids


def _refuse_empty(task, captions, answers):
    asked = {part for section in TASKS[task] for part in SECTIONS[section]}
    given = {PARTS[annotation["type"]] for annotation, _ in answers}
    if task in ("a", "g") and not captions:
        raise BadInput(
            f"--task {task} needs captions (ids of type generative), and there are none: choose another task"
        )
    if asked and not asked & given:
        raise BadInput(
            f"--task {task} needs answers to {_or(asked)} questions, and there are none: choose another task"
        )


def _or(parts):
    return " or ".join(sorted(parts)).lower()


def _missing(task, given, annotations):
    asked = {part for section in TASKS[task] for part in SECTIONS[section]}
    wanted = [
        record["id"]
        for record in annotations.records
        if (task in ("a", "g") if record["type"] == "generative" else PARTS[record["type"]] in asked)
    ]
    missing = [i for i in wanted if i not in given]
    notices = [f"{len(missing)} of {len(wanted)} items have no answer and are left out (id {some(missing)})"] * bool(
        missing
    )
    if len(annotations.records) != SIZE:
        notices.append(f"{len(annotations.records)} annotations; the published version has {SIZE}")
    return notices


# ---- captions -------------------------------------------------------------------------------------------------------


def _score_captions(result, captions, annotations, similar, about, nouns):
    """Pooled over captions: every noun, every annotated word weighs the same, not every caption."""
    vocabulary = annotations.vocabulary
    counts = dict.fromkeys(("chair", "safe_cover", "hallu_cover", "non_hallu"), 0)
    totals = dict.fromkeys(counts, TINY)
    for annotation, response in captions:
        found = [noun for noun in nouns(response) if noun in vocabulary]
        hallucinated, covered, imagined = rate(found, annotation, annotations, similar)
        clean = int(hallucinated == 0)  # so a caption that names nothing is clean
        parts = (hallucinated, covered, imagined, clean)
        sizes = (len(found), len(annotation["truth"]), len(annotation["hallu"]), 1)
        for name, part, size in zip(counts, parts, sizes, strict=True):
            counts[name] += part
            totals[name] += size
        values = {"Hal": 1 - clean, "hallucinated": hallucinated, "mentioned": sizes[0], "covered": covered}
        values |= {"present": sizes[1], "imagined": imagined, "imaginable": sizes[2], "tokens": len(response.split())}
        result.examples += long_rows("amber", annotation["id"], "generative", values)
    rates = {name: counts[name] / totals[name] * 100 for name in counts}
    summary = {"CHAIR": rates["chair"], "Cover": rates["safe_cover"], "Hal": 100 - rates["non_hallu"]}
    summary["Cog"] = rates["hallu_cover"]
    result.summary |= summary
    result.printed += ["Generative Task:", *_lines(summary)]
    result.notices += blank([(a["id"], response) for a, response in captions], "clean by definition, id")
    result.notices += words.version_notice() if nouns is words.nouns else []
    result.details |= {"similarity": about}
    result.details["counters"] = {f"{name}_score": counts[name] for name in counts} | {
        f"{name}_num": totals[name] for name in totals
    }


def rate(found, annotation, annotations, similar):
    """(hallucinated nouns, covered truth words, imagined hallu words) of one caption; found: its nouns that count.

    A noun that is like a word of both lists credits both: only equality with a truth word ends the look-up early.
    """
    truth, hallu = (_targets(annotation[name], annotations.associations) for name in ("truth", "hallu"))
    hallucinated, covered, imagined = 0, set(), set()
    for noun in found:
        if noun in annotations.safe:
            continue  # never hallucinated, credits nothing; still in CHAIR's denominator
        equal = _first(truth, noun.__eq__)
        if equal is not None:
            covered.add(equal)
            continue
        imagined |= {_first(hallu, noun.__eq__), _first(hallu, lambda word, noun=noun: similar(noun, word))}
        like = _first(truth, lambda word, noun=noun: similar(noun, word))
        if like is None:
            hallucinated += 1
        else:
            covered.add(like)
    return hallucinated, len(covered), len(imagined - {None})


def _targets(listed, associations):
    """[(word, place in the list)]: associated words first, so that an association takes a credit before the word.

    A word listed twice is credited at its first place only, while Cover's denominator counts both.
    """
    associated = [(word, i) for i, name in enumerate(listed) for word in associations[name]]
    return associated + [(name, i) for i, name in enumerate(listed)]


def _first(targets, fits):
    """Place of the first target that fits; None without one."""
    return next((place for word, place in targets if fits(word)), None)


# ---- yes or no ------------------------------------------------------------------------------------------------------


def _score_answers(result, answers, task):
    """ "No" is the positive class. Anything but exactly "Yes" or "No" is wrong, and no "No"."""
    counts = {part: _Counts() for part in SECTIONS["Discriminative"]}
    everything = _Counts()
    for annotation, response in answers:
        part = PARTS[annotation["type"]]
        for count in (counts[part], everything):
            count.add(annotation["truth"], response)
        right = response == annotation["truth"].capitalize()
        values = {"accuracy": right, "said_no": response == "No"}
        result.examples += long_rows("amber", annotation["id"], part.lower(), values)
    sections = {}
    for name in TASKS[task]:
        pooled = [everything] if name == "Discriminative" else [counts[part] for part in SECTIONS[name]]
        sections[name] = _section(pooled, 0.001 if name == "Existence" else 0.0001)
        result.printed += [f"{TITLES.get(name, name)}:", *_lines(sections[name])]
    result.summary |= sections[TASKS[task][0]]
    result.details |= {"sections": sections, "counts": {part: vars(count) for part, count in counts.items()}}
    odd = Counter(response for _, response in answers if response not in ("Yes", "No"))
    if odd:
        named = [f"{text[:20]!r} {n} times" for text, n in odd.most_common()]
        which = [a["id"] for a, response in answers if response not in ("Yes", "No")]
        result.notices.append(
            f'{len(which)} answers are neither "Yes" nor "No" and count as wrong ({some(named)}; id {some(which)})'
        )


class _Counts:
    """Official counters of one part; totals start at TINY and grow one by one, as there, down to the last bit."""

    def __init__(self):
        self.right = self.right_no = 0
        self.asked = self.gold_no = self.said_no = TINY

    def add(self, truth, response):
        self.asked += 1
        self.right += response == truth.capitalize()
        self.right_no += truth == "no" and response == "No"
        self.gold_no += truth == "no"
        self.said_no += response == "No"


def _section(pooled, tiny):
    """Accuracy, Precision, Recall before rounding, and F1 from the rounded two, as officially."""
    total = {name: sum(getattr(count, name) for count in pooled) for name in vars(pooled[0])}
    found = {
        "Accuracy": total["right"] / total["asked"] * 100,
        "Precision": total["right_no"] / total["said_no"] * 100,
        "Recall": total["right_no"] / total["gold_no"] * 100,
    }
    precision, recall = (round(found[name], 1) / 100 for name in ("Precision", "Recall"))
    return found | {"F1": 2 * precision * recall / (precision + recall + tiny) * 100}


def _lines(numbers):
    return [f"{name}: {round(value, 1)}" for name, value in numbers.items()]
