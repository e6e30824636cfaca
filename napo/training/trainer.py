"""One training: `transformers.Trainer` with the objective of a method, on LoRA over the 4-bit base, resumable.

The Trainer brings optimiser, schedule, checkpoints, logging and, through accelerate, several devices. Ours are the
objective, the reference log-probs of each row, and the logged metrics. `fit` sets it up; one step is
`PreferenceTrainer.compute_loss`.
"""

import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.integrations import integration_utils
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints

from napo.engine import logps, memory, models, packing, tree_attention
from napo.methods import CORRUPTED
from napo.objectives import Labels, objective
from napo.profiles import Lora, Training
from napo.training.training_set import EncodedRows, answers, collator
from napo.workshop.files import PROVENANCE, BadInput, content_hash, read_json, shown, sync, write_json

KEPT = 2  # checkpoints: if the last is damaged, training goes on from the one before
LOWER = (
    "in napo/profiles.py lower batch_size (and raise accumulation as much), max_length or the adapter's r, set "
    "gradient_checkpointing, or use PROFILE=paper_small; the same command resumes from the last checkpoint"
)


@dataclass(frozen=True)
class Fit:
    """Settings of one training. device, dtype: of the model; report_to: logging back ends, "tensorboard" or others."""

    training: Training
    lora: Lora
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    report_to: tuple[str, ...] = ()


class PreferenceTrainer(Trainer):
    """Trainer whose loss is the objective of a method; the model is `logps.ResponseLogps` around a peft model."""

    loss_is_scaled_for_ga = False

    def __init__(self, method, kinds, beta, start_tolerance, **settings):
        super().__init__(**settings)
        self.method, self.kinds, self.beta, self.start_tolerance = method, kinds, beta, start_tolerance
        self.collected = []

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        policy = logps.by_kind(model(**inputs["batch"]), answers(self.kinds))  # dict kind -> (B,) nats
        if "corrupted" in inputs:
            policy[CORRUPTED] = model(**inputs["corrupted"])
        reference, tokens = (self.by_kind(inputs[name]) for name in ("reference", "tokens"))
        if self.state.global_step == 0:
            self.check_start(policy, reference)
        method = term_of_step(self.method, self.args.seed, self.state.global_step)
        labels = Labels(
            flipped=inputs["flipped"] if inputs["flipped"].any() else None,
            weights=self.by_kind(inputs["weights"].nan_to_num(1.0)) if "weights" in inputs else None,
            row_q=self.by_kind(inputs["row_q"], known_only=True) if "row_q" in inputs else None,
        )
        loss, metrics = objective(method, policy, reference, tokens, self.beta, labels, self.accelerator.gather)
        if not math.isfinite(loss.item()):
            rows = ", ".join(inputs["row_ids"])
            raise BadInput(f"loss is {loss.item()} at step {self.state.global_step}, rows {rows}: lower learning_rate")
        self.collected.append(metrics | self.true_noise(self.by_kind(inputs["noise"]), inputs["flipped"]))
        return (loss, policy) if return_outputs else loss

    def by_kind(self, columns, known_only=False):
        """(B, K) -> dict kind -> (B,); `known_only` leaves out kinds whose values are nan."""
        found = dict(zip(self.kinds, columns.T.contiguous(), strict=True))
        return {kind: column for kind, column in found.items() if not known_only or not column.isnan().any()}

    def true_noise(self, noise, flipped):
        """Share of the batch's pairs with a wrong label, for kinds whose truth is known: q should follow it."""
        shares = {kind: (noise[kind] | flipped).float().mean().item() for kind in self.train_dataset.judged}
        return {f"noise/true_{kind}": share for kind, share in shares.items()}

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Trainer's step. Out of memory, in forward or backward, becomes one line that says what to lower."""
        what = f"rows {', '.join(inputs['row_ids'])} of step {self.state.global_step + 1} in training"
        with memory.or_say(what, LOWER):
            return super().training_step(model, inputs, num_items_in_batch)

    def create_scheduler(self, num_training_steps, optimizer=None):
        """Rounds the warm-up down. Trainer rounds up, so that the only step of a short training has learning rate 0."""
        if self.args.warmup_steps < 1:
            self.args.warmup_steps = int(self.args.warmup_steps * num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)

    def check_start(self, policy, reference):
        """At step 0 policy = reference, so every margin is 0 and DPO's loss ln 2; otherwise the stored reference
        belongs to another model."""
        off = max((policy[kind] - reference[kind]).abs().max().item() for kind in self.kinds)
        if not off <= self.start_tolerance:  # also where it is nan
            raise BadInput(
                f"the stored reference log-probs are not this model's ({off:.3g} nats off at step 0): "
                "delete reference.parquet and run notebook 02 again"
            )

    def log(self, logs, start_time=None):
        """Adds the step's metrics: means over its micro-batches and over devices."""
        if "loss" in logs and self.collected:
            names = list(self.collected[0])
            means = torch.tensor([np.mean([metrics[name] for metrics in self.collected]) for name in names])
            means = self.accelerator.reduce(means.to(self.accelerator.device), "mean")
            logs |= dict(zip(names, means.tolist(), strict=True))
            self.collected = []
        super().log(logs, start_time)

    def _save_checkpoint(self, model, trial):
        """Trainer's checkpoint, then its digest, then our rotation: by steps, where Trainer's own goes by dates."""
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()  # each process writes its random state
        if self.args.should_save:
            checkpoint = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
            sync(checkpoint)
            write_json({"sha256": content_hash(checkpoint)}, checkpoint / PROVENANCE)
            rotate_checkpoints(self.args.output_dir, KEPT)

    def _save(self, output_dir=None, state_dict=None):
        """A checkpoint holds the adapter in peft's own format and nothing of the base.

        state_dict  all weights by their names in this module, gathered, if they are sharded (FSDP)
        """
        if state_dict is not None:
            state_dict = {name.removeprefix("model."): weight for name, weight in state_dict.items()}
        self.model.model.save_pretrained(output_dir or self.args.output_dir, state_dict=state_dict)

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
        save_total_limit=None,  # `_save_checkpoint` rotates
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=device == "cuda",
        use_cpu=device == "cpu",
        bf16=False,
        label_names=[],
        ddp_find_unused_parameters=False,
    )


def fit(model, processor, method, data, settings, checkpoints, save_to=None):
    """Trains a fresh adapter on a TrainingSet with a method; resumes from the last checkpoint in `checkpoints`.

    model        the base;  method  Method;  data  TrainingSet;  settings  Fit
    checkpoints  folder of this training alone; TensorBoard's files go to logs/ beside it. Several processes take one
                 with their number at its end: their steps are not those of one process
    save_to      folder for the adapter; None: it is not saved
    Returns (peft model, list of the metrics logged at each optimizer step). Raises BadInput.
    """
    training = settings.training
    kinds = method.kinds if method.terms else ("chosen", "rejected")
    if CORRUPTED in kinds and data.any_flipped:
        raise BadInput(f"{method.label} has no rule for swapped labels: its image term has one answer only")
    if training.packed:
        tree_attention.check_exact(model)
    packing.check_image_tokens(model, processor, data.rows[0])
    if torch.distributed.is_initialized() and (count := torch.distributed.get_world_size()) > 1:
        checkpoints = Path(checkpoints).with_name(f"{Path(checkpoints).name}-{count}")
    policy = models.attach_lora(model, settings.lora, settings.seed)
    if training.gradient_checkpointing:
        policy.enable_input_require_grads()
        policy.activation_checkpointing_enable({"use_reentrant": False})
    trainer = PreferenceTrainer(
        method,
        kinds,
        training.beta,
        logps.TOLERANCE[settings.dtype],
        model=logps.ResponseLogps(policy),
        args=arguments(training, checkpoints, settings.seed, settings.device),
        train_dataset=EncodedRows(data, processor, kinds, training.max_length),
        data_collator=collator(kinds, processor.tokenizer.pad_token_id, packing.collation(policy, training.packed)),
        callbacks=callbacks(settings.report_to, Path(checkpoints).parent / "logs"),
    )
    trainer.remove_callback(PrinterCallback)  # steps.jsonl holds what it would print
    with memory.or_say("this training's optimizer", LOWER):  # `training_step` names rows for forward and backward
        trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
    if save_to:
        trainer.save_model(str(save_to))
    return policy, [step for step in trainer.state.log_history if "loss" in step]


def callbacks(names, folder):
    """Trainer's callbacks for logging back ends; they get the lines of steps.jsonl. TensorBoard writes to `folder`.

    Raises BadInput for an unknown back end and for one that is not installed.
    """
    known, found = integration_utils.INTEGRATION_TO_CALLBACK, []
    for name in names:
        if name not in known:
            raise BadInput(f"report_to={name}: no such logging back end; there are {', '.join(sorted(known))}")
        try:
            found.append(known[name]())
        except (RuntimeError, ImportError) as error:
            raise BadInput(f"report_to={name}: {name} is not installed: pip install {name}") from error
        if name == "tensorboard":
            found[-1].logging_dir = str(folder)
    return found


def term_of_step(method, seed, step):
    """The method itself, or with `Method.draw_term` the method with one term that is drawn for this step."""
    if not method.draw_term:
        return method
    number = int(np.random.default_rng([seed, 2, step]).integers(len(method.terms)))
    return replace(method, gamma=tuple(float(i == number) for i in range(len(method.terms))))


def last_checkpoint(folder):
    """Path of the last whole checkpoint in a folder, as text; None if there is none.

    Removes later ones, with one line for each: a kill cut them short, or a file changed after its digest was written.
    """
    while Path(folder).is_dir() and (last := get_last_checkpoint(str(folder))):
        if is_whole(Path(last)):
            return last
        print(f"{shown(last)} is incomplete or damaged: removed, training goes on from an earlier step", flush=True)
        shutil.rmtree(last)
    return None


def is_whole(checkpoint):
    """Whether a checkpoint has all files that its digest counts, byte for byte, and no others."""
    try:
        return read_json(checkpoint / PROVENANCE) == {"sha256": content_hash(checkpoint)}
    except (BadInput, OSError):
        return False
