"""Merging an adapter that was trained on a 4-bit base: where it keeps its effect, where most of it is rounded away."""

import warnings

import pytest
import torch
from peft import PeftModel
from tiny_cells import make_base, make_profile, with_training
from transformers import AutoModelForImageTextToText

from napo.commands import share
from napo.comparison.cells import train_cell
from napo.engine import models, packing
from napo.profiles import Cell


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(profile, {learning rate: folder of the adapter}, inputs) of a weak and of a strong training on NF4."""
    folder, adapters = tmp_path_factory.mktemp("merge"), {}
    for rate in (1e-3, 1e-2):
        profile = with_training(make_profile(folder), learning_rate=rate)
        rows, _ = make_base(profile, folder / f"{rate}")
        adapters[rate] = train_cell(Cell("napo_paper"), profile, folder / f"{rate}") / "adapter"
    processor = models.load(profile.model, profile.quantisation)[1]
    batch = packing.collate_plain([packing.encode(rows[0], processor, ("chosen",))], ("chosen",))
    return profile, adapters, {name: tensor for name, tensor in batch.items() if name != "response_mask"}


def stock(profile, four_bit=True):
    """The base by stock transformers."""
    config = models.four_bit_config(profile.model, profile.quantisation) if four_bit else None
    model = AutoModelForImageTextToText.from_pretrained(profile.model, dtype=torch.float32, quantization_config=config)
    models.guard_repacking(model)
    return model.eval()


def merged(base, adapter):
    with warnings.catch_warnings(), models.quiet():
        warnings.filterwarnings("ignore", message="Merge lora module to 4-bit")
        return PeftModel.from_pretrained(base, adapter).merge_and_unload().eval()


@pytest.fixture(scope="module")
def effects(trained):
    """{learning rate: changes_by}."""
    return {rate: changes_by(trained, rate) for rate in trained[1]}


@torch.no_grad()
def changes_by(trained, rate):
    """Change of the logits against the 4-bit base: by the adapter, merged in 4 bits, into the base that was not
    quantised, and into the 4-bit base after its weights were unpacked."""
    profile, adapters, inputs = trained
    before = stock(profile)(**inputs).logits
    models_by_name = {
        "adapter": PeftModel.from_pretrained(stock(profile), adapters[rate]).eval(),
        "in 4 bits": merged(stock(profile), adapters[rate]),
        "into the full base": merged(stock(profile, four_bit=False), adapters[rate]),
        "into the unpacked base": merged(stock(profile).dequantize(), adapters[rate]),
    }
    assert len(models.four_bit_layers(models_by_name["in 4 bits"])) == 14
    assert not models.four_bit_layers(models_by_name["into the unpacked base"])
    return {name: model(**inputs).logits - before for name, model in models_by_name.items()}


def test_merged_into_the_unpacked_base_nothing_is_lost(effects):
    for found in effects.values():
        assert found["adapter"].abs().max() > 0.05
        torch.testing.assert_close(found["into the unpacked base"], found["adapter"], rtol=1e-3, atol=1e-3)


def test_a_strong_adapter_merges_anywhere(effects):
    found = effects[1e-2]
    for name, change in found.items():
        assert (change - found["adapter"]).norm() < 0.15 * found["adapter"].norm(), name


def test_a_weak_adapter_is_mostly_rounded_away_in_4_bits_and_kept_by_the_full_base(trained, effects):
    """Why the card says where to merge. The full base is off by what the 4 bits had changed in it, adapter or not."""
    profile, _, inputs = trained
    found = effects[1e-3]
    assert found["in 4 bits"].norm() < 0.5 * found["adapter"].norm()
    with torch.no_grad():
        of_4_bits = stock(profile, four_bit=False)(**inputs).logits - stock(profile)(**inputs).logits
    assert (found["into the full base"] - of_4_bits - found["adapter"]).norm() < 0.4 * found["adapter"].norm()


def test_the_card_says_so(trained):
    profile, adapters, _ = trained
    text = share.adapter_card(Cell("napo_paper"), profile, adapters[1e-3].parents[3])
    assert "do not merge it into a 4-bit base" in text and "dequantize()" in text
