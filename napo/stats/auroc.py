"""How well a score finds noise: area under the ROC curve with intervals, and calibration of a probability."""

from dataclasses import replace
from math import nan

import numpy as np
import pandas as pd
from scipy import optimize
from scipy import stats as scipy_stats

from napo.stats.intervals import Estimate, t_interval


def auroc(score, label, rng, *, strata=None, resamples=1000):
    """Area under the ROC curve: the chance that a positive row scores higher than a negative one (ties count half).

    score   (n,) higher = more likely positive;  label (n,) bool;  strata (n,) or None: compare only within a stratum
    rng     np.random.Generator of the bootstrap, which resamples positives and negatives of each stratum separately
    Returns Estimate over rows with its 95 % interval; value nan if no stratum has both labels. If the bootstrap cannot
    vary (complete separation), the interval is Newcombe's score interval, which few positives leave wide.
    """
    score, label = np.asarray(score, dtype=float), np.asarray(label, dtype=bool)
    samples = _samples(score, label, np.zeros(len(score)) if strata is None else np.asarray(strata))
    if not samples:
        return Estimate(nan, over="rows", n_rows=len(score))
    value = _stratified_auroc(*samples)
    draws = np.array([_stratified_auroc(*(rng.choice(s, len(s)) for s in samples)) for _ in range(resamples)])
    lo, hi = np.quantile(draws, [0.025, 0.975])
    if lo == hi:
        lo, hi = _newcombe(value, samples)
    return Estimate(value, float(lo), float(hi), "rows", n_rows=sum(map(len, samples)))


def auroc_within(noise, column, strata, rng):
    """AUROC of a *small* value as a detector of noise, per base and within strata, then the t interval over bases.

    noise   frame base, is_noise, <column>, <strata> of one kind;  strata  name of its column
    rng     np.random.Generator, used if only one base has both labels: the interval is then over its rows (bootstrap)
    Returns Estimate; value nan if no base has both labels in one stratum.
    """

    def over_rows(samples, score, label, of_row):
        return auroc(score, label, rng, strata=of_row, resamples=500)

    return _over_bases(noise, column, strata, over_rows)


def auroc_over_bases(noise, column):
    """AUROC of a *small* margin as a detector of noise, per base, then the t interval over bases.

    noise  frame base, is_noise, <column> of one kind; a base whose rows all carry one label has no AUROC: left out
    Returns Estimate; with one base its interval is over rows (Newcombe's) and speaks for that base only.
    """

    def over_rows(samples, *_):
        value = _stratified_auroc(*samples)
        return Estimate(value, *_newcombe(value, samples), "rows", n_rows=sum(map(len, samples)))

    return _over_bases(noise, column, "base", over_rows)


def _over_bases(noise, column, strata, over_rows):
    """Estimate over the bases that have both labels in one stratum; of a single one by over_rows(samples, *sides)."""
    bases = (rows for _, rows in noise.dropna(subset=["is_noise", column]).groupby("base"))
    sides = [(-r[column].to_numpy(float), r["is_noise"].to_numpy(bool), r[strata].to_numpy()) for r in bases]
    found = [(samples, *of_base) for of_base in sides if (samples := _samples(*of_base))]
    if len(found) == 1:
        return replace(over_rows(*found[0]), n_bases=1, n_seeds=1)
    values = [_stratified_auroc(*samples) for samples, *_ in found]
    return Estimate(*t_interval(values), "bases", n_bases=len(values), n_seeds=min(len(values), 1))


def _samples(score, label, strata):
    """Scores of positives, negatives, positives, negatives, … of each stratum that has both labels."""
    samples = []
    for stratum in pd.unique(strata):
        here = strata == stratum
        if label[here].any() and not label[here].all():
            samples += [score[here & label], score[here & ~label]]
    return samples


def _stratified_auroc(*samples):
    """AUROC over the pairs within strata. samples: positives, negatives, positives, negatives, …"""
    won = pairs = 0.0
    for positive, negative in zip(samples[::2], samples[1::2], strict=True):
        ordered = np.sort(negative)
        below = np.searchsorted(ordered, positive, "left") + np.searchsorted(ordered, positive, "right")
        won, pairs = won + below.sum() / 2, pairs + len(positive) * len(negative)
    return float(won / pairs)


def _newcombe(value, samples):
    """Newcombe's 95 % score interval of an AUROC (Statist. Med. 25, 559, method 5): stays open at 0 and 1."""
    n_positive, n_negative = (sum(map(len, sides)) for sides in (samples[::2], samples[1::2]))
    z, mean_n = scipy_stats.norm.ppf(0.975), (n_positive + n_negative) / 2

    def excess(theta):
        spread = 1 + (mean_n - 1) * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return (value - theta) ** 2 - z**2 * theta * (1 - theta) * spread / (n_positive * n_negative)

    edge = 1e-9
    lo = 0.0 if value == 0 else optimize.brentq(excess, 0, min(value, 1 - edge))
    hi = 1.0 if value == 1 else optimize.brentq(excess, max(value, edge), 1)
    return lo, hi


def calibration_error(posterior, is_noise, n_bins=10):
    """Expected calibration error, in [0, 1]: distance between mean posterior and true share of noise, over bins.

    posterior (n,) in [0, 1];  is_noise (n,) bool.  The bins hold equally many rows and are weighted by them.
    """
    posterior, is_noise = np.asarray(posterior, float), np.asarray(is_noise, float)
    bins = np.array_split(np.argsort(posterior, kind="stable"), min(n_bins, len(posterior)))
    gaps = [len(rows) * abs(posterior[rows].mean() - is_noise[rows].mean()) for rows in bins]
    return float(sum(gaps) / len(posterior))
