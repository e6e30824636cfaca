import random
import re

import pytest

from napo.official import mmhal


def review(text, **more):
    return {"choices": [{"message": {"role": "assistant", "content": text}}], **more}


@pytest.mark.parametrize(
    "text, rating",
    [
        ("Rating: 5", 5),
        ("- RATING: 0, not informative", 0),
        ("Rating: 10", 1),
        ("Rating: 3.5", 3),
        ("Rating: 65", 6),
        ("overrating: 6", 6),
        ("Rating: 4 and again rating: 4", 4),
        ("Rating: 6 vs. rating: 0", None),
        ("Rating:5", None),
        ("**Rating:** 3", None),
        ("Rating:  4", None),
        ("Rating: 7", None),
        ("rating: six", None),
        ("", None),
    ],
)
def test_parser(text, rating):
    assert mmhal.parse_rating(text) == rating


def test_same_reading_by_a_regular_expression():
    rng = random.Random(2)
    for _ in range(1000):
        text = "".join(rng.choices(["Rating: ", "rating:", " ", "0", "3", "6", "9", "\n"], k=rng.randint(0, 7)))
        found = set(re.findall(r"rating: ([0-6])", text.lower()))
        assert mmhal.parse_rating(text) == (int(found.pop()) if len(found) == 1 else None)


def test_worked_by_hand():
    """Types follow one another; unparseable is 0, hence hallucinated; 3 is the least that is not."""
    result = mmhal.score([review(f"Rating: {i % 8}") for i in range(96)])
    assert result.summary["per_item"][:8] == [0, 1, 2, 3, 4, 5, 6, 0]
    assert result.summary["score"] == 21 / 8 and result.summary["hal_rate"] == 4 / 8
    assert result.summary["informativeness"] == pytest.approx((0 + 1 + 2 + 0 + 1 + 2 + 3 + 0) / 8 / 3)
    assert list(result.summary["per_type"].values()) == [0, 1, 2, 3, 4, 5, 6, 0]
    assert [item["item"] for item in result.details["unparseable"]] == list(range(7, 96, 8))
    assert result.notices[0].startswith("12 reviews give no single rating and count as 0 (item 7, 15, 23, 31, 39, …)")


def test_the_judge_is_shown():
    about = {"kind": "endpoint", "model": "gpt-x", "parameters": {"temperature": 0}, "template_sha256": "ab"}
    result = mmhal.score([review("Rating: 3", model="gpt-x-0314", judge=about)] * 96)
    assert result.details["judge"] == {"model_in_replies": ["gpt-x-0314"], "recorded": [about], "n_recorded": 96}
    assert result.notices == []


def test_mixed_judges_are_reported():
    replies = [review("Rating: 3", model="a")] * 95 + [review("Rating: 3", model="b")]
    assert "reviews of more than one judge: a, b" in mmhal.score(replies).notices


class TestBadInput:
    def test_other_number(self, refused, write):
        line = refused("mmhal", "--reviews", write("r.json", [review("Rating: 3")] * 95))
        assert "95 reviews where the benchmark has 96" in line

    @pytest.mark.parametrize("wrong", [{}, {"choices": []}, review(None), review(3), {"choices": "x"}])
    def test_wrong_types(self, refused, write, wrong):
        line = refused("mmhal", "--reviews", write("r.json", [review("Rating: 3")] * 95 + [wrong]))
        assert "record 95: no text at choices[0].message.content" in line

    def test_folder_must_hold_one_review_file(self, refused, write):
        folder = write("r/x.json", []).parent
        assert "holds 0 review files" in refused("mmhal", "--reviews", folder)
        for name in "ab":
            write(f"r/{name}.mmhal_test_eval.json", [])
        assert "holds 2 review files" in refused("mmhal", "--reviews", folder)

    def test_truncated(self, refused, write):
        assert "cut short" in refused("mmhal", "--reviews", write("r.json", '[{"choices": '))
