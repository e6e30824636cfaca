"""The cells of the comparison on the benchmarks: answers, official prediction files, scores (notebook 04).

Scores are one long table with a value per example and metric. `napo evaluate` asks and scores any other model in the
same way: `asking.answer`, then `scoring.predict`, then `scoring.results`.
"""

import functools
from dataclasses import replace

import pandas as pd

from napo import profiles
from napo.comparison.cells import cell_folder, cell_inputs, cell_settings
from napo.desk import benchmark_items, layout
from napo.engine import generation, logps, models, preferences
from napo.evaluation import asking, scoring
from napo.methods import METHODS, REJECTED_KINDS
from napo.noise import reference_logps
from napo.official import benchmarks
from napo.official.records import long_rows
from napo.profiles import Decoding
from napo.workshop import artifacts
from napo.workshop.files import read_parquet, repository_root, require, shown, write_json

COLUMNS = ["method", "base", "seed", "flip_rate", "benchmark", "metric", "example_id", "question_kind", "value"]


def evaluate_cell(cell, profile, runs_dir="runs"):
    """Path of cells/<cell>/scores.parquet, made unless current.

    Makes answers.parquet, predictions/ and official.json (what `napo score` would print) beside it. Raises BadInput for
    missing or stale inputs, missing benchmark files, and an adapter that changes nothing.
    """
    folder, inputs = cell_folder(profile, cell, runs_dir), cell_inputs(profile, cell, runs_dir)
    adapter = [require(folder / "adapter", "03")] if METHODS[cell.method].trained else []
    asked, chosen = cell_benchmarks(profile, runs_dir), scoring.Scoring(profile.evaluation.similarity)
    for benchmark in asked:
        scoring.check(benchmark, chosen)
    hashes = [artifacts.content_hash(path) for path in adapter]
    model = profile.computing | {"model": models.identity(profile, cell.base), "adapter": hashes}
    load = models.LoadOnce(functools.partial(load_cell, cell, profile, runs_dir))
    answers = asking.answer(asked, load, cell_decodings(profile), folder, model)
    predictions = scoring.predict(asked, answers, folder, cell.name) if asked else None
    scored = functools.cache(lambda: scoring.results(asked, predictions, cell.name, chosen))
    official = [file for benchmark in asked for file in scoring.annotations(benchmark, chosen)]
    how = {
        "settings": cell_settings(profile, cell) | {"evaluation": profile.evaluation},
        "stage": "evaluation",
        "desk": profile.is_desk,
        "inputs": [*inputs, *adapter, answers, *([predictions] if asked else []), *official],
        "seeds": [cell.seed],
    }

    def printed(path):
        write_json({name: scoring.as_json(found) for name, found in scored().items() if found}, path)

    def table(path):
        score(load, answers, scored(), cell, profile, runs_dir).to_parquet(path, index=False)

    if asked:
        artifacts.build(folder / "official.json", printed, **how)
    return artifacts.build(folder / "scores.parquet", table, **how)


def load_cell(cell, profile, runs_dir):
    """(model, processor): the base with the cell's adapter, which is not merged.

    Raises BadInput if the adapter changes no logit of the first held-out row.
    """
    model, processor = models.load_base(profile, cell.base)
    if not METHODS[cell.method].trained:
        return model, processor
    folder = require(cell_folder(profile, cell, runs_dir) / "adapter", "03")
    model = models.load_adapter(model, folder)
    row = heldout_rows(cell, profile, runs_dir)[0]
    question = benchmarks.Question(row["row_id"], row["row_id"], row["question"], row["image"])
    asking.check_adapter(model, processor, question, shown(folder))
    return model, processor


def heldout_rows(cell, profile, runs_dir):
    """The preference rows of a cell's base that no training reads."""
    return preferences.part(preferences.read(cell_inputs(profile, cell, runs_dir)[0]), "heldout")


def asked_names(profile):
    """The benchmarks of a profile that put questions to the model."""
    return [name for name in profile.evaluation.benchmarks if name != "heldout_pairs"]


def cell_benchmarks(profile, runs_dir="runs"):
    """A Benchmark for each of `asked_names`, from the official files or the desk world. Raises BadInput."""
    settings, found = profile.evaluation, []
    wording = "paper" if settings.decoding == "paper" else "official"
    for name in asked_names(profile):
        if name in benchmark_items.VQA:
            found.append(benchmark_items.asked(name, _items(name, settings)))
        else:
            folder = desk_data(name, profile, runs_dir) if profile.is_desk else repository_root() / settings.data / name
            # Task a: AMBER's yes-or-no questions show whether general ability suffers.
            found.append(benchmarks.read(name, folder, task="a", prompts=wording))
    return found


def _items(name, settings):
    return benchmark_items.items(name, settings.items, settings.seed)


def desk_data(name, profile, runs_dir="runs"):
    """Path of benchmarks/<name>/, made unless current: the desk world's items in a benchmark's official layout."""
    settings = profile.evaluation
    made_from = {"settings": {"items": settings.items, "seed": settings.seed}, "stage": "evaluation", "desk": True}
    folder = artifacts.run_folder(profile.name, "benchmarks", name, runs_dir=runs_dir)
    return artifacts.build(folder, lambda path: layout.write(name, _items(name, settings), path), **made_from)


def cell_decodings(profile):
    """{benchmark: Decoding}, by the profile's named decoding, else by its own settings."""
    settings, names = profile.evaluation, asked_names(profile)
    own = Decoding(settings.num_beams, 0.0, settings.max_new_tokens, settings.batch_size)
    named = profiles.DECODINGS[settings.decoding] if settings.decoding else dict.fromkeys(names, own)
    return {name: replace(named[name], batch_size=settings.batch_size) for name in names}


def protocol(profile, asked):
    """{benchmark: how it is asked}, for `paper.reported`."""
    settings = profile.evaluation
    similarity = settings.similarity if settings.similarity != "spacy" else "spaCy en_core_web_lg"
    four_bit = profile.quantisation.four_bit
    how = {"decoding": settings.decoding or "of the profile", "similarity": similarity, "four_bit": four_bit}
    return {b.name: how | {"examples": b.n_generative, "adapted": b.adapted.get("about", "")} for b in asked}


def long_table(records, identity):
    """DataFrame with COLUMNS, from rows of `long_rows`; identity: {method, base, seed, flip_rate} of all rows."""
    return pd.DataFrame([identity | record for record in records], columns=COLUMNS)


def score(load, answers_path, scored, cell, profile, runs_dir):
    """A cell's scores as one long DataFrame; scored: {benchmark: Results}. Calls `load` only for held-out pairs."""
    records = [row for of_benchmark in scored.values() for result in of_benchmark for row in result.examples]
    answers = read_parquet(answers_path, "04")
    for name in asked_names(profile):
        if name in benchmark_items.VQA:
            records += score_desk(name, answers, profile.evaluation)
    if "heldout_pairs" in profile.evaluation.benchmarks:
        (model, processor), rows = load(), heldout_rows(cell, profile, runs_dir)
        reference = reference_logps.load(cell_inputs(profile, cell, runs_dir)[1], model, processor, rows, profile)
        records += heldout_pairs(model, processor, rows, reference, profile)
    identity = {"method": cell.method, "base": cell.base, "seed": cell.seed, "flip_rate": cell.flip_rate}
    return long_table(records, identity)


def score_desk(name, answers, settings):
    """Long records for a benchmark that only the desk world has; answers: the frame of answers.parquet."""
    said = answers.loc[answers["benchmark"] == name, "answer"]
    return benchmark_items.vqa_scores(_items(name, settings), list(said))


def heldout_pairs(model, processor, rows, reference, profile):
    """Long records of how the model ranks held-out pairs: bare margins in nats, their signs, chosen nats per token.

    The log-likelihood of held-out chosen answers guards general ability: it falls if a training breaks the model.
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
            values |= {f"margin_{kind}": margin, f"accuracy_{kind}": margin > 0}
        records += long_rows("heldout_pairs", record["row_id"], question_kind, values)
    return records


def load_scores(profile, runs_dir="runs", noise_kind="swap"):
    """Scores of all cells without injected noise, and of those with one kind of it, as one long DataFrame.

    noise_kind  "swap" | "leak": one only, so that runs stay distinct at each flip rate.  Raises MissingArtifact.
    """
    cells = [cell for cell in profile.cells() if not cell.flip_rate or cell.noise_kind == noise_kind]
    files = [cell_folder(profile, cell, runs_dir) / "scores.parquet" for cell in cells]
    return pd.concat([read_parquet(file, "04") for file in files], ignore_index=True)


def bias_table(profile, base, runs_dir="runs"):
    """Path of base-<b>/bias.parquet, made unless current: the untrained base's scores on the desk world's questions.

    Column `weights` tells 4 bits, which generate and train, from full precision: quantisation removes part of the bias.
    """

    def measure(path):
        frames = []
        for weights, four_bit in (("NF4", True), ("fp32", False)):
            model, processor = models.load_base(profile, base, four_bit)
            for name in benchmark_items.VQA:
                items = _items(name, profile.evaluation)
                prompts = [({"image": item.image, "question": item.question}, True, True) for item in items]
                said = generation.generate(model, processor, prompts, profile.evaluation)
                scores = pd.DataFrame(benchmark_items.vqa_scores(items, said))
                frames.append(scores.assign(weights=weights, base=base))
        pd.concat(frames, ignore_index=True).to_parquet(path, index=False)

    settings = profile.computing | {"model": models.identity(profile, base), "evaluation": profile.evaluation}
    path = artifacts.run_folder(profile.name, f"base-{base}", "bias.parquet", runs_dir=runs_dir)
    return artifacts.build(path, measure, settings=settings, stage="evaluation", desk=True)
