import random
import re

import pytest

from napo.official import objhal, words
from napo.workshop.files import BadInput

LINES = [
    ["person", "man", "woman"],
    ["dog", "puppy"],
    ["cat"],
    ["chair", "seat"],
    ["toilet"],
    ["tie"],
    ["train"],
    ["airplane", "jet"],
    ["wine glass"],
    ["potted plant", "plant"],
    ["cell phone", "iPhone"],
    ["oven", "stove", "stove top oven"],
]


@pytest.fixture
def synonyms():
    return objhal.Synonyms.of(LINES)


def plain(caption):
    """Words without NLTK, as the desk world passes them."""
    return re.findall(r"[\w-]+|[^\w\s]", caption.lower())


def coco(objects, captions=None):
    return objhal.Coco(objects, captions or {}, frozenset(objects))


def rows(*captions, first=1):
    return [{"image_id": i, "prompt": "Describe.", "text": text} for i, text in enumerate(captions, first)]


def named(synonyms, caption):
    return [category for _, category in synonyms.mentions(plain(caption))]


@pytest.mark.parametrize(
    "caption, categories",
    [
        ("a man and a woman and a man", ["person", "person", "person"]),  # every mention counts
        ("a baby dog beside an adult cat", ["dog", "cat"]),
        ("a man wears a bow tie", ["person", "tie"]),
        ("a passenger jet over a passenger train", ["airplane", "train"]),
        ("a train track", []),  # no train is seen in its track
        ("a toilet with its seat up", ["toilet"]),  # a toilet's seat is no chair
        ("a toilet seat", ["toilet"]),
        ("a seat", ["chair"]),
        ("a seat beside the toilet seat", ["toilet"]),  # nor is any other seat of that caption
        ("a wine glas", ["wine glass"]),  # what WordNet makes of "glass"
        ("an iphone", []),  # the term has a capital, the text never has
        ("a stove top oven", ["oven", "oven"]),  # three words are never one term
        ("a potted plant plant", ["potted plant", "potted plant"]),
        ("dogs", []),  # this extraction makes no lemmas
        ("a plant-like thing", []),
    ],
)
def test_mentions(synonyms, caption, categories):
    assert named(synonyms, caption) == categories


def test_pairs_merge_from_left_to_right():
    """In "a b c" with both "a b" and "b c" known, b goes with a."""
    synonyms = objhal.Synonyms({"c": "c"}, {"a b": "x", "b c": "y"})
    assert synonyms.merged(list("abcbc")) == ["x", "c", "y"]


def test_a_term_of_two_categories_is_of_the_later():
    assert objhal.Synonyms.of([["a", "x"], ["b", "x"]]).category["x"] == "b"


def test_merging_equals_a_regular_expression(synonyms):
    """The same merging on text: alternatives are tried from left to right, matches do not overlap."""
    pattern = re.compile(
        "|".join(rf"(?<![^|]){re.escape(pair)}(?![^|])" for pair in synonyms.pairs).replace(r"\ ", r"\|")
    )
    vocabulary = sorted({word for pair in synonyms.pairs for word in pair.split()} | {"the", "of"})
    rng = random.Random(1)
    for _ in range(500):
        tokens = rng.choices(vocabulary, k=rng.randint(0, 12))
        text = pattern.sub(lambda match: synonyms.pairs[match.group().replace("|", " ")], "|".join(tokens))
        assert synonyms.merged(tokens) == (text.split("|") if text else [])


def test_worked_by_hand(synonyms):
    """Captions: two of three name a thing, one of those hallucinates twice; truth is of instances and captions."""
    truth = coco({1: ["dog"], 2: ["person", "cat"], 3: ["tie"]}, {1: ["a man and his dog"]})
    captions = ("Assistant: a puppy, a dog and a man", "A cat , a train and a cat and a train", "")
    summary = objhal.score(rows(*captions), truth, synonyms, lemmas=plain).summary
    assert summary["CHAIRs"] == 1 / 3
    assert summary["CHAIRs_refine"] == 1 / 2
    assert summary["CHAIRi"] == 2 / 7
    assert summary["obj_rec"] == (2 + 1) / (2 + 2 + 1)  # distinct right categories of all that is there
    assert summary["avg_word_len"] == (7 + 11 + 1) / 3  # an empty caption has one word
    assert (summary["sentence_num"], summary["coco_sentence_num"]) == (3, 2)


def test_answer_fields(synonyms):
    truth = coco({1: ["dog"]})
    for row in ({"text": "a dog", "answer": "a cat"}, {"answer": "Assistant: a dog Assistant:"}):
        result = objhal.score([{"image_id": "1", **row}], truth, synonyms, lemmas=plain)
        assert result.summary["CHAIRs"] == 0 and result.summary["avg_word_len"] == 2


def test_examples_give_the_summary(synonyms):
    truth = coco({1: ["dog"], 2: ["cat"]})
    result = objhal.score(rows("a dog, a cat", "a man"), truth, synonyms, lemmas=plain)
    total = {}
    for row in result.examples:
        total[row["metric"]] = total.get(row["metric"], 0) + row["value"]
    assert result.summary["CHAIRi"] == total["hallucinated"] / total["mentioned"] == 2 / 3
    assert result.summary["obj_rec"] == total["covered"] / total["present"] == 1 / 2
    assert result.summary["CHAIRs"] == total["CHAIRs"] / 2 == 1


class TestOfficialWords:
    """With NLTK and the official synonyms."""

    @pytest.fixture
    def official(self, data):
        return objhal.Synonyms.read(data / "objhal" / "synonyms_refine.txt")

    @pytest.mark.parametrize(
        "caption, categories",
        [
            ("Dogs and puppies.", ["dog", "dog"]),
            ("Two men.", []),  # the lemma of men is men
            ("Three vases", []),  # WordNet makes "vas" of it
            ("wine glasses", ["wine glass"]),
            ("a sports ball", ["sports ball"]),  # "sport ball" is no pair; "ball" is a term
            ("dining-table and cups/forks", []),
            ("The baby elephant's ears", ["elephant"]),
            ("an iPhone", []),
            ("a home plate", []),
            ("people at dining tables", ["person", "dining table"]),
            ("firetrucks", []),
        ],
    )
    def test_mentions(self, official, caption, categories):
        assert [category for _, category in official.mentions(words.lemmas(caption))] == categories

    def test_reference_table(self, official):
        assert len(set(official.category.values())) == 80
        assert official.category["pedestrian"] == "person" and official.pairs["coffee table"] == "coffee table"


class TestBadInput:
    @pytest.fixture
    def call(self, write):
        """Arguments for a score of these rows on a small COCO folder."""

        def arguments(captions, objects=None, questions=None):
            objects = objects or {1: "dog", 2: "cat"}
            categories = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
            ids = {"dog": 1, "cat": 2}
            images = [{"id": i} for i in objects]
            annotations = [{"image_id": i, "category_id": ids[name]} for i, name in objects.items()]
            segments = {"images": images, "categories": categories, "annotations": annotations}
            write("coco/instances_val2014.json", segments)
            write("coco/instances_train2014.json", segments | {"annotations": []})
            for part in ("train", "val"):
                write(f"coco/captions_{part}2014.json", {"images": images, "annotations": []})
            table = write("synonyms.txt", "\n".join(", ".join(line) for line in LINES))
            path = write("captions.jsonl", captions)
            found = ["objhal", "--predictions", path, "--coco", write("coco/x", "").parent, "--synonyms", table]
            return found + (["--questions", write("questions.jsonl", questions)] if questions else [])

        return arguments

    def test_unknown_image(self, call, refused, shared):
        line = refused(*call(rows("a dog", "a dog", "a cat")))
        assert "line 3: image 3 is not in the COCO annotations (1 such records)" in line

    def test_image_by_place(self, call, command, shared):
        questions = [{"image_id": 2, "question": "Describe."}, {"image_id": 1, "question": "Describe."}]
        found = command(*call([{"text": "a cat"}, {"text": "a cat"}], questions=questions))
        assert found["CHAIRs"] == 1 / 2

    def test_shuffled_rows_without_image(self, call, refused):
        questions = [{"image_id": 1, "question": "Describe it."}, {"image_id": 2, "question": "What is it?"}]
        said = [{"text": "x", "prompt": "What is it?"}, {"text": "x", "prompt": "Describe it."}]
        assert "line 1: does not belong to question 0" in refused(*call(said, questions=questions))
        said = [{"text": "x", "question_id": 1}, {"text": "x", "question_id": 0}]
        assert "shuffled?" in refused(*call(said, questions=questions))

    def test_no_image_and_no_questions(self, call, refused):
        assert "use --questions" in refused(*call([{"text": "a dog"}]))
        line = refused(*call([{"text": "a dog"}] * 2, questions=[{"image_id": 1}]))
        assert "line 2: no image_id, and no question at place 1" in line

    def test_missing_and_extra_images(self, call, command, shared):
        questions = [{"image_id": 1}, {"image_id": 5}]
        notices = command(*call(rows("a dog", "a cat"), questions=questions))["notices"]
        assert "1 images of the benchmark have no caption (image_id 5)" in notices
        assert "1 captions are of images outside the benchmark (image_id 2)" in notices

    def test_repeated_and_empty(self, call, command, shared):
        notices = command(*call([*rows("a dog", ""), *rows("a cat")]))["notices"]
        assert "1 repeated records (image_id 1): each counts, as in the official script" in notices
        assert "1 empty answers (image_id 2)" in notices
        assert "2 distinct images; the benchmark has 300" in notices

    def test_no_object_named(self, call, refused, shared):
        assert "no caption names a COCO object" in refused(*call(rows("sky", "")))

    @pytest.mark.parametrize(
        "row",
        [
            {"image_id": 1},
            {"image_id": 1, "text": None},
            {"image_id": 1, "text": 5},
            {"image_id": "x", "text": "a"},
            {"image_id": True, "text": "a"},
            {"image_id": None, "text": "a"},
            {"image_id": 1.5, "text": "a"},
        ],
    )
    def test_wrong_types(self, call, refused, row):
        assert "captions.jsonl, line 1" in refused(*call([row]))

    def test_other_annotations(self, call, refused, write):
        arguments = call(rows("a dog"))
        write("coco/instances_val2014.json", {"images": [], "annotations": [{"image_id": 1, "category_id": 77}]})
        assert "no COCO 2014 annotations" in refused(*arguments)
        write("coco/instances_val2014.json", "{")
        assert "instances_val2014.json is not valid JSON" in refused(*arguments)
        (arguments[4] / "instances_val2014.json").unlink()
        assert "missing" in refused(*arguments)

    def test_category_without_synonyms(self):
        with pytest.raises(BadInput, match="category 'zebra' is not in the synonyms"):
            objhal.score(rows("a dog"), coco({1: ["zebra"]}), objhal.Synonyms.of(LINES), lemmas=plain)

    def test_wrong_synonyms(self, call, refused, write):
        arguments = call(rows("a dog"))
        write("synonyms.txt", "no table")
        assert "no table of synonyms" in refused(*arguments)
