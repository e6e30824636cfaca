"""Tree attention: who attends to whom in a packed row, at which positions, and for which models that is exact.

Each response attends to the prompt and, causally, to itself, never to its siblings. Its positions go on from the
prompt's last one, as if it stood there alone. Four mistakes here would give a finite loss and silently wrong gradients,
off by 0.6 % to 61 %; tests/engine/test_silent_mistakes.py makes each of them on purpose.
"""

import torch
import torch.nn.functional as F

from napo.workshop.files import BadInput

# model_type -> how positions go on after the prompt; tests/engine/test_tree_attention.py proves each of them exact.
FAMILIES = {
    "llava": "line",  # one number a token
    "llava_onevision": "line",
    "smolvlm": "line",  # SmolVLM2
    "idefics3": "line",  # Idefics3, and SmolVLM 1, whose configuration says so
    "qwen2_5_vl": "grid",  # M-RoPE: three axes; image tokens lie on a grid
    "qwen3_vl": "grid",
}
SHARING = ("llava", "llava_onevision")  # they take image tensors in the order of the rows, in whatever sequence
DECODERS = ("llama", "qwen2", "qwen2_5_vl_text", "qwen3_vl_text")
ATTENTION = ("sdpa", "eager")
SHORTEST = 64  # fewer queries are not worth an attention call of their own


def causal_lm(model):
    """The model itself, without peft's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def inner_model(model):
    """The part of a model that ends in hidden states: vision tower, projector and decoder, no output head."""
    return causal_lm(model).model


def check_exact(model):
    """Raises BadInput unless packed log-probs and gradients of this model are known to equal plain ones."""
    config = causal_lm(model).config
    text = config.get_text_config()
    rope = (getattr(text, "rope_parameters", None) or {}).get("rope_type", "default")
    problems = (
        (config.model_type not in FAMILIES, f"model family {config.model_type!r}"),
        (text.model_type not in DECODERS, f"language model {text.model_type!r}"),
        (set(getattr(text, "layer_types", None) or ["full_attention"]) != {"full_attention"}, "sliding attention"),
        (text._attn_implementation not in ATTENTION, f"attention implementation {text._attn_implementation!r}"),
        (rope in ("dynamic", "longrope"), f"rope type {rope!r}, which depends on the length of the batch"),
    )
    if what := next((what for wrong, what in problems if wrong), None):
        remedy = "set Training.packed=False in napo/profiles.py (one sequence per response: slower, the same numbers)"
        raise BadInput(f"{what}: packed log-probs are not known to be exact with it; {remedy}")


def may_share(model):
    """Whether several rows may stand in one sequence. Only some families match images to rows by their order alone."""
    return causal_lm(model).config.model_type in SHARING


def mask(segments, attention, dtype, rows=None, stretches=None):
    """Who may attend to whom, in the form that the attention implementation reads: (B, 1, S, S).

    segments   (B, S) int64: 0 prompt, 1..K responses, -1 padding (nobody else attends to it)
    attention  "sdpa": bool, true = may attend; "eager": added to the scores, 0 or the dtype's lowest number
    rows       (B, S) int64: the row each token belongs to; None: each sequence is one row
    stretches  of `stretches`: with them "sdpa" gets a BranchMask, which saves work and changes no result
    Raises ValueError for another implementation: each would take a mask of the wrong form without complaint.
    """
    queries, keys = segments[:, :, None], segments[:, None, :]
    allowed = ((queries == keys) | (keys == 0)).tril()  # (B, S, S)
    if rows is not None:
        allowed &= rows[:, :, None] == rows[:, None, :]
    allowed = allowed[:, None]
    if attention == "sdpa":
        return allowed if stretches is None else BranchMask.of(allowed, stretches)
    if attention == "eager":
        return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
    raise ValueError(f"no mask for attention implementation {attention!r}")


def stretches(segments):
    """Cuts a packed batch into stretches of queries, so that a response need not look at most of its sequence.

    segments  (B, S) int64, on the CPU
    Returns a tuple of (length, earlier stretches that some row's queries attend to). The first stretch is prompt in all
    rows. The next ones begin about where the responses do; none is shorter than SHORTEST.
    """
    length, cuts = segments.shape[1], [0]
    for k in range(1, int(segments.max()) + 1):
        start = int((segments == k).int().argmax(dim=1).min())  # where response k begins in the first row that has it
        if k == 1 or cuts[-1] + SHORTEST <= start <= length - SHORTEST:
            cuts.append(start)
    allowed = mask(segments, "sdpa", None)[:, 0].any(dim=0)  # (S, S), in some row
    parts = [slice(start, stop) for start, stop in zip(cuts, [*cuts[1:], length], strict=True)]
    return tuple(
        (rows.stop - rows.start, tuple(i for i, columns in enumerate(parts[:number]) if allowed[rows, columns].any()))
        for number, rows in enumerate(parts)
    )


class BranchMask(torch.Tensor):
    """A boolean mask that makes torch's sdpa compute stretch by stretch, over the keys that each stretch needs.

    Stock attention hands its mask to `scaled_dot_product_attention`, and there this class steps in, also when
    gradient checkpointing recomputes. To every other operation it is a plain tensor with the same content.
    """

    @classmethod
    def of(cls, allowed, stretches):
        """allowed  (B, 1, S, S) bool;  stretches  of `stretches`"""
        found, lengths = allowed.as_subclass(cls), [length for length, _ in stretches]
        found.lengths, found.parts = lengths, []  # parts: (keys' stretches, their mask), for each stretch but the first
        for number, rows in enumerate(allowed.split(lengths, dim=2)[1:], 1):
            seen, columns = (*stretches[number][1], number), rows.split(lengths, dim=3)
            found.parts.append((seen, torch.cat([columns[i] for i in seen], dim=3)))
        return found

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            if function is F.scaled_dot_product_attention:
                return attend_by_stretches(*args, **kwargs)
            return function(*args, **(kwargs or {}))


def attend_by_stretches(query, key, value, attn_mask, is_causal=False, **settings):
    """`scaled_dot_product_attention` under a BranchMask. The first stretch is plainly causal and needs no mask."""
    queries, keys, values = (tensor.split(attn_mask.lengths, dim=2) for tensor in (query, key, value))
    out = [F.scaled_dot_product_attention(queries[0], keys[0], values[0], is_causal=True, **settings)]
    for part, (seen, allowed) in zip(queries[1:], attn_mask.parts, strict=True):
        looked_at = (torch.cat([tensors[i] for i in seen], dim=2) for tensors in (keys, values))
        out.append(F.scaled_dot_product_attention(part, *looked_at, attn_mask=allowed, **settings))
    return torch.cat([part.transpose(1, 2) for part in out], dim=1).transpose(1, 2)  # memory as stock attention has it


def positions(model, batch):
    """Position ids of every token: (B, S), or (3, B, S) for models that place image tokens on a grid.

    On a grid the prompt has the model's own; all axes of each response go on from the largest of them plus 1.
    """
    if FAMILIES[causal_lm(model).config.model_type] == "line":
        return batch["position_ids"]
    in_prompt, in_response = batch["segments"] == 0, batch["segments"] > 0  # (B, S)
    grid, _ = inner_model(model).get_rope_index(
        batch["input_ids"],
        mm_token_type_ids=batch["mm_token_type_ids"],
        image_grid_thw=batch["image_grid_thw"],
        attention_mask=in_prompt.long(),
    )  # (3, B, S)
    after_prompt = grid.masked_fill(~in_prompt, -1).amax(dim=(0, 2)) + 1  # (B,)
    steps = batch["position_ids"] - in_prompt.sum(1, keepdim=True)  # 0, 1, ... within each response
    return torch.where(in_response, steps + after_prompt[:, None], grid)


def predictors(segments):
    """Places of the N response tokens and of the states that predict them: (sequence, position, predictor), (N,) int64.

    The predictor is the token before; for the first token of every response, the last token of its row's prompt.
    """
    sequence, position = (segments > 0).nonzero(as_tuple=True)
    first = segments[sequence, position] != segments[sequence, position - 1]
    places = torch.arange(segments.shape[1], device=segments.device)
    last_of_prompt = torch.where(segments == 0, places, 0).cummax(dim=1).values  # (B, S): the latest so far
    return sequence, position, torch.where(first, last_of_prompt[sequence, position], position - 1)
