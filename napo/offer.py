"""Does a noise estimate beat the paper's q? The methods that use one against NaPO as in the paper, and a verdict.

The rule: an estimate is offered if its paired 95 % interval on counterfactual accuracy excludes 0 in its favour,
without noise put in or at a level of it, and no interval of any measure at any of these levels lies on the worse side.
Both count only over claims.MIN_BASES reporting bases.
"""

import pandas as pd

from napo import claims, report, stats
from napo.profiles import METHODS

QUESTION = "Does an estimate beat the paper's q?"
ESTIMATES = ("napo_calibrated", "napo_row_q", "napo_row_weight")
PAPER, CONTROLS = "napo_paper", ("napo_paper", "dpo_all")
DECISIVE = "acc_counterfactual"
UNDER_NOISE = ("napo_calibrated", "napo_row_weight")  # the estimates that are trained with noise put in as well
COLUMNS = "treatment control noise_kind flip_rate measure measure_label better value lo hi over n_bases n_seeds".split()
LIMITS = (
    "`napo_row_q` is not run under noise; `napo_row_weight` under noise was added to the list after a first whole run "
    "without it had been read, the rule being what it was. The probe that α is calibrated on is trained on the rows as "
    "they came, without the noise put in."
)
NOT_RUN = "None of the methods that use an estimate was run beside NaPO as in the paper."


def table(scores, measures, curves=None):
    """The differences of every estimate to its controls, at noise rate 0 over all bases and seeds of `scores`, and of
    UNDER_NOISE to PAPER at each level of noise put in.

    scores  long frame of cells;  measures  names of `stats.MEASURES`;  curves  frame of `study.noise_curves`
    Returns a frame COLUMNS, treatment minus control; what was not run is absent.
    """
    reporting = scores[~scores["base"].isin(claims.DEVELOPMENT_BASES)]
    lines = []
    for name in measures:
        measure, runs = stats.MEASURES[name], stats.run_values(reporting, stats.MEASURES[name])
        for treatment, control in ((t, c) for t in ESTIMATES for c in CONTROLS):
            found = stats.paired_difference(runs, treatment, control)
            line = {"treatment": treatment, "control": control, "noise_kind": "", "flip_rate": 0.0, "measure": name}
            line |= {"measure_label": measure.label, "better": measure.better, "value": found.value, "lo": found.lo}
            line |= {"hi": found.hi, "over": found.over, "n_bases": found.n_bases, "n_seeds": found.n_seeds}
            lines.append(line)
    frame = pd.DataFrame(lines, columns=COLUMNS).dropna(subset=["value"])
    under = _under_noise(curves)
    return pd.concat([frame, under], ignore_index=True) if len(under) else frame.reset_index(drop=True)


def _under_noise(curves):
    """The lines of `study.noise_curves` that set UNDER_NOISE against PAPER with noise put in."""
    if curves is None or curves.empty:
        return pd.DataFrame(columns=COLUMNS)
    rows = curves[curves["method"].isin(UNDER_NOISE) & (curves["flip_rate"] > 0)].dropna(subset=["over_paper"])
    rows = rows.drop(columns=["value", "lo", "hi"]).assign(treatment=rows["method"], control=PAPER)
    return rows.rename(columns={"over_paper": "value", "over_paper_lo": "lo", "over_paper_hi": "hi"})[COLUMNS]


def verdict(frame):
    """The generated sentence on a frame of `table`: which estimate is offered, or that none is, and on what grounds."""
    beside = frame[frame["control"] == PAPER] if len(frame) else frame
    if beside.empty:
        return NOT_RUN
    n_bases = int(beside["n_bases"].min())
    if n_bases < claims.MIN_BASES or set(beside["over"]) != {"bases"}:
        return f"No verdict: {n_bases} reporting base{'s'[: n_bases != 1]}, {claims.MIN_BASES} are needed."
    grounds, offered = [], []
    for method, rows in beside.groupby("treatment", sort=False):
        won, lost = _beyond(rows[rows["measure"] == DECISIVE], "won"), _beyond(rows, "lost")
        grounds.append(
            f"{METHODS[method].label} (`{method}`), {len(rows)} comparisons: "
            f"gains on {stats.MEASURES[DECISIVE].label}: {_places(won)}; "
            f"losses on any measure: {_places(lost, with_measure=True)}"
        )
        offered += [method] if len(won) and lost.empty else []
    said = " and ".join(f'offered as `method="{method}"`' for method in offered)
    said = f"Yes: {said}." if offered else "No estimate beats it: that is the finding."
    return f"{said} Intervals beyond 0 against {METHODS[PAPER].label}: " + ". ".join(grounds) + "."


def _beyond(rows, which):
    """The rows whose interval excludes 0 on the better ("won") or the worse ("lost") side; "neither" is no side."""
    higher, lower = rows["better"] == "higher", rows["better"] == "lower"
    above, below = rows["lo"] > 0, rows["hi"] < 0
    return rows[(higher & above) | (lower & below)] if which == "won" else rows[(higher & below) | (lower & above)]


def _places(rows, with_measure=False):
    """ "coverage at swap 40%, …"; "none"."""
    found = [
        f"{r.measure_label} " * with_measure + f"{'at' if r.flip_rate else 'with'} {put_in(r)}"
        for r in rows.itertuples()
    ]
    return ", ".join(found) or "none"


def put_in(row):
    """The noise of a line, in words."""
    return f"{row.noise_kind} {row.flip_rate:.0%}" if row.flip_rate else "no noise put in"


def text(frame):
    """The report's section: the verdict, its limits, and every difference, a table per measure."""
    if frame.empty:
        return NOT_RUN
    parts = [verdict(frame), LIMITS, "Differences with 95 % intervals, paired within base and seed."]
    for _, rows in frame.groupby("measure", sort=False):
        lines = [
            [
                METHODS[r.treatment].label,
                METHODS[r.control].label,
                put_in(r),
                report.number(r.value, r.lo, r.hi, 3),
                r.over,
            ]
            for r in rows.itertuples()
        ]
        first = rows.iloc[0]
        header = ["method", "minus", "noise put in", "difference [95 %]", "over"]
        title = f"**{first['measure_label']}{report.ARROW[first['better']]}**"
        parts.append(f"{title}\n\n{report.markdown_table(header, lines)}")
    parts.append(f"{len(frame)} comparisons; none is corrected for their number. {report.CHAIR_NOTE}")
    return "\n\n".join(parts)
