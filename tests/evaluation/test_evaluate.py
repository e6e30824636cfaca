"""Evaluation: held-out margins against stock transformers, the table, adapters that do nothing, repeatability."""

import json
from dataclasses import replace

import numpy as np
import official_data
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_cells import make_base, make_profile, with_training

from napo import profiles
from napo.commands.evaluate import main
from napo.comparison.cells import cell_folder, train_cell
from napo.desk import benchmark_items
from napo.desk.questions import full_answer, parse
from napo.engine import generation, models
from napo.evaluation import asking, evaluate, scoring
from napo.methods import KINDS, REJECTED_KINDS
from napo.profiles import Cell
from napo.workshop import artifacts
from napo.workshop.files import BadInput, MissingArtifact

COLUMNS = ["method", "base", "seed", "flip_rate", "benchmark", "metric", "example_id", "question_kind", "value"]
BASE, TRAINED = Cell("base"), Cell("dpo_all", seed=2, flip_rate=0.25)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(profile, runs folder, held-out rows) with the two cells trained and evaluated."""
    folder = tmp_path_factory.mktemp("world")
    profile = with_training(make_profile(folder), epochs=1)
    rows, _ = make_base(profile, folder / "runs")
    for cell in (BASE, TRAINED):
        train_cell(cell, profile, folder / "runs")
        evaluate.evaluate_cell(cell, profile, folder / "runs")
    return profile, folder / "runs", [row for row in rows if row["split"] == "heldout"]


def scores_of(world, cell):
    return pd.read_parquet(cell_folder(world[0], cell, world[1]) / "scores.parquet")


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


def stock_logps(model, processor, row, kind):
    """Log-prob of an answer by stock transformers: template, full logits, cross entropy after the prompt."""
    content = [{"type": "image", "image": row["image"]}, {"type": "text", "text": row["question"]}]
    how = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], **how)
    answer = processor.tokenizer(" " + row[kind] + "</s>", add_special_tokens=False, return_tensors="pt")["input_ids"]
    ids = torch.cat([prompt["input_ids"], answer], dim=1)
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=prompt["pixel_values"], use_cache=False).logits[0].double()
    return -torch.nn.functional.cross_entropy(logits[-answer.shape[1] - 1 : -1], answer[0], reduction="sum").item()


def test_heldout_margins_are_those_of_stock_transformers(world):
    """Policy against base, each by full logits and cross entropy, one sequence at a time."""
    profile, runs, rows = world
    base, processor = models.load(profile.model, profile.quantisation)
    before = {kind: np.array([stock_logps(base, processor, row, kind) for row in rows]) for kind in KINDS}
    policy = models.load_adapter(base, cell_folder(profile, TRAINED, runs) / "adapter")
    after = {kind: np.array([stock_logps(policy, processor, row, kind) for row in rows]) for kind in KINDS}
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
    path = cell_folder(profile, TRAINED, runs) / "scores.parquet"
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
    folder = train_cell(cell, profile, runs)
    file = folder / "adapter" / "adapter_model.safetensors"
    silent = {name: w * (0 if "lora_B" in name else 1) for name, w in load_file(file).items()}
    save_file(silent, file)
    artifacts.forget(folder / "adapter")  # or its record would tell that it changed
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


def with_benchmarks(profile, folder, decoding="greedy"):
    settings = replace(profile.evaluation, benchmarks=("vlind", "pope", "heldout_pairs"), data=str(folder))
    return replace(profile, evaluation=replace(settings, decoding=decoding, batch_size=4))


@pytest.fixture(scope="module")
def official(world, tmp_path_factory):
    """The same cells with two official benchmarks besides."""
    folder = tmp_path_factory.mktemp("official")
    for name in ("vlind", "pope"):
        official_data.WRITERS[name](folder / name)
    profile = with_benchmarks(world[0], folder)
    for cell in (BASE, TRAINED):
        evaluate.evaluate_cell(cell, profile, world[1])
    return profile, world[1], folder


def test_official_benchmarks_enter_the_cells_table(official):
    profile, runs, _ = official
    folder = cell_folder(profile, TRAINED, runs)
    scores = pd.read_parquet(folder / "scores.parquet")
    assert list(scores.columns) == COLUMNS
    assert scores.groupby("benchmark")["example_id"].nunique().to_dict() == {"heldout_pairs": 4, "pope": 12, "vlind": 2}
    assert set(map(tuple, scores[COLUMNS[:4]].drop_duplicates().to_numpy().tolist())) == {("dpo_all", 0, 2, 0.25)}
    printed = json.loads((folder / "official.json").read_text())
    assert printed["vlind"]["Acc_LP"] == scores.query("metric == 'LP'")["value"].mean()
    assert {file.name for file in (folder / "predictions" / "pope").iterdir()} == {
        f"coco_pope_{split}_answers.jsonl" for split in ("random", "popular", "adversarial")
    }


def test_a_cell_and_the_command_line_say_the_same(official, tmp_path, capsys):
    profile, runs, data = official
    folder = cell_folder(profile, TRAINED, runs)
    arguments = ["vlind", "--model", profile.model, "--adapter", str(folder / "adapter"), "--data", str(data / "vlind")]
    arguments += ["--four-bit", "--decoding", "greedy", "--out", str(tmp_path), "--device", "cpu"]
    assert main(arguments) == 0
    mine, cells = (pd.read_parquet(place / "scores.parquet") for place in (tmp_path, folder))
    assert mine.equals(cells[cells["benchmark"] == "vlind"].reset_index(drop=True))
    assert (
        json.loads(capsys.readouterr().out)["S_VP"]
        == json.loads((folder / "official.json").read_text())["vlind"]["S_VP"]
    )


def test_changed_questions_are_asked_again_and_unchanged_ones_are_not(official, monkeypatch):
    profile, runs, data = official
    path = cell_folder(profile, BASE, runs) / "scores.parquet"
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(models, "load", lambda *a, **k: pytest.fail("a model was loaded"))
        assert evaluate.evaluate_cell(BASE, profile, runs).read_bytes() == before
    asked = []
    stock = generation.generate
    monkeypatch.setattr(generation, "generate", lambda *a, **k: asked.append(len(a[2])) or stock(*a, **k))
    evaluate.evaluate_cell(BASE, with_benchmarks(profile, data, "beams"), runs)
    assert sum(asked) == 20 + 12


def test_desk_items_are_scored_from_official_files(tmp_path, monkeypatch):
    """A desk profile's cell, with the truth put into the model's mouth."""
    profile = replace(profiles.get("smoke"), evaluation=replace(profiles.get("smoke").evaluation, items=8))
    names = [name for name in profile.evaluation.benchmarks if name != "heldout_pairs"]
    asked = evaluate.cell_benchmarks(profile, tmp_path)
    assert [benchmark.name for benchmark in asked] == names == list(benchmark_items.NAMES)
    truth = {
        (item.question, item.image.tobytes()): full_answer(item.scene, parse(item.question))
        for name in names
        for item in benchmark_items.items(name, 8)
    }

    def speak(model, processor, prompts, settings):
        return [truth[row["question"], row["image"].tobytes()] for row, _, _ in prompts]

    monkeypatch.setattr(generation, "generate", speak)
    answers = asking.answer(asked, lambda: (None, None), evaluate.cell_decodings(profile), tmp_path / "cell", {})
    predictions = scoring.predict(asked, answers, tmp_path / "cell", "truth")
    scored = scoring.results(asked, predictions, "truth", scoring.Scoring("exact"))
    summaries = {name: [result.summary for result in found] for name, found in scored.items()}
    assert list(scored) == ["objhal", "vlind", "amber", "pope"]
    assert summaries["objhal"][0]["CHAIRs"] == 0 and summaries["objhal"][0]["obj_rec"] == 1
    assert summaries["vlind"][0]["Acc_CB"] == summaries["vlind"][0]["S_LP"] == 1
    assert summaries["amber"][0]["Hal"] == pytest.approx(0, abs=0.1) and summaries["amber"][0]["Accuracy"] > 99
    assert [summary["acc"] for summary in summaries["pope"]] == [1, 1]
    vqa = evaluate.score_desk("vqa_factual", pd.read_parquet(answers), profile.evaluation)
    assert {row["value"] for row in vqa if row["metric"] == "accuracy"} == {1.0}


def test_a_folder_of_benchmarks_joins_the_papers_profile(tmp_path):
    for name in ("pope", "vlind"):
        (tmp_path / name).mkdir()
    profile = profiles.get("paper", benchmarks=str(tmp_path), device="cpu")
    assert profile.evaluation.benchmarks == ("vlind", "pope", "heldout_pairs")
    assert evaluate.cell_decodings(profile)["vlind"] == replace(profiles.DECODINGS["paper"]["vlind"], batch_size=4)
    with pytest.raises(BadInput, match="desk world's own benchmarks"):
        profiles.get("desk", benchmarks=str(tmp_path))
    with pytest.raises(BadInput, match="no folder of a benchmark .vlind, .* in .*none: run `make data`"):
        profiles.get("paper", benchmarks=str(tmp_path / "none"))
