"""The benchmarks of real size run small here: every stage, the record that says what was not run, host memory."""

import importlib.util
import json
import sys
from dataclasses import replace

import pytest
import torch

from napo.engine import generation
from napo.profiles import Perturbation

SECONDS = {"01 biased answers", "02 reference log-probs", "02 noise", "03 training"}


@pytest.fixture(scope="module")
def benchmark(root):
    """A script of benchmarks/ as a module."""

    def load(name):
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", root / "benchmarks" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def test_the_real_size_benchmark_runs_every_stage_small_and_says_what_it_did_not_run(benchmark, tmp_path, monkeypatch):
    real_size, output = benchmark("real_size"), tmp_path / "out.json"
    arguments = ["--geometry", "tiny", "--rows", "8", "--new-tokens", "4", "--profile", "paper_small"]
    monkeypatch.setattr(sys, "argv", ["real_size.py", *arguments, "--output", str(output)])
    real_size.main()
    report = json.loads(output.read_text())
    assert SECONDS < set(report["stages"]) and all(stage["seconds"] > 0 for stage in report["stages"].values())
    assert report["micro_batch_seconds"] > 0
    assert report["engine_step_seconds"] > 0 and report["over_engine_step"] > 0.5
    assert report["predicted"]["train"]["weights"] > 0 and report["rows"] == 8
    half = 2 - 2**0.5
    assert report["first_loss"] == pytest.approx((0.6931 + 2 * half) / 3, abs=1e-3)
    if not torch.cuda.is_available():
        assert report["cuda"].startswith("not run on CUDA")
        assert {stage["peak_gib"] for stage in report["stages"].values()} == {None}


def test_a_random_model_of_a_large_vocabulary_gives_answers_that_are_not_empty(benchmark):
    """Of 32,064 tokens this tokenizer knows a hundred: the answers of the 7B geometry would decode to nothing."""
    real_size = benchmark("real_size")
    large = replace(real_size.geometries.GEOMETRIES["tiny"], vocabulary=32064)
    model, processor = real_size.geometries.build(large)
    settings = Perturbation(max_new_tokens=6, batch_size=2)
    row = real_size._row(0, real_size.geometries.row(20))
    assert generation.generate(model, processor, [(row, True, False)], settings) == [""]
    real_size.only_characters(model, processor)
    (answer,) = generation.generate(model, processor, [(row, True, False)], settings)
    assert len(answer) > 0


def test_the_committed_record_is_of_this_script_and_claims_no_gpu_that_was_not_there(root):
    report = json.loads((root / "benchmarks" / "results" / "real_size.json").read_text())
    assert report["rows"] == 64 and SECONDS < set(report["stages"])
    assert report["cuda"].startswith("not run on CUDA") == (report["run_on"] == "cpu")


def test_on_a_gpu_peaks_would_stand_beside_predictions_and_targets(benchmark, monkeypatch):
    real_size = benchmark("real_size")
    monkeypatch.setattr(real_size.torch.cuda, "get_device_name", lambda: "A card")
    gib = 2**30
    stages = {"01 biased answers": {"peak_gib": 15.0}, "03 training": {"peak_gib": 7.4}}
    report = {"stages": stages, "predicted": {"generate": {"total": 15 * gib}, "train": {"total": 7 * gib}}}
    found = real_size.on_cuda(report, "paper")
    assert found["within_target"] and found["prediction_within_10_percent"] and found["peak_gib"] == 15.0
    assert found["measured_over_predicted"] == {"generate": 1.0, "train": 1.057}
    stages["03 training"]["peak_gib"] = 21.0
    found = real_size.on_cuda(report, "paper")
    assert not found["within_target"] and not found["prediction_within_10_percent"]


def test_mapping_rows_measures_host_memory(benchmark):
    report = benchmark("rows").measure(600, 48)
    assert report["rows"] == 600 and set(report["stages"]) == {"check, write pairs.parquet", "read it", "draw rows"}
    assert 0 <= report["most_added_gib"] < 1.0


def test_the_committed_record_of_83k_rows_is_within_its_target(root):
    report = json.loads((root / "benchmarks" / "results" / "rows.json").read_text())
    assert report["rows"] == 83_132 and report["file_gib"] > 0.5  # over data.IN_MEMORY: mapped
    assert report["most_added_gib"] <= report["target_gib"] == 2.0
