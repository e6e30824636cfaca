"""One benchmark for one model, as the command line asks for it: `python -m napo.evaluate BENCHMARK --model MODEL …`.

An adapter is loaded as it is, never merged, and must change what the model says. Answers are on disk batch by batch:
the same command goes on where an earlier one stopped.
"""

import argparse
import contextlib
import json
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from napo import artifacts, asking, benchmarks, command, evaluate, models, paper, profiles, report, scoring, stats
from napo.artifacts import BadInput
from napo.profiles import Quantisation

DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Request:
    """One benchmark for one model, as asked for on the command line."""

    benchmark: str
    model: str
    adapter: str = ""
    data: str = ""
    out: str = ""
    label: str = ""
    decoding: str = "paper"
    four_bit: bool = False
    dtype: str = ""
    device: str = ""
    batch_size: int = 8
    task: str = "g"
    limit: int = 0
    similarity: str = "spacy"
    reviews: str = ""

    @property
    def name(self):
        """What the model is called in tables and files: the label, else the adapter's folder, else the model."""
        adapter = Path(self.adapter).resolve() if self.adapter else None
        if adapter and adapter.name == "adapter":
            adapter = adapter.parent
        return self.label or (adapter.name if adapter else Path(self.model).name)

    @property
    def folder(self):
        """Where everything is written."""
        return Path(self.out) if self.out else artifacts.run_folder("evaluations", self.name, self.benchmark)

    @property
    def chosen(self):
        """How it is scored."""
        return scoring.Scoring(self.similarity, self.reviews)

    @property
    def quantisation(self):
        """The weights' types: bfloat16 on a GPU and float32 on a CPU, unless chosen."""
        dtype = self.dtype or ("bfloat16" if self.device == "cuda" else "float32")
        return Quantisation(four_bit=self.four_bit, compute_dtype=dtype, dtype=dtype)

    @property
    def identity(self):
        """The first columns of the long table; a cell's folder tells its base, seed and flip rate."""
        cell = re.fullmatch(r"(.+)-b(\d+)-s(\d+)-f([\d.]+)(-leak)?", self.name)
        method, base, seed, flip_rate, leak = cell.groups() if cell else (self.name, 0, 0, 0.0, None)
        method += "+leak" if leak else ""
        return {"method": method, "base": int(base), "seed": int(seed), "flip_rate": float(flip_rate)}


def evaluate_model(request):
    """Ask, predict and score one benchmark: answers.parquet, predictions/, scores.parquet, scores.json and results.md
    in the request's folder. Resumes where an earlier call stopped.

    Returns the official scorers' Results: empty with a limit, and for MMHal-Bench without reviews. Raises BadInput.
    """
    _check(request)
    wording = "paper" if request.decoding == "paper" else "official"
    data_folder = request.data or artifacts.repository_root() / "data" / request.benchmark
    limits = {"task": request.task, "limit": request.limit or None}
    asked = benchmarks.read(request.benchmark, data_folder, prompts=wording, **limits)
    if not request.limit:
        scoring.check(asked, request.chosen)
    decoding = replace(profiles.DECODINGS[request.decoding][request.benchmark], batch_size=request.batch_size)
    model = {
        "model": models.contents(request.model),
        "quantisation": request.quantisation,
        "adapter": artifacts.content_hash(request.adapter) if request.adapter else None,
    }
    load = models.LoadOnce(lambda: load_model(request, asked.questions[0]))
    answers = asking.answer([asked], load, {asked.name: decoding}, request.folder, model)
    predictions = scoring.predict([asked], answers, request.folder, request.name)
    if request.limit:
        return []
    scored = scoring.results([asked], predictions, request.name, request.chosen)[asked.name]
    if scored:
        _write_scores(request, asked, scored, answers)
    return scored


def _check(request):
    """Raises BadInput for what can be told before anything is loaded."""
    if request.benchmark not in benchmarks.NAMES:
        raise BadInput(f"unknown benchmark {request.benchmark!r}: use one of {', '.join(benchmarks.NAMES)}")
    if request.adapter and not (Path(request.adapter) / "adapter_config.json").is_file():
        raise BadInput(f"no adapter in {request.adapter}: name the folder that holds adapter_config.json")
    if request.batch_size < 1 or request.limit < 0:
        raise BadInput("--batch-size and --limit are numbers of at least 1")
    if request.dtype and request.dtype not in DTYPES:
        raise BadInput(f"unknown dtype {request.dtype!r}: use one of {', '.join(DTYPES)}")
    models.check_device(request.device)


def load_model(request, question):
    """The request's model with its adapter as it is, never merged. Raises BadInput if the adapter does not fit or
    changes nothing on the question."""
    model, processor = models.load(request.model, request.quantisation, request.device)
    if request.adapter:
        model = models.load_whole_adapter(model, request.adapter)
        asking.check_adapter(model, processor, question, request.adapter)
    return model, processor


def _write_scores(request, asked, scored, answers):
    table = evaluate.long_table([row for result in scored for row in result.examples], request.identity)
    judge = next((result.details.get("judge") for result in scored), None) or {}
    protocol = {
        "model": request.model,
        "adapter": request.adapter,
        "decoding": request.decoding,
        "four_bit": request.four_bit,
        "dtype": request.quantisation.dtype,
        "adapted": asked.adapted.get("about", ""),
        "examples": table["example_id"].nunique(),
        "similarity": scored[0].details.get("similarity", ""),
        "judge": ", ".join(judge.get("model_in_replies", [])),
    }
    printed = scoring.as_json(scored) | {"protocol": protocol}
    how = {"settings": printed, "modules": ("evaluate",), "inputs": [answers]}
    folder = request.folder
    artifacts.build(folder / "scores.json", lambda path: artifacts.write_json(printed, path), **how)
    artifacts.build(folder / "scores.parquet", lambda path: table.to_parquet(path, index=False), **how)
    beside = paper.reported(request.model, {asked.name: protocol}, [request.identity["method"]])
    results = stats.results_table(table, np.random.default_rng(0), beside)
    page = report.results_page(results, f"{request.name} on {asked.name}")
    with artifacts.atomic(folder / "results.md") as path:
        path.write_text(page, encoding="utf-8")


class Parser(argparse.ArgumentParser):
    """One line for a wrong call, as for any other bad input."""

    def error(self, message):
        raise BadInput(f"{message} (see {self.prog} --help)")


def parser():
    """The command's arguments, those of Request."""
    top = Parser(prog="python -m napo.evaluate", description="Ask a model a benchmark's questions, and score it.")
    top.add_argument("benchmark", metavar="BENCHMARK", help=", ".join(benchmarks.NAMES))
    top.add_argument("--model", required=True, help="hub id or local folder")
    top.add_argument("--adapter", default="", metavar="FOLDER", help="LoRA adapter, used as it is, never merged")
    top.add_argument("--data", default="", metavar="FOLDER", help="official files; default: data/BENCHMARK")
    top.add_argument("--out", default="", metavar="FOLDER", help="default: runs/evaluations/NAME/BENCHMARK")
    top.add_argument("--label", default="", metavar="NAME", help="the model's name in tables; default: its folder's")
    top.add_argument("--decoding", default="paper", choices=profiles.DECODINGS, help="default: paper")
    top.add_argument("--four-bit", action="store_true", help="the language model in NF4, as in training")
    top.add_argument("--dtype", default="", help=f"{', '.join(DTYPES)}; default: bfloat16 on a GPU, else float32")
    top.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    top.add_argument("--batch-size", type=int, default=8, help="questions at once; default: 8")
    top.add_argument("--task", default="g", choices=benchmarks.AMBER_TASKS, help="of AMBER; default: g, generative")
    top.add_argument(
        "--similarity", default="spacy", help="of AMBER's words: spacy (default, official), exact, table:FILE"
    )
    top.add_argument("--reviews", default="", metavar="FILE", help="of MMHal-Bench: what a judge said of the answers")
    top.add_argument("--limit", type=int, default=0, help="the first so many examples only, for a trial; no scores")
    return top


@command.exit_status
def main(arguments=None):
    """The command; returns the exit status: 0 done, 2 bad input (one line says which), 130 interrupted."""
    try:
        request = Request(**vars(parser().parse_args(arguments)))
        with contextlib.redirect_stdout(sys.stderr):  # progress; the standard output is for the scores
            scored = evaluate_model(request)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    for result in scored:
        for notice in result.notices:
            print(f"note: {notice}", file=sys.stderr)
    if not scored:
        print(f"note: {scoring.unscored(request.benchmark, request.folder, request.limit)}", file=sys.stderr)
    files = {name: artifacts.shown(request.folder / name) for name in ("predictions", "scores.parquet", "results.md")}
    found = scoring.as_json(scored) if scored else {"benchmark": request.benchmark}
    files = {name: path for name, path in files.items() if scored or name == "predictions"}
    print(json.dumps(found | {"files": files}, indent=1, ensure_ascii=False))
    return 0
