"""What is predicted before loading is what is loaded, and what a step is said to keep is what torch keeps."""

import mmap
from dataclasses import replace

import pytest
import torch
from accelerate import init_empty_weights
from packed_and_plain import make_batch, ragged_rows
from tiny_models import save_tiny_llava, tiny_llava
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from napo.engine import logps, memory, models, packing
from napo.methods import KINDS
from napo.profiles import Lora, Profile, Quantisation, Training
from napo.workshop.files import BadInput

LORA = Lora(r=4, alpha=8)


@pytest.mark.parametrize("four_bit", [False, True])
@pytest.mark.parametrize("double_quant", [False, True])
def test_weights_and_adapter_are_predicted_before_loading(tmp_path, four_bit, double_quant):
    folder = save_tiny_llava(tmp_path / "llava", hidden=256)
    quantisation = Quantisation(four_bit=four_bit, double_quant=double_quant)
    predicted = memory.predict(models.skeleton(folder), quantisation, LORA, Training(), tokens=100)
    model, _ = models.load(folder, quantisation)
    found = memory.measured(models.attach_lora(model, LORA, seed=0))
    assert predicted["adapter"] == found["adapter"]
    assert predicted["weights"] == pytest.approx(found["weights"], rel=0.02)
    assert predicted["optimizer"] == 3 * predicted["adapter"]
    assert predicted["total"] == sum(value for name, value in predicted.items() if name != "total")


def kept_by_autograd(policy, batch):
    """Bytes of the distinct tensors that a forward keeps for its backward, other than weights."""
    weights = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        values = logps.ResponseLogps(policy)(**batch)
    assert values.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_of_the_predicted_size(monkeypatch, checkpointing):
    monkeypatch.setattr(memory, "CHUNK_ELEMENTS", 1)  # this model's vocabulary is tiny; so should its head's part be
    model, processor = tiny_llava(hidden=256, layers=6)
    config = model.config.text_config
    policy = models.attach_lora(model, LORA, seed=0).train()
    if checkpointing:
        policy.enable_input_require_grads()
        policy.activation_checkpointing_enable({"use_reentrant": False})
    rows = ragged_rows(2)
    training = Training(batch_size=2, gradient_checkpointing=checkpointing)
    encoded = [packing.encode(row, processor, KINDS) for row in rows]
    tokens = memory.tokens_of(encoded, KINDS, training)
    batch = make_batch(processor, rows, packed=True)
    assert tokens == batch["input_ids"].numel()
    predicted = memory.activations(config, Quantisation(), training, tokens)
    if checkpointing:  # the layer that backward computes again is not kept by forward
        once = replace(training, gradient_checkpointing=False)
        predicted -= memory.activations(config, Quantisation(), once, tokens) // config.num_hidden_layers
    assert predicted == pytest.approx(kept_by_autograd(policy, batch), rel=0.25)


def test_seven_billion_weights_fit_one_gpu_by_the_arithmetic():
    """LLaVA-1.5-7B's geometry, one row of four 100-token answers: no weights, no GPU."""
    tower = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    config = LlavaConfig(vision_config=tower, text_config=LlamaConfig(vocab_size=32064))
    with init_empty_weights():
        skeleton = LlavaForConditionalGeneration(config)
    quantisation = Quantisation(compute_dtype="bfloat16", dtype="bfloat16")
    training = Training(batch_size=1, gradient_checkpointing=True)
    predicted = memory.predict(skeleton, quantisation, Lora(r=64, alpha=128), training, tokens=1020)
    assert 3.5 < predicted["weights"] / 2**30 < 4.5 and predicted["total"] < 12 * 2**30
    memory.check_fits(predicted, 12 * 2**30)
    with pytest.raises(
        BadInput, match=r"needs about .* GiB and 4\.00 GiB are free: weights .* lower batch_size"
    ) as refusal:
        memory.check_fits(predicted, 4 * 2**30)
    assert "\n" not in str(refusal.value)


def test_plain_sequences_are_counted_as_they_are_padded():
    _, processor = tiny_llava()
    rows = ragged_rows(2)
    encoded = [packing.encode(row, processor, KINDS) for row in rows]
    plain = memory.tokens_of(encoded, KINDS, Training(batch_size=2, packed=False))
    assert plain == make_batch(processor, rows, packed=False)["input_ids"].numel()


def test_plan_of_a_profile_needs_no_weights(tmp_path):
    folder = save_tiny_llava(tmp_path / "llava")
    (folder / "model.safetensors").unlink()
    training = Training(batch_size=2)
    profile = Profile("tiny", model=str(folder), data="mine", lora=LORA, training=training)
    planned = memory.plan(profile, 0, ragged_rows(3), KINDS)
    assert planned["adapter"] > 0 and planned["activations"] > planned["weights"] > 0


def test_free_memory_is_known():
    assert memory.available("cpu") > 2**20


def fresh_pages(n_bytes):
    """Writes this many bytes of memory straight from the kernel (malloc may hand out pages it already holds)."""
    with mmap.mmap(-1, n_bytes) as pages:
        for start in range(0, n_bytes, 2**20):
            pages[start : start + 2**20] = b"1" * 2**20


def test_the_peak_is_counted_from_where_it_was_asked():
    """Or, where the kernel does not let the high-water mark start again, is that of the whole process."""
    fresh_pages(2**27)  # 128 MiB, gone again
    before = memory.held("cpu")
    starts_again = memory.resident("VmHWM") < before + 2**26
    fresh_pages(2**26)  # 64 MiB
    grown = memory.peak("cpu") - before
    assert 60 * 2**20 < grown < 80 * 2**20 if starts_again else grown > 2**26
