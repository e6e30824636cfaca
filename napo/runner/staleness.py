"""Which notebooks are up to date: their keys, and what their last runs recorded."""

import hashlib
import itertools
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from napo.runner.notebooks import NOTEBOOKS, Notebook, code_cells
from napo.workshop import artifacts, code_hash, environment
from napo.workshop.artifacts import content_hash
from napo.workshop.files import MissingArtifact, repository_root, write_json

FILE_PARAMETERS = ("model", "data", "benchmarks")  # if one names a file or folder, a change of that counts


@dataclass
class Session:
    """One call of the runner: where things lie and what the user asked for."""

    profile: str
    runs_dir: str = "runs"
    root: Path = field(default_factory=repository_root)
    package: Path = code_hash.PACKAGE
    notebooks: Sequence[Notebook] = NOTEBOOKS
    timeout: int | None = None  # seconds per cell

    @property
    def folder(self) -> Path:
        """runs/<profile>."""
        return artifacts.run_folder(self.profile, runs_dir=self.runs_dir, root=self.root)

    @property
    def figures(self) -> Path:
        """figures/<profile>, or in the run folder if `runs_dir` is another."""
        return artifacts.figures_folder(self.profile, self.runs_dir, self.root)

    def source(self, notebook: Notebook) -> Path:
        """The notebook in git."""
        return self.root / "notebooks" / f"{notebook.name}.ipynb"

    def executed(self, notebook: Notebook, ending: str = ".ipynb") -> Path:
        """The executed copy, or the file beside it with another ending."""
        return self.folder / f"{notebook.name}{ending}"

    def matches(self, patterns: Sequence[str]) -> dict[str, str]:
        """Path below the run folder -> state, of every artefact that matches one of the globs."""
        return {path.relative_to(self.folder).as_posix(): _state(path) for path in found(self.folder, patterns)}

    def unmatched(self, patterns: Sequence[str]) -> list[str]:
        """Those of the globs that match nothing in the run folder."""
        return [pattern for pattern in patterns if not found(self.folder, [pattern])]


def _state(artefact: Path) -> str:
    """Hash of its bytes, and the key and hash in its record: where these differ, `artifacts.build` makes it again."""
    record = artifacts.provenance(artefact)
    return f"{content_hash(artefact)} {record.get('key', '')} {record.get('sha256', '')}"


def found(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The paths in a folder that match one of the globs, sorted; temporary files and records apart."""
    paths = {path for pattern in patterns for path in folder.glob(pattern)}
    return sorted(path for path in paths if "/.tmp-" not in f"/{path}" and path.name != artifacts.PROVENANCE)


def stamps(path: Path) -> dict[str, list[int]]:
    """Path -> inode, size and dates, of a file or of all files in a folder. Hashing at every call would take too long.

    The date of the last change of the inode moves with every write, also where size and modification time are restored.
    """
    files = {str(file): file.stat() for file in (path, *path.rglob("*")) if file.is_file()}
    return {name: [s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for name, s in files.items()}


def notebook_key(session: Session, notebook: Notebook, parameters: dict) -> str:
    """SHA-256 of everything that the run of a notebook depends on, prose and the place of the runs apart.

    That is: its code cells and parameters, the code of the package, the CPU path, shipped data, the user's own files,
    and whatever earlier notebooks wrote.
    """
    earlier = itertools.takewhile(lambda other: other != notebook, session.notebooks)
    files = [session.root / str(parameters[name]) for name in FILE_PARAMETERS if parameters.get(name)]
    shipped = [path for path in found(session.root, notebook.data) if path.is_file()]
    parts = {
        "cells": [cell["source"] for cell in code_cells(session.source(notebook))],
        "parameters": {name: value for name, value in parameters.items() if name != "runs_dir"},
        "code": code_hash.digest(package=session.package),
        "cpu": environment.cpu_path(),
        "reads": session.matches([pattern for other in earlier for pattern in other.all_writes]),
        "data": {path.relative_to(session.root).as_posix(): content_hash(path) for path in shipped},
        "files": [stamps(path) for path in files],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def is_current(session: Session, notebook: Notebook, key: str) -> bool:
    """Whether the last run had this key, and everything that it wrote is still there, undamaged and recorded."""
    record = last_record(session, notebook)
    try:
        return (
            record["key"] == key
            and record["notebook"] == content_hash(session.executed(notebook))
            and all(_state(session.folder / name) == state for name, state in record["writes"].items())
            and all(content_hash(session.figures / name) == drawn for name, drawn in record["figures"].items())
        )
    except (KeyError, AttributeError, TypeError, MissingArtifact):
        return False


def last_record(session: Session, notebook: Notebook) -> dict:
    """What the notebook's last complete run left in NN_name.json; {} if it cannot be read."""
    try:
        return dict(json.loads(session.executed(notebook, ".json").read_bytes()))
    except (OSError, ValueError, TypeError):
        return {}


def made_elsewhere(session: Session) -> str:
    """One line if results of this profile were made under other versions or on another CPU path; "" if none was."""
    here = environment.compared(environment.snapshot(session.root))
    there = [environment.compared(last_record(session, notebook)) for notebook in session.notebooks]
    # Results of an earlier grid may lie here unused, so only the notebooks tell on which CPU the last run was.
    files, cpu = session.folder.rglob(artifacts.PROVENANCE), {"cpu": here["CPU path"]}
    there += [environment.compared(record | cpu) for file in files for record in artifacts.records(file).values()]
    others = {name: sorted({made[name] for made in there if name in made} - {here[name]}) for name in here}
    changed = [name for name in here if others[name]]
    if not changed:
        return ""
    made = ", ".join(f"{name} {' and '.join(others[name])}" for name in changed)
    now = ", ".join(f"{name} {here[name]}" for name in changed)
    again = "what was computed on another CPU path is made again" if others["CPU path"] else ""
    kept = "what other versions made is kept (--force makes everything again)" if changed != ["CPU path"] else ""
    return f"{session.profile}: made under {made}; here {now}: {'; '.join(filter(None, (again, kept)))}"


def forget(session: Session, notebook: Notebook) -> None:
    """Make a notebook stale, and its artefacts too: the next run builds them from their beginning."""
    if record := last_record(session, notebook):
        write_json(record | {"key": ""}, session.executed(notebook, ".json"))
    for path in found(session.folder, notebook.all_writes):
        artifacts.forget(path)
    for path in found(session.folder, notebook.unfinished):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
