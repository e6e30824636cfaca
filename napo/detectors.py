"""Detectors of noise judged where the truth is known: AUROC of a small value of each, noise rates, calibration."""

from math import isfinite

import pandas as pd

from napo import auroc, claims, posterior, stats
from napo.profiles import ALPHA

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
PROBABILITIES = ("right", "paper_right")  # detectors that name a noise rate and can be calibrated
PAPER_MARGIN = {"language_biased": "mean", "vision_biased": "sum"}  # what q follows (paper, section 4)


def noise_table(noise, rng, development_bases=claims.DEVELOPMENT_BASES, beta=None):
    """How noisy each kind of negative is, and how well a *small* value of each detector finds the noise.

    noise  frame: base, kind, part, question_kind, is_noise, n_tokens, equals_chosen and margins; measured rows count
    beta   of the probe: the paper's q follows beta * margin; None = without the paper's q
    Returns a frame kind, detector, n_rows, noise_rate, rate_lo, rate_hi, rate_over, auroc, lo, hi, over, within_kinds,
    within_lo, within_hi, within_over (only rows of one base and question kind are compared), within_other,
    within_other_lo, within_other_hi, within_other_over (of these, the answers that differ from the chosen one), then
    estimated_rate and calibration (expected error), each with _lo and _hi: means over bases of what a probability
    names, nan for other detectors. Intervals are t over bases, with one base over its rows: the columns _over say
    which. Empty where no truth is known.
    """
    rows = []
    for kind, of_kind in known_rows(noise, beta, development_bases).groupby("kind"):
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
    """Estimate of the share of noise: mean and t interval over bases, with one base Wilson's over its rows."""
    per_base = of_kind["is_noise"].astype(float).groupby(of_kind["base"]).mean()
    if len(per_base) == 1:
        return stats.rate(of_kind["is_noise"].sum(), len(of_kind))
    return stats.Estimate(*stats.t_interval(per_base), "bases", n_bases=len(per_base))


def _columns(found, value, prefix):
    """An Estimate as columns <value>, <prefix>lo, <prefix>hi, <prefix>over."""
    return {value: found.value, f"{prefix}lo": found.lo, f"{prefix}hi": found.hi, f"{prefix}over": found.over}


def known_rows(noise, beta=None, development_bases=claims.DEVELOPMENT_BASES):
    """The measured rows of reporting bases whose truth is known, with a column for every detector that can be had."""
    noise = with_estimates(noise, beta)
    known = noise[(noise["part"] == "measured") & ~noise["base"].isin(development_bases)].dropna(subset=["is_noise"])
    return known.assign(differs=1 - known["equals_chosen"].astype(float))


def _calibration(of_kind, detector):
    """Mean and calibration error of a detector that is a probability, over bases; nan for the others."""
    found = {"estimated_rate": [], "calibration": []}
    for _, rows in of_kind.groupby("base") if detector in PROBABILITIES else ():
        wrong = 1 - rows[detector].to_numpy(float)
        found["estimated_rate"].append(wrong.mean())
        found["calibration"].append(posterior.calibration_error(wrong, rows["is_noise"]))
    out = {}
    for name, values in found.items():
        out |= dict(zip((name, f"{name}_lo", f"{name}_hi"), stats.t_interval(values), strict=True))
    return out


def with_estimates(noise, beta=None):
    """The noise frame with columns right and paper_right: per row the probability that its label is right, by the kit's
    estimate (where the frame has its column `posterior`) and by eq. 10 on the probe's margins."""
    if "posterior" in noise:
        noise = noise.assign(right=1 - noise["posterior"])
    if beta is None:
        return noise
    how = noise["kind"].map(PAPER_MARGIN)
    psi = beta * noise["mean_margin"].where(how == "mean", noise["margin"])
    return noise.assign(paper_right=1 - posterior.paper_estimate(psi, how.map(ALPHA).astype(float)))


def with_detectors(ledger, noisy):
    """The ledger with a note on each claim about a detector (C9): its AUROC within question kinds, beside the
    baselines. Verdicts stay. noisy: frame of `noise_table`, or None."""
    if noisy is None or noisy.empty:
        return ledger
    found = noisy.set_index(["kind", "detector"])
    return [
        claim | {"note": "; ".join(filter(None, [claim["note"], _beside_baselines(claim, found)]))} for claim in ledger
    ]


def _beside_baselines(claim, found):
    """The note of `with_detectors` for one claim; "" where none of its components is a detector."""
    parts = []
    for c in claim["components"]:
        key = (c.get("kind"), c.get("margin_column"))
        if key not in found.index:
            continue
        names = {key[1]: c["metric"].removeprefix("AUROC of ")} | BASELINES
        rows = {
            name: found.loc[(key[0], detector)] for detector, name in names.items() if (key[0], detector) in found.index
        }
        within = [f"{name} {_number(r)}" for name, r in rows.items()]
        parts.append(f"{key[0]}: " + ", ".join(within))
    return "AUROC within question kinds, beside the baselines: " + "; ".join(parts) if parts else ""


def _number(row):
    """ "0.71 [0.66, 0.75]" of a row's AUROC within question kinds."""
    bounds = f" [{row['within_lo']:.2f}, {row['within_hi']:.2f}]" if isfinite(row["within_lo"]) else ""
    return f"{row['within_kinds']:.2f}{bounds}" if isfinite(row["within_kinds"]) else "–"
