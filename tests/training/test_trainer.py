"""Training: the first loss, what stops it, resuming after a kill to the same bytes, and the adapter it leaves."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from tiny_cells import TRAINING, make_base, make_profile, with_training
from tiny_rows import make_row
from transformers import AutoModelForImageTextToText, TrainerCallback
from transformers.integrations import integration_utils

from napo.comparison.cells import cell_folder, cell_inputs, train_cell, training_set
from napo.engine import logps, memory, models, packing, preferences
from napo.methods import CORRUPTED, KINDS, METHODS, REJECTED_KINDS
from napo.noise import injected, reference_logps
from napo.profiles import Cell
from napo.training import crops, trainer
from napo.training import training_set as training_data
from napo.training.training_set import EncodedRows, TrainingSet
from napo.workshop.files import BadInput, MissingArtifact

HALF = (1 - 0.5**0.5) / 0.5
TESTS = str(Path(__file__).parents[1])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(profile, runs folder, training rows, reference frame)."""
    folder = tmp_path_factory.mktemp("world")
    profile = make_profile(folder)
    rows, reference = make_base(profile, folder / "runs")
    return profile, folder / "runs", [row for row in rows if row["split"] == "train"], reference


def fit(world, tmp_path, method="dpo_all", training=TRAINING, processor=None, checkpoints=None, **changes):
    """`trainer.fit` on the world's rows; `changes` of its Fit (seed, report_to) or its TrainingSet."""
    profile, _, rows, reference = world
    model, own_processor = models.load(profile.model, profile.quantisation)
    settings = {name: changes.pop(name) for name in ("seed", "report_to") if name in changes}
    return trainer.fit(
        model,
        processor or own_processor,
        METHODS.get(method, method),
        TrainingSet(**{"rows": rows, "reference": reference} | changes),
        trainer.Fit(training, profile.lora, **settings),
        checkpoints or tmp_path / f"checkpoints-{len(list(tmp_path.iterdir()))}",
    )


def flips(rate, seed=0):
    """(12,) bool: the training rows with swapped labels."""
    return injected.drawn(12, injected.Injection("swap", rate, seed))


def spied_objective(monkeypatch, note):
    """`objective` as ever, after `note` got its arguments."""
    real = trainer.objective

    def objective(*arguments):
        note(*arguments)
        return real(*arguments)

    monkeypatch.setattr(trainer, "objective", objective)


def short(**changes):
    """One step over all rows."""
    return replace(TRAINING, **{"epochs": 1, "batch_size": 12} | changes)


@pytest.mark.parametrize(
    ("method", "first"),
    [
        ("dpo_original", math.log(2)),
        ("dpo_all", math.log(2)),
        ("napo_paper", (math.log(2) + 2 * HALF) / 3),
        ("napo_equal", (math.log(2) + 2 * HALF) / 3),
        ("napo_authors", 0.04 * math.log(2) + 0.96 * 0.5),
        ("mdpo", 3 * math.log(2)),
        ("ipo", 0.25 / TRAINING.beta**2),
    ],
)
def test_first_loss_is_known_beforehand(world, tmp_path, method, first):
    reference = with_crops(world) if method == "mdpo" else world[3]
    _, steps = fit(world, tmp_path, method, short(max_length=512), reference=reference)
    assert steps[0]["loss"] == pytest.approx(first, abs=2e-5)
    assert steps[0]["step"] == 1 and len(steps) == 1


def with_crops(world):
    """The reference frame with the log-probs beside mDPO's crops."""
    profile, runs, _, reference = world
    return reference.merge(pd.read_parquet(reference_logps.of_crops(profile, 0, runs)), on="row_id")


def test_first_loss_of_sft_is_the_mean_negative_log_likelihood_per_token(world, tmp_path):
    _, steps = fit(world, tmp_path, "sft", short())
    known = world[3].iloc[:12]
    assert steps[0]["loss"] == pytest.approx(-(known["logps_chosen"] / known["tokens_chosen"]).mean(), rel=1e-5)


def test_training_moves_the_margins_the_right_way(world, tmp_path):
    _, steps = fit(world, tmp_path, "dpo_all")
    assert len(steps) == 6
    assert steps[-1]["loss"] < 0.6 * steps[0]["loss"]
    assert all(steps[-1][f"rewards/margins_{kind}"] > 0.5 for kind in REJECTED_KINDS)


def test_every_step_learns_even_the_only_one(world, tmp_path):
    policy, steps = fit(world, tmp_path, "dpo_all", short())
    assert steps[0]["learning_rate"] > 0
    assert any(p.abs().max() > 0 for name, p in policy.named_parameters() if "lora_B" in name)


def test_the_corrupted_image_of_a_row_is_a_crop_of_its_own(world):
    row = world[2][0]
    once, again, other = (crops.corrupted(r)["image"] for r in (row, row, {**row, "row_id": "another"}))
    assert once.size == row["image"].size and once.tobytes() == again.tobytes() != other.tobytes()
    rng, shares = np.random.default_rng(0), []
    for _ in range(200):
        marked = numbered_columns()
        shares.append(len(np.unique(np.asarray(crops.crop(marked, rng))[:, :, 0])) / 100)
    assert max(shares) <= 0.46 and min(shares) < 0.2  # of each side: at most the root of a fifth, up to rounding


def numbered_columns():
    """100 x 100 whose red channel is the column's number."""
    return Image.fromarray(np.broadcast_to(np.arange(100, dtype=np.uint8)[None, :, None], (100, 100, 3)).copy())


def test_mdpo_reads_the_chosen_answer_beside_the_crop(world, tmp_path, monkeypatch):
    """What reaches the objective at step 0: log-probs of the chosen answers beside the crops, measured plainly."""
    seen = {}

    def note(method, policy, reference, *rest):
        seen.setdefault("policy", {kind: values.detach() for kind, values in policy.items()})
        seen.setdefault("reference", reference)

    spied_objective(monkeypatch, note)
    fit(world, tmp_path, "mdpo", short(max_length=512), reference=with_crops(world))
    model, processor = models.load(world[0].model, world[0].quantisation)
    plain = logps.measure(model, processor, [crops.corrupted(row) for row in world[2]], ("chosen",), packed=False)
    assert sorted(seen["policy"][CORRUPTED].tolist()) == pytest.approx(sorted(plain["logps_chosen"]), abs=1e-3)
    assert torch.allclose(seen["policy"][CORRUPTED], seen["reference"][CORRUPTED], atol=1e-3)
    assert (seen["reference"][CORRUPTED] - seen["reference"]["chosen"]).abs().max() > 1e-3


def test_mdpo_has_no_rule_for_swapped_labels(world, tmp_path):
    with pytest.raises(BadInput, match="mDPO, original pairs has no rule for swapped labels"):
        fit(world, tmp_path, "mdpo", flipped=flips(0.25))


def test_one_term_is_drawn_for_each_step_and_repeats(world, tmp_path):
    _, steps = fit(world, tmp_path, "random", replace(TRAINING, epochs=4))
    gammas = [tuple(step[f"noise/gamma_{kind}"] for kind in REJECTED_KINDS) for step in steps]
    assert all(sorted(gamma) == [0, 0, 1] for gamma in gammas) and len(set(gammas)) == 3
    assert gammas == [trainer.term_of_step(METHODS["random"], 0, step).gamma for step in range(len(steps))]
    assert gammas != [trainer.term_of_step(METHODS["random"], 1, step).gamma for step in range(len(steps))]
    assert trainer.term_of_step(METHODS["napo_paper"], 0, 0) is METHODS["napo_paper"]


def test_the_estimate_reaches_q_and_weight_row_by_row(world, tmp_path, monkeypatch):
    profile, runs, rows, reference = world
    found, seen = np.linspace(0.05, 0.95, 12), []
    paths = {"posterior": tmp_path / "posterior.parquet"}
    paths |= dict(zip(("pairs", "reference"), cell_inputs(profile, CELL, runs), strict=True))
    table = {"row_id": [row["row_id"] for row in rows] * 2, "posterior": [*found, *found[::-1]]}
    kinds = np.repeat(("language_biased", "vision_biased"), 12)
    pd.DataFrame(table | {"kind": kinds}).sample(frac=1, random_state=0).to_parquet(paths["posterior"])
    spied_objective(monkeypatch, lambda *a: seen.append((a[2]["chosen"].tolist(), a[5])))
    for name in ("napo_row_q", "napo_row_weight"):
        data, method = training_set(Cell(name), profile, paths)
        fit(world, tmp_path, method, short(), weights=data.weights, row_q=data.row_q)
    by_row = dict(zip(reference["logps_chosen"], found, strict=False))
    for chosen, known in seen:
        expected = [by_row[np.float32(value)] for value in chosen]
        assert known.row_q["language_biased"].tolist() == pytest.approx(expected)
        assert "rejected" not in known.row_q and known.flipped is None
        if known.weights is not None:
            assert known.weights["language_biased"].tolist() == pytest.approx([1 - value for value in expected])
            assert (known.weights["rejected"] == 1).all()
    assert seen[0][1].weights is None and seen[-1][1].weights is not None


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (Cell("dpo_all", flip_rate=0.2, noise_kind="leak"), "needs rows whose truth is known"),
        (Cell("dpo_all", flip_rate=0.2, noise_kind="drip"), "unknown noise_kind 'drip': use one of swap, leak"),
        (Cell("dpo_all", flip_rate=0.5), "flip_rate=0.5"),
    ],
)
def test_noise_that_cannot_be_injected_is_refused_in_one_line(world, cell, text):
    with pytest.raises(BadInput, match=text) as bad:
        train_cell(cell, world[0], world[1])
    assert "\n" not in str(bad.value)


def test_another_models_reference_is_refused_at_step_0(world, tmp_path):
    wrong = world[3].copy()
    wrong.loc[5, "logps_vision_biased"] += 0.5
    with pytest.raises(BadInput, match="stored reference log-probs are not this model's .*0.5 nats off at step 0"):
        fit(world, tmp_path, "dpo_all", reference=wrong)


def test_a_reference_that_is_nan_is_refused_at_step_0(world, tmp_path):
    wrong = world[3].copy()
    wrong["logps_chosen"] = float("nan")
    with pytest.raises(BadInput, match="stored reference log-probs are not this model's"):
        fit(world, tmp_path, "dpo_all", reference=wrong)


def test_a_row_without_reference_is_named(world, tmp_path):
    with pytest.raises(BadInput, match=r"row file\.parquet:3.*run notebook 02"):
        fit(world, tmp_path, "dpo_all", reference=world[3].drop(index=3))


def test_a_loss_that_is_not_finite_stops_with_step_and_rows(world, tmp_path):
    with pytest.raises(BadInput, match=r"loss is (nan|inf) at step \d+, rows (file\.parquet:\d+(, )?)+: lower") as bad:
        fit(world, tmp_path, "dpo_all", replace(TRAINING, learning_rate=1e30))
    assert "\n" not in str(bad.value)


@pytest.mark.parametrize("where", ["forward", "backward", "optimizer"])
@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 0 bytes free."),
        RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_out_of_memory_is_one_line_that_says_what_to_lower(world, tmp_path, monkeypatch, where, error):
    def full(*arguments, **settings):
        raise error

    places = {"forward": (trainer, "objective"), "backward": (torch.Tensor, "backward")}
    monkeypatch.setattr(*places.get(where, (torch.optim.AdamW, "step")), full)
    what = "this training's optimizer" if where == "optimizer" else r"rows (file\.parquet:\d+(, )?){4} of step 1"
    with pytest.raises(BadInput, match=rf"out of memory: the device does not hold {what}.*batch_size") as bad:
        fit(world, tmp_path, "dpo_all")
    line = str(bad.value)
    assert "\n" not in line and all(word in line for word in ("accumulation", "max_length", "gradient_checkpointing"))


def test_another_error_of_a_step_stays_what_it_is(world, tmp_path, monkeypatch):
    def broken(*arguments, **settings):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(trainer, "objective", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        fit(world, tmp_path, "dpo_all")


def test_rows_are_kept_as_tensors_while_there_is_room(world, monkeypatch):
    """And are the same tensors, kept or made again."""
    profile, _, rows, reference = world
    processor = models.load(profile.model, profile.quantisation)[1]
    data = TrainingSet(rows, reference.assign(**{f"logps_{CORRUPTED}": 0.0}))
    made = (data, processor, (*KINDS, CORRUPTED), 512)
    roomy = EncodedRows(*made)
    size = sum(part["vision"]["pixel_values"].nbytes for part in (roomy[0], roomy[0]["corrupted"]))
    monkeypatch.setattr(training_data, "KEPT_BYTES", 3 * size + size // 2)
    tight = EncodedRows(*made)
    for index in (*range(len(rows)), *range(len(rows))):
        assert torch.equal(tight[index]["vision"]["pixel_values"], roomy[index]["vision"]["pixel_values"])
        assert tight[index]["row_id"] == rows[index]["row_id"]
    assert len(roomy.kept) == len(rows) and list(tight.kept) == [0, 1, 2]


class Recorder(TrainerCallback):
    """What a logging back end is told."""

    told = []

    def on_log(self, args, state, control, logs=None, **settings):
        self.told.append((state.global_step, dict(logs), getattr(self, "logging_dir", None)))


def test_logging_back_ends_get_every_step_with_trls_names(world, tmp_path, monkeypatch):
    monkeypatch.setattr(Recorder, "told", [])
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Recorder)
    _, steps = fit(
        world, tmp_path, "napo_paper", short(), report_to=("tensorboard",), checkpoints=tmp_path / "cell" / "c"
    )
    (first, logged, folder), *_ = Recorder.told
    assert first == 1 and folder == str(tmp_path / "cell" / "logs")
    assert {k: v for k, v in steps[0].items() if k != "step"} == logged
    trls = {"loss", "learning_rate", "grad_norm", "rewards/chosen", "rewards/rejected", "rewards/accuracies"}
    assert trls | {"rewards/margins", "logps/chosen", "logps/rejected"} <= set(logged)
    assert {"noise/q_language_biased", "noise/q_vision_biased", "noise/gamma_vision_biased"} <= set(logged)


def test_tensorboard_writes_every_step(world, tmp_path):
    """The real back end: its files hold what was returned, under "train/"."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = {"report_to": ("tensorboard",), "checkpoints": tmp_path / "cell" / "checkpoints"}
    _, steps = fit(world, tmp_path, "napo_paper", replace(TRAINING, epochs=1), **settings)
    events = EventAccumulator(str(tmp_path / "cell" / "logs")).Reload()
    for name in ("loss", "rewards/margins", "rewards/vision_biased", "noise/q_language_biased", "noise/gamma_rejected"):
        written = [(event.step, event.value) for event in events.Scalars(f"train/{name}")]
        assert written == [(step["step"], pytest.approx(step[name], rel=1e-6)) for step in steps], name
    assert len(steps) == 3


def test_a_logging_back_end_that_cannot_be_had_is_refused_before_training(world, tmp_path, monkeypatch):
    def missing():
        raise RuntimeError("WandbCallback requires wandb to be installed.")

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", missing)
    monkeypatch.setattr(trainer, "objective", lambda *a: pytest.fail("a step was made"))
    with pytest.raises(BadInput, match="report_to=wandb: wandb is not installed: pip install wandb"):
        fit(world, tmp_path, report_to=("wandb",))
    with pytest.raises(BadInput, match="report_to=wandbb: no such logging back end; there are .*tensorboard.*wandb"):
        fit(world, tmp_path, report_to=("wandbb",))


def test_processor_of_another_model_is_named_before_any_step(world, tmp_path):
    _, processor = models.load(world[0].model, world[0].quantisation)
    processor.patch_size = 6
    with pytest.raises(BadInput, match="processor and model disagree on the image tokens"):
        fit(world, tmp_path, processor=processor)


def adapter_of(policy):
    return {name: p.detach().clone() for name, p in policy.named_parameters() if p.requires_grad}


def test_same_seed_same_adapter_other_seed_another(world, tmp_path):
    runs = [adapter_of(fit(world, tmp_path, "napo_paper", seed=seed)[0]) for seed in (0, 0, 1)]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not any(torch.equal(runs[0][name], runs[2][name]) for name in runs[0])


def test_accumulated_micro_batches_give_the_gradient_of_the_large_batch(world, tmp_path):
    """DPO has no batch statistics, so 3 times 4 rows must equal 12 rows; a wrong scaling would triple the gradient."""
    whole, steps = fit(world, tmp_path, "dpo_all", short(optimizer="sgd"))
    parts, accumulated = fit(world, tmp_path, "dpo_all", short(optimizer="sgd", batch_size=4, accumulation=3))
    assert len(accumulated) == 1
    for name in ("loss", "grad_norm", "rewards/chosen", "logps/rejected"):
        assert accumulated[0][name] == pytest.approx(steps[0][name], rel=1e-4, abs=1e-6), name
    a, b = adapter_of(whole), adapter_of(parts)
    assert all(torch.allclose(a[name], b[name], rtol=1e-3, atol=1e-7) for name in a)


def test_only_what_is_left_of_an_accumulation_is_averaged(world, tmp_path):
    """12 rows by 4, accumulation 8: one step over three micro-batches, not a gradient of three eighths."""
    _, steps = fit(world, tmp_path, "dpo_all", short())
    _, short_of = fit(world, tmp_path, "dpo_all", short(batch_size=4, accumulation=8))
    assert short_of[0]["grad_norm"] == pytest.approx(steps[0]["grad_norm"], rel=1e-4)
    assert short_of[0]["loss"] == pytest.approx(math.log(2), abs=2e-5)


def test_gradient_checkpointing_trains_the_same(world, tmp_path):
    plain, _ = fit(world, tmp_path, "dpo_all", short(optimizer="sgd"))
    checkpointed, _ = fit(world, tmp_path, "dpo_all", short(optimizer="sgd", gradient_checkpointing=True))
    a, b = adapter_of(plain), adapter_of(checkpointed)
    assert all(torch.allclose(a[name], b[name], rtol=1e-4, atol=1e-8) for name in a)


def test_flips_and_weights_reach_the_objective_with_their_rows_in_every_epoch(world, tmp_path, monkeypatch):
    """The oracle's weights under swapped labels: 0 for pairs that are noise or swapped."""
    profile, runs, _, reference = world
    seen, flipped, noise = [], flips(0.25), np.arange(12) % 3 == 0
    paths = dict(zip(("pairs", "reference"), cell_inputs(profile, CELL, runs), strict=True))
    data, _ = training_set(Cell("oracle", flip_rate=0.25), profile, paths)
    assert (data.flipped == flipped).all() and flipped.sum() == 3
    spied_objective(monkeypatch, lambda *a: seen.append((a[2]["chosen"].tolist(), a[5])))
    fit(world, tmp_path, "oracle", flipped=data.flipped, weights=data.weights)
    number = {value: i for i, value in enumerate(reference["logps_chosen"].iloc[:12])}
    assert len(seen) == 6
    for chosen, known in seen:
        numbers = [number[np.float32(value)] for value in chosen]
        found = np.zeros(len(numbers), bool) if known.flipped is None else known.flipped.numpy()
        assert (found == flipped[numbers]).all()
        assert (known.weights["language_biased"].numpy() == ~(flipped | noise)[numbers]).all()
        for kind in ("vision_biased", "rejected"):
            assert (known.weights[kind].numpy() == ~flipped[numbers]).all()


CELL = Cell("napo_paper", seed=3)

KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from napo.comparison.cells import train_cell
from napo.profiles import Cell
from napo.training import trainer
from tiny_cells import make_profile
real, calls = trainer.objective, []
def objective(*arguments):
    calls.append(1)
    if len(calls) == 6:  # in the sixth step: checkpoint-4 lies on disk
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
trainer.objective = objective
train_cell(Cell("napo_paper", seed=3), make_profile(Path({folder!r})), {runs!r})
"""


@pytest.fixture(scope="module")
def trained(world):
    """(folder of an uninterrupted training of CELL, the profile, its runs folder)."""
    profile, runs, _, _ = world
    return train_cell(CELL, profile, runs), profile, runs


def test_killed_training_goes_on_to_the_same_bytes(world, trained, tmp_path):
    """SIGKILL in step 6 of 6, then a checkpoint that the kill cut short; the end must equal an uninterrupted run's."""
    profile, runs, _, _ = world
    elsewhere = tmp_path / "runs"
    base = elsewhere / "tiny" / "base-0"
    base.mkdir(parents=True)
    for name in ("pairs.parquet", "reference.parquet", "provenance.json"):
        (base / name).write_bytes((runs / "tiny" / "base-0" / name).read_bytes())
    script = KILLED.format(tests=TESTS, folder=str(Path(profile.model).parent), runs=str(elsewhere))
    environment = os.environ | {
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "MKL_NUM_THREADS": str(torch.get_num_threads()),
    }
    killed = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    folder = cell_folder(profile, CELL, elsewhere)
    (checkpoints,) = folder.glob("checkpoints-*")
    assert {path.name for path in checkpoints.iterdir()} == {"checkpoint-2", "checkpoint-4"}
    assert not (folder / "adapter").exists()
    (checkpoints / "checkpoint-6").mkdir()
    (checkpoints / "checkpoint-6" / "adapter_config.json").write_bytes(
        (checkpoints / "checkpoint-4" / "adapter_config.json").read_bytes()
    )
    steps_taken = []
    real = trainer.objective
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "objective", lambda *a: steps_taken.append(1) or real(*a))
        train_cell(CELL, profile, elsewhere)
    assert len(steps_taken) == 2  # steps 5 and 6; the first four were not done again
    for name in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "steps.jsonl"):
        assert (folder / name).read_bytes() == (trained[0] / name).read_bytes(), name
    assert not list(folder.glob("checkpoints-*")) and not list(folder.glob(".tmp-*"))


@pytest.fixture(scope="module")
def interrupted(world, tmp_path_factory):
    """(the undisturbed adapter, its steps, folder with the checkpoints 2 and 4 of the same training, stopped)."""
    folder = tmp_path_factory.mktemp("interrupted")
    policy, steps = fit(world, folder, "napo_paper", checkpoints=folder / "undisturbed")
    seen = []

    def stop(*arguments):
        seen.append(1)
        if len(seen) == 6:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        spied_objective(patch, stop)
        fit(world, folder, "napo_paper", checkpoints=folder / "stopped")
    return adapter_of(policy), steps, folder / "stopped"


def flipped(content):
    return bytes([*content[: len(content) // 2], content[len(content) // 2] ^ 1, *content[len(content) // 2 + 1 :]])


DAMAGE = {"flipped": flipped, "halved": lambda content: content[: len(content) // 2], "emptied": lambda content: b""}


def test_a_checkpoint_with_any_damaged_file_goes_in_one_line(interrupted, tmp_path, capsys):
    stopped = tmp_path / "stopped"
    shutil.copytree(interrupted[2], stopped)
    last, before = stopped / "checkpoint-4", str(stopped / "checkpoint-2")
    assert trainer.last_checkpoint(stopped) == str(last)
    files = {file.relative_to(last) for file in last.rglob("*") if file.is_file()}
    assert {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} < {
        str(file) for file in files
    }
    for file in files:
        for damage in [*DAMAGE.values(), None]:
            content = (last / file).read_bytes()
            (last / file).write_bytes(damage(content)) if damage else (last / file).unlink()
            assert trainer.last_checkpoint(stopped) == before and not last.exists(), file
            (line,) = capsys.readouterr().out.splitlines()
            assert "checkpoint-4 is incomplete or damaged: removed" in line
            shutil.copytree(interrupted[2] / "checkpoint-4", last)
    (last / "scaler.pt").write_bytes(b"")  # a file that Trainer would load
    assert trainer.last_checkpoint(stopped) == before


@pytest.mark.parametrize(
    ("damaged", "steps_left"),
    [
        ({"checkpoint-4": "adapter_model.safetensors"}, 4),
        ({"checkpoint-4": "trainer_state.json", "checkpoint-2": "optimizer.pt"}, 6),
    ],
)
def test_after_damage_the_adapter_and_its_log_are_the_same(
    world, interrupted, tmp_path, monkeypatch, damaged, steps_left
):
    adapter, steps, stopped = interrupted
    shutil.copytree(stopped, tmp_path / "stopped")
    for checkpoint, name in damaged.items():
        file = tmp_path / "stopped" / checkpoint / name
        file.write_bytes(flipped(file.read_bytes()))
    taken = []
    spied_objective(monkeypatch, lambda *_: taken.append(1))
    policy, logged = fit(world, tmp_path, "napo_paper", checkpoints=tmp_path / "stopped")
    found = adapter_of(policy)
    assert len(taken) == steps_left and logged == steps
    assert found.keys() == adapter.keys() and all(torch.equal(found[name], adapter[name]) for name in found)


def test_a_checkpoint_newer_by_the_clock_is_not_kept_for_it(world, tmp_path, monkeypatch):
    """The clock goes back while training: the two checkpoints of the last steps stay."""
    real, ahead = trainer.write_json, time.time() + 86400

    def from_tomorrow(value, path):
        real(value, path)
        if path.parent.name == "checkpoint-2":
            os.utime(path.parent, (ahead, ahead))

    monkeypatch.setattr(trainer, "write_json", from_tomorrow)
    fit(world, tmp_path, "sft", checkpoints=tmp_path / "c")
    assert sorted(os.listdir(tmp_path / "c")) == ["checkpoint-4", "checkpoint-6"]


def test_finished_cell_is_not_trained_again(trained, monkeypatch):
    folder, profile, runs = trained
    monkeypatch.setattr(models, "load", lambda *a, **k: pytest.fail("a model was loaded"))
    assert train_cell(CELL, profile, runs) == folder
    assert train_cell(Cell("base"), profile, runs).name == "base-b0-s0-f0"


def test_memory_is_predicted_before_loading_and_measured_after(world, tmp_path, capsys, monkeypatch):
    profile = with_training(world[0], epochs=1)
    make_base(profile, tmp_path)
    train_cell(Cell("sft"), profile, tmp_path)
    said = capsys.readouterr().out
    sizes = [dict(re.findall(r"(\w+) ([\d.]+ [MG]iB)", line)) for line in said.splitlines() if "memory " in line]
    assert said.index("memory predicted") < said.index("memory measured") and len(sizes) == 2
    assert sizes[0]["weights"] == sizes[1]["weights"] and sizes[0]["adapter"] == sizes[1]["adapter"]
    assert {"optimizer", "activations"} <= set(sizes[0]) and "in all" in said
    monkeypatch.setattr(memory, "available", lambda device: 1000)
    monkeypatch.setattr(models, "load", lambda *a, **k: pytest.fail("a model was loaded"))
    with pytest.raises(BadInput, match="this training needs about .* lower batch_size"):
        train_cell(Cell("sft", seed=1), profile, tmp_path)


def test_lost_steps_are_made_again(world, tmp_path):
    """steps.jsonl belongs to the cell: without it the cell is not finished."""
    profile, _, _, _ = world
    profile = with_training(profile, epochs=1)
    make_base(profile, tmp_path)
    folder = train_cell(Cell("sft"), profile, tmp_path)
    (folder / "steps.jsonl").unlink()
    assert (train_cell(Cell("sft"), profile, tmp_path) / "steps.jsonl").exists()


def test_steps_hold_one_line_per_optimiser_step_with_the_fields_names(trained):
    steps = [json.loads(line) for line in (trained[0] / "steps.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2, 3, 4, 5, 6]
    expected = {"step", "epoch", "loss", "learning_rate", "grad_norm", "rewards/chosen", "logps/chosen"}
    for kind in REJECTED_KINDS:
        expected |= {f"rewards/{kind}", f"rewards/margins_{kind}", f"rewards/accuracies_{kind}", f"logps/{kind}"}
        expected |= {f"noise/gamma_{kind}"}
    expected |= {"noise/q_language_biased", "noise/q_vision_biased", "noise/true_language_biased"}
    expected |= {"rewards/margins", "rewards/accuracies"}
    assert all(set(step) == expected for step in steps)
    assert all(math.isfinite(value) for step in steps for value in step.values())
    for kind in REJECTED_KINDS:
        assert steps[0][f"rewards/margins_{kind}"] == pytest.approx(0, abs=1e-4)
        assert steps[0][f"noise/gamma_{kind}"] == pytest.approx(1 / 3, abs=1e-6)
    assert steps[0]["noise/q_language_biased"] == pytest.approx(0.5, abs=1e-6)
    assert [step["epoch"] for step in steps] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2], abs=1e-3)
    assert len({step["noise/gamma_rejected"] for step in steps}) > 3
    for epoch in (steps[:3], steps[3:]):  # every third row, whichever batch it falls into
        assert np.mean([step["noise/true_language_biased"] for step in epoch]) == pytest.approx(1 / 3)


def test_the_true_noise_of_a_batch_counts_swapped_labels_and_leaves_out_what_nobody_judged(world, tmp_path):
    _, steps = fit(world, tmp_path, "dpo_all", short(max_length=512), flipped=flips(0.25))
    wrong = flips(0.25) | (np.arange(12) % 3 == 0)
    assert steps[0]["noise/true_language_biased"] == pytest.approx(wrong.mean())
    assert "noise/true_vision_biased" not in steps[0] and "noise/true_rejected" not in steps[0]


def test_adapter_reloads_in_stock_peft_on_a_fresh_base_with_the_same_logits(trained, world):
    folder, profile, runs = trained
    row = packing.encode(make_row(2), models.load(profile.model, profile.quantisation)[1], ("chosen",))
    batch = packing.collate_plain([row], ("chosen",))
    inputs = {name: tensor for name, tensor in batch.items() if name != "response_mask"}
    config = models.four_bit_config(profile.model, profile.quantisation)
    stock = AutoModelForImageTextToText.from_pretrained(profile.model, quantization_config=config, dtype=torch.float32)
    models.guard_repacking(stock)  # with AVX512-BF16 it would round to bfloat16: test_cpu_paths.py
    base = stock(**inputs).logits.detach()
    stock = PeftModel.from_pretrained(stock, folder / "adapter").eval()
    ours = models.load_adapter(models.load(profile.model, profile.quantisation)[0], folder / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(stock(**inputs).logits, ours(**inputs).logits, rtol=1e-5, atol=1e-6)
        assert (stock(**inputs).logits - base).abs().max() > 1e-3


def test_saved_adapter_is_the_trained_policy_and_the_base_stays_as_it_was(world, tmp_path):
    profile, _, rows, _ = world
    fresh, processor = models.load(profile.model, profile.quantisation)
    untouched = {name: p.detach().clone() for name, p in fresh.named_parameters()}
    policy, _ = fit(world, tmp_path, "napo_paper")
    policy.save_pretrained(tmp_path / "adapter")
    after = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): p
        for name, p in policy.named_parameters()
        if "lora_" not in name
    }
    assert after.keys() == untouched.keys()
    assert all(torch.equal(after[name], untouched[name]) for name in untouched)
    reloaded = models.load_adapter(fresh, tmp_path / "adapter")
    expected = logps.measure(policy, processor, rows[:3], KINDS)
    assert logps.measure(reloaded, processor, rows[:3], KINDS).equals(expected)
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(weights) == 2 * 14 and all(".lora_A." in name or ".lora_B." in name for name in weights)


def test_missing_artefacts_name_the_notebook_that_writes_them(world, tmp_path):
    profile = world[0]
    with pytest.raises(MissingArtifact, match="run notebook 01 first"):
        train_cell(Cell("sft"), profile, tmp_path)
    make_base(profile, tmp_path)
    (tmp_path / "tiny" / "base-0" / "reference.parquet").unlink()
    with pytest.raises(MissingArtifact, match="run notebook 02 first"):
        train_cell(Cell("sft"), profile, tmp_path)


def test_failed_training_leaves_nothing_that_looks_finished(world, tmp_path):
    profile = with_training(world[0], learning_rate=1e30)
    make_base(profile, tmp_path)
    with pytest.raises(BadInput, match="loss is"):
        train_cell(Cell("dpo_all"), profile, tmp_path)
    folder = cell_folder(profile, Cell("dpo_all"), tmp_path)
    assert not (folder / "adapter").exists() and not (folder / "steps.jsonl").exists()


def test_rows_of_a_dataset_train_as_a_list_does(world, tmp_path):
    rows = world[2]
    preferences.write(rows, tmp_path / "pairs.parquet")
    (a, _), (b, _) = (
        fit(world, tmp_path, training=short(), rows=r) for r in (rows, preferences.read(tmp_path / "pairs.parquet"))
    )
    a, b = adapter_of(a), adapter_of(b)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_reference_is_computed_once(world, monkeypatch):
    profile, runs, _, reference = world
    monkeypatch.setattr(models, "load", lambda *a, **k: pytest.fail("a model was loaded"))
    assert pd.read_parquet(reference_logps.build(profile, 0, runs)).equals(reference)
