"""Bytes that a run will fetch and write, and whether the disks have room for them."""

import itertools
import shutil
from collections import Counter
from pathlib import Path

import datasets
from huggingface_hub import constants

from napo.engine import preferences
from napo.workshop import artifacts, hub
from napo.workshop.files import BadInput

KNOWN_ROWS = {"openbmb/RLAIF-V-Dataset": 83_132, "Starrrrrry/RLAIF-V-Bias-Dataset": 83_132}  # paper, section 3.1


def to_fetch(repository, profile):
    """{file: bytes} that a repository still needs in the cache; of known data sets only the files with our rows."""
    names, missing = sorted(repository.needed()), repository.missing()
    known = KNOWN_ROWS.get(repository.name)
    if repository.kind == "dataset" and known:
        total = sum(repository.files[name] for name in names)
        held = itertools.accumulate(repository.files[name] / total * known for name in names)
        short = sum(n_rows < profile.rows + profile.heldout_rows for n_rows in held)
        names = names[: short + 2]  # the next file holds the last row; one more for safety
    return {name: missing[name] for name in names if name in missing}


def needed(profile, repositories, runs_dir):
    """[(what, bytes, folder)]: the downloads and, for large data, pairs.parquet and the Arrow copies of both."""
    fetched = {repository.kind: sum(to_fetch(repository, profile).values()) for repository in repositories}
    needs = [("the downloads take", sum(fetched.values()), constants.HF_HUB_CACHE)]
    pairs = artifacts.run_folder(profile.name, f"base-{profile.bases[0]}", "pairs.parquet", runs_dir=runs_dir)
    size = fetched.get("dataset", 0) + sum(file.stat().st_size for file in preferences.local_files(profile.data))
    if size >= preferences.IN_MEMORY and not pairs.exists():
        needs += [("the rows with their answers take", size, runs_dir)]
        needs += [("the copies that are mapped take", 2 * size, datasets.config.HF_DATASETS_CACHE)]
    return needs


def check(profile, repositories, runs_dir):
    """Raises BadInput if a disk has no room for what the run needs on it."""
    reserved = Counter()
    for what, n_bytes, folder in needed(profile, repositories, runs_dir):
        path = Path(folder).absolute()
        place = next(above for above in (path, *path.parents) if above.exists())
        disk = place.stat().st_dev
        free = shutil.disk_usage(place).free - reserved[disk]
        if n_bytes and n_bytes + hub.MARGIN > free:
            why = f"{what} {n_bytes / 2**30:.1f} GiB and {max(free, 0) / 2**30:.1f} GiB are left at {place}"
            raise BadInput(f"{why}: free some, take fewer ROWS, or set HF_HOME (or RUNS) to a larger disk")
        reserved[disk] += n_bytes
