"""What the runner notices of files: changes that keep size and date, and damage to a record."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from napo.runner import run, staleness
from napo.runner.staleness import Session
from napo.workshop import artifacts
from napo.workshop.files import BadInput, require


def same_size_and_date(file):
    """Other bytes of the same number, with the modification time put back."""
    stat = file.stat()
    file.write_bytes(bytes(byte ^ 1 for byte in file.read_bytes()))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def another_file_in_its_place(file):
    stat, other = file.stat(), file.with_name("other")
    other.write_bytes(bytes(byte ^ 1 for byte in file.read_bytes()))
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.rename(file)


@pytest.mark.parametrize("change", [same_size_and_date, another_file_in_its_place])
@pytest.mark.parametrize("given", ["data/rows.parquet", "data"])
def test_data_that_keeps_its_size_and_date_is_noticed(tmp_path, change, given):
    (tmp_path / "data").mkdir()
    file = tmp_path / "data/rows.parquet"
    file.write_bytes(b"rows")
    before = staleness.stamps(tmp_path / given), file.stat()
    assert staleness.stamps(tmp_path / given) == before[0]
    change(file)
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before[1].st_size, before[1].st_mtime_ns)
    assert staleness.stamps(tmp_path / given) != before[0]


def test_whatever_a_reader_refuses_makes_the_notebook_stale_that_writes_it(tmp_path):
    """Any one byte of a record: else `make reproduce` would say "up to date" and "run notebook 02 again" for ever."""
    session = Session("desk", root=tmp_path)
    path = session.folder / "base-0/noise.parquet"
    artifacts.build(path, lambda temporary: Path(temporary).write_text("x"), settings={}, stage="noise")
    record = path.with_name("provenance.json")
    before, content, refused = session.matches(["base-0/*.parquet"]), record.read_bytes(), 0
    for place in range(len(content)):
        record.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            require(path, "02")
        except BadInput:
            refused += 1
            assert session.matches(["base-0/*.parquet"]) != before, place
    assert refused > 64  # each digit of the hash, and the name of its field


def test_a_run_removes_what_killed_writers_left_anywhere(tmp_path):
    """Also where nothing is written again: cells of another list of methods, shards of other rows."""
    session = Session("desk", root=tmp_path)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for folder in ("base-0/answers", "cells/gone"):
        (session.folder / folder / f".tmp-{ended.pid}-0123abcd-adapter").mkdir(parents=True)
        (session.folder / folder / f".tmp-{os.getpid()}-0123abcd-adapter").mkdir()
    with run.only_one(session):
        left = [path.name.split("-")[1] for path in session.folder.rglob(".tmp-*")]
    assert left == [str(os.getpid())] * 2
