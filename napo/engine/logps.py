"""Log-probs of responses: summed, in nats, in float32 whatever dtype the model computes in.

In bfloat16 a log-softmax shifts the sum over a 200-token answer by about 0.4 nat, more than most margins.
"""

import pandas as pd
import torch
from torch import nn

from napo.engine import memory, packing, tree_attention
from napo.engine.generation import chunks
from napo.engine.head import target_logps
from napo.workshop.progress import progress

TOLERANCE = {"float32": 0.01, "bfloat16": 2.0}  # nats a sequence: what rounding may leave of a difference that is 0
LOWER = "lower batch_size or max_length of Training or Evaluation in napo/profiles.py, or use PROFILE=paper_small"
# Columns of a packed batch that the decoder does not read as they are; what remains are the image tensors.
PACKED_ONLY = ("input_ids", "segments", "rows", "position_ids", "kinds", "n_rows", "stretches", "mm_token_type_ids")


class ResponseLogps(nn.Module):
    """A model as a module, batch in, summed log-probs out, so that what wraps it (DDP, FSDP) sees one forward."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, **batch):
        return batch_logps(self.model, batch)


def batch_logps(model, batch):
    """Summed log-probs of a batch of either layout: (B * K,) float32 nats, row by row."""
    return packed_sums(model, batch).flatten() if "segments" in batch else plain_logps(model, batch)


def packed_sums(model, batch):
    """Summed log-probs of all responses, each row computed once.

    batch  of `packing.collate_packed`, on the model's device
    Returns (number of rows, K) float32 nats, end token included.
    """
    tree_attention.check_exact(model)
    causal_lm, segments = tree_attention.causal_lm(model), batch["segments"]  # (B, S)
    attention = causal_lm.config.get_text_config()._attn_implementation
    dtype = causal_lm.get_input_embeddings().weight.dtype
    hidden = causal_lm.model(
        input_ids=batch["input_ids"],
        attention_mask=tree_attention.mask(segments, attention, dtype, batch["rows"], batch["stretches"]),
        position_ids=tree_attention.positions(model, batch),
        use_cache=False,
        **{name: tensor for name, tensor in batch.items() if name not in PACKED_ONLY},
    ).last_hidden_state  # (B, S, H)
    assert hidden.shape[:2] == segments.shape
    sequence, position, predictor = tree_attention.predictors(segments)
    targets = batch["input_ids"][sequence, position]  # (N,)
    logps = target_logps(hidden[sequence, predictor], targets, causal_lm.get_output_embeddings())  # (N,)
    n_kinds, row = len(batch["kinds"]), batch["rows"][sequence, position]  # (N,)
    sums = logps.new_zeros(batch["n_rows"] * n_kinds)
    return sums.index_add(0, row * n_kinds + segments[sequence, position] - 1, logps).view(-1, n_kinds)


def token_logps(model, batch):
    """Log-probs of the response tokens of plain sequences, and the sequence each belongs to.

    batch  of `packing.collate_plain`, on the model's device: S sequences of T tokens
    Returns (logps (N,) float32 nats, sequence (N,) int64), N response tokens in all.
    """
    inputs = {name: tensor for name, tensor in batch.items() if name != "response_mask"}
    causal_lm = tree_attention.causal_lm(model)
    hidden = causal_lm.model(**inputs, use_cache=False).last_hidden_state  # (S, T, H)
    predicts = batch["response_mask"][:, 1:]  # the state before a token predicts it
    assert not batch["response_mask"][:, 0].any(), "a response needs a prompt before it"
    targets = batch["input_ids"][:, 1:][predicts]  # (N,)
    return target_logps(hidden[:, :-1][predicts], targets, causal_lm.get_output_embeddings()), predicts.nonzero()[:, 0]


def plain_logps(model, batch):
    """Summed log-probs, one full sequence per response: the reference that the packed path must equal.

    Returns (S,) float32 nats, in the order of the batch's sequences.
    """
    logps, sequence = token_logps(model, batch)
    sums = torch.zeros(len(batch["input_ids"]), dtype=logps.dtype, device=logps.device)
    return sums.index_add(0, sequence, logps)


def by_kind(sums, kinds):
    """(B * K,) values in batch order -> dict kind -> (B,)."""
    columns = sums.view(-1, len(kinds))
    return {kind: columns[:, k] for k, kind in enumerate(kinds)}


def to_device(batch, device):
    return {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}


def response_logps(model, processor, rows, kinds, packed=True, max_length=None):
    """Summed log-probs of each row's responses, with gradient.

    rows    list of dicts with `image` (PIL), `question` and a text per kind
    kinds   which of the row's responses
    packed  False: one full sequence per response, with the prompt and its image repeated
    Returns dict kind -> (B,) float32 nats, end token included. The model stays as it is.
    Raises BadInput where packed log-probs are not known to be exact for the model.
    """
    encoded = [packing.encode(row, processor, kinds, max_length) for row in rows]
    batch = packing.collation(model, packed)(encoded, kinds, processor.tokenizer.pad_token_id)
    return by_kind(batch_logps(model, to_device(batch, model.device)), kinds)


@torch.no_grad()
def from_full_logits(model, processor, row, kind, max_length=None):
    """One response's summed log-prob from the full logits of one sequence: a float, slow, to compare with."""
    encoded = packing.encode(row, processor, (kind,), max_length)
    batch = to_device(packing.collate_plain([encoded], (kind,), processor.tokenizer.pad_token_id), model.device)
    start = int(batch.pop("response_mask")[0].nonzero()[0])
    logits = model(**batch).logits[0].float()  # (T, V)
    targets = batch["input_ids"][0, start:]
    return logits[start - 1 : -1].log_softmax(-1).gather(1, targets[:, None]).sum().item()


@torch.no_grad()
def measure(model, processor, rows, kinds, batch_size=32, max_length=None, packed=True, label=None, encode=None):
    """Log-probs and token counts of every row and kind, in batches without gradient.

    label   of a progress bar; None: none is shown
    encode  what makes tensors of a row, with the arguments of `packing.encode`; None: that function
    Returns a DataFrame with row_id, n_cut (responses of the row that were cut at the end to fit max_length) and, per
    kind, logps_<kind> (float32 nats) and tokens_<kind> (int, end token included).
    Raises BadInput where two rows could not share a batch, even if they do not share one here: training shuffles.
    """
    model.eval()
    collate, encode = packing.collation(model, packed), encode or packing.encode
    frames, first, batches = [], None, chunks(range(len(rows)), batch_size)
    for numbers in progress(batches, label) if label else batches:
        encoded = [encode(rows[i], processor, kinds, max_length) for i in numbers]
        first = first or encoded[0]
        for row in encoded if batch_size > 1 else ():
            packing.check_one_size(row, first)
        batch = to_device(collate(encoded, kinds, processor.tokenizer.pad_token_id), model.device)
        with memory.or_say(f"{len(numbers)} rows from {encoded[0]['row_id']} on", LOWER):
            sums = by_kind(batch_logps(model, batch).float().cpu(), kinds)
        frame = {"row_id": [row["row_id"] for row in encoded], "n_cut": [row["n_cut"] for row in encoded]}
        for kind in kinds:
            frame[f"logps_{kind}"] = sums[kind].numpy()
            frame[f"tokens_{kind}"] = [len(row["responses"][kind]) for row in encoded]
        frames.append(pd.DataFrame(frame))
    return pd.concat(frames, ignore_index=True)
