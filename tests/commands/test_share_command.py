"""Cards say what a run's records say; folders load in stock libraries; nothing leaves the machine unless asked."""

import json
import re
import shutil
from dataclasses import replace

import httpx2
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import load_dataset
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError
from peft import PeftModel
from tiny_cells import make_base, make_profile
from tiny_rows import make_row
from transformers import AutoModelForImageTextToText

from napo import profiles
from napo.commands import share
from napo.comparison.cells import cell_folder, train_cell
from napo.engine import preferences
from napo.evaluation import evaluate
from napo.preflight import checks
from napo.profiles import Cell
from napo.workshop.files import BadInput, MissingArtifact, content_hash, provenance, write_json

CELL = Cell("napo_paper")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(profile, runs folder) after training and evaluation of CELL."""
    folder = tmp_path_factory.mktemp("share")
    profile = replace(make_profile(folder), data="openbmb/RLAIF-V-Dataset", data_revision="c" * 40)
    make_base(profile, folder / "runs")
    train_cell(CELL, profile, folder / "runs")
    evaluate.evaluate_cell(CELL, profile, folder / "runs")
    return profile, folder / "runs"


class FakeHub:
    """HfApi that writes down what it is asked for."""

    def __init__(self, error=None):
        self.calls, self.error = [], error

    def __call__(self):
        return self

    def create_repo(self, name, **settings):
        if self.error:
            raise self.error
        self.calls.append(("create", name, settings))
        return f"https://example.org/{name}"

    def upload_folder(self, **settings):
        self.calls.append(("upload", settings["repo_id"], settings))


@pytest.fixture
def on_hub(monkeypatch):
    fake = FakeHub()
    monkeypatch.setattr(share, "HfApi", fake)
    return fake


def test_the_adapters_card_says_what_the_run_recorded(run, tmp_path):
    profile, runs = run
    folder = share.write_adapter(CELL, profile, tmp_path / "adapter", runs)
    text = (folder / "README.md").read_text()
    card = ModelCard(text)
    assert card.data.library_name == "peft" and card.data.datasets == ["openbmb/RLAIF-V-Dataset"]
    record = provenance(cell_folder(profile, CELL, runs) / "adapter")
    for said in (record["git_commit"], f"torch {record['versions']['torch']}", record["created"], record["device"]):
        assert said in text
    assert "c" * 40 in text and "CC BY-NC 4.0" in text and "convention of q | paper" in text and "γ | dynamic" in text
    assert "napo on language_biased (q by the mean margin, α 0.5)" in text and "| β | 0.5 |" in text
    assert "its numbers are not the paper's" in text


def test_the_cards_scores_are_those_of_the_run_with_intervals(run, tmp_path):
    profile, runs = run
    text = share.adapter_card(CELL, profile, runs)
    scores = pd.read_parquet(cell_folder(profile, CELL, runs) / "scores.parquet")
    mean = scores[scores["metric"] == "chosen_logps_per_token"]["value"].mean()
    (line,) = [line for line in text.splitlines() if "log-prob of chosen" in line]
    value, lo, hi = (float(x.replace("−", "-")) for x in re.findall(r"−?\d+\.\d+", line))
    assert value == pytest.approx(mean, abs=1e-3) and lo < value < hi


def test_an_adapter_that_was_not_evaluated_says_so_and_one_that_was_not_trained_is_refused(run, tmp_path):
    profile, runs = run
    make_base(profile, tmp_path)
    with pytest.raises(MissingArtifact, match="run notebook 03 first"):
        share.adapter_card(Cell("sft"), profile, tmp_path)
    train_cell(Cell("sft"), profile, tmp_path)
    assert "Not evaluated yet" in share.adapter_card(Cell("sft"), profile, tmp_path)


def test_the_folder_loads_in_stock_peft_and_names_no_place_of_ours(run, tmp_path):
    profile, runs = run
    folder = share.write_adapter(CELL, profile, tmp_path / "adapter", runs)
    stock = AutoModelForImageTextToText.from_pretrained(profile.model, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(stock, folder)
    assert any(p.abs().max() > 0 for name, p in adapted.named_parameters() if "lora_B" in name)
    for file in folder.rglob("*"):
        if file.suffix in (".md", ".json", ".jsonl"):
            assert str(tmp_path.parent) not in file.read_text(), file.name
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "llava"
    names = {file.name for file in folder.rglob("*")}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "README.md"}


def test_only_what_the_run_recorded_goes_out(run, tmp_path):
    """Files laid beside the adapter stay here, and so does an adapter that was changed."""
    profile, runs = run
    copy = tmp_path / "runs"
    shutil.copytree(runs, copy)
    adapter = cell_folder(profile, CELL, copy) / "adapter"
    (tmp_path / "secret").write_text("secret")
    (adapter / "notes.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(BadInput, match="damaged or was changed by hand"):
        share.write_adapter(CELL, profile, tmp_path / "adapter", copy)
    assert not (tmp_path / "adapter").exists()


def test_an_artefact_of_a_run_is_never_replaced(run, tmp_path):
    profile, runs = run
    adapter = cell_folder(profile, CELL, runs) / "adapter"
    before = content_hash(adapter)
    (adapter / "README.md").exists() or pytest.fail("peft writes a card, as an export has")
    with pytest.raises(BadInput, match="holds something else"):
        share.write_adapter(CELL, profile, adapter, runs)
    assert content_hash(adapter) == before


def test_places_of_pictures_on_this_machine_do_not_go_out(run, tmp_path):
    profile, _ = run
    pairs = share.pairs_of(profile, 0, tmp_path / "runs")
    pairs.parent.mkdir(parents=True)
    rows = [make_row(0) | {"image": {"bytes": b"x", "path": "/home/me/x.png"}, "split": "train"}]
    table = pa.Table.from_pylist(
        [row | {"is_noise_language_biased": None, "is_noise_vision_biased": None} for row in rows]
    )
    pq.write_table(table, pairs)
    with pytest.raises(BadInput, match="names places of pictures"):
        share.write_data(profile, tmp_path / "data", 0, tmp_path / "runs")


def test_the_data_load_in_stock_datasets_and_their_card_counts_them(run, tmp_path):
    profile, runs = run
    folder = share.write_data(profile, tmp_path / "data", 0, runs)
    rows = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    pairs = preferences.read(share.pairs_of(profile, 0, runs))
    assert len(rows) == len(pairs) and rows[0]["image"].size == pairs[0]["image"].size
    text = (folder / "README.md").read_text()
    assert (
        f"{len(pairs)}: 12 train, 4 heldout" in text
        and "CC BY-NC 4.0" in text
        and "answer with the image masked" in text
    )
    assert ModelCard(text).data.tags == ["napo", "preference", "modality-bias"]


def test_local_sources_are_named_without_their_place(run, tmp_path):
    profile, runs = run
    (tmp_path / "secret-project").mkdir()
    mine = tmp_path / "secret-project" / "mine.parquet"
    mine.write_bytes(b"")
    text = share.data_card(replace(profile, data=str(mine), data_revision=None), 0, runs)
    assert "mine.parquet" in text and "secret-project" not in text and "of your own files" in text


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-7b-hf"),
        ("/home/me/secret/llava", "llava"),  # as it was given to the run, moved away since
        ("/home/me/secret/llava/", "llava"),
        ("~/secret/llava", "llava"),
        ("../secret/llava", "llava"),
        ("secret/models/llava", "llava"),
        ("secret/rows.parquet", "rows.parquet"),
    ],
)
def test_a_place_is_never_named_even_where_nothing_lies_there_any_more(run, given, shown):
    """In a card's head, where the hub reads base_model and datasets, and in the lines that people copy."""
    profile, runs = run
    text = share.adapter_card(CELL, profile, runs)
    assert 'from_pretrained("llava"' in text and ModelCard(text).data.base_model == "llava"
    assert share.named(given) == shown and (given == shown or share.is_local(given))
    moved = share.adapter_card(CELL, replace(profile, model=given), runs)
    assert moved.count(f'from_pretrained("{shown}"') == 2 and f"| base model | {shown}" in moved
    assert "secret" not in moved
    assert ("of your own files" in share.source_licence(given)) == (given != shown)


def test_the_head_of_a_card_lists_no_data_set_of_ones_own(run):
    profile, runs = run
    text = share.adapter_card(CELL, replace(profile, data="/home/me/secret/rows"), runs)
    assert ModelCard(text).data.datasets is None and "secret" not in text and "| data | rows" in text


@pytest.fixture
def command(run, monkeypatch):
    """The command on the tiny profile."""
    profile, runs = run
    monkeypatch.setattr(share.profiles, "get", lambda name, **overrides: profile)
    return lambda *arguments: share.main([*map(str, arguments), "--runs-dir", str(runs)])


def test_nothing_is_pushed_unless_asked(command, on_hub, tmp_path):
    assert command("adapter", "--to", tmp_path / "a") == 0 and command("data", "--to", tmp_path / "d") == 0
    assert on_hub.calls == []


@pytest.mark.parametrize(("what", "kind"), [("adapter", "model"), ("data", "dataset")])
def test_a_push_uploads_the_folder_privately(command, on_hub, tmp_path, capsys, what, kind):
    assert command(what, "--to", tmp_path / "x", "--push", "me/thing") == 0
    (_, created, settings), (_, uploaded, upload) = on_hub.calls
    assert (created, uploaded) == ("me/thing", "me/thing")
    assert settings["repo_type"] == upload["repo_type"] == kind and settings["private"] is True
    assert upload["folder_path"] == str(tmp_path / "x") and (tmp_path / "x" / "README.md").exists()
    assert "https://example.org/me/thing" in capsys.readouterr().out


def test_a_push_that_fails_is_one_line(command, monkeypatch, tmp_path, capsys):
    response = httpx2.Response(401, request=httpx2.Request("POST", "https://example.org"))
    monkeypatch.setattr(share, "HfApi", FakeHub(HfHubHTTPError("401 Unauthorized\nmore", response=response)))
    assert command("adapter", "--to", tmp_path / "a", "--push", "me/thing") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot push" in line and "hf auth login" in line


def test_a_folder_of_something_else_is_never_replaced(command, tmp_path, capsys):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "precious.txt").write_text("x")
    assert command("adapter", "--to", tmp_path / "home") == 2 and command("data", "--to", tmp_path / "home") == 2
    assert "holds something else" in capsys.readouterr().err and (tmp_path / "home" / "precious.txt").read_text() == "x"
    assert command("adapter", "--to", tmp_path / "own") == 0 and command("adapter", "--to", tmp_path / "own") == 0


def test_commits_come_from_the_runs_record(tmp_path):
    profile = profiles.get("paper")
    assert checks.pinned(profile, tmp_path) == {} and checks.at_commits(profile, {}) == profile
    names = {f"model {profile.model}": "a" * 40, f"dataset {profile.data}": "b" * 40}
    write_json(names, tmp_path / "paper" / "revisions.json")
    found = checks.at_commits(profile, checks.pinned(profile, tmp_path))
    assert (found.revision, found.data_revision) == ("a" * 40, "b" * 40)


def test_unknown_method_is_one_line(capsys, tmp_path):
    assert share.main(["adapter", "--to", str(tmp_path / "x"), "--method", "nope"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown method")
    with pytest.raises(BadInput):
        share.check_replaceable(__file__, "x")
