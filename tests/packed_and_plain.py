"""What the equality tests share: policies with LoRA, rows of many lengths, gradients of both paths, their distance."""

import contextlib
import types

import bitsandbytes as bnb
import torch
from peft import LoraConfig, get_peft_model
from tiny_families import tiny_family
from tiny_models import tiny_llava
from tiny_rows import make_row, photo

from napo.engine import logps, models, packing
from napo.methods import KINDS

TARGETS = r".*\.(language_model|text_model)\..*\.(q|k|v|o|gate|up|down)_proj"
ANSWERS = ("y", "It is a long answer, longer than the rest.", "no cat", "two", "a b c d e f", ".")


def ragged_rows(n=3):
    """Rows whose prompts, images and answers have different lengths and sizes; the longest row is not the first."""
    rows = []
    for i in range(n):
        answers = {kind: ANSWERS[(i * len(KINDS) + k) % len(ANSWERS)] for k, kind in enumerate(KINDS)}
        image = photo(i, ((60, 40), (40, 90), (100, 30))[i % 3])
        rows.append(make_row(i, image=image, question="why? " * (1 + 2 * ((i + 1) % 3)), **answers))
    return rows


def in_four_bits(model):
    """The model with its decoder's linear layers, and nothing else, in NF4; biases stay as they are."""
    decoder = model.get_decoder()
    for name, layer in list(decoder.named_modules()):
        if isinstance(layer, torch.nn.Linear):
            sizes, settings = (layer.in_features, layer.out_features), {"compute_dtype": layer.weight.dtype}
            quantised = bnb.nn.Linear4bit(*sizes, bias=False, quant_type="nf4", **settings)
            quantised.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
            quantised.bias = layer.bias
            decoder.set_submodule(name, quantised.to("cpu"))
    models.guard_repacking(model)
    models.check_quantised(model)
    return model


def policy_of(family, dtype=torch.float64, attention="sdpa", checkpointing=False, four_bit=False):
    """(random model with a random LoRA adapter, in training mode, processor)."""
    model, processor = tiny_llava(seed=1) if family == "llava" else tiny_family(family)
    model.to(dtype).set_attn_implementation(attention)
    if four_bit:
        in_four_bits(model)
    torch.manual_seed(2)
    config = LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False)
    with models.quiet():
        policy = get_peft_model(model, config).to(dtype).train()
        if checkpointing:
            policy.enable_input_require_grads()
            policy.activation_checkpointing_enable({"use_reentrant": checkpointing == "reentrant"})
    return policy, processor


def make_batch(processor, rows, packed, kinds=KINDS):
    """packed  True, False, or "shared": short rows stand in one sequence"""
    return collated([packing.encode(row, processor, kinds) for row in rows], processor, packed, kinds)


def collated(encoded, processor, packed, kinds=KINDS):
    shared = {"shared": True} if packed == "shared" else {}
    collate = packing.collate_packed if packed else packing.collate_plain
    return collate(encoded, kinds, processor.tokenizer.pad_token_id, **shared)


def measured(policy, batch, module=None):
    """Log-probs (B * K,) and the LoRA gradients of a fixed weighting of them, as one vector.

    module  what computes them with the policy inside, if not the kit's own
    """
    policy.zero_grad()
    values = (module or logps.ResponseLogps(policy))(**batch)
    weighted(values).backward()
    gradients = [p.grad.flatten().clone() for p in policy.parameters() if p.grad is not None]
    return values.detach(), torch.cat(gradients)


def weighted(values):
    return (torch.linspace(0.5, 1.5, len(values)).to(values.dtype) * values).sum()


def image_gradients(policy, processor, rows, packed):
    """Gradients of the same weighting with respect to each row's own pixels, however often its image is read."""
    encoded = [packing.encode(row, processor, KINDS) for row in rows]
    for row in encoded:
        row["vision"]["pixel_values"] = row["vision"]["pixel_values"].double().requires_grad_()
    weighted(logps.ResponseLogps(policy)(**collated(encoded, processor, packed))).backward()
    return torch.cat([row["vision"]["pixel_values"].grad.flatten() for row in encoded])


def distance(packed, plain):
    """Relative error of log-probs (largest) and of gradients (norm) of one `measured` against another."""
    values, gradients = ((packed[0] - plain[0]) / plain[0]).abs().max(), (packed[1] - plain[1]).norm() / plain[1].norm()
    return values.item(), gradients.item()


def packed_against_plain(policy, processor, rows, packed=True):
    return distance(*(measured(policy, make_batch(processor, rows, layout)) for layout in (packed, False)))


def exact_norms(policy):
    """The policy with RMSNorms that compute in the model's own dtype; the stock ones compute in float32."""
    for module in policy.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = types.MethodType(exact_norm, module)
    return policy


def exact_norm(self, states):
    return self.weight * states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


@contextlib.contextmanager
def exact_softmax():
    """Stock eager attention takes its softmax in float32 whatever the model computes in; here in the model's dtype."""
    stock = torch.nn.functional.softmax
    torch.nn.functional.softmax = lambda x, dim=None, dtype=None, **rest: stock(x, dim=dim, **rest)
    try:
        yield
    finally:
        torch.nn.functional.softmax = stock
