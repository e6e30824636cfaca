"""From per-example scores to numbers with intervals: runs, paired differences, rates, equivalence.

The path is always the same: examples -> one value per run (method, base, seed, flip rate) -> mean over seeds within a
base -> t interval over bases, so that it speaks for new bases. With one base the interval is over its seeds, speaks for
that base only, and says so (`Estimate.over`). A single run has an interval over its examples, which speaks for new
examples of the benchmark, not for another training. SciPy does the statistics.
"""

from dataclasses import dataclass, field
from itertools import product
from math import nan

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

RUN = ["method", "base", "seed", "flip_rate"]
RESULT_COLUMNS = "method measure label better value lo hi over n paper_row table paper differs".split()
SEEDLESS = ("base",)  # untrained methods: their one run on a base stands beside every seed


@dataclass(frozen=True)
class Estimate:
    """A number, its interval, and what that interval is over."""

    value: float
    lo: float = nan
    hi: float = nan
    over: str = "bases"  # "bases" | "seeds" | "rows" | "examples"
    n_bases: int = 0
    n_seeds: int = 0  # fewest seeds in any base
    n_rows: int = 0  # rows or examples, where `over` is that


@dataclass(frozen=True)
class PairedTest:
    """Treatment minus control on the same examples, one run each."""

    value: float
    lo: float
    hi: float
    n_examples: int
    test: str  # "McNemar, exact" where every value is 0 or 1, else "bootstrap"
    p: float = nan  # two-sided; nan where the interval is all that was computed
    won: int = 0  # examples where the treatment's value is the larger one (better or not: see Measure.better)
    lost: int = 0


@dataclass(frozen=True)
class Measure:
    """One number of a run: sum over examples of a product of metrics, over the sum of another (without: the mean).

    value = scale * sum(product of numerator) / sum(product of denominator)
    """

    label: str
    benchmarks: tuple[str, ...]
    numerator: tuple[str, ...]
    denominator: tuple[str, ...] = ()  # () = the number of examples
    better: str = "higher"  # "higher" | "lower" | "neither"
    empty: float = field(default=nan, compare=False)  # value where the denominator is 0
    scale: float = 1.0  # 100 where the official script computes percent

    @property
    def metrics(self):
        """Names of the metrics it needs, each once."""
        return tuple(dict.fromkeys(self.numerator + self.denominator))


VQA, PAIRS = ("vqa_factual", "vqa_counterfactual"), ("heldout_pairs",)
CAPTIONS, VLIND, AMBER, MMHAL, POPE = ("objhal",), ("vlind",), ("amber",), ("mmhal",), ("pope",)

MEASURES = {
    "acc_counterfactual": Measure("accuracy, counterfactual", VQA[1:], ("accuracy",)),
    "acc_factual": Measure("accuracy, factual", VQA[:1], ("accuracy",)),
    "acc_overall": Measure("accuracy, all questions", VQA, ("accuracy",)),
    "irrelevant": Measure("irrelevant details, rate", VQA, ("irrelevant",), better="lower"),
    "words": Measure("answer length, words", VQA, ("tokens",), better="neither"),
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
    "AMBER_CHAIR": Measure("AMBER CHAIR", AMBER, ("hallucinated",), ("mentioned",), better="lower", scale=100),
    "AMBER_Cover": Measure("AMBER Cover", AMBER, ("covered",), ("present",), scale=100),
    "AMBER_Hal": Measure("AMBER HalRate", AMBER, ("Hal",), better="lower", scale=100),
    "AMBER_Cog": Measure("AMBER Cog", AMBER, ("imagined",), ("imaginable",), better="lower", scale=100),
    "AMBER_acc": Measure("AMBER accuracy, yes or no", AMBER, ("accuracy",), scale=100),
    "MMHal_score": Measure("MMHal score, 0–6", MMHAL, ("score",)),
    "MMHal_hal": Measure("MMHal hallucination rate", MMHAL, ("hallucinated",), better="lower"),
    "POPE_acc": Measure("POPE accuracy", POPE, ("accuracy",)),
    "POPE_yes": Measure("POPE share of yes", POPE, ("said_yes",), better="neither"),
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
    parts = example_parts(scores, measure)
    if parts.empty:
        return pd.DataFrame(columns=[*RUN, "value", "n_examples"])
    runs = parts.groupby(level=RUN).agg(top=("top", "sum"), bottom=("bottom", "sum"), n_examples=("top", "size"))
    runs["value"] = _ratio(measure, runs["top"].to_numpy(), runs["bottom"].to_numpy())
    return runs.reset_index()[[*RUN, "value", "n_examples"]]


def example_parts(scores, measure):
    """What each example adds above and below a measure's fraction: a frame top, bottom, indexed by RUN, benchmark and
    example_id; empty where the benchmark is absent. Raises ValueError as `run_values` does."""
    rows = scores[scores["benchmark"].isin(measure.benchmarks) & scores["metric"].isin(measure.metrics)]
    if rows.empty:
        return pd.DataFrame(columns=["top", "bottom"])
    example = [*RUN, "benchmark", "example_id"]
    if rows.duplicated([*example, "metric"]).any():
        raise ValueError(f"{measure.label}: an example is scored twice in one run")
    wide = rows.set_index([*example, "metric"])["value"].unstack("metric")
    if set(measure.metrics) - set(wide.columns) or wide.isna().any(axis=None):
        raise ValueError(f"{measure.label}: needs {', '.join(measure.metrics)} for every example, without gaps")
    names = {"top": measure.numerator, "bottom": measure.denominator}
    return pd.DataFrame({part: wide[list(metrics)].prod(axis=1) for part, metrics in names.items()})


def _ratio(measure, top, bottom):
    """The measure's value from sums above and below; arrays of one shape or numbers."""
    top, bottom = np.asarray(top, dtype=float), np.asarray(bottom, dtype=float)
    return np.where(bottom == 0, measure.empty, measure.scale * top / np.where(bottom == 0, 1, bottom))


def over_examples(scores, measure, rng, *, level=0.95, resamples=2000):
    """Estimate of one run's measure with its interval over examples: Wilson's for a share (of the examples, or of those
    that count at all), else SciPy's bootstrap; without bounds where that cannot vary.

    scores  long frame of one run;  rng  np.random.Generator
    Raises ValueError if the frame holds more than one run.
    """
    parts = example_parts(scores, measure)
    if parts.empty:
        return Estimate(nan, over="examples")
    if parts.groupby(level=RUN).ngroups > 1:
        raise ValueError(f"{measure.label}: {parts.groupby(level=RUN).ngroups} runs: select one first")
    top, bottom = parts.to_numpy(float).T
    value = float(_ratio(measure, top.sum(), bottom.sum()))
    if np.isin(np.r_[top, bottom], (0, 1)).all() and (top <= bottom).all():
        share = rate(top.sum(), bottom.sum(), level)
        return Estimate(value, measure.scale * share.lo, measure.scale * share.hi, "examples", n_rows=len(top))
    lo, hi = _bootstrap(
        (top, bottom), lambda t, b, axis: _ratio(measure, t.sum(axis), b.sum(axis)), rng, level, resamples
    )
    return Estimate(value, lo, hi, "examples", n_rows=len(top))


def paired_examples(treatment, control, measure, rng, *, level=0.95, resamples=2000):
    """PairedTest of two runs on the same examples: bootstrap over examples, exact McNemar where all values are 0 or 1.

    treatment, control  long frames of one run each;  rng  np.random.Generator
    Raises ValueError if the two do not have the same examples, or one is empty or holds several runs.
    """
    sides = [example_parts(scores, measure) for scores in (treatment, control)]
    if any(side.empty or side.groupby(level=RUN).ngroups > 1 for side in sides):
        raise ValueError(f"{measure.label}: a paired test takes one run on each side")
    a, b = (side.droplevel(RUN).sort_index() for side in sides)
    if not a.index.equals(b.index):
        apart = len(a.index.symmetric_difference(b.index))
        raise ValueError(f"{measure.label}: not the same examples on both sides ({apart} are on one side only)")
    columns = (*a.to_numpy(float).T, *b.to_numpy(float).T)

    def difference(top_a, bottom_a, top_b, bottom_b, axis):
        return _ratio(measure, top_a.sum(axis), bottom_a.sum(axis)) - _ratio(
            measure, top_b.sum(axis), bottom_b.sum(axis)
        )

    won, lost = (int((columns[i] > columns[j]).sum()) for i, j in ((0, 2), (2, 0)))
    binary = all(np.isin(top, (0, 1)).all() for top in columns[::2]) and all((n == 1).all() for n in columns[1::2])
    return PairedTest(
        float(difference(*columns, axis=0)),
        *_bootstrap(columns, difference, rng, level, resamples),
        n_examples=len(a),
        test="McNemar, exact" if binary else "bootstrap",
        p=mcnemar_p(won, lost) if binary else nan,
        won=won,
        lost=lost,
    )


def mcnemar_p(won, lost):
    """Exact two-sided McNemar test of discordant pairs: a binomial test of `won` in won + lost; 1 without any."""
    return float(scipy_stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0


def _bootstrap(columns, statistic, rng, level, resamples):
    """SciPy's percentile interval over examples, the columns resampled together; nan with fewer than 2 examples, and
    where every sample gives one value: that says nothing of how sure it is."""
    if len(columns[0]) < 2:
        return nan, nan
    settings = {"paired": True, "vectorized": True, "method": "percentile", "n_resamples": resamples, "batch": 50}
    interval = scipy_stats.bootstrap(
        columns, statistic, confidence_level=level, rng=rng, **settings
    ).confidence_interval
    return (float(interval.low), float(interval.high)) if interval.low < interval.high else (nan, nan)


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


def results_table(scores, rng, reported=(), *, level=0.95):
    """Every measure that the scores hold with its interval, and beside it what was reported elsewhere.

    scores    long frame at one flip rate; a method's single run has its interval over examples, several over bases or
              seeds;  rng of the bootstrap
    reported  records {measure, paper_row, table, paper, differs}; `differs` is "" where benchmark and protocol agree
    Returns a frame method, measure, label, better, value, lo, hi, over, n, paper_row, table, paper, differs: one line
    per reported number, or one where there is none.
    """
    lines = []
    for (method, name), measure in ((key, MEASURES[key[1]]) for key in product(scores["method"].unique(), MEASURES)):
        of_method = scores[scores["method"] == method]
        runs = run_values(of_method, measure)
        if runs.empty:
            continue
        got = over_examples(of_method, measure, rng, level=level) if len(runs) == 1 else estimate(runs, level)
        line = {"method": method, "measure": name, "label": measure.label, "better": measure.better}
        line |= {"value": got.value, "lo": got.lo, "hi": got.hi, "over": got.over, "n": int(runs["n_examples"].max())}
        lines += [line | beside for beside in reported if beside["measure"] == name] or [line]
    return pd.DataFrame(lines, columns=RESULT_COLUMNS)


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
