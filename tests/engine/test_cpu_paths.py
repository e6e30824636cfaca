"""Both kinds of CPU that bitsandbytes tells apart, whichever kind the tests run on.

On a CPU with AVX512-BF16 bitsandbytes warns at import that it misses a kernel of a hub. There a stock Linear4bit
repacks its weights in the first eval forward whose input needs no gradient, and computes in bfloat16 ever after.

What stands in for the other kind of CPU: the answer of `has_avx512bf16` (in a subprocess: of the native library), and
in this process the product with repacked weights, which is compiled for that CPU only, by the same arithmetic in
torch. The repacking is bitsandbytes' own code. The native kernel itself runs in no test here.
"""

import copy
import os
import subprocess
import sys

import bitsandbytes.functional
import pytest
import torch
from peft import PeftModel
from tiny_models import save_tiny_llava
from tiny_rows import make_row
from torch.nn.functional import linear
from transformers import AutoModelForImageTextToText

from napo.engine import logps, models, packing
from napo.profiles import Lora, Quantisation

KINDS_OF_CPU = {"without": False, "with AVX512-BF16": True}
NF4 = Quantisation()
SITECUSTOMIZE = """
import ctypes
native = ctypes.CDLL.__getattr__
ctypes.CDLL.__getattr__ = lambda lib, name: (lambda: 1) if name == "has_avx512bf16_cpu" else native(lib, name)
"""
COMMAND = """
import logging
import sys
logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
logger.addFilter(lambda record: print(record.msg.partition(" from ")[0]) or True)
import napo.training.trainer
logger.warning("another")
from napo.__main__ import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def adapter(folder, tmp_path_factory):
    """Folder of a saved adapter that changes the logits."""
    policy = with_adapter(models.load(folder, NF4)[0])
    saved = tmp_path_factory.mktemp("adapter")
    policy.save_pretrained(saved)
    return saved


def with_adapter(model):
    policy = models.attach_lora(model, Lora(r=4), seed=0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.01)
    return policy


def make_batch(folder):
    processor = models.load(folder, NF4)[1]
    return packing.collate_plain([packing.encode(make_row(i), processor, ("chosen",)) for i in range(2)], ("chosen",))


def play(monkeypatch, has_bf16):
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: has_bf16)
    monkeypatch.setattr("bitsandbytes.functional.gemv_4bit", product_with_repacked)


def product_with_repacked(A, B, out=None, state=None):
    """The native kernel's arithmetic: input, weights and result in bfloat16, sums in float32."""
    plain = copy.copy(state)
    plain.original_nested = False  # the absmax stay as they were repacked
    packed, plain = bitsandbytes.functional._convert_weight_packed_for_cpu_inverse(B, plain)
    plain.absmax = plain.absmax.T.reshape(-1).float()
    weight = bitsandbytes.functional.dequantize_4bit(packed, plain)
    return linear(A.bfloat16().float(), weight.bfloat16().float()).bfloat16().to(A.dtype)


def is_repacked(model):
    return [
        getattr(layer.weight.quant_state, "packing_format_for_cpu", False) for layer in models.four_bit_layers(model)
    ]


@torch.no_grad()
def logits(model, batch):
    return model.eval()(**{name: tensor for name, tensor in batch.items() if name != "response_mask"}).logits


def stock_peft(folder, adapter):
    config = models.four_bit_config(folder, NF4)
    stock = AutoModelForImageTextToText.from_pretrained(folder, quantization_config=config, dtype=torch.float32)
    return PeftModel.from_pretrained(stock, adapter)


def evaluated_then_trained(folder):
    """Log-probs with and without the adapter, then the gradients of a training step."""
    policy = with_adapter(models.load(folder, NF4)[0]).eval()
    batch = make_batch(folder)
    with torch.no_grad():
        found = {"on": logps.plain_logps(policy, batch)}
        with policy.disable_adapter():
            found["off"] = logps.plain_logps(policy, batch)
    assert len(is_repacked(policy)) == 14 and not any(is_repacked(policy))
    logps.plain_logps(policy.train(), batch).sum().backward()
    return found | {name: p.grad for name, p in policy.named_parameters() if p.requires_grad}


def test_evaluation_and_gradients_are_the_same_bits_on_both_kinds(folder, monkeypatch):
    of_kind = {}
    for kind, has_bf16 in KINDS_OF_CPU.items():
        play(monkeypatch, has_bf16)
        of_kind[kind] = evaluated_then_trained(folder)
    plain, bf16 = of_kind.values()
    assert len(plain) == 2 + 2 * 14
    assert all(torch.equal(plain[name], bf16[name]) for name in plain)


@pytest.mark.parametrize("has_bf16", KINDS_OF_CPU.values(), ids=KINDS_OF_CPU)
def test_a_guarded_stock_model_gives_our_logits_on_both_kinds(folder, adapter, monkeypatch, has_bf16):
    play(monkeypatch, has_bf16)
    stock, ours = stock_peft(folder, adapter), models.load_adapter(models.load(folder, NF4)[0], adapter)
    models.guard_repacking(stock)
    batch = make_batch(folder)
    torch.testing.assert_close(logits(stock, batch), logits(ours, batch), rtol=1e-5, atol=1e-6)
    assert not any(is_repacked(stock))


def test_an_unguarded_stock_model_rounds_to_bfloat16_where_the_cpu_can(folder, adapter, monkeypatch):
    """What docs/paper.md tells people who load an adapter in stock peft."""
    batch, ours = make_batch(folder), models.load_adapter(models.load(folder, NF4)[0], adapter)
    play(monkeypatch, has_bf16=True)
    stock = stock_peft(folder, adapter)
    off_by = (logits(stock, batch) - logits(ours, batch)).abs().max().item()
    assert all(is_repacked(stock))
    assert 1e-4 < off_by < 1e-2
    play(monkeypatch, has_bf16=False)
    torch.testing.assert_close(logits(stock_peft(folder, adapter), batch), logits(ours, batch), rtol=1e-5, atol=1e-6)


def test_a_refused_command_prints_one_line_on_a_cpu_with_avx512_bf16(root, tmp_path):
    """And of bitsandbytes' warnings only the one at import is silenced, also where transformers imports it first."""
    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
    command = [sys.executable, "-c", COMMAND, "evaluate", "pope", "--model", "none", "--data", "none"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.stdout.splitlines() == ["Failed to load CPU gemm_4bit_forward", "another"]  # what was logged
    assert ended.stderr.startswith("another\nerror: ") and ended.stderr.count("\n") == 2  # what was printed
    assert ended.returncode == 2
