"""Preference rows from the hub, parquet files or the desk world, in one schema; bad rows are found before any work.

In memory the rows are a `datasets.Dataset` that decodes an image when its row is read. Code that needs several rows
takes `[rows[i] for i in range(...)]`, which also works on a list of dicts.
"""

import io
import itertools
from collections.abc import Iterable
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet as pq
from PIL import Image
from pyarrow.dataset import ParquetFragmentScanOptions

from napo.workshop import hub
from napo.workshop.files import BadInput, shown
from napo.workshop.progress import progress

# Upstream names -> ours: of RLAIF-V-Bias, and of the authors' script, which writes three variants of the masked image.
UPSTREAM_COLUMNS = {
    "question_only": "language_biased",
    "question_only_None": "language_biased",
    "question_only_white": "language_biased",
    "question_only_black": "language_biased",
    "image_only": "vision_biased",
}
REQUIRED = ("image", "question", "chosen", "rejected")
TEXTS = ("question", "chosen", "rejected")
BIASED = ("language_biased", "vision_biased")
MAX_PIXELS = 50_000_000  # of one image; a row with a larger one is refused
SHOWN_ROWS = 20
IN_MEMORY = 512 * 2**20  # bytes; smaller parquet files are read into memory, without a copy in the cache of datasets
ROWS_AT_ONCE = 256  # rows in memory while a file is written; also the size of its row groups
STREAMED = ParquetFragmentScanOptions(use_buffered_stream=True, pre_buffer=False)
MANY_ROWS = 2000  # from here on the check of all rows shows its progress

FEATURES = {
    "row_id": datasets.Value("string"),
    "image": datasets.Image(),
    "question": datasets.Value("string"),
    **{kind: datasets.Value("string") for kind in ("chosen", "rejected", *BIASED)},
    "is_noise_language_biased": datasets.Value("bool"),
    "is_noise_vision_biased": datasets.Value("bool"),
}


def load_source(source, rows=0, revision=None, bad_rows="stop"):
    """Validated preference pairs as a Dataset with our column names and a `row_id` (file:row number).

    source    a parquet file, a folder of parquet files, or a hub id, in RLAIF-V's schema
    rows      how many at most, from the start; 0 = all. Of a hub id only the files that hold them are fetched
    bad_rows  "stop": raise BadInput that lists them; "drop": leave them out and print how many
    """
    dataset = _read(source, revision, rows)
    missing = [name for name in REQUIRED if name not in dataset.column_names]
    if missing:
        raise BadInput(f"{source}: no column {', '.join(missing)} (found {', '.join(dataset.column_names)})")
    dataset = dataset.select(range(min(rows, len(dataset)))) if rows else dataset
    dataset = our_columns(dataset).cast_column("image", datasets.Image(decode=False))
    problems = find_bad_rows(dataset)
    if problems and bad_rows != "drop":
        raise BadInput(describe_bad_rows(source, problems))
    if problems:
        print(f"{source}: {len(problems)} of {len(dataset)} rows dropped: {_listed(problems)}")
        dataset = dataset.select([i for i in range(len(dataset)) if i not in problems])
    if not len(dataset):
        raise BadInput(f"{source}: no usable row")
    return dataset.cast_column("image", datasets.Image(mode="RGB"))


def _read(source, revision, rows):
    """The unchecked rows of a file, folder or hub repository, each with a `row_id`."""
    path = Path(source)
    if path.suffix != ".parquet" and not path.exists():
        return from_files(hub.parquet_files(str(source), revision, rows))
    files = local_files(source) if path.is_dir() else [path]
    if not files:
        raise BadInput(f"{shown(path)}: no parquet file in this folder")
    return from_files(files)


def from_files(files):
    """The rows of parquet files, one file after another; mapped if they are too large for memory."""
    mapped = sum(file.stat().st_size for file in files if file.exists()) >= IN_MEMORY
    return datasets.concatenate_datasets([_numbered(_from_file(file, mapped), file.name) for file in files])


def local_files(source):
    """The parquet files of a source on this machine; [] for the desk world and for hub ids."""
    path = Path(source)
    if path.is_dir():
        return sorted(path.glob("*.parquet"))
    return [path] if path.suffix == ".parquet" and path.exists() else []


def _from_file(file, mapped):
    if not file.exists():
        raise BadInput(f"{shown(file)}: no such file")
    try:
        if not mapped:
            return datasets.Dataset(pq.read_table(file))
        few = {"batch_size": ROWS_AT_ONCE, "fragment_scan_options": STREAMED}  # else a whole row group at once
        return datasets.Dataset.from_parquet(str(file), **few)  # mapped from an Arrow copy in datasets' own cache
    except (pyarrow.ArrowException, datasets.exceptions.DatasetGenerationError, OSError, ValueError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise BadInput(f"{shown(file)} is damaged or no parquet file ({reason}): get it again") from error


def _numbered(dataset, file_name):
    """Adds row_id = file:row number, unless the rows have a row_id."""
    if "row_id" in dataset.column_names:
        return dataset
    return dataset.add_column("row_id", [f"{file_name}:{i}" for i in range(len(dataset))])


def our_columns(dataset):
    """Upstream column names to ours; of the three variants of a masked image the first one found counts."""
    for upstream, ours in UPSTREAM_COLUMNS.items():
        if upstream in dataset.column_names and ours not in dataset.column_names:
            dataset = dataset.rename_column(upstream, ours)
    return dataset


def find_bad_rows(dataset):
    """Bad rows of an undecoded Dataset: dict row number -> (row_id, reason)."""
    problems = {}
    for i, row in enumerate(progress(dataset, "rows checked") if len(dataset) >= MANY_ROWS else dataset):
        reason = text_problem(row) or image_problem(row["image"])
        if reason:
            problems[i] = (row["row_id"], reason)
    return problems


def text_problem(row):
    """Why the texts of a row of the source cannot be used; None if they can."""
    for name in TEXTS:
        if not isinstance(row[name], str) or not row[name].strip():
            return f"{name} is empty"
    if row["chosen"].strip() == row["rejected"].strip():
        return "chosen equals rejected"
    return None


def image_problem(image):
    """Why an undecoded image {bytes, path} cannot be used; None if it can. Of one that is too large only the header is
    read."""
    if not image or not (image.get("bytes") or image.get("path")):
        return "no image"
    try:
        with Image.open(io.BytesIO(image["bytes"]) if image.get("bytes") else image["path"]) as opened:
            width, height = opened.size
            if width * height > MAX_PIXELS:
                return f"image of {width} x {height} pixels is over {MAX_PIXELS:,}"
            opened.load()
    except Image.DecompressionBombError:
        return f"image is over {MAX_PIXELS:,} pixels"
    except FileNotFoundError:
        return f"image file {image['path']} is missing"
    except Exception as error:  # on damaged data decoders raise anything, TypeError and zlib.error included
        return f"image is damaged ({(str(error).splitlines() or [type(error).__name__])[0]})"
    return None


def describe_bad_rows(source, problems):
    """One line that lists the bad rows and the remedies."""
    return f"{source}: {len(problems)} bad row(s): {_listed(problems)}: mend them, or leave them out with BAD_ROWS=drop"


def _listed(problems: dict[int, tuple[str, str]]):
    listed = "; ".join(f"row {i} ({row_id}) {reason}" for i, (row_id, reason) in list(problems.items())[:SHOWN_ROWS])
    return listed + (f"; and {len(problems) - SHOWN_ROWS} more" if len(problems) > SHOWN_ROWS else "")


def write(rows: Iterable[dict], path):
    """Writes rows to a parquet file that `datasets` reads back with images; extra columns of text stay as they are.

    Few rows are in memory at a time. An undecoded image {bytes, path} keeps its bytes. A decoded one is stored as PNG,
    because a second JPEG compression would change it. Raises BadInput if there is no row.
    """
    rows, schema, writer = iter(rows), None, None
    try:
        while some := [row | {"image": stored_image(row["image"])} for row in itertools.islice(rows, ROWS_AT_ONCE)]:
            features = schema or _features(some[0])
            table = datasets.Dataset.from_list([{name: row[name] for name in features} for row in some], features).data
            schema, writer = features, writer or pq.ParquetWriter(str(path), features.arrow_schema)
            writer.write_table(table.table.cast(features.arrow_schema))
    finally:
        if writer:
            writer.close()
    if not writer:
        raise BadInput(f"{shown(path)}: no row to write")


def _features(row):
    """The types of a row's columns: ours, and text for any other."""
    known = {name: feature for name, feature in FEATURES.items() if name in row}
    return datasets.Features(known | {name: datasets.Value("string") for name in row if name not in FEATURES})


def stored_image(image):
    """An image in the form that a file stores: the bytes of an undecoded one, a copy of a decoded one."""
    if not isinstance(image, dict):
        return image.copy()  # which does not know its format, so that it is stored as PNG
    return {"bytes": image_bytes(image), "path": image.get("path") and Path(image["path"]).name}


def image_bytes(image):
    """Bytes that identify an image: those of its file if it is undecoded, else its size and pixels."""
    if isinstance(image, dict):
        return image["bytes"] or Path(image["path"]).read_bytes()
    return str(image.size).encode() + image.tobytes()


def image_size(image):
    """(width, height) of an image, undecoded or not."""
    if not isinstance(image, dict):
        return image.size
    with Image.open(io.BytesIO(image_bytes(image))) as opened:
        return opened.size


def undecoded(rows):
    """The same rows with images as {bytes, path}; rows in a list stay as they are."""
    return rows.cast_column("image", datasets.Image(decode=False)) if isinstance(rows, datasets.Dataset) else rows


def column(rows, name):
    """One column of a Dataset or of a list of dicts, as a list; reads no image."""
    return list(rows[name]) if isinstance(rows, datasets.Dataset) else [row[name] for row in rows]


def read(path):
    """Rows of a pairs file of this kit, as a Dataset that decodes images. Raises BadInput if the file is damaged."""
    path = Path(path)
    mapped = path.exists() and path.stat().st_size >= IN_MEMORY
    return _from_file(path, mapped).cast_column("image", datasets.Image(mode="RGB"))


def part(rows, split):
    """The rows of one split ("train" or "heldout"), still undecoded."""
    return rows.select([i for i, name in enumerate(rows["split"]) if name == split])
