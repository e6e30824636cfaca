"""Margins of every row beside the known truth: raw margins of the base, reward margins after a short DPO probe.

Before training policy = reference, so every reward margin is 0 and only raw margins differ (Figure 4 of the paper). The
probe is a short DPO training on some of the rows. It shows the margins that q follows during training.
"""

import shutil
from dataclasses import replace

import pandas as pd

from napo.engine import logps, models, preferences
from napo.engine.preferences import BIASED
from napo.methods import METHODS
from napo.noise import reference_logps
from napo.objectives import margins
from napo.q import raw_margins
from napo.training import trainer
from napo.training.training_set import TrainingSet
from napo.workshop import artifacts

PROBE_SEED = 1000  # far from the seeds of the comparison


def noise_table(profile, base, runs_dir="runs"):
    """Path of base-<b>/noise.parquet, one record per row and biased answer, made unless current (notebook 02).

    Columns: base, row_id, kind, part ("probe": the probe trained on the row, "measured": it did not), question_kind,
    is_noise (null: unknown), raw_margin, raw_mean_margin, margin, mean_margin (nats, nats per token), n_tokens,
    equals_chosen.
    """
    reference = reference_logps.build(profile, base, runs_dir)
    pairs = reference.with_name("pairs.parquet")
    settings = {"training": probe_training(profile), "rows": profile.probe_rows, "lora": profile.lora}
    settings |= {"method": METHODS["dpo_all"].settings, "model": models.identity(profile, base)} | profile.computing
    made_from = {"settings": settings, "stage": "noise", "inputs": [pairs, reference]}
    checkpoints = pairs.with_name(f"probe-{artifacts.key(**made_from)[:12]}")  # other settings, other checkpoints
    return artifacts.build(
        pairs.with_name("noise.parquet"),
        lambda path: _make_table(profile, base, pairs, reference, checkpoints).to_parquet(path, index=False),
        seeds=[PROBE_SEED + base],
        **made_from,
    )


def probe_training(profile):
    """The profile's training settings with the probe's number of epochs."""
    return replace(profile.training, epochs=profile.probe_epochs)


def _make_table(profile, base, pairs, reference_path, checkpoints):
    rows = preferences.read(pairs)
    probe_rows = preferences.part(rows, "train")
    probe_rows = probe_rows.select(range(min(profile.probe_rows, len(probe_rows))))
    model, processor = models.load_base(profile, base)
    reference = reference_logps.load(reference_path, model, processor, rows, profile)
    dtype = profile.quantisation.dtype
    settings = trainer.Fit(probe_training(profile), profile.lora, PROBE_SEED + base, profile.device, dtype)
    data = TrainingSet(probe_rows, reference)
    policy, _ = trainer.fit(model, processor, METHODS["dpo_all"], data, settings, checkpoints)
    shutil.rmtree(checkpoints, ignore_errors=True)
    how = reference_logps.measured_by(profile.training) | {"label": f"base {base}: reward margins"}
    trained = logps.measure(policy, processor, rows, ("chosen", *BIASED), **how)
    table = pd.concat([margin_records(rows, reference, trained, kind) for kind in BIASED], ignore_index=True)
    table.insert(0, "base", base)
    table.insert(4, "part", table["row_id"].isin(probe_rows["row_id"]).map({True: "probe", False: "measured"}))
    return table


def margin_records(rows, reference, trained, kind):
    """One record per row: raw and reward margins of one kind of biased answer, chosen minus biased.

    rows  Dataset;  reference, trained  DataFrames of `logps.measure` by the base and by the probe, in any order
    """
    reference, trained = (f.set_index("row_id").loc[rows["row_id"]].reset_index() for f in (reference, trained))
    tokens = {name: reference[f"tokens_{name}"] for name in ("chosen", kind)}
    of_base = {name: reference[f"logps_{name}"] for name in tokens}
    of_probe = {name: trained[f"logps_{name}"] for name in tokens}
    raw_margin, raw_mean_margin = raw_margins(of_base["chosen"], of_base[kind], tokens["chosen"], tokens[kind])
    margin, mean_margin = margins(of_probe, of_base, tokens, kind)
    return pd.DataFrame(
        {
            "row_id": rows["row_id"],
            "kind": kind,
            "question_kind": rows["question_kind"] if "question_kind" in rows.column_names else "",
            "is_noise": pd.array(rows[f"is_noise_{kind}"], dtype="boolean"),
            "raw_margin": raw_margin,
            "raw_mean_margin": raw_mean_margin,
            "margin": margin,
            "mean_margin": mean_margin,
            "n_tokens": tokens[kind],
            "equals_chosen": [a.strip() == b.strip() for a, b in zip(rows["chosen"], rows[kind], strict=True)],
        }
    )
