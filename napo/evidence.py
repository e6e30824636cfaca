"""What the masked modality adds to an answer: its log-prob beside the whole prompt minus that with the mask on.

A biased answer was generated with one modality masked. Where the model finds an answer likelier once it sees what was
masked, the image or the question speaks for it, elsewhere against it. Forward passes only: no training, no truth.
"""

import zlib

import numpy as np
import pandas as pd
import torch

from napo import artifacts, logps, packing, perturb


@torch.no_grad()
def measure(model, processor, rows, reference, kind, *, batch_size=32, how="none", label=None):
    """Evidence for the chosen answer and for one kind of biased answer of every row.

    reference  DataFrame of `logps.measure` for (at least) these rows: log-probs beside the whole prompt
    how        what stood for the masked image: "none" | "white" | "black" | "grey" | "noise"
    Returns a DataFrame row_id, chosen_evidence, evidence (nats; above 0 the masked modality speaks for the answer),
    same (whether both answers are one text).
    """
    model.eval()
    names, known = ("chosen", kind), reference.set_index("row_id")
    starts, frames = range(0, len(rows), batch_size), []
    for start in artifacts.progress(starts, label) if label else starts:
        some = [rows[i] for i in range(start, min(start + batch_size, len(rows)))]
        whole = known.loc[[row["row_id"] for row in some]]
        counts = [[int(whole[f"tokens_{name}"].iloc[i]) for name in names] for i in range(len(some))]
        encoded = [masked(row, kind, processor, n, how) for row, n in zip(some, counts, strict=True)]
        batch = packing.collate_plain(encoded, names, processor.tokenizer.pad_token_id)
        sums = logps.by_kind(logps.plain_logps(model, logps.to_device(batch, model.device)).float().cpu(), names)
        found = {name: whole[f"logps_{name}"].to_numpy(float) - sums[name].numpy() for name in names}
        columns = {"row_id": whole.index, "chosen_evidence": found["chosen"], "evidence": found[kind]}
        same = [row["chosen"].strip() == row[kind].strip() for row in some]
        frames.append(pd.DataFrame(columns | {"same": same}))
    return pd.concat(frames, ignore_index=True)


def masked(row, kind, processor, counts, how="none"):
    """The row's chosen answer and its answer of one kind after the prompt that the kind was generated from, encoded as
    `packing.encode` does.

    counts  (tokens of the chosen answer, of the other) that count: as many as beside the whole prompt
    """
    rng = np.random.default_rng(zlib.crc32(str(row["row_id"]).encode()))  # of a mask of noise
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
