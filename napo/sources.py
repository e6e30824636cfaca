"""What a result's code consists of: a static scan of the package's imports, and hashes of the sources that it finds.

Nothing is imported to find out. Seen are `import napo.x`, `from napo import x`, `from napo.x import y` and relative
imports, anywhere in a file, functions included; `importlib.import_module("...")` is not. `napo/__init__.py` (docstring
and version) belongs to no key; the `__init__.py` of a sub-package belongs to the key of every module in it.
"""

import ast
import functools
import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def module_file(name: str, package: Path = PACKAGE) -> Path | None:
    """Source file of the dotted `name` ("napo.world.truth"), None if it is not a module of the package."""
    head, *rest = name.split(".")
    if head != package.name:
        return None
    path = package.joinpath(*rest)
    candidates = [path / "__init__.py"] + ([path.with_name(path.name + ".py")] if rest else [])
    return next((file for file in candidates if file.is_file()), None)


def imported_names(tree: ast.AST, package_name: str, inside: str = "") -> Iterator[str]:
    """Dotted names that `tree` may import of the package; `inside` is the package where relative imports start."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == package_name)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = inside.split(".")[: len(inside.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            if base.split(".")[0] == package_name:
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names)


def reachable(names: Iterable[str], package: Path = PACKAGE, skip: frozenset[str] = frozenset()) -> dict[str, Path]:
    """Module name -> source file of `names` and of all they import from the package, transitively, sorted by name.

    skip  names directly under the package ("plots") that are neither listed nor followed, unless among `names`.
    Raises ValueError if one of `names` is no module of the package.
    """
    found: dict[str, Path] = {}
    asked = {_full_name(name, package) for name in names}
    waiting = list(asked)
    while waiting:
        name = waiting.pop()
        file = module_file(name, package)
        if file is None or name in found or name == package.name or (name.split(".")[1] in skip and name not in asked):
            continue
        found[name] = file
        inside = name if file.name == "__init__.py" else name.rpartition(".")[0]
        waiting += _imported_names(file, package.name, inside)
        waiting.append(name.rpartition(".")[0])
    return dict(sorted(found.items()))


def _full_name(name: str, package: Path) -> str:
    full = name if name.split(".")[0] == package.name else f"{package.name}.{name}"
    if module_file(full, package) is None:
        raise ValueError(f"{name} is not a module of {package.name}")
    return full


def notebook_imports(cells: Iterable[str], package: Path = PACKAGE) -> set[str]:
    """Modules of the package that code cells import; a cell that is not Python is left for the kernel to refuse."""
    names: set[str] = set()
    for cell in cells:
        try:
            tree = ast.parse(re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", cell))
        except SyntaxError:
            continue
        names |= {name for name in imported_names(tree, package.name) if module_file(name, package)}
    return names


def digest(names: Iterable[str], package: Path = PACKAGE, skip: frozenset[str] = frozenset()) -> str:
    """SHA-256 over the code of `names` and everything they import; comments, docstrings and layout do not count."""
    total = hashlib.sha256()
    for name, file in reachable(names, package, skip).items():
        total.update(f"{name} {_code_hash(file)}\n".encode())
    return total.hexdigest()


def forget() -> None:
    """Read sources afresh. Within a process they are read once, as Python itself loads a module once."""
    _imported_names.cache_clear()
    _code_hash.cache_clear()


@functools.cache
def _imported_names(file: Path, package_name: str, inside: str) -> tuple[str, ...]:
    return tuple(imported_names(ast.parse(file.read_bytes(), filename=str(file)), package_name, inside))


@functools.cache
def _code_hash(file: Path) -> str:
    """SHA-256 of the syntax tree without docstrings and positions."""
    tree = ast.parse(file.read_bytes(), filename=str(file))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and _is_docstring(
            body[:1]
        ):
            node.body = body[1:] or [ast.Pass()]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _is_docstring(statements: list[ast.stmt]) -> bool:
    return bool(statements) and isinstance(statements[0], ast.Expr) and isinstance(statements[0].value, ast.Constant)
