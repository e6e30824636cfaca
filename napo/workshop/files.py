"""Files: each is written whole or not at all, checked when read, and one line says what is wrong with a bad one.

A file or folder that `artifacts.build` made has its hash in the provenance.json beside it. Cheap to import.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

PROVENANCE = "provenance.json"
TEMPORARY = ".tmp-*"


class BadInput(Exception):
    """An error that the user can correct. The message is one line that names file, record and remedy."""


class MissingArtifact(BadInput):
    """An artefact is missing; the message names the notebook that writes it."""


def repository_root() -> Path:
    """The folder with pyproject.toml and notebooks/ above this package or the working directory, else the latter."""
    here = Path.cwd()
    for folder in [*Path(__file__).resolve().parents, here, *here.parents]:
        if (folder / "pyproject.toml").is_file() and (folder / "notebooks").is_dir():
            return folder
    return here


def shown(path: str | Path) -> str:
    """`path` for messages and records: relative to the repository root if it lies there."""
    with contextlib.suppress(ValueError):
        return Path(path).resolve().relative_to(repository_root()).as_posix()
    return str(path)


def content_hash(path: str | Path) -> str:
    """SHA-256 of a file, or of a folder's names and contents without its provenance. Raises MissingArtifact."""
    path = Path(path)
    if path.is_file():
        return _file_hash(path)
    if not path.is_dir():
        raise MissingArtifact(f"missing {shown(path)}")
    total = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.name != PROVENANCE and not file.match(TEMPORARY):
            total.update(f"{file.relative_to(path).as_posix()} {content_hash(file)}\n".encode())
    return total.hexdigest()


def _file_hash(path: Path) -> str:
    """SHA-256 of a file, cached by its stamp. The stamp of a file this fresh could hide a change: it is not cached."""
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


def records(file: Path) -> dict[str, dict]:
    """Name of an artefact -> its record, of one provenance.json; {} if it cannot be read."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["artefacts"].items()
        return {name: record for name, record in found if isinstance(record, dict)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def provenance(path: str | Path) -> dict:
    """The record of `path` in the provenance.json beside it; {} if there is none, or none that can be read."""
    path = Path(path)
    return records(path.with_name(PROVENANCE)).get(path.name, {})


def require(path: str | Path, notebook: str) -> Path:
    """`path`, an artefact that exists and has the contents that its record tells; without a record, any contents.

    notebook  the one that writes it ("01"): the remedy in the message
    Raises MissingArtifact, or BadInput if it was damaged or changed.
    """
    path = Path(path)
    if not path.exists():
        raise MissingArtifact(f"missing {shown(path)}: run notebook {notebook} first ({_reproduce(path)})")
    record = provenance(path)
    if record and record.get("sha256") != content_hash(path):
        problem = f"{shown(path)} is damaged or was changed by hand"
        raise BadInput(f"{problem}: run notebook {notebook} again ({_reproduce(path)})")
    return path


def _reproduce(path: Path) -> str:
    """The command that makes an artefact."""
    parts = Path(shown(path)).parts
    return f"make reproduce PROFILE={parts[1]}" if len(parts) > 2 and parts[0] == "runs" else "make reproduce"


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`. If the block succeeds, the file or folder there replaces `path`.

    On failure the old `path` stays. A folder is replaced as a whole: a crash between the two renames leaves no folder,
    never half of one. Raises BadInput if the disk is full or the folder cannot be made.
    """
    path = Path(path)
    make_folder(path.parent)
    remove_abandoned(path.parent.glob(TEMPORARY))
    temporary = _beside(path)
    try:
        yield temporary
        if not temporary.exists():
            raise RuntimeError(f"nothing was written for {shown(path)}")
        _swap(temporary, path)
    except Exception as error:
        if _disk_is_full(error, path.parent):
            remedy = "free some space and run the same command again"
            raise BadInput(f"disk full while writing {shown(path)}: {remedy}") from error
        raise
    finally:
        _remove(temporary)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents. Raises BadInput if it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = "choose another place or free it"
        raise BadInput(f"cannot make folder {shown(folder)}: {error.strerror}; {remedy}") from error


def _beside(path: Path) -> Path:
    """A temporary path that names its process."""
    return path.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(4)}-{path.name}")


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)  # leaves a file or link alone
    with contextlib.suppress(OSError):
        path.unlink()


def remove_abandoned(temporaries: Iterable[Path]) -> None:
    """Remove those temporaries of `atomic` whose process has ended."""
    for left in list(temporaries):
        pid = left.name.split("-")[1]
        if pid.isdigit() and not _lives(int(pid)):
            _remove(left)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # a process of another user
    return True


def sync(path: Path) -> None:
    """Write a file, or a folder with all that is in it, through to the disk."""
    for file in [path, *path.rglob("*")]:
        with opened(file) as descriptor:
            os.fsync(descriptor)


def _swap(temporary: Path, path: Path) -> None:
    if path.is_dir() and not temporary.is_dir():
        raise BadInput(f"{shown(path)} is a folder, and a file was to be written there: give the name of a file")
    sync(temporary)
    if path.is_dir() or (temporary.is_dir() and path.exists()):
        old = _beside(path)
        os.rename(path, old)
        try:
            os.rename(temporary, path)
        except BaseException:
            os.rename(old, path)
            raise
        _remove(old)
    else:
        os.replace(temporary, path)
    with opened(path.parent) as folder:
        os.fsync(folder)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """The descriptor of a file or folder, for fsync and flock."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _disk_is_full(error: BaseException | None, folder: Path) -> bool:
    """Whether `error` or one of its causes says so, or the disk itself: some libraries lose the reason."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return shutil.disk_usage(folder).free < 65536


def write_json(value, path: str | Path) -> Path:
    """Write `value` as readable JSON, atomically. Dataclasses, paths, numpy numbers and arrays are welcome."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, default=plain, ensure_ascii=False) + "\n", encoding="utf-8")
    return Path(path)


def read_parquet(path: str | Path, notebook: str = ""):
    """DataFrame of a parquet file; of one that `notebook` writes after `require`. Raises BadInput."""
    import pandas
    import pyarrow

    damage = (pyarrow.ArrowException, OSError, ValueError)
    return _read(path, notebook, pandas.read_parquet, damage, "get it again")


def read_json(path: str | Path, notebook: str = ""):
    """Value of a JSON file; of one that `notebook` writes after `require`. Raises BadInput."""
    return _read(path, notebook, lambda file: json.loads(file.read_bytes()), ValueError, "delete it and run again")


def _read(path, notebook, read, damage, remedy):
    path = require(path, notebook) if notebook else Path(path)
    try:
        return read(path)
    except FileNotFoundError as error:
        raise MissingArtifact(f"missing {shown(path)}") from error
    except damage as error:
        remedy = f"delete it and run notebook {notebook} again" if notebook else remedy
        raise BadInput(f"{shown(path)} is damaged ({first_line(error)}): {remedy}") from error


def plain(value):
    """A value that json does not know, as one that it does."""
    if dataclasses.is_dataclass(value):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, set | frozenset):
        return sorted(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be recorded: {value!r}")
