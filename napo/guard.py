"""Did the training cost general ability? Before and after on measures that the method does not aim at.

POPE and AMBER's yes-or-no questions ask what is in a picture; the log-prob of held-out chosen answers falls when a
training breaks the language. A method that gains on hallucination and loses here has not paid off.
"""

import pandas as pd

from napo import stats
from napo.artifacts import BadInput
from napo.report import markdown_table, number

GUARDED = ("POPE_acc", "AMBER_acc", "chosen_logp")
COLUMNS = ["measure", "label", "before", "after", "difference", "lo", "hi", "n", "verdict"]


def table(before, after, rng):
    """What one training did to each guarded measure: a frame of COLUMNS; a measure that was not asked is "not asked".

    before, after  long frames of scores, one run each: the base and the trained model on the same examples
    The interval is over examples (paired). Verdict: "fell" or "rose" where it leaves out 0, else "no change seen".
    Raises BadInput if the two were not asked the same.
    """
    return pd.DataFrame([_line(name, before, after, rng) for name in GUARDED], columns=COLUMNS)


def _line(name, before, after, rng):
    measure = stats.MEASURES[name]
    parts = [stats.example_parts(scores, measure) for scores in (before, after)]
    line = {"measure": name, "label": measure.label, "n": 0, "verdict": "not asked"}
    if all(part.empty for part in parts):
        return line
    try:
        test = stats.paired_examples(after, before, measure, rng)
    except ValueError as error:
        raise BadInput(f"the guard for general ability: {error}; run notebook 04 again") from error
    values = [stats.run_values(scores, measure)["value"].iloc[0] for scores in (before, after)]
    return line | {
        "before": values[0],
        "after": values[1],
        "difference": test.value,
        "lo": test.lo,
        "hi": test.hi,
        "n": test.n_examples,
        "verdict": "fell" if test.hi < 0 else "rose" if test.lo > 0 else "no change seen",
    }


def markdown(frame):
    """The frame of `table` as a markdown table."""
    rows = [
        [r.label, *(("–",) * 3 if r.verdict == "not asked" else _numbers(r)), r.n, r.verdict]
        for r in frame.itertuples()
    ]
    return markdown_table(["general ability", "before", "after", "difference [95 %]", "examples", ""], rows)


def _numbers(record):
    digits = 1 if stats.MEASURES[record.measure].scale == 100 else 3
    difference = number(record.difference, record.lo, record.hi, digits)
    return number(record.before, digits=digits), number(record.after, digits=digits), difference
