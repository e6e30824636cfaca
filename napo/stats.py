"""From per-example scores to numbers with intervals: runs, paired differences, rates, AUROC, equivalence.

The path is always the same: examples -> one value per run (method, base, seed, flip rate) -> mean over seeds within a
base -> t interval over bases, so that it speaks for new bases. With one base the interval is over its seeds, speaks for
that base only, and says so (`Estimate.over`). SciPy does the statistics.
"""

from dataclasses import dataclass, field
from math import nan

import numpy as np
import pandas as pd
from scipy import optimize
from scipy import stats as scipy_stats

RUN = ["method", "base", "seed", "flip_rate"]
SEEDLESS = ("base",)  # untrained methods: their one run on a base stands beside every seed


@dataclass(frozen=True)
class Estimate:
    """A number, its interval, and what that interval is over."""

    value: float
    lo: float = nan
    hi: float = nan
    over: str = "bases"  # "bases" | "seeds" | "rows"
    n_bases: int = 0
    n_seeds: int = 0  # fewest seeds in any base
    n_rows: int = 0  # examples, where `over` is "rows"


@dataclass(frozen=True)
class Measure:
    """One number of a run: sum over examples of a product of metrics, over the sum of another (without: the mean)."""

    label: str
    benchmarks: tuple[str, ...]
    numerator: tuple[str, ...]
    denominator: tuple[str, ...] = ()  # () = the number of examples
    better: str = "higher"  # "higher" | "lower" | "neither"
    empty: float = field(default=nan, compare=False)  # value where the denominator is 0


VQA, CAPTIONS, VLIND, PAIRS = ("vqa_factual", "vqa_counterfactual"), ("captions",), ("vlind",), ("heldout_pairs",)

MEASURES = {
    "acc_counterfactual": Measure("accuracy, counterfactual", VQA[1:], ("accuracy",)),
    "acc_factual": Measure("accuracy, factual", VQA[:1], ("accuracy",)),
    "acc_overall": Measure("accuracy, all questions", VQA, ("accuracy",)),
    "irrelevant": Measure("irrelevant details, rate", VQA, ("irrelevant",), better="lower"),
    "CHAIRs": Measure("CHAIR_s", CAPTIONS, ("CHAIRs",), better="lower"),
    "CHAIRi": Measure("CHAIR_i", CAPTIONS, ("hallucinated",), ("mentioned",), better="lower"),
    "Cover": Measure("coverage", CAPTIONS, ("covered",), ("present",)),
    "tokens": Measure("caption length, tokens", CAPTIONS, ("tokens",), better="neither"),
    "S_CK": Measure("S_CK", VLIND, ("CK",)),
    "S_VP": Measure("S_VP", VLIND, ("VP",)),
    "S_CB": Measure("S_CB", VLIND, ("CK", "CB"), ("CK",), empty=0.0),
    "S_LP": Measure("S_LP", VLIND, ("CK", "VP", "CB", "LP"), ("CK", "VP", "CB"), empty=0.0),
    "Acc_CB": Measure("Acc_CB", VLIND, ("CB",)),
    "Acc_LP": Measure("Acc_LP", VLIND, ("LP",)),
    "pref_rejected": Measure("prefers chosen to rejected", PAIRS, ("accuracy_rejected",)),
    "pref_language_biased": Measure("… to language-biased", PAIRS, ("accuracy_language_biased",)),
    "pref_vision_biased": Measure("… to vision-biased", PAIRS, ("accuracy_vision_biased",)),
    "chosen_logp": Measure("log-prob of chosen, nats/token", PAIRS, ("chosen_logps_per_token",)),
}


def run_values(scores, measure):
    """One value per run: ratios are formed per run, before any mean over seeds or bases.

    scores   long frame: method, base, seed, flip_rate, benchmark, metric, example_id, value
    measure  Measure
    Returns a frame method, base, seed, flip_rate, value, n_examples; runs without the benchmark are absent.
    Raises ValueError where an example is scored twice, or one metric of a product lacks examples that another has.
    """
    metrics = dict.fromkeys(measure.numerator + measure.denominator)
    rows = scores[scores["benchmark"].isin(measure.benchmarks) & scores["metric"].isin(list(metrics))]
    if rows.empty:
        return pd.DataFrame(columns=[*RUN, "value", "n_examples"])
    example = [*RUN, "benchmark", "example_id"]
    if rows.duplicated([*example, "metric"]).any():
        raise ValueError(f"{measure.label}: an example is scored twice in one run")
    wide = rows.set_index([*example, "metric"])["value"].unstack("metric")
    if set(metrics) - set(wide.columns) or wide.isna().any(axis=None):
        raise ValueError(f"{measure.label}: needs {', '.join(metrics)} for every example of a run, without gaps")
    parts = pd.DataFrame(
        {"top": wide[list(measure.numerator)].prod(axis=1), "bottom": wide[list(measure.denominator)].prod(axis=1)}
    )
    runs = parts.groupby(level=RUN).agg(top=("top", "sum"), bottom=("bottom", "sum"), n_examples=("top", "size"))
    runs["value"] = (runs["top"] / runs["bottom"].where(runs["bottom"] != 0)).fillna(measure.empty)
    return runs.reset_index()[[*RUN, "value", "n_examples"]]


def t_interval(values, level=0.95):
    """Mean and t interval. values (n,); returns (mean, lo, hi), the bounds nan with fewer than 2 values."""
    values = np.asarray(values, dtype=float)
    mean = values.mean() if len(values) else nan
    if len(values) < 2:
        return float(mean), nan, nan
    half = scipy_stats.t.ppf((1 + level) / 2, len(values) - 1) * scipy_stats.sem(values)
    return float(mean), float(mean - half), float(mean + half)


def units(runs):
    """What an interval is over: means per base where there are at least two bases, else the runs of the one base.

    runs  frame base, seed, value of one method (or of a paired difference) at one flip rate
    Returns ((n,) values, "bases" | "seeds").
    """
    per_base = runs.groupby("base")["value"].mean()
    if len(per_base) >= 2:
        return per_base.to_numpy(float), "bases"
    return runs["value"].to_numpy(float), "seeds"


def estimate(runs, level=0.95):
    """Mean over seeds within each base, then the t interval over bases (one base: over its seeds, `over` says so).

    runs  frame base, seed, value; runs with value nan (a ratio over nothing) are left out
    Returns Estimate.  Raises ValueError for two runs of one (base, seed), as when flip rates or methods are mixed.
    """
    runs = runs.dropna(subset=["value"])
    if runs.duplicated(["base", "seed"]).any():
        raise ValueError("two runs share base and seed: select one method and one flip rate first")
    if runs.empty:
        return Estimate(nan)
    values, over = units(runs)
    seeds = runs.groupby("base")["seed"].nunique()
    return Estimate(*t_interval(values, level), over, n_bases=len(seeds), n_seeds=int(seeds.min()))


def differences(runs, treatment, control, flip_rate=0.0):
    """Treatment minus control, run by run: paired on base and seed; a SEEDLESS method stands beside every seed.

    runs  frame method, base, seed, flip_rate, value (one measure);  untrained methods count at every flip rate
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
    if "seed" not in pairs:
        pairs["seed"] = 0
    pairs["value"] = pairs["value_treatment"] - pairs["value_control"]
    return pairs[["base", "seed", "value"]].dropna()


def paired_difference(runs, treatment, control, flip_rate=0.0, level=0.95):
    """Estimate of treatment minus control, paired within base and seed (`differences`, then `estimate`)."""
    return estimate(differences(runs, treatment, control, flip_rate), level)


def tost_p(values, margin):
    """Two one-sided t tests of equivalence: p for "the mean lies outside (-margin, margin)".

    values  (n,) paired differences;  margin > 0, stated beforehand
    p < 0.025 says the same as: the 95 % t interval lies within the margins.  nan with fewer than 2 values.
    """
    if margin <= 0:
        raise ValueError(f"an equivalence margin is positive, got {margin:g}")
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return nan
    if np.ptp(values) == 0:
        return 0.0 if abs(values[0]) < margin else 1.0
    above = scipy_stats.ttest_1samp(values, -margin, alternative="greater").pvalue
    below = scipy_stats.ttest_1samp(values, margin, alternative="less").pvalue
    return float(max(above, below))


def rate(successes, n, level=0.95, method="wilson"):
    """A share of n independent rows with its interval: "wilson", or "exact" (Clopper-Pearson)."""
    if n == 0:
        return Estimate(nan, over="rows")
    interval = scipy_stats.binomtest(int(successes), int(n)).proportion_ci(level, method=method)
    return Estimate(successes / n, float(interval.low), float(interval.high), "rows", n_rows=int(n))


def auroc(score, label, rng, *, strata=None, level=0.95, resamples=1000):
    """Area under the ROC curve: the chance that a positive row scores higher than a negative one (ties count half).

    score   (n,) higher = more likely positive;  label (n,) bool;  strata (n,) or None: compare only within a stratum
    rng     np.random.Generator of the bootstrap, which resamples positives and negatives of each stratum apart
    Returns Estimate over rows; value nan where no stratum has both labels. Where the bootstrap cannot vary (complete
    separation) the bound is Newcombe's score interval, which a few positives leave wide.
    """
    score, label = np.asarray(score, dtype=float), np.asarray(label, dtype=bool)
    strata = np.zeros(len(score)) if strata is None else np.asarray(strata)
    samples = []
    for stratum in pd.unique(strata):
        here = strata == stratum
        if label[here].any() and not label[here].all():
            samples += [score[here & label], score[here & ~label]]
    if not samples:
        return Estimate(nan, over="rows", n_rows=len(score))
    value = float(_stratified_auroc(*samples))
    sizes = sum(len(s) for s in samples[::2]), sum(len(s) for s in samples[1::2])
    draws = np.array([_stratified_auroc(*(rng.choice(s, len(s)) for s in samples)) for _ in range(resamples)])
    lo, hi = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    if lo == hi:
        lo, hi = _newcombe(value, *sizes, level)
    return Estimate(value, float(lo), float(hi), "rows", n_rows=sum(sizes))


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
