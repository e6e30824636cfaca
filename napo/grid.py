"""Many cells of an experiment, such as (method, base, seed, flip rate), in parallel processes.

One worker process per slot, each with one thread, started afresh (spawn), kept for many cells so that torch is imported
once. A worker that raises or dies costs its cell only. Workers end with their parent, however that ends. Works from
inside a Jupyter kernel: cells and the worker function must come from an importable module.
"""

import collections
import contextlib
import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait

from napo.artifacts import BadInput
from napo.progress import progress

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
# glibc keeps the pages that it has: handing them back and forth took 6 % of a desk training's CPU time, in the kernel.
KEEP_PAGES = {"MALLOC_TRIM_THRESHOLD_": str(2**33), "MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TOP_PAD_": str(2**28)}
CHILD_ENVIRONMENT = ONE_THREAD | {"TOKENIZERS_PARALLELISM": "false"} | KEEP_PAGES


@dataclass(frozen=True)
class _Failure:
    line: str  # type and first line of the message
    details: str  # traceback, or the last that the worker printed
    bad_input: bool


@dataclass
class _Worker:
    process: multiprocessing.Process
    pipe: multiprocessing.connection.Connection
    log: object
    index: int | None = None  # of the cell in work


def run(cells: Sequence, worker: Callable, *, workers: int, label: str, done: Callable | None = None) -> list:
    """Results of `worker(cell)` in the order of `cells`; None for a cell that `done(cell)` says is finished.

    workers  number of processes; with 1 the cells run in this process, with its threads
    Raises at the end, when all other cells are through: BadInput if every failed cell raised that, else RuntimeError;
    both name each failed cell with the first line of its error. KeyboardInterrupt ends the workers at once.
    """
    cells = list(cells)
    results: list = [None] * len(cells)
    todo = [index for index, cell in enumerate(cells) if done is None or not done(cell)]
    if len(todo) < len(cells):
        print(f"{label}: {len(cells) - len(todo)} of {len(cells)} finished earlier", flush=True)
    steps = progress(len(todo), label)
    failures: dict[int, _Failure] = {}
    outcomes = _here(cells, todo, worker) if workers == 1 else _spawned(cells, todo, worker, workers)
    with contextlib.closing(outcomes):
        for index, outcome in outcomes:
            if isinstance(outcome, _Failure):
                failures[index] = outcome
                print(f"{label}: {_name(cells[index])} failed: {outcome.line}", flush=True)
            else:
                results[index] = outcome
            steps.step()
    if failures:
        raise _summary(label, cells, failures)
    return results


def _name(cell) -> str:
    return getattr(cell, "name", None) or str(cell)


def _summary(label: str, cells: list, failures: dict[int, _Failure]) -> Exception:
    lines = [f"{_name(cells[index])}: {failure.line}" for index, failure in sorted(failures.items())]
    text = f"{label}: {len(lines)} of {len(cells)} cells failed: {'; '.join(lines)}"
    if all(failure.bad_input for failure in failures.values()):
        return BadInput(text)
    first = failures[min(failures)]
    return RuntimeError(f"{text}\n\nThe first of them:\n{first.details}")


def _outcome(worker: Callable, cell):
    """The worker's result, or the _Failure it came to."""
    try:
        return worker(cell)
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        bad = isinstance(error, BadInput)
        return _Failure(first if bad else f"{type(error).__name__}: {first}", traceback.format_exc(), bad)


def _here(cells, todo, worker):
    for index in todo:
        yield index, _outcome(worker, cells[index])


def _spawned(cells, todo, worker, count):
    """Yield (index, outcome) as cells end. Closing the generator ends the workers."""
    function = getattr(worker, "func", worker)  # of a functools.partial
    if function.__module__ == "__main__":
        raise ValueError(f"{function.__name__} must be a function of an importable module to run in other processes")
    waiting = collections.deque(todo)
    pool = [_start() for _ in range(min(count, len(todo)))]
    try:
        while waiting or any(slot.index is not None for slot in pool):
            for slot in pool:
                if slot.index is None and waiting and slot.process.is_alive():
                    slot.index = waiting.popleft()
                    _send(slot, (worker, cells[slot.index]))
            ready = wait([slot.pipe for slot in pool], timeout=5)
            for number, slot in enumerate(pool):
                if slot.pipe not in ready:
                    continue
                outcome = _receive(slot)
                ended, slot.index = slot.index, None
                if not slot.process.is_alive():
                    _end([slot])
                    pool[number] = _start()
                if ended is not None:
                    yield ended, outcome
    finally:
        _end(pool)


def _start() -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    log = tempfile.NamedTemporaryFile("w+", prefix="napo-grid-", suffix=".log", errors="replace")  # noqa: SIM115
    process = context.Process(target=_serve, args=(theirs, os.getpid(), log.name), daemon=False)
    before = {name: os.environ.get(name) for name in CHILD_ENVIRONMENT}
    os.environ.update(CHILD_ENVIRONMENT)
    try:
        process.start()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    theirs.close()
    return _Worker(process, ours, log)


def _send(slot: _Worker, task: tuple) -> None:
    with contextlib.suppress(BrokenPipeError):  # it died; _receive says so
        slot.pipe.send(task)


def _receive(slot: _Worker):
    try:
        return slot.pipe.recv()
    except (EOFError, OSError):
        slot.process.join(timeout=5)
        code = slot.process.exitcode
        reason = (
            f"killed by {signal.Signals(-code).name} (out of memory?)" if code and code < 0 else f"exit status {code}"
        )
        slot.log.seek(0)
        return _Failure(f"its process ended: {reason}", slot.log.read()[-4000:], False)


def _end(pool: list[_Worker]) -> None:
    for slot in pool:
        slot.pipe.close()
        slot.process.terminate()
    for slot in pool:
        slot.process.join(timeout=3)
        if slot.process.is_alive():
            slot.process.kill()
            slot.process.join()
        slot.log.close()


def _serve(pipe, parent: int, log: str) -> None:
    """Body of a worker process: (worker, cell) in, outcome out, until the parent closes the pipe or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    while True:
        try:
            outcome = _outcome(*pipe.recv())
        except EOFError:
            return
        except Exception as error:  # the worker's module fails to import
            outcome = _Failure(f"{type(error).__name__}: {error}", traceback.format_exc(), False)
        try:
            pipe.send(outcome)
        except (TypeError, AttributeError, ValueError, pickle.PicklingError) as error:
            pipe.send(_Failure(f"its result cannot be sent: {error}", traceback.format_exc(), False))


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
