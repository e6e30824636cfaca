"""LoRA on narrow layers of a CPU: one product with W + sBA instead of W x + sB(Ax).

It is the same function, with the same gradients of A and B. peft's form needs two more thin products, and six more in
the backward pass. On a CPU each of these takes about as long as the full product of a narrow layer, because reading and
writing activations dominates. For wide layers the product with W dominates, so they gain nothing.
"""

import functools

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import dequantize_4bit
from peft.tuners.lora import LoraLayer
from torch.nn.functional import linear

NARROW = 256  # layers with at most so many inputs or outputs gain (measured: 1.6 times at 96 x 256, 0.9 at 512 x 512)


def fuse(policy):
    """Give the narrow LoRA layers of a peft model on the CPU the single product; the others stay as they are.

    The parameters and the saved adapter are peft's own. Returns the number of layers that were changed.
    """
    layers = [module for module in policy.modules() if isinstance(module, LoraLayer) and gains(module)]
    for layer in layers:
        layer.forward = functools.partial(_forward, layer, type(layer).forward)
    return len(layers)


def gains(layer):
    """Whether a LoRA layer is narrow, on the CPU, in float32, with nothing but plain LoRA on it."""
    base = layer.get_base_layer()
    if not isinstance(base, torch.nn.Linear) or min(base.in_features, base.out_features) > NARROW:
        return False
    plain = not layer.lora_variant and all(isinstance(drop, torch.nn.Identity) for drop in layer.lora_dropout.values())
    weights = [*layer.lora_A.parameters(), *layer.lora_B.parameters()]
    return plain and all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in weights)


def _forward(layer, of_peft, x, *args, **kwargs):
    if layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1 or args or kwargs:
        return of_peft(layer, x, *args, **kwargs)
    (adapter,) = layer.active_adapters
    a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    if x.dtype != a.dtype:
        return of_peft(layer, x)
    change = b @ a * layer.scaling[adapter]
    return linear(x, frozen_weight(layer).to(x.dtype) + change, layer.get_base_layer().bias)


def frozen_weight(layer):
    """The base's weight in full precision, (out, in). A quantised one is dequantised once and cached."""
    weight = layer.get_base_layer().weight
    if not isinstance(weight, bnb.nn.Params4bit):
        return weight
    if getattr(layer, "dequantised", (None,))[0] is not weight:
        layer.dequantised = weight, dequantize_4bit(weight.data, weight.quant_state)
    return layer.dequantised[1]
