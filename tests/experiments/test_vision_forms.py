"""The forms of vision-biased pairs, worked by hand, and their record in the docs."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from experiments import headroom, vision_forms
from napo import profiles
from napo.engine import models
from napo.engine.preferences import read
from napo.pairs.perturb import pairs
from napo.profiles import DEVELOPMENT_BASES

ROWS = (  # question kind, chosen, vision-biased, noise
    ("colour", "the frog is red .", "there is a red frog and a boat .", False),
    ("colour", "the frog is red .", "the frog is red .", True),
    ("caption", "there is a red frog .", "the frog is on snow .", False),
    ("caption", "there is a red frog and a blue boat .", "there is a red frog .", True),
)


def made(form, rows=ROWS):
    """[(rejected answer, whether the pair is used)] of a form that needs no model."""
    names = ("question_kind", "chosen", "vision_biased", "is_noise_vision_biased")
    rows = [dict(zip(names, row, strict=True)) for row in rows]
    changed = vision_forms.FORMS[form](rows, None, None, np.random.default_rng(0))
    return [(row["vision_biased"], not row["is_noise_vision_biased"]) for row in changed]


@pytest.mark.parametrize(
    "form, used",
    [
        ("as_they_are", [True, False, True, True]),  # the second's two answers are one
        ("without_noise", [True, False, True, False]),
        ("without_captions", [True, False, False, False]),
        ("captions_only", [False, False, True, True]),
    ],
)
def test_which_pairs_are_used(form, used):
    assert made(form) == [(row[2], use) for row, use in zip(ROWS, used, strict=True)]


def test_what_stands_in_them():
    assert made("cut")[:2] == [("there is a red frog", True), ("the frog is red .", False)]
    assert made("appended")[0] == ("the frog is red . there is a red frog and a boat .", True)
    assert [used for _, used in made("appended_without_captions")] == [True, True, False, False]
    assert made("as_they_are", [("colour", "red .", "", False)]) == [("", False)]


def test_forms_that_ask_the_model(tmp_path, monkeypatch):
    """On a shipped base: half of the pairs are used; the other question is another question, and its answer is other
    text."""
    profile = replace(profiles.get("smoke"), name="headroom", rows=12, heldout_rows=0)
    rows = [dict(row) for row in read(pairs(profile, 0, tmp_path))]
    model, processor = models.load_base(profile, 0)
    half = vision_forms.likely(rows, model, processor, np.random.default_rng(0))
    equal = sum(row["vision_biased"] == row["chosen"] for row in rows)
    assert 6 - equal <= sum(not row["is_noise_vision_biased"] for row in half) <= 6
    rng = np.random.default_rng(0)
    asked = [vision_forms._another(row, rng) for row in rows]
    assert all(text != row["question"] for text, row in zip(asked, rows, strict=True))
    other = vision_forms.other_question(rows, model, processor, np.random.default_rng(0))
    assert sum(a["vision_biased"] != b["vision_biased"] for a, b in zip(rows, other, strict=True)) >= 6
    monkeypatch.setattr(headroom, "ITEMS", 6)
    run = headroom.Run("vb", "cut", 0, 0)
    path = vision_forms.scores_of(run, profile, tmp_path)
    assert set(pd.read_parquet(path)["method"]) == {"vb+cut"}


def test_each_form_is_compared_with_the_same_pairs_without_it():
    for numbers, forms in (([100], vision_forms.FORMS), ([0, 1], vision_forms.CONFIRMED)):
        labels = {run.label for run in vision_forms.runs(numbers, [0])}
        compared = vision_forms.comparisons(pd.DataFrame({"method": sorted(labels)}))
        assert {better for better, other in compared if other == "dpo_original"} == {f"vb+{form}" for form in forms}
        assert {better for better, other in compared if other == "dpo_lb"} <= {f"all+{form}" for form in forms}
        assert {name for pair in compared for name in pair} == labels


@pytest.mark.parametrize("bases", ["development", "reporting"])
def test_the_docs_show_the_record(bases, root):
    found = json.loads((root / "experiments" / f"vision-forms-{bases}.json").read_text())
    assert all((base in DEVELOPMENT_BASES) == (bases == "development") for base in found["bases"])
    asked = {f"{arm}+{form}" for arm, form, _ in vision_forms.arms(bases == "development")}
    assert {record["better"] for record in found["comparisons"]} == asked
    assert vision_forms.table(found) in (root / "docs" / "desk-world.md").read_text()
