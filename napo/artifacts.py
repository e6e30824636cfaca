"""Artefacts: where they lie, how they are written (whole or not at all) and when they are still good.

An artefact is a file or a folder under runs/<profile>/. `build` is the one way to make one: it hashes what the artefact
depends on (settings, code, inputs), returns at once if `provenance.json` beside it records the same, else makes it.
Importing this module is cheap.
"""

import contextlib
import dataclasses
import errno
import fcntl
import glob
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from napo import sources
from napo.circumstances import circumstances
from napo.progress import progress as progress

# Not in an artefact's key: they move, show or summarise results. What a profile chooses comes in through `settings`.
# `posterior` counts for the trainings that use its estimate: these name it.
PLUMBING = frozenset(
    "profiles methods artifacts sources circumstances progress notebooks run grid".split()
    + "plots study_plots explore stats auroc claims paper report study request posterior".split()
)
PROVENANCE = "provenance.json"


class BadInput(Exception):
    """Something the user can put right; the message is one line that names file, record and remedy."""


class MissingArtifact(BadInput):
    """A notebook needs an artefact that an earlier notebook writes."""


# ---- where ----------------------------------------------------------------------------------------------------------


def repository_root() -> Path:
    """The folder with pyproject.toml and notebooks/ above this package, else above the working directory, else that."""
    here = Path.cwd()
    for folder in [*Path(__file__).resolve().parents, here, *here.parents]:
        if (folder / "pyproject.toml").is_file() and (folder / "notebooks").is_dir():
            return folder
    return here


def run_folder(profile: str, *parts: str, runs_dir: str | Path = "runs") -> Path:
    """runs/<profile>/<parts...>, not created. A relative `runs_dir` starts at the repository root."""
    return repository_root().joinpath(runs_dir, profile, *map(str, parts))


def figures_folder(profile: str, runs_dir: str | Path = "runs") -> Path:
    """figures/<profile>; a run elsewhere than in runs/ keeps its own figures, so that a trial draws over nothing."""
    if str(runs_dir) == "runs":
        return repository_root() / "figures" / profile
    return run_folder(profile, "figures", runs_dir=runs_dir)


def shown(path: str | Path) -> str:
    """`path` as messages and records name it: relative to the repository root if it lies there."""
    with contextlib.suppress(ValueError):
        return Path(path).resolve().relative_to(repository_root()).as_posix()
    return str(path)


def require(path: str | Path, notebook: str) -> Path:
    """`path` if it exists. Raises MissingArtifact that says which notebook ("01") writes it."""
    path = Path(path)
    if path.exists():
        return path
    parts = Path(shown(path)).parts
    profile = f" PROFILE={parts[1]}" if len(parts) > 2 and parts[0] == "runs" else ""
    raise MissingArtifact(f"missing {shown(path)}: run notebook {notebook} first (make reproduce{profile})")


# ---- writing whole or not at all ------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; whatever file or folder is put there replaces `path` if the block succeeds.

    On failure the old `path` stays as it was. A folder is swapped in as a whole (a crash between the
    two renames leaves no folder, never half of one).
    Raises BadInput if the disk is full or the folder cannot be made.
    """
    path = Path(path)
    make_folder(path.parent)
    _remove_abandoned(path)
    temporary = path.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
    try:
        yield temporary
        if not temporary.exists():
            raise RuntimeError(f"nothing was written for {shown(path)}")
        _sync(temporary)
        _swap(temporary, path)
    except Exception as error:
        if _disk_is_full(error, path.parent):
            raise BadInput(
                f"disk full while writing {shown(path)}: free some space and run the same command again"
            ) from error
        raise
    finally:
        _remove(temporary)


def make_folder(folder: Path) -> None:
    """mkdir -p. Raises BadInput if that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"cannot make folder {shown(folder)}: {error.strerror}; choose another place or free it"
        ) from error


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _remove_abandoned(path: Path) -> None:
    """Remove temporaries for `path` whose process is gone (killed, power cut)."""
    for left in path.parent.glob(f".tmp-*-{glob.escape(path.name)}"):
        pid = left.name.split("-")[1]
        if pid.isdigit() and not process_lives(int(pid)):
            _remove(left)


def process_lives(pid: int) -> bool:
    """Whether a process with this id runs on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync(path: Path) -> None:
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    for file in files:
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())


def _swap(temporary: Path, path: Path) -> None:
    if path.is_dir() or (temporary.is_dir() and path.exists()):
        old = path.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
        os.rename(path, old)
        try:
            os.rename(temporary, path)
        except BaseException:
            os.rename(old, path)
            raise
        _remove(old)
    else:
        os.replace(temporary, path)
    with _opened(path.parent) as folder:
        os.fsync(folder)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _disk_is_full(error: BaseException | None, folder: Path) -> bool:
    """Whether `error` or what it came from says so; libraries that lose the reason are helped by a look at the disk."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return shutil.disk_usage(folder).free < 65536


def write_parquet(frame, path: str | Path) -> Path:
    """Write a pandas DataFrame, atomically and without its index."""
    with atomic(path) as temporary:
        frame.to_parquet(temporary, index=False)
    return Path(path)


def read_parquet(path: str | Path, notebook: str = ""):
    """DataFrame of a parquet file; `notebook` writes it. Raises MissingArtifact, or BadInput if damaged."""
    import pandas
    import pyarrow

    path = require(path, notebook) if notebook else Path(path)
    remedy = f"delete it and run notebook {notebook} again" if notebook else "get it again"
    try:
        return pandas.read_parquet(path)
    except FileNotFoundError as error:
        raise MissingArtifact(f"missing {shown(path)}") from error
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = (str(error).splitlines() or ["unreadable"])[0]
        raise BadInput(f"{shown(path)} is damaged ({reason}): {remedy}") from error


def write_json(value, path: str | Path) -> Path:
    """Write `value` (dataclasses, paths, numpy numbers and arrays included) as readable JSON, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, default=_plain, ensure_ascii=False) + "\n", encoding="utf-8")
    return Path(path)


def read_json(path: str | Path, notebook: str = ""):
    """Value of a JSON file; `notebook` writes it. Raises MissingArtifact, or BadInput if damaged."""
    path = require(path, notebook) if notebook else Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingArtifact(f"missing {shown(path)}") from error
    except ValueError as error:
        remedy = f"delete it and run notebook {notebook} again" if notebook else "delete it and run again"
        raise BadInput(f"{shown(path)} is damaged ({error}): {remedy}") from error


def _plain(value):
    """JSON's view of what json does not know."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, set | frozenset):
        return sorted(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be recorded: {value!r}")


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
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=_plain).encode()).hexdigest()


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
    with _opened(path.parent) as folder:
        fcntl.flock(folder, fcntl.LOCK_EX)
        known = {name: old for name, old in _records(file).items() if path.with_name(name).exists()}
        write_json({"artefacts": dict(sorted((known | {path.name: record}).items()))}, file)
