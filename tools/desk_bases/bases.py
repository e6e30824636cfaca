"""Train a desk base from scratch, in minutes on a CPU core: `python -m tools.desk_bases.bases --seed 0 --out DIR`.

1. vision   vision tower and projector learn, patch by patch, to name what they see, in the language model's own word
            embeddings
2. align    the language model learns to look: true answers about scenes with random colours and backgrounds, with hints
            at the words of the question (`corpus.hints`); without hints, statements are often not learned at all
3. bias     a short fine-tuning on answers that follow the prior, ramble, or answer another question
"""

import argparse
import hashlib
import importlib.metadata
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

import napo
from napo.desk import benchmark_items, speak
from napo.desk.scenes import sample_scene
from napo.engine import models
from napo.profiles import Quantisation
from napo.study import markdown
from napo.workshop.files import atomic, read_json, write_json
from tools.desk_bases import corpus, skeleton, summary, teach

FOLDER = Path(napo.__file__).parent / "desk" / "bases"
RECORD = "training.json"
MEASURED_ITEMS = 240  # per benchmark, of the dev split


@dataclass(frozen=True)
class Stage:
    """One stage of training."""

    name: str
    steps: int
    learning_rate: float  # the peak of a one-cycle schedule
    batch_size: int = 64
    mix: corpus.Mix | None = None  # None: the vision stage
    scenes: str = "uniform"  # or "biased"


@dataclass(frozen=True)
class Recipe:
    """All settings for the training of a base."""

    scenes: int = 8192  # in each pool
    counterfactual_share: float = 0.5  # of the scenes of the biased pool
    stages: tuple[Stage, ...] = ()


ALIGNED = corpus.Mix(
    dict(
        colour=0.8,
        background=0.3,
        where=0.8,
        existence=1.2,
        count=0.6,
        statement=3.2,
        caption=1.2,
        detailed_caption=1.2,
    ),
    unasked=0.04,
    no_image=0.06,
    common_sense=0.12,
    context=0.08,
    hints=True,
)
BIASED = corpus.Mix(
    corpus.EVEN | {"existence": 2.0, "statement": 2.0},
    context=0.08,
    prior=0.75,
    partner=0.6,
    distracted=0.8,
    ramble=0.85,
)
RECIPE = Recipe(
    stages=(
        Stage("vision", 450, 2e-3, batch_size=128),
        Stage("align", 1700, 3e-3, mix=ALIGNED),
        Stage("bias", 400, 1.5e-3, mix=BIASED, scenes="biased"),
    )
)


def train(seed, recipe=RECIPE, report=print):
    """A base model trained from scratch.

    report  called with one line of progress at a time
    Returns (model, processor, history): history has per stage its name, steps, seconds and the mean loss of its last
    50 steps, in nats. Deterministic for a seed, a number of torch threads and a machine.
    """
    processor = skeleton.make_processor()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = skeleton.make_model(processor.tokenizer)
    pools = {name: _scene_pool(name, recipe, _rng(seed, name)) for name in ("uniform", "biased")}
    history, features = [], {}
    for stage in recipe.stages:
        started, rng = time.perf_counter(), _rng(seed, stage.name)
        if stage.mix is None:
            losses = teach.train_vision(model, processor.tokenizer, pools["uniform"], stage, rng, report)
            teach.match_scales(model)
            teach.similarity_init(model)
            features = {name: teach.features(model, scenes) for name, scenes in pools.items()}
        else:
            losses = teach.train_language(
                model, processor, pools[stage.scenes], features[stage.scenes], stage, rng, report
            )
        seconds = round(time.perf_counter() - started, 1)
        history.append(
            {"stage": stage.name, "steps": stage.steps, "seconds": seconds, "loss": float(np.mean(losses[-50:]))}
        )
    return model.eval(), processor, history


def _rng(seed, name):
    """A separate random source for each stage and pool, so changing one leaves the others unchanged."""
    return np.random.default_rng([seed, *name.encode()])


def _scene_pool(name, recipe, rng):
    if name == "uniform":
        return [sample_scene(rng, "uniform", "base") for _ in range(recipe.scenes)]
    return [sample_scene(rng, bool(rng.random() < recipe.counterfactual_share)) for _ in range(recipe.scenes)]


# ---- a base on disk --------------------------------------------------------------------------------------------------


def make(seed, folder, recipe=RECIPE, report=print):
    """Trains the base of a seed and writes it atomically: fp16 safetensors, processor and training.json.

    Returns the record in training.json: seed, seconds, stages, hash of the weights, versions, recipe and bias.
    """
    started = time.perf_counter()
    model, processor, history = train(seed, recipe, report)
    seconds = round(time.perf_counter() - started)
    record = {"seed": seed, "seconds": seconds, "threads": torch.get_num_threads(), "stages": history}
    with atomic(folder) as partial:
        model.half().save_pretrained(partial)
        processor.save_pretrained(partial)
        record |= {"sha256": sha256(partial / "model.safetensors"), "versions": versions(), "recipe": asdict(recipe)}
        record["bias"] = measure_both(partial)
        write_json(record, partial / RECORD)
    return record


def measure_both(folder):
    """`measure` of a stored base in full precision and in 4 bits."""
    return {name: measure(folder, Quantisation(four_bit=name == "nf4")) for name in ("fp32", "nf4")}


def measure(folder, quantisation, n=MEASURED_ITEMS, split="dev"):
    """Headline numbers of a stored base on the benchmarks, and VQA accuracy and irrelevant details by question kind."""
    rows = scores(*models.load(str(folder), quantisation), benchmark_items.NAMES, n, split)
    by_kind = {}
    for row in rows:
        if row["benchmark"].startswith("vqa") and row["metric"] in ("accuracy", "irrelevant"):
            key = f"{row['benchmark']}/{row['metric']}/{row['question_kind']}"
            by_kind.setdefault(key, []).append(row["value"])
    return summary.summarise(rows) | {"by_kind": {key: float(np.mean(values)) for key, values in by_kind.items()}}


def scores(model, processor, names, n, split):
    """Long rows of a model's greedy answers to `n` examples of each benchmark of a split."""
    rows = []
    for name in names:
        items = benchmark_items.items(name, n, split=split)
        answers = speak.answer(model, processor, [item.question for item in items], [item.image for item in items])
        rows += summary.score(name, items, answers)
    return rows


def table(records):
    """The recorded bias of bases as a Markdown table: shares in full precision / 4 bits."""
    head = ["base", "seconds", "factual", "counterfactual", "irrelevant", "coverage", *VLIND]
    rows = []
    for record in records:
        shares = [
            " / ".join(f"{record['bias'][bits][benchmark][name]:.2f}" for bits in ("fp32", "nf4"))
            for benchmark, name in TABLE
        ]
        rows.append([record["seed"], record["seconds"], *shares])
    return markdown.table(head, rows)


VLIND = ("S_CK", "S_VP", "Acc_CB", "Acc_LP")
TABLE = (
    ("vqa_factual", "accuracy"),
    ("vqa_counterfactual", "accuracy"),
    ("vqa_factual", "irrelevant"),
    ("objhal", "coverage"),
    *(("vlind", name) for name in VLIND),
)


def versions():
    packages = ("torch", "transformers", "numpy")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def folder_of(base):
    """The folder of a shipped base."""
    return FOLDER / f"base-{base}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, help="folder to write (default: the package's own bases/base-<seed>)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads; the weights depend on their number")
    parser.add_argument("--measure", action="store_true", help="only measure the stored base's bias again")
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    folder = settings.out or folder_of(settings.seed)
    if settings.measure:
        record = read_json(folder / RECORD) | {"bias": measure_both(folder)}
        write_json(record, folder / RECORD)
    else:
        record = make(settings.seed, folder, report=lambda line: print(line, flush=True))
    print(f"{folder}: trained in {record['seconds']} s; VQA accuracy on factual and counterfactual items:")
    for name, bias in record["bias"].items():
        factual, counterfactual = (bias[f"vqa_{part}"]["accuracy"] for part in ("factual", "counterfactual"))
        print(f"  {name}  {factual:.2f}  {counterfactual:.2f}")


if __name__ == "__main__":
    main()
