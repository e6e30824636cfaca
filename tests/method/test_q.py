"""q, gamma and known flips against values worked by hand and scipy's logistic function."""

import math

import numpy as np
import pytest
import torch
from scipy.special import expit

from napo.q import draw_flips, implied_noise_rate, loss_weights, noise_coefficient, raw_margins


def test_q_starts_at_one_half_in_the_paper_and_at_one_in_the_authors_code():
    assert noise_coefficient(torch.zeros(4), 0.5, "paper").item() == 0.5
    assert noise_coefficient(torch.zeros(4), 0.5, "authors").item() == 1.0
    assert noise_coefficient(torch.zeros(4), 0.5).item() == 0.5  # the paper's is the default


def test_q_by_hand():
    """mean psi = 2 log(3), alpha = 0.5: sigmoid = 3/4, so q = 1/4 (paper) and 1/2 (authors)."""
    psi = torch.tensor([1.0, 4 * math.log(3) - 1.0])
    assert noise_coefficient(psi, 0.5, "paper").item() == pytest.approx(0.25, rel=1e-6)
    assert noise_coefficient(psi, 0.5, "authors").item() == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize(("convention", "scale", "lowest"), [("paper", 1, 0.01), ("authors", 2, 0.001)])
def test_q_follows_the_batch_mean_within_its_range(convention, scale, lowest):
    rng = np.random.default_rng(0)
    for centre in (-4000, -40, -3, 0, 0.5, 3, 40, 400, 4000):
        psi = centre + rng.normal(size=6).astype(np.float32)
        expected = np.clip(scale * (1 - expit(0.01 * psi.astype(np.float64).mean())), lowest, 1)
        out = noise_coefficient(torch.from_numpy(psi), 0.01, convention)
        assert out.shape == () and out.dtype == torch.float32
        assert out.item() == pytest.approx(expected, rel=1e-6)


def test_q_is_cut_at_both_ends():
    far = torch.tensor([1e4])
    assert noise_coefficient(far, 0.5, "paper").item() == pytest.approx(0.01)
    assert noise_coefficient(far, 0.5, "authors").item() == pytest.approx(0.001)
    assert noise_coefficient(-far, 0.5, "paper").item() == 1.0
    assert noise_coefficient(-torch.ones(1), 0.5, "authors").item() == 1.0  # 2 sigmoid(0.5) = 1.24 before the cut


def test_q_is_one_number_for_the_batch_not_a_mean_of_q():
    psi = torch.tensor([0.0, 20.0])
    assert noise_coefficient(psi, 0.1).item() == pytest.approx(expit(-1.0), rel=1e-6)  # not (0.5 + expit(-2)) / 2


def test_q_and_gamma_carry_no_gradient():
    psi = torch.ones(3, requires_grad=True)
    assert not noise_coefficient(psi, 0.5).requires_grad
    for literal in (False, True):
        assert not any(g.requires_grad for g in loss_weights({"a": psi, "b": 2 * psi}, literal).values())


def test_q_refuses_an_unknown_convention_and_an_empty_batch():
    with pytest.raises(ValueError, match="unknown convention 'both'"):
        noise_coefficient(torch.zeros(1), 0.5, "both")
    with pytest.raises(ValueError, match="empty"):
        noise_coefficient(torch.zeros(0), 0.5)


@pytest.mark.parametrize("rounding", [0.0, 1e-9, -1e-9])
def test_weights_are_equal_at_the_start_whatever_the_rounding_noise(rounding):
    psi = {"a": torch.full((2,), rounding), "b": torch.zeros(2), "c": torch.full((2,), 3 * rounding)}
    assert [g.item() for g in loss_weights(psi).values()] == pytest.approx([1 / 3] * 3, rel=1e-6)


def test_weights_by_hand():
    """Means 0.3, 0.1 and -5 become scores 0.3, 0.1 and 0.01."""
    psi = {"a": torch.tensor([0.1, 0.5]), "b": torch.tensor([0.1]), "c": torch.tensor([-10.0, 0.0])}
    gamma = loss_weights(psi)
    assert list(gamma) == ["a", "b", "c"]
    assert [g.item() for g in gamma.values()] == pytest.approx([0.3 / 0.41, 0.1 / 0.41, 0.01 / 0.41], rel=1e-6)
    assert all(g.dtype == torch.float32 and g.shape == () for g in gamma.values())
    assert sum(g.item() for g in gamma.values()) == pytest.approx(1)


def test_weights_with_negative_margins_only_are_equal():
    gamma = loss_weights({"a": torch.tensor([-1.0]), "b": torch.tensor([-200.0])})
    assert [g.item() for g in gamma.values()] == [0.5, 0.5]


def test_literal_weights_are_eq_13_and_its_cut():
    """Means 6, 3, 1 give 0.6, 0.3, 0.1; means 2, -1 give 2 and -1, cut to 1 and 0.01; 1000 and 1 are cut below."""
    weights = lambda *means: [  # noqa: E731
        g.item() for g in loss_weights({i: torch.tensor([m]) for i, m in enumerate(means)}, literal=True).values()
    ]
    assert weights(6.0, 3.0, 1.0) == pytest.approx([0.6, 0.3, 0.1])
    assert weights(2.0, -1.0) == pytest.approx([1.0, 0.01])
    assert weights(1000.0, 1.0) == pytest.approx([1000 / 1001, 0.01])
    assert weights(0.0, 0.0) == [0.5, 0.5]
    assert weights(1e-7, 3e-7) == pytest.approx([0.25, 0.75])  # as erratic at the start as the paper's own formula


def test_weights_need_a_kind():
    with pytest.raises(ValueError, match="at least one kind"):
        loss_weights({})


def test_implied_noise_rate_halves_the_authors_q():
    """Zero margin says nothing about who is right, so both conventions must mean one half there."""
    zero = torch.zeros(1)
    for convention in ("paper", "authors"):
        q = noise_coefficient(zero, 0.5, convention)
        assert float(implied_noise_rate(q, convention)) == 0.5
    assert implied_noise_rate(0.2, "paper") == 0.2


def test_raw_margins_by_hand():
    raw_margin, raw_mean_margin = raw_margins(
        torch.tensor([-6.0]), torch.tensor([-10.0]), torch.tensor([3]), torch.tensor([4])
    )
    assert raw_margin.tolist() == [4.0] and raw_mean_margin.tolist() == [0.5]


@pytest.mark.parametrize(("n_rows", "flip_rate", "expected"), [(100, 0.4, 40), (480, 0.2, 96), (7, 0.3, 2), (3, 0, 0)])
def test_flips_are_exactly_as_many_as_asked(n_rows, flip_rate, expected):
    for seed in range(5):
        flipped = draw_flips(n_rows, flip_rate, np.random.default_rng(seed))
        assert flipped.dtype == bool and flipped.shape == (n_rows,) and flipped.sum() == expected


def test_flips_depend_on_the_generator_and_on_nothing_else():
    draw = lambda seed: draw_flips(50, 0.4, np.random.default_rng(seed))  # noqa: E731
    first = draw(1)
    np.random.seed(0)  # noqa: NPY002
    assert (draw(1) == first).all() and (draw(2) != first).any()


def test_flips_reach_every_row_equally():
    counts = sum(draw_flips(10, 0.3, np.random.default_rng(seed)).astype(int) for seed in range(2000))
    assert (abs(counts - 600) < 110).all()  # 5 standard deviations of a binomial(2000, 0.3)


@pytest.mark.parametrize("flip_rate", [-0.01, 0.5, 1.0, math.nan])
def test_flip_rate_outside_its_range_is_refused(flip_rate):
    with pytest.raises(ValueError, match="flip_rate must lie in"):
        draw_flips(4, flip_rate, np.random.default_rng(0))
