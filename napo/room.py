"""What a run will fetch and write, and whether the disks have room for it."""

import shutil
from pathlib import Path

import datasets
from huggingface_hub import constants

from napo import artifacts, data, hub
from napo.artifacts import BadInput

KNOWN_ROWS = {"openbmb/RLAIF-V-Dataset": 83_132, "Starrrrrry/RLAIF-V-Bias-Dataset": 83_132}  # paper, section 3.1


def to_fetch(repository, profile):
    """{file: bytes} of a repository that are still to be fetched; of known data only those that hold the rows."""
    names, missing = sorted(repository.needed()), repository.missing()
    known = KNOWN_ROWS.get(repository.name)
    if repository.kind == "dataset" and known:
        names = names[: files_that_hold(list(map(repository.files.get, names)), known, wanted_rows(profile))]
    return {name: missing[name] for name in names if name in missing}


def wanted_rows(profile):
    return profile.rows + profile.heldout_rows


def files_that_hold(sizes, known, wanted):
    """How many of some files of these sizes hold the first `wanted` of their `known` rows, one more for safety."""
    held, total = 0, sum(sizes)
    for number, size in enumerate(sizes, 1):
        held += size / total * known
        if held >= wanted:
            return number + 1
    return len(sizes)


def check(profile, repositories, runs_dir):
    """Raises BadInput where a disk has no room for what will be fetched and written: of large data the fetched files,
    pairs.parquet, and the Arrow copies of both that `datasets` maps (napo/data.py)."""
    fetched = {repository.kind: sum(to_fetch(repository, profile).values()) for repository in repositories}
    needs = [("the downloads take", sum(fetched.values()), constants.HF_HUB_CACHE)]
    pairs = artifacts.run_folder(profile.name, f"base-{profile.bases[0]}", "pairs.parquet", runs_dir=runs_dir)
    size = fetched.get("dataset", 0) + sum(file.stat().st_size for file in data.local_files(profile.data))
    if size >= data.IN_MEMORY and not pairs.exists():
        needs += [("the rows with their answers take", size, runs_dir)]
        needs += [("the copies that are mapped take", 2 * size, datasets.config.HF_DATASETS_CACHE)]
    taken = {}
    for what, n_bytes, folder in needs:
        place = existing(folder)
        disk = place.stat().st_dev
        check_disk(n_bytes, place, what, taken.get(disk, 0))
        taken[disk] = taken.get(disk, 0) + n_bytes


def existing(folder):
    """The folder or the nearest one above it that is there."""
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    return place


def check_disk(n_bytes, place, what="the downloads take", taken=0):
    """Raises BadInput if a disk, of which `taken` bytes are spoken for, has no room for `n_bytes` and hub.MARGIN."""
    free = shutil.disk_usage(place).free - taken
    if n_bytes and n_bytes + hub.MARGIN > free:
        raise BadInput(
            f"{what} {n_bytes / 2**30:.1f} GiB and {max(free, 0) / 2**30:.1f} GiB are left at {place}: free some, take "
            "fewer ROWS, or set HF_HOME (or RUNS) to a larger disk"
        )
