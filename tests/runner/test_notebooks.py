"""The six notebooks: their form, and their runs on the desk world at smoke size and (01-04) on a user's own data."""

import ast
import base64
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys

import nbformat
import pandas as pd
import pytest
import smoke_run
from photographs import write_upstream
from tiny_models import save_tiny_llava

from napo.runner.notebooks import NOTEBOOKS, declared_parameters
from napo.workshop.files import MissingArtifact, read_json

NAMES = [notebook.name for notebook in NOTEBOOKS]
PASSED_ON = ("model", "data", "rows", "device")


def run(root, *arguments):
    """`python -m napo run` from outside the repository, as a user might. Returns the finished process."""
    command = [sys.executable, "-m", "napo", "run", *map(str, arguments)]
    return subprocess.run(command, cwd=root.parent, capture_output=True, text=True, timeout=900, env={**os.environ})


@pytest.mark.parametrize("name", NAMES)
def test_notebook_is_well_formed(root, name):
    notebook = nbformat.read(root / "notebooks" / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert max(len(cell.source.splitlines()) for cell in code) <= 25
    assert sorted(len(cell.source.splitlines()) for cell in code)[len(code) // 2] <= 8


def import_cell(root, name):
    """(number, source) of the one cell with imports beside the installing cell."""
    cells = enumerate(code_cells(root, name)[1:], 1)
    ((number, source),) = [(i, cell) for i, cell in cells if any(map(is_import, ast.walk(ast.parse(cell))))]
    return number, source


def is_import(node):
    return isinstance(node, ast.Import | ast.ImportFrom)


@pytest.mark.parametrize("name", NAMES)
def test_imports_stand_in_one_short_cell_after_the_parameters(root, name):
    number, source = import_cell(root, name)
    assert number == 2 and all(map(is_import, ast.parse(source).body))
    assert len(source.splitlines()) <= 6 and "import napo" in source.splitlines()


def test_the_median_import_cell_has_four_imports(root):
    lengths = [len(ast.parse(import_cell(root, name)[1]).body) for name in NAMES]
    assert statistics.median(lengths) <= 4, dict(zip(NAMES, lengths, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_stages_and_places_go_through_the_kit(root, name):
    code = "\n".join(code_cells(root, name)[1:])
    assert code.count("napo.Kit(profile, ") == 1
    assert not re.findall(r"\b(?:functools|partial|grid|run_folder|figures_folder|cell_folder|profiles)\b", code)
    assert code.count("runs_dir") == 3  # the parameter and the argument of Kit


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=NAMES)
def test_the_table_of_the_opening_is_complete(root, notebook):
    """It names every file that the runner expects, every figure that the code saves, and a time for every profile."""
    table = prose(root, notebook.name)[0].split("\n\n")[-1]
    reads, writes, time = (cell.strip() for cell in table.splitlines()[-1].strip("|").split("|"))
    figures = set(re.findall(r'f?"([\w{}]+\.png)"\)', "\n".join(code_cells(root, notebook.name))))
    assert figures and figures - {"table_{name}.png"} <= set(re.findall(r"\w+\.png", writes))
    for place, patterns in ((reads, notebook.reads), (writes, notebook.all_writes)):
        names = [[part for part in pattern.split("/") if "*" not in part][-1] for pattern in patterns]
        assert not [name for name in names if name not in place]
    assert all(profile in time for profile in ("smoke", "desk", "study", "paper"))


def test_each_ends_with_an_assertion_and_leads_to_the_next(root):
    for name, following in zip(NAMES, [*NAMES[1:], NAMES[0]], strict=True):
        assert f"]({following}.ipynb)" in prose(root, name)[-1] and "assert " in code_cells(root, name)[-1]


@pytest.mark.parametrize("name", NAMES)
def test_parameters_that_the_makefile_passes_exist(root, name):
    makefile = (root / "Makefile").read_text()
    options = re.findall(r'--([\w-]+)="\$\$NAPO_|-p "(\w+)=', makefile[makefile.index("OVERRIDES") :])
    passed = {(option or parameter).replace("-", "_") for option, parameter in options}
    assert passed.issuperset(PASSED_ON)
    declared = declared_parameters(root / "notebooks" / f"{name}.ipynb")
    assert declared["profile"] == "desk" and declared["runs_dir"] == "runs"
    if not name.startswith("00"):
        assert set(PASSED_ON) <= declared.keys()
    anywhere = set().union(*(declared_parameters(root / "notebooks" / f"{other}.ipynb") for other in NAMES))
    assert passed <= anywhere


def code_cells(root, name):
    cells = json.loads((root / "notebooks" / f"{name}.ipynb").read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def prose(root, name):
    cells = json.loads((root / "notebooks" / f"{name}.ipynb").read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]


def test_every_notebook_begins_with_the_same_installing_cell(root):
    first = {code_cells(root, name)[0] for name in NAMES}
    assert len(first) == 1 and "napo[notebooks] @ " in first.pop()


class TestInstallingCell:
    """Run as it stands, with a pip that only writes down what it was asked for."""

    @pytest.fixture
    def run_cell(self, root, monkeypatch):
        def run(there, folder, typed=""):
            asked = []
            monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if there else None)
            monkeypatch.setattr(subprocess, "check_call", asked.append)
            monkeypatch.setattr("builtins.input", lambda prompt: typed)
            monkeypatch.chdir(folder)
            exec(code_cells(root, NAMES[0])[0], {})
            return asked

        return run

    def test_does_nothing_where_the_package_is(self, run_cell, root):
        assert run_cell(True, root) == []

    def test_installs_from_the_clone_that_the_notebook_lies_in(self, run_cell, root):
        (command,) = run_cell(False, root / "notebooks")
        assert command[:4] == [sys.executable, "-m", "pip", "install"]
        assert command[-1] == f"napo[notebooks] @ {root.as_uri()}"

    def test_asks_where_from_if_there_is_no_clone(self, run_cell, tmp_path):
        (command,) = run_cell(False, tmp_path, typed="https://somewhere/kit")
        assert command[-1] == "napo[notebooks] @ git+https://somewhere/kit"


@pytest.mark.parametrize(("name", "first"), [(NAMES[2], "01"), (NAMES[3], "01"), (NAMES[4], "01"), (NAMES[5], "04")])
def test_a_notebook_opened_out_of_order_says_which_to_run_first(root, name, first, tmp_path):
    names = {}
    with pytest.raises(MissingArtifact, match=f"run notebook {first} first"):
        for cell in code_cells(root, name):
            cell = cell.replace('profile = "desk"', 'profile = "smoke"')
            exec(cell.replace('runs_dir = "runs"', f"runs_dir = {str(tmp_path)!r}"), names)


def test_pictures_in_prose_are_in_git(root):
    """And above each widget stands one: outputs are not in git."""
    for name in NAMES:
        cells = json.loads((root / "notebooks" / f"{name}.ipynb").read_text())["cells"]
        texts = ["".join(cell["source"]) for cell in cells]
        for link in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", "\n".join(texts)):
            picture = (root / "notebooks" / link).resolve().relative_to(root).as_posix()
            assert subprocess.run(["git", "ls-files", "--error-unmatch", picture], cwd=root).returncode == 0, picture
        for before, text in zip(texts, texts[1:], strict=False):
            assert not text.startswith("explorer = ") or "](../figures/study/" in before


@pytest.fixture(scope="module")
def smoke(root, tmp_path_factory):
    """(folder of the runs, finished process) of the one smoke run of the suite."""
    return smoke_run.finished(root, tmp_path_factory)


def test_smoke_runs_every_notebook(smoke):
    runs, finished = smoke
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-2000:]
    for name in NAMES:
        executed = nbformat.read(runs / "smoke" / f"{name}.ipynb", as_version=4)
        assert all(cell.execution_count for cell in executed.cells if cell.cell_type == "code")
    assert "Warning" not in finished.stdout + finished.stderr


@pytest.mark.parametrize("name", [NAMES[0], NAMES[2]])
def test_executed_copies_keep_the_explorers_picture(smoke, name):
    runs, _ = smoke
    executed = nbformat.read(runs / "smoke" / f"{name}.ipynb", as_version=4)
    (cell,) = [cell for cell in executed.cells if cell.source.startswith("explorer = ")]
    (shown,) = [output.data for output in cell.outputs if "data" in output]
    assert base64.b64decode(shown["image/png"]).startswith(b"\x89PNG")
    assert "application/vnd.jupyter.widget-view+json" in shown


def test_smoke_writes_claims_by_the_contract(smoke):
    runs, _ = smoke
    ledger = read_json(runs / "smoke" / "claims.json")
    assert [claim["id"] for claim in ledger] == [f"C{i}" for i in range(1, 11)]
    for claim in ledger:
        assert claim["verdict"] in ("reproduced", "contradicted", "inconclusive", "not run")
        for component in claim["components"]:
            assert {"metric", "comparison", "effect", "ci95", "null", "direction", "verdict"} <= component.keys()
            assert len(component["ci95"]) == 2
    assert (runs / "smoke" / "report.md").read_text().startswith("# ")


def test_smoke_scores_have_the_contract_columns(smoke):
    runs, _ = smoke
    files = sorted((runs / "smoke" / "cells").glob("*/scores.parquet"))
    assert {file.parent.name for file in files} >= {"base-b0-s0-f0", "dpo_all-b0-s0-f0", "napo_paper-b0-s0-f0"}
    columns = "method base seed flip_rate benchmark metric example_id question_kind value".split()
    assert list(pd.read_parquet(files[0]).columns) == columns


def test_second_smoke_run_does_nothing(root, smoke):
    runs, _ = smoke
    before = stamps(runs)
    finished = run(root, "--profile", "smoke", "--runs-dir", runs)
    assert finished.returncode == 0
    assert finished.stdout.count("up to date") >= len(NAMES)
    assert stamps(runs) == before


def stamps(folder):
    """Every file below a folder and when it was written; the runner's own lock apart."""
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file() and file.name != ".lock"}


def test_own_photographs_and_model_run_through_the_paper_profile(root, tmp_path):
    model, data = save_tiny_llava(tmp_path / "model"), write_upstream(tmp_path / "rows.parquet", 14)
    runs, overrides = tmp_path / "runs", [f"model={model}", f"data={data}", "rows=10", "device=cpu"]
    arguments = [piece for override in overrides for piece in ("-p", override)]
    finished = run(root, "01", "02", "03", "04", "--profile", "paper", "--runs-dir", runs, *arguments)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-2000:]
    pairs = pd.read_parquet(runs / "paper" / "base-0" / "pairs.parquet")
    assert {"language_biased", "vision_biased"} <= set(pairs) and pairs["language_biased"].str.strip().all()
    scores = pd.read_parquet(runs / "paper" / "cells" / "napo_paper-b0-s0-f0" / "scores.parquet")
    assert set(scores["benchmark"]) == {"heldout_pairs"} and scores["value"].notna().all()
    assert (runs / "paper" / "cells" / "napo_paper-b0-s0-f0" / "adapter" / "adapter_config.json").exists()


def test_bad_row_in_own_data_stops_with_one_line(root, tmp_path):
    model = save_tiny_llava(tmp_path / "model")
    data = write_upstream(
        tmp_path / "rows.parquet", 5, image=lambda i: None if i == 3 else {"bytes": b"no image", "path": "x"}
    )
    arguments = ["-p", f"model={model}", "-p", f"data={data}", "-p", "rows=5", "-p", "device=cpu"]
    finished = run(root, "01", "--profile", "paper", "--runs-dir", tmp_path / "runs", *arguments)
    assert finished.returncode == 2
    assert "rows.parquet" in finished.stderr and "row 3" in finished.stderr and "Traceback" not in finished.stderr
    assert not (tmp_path / "runs" / "paper" / "base-0" / "pairs.parquet").exists()
