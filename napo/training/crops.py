"""mDPO's corrupted image: a crop of at most a fifth of the picture, enlarged to its size (Wang 2024, arXiv 2406.11839).

Each row has one crop, drawn from the row's id, so that its reference log-probs are measured once. (mDPO draws a new
crop in every epoch.)
"""

import zlib

import numpy as np

AREA = (0.01, 0.2)  # share of the picture that is kept


def crop(image, rng, area=AREA):
    """A crop of `image` in its own proportions, resized to its size. area  (least, most) share that is kept"""
    side = np.sqrt(rng.uniform(*area))
    width, height = (max(1, round(side * length)) for length in image.size)
    left, top = (int(rng.integers(0, full - part + 1)) for full, part in zip(image.size, (width, height), strict=True))
    return image.crop((left, top, left + width, top + height)).resize(image.size)


def corrupted(row):
    """The row with its crop in place of its image."""
    rng = np.random.default_rng(zlib.crc32(str(row["row_id"]).encode()))
    return {**row, "image": crop(row["image"], rng)}
