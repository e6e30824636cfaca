import random
import re

import pytest

from napo.official import pope


def questions(labels, first=1):
    return [
        {"question_id": i, "image": "x.jpg", "text": f"Is there a thing{i} in the image?", "label": label}
        for i, label in enumerate(labels, first)
    ]


def answers(texts, asked=None):
    asked = asked or questions(["yes"] * len(texts))
    return [
        {"question_id": question["question_id"], "question": question["text"], "answer": text}
        for question, text in zip(asked, texts, strict=False)
    ]


READ_AS_NO = ["No", "no", "No.", "it is not", "yes, no doubt", "No, there is", "There is no dog. Yes", ",No", "no,"]
READ_AS_YES = [
    "Yes",
    "NO",
    "Not.",
    "None",
    "no!",
    "No\nmore",
    "",
    ". No",
    "nope",
    "Nothing",
    "cannot",
    "Yes. no",
    "\tno",
]


@pytest.mark.parametrize("text", READ_AS_NO)
def test_read_as_no(text):
    assert pope.says_no(text)


@pytest.mark.parametrize("text", READ_AS_YES)
def test_read_as_yes(text):
    assert not pope.says_no(text)


def test_same_reading_by_a_regular_expression():
    rng = random.Random(0)
    for _ in range(2000):
        text = "".join(rng.choices(["No", "no", "not", "Yes", " ", " ", ",", ".", "\n", "!", "a"], k=rng.randint(0, 7)))
        first = re.match(r"[^.]*", text).group().replace(",", "")
        assert pope.says_no(text) == bool(re.search(r"(?<![^ ])(No|not|no)(?![^ ])", first)), repr(text)


def test_worked_by_hand():
    asked = questions(["yes", "yes", "yes", "no", "no"])
    result = pope.score(asked, answers(["Yes", "Yes", "No", "Yes", "No"]))
    assert result.summary == {"acc": 3 / 5, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "yes_ratio": 3 / 5}
    assert (result.details["TP"], result.details["FP"], result.details["TN"], result.details["FN"]) == (2, 1, 1, 1)
    right = [row["value"] for row in result.examples if row["metric"] == "accuracy"]
    assert right == [1, 1, 0, 0, 1]


def test_always_no_leaves_precision_undefined(command, write):
    asked = questions(["yes", "no"])
    found = command("pope", "--questions", write("q.json", asked), "--answers", write("a.jsonl", answers(["No", "No"])))
    assert found["acc"] == 0.5 and found["yes_ratio"] == 0
    assert found["precision"] is None and found["recall"] == 0 and found["f1"] is None
    assert sum("undefined" in notice for notice in found["notices"]) == 2


def test_llava_key_and_seem_layout(command, write):
    """LLaVA-RLHF's answers have the key text; POPE's seem files are lists, which the official evaluator cannot read."""
    asked = questions(["yes", "no"])
    rows = [{"question_id": 1, "text": "Yes"}, {"question_id": 2, "text": "No"}]
    found = command("pope", "--questions", write("q.json", asked), "--answers", write("a.jsonl", rows))
    assert found["acc"] == 1


class TestBadInput:
    def refuse(self, refused, write, asked, said):
        return refused("pope", "--questions", write("q.jsonl", asked), "--answers", write("a.jsonl", said))

    def test_shuffled(self, refused, write):
        asked = questions(["yes", "no", "yes"])
        said = answers(["Yes", "No", "Yes"], asked)
        line = self.refuse(refused, write, asked, [said[1], said[0], said[2]])
        assert "a.jsonl, line 1: answers question_id 2, the question there is 1" in line

    def test_one_missing_in_the_middle(self, refused, write):
        asked = questions(["yes", "no", "yes"])
        said = answers(["Yes", "No", "Yes"], asked)
        assert "line 2: answers question_id 3" in self.refuse(refused, write, asked, [said[0], said[2]])

    def test_questions_of_another_version(self, refused, write):
        asked = questions(["yes", "no"])
        said = [row | {"question": "Is there a cat in the image?"} for row in answers(["Yes", "No"], asked)]
        assert "another version" in self.refuse(refused, write, asked, said)

    def test_editions_differ_in_articles_only(self):
        asked = questions(["yes", "no"])
        said = [row | {"question": row["question"].replace(" a ", " an ")} for row in answers(["Yes", "No"], asked)]
        assert pope.score(asked, said).summary["acc"] == 1

    def test_end_missing_is_reported_and_scored_as_officially(self):
        asked = questions(["yes", "no", "yes"])
        result = pope.score(asked, answers(["Yes", "Yes"], asked))
        assert result.summary["acc"] == 1 / 2
        assert "1 questions at the end have no answer and are left out (question_id 3)" in result.notices

    def test_extra_answers_count_in_yes_ratio_only(self):
        asked = questions(["yes", "no"])
        said = answers(["Yes", "No"], asked) + [{"question_id": 9, "answer": "Yes"}]
        result = pope.score(asked, said)
        assert result.summary["acc"] == 1 and result.summary["yes_ratio"] == 2 / 3
        assert any("1 answers beyond the last question" in notice for notice in result.notices)

    def test_other_number_and_nothing_to_tell_them_by(self, refused, write):
        line = self.refuse(refused, write, questions(["yes", "no"]), [{"answer": "Yes"}])
        assert "1 answers for 2 questions" in line

    @pytest.mark.parametrize("row", [{"answer": None}, {"answer": 1}, {"reply": "Yes"}, {"answer": ["Yes"]}])
    def test_wrong_types(self, refused, write, row):
        assert "a.jsonl, line 1" in self.refuse(refused, write, questions(["yes"]), [row])

    @pytest.mark.parametrize("label", ["Yes", "maybe", "", None, True])
    def test_labels_that_the_official_script_would_take_for_yes(self, refused, write, label):
        asked = [questions(["yes"])[0] | {"label": label}]
        assert "label" in self.refuse(refused, write, asked, [{"answer": "Yes"}])

    def test_empty_answers_are_reported(self):
        asked = questions(["yes", "no"])
        result = pope.score(asked, answers(["", "No"], asked))
        assert "1 empty answers (read as yes, question_id 1)" in result.notices and result.summary["acc"] == 1

    def test_truncated_line(self, refused, write):
        said = write("a.jsonl", '{"answer": "Yes"}\n{"answer": "Y')
        line = refused("pope", "--questions", write("q.jsonl", questions(["yes", "no"])), "--answers", said)
        assert "a.jsonl, line 2: not a complete JSON record" in line
