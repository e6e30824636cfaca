"""`napo evaluate BENCHMARK --model MODEL`: ask a model the questions of a benchmark and score its answers.

The adapter stays beside the weights: it is never merged, and the command refuses one that changes no answer. Answers
are saved batch by batch, so an interrupted command resumes.
"""

import argparse
import contextlib
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from napo import profiles
from napo.commands import command
from napo.engine import models
from napo.evaluation import asking, evaluate, scoring
from napo.official import benchmarks
from napo.profiles import Quantisation
from napo.study import frames, paper, report
from napo.workshop import artifacts, environment
from napo.workshop.files import BadInput, atomic, repository_root, shown, write_json


class Request(argparse.Namespace):
    """The arguments that `parser` declares, and what follows from them."""

    @property
    def name(self):
        """The model's name in tables and files: the label, else the adapter's folder, else the model's."""
        folder = Path(self.adapter).resolve() if self.adapter else Path(self.model)
        return self.label or (folder.parent if self.adapter and folder.name == "adapter" else folder).name

    @property
    def folder(self):
        """The folder that the command writes."""
        return Path(self.out) if self.out else artifacts.run_folder("evaluations", self.name, self.benchmark)

    @property
    def quantisation(self):
        """The types of the weights; default: bfloat16 on a GPU, float32 on a CPU."""
        dtype = self.dtype or ("bfloat16" if self.device == "cuda" else "float32")
        return Quantisation(four_bit=self.four_bit, compute_dtype=dtype, dtype=dtype)

    @property
    def identity(self):
        """The first columns of the long table. The folder name of a trained cell gives base, seed and flip rate."""
        cell = re.fullmatch(r"(.+)-b(\d+)-s(\d+)-f([\d.]+)(-leak)?", self.name)
        method, base, seed, flip_rate, leak = cell.groups() if cell else (self.name, 0, 0, 0.0, None)
        method += "+leak" if leak else ""
        return {"method": method, "base": int(base), "seed": int(seed), "flip_rate": float(flip_rate)}


def parser():
    top = command.parser("evaluate")
    top.add_argument("benchmark", choices=benchmarks.NAMES, metavar="BENCHMARK", help=", ".join(benchmarks.NAMES))
    top.add_argument("--model", required=True, help="hub id or local folder")
    top.add_argument("--adapter", default="", metavar="FOLDER", help="LoRA adapter; it is never merged")
    top.add_argument("--data", default="", metavar="FOLDER", help="official files; default: data/BENCHMARK")
    top.add_argument("--out", default="", metavar="FOLDER", help="default: runs/evaluations/NAME/BENCHMARK")
    top.add_argument("--label", default="", metavar="NAME", help="the model's name in tables; default: its folder's")
    top.add_argument("--decoding", default="paper", choices=profiles.DECODINGS, help="default: paper")
    top.add_argument("--four-bit", action="store_true", help="the language model in NF4, as in training")
    dtypes = ("bfloat16", "float16", "float32")
    top.add_argument("--dtype", default="", choices=dtypes, help="default: bfloat16 on a GPU, else float32")
    top.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    top.add_argument("--batch-size", type=int, default=8, help="questions at once; default: 8")
    top.add_argument("--task", default="g", choices=benchmarks.AMBER_TASKS, help="of AMBER; default: g, generative")
    top.add_argument("--similarity", default="spacy", help="of AMBER's words: spacy (official), exact, table:FILE")
    top.add_argument("--reviews", default="", metavar="FILE", help="a judge's reviews of the answers to MMHal-Bench")
    top.add_argument("--limit", type=int, default=0, help="only the first so many examples, for a trial; no scores")
    return top


def evaluate_model(request):
    """Ask and score one benchmark. Writes answers.parquet, predictions/, scores.parquet, scores.json and results.md.

    Returns the Results of the official scorer; none with a limit, or for MMHal-Bench without reviews. Raises BadInput.
    """
    _check(request)
    wording = "paper" if request.decoding == "paper" else "official"
    how = {"prompts": wording, "task": request.task, "limit": request.limit or None}
    asked = benchmarks.read(request.benchmark, request.data or repository_root() / "data" / request.benchmark, **how)
    chosen = scoring.Scoring(request.similarity, request.reviews)
    if not request.limit:
        scoring.check(asked, chosen)
    decoding = replace(profiles.DECODINGS[request.decoding][request.benchmark], batch_size=request.batch_size)
    model = {
        "model": models.contents(request.model),
        "quantisation": request.quantisation,
        **environment.computed_on(request.device),
        "adapter": artifacts.content_hash(request.adapter) if request.adapter else None,
    }
    load = models.LoadOnce(lambda: load_model(request, asked.questions[0]))
    answers = asking.answer([asked], load, {asked.name: decoding}, request.folder, model)
    predictions = scoring.predict([asked], answers, request.folder, request.name)
    if request.limit:
        return []
    scored = scoring.score(asked, predictions / asked.name, request.name, chosen)
    if scored:
        _write_scores(request, asked, scored, answers)
    return scored


def _check(request):
    """Check the request before anything is loaded. Raises BadInput."""
    command.plain_name(request.name, "--label" if request.label else "the model's name (give a --label)")
    if request.adapter and not (Path(request.adapter) / "adapter_config.json").is_file():
        raise BadInput(f"no adapter in {request.adapter}: name the folder that holds adapter_config.json")
    if request.batch_size < 1 or request.limit < 0:
        raise BadInput("--batch-size must be at least 1, --limit at least 0")
    models.check_device(request.device)


def load_model(request, question):
    """The model, with its adapter beside it. Raises BadInput if the adapter does not fit or changes no answer."""
    model, processor = models.load(request.model, request.quantisation, request.device)
    if request.adapter:
        model = models.load_adapter(model, request.adapter)
        asking.check_adapter(model, processor, question, request.adapter)
    return model, processor


def _write_scores(request, asked, scored, answers):
    table = evaluate.long_table([row for result in scored for row in result.examples], request.identity)
    judge = next((result.details.get("judge") for result in scored), None) or {}
    protocol = {
        **{name: getattr(request, name) for name in ("model", "adapter", "decoding", "four_bit")},
        "dtype": request.quantisation.dtype,
        "adapted": asked.adapted.get("about", ""),
        "examples": table["example_id"].nunique(),
        "similarity": scored[0].details.get("similarity", ""),
        "judge": ", ".join(judge.get("model_in_replies", [])),
    }
    printed, folder = scoring.as_json(scored) | {"protocol": protocol}, request.folder
    how = {"settings": printed, "stage": "evaluation", "inputs": [answers]}
    artifacts.build(folder / "scores.json", lambda path: write_json(printed, path), **how)
    artifacts.build(folder / "scores.parquet", lambda path: table.to_parquet(path, index=False), **how)
    beside = paper.reported(request.model, {asked.name: protocol}, [request.identity["method"]])
    results = frames.results_table(table, np.random.default_rng(0), beside)
    with atomic(folder / "results.md") as path:
        path.write_text(report.results_page(results, f"{request.name} on {asked.name}"), encoding="utf-8")


@command.exit_status
def main(arguments=None):
    request = parser().parse_args(arguments, Request())
    with contextlib.redirect_stdout(sys.stderr):  # progress: stdout carries the scores
        scored = evaluate_model(request)
    if scored:
        found, written = scoring.as_json(scored), ("predictions", "scores.parquet", "results.md")
        notices = [notice for result in scored for notice in result.notices]
    else:
        found, written = {"benchmark": request.benchmark}, ("predictions",)
        notices = [scoring.unscored(request.folder, request.limit)]
    for notice in notices:
        print(f"note: {notice}", file=sys.stderr)
    files = {name: shown(request.folder / name) for name in written}
    print(json.dumps(found | {"files": files}, indent=1))
