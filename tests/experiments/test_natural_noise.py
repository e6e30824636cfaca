"""The record of the natural noise, its table in the docs, and the goal of three kinds of question each."""

import json
from pathlib import Path

import pandas as pd
import pytest

from experiments import natural_noise
from napo import profiles
from napo.desk.questions import KINDS, question
from napo.desk.scenes import Scene, Thing, to_json
from napo.engine.preferences import BIASED

FOLDER = Path(natural_noise.__file__).parent
RECORD = json.loads((FOLDER / "natural-noise.json").read_text())


def test_the_docs_show_the_record_of_the_reporting_bases(root):
    assert RECORD["bases"] == list(profiles.get("study").bases)
    assert natural_noise.table(RECORD) in (root / "docs" / "desk-world.md").read_text()
    found = pd.DataFrame(RECORD["noise"])
    assert set(found["question_kind"]) == set(KINDS) and found["noise"].between(0, 1).all()


def test_both_kinds_are_noisy_but_not_mostly_noise_on_three_kinds_of_question_each():
    means = pd.DataFrame(RECORD["noise"]).groupby(["kind", "question_kind"])["noise"].mean()
    for kind in BIASED:
        assert means[kind].map(natural_noise.within).sum() >= 3, kind


def test_the_share_is_that_of_the_rows_and_the_table_shows_mean_and_spread(tmp_path, monkeypatch):
    rows = pd.DataFrame(
        {
            "question_kind": ["colour"] * 4 + ["count"],
            "is_noise_language_biased": [True, False, False, False, True],
            "is_noise_vision_biased": [False] * 5,
        }
    )
    monkeypatch.setattr(natural_noise, "is_mistaken", lambda row: row["question_kind"] == "count")
    monkeypatch.setattr(natural_noise.perturb, "pairs", lambda profile, base, runs_dir: base)
    scaled = {0: rows, 1: rows.assign(is_noise_language_biased=[True, True, False, False, True])}
    monkeypatch.setattr(natural_noise, "read_parquet", lambda path, notebook: scaled[path])
    found = {"noise": natural_noise.measure([0, 1], tmp_path).to_dict("records")}
    lines = natural_noise.table(found).splitlines()[2:]
    assert lines[0] == "| colour | **0.375 [0.25, 0.50]** | 0.000 [0.00, 0.00] | 0.000 [0.00, 0.00] |"
    assert lines[1] == "| count | 1.000 [1.00, 1.00] | 0.000 [0.00, 0.00] | 1.000 [1.00, 1.00] |"


@pytest.mark.parametrize(
    ("chosen", "rejected", "mistaken"),
    [
        ("the frog is green .", "the frog is red .", True),  # it went by the prior
        ("the frog is red .", "the frog is green .", False),
        ("the frog is red . the frog is on grass .", "the frog is red .", False),  # it does not mind details: a draw
    ],
)
def test_a_labeller_is_mistaken_where_it_chose_the_worse_answer_by_the_picture(chosen, rejected, mistaken):
    scene = to_json(Scene((Thing("frog", "red", 0), Thing("whale", "blue", 3)), "grass"))
    row = {"scene": scene, "question": question("colour", "frog").text, "chosen": chosen, "rejected": rejected}
    assert natural_noise.is_mistaken(row) == mistaken
