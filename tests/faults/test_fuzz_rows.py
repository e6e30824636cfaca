"""Damaged preference files: loaded as they stand, or refused in one line. No file gives a traceback or a hang."""

import io
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mutations import JUNK, Tries, damaged_bytes, damaged_value
from PIL import Image

from napo.engine import preferences
from napo.workshop.files import BadInput

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
TEXTS = ("question", "chosen", "rejected", "question_only", "image_only")


def image(number):
    buffer = io.BytesIO()
    Image.new("RGB", (9 + number, 8), (number, 40, 90)).save(buffer, FORMATS[number % len(FORMATS)])
    return buffer.getvalue()


def good_rows():
    return [
        {"image": {"bytes": image(i), "path": f"{i}.png"}} | {name: f"{name} of row {i}" for name in TEXTS}
        for i in range(4)
    ]


def write(rows, path, rng):
    """A parquet file of whatever rows; False if Arrow has no type for them."""
    compression = rng.choice(("snappy", "none", "zstd", "gzip"))
    try:
        table = pa.Table.from_pylist([row if isinstance(row, dict) else {"row": row} for row in rows])
        pq.write_table(table, path, compression=compression, row_group_size=rng.choice((1, 3, 100)))
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return False
    return True


def bytes_flipped(path, rng):
    write(good_rows(), path, rng)
    path.write_bytes(damaged_bytes(path.read_bytes(), rng))


def values_changed(path, rng):
    rows = good_rows()
    for _ in range(rng.choice((1, 1, 2, 4))):
        changed = damaged_value(rows, rng)
        if isinstance(changed, list) and changed and write(changed, path, rng):
            rows = changed
    write(rows, path, rng)


def column_replaced(path, rng):
    """All values of a column of another type: numbers, lists, structs, binary, dates, nothing."""
    name, junk = rng.choice([*TEXTS, "image"]), rng.choice([*JUNK, b"bytes", b"\xff\xfe", {"bytes": b"", "path": None}])
    rows = [row | {name: junk} for row in good_rows()]
    if not write(rows, path, rng):
        write(good_rows(), path, rng)


def image_damaged(path, rng):
    rows = good_rows()
    row = rng.choice(rows)
    row["image"] = {"bytes": damaged_bytes(row["image"]["bytes"], rng), "path": row["image"]["path"]}
    write(rows, path, rng)


def image_by_path(path, rng):
    """Images that name files: outside, devices, folders, links."""
    names = ["/etc/hostname", "/dev/zero", "/dev/stdin", "..", ".", "../x.png", "~", "x" * 300, "a\x00b", "", "|id"]
    rows = good_rows()
    for row in rng.sample(rows, rng.randint(1, 4)):
        row["image"] = {"bytes": None, "path": rng.choice(names)}
    write(rows, path, rng)


def other_format(path, rng):
    """JSON, JSON Lines, CSV or nothing under the name of a parquet file."""
    rows = [{name: row[name] for name in TEXTS} for row in good_rows()]
    lines = "\n".join(map(json.dumps, rows))
    text = rng.choice((json.dumps(rows), lines, "question,chosen\na,b\n", "", "PAR1", "PAR1PAR1"))
    path.write_bytes(damaged_bytes(text.encode(), rng) if text else b"")


WAYS = (bytes_flipped, values_changed, column_replaced, image_damaged, image_by_path, other_format)


def expected(path):
    """Texts of the file's rows, read as simply as possible."""
    rows = pq.read_table(path).to_pylist()
    return [tuple(row[name] for name in ("question", "chosen", "rejected")) for row in rows]


def attack(way, seeds, folder, count):
    """Every seed is one file; sometimes it lies in a folder beside a good one."""
    tries = Tries(folder)
    for seed in seeds:
        rng = random.Random(f"{way.__name__} {seed}")
        place = folder / f"{way.__name__}-{seed}"
        place.mkdir()
        path = place / "rows.parquet"
        way(path, rng)
        source = path
        if rng.random() < 0.2:
            write(good_rows(), place / "other.parquet", rng)
            source = place
        rows = tries.function(f"{way.__name__} {seed}", lambda source=source: preferences.load_source(str(source)))
        if rows is None:
            continue
        texts = [tuple(row[name] for name in ("question", "chosen", "rejected")) for row in rows]
        if source == path and way is not bytes_flipped:
            tries.note(texts == expected(path), f"{way.__name__} {seed}: other rows than the file's")
        if way is image_by_path:
            tries.faults.append(f"{way.__name__} {seed}: opened a file outside")
        tries.note(all(row["image"].mode == "RGB" for row in rows), f"{way.__name__} {seed}: an image that is not RGB")
    tries.done("rows", count)


@pytest.mark.parametrize("way", WAYS)
def test_some_damaged_rows(way, tmp_path, count):
    attack(way, range(20), tmp_path, count)


@pytest.mark.parametrize("way", WAYS)
def test_many_damaged_rows(everything, way, tmp_path, count):
    attack(way, range(20, 100), tmp_path, count)


def test_undamaged_rows_are_loaded(tmp_path):
    """The attack starts from a file that is accepted."""
    write(good_rows(), tmp_path / "rows.parquet", random.Random(0))
    assert len(preferences.load_source(str(tmp_path / "rows.parquet"))) == 4
    with pytest.raises(BadInput):
        preferences.load_source(str(tmp_path / "none.parquet"))
