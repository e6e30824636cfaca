"""Evaluation: held-out margins against stock transformers, the table, adapters that do nothing, repeatability."""

import sys
import types
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_logps import truth
from test_packing import photo
from tiny_cells import make_base, make_profile, with_training

from napo import evaluate, models, train
from napo.artifacts import BadInput, MissingArtifact
from napo.profiles import KINDS, REJECTED_KINDS, Cell

COLUMNS = ["method", "base", "seed", "flip_rate", "benchmark", "metric", "example_id", "question_kind", "value"]
BASE, TRAINED = Cell("base"), Cell("dpo_all", seed=2, flip_rate=0.25)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(profile, runs folder, held-out rows) with the two cells trained and evaluated."""
    folder = tmp_path_factory.mktemp("world")
    profile = with_training(make_profile(folder), epochs=1)
    rows, _ = make_base(profile, folder / "runs")
    for cell in (BASE, TRAINED):
        train.train_cell(cell, profile, folder / "runs")
        evaluate.evaluate_cell(cell, profile, folder / "runs")
    return profile, folder / "runs", [row for row in rows if row["split"] == "heldout"]


def scores_of(world, cell):
    return pd.read_parquet(train.cell_folder(world[0], cell, world[1]) / "scores.parquet")


def test_table_has_the_contracts_columns_and_one_line_per_example_and_metric(world):
    scores = scores_of(world, TRAINED)
    assert list(scores.columns) == COLUMNS
    assert set(map(tuple, scores[COLUMNS[:5]].drop_duplicates().to_numpy().tolist())) == {
        ("dpo_all", 0, 2, 0.25, "heldout_pairs")
    }
    metrics = {
        "chosen_logps_per_token",
        *(f"{name}_{kind}" for name in ("margin", "accuracy") for kind in REJECTED_KINDS),
    }
    assert set(scores["metric"]) == metrics and len(scores) == 4 * len(metrics)
    assert not scores.duplicated(["metric", "example_id"]).any()
    assert set(scores["example_id"]) == {row["row_id"] for row in world[2]}
    assert scores["value"].map(np.isfinite).all()


def test_heldout_margins_are_those_of_stock_transformers(world):
    """Policy against base, each by full logits and cross entropy, one sequence at a time."""
    profile, runs, rows = world
    base, processor = models.load(profile.model, profile.quantisation)
    before = {kind: np.array([truth(base, processor, row, kind) for row in rows]) for kind in KINDS}
    policy = models.load_adapter(base, train.cell_folder(profile, TRAINED, runs) / "adapter")
    after = {kind: np.array([truth(policy, processor, row, kind) for row in rows]) for kind in KINDS}
    table = scores_of(world, TRAINED).pivot(index="example_id", columns="metric", values="value")
    table = table.loc[[row["row_id"] for row in rows]]
    n_tokens = np.array([len(row["chosen"]) + 2 for row in rows])
    np.testing.assert_allclose(table["chosen_logps_per_token"], after["chosen"] / n_tokens, rtol=1e-5)
    for kind in REJECTED_KINDS:
        margin = (after["chosen"] - before["chosen"]) - (after[kind] - before[kind])
        np.testing.assert_allclose(table[f"margin_{kind}"], margin, atol=2e-3)
        assert (table[f"accuracy_{kind}"] == (margin > 0)).all()
        assert abs(margin).min() > 0.01


def test_the_base_has_margin_0_everywhere(world):
    scores = scores_of(world, BASE)
    assert set(scores["method"]) == {"base"}
    assert scores[scores["metric"].str.startswith("margin")]["value"].abs().max() < 1e-4


def test_two_runs_give_the_same_bytes(world):
    profile, runs, _ = world
    path = train.cell_folder(profile, TRAINED, runs) / "scores.parquet"
    first = path.read_bytes()
    path.unlink()
    assert evaluate.evaluate_cell(TRAINED, profile, runs).read_bytes() == first


def test_finished_scores_are_not_made_again(world, monkeypatch):
    monkeypatch.setattr(models, "load", lambda *a, **k: pytest.fail("a model was loaded"))
    for cell in (BASE, TRAINED):
        evaluate.evaluate_cell(cell, *world[:2])


def test_an_adapter_that_does_nothing_is_refused(world):
    profile, runs, _ = world
    cell = Cell("dpo_original")
    folder = train.train_cell(cell, profile, runs)
    file = folder / "adapter" / "adapter_model.safetensors"
    silent = {name: w * (0 if "lora_B" in name else 1) for name, w in load_file(file).items()}
    save_file(silent, file)
    with pytest.raises(BadInput, match="dpo_original-b0-s0-f0/adapter: the adapter loads and changes nothing"):
        evaluate.evaluate_cell(cell, profile, runs)
    assert not (folder / "scores.parquet").exists()


def test_missing_adapter_and_scores_name_their_notebook(world):
    profile, runs, _ = world
    with pytest.raises(MissingArtifact, match="run notebook 03 first"):
        evaluate.evaluate_cell(Cell("napo_authors"), profile, runs)
    with pytest.raises(MissingArtifact, match="run notebook 04 first"):
        evaluate.load_scores(replace(profile, methods=("base", "napo_equal")), runs)


def test_all_cells_come_back_as_one_table(world):
    profile, runs, _ = world
    profile = replace(profile, methods=("base", "dpo_all"), seeds=(2,), flip_rates=(0.25,))
    evaluate.evaluate_cell(train_base := Cell("base", seed=2), profile, runs)
    scores = evaluate.load_scores(profile, runs)
    assert list(scores.columns) == COLUMNS
    assert scores.groupby("method").size().to_dict() == {"base": 28, "dpo_all": 28}
    assert train_base in profile.cells()


def test_a_benchmark_is_asked_in_full_and_scored_once(world, monkeypatch):
    """A stand-in for the desk world: what it asks reaches the model, what the model says reaches its score."""
    item = types.SimpleNamespace
    items = [item(example_id=f"e{i}", image=photo(i), question=f"what {i}?", question_kind="colour") for i in range(5)]
    seen = []

    def score(name, asked, answers):
        seen.append((name, asked, answers))
        return [
            {
                "benchmark": name,
                "metric": "length",
                "example_id": i.example_id,
                "question_kind": "colour",
                "value": len(a),
            }
            for i, a in zip(asked, answers, strict=True)
        ]

    fake = types.ModuleType("napo.world.benchmarks")
    fake.items, fake.score = lambda name, n, seed: items[seed : seed + n], score
    monkeypatch.setitem(sys.modules, "napo.world.benchmarks", fake)
    model, processor = models.load(world[0].model, world[0].quantisation)
    settings = replace(world[0].evaluation, items=3, seed=1, max_new_tokens=6)
    settings = replace(settings, benchmarks=("captions", "heldout_pairs"))
    asked = evaluate.ask(model, processor, settings)
    assert list(asked.columns) == ["benchmark", "example_id", "question", "answer"]
    records = evaluate.score_answers(asked, settings)
    assert [record["example_id"] for record in records] == ["e1", "e2", "e3"]
    assert len(seen) == 1 and seen[0][0] == "captions" and seen[0][2] == asked["answer"].tolist()
    for line, one in zip(asked.to_dict("records"), items[1:4], strict=True):
        text = f"USER: <image> {one.question} ASSISTANT:"
        inputs = processor(text=[text], images=[one.image], return_tensors="pt")
        with torch.no_grad():
            out = model.generate(**inputs, do_sample=False, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :]
        assert line["answer"] == processor.tokenizer.decode(out, skip_special_tokens=True).strip()
