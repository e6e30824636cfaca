"""A command and its surroundings: streams that take any text, signals that stop it in one line, limits of the shell."""

import contextlib
import io
import os
import resource
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from napo.workshop.files import BadInput, remove_abandoned

FEWEST_FILES = 256  # open at once: a kernel takes about 80
SMALLEST_LIMIT = 2**28  # bytes of a file: models and rows are larger than the small limits of some shells
_stopping = threading.Event()


class _Lasting(io.TextIOWrapper):
    """A standard stream that goes on in silence when its reader has left."""

    def write(self, text):
        try:
            return super().write(text)
        except BrokenPipeError:
            self._close_pipe()
            return len(text)

    def flush(self):
        try:
            super().flush()
        except BrokenPipeError:
            self._close_pipe()

    def _close_pipe(self):
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), self.fileno())


def prepare_streams() -> None:
    """At the start of a process: make its output streams accept every text, also if they are ASCII only or closed."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # else the next file takes the place of a closed one
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        encoding = getattr(getattr(sys, name), "encoding", "utf-8")
        raw = open(descriptor, "wb", closefd=False)
        setattr(sys, name, _Lasting(raw, encoding, errors="backslashreplace", line_buffering=True))


def scratch(purpose: str) -> tempfile.TemporaryDirectory:
    """A temporary folder for this process. Those that killed processes left for the same purpose go first."""
    remove_abandoned(Path(tempfile.gettempdir()).glob(f"napo-*-{purpose}-*"))
    return tempfile.TemporaryDirectory(prefix=f"napo-{os.getpid()}-{purpose}-")


def check_limits() -> None:
    """Raises BadInput if this process may open too few files, or write too small ones, to run notebooks."""
    files, size = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE))
    if 0 <= files < FEWEST_FILES:  # -1 means no limit
        raise BadInput(f"only {files} files may be open at once: raise the limit to 1024 or more (ulimit -n 1024)")
    if 0 <= size < SMALLEST_LIMIT:
        raise BadInput(f"no file may be larger than {size:,} bytes: raise the limit (ulimit -f unlimited)")


def is_stopping() -> bool:
    """Whether a signal has asked this process to stop."""
    return _stopping.is_set()


def _stop(number, frame):
    """Raise KeyboardInterrupt, and again every two seconds: it may come inside a callback that swallows it.

    A second signal from outside changes nothing: make passes one on to a process that has got it already.
    """
    if number == signal.SIGALRM or not _stopping.is_set():
        _stopping.set()
        signal.setitimer(signal.ITIMER_REAL, 2)
        raise KeyboardInterrupt


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """SIGINT and SIGTERM end the block with KeyboardInterrupt, also where the interruption led to another error."""
    if threading.current_thread() is not threading.main_thread():  # only there are signals handled
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)  # also where a background job would ignore them
    before = {number: signal.signal(number, _stop) for number in numbers}
    try:
        yield
    except BaseException:
        if not _stopping.is_set():
            raise
        raise KeyboardInterrupt from None
    finally:
        if _stopping.is_set():
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if _stopping.is_set() else handler or signal.SIG_DFL)
