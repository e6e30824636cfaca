import pytest

from napo.official import records
from napo.official.records import read_predictions
from napo.workshop.files import BadInput


def test_lists_and_lines_read_alike(write):
    rows = [{"id": 1, "response": "a\u2028b"}, {"id": 2, "response": "\u00e9 \n"}]
    assert read_predictions(write("a.json", rows)) == read_predictions(write("a.jsonl", rows)) == rows
    assert read_predictions(write("b.jsonl", '{"id": 1}\r\n\n{"id": 2}\n')) == [{"id": 1}, {"id": 2}]
    assert read_predictions(write("c.json", '\ufeff[{"id": 1}]')) == [{"id": 1}]


def test_chunks_come_in_the_order_of_their_numbers(write):
    """Sorted as strings, 12_10 would stand before 12_2."""
    for i in range(12):
        folder = write(f"chunks/12_{i}.jsonl", [{"id": i}]).parent
    write("chunks/notes.txt", "no chunk")
    assert [row["id"] for row in read_predictions(folder)] == list(range(12))


def test_records_remember_where_they_stood(write):
    found = read_predictions(write("a.jsonl", '{"id": 1}\n\n{"id": 2}\n'))
    assert str(records.fault(found, 1, "odd")).endswith("a.jsonl, line 3: odd")
    assert str(records.fault([{}, {}], 1, "odd")) == "record 1: odd"


def test_other_files_of_a_folder_are_named(write):
    write("chunks/a.jsonl", [{"id": 1}])
    folder = write("chunks/hall_a.json", {"sentences": []}).parent
    found = read_predictions(folder)
    assert found == [{"id": 1}] and "hall_a.json is no list of records" in found.notices[0]


@pytest.mark.parametrize(
    "name, text, problem",
    [
        ("a.jsonl", '{"id": 1}\n{"id": ', "a.jsonl, line 2: not a complete JSON record"),
        ("a.json", '[{"id": 1}, {"id"', "a.json is damaged or cut short"),
        ("a.jsonl", "", "holds no records"),
        ("a.json", "[]", "holds no records"),
        ("a.json", "[1]", "record 0: int where a record"),
        ("a.jsonl", '{"id": 1}\n"x"', "line 2: str where a record"),
        ("a.json", "[" * 100000, "damaged"),
        ("missing/a.json", None, "missing "),
    ],
)
def test_damaged_files(write, tmp_path, name, text, problem):
    path = write(name, text) if text is not None else tmp_path / name
    with pytest.raises(BadInput, match=problem):
        read_predictions(path)


def test_not_text(tmp_path):
    (tmp_path / "a.json").write_bytes(b'[{"a": "\xff"}]')
    with pytest.raises(BadInput, match="not UTF-8"):
        read_predictions(tmp_path / "a.json")


def test_empty_folder(tmp_path):
    with pytest.raises(BadInput, match="holds no predictions"):
        read_predictions(tmp_path)


def test_some():
    assert records.some([1, 2]) == "1, 2" and records.some(range(9)) == "0, 1, 2, 3, 4, …"
