"""What a run is said to take: operations as torch counts them, the cache as generation keeps it, the cards' limits."""

import json
import re
from dataclasses import replace

import pytest
import torch
from accelerate import init_empty_weights
from packed_and_plain import make_batch, ragged_rows
from photographs import photograph, write_upstream
from tiny_models import save_tiny_llava, tiny_llava
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from napo import budget, logps, memory, profiles
from napo.artifacts import BadInput
from napo.profiles import KINDS, Lora, Quantisation

SPEED = budget.Speed(flops=1e12, bandwidth=1e11)


@pytest.fixture(scope="module")
def seven_billion():
    """LLaVA-1.5-7B's geometry without weights: transformers' defaults are its own."""
    with init_empty_weights():
        return LlavaForConditionalGeneration(LlavaConfig(text_config=LlamaConfig(vocab_size=32064)))


def test_operations_of_a_forward_pass_are_as_torch_counts_them(monkeypatch):
    model, processor = tiny_llava(hidden=128)
    batch = make_batch(processor, ragged_rows(1), packed=True)
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        logps.batch_logps(model, batch)
    monkeypatch.setitem(budget.TYPICAL, "image", 4)
    tokens, scored = batch["input_ids"].numel(), int((batch["segments"] > 0).sum())
    assert budget.forward_flops(model, tokens, scored, 1) == pytest.approx(counted.get_total_flops(), rel=0.15)


def test_the_cache_of_generation_is_of_the_predicted_size():
    model, processor = tiny_llava()
    text = processor.tokenizer("USER: what is this? ASSISTANT:", return_tensors="pt")["input_ids"]
    made = model.generate(
        input_ids=text.repeat(2, 1), num_beams=3, max_new_tokens=9, min_new_tokens=9, return_dict_in_generate=True
    )
    layers = made.past_key_values.layers
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
    sequences, length = layers[0].keys.shape[0], layers[0].keys.shape[2]
    assert sequences == 6 and length == text.shape[1] + 8  # the last token is not read again
    predicted = memory.predict_generation(model, Quantisation(), sequences, text.shape[1], 8)
    assert predicted["cache"] * len(layers) / (len(layers) + 1) == kept
    assert predicted["total"] == sum(value for name, value in predicted.items() if name != "total")


@pytest.mark.parametrize(("name", "limit"), [("paper", 20), ("paper_small", 11)])
def test_every_stage_fits_its_card_by_the_arithmetic(seven_billion, name, limit):
    for stage in budget.stages(profiles.get(name), seven_billion):
        assert 3.5 < stage["gib"] <= limit, stage


@pytest.mark.parametrize("name", ["paper", "paper_small"])
def test_even_the_longest_row_that_is_let_through_fits(seven_billion, name):
    profile = profiles.get(name)
    longest = budget.prompt_tokens() + len(KINDS) * (profile.training.max_length - budget.prompt_tokens())
    predicted = memory.predict(seven_billion, profile.quantisation, profile.lora, profile.training, longest)
    assert predicted["total"] <= {"paper": 20, "paper_small": 11}[name] * 2**30


def test_time_follows_rows_and_speed(seven_billion):
    def seconds(rows, speed=SPEED, **changes):
        profile = replace(profiles.get("paper", rows=rows), heldout_rows=500, **changes)
        return {stage["stage"]: stage["seconds"] for stage in budget.stages(profile, seven_billion, speed)}

    few, many = seconds(1000), seconds(10_000)
    assert many["03 5 trainings"] == pytest.approx(10 * few["03 5 trainings"])
    assert many["01 biased answers"] == pytest.approx(7 * few["01 biased answers"], rel=0.001)
    fast = seconds(1000, budget.Speed(2e12, 2e11))
    assert all(fast[name] == pytest.approx(few[name] / 2) for name in few)
    assert seconds(1000, data=budget.WITH_ANSWERS[0])["01 biased answers"] == 0
    assert seconds(1000, methods=("base", "napo_paper"))["03 1 trainings"] == pytest.approx(few["03 5 trainings"] / 5)


def test_a_training_step_by_hand(seven_billion):
    """One row: 3 passes of 2 operations a weight and token, 6.5 billion weights; all else is little."""
    profile = profiles.get("paper")
    by_hand = 3 * 2 * 6.48e9 * (576 + 40 + 4 * 110) / (SPEED.flops * budget.EFFICIENCY)
    assert budget.seconds_of_training(profile, seven_billion, SPEED, 1) == pytest.approx(by_hand, rel=0.1)


def test_all_rows_are_those_of_the_file_or_of_the_known_data(tmp_path, monkeypatch):
    monkeypatch.setattr("photographs.photograph", lambda name: photograph(name).resize((32, 24)))
    file = write_upstream(tmp_path / "a.parquet", 30)
    assert budget.rows_of(profiles.get("paper", data=str(file), rows="all")) == (24, 6)
    assert budget.rows_of(profiles.get("paper", rows="all")) == (83_132 - 500, 500)
    assert budget.rows_of(profiles.get("paper", rows=1000)) == (1000, 500)


@pytest.mark.parametrize("rows", ["al", "-3", "1e3", "2.5", "ten"])
def test_rows_are_a_number_or_all(rows):
    with pytest.raises(BadInput, match=f"rows={re.escape(rows)}: give a number of training rows, all, or nothing"):
        profiles.get("paper", rows=rows)


def test_the_desk_world_has_no_all():
    with pytest.raises(BadInput, match="rows=all: the desk world makes as many rows as it is asked for"):
        profiles.get("desk", rows="all")
    assert profiles.get("desk", rows="") == profiles.get("desk") and profiles.get("desk", rows="7").rows == 7


def test_the_command_shows_the_three_budgets(tmp_path, capsys):
    folder = save_tiny_llava(tmp_path / "llava")
    assert budget.main(["--model", str(folder), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert [line.partition(" ")[0] for line in said.splitlines() if "training rows" in line] == [
        "1,000",
        "10,000",
        "82,632",
    ]
    assert said.count("GiB, about") == 12
    assert budget.main(["--rows", "x"]) == 2


def test_a_run_that_cannot_fit_is_refused_before_it_starts(tmp_path, monkeypatch):
    folder = save_tiny_llava(tmp_path / "llava")
    rows = write_upstream(tmp_path / "x.parquet", 2)
    profile = profiles.get("paper", model=str(folder), data=str(rows), device="cpu")
    assert len(budget.announced(profile, tmp_path / "runs")) == 5
    monkeypatch.setattr(memory, "available", lambda device: 2**20)
    with pytest.raises(BadInput, match="needs about .* GiB and 1.0 MiB are free: lower its batch_size"):
        budget.announced(profile, tmp_path / "runs")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "nothing_known"}, "no configuration of a model that sees images in"),
        ({"model_type": "llama"}, "no configuration of a model that sees images in"),
        ({"model_type": "vipllava"}, "packed log-probs are not known to be exact with it"),
    ],
)
def test_a_model_that_cannot_be_trained_is_one_line_before_any_work(tmp_path, capsys, changes, expected):
    folder = save_tiny_llava(tmp_path / "llava")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    rows = write_upstream(tmp_path / "x.parquet", 2)
    profile = profiles.get("paper", model=str(folder), data=str(rows), device="cpu")
    with pytest.raises(BadInput, match=expected) as bad:
        budget.announced(profile, tmp_path / "runs")
    assert "\n" not in str(bad.value)
    if "no configuration" in expected:
        assert budget.main(["--model", str(folder), "--device", "cpu"]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert expected in line


def test_a_model_without_a_layer_for_the_adapter_is_refused_before_any_work(tmp_path):
    folder = save_tiny_llava(tmp_path / "llava")
    profile = replace(profiles.get("paper", model=str(folder), device="cpu"), lora=Lora(targets="none"))
    with pytest.raises(BadInput, match="LoRA finds no layer to adapt with targets 'none'"):
        budget.check_trainable(budget.skeleton_of(profile), profile)


def test_speed_is_measured():
    speed = budget.measure_speed("cpu", seconds=0.05)
    assert speed.flops > 1e8 and speed.bandwidth > 1e7
