"""Run the notebooks headless, strictly and resumably; the command is napo/commands/run.py.

A notebook runs only if something that it depends on has changed, or if something that it wrote is gone or damaged
(`staleness.py`). It runs into NN_name.partial.ipynb, which becomes NN_name.ipynb when every cell has run.
"""

import contextlib
import fcntl
import io
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from napo.runner.notebooks import Notebook, chosen_parameters, code_cells, declared_parameters
from napo.runner.staleness import Session, forget, is_current, last_record, made_elsewhere, notebook_key, stamps
from napo.workshop import code_hash, console, environment
from napo.workshop.artifacts import content_hash
from napo.workshop.files import (
    TEMPORARY,
    BadInput,
    MissingArtifact,
    make_folder,
    remove_abandoned,
    shown,
    write_json,
)
from napo.workshop.progress import clock


class NotebookFailed(Exception):
    """A notebook failed. The message says why and where to look."""


class Indented(io.TextIOBase):
    """A file that prints a notebook's output, indented. A progress bar's carriage returns count as line ends."""

    def write(self, text: str) -> None:
        for line in re.split(r"[\r\n]+", text):
            if line.strip():
                print(f"      {line}", flush=True)


def run_notebook(session: Session, notebook: Notebook, parameters: dict, key: str) -> float:
    """Run one notebook; returns seconds. Raises BadInput or NotebookFailed, and then keeps the partial copy."""
    for pattern in session.unmatched(notebook.reads):
        writer = next((other.number for other in session.notebooks if pattern in other.writes), "?")
        remedy = f"run notebook {writer} first (make reproduce PROFILE={session.profile})"
        raise MissingArtifact(f"missing {shown(session.folder / pattern)}: {remedy}")
    partial = session.executed(notebook, ".partial.ipynb")
    drawn = stamps(session.figures)
    started = time.monotonic()
    try:
        _execute(session, session.source(notebook), partial, parameters)
    except OSError as error:
        place = shown(error.filename or partial)
        raise BadInput(f"cannot write {place}: {error.strerror or error}; put that right and run again") from error
    _check(session, notebook, partial)
    seconds = time.monotonic() - started
    figures = [name for name, stamp in stamps(session.figures).items() if drawn.get(name) != stamp]
    record = {"key": key, "notebook": content_hash(partial), "parameters": parameters, "seconds": round(seconds, 2)}
    record["writes"] = session.matches(notebook.all_writes)
    record["figures"] = {os.path.relpath(name, session.figures): content_hash(name) for name in figures}
    write_json(record | environment.snapshot(session.root), session.executed(notebook, ".json"))
    os.replace(partial, session.executed(notebook))
    return seconds


def _execute(session: Session, source: Path, partial: Path, parameters: dict) -> None:
    """Run a notebook through papermill, in a kernel of this Python that ends with this process."""
    try:
        import papermill
        from nbclient.exceptions import CellTimeoutError, DeadKernelError
        from papermill.exceptions import PapermillExecutionError
    except ImportError as error:
        raise BadInput(f"{error.name} is missing: pip install 'napo[notebooks]'") from error
    os.environ.pop("MPLBACKEND", None)  # it would switch inline figures off
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # in executed copies they stay at 0 %
    output = {"progress_bar": False, "stdout_file": Indented(), "stderr_file": Indented()}
    kernel = {"kernel_name": "python3", "cwd": session.root, "shutdown_kernel": "immediate"}
    limits = {"start_timeout": 180, "execution_timeout": session.timeout}
    quiet = {"extra_arguments": ["--IPKernelApp.log_level=40"]}  # no warning about TCP in each log
    try:
        papermill.execute_notebook(source, partial, parameters, **kernel, **limits, **output, **quiet)
    except PapermillExecutionError as error:
        raise _explained(error, partial) from None
    except DeadKernelError:
        raise NotebookFailed(f"kernel died (out of memory?); executed so far: {shown(partial)}") from None
    except RuntimeError as error:
        raise NotebookFailed(f"the kernel did not start or stopped answering: {error}") from None
    except CellTimeoutError:
        reason = f"a cell took longer than {session.timeout} s"
        raise NotebookFailed(f"{reason}; executed so far: {shown(partial)}") from None


def _explained(error, partial: Path) -> BaseException:
    """The exception to show for an error in a notebook: the line of a BadInput, else the end of the traceback."""
    if error.ename in (BadInput.__name__, MissingArtifact.__name__):
        return BadInput(error.evalue)
    if error.ename == KeyboardInterrupt.__name__:  # the kernel got the signal
        return KeyboardInterrupt()
    lines = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback)).splitlines()
    return NotebookFailed("\n".join([*lines[-12:], f"traceback in full: {shown(partial)}"]))


def _check(session: Session, notebook: Notebook, partial: Path) -> None:
    """Raise NotebookFailed unless every code cell has run and every promised artefact is there: papermill may not."""
    if any(cell["source"].strip() and cell.get("execution_count") is None for cell in code_cells(partial)):
        raise NotebookFailed(f"kernel died (out of memory?): not every cell of {shown(partial)} has run")
    for pattern in session.unmatched(notebook.writes):
        raise NotebookFailed(f"{notebook.name} ended without writing {shown(session.folder / pattern)}")


@contextlib.contextmanager
def only_one(session: Session) -> Iterator[str]:
    """Hold runs/<profile>/.lock, which ends with this process. Raises BadInput if another run holds it.

    Yields why the folder cannot be written, "" if it can: a finished run may lie on a disk that is read only.
    """
    lock = session.folder / ".lock"
    make_folder(session.folder)
    try:
        handle = open(lock, "a+")
    except OSError as error:
        yield f"cannot write {shown(lock)}: {error.strerror}; put that right and run again"
        return
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            other = handle.read().strip() or "?"
            problem = f"another run (process {other}) is writing {shown(session.folder)}"
            raise BadInput(f"{problem}: wait for it or stop it") from None
        handle.truncate(0)
        handle.write(f"{os.getpid()}\n")
        handle.flush()
        remove_abandoned(session.folder.rglob(TEMPORARY))
        with _scratch(session.folder / ".scratch"):
            yield ""


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[None]:
    """Put all temporary files of the run, its kernels and workers into a folder. What a killed run left goes first."""
    before = tempfile.tempdir, os.environ.get("TMPDIR")
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder)
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before[0]
        os.environ.pop("TMPDIR") if before[1] is None else os.environ.update(TMPDIR=before[1])
        shutil.rmtree(folder, ignore_errors=True)


def run_all(session: Session, selected: Sequence[Notebook], given: Sequence[str] = (), force: bool = False) -> None:
    """Run those of the `selected` notebooks that are not up to date, in order. Raises BadInput or NotebookFailed.

    given  the user's parameters, "name=value";  force  make all artefacts of the selected notebooks again
    """
    declared = {notebook.name: declared_parameters(session.source(notebook)) for notebook in selected}
    parameters = chosen_parameters(declared, {"profile": session.profile, "runs_dir": session.runs_dir}, given)
    started, ran = time.monotonic(), 0
    with only_one(session) as unwritable:
        if notice := made_elsewhere(session):
            print(notice, flush=True)
        for notebook in selected if force and not unwritable else ():
            forget(session, notebook)
        for place, notebook in enumerate(selected, 1):
            title = f"[{place}/{len(selected)}] {notebook.name}"
            key = notebook_key(session, notebook, parameters[notebook.name])
            if is_current(session, notebook, key) and not (force and unwritable):
                print(f"{title}  up to date", flush=True)
                continue
            if unwritable:
                raise BadInput(unwritable)
            last = last_record(session, notebook).get("seconds")
            print(f"{title}  (last time {clock(last)})" if last else title, flush=True)
            seconds = run_notebook(session, notebook, parameters[notebook.name], key)
            print(f"      done in {clock(seconds)}", flush=True)
            if console.is_stopping():
                raise KeyboardInterrupt
            code_hash.forget()  # a module may have been edited meanwhile
            ran += 1
    elapsed = time.monotonic() - started
    what = f"all up to date, checked in {elapsed:.1f} s"
    if ran:
        what = f"{ran} of {len(selected)} notebooks run in {clock(elapsed)}"
    print(f"{session.profile}: {what}; {shown(session.folder)}/", flush=True)
