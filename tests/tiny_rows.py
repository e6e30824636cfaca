"""Preference rows with random pictures and short answers, for tests."""

import numpy as np
from PIL import Image

TEXTS = {"chosen": "a red cat", "rejected": "dog", "language_biased": "It is brown, I guess.", "vision_biased": "!"}


def photo(seed=0, size=(60, 40)):
    """A picture of noise, size (width, height)."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def make_row(number=0, **changes):
    row = {"row_id": f"file.parquet:{number}", "image": photo(number), "question": f"what is it {number}?"}
    return {**row, **TEXTS, **changes}
