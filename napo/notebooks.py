"""The notebooks: which there are, what each reads and writes, which parameters they declare.

A parameter that no notebook knows and a notebook without a `parameters` cell are errors here; papermill only warns.
"""

import ast
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from napo.artifacts import BadInput, shown


@dataclass(frozen=True)
class Notebook:
    """A notebook and its artefacts, as globs under runs/<profile>/.

    writes  each must match something when the notebook ends; with `also`, what only some profiles write, it runs again
            if one of them is gone or damaged
    data    globs under the repository root: what the notebook reads of what is shipped
    """

    name: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    data: tuple[str, ...] = ()

    @property
    def number(self) -> str:
        """The leading digits, "03"."""
        return self.name.partition("_")[0]


PAIRS, BIAS = "base-*/pairs.parquet", "base-*/bias.parquet"
REFERENCE, NOISE = "base-*/reference.parquet", "base-*/noise.parquet"
ADAPTERS, STEPS = "cells/*/adapter", "cells/*/steps.jsonl"
SCORES, ANSWERS = "cells/*/scores.parquet", "cells/*/answers.parquet"
PREDICTIONS = "cells/*/predictions"
BASES = ("napo/world/bases/**/*",)
NOTEBOOKS = (
    Notebook("00_box_cox"),
    Notebook("01_perturb_data", writes=(PAIRS,), also=(BIAS,), data=BASES),
    Notebook("02_estimate_noise", reads=(PAIRS,), writes=(REFERENCE, NOISE), data=BASES),
    Notebook("03_train", reads=(PAIRS, REFERENCE), writes=(ADAPTERS, STEPS), data=BASES),
    Notebook(
        "04_evaluate", reads=(PAIRS, REFERENCE, ADAPTERS), writes=(SCORES, ANSWERS), also=(PREDICTIONS,), data=BASES
    ),
    Notebook("05_ablations", reads=(NOISE, STEPS, SCORES), writes=("tables", "claims.json", "report.md")),
)


def select(notebooks: Sequence[Notebook], wanted: Sequence[str]) -> list[Notebook]:
    """The notebooks whose number ("03", "3") or name is wanted, in the table's order; all if none is."""
    wanted = [item.zfill(2) for item in wanted]
    for item in wanted:
        if not any(item in (notebook.number, notebook.name) for notebook in notebooks):
            raise BadInput(f"no notebook {item}; there are {', '.join(notebook.name for notebook in notebooks)}")
    return [notebook for notebook in notebooks if not wanted or {notebook.number, notebook.name} & set(wanted)]


def read_notebook(path: Path) -> list[dict]:
    """Cells of a notebook file. Raises BadInput if it is missing or no notebook."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return [cell | {"source": "".join(cell["source"])} for cell in cells]
    except FileNotFoundError:
        raise BadInput(f"no notebook {shown(path)}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{shown(path)} is not a notebook ({error}): restore it from git") from None


def declared_parameters(path: Path) -> dict:
    """Name -> default of the one cell tagged `parameters`, which may hold `name = literal` only. Raises BadInput."""
    tagged = [cell for cell in read_notebook(path) if "parameters" in cell.get("metadata", {}).get("tags", [])]
    if len(tagged) != 1:
        raise BadInput(f"{shown(path)} has {len(tagged)} cells tagged `parameters`: it needs exactly one")
    try:
        return dict(_literal(statement) for statement in ast.parse(tagged[0]["source"]).body)
    except (SyntaxError, ValueError, AttributeError, TypeError):
        raise BadInput(f"{shown(path)}: its `parameters` cell may hold only lines `name = literal`") from None


def _literal(statement: ast.stmt) -> tuple:
    (target,) = [statement.target] if isinstance(statement, ast.AnnAssign) else statement.targets
    return target.id, ast.literal_eval(statement.value)


def chosen_parameters(declared: dict[str, dict], always: dict[str, str], given: Sequence[str]) -> dict[str, dict]:
    """Notebook name -> the parameters to inject: `always`, and those of `given` ("rows=100") that it declares.

    declared  notebook name -> its parameters and their defaults
    Raises BadInput if one of `given` is unknown to all of the notebooks, or not of its default's type.
    """
    chosen = {name: dict(always) for name in declared}
    for name, defaults in declared.items():
        for needed in always.keys() - defaults.keys():
            raise BadInput(f"notebooks/{name}.ipynb declares no parameter {needed}: add it to its `parameters` cell")
    for item in given:
        parameter, equals, text = item.partition("=")
        takers = [name for name, defaults in declared.items() if parameter in defaults]
        if not equals or not takers or parameter in always:
            known = sorted(set().union(*declared.values()) - always.keys())
            raise BadInput(f"-p {item}: the notebooks know name=value for {', '.join(known) or 'no parameter'}")
        for name in takers:
            chosen[name][parameter] = _converted(parameter, text, declared[name][parameter])
    return chosen


def _converted(name: str, text: str, default):
    """`text` as a value of the default's type."""
    if isinstance(default, str):
        return text
    try:
        value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (SyntaxError, ValueError):
        value = text
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if default is not None and type(value) is not type(default):
        raise BadInput(f"-p {name}={text}: expected {type(default).__name__} as in the default {default!r}")
    return value
