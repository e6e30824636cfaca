"""napo.explorer.serve: the page holds the explorer, on real margins if there are any; `napo serve` serves it."""

import asyncio
import importlib.util
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import nbformat
import pytest
from small_report import margins_table
from tornado.websocket import websocket_connect

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
        assert port < serve.free_port(first=port) < port + 50
    with pytest.raises(BadInput, match="no free port"):
        serve.free_port(first=65536)


@pytest.mark.parametrize("port", [-1, 0, 70000, "taken"])
def test_a_port_that_cannot_be_used_is_refused_in_one_line(port, capsys):
    with socket.socket() as taken:
        taken.bind((serve.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1] if port == "taken" else port
        assert command_serve.main(["--port", str(port)]) == 2
    assert re.fullmatch(
        rf"error: port {port}( cannot be used|: give a number from 1 to 65535).*\n", capsys.readouterr().err
    )


def test_a_profile_is_a_name_that_is_known(capsys):
    assert command_serve.main(["--profile", "../../x"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown profile '../../x'")


def test_missing_voila_names_the_extra(monkeypatch, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "voila" else real(name, *rest))
    assert command_serve.main([]) == 2
    assert capsys.readouterr().err == "error: voila is missing: pip install 'napo[notebooks]'\n"


def test_when_it_is_ended_nothing_stays_behind(tmp_path):
    """Neither Voila nor the folder with the page, nor what a killed one left."""
    (tmp_path / f"napo-{2**22 + 1}-explorer-x").mkdir()
    port = serve.free_port(first=20000)
    command = [sys.executable, "-m", "napo", "serve", "--runs-dir", str(tmp_path), "--port", str(port)]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    address = re.search(r"http://\S+", process.stdout.readline()).group()
    assert int(re.search(r":(\d+)/", address).group(1)) == port
    wait_until(lambda: listens(port))
    assert len(list(tmp_path.glob("napo-*-explorer-*"))) == 1
    process.terminate()
    assert process.wait(60) == 0
    assert not listens(port) and not list(tmp_path.glob("napo-*-explorer-*"))


LIGHT = """
import pathlib, sys, nbformat
from napo.explorer import few_kernels, serve
few_kernels.MOST, few_kernels.GRACE = 1, 0.1
page, kernel = pathlib.Path(sys.argv[1]) / "page.ipynb", {"name": "python3", "language": "python", "display_name": "x"}
cells = [nbformat.v4.new_code_cell("print('ran', 1 + 1)")]
nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), page)
serve.serve(page, serve.free_port(first=21000))
"""


def test_kernels_are_few_and_end_with_their_pages_and_only_this_machine_gets_one(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", LIGHT, tmp_path], stdout=subprocess.PIPE, text=True)
    try:
        address = re.search(r"http://\S+", process.stdout.readline()).group()
        port, token = re.search(r":(\d+)/\?token=(.*)", address).groups()
        wait_until(lambda: listens(int(port)))
        for stranger in ("evil.example", f"127.0.0.1.evil.example:{port}"):
            assert got(address, Host=stranger)[0] == 403
        status, page = got(address, Host=f"localhost:{port}")
        assert status == 200 and "ran 2" in page
        status, refusal = got(address)
        assert status == 503 and "show the explorer already. Close one, then reload this page" in refusal
        kernel = re.search(r'"kernelId": "([\w-]+)"', page).group(1)
        channels = f"ws://127.0.0.1:{port}/api/kernels/{kernel}/channels?session_id=x&token={token}"
        asyncio.run(open_and_close(channels))
        wait_until(lambda: got(address)[0] == 200, 30)
    finally:
        process.terminate()
        assert process.wait(60) == 0
    assert not list(tmp_path.glob("voila_*"))


def got(address, **headers):
    """(status, text) of a page."""
    try:
        answer = urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=60)
    except urllib.error.HTTPError as refused:
        answer = refused
    with answer:
        return answer.status, answer.read().decode()


async def open_and_close(channels):
    connection = await websocket_connect(channels)
    await asyncio.sleep(0.5)
    connection.close()


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex((serve.HOST, port)) == 0


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing listens"
        time.sleep(0.1)
