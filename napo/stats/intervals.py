"""Intervals: of a mean, of a share, of runs over bases, and of paired differences. SciPy does the statistics.

An interval over bases speaks for new bases. With a single base the interval is over its seeds and speaks for that base
only; `Estimate.over` says which.
"""

from dataclasses import dataclass
from math import nan

import numpy as np
from scipy import stats as scipy_stats

SEEDLESS = ("base",)  # untrained methods: their one run on a base is compared with every seed


@dataclass(frozen=True)
class Estimate:
    """A number with its interval (nan bounds: no interval), and what the interval is over."""

    value: float
    lo: float = nan
    hi: float = nan
    over: str = "bases"  # "bases" | "seeds" | "rows" | "examples"
    n_bases: int = 0
    n_seeds: int = 0  # fewest seeds in any base
    n_rows: int = 0  # rows or examples, if the interval is over those

    def columns(self, *names):
        """The named fields as a dict, for a line of a table; without names value, lo, hi and over."""
        return {name: getattr(self, name) for name in names or ("value", "lo", "hi", "over")}


def t_interval(values):
    """Mean and 95 % t interval. values (n,); returns (mean, lo, hi); the bounds are nan with fewer than 2 values."""
    values = np.asarray(values, dtype=float)
    mean = values.mean() if len(values) else nan
    if len(values) < 2:
        return float(mean), nan, nan
    half = scipy_stats.t.ppf(0.975, len(values) - 1) * scipy_stats.sem(values)
    return float(mean), float(mean - half), float(mean + half)


def rate(successes, n):
    """A share of n independent rows with Wilson's 95 % interval. Returns Estimate."""
    if n == 0:
        return Estimate(nan, over="rows")
    interval = scipy_stats.binomtest(int(successes), int(n)).proportion_ci(0.95, method="wilson")
    return Estimate(successes / n, float(interval.low), float(interval.high), "rows", n_rows=int(n))


def bootstrap(columns, statistic, rng):
    """SciPy's 95 % percentile interval over examples; the columns, (n,) each, are resampled together.

    statistic(*columns, axis).  Returns (lo, hi); nan with fewer than 2 examples, and where every resample gives the
    same value: such a bootstrap says nothing about the uncertainty.
    """
    if len(columns[0]) < 2:
        return nan, nan
    settings = {"paired": True, "vectorized": True, "method": "percentile", "n_resamples": 2000, "batch": 50}
    found = scipy_stats.bootstrap(columns, statistic, rng=rng, **settings).confidence_interval
    return (float(found.low), float(found.high)) if found.low < found.high else (nan, nan)


def tost_p(values, margin):
    """Two one-sided t tests of equivalence: p for "the mean of (n,) values lies outside (-margin, margin)".

    p < 0.025 exactly if the 95 % t interval lies within the margins, which are positive. Returns nan with fewer than 2
    values.
    """
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return nan
    if np.ptp(values) == 0:
        return 0.0 if abs(values[0]) < margin else 1.0
    sides = (-margin, "greater"), (margin, "less")
    return float(max(scipy_stats.ttest_1samp(values, edge, alternative=side).pvalue for edge, side in sides))


def units(runs):
    """((n,) values that an interval is over, "bases" | "seeds"): means per base, or the runs of a single base."""
    per_base = runs.groupby("base")["value"].mean()
    if len(per_base) >= 2:
        return per_base.to_numpy(float), "bases"
    return runs["value"].to_numpy(float), "seeds"


def estimate(runs):
    """Mean over seeds within each base, then the 95 % t interval over bases; with one base, over its seeds.

    runs  frame base, seed, value; runs with value nan (a ratio over nothing) are left out
    Returns Estimate. Raises ValueError if two runs share base and seed, as when methods or flip rates are mixed.
    """
    runs = runs.dropna(subset=["value"])
    if runs.duplicated(["base", "seed"]).any():
        raise ValueError("two runs share base and seed: select one method and one flip rate first")
    if runs.empty:
        return Estimate(nan)
    values, over = units(runs)
    seeds = runs.groupby("base")["seed"].nunique()
    return Estimate(*t_interval(values), over, n_bases=len(seeds), n_seeds=int(seeds.min()))


def differences(runs, treatment, control, flip_rate=0.0):
    """Treatment minus control, run by run, paired on base and seed. A SEEDLESS method is compared with every seed.

    runs  frame method, base, seed, flip_rate, value of one measure; untrained methods count at every flip rate
    Returns a frame base, seed, value with the pairs that both methods have.
    """
    sides, keys = [], ["base", "seed"]
    for method in (treatment, control):
        at_rate = runs["flip_rate"] == (0.0 if method in SEEDLESS else flip_rate)
        side = runs[(runs["method"] == method) & at_rate][["base", "seed", "value"]]
        if method in SEEDLESS:
            side, keys = side.groupby("base", as_index=False)["value"].mean(), ["base"]
        sides.append(side)
    pairs = sides[0].merge(sides[1], on=keys, suffixes=("_treatment", "_control"))
    pairs["value"] = pairs["value_treatment"] - pairs["value_control"]
    return pairs[["base", "seed", "value"]].dropna()


def paired_difference(runs, treatment, control, flip_rate=0.0):
    """Estimate of treatment minus control, paired within base and seed (`differences`, then `estimate`)."""
    return estimate(differences(runs, treatment, control, flip_rate))
