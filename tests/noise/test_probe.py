"""Raw and reward margins of every row, each against its own definition."""

import numpy as np
import pandas as pd
import pytest
from tiny_cells import make_base, make_profile, make_rows, with_training

from napo.engine import logps, models, preferences
from napo.engine.preferences import BIASED
from napo.methods import KINDS, METHODS
from napo.noise import probe
from napo.training import trainer
from napo.training.training_set import TrainingSet
from napo.workshop import artifacts


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(profile, runs folder, rows, reference, noise table); the probe trains on 8 of 12 training rows."""
    folder = tmp_path_factory.mktemp("world")
    profile = with_training(make_profile(folder, probe_rows=8), epochs=1)
    rows = make_rows()
    rows[1]["language_biased"] = rows[1]["chosen"]
    _, reference = make_base(profile, folder / "runs", rows)
    return profile, folder / "runs", rows, reference, pd.read_parquet(probe.noise_table(profile, 0, folder / "runs"))


def test_one_record_per_row_and_kind_with_what_is_known_of_it(world):
    _, _, rows, _, table = world
    assert len(table) == 2 * len(rows) and not table.duplicated(["row_id", "kind"]).any()
    for kind in BIASED:
        part = table[table["kind"] == kind].set_index("row_id")
        for row in rows:
            record, truth = part.loc[row["row_id"]], row[f"is_noise_{kind}"]
            assert pd.isna(record["is_noise"]) if truth is None else record["is_noise"] == truth
            assert record["n_tokens"] == len(row[kind]) + 2
            assert record["equals_chosen"] == (row[kind] == row["chosen"])
    assert table["equals_chosen"].sum() == 1
    assert set(table[table["part"] == "probe"]["row_id"]) == {row["row_id"] for row in rows[:8]}
    assert set(table["part"]) == {"probe", "measured"}


def test_raw_margins_are_the_bases_alone(world):
    *_, rows, reference, table = world
    for kind in BIASED:
        part = table[table["kind"] == kind]
        assert part["row_id"].tolist() == [row["row_id"] for row in rows]
        chosen, other = reference["logps_chosen"], reference[f"logps_{kind}"]
        np.testing.assert_allclose(part["raw_margin"], chosen - other, rtol=1e-6)
        per_token = chosen / reference["tokens_chosen"] - other / reference[f"tokens_{kind}"]
        np.testing.assert_allclose(part["raw_mean_margin"], per_token, rtol=1e-5)


def test_reward_margins_are_those_of_the_probe_against_the_base(world, tmp_path):
    """Against a second probe: DPO on all pairs of the first 8 rows with the probe's seed."""
    profile, _, rows, reference, table = world
    model, processor = models.load(profile.model, profile.quantisation)
    settings = trainer.Fit(probe.probe_training(profile), profile.lora, probe.PROBE_SEED)
    policy, _ = trainer.fit(model, processor, METHODS["dpo_all"], TrainingSet(rows[:8], reference), settings, tmp_path)
    after = logps.measure(policy, processor, rows, KINDS)
    for kind in BIASED:
        ratio = {k: after[f"logps_{k}"] - reference[f"logps_{k}"] for k in ("chosen", kind)}
        part = table[table["kind"] == kind]
        np.testing.assert_allclose(part["margin"], ratio["chosen"] - ratio[kind], atol=1e-3)
        mean_margin = ratio["chosen"] / after["tokens_chosen"] - ratio[kind] / after[f"tokens_{kind}"]
        np.testing.assert_allclose(part["mean_margin"], mean_margin, atol=1e-4)
    assert table["margin"].abs().mean() > 0.05
    same = table[table["equals_chosen"]]
    assert same["margin"].abs().max() < 1e-4 and same["raw_margin"].abs().max() < 1e-4


def test_the_reference_may_come_in_any_order(world):
    profile, runs, rows, reference, _ = world
    pairs = preferences.read(artifacts.run_folder(profile.name, "base-0", "pairs.parquet", runs_dir=runs))
    shuffled = reference.sample(frac=1, random_state=0)
    got = probe.margin_records(pairs, shuffled, shuffled, "vision_biased")
    np.testing.assert_allclose(
        got["raw_margin"], reference["logps_chosen"] - reference["logps_vision_biased"], rtol=1e-6
    )


def test_a_probe_with_other_settings_has_other_checkpoints(world, monkeypatch):
    profile, runs, *_ = world
    folders = []

    def stop(model, processor, method, data, settings, checkpoints):
        folders.append(checkpoints)
        raise InterruptedError

    monkeypatch.setattr(trainer, "fit", stop)
    for beta in (0.2, 0.2, 0.3):
        with pytest.raises(InterruptedError):
            probe.noise_table(with_training(profile, beta=beta), 0, runs)
    assert folders[0] == folders[1] != folders[2]
