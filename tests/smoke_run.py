"""One finished smoke run of the six notebooks for the whole suite: made by the first test that needs it."""

import fcntl
import os
import pickle
import subprocess
import sys


def finished(root, tmp_path_factory):
    """(folder of the runs, finished process). The processes of pytest-xdist share it: the others wait. Copy it."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    runs, said = base / "smoke-run" / "runs", base / "smoke-run" / "process"
    runs.parent.mkdir(exist_ok=True)
    with open(base / "smoke-run" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            command = [sys.executable, "-m", "napo", "run", "--profile", "smoke", "--runs-dir", str(runs)]
            how = {"cwd": root.parent, "capture_output": True, "text": True, "timeout": 900}
            ended = subprocess.run(command, **how, env=dict(os.environ))
            said.write_bytes(pickle.dumps(ended))
    return runs, pickle.loads(said.read_bytes())
