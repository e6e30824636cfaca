"""How well each detector finds the noise where the truth is known: noise rate, AUROC and calibration.

A small value of a detector means: this label is probably wrong.
"""

from math import isfinite

import numpy as np
import pandas as pd
from scipy import special

from napo.methods import ALPHA
from napo.profiles import DEVELOPMENT_BASES
from napo.stats import auroc, intervals

NOISE_DETECTORS = {
    "raw_margin": "raw margin, sum",
    "raw_mean_margin": "raw margin, mean",
    "margin": "reward margin, sum (after the probe)",
    "mean_margin": "reward margin, mean (after the probe)",
    "right": "the kit's estimate, P(label is right)",
    "paper_right": "the paper's 1 − q per row (after the probe)",
    "n_tokens": "baseline: length of the answer",
    "differs": "baseline: differs from the chosen answer",
}
BASELINES = {"n_tokens": "length", "differs": "exact match with the chosen answer"}
PROBABILITIES = ("right", "paper_right")  # detectors that estimate a noise rate and can be calibrated
PAPER_MARGIN = {"language_biased": "mean", "vision_biased": "sum"}  # the margin that q follows (paper, section 4)


def noise_table(noise, rng, beta=None):
    """How noisy each kind of rejected answer is, and how well each detector finds the noise.

    noise  frame of `probe.noise_table`, with the columns of `posterior.beside` if at hand; see `known_rows`
    beta   of the probe, for the paper's q; None: leave the paper's q out
    Returns a frame with one row per kind and detector, empty where no truth is known:
        noise_rate, auroc         over all rows
        within_kinds              AUROC that compares only rows of one base and question kind
        within_other              the same, without answers equal to the chosen one
        estimated_rate            of a detector that is a probability, mean over bases; nan for the others
        calibration               its expected calibration error, likewise
    each with its 95 % interval (rate_lo, rate_hi; lo, hi; within_lo, ...). Intervals are t over bases, or over the rows
    of a single base; rate_over, over, within_over and within_other_over say which. n_rows is the number of rows.
    """
    rows = []
    for kind, of_kind in known_rows(noise, beta).groupby("kind"):
        share, other = _noise_rate(of_kind), of_kind[~of_kind["equals_chosen"].astype(bool)]
        for detector in (name for name in NOISE_DETECTORS if name in of_kind):
            over_bases = auroc.auroc_over_bases(of_kind, detector)
            within, among_other = (auroc.auroc_within(r, detector, "question_kind", rng) for r in (of_kind, other))
            rows.append(
                {"kind": kind, "detector": detector, "n_rows": len(of_kind)}
                | _columns(share, "noise_rate", "rate_")
                | _columns(over_bases, "auroc", "")
                | _columns(within, "within_kinds", "within_")
                | _columns(among_other, "within_other", "within_other_")
                | _calibration(of_kind, detector)
            )
    return pd.DataFrame(rows)


def _noise_rate(of_kind):
    """Estimate of the share of noise: t interval over bases, or Wilson's over the rows of a single base."""
    per_base = of_kind["is_noise"].astype(float).groupby(of_kind["base"]).mean()
    if len(per_base) == 1:
        return intervals.rate(of_kind["is_noise"].sum(), len(of_kind))
    return intervals.Estimate(*intervals.t_interval(per_base), "bases", n_bases=len(per_base))


def _columns(found, value, prefix):
    """An Estimate as the columns <value>, <prefix>lo, <prefix>hi, <prefix>over."""
    return {value: found.value, f"{prefix}lo": found.lo, f"{prefix}hi": found.hi, f"{prefix}over": found.over}


def known_rows(noise, beta=None):
    """The measured rows with known truth, development bases left out, with a column for every available detector.

    Adds `right` if there is a column `posterior`, and `paper_right` (eq. 10 on the probe's margins) if `beta` is given.
    """
    measured = (noise["part"] == "measured") & ~noise["base"].isin(DEVELOPMENT_BASES)
    known = noise[measured].dropna(subset=["is_noise"])
    known = known.assign(differs=1 - known["equals_chosen"].astype(float))
    if "posterior" in known:
        known = known.assign(right=1 - known["posterior"])
    if beta is None:
        return known
    margin = known["kind"].map(PAPER_MARGIN)
    psi = beta * known["mean_margin"].where(margin == "mean", known["margin"])
    return known.assign(paper_right=special.expit(margin.map(ALPHA).astype(float) * psi.astype(float)))


def _calibration(of_kind, detector):
    """Mean and calibration error of a detector that is a probability, over bases; nan for other detectors."""
    found = []
    for _, rows in of_kind.groupby("base") if detector in PROBABILITIES else ():
        wrong = 1 - rows[detector].to_numpy(float)
        found.append((wrong.mean(), auroc.calibration_error(wrong, rows["is_noise"])))
    names = [f"{name}{end}" for name in ("estimated_rate", "calibration") for end in ("", "_lo", "_hi")]
    values = [value for of_bases in zip(*found, strict=True) for value in intervals.t_interval(of_bases)]
    return dict(zip(names, values or [np.nan] * 6, strict=True))


# ---- beside the claims ----------------------------------------------------------------------------------------------


def with_detectors(ledger, noisy):
    """The ledger, its claims on detectors (C9) with a note: AUROC within question kinds, and baselines.

    noisy  frame of `noise_table`, or None.  Verdicts do not change.
    """
    if noisy is None or noisy.empty:
        return ledger
    found = noisy.set_index(["kind", "detector"])
    notes = [[claim["note"], _beside_baselines(claim, found)] for claim in ledger]
    return [claim | {"note": "; ".join(filter(None, note))} for claim, note in zip(ledger, notes, strict=True)]


def _beside_baselines(claim, found):
    """The note of `with_detectors` for one claim; "" if none of its components is a detector."""
    parts = []
    for c in claim["components"]:
        kind, detector = c.get("kind"), c.get("margin_column")
        if (kind, detector) in found.index:
            names = {detector: c["metric"].removeprefix("AUROC of ")} | BASELINES
            of_kind = found.loc[kind]
            within = [f"{name} {_number(of_kind.loc[d])}" for d, name in names.items() if d in of_kind.index]
            parts.append(f"{kind}: " + ", ".join(within))
    return "AUROC within question kinds, beside the baselines: " + "; ".join(parts) if parts else ""


def _number(row):
    """ "0.71 [0.66, 0.75]" of a row's AUROC within question kinds."""
    bounds = f" [{row['within_lo']:.2f}, {row['within_hi']:.2f}]" if isfinite(row["within_lo"]) else ""
    return f"{row['within_kinds']:.2f}{bounds}" if isfinite(row["within_kinds"]) else "–"
