"""Other families as a user names them: a folder as the hub has it, through loading, training and use of the adapter."""

import json
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from tiny_cells import TRAINING, make_base, make_profile
from tiny_families import BUILDERS, tiny_family
from tiny_models import save_tiny_llava
from transformers import AutoModelForImageTextToText

from napo.comparison.cells import train_cell
from napo.engine import logps, models, packing, processors, tree_attention
from napo.methods import KINDS
from napo.profiles import Cell, Quantisation
from napo.workshop.files import BadInput

NAMES = ("llava", *sorted(BUILDERS))
FULL = Quantisation(four_bit=False)


def save_tiny_family(folder, name):
    """A snapshot of a family: weights, tokenizer, image processor, template and the processor's own settings."""
    if name == "llava":
        return save_tiny_llava(folder)
    model, processor = tiny_family(name)
    model.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(processor.chat_template)
    names = ("image_seq_len", "num_image_tokens", "vision_feature_select_strategy")
    settings = {key: getattr(processor, key) for key in names if hasattr(processor, key)}
    stock = next(kind for kind in type(processor).__mro__ if kind.__module__.startswith("transformers"))
    settings["processor_class"] = stock.__name__
    (folder / "processor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module", params=NAMES)
def trained(request, tmp_path_factory):
    """(profile, cell folder, rows) of a family whose model is given by its folder alone, after a training."""
    folder = tmp_path_factory.mktemp(request.param)
    save_tiny_family(folder / "llava", request.param)
    training = replace(TRAINING, epochs=1, learning_rate=3e-2)
    profile = make_profile(folder, training=training, quantisation=FULL)
    rows, _ = make_base(profile, folder / "runs")
    return profile, train_cell(Cell("napo_paper"), profile, folder / "runs"), rows


def test_the_family_reads_images_packed_as_in_plain_sequences(trained):
    profile, _, rows = trained
    model, processor = models.load(profile.model, FULL)
    packed, plain = (logps.response_logps(model, processor, rows[:2], KINDS, packed=packed) for packed in (True, False))
    for kind in KINDS:
        assert torch.allclose(packed[kind], plain[kind], rtol=1e-4, atol=1e-3), kind
    blank = [row | {"image": row["image"].point(lambda value: 255 - value)} for row in rows[:2]]
    other = logps.response_logps(model, processor, blank, KINDS)
    assert not torch.allclose(packed["chosen"], other["chosen"], atol=1e-4), "the image counts"


def test_training_starts_where_it_must_and_learns(trained):
    _, folder, _ = trained
    steps = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    half = 2 - 2**0.5
    assert steps[0]["loss"] == pytest.approx((0.6931 + 2 * half) / 3, abs=1e-3)
    assert steps[-1]["loss"] < steps[0]["loss"] and steps[-1]["rewards/margins"] > 0


def stock(profile, rows):
    """(model by stock transformers, its inputs for one answered row)."""
    processor = models.load(profile.model, FULL)[1]
    model = AutoModelForImageTextToText.from_pretrained(profile.model, dtype=torch.float32).eval()
    batch = packing.collate_plain([packing.encode(rows[0], processor, ("chosen",))], ("chosen",))
    batch.pop("response_mask")
    return model, batch


@torch.no_grad()
def test_the_adapter_loads_and_merges_in_stock_peft_and_neither_is_a_no_op(trained):
    profile, folder, rows = trained
    model, inputs = stock(profile, rows)
    base = model(**inputs).logits
    adapted = PeftModel.from_pretrained(model, folder / "adapter").eval()
    with_adapter = adapted(**inputs).logits
    assert (with_adapter - base).abs().max() > 1e-2
    merged = adapted.merge_and_unload()
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert torch.allclose(merged(**inputs).logits, with_adapter, rtol=1e-4, atol=1e-4)
    assert (merged(**inputs).logits - base).abs().max() > 1e-2
    ours = models.load_adapter(models.load(profile.model, FULL)[0], folder / "adapter")
    assert torch.allclose(ours(**inputs).logits, with_adapter, atol=1e-5)


def test_a_merged_model_is_saved_and_loaded_as_any_model(trained, tmp_path):
    profile, folder, rows = trained
    model, inputs = stock(profile, rows)
    merged = PeftModel.from_pretrained(model, folder / "adapter").merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.allclose(again(**inputs).logits, merged(**inputs).logits, atol=1e-5)


def test_a_family_whose_packing_is_not_known_is_refused_by_name(tmp_path, monkeypatch):
    save_tiny_llava(tmp_path / "llava")
    profile = make_profile(tmp_path, quantisation=FULL)
    monkeypatch.delitem(tree_attention.FAMILIES, "llava")
    with pytest.raises(BadInput, match="model family 'llava': packed log-probs are not known to be exact"):
        make_base(profile, tmp_path / "runs")


def test_a_processor_that_needs_another_package_is_one_line(tmp_path, monkeypatch):
    def missing(*arguments, **settings):
        raise ImportError("\nFooProcessor requires the foo library but it was not found.\nInstall it")

    monkeypatch.setattr(processors.AutoProcessor, "from_pretrained", missing)
    with pytest.raises(BadInput, match="needs a package that is not installed: FooProcessor requires the foo") as bad:
        processors.load(str(tmp_path))
    assert "\n" not in str(bad.value)


def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    """trust_remote_code stays off: a folder that asks for its own class is refused, and the class never imported."""
    folder = save_tiny_llava(tmp_path / "llava")
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "own.Config", "AutoModelForImageTextToText": "own.Model"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": auto}))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').write('x')\n")
    with pytest.raises(BadInput):
        models.load(str(folder), FULL)
    assert not (tmp_path / "ran").exists()
