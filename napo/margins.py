"""The margins of every row beside its known truth: raw margins of the base, reward margins after a short DPO probe.

Before training every reward margin is 0, because policy = reference. What can be had then is the raw margin (Figure 4
of the paper). The probe, DPO on other rows, shows what q would see during training.
"""

import shutil
from dataclasses import replace

import pandas as pd

from napo import artifacts, data, logps, models, noise, train
from napo.objective import margins
from napo.profiles import METHODS

PROBE_SEED = 1000  # far from the seeds of the comparison
BIASED = ("language_biased", "vision_biased")


def noise_table(profile, base, runs_dir="runs"):
    """Path of base-<b>/noise.parquet, one record per row and kind of biased answer, made unless current (notebook 02).

    Columns: base, row_id, kind, part ("probe": rows that the probe trained on, "measured": rows that it never saw),
    question_kind, is_noise (unknown: null), raw_margin, raw_mean_margin, margin, mean_margin (nats, nats per token),
    n_tokens, equals_chosen.
    """
    folder = artifacts.run_folder(profile.name, f"base-{base}", runs_dir=runs_dir)
    pairs, reference = artifacts.require(folder / "pairs.parquet", "01"), logps.reference(profile, base, runs_dir)
    settings = {
        "training": probe_training(profile),
        "rows": profile.probe_rows,
        "lora": profile.lora,
        "quantisation": profile.quantisation,
        "model": models.identity(profile, base),
    }
    made_from = {"settings": settings, "modules": ("margins",), "inputs": [pairs, reference]}
    checkpoints = folder / f"probe-{artifacts.key(**made_from)[:12]}"  # never those of a probe with other settings
    return artifacts.build(
        folder / "noise.parquet",
        lambda path: _make_table(profile, base, pairs, reference, checkpoints).to_parquet(path, index=False),
        seeds=[PROBE_SEED + base],
        **made_from,
    )


def probe_training(profile):
    """The profile's training, as short as the probe is."""
    return replace(profile.training, epochs=profile.probe_epochs)


def _make_table(profile, base, pairs, reference_path, checkpoints):
    rows = data.read(pairs)
    probe_rows = data.part(rows, "train")
    probe_rows = probe_rows.select(range(min(profile.probe_rows, len(probe_rows))))
    model, processor = models.load_base(profile, base)
    reference = logps.load_reference(reference_path, model, processor, rows, profile)
    policy, _ = train.fit(
        model,
        processor,
        probe_rows,
        reference,
        METHODS["dpo_all"],
        probe_training(profile),
        profile.lora,
        seed=PROBE_SEED + base,
        checkpoints=checkpoints,
        device=profile.device,
        dtype=profile.quantisation.dtype,
    )
    shutil.rmtree(checkpoints, ignore_errors=True)
    kinds = ("chosen", *BIASED)
    training = profile.training
    trained = logps.measure(
        policy,
        processor,
        rows,
        kinds,
        training.batch_size,
        training.max_length,
        packed=training.packed,
        label=f"base {base}: reward margins",
    )
    table = pd.concat([margin_records(rows, reference, trained, kind) for kind in BIASED], ignore_index=True)
    table.insert(0, "base", base)
    table.insert(4, "part", table["row_id"].isin(probe_rows["row_id"]).map({True: "probe", False: "measured"}))
    return table


def margin_records(rows, reference, trained, kind):
    """One record per row: raw and reward margins of one kind of biased answer, chosen minus biased."""
    reference = reference.set_index("row_id").loc[rows["row_id"]].reset_index()
    trained = trained.set_index("row_id").loc[rows["row_id"]].reset_index()
    tokens = {name: reference[f"tokens_{name}"] for name in ("chosen", kind)}
    of_base = {name: reference[f"logps_{name}"] for name in tokens}
    of_probe = {name: trained[f"logps_{name}"] for name in tokens}
    raw_margin, raw_mean_margin = noise.raw_margins(of_base["chosen"], of_base[kind], tokens["chosen"], tokens[kind])
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
