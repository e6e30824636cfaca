"""A user's own parquet in RLAIF-V's schema, with real photographs, through the paper profile's code path on a CPU.

Pairs, reference log-probs, training, evaluation: the README's ten lines, with a tiny random LLaVA.
"""

import io
import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from photographs import photograph, upstream_record, write_upstream
from PIL import Image
from tiny_models import save_tiny_llava

import napo
from napo import profiles
from napo.engine import models, preferences
from napo.evaluation import evaluate
from napo.workshop.files import BadInput

METHODS = ("base", "dpo_all", "napo_paper", "napo_authors")
ROWS = 8


def own_kit(folder, data="mine.parquet", **changes):
    """A Kit on the folder's model and rows; changes of the profile."""
    data = str(folder / data)
    kit = napo.Kit(
        "paper", model=str(folder / "llava"), data=data, rows=ROWS, device="cpu", runs_dir=str(folder / "runs")
    )
    short = replace(kit.profile.perturbation, max_new_tokens=12)  # for time
    kit.profile = replace(kit.profile, perturbation=short, **changes)
    return kit


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("photographs.photograph", lambda name: photograph(name).resize((120, 90)))
        write_upstream(folder / "mine.parquet", 2 * ROWS)
    save_tiny_llava(folder / "llava")
    return folder


@pytest.fixture(scope="module")
def kit(folder):
    """The Kit after all four stages."""
    kit = own_kit(folder)
    all_stages(kit)
    return kit


def all_stages(kit):
    kit.pairs()
    kit.reference()
    for method in METHODS:
        kit.train(method)
        kit.evaluate(method)


def test_profile_is_the_papers_but_for_what_was_overridden(folder):
    own, paper = own_kit(folder).profile, profiles.PROFILES["paper"]
    assert own.training == paper.training and own.lora == paper.lora and own.evaluation == paper.evaluation
    assert own.perturbation == replace(paper.perturbation, max_new_tokens=12) and own.perturbation.num_beams == 3
    assert own.quantisation.four_bit and own.quantisation.dtype == "float32"
    assert (own.rows, own.heldout_rows, own.device) == (ROWS, ROWS, "cpu")


def test_pairs_keep_the_source_and_add_both_biased_answers(folder, kit):
    pairs = kit.rows()
    source = pq.read_table(folder / "mine.parquet").to_pylist()
    assert len(pairs) == len(source) == 2 * ROWS
    assert len(kit.rows(part="train")) == ROWS and len(kit.rows(part="heldout")) == ROWS
    for i, (row, original) in enumerate(zip(pairs, source, strict=True)):
        record = upstream_record(i)
        for name in ("question", "chosen", "rejected", "origin_dataset", "idx", "image_path"):
            assert row[name] == record[name]
        stored = Image.open(io.BytesIO(original["image"]["bytes"]))
        assert np.array_equal(np.asarray(row["image"]), np.asarray(stored.convert("RGB")))
        for kind in preferences.BIASED:
            assert row[kind].strip() and row[f"is_noise_{kind}"] in (None, True)
    assert len(set(pairs["vision_biased"])) > 1


def test_every_stage_leaves_its_record(kit):
    for place, names in {
        "base-0": {"pairs.parquet", "reference.parquet"},
        "cells/napo_paper-b0-s0-f0": {"adapter", "steps.jsonl", "answers.parquet", "scores.parquet"},
    }.items():
        artefacts = json.loads((kit.folder / place / "provenance.json").read_text())["artefacts"]
        assert set(artefacts) == names
        assert all({"key", "sha256", "inputs", "versions", "device", "seconds"} <= set(a) for a in artefacts.values())


@pytest.mark.parametrize("method", METHODS[1:])
def test_training_starts_where_it_must_and_changes_the_model(kit, method):
    steps = kit.steps(method).to_dict("records")
    half = 2 - math.sqrt(2)
    first = {
        "dpo_all": math.log(2),
        "napo_paper": (math.log(2) + 2 * half) / 3,
        "napo_authors": 0.04 * math.log(2) + 0.48,
    }
    assert len(steps) == 1 and steps[0]["loss"] == pytest.approx(first[method], abs=1e-4)
    assert steps[0]["learning_rate"] > 0 and steps[0]["grad_norm"] > 0


def test_scores_of_all_cells_are_one_table_on_held_out_rows(kit):
    scores = pd.concat(map(kit.scores, METHODS))
    assert list(scores.columns) == evaluate.COLUMNS
    assert set(scores["method"]) == set(METHODS) and set(scores["benchmark"]) == {"heldout_pairs"}
    assert set(scores["example_id"]) == {f"mine.parquet:{i}" for i in range(ROWS, 2 * ROWS)}
    margins = (
        scores[scores["metric"].str.startswith("margin")].groupby("method")["value"].apply(lambda v: v.abs().max())
    )
    assert margins["base"] < 1e-4 < margins[["dpo_all", "napo_paper", "napo_authors"]].min()


def test_nothing_is_done_twice(kit, monkeypatch):
    monkeypatch.setattr(models, "load", lambda *a, **k: pytest.fail("a model was loaded"))
    all_stages(kit)


def test_bad_rows_stop_before_a_model_is_loaded(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "load", lambda *a, **k: pytest.fail("a model was loaded"))
    write_upstream(folder / "bad.parquet", 6, chosen=lambda i: "" if i == 4 else "a cat")
    kit = own_kit(folder, "bad.parquet")
    kit.runs_dir, kit.folder = tmp_path, tmp_path / "paper"
    with pytest.raises(BadInput, match=r"bad\.parquet: 1 bad row\(s\): row 4 \(bad\.parquet:4\) chosen is empty"):
        kit.pairs()
    assert not (tmp_path / "paper" / "base-0" / "pairs.parquet").exists()


def test_a_prompt_over_the_length_limit_names_row_and_remedy(folder, kit):
    short = own_kit(folder, training=replace(kit.profile.training, max_length=16))
    with pytest.raises(
        BadInput, match=r"row mine\.parquet:0: the prompt has \d+ tokens, max_length is 16: image tokens"
    ):
        short.reference()
