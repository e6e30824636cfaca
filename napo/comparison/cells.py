"""The cells of the comparison (notebook 03): each trains one method on one base with one seed and level of noise."""

import json
import shutil
from dataclasses import asdict

from napo.comparison import labels
from napo.engine import memory, models, preferences
from napo.engine.preferences import BIASED
from napo.methods import CORRUPTED, KINDS, METHODS
from napo.noise import injected, posterior, reference_logps
from napo.training import trainer
from napo.training.training_set import TrainingSet
from napo.workshop import artifacts
from napo.workshop.files import read_parquet, require


def cell_folder(profile, cell, runs_dir="runs"):
    """runs/<profile>/cells/<cell>, not created."""
    return artifacts.run_folder(profile.name, "cells", cell.name, runs_dir=runs_dir)


def train_cell(cell, profile, runs_dir="runs"):
    """Folder of a cell, with steps.jsonl and adapter/ made unless current; an untrained method has neither.

    Raises BadInput for noise that cannot be injected, and for missing or stale inputs.
    """
    folder = cell_folder(profile, cell, runs_dir)
    if not METHODS[cell.method].trained:
        return folder
    adapter, made_from = folder / "adapter", cell_made_from(cell, profile, runs_dir)
    artifacts.build(adapter, lambda path: take_part(path, cell, profile, runs_dir), seeds=[cell.seed], **made_from)
    copied = {"settings": {}, "stage": "training", "inputs": [adapter]}
    artifacts.build(folder / "steps.jsonl", lambda path: shutil.copyfile(adapter / "steps.jsonl", path), **copied)
    for left in folder.glob("checkpoints-*"):
        shutil.rmtree(left)
    return folder


# ---- what a cell depends on -----------------------------------------------------------------------------------------


def is_finished(cell, profile, runs_dir="runs"):
    """Whether a cell's adapter is current. Makes the inputs that `training_inputs` makes."""
    adapter = cell_folder(profile, cell, runs_dir) / "adapter"
    return artifacts.is_current(adapter, **cell_made_from(cell, profile, runs_dir))


def cell_checkpoints(cell, profile, runs_dir="runs"):
    """Folder of a cell's checkpoints; a training with other settings or inputs gets another one."""
    key = artifacts.key(**cell_made_from(cell, profile, runs_dir))
    return cell_folder(profile, cell, runs_dir) / f"checkpoints-{key[:12]}"


def cell_made_from(cell, profile, runs_dir="runs"):
    """Arguments of `artifacts.build` for a cell's adapter."""
    inputs = list(training_inputs(cell, profile, runs_dir).values())
    return {"settings": cell_settings(profile, cell), "stage": "training", "desk": profile.is_desk, "inputs": inputs}


def cell_settings(profile, cell):
    """Every number that a cell's result depends on, besides code and data."""
    return profile.computing | {
        "cell": asdict(cell),
        "method": METHODS[cell.method].settings,
        "training": profile.training,
        "lora": profile.lora,
        "model": models.identity(profile, cell.base),
    }


def cell_inputs(profile, cell, runs_dir="runs"):
    """Paths of the pairs and of their reference log-probs. Raises BadInput if one is missing or stale."""
    reference = reference_logps.current(profile, cell.base, runs_dir)
    return [reference.with_name("pairs.parquet"), reference]


def training_inputs(cell, profile, runs_dir="runs"):
    """{name: path} of every file that a training reads.

    Files that follow from the injected noise (log-probs, estimate, mDPO's crops) are made here unless current; all
    methods with the same noise share them.
    """
    injection, method = injected.of_cell(cell), METHODS[cell.method]
    injected.check(injection, profile)
    pairs, _ = cell_inputs(profile, cell, runs_dir)
    paths = {"pairs": pairs, "reference": injected.reference(profile, cell.base, injection, runs_dir)}
    if CORRUPTED in method.kinds:
        paths["crops"] = reference_logps.of_crops(profile, cell.base, runs_dir)
    if method.estimate:
        paths["posterior"] = posterior.of_training(profile, cell.base, injection, runs_dir)
    if method.estimate == "alpha":
        paths["probe"] = require(pairs.with_name("noise.parquet"), "02")
    return paths


# ---- one training ---------------------------------------------------------------------------------------------------


def training_set(cell, profile, paths):
    """(TrainingSet, Method) of a cell: noise injected into the rows, the noise estimate applied.

    paths  of `training_inputs`
    """
    rows, flipped = injected.inject(preferences.part(preferences.read(paths["pairs"]), "train"), injected.of_cell(cell))
    reference, method, estimated = read_parquet(paths["reference"], "02"), METHODS[cell.method], {}
    if "crops" in paths:
        reference = reference.merge(read_parquet(paths["crops"], "03"), on="row_id", validate="one_to_one")
    if "posterior" in paths:
        table = read_parquet(paths["posterior"], "03").set_index(["kind", "row_id"])["posterior"]
        row_ids = preferences.column(rows, "row_id")
        estimated = {kind: table.loc[kind].loc[row_ids].to_numpy(copy=True) for kind in BIASED}
    if method.estimate == "alpha":
        rates = {kind: float(values.mean()) for kind, values in estimated.items()}
        method = labels.calibrated(method, rates, read_parquet(paths["probe"], "02"), profile.training.beta)
    weights = labels.weights(method, rows, flipped, estimated)
    return TrainingSet(rows, reference, flipped, weights, labels.q_per_row(method, estimated)), method


def take_part(path, cell, profile, runs_dir="runs"):
    """Trains a cell into the folder `path`: the adapter and steps.jsonl.

    Of several processes (napo/commands/launch.py) one keeps the result; the others take part in a folder of their own.
    """
    paths = training_inputs(cell, profile, runs_dir)
    data, method = training_set(cell, profile, paths)
    predicted = memory.plan(profile, cell.base, data.rows, KINDS)
    memory.check_fits(predicted, memory.available(profile.device))
    print(f"memory predicted: {memory.describe(predicted)}; {memory.in_words(predicted['total'])} in all")
    before = memory.held(profile.device)
    model, processor = models.load_base(profile, cell.base)
    reference_logps.check(data.reference, paths["reference"], model, processor, data.rows, profile)
    settings = trainer.Fit(
        profile.training, profile.lora, cell.seed, profile.device, profile.quantisation.dtype, profile.report_to
    )
    checkpoints = cell_checkpoints(cell, profile, runs_dir)
    policy, steps = trainer.fit(model, processor, method, data, settings, checkpoints, save_to=path)
    grown = memory.in_words(memory.peak(profile.device) - before)
    print(f"memory measured: {memory.describe(memory.measured(policy))}; {grown} in all, at the peak")
    steps_text = "".join(json.dumps(step, sort_keys=True) + "\n" for step in steps)
    path.mkdir(parents=True, exist_ok=True)  # of several processes one saves the adapter
    (path / "steps.jsonl").write_text(steps_text)
