"""The reference's log-probs of every answer, measured once per base and stored (notebook 02).

A training step reads them instead of running the reference model. They also give the raw margins before training.
"""

import pandas as pd

from napo.engine import logps, models, packing, preferences
from napo.methods import CORRUPTED, KINDS
from napo.training import crops
from napo.workshop import artifacts
from napo.workshop.files import BadInput, read_parquet, require, shown


def build(profile, base, runs_dir="runs"):
    """Path of base-<b>/reference.parquet: every log-prob of the base, made unless current. Raises MissingArtifact."""
    depends = made_from(profile, base, runs_dir)
    (pairs,) = depends["inputs"]

    def make(path):
        model, processor = models.load_base(profile, base)
        rows = preferences.read(pairs)
        packing.check_image_tokens(model, processor, rows[0])
        how = measured_by(profile.training) | {"label": f"base {base}: log-probs"}
        frame = logps.measure(model, processor, rows, KINDS, **how)
        if frame["n_cut"].any():
            longest = profile.training.max_length
            print(f"{frame['n_cut'].sum()} answers cut at the end: prompt and answer over {longest} tokens")
        frame.to_parquet(path, index=False)

    return artifacts.build(pairs.with_name("reference.parquet"), make, **depends)


def of_crops(profile, base, runs_dir="runs"):
    """Path of base-<b>/crops.parquet, made unless current: log-probs of the chosen answers given mDPO's crops.

    Columns: row_id, logps_corrupted_image, tokens_corrupted_image, for the training rows.
    """
    depends = made_from(profile, base, runs_dir)

    def make(path):
        model, processor = models.load_base(profile, base)
        rows = preferences.part(preferences.read(depends["inputs"][0]), "train").with_transform(_cropped)
        frame = logps.measure(model, processor, rows, ("chosen",), **measured_by(profile.training))
        names = {"logps_chosen": f"logps_{CORRUPTED}", "tokens_chosen": f"tokens_{CORRUPTED}"}
        frame.drop(columns="n_cut").rename(columns=names).to_parquet(path, index=False)

    return artifacts.build(depends["inputs"][0].with_name("crops.parquet"), make, **depends)


def _cropped(batch):
    """A batch of a Dataset with crops for images; with_transform crops a row when it is read, so few are in memory."""
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    return batch | {"image": [crops.corrupted(row)["image"] for row in rows]}


def measured_by(training):
    """Arguments of `logps.measure` from `profiles.Training`."""
    return {"batch_size": training.batch_size, "max_length": training.max_length, "packed": training.packed}


def made_from(profile, base, runs_dir="runs"):
    """Arguments of `artifacts.build` for the reference log-probs of a base. Raises MissingArtifact without pairs."""
    pairs = require(artifacts.run_folder(profile.name, f"base-{base}", "pairs.parquet", runs_dir=runs_dir), "01")
    settings = profile.computing | {"model": models.identity(profile, base)} | measured_by(profile.training)
    return {"settings": settings, "stage": "noise", "inputs": [pairs]}


def of_bases(name, profile, runs_dir="runs"):
    """base-<b>/<name> of all bases of a profile in one frame. Raises MissingArtifact."""
    folders = [artifacts.run_folder(profile.name, f"base-{base}", runs_dir=runs_dir) for base in profile.bases]
    return pd.concat([read_parquet(folder / name, "02") for folder in folders], ignore_index=True)


def current(profile, base, runs_dir="runs"):
    """Path of the reference log-probs; makes nothing. Raises BadInput if they are missing or stale."""
    depends = made_from(profile, base, runs_dir)
    path = require(depends["inputs"][0].with_name("reference.parquet"), "02")
    if not artifacts.is_current(path, **depends):
        problem = "was made from other rows, another model or other settings than those of now"
        raise BadInput(f"{shown(path)} {problem}: run notebook 02 again")
    return path


def load(path, model, processor, rows, profile):
    """The stored reference log-probs as a DataFrame, after `check` on `rows`."""
    stored = read_parquet(path, "02")
    check(stored, path, model, processor, rows, profile)
    return stored


def check(stored, path, model, processor, rows, profile):
    """Measures the first and the last of `rows` again and compares.

    stored  DataFrame read from the file `path`;  model  the base, or a peft model on it (its adapter is switched off)
    Raises BadInput if a row is missing, has other tokens, or has log-probs that differ by more than rounding.
    """
    checked = [rows[i] for i in dict.fromkeys((0, len(rows) - 1))]
    how = measured_by(profile.training) | {"batch_size": 1}
    with models.without_adapter(model):
        now = logps.measure(model, processor, checked, KINDS, **how).set_index("row_id")
    remedy = f"delete {shown(path)} and run notebook {'03' if path.parent.name == 'injected' else '02'} again"
    missing = now.index.difference(stored["row_id"])
    if len(missing):
        raise BadInput(f"row {missing[0]} has no reference log-probs: {remedy}")
    known, tolerance = stored.set_index("row_id").loc[now.index], logps.TOLERANCE[profile.quantisation.dtype]
    for kind in KINDS:
        off = (now[f"logps_{kind}"] - known[f"logps_{kind}"]).abs()
        if (now[f"tokens_{kind}"] != known[f"tokens_{kind}"]).any() or off.max() > tolerance:
            problem = f"the stored reference log-probs of {kind} are not this model's ({off.max():.3g} nats off)"
            raise BadInput(f"row {off.idxmax()}: {problem}: {remedy}")
