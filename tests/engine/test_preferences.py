"""RLAIF-V's schema from real photographs: names, every bad row named, nothing enormous decoded, round trip."""

import io
import os
import random
import struct
import tracemalloc
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from photographs import jpeg, photograph, upstream_record, write_upstream
from PIL import Image

from napo.engine import preferences
from napo.workshop.files import BadInput


@pytest.fixture(autouse=True)
def small_photographs(monkeypatch):
    """The same photographs at 64 pixels, for speed."""
    monkeypatch.setattr("photographs.photograph", lambda name: photograph(name).resize((64, 48)))


def png_with_header_only(width, height):
    """A PNG whose header promises width x height pixels, with next to no data behind it."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def refusal(*arguments, **settings):
    """The one line that load_source refuses with."""
    with pytest.raises(BadInput) as bad:
        preferences.load_source(*arguments, **settings)
    assert "\n" not in str(bad.value)
    return str(bad.value)


def test_upstream_file_loads_as_it_is(tmp_path):
    path = write_upstream(tmp_path / "rlaif.parquet", 6)
    rows = preferences.load_source(path)
    assert len(rows) == 6 and [row["row_id"] for row in rows] == [f"rlaif.parquet:{i}" for i in range(6)]
    for i, row in enumerate(rows):
        record = upstream_record(i)
        assert {name: row[name] for name in preferences.TEXTS} == {name: record[name] for name in preferences.TEXTS}
        assert row["image"].mode == "RGB"
        stored = Image.open(io.BytesIO(record["image"]["bytes"])).convert("RGB")
        assert np.array_equal(np.asarray(row["image"]), np.asarray(stored))


def test_photographs_are_real():
    """Not blank, not each other: what the shipped sample images must be for the tests that use them."""
    arrays = [np.asarray(photograph(name), float) for name in ("astronaut", "coffee", "chelsea")]
    assert all(a.std() > 20 and a.size > 200_000 for a in arrays) and len({a.shape for a in arrays}) == 3


@pytest.mark.parametrize(
    "variant", ["question_only", "question_only_None", "question_only_white", "question_only_black"]
)
def test_every_upstream_name_of_a_biased_column(tmp_path, variant):
    path = write_upstream(
        tmp_path / "a.parquet", 3, **{variant: lambda i: f"prior {i}", "image_only": lambda i: f"details {i}"}
    )
    rows = preferences.load_source(path)
    assert list(rows["language_biased"]) == ["prior 0", "prior 1", "prior 2"]
    assert list(rows["vision_biased"]) == ["details 0", "details 1", "details 2"]
    assert variant not in rows.column_names and "image_only" not in rows.column_names


def test_of_three_variants_the_one_without_an_image_is_taken(tmp_path):
    names = ("question_only_black", "question_only_white", "question_only_None")
    rows = preferences.load_source(write_upstream(tmp_path / "a.parquet", 1, **{n: lambda i, n=n: n for n in names}))
    assert rows[0]["language_biased"] == "question_only_None"
    assert {"question_only_white", "question_only_black"} <= set(rows.column_names)


def test_every_bad_row_is_listed_with_file_number_and_reason(tmp_path):
    good = jpeg(photograph("coffee").resize((64, 48)))
    images = {
        1: None,
        2: {"bytes": None, "path": None},
        3: {"bytes": b"", "path": None},
        4: {"bytes": good[:300], "path": "x.jpg"},
        5: {"bytes": b"not an image at all", "path": None},
        6: {"bytes": png_with_header_only(20_000, 20_000), "path": None},
        12: {"bytes": None, "path": "/nowhere/gone.jpg"},
    }
    path = write_upstream(
        tmp_path / "bad.parquet",
        14,
        image=lambda i: images[i] if i in images else {"bytes": good, "path": None},
        question=lambda i: "" if i == 7 else "what?",
        chosen=lambda i: {8: " \n", 9: None, 10: "the same"}.get(i, "a cat"),
        rejected=lambda i: {10: " the same ", 11: ""}.get(i, "a dog"),
    )
    line = refusal(path)
    assert "bad.parquet: 12 bad row(s)" in line and "BAD_ROWS=drop" in line
    expected = {
        1: "no image",
        2: "no image",
        3: "no image",
        4: "image is damaged",
        5: "image is damaged",
        6: "image",
        7: "question is empty",
        8: "chosen is empty",
        9: "chosen is empty",
        10: "chosen equals rejected",
        11: "rejected is empty",
        12: "image file /nowhere/gone.jpg lies outside the folder of the data file",
    }
    for number, reason in expected.items():
        assert f"row {number} (bad.parquet:{number}) {reason}" in line
    assert "bad.parquet:0)" not in line and "bad.parquet:13)" not in line


def test_bad_rows_can_be_dropped_with_a_count(tmp_path, capsys):
    path = write_upstream(tmp_path / "some.parquet", 5, chosen=lambda i: "" if i in (1, 4) else "a cat")
    rows = preferences.load_source(path, bad_rows="drop")
    assert list(rows["row_id"]) == ["some.parquet:0", "some.parquet:2", "some.parquet:3"]
    said = capsys.readouterr().out
    assert "2 of 5 rows dropped" in said and "some.parquet:1" in said and "some.parquet:4" in said


def test_a_file_of_bad_rows_only_is_refused_even_when_dropping(tmp_path):
    assert "no usable row" in refusal(write_upstream(tmp_path / "a.parquet", 2, question=lambda i: ""), bad_rows="drop")


def test_very_many_bad_rows_stay_one_line(tmp_path):
    line = refusal(write_upstream(tmp_path / "a.parquet", 60, chosen=lambda i: ""))
    assert "60 bad row(s)" in line and "more" in line and len(line) < 3000


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (9_000, 6_000), (60_000, 60_000)])
def test_an_enormous_image_is_refused_by_its_header_without_being_decoded(width, height):
    image = {"bytes": png_with_header_only(width, height), "path": None}
    preferences.image_problem(image)  # imports of the first call
    tracemalloc.start()
    reason = preferences.image_problem(image)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "50,000,000" in reason and peak < 1_000_000


def test_an_image_just_within_the_limit_is_judged_by_its_content():
    assert "damaged" in preferences.image_problem({"bytes": png_with_header_only(7_000, 7_000), "path": None})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
def test_no_damage_to_an_image_raises(kind):
    """Cut short or with bytes changed, in every common format: a reason or None, never an exception."""
    buffer = io.BytesIO()
    photograph("chelsea").resize((40, 30)).save(buffer, format=kind)
    whole, rng, reasons = buffer.getvalue(), random.Random(0), 0
    assert preferences.image_problem({"bytes": whole, "path": None}) is None
    for _ in range(150):
        damaged = bytearray(whole[: rng.randrange(1, len(whole))] if rng.random() < 0.3 else whole)
        for _ in range(rng.randrange(1, 12)):
            damaged[rng.randrange(min(len(damaged), 400))] = rng.randrange(256)
        reasons += preferences.image_problem({"bytes": bytes(damaged), "path": None}) is not None
    assert reasons > 30


@pytest.mark.parametrize("error", [TypeError("'float' object"), zlib.error(), EOFError(), struct.error("x")])
def test_whatever_a_decoder_raises_is_damage(monkeypatch, error):
    """Seen in 2 of 2500 damaged TIFFs: a TypeError; and some errors have no text at all."""

    def broken(_):
        raise error

    monkeypatch.setattr("napo.workshop.pictures.Image.open", broken)
    assert "image is damaged" in preferences.image_problem({"bytes": b"x", "path": None})


def test_missing_truncated_and_foreign_files(tmp_path):
    assert "gone.parquet: no such file" in refusal(tmp_path / "gone.parquet")
    whole = write_upstream(tmp_path / "whole.parquet", 3).read_bytes()
    for name, content in {"cut": whole[: len(whole) // 2], "text": b"hello", "empty": b""}.items():
        (tmp_path / f"{name}.parquet").write_bytes(content)
        line = refusal(tmp_path / f"{name}.parquet")
        assert f"{name}.parquet is damaged or no parquet file" in line and "get it again" in line


def test_missing_column_is_named_with_what_was_found(tmp_path):
    path = write_upstream(tmp_path / "a.parquet", 2)
    pq.write_table(pq.read_table(path).drop_columns(["chosen", "image"]), path)
    line = refusal(path)
    assert "a.parquet: no column image, chosen" in line and "rejected" in line


def test_a_folder_is_read_file_by_file_in_order(tmp_path):
    write_upstream(tmp_path / "b.parquet", 2)
    write_upstream(tmp_path / "a.parquet", 1)
    assert list(preferences.load_source(tmp_path)["row_id"]) == ["a.parquet:0", "b.parquet:0", "b.parquet:1"]
    (tmp_path / "nothing").mkdir()
    assert "no parquet file in this folder" in refusal(tmp_path / "nothing")


def test_rows_bounds_what_is_read_and_what_is_judged(tmp_path):
    path = write_upstream(tmp_path / "a.parquet", 5, chosen=lambda i: "" if i == 4 else "a cat")
    assert len(preferences.load_source(path, rows=3)) == 3
    assert "row 4" in refusal(path, rows=5)
    assert "row 4" in refusal(path, rows=100)


def test_unknown_hub_id_without_network_is_one_line():
    assert "nobody/no-such-data" in refusal("nobody/no-such-data")


def our_rows(n=4):
    rng = np.random.default_rng(0)
    return [
        {
            "row_id": f"r{i}",
            "image": Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)),
            "question": f'ä "quoted"\nquestion {i}',
            "chosen": "猫",
            "rejected": "dog",
            "language_biased": "x",
            "vision_biased": "y",
            "is_noise_language_biased": (True, False, None, True)[i % 4],
            "is_noise_vision_biased": None,
            "question_kind": "colour",
            "split": "train" if i else "heldout",
        }
        for i in range(n)
    ]


def test_round_trip_keeps_texts_images_and_unknown_truth(tmp_path):
    rows = our_rows()
    preferences.write(rows, tmp_path / "pairs.parquet")
    back = preferences.read(tmp_path / "pairs.parquet")
    assert len(back) == len(rows) and set(back.column_names) == set(rows[0])
    for row, again in zip(rows, back, strict=True):
        assert np.array_equal(np.asarray(row.pop("image")), np.asarray(again.pop("image")))
        assert row == again


def test_round_trip_of_a_photograph_that_came_as_jpeg_loses_nothing(tmp_path):
    rows = [dict(row) for row in preferences.load_source(write_upstream(tmp_path / "a.parquet", 2))]
    preferences.write(rows, tmp_path / "pairs.parquet")
    for row, again in zip(rows, preferences.read(tmp_path / "pairs.parquet"), strict=True):
        assert np.array_equal(np.asarray(row["image"]), np.asarray(again["image"]))
        assert (again["origin_dataset"], again["idx"]) == (row["origin_dataset"], row["idx"])


def test_file_holds_its_images_even_if_they_came_from_paths(tmp_path):
    photograph("coffee").resize((32, 24)).save(tmp_path / "photo.png")
    path = write_upstream(
        tmp_path / "a.parquet", 1, image=lambda i: {"bytes": None, "path": str(tmp_path / "photo.png")}
    )
    rows = [dict(row) for row in preferences.load_source(path)]
    preferences.write(rows, tmp_path / "pairs.parquet")
    (tmp_path / "photo.png").unlink()
    assert preferences.read(tmp_path / "pairs.parquet")[0]["image"].size == (32, 24)


def test_same_rows_give_the_same_bytes(tmp_path):
    for name in "ab":
        preferences.write(our_rows(), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_written_again_is_read_again(tmp_path):
    """Libraries cache by path: an old copy must never stand in for new content."""
    path = tmp_path / "pairs.parquet"
    for chosen in ("first", "other"):
        preferences.write([row | {"chosen": chosen} for row in our_rows()], path)
        assert set(preferences.read(path)["chosen"]) == {chosen}


def test_parts_are_told_by_their_split(tmp_path):
    preferences.write(our_rows(), tmp_path / "pairs.parquet")
    rows = preferences.read(tmp_path / "pairs.parquet")
    assert list(preferences.part(rows, "heldout")["row_id"]) == ["r0"]
    assert list(preferences.part(rows, "train")["row_id"]) == ["r1", "r2", "r3"]


def test_mapped_files_give_the_same_rows_as_those_in_memory(tmp_path, monkeypatch):
    """Above IN_MEMORY a file is mapped from datasets' own Arrow copy; together too large, small files are as well."""
    monkeypatch.setattr(preferences.datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "rows").mkdir()
    for name in "ab":
        write_upstream(tmp_path / "rows" / f"{name}.parquet", 4, question=lambda i, name=name: f"{name} {i}?")
    whole = preferences.load_source(tmp_path / "rows")
    assert not whole.cache_files
    one = max(file.stat().st_size for file in (tmp_path / "rows").iterdir())
    monkeypatch.setattr(preferences, "IN_MEMORY", one + 1)
    mapped = preferences.load_source(tmp_path / "rows")
    assert len(mapped.cache_files) == 2 and len(mapped) == len(whole) == 8
    for row, again in zip(whole, mapped, strict=True):
        assert np.array_equal(np.asarray(row.pop("image")), np.asarray(again.pop("image"))) and row == again


def test_rows_are_written_a_few_at_a_time_whatever_their_number(tmp_path, monkeypatch):
    monkeypatch.setattr(preferences, "ROWS_AT_ONCE", 3)
    held, alive = [], []

    def rows():
        for row in our_rows(8):
            alive.append(row["row_id"])
            held.append(len(alive))
            yield row

    real = preferences.datasets.Dataset.from_list

    def from_list(some, features):
        alive.clear()
        return real(some, features)

    monkeypatch.setattr(preferences.datasets.Dataset, "from_list", from_list)
    preferences.write(rows(), tmp_path / "pairs.parquet")
    assert max(held) == 3 and pq.ParquetFile(tmp_path / "pairs.parquet").num_row_groups == 3
    assert [row["row_id"] for row in preferences.read(tmp_path / "pairs.parquet")] == [f"r{i}" for i in range(8)]


def test_an_undecoded_image_keeps_its_own_bytes(tmp_path):
    source = write_upstream(tmp_path / "a.parquet", 2)
    preferences.write(preferences.undecoded(preferences.load_source(source)), tmp_path / "pairs.parquet")
    stored = pq.read_table(tmp_path / "pairs.parquet")["image"].to_pylist()
    assert [image["bytes"] for image in stored] == [upstream_record(i)["image"]["bytes"] for i in range(2)]


def test_writing_no_row_is_refused(tmp_path):
    with pytest.raises(BadInput, match="no row to write"):
        preferences.write([], tmp_path / "pairs.parquet")


def path_image(path):
    return lambda i: {"bytes": None, "path": str(path)}


def test_an_image_path_is_read_from_the_data_folder_only(tmp_path):
    """Not above it, not through links, and no pipe, device or folder: one of these would hang for ever."""
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    for place in (tmp_path / "secret.png", folder / "sub" / "own.png"):
        photograph("coffee").resize((8, 6)).save(place)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "loop.png").symlink_to("loop.png")
    os.mkfifo(folder / "pipe.png")
    reasons = {
        "../secret.png": "lies outside",
        str(tmp_path / "secret.png"): "lies outside",
        "link.png": "lies outside",
        "device.png": "lies outside",
        "pipe.png": "is no plain file",
        "sub": "is no plain file",
        "gone.png": "is missing",
        "https://host/x.png": "is missing",
        "x" * 5000: "cannot be read",
        "loop.png": "",
    }
    names = [*reasons, "sub/own.png"]
    line = refusal(write_upstream(folder / "a.parquet", len(names), image=lambda i: {"bytes": None, "path": names[i]}))
    assert f"{len(reasons)} bad row(s)" in line
    for i, (name, reason) in enumerate(reasons.items()):
        assert f"row {i} (a.parquet:{i}) image file {name[:80]}" in line and reason in line
    rows = preferences.load_source(write_upstream(folder / "b.parquet", 1, image=path_image("sub/own.png")))
    assert rows[0]["image"].size == (8, 6) and rows[0]["image"].mode == "RGB"


def test_no_other_decoder_than_the_six_is_opened(tmp_path, monkeypatch):
    """EPS would start Ghostscript, from the file or by a feature that the file names for a column of its own."""
    buffer = io.BytesIO()
    photograph("coffee").resize((8, 6)).save(buffer, format="EPS")
    assert "image is damaged" in preferences.image_problem({"bytes": buffer.getvalue(), "path": None})
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *a, **k: pytest.fail("Ghostscript was started"))
    rows = [row | {"other": {"bytes": buffer.getvalue(), "path": None}} for row in our_rows(2)]
    features = preferences.datasets.Features(preferences._features(rows[0]) | {"other": preferences.datasets.Image()})
    preferences.datasets.Dataset.from_list(rows, features).to_parquet(tmp_path / "a.parquet")
    assert preferences.load_source(tmp_path / "a.parquet")[0]["image"].size == (30, 20)


def test_a_pairs_file_whose_image_is_only_a_path_is_refused(tmp_path):
    with pytest.raises(BadInput, match="an image has no bytes"):
        preferences.read(write_upstream(tmp_path / "pairs.parquet", 1, image=path_image("/etc/passwd")))


def test_a_stored_image_keeps_its_bytes_though_a_file_of_its_name_lies_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = preferences.undecoded(preferences.load_source(write_upstream(tmp_path / "a.parquet", 1)))
    (tmp_path / "astronaut.jpg").write_bytes(b"another")
    preferences.write(rows, tmp_path / "pairs.parquet")
    assert preferences.read(tmp_path / "pairs.parquet")[0]["image"].size == (64, 48)


@pytest.mark.parametrize("n", [300, 100_000])
def test_a_small_file_that_unpacks_to_gigabytes_is_refused_early(tmp_path, n, monkeypatch):
    """One dictionary value of 10 MB in 300 rows; very many rows of one byte, here with a lower limit."""
    if n > 300:
        monkeypatch.setattr(preferences, "UNPACKED", (2**20, 8))
    value = pa.array([b"x" * (10_000_000 if n == 300 else 1)])
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), value)
    texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array(["a"]))
    table = pa.table({"image": column, "question": texts, "chosen": texts, "rejected": texts})
    with pq.ParquetWriter(tmp_path / "a.parquet", table.schema, compression="zstd", store_schema=False) as writer:
        writer.write_table(table)
    assert (tmp_path / "a.parquet").stat().st_size < 30_000
    assert "unpack to over" in refusal(tmp_path / "a.parquet")
    assert pa.default_memory_pool().max_memory() < 800_000_000


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("question", 3, "question holds int64"),
        ("chosen", b"a cat", "chosen holds binary"),
        ("rejected", ["a", "b"], "rejected holds list<"),
        ("question_only", 3, "question_only holds int64"),
        ("image_only", {"a": "b"}, "image_only holds struct<"),
        ("is_noise_vision_biased", "False", "is_noise_vision_biased holds string"),
        ("row_id", 0.5, "row_id holds double"),
        ("image", 3, "image holds int64"),
        ("image", [{"bytes": b"x", "path": None}], "image holds list<"),
        ("image", ["x"], "image holds list<"),
    ],
)
def test_a_column_of_another_type_is_named_with_its_type(tmp_path, column, value, told):
    line = refusal(write_upstream(tmp_path / "a.parquet", 2, **{column: lambda i: value}))
    assert f"a.parquet: {told}" in line and len(line.replace(str(tmp_path), "")) < 300


def test_columns_of_nulls_are_empty_rows_and_not_a_traceback(tmp_path):
    assert "row 1 (a.parquet:1) chosen is empty" in refusal(
        write_upstream(tmp_path / "a.parquet", 2, chosen=lambda i: None)
    )
    assert "row 0 (a.parquet:0) no image" in refusal(write_upstream(tmp_path / "a.parquet", 2, image=lambda i: None))


@pytest.mark.parametrize("column", ["question", "origin_dataset", "row_id"])
def test_a_text_that_is_not_utf8_is_a_bad_row(tmp_path, column, capsys):
    path = write_upstream(tmp_path / "a.parquet", 3, row_id=str)
    table = pq.read_table(path)
    bad = pa.array([b"a", b"\xff\xfe", b"c"]).view(pa.string())
    pq.write_table(table.set_column(table.column_names.index(column), column, bad), path)
    assert f"1 bad row(s): row 1 (a.parquet:1) {column} is not UTF-8" in refusal(path)
    assert len(preferences.load_source(path, bad_rows="drop")) == 2


def test_the_later_of_rows_with_one_row_id_is_bad(tmp_path, capsys):
    (tmp_path / "rows").mkdir()
    write_upstream(tmp_path / "rows" / "a.parquet", 3, row_id=lambda i: f"r{i}")
    write_upstream(tmp_path / "rows" / "b.parquet", 2, row_id=lambda i: f"r{2 * i}")
    line = refusal(tmp_path / "rows")
    assert "2 bad row(s): row 3 (b.parquet:0) row_id is that of row 0 too; row 4 (b.parquet:1) row_id is" in line
    rows = preferences.load_source(tmp_path / "rows", bad_rows="drop")
    assert list(rows["row_id"]) == ["r0", "r1", "r2"] and rows[2]["image"].size == (64, 48)


def test_files_of_unlike_schemas_are_refused_and_empty_ones_left_out(tmp_path):
    write_upstream(tmp_path / "a.parquet", 2)
    table = pq.read_table(tmp_path / "a.parquet")
    pq.write_table(table.slice(0, 0), tmp_path / "b.parquet")
    write_upstream(tmp_path / "c.parquet", 1, idx=lambda i: None)
    assert len(preferences.load_source(tmp_path)) == 3
    write_upstream(tmp_path / "d.parquet", 1, idx=int)
    assert "d.parquet: column idx is " in refusal(tmp_path) and "in a.parquet" in refusal(tmp_path)
    write_upstream(tmp_path / "d.parquet", 1, image_only=str)
    assert "d.parquet: not all files have a column vision_biased" in refusal(tmp_path)
    assert "no usable row" in refusal(tmp_path / "b.parquet")


def test_a_pipe_or_device_as_data_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.parquet")
    assert "a.parquet: no plain file" in refusal(tmp_path / "a.parquet")


def test_terminal_codes_in_a_name_are_shown_not_obeyed(tmp_path):
    line = refusal(write_upstream(tmp_path / "a.parquet", 1, image=path_image("\x1b[2J\u202egone.png")))
    assert "\\x1b[2J\\u202egone.png is missing" in line and "\x1b" not in line
