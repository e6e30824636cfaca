"""Files: written whole or not at all, read with one clear line about what is wrong. Importing this module is cheap."""

import contextlib
import dataclasses
import errno
import glob
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path


class BadInput(Exception):
    """Something the user can put right; the message is one line that names file, record and remedy."""


class MissingArtifact(BadInput):
    """A notebook needs an artefact that an earlier notebook writes."""


def repository_root() -> Path:
    """The folder with pyproject.toml and notebooks/ above this package, else above the working directory, else that."""
    here = Path.cwd()
    for folder in [*Path(__file__).resolve().parents, here, *here.parents]:
        if (folder / "pyproject.toml").is_file() and (folder / "notebooks").is_dir():
            return folder
    return here


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
    with opened(path.parent) as folder:
        os.fsync(folder)


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[int]:
    """The folder's file descriptor, for fsync and flock."""
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
        temporary.write_text(json.dumps(value, indent=1, default=plain, ensure_ascii=False) + "\n", encoding="utf-8")
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


def plain(value):
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
