"""A model and its adapter on benchmarks: the prompts, batched answers, and one table with a value per example and
metric."""

import functools
import importlib
from dataclasses import replace

import pandas as pd

from napo import artifacts, data, generation, logps, models, packing, train
from napo.artifacts import BadInput
from napo.profiles import METHODS, REJECTED_KINDS

COLUMNS = ["method", "base", "seed", "flip_rate", "benchmark", "metric", "example_id", "question_kind", "value"]


def evaluate_cell(cell, profile, runs_dir="runs"):
    """Path of cells/<cell>/scores.parquet, made unless it is current from answers.parquet beside it (notebook 04)."""
    folder = train.cell_folder(profile, cell, runs_dir)
    inputs = train.cell_inputs(profile, cell, runs_dir)
    if METHODS[cell.method].trained:
        inputs.append(artifacts.require(folder / "adapter", "03"))
    load = models.LoadOnce(functools.partial(load_cell, cell, profile, runs_dir))
    how = {
        "settings": train.cell_settings(profile, cell) | {"evaluation": profile.evaluation},
        "modules": ("evaluate", "world.benchmarks") if profile.is_desk else ("evaluate",),
        "seeds": [cell.seed],
    }
    answers = artifacts.build(
        folder / "answers.parquet",
        lambda path: ask(*load(), profile.evaluation).to_parquet(path, index=False),
        inputs=inputs,
        **how,
    )
    return artifacts.build(
        folder / "scores.parquet",
        lambda path: score(load, answers, cell, profile, runs_dir).to_parquet(path, index=False),
        inputs=[*inputs, answers],
        **how,
    )


def load_cell(cell, profile, runs_dir):
    """The base with the cell's adapter as it is, never merged. Raises BadInput if the adapter changes nothing on the
    first held-out row."""
    model, processor = models.load_base(profile, cell.base)
    if not METHODS[cell.method].trained:
        return model, processor
    folder = train.cell_folder(profile, cell, runs_dir) / "adapter"
    model = models.load_adapter(model, folder)
    row = heldout_rows(cell, profile, runs_dir)[0]
    encoded = packing.encode(row, processor, ("chosen",), profile.training.max_length)
    batch = packing.collate_plain([encoded], ("chosen",), processor.tokenizer.pad_token_id)
    if models.adapter_effect(model, logps.to_device(batch, model.device)) == 0:
        raise BadInput(f"{artifacts.shown(folder)}: the adapter loads and changes nothing; train the cell again")
    return model, processor


def heldout_rows(cell, profile, runs_dir):
    """The preference rows of a cell's base that no training sees."""
    return data.part(data.read(train.cell_inputs(profile, cell, runs_dir)[0]), "heldout")


def desk():
    """The desk world's benchmarks. Not a static import: a change there must not make other profiles' scores stale."""
    return importlib.import_module("napo.world.benchmarks")


def asked_benchmarks(settings):
    """Those of a profile's benchmarks that put questions to the model."""
    return [name for name in settings.benchmarks if name != "heldout_pairs"]


def ask(model, processor, settings):
    """A model's greedy answers to the items of the desk world's benchmarks: DataFrame benchmark, example_id, question,
    answer, in the items' order. settings: profiles.Evaluation."""
    tables = [pd.DataFrame(columns=["benchmark", "example_id", "question", "answer"], dtype=str)]
    for benchmark in asked_benchmarks(settings):
        items = desk().items(benchmark, settings.items, settings.seed)
        prompts = [({"image": item.image, "question": item.question}, True, True) for item in items]
        answers = generation.generate(model, processor, prompts, settings)
        columns = {
            "benchmark": benchmark,
            "example_id": [item.example_id for item in items],
            "question": [item.question for item in items],
            "answer": answers,
        }
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def score_answers(answers, settings):
    """Long records (benchmark, metric, example_id, question_kind, value) of the answers that `ask` returned."""
    records = []
    for benchmark in asked_benchmarks(settings):
        items = desk().items(benchmark, settings.items, settings.seed)
        records += desk().score(benchmark, items, list(answers.loc[answers["benchmark"] == benchmark, "answer"]))
    return records


def score(load, answers_path, cell, profile, runs_dir):
    """The cell's scores as one long DataFrame; load() gives model and processor if a benchmark needs them."""
    records = score_answers(artifacts.read_parquet(answers_path, "04"), profile.evaluation)
    if "heldout_pairs" in profile.evaluation.benchmarks:
        (model, processor), rows = load(), heldout_rows(cell, profile, runs_dir)
        reference_path = train.cell_inputs(profile, cell, runs_dir)[1]
        reference = logps.load_reference(reference_path, model, processor, rows, profile)
        records += heldout_pairs(model, processor, rows, reference, profile)
    identity = {"method": cell.method, "base": cell.base, "seed": cell.seed, "flip_rate": cell.flip_rate}
    return pd.DataFrame([identity | record for record in records], columns=COLUMNS)


def heldout_pairs(model, processor, rows, reference, profile):
    """How the model ranks pairs that no training saw: long records of reward margins, their signs, and the chosen
    log-prob per token.

    A guard for general ability: the log-likelihood of held-out chosen answers falls when a training breaks the model.
    """
    kinds = ("chosen", *REJECTED_KINDS)
    batch_size, training = profile.evaluation.batch_size, profile.training
    frame = logps.measure(model, processor, rows, kinds, batch_size, training.max_length, packed=training.packed)
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
    """Path of base-<b>/bias.parquet: long records of the untrained base on the benchmarks, in 4 bits and in full
    precision.

    Quantisation alone takes part of the bias away, so bias is measured on the model that generates and trains, with the
    other beside it. Column `weights` says which; desk world only, where the truth is known.
    """
    folder = artifacts.run_folder(profile.name, f"base-{base}", runs_dir=runs_dir)
    settings = {
        "model": models.identity(profile, base),
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
    settings = replace(profile.evaluation, benchmarks=("vqa_factual", "vqa_counterfactual"))
    frames = []
    for weights, four_bit in (("NF4", True), ("fp32", False)):
        answers = ask(*models.load_base(profile, base, four_bit), settings)
        frames.append(pd.DataFrame(score_answers(answers, settings)).assign(weights=weights, base=base))
    return pd.concat(frames, ignore_index=True)
