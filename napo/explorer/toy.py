"""A toy that trains in tens of milliseconds: preferences between points, a linear model, and swapped labels.

A pair's features x are the difference of two points. A hidden direction u says which point is better, so u . x > 0 for
every pair with the right label. The margin is w . x (nats), as if the reference preferred neither. The toy minimises
the loss of `napo.losses` by full-batch gradient descent, in numpy, in all worlds at once.
"""

import functools
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, stdtrit

from napo.q import draw_flips

PAIRS, FEATURES, TEST_PAIRS, WORLDS = 300, 30, 400, 8  # few pairs for so many features, so wrong labels can be learnt
STEPS, EVERY = 200, 5  # accuracy is measured after every fifth step
STEP_SIZE = 4.0  # times 1 / beta; larger steps make BCE oscillate at beta = 1


@dataclass(frozen=True)
class Trained:
    """The result of one training."""

    steps: np.ndarray  # (T,) after which the accuracy was measured
    accuracy: np.ndarray  # (S, T) share of unswapped test pairs ranked right, in each of S worlds
    margin: np.ndarray  # (N,) nats; of the first world's training pairs as labelled, after the last step
    swapped: np.ndarray  # (N,) bool; which of these pairs carry the wrong label

    def mean_and_half_width(self):
        """Mean accuracy over worlds and half its 95 % interval (t), (T,) each."""
        n = len(self.accuracy)
        half = stdtrit(n - 1, 0.975) * self.accuracy.std(axis=0, ddof=1) / np.sqrt(n)  # scipy.stats takes 46 MB
        return self.accuracy.mean(axis=0), half


def pull(z, q):
    """|dL_q/dz| = p**q (1 - p), p = sigmoid(z): a pair's weight in the gradient. q = 0 is BCE (DPO), q = 1 MAE."""
    p = expit(z)
    return p**q * (1 - p)


@functools.lru_cache(maxsize=8)
def worlds(flip_rate):
    """Training pairs (S, N, F) as labelled, test pairs (S, M, F) with right labels, swapped (S, N) bool.

    World s is drawn from seed s: the same points for every flip rate. Raises ValueError if the rate leaves [0, 0.5).
    """
    drawn = [_world(np.random.default_rng(seed), flip_rate) for seed in range(WORLDS)]
    return tuple(np.stack(part) for part in zip(*drawn, strict=True))


def _world(rng, flip_rate):
    direction = rng.normal(size=FEATURES)
    x = rng.normal(size=(PAIRS + TEST_PAIRS, FEATURES))
    x *= np.sign(x @ direction)[:, None]
    swapped = draw_flips(PAIRS, flip_rate, rng)
    return x[:PAIRS] * np.where(swapped, -1, 1)[:, None], x[PAIRS:], swapped


@functools.lru_cache(maxsize=64)
def train(q, beta, flip_rate):
    """Train on the swapped pairs in every world, with the loss of this q (0 = BCE, 1 = MAE). Returns Trained."""
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
