"""napo.explorer.toy: it descends the package's losses, swaps what it says, and shows what swapped labels do."""

import numpy as np
import pytest
import torch
from scipy import stats

from napo import losses
from napo.explorer import toy


def mean_loss(margin, q, beta):
    if q == 0:
        return losses.dpo_loss(margin, beta).mean()
    return (losses.mae_loss(margin, beta) if q == 1 else losses.napo_loss(margin, q, beta)).mean()


@pytest.mark.parametrize("q", [0, 0.3, 1])
def test_pull_is_the_slope_of_the_packages_loss(q):
    z = torch.linspace(-8, 8, 33, dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad(mean_loss(z, q, 1.0) * len(z), z)[0]
    np.testing.assert_allclose(toy.pull(z.detach().numpy(), q), -slope.numpy(), rtol=1e-6)


@pytest.mark.parametrize("q", [0, 0.5, 1])
def test_training_is_gradient_descent_on_that_loss(q):
    beta, flip_rate = 0.2, 0.1
    pairs = torch.tensor(toy.worlds(flip_rate)[0][0])
    w = torch.zeros(toy.FEATURES, dtype=torch.float64, requires_grad=True)
    descent = torch.optim.SGD([w], lr=toy.STEP_SIZE / beta)
    for _ in range(toy.STEPS):
        descent.zero_grad()
        mean_loss(pairs @ w, q, beta).backward()
        descent.step()
    expected = (pairs @ w).detach().numpy()
    np.testing.assert_allclose(toy.train(q, beta, flip_rate).margin, expected, rtol=1e-3, atol=1e-3)


def test_swapped_pairs_are_as_many_as_asked_and_only_turned_round():
    straight, swapped = toy.worlds(0.0), toy.worlds(0.3)
    assert not straight[2].any() and (swapped[2].sum(axis=1) == round(0.3 * toy.PAIRS)).all()
    turned = np.where(swapped[2], -1, 1)[:, :, None]
    np.testing.assert_array_equal(swapped[0] * turned, straight[0])
    np.testing.assert_array_equal(swapped[1], straight[1])


def test_every_world_can_be_learnt_without_error():
    """One direction ranks every pair right: nothing but the swaps is wrong with the labels."""
    pairs, test, _ = toy.worlds(0.0)
    from scipy.optimize import linprog

    every = np.concatenate([pairs[0], test[0]])
    found = linprog(np.zeros(toy.FEATURES), A_ub=-every, b_ub=-np.ones(len(every)), bounds=(None, None))
    assert found.success


def test_bce_is_faster_without_swaps_and_mae_ends_higher_with_them():
    first = [toy.train(q, 0.1, 0.0).accuracy[:, 0] for q in (0.0, 1.0)]
    assert stats.ttest_rel(*first, alternative="greater").pvalue < 0.01
    last = [toy.train(q, 0.1, 0.2).accuracy[:, -1] for q in (1.0, 0.0)]
    assert stats.ttest_rel(*last, alternative="greater").pvalue < 0.01


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0])
def test_no_loss_swings_to_and_fro(beta):
    """What is seen late in training is what the losses do, not too large a step."""
    for q in (0.0, 0.5, 1.0):
        late = toy.train(q, beta, 0.2).accuracy[:, -10:].mean(axis=0)
        assert np.abs(np.diff(late)).max() < 0.005


def test_accuracy_is_over_unswapped_test_pairs_and_has_its_interval():
    trained = toy.train(0.5, 0.1, 0.2)
    assert trained.accuracy.shape == (toy.WORLDS, toy.STEPS // toy.EVERY) and trained.steps[-1] == toy.STEPS
    mean, half = trained.mean_and_half_width()
    low, high = stats.t.interval(
        0.95, toy.WORLDS - 1, trained.accuracy[:, -1].mean(), stats.sem(trained.accuracy[:, -1])
    )
    assert np.isclose(mean[-1] - half[-1], low) and np.isclose(mean[-1] + half[-1], high)


@pytest.mark.parametrize("flip_rate", [-0.1, 0.5, 0.9])
def test_impossible_flip_rate_is_refused(flip_rate):
    with pytest.raises(ValueError, match="flip_rate"):
        toy.train(0.5, 0.1, flip_rate)
