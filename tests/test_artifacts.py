import ast
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

import napo
from napo import artifacts, files, progress, sources
from napo.artifacts import BadInput, MissingArtifact


@pytest.fixture
def package(tmp_path):
    """A throw-away package `demo`: a imports b in a function, b imports sub.c relatively, d stands alone."""
    folder = tmp_path / "demo"
    (folder / "sub").mkdir(parents=True)
    write = {
        "__init__.py": "",
        "a.py": "def f():\n    from demo import b\n    return b\n",
        "b.py": "from .sub.c import value\n",
        "d.py": "x = 1\n",
        "sub/__init__.py": "from . import e\n",
        "sub/c.py": "value = 1\n",
        "sub/e.py": "from ..d import x\n",
    }
    for name, text in write.items():
        (folder / name).write_text(text)
    yield folder
    sources.forget()


def digest(package, *names, skip=frozenset()):
    sources.forget()
    return sources.digest(names, package, skip)


def write_text(text):
    return lambda path: path.write_text(text)


class TestSources:
    def test_follows_every_kind_of_import(self, package):
        assert list(sources.reachable(["a"], package)) == [
            "demo.a",
            "demo.b",
            "demo.d",
            "demo.sub",
            "demo.sub.c",
            "demo.sub.e",
        ]
        assert list(sources.reachable(["demo.d"], package)) == ["demo.d"]

    def test_change_counts_for_importers_only(self, package):
        before = digest(package, "a"), digest(package, "d")
        (package / "sub/c.py").write_text("value = 2\n")
        assert digest(package, "a") != before[0]
        assert digest(package, "d") == before[1]

    def test_comments_docstrings_and_layout_do_not_count(self, package):
        before = digest(package, "d")
        (package / "d.py").write_text('"""About d."""\n\n# a comment\nx   =   1\n')
        assert digest(package, "d") == before
        (package / "d.py").write_text('x = "1"\n')
        assert digest(package, "d") != before

    def test_a_string_that_is_no_docstring_counts(self, package):
        (package / "d.py").write_text("def f():\n    x = 'a'\n    return x\n")
        before = digest(package, "d")
        (package / "d.py").write_text("def f():\n    x = 'b'\n    return x\n")
        assert digest(package, "d") != before

    def test_skipped_modules_count_only_if_asked_for(self, package):
        skip = frozenset({"d"})
        assert "demo.d" not in sources.reachable(["a"], package, skip)
        assert "demo.d" in sources.reachable(["d"], package, skip)

    def test_unknown_module_is_an_error(self, package):
        with pytest.raises(ValueError, match="nothing is not a module"):
            sources.digest(["nothing"], package)

    @pytest.mark.parametrize(
        "cell, found",
        [
            ("import demo.d", {"demo.d"}),
            ("from demo import d, nothing", {"demo", "demo.d"}),
            ("%matplotlib inline\n!ls\nfrom demo.b import value", {"demo.b"}),
            ("if True:\n    %time import os\n    import demo.d", {"demo.d"}),
            ("await something()\nimport demo.d", {"demo.d"}),
            ("import numpy", set()),
            ("this is not python", set()),
        ],
    )
    def test_imports_of_cells(self, package, cell, found):
        assert sources.notebook_imports([cell], package) == found

    def test_napo_init_holds_nothing_that_a_result_could_depend_on(self):
        docstring, version = ast.parse(Path(napo.__file__).read_text()).body
        assert isinstance(docstring.value, ast.Constant)
        assert version.targets[0].id == "__version__"

    def test_plumbing_does_not_count_for_artefacts(self):
        plain = {name.split(".")[1] for name in sources.reachable(["data"], skip=artifacts.PLUMBING)}
        assert plain.isdisjoint(artifacts.PLUMBING)
        assert "artifacts" in {name.split(".")[1] for name in sources.reachable(["data"])}


class TestAtomic:
    def test_file_appears_whole(self, tmp_path):
        with artifacts.atomic(tmp_path / "deep/x.txt") as temporary:
            temporary.write_text("new")
            assert not (tmp_path / "deep/x.txt").exists()
            assert temporary.suffix == ".txt"
        assert os.listdir(tmp_path / "deep") == ["x.txt"]

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_failure_leaves_the_old_and_no_litter(self, tmp_path, error):
        (tmp_path / "x").write_text("old")
        with pytest.raises(error), artifacts.atomic(tmp_path / "x") as temporary:
            temporary.write_text("half")
            raise error
        assert (tmp_path / "x").read_text() == "old"
        assert os.listdir(tmp_path) == ["x"]

    def test_folder_is_swapped_as_a_whole(self, tmp_path):
        (tmp_path / "f").mkdir()
        (tmp_path / "f/gone.txt").write_text("old")
        with artifacts.atomic(tmp_path / "f") as temporary:
            (temporary / "sub").mkdir(parents=True)
            (temporary / "sub/x.txt").write_text("new")
            assert (tmp_path / "f/gone.txt").exists()
        assert os.listdir(tmp_path) == ["f"]
        assert os.listdir(tmp_path / "f") == ["sub"]

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
        with pytest.raises(OSError, match="broken"), artifacts.atomic(tmp_path / "f") as temporary:
            temporary.mkdir()
        assert (tmp_path / "f/x.txt").read_text() == "old"
        assert os.listdir(tmp_path) == ["f"]

    def test_writing_nothing_is_an_error(self, tmp_path):
        with pytest.raises(RuntimeError, match="nothing was written for .*x"), artifacts.atomic(tmp_path / "x"):
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
            with artifacts.atomic(tmp_path / "x.bin") as temporary:
                temporary.write_text("half")
                raise error
        assert "\n" not in str(caught.value)
        assert (tmp_path / "x.bin").read_text() == "old"
        assert os.listdir(tmp_path) == ["x.bin"]

    def test_other_errors_stay_what_they_are(self, tmp_path):
        with pytest.raises(PermissionError), artifacts.atomic(tmp_path / "x"):
            raise PermissionError(errno.EACCES, "not yours")

    def test_a_killed_writers_litter_goes_at_the_next_write(self, tmp_path):
        script = "import os, sys; from napo.artifacts import atomic\nwith atomic(sys.argv[1]) as t:\n"
        script += "    t.write_text('half'); os.kill(os.getpid(), 9)"
        ended = subprocess.run([sys.executable, "-c", script, str(tmp_path / "x")])
        assert ended.returncode == -signal.SIGKILL
        assert len(os.listdir(tmp_path)) == 1 and not (tmp_path / "x").exists()
        with artifacts.atomic(tmp_path / "x") as temporary:
            temporary.write_text("whole")
        assert os.listdir(tmp_path) == ["x"]

    def test_a_living_writers_temporary_stays(self, tmp_path):
        with artifacts.atomic(tmp_path / "x") as first:
            first.write_text("first")
            with artifacts.atomic(tmp_path / "x") as second:
                second.write_text("second")
            assert first.exists()
        assert (tmp_path / "x").read_text() == "first"

    def test_folder_that_cannot_be_made(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(BadInput, match="cannot make folder"), artifacts.atomic(tmp_path / "file/x"):
            pass


@dataclasses.dataclass(frozen=True)
class Setting:
    rate: float
    kinds: tuple = ("a", "b")


class TestBuild:
    def make(self, path, text="made", **changes):
        """Build `path`; returns whether anything was done."""
        done = []
        arguments = {"settings": Setting(0.1), "modules": ["losses"], "inputs": []} | changes
        artifacts.build(path, lambda tmp: done.append(tmp.write_text(text)), **arguments)
        return bool(done)

    def test_made_once(self, tmp_path):
        assert self.make(tmp_path / "x")
        assert not self.make(tmp_path / "x")
        assert artifacts.is_current(tmp_path / "x", settings=Setting(0.1), modules=["losses"])

    def test_settings_modules_and_inputs_count(self, tmp_path):
        (tmp_path / "in").write_text("1")
        usual = {"inputs": [tmp_path / "in"]}
        self.make(tmp_path / "x", **usual)
        assert not self.make(tmp_path / "x", **usual)
        assert self.make(tmp_path / "x", **usual, settings=Setting(0.2))
        assert self.make(tmp_path / "x", **usual, modules=["losses", "noise"])
        self.make(tmp_path / "x", **usual)
        (tmp_path / "in").write_text("2")
        assert not artifacts.is_current(tmp_path / "x", settings=Setting(0.1), modules=["losses"], **usual)
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

        usual = {"settings": {}, "modules": ["losses"]}
        artifacts.build(tmp_path / "f", make, **usual)
        assert artifacts.is_current(tmp_path / "f", **usual)
        (tmp_path / "f/sub/weights").rename(tmp_path / "f/sub/other")
        assert not artifacts.is_current(tmp_path / "f", **usual)

    def test_failure_records_nothing(self, tmp_path):
        with pytest.raises(ZeroDivisionError):
            artifacts.build(tmp_path / "x", lambda tmp: 1 / 0, settings={}, modules=["losses"])
        assert os.listdir(tmp_path) == []

    def test_killed_between_file_and_record_is_made_again(self, tmp_path, monkeypatch):
        self.make(tmp_path / "x", settings=1)
        monkeypatch.setattr(artifacts, "_record", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            self.make(tmp_path / "x", "newer", settings=2)
        monkeypatch.undo()
        assert self.make(tmp_path / "x", "newer", settings=2)
        assert self.make(tmp_path / "x", settings=1)

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"artefacts": 3}'])
    def test_damaged_provenance_means_making_again(self, tmp_path, text):
        self.make(tmp_path / "x")
        (tmp_path / "provenance.json").write_text(text)
        assert self.make(tmp_path / "x")
        assert not self.make(tmp_path / "x")

    def test_record(self, tmp_path):
        (tmp_path / "in").write_text("1")
        self.make(tmp_path / "x", inputs=[tmp_path / "in"], seeds=[3])
        self.make(tmp_path / "y")
        records = json.loads((tmp_path / "provenance.json").read_text())["artefacts"]
        assert list(records) == ["x", "y"]
        fields = "key sha256 settings modules inputs seeds seconds git_commit git_dirty versions device created"
        assert list(records["x"]) == fields.split()
        assert records["x"]["settings"] == {"rate": 0.1, "kinds": ["a", "b"]}
        assert records["x"]["inputs"] == {str(tmp_path / "in"): artifacts.content_hash(tmp_path / "in")}
        assert records["x"]["seeds"] == [3] and records["x"]["versions"]["torch"]
        assert artifacts.provenance(tmp_path / "x") == records["x"]

    def test_what_cannot_be_recorded_is_refused_before_any_work(self, tmp_path):
        with pytest.raises(TypeError, match="cannot be recorded"):
            self.make(tmp_path / "x", settings={"a": object()})
        assert os.listdir(tmp_path) == []

    def test_many_writers_of_one_folder_lose_no_record(self, tmp_path):
        threads = [threading.Thread(target=self.make, args=(tmp_path / f"x{i}",)) for i in range(8)]
        script = "import sys; from napo import artifacts as a; from pathlib import Path\n"
        script += "for i in range(8): a.build(Path(sys.argv[1]) / f'{sys.argv[2]}{i}', lambda p: p.write_text('1'), "
        script += "settings={}, modules=['losses'])"
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
        path = artifacts.write_parquet(frame, tmp_path / "x.parquet")
        pd.testing.assert_frame_equal(artifacts.read_parquet(path), frame.reset_index(drop=True))

    @pytest.mark.parametrize("damage", [lambda b: b[:-20], lambda b: b"", lambda b: b"not parquet at all"])
    def test_damaged_parquet(self, tmp_path, damage):
        path = artifacts.write_parquet(pd.DataFrame({"a": range(100)}), tmp_path / "x.parquet")
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(BadInput, match=r"x\.parquet is damaged .*delete it and run notebook 02 again") as caught:
            artifacts.read_parquet(path, notebook="02")
        assert "\n" not in str(caught.value)

    def test_missing(self, tmp_path):
        with pytest.raises(MissingArtifact, match=r"missing .*x\.parquet: run notebook 02 first \(make reproduce\)"):
            artifacts.read_parquet(tmp_path / "x.parquet", notebook="02")
        nowhere = artifacts.run_folder("smoke", "no-such-folder", "x.parquet")
        with pytest.raises(MissingArtifact) as caught:
            artifacts.require(nowhere, "01")
        shown = "missing runs/smoke/no-such-folder/x.parquet: run notebook 01 first (make reproduce PROFILE=smoke)"
        assert str(caught.value) == shown

    def test_json_knows_what_results_are_made_of(self, tmp_path):
        value = {"a": np.float32(0.5), "b": np.arange(2), "c": Path("x/y"), "d": Setting(1.0), "e": {2, 1}}
        read = json.loads(artifacts.write_json(value, tmp_path / "x.json").read_text())
        assert read == {"a": 0.5, "b": [0, 1], "c": "x/y", "d": {"rate": 1.0, "kinds": ["a", "b"]}, "e": [1, 2]}


class TestPlaces:
    def test_run_folder(self, root, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert artifacts.run_folder("desk", "base-0") == root / "runs/desk/base-0"
        assert artifacts.run_folder("desk", runs_dir=tmp_path) == tmp_path / "desk"
        assert not (tmp_path / "desk").exists()

    def test_import_is_light(self):
        script = (
            "import sys, napo.artifacts, napo.grid; print(sorted({'torch', 'pandas', 'numpy'} & sys.modules.keys()))"
        )
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
        steps = artifacts.progress(4, "rows")
        steps.step(3)
        assert list(artifacts.progress(iter("ab"), "items")) == ["a", "b"]
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
        artifacts.atomic(tmp_path / "x.bin") as temporary,
    ):
        temporary.symlink_to("/dev/full")
        writers[write](temporary)
    assert os.listdir(tmp_path) == []
