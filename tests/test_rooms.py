"""The house: its rooms, imports that lead downwards only, and stages that stand on all that they import."""

import ast
from pathlib import Path

import pytest

from napo.workshop import code_hash

PACKAGE = Path(__file__).resolve().parents[1] / "napo"
# From the ground up; a room imports rooms before it, and files of its own.
ORDER = (
    *("workshop", "losses", "q", "methods", "objectives", "profiles", "stats", "official", "engine", "desk", "pairs"),
    *("training", "noise", "comparison", "evaluation", "study", "explorer", "preflight", "kit", "runner", "commands"),
    *("__init__", "__main__"),
)
DECLARATIONS = {"methods", "profiles"}  # what they choose stands in the settings of each artefact


def files():
    return sorted(path for path in PACKAGE.rglob("*.py"))


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """Modules of the package that a file imports, wherever in it: "napo.engine.packing"."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if is_module(name) else node.module for name in names if name.startswith("napo")}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "napo"}
    return {name for name in found if name != "napo"}


def is_module(name):
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def room_of(module):
    return module.split(".")[1]


def test_every_file_lies_in_a_room_that_the_order_names():
    assert {room(path) for path in files()} == set(ORDER)


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_lead_downwards(path):
    place = ORDER.index(room(path))
    wrong = [name for name in imports(path) if ORDER.index(room_of(name)) > place]
    assert not wrong, f"{room(path)} lies below {wrong}"


def test_no_circle_within_a_room():
    graph = {module_name(path): imports(path) for path in files()}
    done, under_way = set(), []

    def visit(name):
        if name in under_way:
            pytest.fail("circle: " + " -> ".join([*under_way[under_way.index(name) :], name]))
        if name not in done:
            under_way.append(name)
            for other in graph.get(name, ()):
                visit(other)
            under_way.pop()
            done.add(name)

    for name in graph:
        visit(name)


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("stage", code_hash.STANDS_ON)
def test_a_stage_stands_on_every_room_that_its_rooms_import(stage):
    """Else a change there would leave its artefacts current. The desk world counts where the rows are its own."""
    stood_on = set(code_hash.rooms_of(stage)) | DECLARATIONS
    for desk in (False, True):
        rooms = set(code_hash.rooms_of(stage, desk))
        reached = {room_of(name) for path in files() if room(path) in rooms for name in imports(path)}
        assert reached - rooms - stood_on <= (set() if desk else set(code_hash.DESK)), stage


def test_a_room_says_what_it_is_for():
    for folder in sorted(path for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()):
        tree = ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), f"{folder.name}/__init__.py has no docstring"
        assert len(tree.body) == 1, f"{folder.name}/__init__.py holds more than its docstring"
