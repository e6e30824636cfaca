"""The rows of a training as tensors, each with what is known of it beforehand, and batches of them."""

import numpy as np
import torch
from torch.utils.data import Dataset

from napo import corrupt, packing
from napo.artifacts import BadInput
from napo.profiles import CORRUPTED

KEPT_BYTES = 2**30  # of images as tensors: a small model's rows all fit, of LLaVA-1.5-7B's some 800


class EncodedRows(Dataset):
    """Rows as tensors, each with its reference log-probs; encoded when first asked for and kept while there is room."""

    def __init__(self, rows, processor, kinds, reference, max_length, flipped=None):
        self.rows, self.processor, self.kinds, self.max_length = rows, processor, kinds, max_length
        self.reference = {record["row_id"]: record for record in reference.to_dict("records")}
        self.flipped = np.zeros(len(rows), bool) if flipped is None else flipped
        self.judged = [kind for kind in kinds if len(rows) and rows[0].get(f"is_noise_{kind}") is not None]
        self.kept, self.room = {}, KEPT_BYTES

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        if index in self.kept:
            return self.kept[index]
        row = self.rows[index]
        texts = answers(self.kinds)
        encoded = packing.encode(row, self.processor, texts, self.max_length)
        if CORRUPTED in self.kinds:
            encoded["corrupted"] = packing.encode(corrupt.corrupted(row), self.processor, ("chosen",), self.max_length)
            encoded["responses"][CORRUPTED] = encoded["corrupted"]["responses"]["chosen"]
        known = self.reference.get(row["row_id"])
        if known is None:
            raise BadInput(f"row {row['row_id']} has no reference log-probs: run notebook 02 again")
        encoded["reference"] = torch.tensor([known[f"logps_{kind}"] for kind in self.kinds], dtype=torch.float32)
        encoded["tokens"] = torch.tensor([len(encoded["responses"][kind]) for kind in self.kinds], dtype=torch.float32)
        encoded["noise"] = torch.tensor([bool(row.get(f"is_noise_{kind}")) for kind in self.kinds])
        encoded["flipped"] = bool(self.flipped[index])
        encoded["posterior"] = torch.tensor([known.get(f"posterior_{kind}", 0.0) for kind in self.kinds]).float()
        self.keep(index, encoded)
        return encoded

    def keep(self, index, encoded):
        """Holds a row for the next epoch if its images still fit."""
        parts = (encoded, *([encoded["corrupted"]] if "corrupted" in encoded else []))
        size = sum(tensor.nbytes for part in parts for tensor in part["vision"].values())
        if size <= self.room:
            self.kept[index] = encoded
            self.room -= size


def answers(kinds):
    """Those kinds that are texts of a row beside its own image."""
    return tuple(kind for kind in kinds if kind != CORRUPTED)


def collator(kinds, pad_token_id, stack=packing.collate_packed):
    """Encoded rows -> what `PreferenceTrainer.compute_loss` reads; `stack` makes the batch (`packing.collation`)."""

    def collate(encoded):
        second = [row["corrupted"] for row in encoded] if CORRUPTED in kinds else None
        return ({"corrupted": stack(second, ("chosen",), pad_token_id)} if second else {}) | {
            "batch": stack(encoded, answers(kinds), pad_token_id),
            "reference": torch.stack([row["reference"] for row in encoded]),  # (B, K)
            "tokens": torch.stack([row["tokens"] for row in encoded]),  # (B, K)
            "noise": torch.stack([row["noise"] for row in encoded]),  # (B, K)
            "posterior": torch.stack([row["posterior"] for row in encoded]),  # (B, K)
            "flipped": torch.tensor([row["flipped"] for row in encoded]),  # (B,)
            "row_ids": [row["row_id"] for row in encoded],
        }

    return collate
