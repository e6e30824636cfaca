"""Run the notebooks headless, strictly and resumably: `python -m napo.run [NN ...] --profile desk [-p name=value ...]`.

A notebook runs only if what it depends on has changed (its code cells, its parameters, the napo modules that it
imports, what it reads) or if something that it wrote is gone or damaged. It runs into NN_name.partial.ipynb, which
becomes NN_name.ipynb when every cell has run.
Exit status: 0 done, 1 a notebook failed, 2 bad input (one line says which), 130 interrupted.
"""

import argparse
import contextlib
import fcntl
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from napo import sources
from napo.artifacts import BadInput, MissingArtifact, content_hash, make_folder, shown, write_json
from napo.circumstances import circumstances
from napo.notebooks import Notebook, chosen_parameters, declared_parameters, read_notebook, select
from napo.progress import clock
from napo.session import DAY, Session, is_current, last_record, notebook_key

# ---- running --------------------------------------------------------------------------------------------------------


class NotebookFailed(Exception):
    """A notebook did not get through; the message says why and where to look."""


class Indented:
    """A file that prints what a notebook prints, indented."""

    def write(self, text: str) -> None:
        """Print each line of `text`; a progress bar's carriage returns count as line ends."""
        for line in re.split(r"[\r\n]+", text):
            if line.strip():
                print(f"      {line}", flush=True)

    def flush(self) -> None:
        """Nothing to do: each line was flushed."""


def run_notebook(session: Session, notebook: Notebook, parameters: dict, key: str) -> float:
    """Run one notebook; returns seconds. Raises BadInput or NotebookFailed, and then leaves the partial copy."""
    _need(session, notebook)
    partial = session.executed(notebook, ".partial.ipynb")
    drawn = _figures(session)
    started = time.monotonic()
    try:
        _execute(session, session.source(notebook), partial, parameters)
    except OSError as error:
        place = shown(error.filename or partial)
        raise BadInput(f"cannot write {place}: {error.strerror or error}; put that right and run again") from error
    _check(session, notebook, partial)
    seconds = time.monotonic() - started
    figures = [name for name, stamp in _figures(session).items() if drawn.get(name) != stamp]
    record = {
        "key": key,
        "notebook": content_hash(partial),
        "parameters": parameters,
        "seconds": round(seconds, 2),
        "writes": session.matches((*notebook.writes, *notebook.also)),
        "figures": {name: content_hash(session.root / name) for name in figures},
    }
    write_json(record | circumstances(session.root), session.executed(notebook, ".json"))
    os.replace(partial, session.executed(notebook))
    return seconds


def _need(session: Session, notebook: Notebook) -> None:
    """Raise MissingArtifact for a glob of `reads` that matches nothing."""
    for pattern in notebook.reads:
        if not session.matches([pattern]):
            writer = next((other.number for other in session.notebooks if pattern in other.writes), "?")
            path = shown(session.folder / pattern)
            raise MissingArtifact(
                f"missing {path}: run notebook {writer} first (make reproduce PROFILE={session.profile})"
            )


def _figures(session: Session) -> dict[str, tuple]:
    """Path (from the root if it lies there) -> stamp of every figure of the profile."""
    files = (path for path in session.figures.rglob("*") if path.is_file())
    stats = {os.path.relpath(path, session.root): path.stat() for path in files}
    return {name: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def _execute(session: Session, source: Path, partial: Path, parameters: dict) -> None:
    """Through papermill, in a kernel of this Python that ends with this process."""
    try:
        import papermill
        from nbclient.exceptions import CellTimeoutError, DeadKernelError
        from papermill.exceptions import PapermillExecutionError
    except ImportError as error:
        raise BadInput(f"{error.name} is missing: pip install 'napo[notebooks]'") from error
    os.environ.pop("MPLBACKEND", None)  # it would switch inline figures off
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # in executed copies they stay at 0 %
    output = Indented()
    try:
        papermill.execute_notebook(
            source,
            partial,
            parameters,
            kernel_name="python3",
            progress_bar=False,
            stdout_file=output,
            stderr_file=output,
            start_timeout=180,
            execution_timeout=session.timeout,
            shutdown_kernel="immediate",
            extra_arguments=["--IPKernelApp.log_level=40"],  # no warning about TCP in each log
            cwd=session.root,
        )
    except PapermillExecutionError as error:
        raise _explained(error, partial) from None
    except DeadKernelError:
        raise NotebookFailed(f"kernel died (out of memory?); as far as it came: {shown(partial)}") from None
    except RuntimeError as error:
        raise NotebookFailed(f"the kernel did not start or stopped answering: {error}") from None
    except CellTimeoutError:
        raise NotebookFailed(
            f"a cell took longer than {session.timeout} s; as far as it came: {shown(partial)}"
        ) from None


def _explained(error, partial: Path) -> Exception:
    """The exception to show for one raised in a notebook: BadInput keeps its one line, others the traceback's end."""
    if error.ename in (BadInput.__name__, MissingArtifact.__name__):
        return BadInput(error.evalue)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback)).splitlines()
    return NotebookFailed("\n".join([*lines[-12:], f"traceback in full: {shown(partial)}"]))


def _check(session: Session, notebook: Notebook, partial: Path) -> None:
    """Papermill's word is not enough: every code cell has run, and what the notebook promises is there."""
    cells = [cell for cell in read_notebook(partial) if cell["cell_type"] == "code" and cell["source"].strip()]
    if any(cell.get("execution_count") is None for cell in cells):
        raise NotebookFailed(f"kernel died (out of memory?): not every cell of {shown(partial)} has run")
    for pattern in notebook.writes:
        if not session.matches([pattern]):
            raise NotebookFailed(f"{notebook.name} ended without writing {shown(session.folder / pattern)}")


@contextlib.contextmanager
def only_one(session: Session) -> Iterator[None]:
    """Hold runs/<profile>/.lock; the system frees it if this process dies. Raises BadInput if another run holds it."""
    lock = session.folder / ".lock"
    make_folder(session.folder)
    with open(lock, "a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            other = handle.read().strip() or "?"
            message = f"another run of {shown(session.folder)} is going on (process {other}): wait for it or stop it"
            raise BadInput(message) from None
        handle.truncate(0)
        handle.write(f"{os.getpid()}\n")
        handle.flush()
        yield


def run_all(session: Session, selected: Sequence[Notebook], given: Sequence[str] = (), force: bool = False) -> None:
    """Run those of the `selected` notebooks that are not up to date, in order. Raises BadInput or NotebookFailed."""
    declared = {notebook.name: declared_parameters(session.source(notebook)) for notebook in selected}
    parameters = chosen_parameters(declared, {"profile": session.profile, "runs_dir": session.runs_dir}, given)
    started, ran = time.monotonic(), 0
    with only_one(session):
        for place, notebook in enumerate(selected, 1):
            title = f"[{place}/{len(selected)}] {notebook.name}"
            key = notebook_key(session, notebook, parameters[notebook.name])
            if not force and is_current(session, notebook, key):
                print(f"{title}  up to date", flush=True)
                continue
            last = last_record(session, notebook).get("seconds")
            print(f"{title}  (last time {clock(last)})" if last else title, flush=True)
            seconds = run_notebook(session, notebook, parameters[notebook.name], key)
            print(f"      done in {clock(seconds)}", flush=True)
            if _stopping.is_set():
                raise KeyboardInterrupt
            sources.forget()  # a module may have been edited meanwhile
            ran += 1
    what = f"{ran} of {len(selected)} notebooks run in" if ran else "all up to date, checked in"
    elapsed = time.monotonic() - started
    print(
        f"{session.profile}: {what} {clock(elapsed) if ran else f'{elapsed:.1f} s'}; {shown(session.folder)}/",
        flush=True,
    )


def look_ahead(name: str, given: Sequence[str], runs_dir: str) -> None:
    """What can be told before any notebook runs: the profile, and for one that needs more than this package also the
    device, the model, the data and what the run will take. Raises BadInput."""
    from napo import profiles

    overrides = dict(item.partition("=")[::2] for item in given)
    known = ("model", "data", "rows", "device", "benchmarks", "report_to", "methods")
    profile = profiles.get(name, **{key: value for key, value in overrides.items() if key in known})
    if not profile.needs_nothing:
        from napo import budget

        for line in budget.announced(profile, runs_dir):
            print(line, flush=True)


_stopping = threading.Event()


def _stop(number, frame):
    """Raise KeyboardInterrupt, and again every two seconds: it may come inside a callback that swallows it."""
    _stopping.set()
    again = threading.Timer(2, os.kill, (os.getpid(), signal.SIGINT))
    again.daemon = True
    again.start()
    raise KeyboardInterrupt


def main(
    arguments: Sequence[str] | None = None, *, known_profile: Callable[[str], object] | None = None, **places
) -> int:
    """The command; returns the exit status. Tests pass `known_profile` and Session's root, package and notebooks."""
    parser = argparse.ArgumentParser(
        prog="python -m napo.run", description="Run the notebooks that are not up to date."
    )
    parser.add_argument("wanted", nargs="*", metavar="NN", help="numbers of notebooks (default: all)")
    parser.add_argument("--profile", default="desk", help="smoke, desk (default), study or paper")
    parser.add_argument("-p", dest="given", action="append", default=[], metavar="name=value", help="a parameter")
    parser.add_argument("--runs-dir", default="runs", help="default: runs")
    parser.add_argument("--force", action="store_true", help="run even what is up to date")
    parser.add_argument("--execution-timeout", type=int, default=DAY, help="seconds per cell (default: a day)")
    asked = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell's background job would ignore them
        signal.signal(number, _stop)
    session = Session(asked.profile, asked.runs_dir, timeout=asked.execution_timeout, **places)
    try:
        selected = select(session.notebooks, asked.wanted)
        if known_profile is None:
            look_ahead(asked.profile, asked.given, asked.runs_dir)
        else:
            known_profile(asked.profile)
        run_all(session, selected, asked.given, asked.force)
    except (BadInput, NotebookFailed, KeyboardInterrupt) as error:
        if _stopping.is_set():  # whatever the interruption led to
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            print("stopped; the same command goes on from here", file=sys.stderr, flush=True)
            return 130
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, BadInput) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
