"""mDPO's corrupted image: a small crop of the picture, at most a fifth, blown up to its size (Wang 2024, arXiv
2406.11839).

One crop per row, drawn from the row's id, so that the reference's log-probs of the chosen answer beside it are measured
once. (mDPO draws a new crop in every epoch.)
"""

import zlib

import numpy as np

from napo import logps
from napo.profiles import CORRUPTED

AREA = (0.01, 0.2)  # share of the picture that is kept


def crop(image, rng, area=AREA):
    """A crop of `image` with its own proportions, resized to its size. area  (least, most) share kept."""
    side = np.sqrt(rng.uniform(*area))
    width, height = (max(1, round(side * length)) for length in image.size)
    left, top = (int(rng.integers(0, full - part + 1)) for full, part in zip(image.size, (width, height), strict=True))
    return image.crop((left, top, left + width, top + height)).resize(image.size)


def corrupted(row):
    """The row with the crop that belongs to its id in place of its image."""
    rng = np.random.default_rng(zlib.crc32(str(row["row_id"]).encode()))
    return {**row, "image": crop(row["image"], rng)}


def with_corrupted(reference, model, processor, rows, training):
    """The reference frame of `rows` with columns for the chosen answers beside the corrupted images.

    model  the base, or a peft model on it (its adapter is switched off)
    """
    cropped = [corrupted(row) for row in rows]
    settings = {"reference": True, "packed": training.packed}
    found = logps.measure(
        model, processor, cropped, ("chosen",), training.batch_size, training.max_length, **settings
    ).rename(columns={"logps_chosen": f"logps_{CORRUPTED}", "tokens_chosen": f"tokens_{CORRUPTED}"})
    return reference.merge(found.drop(columns="n_cut"), on="row_id", validate="one_to_one")
