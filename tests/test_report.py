"""napo.report: numbers come out as they went in, the page says what it rests on, publishing needs a source."""

import json
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from napo import artifacts, circumstances, claims, detectors, profiles, publish, report, stats
from napo.notebooks import Notebook
from napo.session import Session, notebook_key

CAPTIONS = {"CHAIRs": 0.2, "hallucinated": 1.0, "mentioned": 4.0, "covered": 1.0, "present": 2.0, "tokens": 7.0}
SHARES = {
    "vqa_factual": {"accuracy": 0.9, "irrelevant": 0.3},
    "vqa_counterfactual": {"accuracy": 0.4, "irrelevant": 0.1},
    "objhal": CAPTIONS,
    "vlind": {"CK": 1.0, "VP": 0.8, "CB": 0.5, "LP": 0.25},
}


def run_scores(method, seed, gain=0.0):
    """Ten examples a benchmark whose means are SHARES plus `gain` (shares), constant where SHARES is a count."""
    rows = []
    for benchmark, metrics in SHARES.items():
        for metric, share in metrics.items():
            for item in range(10):
                value = float(item < round(10 * (share + gain))) if share < 1 else share
                rows.append((method, 0, seed, 0.0, benchmark, metric, str(item), "", value))
    return rows


@pytest.fixture(scope="module")
def scores():
    rows = run_scores("base", 0)
    for seed, gain in enumerate((0.1, 0.2)):
        rows += run_scores("dpo_original", seed) + run_scores("napo_paper", seed, gain)
    return pd.DataFrame(rows, columns=[*stats.RUN, "benchmark", "metric", "example_id", "question_kind", "value"])


@pytest.fixture(scope="module")
def noise():
    """60 measured rows a kind, 15 of them noise with raw margins smaller by 5; reward margins say nothing."""
    rng, frames = np.random.default_rng(0), []
    for kind in ("language_biased", "vision_biased"):
        frame = pd.DataFrame({"base": 0, "kind": kind, "part": "measured", "question_kind": ["where", "count"] * 30})
        frame["is_noise"] = pd.array([True] * 15 + [False] * 45, "boolean")
        for column in ("raw_margin", "raw_mean_margin", "margin", "mean_margin"):
            frame[column] = rng.normal(size=60) - 5 * (column.startswith("raw") & frame["is_noise"].astype(bool))
        truth = frame["is_noise"].astype(bool)
        frames.append(frame.assign(n_tokens=5, equals_chosen=truth, posterior=np.where(truth, 0.7, 0.1)))
    return pd.concat(frames, ignore_index=True)


@pytest.fixture(scope="module")
def written(tmp_path_factory, scores, noise):
    """A run folder with what `report.write` writes."""
    folder = tmp_path_factory.mktemp("run")
    report.write(folder, profiles.PROFILES["desk"], scores, noise, rng=np.random.default_rng(0))
    return folder


def test_estimates_by_hand(scores):
    table = report.estimates(scores).set_index(["method", "measure"])
    napo = table.loc[("napo_paper", "acc_counterfactual")]
    half = 12.7062 * 0.1 / 2  # t(.975, 1) * sd / sqrt(2), sd = 0.1 / sqrt(2)
    assert (napo["value"], napo["hi"] - napo["value"]) == pytest.approx((0.55, half), abs=1e-4)
    assert (napo["over"], napo["n_seeds"], napo["method_label"]) == ("seeds", 2, "NaPO (paper)")
    assert table.loc[("base", "CHAIRi"), "value"] == 0.25 and np.isnan(table.loc[("base", "CHAIRi"), "lo"])
    assert list(table.index.get_level_values(0).unique()) == ["base", "dpo_original", "napo_paper"]
    assert "pref_rejected" not in table.index.get_level_values(1)


def test_development_bases_and_swapped_labels_stay_out_of_the_tables(scores):
    other = scores[scores.method == "napo_paper"].assign(value=0.0)
    both = pd.concat([scores, other.assign(base=100), other.assign(flip_rate=0.4)])
    pd.testing.assert_frame_equal(report.estimates(both), report.estimates(scores))


def test_tables_at_a_flip_rate_show_the_untrained_base_beside_it(scores):
    flipped = scores[(scores.method == "napo_paper") & (scores.metric == "CB")].assign(value=0.0, flip_rate=0.4)
    table = report.estimates(pd.concat([scores, flipped]), ("Acc_CB",), flip_rate=0.4)
    assert table.set_index("method")["value"].to_dict() == {"base": 0.5, "napo_paper": 0.0}


def test_noise_table_by_hand(noise):
    table = report.noise_table(noise, np.random.default_rng(0), beta=1.0).set_index(["kind", "detector"])
    raw = table.loc[("language_biased", "raw_margin")]
    assert (raw["noise_rate"], raw["n_rows"]) == (0.25, 60) and raw["auroc"] > 0.95 and raw["over"] == "rows"
    assert raw["within_kinds"] > 0.95
    assert table.loc[("vision_biased", "differs"), "auroc"] == 1.0  # noise = equals the chosen answer, here
    assert table.loc[("vision_biased", "n_tokens"), "auroc"] == 0.5  # all of one length
    margin = table.loc[("language_biased", "margin")]
    assert margin["lo"] < 0.5 < margin["hi"]
    assert np.isnan(margin["calibration"]) and np.isnan(margin["estimated_rate"])
    ours, papers = (table.loc[("language_biased", name)] for name in ("right", "paper_right"))
    assert ours["estimated_rate"] == pytest.approx(0.25) and ours["auroc"] == 1
    assert ours["calibration"] == pytest.approx(0.25 * 0.3 + 0.75 * 0.1, abs=0.03)
    assert papers["auroc"] == table.loc[("language_biased", "mean_margin"), "auroc"]  # one order, as probabilities
    measured = noise[noise["kind"] == "vision_biased"]
    q = 1 / (1 + np.exp(0.01 * measured["margin"]))
    assert table.loc[("vision_biased", "paper_right"), "estimated_rate"] == pytest.approx(q.mean())
    assert report.noise_table(noise.assign(part="probe"), np.random.default_rng(0)).empty
    without = report.noise_table(noise.drop(columns="posterior"), np.random.default_rng(0))
    assert set(without["detector"]) == set(report.NOISE_DETECTORS) - {"right", "paper_right"}


def test_with_several_bases_the_intervals_of_the_noise_are_over_bases(noise):
    """Base 1 lacks five of the noisy rows of base 0; the kinds of question apart, its margins say nothing."""
    other = noise.assign(base=1, raw_margin=0.0).drop(index=noise.index[:5])
    table = report.noise_table(pd.concat([noise, other]), np.random.default_rng(0)).set_index(["kind", "detector"])
    raw = table.loc[("language_biased", "raw_margin")]
    assert set(table[["rate_over", "over", "within_over"]].to_numpy().ravel()) == {"bases"}
    assert raw["noise_rate"] == pytest.approx((15 / 60 + 10 / 55) / 2)  # a mean over bases, no pooled rows
    alone = report.noise_table(noise, np.random.default_rng(0)).set_index(["kind", "detector"])
    alone = alone.loc[("language_biased", "raw_margin")]
    assert alone["within_over"] == alone["rate_over"] == "rows"
    low, high = 0.5, alone["within_kinds"]
    assert raw["within_kinds"] == pytest.approx((low + high) / 2)
    half = 12.7062 * (high - low) / 2  # t(.975, 1) * sd / sqrt(2)
    assert raw["within_hi"] - raw["within_kinds"] == pytest.approx(half, abs=1e-3)


def test_detectors_are_judged_apart_on_answers_other_than_the_chosen_one(noise):
    """Every second noisy row equals the chosen answer; of the others the margins are made to say nothing."""
    equal = noise["is_noise"].astype(bool) & (np.arange(len(noise)) % 4 < 2)
    frame = noise.assign(equals_chosen=equal, raw_margin=np.where(equal, -9.0, 0.0))
    raw = report.noise_table(frame, np.random.default_rng(0)).set_index(["kind", "detector"])
    raw = raw.loc[("language_biased", "raw_margin")]
    assert raw["within_other"] == 0.5 and raw["within_kinds"] > 0.7 and raw["within_other_over"] == "rows"


def test_c9_names_its_value_within_question_kinds_and_the_baselines(written, scores, noise):
    ledger = json.loads((written / "claims.json").read_text())
    (c9,) = (claim for claim in ledger if claim["id"] == "C9")
    assert "AUROC within question kinds, beside the baselines: language_biased: raw_mean_margin 1.00 [" in c9["note"]
    assert "length 0.50" in c9["note"] and "exact match with the chosen answer 1.00" in c9["note"]
    assert c9["verdict"] == claims.ledger(scores, noise)[8]["verdict"] and c9["note"] in report.claims_table(ledger)
    assert [c["note"] for c in ledger[:8]] == [c["note"] for c in claims.ledger(scores, noise)[:8]]
    assert detectors.with_detectors(ledger, None) == ledger


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((0.4, 0.35, 0.456), "0.40 [0.35, 0.46]"),
        ((-0.4, float("nan"), float("nan")), "−0.40"),
        ((-0.0, None, None), "0.00"),
        ((None,), "–"),
        ((float("nan"), 0, 1), "–"),
        ((7.25, 7.0, 7.5, 1), "7.2 [7.0, 7.5]"),
    ],
)
def test_numbers_as_text(arguments, text):
    assert report.number(*arguments) == text


def test_the_page_says_what_it_found_and_what_it_rests_on(written, scores):
    page = (written / "report.md").read_text()
    assert "| NaPO (paper) | 0.55 [" in page and "| base model | 0.40 | 0.90 | 0.65 | 0.20 |" in page
    assert "CHAIR_i ↓ | coverage ↑" in page and "S_CK ↑ | S_VP ↑ | S_CB ↑ | S_LP ↑ | Acc_CB ↑ | Acc_LP ↑" in page
    assert "`make reproduce PROFILE=desk`" in page and "It says nothing about the scores of LLaVA-1.5-7B" in page
    assert "language_biased: 0.25 [" in page and "within question kinds" in page
    assert "| C3 | mDPO" in page and "**not run**" in page and "not run: mdpo" in page
    assert "At most 1 reporting base: no verdict can speak for new bases" in page


def test_what_is_written_beside_the_page(written, scores):
    ledger = json.loads((written / "claims.json").read_text())
    assert ledger[0]["verdict"] == "inconclusive" and ledger[0]["components"][0]["effect"] == pytest.approx(0.15)
    table = pd.read_csv(written / "tables" / "methods.csv")
    pd.testing.assert_frame_equal(table, report.estimates(scores), check_dtype=False)
    assert len(pd.read_csv(written / "tables" / "noise.csv")) == 2 * len(report.NOISE_DETECTORS)


def test_what_else_was_looked_at_goes_into_page_and_tables(tmp_path, scores):
    more = {"sections": [("Rates", "the text")], "tables": {"rates": pd.DataFrame({"x": [1]}), "none": pd.DataFrame()}}
    report.write(tmp_path, profiles.PROFILES["desk"], scores, None, rng=np.random.default_rng(0), **more)
    assert "## Rates\n\nthe text\n\n## Claims" in (tmp_path / "report.md").read_text()
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == ["methods.csv", "rates.csv"]


def test_what_a_claim_says_of_the_papers_model_stands_beside_it_on_the_desk_world_only(tmp_path, scores):
    for profile, said in (("desk", True), ("paper", False)):
        folder = tmp_path / profile
        ledger, *_ = report.write(folder, profiles.PROFILES[profile], scores, rng=np.random.default_rng(0))
        assert (claims.CLAIMS[0].about_llava in (folder / "report.md").read_text()) is said
        assert bool(ledger[0]["about_llava"]) is said


def test_comparisons_are_counted_over_the_whole_page(tmp_path, scores):
    more = {"comparisons": {"of methods under noise": 30, "of the noise estimates": 0, "in the paper's tables": 4}}
    report.write(tmp_path, profiles.PROFILES["desk"], scores, None, rng=np.random.default_rng(0), **more)
    page = (tmp_path / "report.md").read_text()
    assert "39 comparisons were made (5 for the claims, 30 of methods under noise, 4 in the paper's tables)" in page


def test_the_items_of_each_group_are_counted(written, scores):
    page = (written / "report.md").read_text()
    assert "Items of each run: 10 (accuracy, counterfactual, accuracy, factual), 20 (accuracy, all questions" in page
    assert "Items of each run: 10 (S_CK, S_VP, S_CB, S_LP, Acc_CB, Acc_LP)." in page
    table = report.estimates(scores)
    assert report.items_text(table.assign(n_items=3), ("CHAIRs",)) == "Items of each run: 3 (CHAIR_s)."


def test_without_noise_or_truth_the_page_says_so(tmp_path, scores):
    report.write(tmp_path, profiles.PROFILES["paper"], scores, None, rng=np.random.default_rng(0))
    page = (tmp_path / "report.md").read_text()
    assert "no noise rate" in page and "desk world" not in page and not (tmp_path / "tables" / "noise.csv").exists()


def test_one_method_on_upstream_data_of_unknown_truth_still_makes_a_report(tmp_path, noise):
    unknown = noise.assign(is_noise=pd.array([None] * len(noise), "boolean"))
    rows = [("base", 0, 0, 0.0, "heldout_pairs", "accuracy_rejected", str(i), "", float(i < 3)) for i in range(4)]
    pairs = pd.DataFrame(rows, columns=[*stats.RUN, "benchmark", "metric", "example_id", "question_kind", "value"])
    ledger, table, noisy = report.write(
        tmp_path, profiles.PROFILES["paper"], pairs, unknown, rng=np.random.default_rng(0)
    )
    assert {claim["verdict"] for claim in ledger} == {"not run"} and noisy.empty and table["value"].tolist() == [0.75]
    page = (tmp_path / "report.md").read_text()
    assert "| base model | 0.75 |" in page and "no noise rate" in page and "None was run." in page
    assert "0 comparisons were made" in page and "### Captions" not in page


def test_a_second_report_leaves_no_table_of_the_first(tmp_path, scores, written):
    folder = shutil.copytree(written, tmp_path / "run")
    assert (folder / "tables" / "noise.csv").exists()
    report.write(folder, profiles.PROFILES["desk"], scores, None, rng=np.random.default_rng(0))
    assert [path.name for path in (folder / "tables").iterdir()] == ["methods.csv"]


def test_the_component_table_states_margins_and_nulls(scores):
    many = pd.concat([scores.assign(base=b) for b in range(5)])
    many = pd.concat([many, many[many.method == "base"].assign(method="mdpo")])
    text = report.component_table(claims.ledger(many))
    assert "| C3 | Acc_CB | mdpo - base | 0.000 [0.000, 0.000] | within ±0.05 | bases | reproduced |" in text
    assert "| > −0.05 |" in text and "| < 0 |" in text


# ---- publishing -----------------------------------------------------------------------------------------------------


def git(root, *arguments):
    command = ["git", "-C", str(root), "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def session(request, tmp_path, written, monkeypatch):
    """A repository with one notebook, run to its end, with figures, tables, claims and report; parameter: profile."""
    profile = getattr(request, "param", "desk")
    monkeypatch.setattr(circumstances, "_git_state", circumstances._git_state.__wrapped__)
    root = tmp_path / "repository"
    (root / "notebooks").mkdir(parents=True)
    (root / "napo").mkdir()
    (root / "napo" / "__init__.py").write_text("")
    cell = {"cell_type": "code", "source": "1", "metadata": {}, "execution_count": 1, "outputs": []}
    notebook = json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    (root / "notebooks" / "05_ablations.ipynb").write_text(notebook)
    (root / "README.md").write_text(f"# Kit\n\n{publish.BEGIN}\n{publish.END}\n\nThe end.\n")
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
    figures = {
        f"figures/{profile}/{n}.png": artifacts.content_hash(made.figures / f"{n}.png")
        for n in ("comparison", "loss_family")
    }
    record = {
        "key": notebook_key(made, table[0], {}),
        "notebook": artifacts.content_hash(executed),
        "parameters": {},
        "writes": made.matches(table[0].writes),
        "figures": figures,
    }
    artifacts.write_json(record | circumstances.circumstances(root), made.executed(table[0], ".json"))
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


def test_publish_writes_the_readme_block_and_again_without_change(session):
    assert published(session) == 0
    first = (session.root / "README.md").read_text()
    assert first.startswith(f"# Kit\n\n{publish.BEGIN}\n") and first.endswith(f"{publish.END}\n\nThe end.\n")
    assert "![The main methods" in first and "(figures/study/comparison.png)" in first
    assert "How far to trust this:\n\n- 7 comparisons" in first
    assert "[loss_family](figures/study/loss_family.png)" in first and "| C1 | NaPO" in first
    assert published(session) == 0  # what publishing itself has changed does not count as uncommitted code
    second = (session.root / "README.md").read_text()
    assert second == first
    assert second == publish.readme_text(session.root, publish.readme_block(session.root / "figures" / "study"))


def test_the_readme_holds_every_component_with_its_interval_and_verdict(session):
    assert published(session) == 0
    study = session.root / "figures" / "study"
    text = report.component_table(json.loads((study / "claims.json").read_text()))
    assert "| C1 | Acc_CB | napo_paper - dpo_original | 0.150 [−" in text and "| inconclusive |" in text
    block = publish.readme_block(study)
    inside = block.partition("<details>\n<summary>")[2].partition("</details>")[0]
    assert inside.endswith(f"</summary>\n\n{text}\n\n")
    assert block.index("| C10 |") < block.index("<details>")  # after the claims


def test_the_readme_shows_the_main_methods_and_counts_the_others(session):
    assert published(session) == 0
    study = session.root / "figures" / "study"
    table = pd.read_csv(study / "methods.csv")
    others = [table[table["method"] == "base"].assign(method=name, method_label=name) for name in ("ipo", "cdpo")]
    pd.concat([table, *others]).to_csv(study / "methods.csv", index=False)
    block = publish.readme_block(study)
    assert "| base model |" in block and "| ipo |" not in block
    assert "2 more methods stand in [the report](figures/study/report.md)" in block


def refused(session, capsys, *options):
    """The one line that a refused publishing prints; nothing was written."""
    before = (session.root / "README.md").read_text()
    assert published(session, *options) == 2
    assert not (session.root / "figures" / "study").exists() and (session.root / "README.md").read_text() == before
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_uncommitted_code_is_refused_or_recorded(session, capsys):
    (session.root / "napo" / "new.py").write_text("x = 1\n")
    assert "with uncommitted changes: commit first" in refused(session, capsys)
    assert published(session, "--allow-dirty") == 0
    study = session.root / "figures" / "study"
    assert json.loads((study / "provenance.json").read_text())["git_dirty"] is True
    assert "with uncommitted changes" in (session.root / "README.md").read_text()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s.executed(s.notebooks[0], ".json").unlink(), "has not been run to its end"),
        (lambda s: s.executed(s.notebooks[0], ".partial.ipynb").write_text("{}"), "not up to date"),
        (lambda s: (s.folder / "claims.json").write_text("[]"), "not up to date"),
        (lambda s: (s.root / "figures" / "desk" / "comparison.png").unlink(), "not up to date"),
        (lambda s: (s.root / "README.md").write_text("# no markers\n"), "once each"),
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
    assert "profile study did not draw noise_rates.png, table_1.png" in line and "answers.png, which README" in line
    assert "comparison.png" not in line and not (session.root / "figures" / "study" / "claims.json").exists()


def test_a_run_of_other_code_is_refused(session, capsys):
    path = session.root / "notebooks" / "05_ablations.ipynb"
    path.write_text(path.read_text().replace('"source": "1"', '"source": "2"'))
    git(session.root, "commit", "-qam", "change")
    assert "not up to date: make reproduce PROFILE=desk" in refused(session, capsys)


def test_an_unknown_profile_is_refused(capsys):
    assert publish.main(["--profile", "dessk"]) == 2
    assert "unknown profile 'dessk'" in capsys.readouterr().err


STUDY = artifacts.repository_root() / "figures" / "study"


def test_the_readme_shows_what_is_published_and_nobody_edited_it():
    root = artifacts.repository_root()
    assert (root / "README.md").read_text(encoding="utf-8") == publish.readme_text(root, publish.readme_block(STUDY))
    files = json.loads((STUDY / "provenance.json").read_text(encoding="utf-8"))["files"]
    assert files == {p.name: artifacts.content_hash(p) for p in STUDY.iterdir() if p.name != "provenance.json"}
