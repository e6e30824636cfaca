"""Host memory for data of the paper's size: `python benchmarks/rows.py`; results in benchmarks/results/rows.json.

Writes a parquet file with RLAIF-V-Bias's columns and as many rows as RLAIF-V has (small images, made here). A process
of its own then makes the calls of notebook 01 and of a training: check every row, write pairs.parquet, read it back,
draw rows at random. Memory counts from the end of that process's imports: `rss` with the mapped pages of files, which
the system takes back when it needs them, `anonymous` without.
"""

import argparse
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from napo import profiles  # noqa: E402
from napo.engine import preferences  # noqa: E402
from napo.pairs import perturb  # noqa: E402
from napo.workshop import environment  # noqa: E402
from napo.workshop.files import write_json  # noqa: E402

ROWS = 83_132  # of RLAIF-V (paper, section 3.1)
TARGET = 2.0  # GiB added, asked for in the project's plan
GROUP = 10_000  # rows of a row group, more than most writers put into one
DRAWN = 2000  # rows read at random, as a shuffled epoch does


def write_source(path, n_rows, side, seed=0):
    """A parquet file of n_rows records; every image is a JPEG of side x side pixels of noise, no two the same bytes."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(64):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(buffer, "JPEG", quality=85)
        images.append(buffer.getvalue())
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))]
        + [(name, pa.string()) for name in (*preferences.TEXTS, "question_only", "image_only", "idx")]
    )
    with pq.ParquetWriter(str(path), schema, compression="none", use_dictionary=False) as writer:
        for start in range(0, n_rows, GROUP):
            numbers = range(start, min(start + GROUP, n_rows))
            writer.write_table(
                pa.Table.from_pylist([_record(i, images) for i in numbers], schema), row_group_size=GROUP
            )


def _record(i, images):
    words = " ".join(["word"] * (40 + i % 60))
    return {
        "image": {"bytes": images[i % len(images)] + i.to_bytes(4, "little"), "path": f"{i}.jpg"},
        "question": f"What is shown in picture {i}?",
        "chosen": f"chosen {i} {words}",
        "rejected": f"rejected {i} {words}",
        "question_only": f"prior {i} {words}",
        "image_only": f"details {i} {words}",
        "idx": str(i),
    }


class Watch:
    """The largest memory of this process while it is watched, in bytes above `start` (a dict of `resident`)."""

    def __init__(self, start, pause=0.02):
        self.start, self.peak, self.going = start, dict.fromkeys(start, 0), True
        self.thread = threading.Thread(target=self._look, args=(pause,), daemon=True)
        self.thread.start()

    def _look(self, pause):
        while self.going:
            self.peak = {name: max(self.peak[name], value - self.start[name]) for name, value in resident().items()}
            time.sleep(pause)

    def end(self):
        self.going = False
        self.thread.join()
        return {name: round(value / 2**30, 3) for name, value in self.peak.items()}


def resident():
    """Bytes of this process in memory: dict rss, anonymous."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = {line.partition(":")[0]: line.split()[1] for line in lines if line.startswith(("VmRSS", "RssAnon"))}
    return {"rss": 1024 * int(fields["VmRSS"]), "anonymous": 1024 * int(fields["RssAnon"])}


class NoModel:
    """Stands for the check that needs a model's processor: no row is refused."""

    def __call__(self, row):
        return None

    special_token = __call__


def stages(source, n_rows, folder):
    """Each step's seconds and the most memory then above what the imports took, in GiB: dict name -> {seconds, rss,
    anonymous}."""
    imported = resident()
    profile = profiles.get("paper", model="none", data=str(source), rows=n_rows, device="cpu")
    profile = replace(profile, rows=n_rows - profile.heldout_rows) if n_rows > profile.heldout_rows else profile
    perturb.models.identity = lambda *_: "none"  # the rows bring their biased answers: no model is asked
    perturb.row_check.of_base = lambda *_: NoModel()
    out, made = {}, {}

    def pairs():
        made["path"] = perturb.pairs(profile, 0, runs_dir=folder / "runs")

    def train_rows():
        made["rows"] = preferences.part(preferences.read(made["path"]), "train")

    def draw():
        rng = np.random.default_rng(0)
        for i in rng.integers(0, len(made["rows"]), min(DRAWN, len(made["rows"]))):
            assert made["rows"][int(i)]["image"].size[0] > 0

    for name, step in (("check, write pairs.parquet", pairs), ("read it", train_rows), ("draw rows", draw)):
        watch, started = Watch(imported), time.monotonic()
        step()
        out[name] = {"seconds": round(time.monotonic() - started, 1), **watch.end()}
    assert len(made["rows"]) == profile.rows
    return out


def measure(n_rows, side):
    """The report, without the machine."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_source(folder / "rows.parquet", n_rows, side)
        variables = os.environ | {"HF_DATASETS_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, __file__, "--child", str(folder), "--rows", str(n_rows)]
        ended = subprocess.run(command, env=variables, check=True, capture_output=True, text=True)
        measured = json.loads(ended.stdout.splitlines()[-1])
        size = (folder / "rows.parquet").stat().st_size
    most = max(stage["rss"] for stage in measured["stages"].values())
    return {"rows": n_rows, "image_side": side, "file_gib": round(size / 2**30, 3), **measured, "most_added_gib": most}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--side", type=int, default=128, help="pixels of an image's side (default 128)")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "rows.json")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        before = resident()
        done = stages(asked.child / "rows.parquet", asked.rows, asked.child)
        print(json.dumps({"imports_gib": round(before["rss"] / 2**30, 3), "stages": done}))
        return
    report = {
        "target_gib": TARGET,
        "machine": {"processor": environment.device(), "platform": platform.platform()},
        **environment.snapshot(ROOT),
        **measure(asked.rows, asked.side),
    }
    write_json(report, asked.output)
    print(f"{report['rows']} rows, {report['file_gib']} GiB: {report['most_added_gib']} GiB of host memory added")


if __name__ == "__main__":
    main()
