"""Scores of answers to the desk world's items, and headline numbers of such scores."""

import tempfile
from pathlib import Path

import numpy as np

from napo.desk import benchmark_items, layout
from napo.evaluation import scoring
from napo.official import benchmarks


def score(name, items, answers):
    """Long rows for the answers to a benchmark's items, from the official scorer where there is one."""
    if name in benchmark_items.VQA:
        return benchmark_items.vqa_scores(items, answers)
    said = {(item.question, item.image.tobytes()): answer for item, answer in zip(items, answers, strict=True)}
    with tempfile.TemporaryDirectory() as folder:
        layout.write(name, items, Path(folder) / "data")
        benchmark = benchmarks.read(name, Path(folder) / "data", task="a")
        found = {question.key: said[question.text, question.opened().tobytes()] for question in benchmark.questions}
        for file, content in benchmark.predictions(found, "desk").items():
            (Path(folder) / file).write_text(content, encoding="utf-8")
        results = scoring.score(benchmark, Path(folder), "desk", scoring.Scoring("exact"))
    return [row for result in results for row in result.examples]


def summarise(rows):
    """{benchmark: {name: value}} of the long rows of `score`, as shares in [0, 1]."""
    tables = {}
    for row in rows:
        tables.setdefault(row["benchmark"], {}).setdefault(row["metric"], {})[row["example_id"]] = row["value"]
    return {
        name: _SUMMARIES.get(name, _means)({m: np.array(list(v.values())) for m, v in table.items()})
        for name, table in tables.items()
    }


def _means(values):
    return {metric: float(value.mean()) for metric, value in values.items()}


def _caption_summary(v):
    ratios = {
        "CHAIRi": v["hallucinated"].sum() / max(v["mentioned"].sum(), 1),
        "coverage": v["covered"].sum() / v["present"].sum(),
    }
    return _means({"CHAIRs": v["CHAIRs"], "tokens": v["tokens"]}) | {k: float(r) for k, r in ratios.items()}


def _vlind_summary(v):
    """The six columns of VLind-Bench's scorer; S_CB and S_LP count only what passed the steps before (0 if nothing)."""
    passed_cb = v["CB"] * v["CK"]
    passed_all = v["VP"] * passed_cb
    return {
        "S_CK": float(v["CK"].mean()),
        "S_VP": float(v["VP"].mean()),
        "S_CB": float(passed_cb.sum() / max(v["CK"].sum(), 1)),
        "S_LP": float((v["LP"] * passed_all).sum() / max(passed_all.sum(), 1)),
        "Acc_CB": float(v["CB"].mean()),
        "Acc_LP": float(v["LP"].mean()),
    }


_SUMMARIES = {"objhal": _caption_summary, "vlind": _vlind_summary}
