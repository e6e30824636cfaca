"""Preference rows from the hub, parquet files or the desk world, in one schema; bad rows are found before any work.

In memory the rows are a `datasets.Dataset` that decodes an image when its row is read. Code that needs several rows
takes `[rows[i] for i in range(...)]`, which also works on a list of dicts.
"""

import contextlib
import itertools
import os
from collections.abc import Iterable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets.fingerprint import generate_random_fingerprint
from pyarrow.dataset import ParquetFragmentScanOptions

from napo.workshop import hub, pictures
from napo.workshop.files import BadInput, first_line, shown
from napo.workshop.progress import progress
from napo.workshop.texts import printable

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
SHOWN_ROWS = 20
IN_MEMORY = 512 * 2**20  # bytes; smaller rows are read into memory, without a copy in the cache of datasets
UNPACKED = (256 * 2**20, 8)  # bytes that any file may unpack to, and so many times its size on top
ROWS_AT_ONCE = 256  # rows in memory while a file is read or written; also the size of its row groups
STREAMED = ParquetFragmentScanOptions(use_buffered_stream=True, pre_buffer=False)
BUFFERED = {"buffer_size": 2**20, "pre_buffer": False}  # the same for ParquetFile
NO_VALUE = (ValueError, OverflowError, pa.ArrowException)  # of Arrow data in Python: not UTF-8, a date out of range
MANY_ROWS = 2000  # from here on the check of all rows shows its progress
UNREADABLE = (pa.ArrowException, datasets.exceptions.DatasetGenerationError, OSError, ValueError, TypeError, KeyError)

FEATURES = {
    "row_id": datasets.Value("string"),
    "image": datasets.Image(),
    "question": datasets.Value("string"),
    **{kind: datasets.Value("string") for kind in ("chosen", "rejected", *BIASED)},
    "is_noise_language_biased": datasets.Value("bool"),
    "is_noise_vision_biased": datasets.Value("bool"),
}


class Picture(datasets.Image):
    """datasets' feature for images, but decoded by `pictures.rgb`: datasets would try every decoder of Pillow."""

    def decode_example(self, value, token_per_repo_id=None):
        try:
            return pictures.rgb(image_bytes(value))
        except (OSError, ValueError) as error:
            raise BadInput(f"an image can no longer be read: {printable(first_line(error))}") from error


def load_source(source, rows=0, revision=None, bad_rows="stop", unfit=None):
    """Validated preference pairs as a Dataset with our column names and a `row_id` (file:row number).

    source    a parquet file, a folder of parquet files, or a hub id, in RLAIF-V's schema. An image given as a path
              must lie below the folder of these files
    rows      how many at most, from the start; 0 = all. Of a hub id only the files that hold them are fetched
    bad_rows  "stop": raise BadInput that lists them; "drop": leave them out and print how many
    unfit     a further check: function from a decoded row to the reason why it cannot be used, or None
    """
    files = _files(Path(source), revision, rows)
    dataset, places = _joined(files)
    dataset = dataset.select(range(min(rows, len(dataset)))) if rows else dataset
    problems, paths = find_bad_rows(dataset, files[0].parent, unfit)
    listed = "; ".join(f"row {i} ({places[i]}) {reason}" for i, reason in list(problems.items())[:SHOWN_ROWS])
    listed += f"; and {len(problems) - SHOWN_ROWS} more" if len(problems) > SHOWN_ROWS else ""
    if problems and bad_rows != "drop":
        remedy = "mend them, or leave them out with BAD_ROWS=drop"
        raise BadInput(f"{source}: {len(problems)} bad row(s): {listed}: {remedy}")
    if problems:
        print(f"{source}: {len(problems)} of {len(dataset)} rows dropped: {listed}")
    if len(problems) == len(dataset):
        raise BadInput(f"{source}: no usable row")
    dataset = _with_paths(dataset, paths) if paths else dataset
    if problems:
        dataset = dataset.select([i for i in range(len(dataset)) if i not in problems])
    return dataset.cast_column("image", Picture())


def _files(path, revision, rows):
    """The parquet files of a file, folder or hub repository."""
    if path.suffix != ".parquet" and not path.exists():
        return hub.parquet_files(str(path), revision, rows)
    files = local_files(path) if path.is_dir() else [path]
    if not files:
        raise BadInput(f"{shown(path)}: no parquet file in this folder")
    return files


def local_files(source):
    """The parquet files of a source on this machine; [] for the desk world and for hub ids."""
    path = Path(source)
    if path.is_dir():
        return sorted(path.glob("*.parquet"))
    return [path] if path.suffix == ".parquet" and path.exists() else []


def _joined(files):
    """The unchecked rows of files as one undecoded Dataset with `row_id`, and each row's place, "file:number".

    Rows that are too large for memory are mapped. Files without rows are left out. Raises BadInput for unlike files.
    """
    top = os.path.commonpath([file.parent for file in files])
    mapped = sum(map(unpacked_size, files)) >= IN_MEMORY
    parts, places, known = [], [], {}
    for file in files:
        part = _our_columns(_from_file(file, mapped), file)
        if not len(part):
            continue
        _check_alike(part.features, known, file)
        numbered = [printable(f"{os.path.relpath(file, top)}:{i}") for i in range(len(part))]
        parts.append(part if "row_id" in part.column_names else part.add_column("row_id", numbered))
        places += numbered
    if not parts:
        raise BadInput(f"{shown(files[0])}: no usable row")
    return datasets.concatenate_datasets(parts), places


def _check_alike(features, known, file):
    """Raises BadInput if a column of a file has another type than before, or if one of ours is in some files only.

    known  {column: (type, name of the first file that has it)}, which grows; a column of nulls has any type
    """
    missing = [name for name in BIASED if known and (name in known) != (name in features)]
    if missing:
        raise BadInput(f"{shown(file)}: not all files have a column {', '.join(missing)}: give it to all or none")
    for name, found in features.items():
        first, before = known.setdefault(name, (found, file.name))
        if first == datasets.Value("null"):
            known[name] = found, file.name
        elif found not in (first, datasets.Value("null")):
            kinds = f"{_short(found)}, in {before} {_short(first)}"
            raise BadInput(f"{shown(file)}: column {_short(name)} is {kinds}: give all files the same types")


def unpacked_size(file):
    """Bytes of a parquet file's rows in memory. Raises BadInput once they are far more than the file's (`UNPACKED`).

    So few rows are unpacked at a time that they fit the limit, even if each uses the largest value of a dictionary.
    """
    with _readable(file):
        limit = UNPACKED[0] + UNPACKED[1] * file.stat().st_size
        with pq.ParquetFile(file, **BUFFERED) as opened:
            check_columns(opened.schema_arrow, file)
            pages, values = _claimed(opened.metadata)
            size = max(pages, 8 * values)
            if size <= limit:
                few = min(ROWS_AT_ONCE, limit // max(pages, 1))
                size = 0
                for batch in opened.iter_batches(few, columns=_wanted(opened), use_threads=False):
                    size += batch.nbytes
                    if size > limit:
                        break
    if size > limit:
        raise BadInput(f"{shown(file)}: its {file.stat().st_size:,} bytes unpack to over {limit:,}: not read")
    return size


def _claimed(metadata):
    """(bytes of a file's pages, number of its values), as the file says."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
    return sum(chunk.total_uncompressed_size for chunk in chunks), sum(chunk.num_values for chunk in chunks)


def _wanted(opened):
    """The columns of a ParquetFile to read: all but lists of texts, which nothing here uses."""
    leaves = [opened.schema.column(i) for i in range(len(opened.schema))]
    lists = {leaf.path.split(".")[0] for leaf in leaves if leaf.max_repetition_level and leaf.physical_type[-1] == "Y"}
    return [name for name in opened.schema_arrow.names if name not in lists]


@contextlib.contextmanager
def _readable(file):
    """Context that reads a parquet file. Raises BadInput if that fails, or if it is no plain file."""
    if not file.is_file():
        raise BadInput(f"{shown(file)}: {'no plain file' if file.exists() else 'no such file'}")
    try:
        yield
    except UNREADABLE as error:
        reason = printable(first_line(error.__cause__ or error))[:200]
        raise BadInput(f"{shown(file)} is damaged or no parquet file ({reason}): get it again") from error


def _from_file(file, mapped):
    """A file's rows, undecoded whatever features it names for itself."""
    with _readable(file), pq.ParquetFile(file, **BUFFERED) as opened:
        columns = _wanted(opened)
        if mapped:  # from an Arrow copy in datasets' own cache; few rows at a time, else a whole row group
            schema = pa.schema([opened.schema_arrow.field(name) for name in columns])
            how = {"columns": columns, "features": datasets.Features.from_arrow_schema(schema)}
            how |= {"batch_size": ROWS_AT_ONCE, "fragment_scan_options": STREAMED}
            return datasets.Dataset.from_parquet(str(file), **how)
        batches = list(opened.iter_batches(ROWS_AT_ONCE, columns=columns, use_threads=False))
        table = pa.Table.from_batches(batches) if batches else opened.schema_arrow.empty_table().select(columns)
        return _dataset(table)


def _dataset(table):
    """A table as a Dataset. With a random fingerprint: datasets would hash a copy of the whole table."""
    return datasets.Dataset(table.replace_schema_metadata(None), fingerprint=generate_random_fingerprint())


def check_columns(schema, file):
    """Raises BadInput if columns of preference pairs are missing, twice there, or hold something else."""
    ours = [UPSTREAM_COLUMNS.get(name, name) for name in schema.names]
    missing = [name for name in REQUIRED if name not in ours]
    if missing:
        found = printable(", ".join(schema.names))[:200]
        raise BadInput(f"{shown(file)}: no column {', '.join(missing)} (found {found})")
    if len(set(schema.names)) < len(schema.names):
        raise BadInput(f"{shown(file)}: two columns have the same name: give each its own")
    fields = [field for field, name in zip(schema, ours, strict=True) if name in FEATURES and not _fits(field, name)]
    if fields:
        wrong = "; ".join(f"{field.name} holds {_short(field.type)}" for field in fields)
        raise BadInput(f"{shown(file)}: {wrong}: give texts as strings, an image as its bytes or path")


def _fits(field, name):
    """Whether an Arrow field can be our column `name`."""
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if pa.types.is_null(kind) or name == "row_id" and pa.types.is_integer(kind):
        return True
    if name != "image":
        return pa.types.is_boolean(kind) if name.startswith("is_noise") else text
    while pa.types.is_list(kind):  # pixels
        kind = kind.value_type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            return True
    return kind == field.type and (
        text or pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    )


def _our_columns(dataset, file):
    """Rows under our column names, images undecoded; of three variants of a masked image the first one found counts."""
    for upstream, ours in UPSTREAM_COLUMNS.items():
        if upstream in dataset.column_names and ours not in dataset.column_names:
            dataset = dataset.rename_column(upstream, ours)
    with _readable(file):
        return dataset.cast_column("image", datasets.Image(decode=False))


def _short(kind):
    return printable(kind)[:60]


def find_bad_rows(dataset, folder, unfit=None):
    """Bad rows of an undecoded Dataset, {row number: reason}, and {row number: file} of images that are given as paths.

    folder, unfit  of `load_source`. Of rows with one row_id the first is good.
    """
    problems, paths, first = {}, {}, {}
    numbers = range(len(dataset))
    numbers = progress(numbers, "rows checked") if len(dataset) >= MANY_ROWS else numbers
    for i, row in zip(numbers, _values(dataset), strict=True):
        try:
            if isinstance(row, pictures.Unusable):
                raise row
            if not (reason := text_problem(row)):
                row["image"], file = _decoded(row["image"], folder)
                paths |= {i: str(file)} if file else {}
                reason = unfit and unfit(row)
        except pictures.Unusable as error:
            reason = str(error)
        if not reason and first.setdefault(row["row_id"], i) != i:
            reason = f"row_id is that of row {first[row['row_id']]} too"
        if reason:
            problems[i] = printable(reason)[:200]
    return problems, paths


def _values(dataset):
    """Every row of an undecoded Dataset as Python values, or the pictures.Unusable that names a column without any."""
    arrow = dataset.with_format("arrow")
    for start in range(0, len(dataset), ROWS_AT_ONCE):
        table = arrow[start : start + ROWS_AT_ONCE]
        try:
            yield from table.to_pylist()
        except NO_VALUE:
            yield from (_value(table.slice(i, 1)) for i in range(len(table)))


def _value(table):
    row = {}
    for name in table.column_names:
        try:
            (row[name],) = table[name].to_pylist()
        except NO_VALUE as error:
            why = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else f"is damaged ({first_line(error)})"
            return pictures.Unusable(f"{name} {why}")
    return row


def text_problem(row):
    """Why the texts of a row of the source cannot be used; None if they can."""
    for name in (*TEXTS, "row_id"):
        if row[name] is None or not str(row[name]).strip():
            return f"{name} is empty"
    if row["chosen"].strip() == row["rejected"].strip():
        return "chosen equals rejected"
    return None


def image_problem(image, folder=None):
    """Why an undecoded image {bytes, path} cannot be used; None if it can. Of one that is too large only the header is
    read."""
    try:
        _decoded(image, folder)
    except pictures.Unusable as error:
        return str(error)
    return None


def _decoded(image, folder):
    """(An image decoded, its file if it has no bytes). Raises pictures.Unusable."""
    if not image or not (image["bytes"] or image["path"]):
        raise pictures.Unusable("no image")
    file = None if image["bytes"] else pictures.inside(image["path"], folder)
    try:
        return pictures.rgb(image["bytes"] or file), file
    except pictures.Unusable:
        raise
    except Exception as error:  # on damaged data decoders raise anything, TypeError and zlib.error included
        raise pictures.Unusable(f"image is damaged ({first_line(error)})") from error


def _with_paths(dataset, paths):
    """The rows with images at these paths; those in bytes stay."""
    chunks, start, column = [], 0, dataset.data.table["image"]
    for chunk in column.chunks:
        files = pa.array([paths.get(i) for i in range(start, start + len(chunk))], pa.string())
        chunks.append(pa.StructArray.from_arrays([chunk.field("bytes"), files], ["bytes", "path"]))
        start += len(chunk)
    place = dataset.column_names.index("image")
    table = dataset.data.table.set_column(place, "image", pa.chunked_array(chunks))
    return _dataset(table)


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
    return {"bytes": image_bytes(image), "path": None}  # with a path of that name here datasets would drop the bytes


def image_bytes(image):
    """Bytes that identify an image: those of its file if it is undecoded, else its size and pixels."""
    if isinstance(image, dict):
        return image["bytes"] or Path(image["path"]).read_bytes()
    return str(image.size).encode() + image.tobytes()


def image_size(image):
    """(width, height) of an image, undecoded or not."""
    if not isinstance(image, dict):
        return image.size
    with pictures.opened(image_bytes(image)) as opened:
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
    rows = _from_file(path, path.exists() and path.stat().st_size >= IN_MEMORY).cast_column("image", Picture())
    if pc.struct_field(rows.data.table["image"], "bytes").null_count:  # a path would be followed
        raise BadInput(f"{shown(path)}: an image has no bytes: delete the file and run notebook 01 again")
    return rows


def part(rows, split):
    """The rows of one split ("train" or "heldout"), still undecoded."""
    return rows.select([i for i, name in enumerate(rows["split"]) if name == split])
