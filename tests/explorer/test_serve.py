"""napo.explorer.serve: the page holds the explorer, on real margins if there are any; `napo serve` serves it."""

import importlib.util
import os
import re
import socket
import subprocess
import sys
import time

import nbformat
import pytest
from small_report import margins_table

from napo.commands import serve as command_serve
from napo.explorer import serve, widgets
from napo.workshop.files import BadInput


@pytest.fixture
def run_with_margins(tmp_path):
    path = tmp_path / "runs/desk/base-0/noise.parquet"
    path.parent.mkdir(parents=True)
    margins_table().to_parquet(path)
    return tmp_path / "runs"


def shown_by(page):
    """The explorer that the page's cells make, and its introduction."""
    cells = nbformat.read(page, as_version=4).cells
    code = next(cell.source for cell in cells if cell.cell_type == "code").splitlines()
    names = {}
    exec("\n".join(code[:-1]), names)
    return eval(code[-1], names), cells[0].source


def test_without_a_run_the_toys_pairs_are_shown(tmp_path):
    explorer, introduction = shown_by(serve.write_page(tmp_path, "desk", tmp_path / "none"))
    assert list(explorer.batches) == [widgets.TOY] and "toy's own pairs" in introduction
    (picture,) = [name for name in serve.PICTURES if f"]({name})" in introduction]
    assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


def test_with_a_run_its_margins_are_shown(run_with_margins, tmp_path):
    explorer, introduction = shown_by(serve.write_page(tmp_path, "desk", run_with_margins))
    assert widgets.LANGUAGE in explorer.batches and "are real" in introduction
    assert len(explorer.view.rows.margin) == 4


def test_the_page_is_a_valid_notebook(tmp_path):
    nbformat.validate(nbformat.read(serve.write_page(tmp_path, "desk"), as_version=4))


def test_a_taken_port_is_passed_over():
    with socket.socket() as taken:
        taken.bind((serve.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert port < serve.free_port(port) < port + 50
    with pytest.raises(BadInput, match="no free port"):
        serve.free_port(65536)


def test_missing_voila_names_the_extra(monkeypatch, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "voila" else real(name, *rest))
    assert command_serve.main([]) == 2
    assert capsys.readouterr().err == "error: voila is missing: pip install 'napo[notebooks]'\n"


def test_when_it_is_ended_nothing_stays_behind(tmp_path):
    """Neither Voila nor the folder with the page."""
    port = serve.free_port(20000)
    command = [sys.executable, "-m", "napo", "serve", "--runs-dir", str(tmp_path), "--port", str(port)]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    address = re.search(r"http://\S+", process.stdout.readline()).group()
    assert int(re.search(r":(\d+)/", address).group(1)) == port
    wait_until(lambda: listens(port))
    assert list(tmp_path.glob("napo-explorer-*"))
    process.terminate()
    assert process.wait(60) == 0
    assert not listens(port) and not list(tmp_path.glob("napo-explorer-*"))


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex((serve.HOST, port)) == 0


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing listens"
        time.sleep(0.1)
