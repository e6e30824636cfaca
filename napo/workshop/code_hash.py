"""The code that a result stands on: the rooms of its stage, and one hash over their sources.

A room is a folder of this package, or one of the files beside them. Comments, docstrings, layout and import lines do
not count. `profiles.py` and `methods.py` belong to no stage: their choices are in the `settings` of each artefact.
"""

import ast
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]

_PAIRS = ("workshop", "engine", "pairs")
_NOISE = (*_PAIRS, "stats", "losses", "q", "objectives", "training", "noise")
_TRAINING = (*_NOISE, "comparison")
_EVALUATION = (*_TRAINING, "official", "evaluation")
# Stage -> the rooms whose code decides its results, and every room that these import (tests/test_rooms.py).
STANDS_ON = {
    "pairs": _PAIRS,  # 01
    "noise": _NOISE,  # 02
    "training": _TRAINING,  # 03
    "evaluation": _EVALUATION,  # 04
    "study": (*_EVALUATION, "study"),  # 05
}
DESK = ("official", "desk")  # added to any stage whose rows come from the desk world


def rooms_of(stage: str, desk: bool = False) -> tuple[str, ...]:
    """Names of the rooms that a stage stands on. Raises ValueError for an unknown stage."""
    if stage not in STANDS_ON:
        raise ValueError(f"unknown stage {stage!r}: use one of {', '.join(STANDS_ON)}")
    return tuple(dict.fromkeys((*STANDS_ON[stage], *(DESK if desk else ()))))


def digest(rooms: Iterable[str] | None = None, package: Path = PACKAGE) -> str:
    """SHA-256 over the code of some rooms; default: all code. Raises ValueError if the package has no such room."""
    files = _sources(package) if rooms is None else {file for room in rooms for file in _files_of(room, package)}
    total = hashlib.sha256()
    for file in sorted(files):
        total.update(f"{file.relative_to(package).as_posix()} {_code_hash(file)}\n".encode())
    return total.hexdigest()


def forget() -> None:
    """Read the sources again. Otherwise a process reads each file once, as Python loads a module once."""
    _code_hash.cache_clear()


def _files_of(room: str, package: Path) -> list[Path]:
    single = package / f"{room}.py"
    files = [single] if single.is_file() else _sources(package / room)
    if not files:
        raise ValueError(f"{package.name} has no room {room!r}")
    return files


def _sources(folder: Path) -> list[Path]:
    """The code in a folder, and the tables that it reads as if they were code (claims, the paper's numbers)."""
    return [file for kind in ("py", "toml", "csv") for file in folder.rglob(f"*.{kind}")]


@functools.cache
def _code_hash(file: Path) -> str:
    if file.suffix != ".py":
        return hashlib.sha256(file.read_bytes()).hexdigest()
    bare = _Bare().visit(ast.parse(file.read_bytes(), filename=str(file)))
    return hashlib.sha256(ast.unparse(bare).encode()).hexdigest()


class _Bare(ast.NodeTransformer):
    """Drops imports, and constants that stand by themselves (docstrings)."""

    def visit_Import(self, node):
        return None

    visit_ImportFrom = visit_Import

    def visit_Expr(self, node):
        return None if isinstance(node.value, ast.Constant) else node
