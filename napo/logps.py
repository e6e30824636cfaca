"""Log-probs of responses, in float32 whatever the model computes in, and the reference's, computed once and stored.

In bfloat16 a log-softmax shifts the sum over a 200-token answer by about 0.4 nat, more than most margins.
"""

import contextlib

import pandas as pd
import torch
from torch import nn

from napo import artifacts, data, models, packing
from napo.profiles import KINDS


class ResponseLogps(nn.Module):
    """A model as the function that training needs: batch in, summed log-probs of every response out.

    Everything from hidden states to log-probs happens inside this module, so that whatever wraps it (DDP, FSDP) sees
    one forward.
    """

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, **batch):
        return plain_logps(self.model, batch)


def token_logps(model, batch):
    """Log-probs of the response tokens only, and the sequence each belongs to.

    batch  as `packing.collate_plain` makes it, on the model's device; S sequences of T tokens
    Returns (logps (N,) float32 nats, sequence (N,) int64), N response tokens in all.
    """
    inputs = {name: tensor for name, tensor in batch.items() if name != "response_mask"}
    response_mask = batch["response_mask"]
    causal_lm = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = causal_lm.model(**inputs, use_cache=False).last_hidden_state  # (S, T, H)
    predicts = response_mask[:, 1:]  # the state before a token predicts it
    assert not response_mask[:, 0].any(), "a response needs a prompt before it"
    states = hidden[:, :-1][predicts]  # (N, H)
    logits = causal_lm.get_output_embeddings()(states).float()  # (N, V)
    targets = batch["input_ids"][:, 1:][predicts]  # (N,)
    assert states.shape[0] == targets.shape[0] == int(predicts.sum())
    chosen_logits = logits.gather(1, targets[:, None]).squeeze(1)
    return chosen_logits - logits.logsumexp(dim=1), predicts.nonzero()[:, 0]


def plain_logps(model, batch):
    """Summed log-probs, one full sequence per response: the reference that every faster path must equal.

    Returns (S,) float32 nats, in the order of the batch's sequences.
    """
    logps, sequence = token_logps(model, batch)
    sums = torch.zeros(len(batch["input_ids"]), dtype=torch.float32, device=logps.device)
    return sums.index_add(0, sequence, logps)


def by_kind(sums, kinds):
    """(B * K,) values in batch order -> dict kind -> (B,)."""
    columns = sums.view(-1, len(kinds))
    return {kind: columns[:, k] for k, kind in enumerate(kinds)}


def to_device(batch, device):
    return {name: tensor.to(device) for name, tensor in batch.items()}


def response_logps(model, processor, rows, kinds, packed=False, max_length=None):
    """Summed log-probs of each row's responses: a thin wrapper for people and tests.

    rows   list of dicts with `image` (PIL), `question` and a text per kind
    kinds  which of the row's responses
    Returns dict kind -> (B,) float32 nats, end token included.
    Raises ValueError for packed=True: one sequence per response is the only path there is yet.
    """
    if packed:
        raise ValueError("packed log-probs are not built yet: call with packed=False")
    encoded = [packing.encode(row, processor, kinds, max_length) for row in rows]
    batch = packing.collate_plain(encoded, kinds, processor.tokenizer.pad_token_id)
    return by_kind(plain_logps(model, to_device(batch, model.device)), kinds)


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
def measure(model, processor, rows, kinds, batch_size=32, max_length=None, reference=False, label=None):
    """Log-probs and token counts of every row and kind, in batches without gradient.

    reference  True: with the adapter off, so of the model that training started from
    Returns a DataFrame with row_id and, per kind, logps_<kind> (float32 nats) and tokens_<kind> (int, end token
    included).
    """
    model.eval()
    adapter_off = (
        model.disable_adapter() if reference and hasattr(model, "disable_adapter") else contextlib.nullcontext()
    )
    starts = range(0, len(rows), batch_size)
    frames = []
    with adapter_off:
        for start in artifacts.progress(starts, label) if label else starts:
            numbers = range(start, min(start + batch_size, len(rows)))  # one by one: a Dataset's slice is a dict
            encoded = [packing.encode(rows[i], processor, kinds, max_length) for i in numbers]
            batch = to_device(packing.collate_plain(encoded, kinds, processor.tokenizer.pad_token_id), model.device)
            sums = by_kind(plain_logps(model, batch).cpu(), kinds)
            frame = {"row_id": [row["row_id"] for row in encoded]}
            for kind in kinds:
                frame[f"logps_{kind}"] = sums[kind].numpy()
                frame[f"tokens_{kind}"] = [len(row["responses"][kind]) for row in encoded]
            frames.append(pd.DataFrame(frame))
    return pd.concat(frames, ignore_index=True)


def reference(profile, base, runs_dir="runs"):
    """Path of base-<b>/reference.parquet: the base's log-probs of every row and kind, computed once (notebook 02).

    With them a training step has no reference pass; before training they give the raw margins.
    """
    folder = artifacts.run_folder(profile.name, f"base-{base}", runs_dir=runs_dir)
    pairs = artifacts.require(folder / "pairs.parquet", "01")
    settings = {
        "model": models.identity(profile, base),
        "quantisation": profile.quantisation,
        "max_length": profile.training.max_length,
    }

    def make(path):
        model, processor = models.load_base(profile, base)
        rows = data.read(pairs)
        packing.check_image_tokens(model, processor, rows[0])
        batch_size = profile.training.batch_size
        frame = measure(
            model, processor, rows, KINDS, batch_size, profile.training.max_length, label=f"base {base}: log-probs"
        )
        frame.to_parquet(path, index=False)

    modules = ("logps", "packing", "models", "data")
    return artifacts.build(folder / "reference.parquet", make, settings=settings, modules=modules, inputs=[pairs])
