"""What is found before any work: each in one line with a remedy, and what is fine passes without a word."""

import json
import os
import re
import types
from dataclasses import replace
from pathlib import Path

import httpx2
import pyarrow.parquet as pq
import pytest
from huggingface_hub import errors
from photographs import photograph, write_upstream
from tiny_models import save_tiny_llava

from napo import profiles
from napo.engine import preferences
from napo.pairs import perturb
from napo.preflight import checks, disk
from napo.workshop import artifacts, hub
from napo.workshop.files import BadInput, write_json

COMMIT, OTHER = "a" * 40, "b" * 40
GOOD = checks.GpuFacts(
    build="13.0", driver="A card, 580.1", available=True, name="A card", capability=(8, 6), built_for=("sm_80", "sm_90")
)
GOOD = replace(GOOD, memory=24 * 2**30)
BF16 = profiles.PROFILES["paper"].quantisation


def response(status=404):
    return httpx2.Response(status, request=httpx2.Request("GET", "https://example.org/api"))


class FakeHub:
    """HfApi's repo_info for one model and one data set; `raises` instead where it is given."""

    def __init__(self, raises=None, files=None, commit=COMMIT, license="mit", access=None):
        self.raises, self.files, self.commit, self.license, self.asked = raises, files, commit, license, []
        self.access = access

    def auth_check(self, name, repo_type):
        self.asked.append(("access", name, repo_type))
        if self.access:
            raise self.access

    def __call__(self):
        return self

    def repo_info(self, name, repo_type, revision, files_metadata):
        self.asked.append((repo_type, name, revision))
        if self.raises:
            raise self.raises
        files = self.files or (
            {"model.safetensors": 10, "config.json": 2} if repo_type == "model" else {"a.parquet": 5}
        )
        siblings = [types.SimpleNamespace(rfilename=file, size=size) for file, size in files.items()]
        return types.SimpleNamespace(
            sha=revision or self.commit, siblings=siblings, card_data={"license": self.license}
        )


@pytest.fixture
def on_hub(monkeypatch, tmp_path):
    """Puts a FakeHub in the place of the real one, with an empty cache."""

    def put(**settings):
        fake = FakeHub(**settings)
        monkeypatch.setattr(hub, "HfApi", fake)
        monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *a, **k: None)
        monkeypatch.setattr(hub, "scan_cache_dir", lambda: types.SimpleNamespace(repos=()))
        return fake

    return put


def refusal(call, *arguments, **settings):
    with pytest.raises(BadInput) as bad:
        call(*arguments, **settings)
    assert "\n" not in str(bad.value)
    return str(bad.value)


# ---- the device


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (checks.GpuFacts(None, None), "this machine has none"),
        (checks.GpuFacts(None, "A card, 580"), "torch is a CPU build: install torch with CUDA"),
        (checks.GpuFacts("13.0", "A card, 470"), "built for CUDA 13.0.*update the driver"),
        (replace(GOOD, capability=(12, 0)), "A card is sm_120 and this torch is built for sm_80, sm_90"),
        (replace(GOOD, capability=(7, 5), built_for=("sm_75",)), "too old for bfloat16"),
        (replace(GOOD, memory=8 * 2**30), "has 8.0 GiB, and even PROFILE=paper_small needs a 12 GB card"),
        (
            replace(GOOD, problem="no kernel image"),
            r"bitsandbytes does not work on A card \(no kernel image\).*CUDA 13.0",
        ),
    ],
)
def test_each_problem_of_a_gpu_is_told_with_its_remedy(facts, expected):
    problem = checks.device_problem("cuda", BF16, facts)
    assert re.search(expected, problem) and "\n" not in problem


def test_a_gpu_that_does_is_fine_and_a_cpu_needs_none():
    assert checks.device_problem("cuda", BF16, GOOD) is None
    assert checks.device_problem("cpu", BF16, checks.GpuFacts(None, None)) is None
    assert "unknown device 'tpu'" in checks.device_problem("tpu", BF16, GOOD)
    old = replace(GOOD, capability=(7, 5), built_for=("sm_75",))
    assert checks.device_problem("cuda", replace(BF16, dtype="float32", compute_dtype="float32"), old) is None


def test_code_for_an_older_card_of_the_same_kind_runs_and_ptx_runs_on_later_ones():
    assert checks._runs_on("sm_80", (8, 9)) and not checks._runs_on("sm_90", (8, 9))
    assert not checks._runs_on("sm_80", (9, 0)) and checks._runs_on("compute_80", (12, 0))
    assert checks._runs_on("sm_90a", (9, 0))


def test_this_machines_facts_can_be_had():
    facts = checks.gpu_facts()
    assert facts.available == bool(facts.name)


def test_a_profile_for_a_gpu_is_refused_on_a_machine_without(monkeypatch, on_hub):
    fake = on_hub()
    monkeypatch.setattr(checks, "gpu_facts", lambda: checks.GpuFacts(None, None))
    assert "needs one CUDA GPU" in refusal(checks.prepared, profiles.get("paper"))
    assert fake.asked == []


# ---- the hub


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.GatedRepoError("x", response=response(403)), "is gated: accept its terms.*hf auth login"),
        (
            errors.RepositoryNotFoundError("x", response=response()),
            "no model 'some/model', neither here nor on the hub",
        ),
        (errors.RevisionNotFoundError("x", response=response()), "has no revision"),
        (errors.OfflineModeIsEnabled("x"), "HF_HUB_OFFLINE is set and the cache has none: unset it"),
        (httpx2.ConnectError("no route"), "the hub cannot be reached|HF_HUB_OFFLINE is set"),
    ],
)
def test_a_repository_that_cannot_be_had_is_one_line(on_hub, error, expected):
    on_hub(raises=error)
    assert re.search(expected, refusal(hub.look_up, "some/model"))


def test_without_network_what_the_cache_holds_is_used(on_hub, monkeypatch, tmp_path):
    on_hub(raises=httpx2.ConnectError("no route"))
    file = types.SimpleNamespace(file_path=tmp_path / "model.safetensors", size_on_disk=7)
    revision = types.SimpleNamespace(refs={"main"}, commit_hash=COMMIT, snapshot_path=tmp_path, files=[file])
    cached = types.SimpleNamespace(repo_id="some/model", repo_type="model", revisions=[revision])
    monkeypatch.setattr(hub, "scan_cache_dir", lambda: types.SimpleNamespace(repos=[cached]))
    found = hub.look_up("some/model")
    assert found.commit == COMMIT and found.files == {"model.safetensors": 7}
    assert hub.look_up("some/model", revision=COMMIT[:8]).commit == COMMIT
    assert "the cache has none" in refusal(hub.look_up, "some/model", revision="v2")


def test_pickles_are_not_loaded(on_hub):
    on_hub(files={"pytorch_model.bin": 10})
    assert "has no .safetensors file: only safetensors are loaded" in refusal(hub.look_up, "some/model")


def test_licences_are_known_or_read_off_the_card():
    assert "CC BY-NC 4.0" in hub.licence("openbmb/RLAIF-V-Dataset")
    assert "CC BY-NC 4.0" in hub.licence("Starrrrrry/RLAIF-V-Bias-Dataset")
    assert hub.licence("x/y", types.SimpleNamespace(card_data={"license": "mit"})) == "mit"
    assert "not stated" in hub.licence("x/y")


def test_commits_of_the_first_use_are_recorded_shown_with_licence_and_used_again(on_hub, tmp_path, capsys):
    fake = on_hub()
    profile = profiles.get("paper", device="cpu")
    pinned = checks.prepared(profile, tmp_path)
    assert (pinned.revision, pinned.data_revision) == (COMMIT, COMMIT)
    said = capsys.readouterr().out
    assert "CC BY-NC 4.0" in said and "Llama 2" in said and COMMIT[:12] in said and "GiB to fetch" in said
    record = json.loads((tmp_path / "paper" / "revisions.json").read_text())
    assert record == {"model llava-hf/llava-1.5-7b-hf": COMMIT, "dataset openbmb/RLAIF-V-Dataset": COMMIT}
    fake.commit = OTHER  # the repository has moved on
    again = checks.prepared(profile, tmp_path)
    assert (again.revision, again.data_revision) == (COMMIT, COMMIT) and capsys.readouterr().out == ""
    asked = checks.prepared(replace(profile, revision="v1"), tmp_path)
    assert asked.revision == "v1" and ("model", profile.model, "v1") in fake.asked


@pytest.mark.parametrize("text", ["", '{"model', "[1]", "null"])
def test_a_damaged_record_of_commits_is_made_again(on_hub, tmp_path, text, capsys):
    on_hub()
    profile = profiles.get("paper", device="cpu")
    checks.prepared(profile, tmp_path)
    whole = (tmp_path / "paper" / "revisions.json").read_bytes()
    (tmp_path / "paper" / "revisions.json").write_text(text)
    capsys.readouterr()
    assert checks.prepared(profile, tmp_path).revision == COMMIT and COMMIT[:12] in capsys.readouterr().out
    assert (tmp_path / "paper" / "revisions.json").read_bytes() == whole


def test_too_little_disk_is_found_before_the_download(on_hub, tmp_path):
    on_hub(files={"model.safetensors": 2**60, "a.parquet": 1})
    line = refusal(checks.prepared, profiles.get("paper", device="cpu"), tmp_path)
    assert "the downloads take" in line and "HF_HOME" in line


def test_a_gated_repository_whose_files_the_hub_lists_is_found_before_the_download(on_hub, tmp_path):
    on_hub(access=errors.GatedRepoError("x", response=response(403)))
    line = refusal(checks.prepared, profiles.get("paper", device="cpu"), tmp_path)
    assert re.search("model llava-hf/llava-1.5-7b-hf is gated: accept its terms.*hf auth login", line)
    on_hub(access=errors.RepositoryNotFoundError("a mirror that does not know the question", response=response()))
    assert checks.prepared(profiles.get("paper", device="cpu"), tmp_path).revision == COMMIT


def test_only_the_files_that_hold_the_rows_count_for_the_disk(on_hub, tmp_path, capsys):
    shards = {f"part-{i:02}.parquet": 2**30 for i in range(14)}
    on_hub(files=shards | {"model.safetensors": 2**30})
    repository = hub.look_up("openbmb/RLAIF-V-Dataset", "dataset")
    first = [f"part-{i:02}.parquet" for i in range(3)]
    assert list(disk.to_fetch(repository, profiles.get("paper", rows=10_000))) == first  # 2 and one to be sure
    assert len(disk.to_fetch(repository, profiles.get("paper", rows="all"))) == 14
    unknown = replace(repository, name="some/data")
    assert len(disk.to_fetch(unknown, profiles.get("paper", rows=10))) == 14


def test_the_copies_that_are_mapped_count_for_the_disk_until_the_pairs_are_there(on_hub, tmp_path, monkeypatch):
    """Fetched once, written once as pairs.parquet, mapped from a copy of each: four times the size on one disk."""
    on_hub(files={"part.parquet": 2**30, "model.safetensors": 2**30})
    profile = profiles.get("paper", device="cpu")
    usage = types.SimpleNamespace(free=hub.MARGIN + 5 * 2**30)  # a model and four times the data: just so
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda place: usage)
    checks.prepared(profile, tmp_path)
    usage.free -= 1
    line = refusal(checks.prepared, profile, tmp_path)
    assert "the copies that are mapped take 2.0 GiB and 4.0 GiB are left" in line and "ROWS" in line
    artifacts.run_folder("paper", "base-0", runs_dir=tmp_path).mkdir(parents=True)
    artifacts.run_folder("paper", "base-0", "pairs.parquet", runs_dir=tmp_path).write_bytes(b"")
    checks.prepared(profile, tmp_path)


def test_a_mapped_copy_is_as_large_as_the_file_it_is_of(tmp_path, monkeypatch):
    """What the test above takes for granted."""
    monkeypatch.setattr(preferences, "IN_MEMORY", 0)
    monkeypatch.setattr(preferences.datasets.config, "HF_DATASETS_CACHE", tmp_path / "copies")
    file = write_upstream(tmp_path / "a.parquet", 8, note=lambda i: "")
    rows = preferences.load_source(file).cast_column("image", preferences.datasets.Image(decode=False))
    copied = sum(Path(cached["filename"]).stat().st_size for cached in rows.cache_files)
    assert copied == pytest.approx(8 / len({r["image"]["path"] for r in rows}) * file.stat().st_size, rel=0.2)


def test_the_desk_world_needs_nothing(on_hub, tmp_path):
    fake = on_hub(raises=AssertionError("asked the hub"))
    desk = profiles.get("desk")
    assert checks.prepared(desk, tmp_path) is desk and fake.asked == [] and not list(tmp_path.iterdir())


# ---- local folders and half files


def test_a_whole_local_model_and_local_rows_pass(on_hub, tmp_path):
    fake = on_hub()
    save_tiny_llava(tmp_path / "llava")
    rows = write_upstream(tmp_path / "x.parquet", 2)
    profile = profiles.get("paper", model=str(tmp_path / "llava"), data=str(rows), device="cpu")
    assert checks.prepared(profile, tmp_path / "runs") == profile and fake.asked == []


def test_a_half_downloaded_shard_is_never_used(tmp_path):
    folder = save_tiny_llava(tmp_path / "llava")
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for cut in (0, 5, 200, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:cut])
        assert "model.safetensors is cut short or damaged" in refusal(checks.check_weights, folder)
    file.write_bytes(whole)
    checks.check_weights(folder)
    file.rename(folder / "pytorch_model.bin")
    assert "only safetensors are loaded, never pickles" in refusal(checks.check_weights, folder)
    write_json({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}, folder / checks.SHARDS_INDEX)
    (folder / "model-1.safetensors").write_bytes(whole)
    assert "model-2.safetensors missing" in refusal(checks.check_weights, folder)
    for damaged in ("[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 7}}', '{"weight_map": {"a": "../b"}}'):
        (folder / checks.SHARDS_INDEX).write_text(damaged)
        assert "does not list the model's files: get the model again" in refusal(checks.check_weights, folder)
    (folder / "config.json").unlink()
    assert "no config.json" in refusal(checks.check_weights, folder)


def test_local_rows_that_are_missing_cut_short_or_no_pairs_are_found_before_any_work(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "none.parquet: no such file" in refusal(checks.is_here, tmp_path / "none.parquet", "dataset")
    assert "empty: no parquet file in this folder" in refusal(checks.is_here, tmp_path / "empty", "dataset")
    file = write_upstream(tmp_path / "two" / "x.parquet", 2) if (tmp_path / "two").mkdir() is None else None
    assert checks.is_here(file, "dataset") and checks.is_here(file.parent, "dataset")
    os.mkfifo(tmp_path / "pipe.parquet")
    assert "pipe.parquet is no plain file" in refusal(checks.is_here, tmp_path / "pipe.parquet", "dataset")
    whole = file.read_bytes()
    for cut in (0, 3, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:cut])
        assert "x.parquet is cut short, damaged or no parquet file" in refusal(checks.is_here, file.parent, "dataset")
    write_upstream(file, 2, answer=str)
    checks.is_here(file, "dataset")
    pq.write_table(pq.read_table(file).drop_columns(["chosen", "image"]), file)
    assert "x.parquet: no column image, chosen (found ds_name" in refusal(checks.is_here, file, "dataset")


@pytest.fixture
def shards(tmp_path, monkeypatch, on_hub):
    """A data set of three parquet files on a fake hub; returns the list of files that were fetched."""
    monkeypatch.setattr("photographs.photograph", lambda name: photograph(name).resize((32, 24)))
    (tmp_path / "there").mkdir()
    paths = [write_upstream(tmp_path / "there" / f"part-{i}.parquet", 4) for i in range(3)]
    fetched = []

    def download(name, file, repo_type, revision):
        fetched.append(file)
        return str(tmp_path / "there" / file)

    on_hub(files={path.name: path.stat().st_size for path in paths})
    monkeypatch.setattr(hub, "hf_hub_download", download)
    return fetched


def test_only_the_files_that_hold_the_rows_are_fetched(shards):
    assert len(preferences.load_source("some/data", rows=3)) == 3 and shards == ["part-0.parquet"]
    rows = preferences.load_source("some/data", rows=6)
    assert len(rows) == 6 and rows[5]["row_id"] == "part-1.parquet:1" and len(shards) == 3
    assert len(preferences.load_source("some/data")) == 12


@pytest.mark.parametrize("same_size", [False, True])
def test_a_parquet_file_that_was_cut_short_is_named(shards, tmp_path, same_size):
    file = tmp_path / "there" / "part-0.parquet"
    half = file.read_bytes()[: file.stat().st_size // 2]
    file.write_bytes(half + b"\0" * (file.stat().st_size - len(half) if same_size else 0))
    line = refusal(preferences.load_source, "some/data")
    assert "part-0.parquet" in line and ("cut short" if same_size else "bytes instead of") in line
    assert "run the same command again" in line


def test_pairs_remember_which_commit_their_data_had(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(perturb.models, "load", lambda *a, **k: pytest.fail("a model was loaded"))
    monkeypatch.setattr(perturb, "_answers", lambda rows, kind, *a: [f"{kind} {i}" for i in range(len(rows))])
    profile = replace(
        profiles.get("paper", model=str(save_tiny_llava(tmp_path / "llava")), data="some/data", device="cpu")
    )
    profile = checks.prepared(profile, tmp_path / "runs")
    path = perturb.pairs(profile, 0, tmp_path / "runs")
    assert artifacts.provenance(path)["settings"]["data"] == ["some/data", COMMIT]
