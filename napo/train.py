"""One training: `transformers.Trainer` with the objective of a method, on LoRA over the 4-bit base, resumable.

The Trainer brings optimiser, schedule, checkpoints, logging and, through accelerate, several devices. Ours are the
objective, the reference log-probs that come with each row, and what is logged.
"""

import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from napo import artifacts, branches, corrupt, data, labels, logps, memory, models, noise, packing, posterior, reporting
from napo.artifacts import BadInput
from napo.objective import objective
from napo.profiles import CORRUPTED, KINDS, METHODS
from napo.training_rows import EncodedRows, answers, collator

MODULES = ("train",)
START_TOLERANCE = logps.TOLERANCE
LOWER = (
    "in napo/profiles.py lower batch_size (and raise accumulation as much), max_length or the adapter's r, set "
    "gradient_checkpointing, or use PROFILE=paper_small; the same command goes on from the last checkpoint"
)


class PreferenceTrainer(Trainer):
    """Trainer whose loss is the objective of a method; the model is `logps.ResponseLogps` around a peft model."""

    loss_is_scaled_for_ga = False

    def __init__(self, method, kinds, beta, start_tolerance, **settings):
        super().__init__(**settings)
        self.method, self.kinds, self.beta, self.start_tolerance = method, kinds, beta, start_tolerance
        self.collected = []

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        policy = logps.by_kind(model(**inputs["batch"]), answers(self.kinds))
        if "corrupted" in inputs:
            policy[CORRUPTED] = model(**inputs["corrupted"])
        names = ("reference", "tokens", "noise", "posterior")
        columns = {name: dict(zip(self.kinds, inputs[name].T, strict=True)) for name in names}
        if self.state.global_step == 0:
            self.check_start(policy, columns["reference"])
        flipped = inputs["flipped"] if inputs["flipped"].any() else None
        estimated = {kind: columns["posterior"][kind] for kind in posterior.BIASED if kind in self.kinds}
        loss, metrics = objective(
            labels.drawn(self.method, self.args.seed, self.state.global_step),
            policy,
            columns["reference"],
            columns["tokens"],
            self.beta,
            flipped,
            self.kept(columns, inputs["flipped"]),
            self.accelerator.gather,
            **({"posterior": estimated} if self.method.estimate in ("q", "weight") else {}),
        )
        if not math.isfinite(loss.item()):
            rows = ", ".join(inputs["row_ids"])
            raise BadInput(f"loss is {loss.item()} at step {self.state.global_step}, rows {rows}: lower learning_rate")
        self.collected.append(metrics | self.true_noise(columns["noise"], inputs["flipped"]))
        return (loss, policy) if return_outputs else loss

    def true_noise(self, noise, flipped):
        """What q is to be compared with, where the truth is known: the share of the batch's pairs whose label is
        wrong."""
        shares = {kind: (noise[kind] | flipped).float().mean().item() for kind in self.train_dataset.judged}
        return {f"noise/true_{kind}": share for kind, share in shares.items()}

    def kept(self, columns, flipped):
        """What each pair counts, dict kind -> (B,), or None where all count: the oracle knows the noise, an estimate
        only how likely it is."""
        if self.method.drop_noise:
            return {kind: ~(columns["noise"][kind] | flipped) for kind in self.kinds}
        if self.method.estimate == "weight":
            return {kind: 1 - columns["posterior"][kind] for kind in self.kinds}
        return None

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Trainer's, and a line on what to lower where the device runs out of memory, in forward or backward."""
        what = f"rows {', '.join(inputs['row_ids'])} of step {self.state.global_step + 1} in training"
        with memory.or_say(what, LOWER):
            return super().training_step(model, inputs, num_items_in_batch)

    def create_scheduler(self, num_training_steps, optimizer=None):
        """Warm-up rounded down: rounded up, as Trainer does, the only step of a short training has learning rate 0."""
        if self.args.warmup_steps < 1:
            self.args.warmup_steps = int(self.args.warmup_steps * num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)

    def check_start(self, policy, reference):
        """At step 0 policy = reference: every margin is 0 and DPO's loss ln 2. Else the stored reference is another
        model's."""
        off = max((policy[kind] - reference[kind]).abs().max().item() for kind in self.kinds)
        if not off <= self.start_tolerance:  # also where it is nan
            raise BadInput(
                f"the stored reference log-probs are not this model's ({off:.3g} nats off at step 0): "
                "delete reference.parquet and run notebook 02 again"
            )

    def log(self, logs, start_time=None):
        """Adds the metrics of the step: means over its micro-batches, and over devices."""
        if "loss" in logs and self.collected:
            names = list(self.collected[0])
            means = torch.tensor([np.mean([metrics[name] for metrics in self.collected]) for name in names])
            means = self.accelerator.reduce(means.to(self.accelerator.device), "mean")
            logs |= dict(zip(names, means.tolist(), strict=True))
            self.collected = []
        super().log(logs, start_time)

    def _save(self, output_dir=None, state_dict=None):
        """A checkpoint holds the adapter in peft's own format and nothing of the base.

        state_dict  where the weights are sharded (FSDP): all of them, gathered, by their names in this module
        """
        gathered = (
            {} if state_dict is None else {"state_dict": {k.removeprefix("model."): v for k, v in state_dict.items()}}
        )
        self.model.model.save_pretrained(output_dir or self.args.output_dir, **gathered)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        peft_model = self.model.model
        peft_model.load_adapter(resume_from_checkpoint, adapter_name=peft_model.active_adapter, is_trainable=True)


def arguments(training, folder, seed, device):
    """Our settings as `transformers.TrainingArguments`."""
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=training.batch_size,
        gradient_accumulation_steps=training.accumulation,
        num_train_epochs=training.epochs,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.schedule,
        warmup_steps=training.warmup_ratio,
        weight_decay=training.weight_decay,
        optim=training.optimizer,
        max_grad_norm=training.max_grad_norm,
        seed=seed,
        data_seed=seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_steps=training.save_steps,
        save_total_limit=1,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=device == "cuda",
        use_cpu=device == "cpu",
        bf16=False,
        label_names=[],
        ddp_find_unused_parameters=False,
    )


def fit(
    model,
    processor,
    rows,
    reference,
    method,
    training,
    lora,
    *,
    seed,
    flip_rate=0.0,
    checkpoints,
    device="cpu",
    dtype="float32",
    probe=None,
    mask="none",
    report_to=(),
    save_to=None,
):
    """Train a fresh adapter on `rows` with a method; goes on from the last checkpoint in `checkpoints` if there is one.

    rows        preference rows; reference  DataFrame of `logps.measure` on the base for (at least) these rows
    checkpoints folder that is this training's own
    probe       DataFrame of `margins.noise_table`, for a method that calibrates alpha on it
    mask        what stood for the masked image, for a method that estimates the noise
    report_to   logging back ends besides what is returned; TensorBoard's files go to logs/ beside the checkpoints
    save_to     folder for the adapter, if it is to be saved
    Returns (peft model, list of what was logged per optimiser step).
    """
    kinds = method.kinds if method.terms else ("chosen", "rejected")
    flipped = noise.draw_flips(len(rows), flip_rate, np.random.default_rng([seed, 1]))
    if CORRUPTED in kinds:
        if flipped.any():
            raise BadInput(f"{method.label} has no rule for swapped labels: its image term has one answer only")
        reference = corrupt.with_corrupted(reference, model, processor, rows, training)
    if method.estimate:
        how = {"how": mask, "batch_size": training.batch_size}
        reference, rates = posterior.of_rows(rows, reference, flipped, model, processor, **how)
        method = labels.calibrated(method, rates, probe, training.beta)
    if training.packed:
        branches.check_exact(model)
    packing.check_image_tokens(model, processor, rows[0])
    policy = models.attach_lora(model, lora, seed)
    if training.gradient_checkpointing:
        policy.enable_input_require_grads()
        policy.activation_checkpointing_enable({"use_reentrant": False})
    trainer = PreferenceTrainer(
        method,
        kinds,
        training.beta,
        START_TOLERANCE[dtype],
        model=logps.ResponseLogps(policy),
        args=arguments(training, checkpoints, seed, device),
        train_dataset=EncodedRows(rows, processor, kinds, reference, training.max_length, flipped),
        data_collator=collator(kinds, processor.tokenizer.pad_token_id, packing.collation(policy, training.packed)),
        callbacks=reporting.callbacks(report_to, Path(checkpoints).parent / "logs"),
    )
    trainer.remove_callback(PrinterCallback)  # what it would print is in steps.jsonl
    with memory.or_say("this training's optimizer", LOWER):  # a step's forward and backward name their rows
        trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
    if save_to:
        trainer.save_model(str(save_to))
    return policy, [step for step in trainer.state.log_history if "loss" in step]


def last_checkpoint(folder):
    """The last whole checkpoint in a folder, None if there is none. One that a kill cut short is removed: its
    trainer_state.json, which Trainer writes last, is missing or no JSON."""
    for checkpoint in Path(folder).glob("checkpoint-*"):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text())
        except (OSError, ValueError):
            shutil.rmtree(checkpoint)
    return get_last_checkpoint(str(folder)) if Path(folder).is_dir() else None


def cell_folder(profile, cell, runs_dir="runs"):
    return artifacts.run_folder(profile.name, "cells", cell.name, runs_dir=runs_dir)


def train_cell(cell, profile, runs_dir="runs"):
    """One cell of the comparison: cells/<cell>/{steps.jsonl, adapter/}, made unless they are current. Returns the
    folder."""
    folder = cell_folder(profile, cell, runs_dir)
    if not METHODS[cell.method].trained:
        return folder
    labels.check_noise(cell, profile)
    made_from = cell_made_from(cell, profile, runs_dir)
    checkpoints = cell_checkpoints(cell, profile, runs_dir)
    artifacts.build(
        folder / "adapter",
        lambda path: _train(path, cell, profile, runs_dir, checkpoints),
        seeds=[cell.seed],
        **made_from,
    )
    artifacts.build(
        folder / "steps.jsonl",
        lambda path: shutil.copyfile(folder / "adapter" / "steps.jsonl", path),
        settings={},
        modules=(),
        inputs=[folder / "adapter"],
    )
    for left in folder.glob("checkpoints-*"):
        shutil.rmtree(left)
    return folder


def cell_modules(cell):
    """The modules that make a cell's adapter."""
    estimate = ("posterior",) if METHODS[cell.method].estimate else ()
    return (*MODULES, *estimate, *(("world.leak",) if cell.noise_kind == "leak" else ()))


def is_finished(cell, profile, runs_dir="runs"):
    """Whether a cell's adapter is current."""
    return artifacts.is_current(
        cell_folder(profile, cell, runs_dir) / "adapter", **cell_made_from(cell, profile, runs_dir)
    )


def take_part(path, cell, profile, runs_dir="runs"):
    """The training of a cell in a process whose result counts only through the others' (napo/launch.py); what it
    writes goes to the folder `path`."""
    _train(path, cell, profile, runs_dir, cell_checkpoints(cell, profile, runs_dir))


def cell_made_from(cell, profile, runs_dir="runs"):
    """What a cell's adapter depends on, as `artifacts.build` takes it."""
    settings, inputs = cell_settings(profile, cell), training_inputs(profile, cell, runs_dir)
    return {"settings": settings, "modules": cell_modules(cell), "inputs": inputs}


def cell_checkpoints(cell, profile, runs_dir="runs"):
    """Folder of a cell's checkpoints: never those of a training with other settings."""
    key = artifacts.key(**cell_made_from(cell, profile, runs_dir))
    return cell_folder(profile, cell, runs_dir) / f"checkpoints-{key[:12]}"


def cell_settings(profile, cell):
    """Everything that a cell's result depends on besides code and data."""
    return ({"mask": profile.perturbation.image} if METHODS[cell.method].estimate else {}) | {
        "cell": asdict(cell),
        "method": METHODS[cell.method],
        "training": profile.training,
        "lora": profile.lora,
        "quantisation": profile.quantisation,
        "model": models.identity(profile, cell.base),
        "device": profile.device,
    }


def cell_inputs(profile, cell, runs_dir):
    """Paths of the pairs and of their reference log-probs. Raises BadInput if one is missing, or the log-probs are not
    of these pairs, this model and these settings."""
    reference = logps.current_reference(profile, cell.base, runs_dir)
    return [reference.with_name("pairs.parquet"), reference]


def training_inputs(profile, cell, runs_dir):
    """What a training reads: the cell's inputs, and the probe's margins where alpha is calibrated on them."""
    inputs = cell_inputs(profile, cell, runs_dir)
    if METHODS[cell.method].estimate == "alpha":
        inputs.append(artifacts.require(inputs[0].with_name("noise.parquet"), "02"))
    return inputs


def _train(path, cell, profile, runs_dir, checkpoints):
    pairs_path, reference_path, *probe = training_inputs(profile, cell, runs_dir)
    rows = data.part(data.read(pairs_path), "train")
    predicted = memory.plan(profile, cell.base, rows, KINDS)
    memory.check_fits(predicted, memory.available(profile.device))
    print(f"memory predicted: {memory.describe(predicted)}; {memory.in_words(predicted['total'])} in all")
    before = memory.held(profile.device)
    model, processor = models.load_base(profile, cell.base)
    reference = logps.load_reference(reference_path, model, processor, rows, profile)
    if cell.noise_kind == "leak":
        rows, reference = labels.with_leak(
            rows, reference, cell.flip_rate, cell.seed, model, processor, profile.training
        )
    policy, steps = fit(
        model,
        processor,
        rows,
        reference,
        METHODS[cell.method],
        profile.training,
        profile.lora,
        seed=cell.seed,
        flip_rate=cell.flip_rate if cell.noise_kind == "swap" else 0.0,
        checkpoints=checkpoints,
        device=profile.device,
        dtype=profile.quantisation.dtype,
        probe=artifacts.read_parquet(probe[0], "02") if probe else None,
        mask=profile.perturbation.image,
        report_to=profile.report_to,
        save_to=path,
    )
    grown = memory.in_words(memory.peak(profile.device) - before)
    print(f"memory measured: {memory.describe(memory.measured(policy))}; {grown} in all, at the peak")
    steps_text = "".join(json.dumps(step, sort_keys=True) + "\n" for step in steps)
    path.mkdir(parents=True, exist_ok=True)  # of several processes one saves
    (path / "steps.jsonl").write_text(steps_text)
