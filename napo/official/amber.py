"""AMBER: captions against the objects of an image (generative), and yes-or-no questions (discriminative).

Metric: junyangwang0410/AMBER inference.py. All numbers are in percent, as there. Comments mark the script's oddities
that change scores. NaPO's log calls Cog "Ha" and Hal "Ha_p".
"""

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from napo.official import records, words
from napo.workshop.files import BadInput, shown

TINY = 0.001  # every denominator starts here, so nothing divides by zero: an empty score is 0, never undefined
TABLES = records.shipped("amber.toml")
PARTS, SECTIONS, TASKS = TABLES["parts"], TABLES["sections"], TABLES["tasks"]
TITLES = {"Discriminative": "Descriminative Task", "Existence": "Exsitence"}  # spelt as officially
SIZE = 15220  # annotations of the published version


@dataclass(frozen=True)
class Annotations:
    """AMBER's annotations, and the words that count."""

    records: list[dict]  # one per item, in the order of their ids from 1
    associations: dict[str, list[str]]  # word → words of much the same meaning
    safe: frozenset[str]  # words that are never hallucinated

    @property
    def vocabulary(self):
        return frozenset(self.associations).union(*self.associations.values())

    @classmethod
    def read(cls, folder):
        """From annotations.json, relation.json and safe_words.txt in a folder (or its data/). Raises BadInput."""
        folder = Path(folder)
        if not (folder / "annotations.json").exists() and (folder / "data" / "annotations.json").exists():
            folder /= "data"
        items = records.read_json(folder / "annotations.json")
        associations = records.read_json(folder / "relation.json", dict)
        safe = frozenset(records.read_text(folder / "safe_words.txt").split("\n"))
        for word, found in associations.items():
            if not _are_words(found):
                problem = f"{word!r} has no list of words"
                raise BadInput(f"{shown(folder / 'relation.json')}: {problem}: get AMBER's data again")
        for i, record in enumerate(items):
            if problem := _wrong(record, i, associations):
                raise BadInput(f"{shown(folder / 'annotations.json')}, record {i}: {problem}: get AMBER's data again")
        return cls(items, associations, safe)


def _are_words(value):
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def _wrong(record, i, associations):
    """What is wrong with an annotation, or None. Ids must be places: the official script looks up by place."""
    if not isinstance(record, dict) or record.get("id") != i + 1:
        return f"its id should be {i + 1}"
    kind, truth, hallu = (record.get(name) for name in ("type", "truth", "hallu"))
    if kind not in list(PARTS):
        return f"unknown type {kind!r}"
    if kind != "generative":
        return None if truth in ("yes", "no") else "truth must be yes or no"
    if not _are_words(truth) or not _are_words(hallu):
        return "truth and hallu must be lists of words"
    strange = records.without(truth + hallu, associations)
    return f"{strange[0]!r} is not in relation.json (files of different versions?)" if strange else None


def score(predictions, annotations, task, similar, about="", nouns: Callable[[str], list[str]] = words.nouns):
    """Result of the official script.

    predictions  records {id, response} (official) or {question_id, text} (NaPO's)
    task         "g" generative, "d" discriminative, "de", "da", "dr" existence, attribute, relation, "a" all
    similar      similar(word, other) -> bool, from similarity.get; `about` describes it for the record
    nouns        response -> its nouns; NLTK's by default
    Raises BadInput for an id without annotation, and if no answer belongs to the task.
    """
    pairs = [_answered(predictions, i, annotations.records) for i in range(len(predictions))]
    ids = [annotation["id"] for annotation, _ in pairs]
    asked = {part for section in TASKS[task]["sections"] for part in SECTIONS[section]}
    asked |= {"generative"} if task in ("a", "g") else set()
    _refuse_empty(task, asked, {PARTS[annotation["type"]] for annotation, _ in pairs})
    result = records.Result("amber", {}, notices=records.reading_notices(predictions, ids, "id"))
    wanted = [record["id"] for record in annotations.records if PARTS[record["type"]] in asked]
    missing = f"of {len(wanted)} items have no answer and are left out"
    result.notices += records.counted(records.without(wanted, ids), missing, "id")
    if len(annotations.records) != SIZE:
        result.notices.append(f"{len(annotations.records)} annotations; the published version has {SIZE}")
    if "generative" in asked:
        captions = [(a, response) for a, response in pairs if a["type"] == "generative"]
        _score_captions(result, captions, annotations, similar, about, nouns)
    if task != "g":
        _score_answers(result, [(a, response) for a, response in pairs if a["type"] != "generative"], task)
    return result


def _answered(predictions, i, annotations):
    """(annotation, response). The official script takes the last annotation for id 0, and fails beyond the end."""
    found, n = records.integer_of(predictions, i, "id", "question_id"), len(annotations)
    if not 1 <= found <= n:
        remedy = "remove it, or use annotations of the same version"
        raise records.fault(predictions, i, f"id {found} has no annotation (ids go from 1 to {n}): {remedy}")
    return annotations[found - 1], records.text_of(predictions, i, "response", "text")


def _refuse_empty(task, asked, given):
    questions = asked - {"generative"}
    if "generative" in asked - given:
        needed = "captions (ids of type generative)"
    elif questions and not questions & given:
        needed = f"answers to {' or '.join(sorted(questions)).lower()} questions"
    else:
        return
    raise BadInput(f"--task {task} needs {needed}, and there are none: choose another task")


def _score_captions(result, captions, annotations, similar, about, nouns):
    """Rates pooled over captions: each noun and each annotated word weighs the same, not each caption."""
    vocabulary = annotations.vocabulary
    counts = dict.fromkeys(("chair", "safe_cover", "hallu_cover", "non_hallu"), 0)
    totals = dict.fromkeys(counts, TINY)
    for annotation, response in captions:
        found = [noun for noun in nouns(response) if noun in vocabulary]
        hallucinated, covered, imagined = rate(found, annotation, annotations, similar)
        clean = int(hallucinated == 0)  # also if the caption names nothing
        present, imaginable = len(annotation["truth"]), len(annotation["hallu"])
        parts = ((hallucinated, len(found)), (covered, present), (imagined, imaginable), (clean, 1))
        for name, (part, size) in zip(counts, parts, strict=True):
            counts[name] += part
            totals[name] += size
        values = {"Hal": 1 - clean, "hallucinated": hallucinated, "mentioned": len(found), "covered": covered}
        values |= {"present": present, "imagined": imagined, "imaginable": imaginable, "tokens": len(response.split())}
        result.examples += records.long_rows("amber", annotation["id"], "generative", values)
    chair, cover, cog, clean = (counts[name] / totals[name] * 100 for name in counts)
    result.summary |= {"CHAIR": chair, "Cover": cover, "Hal": 100 - clean, "Cog": cog}
    result.printed += ["Generative Task:", *_lines(result.summary)]
    result.notices += records.blank([(a["id"], response) for a, response in captions], "clean by definition, id")
    result.notices += words.version_notice() if nouns is words.nouns else []
    counters = {f"{name}_{end}": n for end, by in (("score", counts), ("num", totals)) for name, n in by.items()}
    result.details |= {"similarity": about, "counters": counters}


def rate(found, annotation, annotations, similar):
    """(hallucinated nouns, covered truth words, imagined hallu words) of one caption; found: its nouns that count.

    A noun that is similar to words of both lists credits both: only equality with a truth word ends the search early.
    """
    truth, hallu = (_targets(annotation[name], annotations.associations) for name in ("truth", "hallu"))
    hallucinated, covered, imagined = 0, set(), set()
    for noun in found:
        if noun in annotations.safe:
            continue  # never hallucinated and without credit, but in CHAIR's denominator
        credited = _first(truth, noun.__eq__)
        if credited is None:
            like = functools.partial(similar, noun)
            imagined |= {_first(hallu, noun.__eq__), _first(hallu, like)}
            credited = _first(truth, like)
        hallucinated += credited is None
        covered.add(credited)
    return hallucinated, len(covered - {None}), len(imagined - {None})


def _targets(listed, associations):
    """[(word, place in the list)]. Associated words come first, so an association takes the credit before the word.

    A word that is listed twice is credited once, though Cover's denominator counts both.
    """
    associated = [(word, i) for i, name in enumerate(listed) for word in associations[name]]
    return associated + [(name, i) for i, name in enumerate(listed)]


def _first(targets, fits):
    """Place of the first target that fits; None without one."""
    return next((place for word, place in targets if fits(word)), None)


def _score_answers(result, answers, task):
    """ "No" is the positive class. Any answer but "Yes" and "No" is wrong, and does not count as said no."""
    of_part = {part: [] for part in SECTIONS["Discriminative"]}
    for annotation, response in answers:
        part = PARTS[annotation["type"]]
        of_part[part].append((annotation["truth"], response))
        values = {"accuracy": response == annotation["truth"].capitalize(), "said_no": response == "No"}
        result.examples += records.long_rows("amber", annotation["id"], part.lower(), values)
    counts = {part: _counts(pairs) for part, pairs in of_part.items()}
    sections = {}
    for name in TASKS[task]["sections"]:
        pooled = [counts[part] for part in SECTIONS[name]]
        if name == "Discriminative":
            pooled = [_counts((annotation["truth"], response) for annotation, response in answers)]
        sections[name] = _section(pooled, 0.001 if name == "Existence" else 0.0001)
        result.printed += [f"{TITLES.get(name, name)}:", *_lines(sections[name])]
    result.summary |= next(iter(sections.values()))
    result.details |= {"sections": sections, "counts": counts}
    odd = [(annotation["id"], response) for annotation, response in answers if response not in ("Yes", "No")]
    named = records.some(f"{text[:20]!r} {n} times" for text, n in Counter(text for _, text in odd).most_common())
    count_as = 'answers are neither "Yes" nor "No" and count as wrong'
    result.notices += records.counted([identity for identity, _ in odd], count_as, f"{named}; id")


def _counts(answers):
    """Counters of answers (truth, response). Totals start at TINY and grow one by one, as officially, bit for bit."""
    count = {"right": 0, "right_no": 0, "asked": TINY, "gold_no": TINY, "said_no": TINY}
    for truth, response in answers:
        count["right"] += response == truth.capitalize()
        count["right_no"] += truth == "no" and response == "No"
        count["asked"] += 1
        count["gold_no"] += truth == "no"
        count["said_no"] += response == "No"
    return count


def _section(pooled, tiny):
    """Accuracy, Precision and Recall before rounding, and F1 from the rounded two, as in the official script."""
    total = {name: sum(count[name] for count in pooled) for name in pooled[0]}
    found = {
        "Accuracy": total["right"] / total["asked"] * 100,
        "Precision": total["right_no"] / total["said_no"] * 100,
        "Recall": total["right_no"] / total["gold_no"] * 100,
    }
    precision, recall = (round(found[name], 1) / 100 for name in ("Precision", "Recall"))
    return found | {"F1": 2 * precision * recall / (precision + recall + tiny) * 100}


def _lines(numbers):
    return [f"{name}: {round(value, 1)}" for name, value in numbers.items()]
