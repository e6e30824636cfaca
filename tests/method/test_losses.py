"""The losses against 50-digit arithmetic: values and gradients over the whole range, limits, bounds, dtypes."""

import math

import mpmath
import numpy as np
import pytest
import torch

from napo import losses

mpmath.mp.dps = 50
SMALLEST_NORMAL = 2.0**-126
Z = [-200, -150.5, -104, -103, -90, -89, -88, -50, -34, -33.25, -17.5, -17, -16, -5, -1, -0.125, -1e-3, -1e-30, 0]
Z = sorted({*Z, *(-z for z in Z), 13, 14.5, 20, 37, 60, 87, 87.5, 160})
Q = [1e-3, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999, 1.0]


def box_cox(z, q):
    """(1 - p**q) / q in 50 digits and more, where 1 - p**q cancels."""
    with mpmath.workdps(150):
        p = 1 / (1 + mpmath.exp(-z))
        return (1 - p**q) / q


def cross_entropy(z, q=None):
    with mpmath.workdps(150):
        return mpmath.log(1 + mpmath.exp(-z))


def slope(loss, z, q=None):
    """dL/dz by a central difference in 150 digits; nothing of the kit's formula is in it."""
    with mpmath.workdps(150):
        h = mpmath.mpf(10) ** -50
        return (loss(z + h, q) - loss(z - h, q)) / (2 * h)


def assert_float32_exact(got, truth, relative=2e-6):
    """Relative error where float32 can hold the number, else absolute below its smallest normal number."""
    for value, exact in zip(got, truth, strict=True):
        assert math.isfinite(value)
        if abs(exact) >= SMALLEST_NORMAL:
            assert abs(mpmath.mpf(value) - exact) <= relative * abs(exact), (value, exact)
        else:
            assert abs(mpmath.mpf(value) - exact) <= SMALLEST_NORMAL


def value_and_gradient(loss, margin):
    margin = margin.clone().requires_grad_()
    out = loss(margin)
    out.sum().backward()
    return out.tolist(), margin.grad.tolist()


@pytest.mark.parametrize("beta", [1.0, 0.1])
@pytest.mark.parametrize("q", Q)
def test_box_cox_loss_and_gradient_are_exact_over_the_whole_range(q, beta):
    margin = torch.tensor([z / beta for z in Z], dtype=torch.float32)
    z = [mpmath.mpf(beta) * mpmath.mpf(m) for m in margin.tolist()]
    values, gradients = value_and_gradient(lambda m: losses.napo_loss(m, q, beta), margin)
    assert_float32_exact(values, [box_cox(point, mpmath.mpf(q)) for point in z])
    assert_float32_exact(gradients, [mpmath.mpf(beta) * slope(box_cox, point, mpmath.mpf(q)) for point in z])


@pytest.mark.parametrize("beta", [1.0, 0.1])
def test_dpo_loss_and_gradient_are_exact_over_the_whole_range(beta):
    margin = torch.tensor([z / beta for z in Z], dtype=torch.float32)
    z = [mpmath.mpf(beta) * mpmath.mpf(m) for m in margin.tolist()]
    values, gradients = value_and_gradient(lambda m: losses.dpo_loss(m, beta), margin)
    assert_float32_exact(values, [cross_entropy(point) for point in z])
    assert_float32_exact(gradients, [mpmath.mpf(beta) * slope(cross_entropy, point) for point in z])


def test_random_margins_with_a_q_for_every_pair():
    rng = np.random.default_rng(3)
    margin = torch.tensor(rng.uniform(-200, 200, 150), dtype=torch.float32)
    q = torch.tensor(np.exp(rng.uniform(np.log(1e-3), 0, 150)), dtype=torch.float32)
    values, gradients = value_and_gradient(lambda m: losses.napo_loss(m, q, 1.0), margin)
    points = [(mpmath.mpf(m), mpmath.mpf(k)) for m, k in zip(margin.tolist(), q.tolist(), strict=True)]
    assert_float32_exact(values, [box_cox(*point) for point in points])
    assert_float32_exact(gradients, [slope(box_cox, *point) for point in points])


def test_gradient_never_vanishes_where_the_loss_is_steep():
    """Autograd of the expm1 form is exactly 0 here; the true slope at z = -40, q = 0.5 is exp(-20)."""
    _, (gradient,) = value_and_gradient(lambda m: losses.napo_loss(m, 0.5, 1.0), torch.tensor([-40.0]))
    assert gradient == pytest.approx(-math.exp(-20), rel=1e-6)


def test_by_hand_at_margin_zero():
    zero = torch.zeros(2)
    assert losses.dpo_loss(zero, 0.1).tolist() == pytest.approx([math.log(2)] * 2, rel=1e-6)
    assert losses.napo_loss(zero, 1.0, 0.1).tolist() == [0.5, 0.5]
    assert losses.napo_loss(zero, 0.5, 0.1).tolist() == pytest.approx([2 - math.sqrt(2)] * 2, rel=1e-6)


def test_margin_log_3_by_hand():
    """p = 3/4: DPO log(4/3), MAE 1/4, and 2 (1 - sqrt(3)/2) at q = 1/2."""
    margin = torch.tensor([math.log(3) / 0.2])
    assert losses.dpo_loss(margin, 0.2).item() == pytest.approx(math.log(4 / 3), rel=1e-6)
    assert losses.mae_loss(margin, 0.2).item() == pytest.approx(0.25, rel=1e-6)
    assert losses.napo_loss(margin, 0.5, 0.2).item() == pytest.approx(2 - math.sqrt(3), rel=1e-6)


def test_limits_are_dpo_and_mae():
    margin = torch.linspace(-30, 30, 61)
    torch.testing.assert_close(
        losses.napo_loss(margin, 1e-12, 1.0), losses.dpo_loss(margin, 1.0), rtol=2e-6, atol=1e-38
    )
    torch.testing.assert_close(losses.napo_loss(margin, 1.0, 1.0), losses.mae_loss(margin, 1.0), rtol=2e-6, atol=1e-38)


def test_distance_to_dpo_shrinks_with_q():
    margin = torch.linspace(-5, 5, 21)
    far, near, nearest = (
        (losses.napo_loss(margin, q, 1.0) - losses.dpo_loss(margin, 1.0)).abs().max() for q in (0.3, 0.03, 0.003)
    )
    assert far > 5 * near > 25 * nearest > 0


@pytest.mark.parametrize("q", [0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_box_cox_lies_between_mae_and_bce(q):
    margin = torch.linspace(-60, 6, 133)
    mae, middle, bce = losses.mae_loss(margin, 1.0), losses.napo_loss(margin, q, 1.0), losses.dpo_loss(margin, 1.0)
    assert (mae <= middle).all()
    assert (middle < bce).all()
    assert (mae < middle)[margin < 4].all()


def test_mae_is_symmetric_and_bce_is_not():
    margin = torch.linspace(-40, 40, 81)
    total = losses.mae_loss(margin, 0.7) + losses.mae_loss(-margin, 0.7)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-7)
    assert (losses.dpo_loss(margin, 0.7) + losses.dpo_loss(-margin, 0.7) > 1.38).all()


def test_loss_falls_as_the_margin_grows():
    margin = torch.linspace(-80, 15, 96)
    for out in (losses.dpo_loss(margin, 1.0), losses.napo_loss(margin, 0.3, 1.0), losses.mae_loss(margin, 1.0)):
        assert (out.diff() <= 0).all() and out[0] > out[-1]


@pytest.mark.parametrize("q", [0.0, -0.1, 1.0001, math.nan, torch.tensor([0.5, 1.5]), torch.tensor([0.0, 0.5])])
def test_q_outside_its_range_is_refused(q):
    with pytest.raises(ValueError, match=r"q must lie in \(0, 1\]"):
        losses.napo_loss(torch.zeros(2), q, 0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_input_dtype_gives_float32_of_the_same_value(dtype):
    margin = torch.tensor([-8.0, -0.5, 0.0, 0.5, 8.0], dtype=dtype, requires_grad=True)  # exact in every dtype
    reference = margin.detach().float()
    for loss in (losses.dpo_loss, losses.mae_loss, lambda m, b: losses.napo_loss(m, 0.3, b)):
        out = loss(margin, 0.5)
        assert out.dtype == torch.float32 and out.shape == (5,)
        torch.testing.assert_close(out, loss(reference, 0.5), rtol=0, atol=0)
        out.sum().backward()
        assert margin.grad.dtype == dtype


def test_no_nan_at_or_near_infinity():
    margin = torch.tensor([-math.inf, -3e38, -1e30, 1e30, 3e38, math.inf])
    for q in (1e-3, 0.5, 1.0):
        values, gradients = value_and_gradient(lambda m, q=q: losses.napo_loss(m, q, 1.0), margin)
        assert values[:3] == pytest.approx([1 / q] * 3) and values[3:] == [0, 0, 0]
        assert gradients == [0] * 6
    values, gradients = value_and_gradient(lambda m: losses.dpo_loss(m, 1.0), margin)
    assert values[0] == math.inf and values[1] == pytest.approx(3e38) and values[3:] == [0, 0, 0]
    assert gradients == [-1, -1, -1, 0, 0, 0]
    assert losses.mae_loss(margin, 1.0).tolist() == [1, 1, 1, 0, 0, 0]


def test_no_gradient_flows_through_q():
    q = torch.tensor(0.5, requires_grad=True)
    margin = torch.tensor([1.0], requires_grad=True)
    losses.napo_loss(margin, q, 1.0).sum().backward()
    assert q.grad is None and margin.grad is not None


def test_gradient_is_scaled_by_what_comes_from_above():
    margin = torch.tensor([0.3, -2.0], requires_grad=True)
    weights = torch.tensor([0.25, -3.0])
    (weights * losses.napo_loss(margin, 0.4, 0.5)).sum().backward()
    p = 1 / (1 + np.exp(-0.5 * np.array([0.3, -2.0])))
    assert margin.grad.tolist() == pytest.approx(list(weights.numpy() * 0.5 * -(p**0.4) * (1 - p)), rel=1e-5)


def test_sft_loss_is_the_mean_negative_log_likelihood_per_token():
    out = losses.sft_loss(torch.tensor([-6.0, -1.0], dtype=torch.float64), torch.tensor([3.0, 4.0]))
    assert out.tolist() == [2.0, 0.25] and out.dtype == torch.float32


# ---- what NaPO is compared with -------------------------------------------------------------------------------------


def smoothed(z, weight):
    """Cross entropy against the two labels with weights (1 - w) and w: with log1p(exp), not with a sigmoid."""
    with mpmath.workdps(150):
        return (1 - weight) * mpmath.log1p(mpmath.exp(-z)) + weight * mpmath.log1p(mpmath.exp(z))


def debiased(z, epsilon):
    """Solves u = the loss whose mean over swaps is BCE: two linear equations for u(z) and u(-z), by matrix inverse."""
    with mpmath.workdps(150):
        swap = mpmath.matrix([[1 - epsilon, epsilon], [epsilon, 1 - epsilon]])
        return (swap**-1 * mpmath.matrix([cross_entropy(z), cross_entropy(-z)]))[0]


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.3, 0.49])
@pytest.mark.parametrize(("loss", "truth"), [(losses.cdpo_loss, smoothed), (losses.robust_dpo_loss, debiased)])
def test_losses_that_assume_swaps_are_exact(loss, truth, epsilon):
    margin = torch.tensor([z / 0.5 for z in Z if abs(z) <= 104], dtype=torch.float32)
    points, e = [mpmath.mpf(0.5) * mpmath.mpf(m) for m in margin.tolist()], mpmath.mpf(epsilon)
    values, gradients = value_and_gradient(lambda m: loss(m, epsilon, 0.5), margin)
    slopes = [slope(truth, point, e) / 2 for point in points]
    for value, exact in zip([*values, *gradients], [*(truth(point, e) for point in points), *slopes], strict=True):
        assert abs(value - exact) <= 1e-6 * abs(exact) + mpmath.mpf(10) ** -15, (value, exact)


def test_cdpo_is_lowest_where_the_preference_is_as_sure_as_the_labels():
    margin = torch.linspace(-4, 8, 12001)
    lowest = margin[losses.cdpo_loss(margin, 0.2, 0.5).argmin()].item()
    assert 1 / (1 + math.exp(-0.5 * lowest)) == pytest.approx(0.8, abs=1e-3)


def test_robust_dpo_over_swapped_labels_is_dpo_of_the_right_ones():
    margin = torch.linspace(-20, 20, 41)
    over_swaps = 0.7 * losses.robust_dpo_loss(margin, 0.3, 0.5) + 0.3 * losses.robust_dpo_loss(-margin, 0.3, 0.5)
    torch.testing.assert_close(over_swaps, losses.dpo_loss(margin, 0.5), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", [losses.cdpo_loss, losses.robust_dpo_loss])
@pytest.mark.parametrize("epsilon", [-0.1, 0.5, math.nan])
def test_epsilon_outside_its_range_is_refused(loss, epsilon):
    with pytest.raises(ValueError, match="epsilon must lie in"):
        loss(torch.zeros(1), epsilon, 0.1)


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0])
def test_ipo_is_a_parabola_through_three_known_points(beta):
    """0 and slope 0 at 1 / (2 beta), 1 / (4 beta^2) and slope -1 / beta at margin 0."""
    margin = torch.tensor([0.0, 0.5 / beta, 1 / beta], dtype=torch.float64)
    values, gradients = value_and_gradient(lambda m: losses.ipo_loss(m, beta), margin)
    assert values == pytest.approx([0.25 / beta**2, 0, 0.25 / beta**2], rel=1e-6, abs=1e-12)
    assert gradients == pytest.approx([-1 / beta, 0, 1 / beta], rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("beta_prime", [0.2, 1.0, 5.0])
def test_dr_dpo_is_the_power_mean_of_the_preference_probabilities(beta_prime):
    """exp(-L) is the power mean of p with exponent 1 / beta'; the slopes are its partial derivatives."""
    margin = torch.tensor([-30.0, -1.0, 0.0, 2.5, 40.0], dtype=torch.float32)
    with mpmath.workdps(80):
        inverse = 1 / mpmath.mpf(beta_prime)

        def truth(margins):
            total = sum((1 / (1 + mpmath.exp(-m / 2))) ** inverse for m in margins) / len(margins)
            return -mpmath.log(total) * mpmath.mpf(beta_prime)

        points, h = [mpmath.mpf(m) for m in margin.tolist()], mpmath.mpf(10) ** -25
        slopes = []
        for i in range(len(points)):
            up, down = ([p + (s * h if i == j else 0) for j, p in enumerate(points)] for s in (1, -1))
            slopes.append((truth(up) - truth(down)) / (2 * h))
        expected = float(truth(points))
    values = losses.dr_dpo_loss(margin, beta_prime, 0.5)
    assert values.tolist() == pytest.approx([expected] * 5, rel=1e-6) and values.dtype == torch.float32
    _, gradients = value_and_gradient(lambda m: losses.dr_dpo_loss(m, beta_prime, 0.5).mean(), margin)
    assert gradients == pytest.approx([float(s) for s in slopes], rel=1e-5, abs=1e-12)


def test_dr_dpo_lies_between_the_smallest_loss_and_the_mean_and_ends_in_the_mean():
    margin = torch.tensor([-8.0, 0.0, 3.0, 5.0])
    single = losses.dpo_loss(margin, 0.5)
    small, large = losses.dr_dpo_loss(margin, 0.01, 0.5)[0], losses.dr_dpo_loss(margin, 1e6, 0.5)[0]
    assert single.min() < small < single.min() + 0.02 and large.item() == pytest.approx(single.mean().item(), rel=1e-5)
    assert single.min() < losses.dr_dpo_loss(margin, 1.0, 0.5)[0] < single.mean()


@pytest.mark.parametrize("beta_prime", [0.0, -1.0, math.nan])
def test_dr_dpo_refuses_a_beta_prime_that_is_not_positive(beta_prime):
    with pytest.raises(ValueError, match="beta_prime"):
        losses.dr_dpo_loss(torch.zeros(2), beta_prime, 0.1)


def test_anchor_is_cross_entropy_of_the_chosen_reward_over_delta():
    ratio = torch.tensor([-100.0, -3.0, 0.0, 3.0, 100.0])
    points = [mpmath.mpf(r) / 2 - mpmath.mpf(0.25) for r in ratio.tolist()]
    values, gradients = value_and_gradient(lambda r: losses.anchor_loss(r, 0.5, 0.25), ratio)
    assert_float32_exact(values, [cross_entropy(point) for point in points])
    assert_float32_exact(gradients, [slope(cross_entropy, point) / 2 for point in points])
    assert losses.anchor_loss(torch.zeros(1), 0.5).item() == pytest.approx(math.log(2))
