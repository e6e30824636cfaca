"""The data of one training: preference rows with reference log-probs and labels, and both as batches of tensors."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset

from napo.engine import packing
from napo.methods import CORRUPTED
from napo.training import crops
from napo.workshop.files import BadInput

KEPT_BYTES = 2**30  # of images as tensors: a small model's rows all fit, of LLaVA-1.5-7B's some 800


@dataclass(frozen=True)
class TrainingSet:
    """Preference rows and all that `trainer.fit` needs to know of each."""

    rows: object  # a Dataset or a list of dicts
    reference: pd.DataFrame  # of `logps.measure` on the base, for (at least) these rows
    flipped: np.ndarray | None = None  # (n,) bool: rows whose chosen and rejected answers change places; None: none
    weights: dict | None = None  # kind -> (n,): weight of each pair; None: all pairs count 1
    row_q: dict | None = None  # kind -> (n,): q of each row; None: q of the batch by eq. 10

    def __len__(self):
        return len(self.rows)

    @property
    def any_flipped(self):
        return self.flipped is not None and bool(self.flipped.any())


class EncodedRows(Dataset):
    """A TrainingSet as tensors, row by row. A row is encoded when it is first read, and cached while there is room."""

    def __init__(self, data, processor, kinds, max_length):
        self.data, self.processor, self.kinds, self.max_length = data, processor, kinds, max_length
        self.reference = {record["row_id"]: record for record in data.reference.to_dict("records")}
        rows = data.rows
        self.judged = [kind for kind in kinds if len(rows) and rows[0].get(f"is_noise_{kind}") is not None]
        self.kept, self.room = {}, KEPT_BYTES

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        if index in self.kept:
            return self.kept[index]
        row = self.data.rows[index]
        encoded = packing.encode(row, self.processor, answers(self.kinds), self.max_length)
        if CORRUPTED in self.kinds:
            encoded["corrupted"] = packing.encode(crops.corrupted(row), self.processor, ("chosen",), self.max_length)
            encoded["responses"][CORRUPTED] = encoded["corrupted"]["responses"]["chosen"]
        known = self.reference.get(row["row_id"])
        if known is None:
            raise BadInput(f"row {row['row_id']} has no reference log-probs: run notebook 02 again")
        encoded["reference"] = torch.tensor([known[f"logps_{kind}"] for kind in self.kinds], dtype=torch.float32)
        encoded["tokens"] = torch.tensor([len(encoded["responses"][kind]) for kind in self.kinds], dtype=torch.float32)
        encoded["noise"] = torch.tensor([bool(row.get(f"is_noise_{kind}")) for kind in self.kinds])
        encoded["flipped"] = self.data.flipped is not None and bool(self.data.flipped[index])
        for name, known in (("weights", self.data.weights), ("row_q", self.data.row_q)):
            if known is not None:  # nan for a kind of which nothing is known
                of_row = [known[kind][index] if kind in known else np.nan for kind in self.kinds]
                encoded[name] = torch.tensor(of_row, dtype=torch.float32)
        parts = [encoded, encoded["corrupted"]] if "corrupted" in encoded else [encoded]
        size = sum(tensor.nbytes for part in parts for tensor in part["vision"].values())
        if size <= self.room:  # cached for the next epoch
            self.kept[index] = encoded
            self.room -= size
        return encoded


def answers(kinds):
    """The kinds that are texts beside a row's own image: all but mDPO's corrupted one."""
    return tuple(kind for kind in kinds if kind != CORRUPTED)


def collator(kinds, pad_token_id, stack):
    """The function from encoded rows to the inputs of `PreferenceTrainer.compute_loss`.

    stack  makes the batch; of `packing.collation`
    """

    def collate(encoded):
        batch = {
            "batch": stack(encoded, answers(kinds), pad_token_id),
            "flipped": torch.tensor([row["flipped"] for row in encoded]),  # (B,)
            "row_ids": [row["row_id"] for row in encoded],
        }
        for name in ("reference", "tokens", "noise", "weights", "row_q"):
            if name in encoded[0]:
                batch[name] = torch.stack([row[name] for row in encoded])  # (B, K)
        if CORRUPTED in kinds:
            batch["corrupted"] = stack([row["corrupted"] for row in encoded], ("chosen",), pad_token_id)
        return batch

    return collate
