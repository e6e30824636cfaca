import json
import os
import re
import signal
import subprocess
import sys
import time

import nbformat
import papermill
import psutil
import pytest

from napo.runner import notebooks, run
from napo.runner.notebooks import Notebook
from napo.runner.staleness import Session, forget, is_current, last_record, made_elsewhere, notebook_key
from napo.workshop import artifacts, code_hash, environment
from napo.workshop.files import BadInput, MissingArtifact, write_json

PARAMETERS = 'profile = "desk"\nruns_dir = "runs"\nrows = 1\nrate = 0.5\nmodel = ""'
PLACE = "from pathlib import Path\nfolder = Path(runs_dir) / profile\n"
TABLE = (
    Notebook("01_first", writes=("first/x.txt",)),
    Notebook("02_second", reads=("first/x.txt",), writes=("second/*.txt",), unfinished=("half*",), data=("shipped/*",)),
    Notebook("03_third", reads=("second/*.txt",), writes=("third.txt",), also=("some/*", "others/*")),
)
FIRST = """
from demo import used
(folder / "first").mkdir(parents=True, exist_ok=True)
(folder / "first/x.txt").write_text(f"{rows} {used.value}")
print("first: step 1/1")
"""
SECOND = """
import os
(folder / "second").mkdir(exist_ok=True)
(folder / "second/y.txt").write_text((folder / "first/x.txt").read_text()[:1])
from napo.workshop import artifacts, environment
def make(path):
    print("making built.txt")
    path.write_text((folder / "first/x.txt").read_text())
depends = {"settings": environment.computed_on("cpu"), "stage": "pairs", "inputs": [folder / "first/x.txt"]}
artifacts.build(folder / "second/built.txt", make, **depends)
figures = Path("figures") / profile
figures.mkdir(parents=True, exist_ok=True)
(figures / "second.png").write_text("drawn")
print("second backend", os.environ["MPLBACKEND"], os.getcwd())
"""
THIRD = """
from demo.sub import deep
(folder / "third.txt").write_text((folder / "second/y.txt").read_text())
(folder / "some").mkdir(exist_ok=True)
(folder / "some/z.txt").write_text("z")
"""
DRIVER = """
import sys
from pathlib import Path
from napo.commands.run import main
from napo.runner import run
from napo.runner.notebooks import Notebook
def known(name):
    if name not in ("desk", "other"):
        raise run.BadInput(f"unknown profile {{name!r}}")
root = Path({root!r})
status = main(root=root, package=root / "demo", notebooks={table!r}, known_profile=known)
sys.exit(status)
"""


def write_notebook(root, name, *cells, tag=True):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.strip()) for cell in cells])
    if tag:
        notebook.cells[0].metadata.tags = ["parameters"]
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell("# What it does"))
    notebook.metadata.kernelspec = {"name": "python3", "language": "python", "display_name": "Python 3"}
    nbformat.write(notebook, root / "notebooks" / f"{name}.ipynb")


class Project:
    """A throw-away repository with three notebooks, each a second long, and a package `demo`."""

    def __init__(self, root):
        self.root, self.folder = root, root / "runs/desk"
        for place in ("notebooks", "demo/sub", "shipped"):
            (root / place).mkdir(parents=True)
        for name, text in {
            "__init__": "",
            "used": "value = 1\n",
            "sub/__init__": "",
            "sub/deep": "",
            "unused": "",
        }.items():
            (root / f"demo/{name}.py").write_text(text)
        (root / "shipped/base").write_text("base")
        (root / "driver.py").write_text(DRIVER.format(root=str(root), table=TABLE))
        self.write(1, FIRST)
        self.write(2, SECOND)
        self.write(3, THIRD)

    def write(self, number, *cells, **options):
        write_notebook(self.root, TABLE[number - 1].name, PARAMETERS, PLACE, *cells, **options)

    def command(self, *arguments):
        return [sys.executable, str(self.root / "driver.py"), *map(str, arguments)]

    def start(self, *arguments, **options):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(self.command(*arguments), cwd="/", **pipes, **options)

    def run(self, *arguments, status=0, **environment):
        """Run to the end; returns (names of the notebooks that ran, stdout, stderr)."""
        process = self.start(*arguments, env=os.environ | environment)
        out, err = process.communicate(timeout=180)
        assert process.returncode == status, out + err
        started = re.findall(r"^\[\d/\d\] (\d\d)_\w+(?:  \(last time .*\))?$", out, re.M)
        return started, out, err

    def session(self):
        return Session("desk", root=self.root, package=self.root / "demo", notebooks=TABLE)

    def stale(self, *given):
        """Numbers of the notebooks that would run now, as far as can be foreseen."""
        code_hash.forget()
        session = self.session()
        declared = {notebook.name: notebooks.declared_parameters(session.source(notebook)) for notebook in TABLE}
        chosen = notebooks.chosen_parameters(declared, {"profile": "desk", "runs_dir": "runs"}, given)
        keys = [notebook_key(session, notebook, chosen[notebook.name]) for notebook in TABLE]
        return [n.number for n, key in zip(TABLE, keys, strict=True) if not is_current(session, n, key)]

    def hold(self, number):
        """Make a notebook wait, and say who it is, until the file `go` exists."""
        text = (
            "import os, time\nfrom pathlib import Path\n"
            "Path('held.tmp').write_text(str(os.getpid())); os.rename('held.tmp', 'held')\n"
            "while not Path('go').exists(): time.sleep(0.05)\n"
        )
        self.write(number, text + (FIRST, SECOND, THIRD)[number - 1])

    def held(self):
        """Process id of the kernel that waits."""
        deadline = time.monotonic() + 90
        while not (self.root / "held").exists():
            assert time.monotonic() < deadline, "the notebook did not start"
            time.sleep(0.05)
        return int((self.root / "held").read_text())

    def go(self):
        (self.root / "go").touch()


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


@pytest.fixture(scope="module")
def finished_project(tmp_path_factory):
    """A project whose notebooks have all run, with what the run printed."""
    project = Project(tmp_path_factory.mktemp("finished"))
    project.first_run = project.run(MPLBACKEND="Agg")
    return project


@pytest.fixture
def finished(finished_project):
    """The same for tests that change it: afterwards every file is as it was."""
    root = finished_project.root
    before = {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}
    yield finished_project
    for file in root.rglob("*"):
        if file.is_file() and file not in before:
            file.unlink()
    for file, content in before.items():
        file.write_bytes(content)
    code_hash.forget()


def ends(pid, seconds=20):
    """Whether the process ends within `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.1)
    return False


class TestParameters:
    def write(self, tmp_path, *cells, **options):
        (tmp_path / "notebooks").mkdir(exist_ok=True)
        write_notebook(tmp_path, "x", *cells, **options)
        return tmp_path / "notebooks/x.ipynb"

    def test_declared_as_papermill_sees_them(self, tmp_path):
        path = self.write(
            tmp_path, '# about\nprofile = "desk"  # dial\nrows = -1\nrate: float = 0.5\nkinds = ("a", "b")'
        )
        found = notebooks.declared_parameters(path)
        assert found == {"profile": "desk", "rows": -1, "rate": 0.5, "kinds": ("a", "b")}
        assert list(found) == list(papermill.inspect_notebook(str(path)))

    def test_missing_tag(self, tmp_path):
        path = self.write(tmp_path, "rows = 1", tag=False)
        with pytest.raises(BadInput, match="has 0 cells tagged `parameters`: it needs exactly one"):
            notebooks.declared_parameters(path)

    @pytest.mark.parametrize(
        "cell", ["rows = 1\nhalf = rows / 2", "import os", "a, b = 1, 2", "a = b = 1", "rows =", "x: int"]
    )
    def test_only_literals(self, tmp_path, cell):
        path = self.write(tmp_path, cell)
        with pytest.raises(BadInput, match="`parameters` cell may hold only lines `name = literal`"):
            notebooks.declared_parameters(path)

    @pytest.mark.parametrize("text", ["", "{}", "[1]", '{"cells": 3}'])
    def test_damaged_notebook(self, tmp_path, text):
        (tmp_path / "x.ipynb").write_text(text)
        with pytest.raises(BadInput, match="x.ipynb is not a notebook .*restore it from git"):
            notebooks.declared_parameters(tmp_path / "x.ipynb")

    def test_no_notebook(self, tmp_path):
        with pytest.raises(BadInput, match="no notebook .*x.ipynb"):
            notebooks.code_cells(tmp_path / "x.ipynb")

    DECLARED = {
        "a": {"profile": "", "rows": 0, "rate": 0.5},
        "b": {"profile": "", "model": "", "on": False, "free": None},
    }

    @pytest.mark.parametrize(
        "given, in_a, in_b",
        [
            ("rows=7", {"rows": 7}, {}),
            ("rate=1", {"rate": 1.0}, {}),
            ("rate=1e-3", {"rate": 0.001}, {}),
            ("model=7", {}, {"model": "7"}),
            ("model=a=b", {}, {"model": "a=b"}),
            ("on=true", {}, {"on": True}),
            ("free=x", {}, {"free": "x"}),
        ],
    )
    def test_each_goes_where_it_is_declared(self, given, in_a, in_b):
        chosen = notebooks.chosen_parameters(self.DECLARED, {"profile": "desk"}, [given])
        assert chosen == {"a": {"profile": "desk"} | in_a, "b": {"profile": "desk"} | in_b}
        for name in chosen:
            for parameter, value in (in_a | in_b).items():
                assert type(chosen[name].get(parameter, value)) is type(value)

    @pytest.mark.parametrize("given", ["row=7", "rows", "=7", "profile=smoke", "rows:7"])
    def test_unknown(self, given):
        with pytest.raises(
            BadInput, match=f"-p {given}: the notebooks know name=value for free, model, on, rate, rows"
        ):
            notebooks.chosen_parameters(self.DECLARED, {"profile": "desk"}, [given])

    @pytest.mark.parametrize("given", ["rows=x", "rows=1.5", "rows=", "rows=True", "rate=x", "on=1", "on=maybe"])
    def test_wrong_type(self, given):
        with pytest.raises(BadInput, match=f"-p {given}: expected (int|float|bool) as in the default"):
            notebooks.chosen_parameters(self.DECLARED, {"profile": "desk"}, [given])

    def test_what_every_notebook_must_take(self):
        with pytest.raises(BadInput, match="b.ipynb declares no parameter runs_dir"):
            notebooks.chosen_parameters({"b": {"profile": ""}}, {"profile": "x", "runs_dir": "y"}, [])

    @pytest.mark.parametrize("wanted", [["2"], ["02"], ["02_second"], ["02", "2"]])
    def test_select(self, wanted):
        assert notebooks.select(TABLE, wanted) == [TABLE[1]]
        assert notebooks.select(TABLE, [*wanted, "1"]) == [TABLE[0], TABLE[1]]
        assert notebooks.select(TABLE, []) == list(TABLE)

    def test_select_unknown(self):
        with pytest.raises(BadInput, match="no notebook 07; there are 01_first, 02_second, 03_third"):
            notebooks.select(TABLE, ["7"])


class TestTable:
    """The real one."""

    def test_every_notebook_exists_and_takes_the_common_parameters(self, root):
        names = [notebook.name for notebook in notebooks.NOTEBOOKS]
        assert names == sorted(path.stem for path in (root / "notebooks").glob("*.ipynb"))
        for name in names:
            declared = notebooks.declared_parameters(root / "notebooks" / f"{name}.ipynb")
            common = {"profile": "desk", "runs_dir": "runs"}
            if not name.startswith("00"):
                common |= {"model": "", "data": "", "rows": "", "device": ""}
            assert common.items() <= declared.items(), name

    def test_damage_to_any_artefact_makes_the_notebook_stale_that_writes_it(self, project):
        """posterior.parquet and noise_levels.parquet among them: 05 reads neither unless 02 has made it again."""
        session, keys = project.session(), {}
        session.notebooks = notebooks.NOTEBOOKS
        patterns = {pattern: notebook for notebook in session.notebooks for pattern in notebook.all_writes}
        files = {pattern.replace("*", "0"): notebook for pattern, notebook in patterns.items()}
        for name in files:
            (session.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (session.folder / name).write_text(name)
        for notebook in session.notebooks:
            write_notebook(project.root, notebook.name, PARAMETERS)
            keys[notebook] = notebook_key(session, notebook, {})
            session.executed(notebook).write_text("")
            record = {"key": keys[notebook], "writes": session.matches(notebook.all_writes), "figures": {}}
            record |= {"notebook": artifacts.content_hash(session.executed(notebook))}
            write_json(record, session.executed(notebook, ".json"))
        for name, writer in files.items():
            (session.folder / name).write_text("damaged")
            changed = [n for n in session.notebooks if notebook_key(session, n, {}) != keys[n]]
            assert [n for n in session.notebooks if not is_current(session, n, keys[n])] == [writer], name
            assert changed == list(session.notebooks[session.notebooks.index(writer) + 1 :]), name
            (session.folder / name).write_text(name)
        assert {"base-0/posterior.parquet", "base-0/noise_levels.parquet"} <= files.keys()

    def test_what_is_read_was_written_before(self):
        written = set()
        for notebook in notebooks.NOTEBOOKS:
            assert written.issuperset(notebook.reads), notebook.name
            written |= set(notebook.writes)


class TestRunning:
    def test_first_run(self, finished_project):
        started, out, err = finished_project.first_run
        assert started == ["01", "02", "03"] and err == ""
        lines = out.splitlines()
        assert lines[:2] == ["[1/3] 01_first", "      first: step 1/1"]
        assert re.fullmatch(r"      done in 0:\d\d", lines[2])
        assert re.fullmatch(r"desk: 3 of 3 notebooks run in \d:\d\d; .*/runs/desk/", lines[-1])
        assert (finished_project.folder / "third.txt").read_text() == "1"

    def test_inline_figures_and_working_directory(self, finished_project):
        shown = f"second backend module://matplotlib_inline.backend_inline {finished_project.root}"
        assert shown in finished_project.first_run[1]

    def test_executed_copies(self, finished_project):
        names = sorted(path.name for path in finished_project.folder.glob("*.ipynb"))
        assert names == [f"{notebook.name}.ipynb" for notebook in TABLE]
        executed = nbformat.read(finished_project.folder / "01_first.ipynb", 4)
        code = [cell for cell in executed.cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
        assert "injected-parameters" in code[1].metadata.tags
        record = json.loads((finished_project.folder / "02_second.json").read_text())
        assert list(record["writes"]) == ["second/built.txt", "second/y.txt"]
        assert list(record["figures"]) == ["second.png"]
        assert {"seconds", "parameters", "git_commit", "versions", "cpu", "threads", "created"} <= record.keys()

    def test_nothing_changed(self, finished):
        began = time.monotonic()
        started, out, _ = finished.run()
        assert started == [] and out.count("up to date") == 4
        assert time.monotonic() - began < 3

    def test_no_op_imports_neither_torch_nor_papermill(self, finished):
        heavy = "{'torch', 'papermill', 'nbclient', 'pandas', 'numpy', 'matplotlib'}"
        text = (finished.root / "driver.py").read_text()
        text = text.replace("sys.exit(status)", f"print('heavy', sorted({heavy} & sys.modules.keys()))")
        (finished.root / "light.py").write_text(text)
        out = subprocess.check_output([sys.executable, finished.root / "light.py"], text=True, cwd="/")
        assert out.count("up to date") == 4 and out.splitlines()[-1] == "heavy []"

    def test_force_makes_artefacts_again_too(self, finished):
        (finished.folder / "half").mkdir()
        started, out, _ = finished.run("--force", "02")
        assert started == ["02"] and "making built.txt" in out
        assert not (finished.folder / "half").exists()  # what an interrupted run had left
        assert finished.stale() == []

    def test_an_interrupted_forced_run_is_finished_by_the_next(self, finished):
        session = finished.session()
        for notebook in TABLE[:2]:
            forget(session, notebook)
        assert finished.stale() == ["01", "02", "03"]
        started, out, _ = finished.run("02")
        assert started == ["02"] and "making built.txt" in out

    def test_touching_runs_nothing(self, finished):
        for file in [*finished.root.rglob("*.py"), *finished.root.rglob("*.ipynb"), *finished.root.rglob("*.txt")]:
            os.utime(file)
        assert finished.stale() == []

    def test_edited_notebook_runs_again_and_what_follows_only_if_its_result_changed(self, finished):
        finished.write(2, SECOND + "print('more')\n")
        assert finished.run()[0] == ["02"]
        finished.write(2, SECOND.replace("[:1]", "[:1] + '!'"))
        assert finished.run()[0] == ["02", "03"]

    def test_edited_prose_of_the_package_runs_nothing(self, finished):
        (finished.root / "demo/used.py").write_text('"""About it."""\n\nimport os\n\nvalue = 1  # same\n')
        assert finished.stale() == []

    @pytest.mark.parametrize("name", ["used", "sub/deep", "unused"])
    def test_edited_code_makes_every_notebook_stale(self, finished, name):
        (finished.root / f"demo/{name}.py").write_text("value = 2\n")
        assert finished.stale() == ["01", "02", "03"]

    def test_edited_code_keeps_artefacts_that_do_not_stand_on_it(self, finished):
        (finished.root / "demo/unused.py").write_text("x = 1\n")
        started, out, _ = finished.run("02")
        assert started == ["02"] and "making built.txt" not in out

    def test_shipped_data_counts(self, finished):
        (finished.root / "shipped/base").write_text("another")
        assert finished.stale() == ["02"]

    def test_parameters_and_the_users_own_files_count(self, finished):
        (finished.root / "weights").write_text("a")
        given = ("-p", "rows=2", "-p", "model=weights", "01")
        assert finished.run(*given)[0] == ["01"]
        assert finished.run(*given)[0] == []
        assert (finished.folder / "first/x.txt").read_text() == "2 1"
        assert "01" not in finished.stale("rows=2", "model=weights")
        assert "01" in finished.stale("model=weights") and "01" in finished.stale("rows=2")
        (finished.root / "weights").write_text("bb")
        assert "01" in finished.stale("rows=2", "model=weights")

    @pytest.mark.parametrize(
        "name, number",
        [
            ("runs/desk/02_second.ipynb", "02"),
            ("runs/desk/02_second.json", "02"),
            ("runs/desk/third.txt", "03"),
            ("runs/desk/some/z.txt", "03"),
            ("figures/desk/second.png", "02"),
        ],
    )
    def test_deleted_and_damaged_outputs(self, finished, name, number):
        file = finished.root / name
        good = file.read_bytes()
        for damaged in (b"", good[:-2], b"?" + good[1:]):
            file.write_bytes(damaged)
            assert finished.stale() == [number]
        file.write_bytes(good)
        assert finished.stale() == []
        file.unlink()
        assert finished.stale() == [number]
        file.write_bytes(good)

    def test_deleted_artefact_is_made_again_and_nothing_else(self, finished):
        (finished.folder / "second/y.txt").unlink()
        assert finished.run()[0] == ["02"]
        assert finished.stale() == []

    @pytest.mark.parametrize("damaged", ["", '{"artefacts": {"built.txt": {"key', "[]", None])
    def test_a_lost_record_of_an_artefact_makes_its_notebook_stale(self, finished, damaged):
        file = finished.folder / "second/provenance.json"
        good = file.read_text()
        file.unlink() if damaged is None else file.write_text(damaged)
        assert finished.stale() == ["02", "03"]  # 03 only as long as 02 has not made it again
        file.write_text(good)
        assert finished.stale() == []

    def test_a_run_gets_out_of_half_a_record_and_a_missing_artefact_by_itself(self, finished):
        """A later notebook refuses an artefact without a record, and names the notebook that makes it."""
        check = "if not artifacts.is_current(folder / 'second/built.txt', **depends):\n"
        check += "    raise BadInput('built.txt is stale: run notebook 02 again')\n"
        imports = "from napo.workshop import artifacts, environment\nfrom napo.workshop.files import BadInput\n"
        finished.write(
            3, imports + SECOND[SECOND.index("depends =") : SECOND.index("artifacts.build(")] + check + THIRD
        )
        file = finished.folder / "second/provenance.json"
        file.write_text(file.read_text()[:100])
        (finished.folder / "third.txt").unlink()
        started, out, _ = finished.run()
        assert started == ["02", "03"] and "making built.txt" in out
        assert finished.stale() == []


class TestElsewhere:
    """A rerun under other versions, or on a CPU that computes along another path."""

    def test_other_versions_are_said_in_one_line_and_what_they_made_is_kept(self, finished):
        kept = {}
        for file in (finished.folder / "01_first.json", finished.folder / "second/provenance.json"):
            kept[file] = file.read_text()
            file.write_text(re.sub(r'("(torch|peft)": )"[^"]+"', r'\1"0.1"', kept[file]))
        started, out, _ = finished.run()
        notice = out.splitlines()[0]
        now = environment.snapshot(finished.root)["versions"]
        assert started == [] and out.count("up to date") == 4 and out.count("made under") == 1
        assert notice == (
            f"desk: made under torch 0.1, peft 0.1; here torch {now['torch']}, peft {now['peft']}: "
            "what other versions made is kept (--force makes everything again)"
        )
        for file, text in kept.items():
            file.write_text(text)
        assert made_elsewhere(finished.session()) == ""

    def test_another_cpu_path_is_said_in_one_line_and_makes_everything_again(self, finished):
        here = environment.cpu_path()
        started, out, _ = finished.run(ATEN_CPU_CAPABILITY="default")
        assert started == ["01", "02", "03"] and "making built.txt" in out
        notice = out.splitlines()[0]
        assert notice == (
            f"desk: made under CPU path {here}; here CPU path {here} ATEN_CPU_CAPABILITY=default: "
            "what was computed on another CPU path is made again"
        )
        again, out, _ = finished.run(ATEN_CPU_CAPABILITY="default")
        assert again == [] and "made under" not in out
        assert finished.stale() == ["01", "02", "03"]

    def test_versions_of_several_runs_are_all_named(self, project):
        session = project.session()
        for number, version in ((0, "0.2"), (1, "0.1")):
            write_json({"versions": {"torch": version, "numpy": "0"}}, session.executed(TABLE[number], ".json"))
        assert made_elsewhere(session).startswith("desk: made under torch 0.1 and 0.2; here torch ")
        assert "numpy" not in made_elsewhere(session)

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"versions": null}'])
    def test_unreadable_records_are_not_compared(self, project, text):
        session = project.session()
        project.folder.mkdir(parents=True)
        session.executed(TABLE[0], ".json").write_text(text)
        (project.folder / "provenance.json").write_text(text)
        assert made_elsewhere(session) == ""
        assert not is_current(session, TABLE[0], "") and last_record(session, TABLE[0]).get("key") is None


class TestRefusals:
    """What is wrong is said in one line before anything runs."""

    @pytest.mark.parametrize(
        "arguments, line",
        [
            (["-p", "rowz=3"], "error: -p rowz=3: the notebooks know name=value for model, rate, rows"),
            (["-p", "rows=many"], "error: -p rows=many: expected int as in the default 1"),
            (["--profile", "dekc"], "error: unknown profile 'dekc'"),
            (["09"], "error: no notebook 09; there are 01_first, 02_second, 03_third"),
        ],
    )
    def test_arguments(self, project, arguments, line):
        _, out, err = project.run(*arguments, status=2)
        assert (out, err) == ("", line + "\n")
        assert not (project.root / "runs").exists()

    def test_missing_parameters_tag_of_the_last_notebook(self, project):
        project.write(3, THIRD, tag=False)
        _, out, err = project.run(status=2)
        assert out == "" and err.count("\n") == 1 and "03_third.ipynb has 0 cells tagged `parameters`" in err

    def test_missing_artefact_names_the_notebook_that_writes_it(self, project):
        _, _, err = project.run("02", status=2)
        expected = f"error: missing {project.folder}/first/x.txt: run notebook 01 first (make reproduce PROFILE=desk)\n"
        assert err == expected

    def test_runs_folder_that_cannot_be_made(self, project):
        (project.root / "runs").write_text("a file")
        assert "error: cannot make folder" in project.run(status=2)[2]


class TestFailures:
    def test_failing_notebook(self, finished):
        (finished.folder / "02_second.ipynb").unlink()
        (finished.folder / "third.txt").unlink()
        finished.write(2, "print('so far')", "1 / 0", "print('never')")
        started, out, err = finished.run(status=1)
        assert started == ["02"] and "so far" in out and "never" not in out
        assert "ZeroDivisionError: division by zero" in err
        assert f"traceback in full: {finished.folder}/02_second.partial.ipynb" in err
        partial = (finished.folder / "02_second.partial.ipynb").read_text()
        assert "ZeroDivisionError" in partial
        assert not (finished.folder / "02_second.ipynb").exists()
        finished.write(2, SECOND)
        assert finished.run("01", "02")[0] == ["02"]
        assert not list(finished.folder.glob("*.partial.ipynb"))

    def test_failure_after_a_success_does_not_pass_for_it(self, finished):
        """And a bad input in a notebook is its one line."""
        raising = "from napo.workshop.files import BadInput\nraise BadInput('pairs.parquet, row 7: no image; give one')"
        finished.write(3, raising)
        started, _, err = finished.run(status=2)
        assert started == ["03"] and err == "error: pairs.parquet, row 7: no image; give one\n"
        assert (finished.folder / "03_third.partial.ipynb").exists()
        assert finished.stale() == ["03"]
        finished.write(3, THIRD)
        assert finished.stale() == []

    @pytest.mark.parametrize("kind", [BadInput, MissingArtifact])
    def test_errors_of_the_user_are_told_by_their_names(self, kind, tmp_path):
        raised = type("raised", (), {"ename": kind.__name__, "evalue": "pairs.parquet: no row 7", "traceback": []})
        explained = run._explained(raised, tmp_path / "x.partial.ipynb")
        assert type(explained) is BadInput and str(explained) == "pairs.parquet: no row 7"

    def test_a_kernel_that_is_interrupted_is_no_failure(self, tmp_path):
        raised = type("raised", (), {"ename": "KeyboardInterrupt", "evalue": "", "traceback": []})
        assert type(run._explained(raised, tmp_path / "x.partial.ipynb")) is KeyboardInterrupt

    def test_promised_artefact_is_not_written(self, project):
        project.write(1, "print('forgot')")
        assert "01_first ended without writing" in project.run(status=1)[2]
        assert not (project.folder / "01_first.ipynb").exists()

    @pytest.mark.parametrize("cells", [["import os; os._exit(0)", "print('never')"], ["import os; os._exit(0)"]])
    def test_kernel_exits(self, project, cells):
        """Even in the last cell, when everything promised is written."""
        project.write(1, FIRST, *cells)
        _, out, err = project.run("01", status=1)
        assert "kernel died (out of memory?)" in err and "never" not in out
        assert project.stale()[0] == "01"

    def test_cell_takes_too_long(self, project):
        project.write(1, "import time; time.sleep(60)")
        assert "a cell took longer than 2 s" in project.run("--execution-timeout", 2, status=1)[2]

    def test_full_disk(self, project):
        """Papermill writes the partial copy to a device that accepts nothing."""
        project.folder.mkdir(parents=True)
        (project.folder / "01_first.partial.ipynb").symlink_to("/dev/full")
        _, _, err = project.run(status=2)
        assert err.count("\n") == 1
        assert re.match(r"error: cannot write .*01_first\.partial\.ipynb: No space left on device", err)


class TestInterruptions:
    """Whatever is stopped how ever: no process stays, nothing half-done passes for done, the next run goes on there."""

    @pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)])
    def test_runner_stopped(self, finished, number, status):
        (finished.folder / "03_third.ipynb").unlink()
        finished.hold(3)
        runner = finished.start()
        kernel = finished.held()
        runner.send_signal(number)
        if status == 130:
            runner.send_signal(number)  # make passes one on that the whole group has got
        out, err = runner.communicate(timeout=60)
        assert runner.returncode == status
        assert ends(kernel), "the kernel outlived its runner"
        if status == 130:
            assert err == "stopped: run the same command again to go on\n"
            assert not (finished.folder / ".scratch").exists()
        assert not (finished.folder / "03_third.ipynb").exists()
        finished.go()
        assert finished.run()[0] == ["03"]

    @pytest.mark.parametrize("then", ["time.sleep(60)", "raise run.NotebookFailed('a consequence')"])
    def test_interrupt_that_a_library_swallows(self, project, then):
        text = (project.root / "driver.py").read_text()
        swallow = f"""
import time
def swallow(*_):
    print("ready", flush=True)
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        {then}
run._execute = swallow
root ="""
        (project.root / "driver.py").write_text(text.replace("\nroot =", swallow))
        runner = project.start("01")
        assert [runner.stdout.readline() for _ in range(2)] == ["[1/1] 01_first\n", "ready\n"]
        runner.send_signal(signal.SIGINT)
        _, err = runner.communicate(timeout=30)
        assert (runner.returncode, err) == (130, "stopped: run the same command again to go on\n")

    def test_kernel_killed(self, finished):
        finished.hold(3)
        runner = finished.start()
        os.kill(finished.held(), signal.SIGKILL)
        _, err = runner.communicate(timeout=60)
        assert runner.returncode == 1 and "kernel died (out of memory?)" in err
        finished.go()
        assert finished.run()[0] == ["03"]

    def test_two_runs_at_once(self, project):
        project.hold(1)
        runner = project.start("01")
        project.held()
        _, out, err = project.run(status=2)
        assert out == ""
        message = f"another run (process {runner.pid}) is writing {project.folder}: wait for it or stop it"
        assert err == f"error: {message}\n"
        other = project.start("--profile", "other", "01")
        project.go()
        assert [process.wait(120) for process in (runner, other)] == [0, 0]
        assert "01" not in project.stale()

    def test_what_a_dead_run_left_is_ignored_or_removed(self, finished):
        (finished.folder / ".lock").write_text("1\n")
        (finished.folder / ".scratch").mkdir()
        (finished.folder / ".scratch/tmpx.json").write_text("{}")
        assert finished.run()[0] == []
        assert not (finished.folder / ".scratch").exists()

    def test_a_folder_that_cannot_be_written_is_up_to_date_or_refused_in_one_line(self, finished):
        """As on a disk that is read only; root may write everywhere else."""
        (finished.folder / ".lock").unlink()
        (finished.folder / ".lock").mkdir()
        assert finished.run()[0] == []
        refusal = f"error: cannot write {finished.folder}/.lock: Is a directory; put that right and run again\n"
        assert finished.run("--force", "03", status=2)[1:] == ("", refusal)
        (finished.folder / "third.txt").unlink()
        _, out, err = finished.run(status=2)
        assert out.count("up to date") == 2 and err == refusal
        (finished.folder / ".lock").rmdir()


def test_the_real_command_refuses_in_one_line(root):
    command = [sys.executable, "-m", "napo", "run", "--profile", "dekc"]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert ended.returncode == 2
    assert re.fullmatch(r"error: unknown profile 'dekc': use one of .*\n", ended.stderr)


def test_module_edited_during_a_notebook_runs_it_again(project):
    project.hold(1)
    runner = project.start("01")
    project.held()
    (project.root / "demo/used.py").write_text("value = 3\n")
    project.go()
    runner.communicate(timeout=120)
    assert runner.returncode == 0
    assert (project.folder / "first/x.txt").read_text() == "1 3"
    assert project.run("01")[0] == ["01"]
    assert project.run("01")[0] == []


def test_key_does_not_depend_on_where_runs_lie(project):
    session = Session("desk", "runs", root=project.root, package=project.root / "demo", notebooks=TABLE)
    keys = {notebook_key(session, TABLE[0], {"rows": 1, "runs_dir": place}) for place in ("runs", "/elsewhere")}
    assert len(keys) == 1
    code_hash.forget()


def test_missing_artefact_is_raised_before_the_kernel_starts(project):
    session = project.session()
    with pytest.raises(MissingArtifact, match="run notebook 02 first"):
        run.run_notebook(session, TABLE[2], {}, "key")
    assert "hold" not in os.listdir(project.root) and not (project.root / "runs").exists()


def test_without_papermill_the_extra_that_brings_it_is_named(project, monkeypatch):
    session = project.session()
    monkeypatch.setitem(sys.modules, "papermill", None)  # as if it were not installed
    with pytest.raises(BadInput, match=r"^papermill is missing: pip install 'napo\[notebooks\]'$"):
        run.run_notebook(session, TABLE[0], {}, "key")
