"""A training as the profile `paper` does it, on a small model: bfloat16 around NF4 with double quantisation, one row a
micro-batch, accumulation, gradient checkpointing; and a kill in the midst of an accumulation."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from safetensors.torch import load_file
from tiny_cells import make_base, make_profile

from napo.comparison.cells import cell_folder, train_cell
from napo.engine import logps, models, preferences
from napo.methods import REJECTED_KINDS
from napo.profiles import PROFILES, Cell
from napo.training import trainer

CELL = Cell("napo_paper", seed=5)
ROWS, ACCUMULATION = 12, 3
PATHS = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
STEPS = 2 * ROWS // ACCUMULATION
KILLED = """
import os, signal, sys
sys.path[:0] = {paths!r}
from pathlib import Path
import test_paper_training as t
from napo.training import trainer
real, calls = trainer.objective, []
def objective(*arguments):
    calls.append(1)
    if len(calls) == 5 * t.ACCUMULATION + 2:  # the second micro-batch of step 6: checkpoint-4 lies on disk
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
trainer.objective = objective
t.train_cell(t.CELL, t.profile_of(Path({folder!r})), {runs!r})
"""


def profile_of(folder):
    """The profile's own settings, but for what a small model needs: rank, rate, rows a step, steps between saves."""
    paper = PROFILES["paper"]
    training = replace(paper.training, learning_rate=1e-2, epochs=2, accumulation=ACCUMULATION, save_steps=2)
    return make_profile(folder, quantisation=paper.quantisation, training=training)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(profile, runs folder, folder of the cell) after a training that nothing interrupted."""
    folder = tmp_path_factory.mktemp("paper")
    profile = profile_of(folder)
    make_base(profile, folder / "runs")
    return profile, folder / "runs", train_cell(CELL, profile, folder / "runs")


def steps_of(folder):
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def test_the_settings_are_the_profiles(trained):
    quantisation, training = trained[0].quantisation, trained[0].training
    assert quantisation.four_bit and quantisation.double_quant
    assert quantisation.dtype == quantisation.compute_dtype == "bfloat16"
    assert training.gradient_checkpointing and training.packed and training.batch_size == 1


def test_every_weight_has_the_type_that_it_should(trained):
    profile, _, folder = trained
    model, _ = models.load(profile.model, profile.quantisation)
    layers = models.four_bit_layers(model)
    assert layers and all(layer.weight.quant_state.nested for layer in layers)
    others = {p.dtype for p in model.parameters() if not isinstance(p, bnb.nn.Params4bit)}
    assert others == {torch.bfloat16}
    policy = models.attach_lora(model, profile.lora, 0)
    assert {p.dtype for p in policy.parameters() if p.requires_grad} == {torch.float32}
    saved = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert {weight.dtype for weight in saved.values()} == {torch.float32}


def test_it_starts_where_it_must_and_learns(trained):
    steps = steps_of(trained[2])
    half = 2 - 2**0.5
    assert len(steps) == STEPS
    assert steps[0]["loss"] == pytest.approx((0.6931 + 2 * half) / 3, abs=0.02)  # bfloat16: log-probs to a few tenths
    last = [step["rewards/margins"] for step in steps[-3:]]
    assert min(last) > 0.3 and steps[-1]["loss"] < steps[0]["loss"]


def test_its_gradients_are_those_of_plain_sequences_without_checkpointing(trained):
    """Up to bfloat16's rounding: the direction of the first step, which a wrong mask or a lost recomputation turns."""
    profile, runs, _ = trained
    plain = replace(profile.training, packed=False, gradient_checkpointing=False)
    directions = []
    for training in (profile.training, plain):
        model, processor = models.load(profile.model, profile.quantisation)
        policy = models.attach_lora(model, profile.lora, 0).train()
        if training.gradient_checkpointing:
            policy.enable_input_require_grads()
            policy.activation_checkpointing_enable({"use_reentrant": False})
        rows = preferences.read(runs / "tiny" / "base-0" / "pairs.parquet")
        found = logps.response_logps(policy, processor, [rows[0]], ("chosen", "rejected"), packed=training.packed)
        (found["chosen"] - found["rejected"]).sum().backward()
        gradients = [p.grad.flatten() for name, p in policy.named_parameters() if "lora_B" in name]
        directions.append(torch.cat(gradients))
    assert all(direction.norm() > 0 for direction in directions)
    assert torch.cosine_similarity(*directions, dim=0) > 0.99


def test_killed_in_an_accumulation_it_goes_on_to_the_same_bytes(trained, tmp_path):
    profile, runs, whole = trained
    elsewhere = tmp_path / "runs"
    shutil.copytree(runs / "tiny" / "base-0", elsewhere / "tiny" / "base-0")
    script = KILLED.format(paths=PATHS, folder=str(Path(profile.model).parent), runs=str(elsewhere))
    threads = {name: str(torch.get_num_threads()) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    killed = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | threads, capture_output=True, text=True, timeout=300
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    folder = cell_folder(profile, CELL, elsewhere)
    assert {path.name for path in folder.glob("checkpoints-*/*")} == {"checkpoint-2", "checkpoint-4"}
    micro_batches, real = [], trainer.objective
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "objective", lambda *a: micro_batches.append(1) or real(*a))
        train_cell(CELL, profile, elsewhere)
    assert len(micro_batches) == ACCUMULATION * (STEPS - 4)  # the first four steps were not done again
    assert steps_of(folder) == steps_of(whole)
    for name in ("adapter/adapter_model.safetensors", "steps.jsonl"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    assert all(f"noise/q_{kind}" in steps_of(folder)[-1] for kind in REJECTED_KINDS[1:])
