"""The headroom experiment: its runs, its summary, its record in the docs, and one small run."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments import headroom
from napo import profiles
from napo.profiles import DEVELOPMENT_BASES


def test_every_compared_arm_is_run():
    labels = {run.label for run in headroom.runs([0], [0, 1])}
    assert labels == {arm for pair in headroom.COMPARISONS for arm in pair}
    names = [run.name for run in headroom.runs([0, 1], [0, 1])]
    assert len(names) == len(set(names))
    assert len(names) == 2 + 2 * 2 * len(headroom.RUNS)


def test_summary_pairs_by_base_and_seed():
    rng = np.random.default_rng(3)
    rows, gains = [], {0: 0.25, 1: 0.5}  # dpo_original over base, by base
    for run in headroom.runs([0, 1], [0]):
        for benchmark in headroom.BENCHMARKS:
            for i in range(4):
                metrics = {"accuracy": 0.0, "irrelevant": 0.0, "covered": 1.0, "present": 2.0}
                if run.arm == "dpo_original":
                    metrics["accuracy"] = float(i < 4 * gains[run.base])
                rows += [
                    {"method": run.label, "base": run.base, "seed": run.seed, "flip_rate": 0.0, "benchmark": benchmark}
                    | {"metric": metric, "example_id": f"{i}", "value": value}
                    for metric, value in metrics.items()
                ]
    scores = pd.DataFrame(rows).sample(frac=1, random_state=rng.integers(100))
    found = headroom.summary(scores, min_bases=2)
    first = found["comparisons"][0]
    assert (first["better"], first["worse"], first["measure"]) == ("dpo_original", "base", "acc_counterfactual")
    half = 12.706204736 * np.std([0.25, 0.5], ddof=1) / np.sqrt(2)  # Student's t, one degree of freedom
    assert first["value"] == pytest.approx(0.375)
    assert (first["lo"], first["hi"]) == pytest.approx((0.375 - half, 0.375 + half))
    assert "| dpo_original | base | +37.5 [" in headroom.table(found)
    few = headroom.summary(scores)["comparisons"][0]  # two bases are not enough: over examples
    assert few["over"] == "examples" and few["value"] == pytest.approx(0.375)
    assert (few["lo"], few["hi"]) == (0.0, 0.75)  # four examples gain 1, .5, 0 and 0


def test_a_run_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setattr(headroom, "ITEMS", 6)
    profile = profiles.get("smoke")
    profile = replace(profile, name="headroom", rows=12, heldout_rows=0)
    run = headroom.Run("oracle_all", "leak", 0, 0)
    path = headroom.scores_of(run, profile, tmp_path)
    scores, made = pd.read_parquet(path), path.stat().st_mtime_ns
    assert set(scores["method"]) == {"oracle_all+leak"} and set(scores["benchmark"]) == set(headroom.BENCHMARKS)
    assert scores.groupby("benchmark")["example_id"].nunique().eq(6).all()
    assert headroom.scores_of(run, profile, tmp_path).stat().st_mtime_ns == made


@pytest.mark.parametrize("bases", ["development", "reporting"])
def test_what_the_study_builds_on_was_found_on_both_sets_of_bases(bases):
    found = json.loads((Path(headroom.__file__).parent / f"headroom-{bases}.json").read_text())
    lows = {(r["better"], r["worse"]): r["lo"] for r in found["comparisons"] if r["measure"] == "acc_counterfactual"}
    assert set(lows) == set(headroom.COMPARISONS)
    needed = [("dpo_original", "base"), ("dpo_all", "dpo_original"), ("oracle_all+leak", "sft")]
    needed += [(f"oracle_all+{noise}", f"dpo_all+{noise}") for noise in ("leak", "swap")]
    assert all(lows[pair] > 0 for pair in needed)


def test_the_sentence_tells_what_held_from_what_did_not():
    records = [
        {"better": better, "worse": "x", "measure": measure, "lo": lo, "hi": hi}
        for better, lo, hi in (("a", 0.1, 0.2), ("b", -0.1, 0.2), ("c", -0.3, -0.1))
        for measure in ("acc_counterfactual", "Cover")
    ]
    assert headroom.missed({"comparisons": records}) == (
        "On counterfactual accuracy 1 of 3 differences lie outside their intervals; not shown: b > x; the other way "
        "round: c > x."
    )


@pytest.mark.parametrize("bases", ["development", "reporting"])
def test_the_docs_show_the_record(bases, root):
    found = json.loads((root / "experiments" / f"headroom-{bases}.json").read_text())
    assert all((base in DEVELOPMENT_BASES) == (bases == "development") for base in found["bases"])
    notes = (root / "docs" / "desk-world.md").read_text()
    assert headroom.table(found) in notes and headroom.missed(found) in notes
    assert found["profile"]["training"] == json.loads(json.dumps(asdict(profiles.get("desk").training)))
