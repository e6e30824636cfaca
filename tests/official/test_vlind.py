import json
import random

import numpy as np
import pytest

from napo.official import vlind
from napo.workshop.files import BadInput


def said(answer):
    return {"response": answer, "answer": answer}


def instance(a="TF", b="TF", c="TF", d=("TF",), votes=None, concept="size", global_id="0", mid="m_pred"):
    """A record whose pairs of answers are given by letters (T, F, N)."""
    words = {"T": "True", "F": "False", "N": "NA"}
    votes = votes if votes is not None else {str(i): 3 for i in range(len(d))}
    good = [image for image, vote in votes.items() if vote >= 2][: len(d)]
    record = {"global_id": global_id, "concept": concept, "aggregated_human_label_good_images": votes}
    for step, pair, end in (("a", a, "_image"), ("b", b, ""), ("c", c, "_image")):
        for number, letter in enumerate(pair, 1):
            record[f"{mid}_{step}{number}{end}"] = said(words[letter])
    for number in (1, 2):
        record[f"{mid}_d{number}"] = {image: said(words[pair[number - 1]]) for image, pair in zip(good, d, strict=True)}
    return record


def columns(records, **options):
    summary = vlind.score(records, "m", **options).summary
    return [summary[name] for name in vlind.COLUMNS]


@pytest.mark.parametrize(
    "response, answer",
    [
        ("True", "True"),
        ("false.", "False"),
        ("It is true, not false.", "True"),
        ("not true", "True"),  # the first of the two words decides, whatever stands around it
        ("t.r,ue", "True"),  # commas and full stops vanish inside words too
        ("I say\nFALSE", "False"),
        ("True!", "NA"),
        ('"True"', "NA"),
        ("**True**", "NA"),
        ("True: yes", "NA"),
        ("it is\ttrue", "NA"),
        ("true-ish, then false", "False"),
        ("", "NA"),
    ],
)
def test_parser(response, answer):
    assert vlind.infer_true_or_false(response) == answer


def test_worked_by_hand():
    """S_VP ignores a; S_CB is among those that pass a; S_LP among those that pass a, b and c; LP is a mean of means."""
    records = [
        instance(d=("TF", "TF", "TF", "FF"), global_id="0"),  # passes all, LP 3/4
        instance(d=("FF",), global_id="1"),  # passes a, b, c, LP 0
        instance(a="TT", d=("TF", "FF"), global_id="2"),  # fails a: its c and d count in Acc only
        instance(b="NF", c="TN", d=("TF",), global_id="3"),  # passes a only
    ]
    assert columns(records) == [3 / 4, 3 / 4, 2 / 3, (3 / 4) / 2, 3 / 4, (3 / 4 + 1 / 2 + 1) / 4]
    assert vlind.score(records, "m").details["S_LP_micro"] == 3 / 5


def test_nothing_passes():
    """Without candidates a ratio is 0, not undefined."""
    assert columns([instance(a="FF")]) == [0, 1, 0, 0, 1, 1]


def test_which_images_count():
    votes = {"0": 1, "4": 2, "12": 9, "9": 3}
    record = instance(d=("TF", "TF", "TF"), votes=votes)
    assert vlind.good_images(record) == ["4", "9"]
    assert vlind.good_images(record, min_votes=1, style="photorealistic") == ["0"]
    assert vlind.good_images(record, style="illustration") == ["4"]
    assert vlind.good_images(record, style="cartoon", min_votes=4) == []


def test_instances_without_good_image_are_in_no_denominator():
    result = vlind.score([instance(), instance(a="FF", votes={"0": 1}, d=(), global_id="1")], "m")
    assert result.summary["S_CK"] == 1 and result.summary["num_instances"] == 1
    assert result.notices[0] == "1 instances without a good image were left out"


def random_records(seed, n=40):
    rng = random.Random(seed)
    records = []
    for i in range(n):
        votes = {str(k): rng.randint(0, 3) for k in rng.sample(range(14), rng.randint(0, 8))}
        good = [k for k, vote in votes.items() if vote >= 2]
        pairs = ["".join(rng.choices("TFN", k=2)) if rng.random() < 0.4 else "TF" for _ in range(3 + len(good))]
        records.append(instance(*pairs[:3], d=pairs[3:], votes=votes, concept=rng.choice("xyz"), global_id=str(i)))
    return records


def straightforward(records, style="all"):
    """The same six numbers once more, on arrays."""
    right = lambda r, step: r[f"m_pred_{step[0]}"]["answer"] == "True" and r[f"m_pred_{step[1]}"]["answer"] == "False"  # noqa: E731
    rows = []
    for r in records:
        votes = r["aggregated_human_label_good_images"]
        images = [k for k in votes if votes[k] >= 2 and k in vlind.STYLES[style]]
        if images:
            both = [r["m_pred_d1"][k]["answer"] == "True" and r["m_pred_d2"][k]["answer"] == "False" for k in images]
            steps = [("a1_image", "a2_image"), ("b1", "b2"), ("c1_image", "c2_image")]
            rows.append([*(right(r, step) for step in steps), np.mean(both)])
    a, b, c, d = np.array(rows, dtype=float).T
    mean = lambda values, chosen: values[chosen > 0].mean() if chosen.any() else 0  # noqa: E731
    return [a.mean(), b.mean(), mean(c, a), mean(d, a * b * c), c.mean(), d.mean()]


@pytest.mark.parametrize("seed", range(20))
def test_equals_a_straightforward_formulation(seed):
    records = random_records(seed)
    for style in vlind.STYLES:
        np.testing.assert_allclose(columns(records, style=style), straightforward(records, style), rtol=1e-12)


def test_order_of_records_does_not_matter():
    records = random_records(7)
    np.testing.assert_allclose(columns(records), columns(records[::-1]), rtol=1e-12)


def test_examples_give_the_columns():
    records = random_records(3)
    result = vlind.score(records, "m")
    values = {}
    for row in result.examples:
        assert row["benchmark"] == "vlind" and row["question_kind"] in "xyz"
        values.setdefault(row["metric"], []).append(row["value"])
    ck, vp, cb, lp = (np.array(values[name]) for name in ("CK", "VP", "CB", "LP"))
    assert result.summary["Acc_LP"] == pytest.approx(lp.mean())
    assert result.summary["S_LP"] == pytest.approx((lp * ck * vp * cb).sum() / (ck * vp * cb).sum())


class TestBadInput:
    def test_other_model_id_names_those_that_are_there(self, refused, write):
        path = write("p.json", [instance(mid="llava_pred"), instance(mid="gpt")])
        assert "use --model-id gpt or llava" in refused("vlind", "--predictions", path, "--model-id", "m")

    def test_missing_answer_names_record_and_step(self, refused, write):
        record = instance()
        del record["m_pred_b2"]
        path = write("p.json", [instance(global_id="7"), record])
        assert "p.json, record 1: no answer b2 of m" in refused("vlind", "--predictions", path, "--model-id", "m")

    def test_asked_with_more_votes_than_scored(self, refused, write):
        path = write("p.json", [instance(votes={"0": 3, "1": 1})])
        line = refused("vlind", "--predictions", path, "--model-id", "m", "--min-votes", 1)
        assert "no answer d1 for image 1" in line and "same --min-votes" in line

    @pytest.mark.parametrize("answer", [True, None, "True", {"response": "True"}, {"answer": 1}, []])
    def test_wrong_types(self, refused, write, answer):
        path = write("p.json", [instance() | {"m_pred_a1_image": answer}])
        assert "a1_image of m" in refused("vlind", "--predictions", path, "--model-id", "m")

    @pytest.mark.parametrize("votes", [None, [1], {"0": "3"}, {"0": None}])
    def test_wrong_votes(self, refused, write, votes):
        path = write("p.json", [instance() | {"aggregated_human_label_good_images": votes}])
        assert "numbers of votes" in refused("vlind", "--predictions", path, "--model-id", "m")

    def test_no_good_image_at_all(self, refused, write):
        path = write("p.json", [instance(votes={"0": 3})])
        line = refused("vlind", "--predictions", path, "--model-id", "m", "--style", "cartoon")
        assert "no instance has an image with 2 votes in style cartoon" in line

    def test_chunks_beside_their_merged_file(self, refused, write):
        write("chunks/2_0.jsonl", json.dumps([instance(global_id="0")]))
        write("chunks/2_1.jsonl", json.dumps([instance(global_id="1")]))
        merged = write("chunks/merged.json", [instance(global_id="0"), instance(global_id="1")])
        line = refused("vlind", "--predictions", merged.parent, "--model-id", "m")
        assert "2 records lie in more than one file" in line and "merged.json" in line

    def test_repeated_records_are_reported_and_counted(self):
        result = vlind.score([instance(), instance(), instance(global_id="1", a="FF")], "m")
        assert result.summary["S_CK"] == 2 / 3
        assert result.notices[0].startswith("1 repeated records (global_id 0)")

    def test_missing_and_extra_instances_are_reported(self, command, write):
        path = write("p.json", [instance(global_id="0"), instance(global_id="9")])
        known = write("data.json", [{"global_id": i} for i in range(4)])
        found = command("vlind", "--predictions", path, "--model-id", "m", "--data", known)
        assert "3 instances of data.json are not in the predictions (global_id 1, 2, 3)" in found["notices"]
        assert "1 instances are not in data.json (global_id 9)" in found["notices"]

    def test_predictions_of_another_data_set(self):
        with pytest.raises(BadInput, match="data.json of another version"):
            vlind.score([instance(global_id="x")], "m", annotations=[{"global_id": "y"}])

    def test_empty_chunk_is_reported(self, command, write):
        write("chunks/2_0.jsonl", json.dumps([instance()]))
        empty = write("chunks/2_1.jsonl", "")
        notices = command("vlind", "--predictions", empty.parent, "--model-id", "m")["notices"]
        assert any("2_1.jsonl is empty" in notice for notice in notices)

    def test_empty_answers_are_reported(self):
        record = instance() | {"m_pred_b2": {"response": " ", "answer": "NA"}}
        assert "1 empty answers (global_id 0)" in vlind.score([record], "m").notices

    def test_answers_that_contradict_their_response_are_reported(self):
        record = instance() | {"m_pred_b1": {"response": "False", "answer": "True"}, "m_pred_b2": said("no")}
        notices = vlind.score([record], "m").notices
        assert any("none of True, False, NA" in notice for notice in notices)
        assert any("not what the official parser reads" in notice for notice in notices)
