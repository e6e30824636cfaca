"""Log-probs of responses, in float32 whatever the model computes in, and the reference's, computed once and stored.

In bfloat16 a log-softmax shifts the sum over a 200-token answer by about 0.4 nat, more than most margins.
"""

import contextlib

import numpy as np
import pandas as pd
import torch
from torch import nn

from napo import artifacts, branches, data, memory, models, packing
from napo.artifacts import BadInput
from napo.head import target_logps
from napo.profiles import KINDS

TOLERANCE = {"float32": 0.01, "bfloat16": 2.0}  # nats a sequence: what rounding may leave of a difference that is 0
LOWER = "lower batch_size or max_length of Training or Evaluation in napo/profiles.py, or use PROFILE=paper_small"


class ResponseLogps(nn.Module):
    """A model as the function that training needs: batch in, summed log-probs of every response out.

    Everything from hidden states to log-probs happens inside this module, so that whatever wraps it (DDP, FSDP) sees
    one forward. The batch says by its tensors whether it is packed.
    """

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, **batch):
        return batch_logps(self.model, batch)


def batch_logps(model, batch):
    """Summed log-probs of a batch of either layout: (B * K,) float32 nats, row by row."""
    return packed_sums(model, batch).flatten() if "segments" in batch else plain_logps(model, batch)


def packed_logps(model, batch):
    """Summed log-probs of all responses of each row from one sequence per row.

    batch  as `packing.collate` makes it, on the model's device
    Returns dict kind -> (number of rows,) float32 nats, end token included.
    """
    sums = packed_sums(model, batch)
    return {kind: sums[:, k] for k, kind in enumerate(batch["kinds"])}


def packed_sums(model, batch):
    """The same as one tensor, (number of rows, K) float32 nats."""
    branches.check_exact(model)
    causal_lm, segments = branches.causal_lm(model), batch["segments"]  # (B, S)
    attention = causal_lm.config.get_text_config()._attn_implementation
    others = {name: value for name, value in batch.items() if name not in PACKED_ONLY}  # images; stretches
    hidden = causal_lm.model(
        input_ids=batch["input_ids"],
        attention_mask=branches.mask(segments, attention, causal_lm.get_input_embeddings().weight.dtype, batch["rows"]),
        position_ids=branches.positions(model, batch),
        use_cache=False,
        **others,
    ).last_hidden_state  # (B, S, H)
    assert hidden.shape[:2] == segments.shape
    sequence, position, predictor = branches.predictors(segments)
    targets = batch["input_ids"][sequence, position]  # (N,)
    logps = target_logps(hidden[sequence, predictor], targets, causal_lm.get_output_embeddings())  # (N,)
    n_kinds, row = len(batch["kinds"]), batch["rows"][sequence, position]  # (N,)
    sums = logps.new_zeros(batch["n_rows"] * n_kinds)
    return sums.index_add(0, row * n_kinds + segments[sequence, position] - 1, logps).view(-1, n_kinds)


# What the decoder is not given as it is; the rest of a packed batch (images, stretches) goes to the model.
PACKED_ONLY = ("input_ids", "segments", "rows", "position_ids", "kinds", "n_rows", "mm_token_type_ids")


def token_logps(model, batch):
    """Log-probs of the response tokens of plain sequences, and the sequence each belongs to.

    batch  as `packing.collate_plain` makes it, on the model's device; S sequences of T tokens
    Returns (logps (N,) float32 nats, sequence (N,) int64), N response tokens in all.
    """
    inputs = {name: tensor for name, tensor in batch.items() if name != "response_mask"}
    response_mask = batch["response_mask"]
    causal_lm = branches.causal_lm(model)
    hidden = causal_lm.model(**inputs, use_cache=False).last_hidden_state  # (S, T, H)
    predicts = response_mask[:, 1:]  # the state before a token predicts it
    assert not response_mask[:, 0].any(), "a response needs a prompt before it"
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
    """Summed log-probs of each row's responses: a thin wrapper for people and tests.

    rows    list of dicts with `image` (PIL), `question` and a text per kind
    kinds   which of the row's responses
    packed  False: one full sequence per response, with the prompt and its image repeated
    Returns dict kind -> (B,) float32 nats, end token included.
    Raises BadInput where packed log-probs are not known to be exact for the model.
    """
    encoded = [packing.encode(row, processor, kinds, max_length) for row in rows]
    collate = packing.collation(model, packed)
    batch = collate(encoded, kinds, processor.tokenizer.pad_token_id)
    return by_kind(batch_logps(model, to_device(batch, model.device)), kinds)


@torch.no_grad()
def from_full_logits(model, processor, row, kind, max_length=None):
    """One response's summed log-prob the slow way, to compare with: full logits of one sequence; a float."""
    encoded = packing.encode(row, processor, (kind,), max_length)
    batch = to_device(packing.collate_plain([encoded], (kind,), processor.tokenizer.pad_token_id), model.device)
    start = int(batch.pop("response_mask")[0].nonzero()[0])
    logits = model(**batch).logits[0].float()  # (T, V)
    targets = batch["input_ids"][0, start:]
    return logits[start - 1 : -1].log_softmax(-1).gather(1, targets[:, None]).sum().item()


@torch.no_grad()
def measure(model, processor, rows, kinds, batch_size=32, max_length=None, reference=False, packed=True, label=None):
    """Log-probs and token counts of every row and kind, in batches without gradient.

    reference  True: with the adapter off, so of the model that training started from
    Returns a DataFrame with row_id, n_cut (responses of the row that were cut at the end to fit max_length) and, per
    kind, logps_<kind> (float32 nats) and tokens_<kind> (int, end token included).
    Raises BadInput where two rows could not share a batch, also if here they do not.
    """
    model.eval()
    collate = packing.collation(model, packed)
    adapter_off = (
        model.disable_adapter() if reference and hasattr(model, "disable_adapter") else contextlib.nullcontext()
    )
    starts = range(0, len(rows), batch_size)
    frames, first = [], None
    with adapter_off:
        for start in artifacts.progress(starts, label) if label else starts:
            numbers = range(start, min(start + batch_size, len(rows)))  # one by one: a Dataset's slice is a dict
            encoded = [packing.encode(rows[i], processor, kinds, max_length) for i in numbers]
            first = first or encoded[0]
            for row in encoded if batch_size > 1 else ():  # training shuffles: any two may come to share a batch
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


def reference(profile, base, runs_dir="runs"):
    """Path of base-<b>/reference.parquet: the base's log-probs of every row and kind, computed once (notebook 02).

    With them a training step has no reference pass; before training they give the raw margins.
    """
    made_from = reference_made_from(profile, base, runs_dir)
    (pairs,) = made_from["inputs"]

    def make(path):
        model, processor = models.load_base(profile, base)
        rows = data.read(pairs)
        packing.check_image_tokens(model, processor, rows[0])
        training = profile.training
        frame = measure(
            model,
            processor,
            rows,
            KINDS,
            training.batch_size,
            training.max_length,
            packed=training.packed,
            label=f"base {base}: log-probs",
        )
        if frame["n_cut"].any():
            print(f"{frame['n_cut'].sum()} answers cut at the end: prompt and answer over {training.max_length} tokens")
        frame.to_parquet(path, index=False)

    return artifacts.build(pairs.with_name("reference.parquet"), make, **made_from)


def reference_made_from(profile, base, runs_dir="runs"):
    """What the reference log-probs of a base depend on, as `artifacts.build` takes it."""
    folder = artifacts.run_folder(profile.name, f"base-{base}", runs_dir=runs_dir)
    settings = {
        "model": models.identity(profile, base),
        "quantisation": profile.quantisation,
        "max_length": profile.training.max_length,
        "packed": profile.training.packed,
        "one_image_size": profile.training.batch_size > 1,  # then all rows are checked for it
    }
    modules = ("logps", "packing", "models", "data")
    return {"settings": settings, "modules": modules, "inputs": [artifacts.require(folder / "pairs.parquet", "01")]}


def current_reference(profile, base, runs_dir="runs"):
    """Path of the reference log-probs for who only reads them. Raises BadInput if they are not there, or were made from
    other rows, another model or template, or other settings than those of now."""
    made_from = reference_made_from(profile, base, runs_dir)
    path = artifacts.require(made_from["inputs"][0].with_name("reference.parquet"), "02")
    if not artifacts.is_current(path, **made_from):
        raise BadInput(
            f"{artifacts.shown(path)} was made from other rows, another model or other settings than those of now: run "
            "notebook 02 again"
        )
    return path


def load_reference(path, model, processor, rows, profile, n_checked=2):
    """The stored reference log-probs, after a few of `rows`, spread over all, are computed again with `model`.

    model  the base, or a peft model on it (its adapter is switched off)
    Raises BadInput if a row is missing, has other tokens than when it was stored, or log-probs that are off by more
    than rounding.
    """
    stored, training = artifacts.read_parquet(path, "02"), profile.training
    numbers = np.linspace(0, len(rows) - 1, min(n_checked, len(rows))).round().astype(int).tolist()
    checked = [rows[i] for i in numbers]
    now = measure(
        model, processor, checked, KINDS, 1, training.max_length, reference=True, packed=training.packed
    ).set_index("row_id")
    remedy = f"delete {artifacts.shown(path)} and run notebook 02 again"
    missing = now.index.difference(stored["row_id"])
    if len(missing):
        raise BadInput(f"row {missing[0]} has no reference log-probs: {remedy}")
    known = stored.set_index("row_id").loc[now.index]
    for kind in KINDS:
        off = (now[f"logps_{kind}"] - known[f"logps_{kind}"]).abs()
        if (now[f"tokens_{kind}"] != known[f"tokens_{kind}"]).any() or off.max() > TOLERANCE[
            profile.quantisation.dtype
        ]:
            row = off.idxmax()
            raise BadInput(
                f"row {row}: the stored reference log-probs of {kind} are not this model's ({off[row]:.3g} nats off): "
                + remedy
            )
    return stored
