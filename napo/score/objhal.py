"""Object HalBench, judge-free: things that captions name and the image does not hold.

Metric: RLHF-V/RLAIF-V eval/eval_gpt_obj_halbench.py without --use_gpt. The paper's CHAIRs is hallucinated captions of
all captions, not CHAIRs_refine.
"""

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

IMAGES = 300  # of the benchmark
ANIMALS = "bird cat dog horse sheep cow elephant bear zebra giraffe animal cub".split()
VEHICLES = ("jet", "train")


@dataclass(frozen=True)
class Synonyms:
    """category: term → COCO category; pairs: two words → the term that replaces them."""

    category: dict[str, str]
    pairs: dict[str, str]

    @classmethod
    def of(cls, lines):
        """From lists of terms, the first of each list being the category; a term in two lists is of the later."""
        category = {term.strip(): terms[0].strip() for terms in lines for term in terms}
        pairs = {term: term for term in category if " " in term}  # those of three words can never be met
        for no_term in ("home plate", "train track"):  # they drop out, and the train in the track with them
            pairs[no_term] = no_term
        for animal in ANIMALS:
            pairs |= {f"baby {animal}": animal, f"adult {animal}": animal}
        pairs |= {f"passenger {vehicle}": vehicle for vehicle in VEHICLES}
        pairs |= {"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"}  # "glas": WordNet's lemma
        return cls(category, pairs)

    @classmethod
    def read(cls, path):
        """From synonyms_refine.txt: one line per category, terms after ", ". Raises BadInput."""
        lines = [line.strip().split(", ") for line in read_text(path).splitlines() if line.strip()]
        if len(lines) < 2 or any(len(line) > 200 for line in lines):
            raise BadInput(f"{shown(path)} is no table of synonyms (one line per category): use synonyms_refine.txt")
        return cls.of(lines)

    def merged(self, tokens):
        """Tokens with known pairs replaced, from left to right; a word used in one pair is not used again."""
        found, i = [], 0
        while i < len(tokens):
            pair = self.pairs.get(" ".join(tokens[i : i + 2]))
            found.append(pair or tokens[i])
            i += 2 if pair else 1
        return found

    def mentions(self, tokens):
        """[(term, category)] of lemmas, in order; every mention counts, repeats too. Terms are case-sensitive: the text
        is lower-cased, so "iPhone" is never found."""
        found = self.merged(tokens)
        if "toilet" in found and "seat" in found:  # the seat of a toilet is no chair
            found = [word for word in found if word != "seat"]
        return [(word, self.category[word]) for word in found if word in self.category]


@dataclass(frozen=True)
class Coco:
    """objects, captions: image id → category names, captions; images: all ids that the files know."""

    objects: dict[int, list[str]]
    captions: dict[int, list[str]]
    images: frozenset[int]

    @classmethod
    def read(cls, folder):
        """From instances_ and captions_{train,val}2014.json in a folder (or its annotations/). Raises BadInput."""
        folder = Path(folder)
        if (folder / "annotations").is_dir():
            folder /= "annotations"
        objects, captions, images, names = {}, {}, set(), None
        for part in ("train", "val"):
            segments = read_json(folder / f"instances_{part}2014.json", dict)
            texts = read_json(folder / f"captions_{part}2014.json", dict)
            try:
                names = names or {item["id"]: "" + item["name"] for item in segments["categories"]}
                images |= {item["id"] for item in [*segments["images"], *texts["images"]]}
                for item in segments["annotations"]:
                    objects.setdefault(item["image_id"], []).append(names[item["category_id"]])
                for item in texts["annotations"]:
                    captions.setdefault(item["image_id"], []).append("" + item["caption"])  # text, or a TypeError
            except (KeyError, TypeError) as error:
                raise BadInput(
                    f"{shown(folder)}: {part} files are no COCO 2014 annotations ({error!r}): get them with make data"
                ) from None
        return cls(objects, captions, frozenset(images | objects.keys() | captions.keys()))


def image_ids(predictions, questions=None):
    """The image that each caption is about: its own image_id, else that of the question at the same place.

    Raises BadInput if a row has none, or shows that it does not belong to the question at its place.
    """
    return [
        integer_of(predictions, i, "image_id", digits=True)
        if "image_id" in row
        else _by_place(predictions, i, questions)
        for i, row in enumerate(predictions)
    ]


def _by_place(predictions, i, questions):
    if questions is None or i >= len(questions):
        raise BadInput(
            f"{where(predictions, i)}: no image_id, and no question at place {i} that gives it: use --questions"
        )
    row, question = predictions[i], questions[i]
    asked = row.get("prompt", row.get("question"))
    shuffled = row.get("question_id", i) not in (i, str(i), question.get("org_idx"))
    if shuffled or (asked and "question" in question and question["question"] not in str(asked)):
        raise BadInput(
            f"{where(predictions, i)}: does not belong to question {i}, which would give it its image: shuffled? add "
            "image_id to each row, or put the rows into the order of the questions"
        )
    return integer_of(questions, i, "image_id", digits=True)


def caption_of(predictions, i):
    """The answer without any "Assistant:" in it, stripped.

    The official script also cuts answers at the marks of chain-of-hindsight prompts if the file's path has "coh" in it,
    "cohort" included; the kit gives no such prompts and never cuts.
    """
    return text_of(predictions, i, "text", "answer").replace("Assistant:", "").strip()


def score(
    predictions,
    coco,
    synonyms,
    questions=None,
    lemmas: Callable[[str], list[str]] = words.lemmas,
    allow_silence=False,
):
    """Result of the official judge-free scorer.

    predictions  records {text or answer, image_id}
    coco         Coco: what images hold is what instances show and captions name
    synonyms     Synonyms
    questions    records {image_id, question} in the official order; with them missing images are reported
    lemmas       caption -> its words; NLTK by default, any other callable does without
    allow_silence  a rate over nothing is None, with a notice: a model that names nothing keeps its examples
    Raises BadInput if an image is unknown (all it shows would count as hallucinated), and, unless silence is allowed,
    if nothing was named at all.
    """
    ids = image_ids(predictions, questions)
    captions = [caption_of(predictions, i) for i in range(len(predictions))]
    _refuse_unknown(predictions, ids, coco)
    truth = {image: _truth(image, coco, synonyms, lemmas) for image in set(ids)}
    rows = [_caption(caption, truth[image], synonyms, lemmas) for caption, image in zip(captions, ids, strict=True)]
    notices = _notices(predictions, ids, captions, questions)
    notices += [
        f"{len(bare)} images without any object: all that is named there counts as hallucinated (image_id {some(bare)})"
        for bare in [[image for image in truth if not truth[image]]]
        if bare
    ]
    if lemmas is words.lemmas:
        notices += words.version_notice()
    return _result(ids, rows, notices, allow_silence)


def _refuse_unknown(predictions, ids, coco):
    unknown = [(i, image) for i, image in enumerate(ids) if image not in coco.images]
    if unknown:
        raise BadInput(
            f"{where(predictions, unknown[0][0])}: image {unknown[0][1]} is not in the COCO annotations "
            f"({len(unknown)} such records): use COCO 2014 train and val, or drop what is not of the benchmark"
        )


def _truth(image, coco, synonyms, lemmas):
    """Categories of an image's instances and of what its captions name."""
    names = coco.objects.get(image, [])
    strange = [name for name in names if name not in synonyms.category]
    if strange:
        raise BadInput(f"COCO category {strange[0]!r} is not in the synonyms: are both of the benchmark's version?")
    found = {synonyms.category[name] for name in names}
    for caption in coco.captions.get(image, []):
        found |= {category for _, category in synonyms.mentions(lemmas(caption))}
    return found


def _caption(caption, truth, synonyms, lemmas):
    """Counts of one caption."""
    named = [category for _, category in synonyms.mentions(lemmas(caption))]
    return {
        "CHAIRs": int(any(category not in truth for category in named)),
        "hallucinated": sum(category not in truth for category in named),
        "mentioned": len(named),
        "covered": len(truth.intersection(named)),
        "present": len(truth),
        "tokens": len(caption.split(" ")),  # 1 for an empty caption
    }


def _notices(predictions, ids, captions, questions):
    # The official script asserts 300 distinct images; NaPO's copy dropped that.
    notices = list(getattr(predictions, "notices", [])) + repeated(predictions, ids, "image_id")
    notices += blank(zip(ids, captions, strict=True), "image_id")
    if questions is None:
        if len(set(ids)) != IMAGES:
            notices.append(f"{len(set(ids))} distinct images; the benchmark has {IMAGES}")
        return notices
    known = [integer_of(questions, i, "image_id", digits=True) for i in range(len(questions))]
    given, asked = set(ids), set(known)
    for found, what in (
        ([image for image in known if image not in given], "images of the benchmark have no caption"),
        ([image for image in ids if image not in asked], "captions are of images outside the benchmark"),
    ):
        if found:
            notices.append(f"{len(found)} {what} (image_id {some(found)})")
    return notices


def _result(ids, rows, notices, allow_silence):
    total = {name: sum(row[name] for row in rows) for name in rows[0]}
    named_something = sum(row["mentioned"] > 0 for row in rows)
    if not named_something or not total["present"]:
        what = "no caption names a COCO object" if not named_something else "no image holds an object"
        problem = f"{what} in {len(rows)} records: nothing to rate (the official script divides by zero)"
        if not allow_silence:
            raise BadInput(problem)
        notices.append(problem)
    summary = {
        "CHAIRs": total["CHAIRs"] / len(rows),
        "CHAIRs_refine": _over(total["CHAIRs"], named_something),
        "CHAIRi": _over(total["hallucinated"], total["mentioned"]),
        "obj_rec": _over(total["covered"], total["present"]),
        "avg_word_len": total["tokens"] / len(rows),
        "sentence_num": len(rows),
        "coco_sentence_num": named_something,
    }
    details = {
        "coco_word_count": total["covered"],  # so called officially; it counts distinct right categories, not words
        "gt_word_count": total["present"],
        "correct_rate": 1 - summary["CHAIRs_refine"] if named_something else None,
        "object_correct_rate": 1 - summary["CHAIRi"] if named_something else None,
    }
    rates = (summary[name] for name in ("CHAIRs", "CHAIRs_refine", "CHAIRi"))
    percent = ["nan" if rate is None else f"{rate * 100:.1f}" for rate in rates]
    numbers = [*percent, str(len(rows)), str(named_something), f"{summary['avg_word_len']:.1f}"]
    printed = ["CHAIRs\tCHAIRsr\tCHAIRi\tsent_num\tcoco_num\tavg_len", "\t".join(numbers)]
    examples = [r for image, row in zip(ids, rows, strict=True) for r in long_rows("objhal", image, "caption", row)]
    return Result("objhal", summary, printed, examples, notices, details)


def _over(part, whole):
    return part / whole if whole else None
