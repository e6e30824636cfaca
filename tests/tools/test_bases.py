"""The shipped bases, their records, and a short run of the script that made them."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

from napo.desk.language import VOCABULARY
from napo.desk.scenes import Scene, Thing, render, render_array
from napo.engine import models, packing
from napo.profiles import DEVELOPMENT_BASES, PROFILES, Quantisation
from napo.workshop.files import BadInput
from tools.desk_bases import bases

SHIPPED = (0, 1, 2, 3, 4, *DEVELOPMENT_BASES)


def recorded(base):
    return json.loads((bases.folder_of(base) / bases.RECORD).read_text())


@pytest.mark.parametrize("base", SHIPPED)
def test_shipped_base_loads_as_what_it_is(base):
    folder = bases.folder_of(base)
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    assert isinstance(model, LlavaForConditionalGeneration) and isinstance(processor, LlavaProcessor)
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000
    text = packing.prompt_text({"question": "what colour is the frog ?"}, processor)
    inputs = processor(text=text, images=[render(Scene((Thing("frog", "red", 0),), "grass"))], return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 16
    shown = processor.tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=True)
    assert shown == "user: what colour is the frog ? assistant:"


def test_processor_sees_what_training_saw():
    scene = Scene((Thing("frog", "red", 0),), "grass")
    processor = AutoProcessor.from_pretrained(bases.folder_of(0))
    pixels = processor(text="<image>", images=[render(scene)], return_tensors="pt")["pixel_values"][0]
    expected = torch.from_numpy(render_array(scene)).permute(2, 0, 1) / 127.5 - 1
    assert torch.allclose(pixels, expected, atol=1e-6)


@pytest.mark.parametrize("base", SHIPPED)
def test_record_tells_what_is_shipped(base):
    record, weights = recorded(base), bases.folder_of(base) / "model.safetensors"
    assert record["sha256"] == bases.sha256(weights) and record["seed"] == base
    assert record["recipe"] == json.loads(json.dumps(asdict(bases.RECIPE)))
    assert [stage["stage"] for stage in record["stages"]] == [stage.name for stage in bases.RECIPE.stages]
    assert weights.stat().st_size < 2_000_000


def test_every_base_is_biased_and_no_two_are_the_same():
    """As recorded, in both precisions: each looks where nothing is unusual and follows the prior where something is."""
    for base in SHIPPED:
        for weights in ("fp32", "nf4"):
            bias = recorded(base)["bias"][weights]
            factual, counterfactual = (bias[f"vqa_{part}"]["accuracy"] for part in ("factual", "counterfactual"))
            assert factual > 0.75 and counterfactual < 0.5, (base, weights)
    assert len({recorded(base)["sha256"] for base in SHIPPED}) == len(SHIPPED)


def test_the_docs_show_the_records(root):
    assert bases.table([recorded(base) for base in SHIPPED]) in (root / "docs" / "desk-world.md").read_text()


@pytest.mark.parametrize("weights", ["fp32", "nf4"])
def test_bias_is_as_recorded(weights):
    """80 items per group instead of the record's number: within three standard errors of their difference."""
    bias = recorded(0)["bias"][weights]
    measured = bases.measure(bases.folder_of(0), Quantisation(four_bit=weights == "nf4"), n=80)
    for benchmark in ("vqa_factual", "vqa_counterfactual"):
        assert measured[benchmark]["accuracy"] == pytest.approx(bias[benchmark]["accuracy"], abs=0.17)


def test_a_missing_base_is_named():
    with pytest.raises(BadInput, match="base 99: no model .*make bases BASES=99"):
        models.load_base(PROFILES["desk"], 99)


def test_script_learns():
    """A little of the first two stages: a patch's five labels (6.7 nats by chance) and the next word (4.3 nats by
    chance) are learnt by half."""
    stages = tuple(replace(stage, steps=steps) for stage, steps in zip(bases.RECIPE.stages, (45, 60), strict=False))
    recipe = replace(bases.RECIPE, scenes=512, stages=stages)
    lines = []
    _, _, history = bases.train(0, recipe, lines.append)
    loss = {entry["stage"]: entry["loss"] for entry in history}
    chance = np.log([13, 6, 4, 2, 2]).sum()
    assert loss["vision"] < chance / 2
    assert loss["align"] < np.log(len(VOCABULARY)) / 2
    assert "about 0 s left" in lines[-1]
