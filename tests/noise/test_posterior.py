"""The noise estimate: mixtures with known truth, certain noise, swaps, calibration, and the tables of a base."""

import numpy as np
import pandas as pd
import pytest
from tiny_cells import make_base, make_profile, make_rows

from napo.engine import models
from napo.engine.preferences import BIASED
from napo.noise import evidence, posterior
from napo.noise.injected import Injection, drawn
from napo.stats import auroc
from napo.workshop.files import read_parquet


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def mixture(rng, n=1000, leaked=0.2, swapped=0.1, apart=3.0):
    """(chosen_evidence, evidence, story (n,) 0 clean, 1 leaked, 2 swapped). The evidence is a real log-likelihood
    ratio, of N(apart, 1) against N(0, 1) observations, so that the true posterior is known."""
    story = np.repeat([0, 1, 2], [n - round(leaked * n) - round(swapped * n), round(leaked * n), round(swapped * n)])
    full = np.stack([story != 2, story > 0])  # which of chosen and rejected follow from the whole prompt
    seen = rng.normal(apart * full, 1.0)
    return *(apart * seen - apart**2 / 2), story


@pytest.mark.parametrize(("leaked", "swapped"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.3), (0.2, 0.2)])
def test_stories_are_told_apart_and_counted(rng, leaked, swapped):
    *seen, story = mixture(rng, leaked=leaked, swapped=swapped)
    log_odds = posterior.stories(*seen)
    found = posterior.estimate(log_odds, np.zeros(1000, bool))
    assert found.rate == pytest.approx(leaked + swapped, abs=0.03) and np.isnan(found.lo)
    assert ((found.posterior > 0.5) == (story > 0)).mean() > 0.9
    assert auroc.calibration_error(found.posterior, story > 0) < 0.03
    shares = posterior.shares(log_odds).mean(axis=0)
    assert shares[1:] == pytest.approx([leaked, swapped], abs=0.03) and shares.sum() == pytest.approx(1)


def test_shares_by_hand():
    """Two rows, one twice as likely leaked as clean, one half: equal shares are the fixed point."""
    found = posterior.shares(np.log([[2.0], [0.5]]))
    np.testing.assert_allclose(found, [[1 / 3, 2 / 3], [2 / 3, 1 / 3]], atol=1e-6)


def test_the_rate_has_an_interval_that_holds_the_truth(rng):
    *seen, story = mixture(rng, n=300)
    log_odds, same = posterior.stories(*seen), np.zeros(300, bool)
    found = posterior.estimate(log_odds, same, rng=rng, resamples=60)
    assert found.lo < (story > 0).mean() < found.hi and 0.02 < found.hi - found.lo < 0.3
    assert (found.posterior == posterior.estimate(log_odds, same).posterior).all()


def test_the_chosen_answer_once_more_is_noise_for_certain_and_no_part_of_the_fit(rng):
    *seen, _ = mixture(rng)
    log_odds, same = posterior.stories(*seen), np.zeros(1000, bool)
    alone = posterior.estimate(log_odds, same).posterior
    found = posterior.estimate(np.vstack([log_odds, np.zeros((50, 2))]), np.append(same, np.ones(50, bool))).posterior
    assert (found[1000:] == 1).all() and (found[:1000] == alone).all()
    assert (posterior.estimate(np.zeros((20, 2)), np.ones(20, bool)).posterior == 1).all()


def test_very_long_answers_do_not_overflow():
    found = posterior.estimate(np.repeat([[1e4, 1e4], [-1e4, -1e4]], 20, axis=0), np.zeros(40, bool))
    assert found.posterior.tolist() == pytest.approx([1.0] * 20 + [0.0] * 20) and found.rate == pytest.approx(0.5)


def test_swapped_labels_exchange_the_evidence():
    seen = pd.DataFrame({"chosen_evidence": [3.0, 3.0], "evidence": [-2.0, -2.0], "same": [False, True]})
    log_odds, same = posterior.labelled(seen, np.array([False, True]))
    assert log_odds.tolist() == [[-2, -5], [3, 5]] and same.tolist() == [False, True]
    assert (posterior.labelled(seen)[0] == [[-2, -5], [-2, -5]]).all()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(profile, runs folder, rows, reference, model, processor), 24 rows."""
    folder = tmp_path_factory.mktemp("posterior")
    profile = make_profile(folder)
    rows, reference = make_base(profile, folder / "runs", make_rows(20, 4))
    return profile, folder / "runs", rows, reference, *models.load_base(profile, 0)


def test_the_estimate_of_training_rows_follows_their_labels(world, monkeypatch):
    """Swapped rows exchange the evidence for their two answers; held-out rows are no part of the fit."""
    profile, runs, rows, reference, model, processor = world
    injection = Injection("swap", 0.3, 5)
    path = posterior.of_training(profile, 0, injection, runs)
    table = read_parquet(path)
    trained = [row for row in rows if row["split"] == "train"]
    flipped = drawn(len(trained), injection)
    assert flipped.sum() == 6 and len(trained) == 20
    for kind in BIASED:
        seen = evidence.measure(model, processor, trained, reference.sample(frac=1, random_state=1), kind)
        chosen, other = seen["chosen_evidence"].to_numpy(copy=True), seen["evidence"].to_numpy(copy=True)
        chosen[flipped], other[flipped] = other[flipped].copy(), chosen[flipped].copy()
        by_hand = posterior.estimate(posterior.stories(chosen, other), seen["same"])
        of_kind = table[table["kind"] == kind]
        assert of_kind["row_id"].tolist() == [row["row_id"] for row in trained]
        np.testing.assert_allclose(of_kind["posterior"], by_hand.posterior, atol=1e-3)
    monkeypatch.setattr(models, "load_base", lambda *a, **k: pytest.fail("a model was loaded"))
    assert posterior.of_training(profile, 0, injection, runs) == path


def test_without_noise_all_seeds_and_kinds_share_one_estimate(world, monkeypatch):
    profile, runs, *_ = world
    path = posterior.of_training(profile, 0, Injection("swap", 0.0, 0), runs)
    monkeypatch.setattr(models, "load_base", lambda *a, **k: pytest.fail("a model was loaded"))
    assert posterior.of_training(profile, 0, Injection("leak", 0.0, 1), runs) == path


def test_the_table_of_a_base_estimates_all_rows_as_labelled(world, monkeypatch):
    profile, runs, rows, reference, model, processor = world
    path = posterior.table(profile, 0, runs)
    table = read_parquet(path)
    for kind in BIASED:
        seen = evidence.measure(model, processor, rows, reference, kind)
        expected = posterior.estimate(posterior.stories(seen["chosen_evidence"], seen["evidence"]), seen["same"])
        of_kind = table[table["kind"] == kind].set_index("row_id").loc[seen["row_id"]]
        np.testing.assert_allclose(of_kind["posterior"], expected.posterior, atol=1e-3)
    noise = table[["base", "row_id", "kind"]].iloc[::-1].assign(is_noise=True)
    merged = posterior.beside(noise, profile, runs)
    assert merged["row_id"].tolist() == noise["row_id"].tolist() and "posterior" in merged
    monkeypatch.setattr(models, "load_base", lambda *a, **k: pytest.fail("a model was loaded"))
    assert posterior.table(profile, 0, runs) == path
