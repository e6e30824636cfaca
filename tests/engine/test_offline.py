"""HF_HUB_OFFLINE with a cache as the hub's client leaves it: a run from names alone, and halves that are never used."""

import functools
import hashlib
import json
import os
import subprocess
import sys

import pytest
from huggingface_hub import constants, scan_cache_dir
from photographs import photograph, write_upstream
from safetensors.torch import save_file
from tiny_models import save_tiny_llava

from napo import profiles
from napo.preflight import checks
from napo.workshop import artifacts, hub
from napo.workshop.files import BadInput

MODEL, ROWS, COMMIT = "tiny/llava", "tiny/rows", "a" * 40
RUN = f"""
import sys
from dataclasses import replace
from napo import profiles
from napo.comparison.cells import train_cell
from napo.noise import reference_logps
from napo.pairs import perturb
from napo.preflight import budget, checks
from napo.profiles import Cell, Lora, Perturbation
profile = profiles.get("paper_small", model={MODEL!r}, data={ROWS!r}, device="cpu", rows=6)
print(*budget.announced(profile, sys.argv[1]), sep="\\n")
profile = checks.prepared(profile, sys.argv[1])
assert profile.revision == profile.data_revision == {COMMIT!r}
profile = replace(profile, perturbation=Perturbation(max_new_tokens=4), lora=Lora(r=2))
perturb.pairs(profile, 0, sys.argv[1])
reference_logps.build(profile, 0, sys.argv[1])
train_cell(Cell("napo_paper"), profile, sys.argv[1])
"""


def cache(folder, kind, name, files):
    """Puts files into a hub cache `folder` as a download of the main branch would: blobs, links to them, a ref."""
    place = folder / f"{kind}s--{name.replace('/', '--')}"
    snapshot = place / "snapshots" / COMMIT
    for new in (place / "blobs", place / "refs", snapshot):
        new.mkdir(parents=True, exist_ok=True)
    (place / "refs" / "main").write_text(COMMIT)
    for file in files:
        blob = place / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """(cache, snapshot of the model, snapshot of the rows), whole; this process is offline and looks there."""
    monkeypatch.setattr("photographs.photograph", lambda name: photograph(name).resize((32, 24)))
    folder = tmp_path / "hub"
    model = cache(folder, "model", MODEL, sorted(save_tiny_llava(tmp_path / "model").iterdir()))
    rows = cache(folder, "dataset", ROWS, [write_upstream(tmp_path / "part-0.parquet", 10)])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "scan_cache_dir", functools.partial(scan_cache_dir, folder))
    return folder, model, rows


def prepared(tmp_path):
    said = []
    profile = profiles.get("paper", model=MODEL, data=ROWS, device="cpu")
    return checks.prepared(profile, tmp_path / "runs", said.append), said


def test_a_run_from_names_alone_without_network(cached, tmp_path):
    environment = os.environ | {"HF_HUB_CACHE": str(cached[0]), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"HF_DATASETS_CACHE": str(tmp_path / "datasets")}
    runs = tmp_path / "runs"
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(runs)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"model {MODEL} at {COMMIT[:12]}, all in the cache; licence: not stated" in done.stdout
    assert "6 training rows" in done.stdout and "predicted peak memory" in done.stdout
    record = json.loads((runs / "paper_small" / "revisions.json").read_text())
    assert record == {f"model {MODEL}": COMMIT, f"dataset {ROWS}": COMMIT}
    cell = runs / "paper_small" / "cells" / "napo_paper-b0-s0-f0"
    about = artifacts.provenance(cell / "adapter")
    assert about["settings"]["model"] == {"hub": MODEL, "revision": COMMIT, "commit": COMMIT}
    assert json.loads((cell / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == MODEL


def test_what_the_cache_holds_whole_is_fine(cached, tmp_path):
    profile, said = prepared(tmp_path)
    assert profile.revision == profile.data_revision == COMMIT and len(said) == 2


@pytest.mark.parametrize("which", ["model.safetensors", "part-0.parquet"])
def test_a_blob_that_was_cut_short_is_found_before_any_work(cached, tmp_path, which):
    _, model, rows = cached
    blob = ((model if which.startswith("model") else rows) / which).resolve()
    blob.write_bytes(blob.read_bytes()[:-100])
    with pytest.raises(BadInput, match=f"{which} is cut short.* get it again") as bad:
        prepared(tmp_path)
    assert "\n" not in str(bad.value) and not (tmp_path / "runs").exists()


def test_a_snapshot_of_which_a_shard_is_missing_is_found_before_any_work(cached, tmp_path):
    """What an interrupted download of a sharded model leaves behind, met again without network."""
    snapshot = cached[1]
    (snapshot / "model.safetensors").rename(snapshot / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (snapshot / checks.SHARDS_INDEX).write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(BadInput, match="model tiny/llava: the cache lacks model-00002-of-00002.safetensors"):
        prepared(tmp_path)
    save_file({}, snapshot / "model-00002-of-00002.safetensors")
    with pytest.raises(BadInput, match="model-00002-of-00002.safetensors is cut short or damaged"):
        prepared(tmp_path)


def test_a_repository_that_the_cache_does_not_hold_is_one_line(cached, tmp_path):
    profile = profiles.get("paper", model="tiny/other", data=ROWS, device="cpu")
    with pytest.raises(BadInput, match="model 'tiny/other': HF_HUB_OFFLINE is set and the cache has none: unset it"):
        checks.prepared(profile, tmp_path / "runs")
