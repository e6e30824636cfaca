"""Two processes (gloo, CPU) that train together: the gradients, q and gamma of one process with the doubled batch."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_cells import make_base, make_profile, with_training

from napo import profiles
from napo.commands import launch
from napo.comparison.cells import cell_folder, train_cell
from napo.methods import METHODS
from napo.profiles import Cell

CELL = Cell("napo_paper", seed=3)
PROCESS = """
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
import torch
torch.set_num_threads(1)
import test_two_processes as t
from napo.commands import launch
from napo.training import trainer
rotate = trainer.rotate_checkpoints
def rotated(folder, kept):
    last = Path(trainer.last_checkpoint(folder))
    print("whole:", Path(folder).name, last.name, *(file.name for file in last.iterdir()), flush=True)
    rotate(folder, kept)
trainer.rotate_checkpoints = rotated
launch.train_together(t.CELL, t.profile_of(Path({folder!r}), batch_size=2), {runs!r})
"""


def profile_of(folder, batch_size):
    """Plain gradient descent, so that the adapter after it is the gradient; 12 rows, so no batch is short."""
    changes = {"batch_size": batch_size, "optimizer": "sgd", "learning_rate": 3.0, "max_grad_norm": 1e9}
    return with_training(make_profile(folder), **changes, save_steps=2)


def together(folder, runs, count=2):
    """Run PROCESS in `count` processes that know of each other, as torchrun and accelerate launch start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    script = PROCESS.format(paths=paths, folder=str(folder), runs=str(runs))
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]
    said = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0] * count, "\n".join(text[-2000:] for text in said)
    return said


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(profile, cell by one process with 4 rows a batch, cell by two with 2 each, runs folder of these)."""
    folder = tmp_path_factory.mktemp("two")
    profile = profile_of(folder, 4)
    make_base(profile, folder / "one")
    make_base(profile_of(folder, 2), folder / "two")
    one = train_cell(CELL, profile, folder / "one")
    (folder / "said").write_text("".join(together(folder, folder / "two")))
    return profile, one, cell_folder(profile, CELL, folder / "two"), folder / "two"


def steps_of(folder):
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def test_every_step_has_the_same_loss_q_gamma_and_gradient(both):
    _, one, two, _ = both
    alone, shared = steps_of(one), steps_of(two)
    assert len(alone) == len(shared) == 6
    for a, b in zip(alone, shared, strict=True):
        assert set(a) == set(b)
        for name in a:  # loss, grad_norm, noise/q_*, noise/gamma_*, rewards, log-probs
            assert b[name] == pytest.approx(a[name], rel=2e-4, abs=2e-5), (a["step"], name)
    moved = [max(s[f"noise/{name}"] for s in alone) - min(s[f"noise/{name}"] for s in alone) for name in QS]
    assert min(moved) > 1e-4, "q and gamma must move, or equality would say nothing"


QS = ("q_language_biased", "q_vision_biased", "gamma_rejected", "gamma_language_biased")


def test_the_adapters_are_the_same(both):
    _, one, two, _ = both
    a, b = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (one, two))
    assert a.keys() == b.keys()
    largest = max(a[name].abs().max() for name in a if "lora_B" in name)
    assert largest > 1e-2
    for name in a:
        assert torch.allclose(a[name], b[name], rtol=1e-3, atol=2e-4 * largest.item()), name


def test_one_process_writes_the_digest_when_all_have_saved(both):
    said = (both[3].parent / "said").read_text().splitlines()
    lines = [line.split()[1:] for line in said if line.startswith("whole:")]
    assert [line[1] for line in lines] == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    for folder, _, *files in lines:
        assert folder.endswith("-2") and {"rng_state_0.pth", "rng_state_1.pth", "optimizer.pt"} < set(files)


def test_half_the_batch_alone_gives_other_numbers(both, tmp_path):
    """What a process would compute without the others: the test above must be able to fail."""
    profile, one, _, runs = both
    half = profile_of(Path(profile.model).parent, 2)
    shutil.copytree(runs / "tiny" / "base-0", tmp_path / "tiny" / "base-0")
    other = steps_of(train_cell(CELL, half, tmp_path))[1]
    assert other["noise/q_vision_biased"] != pytest.approx(steps_of(one)[1]["noise/q_vision_biased"], rel=1e-5)
    assert other["grad_norm"] != pytest.approx(steps_of(one)[1]["grad_norm"], rel=1e-3)


def test_a_finished_cell_is_not_trained_again_and_leaves_nothing_behind(both):
    profile, _, two, runs = both
    assert not list(two.glob("checkpoints-*")) and not list(two.glob(".tmp-*"))
    before = (two / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    together(Path(profile.model).parent, runs)
    assert (two / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == before


def test_the_command_refuses_in_one_line(capsys):
    assert launch.main(["--profile", "nope"]) == 2
    assert launch.main(["--method", "nope"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith("error: unknown ") for line in lines)


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_configurations_are_accelerates_and_start_the_command(root, name):
    from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file

    file = root / "configs" / f"{name}.yaml"
    text = file.read_text()
    assert isinstance(load_config_from_file(str(file)), ClusterConfig)
    settings = yaml.safe_load(text)
    assert settings["distributed_type"] == {"ddp": "MULTI_GPU", "fsdp": "FSDP"}[name]
    command = text.splitlines()[0].removeprefix("# ").split()
    assert command[:4] == ["accelerate", "launch", "--config_file", f"configs/{name}.yaml"]
    asked = launch.parser().parse_args(command[command.index("-m") + 3 :])
    assert asked.profile in profiles.PROFILES and asked.method in METHODS
