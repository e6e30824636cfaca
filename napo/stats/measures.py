"""How each measure follows from values per example, and its value for each run: one (method, base, seed, flip rate).

`intervals.py` turns values per run into intervals over bases. A single run has an interval over its examples: it speaks
for new examples of the benchmark, not for another training.
"""

import csv
from dataclasses import dataclass, field
from importlib import resources
from math import nan

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from napo.stats.intervals import Estimate, bootstrap, rate

RUN = ["method", "base", "seed", "flip_rate"]


@dataclass(frozen=True)
class Measure:
    """One number of a run: scale * sum(product of numerator) / sum(product of denominator), sums over examples.

    The measures are in measures.csv.
    """

    group: str  # measures that are always shown together
    label: str
    benchmarks: tuple[str, ...]
    numerator: tuple[str, ...]
    denominator: tuple[str, ...]  # () = the number of examples
    better: str  # "higher" | "lower" | "neither"
    empty: float = field(compare=False)  # value if the denominator is 0
    scale: float  # 100 where the official script computes percent

    @property
    def metrics(self):
        """Names of the metrics it needs, each once."""
        return tuple(dict.fromkeys(self.numerator + self.denominator))

    def ratio(self, top, bottom):
        """The measure's value from sums above and below; arrays of one shape or numbers."""
        top, bottom = np.asarray(top, dtype=float), np.asarray(bottom, dtype=float)
        return np.where(bottom == 0, self.empty, self.scale * top / np.where(bottom == 0, 1, bottom))


def _read(line):
    names = (tuple(line[column].split()) for column in ("benchmarks", "numerator", "denominator"))
    return Measure(line["group"], line["label"], *names, line["better"], float(line["empty"]), float(line["scale"]))


with resources.files(__package__).joinpath("measures.csv").open(encoding="utf-8") as _table:
    MEASURES = {line["name"]: _read(line) for line in csv.DictReader(_table)}


def run_values(scores, measure):
    """One value per run. Ratios are formed per run, before any mean over seeds or bases.

    scores  long frame: method, base, seed, flip_rate, benchmark, metric, example_id, value
    Returns a frame method, base, seed, flip_rate, value, n_examples; runs without the benchmark are absent.
    Raises ValueError if an example is scored twice, or if one metric of a product lacks examples that another has.
    """
    parts = example_parts(scores, measure)
    if parts.empty:
        return pd.DataFrame(columns=[*RUN, "value", "n_examples"])
    runs = parts.groupby(level=RUN).agg(top=("top", "sum"), bottom=("bottom", "sum"), n_examples=("top", "size"))
    runs["value"] = measure.ratio(runs["top"], runs["bottom"])
    return runs.reset_index()[[*RUN, "value", "n_examples"]]


def example_parts(scores, measure):
    """What each example adds to the numerator ("top") and to the denominator ("bottom") of a measure.

    Returns a frame top, bottom, indexed by RUN, benchmark and example_id; empty where the benchmark is absent.
    Raises ValueError as `run_values` does.
    """
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


def over_examples(scores, measure, rng):
    """Estimate of one run's measure with its 95 % interval over examples.

    A share (of the examples, or of those that count at all) gets Wilson's interval, any other ratio SciPy's bootstrap;
    the bounds are nan if the bootstrap cannot vary.
    Raises ValueError if the long frame holds more than one run.
    """
    parts = example_parts(scores, measure)
    if parts.empty:
        return Estimate(nan, over="examples")
    if (runs := parts.groupby(level=RUN).ngroups) > 1:
        raise ValueError(f"{measure.label}: {runs} runs: select one first")
    top, bottom = parts.to_numpy(float).T
    value = float(measure.ratio(top.sum(), bottom.sum()))
    if np.isin(np.r_[top, bottom], (0, 1)).all() and (top <= bottom).all():
        share = rate(top.sum(), bottom.sum())
        bounds = measure.scale * share.lo, measure.scale * share.hi
    else:
        bounds = bootstrap((top, bottom), lambda t, b, axis: measure.ratio(t.sum(axis), b.sum(axis)), rng)
    return Estimate(value, *bounds, "examples", n_rows=len(top))


@dataclass(frozen=True)
class PairedTest:
    """Treatment minus control on the same examples, one run each."""

    treatment: float
    control: float
    value: float  # their difference
    lo: float
    hi: float
    n_examples: int
    test: str  # "McNemar, exact" if every value is 0 or 1, else "bootstrap"
    p: float  # two-sided; nan for the bootstrap, which gives the interval only
    won: int  # examples where the treatment's value is larger (for better or worse: see Measure.better)
    lost: int

    @property
    def verdict(self):
        """What the treatment's value did against the control's: "fell" or "rose" if the interval excludes 0."""
        return "fell" if self.hi < 0 else "rose" if self.lo > 0 else "no change seen"


def paired_examples(treatment, control, measure, rng):
    """PairedTest of two runs on the same examples: bootstrap over examples; exact McNemar if all values are 0 or 1.

    treatment, control  long frames of one run each
    Raises ValueError if the two do not have the same examples, or if one is empty or holds several runs.
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
        return measure.ratio(top_a.sum(axis), bottom_a.sum(axis)) - measure.ratio(top_b.sum(axis), bottom_b.sum(axis))

    won, lost = int((a["top"] > b["top"]).sum()), int((a["top"] < b["top"]).sum())
    binary = all(np.isin(top, (0, 1)).all() for top in columns[::2]) and all((n == 1).all() for n in columns[1::2])
    values = [float(measure.ratio(side["top"].sum(), side["bottom"].sum())) for side in (a, b)]
    bounds = bootstrap(columns, difference, rng)
    p_mcnemar = scipy_stats.binomtest(won, won + lost).pvalue if won + lost else 1.0  # of the discordant pairs
    test = ("McNemar, exact", float(p_mcnemar)) if binary else ("bootstrap", nan)
    return PairedTest(*values, values[0] - values[1], *bounds, len(a), *test, won, lost)
