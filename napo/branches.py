"""Who attends to whom, and at which positions, in a packed row; and for which models that is known to be exact.

Each response attends to the prompt and to itself, causally, never to its siblings, and its positions go on from the
prompt's last as if it stood there alone. Four mistakes give a finite loss and wrong gradients without a word (61 % to
0.6 % off): the tests make each of them on purpose and see it.
"""

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from napo.artifacts import BadInput

# model_type -> how positions go on after the prompt; what tests/test_branches.py finds equal to plain sequences.
FAMILIES = {
    "llava": "line",  # one number a token
    "llava_onevision": "line",
    "smolvlm": "line",  # SmolVLM2
    "idefics3": "line",  # Idefics3, and SmolVLM 1, whose configuration says so
    "qwen2_5_vl": "grid",  # M-RoPE: three axes; image tokens lie on a grid
    "qwen3_vl": "grid",
}
SHARING = ("llava", "llava_onevision")  # take image tensors in the order of the rows, however these share sequences
DECODERS = ("llama", "qwen2", "qwen2_5_vl_text", "qwen3_vl_text")
ATTENTION = ("sdpa", "eager")
SHORTEST = 64  # queries that are worth an attention of their own


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
    for wrong, what in problems:
        if wrong:
            raise BadInput(
                f"{what}: packed log-probs are not known to be exact with it; set Training.packed=False in "
                "napo/profiles.py (one sequence per response: slower, the same numbers)"
            )


def may_share(model):
    """Whether several rows may stand in one sequence: known to be exact for families that count their images through
    the whole batch."""
    return causal_lm(model).config.model_type in SHARING


def mask(segments, attention, dtype, rows=None):
    """Who may attend to whom, as the attention implementation reads it: (B, 1, S, S).

    segments   (B, S) int64: 0 prompt, 1..K responses, -1 padding (which nobody else attends to)
    rows       (B, S) int64: the row each token belongs to; None: each sequence is one row
    attention  "sdpa": bool, true = may attend; "eager": added to the scores, 0 or the dtype's lowest number
    A mask of the wrong sort is taken without complaint, so nothing else is let through.
    """
    length = segments.shape[1]
    same = segments[:, :, None] == segments[:, None, :]  # (B, S, S)
    prompt = segments[:, None, :] == 0
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    allowed = (same | prompt) & causal
    if rows is not None:
        allowed &= rows[:, :, None] == rows[:, None, :]
    allowed = allowed[:, None]
    if attention == "sdpa":
        return allowed
    if attention == "eager":
        return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
    raise ValueError(f"no mask for attention implementation {attention!r}")


def stretches(segments):
    """A packed batch cut into stretches of queries that leave keys out: most of a sequence is of no use to a response.

    segments  (B, S) int64, on the CPU
    Returns a tuple of (length, earlier stretches that some row's queries attend to). The first stretch is prompt in all
    rows; the next ones begin about where the responses do, and none is shorter than SHORTEST.
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


def sdpa_with_branches(module, query, key, value, attention_mask, stretches=None, **settings):
    """transformers' sdpa attention, with less work where a caller says what need not be looked at.

    stretches  of `stretches`: the first is plainly causal and needs no mask, the others look at some stretches before
               them. None: exactly the stock one
    query, key, value (B, heads, S, dim); returns ((B, S, heads, dim), None)
    """
    if stretches is None or attention_mask is None or not module.is_causal:  # vision towers see it in some families
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    settings.pop("is_causal", None)
    lengths = [length for length, _ in stretches]
    queries, keys, values = (tensor.split(lengths, dim=2) for tensor in (query, key, value))
    rows = attention_mask.split(lengths, dim=2)
    out = [sdpa_attention_forward(module, queries[0], keys[0], values[0], None, is_causal=True, **settings)[0]]
    for number, (_, seen) in enumerate(stretches[1:], 1):
        seen = (*seen, number)
        columns = rows[number].split(lengths, dim=3)
        looked_at = (torch.cat([parts[i] for i in seen], dim=2) for parts in (keys, values))
        allowed = torch.cat([columns[i] for i in seen], dim=3)
        out += [sdpa_attention_forward(module, queries[number], *looked_at, allowed, is_causal=False, **settings)[0]]
    return torch.cat(out, dim=1), None


AttentionInterface.register("sdpa", sdpa_with_branches)


def positions(model, batch):
    """Position ids of every token: (B, S), or (3, B, S) for models that place image tokens on a grid.

    On a grid the prompt's positions are the model's own, and all three axes of each response go on from the largest
    of them plus 1.
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
    """For each response token the position in its sequence whose state predicts it, and where it stands.

    The token before it; the last token of its row's prompt for the first token of every response.
    Returns (sequence (N,), position (N,), predictor (N,)) int64, N response tokens in all.
    """
    sequence, position = (segments > 0).nonzero(as_tuple=True)
    first = segments[sequence, position] != segments[sequence, position - 1]
    places = torch.arange(segments.shape[1], device=segments.device)
    last_of_prompt = torch.where(segments == 0, places, 0).cummax(dim=1).values  # (B, S): the latest so far
    return sequence, position, torch.where(first, last_of_prompt[sequence, position], position - 1)
