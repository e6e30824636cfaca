"""Preference rows in RLAIF-V's own schema, from the photographs that come with scikit-image: no network, real
images."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from skimage import data

NAMES = ("astronaut", "coffee", "chelsea", "rocket", "camera", "coins", "page", "moon", "text", "clock")
QUESTIONS = ("What is shown?", "Is there an animal in the picture?", "What colour stands out?", "Describe the picture.")


def photograph(name):
    """One of scikit-image's sample photographs as an RGB image."""
    return Image.fromarray(getattr(data, name)()).convert("RGB")


def jpeg(image):
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return buffer.getvalue()


def upstream_record(i):
    """Record i with the fields of openbmb/RLAIF-V-Dataset, the image as a struct of bytes and path."""
    name = NAMES[i % len(NAMES)]
    return {
        "ds_name": "made-here",
        "image": {"bytes": jpeg(photograph(name)), "path": f"{name}.jpg"},
        "question": QUESTIONS[i % len(QUESTIONS)],
        "chosen": f"The picture shows: {name}.",
        "rejected": f"I think it is a polar bear, number {i}.",
        "origin_dataset": "scikit-image",
        "origin_split": json.dumps({"model": "none"}),
        "idx": f"{i:025d}",
        "image_path": f"{name}.jpg",
    }


def write_upstream(path, n, **changes):
    """A parquet file of n upstream records; changes: column -> function of the row number, added or replaced."""
    records = [upstream_record(i) | {name: make(i) for name, make in changes.items()} for i in range(n)]
    pq.write_table(pa.Table.from_pylist(records), path)
    return path
