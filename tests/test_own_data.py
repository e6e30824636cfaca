"""A user's own parquet in RLAIF-V's schema, with real photographs, through the paper profile's code path on a CPU.

Perturb, reference log-probs, train, evaluate: the calls of notebooks 01 to 04, with a tiny random LLaVA.
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

from napo import data, evaluate, logps, models, perturb, profiles, train
from napo.artifacts import BadInput

CELLS = [profiles.Cell(method) for method in ("base", "dpo_all", "napo_paper", "napo_authors")]
ROWS = 8


def own_profile(folder, **changes):
    settings = {"model": str(folder / "llava"), "data": str(folder / "mine.parquet"), "rows": ROWS, "device": "cpu"}
    profile = profiles.get("paper", **settings | changes)
    return replace(profile, perturbation=replace(profile.perturbation, max_new_tokens=12))  # for time


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("photographs.photograph", lambda name: photograph(name).resize((120, 90)))
        write_upstream(folder / "mine.parquet", 2 * ROWS)
    save_tiny_llava(folder / "llava")
    return folder


@pytest.fixture(scope="module")
def run(folder):
    """The profile after all four stages."""
    profile = own_profile(folder)
    perturb.pairs(profile, 0, folder / "runs")
    logps.reference(profile, 0, folder / "runs")
    for cell in CELLS:
        train.train_cell(cell, profile, folder / "runs")
        evaluate.evaluate_cell(cell, profile, folder / "runs")
    return profile


def test_profile_is_the_papers_but_for_what_was_overridden(folder):
    own, paper = own_profile(folder), profiles.PROFILES["paper"]
    assert own.training == paper.training and own.lora == paper.lora and own.evaluation == paper.evaluation
    assert own.perturbation == replace(paper.perturbation, max_new_tokens=12) and own.perturbation.num_beams == 3
    assert own.quantisation.four_bit and own.quantisation.dtype == "float32"
    assert (own.rows, own.heldout_rows, own.device) == (ROWS, ROWS, "cpu")


def test_pairs_keep_the_source_and_add_both_biased_answers(folder, run):
    pairs = data.read(folder / "runs" / "paper" / "base-0" / "pairs.parquet")
    source = pq.read_table(folder / "mine.parquet").to_pylist()
    assert len(pairs) == len(source) == 2 * ROWS
    assert len(data.part(pairs, "train")) == ROWS and len(data.part(pairs, "heldout")) == ROWS
    for i, (row, original) in enumerate(zip(pairs, source, strict=True)):
        record = upstream_record(i)
        for name in ("question", "chosen", "rejected", "origin_dataset", "idx", "image_path"):
            assert row[name] == record[name]
        stored = Image.open(io.BytesIO(original["image"]["bytes"]))
        assert np.array_equal(np.asarray(row["image"]), np.asarray(stored.convert("RGB")))
        for kind in data.BIASED:
            assert row[kind].strip() and row[f"is_noise_{kind}"] in (None, True)
    assert len(set(pairs["vision_biased"])) > 1


def test_every_stage_leaves_its_record(folder, run):
    runs = folder / "runs" / "paper"
    for place, names in {
        "base-0": {"pairs.parquet", "reference.parquet"},
        "cells/napo_paper-b0-s0-f0": {"adapter", "steps.jsonl", "answers.parquet", "scores.parquet"},
    }.items():
        artefacts = json.loads((runs / place / "provenance.json").read_text())["artefacts"]
        assert set(artefacts) == names
        assert all({"key", "sha256", "inputs", "versions", "device", "seconds"} <= set(a) for a in artefacts.values())


@pytest.mark.parametrize("cell", CELLS[1:], ids=lambda cell: cell.method)
def test_training_starts_where_it_must_and_changes_the_model(folder, run, cell):
    place = train.cell_folder(run, cell, folder / "runs")
    steps = [json.loads(line) for line in (place / "steps.jsonl").read_text().splitlines()]
    half = 2 - math.sqrt(2)
    first = {
        "dpo_all": math.log(2),
        "napo_paper": (math.log(2) + 2 * half) / 3,
        "napo_authors": 0.04 * math.log(2) + 0.48,
    }
    assert len(steps) == 1 and steps[0]["loss"] == pytest.approx(first[cell.method], abs=1e-4)
    assert steps[0]["learning_rate"] > 0 and steps[0]["grad_norm"] > 0


def test_scores_of_all_cells_are_one_table_on_held_out_rows(folder, run):
    files = [train.cell_folder(run, cell, folder / "runs") / "scores.parquet" for cell in CELLS]
    scores = pd.concat(map(pd.read_parquet, files))
    assert list(scores.columns) == evaluate.COLUMNS
    assert set(scores["method"]) == {cell.method for cell in CELLS} and set(scores["benchmark"]) == {"heldout_pairs"}
    assert set(scores["example_id"]) == {f"mine.parquet:{i}" for i in range(ROWS, 2 * ROWS)}
    margins = (
        scores[scores["metric"].str.startswith("margin")].groupby("method")["value"].apply(lambda v: v.abs().max())
    )
    assert margins["base"] < 1e-4 < margins[["dpo_all", "napo_paper", "napo_authors"]].min()


def test_nothing_is_done_twice(folder, run, monkeypatch):
    monkeypatch.setattr(models, "load", lambda *a, **k: pytest.fail("a model was loaded"))
    perturb.pairs(run, 0, folder / "runs")
    logps.reference(run, 0, folder / "runs")
    for cell in CELLS:
        train.train_cell(cell, run, folder / "runs")
        evaluate.evaluate_cell(cell, run, folder / "runs")


def test_bad_rows_stop_before_a_model_is_loaded(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "load", lambda *a, **k: pytest.fail("a model was loaded"))
    write_upstream(tmp_path / "bad.parquet", 6, chosen=lambda i: "" if i == 4 else "a cat")
    profile = own_profile(folder, data=str(tmp_path / "bad.parquet"))
    with pytest.raises(BadInput, match=r"bad\.parquet: 1 bad row\(s\): row 4 \(bad\.parquet:4\) chosen is empty"):
        perturb.pairs(profile, 0, tmp_path / "runs")
    assert not (tmp_path / "runs" / "paper" / "base-0" / "pairs.parquet").exists()


def test_a_prompt_over_the_length_limit_names_row_and_remedy(folder, run):
    profile = replace(run, training=replace(run.training, max_length=16))
    with pytest.raises(
        BadInput, match=r"row mine\.parquet:0: the prompt has \d+ tokens, max_length is 16: image tokens"
    ):
        logps.reference(profile, 0, folder / "runs")
