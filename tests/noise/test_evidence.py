"""Evidence against its definition, computed token by token; and the masked prompts that it uses."""

import numpy as np
import pytest
import torch
from tiny_cells import make_base, make_profile

from napo.engine import models, packing
from napo.noise import evidence
from napo.pairs import perturb


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(rows, reference, model, processor)."""
    folder = tmp_path_factory.mktemp("evidence")
    profile = make_profile(folder)
    rows, reference = make_base(profile, folder / "runs")
    rows[2]["language_biased"] = rows[2]["chosen"]
    return rows, reference, *models.load_base(profile, 0)


@torch.no_grad()
def slow(model, processor, row, name, has_image, has_question):
    """An answer's log-prob after a prompt, token by token from full logits."""
    prompt = packing.prompt_text(row, processor, has_image, has_question)
    inputs = packing.tokenised([prompt], [row["image"]] if has_image else None, processor)
    total, given = 0.0, inputs["input_ids"]
    others = {key: value for key, value in inputs.items() if key not in ("input_ids", "attention_mask")}
    for token in packing.response_ids(row[name], row, processor):
        logits = model(input_ids=given, attention_mask=torch.ones_like(given), **others).logits[0, -1].float()
        total += logits.log_softmax(-1)[token].item()
        given = torch.cat([given, torch.tensor([[token]])], dim=1)
    return total


@pytest.mark.parametrize(
    ("kind", "has_image", "has_question"), [("language_biased", False, True), ("vision_biased", True, False)]
)
def test_evidence_is_the_whole_prompts_log_prob_minus_the_masked_ones(world, kind, has_image, has_question):
    rows, reference, model, processor = world
    found = evidence.measure(model, processor, rows[4:7], reference, kind, batch_size=2)
    assert found["row_id"].tolist() == [row["row_id"] for row in rows[4:7]]
    for name, column in (("chosen", "chosen_evidence"), (kind, "evidence")):
        expected = [
            slow(model, processor, row, name, True, True) - slow(model, processor, row, name, has_image, has_question)
            for row in rows[4:7]
        ]
        np.testing.assert_allclose(found[column], expected, atol=2e-3)
        assert np.abs(expected).max() > 1e-3


def test_equal_answers_are_marked(world):
    rows, reference, model, processor = world
    found = evidence.measure(model, processor, rows[:4], reference, "language_biased")
    assert found["same"].tolist() == [False, False, True, False]


def test_answers_are_cut_as_after_the_whole_prompt(world):
    rows, _, _, processor = world
    encoded = evidence.masked(rows[0], "language_biased", processor, (3, 2))
    assert [len(encoded["responses"][name]) for name in ("chosen", "language_biased")] == [3, 2]
    whole = packing.encode(rows[0], processor, ("chosen",))
    assert (encoded["responses"]["chosen"] == whole["responses"]["chosen"][:3]).all()
    assert len(encoded["prompt_ids"]) < len(whole["prompt_ids"]) and not encoded["vision"]


def test_the_mask_is_the_one_that_the_answers_were_made_with(world):
    """A white mask leaves an image in the prompt; a noise mask is the same every time for a row."""
    rows, _, _, processor = world
    white = evidence.masked(rows[0], "language_biased", processor, (3, 2), how="white")
    expected = processor.image_processor(perturb.mask_image(rows[0]["image"], "white"), return_tensors="pt")
    assert torch.equal(white["vision"]["pixel_values"], expected["pixel_values"])
    once, again, other = (evidence.masked(rows[i], "language_biased", processor, (3, 2), "noise") for i in (0, 0, 1))
    pixels = [encoded["vision"]["pixel_values"] for encoded in (once, again, other)]
    assert torch.equal(pixels[0], pixels[1]) and not torch.equal(pixels[0], pixels[2])
