"""The development record of the noise estimate and its table in the docs."""

import json
from pathlib import Path

import pandas as pd

from experiments import noise_estimate
from napo.noise import noise_levels
from napo.profiles import DEVELOPMENT_BASES

FOLDER = Path(noise_estimate.__file__).parent
RECORD = json.loads((FOLDER / "noise-estimate-development.json").read_text())


def test_the_docs_show_the_record_of_the_development_bases_only(root):
    assert RECORD["bases"] == list(DEVELOPMENT_BASES)
    assert noise_estimate.table(RECORD) in (root / "docs" / "desk-world.md").read_text()
    levels = pd.DataFrame(RECORD["levels"])
    assert list(levels) == noise_levels.COLUMNS and set(levels["base"]) == set(DEVELOPMENT_BASES)


def test_the_table_sets_bases_side_by_side_and_shows_rate_0_once():
    row = dict.fromkeys(noise_levels.COLUMNS, 0.5) | {"kind": "vision_biased"}
    levels = [
        row | {"base": base, "noise_kind": noise_kind, "rate": rate, "true": 0.1 * base}
        for noise_kind in ("swap", "leak")
        for rate in (0.0, 0.1, 0.2)
        for base in (1, 2)
    ]
    lines = noise_estimate.table({"levels": levels}).splitlines()[2:]
    assert [line.split(" | ")[1] for line in lines] == ["none", "leak 20%", "swap 20%"]
    assert lines[0].split(" | ")[2] == "0.10 / 0.20"
