"""Artefacts: where they lie, when they are stale, and how they are made.

An artefact is a file or a folder under runs/<profile>/. `build` makes it. It hashes what the artefact depends on
(settings, code, inputs) and returns at once if `provenance.json` beside the artefact records the same hash and the
bytes are those that were written. Importing this module is cheap.
"""

import fcntl
import hashlib
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from napo.workshop import code_hash, environment
from napo.workshop.files import (
    PROVENANCE,
    atomic,
    content_hash,
    opened,
    plain,
    provenance,
    records,
    repository_root,
    shown,
    write_json,
)


def run_folder(profile: str, *parts: str, runs_dir: str | Path = "runs", root: Path | None = None) -> Path:
    """runs/<profile>/<parts...>, not created. A relative `runs_dir` starts at `root`, by default the repository's."""
    return (root or repository_root()).joinpath(runs_dir, profile, *map(str, parts))


def figures_folder(profile: str, runs_dir: str | Path = "runs", root: Path | None = None) -> Path:
    """figures/<profile>. With another `runs_dir` the figures lie inside the run, so a trial overwrites none."""
    if str(runs_dir) == "runs":
        return run_folder(profile, runs_dir="figures", root=root)
    return run_folder(profile, "figures", runs_dir=runs_dir, root=root)


def key(*, settings, stage: str, desk: bool = False, inputs: Iterable[str | Path] = ()) -> str:
    """Key of an artefact: a hash of its settings, code and inputs. Takes the arguments of `build`."""
    code = code_hash.digest(code_hash.rooms_of(stage, desk))
    parts = {"settings": settings, "code": code, "inputs": [content_hash(item) for item in inputs]}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=plain).encode()).hexdigest()


def is_current(
    path: str | Path, *, settings, stage: str, desk: bool = False, inputs: Iterable[str | Path] = ()
) -> bool:
    """Whether `path` was made from exactly these settings, code and inputs, and is undamaged."""
    path, record = Path(path), provenance(path)
    same = record.get("key") == key(settings=settings, stage=stage, desk=desk, inputs=inputs)
    return same and path.exists() and record.get("sha256") == content_hash(path)


def build(
    path: str | Path,
    make: Callable[[Path], object],
    *,
    settings,
    stage: str,
    desk: bool = False,
    inputs: Iterable[str | Path] = (),
    seeds=None,
) -> Path:
    """Return `path`. If it is missing, stale or damaged, `make(temporary_path)` makes it first.

    settings  everything besides code and inputs that the result depends on: JSON-able, dataclasses welcome
    stage     a name in `code_hash.STANDS_ON`: the rooms whose code makes it
    desk      whether the code of the desk world counts too
    inputs    files and folders; their contents count, not their names or dates
    seeds     for the record only; seeds that the result depends on belong to `settings`
    """
    path, inputs = Path(path), list(inputs)
    made_from = {"settings": settings, "stage": stage, "desk": desk, "inputs": inputs}
    if is_current(path, **made_from):
        return path
    record = {"key": key(**made_from), "sha256": "", "settings": settings, "stage": stage}
    record["inputs"] = {shown(item): content_hash(item) for item in inputs}
    started = time.monotonic()
    with atomic(path) as temporary:
        make(temporary)
        # Before the file appears: until its record does, a reader takes it for damaged.
        record |= {"sha256": content_hash(temporary), "seeds": seeds, "seconds": round(time.monotonic() - started, 3)}
        record |= environment.snapshot(repository_root())
    _record(path, record)
    return path


def forget(path: str | Path) -> None:
    """Drop the record of an artefact, if it has one: the next `build` makes it again."""
    if provenance(path):
        _record(Path(path), None)


def _record(path: Path, record: dict | None) -> None:
    """Merge one record into the folder's provenance.json, or drop it. Other processes may be doing the same."""
    file = path.with_name(PROVENANCE)
    with opened(path.parent) as folder:
        fcntl.flock(folder, fcntl.LOCK_EX)
        changed = records(file) | {path.name: record}
        kept = {name: one for name, one in changed.items() if one and path.with_name(name).exists()}
        write_json({"artefacts": dict(sorted(kept.items()))}, file)
