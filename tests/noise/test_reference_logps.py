"""Stored reference log-probs: stale once model, template, rows or settings change, and spot-checked when read."""

import copy
import json
import os
import shutil
from dataclasses import replace

import pandas as pd
import pytest
import torch
from tiny_models import save_tiny_llava, tiny_llava
from tiny_rows import make_row, photo

from napo.comparison.cells import cell_inputs, train_cell
from napo.engine import logps, models, preferences
from napo.evaluation import evaluate
from napo.methods import KINDS
from napo.noise import reference_logps
from napo.profiles import Cell, Profile, Quantisation, Training
from napo.workshop.files import BadInput

QUANTISATION = Quantisation(four_bit=False)


@pytest.fixture
def world(tmp_path):
    """(profile, runs folder) of a tiny base with six stored rows."""
    model = save_tiny_llava(tmp_path / "llava")
    folder = tmp_path / "runs" / "tiny" / "base-0"
    folder.mkdir(parents=True)
    preferences.write([make_row(i, split="train", chosen=f"a cat {i}") for i in range(6)], folder / "pairs.parquet")
    training = Training(batch_size=4, max_length=128)
    return Profile(
        "tiny", model=str(model), data="mine", quantisation=QUANTISATION, training=training
    ), tmp_path / "runs"


@pytest.fixture
def computed(monkeypatch):
    """How often reference log-probs were computed, not read."""
    calls, stock = [], logps.measure

    def measure(*args, **settings):
        calls.append(settings.get("label"))
        return stock(*args, **settings)

    monkeypatch.setattr(logps, "measure", measure)
    return calls


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def other_weights(profile, runs):
    model, _ = tiny_llava(seed=9)
    model.save_pretrained(profile.model)
    return profile


def other_template(profile, runs):
    edit(next(p for p in models.Path(profile.model).glob("chat_template*")), "USER:", "HUMAN:")
    return profile


def other_text(profile, runs):
    path = runs / "tiny" / "base-0" / "pairs.parquet"
    rows = list(preferences.read(path))
    preferences.write([row | {"rejected": "fox"} if i == 3 else row for i, row in enumerate(rows)], path)
    return profile


def other_pixel(profile, runs):
    path = runs / "tiny" / "base-0" / "pairs.parquet"
    rows = list(preferences.read(path))
    image = rows[2]["image"].copy()
    image.putpixel((0, 0), (1, 2, 3))
    preferences.write([row | {"image": image} if i == 2 else row for i, row in enumerate(rows)], path)
    return profile


def other_dtype(profile, runs):
    return replace(profile, quantisation=replace(QUANTISATION, dtype="bfloat16"))


def other_length(profile, runs):
    return replace(profile, training=replace(profile.training, max_length=64))


def unpacked(profile, runs):
    return replace(profile, training=replace(profile.training, packed=False))


CHANGES = [other_weights, other_template, other_text, other_pixel, other_dtype, other_length, unpacked]


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_decides_the_log_probs_makes_them_stale(world, computed, change):
    profile, runs = world
    path = reference_logps.build(profile, 0, runs)
    reference_logps.build(profile, 0, runs)
    assert len(computed) == 1
    changed = change(profile, runs)
    assert reference_logps.build(changed, 0, runs) == path and len(computed) == 2


@pytest.mark.parametrize("change", CHANGES)
def test_training_and_evaluation_refuse_stale_log_probs(world, change):
    """Notebook 03 run alone after pairs, model or settings changed: else it would train on them silently."""
    profile, runs = world
    path = reference_logps.build(profile, 0, runs)
    assert cell_inputs(profile, Cell("dpo_all"), runs) == [path.with_name("pairs.parquet"), path]
    changed = change(profile, runs)
    for read in (train_cell, evaluate.evaluate_cell):
        with pytest.raises(BadInput, match="reference.parquet was made from other rows.*run notebook 02 again"):
            read(Cell("dpo_all"), changed, runs)


def test_the_folder_of_the_base_does_not_matter(world, computed, tmp_path):
    profile, runs = world
    reference_logps.build(profile, 0, runs)
    shutil.copytree(profile.model, tmp_path / "elsewhere")
    reference_logps.build(replace(profile, model=str(tmp_path / "elsewhere")), 0, runs)
    assert len(computed) == 1


def test_a_weight_file_is_identified_by_its_contents_not_its_date(world, tmp_path):
    """A file changed in place that keeps its old date, as after a copy with dates preserved."""
    profile, _ = world
    weights = models.Path(profile.model) / "model.safetensors"
    before, stamp = models.identity(profile, 0), weights.stat()
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert models.identity(profile, 0) != before


def test_a_hub_model_is_identified_by_its_commit(monkeypatch, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    config = tmp_path / "models--some--model" / "snapshots" / commit / "config.json"
    monkeypatch.setattr(models, "cached_file", lambda name, file, revision: str(config))
    models.hub_commit.cache_clear()
    profile = Profile("x", model="some/model")
    assert models.identity(profile, 0) == {"hub": "some/model", "revision": None, "commit": commit}
    models.hub_commit.cache_clear()


def loaded(world, path, **changes):
    profile, runs = world
    model, processor = models.load(profile.model, profile.quantisation)
    rows = preferences.read(runs / "tiny" / "base-0" / "pairs.parquet")
    return reference_logps.load(path, changes.get("model", model), changes.get("processor", processor), rows, profile)


def test_stored_values_are_those_of_the_plain_path_and_pass_the_check(world):
    path = reference_logps.build(*world[:1], 0, world[1])
    frame = loaded(world, path)
    model, processor = models.load(world[0].model, world[0].quantisation)
    rows = preferences.read(path.with_name("pairs.parquet"))
    plain = logps.measure(model, processor, rows, KINDS, packed=False)
    assert frame["row_id"].tolist() == plain["row_id"].tolist() and (frame["n_cut"] == 0).all()
    for kind in KINDS:
        assert (frame[f"logps_{kind}"] - plain[f"logps_{kind}"]).abs().max() < 1e-4
        assert (frame[f"tokens_{kind}"] == plain[f"tokens_{kind}"]).all()


def test_the_check_sees_through_an_adapter(world):
    path = reference_logps.build(world[0], 0, world[1])
    model, processor = models.load(world[0].model, world[0].quantisation)
    policy = models.attach_lora(model, world[0].lora, seed=0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    loaded(world, path, model=policy)


def test_another_model_and_another_template_are_seen_when_the_store_is_read(world):
    path = reference_logps.build(world[0], 0, world[1])
    with pytest.raises(
        BadInput, match=r"row file\.parquet:\d: the stored reference .* not this model's .*run notebook 02"
    ):
        loaded(world, path, model=tiny_llava(seed=9)[0])
    _, processor = models.load(world[0].model, world[0].quantisation)
    other = copy.deepcopy(processor)
    other.chat_template = other.chat_template.replace("USER:", "HUMAN:")
    with pytest.raises(BadInput, match="not this model's"):
        loaded(world, path, processor=other)


def test_a_row_that_is_not_in_the_store_is_named(world):
    path = reference_logps.build(world[0], 0, world[1])
    other = path.with_name("other.parquet")
    pd.read_parquet(path).iloc[1:].to_parquet(other)
    with pytest.raises(BadInput, match=r"row file\.parquet:0 has no reference log-probs"):
        loaded(world, other)


def test_cut_answers_are_counted_and_reported(world, capsys):
    profile, runs = world
    rows = preferences.read(runs / "tiny" / "base-0" / "pairs.parquet")
    _, processor = models.load(profile.model, profile.quantisation)
    n_prompt = len(logps.packing.encode(rows[0], processor, ())["prompt_ids"])
    short = replace(profile, training=replace(profile.training, max_length=n_prompt + 7))
    frame = pd.read_parquet(reference_logps.build(short, 0, runs))
    assert (frame["n_cut"] == 2).all()  # "a cat 0" and "It is brown, I guess." with their end tokens
    assert "12 answers cut at the end" in capsys.readouterr().out


def test_rows_that_training_could_not_batch_are_refused_when_the_reference_is_made(world):
    """Batches of two in the file's order are all of one size; training would shuffle them."""
    profile, runs = world
    file = models.Path(profile.model) / "processor_config.json"
    settings = json.loads(file.read_text())
    settings["image_processor"] |= {"do_resize": False, "do_center_crop": False}
    file.write_text(json.dumps(settings))
    path = runs / "tiny" / "base-0" / "pairs.parquet"
    sizes = [(24, 24)] * 2 + [(24, 30)] * 2
    preferences.write([make_row(i, split="train", image=photo(i, size)) for i, size in enumerate(sizes)], path)
    pairs = replace(profile, training=replace(profile.training, batch_size=2))
    with pytest.raises(BadInput, match=r"row file\.parquet:2: pixel_values of size .* of row file\.parquet:0: make"):
        reference_logps.build(pairs, 0, runs)
    assert not path.with_name("reference.parquet").exists()
