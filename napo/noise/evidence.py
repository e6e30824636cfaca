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


def measure(model, processor, rows, reference, kind, *, batch_size=32, how="none", label=None):
    """Evidence for the chosen answer and for one kind of biased answer of every row.

    reference  DataFrame of `logps.measure` for (at least) these rows: log-probs after the whole prompt
    how        what replaced the masked image: "none" | "white" | "black" | "grey" | "noise"
    label      of the progress line; None: no line
    Returns a DataFrame row_id, chosen_evidence, evidence (nats), same (whether the two answers are equal).
    """
    names, known, same = ("chosen", kind), reference.set_index("row_id"), []

    def encode(row, *_):
        same.append(row["chosen"].strip() == row[kind].strip())
        counts = [int(known.at[row["row_id"], f"tokens_{name}"]) for name in names]
        return masked(row, kind, processor, counts, how)

    found = logps.measure(model, processor, rows, names, batch_size, packed=False, label=label, encode=encode)
    whole = known.loc[found["row_id"]]
    chosen, biased = (whole[f"logps_{name}"].to_numpy(float) - found[f"logps_{name}"].to_numpy() for name in names)
    return pd.DataFrame({"row_id": whole.index, "chosen_evidence": chosen, "evidence": biased, "same": same})


def masked(row, kind, processor, counts, how="none"):
    """The chosen answer and one biased answer after the masked prompt of that kind, encoded as by `packing.encode`.

    counts  tokens to keep of (chosen, biased) answer: as many as fitted after the whole prompt
    """
    rng = np.random.default_rng(zlib.crc32(str(row["row_id"]).encode()))  # for a noise mask
    seen, has_image, has_question = perturb.perturbed(row, kind, how, rng)
    prompt = packing.prompt_text(seen, processor, has_image, has_question)
    answers = zip(("chosen", kind), counts, strict=True)
    responses = {name: torch.tensor(packing.response_ids(row[name], row, processor)[:n]) for name, n in answers}
    seen_image = seen["image"] if has_image else None
    encoded = packing.encode_prompt(prompt, seen_image, processor)
    return encoded | {"row_id": row["row_id"], "responses": responses, "n_cut": 0}
