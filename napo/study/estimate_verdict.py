"""Does a noise estimate beat the paper's q? The methods that use one against the paper's NaPO, and a verdict.

The rule: an estimate is offered if its paired 95 % interval on counterfactual accuracy excludes 0 in its favour at some
level of injected noise (none included), and if no interval of any measure at any of these levels lies on the worse
side. Both count only over claims.MIN_BASES reporting bases.
"""

from itertools import product

import pandas as pd

from napo.methods import METHODS
from napo.stats.measures import MEASURES
from napo.study import claims, frames, markdown
from napo.study.frames import PAPER

QUESTION = "Does an estimate beat the paper's q?"
ESTIMATES = ("napo_calibrated", "napo_row_q", "napo_row_weight")
CONTROLS = (PAPER, frames.CONTROL)
DECISIVE = "acc_counterfactual"
UNDER_NOISE = ("napo_calibrated", "napo_row_weight")  # the estimates that are also trained with injected noise
COLUMNS = "treatment control noise_kind flip_rate measure measure_label better value lo hi over n_bases n_seeds".split()
LIMITS = (
    "`napo_row_q` is not run under noise. `napo_row_weight` under noise was added to the list after a first whole run "
    "without it had been read; the rule did not change. α is calibrated on a probe that is trained on the original "
    "rows, without the injected noise."
)
NOT_RUN = "None of the methods that use an estimate was run beside the paper's NaPO."


def table(scores, measures, curves=None):
    """The differences of every estimate to its controls, and of UNDER_NOISE to PAPER at each level of injected noise.

    scores  long frame of cells;  measures  names of MEASURES;  curves  frame of `frames.noise_curves`
    Returns a frame COLUMNS, treatment minus control; what was not run is absent.
    """
    clean = frames.differences(scores, list(product(ESTIMATES, CONTROLS)), measures).dropna(subset=["value"])
    clean = clean.assign(noise_kind="", flip_rate=0.0)[COLUMNS].reset_index(drop=True)
    if curves is None or curves.empty:
        return clean
    rows = curves[curves["method"].isin(UNDER_NOISE) & (curves["flip_rate"] > 0)].dropna(subset=["over_paper"])
    rows = rows.drop(columns=["value", "lo", "hi"]).assign(treatment=rows["method"], control=PAPER)
    under = rows.rename(columns={"over_paper": "value", "over_paper_lo": "lo", "over_paper_hi": "hi"})[COLUMNS]
    return pd.concat([clean, under], ignore_index=True) if len(under) else clean


def verdict(frame):
    """The generated sentence on a frame of `table`: which estimate is offered, or that none is, and on what grounds."""
    beside = frame[frame["control"] == PAPER] if len(frame) else frame
    if beside.empty:
        return NOT_RUN
    n_bases = int(beside["n_bases"].min())
    if n_bases < claims.MIN_BASES or set(beside["over"]) != {"bases"}:
        return f"No verdict: {markdown.bases(n_bases)}, {claims.MIN_BASES} are needed."
    grounds, offered = [], []
    for method, rows in beside.groupby("treatment", sort=False):
        won, lost = _beyond(rows[rows["measure"] == DECISIVE], "won"), _beyond(rows, "lost")
        grounds.append(
            f"{METHODS[method].label} (`{method}`), {len(rows)} comparisons: "
            f"gains on {MEASURES[DECISIVE].label}: {_places(won)}; "
            f"losses on any measure: {_places(lost, with_measure=True)}"
        )
        offered += [method] if len(won) and lost.empty else []
    said = " and ".join(f'offered as `method="{method}"`' for method in offered)
    said = f"Yes: {said}." if offered else "No estimate beats it."
    return f"{said} Intervals that exclude 0, against {METHODS[PAPER].label}: " + ". ".join(grounds) + "."


def _beyond(rows, which):
    """The rows whose interval excludes 0 on the better ("won") or the worse ("lost") side; "neither" has no sides."""
    higher, lower = rows["better"] == "higher", rows["better"] == "lower"
    above, below = rows["lo"] > 0, rows["hi"] < 0
    return rows[(higher & above) | (lower & below)] if which == "won" else rows[(higher & below) | (lower & above)]


def _places(rows, with_measure=False):
    """ "coverage at swap 40%, …"; "none"."""
    found = []
    for r in rows.itertuples():
        place = f"{'at' if r.flip_rate else 'with'} {markdown.level(r.noise_kind, r.flip_rate)}"
        found.append(f"{r.measure_label} {place}" if with_measure else place)
    return ", ".join(found) or "none"


def text(frame):
    """The report's section: the verdict, its limits, and every difference, a table per measure."""
    if frame.empty:
        return NOT_RUN
    parts = [verdict(frame), LIMITS, "Differences with 95 % intervals, paired within base and seed."]
    header = ["method", "minus", "injected noise", "difference [95 %]", "over"]
    for (label, better), rows in frame.groupby(["measure_label", "better"], sort=False):
        lines = [
            [METHODS[r.treatment].label, METHODS[r.control].label, markdown.level(r.noise_kind, r.flip_rate, "none")]
            + [markdown.number(r.value, r.lo, r.hi, 3), r.over]
            for r in rows.itertuples()
        ]
        parts.append(f"**{label}{markdown.ARROW[better]}**\n\n{markdown.table(header, lines)}")
    return "\n\n".join([*parts, f"{markdown.not_corrected(len(frame))} {markdown.CHAIR_NOTE}"])
