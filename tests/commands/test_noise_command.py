"""`napo noise`: from a preference file to posterior, rate, suspects and figure; bad input in one line."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from tiny_models import save_tiny_llava
from tiny_rows import make_row

from napo.commands import noise
from napo.engine import logps, models, preferences, tree_attention
from napo.noise import evidence
from napo.profiles import Quantisation
from napo.workshop.files import read_json


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(model folder, pairs file of 24 rows without row ids or vision-biased answers, out folder after one run)."""
    folder = tmp_path_factory.mktemp("check")
    save_tiny_llava(folder / "llava")
    rows = [make_row(i, chosen=f"a cat, number {i}", rejected="a dog" + "!" * (i % 7)) for i in range(24)]
    rows[3]["language_biased"] = rows[3]["chosen"]
    names = ("row_id", "image", "question", "chosen", "rejected", "language_biased")
    preferences.write([{name: row[name] for name in names} for row in rows], folder / "pairs.parquet")
    command = [str(folder / "pairs.parquet"), "--model", str(folder / "llava"), "--out", str(folder / "out")]
    assert noise.main([*command, "--device", "cpu"]) == 0
    return folder / "llava", folder / "pairs.parquet", folder / "out", rows


def test_every_row_and_kind_has_its_evidence_and_a_posterior(world):
    model_folder, _, out, rows = world
    table = pd.read_parquet(out / "posterior.parquet")
    assert len(table) == 48 and set(table["kind"]) == {"rejected", "language_biased"}
    model, processor = models.load(str(model_folder), Quantisation(four_bit=False))
    seen = logps.measure(model, processor, rows, ("chosen", "rejected"), packed=False)
    rejected = table[table["kind"] == "rejected"]
    np.testing.assert_allclose(rejected["raw_margin"], seen["logps_chosen"] - seen["logps_rejected"], atol=1e-3)
    assert (rejected["evidence"] == -rejected["raw_margin"]).all()
    plain = logps.measure(model, processor, rows, ("chosen", "language_biased"), packed=False)
    known = evidence.measure(model, processor, rows, plain, "language_biased")
    biased = table[table["kind"] == "language_biased"]
    np.testing.assert_allclose(biased["evidence"], known["evidence"], atol=1e-3)
    assert table["posterior"].between(0, 1).all()
    same = table[(table["row_id"] == rows[3]["row_id"]) & (table["kind"] == "language_biased")]
    assert same["posterior"].item() == 1 and same["raw_margin"].abs().item() < 1e-3


def test_rates_page_and_figure_belong_to_the_posterior(world):
    _, _, out, rows = world
    table, rates = pd.read_parquet(out / "posterior.parquet"), read_json(out / "rates.json")
    for kind, rate in rates.items():
        assert rate["rate"] == pytest.approx(table.loc[table["kind"] == kind, "posterior"].mean())
        assert 0 <= rate["lo"] <= rate["hi"] <= 1 and rate["rows"] == 24
    page = (out / "noise.md").read_text()
    assert (
        "## Most suspect: language_biased" in page
        and f"| {rows[3]['row_id']} |" not in page.split("language_biased |")[-1]
    )
    assert rates["language_biased"]["equal"] == 1 and rates["rejected"]["equal"] == 0
    assert "| 24 | 1 |" in page and "| 24 | 0 |" in page
    assert "no truth is known" in page and (out / "noise.png").read_bytes().startswith(b"\x89PNG")


def test_a_model_of_a_family_that_packing_does_not_know_can_be_asked_too(world, tmp_path, monkeypatch):
    model_folder, pairs, out, _ = world
    monkeypatch.delitem(tree_attention.FAMILIES, "llava")
    rates = noise.check(pairs, str(model_folder), tmp_path / "out")
    assert rates == read_json(out / "rates.json")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["absent.parquet", "--model", "m"], "absent.parquet: no such file"),
        (["x.parquet"], "--model"),
        (["x.parquet", "--model", "m", "--rows", "-1"], "--rows must be at least 0"),
        (["x.parquet", "--model", "m", "--mask", "pink"], "invalid choice"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(arguments, text, capsys):
    assert noise.main([*arguments, "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert text in said and said.startswith("error: ") and said.count("\n") == 1


def test_a_row_without_an_answer_and_too_few_rows_are_named(world, tmp_path, capsys):
    model_folder, _, _, rows = world
    empty = [{**row, "vision_biased": "" if i == 5 else "red"} for i, row in enumerate(rows)]
    for name, part, text in (("few", rows[:4], "4 rows, an estimate needs"), ("empty", empty, "has no vision_biased")):
        preferences.write(part, tmp_path / f"{name}.parquet")
        out = tmp_path / "out"
        assert noise.main([str(tmp_path / f"{name}.parquet"), "--model", str(model_folder), "--out", str(out)]) == 2
        assert text in capsys.readouterr().err and not out.exists()


def test_the_page_shows_texts_as_they_are():
    table = pd.DataFrame({"row_id": ["<b>"], "kind": "rejected", "same": False, "posterior": 0.9, "evidence": 1.0})
    texts = pd.DataFrame({"question": ["<script>"], "chosen": "![a](b)", "rejected": "\x1b[2J|"}, index=["<b>"])
    rates = {"rejected": {"rate": 0.1, "lo": 0.0, "hi": 0.2, "rows": 1, "equal": 0}}
    page = noise.page(table, rates, texts, "<i>.parquet")
    assert r"| &lt;b&gt; | 0.900 | &lt;script&gt; | \!\[a\](b) | \\x1b\[2J\| |" in page
    assert "&lt;i&gt;.parquet" in page and "\x1b" not in page


def test_a_special_token_in_a_row_is_found_before_the_model_is_loaded(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(models, "load", lambda *a, **k: pytest.fail("a model was loaded"))
    model_folder, _, _, rows = world
    preferences.write(
        [row | {"chosen": f"<image> {i}"} if i > 21 else row for i, row in enumerate(rows)], tmp_path / "a.parquet"
    )
    assert noise.main([str(tmp_path / "a.parquet"), "--model", str(model_folder), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "2 bad row(s): row 22 (a.parquet:22) chosen contains <image>" in said and "row 23" in said


def test_the_command_is_napo_noise(root):
    ended = subprocess.run([sys.executable, "-m", "napo", "noise", "--help"], cwd=root, capture_output=True, text=True)
    assert ended.returncode == 0 and "usage: napo noise" in ended.stdout


def test_the_module_itself_needs_no_model_library():
    script = "import sys, napo.q; print([m for m in ('transformers', 'peft', 'pandas') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "[]"
