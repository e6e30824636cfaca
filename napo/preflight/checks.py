"""Checks of device, model, data and disk before any work starts; each failure is one line with its remedy.

Notebooks 01 to 04 and the runner call `prepared`, which also pins hub repositories: it records the commit of the first
use in runs/<profile>/revisions.json and keeps to it afterwards.
"""

import re
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow
import pyarrow.parquet as pq
import torch
from huggingface_hub.errors import GatedRepoError, HTTPError
from safetensors import SafetensorError, safe_open

from napo.engine import preferences
from napo.preflight import disk
from napo.workshop import artifacts, hub
from napo.workshop.files import BadInput, first_line, read_json, shown, write_json

BF16_CAPABILITY = (8, 0)  # Ampere: the first that computes in bfloat16
SMALLEST_GPU = 11 * 2**30  # bytes; the profile paper_small is made for a 12 GB card
REVISIONS = "revisions.json"
SHARDS_INDEX = "model.safetensors.index.json"


def prepared(profile, runs_dir="runs", say=print):
    """Check all that a profile needs, and pin its hub repositories to commits.

    Returns the profile with these commits; the profiles of the desk world need no check and come back unchanged.
    Raises BadInput for the first thing that is wrong.
    """
    if profile.needs_nothing:
        return profile
    if problem := device_problem(profile.device, profile.quantisation, gpu_facts()):
        raise BadInput(problem)
    known, found = pinned(profile, runs_dir), []
    wanted = {"model": (profile.model, profile.revision), "dataset": (profile.data, profile.data_revision)}
    for kind, (name, revision) in wanted.items():
        if not is_here(name, kind):
            commit = known.get(f"{kind} {name}")
            found.append(hub.look_up(str(name), kind, revision or commit))
            if not commit:
                say(_announced(found[-1], profile))
    for repository in found:
        check_cached(repository)
        check_access(repository)
    disk.check(profile, found, runs_dir)
    commits = {f"{repository.kind} {repository.name}": repository.commit for repository in found}
    if known | commits != known:
        write_json(known | commits, artifacts.run_folder(profile.name, REVISIONS, runs_dir=runs_dir))
    return at_commits(profile, commits)


def pinned(profile, runs_dir):
    """{"model NAME" or "dataset NAME": commit} that the profile's run recorded; {} if there is no whole record."""
    try:
        return dict(read_json(artifacts.run_folder(profile.name, REVISIONS, runs_dir=runs_dir)))
    except (BadInput, TypeError, ValueError):
        return {}


def at_commits(profile, commits):
    """The profile with the revisions that `commits` (as of `pinned`) names."""
    model, data = commits.get(f"model {profile.model}"), commits.get(f"dataset {profile.data}")
    return replace(profile, revision=model or profile.revision, data_revision=data or profile.data_revision)


def _announced(repository, profile):
    size = sum(disk.to_fetch(repository, profile).values()) / 2**30
    fetched = f"{size:.1f} GiB to fetch" if size else "all in the cache"
    return f"{repository.kind} {repository.name} at {repository.commit[:12]}, {fetched}; licence: {repository.licence}"


def is_here(name, kind):
    """Whether a model or data set lies on this machine, else it is a hub id. Raises BadInput for damaged files."""
    path = Path(name)
    if kind == "model" and path.is_dir():
        check_weights(path)
    elif kind == "dataset" and (path.exists() or path.suffix == ".parquet"):
        check_rows(path)
    else:
        return name == "desk"
    return True


def check_weights(folder):
    """Raises BadInput unless a model's folder has a configuration and every safetensors shard, undamaged."""
    if not (folder / "config.json").is_file():
        raise BadInput(f"{shown(folder)}: no config.json: give a model's folder by MODEL=...")
    index = folder / SHARDS_INDEX
    names = shards_of(index) if index.exists() else ["model.safetensors"]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        why = "; only safetensors are loaded, never pickles" if pickled else ""
        raise BadInput(f"{shown(folder)}: {', '.join(missing[:3])} missing{why}: get the model again")
    for name in names:
        check_safetensors(folder / name)


def shards_of(index):
    """Names of the files that an index of safetensors lists. Raises BadInput for one that is damaged."""
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
        if names and all(Path(name).name == name for name in names):
            return names
    except (KeyError, TypeError, AttributeError):
        pass
    raise BadInput(f"{shown(index)} does not list the model's files: get the model again")


def check_safetensors(file):
    """Raises BadInput for a truncated file: its length must be the one in its header."""
    try:
        with safe_open(file, framework="np") as tensors:
            whole = bool(tensors.keys())
    except SafetensorError:
        whole = False
    if not whole:
        raise BadInput(f"{shown(file)} is cut short or damaged: get it again")


def check_rows(source):
    """Raises BadInput unless a parquet file, or every one in a folder, is undamaged and has the required columns."""
    files = preferences.local_files(source)
    if not files:
        what = "no parquet file in this folder" if source.is_dir() else "no such file"
        raise BadInput(f"{shown(source)}: {what}: give rows by DATA=...")
    for file in files:
        check_parquet(file)


def check_parquet(file):
    """Raises BadInput for a truncated file or a pipe, or one without the columns of preference pairs."""
    if file.exists() and not file.is_file():
        raise BadInput(f"{shown(file)} is no plain file: give rows by DATA=...")
    try:
        columns = pq.read_schema(file).names
    except (pyarrow.ArrowException, OSError) as error:
        problem = f"is cut short, damaged or no parquet file ({first_line(error)[:120]})"
        raise BadInput(f"{shown(file)} {problem}: get it again") from None
    if missing := [name for name in preferences.REQUIRED if name not in columns]:
        raise BadInput(f"{shown(file)}: no column {', '.join(missing)} (found {', '.join(columns)})")


def check_access(repository):
    """Raises BadInput for a gated repository whose terms are not accepted. (The hub lists its files all the same.)"""
    if not repository.missing():
        return
    try:
        hub.HfApi().auth_check(repository.name, repo_type=repository.kind)
    except GatedRepoError:
        what = f"{repository.kind} {repository.name}"
        raise BadInput(f"{what} is gated: accept its terms on its page of the hub, then run `hf auth login`") from None
    except (HTTPError, OSError):
        return  # a mirror may not support the question; the download will tell


def check_cached(repository):
    """Raises BadInput for a truncated file in the cache and, without network, for a missing shard of the model."""
    known = {"revision": repository.commit, "repo_type": repository.kind}
    paths = {name: hub.try_to_load_from_cache(repository.name, name, **known) for name in repository.needed()}
    cached = {name: Path(path) for name, path in paths.items() if isinstance(path, str)}
    for path in cached.values():
        if path.suffix == ".safetensors":
            check_safetensors(path)
        elif path.suffix == ".parquet":
            check_parquet(path)
    shards = shards_of(cached[SHARDS_INDEX]) if SHARDS_INDEX in cached else ()
    if absent := sorted({*shards} - set(repository.files)):
        lacks = f"model {repository.name}: the cache lacks {', '.join(absent[:3])} and the hub was not asked"
        raise BadInput(f"{lacks}: get it again with network and without HF_HUB_OFFLINE")


@dataclass(frozen=True)
class GpuFacts:
    """The CUDA GPU of this machine, as torch and the driver report it."""

    build: str | None  # CUDA version of torch's build; None: a CPU build
    driver: str | None  # name and driver version of the first GPU, from nvidia-smi
    available: bool = False
    name: str = ""
    capability: tuple[int, int] = (0, 0)
    built_for: tuple[str, ...] = ()  # torch.cuda.get_arch_list()
    memory: int = 0  # bytes in total
    problem: str = ""  # error of a first 4-bit operation on the GPU


def gpu_facts():
    """GpuFacts of this machine; never raises."""
    facts = GpuFacts(torch.version.cuda, _driver())
    if not torch.cuda.is_available():
        return facts
    about = torch.cuda.get_device_properties(0)
    built_for, memory = tuple(torch.cuda.get_arch_list()), about.total_memory
    card = {"name": about.name, "capability": (about.major, about.minor), "built_for": built_for, "memory": memory}
    return replace(facts, available=True, problem=_first_operation(), **card)


def _driver():
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(answer.splitlines()), None)


def _first_operation():
    """The error when bitsandbytes quantises one weight on the GPU; "" if it works."""
    import bitsandbytes

    try:
        packed, state = bitsandbytes.functional.quantize_4bit(torch.ones(64, 64, device="cuda"), quant_type="nf4")
        bitsandbytes.functional.dequantize_4bit(packed, state).sum().item()
    except Exception as error:  # an incompatible library may raise anything
        return first_line(error)
    return ""


def device_problem(device, quantisation, facts):
    """Why `device` cannot run this `quantisation`, with the remedy, in one line; None if it can."""
    if device != "cuda":
        return None if device == "cpu" else f"unknown device {device!r}: use cpu or cuda"
    problem = _card_problem(quantisation, facts) if facts.available else _driver_problem(facts)
    return f"{problem}, or use PROFILE=desk, which needs no GPU" if problem else None


def _driver_problem(facts):
    """Why torch finds no GPU."""
    if not facts.driver:
        return "this profile needs one CUDA GPU and this machine has none: run it elsewhere"
    if facts.build is None:
        return f"there is a GPU ({facts.driver}) but torch is a CPU build: install torch with CUDA"
    why = f"torch is built for CUDA {facts.build}, which the driver of this GPU ({facts.driver}) does not run"
    return f"{why}: update the driver or install a torch for an older CUDA"


def _card_problem(quantisation, facts):
    """What is wrong with the GPU that torch found; None if nothing is."""
    name, kind = facts.name, "sm_{}{}".format(*facts.capability)
    if facts.built_for and not any(_runs_on(built, facts.capability) for built in facts.built_for):
        return f"{name} is {kind} and this torch is built for {', '.join(facts.built_for)}: install a torch for it"
    if facts.capability < BF16_CAPABILITY and "bfloat16" in (quantisation.dtype, quantisation.compute_dtype):
        return f"{name} ({kind}) is too old for bfloat16, which needs Ampere (sm_80) or newer: take another card"
    if facts.memory < SMALLEST_GPU:
        return (
            f"{name} has {facts.memory / 2**30:.1f} GiB, and even PROFILE=paper_small needs a 12 GB card: take another"
        )
    if facts.problem:
        return f"bitsandbytes does not work on {name} ({facts.problem}): install one built for CUDA {facts.build}"


def _runs_on(built, capability):
    """Whether code built for `built` ("sm_80", "compute_90") runs on a GPU of this capability."""
    kind, *digits = re.match(r"(\w+)_(\d+)(\d)", built).groups()
    version = tuple(map(int, digits))
    return version <= capability and (kind == "compute" or version[0] == capability[0])
