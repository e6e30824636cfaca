"""Every Python of an attacked run loads this: attacked.py puts the folder on PYTHONPATH.

FAULT_KILL     "event pattern n": the process kills itself at the n-th such audit event whose path fits the pattern
FAULT_PROFILE  the smoke profile runs its cells in two worker processes and saves a checkpoint at every step
"""

import os
import signal
import sys
from fnmatch import fnmatch


def kill_at(event, pattern, number):
    """Kill this process at the `number`-th os.rename to, os.mkdir of, or opening for writing of a fitting path."""
    seen = 0

    def hook(name, arguments):
        nonlocal seen
        if name != event:
            return
        path = arguments[1] if name == "os.rename" else arguments[0]
        if name == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
            return
        if isinstance(path, str | os.PathLike) and fnmatch(str(path), pattern):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


if os.environ.get("FAULT_KILL"):
    event, pattern, number = os.environ["FAULT_KILL"].split()
    kill_at(event, pattern, int(number))
if os.environ.get("FAULT_PROFILE"):
    from dataclasses import replace

    from napo import profiles

    smoke = profiles.PROFILES["smoke"]
    profiles.PROFILES["smoke"] = replace(smoke, workers=2, training=replace(smoke.training, save_steps=1))
