"""The table of the notebooks: what each reads and writes; and the parameters that they declare.

An unknown parameter and a notebook without a `parameters` cell are errors here; papermill only warns.
"""

import ast
import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from napo.workshop.files import BadInput, shown


@dataclass(frozen=True)
class Notebook:
    """A notebook and its artefacts, as globs under runs/<profile>/.

    reads, writes  each must match something before the notebook starts, and when it ends
    also           what only some profiles write
    unfinished     what an interrupted run leaves, to resume from
    data           globs under the repository root: shipped files that the notebook reads
    """

    name: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    unfinished: tuple[str, ...] = ()
    data: tuple[str, ...] = ()

    @property
    def number(self) -> str:
        """The leading digits, "03"."""
        return self.name.partition("_")[0]

    @property
    def all_writes(self) -> tuple[str, ...]:
        """Globs of everything that the notebook writes. All later notebooks depend on it."""
        return (*self.writes, *self.also)


PAIRS, BIAS, SHARDS = "base-*/pairs.parquet", "base-*/bias.parquet", "base-*/answers/*.json"
REFERENCE, NOISE = "base-*/reference.parquet", "base-*/noise.parquet"
POSTERIOR, LEVELS = "base-*/posterior.parquet", "base-*/noise_levels.parquet"
INJECTED, CROPS = "base-*/injected/*.parquet", "base-*/crops.parquet"
ADAPTERS, STEPS = "cells/*/adapter", "cells/*/steps.jsonl"
SCORES, ANSWERS = "cells/*/scores.parquet", "cells/*/answers.parquet"
PREDICTIONS, OFFICIAL, ASKED = "cells/*/predictions", "cells/*/official.json", "benchmarks/*"
BASES = ("napo/desk/bases/**/*",)
NOTEBOOKS = (
    Notebook("00_box_cox"),
    Notebook("01_perturb_data", writes=(PAIRS,), also=(BIAS, SHARDS, "revisions.json"), data=BASES),
    Notebook(
        "02_estimate_noise",
        reads=(PAIRS,),
        writes=(REFERENCE, NOISE, POSTERIOR),
        also=(LEVELS,),
        unfinished=("base-*/probe-*",),
        data=BASES,
    ),
    Notebook(
        "03_train",
        reads=(PAIRS, REFERENCE),
        writes=(ADAPTERS, STEPS),
        also=(INJECTED, CROPS),
        unfinished=("cells/*/checkpoints-*",),
        data=BASES,
    ),
    Notebook(
        "04_evaluate",
        reads=(PAIRS, REFERENCE, ADAPTERS),
        writes=(SCORES, ANSWERS),
        also=(PREDICTIONS, OFFICIAL, ASKED),
        unfinished=("cells/*/answers-*.jsonl",),
        data=BASES,
    ),
    Notebook("05_ablations", reads=(NOISE, POSTERIOR, STEPS, SCORES), writes=("tables", "claims.json", "report.md")),
)


def select(notebooks: Sequence[Notebook], wanted: Sequence[str]) -> list[Notebook]:
    """The notebooks with a wanted number ("03", "3") or name, in the table's order; all if `wanted` is empty."""
    wanted = {item.zfill(2) for item in wanted}
    names = [notebook.name for notebook in notebooks]
    for item in sorted(wanted - {*names, *(notebook.number for notebook in notebooks)}):
        raise BadInput(f"no notebook {item}; there are {', '.join(names)}")
    return [notebook for notebook in notebooks if not wanted or wanted & {notebook.number, notebook.name}]


def code_cells(path: Path) -> list[dict]:
    """Code cells of a notebook file. Raises BadInput if it is missing or not a notebook."""
    try:
        cells = json.loads(path.read_bytes())["cells"]
        return [cell | {"source": "".join(cell["source"])} for cell in cells if cell["cell_type"] == "code"]
    except FileNotFoundError:
        raise BadInput(f"no notebook {shown(path)}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{shown(path)} is not a notebook ({error}): restore it from git") from None


def declared_parameters(path: Path) -> dict:
    """Name -> default, from the one cell tagged `parameters`. Its lines must be `name = literal`. Raises BadInput."""
    tagged = [cell for cell in code_cells(path) if "parameters" in cell.get("metadata", {}).get("tags", [])]
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
    """Notebook name -> parameters to inject: `always`, and those of `given` ("rows=100") that the notebook declares.

    declared  notebook name -> its parameters and their defaults
    Raises BadInput if no notebook declares a given parameter, or its value has another type than the default.
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
    value = text
    if not isinstance(default, str):
        with contextlib.suppress(SyntaxError, ValueError):
            value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    if type(default) is float and type(value) is int:
        value = float(value)
    if default is not None and type(value) is not type(default):
        raise BadInput(f"-p {name}={text}: expected {type(default).__name__} as in the default {default!r}")
    return value
