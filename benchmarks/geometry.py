"""Randomly initialised LLaVA models of a given size and one preference row with answers of a given length.

Speed and memory do not depend on what the weights are, so nothing is downloaded.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import bitsandbytes as bnb
import numpy as np
import torch
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from tiny_models import CHAT_TEMPLATE, byte_tokenizer  # noqa: E402

from napo.engine import models  # noqa: E402
from napo.methods import KINDS  # noqa: E402
from napo.profiles import Lora  # noqa: E402

QUESTION = "What is shown in this picture, and where?"


@dataclass(frozen=True)
class Geometry:
    """Size of a model; every one of them has LLaVA-1.5's 576 image tokens."""

    hidden: int
    layers: int
    vocabulary: int
    heads: int
    vision_hidden: int = 192
    vision_layers: int = 4
    lora_r: int = 8
    four_bit: bool = False
    dtype: str = "float32"

    @property
    def intermediate(self):
        return self.hidden * 43 // 16  # as in LLaMA-7B


GEOMETRIES = {
    "G1": Geometry(hidden=512, layers=8, vocabulary=32000, heads=8),
    "G2": Geometry(hidden=1024, layers=8, vocabulary=2048, heads=16),
    "7B": Geometry(
        4096, 32, 32064, 32, vision_hidden=1024, vision_layers=24, lora_r=64, four_bit=True, dtype="bfloat16"
    ),
    "tiny": Geometry(
        hidden=32, layers=2, vocabulary=128, heads=2, vision_hidden=16, vision_layers=1
    ),  # to try the script
}


def build(geometry, device="cpu"):
    """(random model in the geometry's dtype, NF4 if it says so, on the device; processor)."""
    tokenizer = byte_tokenizer()
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=geometry.vision_hidden,
            intermediate_size=4 * geometry.vision_hidden,
            num_hidden_layers=geometry.vision_layers,
            num_attention_heads=max(1, geometry.vision_hidden // 64),
            image_size=336,
            patch_size=14,
        ),
        text_config=LlamaConfig(
            vocab_size=geometry.vocabulary,
            hidden_size=geometry.hidden,
            intermediate_size=geometry.intermediate,
            num_hidden_layers=geometry.layers,
            num_attention_heads=geometry.heads,
            num_key_value_heads=geometry.heads,
            max_position_embeddings=4096,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, geometry.dtype))
    try:
        with torch.device(device):
            model = LlavaForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(default)
    if geometry.four_bit:
        quantise(model.model.language_model, device)
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    return model.requires_grad_(False), processor


def quantise(decoder, device):
    """Every linear layer of a language model to NF4, in place, as models.load would have it."""
    for name, module in list(decoder.named_modules()):
        if isinstance(module, torch.nn.Linear):
            layer = bnb.nn.Linear4bit(
                module.in_features,
                module.out_features,
                bias=False,
                compute_dtype=module.weight.dtype,
                quant_type="nf4",
                device="meta",
            )
            layer.weight = bnb.nn.Params4bit(
                module.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True, module=layer
            ).to(device)
            parent, _, child = name.rpartition(".")
            setattr(decoder.get_submodule(parent), child, layer)
    models.guard_repacking(decoder)


def policy(model, geometry, checkpointing=False):
    """The model with a LoRA adapter, in training mode."""
    adapted = models.attach_lora(model, Lora(r=geometry.lora_r, alpha=2 * geometry.lora_r), seed=0).train()
    if checkpointing:
        adapted.enable_input_require_grads()
        adapted.activation_checkpointing_enable({"use_reentrant": False})
    return adapted


def row(tokens):
    """One preference row whose answers have `tokens` tokens each: a number, or four, end token included."""
    lengths = [tokens] * len(KINDS) if isinstance(tokens, int) else tokens
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (336, 336, 3), dtype=np.uint8))
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    answers = {  # the template puts a space before an answer: one more token, and one for its end
        kind: "".join(rng.choice(letters, length - 2)) for kind, length in zip(KINDS, lengths, strict=True)
    }
    return {"row_id": "0", "image": image, "question": QUESTION, **answers}
