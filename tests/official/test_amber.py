import itertools
import random

import pytest

from napo.official import amber, similarity
from napo.workshop.files import BadInput

ASSOCIATIONS = {
    "sea": ["water", "ocean"],
    "dog": ["puppy"],
    "cat": [],
    "person": ["man", "woman"],
    "boat": ["ship"],
    "sky": [],
    "water": ["sea"],
    "tree": ["leave"],
}
EXACT, _ = similarity.get("exact")


def annotations(*generative, answers=()):
    """generative: (truth, hallu) pairs; answers: (type, truth) pairs."""
    records = [{"type": "generative", "truth": truth, "hallu": hallu} for truth, hallu in generative]
    records += [{"type": kind, "truth": truth} for kind, truth in answers]
    numbered = [{"id": i, **record} for i, record in enumerate(records, 1)]
    return amber.Annotations(numbered, ASSOCIATIONS, frozenset({"light", "orange", "tree"}))


def said(*texts):
    return [{"id": i, "response": text} for i, text in enumerate(texts, 1)]


def like(*pairs):
    """Similarity of exactly these pairs, and of equal words."""
    return lambda a, b: a == b or {a, b} in [set(pair) for pair in pairs]


def rate(nouns, truth, hallu, similar=EXACT):
    known = annotations((truth, hallu))
    return amber.rate(nouns.split(), known.records[0], known, similar)


def test_equal_words():
    assert rate("dog sky boat", ["dog", "sky"], ["boat", "cat"]) == (1, 2, 1)


def test_associations_credit_their_word():
    assert rate("puppy man", ["dog"], ["person"]) == (1, 1, 1)


def test_an_association_takes_the_credit_before_the_word():
    """ "sea" is an association of the truth word "water", which stands first; the truth word "sea" gets nothing."""
    assert rate("sea", ["water", "sea"], []) == (0, 1, 0)
    assert rate("sea water", ["water", "sea"], []) == (0, 2, 0)  # and "water" goes to "sea"


def test_words_listed_twice_are_credited_once():
    assert rate("dog dog", ["dog", "dog"], []) == (0, 1, 0)


def test_safe_words_are_never_hallucinated_and_credit_nothing():
    assert rate("tree", ["tree"], []) == (0, 0, 0)


def test_equality_with_truth_hides_hallu():
    assert rate("sky", ["sky"], ["sky"]) == (0, 1, 0)


def test_equality_with_hallu_still_looks_at_similar_words():
    """A noun equal to a hallu word can credit a second one that is like it, and a truth word; then it is no
    hallucination."""
    similar = like(("boat", "cat"))
    assert rate("boat", ["sky"], ["cat", "boat"], similar) == (1, 0, 2)
    assert rate("boat", ["cat"], ["boat"], similar) == (0, 1, 1)


def test_only_the_first_similar_word_is_credited():
    similar = like(("boat", "cat"), ("boat", "dog"))
    assert rate("boat", ["dog", "cat"], []) == (1, 0, 0)
    assert rate("boat", ["dog", "cat"], [], similar) == (0, 1, 0)
    assert rate("boat", [], ["dog", "cat"], similar) == (1, 0, 1)


def straightforward(nouns, annotation, known, similar):
    """The same rating once more, by tables of all nouns and targets."""
    tables = {}
    for name in ("truth", "hallu"):
        listed = annotation[name]
        targets = [(w, i) for i in range(len(listed)) for w in known.associations[listed[i]]]
        targets += list(zip(listed, itertools.count(), strict=False))
        equal = {n: [i for w, i in targets if w == n][:1] for n in nouns}
        alike = {n: [i for w, i in targets if similar(n, w)][:1] for n in nouns}
        tables[name] = equal, alike
    (truth_equal, truth_alike), (hallu_equal, hallu_alike) = tables["truth"], tables["hallu"]
    checked = [n for n in nouns if n not in known.safe]
    rest = [n for n in checked if not truth_equal[n]]
    covered = {i for n in checked for i in truth_equal[n]} | {i for n in rest for i in truth_alike[n]}
    imagined = {i for n in rest for i in hallu_equal[n] + hallu_alike[n]}
    return sum(not truth_alike[n] for n in rest), len(covered), len(imagined)


def test_equals_a_straightforward_formulation():
    rng = random.Random(4)
    vocabulary = sorted(annotations().vocabulary)
    for _ in range(500):
        known = annotations((rng.choices(list(ASSOCIATIONS), k=3), rng.choices(list(ASSOCIATIONS), k=3)))
        pairs = [rng.sample(vocabulary, 2) for _ in range(rng.randint(0, 12))]
        nouns = rng.choices(vocabulary, k=rng.randint(0, 8))
        similar = like(*pairs)
        record = known.records[0]
        assert amber.rate(nouns, record, known, similar) == straightforward(nouns, record, known, similar)


def test_worked_by_hand():
    """Nouns are pooled over captions; denominators have 0.001 more; other words than the vocabulary's count nowhere."""
    known = annotations((["dog", "dog"], ["cat"]), (["sky"], ["boat", "sea"]))
    result = amber.score(said("dog cat table", "tree boat"), known, "g", EXACT, nouns=str.split)
    expected = {"CHAIR": 2 / 4.001, "Cover": 1 / 3.001, "Hal": 1 - 0 / 2.001, "Cog": 2 / 3.001}
    assert result.summary == pytest.approx({name: 100 * value for name, value in expected.items()})
    clean = amber.score(said("table", ""), known, "g", EXACT, nouns=str.split)
    assert clean.summary["Hal"] == pytest.approx(100 - 100 * 2 / 2.001)  # naming nothing is clean
    assert any("1 empty answers" in notice for notice in clean.notices)


def test_capitals_are_kept():
    result = amber.score(said("Dog"), annotations((["dog"], [])), "g", EXACT, nouns=str.split)
    assert result.details["counters"]["chair_num"] == 0.001


class TestAnswers:
    KINDS = ("discriminative-hallucination", "discriminative-attribute-state", "discriminative-relation", "relation")

    def score(self, task, *triples):
        """triples: (type, truth, response)."""
        known = annotations(answers=[(kind, truth) for kind, truth, _ in triples])
        return amber.score(said(*(response for *_, response in triples)), known, task, None)

    def test_worked_by_hand(self):
        """No is the positive class; "no", "No." and "" are wrong and no "No"; F1 has 0.001 for existence."""
        state, existence, relation, old_relation = (self.KINDS[i] for i in (1, 0, 2, 3))
        found = self.score(
            "d",
            (state, "no", "No"),
            (state, "no", "No."),
            (state, "yes", "No"),
            (state, "yes", "Yes"),
            (existence, "no", "No"),
            (existence, "no", "no"),
            (relation, "yes", "Yes"),
            (old_relation, "no", ""),
        )
        sections = found.details["sections"]
        assert sections["State"]["Accuracy"] == 2 / (0.001 + 1 + 1 + 1 + 1) * 100  # counted up one by one
        precision = recall = round(100 / 2.001, 1) / 100
        assert sections["State"]["F1"] == 2 * precision * recall / (precision + recall + 0.0001) * 100
        p, r = round(100 / 1.001, 1) / 100, round(100 / 2.001, 1) / 100
        assert sections["Existence"]["F1"] == 2 * p * r / (p + r + 0.001) * 100
        assert sections["Relation"]["Accuracy"] == 100 / 2.001  # both kinds of relation
        assert sections["Attribute"]["Accuracy"] == pytest.approx(100 * 2 / 4.003)  # three denominators are added
        assert found.summary == sections["Discriminative"]
        assert found.summary["Precision"] == pytest.approx(100 * 2 / 3.001)
        assert any("3 answers are neither" in notice for notice in found.notices)

    def test_nothing_right_is_zero_not_undefined(self):
        assert self.score("de", (self.KINDS[0], "no", "Yes")).summary == dict.fromkeys(
            ("Accuracy", "Precision", "Recall", "F1"), 0
        )

    def test_task_chooses_what_is_shown_not_what_is_counted(self):
        triples = [(self.KINDS[0], "no", "No"), (self.KINDS[2], "yes", "No")]
        assert self.score("de", *triples).summary == self.score("d", *triples).details["sections"]["Existence"]
        assert self.score("dr", *triples).summary["Precision"] == 0
        assert list(self.score("de", *triples).details["sections"]) == ["Existence"]

    def test_all_of_both(self):
        known = annotations((["dog"], []), answers=[("relation", "no")])
        found = amber.score(said("dog", "No"), known, "a", EXACT, nouns=str.split)
        assert {"CHAIR", "Cover", "Hal", "Cog", "Accuracy", "Precision", "Recall", "F1"} == found.summary.keys()
        assert found.printed[0] == "Generative Task:" and "Descriminative Task:" in found.printed

    def test_examples(self):
        found = self.score("d", (self.KINDS[0], "no", "No"), (self.KINDS[1], "yes", "No"))
        right = {row["question_kind"]: row["value"] for row in found.examples if row["metric"] == "accuracy"}
        assert right == {"existence": 1, "state": 0}


class TestBadInput:
    @pytest.fixture
    def arguments(self, data, write):
        def of(predictions, task="d", name="p.json", **extra):
            found = ["amber", "--predictions", write(name, predictions), "--amber-data", data / "amber", "--task", task]
            return found + [word for key, value in extra.items() for word in (f"--{key}", value)]

        return of

    @pytest.mark.parametrize("wrong", [0, -1, 15221, "1005", 1.0, True, None])
    def test_ids_without_annotation(self, arguments, refused, wrong):
        line = refused(*arguments([{"id": 1005, "response": "Yes"}, {"id": wrong, "response": "Yes"}]))
        assert "p.json, record 1" in line

    @pytest.mark.parametrize(
        "record", [{"id": 1005}, {"id": 1005, "response": None}, {"id": 1005, "response": ["Yes"]}]
    )
    def test_wrong_types(self, arguments, refused, record):
        assert "p.json, record 0" in refused(*arguments([record]))

    def test_missing_and_repeated(self, arguments, command):
        rows = [{"id": i, "response": "Yes"} for i in (1006, 1005, 1006)]
        found = command(*arguments(rows))
        assert found["counts"]["State"]["asked"] == pytest.approx(3.001)
        assert "1 repeated records (id 1006): each counts, as in the official script" in found["notices"]
        missing = "14214 of 14216 items have no answer and are left out (id 1007, 1008, 1009, 1010, 1011, …)"
        assert missing in found["notices"]

    def test_order_does_not_matter(self, arguments, command):
        rows = [{"id": i, "response": "No" if i % 3 else "Yes"} for i in range(8600, 8700)]
        assert command(*arguments(rows))["sections"] == command(*arguments(rows[::-1], name="q.json"))["sections"]

    def test_napo_folder(self, arguments, command, write):
        write("chunks/2_1.jsonl", [{"question_id": 1005, "text": "Yes"}])
        folder = write("chunks/2_0.jsonl", [{"question_id": 1006, "text": "Yes"}]).parent
        found = command("amber", "--predictions", folder, *arguments([{"id": 1}])[3:])
        assert found["counts"]["State"]["asked"] == pytest.approx(2.001)

    def test_chunks_beside_their_merged_file(self, arguments, refused, write):
        rows = [{"question_id": 1005, "text": "Yes"}]
        write("chunks/2_0.jsonl", rows)
        folder = write("chunks/amber_answer.jsonl", rows).parent
        assert "a merged file beside its chunks" in refused("amber", "--predictions", folder, *arguments(rows)[3:])

    def test_no_answers_for_the_task(self, arguments, refused):
        answers, captions = [{"id": 1005, "response": "Yes"}], [{"id": 1, "response": "A dog."}]
        assert "needs captions" in refused(*arguments(answers, task="g", similarity="exact"))
        assert "needs answers to existence questions" in refused(*arguments(answers, task="de"))
        assert "needs answers" in refused(*arguments(captions, task="a", similarity="exact"))

    def test_empty_and_truncated(self, arguments, refused):
        assert "holds no records" in refused(*arguments([]))
        assert "damaged or cut short" in refused(*arguments('[{"id": 1005, "response": "Ye'))

    @pytest.mark.parametrize(
        "records, problem",
        [
            ([{"id": 2, "type": "generative", "truth": [], "hallu": []}], "its id should be 1"),
            ([{"id": 1, "type": "generative", "truth": "dog", "hallu": []}], "lists of words"),
            ([{"id": 1, "type": "generative", "truth": ["yak"], "hallu": []}], "'yak' is not in relation.json"),
            ([{"id": 1, "type": "new", "truth": "yes"}], "unknown type 'new'"),
            ([{"id": 1, "type": "relation", "truth": "Yes"}], "truth must be yes or no"),
            (["x"], "its id should be 1"),
        ],
    )
    def test_annotations_of_another_version(self, write, records, problem):
        write("amber/annotations.json", records)
        write("amber/relation.json", {"dog": []})
        folder = write("amber/safe_words.txt", "light").parent
        with pytest.raises(BadInput, match=problem):
            amber.Annotations.read(folder)

    def test_other_number_of_annotations_is_reported(self):
        known = annotations((["dog"], []))
        assert (
            "1 annotations; the published version has 15220"
            in amber.score(said("dog"), known, "g", EXACT, nouns=str.split).notices
        )
