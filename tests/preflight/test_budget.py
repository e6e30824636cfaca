"""Predicted rows and memory of a run: the cache that generation keeps, and the limits of the cards."""

import json
import re
from dataclasses import replace

import pytest
from accelerate import init_empty_weights
from photographs import photograph, write_upstream
from tiny_models import save_tiny_llava, tiny_llava
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from napo import profiles
from napo.commands.budget import main
from napo.engine import memory
from napo.methods import KINDS
from napo.preflight import budget
from napo.profiles import Lora, Quantisation
from napo.workshop.files import BadInput


@pytest.fixture(scope="module")
def seven_billion():
    """LLaVA-1.5-7B's geometry without weights: transformers' defaults are its own."""
    with init_empty_weights():
        return LlavaForConditionalGeneration(LlavaConfig(text_config=LlamaConfig(vocab_size=32064)))


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
    for stage, size in budget.stages(profiles.get(name), seven_billion).items():
        assert 3.5 < size / 2**30 <= limit, stage


@pytest.mark.parametrize("name", ["paper", "paper_small"])
def test_even_the_longest_row_that_is_let_through_fits(seven_billion, name):
    profile = profiles.get(name)
    longest = budget.PROMPT + len(KINDS) * (profile.training.max_length - budget.PROMPT)
    predicted = memory.predict(seven_billion, profile.quantisation, profile.lora, profile.training, longest)
    assert predicted["total"] <= {"paper": 20, "paper_small": 11}[name] * 2**30


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
    assert main(["--model", str(folder), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert [line.partition(" ")[0] for line in said.splitlines() if "training rows" in line] == [
        "1,000",
        "10,000",
        "82,632",
    ]
    assert said.count(" GiB") == 12
    assert main(["--rows", "x"]) == 2


def test_a_run_that_cannot_fit_is_refused_before_it_starts(tmp_path, monkeypatch):
    folder = save_tiny_llava(tmp_path / "llava")
    rows = write_upstream(tmp_path / "x.parquet", 2)
    profile = profiles.get("paper", model=str(folder), data=str(rows), device="cpu")
    assert len(budget.announced(profile, tmp_path / "runs")) == 5
    monkeypatch.setattr(memory, "available", lambda device: 2**20)
    with pytest.raises(BadInput, match="needs about .* MiB and 1.0 MiB are free: lower its batch_size"):
        budget.announced(profile, tmp_path / "runs")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "nothing_known"}, "cannot load the model "),
        ({"model_type": "llama"}, "cannot load the model "),
        ({"text_config": 7}, "cannot load the model "),
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
    if "cannot load" in expected:
        assert main(["--model", str(folder), "--device", "cpu"]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert expected in line


def test_a_model_without_a_layer_for_the_adapter_is_refused_before_any_work(tmp_path):
    folder = save_tiny_llava(tmp_path / "llava")
    profile = replace(profiles.get("paper", model=str(folder), device="cpu"), lora=Lora(targets="none"))
    with pytest.raises(BadInput, match="LoRA finds no layer to adapt with targets 'none'"):
        budget.check_trainable(budget.skeleton_of(profile), profile)


def test_damaged_rows_are_one_line_for_the_command_too(tmp_path, capsys):
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    folder = save_tiny_llava(tmp_path / "llava")
    assert main(["--model", str(folder), "--data", str(tmp_path / "x.parquet"), "--device", "cpu"]) == 2
    assert "x.parquet is cut short, damaged or no parquet file" in capsys.readouterr().err
