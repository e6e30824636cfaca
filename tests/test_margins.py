"""Raw and reward margins of every row: two quantities, each against its own definition, beside the known truth."""

import numpy as np
import pandas as pd
import pytest
from tiny_cells import make_base, make_profile, make_rows, with_training

from napo import artifacts, data, logps, margins, models, train
from napo.profiles import KINDS

BIASED = ("language_biased", "vision_biased")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(profile, runs folder, rows, reference, noise table); the probe trains on 8 of 12 training rows."""
    folder = tmp_path_factory.mktemp("world")
    profile = with_training(make_profile(folder, probe_rows=8), epochs=1)
    rows = make_rows()
    rows[1]["language_biased"] = rows[1]["chosen"]
    _, reference = make_base(profile, folder / "runs", rows)
    return profile, folder / "runs", rows, reference, pd.read_parquet(margins.noise_table(profile, 0, folder / "runs"))


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
    """The probe made again by hand: DPO on all pairs of the first 8 rows with the probe's seed."""
    profile, _, rows, reference, table = world
    model, processor = models.load(profile.model, profile.quantisation)
    policy, _ = train.fit(
        model,
        processor,
        rows[:8],
        reference,
        margins.METHODS["dpo_all"],
        margins.probe_training(profile),
        profile.lora,
        seed=margins.PROBE_SEED,
        checkpoints=tmp_path,
    )
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


def test_rows_unlike_the_reference_in_order_still_find_their_own(world):
    profile, runs, rows, reference, _ = world
    pairs = data.read(artifacts.run_folder(profile.name, "base-0", "pairs.parquet", runs_dir=runs))
    shuffled = reference.sample(frac=1, random_state=0)
    got = margins.margin_records(pairs, shuffled, shuffled, "vision_biased")
    np.testing.assert_allclose(
        got["raw_margin"], reference["logps_chosen"] - reference["logps_vision_biased"], rtol=1e-6
    )


def test_a_probe_with_other_settings_never_goes_on_from_this_ones_checkpoints(world, monkeypatch):
    profile, runs, *_ = world
    folders = []

    def stop(*arguments, checkpoints, **settings):
        folders.append(checkpoints)
        raise InterruptedError

    monkeypatch.setattr(train, "fit", stop)
    for beta in (0.2, 0.2, 0.3):
        with pytest.raises(InterruptedError):
            margins.noise_table(with_training(profile, beta=beta), 0, runs)
    assert folders[0] == folders[1] != folders[2]
