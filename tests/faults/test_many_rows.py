"""20,000 rows load in at most 1 GiB of memory, whichever way the file is read."""

import io
import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

ROWS = 20_000
LIMIT = 1024  # MiB
LOAD = """
import json, resource, sys, time
from napo.engine import preferences
started = time.monotonic()
rows = preferences.load_source(sys.argv[1])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
print(json.dumps({"rows": len(rows), "mib": peak, "seconds": round(time.monotonic() - started)}))
"""


def jpeg(number, size, rng):
    """A JPEG of noise over a gradient, about as large in bytes as a photograph of that size."""
    noise = rng.integers(0, 40, (size, size, 3), dtype=np.uint8) + np.arange(size, dtype=np.uint8)[:, None] % 200
    buffer = io.BytesIO()
    Image.fromarray(noise + np.uint8(number % 16)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def write(path, size):
    """ROWS rows in upstream's schema, of a hundred pictures; 1,000 rows a row group as the hub's files have them."""
    rng = np.random.default_rng(0)
    pictures, writer = [jpeg(i, size, rng) for i in range(100)], None
    for start in range(0, ROWS, 1000):
        rows = [
            {
                "image": {"bytes": pictures[i % 100], "path": f"{i}.jpg"},
                "question": f"What is shown in picture {i}?",
                "chosen": f"A gradient with noise, number {i}. " * 8,
                "rejected": f"A polar bear, number {i}. " * 8,
            }
            for i in range(start, start + 1000)
        ]
        table = pa.Table.from_pylist(rows)
        writer = writer or pq.ParquetWriter(path, table.schema, use_dictionary=False)
        writer.write_table(table)
    writer.close()


@pytest.mark.parametrize("size", [300, 420], ids=["read into memory", "mapped from disk"])
def test_20_000_rows_load_in_one_gibibyte(everything, root, tmp_path, size, monkeypatch, count):
    file = tmp_path / "rows.parquet"
    write(file, size)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    command = [sys.executable, "-c", LOAD, str(file)]
    measured = json.loads(subprocess.check_output(command, cwd=root, text=True).splitlines()[-1])
    kind = f"20,000 rows, {file.stat().st_size / 1e6:,.0f} MB"
    count(f"{kind}: MiB at the peak", measured["mib"])
    count(f"{kind}: seconds", measured["seconds"])
    file.unlink()
    assert measured["rows"] == ROWS and measured["mib"] <= LIMIT
