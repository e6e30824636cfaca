"""The noise estimate where the noise is known: the training rows of a base with noise of either kind put in.

The same rows are drawn as in the trainings of the comparison at that kind, rate and seed. Desk world only.
"""

from itertools import product

import numpy as np
import pandas as pd

from napo import artifacts, auroc, data, evidence, labels, logps, models, noise, posterior
from napo.profiles import NOISE_KINDS, NOISE_LEVELS

RESAMPLES = 200
COLUMNS = ["base", "noise_kind", "rate", "kind", "n_rows", "true", "estimated", "lo", "hi"]
COLUMNS += ["auroc", "auroc_lo", "auroc_hi", "calibration"]


def table(profile, base, runs_dir="runs"):
    """Path of base-<b>/noise_levels.parquet, made unless current (notebook 02).

    Columns: base, noise_kind ("swap" | "leak"), rate (of it), kind (of biased answer), n_rows, true, estimated, lo, hi
    (shares of wrong labels, bootstrap interval over rows), auroc, auroc_lo, auroc_hi, calibration (expected error).
    """
    folder = artifacts.run_folder(profile.name, f"base-{base}", runs_dir=runs_dir)
    pairs, reference = artifacts.require(folder / "pairs.parquet", "01"), logps.reference(profile, base, runs_dir)
    settings = {"model": models.identity(profile, base), "quantisation": profile.quantisation}
    settings |= {"mask": profile.perturbation.image, "levels": NOISE_LEVELS, "seed": profile.seeds[0]}
    return artifacts.build(
        folder / "noise_levels.parquet",
        lambda path: _make_table(profile, base, pairs, reference).to_parquet(path, index=False),
        settings=settings,
        modules=("noise_levels", "posterior", "world.leak"),
        inputs=[pairs, reference],
    )


def read(profile, runs_dir="runs"):
    """The tables of all bases of a profile in one frame, empty where no truth is known. Raises MissingArtifact."""
    if not profile.is_desk:
        return pd.DataFrame(columns=COLUMNS)
    folders = [artifacts.run_folder(profile.name, f"base-{base}", runs_dir=runs_dir) for base in profile.bases]
    frames = [artifacts.read_parquet(folder / "noise_levels.parquet", "02") for folder in folders]
    return pd.concat(frames, ignore_index=True)[COLUMNS]


def _make_table(profile, base, pairs, reference_path):
    rows, reference = list(data.part(data.read(pairs), "train")), artifacts.read_parquet(reference_path, "02")
    model, processor = models.load_base(profile, base)
    seed = profile.seeds[0]
    good, of_good = labels.with_leak(rows, reference, 1.0, seed, model, processor, profile.training)
    how = {"batch_size": profile.training.batch_size, "how": profile.perturbation.image}
    records = []
    for kind in posterior.BIASED:
        clean = evidence.measure(model, processor, rows, reference, kind, **how)
        leaked = evidence.measure(model, processor, good, of_good, kind, **how)
        known = np.array([bool(row[f"is_noise_{kind}"]) for row in rows])
        for noise_kind, rate in product(NOISE_KINDS, NOISE_LEVELS):
            drawn = rows_drawn(rows, noise_kind, rate, seed)
            found = level(clean, leaked, known, drawn, noise_kind, np.random.default_rng(seed))
            records.append({"base": base, "noise_kind": noise_kind, "rate": rate, "kind": kind} | found)
    return pd.DataFrame(records)


def rows_drawn(rows, noise_kind, rate, seed):
    """(n,) bool: the rows that a training with this noise and seed has it in."""
    rng = np.random.default_rng([seed, 1])
    if noise_kind == "swap":
        return noise.draw_flips(len(rows), rate, rng)
    leaked = labels.desk_leak().leak(rows, rate, rng)
    return np.array([new is not old for new, old in zip(leaked, rows, strict=True)])


def level(clean, leaked, known, drawn, noise_kind, rng):
    """The estimate beside the truth at one level of noise, as a dict.

    clean, leaked  DataFrames of `evidence.measure`: the rows as they are, and with good answers in place of biased ones
    known, drawn   (n,) bool: rows whose own label is wrong, rows where noise was put in
    """
    seen, flipped = clean.copy(), drawn if noise_kind == "swap" else None
    if flipped is None:
        seen.loc[drawn] = leaked.loc[drawn]
    found = posterior.estimate(*posterior.labelled(seen, flipped), rng=rng, resamples=RESAMPLES)
    wrong = known | drawn
    ranked = auroc.auroc(found.posterior, wrong, rng, resamples=RESAMPLES)
    rates = {"n_rows": len(wrong), "true": wrong.mean(), "estimated": found.rate, "lo": found.lo, "hi": found.hi}
    judged = {"auroc": ranked.value, "auroc_lo": ranked.lo, "auroc_hi": ranked.hi}
    return rates | judged | {"calibration": posterior.calibration_error(found.posterior, wrong)}
