"""Object HalBench without a judge: objects that a caption names and the image does not show.

Metric: RLHF-V/RLAIF-V eval/eval_gpt_obj_halbench.py without --use_gpt. The paper's CHAIRs is the share of all captions
that hallucinate, not CHAIRs_refine.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from napo.official import records, words
from napo.official.records import Result, fault, integer_of
from napo.workshop.files import BadInput, shown

IMAGES = 300  # of the benchmark
ANIMALS = "bird cat dog horse sheep cow elephant bear zebra giraffe animal cub".split()


@dataclass(frozen=True)
class Synonyms:
    """category: term → COCO category; pairs: two words → the term that replaces them."""

    category: dict[str, str]
    pairs: dict[str, str]

    @classmethod
    def of(cls, lines):
        """From lists of terms. The first term of a list is its category; the last list with a term counts."""
        category = {term.strip(): terms[0].strip() for terms in lines for term in terms}
        pairs = {term: term for term in category if " " in term}  # terms of three words never match
        # Two pairs are no terms: they drop out, with the train of the track.
        pairs |= {"home plate": "home plate", "train track": "train track"}
        pairs |= {f"{age} {animal}": animal for age in ("baby", "adult") for animal in ANIMALS}
        pairs |= {"passenger jet": "jet", "passenger train": "train"}
        pairs |= {"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"}  # "glas": WordNet's lemma
        return cls(category, pairs)

    @classmethod
    def read(cls, path):
        """From synonyms_refine.txt: one line per category, terms after ", ". Raises BadInput."""
        lines = [line.strip().split(", ") for line in records.read_text(path).splitlines() if line.strip()]
        if len(lines) < 2 or any(len(line) > 200 for line in lines):
            raise BadInput(f"{shown(path)} is no table of synonyms (one line per category): use synonyms_refine.txt")
        return cls.of(lines)

    def merged(self, tokens):
        """Tokens with known pairs replaced, from left to right; pairs do not overlap."""
        found, i = [], 0
        while i < len(tokens):
            pair = self.pairs.get(" ".join(tokens[i : i + 2]))
            found.append(pair or tokens[i])
            i += 2 if pair else 1
        return found

    def mentions(self, tokens):
        """[(term, category)] of lemmas, in order, repeats included. Texts are lower-cased: "iPhone" is never found."""
        found = self.merged(tokens)
        if "toilet" in found and "seat" in found:  # the seat of a toilet is no chair
            found = [word for word in found if word != "seat"]
        return [(word, self.category[word]) for word in found if word in self.category]


@dataclass(frozen=True)
class Coco:
    """objects: image id → category names; captions: image id → captions; images: all ids in the files."""

    objects: dict[int, list[str]]
    captions: dict[int, list[str]]
    images: frozenset[int]

    @classmethod
    def read(cls, folder):
        """From instances_ and captions_{train,val}2014.json in a folder (or its annotations/). Raises BadInput."""
        folder = Path(folder)
        if (folder / "annotations").is_dir():
            folder /= "annotations"
        objects, captions, images, names = defaultdict(list), defaultdict(list), set(), None
        for part in ("train", "val"):
            segments = records.read_json(folder / f"instances_{part}2014.json", dict)
            texts = records.read_json(folder / f"captions_{part}2014.json", dict)
            try:
                names = names or {item["id"]: "" + item["name"] for item in segments["categories"]}
                images |= {item["id"] for item in [*segments["images"], *texts["images"]]}
                for item in segments["annotations"]:
                    objects[item["image_id"]].append(names[item["category_id"]])
                for item in texts["annotations"]:
                    captions[item["image_id"]].append("" + item["caption"])  # text, or a TypeError
            except (KeyError, TypeError) as error:
                problem = f"{part} files are no COCO 2014 annotations ({error!r}): get them with make data"
                raise BadInput(f"{shown(folder)}: {problem}") from None
        return cls(objects, captions, frozenset(images | objects.keys() | captions.keys()))


def image_of(predictions, i, questions):
    """The image of a caption: its own image_id, else that of the question at the same place.

    Raises BadInput if a row has neither, or does not belong to the question at its place.
    """
    row = predictions[i]
    if "image_id" in row:
        return integer_of(predictions, i, "image_id", digits=True)
    if questions is None or i >= len(questions):
        raise fault(predictions, i, f"no image_id, and no question at place {i} that gives it: use --questions")
    question, asked = questions[i], row.get("prompt", row.get("question"))
    shuffled = row.get("question_id", i) not in (i, str(i), question.get("org_idx"))
    if shuffled or (asked and str(question.get("question", "")) not in str(asked)):
        problem = f"does not belong to question {i}, which would give it its image: shuffled?"
        remedy = "add image_id to each row, or put the rows into the order of the questions"
        raise fault(predictions, i, f"{problem} {remedy}")
    return integer_of(questions, i, "image_id", digits=True)


def caption_of(predictions, i):
    """The stripped answer, without any "Assistant:"."""
    # Where the path contains "coh", the official script also cuts at marks of prompts that the kit never gives.
    return records.text_of(predictions, i, "text", "answer").replace("Assistant:", "").strip()


def score(predictions, coco, synonyms, questions=None, lemmas: Callable = words.lemmas, allow_silence=False):
    """Result of the official judge-free scorer.

    predictions    records {text or answer, image_id}
    coco           Coco; an image shows the objects of its instances and of its captions
    questions      records {image_id, question} in the official order, to report missing images
    lemmas         caption -> its words; NLTK's by default
    allow_silence  give None and a notice where nothing was named, instead of raising
    Raises BadInput for an unknown image, and if no caption names an object.
    """
    ids = [image_of(predictions, i, questions) for i in range(len(predictions))]
    captions = [caption_of(predictions, i) for i in range(len(predictions))]
    if unknown := [i for i, image in enumerate(ids) if image not in coco.images]:
        problem = f"image {ids[unknown[0]]} is not in the COCO annotations ({len(unknown)} such records)"
        remedy = "use COCO 2014 train and val, or remove images outside the benchmark"
        raise fault(predictions, unknown[0], f"{problem}: {remedy}")
    truth = {image: _truth(image, coco, synonyms, lemmas) for image in set(ids)}
    rows = [_caption(caption, truth[image], synonyms, lemmas) for caption, image in zip(captions, ids, strict=True)]
    bare = [image for image in truth if not truth[image]]
    notices = [
        *records.reading_notices(predictions, ids, "image_id"),
        *records.blank(zip(ids, captions, strict=True), "image_id"),
        *_against(ids, questions),
        *records.counted(bare, "images without any object: all objects named there count as hallucinated", "image_id"),
        *(words.version_notice() if lemmas is words.lemmas else []),
    ]
    return _result(ids, rows, notices, allow_silence)


def _truth(image, coco, synonyms, lemmas):
    """Categories of an image's instances, and those that its captions name. Raises BadInput."""
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
    hallucinated = len(records.without(named, truth))
    return {
        "CHAIRs": int(hallucinated > 0),
        "hallucinated": hallucinated,
        "mentioned": len(named),
        "covered": len(truth.intersection(named)),
        "present": len(truth),
        "tokens": len(caption.split(" ")),  # 1 for an empty caption
    }


def _against(ids, questions):
    """Notices about missing and extra images. The official script asserts that there are 300."""
    if questions is None:
        n = len(set(ids))
        return [f"{n} distinct images; the benchmark has {IMAGES}"] if n != IMAGES else []
    known = [integer_of(questions, i, "image_id", digits=True) for i in range(len(questions))]
    missing, extra = "images of the benchmark have no caption", "captions are of images outside the benchmark"
    return records.compared(known, missing, ids, extra, "image_id")


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
        "CHAIRs_refine": records.ratio(total["CHAIRs"], named_something),
        "CHAIRi": records.ratio(total["hallucinated"], total["mentioned"]),
        "obj_rec": records.ratio(total["covered"], total["present"]),
        "avg_word_len": total["tokens"] / len(rows),
        "sentence_num": len(rows),
        "coco_sentence_num": named_something,
    }
    details = {
        "coco_word_count": total["covered"],  # the official name; it counts distinct right categories, not words
        "gt_word_count": total["present"],
        "correct_rate": 1 - summary["CHAIRs_refine"] if named_something else None,
        "object_correct_rate": 1 - summary["CHAIRi"] if named_something else None,
    }
    rates = [summary[name] for name in ("CHAIRs", "CHAIRs_refine", "CHAIRi")]
    numbers = ["nan" if rate is None else f"{rate * 100:.1f}" for rate in rates]
    numbers += [str(len(rows)), str(named_something), f"{summary['avg_word_len']:.1f}"]
    printed = ["CHAIRs\tCHAIRsr\tCHAIRi\tsent_num\tcoco_num\tavg_len", "\t".join(numbers)]
    by_caption = [records.long_rows("objhal", image, "caption", row) for image, row in zip(ids, rows, strict=True)]
    examples = [line for lines in by_caption for line in lines]
    return Result("objhal", summary, printed, examples, notices, details)
