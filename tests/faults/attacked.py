"""A smoke run that is killed, starved or damaged, in folders of its own; and what must be the same afterwards."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from napo.runner.notebooks import NOTEBOOKS, chosen_parameters, declared_parameters
from napo.runner.staleness import Session, found, is_current, notebook_key
from napo.workshop.artifacts import PROVENANCE, content_hash
from napo.workshop.files import read_json

INSIDE = Path(__file__).parent / "inside"


class Attacked:
    """runs/ and tmp/ in a folder. The processes of this run have the folder in their variable FAULT_RUN."""

    def __init__(self, root, folder, finished=None, **environment):
        self.root, self.place = root, folder
        self.runs, self.scratch = folder / "runs", folder / "tmp"
        self.folder, self.environment, self.problems = self.runs / "smoke", environment, []
        self.scratch.mkdir(parents=True)
        if finished:
            shutil.copytree(finished, self.runs)

    def start(self, *wanted, before=None, **environment):
        """The runner, in a session of its own; `log` and `errors` are what it prints."""
        self.log, self.errors = self.place / "log", self.place / "errors"
        command = [sys.executable, "-m", "napo", "run", *wanted, "--profile", "smoke", "--runs-dir", str(self.runs)]
        path = os.pathsep.join((str(INSIDE), str(self.root)))
        own = {"TMPDIR": str(self.scratch), "FAULT_RUN": str(self.place), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        with open(self.log, "w") as out, open(self.errors, "w") as err:
            streams = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err}
            env = os.environ | self.environment | own | environment
            return subprocess.Popen(
                command, **streams, env=env, cwd=self.root, start_new_session=True, preexec_fn=before
            )

    def finish(self, *wanted, **environment):
        """Run to the end; returns what it printed."""
        runner = self.start(*wanted, **environment)
        status = self.ended(runner, 900)
        self.check(status == 0, f"the same command again ended with {status}: {self.said()}")
        return self.log.read_text()

    def ended(self, runner, seconds):
        """Its exit status; None, and a problem, if it had to be killed after these seconds."""
        try:
            return runner.wait(seconds)
        except subprocess.TimeoutExpired:
            self.problems.append(f"the runner still ran after {seconds} s")
            self.send(self.processes(), signal.SIGKILL)
            runner.wait()

    def said(self):
        return (self.log.read_text()[-1500:] + self.errors.read_text()[-1500:]).strip()

    def check(self, good, problem):
        if not good:
            self.problems.append(problem)

    def processes(self):
        """{process id: command line} of all living processes of this run."""
        mark, alive = f"FAULT_RUN={self.place}\0".encode(), {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (process / "environ").read_bytes():
                    alive[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return alive

    def who(self, runner, role):
        """Process ids of a role: runner, kernel, worker (one of them) or group (all)."""
        if role == "runner":
            return [runner.pid]
        marks = {"kernel": "ipykernel", "worker": "_serve(", "group": ""}
        pids = [pid for pid, line in self.processes().items() if marks[role] in line]
        return pids if role == "group" else pids[:1]

    @staticmethod
    def send(pids, number):
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def kill(self, number, wait, role, sent):
        """Start, let notebook `number` run for `wait` seconds, send a signal, and look at what is left.

        Returns whether the run was still going, so that something was killed.
        """
        runner = self.start()
        name = next(notebook.name for notebook in NOTEBOOKS if notebook.number == number)
        title, moment = f"] {name}", None
        while runner.poll() is None:
            lines = self.log.read_text().splitlines()
            if moment is None and any(title in line and "up to date" not in line for line in lines):
                moment = time.monotonic() + wait
            if moment and time.monotonic() >= moment and (pids := self.who(runner, role)):
                break
            time.sleep(0.02)
        else:
            self.check(runner.returncode == 0, f"ended with {runner.returncode} before the kill: {self.said()}")
            return False
        what = f"{role} {sent.name} in {number} after {wait:.1f} s"
        self.send(pids, sent)
        if role in ("kernel", "worker") and sent is not signal.SIGKILL:  # an idle one may take a signal lightly
            try:
                runner.wait(10)
            except subprocess.TimeoutExpired:
                self.send(self.who(runner, role), signal.SIGKILL)
        status = self.ended(runner, 60)
        expected = {"runner": 130, "group": 130}.get(role, 1)
        open_ended = sent == signal.SIGKILL or (role, sent) == ("kernel", signal.SIGINT)  # that one may be "stopped"
        self.after(what, status, None if open_ended else expected)
        return True

    def after(self, what, status, expected=None):
        """No process stays; a run that could say so ended with one line and the `expected` status."""
        errors = self.errors.read_text()
        if expected:
            self.check(status == expected, f"{what}: status {status}, not {expected}: {self.said()}")
        if expected == 130:
            told = errors.startswith("stopped") and errors.count("\n") == 1
            self.check(told, f"{what}: printed {errors[-600:]!r}")
        deadline = time.monotonic() + 20
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.1)
        self.check(not left, f"{what}: orphans {left}")
        self.send(left, signal.SIGKILL)

    def leftovers(self):
        """Temporary and partial files that a finished run must not leave."""
        files = [path for path in self.runs.rglob("*") if path.is_file() and path.name != ".lock"]
        below = [path for path in files if "/." in f"/{path.relative_to(self.runs)}" or ".partial" in path.name]
        unfinished = [path for notebook in NOTEBOOKS for path in found(self.folder, notebook.unfinished)]
        return sorted(str(path.relative_to(self.place)) for path in [*self.scratch.rglob("*"), *below, *unfinished])

    def compare(self, reference, keys=True):
        """Note every difference between this finished run and the undisturbed one, and every leftover."""
        ours, theirs = facts(self.folder, keys), facts(reference / "smoke", keys)
        for name in sorted(ours.keys() | theirs.keys()):
            self.check(ours.get(name) == theirs.get(name), f"{name} differs from the undisturbed run's")
        self.check(not self.leftovers(), f"left behind: {self.leftovers()}")


def facts(folder, keys=True):
    """Name -> what must be equal in two runs, for every file of a run: its hash, of records only what is no time.

    keys  whether records must name the same settings, code and inputs too
    """
    known = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"):
        name = file.relative_to(folder).as_posix()
        if file.name == PROVENANCE:
            records = read_json(file)["artefacts"]
            known[name] = {one: (keys and record["key"], record["sha256"]) for one, record in records.items()}
        elif file.parent == folder and file.suffix == ".json" and file.name[:2].isdigit():
            record = read_json(file)
            states = {one: state if keys else state.split(" ")[0] for one, state in record["writes"].items()}
            known[name] = [keys and record["key"], states, record["figures"]]
        elif file.suffix == ".ipynb":
            cells = [cell for cell in json.loads(file.read_text())["cells"] if cell["cell_type"] == "code"]
            executed = [cell for cell in cells if cell.get("execution_count")]
            known[name] = [cell["source"] for cell in executed if "injected-parameters" not in tags(cell)]
        else:
            known[name] = content_hash(file)
    return known


def tags(cell):
    return cell["metadata"].get("tags", [])


def stale(runs, root):
    """Numbers of the notebooks that the runner would run now, as far as can be foreseen."""
    session = Session("smoke", str(runs), root=root)
    declared = {notebook.name: declared_parameters(session.source(notebook)) for notebook in NOTEBOOKS}
    chosen = chosen_parameters(declared, {"profile": "smoke", "runs_dir": str(runs)}, [])
    keys = {notebook: notebook_key(session, notebook, chosen[notebook.name]) for notebook in NOTEBOOKS}
    return [notebook.number for notebook, key in keys.items() if not is_current(session, notebook, key)]


def undo(run, *numbers):
    """Remove what notebooks have written, and their records, as if they had never run."""
    for notebook in NOTEBOOKS:
        if notebook.number in numbers:
            for path in found(run.folder, (*notebook.all_writes, f"{notebook.name}*")):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def flip(content, rng):
    """The bytes with one bit of one byte changed; of no bytes, one byte."""
    if not content:
        return b"\x01"
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]
