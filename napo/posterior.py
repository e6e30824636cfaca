"""An estimate of the label noise before any training: for every row the probability that its label is wrong.

From the base's own log-probs alone: the rows of one kind of rejected answer are taken for a mixture of two populations
of raw margins, and the one with the smaller margins for the noise (the paper's claim C9, made into an estimate). The
length of the answer is part of the mixture, for both margins grow with it. No truth is used. scikit-learn fits it.
"""

from dataclasses import dataclass

import numpy as np
from scipy import special
from sklearn.mixture import GaussianMixture

BIASED = ("language_biased", "vision_biased")
MIN_ROWS = 20  # fewer say nothing of two populations: every row then gets the undecided 0.5
SAME = 1e-3  # nats: margins below it, at the same length, are those of the chosen answer once more


@dataclass(frozen=True)
class Posterior:
    """posterior (n,) probability per row that its label is wrong; rate, its mean, with the bounds of its interval."""

    posterior: np.ndarray
    rate: float
    lo: float = float("nan")
    hi: float = float("nan")


def features(raw_margin, raw_mean_margin, n_tokens):
    """What the mixture sees of each row, (n, 3): margin per token, compressed sum margin, log length, each scaled by
    its own median and quartiles."""
    columns = np.stack([raw_mean_margin, np.arcsinh(raw_margin), np.log(n_tokens)], axis=1).astype(float)
    low, middle, high = np.quantile(columns, [0.25, 0.5, 0.75], axis=0)
    return (columns - middle) / np.maximum(high - low, 1e-6)


def estimate(raw_margin, raw_mean_margin, n_tokens, *, rng=None, resamples=200, level=0.95):
    """Posterior of one kind of rejected answer, without truth.

    raw_margin, raw_mean_margin  (n,)  nats and nats per token, labelled chosen minus labelled rejected, of the base
    n_tokens                     (n,)  of the labelled rejected answer, end token included
    rng  np.random.Generator: with it the rate gets its percentile interval from refits on resampled rows
    A row whose margins are 0 is the chosen answer once more: noise for certain, and no part of the mixture.
    """
    raw_margin, raw_mean_margin = np.asarray(raw_margin, float), np.asarray(raw_mean_margin, float)
    same = (np.abs(raw_margin) < SAME) & (np.abs(raw_mean_margin) < SAME)
    seen = features(raw_margin, raw_mean_margin, np.asarray(n_tokens, float))
    found = _posterior(seen, raw_mean_margin, same)
    if rng is None:
        return Posterior(found, float(found.mean()))
    rates = []
    for _ in range(resamples):
        rows = rng.integers(0, len(seen), len(seen))
        rates.append(_posterior(seen[rows], raw_mean_margin[rows], same[rows]).mean())
    lo, hi = np.quantile(rates, [(1 - level) / 2, (1 + level) / 2])
    return Posterior(found, float(found.mean()), float(lo), float(hi))


def _posterior(seen, raw_mean_margin, same):
    """(n,) posterior; seen (n, 3) as `features` gives it, same (n,) bool."""
    out = np.where(same, 1.0, 0.5)
    rest = ~same
    if rest.sum() < MIN_ROWS:
        return out
    mixture = GaussianMixture(2, reg_covar=1e-2, random_state=0, means_init=_start(seen[rest]), max_iter=500)
    shares = mixture.fit(seen[rest]).predict_proba(seen[rest])
    means = [np.average(raw_mean_margin[rest], weights=shares[:, k] + 1e-12) for k in range(2)]
    out[rest] = shares[:, int(np.argmin(means))]
    return out


def _start(seen):
    """Where the two populations are looked for first: the rows of the smallest and of the other margins."""
    small = seen[:, 0] <= np.quantile(seen[:, 0], 0.25)
    return np.stack([seen[small].mean(axis=0), seen[~small].mean(axis=0)])


def of_rows(reference, row_ids, flipped=None):
    """The reference log-probs with a column posterior_<kind> per biased kind, estimated on the rows of one data set.

    reference  DataFrame of `logps.measure`;  row_ids  of the rows in it that count
    flipped    (n,) bool: rows whose chosen and rejected answers changed places; the labels are what is estimated
    Returns (DataFrame with those rows, dict kind -> estimated noise rate).
    """
    table = reference.set_index("row_id").loc[list(row_ids)].reset_index()
    flipped = np.zeros(len(table), bool) if flipped is None else np.asarray(flipped)
    rates = {}
    for kind in BIASED:
        margin, mean_margin, n_tokens = labelled(table, kind, flipped)
        found = estimate(margin, mean_margin, n_tokens)
        table[f"posterior_{kind}"], rates[kind] = found.posterior, found.rate
    return table, rates


def labelled(table, kind, flipped):
    """Raw margins and rejected length of each row as it is labelled: (raw_margin, raw_mean_margin, n_tokens)."""
    chosen, rejected = (table[f"logps_{name}"].to_numpy(float) for name in ("chosen", kind))
    n_chosen, n_rejected = (table[f"tokens_{name}"].to_numpy(float) for name in ("chosen", kind))
    sign = np.where(flipped, -1.0, 1.0)
    mean_margin = chosen / n_chosen - rejected / n_rejected
    return sign * (chosen - rejected), sign * mean_margin, np.where(flipped, n_chosen, n_rejected)


# ---- how good an estimate is, where the truth is known --------------------------------------------------------------


def calibration_error(posterior, is_noise, n_bins=10):
    """Expected calibration error: how far the mean posterior lies from the true share of noise, over bins of equally
    many rows, weighted by their rows.

    posterior (n,) in [0, 1];  is_noise (n,) bool.  Returns a float in [0, 1], 0 for a perfect estimate.
    """
    posterior, is_noise = np.asarray(posterior, float), np.asarray(is_noise, float)
    bins = np.array_split(np.argsort(posterior, kind="stable"), min(n_bins, len(posterior)))
    gaps = [len(rows) * abs(posterior[rows].mean() - is_noise[rows].mean()) for rows in bins]
    return float(sum(gaps) / len(posterior))


def paper_estimate(psi, alpha):
    """What eq. 10 says of each row by itself: 1 - sigmoid(alpha * psi), (n,)."""
    return special.expit(-alpha * np.asarray(psi, float))
