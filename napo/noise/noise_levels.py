"""The noise estimate against known noise: training rows of a base with injected noise of each kind and rate.

A level injects noise into the same rows as a training of that kind, rate and seed. Desk world only.
"""

from itertools import product

import numpy as np
import pandas as pd

from napo.desk.leak import leak
from napo.engine import models, preferences
from napo.engine.preferences import BIASED
from napo.noise import evidence, injected, posterior, reference_logps
from napo.profiles import NOISE_KINDS, NOISE_LEVELS
from napo.stats import auroc
from napo.workshop import artifacts
from napo.workshop.files import read_parquet

RESAMPLES = 200
COLUMNS = "base noise_kind rate kind n_rows true estimated lo hi auroc auroc_lo auroc_hi calibration".split()


def table(profile, base, runs_dir="runs"):
    """Path of base-<b>/noise_levels.parquet, made unless current (notebook 02).

    Columns: base, noise_kind ("swap" | "leak"), rate (injected), kind (of biased answer), n_rows, true, estimated, lo,
    hi (shares of wrong labels, bootstrap interval over rows), auroc, auroc_lo, auroc_hi, calibration (expected error).
    """
    depends = reference_logps.made_from(profile, base, runs_dir)
    (pairs,), reference = depends["inputs"], reference_logps.build(profile, base, runs_dir)
    settings = depends["settings"] | {"by": posterior.estimated_by(profile), "seed": profile.seeds[0]}
    return artifacts.build(
        pairs.with_name("noise_levels.parquet"),
        lambda path: _make_table(profile, base, pairs, reference).to_parquet(path, index=False),
        settings=settings | {"levels": NOISE_LEVELS, "noise_kinds": NOISE_KINDS},
        stage="noise",
        desk=True,
        inputs=[pairs, reference],
    )


def read(profile, runs_dir="runs"):
    """The tables of a profile's bases in one frame; empty where no truth is known. Raises MissingArtifact."""
    if not profile.is_desk:
        return pd.DataFrame(columns=COLUMNS)
    return reference_logps.of_bases("noise_levels.parquet", profile, runs_dir)[COLUMNS]


def _make_table(profile, base, pairs, reference_path):
    rows, reference = list(preferences.part(preferences.read(pairs), "train")), read_parquet(reference_path, "02")
    (model, processor), seed = models.load_base(profile, base), profile.seeds[0]
    good = leak(rows, 1.0, np.random.default_rng(seed))
    of_good = injected.with_leak(good, reference, model, processor, profile.training)
    how = posterior.estimated_by(profile)
    records = []
    for kind in BIASED:
        clean = evidence.measure(model, processor, rows, reference, kind, **how)
        leaked = evidence.measure(model, processor, good, of_good, kind, **how)
        known = np.array([bool(row[f"is_noise_{kind}"]) for row in rows])
        for noise_kind, rate in product(NOISE_KINDS, NOISE_LEVELS):
            drawn = injected.drawn(len(rows), injected.Injection(noise_kind, rate, seed))
            found = level(clean, leaked, known, drawn, noise_kind, np.random.default_rng(seed))
            records.append({"base": base, "noise_kind": noise_kind, "rate": rate, "kind": kind} | found)
    return pd.DataFrame(records)


def level(clean, leaked, known, drawn, noise_kind, rng):
    """Estimated and true noise at one level, as a dict.

    clean, leaked  DataFrames of `evidence.measure`: the rows as they are, and with good answers for biased ones
    known, drawn   (n,) bool: rows whose label was wrong before, rows with injected noise
    """
    seen, flipped = clean, drawn
    if noise_kind == "leak":
        seen, flipped = clean.copy(), None
        seen.loc[drawn] = leaked.loc[drawn]
    found = posterior.estimate(*posterior.labelled(seen, flipped), rng=rng, resamples=RESAMPLES)
    wrong = known | drawn
    ranked = auroc.auroc(found.posterior, wrong, rng, resamples=RESAMPLES)
    values = (len(wrong), wrong.mean(), found.rate, found.lo, found.hi, ranked.value, ranked.lo, ranked.hi)
    return dict(zip(COLUMNS[4:], (*values, auroc.calibration_error(found.posterior, wrong)), strict=True))
