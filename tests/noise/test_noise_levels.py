"""The noise estimate at known levels of injected noise."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from napo.engine.preferences import BIASED
from napo.noise import noise_levels
from napo.pairs import perturb
from napo.profiles import NOISE_KINDS, NOISE_LEVELS, PROFILES


def frames(n=60):
    """Evidence of rows as they are (six with equal answers, else clean) and with good answers in their place."""
    clean = pd.DataFrame({"row_id": range(n), "chosen_evidence": 3.0, "evidence": -4.0, "same": np.arange(n) < 6})
    return clean, clean.assign(evidence=5.0, same=False)


@pytest.mark.parametrize("noise_kind", NOISE_KINDS)
def test_a_level_injects_the_noise_into_the_rows_drawn(noise_kind):
    clean, leaked = frames()
    drawn = np.arange(60) >= 48
    found = noise_levels.level(clean, leaked, clean["same"].to_numpy(), drawn, noise_kind, np.random.default_rng(0))
    assert found["n_rows"] == 60 and found["true"] == pytest.approx(18 / 60)
    assert found["estimated"] == pytest.approx(18 / 60, abs=0.01) and found["lo"] < 0.3 < found["hi"]
    assert found["auroc"] == 1 and found["calibration"] < 0.02
    assert (clean["evidence"] == -4).all()  # the caller's frame is unchanged


def test_the_tables_of_all_bases_are_read_as_one(tmp_path):
    profile = PROFILES["desk"]
    for base in profile.bases:
        folder = tmp_path / "desk" / f"base-{base}"
        folder.mkdir(parents=True)
        row = dict.fromkeys(noise_levels.COLUMNS, 0) | {"base": base}
        pd.DataFrame([row]).to_parquet(folder / "noise_levels.parquet")
    found = noise_levels.read(profile, tmp_path)
    assert found["base"].tolist() == list(profile.bases) and list(found) == noise_levels.COLUMNS
    assert noise_levels.read(PROFILES["paper"], tmp_path).empty


def test_on_a_development_base_the_rate_of_language_biased_noise_is_found(tmp_path, monkeypatch):
    """End to end on 120 rows of a real base."""
    monkeypatch.setattr(noise_levels, "RESAMPLES", 10)  # the intervals are not looked at
    profile = replace(PROFILES["smoke"], name="levels", bases=(100,), rows=120, heldout_rows=2)
    perturb.pairs(profile, 100, runs_dir=tmp_path)
    found = pd.read_parquet(noise_levels.table(profile, 100, tmp_path))
    assert len(found) == len(NOISE_KINDS) * len(NOISE_LEVELS) * len(BIASED)
    language = found[found["kind"] == "language_biased"]
    assert (language["estimated"] - language["true"]).abs().max() < 0.1 and language["auroc"].min() > 0.9
    assert language["true"].max() > language["true"].min() + 0.2
    vision = found[found["kind"] == "vision_biased"]
    assert (vision["estimated"] < vision["true"] + 0.02).all()  # a lower bound, as posterior.py says
