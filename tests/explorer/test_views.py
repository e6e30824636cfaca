"""napo.explorer.views: what the explorer shows are the formulas, on the toy's rows and on real ones."""

import numpy as np
import pytest
import torch
from scipy.special import expit
from small_report import margins_table

from napo import losses
from napo.explorer import toy, views
from napo.q import noise_coefficient


def test_losses_and_pulls_are_the_formulas():
    z = torch.linspace(-6, 6, 41, dtype=torch.float64)
    loss, pull = views.loss_and_pull(z, 0.3)
    p = expit(z.numpy())
    for name, value, slope in (
        ("BCE", -np.log(p), 1 - p),
        ("MAE", 1 - p, p * (1 - p)),
        ("q", (1 - p**0.3) / 0.3, p**0.3 * (1 - p)),
    ):
        np.testing.assert_allclose(loss[name], value, rtol=1e-6)
        np.testing.assert_allclose(pull[name], slope, rtol=1e-6)


def test_real_rows_give_the_measured_ones_of_each_kind_with_two_margins():
    batches = views.rows_of(margins_table())
    assert list(batches) == [
        f"{kind}, {which} margin" for kind in ("language-biased", "vision-biased") for which in ("mean", "sum")
    ]
    rows = batches["vision-biased, mean margin"]
    np.testing.assert_allclose(rows.margin, [2.0, -1.0, 5.0, 1.5])
    np.testing.assert_allclose(rows.rule_margin, [0.2, -0.1, 0.5, 0.15])
    assert rows.is_noise.tolist() == [True, False, False, True] and rows.rule_unit == "nats/token"
    np.testing.assert_allclose(batches["vision-biased, sum margin"].rule_margin, rows.margin)


def test_a_view_of_real_rows_by_hand():
    rows = views.rows_of(margins_table())["language-biased, mean margin"]
    view = views.look(q=0.4, beta=0.5, alpha=0.7, flip_rate=0.1, rows=rows)
    np.testing.assert_allclose(view.row_p, expit(0.5 * rows.margin))
    weight = view.row_p**0.4 * (1 - view.row_p)
    np.testing.assert_allclose(view.weight["q"], weight, rtol=1e-6)
    assert np.isclose(view.noise_share["q"], weight[[0, 3]].sum() / weight.sum())
    assert np.isclose(view.rule, 1 - expit(0.7 * 0.5 * rows.rule_margin.mean()))
    np.testing.assert_allclose(view.rule_q, 1 - expit(0.7 * 0.5 * view.rule_x), rtol=1e-6)
    assert np.isclose(view.mean_margin, rows.rule_margin.mean())


def test_without_rows_the_toys_own_pairs_are_shown():
    view = views.look(q=0.6, beta=0.1, alpha=0.5, flip_rate=0.3)
    trained = toy.train(0.6, 0.1, 0.3)
    np.testing.assert_array_equal(view.rows.margin, trained.margin)
    np.testing.assert_array_equal(view.rows.is_noise, trained.swapped)
    np.testing.assert_array_equal(view.accuracy["MAE"][0], toy.train(1.0, 0.1, 0.3).accuracy.mean(axis=0))
    assert view.rule == noise_coefficient(torch.tensor(0.1 * trained.margin), 0.5).item()


def test_unknown_truth_stays_unknown():
    rows = views.rows_of(margins_table(truth=False))["language-biased, sum margin"]
    view = views.look(q=0.5, beta=0.1, alpha=0.5, flip_rate=0.0, rows=rows)
    assert rows.is_noise is None and view.noise_share is None
    assert "noise" not in views.described(view).lower()


def test_the_description_says_the_numbers():
    view = views.look(q=0.5, beta=0.1, alpha=0.5, flip_rate=0.2)
    text = views.described(view)
    assert text.startswith("q = 0.5, β = 0.1, α = 0.5, swap rate = 0.2.") and f"q = {view.rule:.3f}" in text
    assert f"BCE {view.accuracy['BCE'][0][-1]:.3f}" in text and "20% of the rows" in text


@pytest.mark.parametrize("q", [0.01, 1.0])
def test_at_its_ends_q_is_the_loss_of_that_end(q):
    z = torch.linspace(-3, 3, 9)
    values, _ = views.loss_and_pull(z, q)
    end = losses.mae_loss(z, 1.0) if q == 1 else losses.dpo_loss(z, 1.0)
    np.testing.assert_allclose(values["q"], end.numpy(), rtol=0.02)
