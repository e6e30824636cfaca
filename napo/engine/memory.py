"""Memory of a training or a generation, predicted from the model's configuration alone, and measured.

Weights, adapter and optimizer are counted exactly. Activations are estimated: per token, autograd keeps about 12
vectors of the hidden size and 4 of the feed-forward size for each LLaMA-like layer with LoRA on its seven linear
layers. With gradient checkpointing it keeps one vector a layer, and one layer in full. tests/engine/test_memory.py
compares the estimate with what torch keeps.
"""

import contextlib
import re
from pathlib import Path

import torch

from napo.engine import models, packing, processors
from napo.engine.head import CHUNK_ELEMENTS
from napo.workshop.files import BadInput

FOUR_BITS = 0.5 + 1 / 64 * 4  # bytes a weight: NF4 and one float32 scale for each block of 64
FOUR_BITS_DOUBLE = 0.5 + 1 / 64 * (1 + 4 / 256)  # the scales themselves in 8 bits, with a float32 for each 256
HIDDEN_KEPT, FEED_FORWARD_KEPT = 12, 4
FULL = re.compile("CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|can't allocate memory")  # what errors then say
ADAM_BYTES = 4 + 4 + 4  # gradient and two moments of a trained weight


def predict(skeleton, quantisation, lora, training, tokens):
    """Predicted bytes of a training: dict weights, adapter, optimizer, activations, total.

    skeleton  the model, with or without weights (`models.skeleton`)
    tokens    number of tokens that the decoder reads in one micro-batch; packed: batch_size x (prompt + all responses)
    """
    trained = adapter_parameters(skeleton, lora)
    return _with_total(
        weights=weights(skeleton, quantisation),
        adapter=trained * 4,
        optimizer=trained * ADAM_BYTES,
        activations=activations(skeleton.config.get_text_config(), quantisation, training, tokens),
    )


def _with_total(**parts):
    parts = {name: round(value) for name, value in parts.items()}
    return parts | {"total": sum(parts.values())}


def predict_generation(skeleton, quantisation, sequences, prompt_tokens, new_tokens):
    """Predicted peak bytes of a generation: dict weights, cache, activations, total.

    sequences  computed at once: prompts of a batch times beams
    Assumes that all answers reach `new_tokens`. One layer of the cache counts twice, because growing it copies it.
    """
    text, size = skeleton.config.get_text_config(), getattr(torch, quantisation.dtype).itemsize
    layer = 2 * sequences * (prompt_tokens + new_tokens) * key_width(text) * size
    of_prompt = sequences * prompt_tokens * kept_numbers(text) * size
    return _with_total(
        weights=weights(skeleton, quantisation),
        cache=(text.num_hidden_layers + 1) * layer,
        activations=of_prompt + 2 * 4 * sequences * text.vocab_size,
    )


def kept_numbers(text_config):
    """Numbers that autograd keeps of a token in one layer."""
    return HIDDEN_KEPT * text_config.hidden_size + FEED_FORWARD_KEPT * text_config.intermediate_size


def key_width(text_config):
    """Numbers in a token's key in one layer's cache; its value has as many."""
    heads = getattr(text_config, "num_key_value_heads", None) or text_config.num_attention_heads
    head_width = getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads
    return heads * head_width


def weights(skeleton, quantisation):
    """Predicted bytes of a model's weights as stored."""
    size = getattr(torch, quantisation.dtype).itemsize
    four_bits = FOUR_BITS_DOUBLE if quantisation.double_quant else FOUR_BITS
    linear = decoder_linear_weights(skeleton)
    others = sum(p.numel() for p in skeleton.parameters()) - linear
    return round(others * size + linear * (four_bits if quantisation.four_bit else size))


def decoder_linear_weights(skeleton):
    """Number of weights in the decoder's linear layers: they are quantised, and each token meets each of them once."""
    decoder = skeleton.get_decoder()
    names = {f"{name}.weight" for name, module in decoder.named_modules() if isinstance(module, torch.nn.Linear)}
    return sum(p.numel() for name, p in decoder.named_parameters() if name in names)


def plan(profile, base, rows, kinds, n_rows=32):
    """`predict` for a profile's training, by the lengths of the first `n_rows` rows; no weights are read."""
    name = models.source(profile, base)
    processor = processors.load(name, profile.revision)
    some = [rows[i] for i in range(min(n_rows, len(rows)))]
    encoded = [packing.encode(row, processor, kinds, profile.training.max_length) for row in some]
    skeleton, tokens = models.skeleton(name, profile.revision), tokens_of(encoded, kinds, profile.training)
    return predict(skeleton, profile.quantisation, profile.lora, profile.training, tokens)


def adapter_parameters(skeleton, lora):
    """Number of trained weights: r x (inputs + outputs) of every layer that matches the targets."""
    return sum(
        lora.r * (module.in_features + module.out_features)
        for name, module in skeleton.named_modules()
        if isinstance(module, torch.nn.Linear) and re.fullmatch(lora.targets, name)
    )


def activations(text_config, quantisation, training, tokens):
    """Predicted bytes that forward and backward hold above the weights at their peak."""
    hidden, layers = text_config.hidden_size, text_config.num_hidden_layers
    size = getattr(torch, quantisation.dtype).itemsize
    layer = tokens * kept_numbers(text_config) * size
    head = 2 * 4 * max(CHUNK_ELEMENTS, text_config.vocab_size)  # logits and their softmax of one chunk
    if training.gradient_checkpointing:
        return layers * tokens * hidden * size + max(layer, head)
    return layers * layer + head


def tokens_of(encoded_rows, kinds, training):
    """Tokens of the largest possible micro-batch of these encoded rows: all its rows as long as the longest."""
    if training.packed:
        lengths = [len(row["prompt_ids"]) + sum(len(row["responses"][kind]) for kind in kinds) for row in encoded_rows]
        return training.batch_size * max(lengths)
    lengths = [len(row["prompt_ids"]) + len(row["responses"][kind]) for row in encoded_rows for kind in kinds]
    return training.batch_size * len(kinds) * max(lengths)


def check_fits(predicted, available):
    """Raises BadInput if a prediction (of `predict`) exceeds the bytes at hand, before hours are spent."""
    if predicted["total"] > available:
        needs = f"this training needs about {in_words(predicted['total'])} and {in_words(available)} are free"
        remedy = "lower batch_size or max_length, or set gradient_checkpointing, in napo/profiles.py"
        raise BadInput(f"{needs}: {describe(predicted)}; {remedy}")


@contextlib.contextmanager
def or_say(what, remedy):
    """Context that turns "out of memory" into BadInput: one line that names `what` did not fit, and the remedy."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one; CUDA's libraries and the CPU raise it bare
        if not isinstance(error, torch.OutOfMemoryError) and not FULL.search(str(error)):
            raise
        raise BadInput(f"out of memory: the device does not hold {what}; {remedy}") from error


def available(device):
    """Free bytes of the GPU, or of this machine's memory."""
    return torch.cuda.mem_get_info()[0] if device == "cuda" else resident("MemAvailable", "/proc/meminfo")


def held(device):
    """Bytes held now on the GPU, or in this machine's memory by this process. `peak` counts from this call."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with contextlib.suppress(OSError):  # where the kernel does not allow it the peak is that of the whole process
        Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def peak(device):
    """Most bytes held at once since the last call of `held`."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else resident("VmHWM")


def resident(field, file="/proc/self/status"):
    """Bytes of this process in memory: a field of a file in Linux's /proc."""
    lines = Path(file).read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field)))


def measured(model):
    """Bytes of a loaded model as stored: dict weights, adapter."""
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    held = sum(p.numel() * p.element_size() + scales(p) for p in model.parameters())
    return {"weights": held - trained, "adapter": trained}


def scales(parameter):
    """Bytes of a 4-bit weight's scales, which are stored beside it; 0 for any other weight."""
    state = getattr(parameter, "quant_state", None)
    if state is None:
        return 0
    tensors = [state.absmax, *((state.state2.absmax,) if state.nested else ())]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def in_words(n_bytes):
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.1f} MiB"


def describe(parts):
    """One line of a prediction or measurement."""
    return ", ".join(f"{name} {in_words(value)}" for name, value in parts.items() if name != "total")
