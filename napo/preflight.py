"""What can be told before any work starts: device, model, data, disk and memory; one line with the remedy if not.

`prepared` is what notebooks 01 to 04 and the runner call. It also pins hub repositories: the commit that is found at
first use is recorded in runs/<profile>/revisions.json and used from then on.
"""

import json
import struct
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow
import pyarrow.parquet as pq
import torch
from huggingface_hub.errors import GatedRepoError, HTTPError

from napo import artifacts, data, hub, room
from napo.artifacts import BadInput, shown

REVISIONS = "revisions.json"
BF16_CAPABILITY = (8, 0)  # Ampere: the first that computes in bfloat16
SMALLEST_GPU = 11 * 2**30  # bytes; the profile paper_small is made for a 12 GB card
SHARDS_INDEX = "model.safetensors.index.json"


def prepared(profile, runs_dir="runs", say=print):
    """The profile with its hub repositories pinned to commits, when all that can be checked beforehand is fine.

    The desk world's profiles need nothing and come back as they are. Raises BadInput with the first thing that is not.
    """
    if profile.needs_nothing:
        return profile
    if problem := device_problem(profile.device, profile.quantisation, gpu_facts()):
        raise BadInput(problem)
    model, rows = find(profile.model, "model"), find(profile.data, "dataset")
    file = artifacts.run_folder(profile.name, REVISIONS, runs_dir=runs_dir)
    pinned = artifacts.read_json(file) if file.exists() else {}
    found = [
        _pinned(model, "model", profile.revision, pinned, profile, say),
        _pinned(rows, "dataset", profile.data_revision, pinned, profile, say),
    ]
    repositories = [repository for repository in found if repository]
    for repository in repositories:
        check_cached(repository)
        check_access(repository)
    room.check(profile, repositories, runs_dir)
    commits = pinned | {_key(repository): repository.commit for repository in repositories}
    if commits != pinned:
        artifacts.write_json(commits, file)
    revision, data_revision = (repository and repository.commit for repository in found)
    return replace(profile, revision=revision or profile.revision, data_revision=data_revision or profile.data_revision)


def _key(repository):
    return f"{repository.kind} {repository.name}"


def _pinned(name, kind, revision, pinned, profile, say):
    """The hub repository behind a name, at the commit asked for or recorded earlier; None for what lies here."""
    if name is None:
        return None
    known = pinned.get(f"{kind} {name}")
    repository = hub.look_up(name, kind, revision or known)
    if not known:
        size = sum(room.to_fetch(repository, profile).values()) / 2**30
        fetched = f", {size:.1f} GiB to fetch" if size else ", all in the cache"
        say(f"{kind} {name} at {repository.commit[:12]}{fetched}; licence: {repository.licence}")
    return repository


def find(name, kind):
    """None if a model or data set lies on this machine, whole; else the name, which then must be a hub id.

    Raises BadInput for a local one that is damaged.
    """
    path = Path(name)
    if name == "desk":
        return None
    if kind == "model" and path.is_dir():
        check_weights(path)
        return None
    if kind == "dataset" and (path.exists() or path.suffix == ".parquet"):
        check_rows(path)
        return None
    return str(name)


# ---- what lies here -------------------------------------------------------------------------------------------------


def check_weights(folder):
    """Raises BadInput unless a model's folder has a configuration and every safetensors shard, whole."""
    if not (folder / "config.json").is_file():
        raise BadInput(f"{shown(folder)}: no config.json: give a model's folder by MODEL=...")
    index = folder / SHARDS_INDEX
    names = sorted(set(artifacts.read_json(index)["weight_map"].values())) if index.exists() else ["model.safetensors"]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        why = "; only safetensors are loaded, never pickles" if pickled else ""
        raise BadInput(f"{shown(folder)}: {', '.join(missing[:3])} missing{why}: get the model again")
    for name in names:
        check_safetensors(folder / name)


def check_safetensors(file):
    """Raises BadInput for a file that was cut short: its header says how long it must be."""
    size = file.stat().st_size
    try:
        with open(file, "rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            header = json.loads(handle.read(length)) if length < size else {}
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        whole = bool(ends) and size == 8 + length + max(ends)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise BadInput(f"{shown(file)} is cut short or damaged: get it again")


def check_rows(source):
    """Raises BadInput unless a parquet file, or every one of a folder, is whole and has the columns that are needed."""
    files = data.local_files(source)
    if not files:
        what = "no parquet file in this folder" if source.is_dir() else "no such file"
        raise BadInput(f"{shown(source)}: {what}: give rows by DATA=...")
    for file in files:
        check_parquet(file)


def check_parquet(file):
    """Raises BadInput for a file that was cut short, which lacks its last bytes, or has no pairs."""
    try:
        columns = pq.read_schema(file).names
    except (pyarrow.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInput(f"{shown(file)} is cut short, damaged or no parquet file ({reason}): get it again") from None
    if missing := [name for name in data.REQUIRED if name not in columns]:
        raise BadInput(f"{shown(file)}: no column {', '.join(missing)} (found {', '.join(columns)})")


# ---- the hub and its cache ------------------------------------------------------------------------------------------


def check_access(repository):
    """Raises BadInput for a gated repository whose terms were not accepted: the hub lists its files all the same."""
    if not repository.missing():
        return
    try:
        hub.HfApi().auth_check(repository.name, repo_type=repository.kind)
    except GatedRepoError:
        raise BadInput(
            f"{repository.kind} {repository.name} is gated: accept its terms on its page of the hub, then run "
            "`hf auth login`"
        ) from None
    except (HTTPError, OSError):
        return  # a mirror may not know the question; fetching will tell


def check_cached(repository):
    """Raises BadInput if a file in the cache is cut short or, without network, a shard of the model is not there."""
    for name in repository.needed():
        path = cached(repository, name)
        if path and name.endswith(".safetensors"):
            check_safetensors(path)
        elif path and name.endswith(".parquet"):
            check_parquet(path)
    index = cached(repository, SHARDS_INDEX) if repository.kind == "model" else None
    shards = set(artifacts.read_json(index)["weight_map"].values()) if index else set()
    if absent := sorted(shards - set(repository.files)):
        raise BadInput(
            f"model {repository.name}: the cache lacks {', '.join(absent[:3])} and the hub was not asked: get it again "
            "with network and without HF_HUB_OFFLINE"
        )


def cached(repository, name):
    """Path of a file in the hub's cache, None where it is not there."""
    known = {"revision": repository.commit, "repo_type": repository.kind}
    found = hub.try_to_load_from_cache(repository.name, name, **known)
    return Path(found) if isinstance(found, str) else None


# ---- the device -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GpuFacts:
    """What this machine and this torch say about a CUDA GPU."""

    build: str | None  # CUDA version that torch was built with; None: a CPU build
    driver: str | None  # name and driver version of the first GPU, as nvidia-smi has them
    available: bool = False
    name: str = ""
    capability: tuple[int, int] = (0, 0)
    built_for: tuple[str, ...] = ()  # torch.cuda.get_arch_list()
    memory: int = 0  # bytes in all
    problem: str = ""  # of a first 4-bit operation on it


def gpu_facts():
    """GpuFacts of this machine; never raises."""
    if not torch.cuda.is_available():
        return GpuFacts(torch.version.cuda, _driver())
    about = torch.cuda.get_device_properties(0)
    return GpuFacts(
        build=torch.version.cuda,
        driver=_driver(),
        available=True,
        name=about.name,
        capability=torch.cuda.get_device_capability(0),
        built_for=tuple(torch.cuda.get_arch_list()),
        memory=about.total_memory,
        problem=_first_operation(),
    )


def _driver():
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        shown_lines = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return shown_lines[0] if shown_lines else None


def _first_operation():
    """What goes wrong when bitsandbytes quantises one weight on the GPU, "" if nothing does."""
    import bitsandbytes

    try:
        packed, state = bitsandbytes.functional.quantize_4bit(torch.ones(64, 64, device="cuda"), quant_type="nf4")
        bitsandbytes.functional.dequantize_4bit(packed, state).sum().item()
    except Exception as error:  # whatever a library that does not match raises
        return (str(error).splitlines() or [type(error).__name__])[0]
    return ""


def device_problem(device, quantisation, facts):
    """Why `device` cannot do what `quantisation` asks for, with the remedy, in one line; None if it can."""
    if device != "cuda":
        return None if device == "cpu" else f"unknown device {device!r}: use cpu or cuda"
    other = "or use PROFILE=desk, which needs no GPU"
    if not facts.available and facts.driver and facts.build is None:
        return f"there is a GPU ({facts.driver}) but torch is a CPU build: install torch with CUDA, {other}"
    if not facts.available and facts.driver:
        return (
            f"torch is built for CUDA {facts.build}, which the driver of this GPU ({facts.driver}) does not run: "
            f"update the driver or install a torch for an older CUDA, {other}"
        )
    if not facts.available:
        return f"this profile needs one CUDA GPU and this machine has none: run it elsewhere, {other}"
    architecture = "sm_{}{}".format(*facts.capability)
    if facts.built_for and not any(_runs_on(built, facts.capability) for built in facts.built_for):
        built_for = ", ".join(facts.built_for)
        return (
            f"{facts.name} is {architecture} and this torch is built for {built_for}: install a torch for it, {other}"
        )
    if facts.capability < BF16_CAPABILITY and "bfloat16" in (quantisation.dtype, quantisation.compute_dtype):
        return (
            f"{facts.name} ({architecture}) is too old for bfloat16, which needs Ampere (sm_80) or newer: take another "
            f"card, {other}"
        )
    if facts.memory < SMALLEST_GPU:
        return (
            f"{facts.name} has {facts.memory / 2**30:.1f} GiB, and even PROFILE=paper_small needs a 12 GB card: "
            f"take another, {other}"
        )
    if facts.problem:
        return f"bitsandbytes does not work on {facts.name} ({facts.problem}): install one built for CUDA {facts.build}"
    return None


def _runs_on(built, capability):
    """Whether code built for `built` ("sm_80", "compute_90") runs on a GPU of that capability."""
    kind, _, digits = built.partition("_")
    digits = "".join(filter(str.isdigit, digits))
    major, minor = int(digits[:-1]), int(digits[-1])
    return (major, minor) <= capability and (kind == "compute" or major == capability[0])
