"""A toy that trains while one watches: preferences between points, a linear model, and labels swapped on purpose.

A pair's features x are the difference of two points; a hidden direction u says which is better, so that every pair that
is labelled right has u . x > 0. The margin is w . x (nats), as if the reference preferred nothing. Full-batch gradient
descent on the loss of `napo.losses`; numpy alone, all worlds at once, tens of milliseconds.
"""

import functools
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.special import expit

from napo.noise import draw_flips

PAIRS, FEATURES, TEST_PAIRS, WORLDS = 300, 30, 400, 8  # few pairs for so many features: wrong labels can be learnt
STEPS, EVERY = 200, 5  # the accuracy is taken after each EVERY-th step
STEP_SIZE = 4.0  # times 1 / beta: as large as it can be without BCE swinging to and fro at beta = 1


@dataclass(frozen=True)
class Trained:
    """What one training gave.

    steps     (T,)    steps after which the accuracy was taken
    accuracy  (S, T)  share of unswapped test pairs ranked right, in each of S worlds
    margin    (N,)    nats; of the first world's training pairs as labelled, after the last step
    swapped   (N,)    bool; which of them carry the wrong label
    """

    steps: np.ndarray
    accuracy: np.ndarray
    margin: np.ndarray
    swapped: np.ndarray

    def mean_and_half_width(self):
        """Mean accuracy over worlds and half its 95 % interval (t), (T,) each."""
        n = len(self.accuracy)
        half = stats.t.ppf(0.975, n - 1) * self.accuracy.std(axis=0, ddof=1) / np.sqrt(n)
        return self.accuracy.mean(axis=0), half


def pull(z, q):
    """|dL_q/dz| = p**q (1 - p), p = sigmoid(z): how hard a pair pulls. q = 0 is BCE (DPO), q = 1 MAE. z (...,)."""
    p = expit(z)
    return p**q * (1 - p)


@functools.lru_cache(maxsize=8)
def worlds(flip_rate, n_worlds=WORLDS):
    """Training pairs (S, N, F) as labelled, test pairs (S, M, F) labelled right, which are swapped (S, N) bool.

    World s is drawn from seed s, the same points for every flip rate. Raises ValueError if that leaves [0, 0.5).
    """
    drawn = [_world(np.random.default_rng(seed), flip_rate) for seed in range(n_worlds)]
    return tuple(np.stack(part) for part in zip(*drawn, strict=True))


def _world(rng, flip_rate):
    direction = rng.normal(size=FEATURES)
    x = rng.normal(size=(PAIRS + TEST_PAIRS, FEATURES))
    x *= np.sign(x @ direction)[:, None]
    swapped = draw_flips(PAIRS, flip_rate, rng)
    return x[:PAIRS] * np.where(swapped, -1, 1)[:, None], x[PAIRS:], swapped


@functools.lru_cache(maxsize=64)
def train(q, beta, flip_rate):
    """Train on the swapped pairs with the loss of this q (0 = BCE, 1 = MAE) in every world, learning rate
    STEP_SIZE / beta. Returns Trained."""
    pairs, test, swapped = worlds(flip_rate)
    w = np.zeros((len(pairs), FEATURES, 1))
    right = []
    for step in range(1, STEPS + 1):
        weight = pull(beta * (pairs @ w), q)  # (S, N, 1)
        w += STEP_SIZE * (pairs.transpose(0, 2, 1) @ weight) / PAIRS
        if step % EVERY == 0:
            right.append(((test @ w) > 0).mean(axis=(1, 2)))
    steps = np.arange(EVERY, STEPS + 1, EVERY)
    return Trained(steps, np.stack(right, axis=1), (pairs[0] @ w[0])[:, 0], swapped[0])
