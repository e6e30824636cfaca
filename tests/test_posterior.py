"""The noise estimate: mixtures whose truth is known, certain rows, swaps, calibration, the table of a base."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from tiny_cells import make_base, make_profile, make_rows

from napo import artifacts, evidence, models, posterior


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
    assert posterior.calibration_error(found.posterior, story > 0) < 0.03
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


def test_of_rows_keeps_the_rows_order_and_follows_the_labels(world):
    _, _, rows, reference, model, processor = world
    some, flipped = rows[::-1][:22], np.arange(22) < 7
    table, rates = posterior.of_rows(some, reference.sample(frac=1, random_state=1), flipped, model, processor)
    assert table["row_id"].tolist() == [row["row_id"] for row in some]
    for kind in posterior.BIASED:
        seen = evidence.measure(model, processor, some, reference, kind)
        by_hand = posterior.estimate(*posterior.labelled(seen, flipped))
        np.testing.assert_allclose(table[f"posterior_{kind}"], by_hand.posterior, atol=1e-4)
        assert rates[kind] == pytest.approx(table[f"posterior_{kind}"].mean(), abs=1e-4)


def test_the_table_of_a_base_is_what_of_rows_says_without_swaps(world, monkeypatch):
    profile, runs, rows, reference, model, processor = world
    path = posterior.table(profile, 0, runs)
    table = artifacts.read_parquet(path)
    expected, _ = posterior.of_rows(rows, reference, None, model, processor)
    for kind in posterior.BIASED:
        of_kind = table[table["kind"] == kind].set_index("row_id").loc[expected["row_id"]]
        np.testing.assert_allclose(of_kind["posterior"], expected[f"posterior_{kind}"], atol=1e-3)
    noise = table[["base", "row_id", "kind"]].iloc[::-1].assign(is_noise=True)
    merged = posterior.beside(noise, profile, runs)
    assert merged["row_id"].tolist() == noise["row_id"].tolist() and "posterior" in merged
    monkeypatch.setattr(models, "load_base", lambda *a, **k: pytest.fail("a model was loaded"))
    assert posterior.table(profile, 0, runs) == path


def test_calibration_error_by_hand():
    """Two bins of two rows: 0.1 against 0, and 0.8 against 0.5."""
    error = posterior.calibration_error([0.1, 0.9, 0.1, 0.7], [False, True, False, False], n_bins=2)
    assert error == pytest.approx((0.1 + 0.3) / 2)
    assert posterior.calibration_error([0.0, 1.0], [False, True]) == 0


def test_the_papers_rule_row_by_row():
    psi = np.array([-4.0, 0.0, 2.0])
    np.testing.assert_allclose(posterior.paper_estimate(psi, 0.5), 1 - expit(0.5 * psi))
