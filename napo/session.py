"""One call of the runner: where things lie, and which notebooks are up to date."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from napo import sources
from napo.artifacts import MissingArtifact, content_hash, repository_root
from napo.notebooks import NOTEBOOKS, Notebook, read_notebook

DAY = 86400  # seconds; longest that one cell may take
FILE_PARAMETERS = ("model", "data", "benchmarks")  # if these name a file or folder, a change of it counts


@dataclass
class Session:
    """One call of the runner: where things lie and what was asked for."""

    profile: str
    runs_dir: str = "runs"
    root: Path = field(default_factory=repository_root)
    package: Path = sources.PACKAGE
    notebooks: Sequence[Notebook] = NOTEBOOKS
    timeout: int = DAY  # seconds per cell

    @property
    def folder(self) -> Path:
        """runs/<profile>."""
        return self.root / self.runs_dir / self.profile

    @property
    def figures(self) -> Path:
        """As `artifacts.figures_folder` has it, from this session's root."""
        inside = str(self.runs_dir) == "runs"
        return self.root / "figures" / self.profile if inside else self.folder / "figures"

    def source(self, notebook: Notebook) -> Path:
        """The notebook in git."""
        return self.root / "notebooks" / f"{notebook.name}.ipynb"

    def executed(self, notebook: Notebook, ending: str = ".ipynb") -> Path:
        """The executed copy, or with another ending what lies beside it."""
        return self.folder / f"{notebook.name}{ending}"

    def matches(self, patterns: Sequence[str]) -> dict[str, str]:
        """Path below the run folder -> content hash, of all that the globs match."""
        return _hashes(self.folder, patterns)


# ---- up to date? ----------------------------------------------------------------------------------------------------


def _hashes(folder: Path, patterns: Sequence[str]) -> dict[str, str]:
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    names = {path.relative_to(folder).as_posix(): path for path in found if "/.tmp-" not in f"/{path}"}
    return {name: content_hash(path) for name, path in sorted(names.items())}


def notebook_key(session: Session, notebook: Notebook, parameters: dict) -> str:
    """SHA-256 of all that the notebook's run depends on (its prose and the place of the runs apart)."""
    cells = [cell["source"] for cell in read_notebook(session.source(notebook)) if cell["cell_type"] == "code"]
    modules = sources.notebook_imports(cells, session.package)
    files = [session.root / str(parameters.get(name)) for name in FILE_PARAMETERS if parameters.get(name)]
    parts = {
        "cells": cells,
        "parameters": {name: value for name, value in parameters.items() if name != "runs_dir"},
        "code": sources.digest(modules, session.package),
        "reads": session.matches(notebook.reads),
        "data": _hashes(session.root, notebook.data),
        "files": {str(path): _stamps(path) for path in files if path.exists()},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _stamps(path: Path) -> list:
    """Names, sizes and dates: a user's files may be too large to be hashed each time."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def is_current(session: Session, notebook: Notebook, key: str) -> bool:
    """Whether the executed copy has this key and all that it wrote is still there as it was."""
    record = last_record(session, notebook)
    try:
        return (
            record["key"] == key
            and record["notebook"] == content_hash(session.executed(notebook))
            and all(content_hash(session.folder / name) == found for name, found in record["writes"].items())
            and all(content_hash(session.root / name) == found for name, found in record["figures"].items())
        )
    except (KeyError, AttributeError, TypeError, MissingArtifact):
        return False


def last_record(session: Session, notebook: Notebook) -> dict:
    """What the notebook's last whole run left in NN_name.json; {} if nothing readable."""
    try:
        return json.loads(session.executed(notebook, ".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
