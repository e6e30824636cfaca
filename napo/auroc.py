"""Area under the ROC curve with intervals: how well a small margin finds noise. Estimates are those of `stats.py`."""

from dataclasses import replace
from math import nan

import numpy as np
import pandas as pd
from scipy import optimize
from scipy import stats as scipy_stats

from napo.stats import Estimate, t_interval


def auroc(score, label, rng, *, strata=None, level=0.95, resamples=1000):
    """Area under the ROC curve: the chance that a positive row scores higher than a negative one (ties count half).

    score   (n,) higher = more likely positive;  label (n,) bool;  strata (n,) or None: compare only within a stratum
    rng     np.random.Generator of the bootstrap, which resamples positives and negatives of each stratum apart
    Returns Estimate over rows; value nan where no stratum has both labels. Where the bootstrap cannot vary (complete
    separation) the bound is Newcombe's score interval, which a few positives leave wide.
    """
    score, label = np.asarray(score, dtype=float), np.asarray(label, dtype=bool)
    strata = np.zeros(len(score)) if strata is None else np.asarray(strata)
    samples = _samples(score, label, strata)
    if not samples:
        return Estimate(nan, over="rows", n_rows=len(score))
    value = float(_stratified_auroc(*samples))
    sizes = sum(len(s) for s in samples[::2]), sum(len(s) for s in samples[1::2])
    draws = np.array([_stratified_auroc(*(rng.choice(s, len(s)) for s in samples)) for _ in range(resamples)])
    lo, hi = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    if lo == hi:
        lo, hi = _newcombe(value, *sizes, level)
    return Estimate(value, float(lo), float(hi), "rows", n_rows=sum(sizes))


def auroc_within(noise, column, strata, rng, *, level=0.95, resamples=500):
    """AUROC of a *small* value as a detector of noise among the rows of one base and one stratum only, per base, then
    the t interval over bases.

    noise   frame base, is_noise, <column>, <strata> of one kind;  strata  name of its column
    rng     np.random.Generator, used where only one base has both labels: then the interval is over rows (bootstrap)
    Returns Estimate; value nan where no base has both labels in one stratum.
    """
    found = []
    for _, rows in noise.dropna(subset=["is_noise", column]).groupby("base"):
        score, label = -rows[column].to_numpy(float), rows["is_noise"].to_numpy(bool)
        samples = _samples(score, label, rows[strata].to_numpy())
        if samples:
            found.append((rows, float(_stratified_auroc(*samples))))
    if len(found) == 1:
        rows = found[0][0]
        score, label = -rows[column].to_numpy(float), rows["is_noise"].to_numpy(bool)
        one = auroc(score, label, rng, strata=rows[strata].to_numpy(), level=level, resamples=resamples)
        return replace(one, n_bases=1, n_seeds=1)
    values = [value for _, value in found]
    return Estimate(*t_interval(values, level), "bases", n_bases=len(values), n_seeds=min(len(values), 1))


def auroc_over_bases(noise, column, *, level=0.95):
    """AUROC of a *small* margin as a detector of noise, per base, then the t interval over bases.

    noise  frame base, is_noise, <column> of one kind;  a base whose rows all carry one label has no AUROC: left out
    Returns Estimate; with one base its interval is over rows (Newcombe's) and speaks for that base only.
    """
    values, sizes = [], (0, 0)
    for _, rows in noise.dropna(subset=["is_noise", column]).groupby("base"):
        is_noise, score = rows["is_noise"].to_numpy(bool), -rows[column].to_numpy(float)
        if is_noise.any() and not is_noise.all():
            values.append(float(_stratified_auroc(score[is_noise], score[~is_noise])))
            sizes = int(is_noise.sum()), int((~is_noise).sum())
    if len(values) == 1:
        return Estimate(values[0], *_newcombe(values[0], *sizes, level), "rows", 1, 1, sum(sizes))
    return Estimate(*t_interval(values, level), "bases", n_bases=len(values), n_seeds=min(len(values), 1))


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
    return won / pairs


def _newcombe(value, n_positive, n_negative, level=0.95):
    """Newcombe's score interval of an AUROC (Statist. Med. 25, 559, method 5): stays open at 0 and 1."""
    z, mean_n = scipy_stats.norm.ppf((1 + level) / 2), (n_positive + n_negative) / 2

    def excess(theta):
        spread = 1 + (mean_n - 1) * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return (value - theta) ** 2 - z**2 * theta * (1 - theta) * spread / (n_positive * n_negative)

    edge = 1e-9
    lo = 0.0 if value == 0 else optimize.brentq(excess, 0, min(value, 1 - edge))
    hi = 1.0 if value == 1 else optimize.brentq(excess, max(value, edge), 1)
    return lo, hi
