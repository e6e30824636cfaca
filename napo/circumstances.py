"""What a result was made with: commit, package versions, device, time. Recorded with every artefact."""

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
SOURCES = ("napo", "notebooks", "pyproject.toml", "requirements.lock")  # what results depend on


def circumstances(root: Path) -> dict:
    """git_commit, git_dirty, versions, device and created (UTC), for a record; the first two None outside git."""
    commit, dirty = _git_state(root)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"git_commit": commit, "git_dirty": dirty, "versions": _versions(), "device": device(), "created": now}


@functools.cache
def _git_state(root: Path) -> tuple[str | None, bool | None]:
    """Commit of the repository at `root`, and whether SOURCES differ from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", *SOURCES))
    except (OSError, subprocess.SubprocessError):
        return None, None


@functools.cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def device() -> str:
    """Name of the GPU if this process uses one, else of the CPU; torch is not imported for it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return torch.cuda.get_device_name()
    model = platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    return f"cpu: {model}, {os.cpu_count()} threads"
