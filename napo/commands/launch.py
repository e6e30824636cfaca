"""`accelerate launch … -m napo launch`: train one cell in several processes, for several GPUs.

Every process trains and rank 0 writes. q and gamma are means over the micro-batches of all processes, so the result is
that of one process with as many rows in its batch. Notebook 03 then finds the cell finished.
"""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from accelerate import PartialState

from napo import profiles
from napo.commands import command
from napo.comparison.cells import cell_folder, is_finished, take_part, train_cell
from napo.methods import METHODS
from napo.preflight import checks
from napo.training import trainer
from napo.workshop import console
from napo.workshop.files import shown


def train_together(cell, profile, runs_dir="runs"):
    """Train a cell in all processes of the launch. Returns the cell's folder, in every process."""
    # Also chooses this process's GPU. The others wait while rank 0 makes a noise estimate: longer than the default.
    state = PartialState(cpu=profile.device == "cpu", timeout=timedelta(hours=12))
    folder = cell_folder(profile, cell, runs_dir)
    with state.main_process_first():  # rank 0 makes the inputs that are missing
        finished = is_finished(cell, profile, runs_dir)
    if state.is_main_process:
        for checkpoints in folder.glob("checkpoints-*"):
            trainer.last_checkpoint(checkpoints)  # removes an incomplete one before all processes look
    state.wait_for_everyone()
    if finished or not METHODS[cell.method].trained:
        return folder
    if state.is_main_process:
        train_cell(cell, profile, runs_dir)
    else:
        with console.scratch("rank") as scratch:
            take_part(Path(scratch), cell, profile, runs_dir)
    state.wait_for_everyone()
    return folder


def parser():
    top = command.parser("launch")
    command.add_profile(top, "paper", ("model", "data", "rows", "device", "report_to"))
    top.add_argument("--method", default="napo_paper", help="default: napo_paper")
    top.add_argument("--seed", type=int, default=0)
    top.add_argument("--full-precision", action="store_true", help="do not quantise the base to 4 bits; FSDP needs it")
    return top


@command.exit_status
def main(arguments=None):
    asked = parser().parse_args(arguments)
    profiles.method(asked.method)
    profile = command.asked_profile(asked)
    if asked.full_precision:
        profile = replace(profile, quantisation=replace(profile.quantisation, four_bit=False))
    profile = checks.prepared(profile, asked.runs_dir)
    print(shown(train_together(profiles.Cell(asked.method, seed=asked.seed), profile, asked.runs_dir)))
