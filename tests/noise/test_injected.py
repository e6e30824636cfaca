"""Injected noise: which rows it changes, what it does to them, and the log-probs of leaked answers."""

from dataclasses import replace

import numpy as np
import pytest

from napo.desk.scenes import from_json
from napo.desk.truth import judge
from napo.engine import logps, models, preferences
from napo.engine.preferences import BIASED
from napo.noise import injected, reference_logps
from napo.noise.injected import Injection
from napo.pairs import perturb
from napo.profiles import PROFILES
from napo.q import draw_flips
from napo.workshop.files import BadInput, read_parquet


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(profile, runs folder, training rows) of base 0 of the desk world, with reference log-probs."""
    runs = tmp_path_factory.mktemp("injected")
    profile = replace(PROFILES["smoke"], rows=20, heldout_rows=4)
    pairs = perturb.pairs(profile, 0, runs)
    reference_logps.build(profile, 0, runs)
    return profile, runs, preferences.part(preferences.read(pairs), "train")


def test_both_kinds_fall_on_the_rows_that_the_seed_draws(world):
    *_, rows = world
    expected = draw_flips(20, 0.4, np.random.default_rng([5, 1]))
    swapped_rows, flipped = injected.inject(rows, Injection("swap", 0.4, 5))
    assert expected.sum() == 8 and (flipped == expected).all() and swapped_rows is rows
    leaked, flipped = injected.inject(rows, Injection("leak", 0.4, 5))
    changed = np.array([any(new[kind] != old[kind] for kind in BIASED) for new, old in zip(leaked, rows, strict=True)])
    assert not flipped.any() and set(np.flatnonzero(changed)) <= set(np.flatnonzero(expected))
    for row in (leaked[i] for i in np.flatnonzero(expected)):
        assert all(judge(from_json(row["scene"]), row["question"], row[kind]).good for kind in BIASED)
        assert all(row[f"is_noise_{kind}"] for kind in BIASED)


@pytest.mark.parametrize("kind", ["swap", "leak"])
def test_at_rate_0_nothing_changes_and_all_seeds_share_their_files(world, kind):
    *_, rows = world
    none = Injection(kind, 0.0, 3)
    found, flipped = injected.inject(rows, none)
    assert found is rows and not flipped.any()
    assert (none.name, none.settings) == (Injection().name, Injection().settings)
    assert Injection(kind, 0.1, 3).settings != Injection(kind, 0.1, 4).settings


def test_leaked_answers_get_their_own_log_probs(world):
    """Against the plain path on all rows; other rows and kinds keep their stored values."""
    profile, runs, rows = world
    clean = read_parquet(reference_logps.current(profile, 0, runs)).set_index("row_id")
    assert injected.reference(profile, 0, Injection("swap", 0.4, 5), runs).name == "reference.parquet"
    injection = Injection("leak", 0.4, 5)
    path = injected.reference(profile, 0, injection, runs)
    assert path.parts[-2:] == ("injected", "leak-f0.4-s5.parquet")
    stored = read_parquet(path).set_index("row_id")
    leaked, _ = injected.inject(rows, injection)
    plain = logps.measure(*models.load_base(profile, 0), leaked, ("chosen", *BIASED), packed=False).set_index("row_id")
    drawn = plain.index[injected.drawn(20, injection)]
    for kind in BIASED:
        assert (stored.loc[plain.index, f"tokens_{kind}"] == plain[f"tokens_{kind}"]).all()
        np.testing.assert_allclose(stored.loc[plain.index, f"logps_{kind}"], plain[f"logps_{kind}"], atol=1e-3)
    others = stored.index.difference(drawn)
    assert stored.loc[others].equals(clean.loc[others]) and len(others) == 24 - 8
    assert stored["logps_rejected"].equals(clean["logps_rejected"])
    assert not stored.loc[drawn].equals(clean.loc[drawn])


@pytest.mark.parametrize(
    ("injection", "profile", "said"),
    [
        (Injection("typo", 0.2), "desk", "unknown noise_kind 'typo': use one of swap, leak"),
        (Injection("leak", 0.2), "paper", "profile paper has none: use 'swap'"),
        (Injection("swap", 0.5), "desk", "flip_rate=0.5: give a share of the rows, at least 0 and below 0.5"),
        (Injection("swap", float("nan")), "desk", "flip_rate=nan"),
    ],
)
def test_noise_that_cannot_be_injected_is_refused(injection, profile, said):
    with pytest.raises(BadInput, match=said):
        injected.check(injection, PROFILES[profile])
