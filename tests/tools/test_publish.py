"""tools.publish: publishing needs a source, and the pages' blocks come from figures/study alone."""

import csv
import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from small_report import some_noise, some_scores

from napo import profiles
from napo.runner.notebooks import Notebook
from napo.runner.staleness import Session, notebook_key
from napo.study import report
from napo.workshop import artifacts, environment
from napo.workshop.files import repository_root, write_json
from tools import publish
from tools.findings import findings


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A run folder with what `report.write` writes."""
    folder = tmp_path_factory.mktemp("run")
    report.write(folder, profiles.PROFILES["desk"], some_scores(), some_noise(), rng=np.random.default_rng(0))
    return folder


def git(root, *arguments):
    command = ["git", "-C", str(root), "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def session(request, tmp_path, written, monkeypatch):
    """A repository with one notebook, run to its end, with figures, tables, claims and report; parameter: profile."""
    profile = getattr(request, "param", "desk")
    monkeypatch.setattr(environment, "_git_state", environment._git_state.__wrapped__)
    root = tmp_path / "repository"
    (root / "notebooks").mkdir(parents=True)
    (root / "napo").mkdir()
    (root / "napo" / "__init__.py").write_text("")
    cell = {"cell_type": "code", "source": "1", "metadata": {}, "execution_count": 1, "outputs": []}
    notebook = json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    (root / "notebooks" / "05_ablations.ipynb").write_text(notebook)
    (root / "docs").mkdir()
    for page in publish.PAGES:
        (root / page).write_text(f"# Kit\n\n{publish.BEGIN}\n{publish.END}\n\nThe end.\n")
    (root / ".gitignore").write_text("runs/\nfigures/*\n!figures/study/\n")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "start")
    table = (Notebook("05_ablations", writes=("claims.json", "report.md", "tables/*.csv")),)
    made = Session(profile, root=root, package=root / "napo", notebooks=table)
    shutil.copytree(written, made.folder)
    made.figures.mkdir(parents=True)
    for name in ("comparison", "loss_family", "left_by_older_code"):
        (made.figures / f"{name}.png").write_bytes(b"PNG " + name.encode())
    executed = made.executed(table[0])
    executed.write_text(notebook)
    figures = {f"{n}.png": artifacts.content_hash(made.figures / f"{n}.png") for n in ("comparison", "loss_family")}
    record = {
        "key": notebook_key(made, table[0], {}),
        "notebook": artifacts.content_hash(executed),
        "parameters": {},
        "writes": made.matches(table[0].writes),
        "figures": figures,
    }
    write_json(record | environment.snapshot(root), made.executed(table[0], ".json"))
    return made


def published(session, *options):
    return publish.main(["--profile", session.profile, *options], session)


def test_publish_copies_everything_with_its_source(session, capsys):
    assert published(session) == 0
    study = session.root / "figures" / "study"
    names = {
        "claims.json",
        "comparison.png",
        "loss_family.png",
        "methods.csv",
        "noise.csv",
        "provenance.json",
        "report.md",
    }
    assert {path.name for path in study.iterdir()} == names
    about = json.loads((study / "provenance.json").read_text())
    head = subprocess.run(["git", "-C", str(session.root), "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    assert (about["profile"], about["git_commit"], about["git_dirty"]) == ("desk", head.strip(), False)
    assert about["files"]["comparison.png"] == artifacts.content_hash(study / "comparison.png")
    assert (
        set(about["files"]) == names - {"provenance.json"} and about["notebooks"]["05_ablations"]["git_dirty"] is False
    )
    assert "published desk" in capsys.readouterr().out


def test_publish_writes_both_pages_and_again_without_change(session):
    assert published(session) == 0
    first = {page: (session.root / page).read_text() for page in publish.PAGES}
    for text in first.values():
        assert text.startswith(f"# Kit\n\n{publish.BEGIN}\n") and text.endswith(f"{publish.END}\n\nThe end.\n")
    results = first["docs/results.md"]
    assert "![The main methods" in results and "(../figures/study/comparison.png)" in results
    assert "How far to trust this:\n\n- 7 comparisons" in results
    assert "[loss_family](../figures/study/loss_family.png)" in results and "| C1 | NaPO" in results
    assert "Of the paper's 10 claims: " in first["README.md"]
    assert published(session) == 0  # what publishing itself has changed does not count as uncommitted code
    assert {page: (session.root / page).read_text() for page in publish.PAGES} == first


def test_the_results_hold_every_component_with_its_interval_and_verdict(session):
    assert published(session) == 0
    study = session.root / "figures" / "study"
    text = report.component_table(json.loads((study / "claims.json").read_text()))
    assert "| C1 | Acc_CB | napo_paper - dpo_original | 0.150 [−" in text and "| inconclusive |" in text
    block = publish.results(study)
    inside = block.partition("<details>\n<summary>")[2].partition("</details>")[0]
    assert inside.endswith(f"</summary>\n\n{text}\n\n")
    assert block.index("| C10 |") < block.index("<details>")  # after the claims


def test_the_results_show_the_main_methods_and_counts_the_others(session):
    assert published(session) == 0
    study = session.root / "figures" / "study"
    table = pd.read_csv(study / "methods.csv")
    others = [table[table["method"] == "base"].assign(method=name, method_label=name) for name in ("ipo", "cdpo")]
    pd.concat([table, *others]).to_csv(study / "methods.csv", index=False)
    block = publish.results(study)
    assert "| base model |" in block and "| ipo |" not in block
    assert "2 more methods stand in [the report](../figures/study/report.md)" in block


def refused(session, capsys, *options):
    """The one line that a refused publishing prints; nothing was written."""
    before = (session.root / "README.md").read_text()
    assert published(session, *options) == 2
    assert not (session.root / "figures" / "study").exists() and (session.root / "README.md").read_text() == before
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_uncommitted_code_is_refused_or_recorded(session, capsys):
    (session.root / "pyproject.toml").write_text("# not committed\n")
    assert "with uncommitted changes: commit first" in refused(session, capsys)
    assert published(session, "--allow-dirty") == 0
    study = session.root / "figures" / "study"
    assert json.loads((study / "provenance.json").read_text())["git_dirty"] is True
    assert "with uncommitted changes" in (session.root / "docs" / "results.md").read_text()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s.executed(s.notebooks[0], ".json").unlink(), "has not been run to its end"),
        (lambda s: s.executed(s.notebooks[0], ".partial.ipynb").write_text("{}"), "not up to date"),
        (lambda s: (s.folder / "claims.json").write_text("[]"), "not up to date"),
        (lambda s: (s.root / "figures" / "desk" / "comparison.png").unlink(), "not up to date"),
        (lambda s: (s.root / "README.md").write_text("# no markers\n"), "once each"),
        (lambda s: (s.root / "docs" / "results.md").unlink(), "once each"),
    ],
)
def test_an_incomplete_run_is_refused(session, capsys, damage, message):
    damage(session)
    assert message in refused(session, capsys)


@pytest.mark.parametrize("session", ["study"], indirect=True)
def test_the_study_is_refused_without_a_figure_that_the_readme_shows(session, capsys):
    """Its record names comparison.png and loss_family.png only."""
    assert published(session) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        "profile study did not draw noise_rates.png, table_1.png" in line
        and "answers.png, which docs/results.md" in line
    )
    assert "comparison.png" not in line and not (session.root / "figures" / "study" / "claims.json").exists()


def test_a_run_of_other_code_is_refused(session, capsys):
    path = session.root / "notebooks" / "05_ablations.ipynb"
    path.write_text(path.read_text().replace('"source": "1"', '"source": "2"'))
    git(session.root, "commit", "-qam", "change")
    assert "not up to date: make reproduce PROFILE=desk" in refused(session, capsys)


def test_an_unknown_profile_is_refused(capsys):
    assert publish.main(["--profile", "dessk"]) == 2
    assert "unknown profile 'dessk'" in capsys.readouterr().err


STUDY = repository_root() / "figures" / "study"


@pytest.mark.parametrize("page", publish.PAGES)
def test_the_pages_show_what_is_published_and_nobody_edited_them(page):
    root = repository_root()
    written = publish.page_text(root, page, publish.PAGES[page](STUDY))
    assert (root / page).read_text(encoding="utf-8") == written, "run: python -m tools.publish --pages-only"


def test_the_published_files_are_those_of_the_record():
    files = json.loads((STUDY / "provenance.json").read_text(encoding="utf-8"))["files"]
    assert files == {p.name: artifacts.content_hash(p) for p in STUDY.iterdir() if p.name != "provenance.json"}


def test_the_findings_are_the_published_numbers():
    """README's sentences against the tables, read with another library's eyes: csv alone."""
    with open(STUDY / "methods.csv", newline="") as handle:
        values = {(r["measure"], r["method"]): float(r["value"]) for r in csv.DictReader(handle)}
    text = findings(STUDY)
    names = ("base", "dpo_original", "dpo_all", "napo_paper")
    right = [f"{100 * values['acc_counterfactual', name]:.0f}%" for name in names]
    assert re.findall(r"\d+%", text)[:4] == right
    assert text.count("\n- ") == 7 and "contradicted: C2, C4, C5, C6" in text
