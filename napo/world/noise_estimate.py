"""How good the noise estimate is on the development bases, where it was chosen: `python -m napo.world.noise_estimate`.

Pairs are the desk profile's; noise of both kinds is put into the training rows at known rates (`noise_levels.py`).
"""

from dataclasses import replace

import pandas as pd

from napo import claims, noise_levels, perturb, profiles, report
from napo.world import record

SHOWN = (0.0, 0.2, 0.4)  # rates in the table


def measure(bases, runs_dir="runs"):
    """Frame of `noise_levels.table` on some bases."""
    profile = replace(profiles.get("desk"), name="noise_estimate", bases=tuple(bases), heldout_rows=0)
    for base in bases:
        perturb.pairs(profile, base, runs_dir)
        noise_levels.table(profile, base, runs_dir)
    return noise_levels.read(profile, runs_dir)


def table(found):
    """The record as a Markdown table, bases side by side. found  {"levels": records of `noise_levels.table`}"""
    levels = pd.DataFrame(found["levels"])
    levels = levels[levels["rate"].isin(SHOWN) & ((levels["noise_kind"] == "leak") | (levels["rate"] > 0))]
    rows = []
    for (kind, noise_kind, rate), part in levels.groupby(["kind", "noise_kind", "rate"]):
        cells = [
            " / ".join(f"{value:.2f}" for value in part["true"]),
            " / ".join(report.number(r.estimated, r.lo, r.hi) for r in part.itertuples()),
            " / ".join(report.number(r.auroc, r.auroc_lo, r.auroc_hi) for r in part.itertuples()),
            " / ".join(f"{value:.2f}" for value in part["calibration"]),
        ]
        rows.append([kind, f"{noise_kind} {rate:.0%}" if rate else "none", *cells])
    header = ["kind", "noise put in", "true rate", "estimated [95 %]", "AUROC [95 %]", "calibration error"]
    return report.markdown_table(header, rows)


if __name__ == "__main__":
    record.command(__doc__, claims.DEVELOPMENT_BASES, "levels", measure, table)
