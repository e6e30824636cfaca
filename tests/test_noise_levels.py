"""The estimate beside the truth with noise put in: which rows, whose answers, and that all of it is the trainings'."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from napo import labels, noise, noise_levels, perturb, posterior
from napo.profiles import NOISE_KINDS, NOISE_LEVELS, PROFILES


class Leak:
    """Leaks into the rows whose turn it is, and leaves the others the same objects."""

    @staticmethod
    def leak(rows, rate, rng):
        chosen = rng.permutation(len(rows))[: round(rate * len(rows))]
        return [dict(row) if i in chosen else row for i, row in enumerate(rows)]


def test_the_rows_drawn_are_those_of_a_training_with_the_same_seed(monkeypatch):
    monkeypatch.setattr(labels, "desk_leak", lambda: Leak)
    rows = [{"row_id": i} for i in range(40)]
    swapped = noise_levels.rows_drawn(rows, "swap", 0.3, 5)
    assert (swapped == noise.draw_flips(40, 0.3, np.random.default_rng([5, 1]))).all()
    leaked = noise_levels.rows_drawn(rows, "leak", 0.3, 5)
    assert leaked.sum() == 12 and (leaked == swapped).all()  # by one permutation, so that both can be compared
    assert not noise_levels.rows_drawn(rows, "leak", 0.0, 5).any()


def frames(n=60):
    """Evidence of rows as they are (all clean, six of one text) and of good answers in their place."""
    clean = pd.DataFrame({"row_id": range(n), "chosen_evidence": 3.0, "evidence": -4.0, "same": np.arange(n) < 6})
    return clean, clean.assign(evidence=5.0, same=False)


@pytest.mark.parametrize("noise_kind", NOISE_KINDS)
def test_a_level_puts_the_noise_where_it_was_drawn(noise_kind):
    clean, leaked = frames()
    drawn = np.arange(60) >= 48
    found = noise_levels.level(clean, leaked, clean["same"].to_numpy(), drawn, noise_kind, np.random.default_rng(0))
    assert found["n_rows"] == 60 and found["true"] == pytest.approx(18 / 60)
    assert found["estimated"] == pytest.approx(18 / 60, abs=0.01) and found["lo"] < 0.3 < found["hi"]
    assert found["auroc"] == 1 and found["calibration"] < 0.02
    assert (clean["evidence"] == -4).all()  # nothing of it was written into what comes in


def test_a_table_per_base_is_read_back_in_one(tmp_path):
    profile = PROFILES["desk"]
    for base in profile.bases:
        folder = tmp_path / "desk" / f"base-{base}"
        folder.mkdir(parents=True)
        row = dict.fromkeys(noise_levels.COLUMNS, 0) | {"base": base}
        pd.DataFrame([row]).to_parquet(folder / "noise_levels.parquet")
    found = noise_levels.read(profile, tmp_path)
    assert found["base"].tolist() == list(profile.bases) and list(found) == noise_levels.COLUMNS
    assert noise_levels.read(PROFILES["paper"], tmp_path).empty


def test_on_a_development_base_the_rate_of_language_biased_noise_is_found(tmp_path):
    """The real thing, small: base, pairs, leak and forward passes."""
    profile = replace(PROFILES["smoke"], name="levels", bases=(100,), rows=120, heldout_rows=2)
    perturb.pairs(profile, 100, runs_dir=tmp_path)
    found = pd.read_parquet(noise_levels.table(profile, 100, tmp_path))
    assert len(found) == len(NOISE_KINDS) * len(NOISE_LEVELS) * len(posterior.BIASED)
    language = found[found["kind"] == "language_biased"]
    assert (language["estimated"] - language["true"]).abs().max() < 0.1 and language["auroc"].min() > 0.9
    assert language["true"].max() > language["true"].min() + 0.2
    vision = found[found["kind"] == "vision_biased"]
    assert (vision["estimated"] < vision["true"] + 0.02).all()  # a lower bound, as its text says
