"""napo.study.report: numbers come out as they went in, the page says what it rests on."""

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from small_report import some_noise, some_scores

from napo import profiles
from napo.noise import detectors
from napo.stats import measures
from napo.study import claims, frames, report, sections


@pytest.fixture(scope="module")
def scores():
    return some_scores()


@pytest.fixture(scope="module")
def noise():
    return some_noise()


@pytest.fixture(scope="module")
def written(tmp_path_factory, scores, noise):
    """A run folder with what `report.write` writes."""
    folder = tmp_path_factory.mktemp("run")
    report.write(folder, profiles.PROFILES["desk"], scores, noise, rng=np.random.default_rng(0))
    return folder


def test_c9_names_its_value_within_question_kinds_and_the_baselines(written, scores, noise):
    ledger = json.loads((written / "claims.json").read_text())
    (c9,) = (claim for claim in ledger if claim["id"] == "C9")
    assert "AUROC within question kinds, beside the baselines: language_biased: raw_mean_margin 1.00 [" in c9["note"]
    assert "length 0.50" in c9["note"] and "exact match with the chosen answer 1.00" in c9["note"]
    assert c9["verdict"] == claims.ledger(scores, noise)[8]["verdict"] and c9["note"] in report.claims_table(ledger)
    assert [c["note"] for c in ledger[:8]] == [c["note"] for c in claims.ledger(scores, noise)[:8]]
    assert detectors.with_detectors(ledger, None) == ledger


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
    pd.testing.assert_frame_equal(table, frames.estimates(scores), check_dtype=False)
    assert len(pd.read_csv(written / "tables" / "noise.csv")) == 2 * len(detectors.NOISE_DETECTORS)


def test_what_else_was_looked_at_goes_into_page_and_tables(tmp_path, scores):
    empty = {field.name: pd.DataFrame() for field in dataclasses.fields(sections.Study)}
    study = sections.Study(**empty | {"tables": frames.paper_tables(scores)})
    report.write(tmp_path, profiles.PROFILES["desk"], scores, None, study, rng=np.random.default_rng(0))
    page = (tmp_path / "report.md").read_text()
    titles = [title for title, _ in sections.texts(study)]
    assert [page.index(f"\n## {title}\n") for title in titles] == sorted(page.index(f"\n## {t}\n") for t in titles)
    assert page.index(sections.NO_NOISE) < page.index("## Claims")
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == ["methods.csv", "paper_tables.csv"]
    counts = sections.comparisons(study)
    assert counts["in the paper's tables"] > 0
    total = 5 + counts["in the paper's tables"]
    made = f"{total} comparisons were made (5 for the claims, {total - 5} in the paper's tables)"
    assert made in page


def test_what_a_claim_says_of_the_papers_model_stands_beside_it_on_the_desk_world_only(tmp_path, scores):
    for profile, said in (("desk", True), ("paper", False)):
        folder = tmp_path / profile
        ledger, *_ = report.write(folder, profiles.PROFILES[profile], scores, rng=np.random.default_rng(0))
        assert (claims.CLAIMS[0].about_llava in (folder / "report.md").read_text()) is said
        assert bool(ledger[0]["about_llava"]) is said


def test_the_items_of_each_group_are_counted(written, scores):
    page = (written / "report.md").read_text()
    assert "Items of each run: 10 (accuracy, counterfactual, accuracy, factual), 20 (accuracy, all questions" in page
    assert "Items of each run: 10 (S_CK, S_VP, S_CB, S_LP, Acc_CB, Acc_LP)." in page
    table = frames.estimates(scores)
    assert report.items_text(table.assign(n_items=3), ("CHAIRs",)) == "Items of each run: 3 (CHAIR_s)."


def test_without_noise_or_truth_the_page_says_so(tmp_path, scores):
    report.write(tmp_path, profiles.PROFILES["paper"], scores, None, rng=np.random.default_rng(0))
    page = (tmp_path / "report.md").read_text()
    assert "no noise rate" in page and "desk world" not in page and not (tmp_path / "tables" / "noise.csv").exists()


def test_one_method_on_upstream_data_of_unknown_truth_still_makes_a_report(tmp_path, noise):
    unknown = noise.assign(is_noise=pd.array([None] * len(noise), "boolean"))
    rows = [("base", 0, 0, 0.0, "heldout_pairs", "accuracy_rejected", str(i), "", float(i < 3)) for i in range(4)]
    pairs = pd.DataFrame(rows, columns=[*measures.RUN, "benchmark", "metric", "example_id", "question_kind", "value"])
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
