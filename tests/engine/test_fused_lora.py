"""One product per LoRA layer is peft's function: same outputs, same gradients, same file."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from tiny_models import save_tiny_llava, tiny_llava

from napo.engine import fused_lora, models
from napo.profiles import Lora, Quantisation

LORA = Lora(r=4, alpha=12)
N_LAYERS = 2 * 7


@pytest.fixture(params=[True, False], ids=["4 bits", "full precision"])
def pair(request, tmp_path):
    """The same adapter, with weights that do something, as this kit and as stock peft runs it."""
    folder = save_tiny_llava(tmp_path / "llava")
    policy = models.attach_lora(models.load(str(folder), Quantisation(four_bit=request.param))[0], LORA, seed=0)
    torch.manual_seed(1)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05)
    policy.save_pretrained(str(tmp_path / "adapter"))
    base = models.load(str(folder), Quantisation(four_bit=request.param))[0]
    return policy, PeftModel.from_pretrained(base, str(tmp_path / "adapter"), is_trainable=True)


def logits(model):
    ids = torch.arange(3, 43).reshape(2, 20) % 60 + 5
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def is_fused(model):
    return [name for name, module in model.named_modules() if "forward" in vars(module) and "q_proj" in name]


def test_same_logits_and_gradients_as_stock_peft(pair):
    policy, stock = pair
    assert is_fused(policy)
    assert not is_fused(stock)
    ours, theirs = logits(policy), logits(stock)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    with policy.disable_adapter():
        assert (logits(policy) - ours).abs().max() > 1e-2  # the adapter does something
    ours.pow(2).sum().backward()
    theirs.pow(2).sum().backward()
    of_stock = dict(stock.named_parameters())
    compared = 0
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.abs().max() > 0, name
            assert (parameter.grad - of_stock[name].grad).norm() <= 1e-5 * of_stock[name].grad.norm(), name
            compared += 1
    assert compared == 2 * N_LAYERS


def test_without_adapter_it_is_the_base(pair):
    policy, stock = pair
    with policy.disable_adapter(), stock.disable_adapter():
        torch.testing.assert_close(logits(policy), logits(stock), rtol=0, atol=0)


def test_what_is_saved_is_what_peft_saves(pair):
    policy, stock = pair
    ours, theirs = get_peft_model_state_dict(policy), get_peft_model_state_dict(stock)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_merging_and_taking_apart_again_uses_the_weights_that_are_there(pair):
    policy, stock = pair
    logits(policy)  # dequantised weights are kept from here on
    for model in pair:
        model.merge_adapter()
    torch.testing.assert_close(logits(policy), logits(stock), rtol=1e-5, atol=1e-5)
    for model in pair:
        model.unmerge_adapter()
    torch.testing.assert_close(logits(policy), logits(stock), rtol=1e-5, atol=1e-5)


def test_a_copy_runs_its_own_weights(pair):
    policy, _ = pair
    before = logits(policy)
    copied = copy.deepcopy(policy)
    for name, parameter in copied.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    assert (logits(copied) - before).abs().max() > 1e-2
    torch.testing.assert_close(logits(policy), before, rtol=0, atol=0)


def test_wide_layers_and_dropout_stay_as_peft_has_them(monkeypatch):
    monkeypatch.setattr(fused_lora, "NARROW", 100)  # the model's width is 64, its feed-forward 128
    narrow = models.attach_lora(tiny_llava()[0], LORA, seed=0)
    assert fused_lora.fuse(narrow) == N_LAYERS
    monkeypatch.setattr(fused_lora, "NARROW", 63)
    wide = models.attach_lora(tiny_llava()[0], LORA, seed=0)
    assert fused_lora.fuse(wide) == 2 * 2  # keys and values of two heads are 32 wide
    monkeypatch.setattr(fused_lora, "NARROW", 100)
    config = LoraConfig(r=4, target_modules=LORA.targets, lora_dropout=0.1)
    assert fused_lora.fuse(get_peft_model(tiny_llava()[0], config)) == 0
