"""The engine's benchmark: those who are compared compute the same, and a measurement that was interrupted goes on."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import engine  # noqa: E402
import figure  # noqa: E402
import generating  # noqa: E402
import geometry  # noqa: E402
import measuring  # noqa: E402
import steps  # noqa: E402

TINY = geometry.GEOMETRIES["tiny"]
ALONE = ("--without", "trl", "trl_cpu", "limit", "limit_head", "--no-memory")


@pytest.fixture
def measure(monkeypatch, tmp_path):
    """Runs the command with the arguments given; returns the cases of its result file."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["engine.py", *arguments, "--results", str(tmp_path)])
        engine.main()
        return json.loads((tmp_path / "engine-cpu.json").read_text())["cases"]

    return run


def gradient(policy, step):
    policy.zero_grad()
    step()
    return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


@pytest.mark.parametrize("tokens", [20, steps.RAGGED])
def test_packed_and_authors_steps_have_the_same_gradient(tokens):
    model, processor = geometry.build(TINY)
    policy, row = geometry.policy(model, TINY), geometry.row(tokens)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    packed, authors = (
        gradient(policy, make(policy, processor, row)) for make in (steps.packed_step, steps.authors_step)
    )
    assert (packed - authors).norm() < 1e-5 * authors.norm() > 0


def test_the_limit_reads_the_same_tokens_and_no_head():
    model, processor = geometry.build(TINY)
    policy, row, read = geometry.policy(model, TINY), geometry.row(20), []
    decoder = model.model.language_model
    decoder.register_forward_pre_hook(lambda m, a, k: read.append(k["inputs_embeds"].shape[:2]), with_kwargs=True)
    model.lm_head.register_forward_pre_hook(lambda m, a: read.append("head"))
    steps.limit_step(policy, processor, row)()
    steps.packed_step(policy, processor, row)()
    assert len(read) == 2 and read[0] == read[1]  # the packed step takes the head's weight, in blocks


def test_trl_makes_one_training_and_one_reference_pass_over_three_pairs():
    pytest.importorskip("trl")
    model, processor = geometry.build(TINY)
    read = []
    model.model.language_model.register_forward_pre_hook(
        lambda m, a, k: read.append((k["inputs_embeds"].shape[0], torch.is_grad_enabled())), with_kwargs=True
    )
    steps.trl_step(model, processor, geometry.row(20), TINY, checkpointing=False, answers_only=True)()
    assert sorted(read) == [(6, False), (6, True)]


def test_what_a_gpu_is_asked_runs_here_on_a_small_model():
    """The 7B cases are 4-bit weights in bfloat16 with LoRA; all but TRL, which is not always installed."""
    small = replace(TINY, hidden=64, four_bit=True, dtype="bfloat16")
    names = [name for name in steps.NAMES if name not in steps.TRL]
    assert geometry.GEOMETRIES["7B"].four_bit and geometry.GEOMETRIES["7B"].dtype == "bfloat16"
    for checkpointing in (False, True):
        for step in steps.steps(small, 20, "cpu", names, checkpointing).values():
            step()
    calls = generating.contestants(small, "image", 3, "cpu", ["batched"])
    assert len(calls["batched"]()) == generating.PROMPTS["image"]


def test_answers_have_the_lengths_that_a_case_says():
    _, processor = geometry.build(TINY)
    for tokens in (20, steps.RAGGED):
        encoded = steps.packing.encode(geometry.row(tokens), processor, steps.KINDS)
        found = tuple(len(encoded["responses"][kind]) for kind in steps.KINDS)
        assert found == (tokens if tokens is steps.RAGGED else (tokens,) * 4)


def test_a_case_is_measured_once_and_goes_on_for_more_repeats(measure, monkeypatch, tmp_path):
    first = measure("--case", "tiny-20", "--repeats", "2", *ALONE)["tiny-20"]
    assert {name: len(pairs) for name, pairs in first["seconds"].items()} == {"packed": 2, "authors": 2}
    assert first["summary"]["authors"]["cpu_ratio"]["min"] > 1 and len(first["load_averages"]) == 2
    assert first["machine"]["device"] == "cpu" and first["answer_tokens"] == 20
    cuda = json.loads((tmp_path / "engine-cuda.json").read_text())
    assert cuda == {"device": "cuda", "status": engine.NOT_RUN, "cases": {}}
    more = measure("--case", "tiny-20", "--repeats", "3", *ALONE)["tiny-20"]
    assert {name: pairs[:2] for name, pairs in more["seconds"].items()} == first["seconds"]
    assert len(more["seconds"]["packed"]) == 3
    monkeypatch.setattr(engine, "contestants", lambda *a, **k: pytest.fail("measured again"))
    assert measure("--case", "tiny-20", "--repeats", "3", *ALONE)["tiny-20"] == more


def test_an_interrupted_case_keeps_its_repeats_and_other_cases_stay(measure, monkeypatch):
    other = measure("--case", "tiny-100", "--repeats", "1", *ALONE)["tiny-100"]
    stock, calls = measuring.time.perf_counter, []

    def clock():
        calls.append(1)
        if len(calls) == 7:  # two participants, two readings each: within the second repeat
            raise KeyboardInterrupt
        return stock()

    monkeypatch.setattr(measuring.time, "perf_counter", clock)
    with pytest.raises(KeyboardInterrupt):
        measure("--case", "tiny-20", "--repeats", "3", *ALONE)
    monkeypatch.setattr(measuring.time, "perf_counter", stock)
    cases = measure("--case", "tiny-20", "--repeats", "3", *ALONE)
    assert cases["tiny-100"] == other and len(cases["tiny-20"]["load_averages"]) == 3
    assert {len(pairs) for pairs in cases["tiny-20"]["seconds"].values()} == {3}


@pytest.mark.parametrize("change", ["threads", "code", "again"])
def test_what_was_measured_elsewhere_or_by_other_code_is_measured_anew(measure, monkeypatch, change):
    first = measure("--case", "tiny-20", "--repeats", "1", *ALONE)["tiny-20"]
    if change == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    elif change == "code":
        monkeypatch.setattr(engine, "OWN_FILES", engine.OWN_FILES[1:])
    arguments = ("--again",) if change == "again" else ()
    second = measure("--case", "tiny-20", "--repeats", "1", *ALONE, *arguments)["tiny-20"]
    assert len(second["load_averages"]) == 1 and second["seconds"] != first["seconds"]
    assert (second["key"] != first["key"]) == (change != "again")


def test_generation_gives_the_same_answers_in_batches(measure):
    calls = generating.contestants(TINY, "text", 6, "cpu")
    answers = {name: call() for name, call in calls.items()}
    assert answers["batched"] == answers["single"] and answers["batched_beams"] == answers["single_beams"]
    assert answers["batched"] != answers["batched_beams"] and len(set(answers["batched"])) > 1
    record = measure("--case", "tiny-image", "--repeats", "1", "--new-tokens", "6")["tiny-image"]
    assert record["same_answers_one_by_one"] == 1.0 and set(record["summary"]) == set(generating.NAMES)


def test_ratios_are_taken_within_a_repeat():
    seconds = {"ours": [(1.0, 2.0), (10.0, 2.0), (1.0, 4.0)], "theirs": [(3.0, 2.0), (40.0, 6.0), (2.0, 8.0)]}
    theirs = measuring.summary(seconds, "ours")["theirs"]
    assert theirs["wall_ratio"] == {"median": 3.0, "min": 2.0, "max": 4.0}
    assert theirs["cpu_ratio"] == {"median": 2.0, "min": 1.0, "max": 3.0}
    assert theirs["wall_seconds"]["median"] == 3.0


def test_peak_memory_of_a_step_sees_what_the_step_holds():
    def step():
        held = torch.ones(2**24)  # 64 MiB
        return held.sum()

    assert 60 < measuring.peak_memory(step, "cpu")["step_mib"] < 80


@pytest.mark.parametrize("arguments", [("--case", "G3-100"), ("--case", "G1-50"), ("--device", "cuda")])
def test_what_cannot_be_measured_is_refused_in_a_line(measure, arguments, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="^error: "):
        measure(*arguments)


def test_the_figure_is_drawn_from_the_results(measure, tmp_path):
    with pytest.raises(SystemExit, match="no results"):
        figure.main(tmp_path)
    measure("--case", "tiny-20", "--repeats", "1", *ALONE)
    figure.main(tmp_path)
    assert (tmp_path / "engine.png").read_bytes()[:4] == b"\x89PNG"
