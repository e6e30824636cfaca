"""One training on several GPUs, by accelerate: `accelerate launch --config_file configs/ddp.yaml -m napo.launch`.

Every process trains; one writes. The result is that of one process with as many rows in its batch: q and gamma are
means over the micro-batch of all processes. Notebook 03 then finds the cell finished.
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from accelerate import PartialState

from napo import artifacts, command, preflight, profiles, train


def train_together(cell, profile, runs_dir="runs"):
    """`train.train_cell` by all processes that were launched together. Returns the cell's folder, in every process."""
    state = PartialState(cpu=profile.device == "cpu")  # also chooses this process's GPU
    folder = train.cell_folder(profile, cell, runs_dir)
    finished = train.is_finished(cell, profile, runs_dir)
    if state.is_main_process:
        for checkpoints in folder.glob("checkpoints-*"):
            train.last_checkpoint(checkpoints)  # removes one that a kill cut short, before all look
    state.wait_for_everyone()
    if finished or not profiles.METHODS[cell.method].trained:
        return folder
    if state.is_main_process:
        train.train_cell(cell, profile, runs_dir)
    else:
        with tempfile.TemporaryDirectory() as thrown_away:
            train.take_part(Path(thrown_away), cell, profile, runs_dir)
    state.wait_for_everyone()
    return folder


def parser():
    top = argparse.ArgumentParser(prog="python -m napo.launch", description="One training by several processes.")
    top.add_argument("--profile", default="paper", help="default: paper")
    top.add_argument("--method", default="napo_paper", help="default: napo_paper")
    top.add_argument("--seed", type=int, default=0)
    for name in ("model", "data", "rows", "device", "report-to"):
        top.add_argument(f"--{name}", default="", help="instead of the profile's own")
    top.add_argument("--full-precision", action="store_true", help="the base not in 4 bits, as FSDP needs it")
    top.add_argument("--runs-dir", default="runs", help="default: runs")
    return top


def asked_profile(asked):
    """The profile that the arguments ask for, with what `make reproduce` would have put in its place."""
    overrides = {name: getattr(asked, name) for name in ("model", "data", "rows", "device", "report_to")}
    profile = profiles.get(asked.profile, **overrides)
    if asked.full_precision:
        profile = replace(profile, quantisation=replace(profile.quantisation, four_bit=False))
    return preflight.prepared(profile, asked.runs_dir)


@command.exit_status
def main(arguments=None):
    """The command; returns the exit status: 0 done, 2 bad input (one line says which)."""
    asked = parser().parse_args(arguments)
    profiles.method(asked.method)
    cell = profiles.Cell(asked.method, seed=asked.seed)
    print(artifacts.shown(train_together(cell, asked_profile(asked), asked.runs_dir)))


if __name__ == "__main__":
    sys.exit(main())
