"""Artefacts: where they lie, when they are still good, and how they are made (written whole or not at all: `files.py`).

An artefact is a file or a folder under runs/<profile>/. `build` is the one way to make one: it hashes what the artefact
depends on (settings, code, inputs), returns at once if `provenance.json` beside it records the same, else makes it.
Importing this module is cheap.
"""

import fcntl
import hashlib
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from napo import sources
from napo.circumstances import circumstances
from napo.files import (  # noqa: F401, the package finds them all here
    BadInput,
    MissingArtifact,
    atomic,
    make_folder,
    opened,
    plain,
    process_lives,
    read_json,
    read_parquet,
    repository_root,
    require,
    shown,
    write_json,
    write_parquet,
)
from napo.progress import progress as progress

# Not in an artefact's key: they move, show or summarise results. What a profile chooses comes in through `settings`.
# `posterior` counts for the trainings that use its estimate: these name it.
PLUMBING = frozenset(
    "profiles methods artifacts files sources circumstances progress notebooks run session grid".split()
    + "plots plot_style study_plots explore stats auroc claims paper report study request posterior".split()
)
PROVENANCE = "provenance.json"


# ---- where ----------------------------------------------------------------------------------------------------------


def run_folder(profile: str, *parts: str, runs_dir: str | Path = "runs") -> Path:
    """runs/<profile>/<parts...>, not created. A relative `runs_dir` starts at the repository root."""
    return repository_root().joinpath(runs_dir, profile, *map(str, parts))


def figures_folder(profile: str, runs_dir: str | Path = "runs") -> Path:
    """figures/<profile>; a run elsewhere than in runs/ keeps its own figures, so that a trial draws over nothing."""
    if str(runs_dir) == "runs":
        return repository_root() / "figures" / profile
    return run_folder(profile, "figures", runs_dir=runs_dir)


# ---- keys -----------------------------------------------------------------------------------------------------------


def content_hash(path: str | Path) -> str:
    """SHA-256 of a file, or of a folder's names and contents (provenance apart). Raises MissingArtifact."""
    path = Path(path)
    if path.is_file():
        return _file_hash(path)
    if not path.is_dir():
        raise MissingArtifact(f"missing {shown(path)}")
    total = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.name != PROVENANCE and not file.name.startswith(".tmp-"):
            total.update(f"{file.relative_to(path).as_posix()} {content_hash(file)}\n".encode())
    return total.hexdigest()


def _file_hash(path: Path) -> str:
    """SHA-256 of a file, remembered while its stamp stays (unless so fresh that the stamp could hide a change)."""
    stat = path.stat()
    stamp = (str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    if stamp not in _hashes:
        with open(path, "rb") as handle:
            found = hashlib.file_digest(handle, "sha256").hexdigest()
        if time.time() - max(stat.st_mtime, stat.st_ctime) < 2:
            return found
        _hashes[stamp] = found
    return _hashes[stamp]


_hashes: dict[tuple, str] = {}


def code_key(*modules: str) -> str:
    """SHA-256 over the code of these modules ("losses" or "napo.losses") and what they import of napo but PLUMBING."""
    return sources.digest(modules, skip=PLUMBING)


def _key(settings, modules: Iterable[str], input_hashes: Iterable[str]) -> str:
    parts = {"settings": settings, "code": code_key(*modules), "inputs": list(input_hashes)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=plain).encode()).hexdigest()


def key(*, settings, modules: Iterable[str], inputs: Iterable[str | Path] = ()) -> str:
    """What an artefact made from exactly these settings, code and inputs is known by; same arguments as `build`."""
    return _key(settings, modules, map(content_hash, inputs))


def _recorded(path: Path, key: str) -> bool:
    record = provenance(path)
    return bool(record) and record.get("key") == key and path.exists() and record.get("sha256") == content_hash(path)


def provenance(path: str | Path) -> dict:
    """What provenance.json beside `path` records about it; {} if nothing readable."""
    path = Path(path)
    return _records(path.with_name(PROVENANCE)).get(path.name, {})


def _records(file: Path) -> dict:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))["artefacts"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


# ---- making ---------------------------------------------------------------------------------------------------------


def is_current(path: str | Path, *, settings, modules: Iterable[str], inputs: Iterable[str | Path] = ()) -> bool:
    """Whether `path` was built from exactly these settings, code and inputs and is undamaged."""
    return _recorded(Path(path), _key(settings, modules, map(content_hash, inputs)))


def build(
    path: str | Path,
    make: Callable[[Path], object],
    *,
    settings,
    modules: Iterable[str],
    inputs: Iterable[str | Path] = (),
    seeds=None,
) -> Path:
    """Return `path`, made by `make(temporary_path)` unless it is current already.

    settings  whatever the result depends on besides code and inputs: json-able, dataclasses welcome
    modules   the napo modules that make it; what they import counts too
    inputs    files and folders that it is made from; their contents count, not their names or dates
    seeds     recorded, not part of the key (put them into settings too)
    """
    path, modules = Path(path), list(modules)
    read = {shown(item): content_hash(item) for item in inputs}
    key = _key(settings, modules, read.values())
    if _recorded(path, key):
        return path
    started = time.monotonic()
    with atomic(path) as temporary:
        make(temporary)
    record = {
        "key": key,
        "sha256": content_hash(path),
        "settings": settings,
        "modules": modules,
        "inputs": read,
        "seeds": seeds,
    }
    _record(path, record | {"seconds": round(time.monotonic() - started, 3)} | circumstances(repository_root()))
    return path


def _record(path: Path, record: dict) -> None:
    """Merge one artefact's record into the folder's provenance.json; other processes may be doing the same."""
    file = path.with_name(PROVENANCE)
    with opened(path.parent) as folder:
        fcntl.flock(folder, fcntl.LOCK_EX)
        known = {name: old for name, old in _records(file).items() if path.with_name(name).exists()}
        write_json({"artefacts": dict(sorted((known | {path.name: record}).items()))}, file)
