"""A model and its adapter on benchmarks: the prompts, batched answers, and one table with a value per example and
metric."""

import importlib
from dataclasses import replace

import pandas as pd

from napo import artifacts, data, generation, logps, models, packing, train
from napo.artifacts import BadInput
from napo.profiles import METHODS, REJECTED_KINDS

COLUMNS = ["method", "base", "seed", "flip_rate", "benchmark", "metric", "example_id", "question_kind", "value"]


def evaluate_cell(cell, profile, runs_dir="runs"):
    """Path of cells/<cell>/scores.parquet, with answers.parquet beside it, made unless they are current (notebook
    04)."""
    folder = train.cell_folder(profile, cell, runs_dir)
    inputs = train.cell_inputs(profile, cell, runs_dir)
    if METHODS[cell.method].trained:
        inputs.append(artifacts.require(folder / "adapter", "03"))
    settings = train.cell_settings(profile, cell) | {"evaluation": profile.evaluation}
    return artifacts.build(
        folder / "scores.parquet",
        lambda path: _evaluate(path, cell, profile, runs_dir),
        settings=settings,
        modules=("evaluate", "world.benchmarks") if profile.is_desk else ("evaluate",),
        inputs=inputs,
        seeds=[cell.seed],
    )


def _evaluate(path, cell, profile, runs_dir):
    pairs_path, reference_path = train.cell_inputs(profile, cell, runs_dir)
    rows = data.part(data.read(pairs_path), "heldout")
    reference = artifacts.read_parquet(reference_path, "02")
    model, processor = load_cell(cell, profile, runs_dir, rows[0])
    records, answers = [], []
    for benchmark in profile.evaluation.benchmarks:
        if benchmark == "heldout_pairs":
            records += heldout_pairs(model, processor, rows, reference, profile)
        else:
            scored, asked = ask_benchmark(model, processor, benchmark, profile.evaluation)
            records += scored
            answers += asked
    artifacts.write_parquet(
        pd.DataFrame(answers, columns=["benchmark", "example_id", "question", "answer"]),
        path.parent / "answers.parquet",
    )
    identity = {"method": cell.method, "base": cell.base, "seed": cell.seed, "flip_rate": cell.flip_rate}
    pd.DataFrame([identity | record for record in records], columns=COLUMNS).to_parquet(path, index=False)


def load_cell(cell, profile, runs_dir, row):
    """The base with the cell's adapter as it is, never merged. Raises BadInput if the adapter changes nothing on
    `row`."""
    name = models.source(profile, cell.base)
    model, processor = models.load(name, profile.quantisation, profile.device, profile.revision)
    if not METHODS[cell.method].trained:
        return model, processor
    folder = train.cell_folder(profile, cell, runs_dir) / "adapter"
    model = models.load_adapter(model, folder)
    encoded = packing.encode(row, processor, ("chosen",), profile.training.max_length)
    batch = packing.collate_plain([encoded], ("chosen",), processor.tokenizer.pad_token_id)
    if models.adapter_effect(model, logps.to_device(batch, model.device)) == 0:
        raise BadInput(f"{artifacts.shown(folder)}: the adapter loads and changes nothing; train the cell again")
    return model, processor


def ask_benchmark(model, processor, benchmark, settings):
    """Answers to a benchmark of the desk world, and their scores: (long records, asked and answered)."""
    desk = importlib.import_module("napo.world.benchmarks")  # not static: it must not make other profiles' scores stale
    items = desk.items(benchmark, settings.items, settings.seed)
    prompts = [({"image": item.image, "question": item.question}, True, True) for item in items]
    texts = generation.generate(model, processor, prompts, settings)
    asked = [
        {"benchmark": benchmark, "example_id": item.example_id, "question": item.question, "answer": text}
        for item, text in zip(items, texts, strict=True)
    ]
    return desk.score(benchmark, items, texts), asked


def heldout_pairs(model, processor, rows, reference, profile):
    """How the model ranks pairs that no training saw: long records of reward margins, their signs, and the chosen
    log-prob per token.

    A guard for general ability: the log-likelihood of held-out chosen answers falls when a training breaks the model.
    """
    kinds = ("chosen", *REJECTED_KINDS)
    frame = logps.measure(model, processor, rows, kinds, profile.evaluation.batch_size, profile.training.max_length)
    frame = frame.merge(reference, on="row_id", suffixes=("", "_reference"), validate="one_to_one")
    question_kinds = rows["question_kind"] if "question_kind" in rows.column_names else [""] * len(rows)
    records = []
    for record, question_kind in zip(frame.to_dict("records"), question_kinds, strict=True):
        ratio = {kind: record[f"logps_{kind}"] - record[f"logps_{kind}_reference"] for kind in kinds}
        values = {"chosen_logps_per_token": record["logps_chosen"] / record["tokens_chosen"]}
        for kind in REJECTED_KINDS:
            margin = ratio["chosen"] - ratio[kind]
            values |= {f"margin_{kind}": margin, f"accuracy_{kind}": float(margin > 0)}
        records += [
            {
                "benchmark": "heldout_pairs",
                "metric": metric,
                "example_id": record["row_id"],
                "question_kind": question_kind,
                "value": value,
            }
            for metric, value in values.items()
        ]
    return records


def load_scores(profile, runs_dir="runs"):
    """All cells' scores in one long DataFrame. Raises MissingArtifact if a cell of the profile has none yet."""
    files = [train.cell_folder(profile, cell, runs_dir) / "scores.parquet" for cell in profile.cells()]
    return pd.concat([artifacts.read_parquet(artifacts.require(file, "04")) for file in files], ignore_index=True)


def bias_table(profile, base, runs_dir="runs"):
    """Path of base-<b>/bias.parquet: long records of the untrained base on the benchmarks, in 4 bits and in full precision.

    Quantisation alone takes part of the bias away, so bias is measured on the model that generates and trains, with the
    other beside it. Column `weights` says which; desk world only, where the truth is known.
    """
    folder = artifacts.run_folder(profile.name, f"base-{base}", runs_dir=runs_dir)
    settings = {
        "model": models.identity(models.source(profile, base)),
        "quantisation": profile.quantisation,
        "evaluation": profile.evaluation,
    }
    return artifacts.build(
        folder / "bias.parquet",
        lambda path: _measure_bias(profile, base).to_parquet(path, index=False),
        settings=settings,
        modules=("evaluate", "world.benchmarks"),
    )


def _measure_bias(profile, base):
    frames = []
    for weights, four_bit in (("NF4", True), ("fp32", False)):
        quantisation = replace(profile.quantisation, four_bit=four_bit)
        model, processor = models.load(models.source(profile, base), quantisation, profile.device)
        for benchmark in ("vqa_factual", "vqa_counterfactual"):
            records, _ = ask_benchmark(model, processor, benchmark, profile.evaluation)
            frames.append(pd.DataFrame(records).assign(weights=weights, base=base))
    return pd.concat(frames, ignore_index=True)
