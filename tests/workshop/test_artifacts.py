import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from napo.workshop import artifacts, code_hash, environment, files, progress
from napo.workshop.files import BadInput, MissingArtifact, atomic, read_parquet, require, write_json


@pytest.fixture
def package(tmp_path):
    """A throw-away package `demo` of three rooms: a file, a folder and a folder in a folder."""
    folder = tmp_path / "demo"
    (folder / "room/deep").mkdir(parents=True)
    write = {"single.py": "x = 1\n", "room/a.py": "value = 1\n", "room/deep/b.py": "def f():\n    return 1\n"}
    for name, text in write.items():
        (folder / name).write_text(text)
    yield folder
    code_hash.forget()


def digest(package, *rooms):
    code_hash.forget()
    return code_hash.digest(rooms or None, package)


def write_text(text):
    return lambda path: path.write_text(text)


class TestSources:
    @pytest.mark.parametrize("name", ["room/a.py", "room/deep/b.py", "room/new.py"])
    def test_any_file_of_a_room_counts_for_it_alone(self, package, name):
        before = digest(package, "room"), digest(package, "single"), digest(package)
        (package / name).write_text("value = 2\n")
        assert digest(package, "room") != before[0]
        assert digest(package, "single") == before[1]
        assert digest(package) != before[2]

    @pytest.mark.parametrize(
        "text",
        [
            '"""About it."""\n\n# a comment\nx   =   (1)\n',
            "import os\nfrom sys import (\n    path,\n)\nx = 1\n",
            "x = 1\n\n\n",
        ],
    )
    def test_comments_docstrings_imports_and_layout_do_not_count(self, package, text):
        before = digest(package, "single")
        (package / "single.py").write_text(text)
        assert digest(package, "single") == before

    @pytest.mark.parametrize(
        "text", ['x = "1"\n', "x = 1.0\n", "x = True\n", "x = 1\nx += 0\n", "y = 1\n", "x: int = 1\n"]
    )
    def test_any_other_change_counts(self, package, text):
        before = digest(package, "single")
        (package / "single.py").write_text(text)
        assert digest(package, "single") != before

    def test_docstrings_and_imports_inside_functions_do_not_count_and_other_strings_do(self, package):
        (package / "single.py").write_text("def f():\n    x = 'a'\n    return x\n")
        before = digest(package, "single")
        (package / "single.py").write_text("def f():\n    'About f.'\n    import os\n    x = 'a'\n    return x\n")
        assert digest(package, "single") == before
        (package / "single.py").write_text("def f():\n    x = 'b'\n    return x\n")
        assert digest(package, "single") != before

    def test_sources_are_read_once_until_forgotten(self, package):
        before = digest(package, "single")
        (package / "single.py").write_text("x = 2\n")
        assert code_hash.digest(["single"], package) == before
        code_hash.forget()
        assert code_hash.digest(["single"], package) != before

    def test_unknown_rooms_and_stages_are_errors(self, package):
        with pytest.raises(ValueError, match="demo has no room 'nothing'"):
            code_hash.digest(["nothing"], package)
        with pytest.raises(ValueError, match="unknown stage 'nothing': use one of pairs, noise"):
            code_hash.rooms_of("nothing")

    def test_no_stage_stands_on_the_rooms_that_only_call_it(self):
        rooms = {room for stage in code_hash.STANDS_ON for room in code_hash.rooms_of(stage, desk=True)}
        assert rooms.isdisjoint({"__init__", "__main__", "runner", "commands", "kit", "explorer"})


class TestAtomic:
    def test_file_appears_whole(self, tmp_path):
        with atomic(tmp_path / "deep/x.txt") as temporary:
            temporary.write_text("new")
            assert not (tmp_path / "deep/x.txt").exists()
            assert temporary.suffix == ".txt"
        assert os.listdir(tmp_path / "deep") == ["x.txt"]

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_failure_leaves_the_old_and_no_litter(self, tmp_path, error):
        (tmp_path / "x").write_text("old")
        with pytest.raises(error), atomic(tmp_path / "x") as temporary:
            temporary.write_text("half")
            raise error
        assert (tmp_path / "x").read_text() == "old"
        assert os.listdir(tmp_path) == ["x"]

    def test_folder_is_swapped_as_a_whole(self, tmp_path):
        (tmp_path / "f").mkdir()
        (tmp_path / "f/gone.txt").write_text("old")
        with atomic(tmp_path / "f") as temporary:
            (temporary / "sub").mkdir(parents=True)
            (temporary / "sub/x.txt").write_text("new")
            assert (tmp_path / "f/gone.txt").exists()
        assert os.listdir(tmp_path) == ["f"]
        assert os.listdir(tmp_path / "f") == ["sub"]

    def test_a_folder_does_not_give_way_to_a_file(self, tmp_path):
        (tmp_path / "mine/deep").mkdir(parents=True)
        with pytest.raises(BadInput, match="mine is a folder, and a file was to be written there"):
            write_json({}, tmp_path / "mine")
        assert os.listdir(tmp_path) == ["mine"] and os.listdir(tmp_path / "mine") == ["deep"]

    def test_folder_stays_if_the_swap_fails(self, tmp_path, monkeypatch):
        (tmp_path / "f").mkdir()
        (tmp_path / "f/x.txt").write_text("old")
        rename, calls = os.rename, []

        def fail_at_second(source, target):
            calls.append(target)
            if len(calls) == 2:
                raise OSError(errno.EIO, "broken")
            rename(source, target)

        monkeypatch.setattr(os, "rename", fail_at_second)
        with pytest.raises(OSError, match="broken"), atomic(tmp_path / "f") as temporary:
            temporary.mkdir()
        assert (tmp_path / "f/x.txt").read_text() == "old"
        assert os.listdir(tmp_path) == ["f"]

    def test_writing_nothing_is_an_error(self, tmp_path):
        with pytest.raises(RuntimeError, match="nothing was written for .*x"), atomic(tmp_path / "x"):
            pass

    @pytest.mark.parametrize(
        "error",
        [
            OSError(errno.ENOSPC, "No space left on device"),
            OSError(errno.EDQUOT, "Disk quota exceeded"),
            RuntimeError("I/O error: No space left on device (os error 28)"),
        ],
    )
    def test_full_disk_is_one_line(self, tmp_path, error):
        (tmp_path / "x.bin").write_text("old")
        with pytest.raises(BadInput, match=r"disk full while writing .*x\.bin: free some space") as caught:
            with atomic(tmp_path / "x.bin") as temporary:
                temporary.write_text("half")
                raise error
        assert "\n" not in str(caught.value)
        assert (tmp_path / "x.bin").read_text() == "old"
        assert os.listdir(tmp_path) == ["x.bin"]

    def test_other_errors_stay_what_they_are(self, tmp_path):
        with pytest.raises(PermissionError), atomic(tmp_path / "x"):
            raise PermissionError(errno.EACCES, "not yours")

    def test_a_killed_writers_litter_goes_at_the_next_write(self, tmp_path):
        script = "import os, sys; from napo.workshop.files import atomic\nwith atomic(sys.argv[1]) as t:\n"
        script += "    t.write_text('half'); os.kill(os.getpid(), 9)"
        ended = subprocess.run([sys.executable, "-c", script, str(tmp_path / "x")])
        assert ended.returncode == -signal.SIGKILL
        assert len(os.listdir(tmp_path)) == 1 and not (tmp_path / "x").exists()
        with atomic(tmp_path / "x") as temporary:
            temporary.write_text("whole")
        assert os.listdir(tmp_path) == ["x"]

    def test_a_killed_writers_litter_goes_where_its_file_is_never_written_again(self, tmp_path):
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        (tmp_path / "deep/sub").mkdir(parents=True)
        for name in ("deep", "deep/sub"):
            (tmp_path / name / f".tmp-{ended.pid}-0123abcd-gone").mkdir()
            (tmp_path / name / f".tmp-{ended.pid}-0123abcd-gone/half").write_text("half")
            (tmp_path / name / f".tmp-{os.getpid()}-0123abcd-mine").write_text("half")
            (tmp_path / name / ".tmp-by-hand").write_text("")
        write_json(1, tmp_path / "deep/other.json")
        mine = [f".tmp-{os.getpid()}-0123abcd-mine", ".tmp-by-hand"]
        assert set(os.listdir(tmp_path / "deep")) == {"other.json", "sub", *mine}
        files.remove_abandoned(tmp_path.rglob(files.TEMPORARY))
        assert set(os.listdir(tmp_path / "deep/sub")) == set(mine)

    def test_a_living_writers_temporary_stays(self, tmp_path):
        with atomic(tmp_path / "x") as first:
            first.write_text("first")
            with atomic(tmp_path / "x") as second:
                second.write_text("second")
            assert first.exists()
        assert (tmp_path / "x").read_text() == "first"

    def test_folder_that_cannot_be_made(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(BadInput, match="cannot make folder"), atomic(tmp_path / "file/x"):
            pass


@dataclasses.dataclass(frozen=True)
class Setting:
    rate: float
    kinds: tuple = ("a", "b")


class TestBuild:
    def make(self, path, text="made", **changes):
        """Build `path`; returns whether anything was done."""
        done = []
        arguments = {"settings": Setting(0.1), "stage": "pairs", "inputs": []} | changes
        artifacts.build(path, lambda tmp: done.append(tmp.write_text(text)), **arguments)
        return bool(done)

    def test_made_once(self, tmp_path):
        assert self.make(tmp_path / "x")
        assert not self.make(tmp_path / "x")
        assert artifacts.is_current(tmp_path / "x", settings=Setting(0.1), stage="pairs")

    def test_settings_stage_and_inputs_count(self, tmp_path):
        (tmp_path / "in").write_text("1")
        usual = {"inputs": [tmp_path / "in"]}
        self.make(tmp_path / "x", **usual)
        assert not self.make(tmp_path / "x", **usual)
        assert self.make(tmp_path / "x", **usual, settings=Setting(0.2))
        assert self.make(tmp_path / "x", **usual, stage="noise")
        self.make(tmp_path / "x", **usual)
        (tmp_path / "in").write_text("2")
        assert not artifacts.is_current(tmp_path / "x", settings=Setting(0.1), stage="pairs", **usual)
        assert self.make(tmp_path / "x", **usual)

    def test_date_and_place_of_an_input_do_not_count(self, tmp_path):
        (tmp_path / "in").write_text("1")
        self.make(tmp_path / "x", inputs=[tmp_path / "in"])
        os.utime(tmp_path / "in", (1, 1))
        (tmp_path / "in").rename(tmp_path / "moved")
        assert not self.make(tmp_path / "x", inputs=[tmp_path / "moved"])

    def test_missing_input(self, tmp_path):
        with pytest.raises(MissingArtifact, match="missing .*nowhere"):
            self.make(tmp_path / "x", inputs=[tmp_path / "nowhere"])

    @pytest.mark.parametrize("old", [False, True])
    def test_change_within_one_clock_tick_is_seen(self, tmp_path, old):
        source = tmp_path / "in"
        source.write_text("1")
        if old:
            os.utime(source, (1, 1))
        stat = source.stat()
        self.make(tmp_path / "x", inputs=[source])
        source.write_text("2")
        os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert self.make(tmp_path / "x", inputs=[source])

    def test_deleted_and_damaged_are_made_again(self, tmp_path):
        path = tmp_path / "x"
        self.make(path)
        path.unlink()
        assert self.make(path)
        path.write_text("mad!")
        assert self.make(path)
        assert path.read_text() == "made"

    def test_folder_artefact(self, tmp_path):
        def make(tmp):
            (tmp / "sub").mkdir(parents=True)
            (tmp / "sub/weights").write_bytes(b"\0" * 8)

        usual = {"settings": {}, "stage": "pairs"}
        artifacts.build(tmp_path / "f", make, **usual)
        assert artifacts.is_current(tmp_path / "f", **usual)
        (tmp_path / "f/sub/weights").rename(tmp_path / "f/sub/other")
        assert not artifacts.is_current(tmp_path / "f", **usual)

    def test_failure_records_nothing(self, tmp_path):
        with pytest.raises(ZeroDivisionError):
            artifacts.build(tmp_path / "x", lambda tmp: 1 / 0, settings={}, stage="pairs")
        assert os.listdir(tmp_path) == []

    def test_killed_between_file_and_record_is_made_again(self, tmp_path, monkeypatch):
        self.make(tmp_path / "x", settings=1)
        monkeypatch.setattr(artifacts, "_record", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            self.make(tmp_path / "x", "newer", settings=2)
        monkeypatch.undo()
        assert self.make(tmp_path / "x", "newer", settings=2)
        assert self.make(tmp_path / "x", settings=1)

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"artefacts": 3}', '{"artefacts": {"x": 3}}'])
    def test_damaged_provenance_means_making_again(self, tmp_path, text):
        self.make(tmp_path / "x")
        (tmp_path / "provenance.json").write_text(text)
        assert self.make(tmp_path / "x")
        assert not self.make(tmp_path / "x")

    def test_a_forgotten_artefact_stays_and_is_made_again(self, tmp_path):
        self.make(tmp_path / "x")
        self.make(tmp_path / "y")
        artifacts.forget(tmp_path / "x")
        assert (tmp_path / "x").exists() and not self.make(tmp_path / "y")
        assert self.make(tmp_path / "x")

    def test_forgetting_what_has_no_record_writes_nothing(self, tmp_path):
        (tmp_path / "x").write_text("by hand")
        artifacts.forget(tmp_path / "x")
        assert os.listdir(tmp_path) == ["x"]

    def test_record(self, tmp_path):
        (tmp_path / "in").write_text("1")
        self.make(tmp_path / "x", inputs=[tmp_path / "in"], seeds=[3])
        self.make(tmp_path / "y")
        records = json.loads((tmp_path / "provenance.json").read_text())["artefacts"]
        assert list(records) == ["x", "y"]
        fields = (
            "key sha256 settings stage inputs seeds seconds git_commit git_dirty versions device cpu threads created"
        )
        assert list(records["x"]) == fields.split()
        assert records["x"]["settings"] == {"rate": 0.1, "kinds": ["a", "b"]}
        assert records["x"]["inputs"] == {str(tmp_path / "in"): artifacts.content_hash(tmp_path / "in")}
        assert records["x"]["seeds"] == [3] and records["x"]["threads"] >= 1
        assert {"torch", "transformers", "peft", "bitsandbytes"} <= records["x"]["versions"].keys()
        assert records["x"]["cpu"] == environment.cpu_path()
        assert artifacts.provenance(tmp_path / "x") == records["x"]

    def test_what_cannot_be_recorded_is_refused_before_any_work(self, tmp_path):
        with pytest.raises(TypeError, match="cannot be recorded"):
            self.make(tmp_path / "x", settings={"a": object()})
        assert os.listdir(tmp_path) == []

    def test_many_writers_of_one_folder_lose_no_record(self, tmp_path):
        threads = [threading.Thread(target=self.make, args=(tmp_path / f"x{i}",)) for i in range(8)]
        script = "import sys; from napo.workshop import artifacts as a; from pathlib import Path\n"
        script += "for i in range(8): a.build(Path(sys.argv[1]) / f'{sys.argv[2]}{i}', lambda p: p.write_text('1'), "
        script += "settings={}, stage='pairs')"
        others = [subprocess.Popen([sys.executable, "-c", script, tmp_path, name]) for name in "yz"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [other.wait(60) for other in others] == [0, 0]
        records = json.loads((tmp_path / "provenance.json").read_text())["artefacts"]
        assert set(records) == {f"{name}{i}" for name in "xyz" for i in range(8)}


class TestReading:
    def test_parquet_and_back(self, tmp_path):
        frame = pd.DataFrame({"a": [1.5, 2.5], "b": ["x", "y"]}, index=[5, 6])
        frame.to_parquet(tmp_path / "x.parquet", index=False)
        pd.testing.assert_frame_equal(read_parquet(tmp_path / "x.parquet"), frame.reset_index(drop=True))

    @pytest.mark.parametrize("damage", [lambda b: b[:-20], lambda b: b"", lambda b: b"not parquet at all"])
    def test_damaged_parquet(self, tmp_path, damage):
        path = tmp_path / "x.parquet"
        pd.DataFrame({"a": range(100)}).to_parquet(path)
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(BadInput, match=r"x\.parquet is damaged .*delete it and run notebook 02 again") as caught:
            read_parquet(path, notebook="02")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("read", [read_parquet, require])
    def test_an_artefact_is_checked_against_its_record(self, tmp_path, read):
        path = tmp_path / "x.parquet"
        artifacts.build(path, pd.DataFrame({"a": range(100)}).to_parquet, settings={}, stage="noise")
        read(path, "02")
        content, record = path.read_bytes(), tmp_path / "provenance.json"
        path.write_bytes(content[:30] + bytes([content[30] ^ 1]) + content[31:])
        line = r"x\.parquet is damaged or was changed by hand: run notebook 02 again \(make reproduce\)"
        with pytest.raises(BadInput, match=line):
            read(path, "02")
        path.write_bytes(content)
        read(path, "02")
        known = artifacts.provenance(path)["sha256"]
        record.write_text(record.read_text().replace(known, "0" + known[1:-1] + "?"))
        with pytest.raises(BadInput, match=line):
            read(path, "02")
        record.unlink()
        read(path, "02")

    def test_a_folder_is_checked_against_its_record(self, tmp_path):
        def make(path):
            path.mkdir()
            (path / "weights").write_text("12")

        artifacts.build(tmp_path / "adapter", make, settings={}, stage="training")
        assert require(tmp_path / "adapter", "03") == tmp_path / "adapter"
        (tmp_path / "adapter/weights").write_text("13")
        with pytest.raises(BadInput, match="adapter is damaged .*run notebook 03 again"):
            require(tmp_path / "adapter", "03")

    def test_the_record_is_ready_before_the_file_appears(self, tmp_path, monkeypatch):
        """Between file and record a reader takes an artefact for damaged, so nothing slow may happen there."""
        seen = []
        for name in ("content_hash", "environment.snapshot"):
            real = artifacts.content_hash if name == "content_hash" else environment.snapshot

            def spied(path, real=real):
                seen.append((tmp_path / "x").exists())
                return real(path)

            monkeypatch.setattr(f"napo.workshop.artifacts.{name}", spied)
        artifacts.build(tmp_path / "x", write_text("1"), settings={}, stage="noise")
        assert seen == [False, False]

    def test_missing(self, tmp_path):
        with pytest.raises(MissingArtifact, match=r"missing .*x\.parquet: run notebook 02 first \(make reproduce\)"):
            read_parquet(tmp_path / "x.parquet", notebook="02")
        nowhere = artifacts.run_folder("smoke", "no-such-folder", "x.parquet")
        with pytest.raises(MissingArtifact) as caught:
            require(nowhere, "01")
        shown = "missing runs/smoke/no-such-folder/x.parquet: run notebook 01 first (make reproduce PROFILE=smoke)"
        assert str(caught.value) == shown

    def test_json_knows_what_results_are_made_of(self, tmp_path):
        value = {"a": np.float32(0.5), "b": np.arange(2), "c": Path("x/y"), "d": Setting(1.0), "e": {2, 1}}
        read = json.loads(write_json(value, tmp_path / "x.json").read_text())
        assert read == {"a": 0.5, "b": [0, 1], "c": "x/y", "d": {"rate": 1.0, "kinds": ["a", "b"]}, "e": [1, 2]}


class TestPlaces:
    def test_run_folder(self, root, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert artifacts.run_folder("desk", "base-0") == root / "runs/desk/base-0"
        assert artifacts.run_folder("desk", runs_dir=tmp_path) == tmp_path / "desk"
        assert not (tmp_path / "desk").exists()

    def test_import_is_light(self):
        script = "import sys, napo.profiles, napo.runner.run, napo.workshop.artifacts, napo.workshop.grid\n"
        script += "print(sorted({'torch', 'pandas', 'numpy', 'papermill'} & sys.modules.keys()))"
        assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "[]"


class TestProgress:
    def test_lines(self, capsys, monkeypatch):
        now = [0.0]
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        for _ in progress.progress(list("abcdef"), "train"):
            now[0] += 1.5
        expected = ["train 2/6 · 0:03 · about 0:06 left", "train 4/6 · 0:06 · about 0:03 left", "train 6/6 · 0:09"]
        assert capsys.readouterr().out.splitlines() == expected

    def test_what_was_done_earlier_does_not_count_as_pace(self, capsys, monkeypatch):
        now = [0.0]
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        steps = progress.progress(500, "trainings")
        for seconds in [0.0] * 400 + [8.0] * 50:  # 400 were there; 50 more remain, 8 s each
            now[0] += seconds
            steps.step()
        assert capsys.readouterr().out.splitlines()[-1] == "trainings 450/500 · 6:40 · about 6:40 left"

    def test_by_hand_and_without_length(self, capsys, monkeypatch):
        monkeypatch.setattr(progress, "PAUSE", 0)
        steps = progress.progress(4, "rows")
        steps.step(3)
        assert list(progress.progress(iter("ab"), "items")) == ["a", "b"]
        lines = ["rows 3/4 · 0:00 · about 0:00 left", "items 1 · 0:00", "items 2 · 0:00"]
        assert capsys.readouterr().out.splitlines() == lines

    def test_clock(self):
        assert [progress.clock(seconds) for seconds in (0, 59.6, 61, 3661)] == ["0:00", "1:00", "1:01", "1:01:01"]


@pytest.mark.parametrize("write", ["parquet", "json", "torch", "image"])
def test_full_disk_for_real(tmp_path, write, monkeypatch):
    """/dev/full accepts nothing; each library says so in its own way (torch: hardly, so a look at the disk decides)."""
    import torch
    from PIL import Image

    writers = {
        "parquet": lambda path: pd.DataFrame({"a": range(100_000)}).to_parquet(path),
        "json": lambda path: path.write_text("1"),
        "torch": lambda path: torch.save(torch.zeros(100_000), path),
        "image": lambda path: Image.new("RGB", (500, 500)).save(path, format="png"),
    }
    if write == "torch":
        usage = type("usage", (), {"free": 0})
        monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: usage)
    with (
        pytest.raises(BadInput, match="disk full while writing .*x.bin"),
        atomic(tmp_path / "x.bin") as temporary,
    ):
        temporary.symlink_to("/dev/full")
        writers[write](temporary)
    assert os.listdir(tmp_path) == []
