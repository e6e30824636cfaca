"""Does the desk world leave headroom for a method? `python -m experiments.headroom --bases 100 101 --out FILE.json`.

Each arm trains on the original pairs, alone or with biased ones, without or with injected noise:

leak   in a share LEAK of the rows good answers replace both biased ones, the paper's own kind of noise
swap   in a share SWAP of the rows chosen and rejected answers change places, in every term

The oracle knows which pairs are noise and drops them. `COMPARISONS` lists which arm should beat which. Development
bases are measured on the dev split, all others on the test split.
"""

import argparse
import functools
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from napo import profiles
from napo.comparison import labels
from napo.desk.leak import leak
from napo.desk.pairs import label_noise
from napo.engine import logps, models, preferences
from napo.methods import KINDS, METHODS, Method, Term
from napo.noise import injected
from napo.pairs import perturb
from napo.profiles import DEVELOPMENT_BASES
from napo.stats import intervals, measures
from napo.study import claims, markdown
from napo.training import trainer
from napo.training.training_set import TrainingSet
from napo.workshop import artifacts, grid
from napo.workshop.files import write_json
from tools.desk_bases import bases

LEAK, SWAP = 0.4, 0.3
ITEMS = 300  # per benchmark
BENCHMARKS = ("vqa_factual", "vqa_counterfactual", "objhal")
MEASURES = ("acc_counterfactual", "acc_overall", "Cover", "irrelevant")
ORIGINAL, LANGUAGE, VISION = (Term(kind) for kind in KINDS[1:])
TERMS = {"lb": (ORIGINAL, LANGUAGE), "vb": (ORIGINAL, VISION), "all": (ORIGINAL, LANGUAGE, VISION)}

ARMS = {
    "sft": METHODS["sft"],
    "dpo_original": METHODS["dpo_original"],
    **{f"dpo_{name}": Method(f"DPO, {name}", terms) for name, terms in TERMS.items()},
    **{f"oracle_{name}": Method(f"oracle, {name}", terms, drop_noise=True) for name, terms in TERMS.items()},
}
RUNS = (  # (arm, noise)
    *((arm, "") for arm in ("sft", "dpo_original", "dpo_lb", "dpo_vb", "dpo_all")),
    *((f"{arm}_{name}", "leak") for name in TERMS for arm in ("dpo", "oracle")),
    ("sft", "swap"),
    *((f"{arm}_{name}", "swap") for name in TERMS for arm in ("dpo", "oracle")),
)
SOURCES = sorted(Path(__file__).parent.glob("*.py"))  # an experiment's own code is in the key of its scores
COMPARISONS = (  # (better, worse), each an arm or arm+noise
    ("dpo_original", "base"),
    ("dpo_lb", "dpo_original"),
    ("dpo_vb", "dpo_original"),
    ("dpo_all", "dpo_original"),
    ("dpo_all", "sft"),
    *(
        comparison
        for name in TERMS
        for noise, sft in (("leak", "sft"), ("swap", "sft+swap"))
        for comparison in (
            (f"oracle_{name}+{noise}", f"dpo_{name}+{noise}"),
            (f"oracle_{name}+{noise}", sft),
        )
    ),
)


@dataclass(frozen=True)
class Run:
    """One training and its evaluation; the arm "base" trains nothing."""

    arm: str
    noise: str
    base: int
    seed: int

    @property
    def name(self):
        return f"{self.label}-b{self.base}-s{self.seed}"

    @property
    def label(self):
        return f"{self.arm}+{self.noise}" if self.noise else self.arm


def runs(numbers, seeds):
    """All runs on the bases with these numbers: each base untrained once, each arm with each seed."""
    untrained = [Run("base", "", base, 0) for base in numbers]
    return untrained + [Run(arm, noise, base, seed) for seed in seeds for base in numbers for arm, noise in RUNS]


def scores_of(run, profile, runs_dir="runs", method=None, change=None):
    """Path of the run's scores.parquet, made unless current.

    method   for an arm that is not in ARMS (experiments/vision_forms.py)
    change   (rows, model, processor, rng) -> rows, applied to the training rows first; the run's `noise` names it
    """
    method = method or ARMS.get(run.arm)
    pairs = perturb.pairs(profile, run.base, runs_dir)
    settings = profile.computing | {"run": asdict(run), "method": method and method.settings, "items": ITEMS}
    settings |= {"training": profile.training, "lora": profile.lora, "noise": [LEAK, SWAP]}
    settings |= {"model": models.identity(profile, run.base), "code": list(map(artifacts.content_hash, SOURCES))}
    folder = artifacts.run_folder(profile.name, "cells", run.name, runs_dir=runs_dir)
    return artifacts.build(
        folder / "scores.parquet",
        lambda path: _make_scores(path, run, method, change, profile, pairs),
        settings=settings,
        stage="evaluation",
        desk=True,
        inputs=[pairs],
    )


def _make_scores(path, run, method, change, profile, pairs):
    model, processor = models.load_base(profile, run.base)
    if method:
        rows = [dict(row) for row in preferences.part(preferences.read(pairs), "train")]
        if change:
            rows = change(rows, model, processor, np.random.default_rng([run.base, run.seed]))
        model = _trained(model, processor, run, method, profile, rows)
    split = "dev" if run.base in DEVELOPMENT_BASES else "test"
    rows = bases.scores(model.eval(), processor, BENCHMARKS, ITEMS, split)
    identity = {"method": run.label, "base": run.base, "seed": run.seed, "flip_rate": 0.0}
    pd.DataFrame([identity | row for row in rows]).to_parquet(path, index=False)


def _trained(model, processor, run, method, profile, rows):
    if run.noise == "leak":
        rows = label_noise(leak(rows, LEAK, np.random.default_rng([run.base, run.seed])))
    training = profile.training
    reference = logps.measure(model, processor, rows, KINDS, training.batch_size, training.max_length)
    flipped = injected.drawn(len(rows), injected.Injection("swap", SWAP if run.noise == "swap" else 0.0, run.seed))
    data = TrainingSet(rows, reference, flipped, labels.weights(method, rows, flipped, {}))
    with tempfile.TemporaryDirectory() as checkpoints:
        fit = trainer.Fit(training, profile.lora, run.seed)
        return trainer.fit(model, processor, method, data, fit, checkpoints)[0]


# ---- results --------------------------------------------------------------------------------------------------------


def summary(scores, min_bases=claims.MIN_BASES, compared=COMPARISONS):
    """{"arms": [...], "comparisons": [...]}: a record for each arm and measure, and for each comparison and measure.

    scores    long frame of all runs
    compared  pairs of arms (better, worse)
    The 95 % intervals are over bases. With fewer than `min_bases` they are over examples, each averaged over bases and
    seeds, and then say nothing about other bases.
    """
    arms, comparisons, pooled = [], [], _pooled(scores)
    enough = scores["base"].nunique() >= min_bases
    for name in MEASURES:
        measure = measures.MEASURES[name]
        values = measures.run_values(scores, measure)
        for arm, found in values.groupby("method"):
            arms.append({"arm": arm, "measure": name, "value": intervals.estimate(found).value})
        for better, worse in compared:
            found = intervals.paired_difference(values, better, worse)
            if not enough:
                sides = [pooled[pooled["method"] == arm] for arm in (better, worse)]
                test = measures.paired_examples(*sides, measure, np.random.default_rng(0))
                found = intervals.Estimate(test.value, test.lo, test.hi, over="examples")
            record = {"better": better, "worse": worse, "measure": name}
            comparisons.append(record | {key: getattr(found, key) for key in ("value", "lo", "hi", "over")})
    return {"arms": arms, "comparisons": comparisons}


def _pooled(scores):
    """The scores averaged over bases and seeds for each example, as if each method had run once."""
    means = scores.groupby(["method", "benchmark", "metric", "example_id"], as_index=False)["value"].mean()
    return means.assign(base=0, seed=0, flip_rate=0.0)


def table(found):
    """The comparisons as a Markdown table: differences with their intervals, in points of percent."""
    head = ["better", "worse", *(measures.MEASURES[name].label for name in MEASURES)]
    rows = []
    for better, worse in dict.fromkeys((r["better"], r["worse"]) for r in found["comparisons"]):
        records = {r["measure"]: r for r in found["comparisons"] if (r["better"], r["worse"]) == (better, worse)}
        rows.append([better, worse, *(points(records[name]) for name in MEASURES)])
    return markdown.table(head, rows)


def missed(found, measure="acc_counterfactual"):
    """One sentence: how many differences were found, which were not, and which point the other way."""
    records = [record for record in found["comparisons"] if record["measure"] == measure]
    held = [record for record in records if record["lo"] > 0]
    against = [record for record in records if record["hi"] < 0]
    open_ = [record for record in records if record not in held and record not in against]
    text = f"On counterfactual accuracy {len(held)} of {len(records)} differences lie outside their intervals"
    for label, part in (("not shown", open_), ("the other way round", against)):
        if part:
            text += f"; {label}: " + ", ".join(f"{record['better']} > {record['worse']}" for record in part)
    return text + "."


def points(record):
    """A difference with its interval, in points of percent."""
    value, lo, hi = (100 * record[key] for key in ("value", "lo", "hi"))
    return f"{value:+.1f} [{lo:+.1f}, {hi:+.1f}]"


def command(description, runs, worker, compared, show):
    """The command line of an experiment: measures all runs, writes the summary to --out and prints show(summary).

    runs      (bases, seeds) -> list of Run;  worker  (run, profile, runs_dir) -> path of its scores
    compared  frame of scores -> pairs of arms (better, worse)
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--bases", type=int, nargs="+", default=list(DEVELOPMENT_BASES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--runs-dir", default="runs")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the summary")
    asked = parser.parse_args()
    profile = replace(profiles.get("desk"), name="headroom", heldout_rows=0)
    untrained = [Run("base", "", base, 0) for base in asked.bases]
    parts = (
        (untrained, scores_of, "bases and their pairs"),  # pairs first: once per base
        (runs(asked.bases, asked.seeds), worker, "trainings"),
    )
    for todo, make, label in parts:
        make = functools.partial(make, profile=profile, runs_dir=asked.runs_dir)
        paths = grid.run(todo, make, workers=profile.workers, label=label)
    scores = pd.concat([pd.read_parquet(path) for path in paths], ignore_index=True)
    found = summary(scores, compared=compared(scores))
    about = {"bases": asked.bases, "seeds": asked.seeds, "items": ITEMS, "leak": LEAK, "swap": SWAP}
    write_json(about | {"profile": asdict(profile)} | found, asked.out)
    print(show(found))


def main():
    command(__doc__, runs, scores_of, lambda _: COMPARISONS, lambda found: f"{table(found)}\n{missed(found)}")


if __name__ == "__main__":
    from experiments import headroom  # under its own name: the grid's processes import what they run

    headroom.main()
