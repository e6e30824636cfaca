"""Whatever is killed whenever: the same command again finishes, with the files of an undisturbed run, bit for bit.

Kills follow each other: every start goes on from what the last kill left. `make faults` makes all of them.
"""

import random
import signal
import time

import pytest
from attacked import Attacked, flip, undo

from napo.workshop.files import read_json

KILL, INT, TERM = signal.SIGKILL, signal.SIGINT, signal.SIGTERM
ROLES = ("runner", "kernel", "group")
KILLS = {"00": 1, "01": 3, "02": 4, "03": 3, "04": 4, "05": 2}  # in each chain
OF_LAST = ("claims.json", "report.md", "tables/methods.csv", "figures/table_1.png")


def seconds(reference, number):
    """How long a notebook took, undisturbed."""
    (record,) = (reference / "smoke").glob(f"{number}_*.json")
    return read_json(record)["seconds"]


def end(run, reference, count, keys=True):
    """Finish the run; nothing may differ, and nothing may be left."""
    run.finish()
    run.compare(reference, keys)
    count("kills: files compared", sum(path.is_file() for path in run.folder.rglob("*")))
    assert run.problems == [], "\n".join(run.problems)


def test_the_last_notebook_damaged_and_killed_four_times(root, reference, tmp_path, count):
    """The quick part: only notebook 05 is left to do, since all that it wrote is damaged."""
    run, rng = Attacked(root, tmp_path, reference), random.Random(0)
    for name in OF_LAST:
        file = run.folder / name
        file.write_bytes(flip(file.read_bytes(), rng))
    kills = [("runner", TERM, 0.2), ("kernel", KILL, 0.4), ("group", INT, 0.6), ("runner", KILL, 0.8)]
    most = min(10, seconds(reference, "05"))
    for role, sent, share in kills:
        count("kills", run.kill("05", most * share, role, sent))
    end(run, reference, count)


@pytest.mark.parametrize("seed", range(4))
def test_random_kills_from_the_first_notebook_to_the_last(everything, root, reference, tmp_path, seed, count):
    """Random moments over runner, kernel and all processes at once."""
    run, rng = Attacked(root, tmp_path), random.Random(seed)
    for number, times in KILLS.items():
        for _ in range(times):
            role, sent = rng.choice(ROLES), rng.choice((KILL, KILL, INT, TERM))
            wait = rng.random() * seconds(reference, number)
            happened = run.kill(number, wait, role, sent)
            count("kills", happened)
            count(f"kills: {role} {sent.name}", happened)
    end(run, reference, count)


@pytest.mark.parametrize("seed", range(2))
def test_random_kills_of_workers(everything, root, reference, tmp_path, seed, count):
    """The cells of notebooks 03 and 04 run in two worker processes, with a checkpoint at every step."""
    run, rng = Attacked(root, tmp_path, reference, FAULT_PROFILE="1"), random.Random(100 + seed)
    undo(run, "03", "04", "05")
    for number in ("03", "03", "03", "04", "04"):
        role, sent = rng.choice(("worker", "worker", "kernel", "group")), rng.choice((KILL, TERM))
        happened = run.kill(number, rng.random() * seconds(reference, number), role, sent)
        count("kills", happened)
        count(f"kills: {role} {sent.name}", happened)
    end(run, reference, count, keys=False)


# A process kills itself at the n-th os.rename to, os.mkdir of, or opening for writing of a path that fits.
WRITES = [
    ("01", "os.rename *answers/provenance.json 2"),
    ("01", "os.rename *pairs.parquet 1"),
    ("02", "os.rename *provenance.json 2"),
    ("02", "os.rename *posterior.parquet 1"),
    ("03", "open *checkpoint-*/trainer_state.json 2"),
    ("03", "open *checkpoint-*/adapter_config.json 3"),
    ("03", "os.rename *cells/*/adapter 1"),
    ("03", "os.rename *steps.jsonl 1"),
    ("04", "open *answers-*.jsonl 4"),
    ("04", "os.rename *scores.parquet 2"),
    ("05", "os.rename *claims.json 1"),
    ("05", "os.rename *05_ablations.json 1"),
]


def test_kills_during_writes(everything, root, reference, tmp_path, count):
    """Each process dies by itself in the middle of a write: shards, records, checkpoints, adapters, answers, claims."""
    run = Attacked(root, tmp_path, FAULT_PROFILE="1")
    for number, when in WRITES:
        runner = run.start(*(one for one in KILLS if one <= number), FAULT_KILL=when)
        status = run.ended(runner, 900)
        count("kills", status != 0)
        count("kills: during a write", status != 0)
        run.check(status != 0, f"{number}: nothing like {when} happened")
        run.after(f"{number}, {when}", status)
    end(run, reference, count, keys=False)


APPEARING = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.safetensors", "trainer_state.json")


def test_kills_while_a_checkpoint_is_saved(everything, root, reference, tmp_path, count):
    """All processes die at the moment at which a file of a checkpoint appears."""
    run = Attacked(root, tmp_path, reference, FAULT_PROFILE="1")
    undo(run, "03", "04", "05")
    for name in APPEARING:
        runner = run.start("03")
        seen = set(run.folder.glob(f"cells/*/checkpoints-*/*checkpoint-*/{name}"))
        while runner.poll() is None:
            if set(run.folder.glob(f"cells/*/checkpoints-*/*checkpoint-*/{name}")) - seen:
                run.send(run.who(runner, "group"), KILL)
                break
            time.sleep(0.001)
        status = run.ended(runner, 300)
        count("kills", status != 0)
        count("kills: during a checkpoint", status != 0)
        run.after(f"as {name} appeared", status)
        if status == 0:
            undo(run, "03")
    end(run, reference, count, keys=False)
