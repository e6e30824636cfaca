"""The environment of a result: commit, package versions, CPU path, threads, device, time. Every record holds it."""

import contextlib
import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

PACKAGES = "torch transformers peft bitsandbytes datasets numpy pandas pyarrow pillow".split()
COMPARED = PACKAGES[:4]  # other versions of these may give other numbers
AVX512 = {"avx512f", "avx512dq", "avx512bw", "avx512vl"}  # torch's AVX-512 kernels need all four
CPU_VARIABLES = ("ATEN_CPU_CAPABILITY", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
SOURCES = ("napo", "notebooks", "pyproject.toml", "requirements.lock")  # files that results depend on


def snapshot(root: Path) -> dict:
    """The environment as JSON-able fields. `git_commit` and `git_dirty` are None outside a git repository."""
    commit, dirty = _git_state(root)
    return {
        "git_commit": commit,
        "git_dirty": dirty,
        "versions": _versions(),
        "device": device(),
        "cpu": cpu_path(),
        "threads": threads(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def compared(record: dict) -> dict[str, str]:
    """What decides how the numbers of a record round: {"torch": "2.13.0", ..., "CPU path": "avx2"}."""
    versions = record.get("versions") or {}
    found = {name: versions[name] for name in COMPARED if name in versions}
    return found | ({"CPU path": record["cpu"]} if "cpu" in record else {})


def computed_on(device: str) -> dict:
    """The settings of an artefact that name where it is computed. The CPU path counts on a CPU only."""
    return {"device": device, "cpu": cpu_path() if device == "cpu" else None}


@functools.cache
def _git_state(root: Path) -> tuple[str | None, bool | None]:
    """Commit of the repository at `root`, and whether SOURCES differ from it."""
    command = ["git", "-C", str(root), "status", "--porcelain=v2", "--branch", "--", *SOURCES]
    try:
        state = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return None, None
    commit, *rest = state.splitlines()
    return commit.removeprefix("# branch.oid "), any(not line.startswith("# ") for line in rest)


@functools.cache
def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


@functools.cache
def cpu_path() -> str:
    """The kernels that libraries choose on this CPU, as "avx512+bf16": each path rounds in its own way.

    Environment variables that override the choice are part of it.
    """
    flags = set(_cpu_info("flags", "Features").split())
    path = "avx512" if flags >= AVX512 else "avx2" if "avx2" in flags else platform.machine()
    chosen = [f"{name}={os.environ[name]}" for name in CPU_VARIABLES if os.environ.get(name)]
    return " ".join([path + "+bf16" * ("avx512_bf16" in flags), *chosen])


def device() -> str:
    """Name of the GPU if this process uses one, else of the CPU. Does not import torch."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return torch.cuda.get_device_name()
    return f"cpu: {_cpu_info('model name') or platform.machine()}, {os.cpu_count()} threads"


def threads() -> int:
    """Threads of torch in this process; where torch is not imported, the threads that it may use."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return torch.get_num_threads()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return int(os.environ.get("OMP_NUM_THREADS") or usable)


def _cpu_info(*names: str) -> str:
    """The first field of /proc/cpuinfo with one of these names; "" where there is none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(names):
                return line.partition(":")[2].strip()
    return ""
