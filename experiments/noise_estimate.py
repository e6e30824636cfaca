"""The noise estimate on the bases where it was chosen: `python -m experiments.noise_estimate --out FILE.json`.

Pairs are the desk profile's; both kinds of noise are injected into the training rows (napo/noise/noise_levels.py).
"""

from dataclasses import replace

import pandas as pd

from experiments import record
from napo import profiles
from napo.noise import noise_levels
from napo.pairs import perturb
from napo.profiles import DEVELOPMENT_BASES
from napo.study import markdown

SHOWN = (0.0, 0.2, 0.4)  # rates in the table


def measure(bases, runs_dir="runs"):
    """Frame of `noise_levels.table` on these bases."""
    profile = replace(profiles.get("desk"), name="noise_estimate", bases=tuple(bases), heldout_rows=0)
    for base in bases:
        perturb.pairs(profile, base, runs_dir)
        noise_levels.table(profile, base, runs_dir)
    return noise_levels.read(profile, runs_dir)


def table(found):
    """The record as a Markdown table, bases side by side; found: {"levels": records of `noise_levels.table`}."""
    levels = pd.DataFrame(found["levels"])
    levels = levels[levels["rate"].isin(SHOWN) & ((levels["noise_kind"] == "leak") | (levels["rate"] > 0))]
    rows = []
    for (kind, noise_kind, rate), part in levels.groupby(["kind", "noise_kind", "rate"]):
        cells = [
            " / ".join(f"{value:.2f}" for value in part["true"]),
            " / ".join(markdown.number(r.estimated, r.lo, r.hi) for r in part.itertuples()),
            " / ".join(markdown.number(r.auroc, r.auroc_lo, r.auroc_hi) for r in part.itertuples()),
            " / ".join(f"{value:.2f}" for value in part["calibration"]),
        ]
        rows.append([kind, f"{noise_kind} {rate:.0%}" if rate else "none", *cells])
    header = ["kind", "injected noise", "true rate", "estimated [95 %]", "AUROC [95 %]", "calibration error"]
    return markdown.table(header, rows)


if __name__ == "__main__":
    record.command(__doc__, DEVELOPMENT_BASES, "levels", measure, table)
