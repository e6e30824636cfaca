"""Scores and margins of a small made-up run, for the tests of what is written about a run."""

import numpy as np
import pandas as pd

from napo.stats import measures

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


def some_scores():
    """The untrained base, and two methods with two seeds; NaPO gains 0.1 and 0.2."""
    rows = run_scores("base", 0)
    for seed, gain in enumerate((0.1, 0.2)):
        rows += run_scores("dpo_original", seed) + run_scores("napo_paper", seed, gain)
    return pd.DataFrame(rows, columns=[*measures.RUN, "benchmark", "metric", "example_id", "question_kind", "value"])


def some_noise():
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


def margins_table(truth=True):
    """A small table like notebook 02's: four measured rows and one of the probe, of each kind."""
    frames = []
    for index, kind in enumerate(("language_biased", "vision_biased")):
        margin = np.array([1.0, -2.0, 4.0, 0.5, 99.0]) + index
        noisy = pd.array([True, False, False, True, False] if truth else [pd.NA] * 5, dtype="boolean")
        part = ["measured"] * 4 + ["probe"]
        frames.append(
            pd.DataFrame({"kind": kind, "part": part, "is_noise": noisy, "margin": margin, "mean_margin": margin / 10})
        )
    return pd.concat(frames, ignore_index=True)
