"""A model and its adapter on benchmarks: answers, official prediction files, scores, one table with a value per example
and metric.

`python -m napo.evaluate BENCHMARK --model MODEL [--adapter FOLDER] [--data FOLDER]` (its arguments: request.py) and
notebook 04 (here) go the same way: `asking.answer` asks, resumably; `scoring.predict` writes the official files,
`scoring.results` scores these.
"""

import functools
import importlib
import sys
from dataclasses import replace

import pandas as pd

from napo import artifacts, asking, benchmarks, data, generation, logps, models, profiles, scoring, train
from napo.profiles import METHODS, REJECTED_KINDS, Decoding

COLUMNS = ["method", "base", "seed", "flip_rate", "benchmark", "metric", "example_id", "question_kind", "value"]
VQA = ("vqa_factual", "vqa_counterfactual")


def long_table(records, identity):
    """Records (benchmark, metric, example_id, question_kind, value) as the table of design.md.

    identity  {"method", "base", "seed", "flip_rate"}
    """
    return pd.DataFrame([identity | record for record in records], columns=COLUMNS)


# ---- a cell of the comparison (notebook 04) -------------------------------------------------------------------------


def evaluate_cell(cell, profile, runs_dir="runs"):
    """Path of cells/<cell>/scores.parquet, made unless it is current; answers.parquet, predictions/ and official.json
    (what the official scorers print) beside it."""
    folder = train.cell_folder(profile, cell, runs_dir)
    inputs = train.cell_inputs(profile, cell, runs_dir)
    adapter = artifacts.require(folder / "adapter", "03") if METHODS[cell.method].trained else None
    load = models.LoadOnce(functools.partial(load_cell, cell, profile, runs_dir))
    asked, chosen = cell_benchmarks(profile, runs_dir), scoring.Scoring(profile.evaluation.similarity)
    for benchmark in asked:
        scoring.check(benchmark, chosen)
    model = {
        "model": models.identity(profile, cell.base),
        "quantisation": profile.quantisation,
        "adapter": artifacts.content_hash(adapter) if adapter else None,
    }
    answers = asking.answer(asked, load, cell_decodings(profile), folder, model)
    predictions = scoring.predict(asked, answers, folder, cell.name) if asked else None
    scored = functools.cache(lambda: scoring.results(asked, predictions, cell.name, chosen))
    made = [adapter, answers, predictions, *(file for benchmark in asked for file in scoring.annotations(benchmark))]
    how = {
        "settings": train.cell_settings(profile, cell) | {"evaluation": profile.evaluation},
        "modules": ("evaluate", "world.benchmarks") if profile.is_desk else ("evaluate",),
        "inputs": [*inputs, *(path for path in made if path)],
        "seeds": [cell.seed],
    }
    if asked:
        artifacts.build(folder / "official.json", lambda path: artifacts.write_json(_printed(scored()), path), **how)
    return artifacts.build(
        folder / "scores.parquet",
        lambda path: score(load, answers, scored(), cell, profile, runs_dir).to_parquet(path, index=False),
        **how,
    )


def _printed(scored):
    """{benchmark: what `python -m napo.score` would print}."""
    return {name: scoring.as_json(of_benchmark) for name, of_benchmark in scored.items() if of_benchmark}


def load_cell(cell, profile, runs_dir):
    """The base with the cell's adapter as it is, never merged. Raises BadInput if the adapter changes nothing on the
    first held-out row."""
    model, processor = models.load_base(profile, cell.base)
    if not METHODS[cell.method].trained:
        return model, processor
    folder = train.cell_folder(profile, cell, runs_dir) / "adapter"
    model = models.load_whole_adapter(model, folder)
    row = heldout_rows(cell, profile, runs_dir)[0]
    question = benchmarks.Question(row["row_id"], row["row_id"], row["question"], row["image"])
    asking.check_adapter(model, processor, question, artifacts.shown(folder))
    return model, processor


def heldout_rows(cell, profile, runs_dir):
    """The preference rows of a cell's base that no training sees."""
    return data.part(data.read(train.cell_inputs(profile, cell, runs_dir)[0]), "heldout")


def desk(module="benchmarks"):
    """A module of the desk world. Not a static import: a change there must not make other profiles' scores stale."""
    return importlib.import_module(f"napo.world.{module}")


def asked_names(profile):
    """Those of a profile's benchmarks that put questions to the model."""
    return [name for name in profile.evaluation.benchmarks if name != "heldout_pairs"]


def cell_benchmarks(profile, runs_dir="runs"):
    """The benchmarks that put questions to a profile's models: official ones from the profile's folder of data, or the
    desk world's counterparts."""
    settings = profile.evaluation
    if not profile.is_desk:
        wording = "paper" if settings.decoding == "paper" else "official"
        root = artifacts.repository_root() / settings.data
        return [  # AMBER's captions and its yes-or-no questions: these guard general ability (napo/guard.py)
            benchmarks.read(name, root / name, task="a", prompts=wording) for name in asked_names(profile)
        ]
    asked = []
    for name in asked_names(profile):
        if name in VQA:
            asked.append(desk().asked(name, desk().items(name, settings.items, settings.seed)))
        else:
            asked.append(benchmarks.read(name, desk_data(name, profile, runs_dir), task="a"))
    return asked


def desk_data(name, profile, runs_dir="runs"):
    """Path of benchmarks/<name>/: the desk world's counterpart of a benchmark, in its official layout."""
    settings = profile.evaluation
    return artifacts.build(
        artifacts.run_folder(profile.name, "benchmarks", name, runs_dir=runs_dir),
        lambda path: desk("official").write(name, desk().items(name, settings.items, settings.seed), path),
        settings={"items": settings.items, "seed": settings.seed},
        modules=("world.benchmarks",),
    )


def cell_decodings(profile):
    """{benchmark: Decoding}: of the profile's own length and beams, or the one that its evaluation names."""
    settings = profile.evaluation
    own = Decoding(settings.num_beams, 0.0, settings.max_new_tokens, settings.batch_size)
    if not settings.decoding:
        return dict.fromkeys(asked_names(profile), own)
    named = profiles.DECODINGS[settings.decoding]
    return {name: replace(named[name], batch_size=settings.batch_size) for name in asked_names(profile)}


def protocol(profile, asked):
    """{benchmark: how it was asked}, for `paper.reported`."""
    settings = profile.evaluation
    similarity = settings.similarity if settings.similarity != "spacy" else "spaCy en_core_web_lg"
    how = {"decoding": settings.decoding or "of the profile", "similarity": similarity}
    how["four_bit"] = profile.quantisation.four_bit
    return {b.name: how | {"examples": b.n_generative, "adapted": b.adapted.get("about", "")} for b in asked}


def score(load, answers_path, scored, cell, profile, runs_dir):
    """The cell's scores as one long DataFrame; load() gives model and processor if a benchmark needs them."""
    records = [row for of_benchmark in scored.values() for result in of_benchmark for row in result.examples]
    answers = artifacts.read_parquet(answers_path, "04")
    for name in asked_names(profile):
        if name in VQA:
            records += score_desk(name, answers, profile.evaluation)
    if "heldout_pairs" in profile.evaluation.benchmarks:
        (model, processor), rows = load(), heldout_rows(cell, profile, runs_dir)
        reference_path = train.cell_inputs(profile, cell, runs_dir)[1]
        reference = logps.load_reference(reference_path, model, processor, rows, profile)
        records += heldout_pairs(model, processor, rows, reference, profile)
    identity = {"method": cell.method, "base": cell.base, "seed": cell.seed, "flip_rate": cell.flip_rate}
    return long_table(records, identity)


def score_desk(name, answers, settings):
    """Long records of the answers to a benchmark that only the desk world has."""
    items = desk().items(name, settings.items, settings.seed)
    return desk().score(name, items, list(answers.loc[answers["benchmark"] == name, "answer"]))


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


def load_scores(profile, runs_dir="runs", noise_kind="swap"):
    """The scores of all cells without noise put in, and of those with one kind of it, in one long DataFrame.

    noise_kind  "swap" | "leak": at one flip rate a frame holds one kind, so that its runs stay distinct
    Raises MissingArtifact if one of these cells has none yet.
    """
    cells = [cell for cell in profile.cells() if not cell.flip_rate or cell.noise_kind == noise_kind]
    files = [train.cell_folder(profile, cell, runs_dir) / "scores.parquet" for cell in cells]
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
    settings, frames = profile.evaluation, []
    for weights, four_bit in (("NF4", True), ("fp32", False)):
        model, processor = models.load_base(profile, base, four_bit)
        for name in VQA:
            items = desk().items(name, settings.items, settings.seed)
            prompts = [({"image": item.image, "question": item.question}, True, True) for item in items]
            answers = generation.generate(model, processor, prompts, settings)
            rows = desk().score(name, items, answers)
            frames.append(pd.DataFrame(rows).assign(weights=weights, base=base))
    return pd.concat(frames, ignore_index=True)


if __name__ == "__main__":
    from napo import request

    sys.exit(request.main())
