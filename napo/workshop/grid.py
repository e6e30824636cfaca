"""Many cells of an experiment, such as (method, base, seed, flip rate), in parallel processes.

Each worker process has one thread and takes many cells, also of later calls, so it imports torch once. An error or the
death of a worker costs one cell. Workers end with their parent, even if it is killed. They are fresh processes, also
from a Jupyter kernel: cells and the worker function must come from an importable module.
"""

import collections
import contextlib
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from subprocess import DEVNULL, Popen
from typing import ClassVar

from napo.workshop.files import BadInput, first_line
from napo.workshop.progress import progress

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
# glibc keeps freed pages. Returning them to the kernel took 6 % of the CPU time of a desk training.
KEEP_PAGES = {"MALLOC_TRIM_THRESHOLD_": str(2**33), "MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TOP_PAD_": str(2**28)}
CHILD_ENVIRONMENT = ONE_THREAD | {"TOKENIZERS_PARALLELISM": "false", "PYTHONIOENCODING": "utf-8"} | KEEP_PAGES


@dataclass(frozen=True)
class _Failure:
    line: str  # type and first line of the message
    details: str  # traceback, or the worker's last output
    bad_input: bool = False


def run(cells: Sequence, worker: Callable, *, workers: int, label: str, done: Callable | None = None) -> list:
    """Results of `worker(cell)` in the order of `cells`; None for a cell that is finished by `done(cell)`.

    workers  number of processes; 1 runs the cells in this process, with its threads
    Raises when all other cells are done: BadInput if every failed cell raised that, else RuntimeError. The message
    names each failed cell with the first line of its error. KeyboardInterrupt ends the workers at once.
    """
    names = [getattr(cell, "name", None) or str(cell) for cell in cells]
    outcomes: dict[int, object] = {}
    todo = [index for index, cell in enumerate(cells) if done is None or not done(cell)]
    if len(todo) < len(cells):
        print(f"{label}: {len(cells) - len(todo)} of {len(cells)} finished earlier", flush=True)
    steps = progress(len(todo), label)
    here = ((index, _outcome(worker, cells[index])) for index in todo)
    with contextlib.closing(here if workers == 1 else _in_workers(cells, todo, worker, workers)) as ended:
        for index, outcome in ended:
            outcomes[index] = outcome
            if isinstance(outcome, _Failure):
                print(f"{label}: {names[index]} failed: {outcome.line}", flush=True)
            steps.step()
    failures = {index: outcome for index, outcome in sorted(outcomes.items()) if isinstance(outcome, _Failure)}
    if failures:
        raise _summary(label, names, failures)
    return [outcomes.get(index) for index in range(len(cells))]


def _summary(label: str, names: list[str], failures: dict[int, _Failure]) -> Exception:
    lines = [f"{names[index]}: {failure.line}" for index, failure in failures.items()]
    text = f"{label}: {len(lines)} of {len(names)} cells failed: {'; '.join(lines)}"
    if all(failure.bad_input for failure in failures.values()):
        return BadInput(text)
    return RuntimeError(f"{text}\n\nThe first of them:\n{next(iter(failures.values())).details}")


def _outcome(worker: Callable, cell):
    """The worker's result, or a _Failure."""
    try:
        return worker(cell)
    except BadInput as error:
        return _Failure(first_line(error), traceback.format_exc(), bad_input=True)
    except Exception as error:
        return _Failure(f"{type(error).__name__}: {first_line(error)}", traceback.format_exc())


def _in_workers(cells, todo, worker, count):
    """Yield (index, outcome) when a cell ends. Closing the generator ends the workers."""
    function = getattr(worker, "func", worker)  # of a functools.partial
    if function.__module__ == "__main__":
        raise ValueError(f"{function.__name__} must be a function of an importable module to run in other processes")
    waiting, busy = collections.deque(todo), {}
    try:
        while waiting or busy:
            while waiting and len(busy) < count:
                process, index = _Worker.idle(), waiting.popleft()
                busy[process] = index
                with contextlib.suppress(BrokenPipeError):  # the process died: `receive` reports it
                    process.pipe.send((worker, cells[index]))
            for process in wait(list(busy)):
                index, outcome = busy[process], process.receive()
                _Worker.at_rest.append(process)
                del busy[process]
                yield index, outcome
    finally:
        for process in busy:
            process.close()


class _Worker(Popen):
    """A process that receives (worker, cell) and sends the outcome. What it prints goes to a log."""

    at_rest: ClassVar[list["_Worker"]] = []  # of earlier calls: they have imported torch, which takes ten seconds

    @classmethod
    def idle(cls) -> "_Worker":
        """A process at rest, or a new one if none lives that was started in the environment of now."""
        while cls.at_rest:
            process = cls.at_rest.pop()
            if process.poll() is None and process.environment == _child_environment():
                return process
            process.close()
        return cls()

    def __init__(self):
        self.environment = _child_environment()
        self.pipe, theirs = Pipe()
        self.log = tempfile.TemporaryFile("a+", encoding="utf-8", errors="replace")
        code = f"from napo.workshop.grid import _serve; _serve({theirs.fileno()}, {os.getpid()})"
        streams = {"stdin": DEVNULL, "stdout": self.log, "stderr": self.log}
        with theirs:
            super().__init__(
                [sys.executable, "-P", "-c", code], **streams, env=self.environment, pass_fds=[theirs.fileno()]
            )

    def close(self) -> None:
        self.kill()
        self.wait()
        self.pipe.close()
        self.log.close()

    def fileno(self) -> int:
        """For `wait`: the pipe can be read when an outcome is there, or when the process has died."""
        return self.pipe.fileno()

    def receive(self):
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            code = self.wait()
        reason = f"killed by {signal.Signals(-code).name} (out of memory?)" if code < 0 else f"exit status {code}"
        self.log.seek(0)
        return _Failure(f"its process ended: {reason}", self.log.read()[-4000:])


def _child_environment() -> dict[str, str]:
    return os.environ | CHILD_ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}


def _serve(descriptor: int, parent: int) -> None:
    """Body of a worker process: run what the pipe brings until the parent closes it or ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    pipe = Connection(descriptor)
    while True:
        try:
            outcome = _outcome(*pipe.recv())
        except EOFError:
            return
        except Exception as error:  # the worker's module fails to import
            outcome = _Failure(f"{type(error).__name__}: {error}", traceback.format_exc())
        try:
            pipe.send(outcome)
        except (TypeError, AttributeError, ValueError, pickle.PicklingError) as error:
            pipe.send(_Failure(f"its result cannot be sent: {error}", traceback.format_exc()))


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
