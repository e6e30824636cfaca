"""RLAIF-V's schema from real photographs: names, every bad row named, nothing enormous decoded, round trip."""

import io
import random
import struct
import tracemalloc
import zlib

import numpy as np
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
        12: "image file /nowhere/gone.jpg is missing",
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

    monkeypatch.setattr("napo.engine.preferences.Image.open", broken)
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
