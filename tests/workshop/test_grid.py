import functools
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from jupyter_client import KernelManager

from napo.workshop import grid
from napo.workshop.files import BadInput

MODES = pytest.mark.parametrize("workers", [1, 2])


@dataclass(frozen=True)
class Cell:
    """What a worker is to do, and a folder to leave traces in."""

    name: str
    folder: str
    does: str = ""


def work(cell):
    """Note that it ran, by which process and with which threads; then do what the cell says."""
    with open(Path(cell.folder) / cell.name, "a") as trace:
        trace.write(f"{os.getpid()}\n")
    if cell.does == "speak":
        print("3 · q")
    if cell.does == "sleep":
        time.sleep(600)
    if cell.does == "wait a little":
        time.sleep(0.3)
    if cell.does == "bad input":
        raise BadInput(f"row 7 of {cell.name} has no image")
    if cell.does == "error":
        raise ZeroDivisionError("first line\nsecond line")
    if cell.does == "die":
        print("last words", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if cell.does == "unsendable":
        return lambda: None
    return cell.name, os.getpid(), os.environ.get("OMP_NUM_THREADS")


def cells(folder, *does):
    return [Cell(f"cell{number}", str(folder), what) for number, what in enumerate(does)]


def runs(pid):
    """Whether the process runs; one that only waits to be reaped by a container's lazy init does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone(pids, seconds=20):
    """Whether all processes end within `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(runs(pid) for pid in pids):
            return True
        time.sleep(0.1)
    return False


def traces(folder, count, seconds=60):
    """Ids of the processes that work on the first `count` cells, once all have started."""
    deadline = time.monotonic() + seconds
    files = [Path(folder) / f"cell{number}" for number in range(count)]
    while time.monotonic() < deadline:
        texts = [file.read_text() if file.exists() else "" for file in files]
        if all(text.endswith("\n") for text in texts):
            return [int(text) for text in texts]
        time.sleep(0.1)
    raise AssertionError("the workers did not start")


@MODES
def test_results_come_in_the_order_of_the_cells(tmp_path, workers):
    given = cells(tmp_path, "wait a little", "", "", "")
    results = grid.run(given, work, workers=workers, label="train")
    assert [name for name, _, _ in results] == [cell.name for cell in given]
    inside = {pid == os.getpid() for _, pid, _ in results}
    assert inside == {workers == 1}


def test_workers_are_few_kept_and_have_one_thread(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    results, later = (grid.run(cells(tmp_path, *["wait a little"] * 6), work, workers=2, label="x") for _ in range(2))
    assert len({pid for _, pid, _ in results}) == 2
    assert {pid for _, pid, _ in results} == {pid for _, pid, _ in later}  # they have imported what they need
    assert {threads for _, _, threads in results} == {"1"}
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_workers_of_another_environment_are_not_used_again(tmp_path, monkeypatch):
    ((_, first, _),) = grid.run(cells(tmp_path, ""), work, workers=2, label="x")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    ((_, second, _),) = grid.run(cells(tmp_path, ""), work, workers=2, label="x")
    assert first != second and gone([first])


def test_a_worker_that_died_at_rest_is_replaced(tmp_path):
    ((_, first, _),) = grid.run(cells(tmp_path, ""), work, workers=2, label="x")
    os.kill(first, signal.SIGKILL)
    assert gone([first])
    ((_, second, _),) = grid.run(cells(tmp_path, ""), work, workers=2, label="x")
    assert first != second


@MODES
def test_finished_cells_are_not_run_again(tmp_path, workers, capsys):
    given = cells(tmp_path, "", "", "")
    (tmp_path / "cell1").write_text("finished")
    results = grid.run(given, work, workers=workers, label="train", done=lambda cell: (tmp_path / cell.name).exists())
    assert results[1] is None and results[0][0] == "cell0" and results[2][0] == "cell2"
    assert (tmp_path / "cell1").read_text() == "finished"
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "train: 1 of 3 finished earlier"
    assert shown[-1].startswith("train 2/2 · ")


@MODES
def test_nothing_to_do(tmp_path, workers):
    assert grid.run([], work, workers=workers, label="train") == []
    assert grid.run(cells(tmp_path, "error"), work, workers=workers, label="train", done=lambda cell: True) == [None]


@MODES
def test_one_failure_does_not_stop_the_others(tmp_path, workers):
    given = cells(tmp_path, "", "error", "", "bad input", "")
    with pytest.raises(RuntimeError) as caught:
        grid.run(given, work, workers=workers, label="train")
    first, _, rest = str(caught.value).partition("\n")
    expected = "cell1: ZeroDivisionError: first line; cell3: row 7 of cell3 has no image"
    assert first == f"train: 2 of 5 cells failed: {expected}"
    assert "Traceback" in rest and "second line" in rest
    assert len(os.listdir(tmp_path)) == 5


@MODES
def test_bad_input_only_is_bad_input_in_one_line(tmp_path, workers):
    with pytest.raises(BadInput) as caught:
        grid.run(cells(tmp_path, "", "bad input"), work, workers=workers, label="train")
    assert str(caught.value) == "train: 1 of 2 cells failed: cell1: row 7 of cell1 has no image"


def test_killed_worker_costs_its_cell_only(tmp_path):
    with pytest.raises(RuntimeError) as caught:
        grid.run(cells(tmp_path, "die", "die", "", "", ""), work, workers=2, label="train")
    line = "its process ended: killed by SIGKILL (out of memory?)"
    assert f"train: 2 of 5 cells failed: cell0: {line}; cell1: {line}\n" in str(caught.value)
    assert "last words" in str(caught.value)
    assert len(os.listdir(tmp_path)) == 5


def test_workers_print_every_letter_where_the_output_is_ascii(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    assert len(grid.run(cells(tmp_path, "speak", "speak"), work, workers=2, label="train")) == 2


def test_result_that_cannot_be_sent(tmp_path):
    with pytest.raises(RuntimeError, match="1 of 2 cells failed: cell0: its result cannot be sent"):
        grid.run(cells(tmp_path, "unsendable", ""), work, workers=2, label="train")


def test_worker_of_a_script_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(work, "__module__", "__main__")
    for worker in (work, functools.partial(work)):
        with pytest.raises(ValueError, match="work must be a function of an importable module"):
            grid.run(cells(tmp_path, ""), worker, workers=2, label="train")


def test_progress_says_how_long_still(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("napo.workshop.progress.PAUSE", 0)
    grid.run(cells(tmp_path, "", "", ""), work, workers=1, label="train")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" · ")[0] for line in lines] == ["train 1/3", "train 2/3", "train 3/3"]
    assert lines[0].endswith(" left")


@pytest.fixture
def script(tmp_path):
    """A program that runs three sleeping cells in two workers."""
    path = tmp_path / "program.py"
    path.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import test_grid\nfrom napo.workshop import grid\n"
        "if __name__ == '__main__':\n"
        "    cells = test_grid.cells(sys.argv[1], 'sleep', 'sleep', 'sleep')\n"
        "    grid.run(cells, test_grid.work, workers=2, label='train')\n"
    )
    return path


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_workers_end_with_their_parent(tmp_path, script, number):
    (tmp_path / "traces").mkdir()
    parent = subprocess.Popen([sys.executable, script, tmp_path / "traces"], stderr=subprocess.DEVNULL)
    pids = traces(tmp_path / "traces", 2)
    assert all(runs(pid) for pid in pids)
    os.kill(parent.pid, number)
    assert parent.wait(20) != 0
    assert gone(pids)
    assert len(os.listdir(tmp_path / "traces")) == 2


def test_workers_end_with_a_killed_jupyter_kernel(tmp_path):
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(tmp_path))
    try:
        client = manager.client()
        client.start_channels()
        client.wait_for_ready(timeout=120)
        code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        code += "import test_grid\nfrom napo.workshop import grid\n"
        run = "grid.run(test_grid.cells({!r}, {}), test_grid.work, workers=2, label='train')"
        (tmp_path / "quick").mkdir()
        reply = client.execute_interactive(code + run.format(str(tmp_path / "quick"), "'', '', ''"), timeout=120)
        assert reply["content"]["status"] == "ok"
        assert len(os.listdir(tmp_path / "quick")) == 3
        (tmp_path / "slow").mkdir()
        client.execute(run.format(str(tmp_path / "slow"), "'sleep', 'sleep'"))
        pids = traces(tmp_path / "slow", 2)
        client.stop_channels()
    finally:
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()
    assert gone(pids)
