"""The evidence for an answer: its log-prob after the whole prompt minus its log-prob after the masked prompt.

A biased answer was generated with one modality masked. Positive evidence: the masked image or question makes the answer
likelier. Negative evidence: it makes the answer less likely. Needs forward passes only, no training and no truth.
"""

import zlib

import numpy as np
import pandas as pd
import torch

from napo.engine import logps, packing
from napo.pairs import perturb
from napo.workshop.progress import progress


@torch.no_grad()
def measure(model, processor, rows, reference, kind, *, batch_size=32, how="none", label=None):
    """Evidence for the chosen answer and for one kind of biased answer of every row.

    reference  DataFrame of `logps.measure` for (at least) these rows: log-probs after the whole prompt
    how        what replaced the masked image: "none" | "white" | "black" | "grey" | "noise"
    label      of the progress line; None: no line
    Returns a DataFrame row_id, chosen_evidence, evidence (nats), same (whether the two answers are equal).
    """
    model.eval()
    names, known = ("chosen", kind), reference.set_index("row_id")
    starts, frames = range(0, len(rows), batch_size), []
    for start in progress(starts, label) if label else starts:
        some = [rows[i] for i in range(start, min(start + batch_size, len(rows)))]
        whole = known.loc[[row["row_id"] for row in some]]
        counts = [[int(whole[f"tokens_{name}"].iloc[i]) for name in names] for i in range(len(some))]
        sums = masked_logps(model, processor, some, kind, counts, how)
        found = {name: whole[f"logps_{name}"].to_numpy(float) - sums[name].numpy() for name in names}
        columns = {"row_id": whole.index, "chosen_evidence": found["chosen"], "evidence": found[kind]}
        same = [row["chosen"].strip() == row[kind].strip() for row in some]
        frames.append(pd.DataFrame(columns | {"same": same}))
    return pd.concat(frames, ignore_index=True)


@torch.no_grad()
def masked_logps(model, processor, rows, kind, counts, how="none"):
    """Log-probs of the rows' chosen answers and biased answers after the masked prompt: dict kind -> (n,) nats.

    counts  per row as in `masked`
    """
    names = ("chosen", kind)
    encoded = [masked(row, kind, processor, n, how) for row, n in zip(rows, counts, strict=True)]
    batch = packing.collate_plain(encoded, names, processor.tokenizer.pad_token_id)
    return logps.by_kind(logps.plain_logps(model, logps.to_device(batch, model.device)).float().cpu(), names)


def masked(row, kind, processor, counts, how="none"):
    """The chosen answer and one biased answer after the masked prompt of that kind, encoded as by `packing.encode`.

    counts  tokens to keep of (chosen, biased) answer: as many as fitted after the whole prompt
    """
    rng = np.random.default_rng(zlib.crc32(str(row["row_id"]).encode()))  # for a noise mask
    seen, has_image, has_question = perturb.perturbed(row, kind, how, rng)
    prompt = packing.prompt_text(seen, processor, has_image, has_question)
    inputs = dict(packing.tokenised([prompt], [seen["image"]] if has_image else None, processor))
    prompt_ids = inputs.pop("input_ids")[0]
    inputs.pop("attention_mask")
    types = {key: inputs.pop(key)[0] for key in list(inputs) if key.endswith("token_type_ids")}
    answers = zip(("chosen", kind), counts, strict=True)
    responses = {name: torch.tensor(packing.response_ids(row[name], row, processor)[:n]) for name, n in answers}
    encoded = {"row_id": row["row_id"], "prompt_ids": prompt_ids, "responses": responses}
    return encoded | {"vision": inputs, "token_types": types}
