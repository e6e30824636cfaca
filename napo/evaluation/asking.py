"""Puts the questions of benchmarks to a model, in batches, and writes each batch of answers to disk before the next.

The log is JSON lines {"key", "answer", "check"}; `check` hashes the line and the log's name. After a kill the same call
reads the log and asks only the questions that are left, in the same batches. Lost are the answers of the interrupted
batch, and those from the first damaged line on.
"""

import fcntl
import hashlib
import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import torch

from napo.engine import generation, models, packing
from napo.workshop import artifacts
from napo.workshop.files import BadInput, make_folder, shown
from napo.workshop.progress import progress

COLUMNS = ["benchmark", "key", "example_id", "question", "answer"]


def answer(asked, load, decodings, folder, model):
    """Path of folder/answers.parquet, made unless current: benchmark, key, example_id, question, answer.

    asked      list of benchmarks.Benchmark
    load       () -> (model, processor), called only if a question is left to ask
    decodings  {benchmark name: profiles.Decoding}; the batch size changes no answer
    model      identity of the model, json-able: weights, adapter, quantisation
    A run logs to folder/answers-<benchmark>-<key>.jsonl. The key includes the code, so a run never continues the log of
    an older version.
    """
    settings = {}
    for benchmark in asked:
        decoding = asdict(replace(decodings[benchmark.name], batch_size=0))
        settings[benchmark.name] = {"model": model, "decoding": decoding, "questions": digest(benchmark)}

    def make(path):
        rows = []
        for benchmark in asked:
            key = artifacts.key(settings=settings[benchmark.name], stage="evaluation")
            log = folder / f"answers-{benchmark.name}-{key[:16]}.jsonl"
            answers = ask(benchmark, load, decodings[benchmark.name], log)
            rows += [(benchmark.name, q.key, q.example_id, q.text, answers[q.key]) for q in benchmark.questions]
        pd.DataFrame(rows, columns=COLUMNS, dtype=str).to_parquet(path, index=False)

    path = artifacts.build(folder / "answers.parquet", make, settings=settings, stage="evaluation")
    for log in folder.glob("answers-*.jsonl"):
        log.unlink()
    return path


def ask(benchmark, load, decoding, log):
    """{question key: answer} for all questions of a benchmark.

    load      () -> (model, processor), called only if a question is left to ask
    decoding  profiles.Decoding
    log       Path of the answers so far; its name must depend on everything that the answers depend on
    """
    make_folder(Path(log).parent)
    with open(log, "a", encoding="utf-8") as handle:
        _only_one(handle, log)
        known = read_log(log)
        left = [batch for batch in in_batches(benchmark, decoding.batch_size) if any(q.key not in known for q in batch)]
        if left:
            model, processor = load()
            for batch in progress(left, f"{benchmark.name}: batch"):
                answers = _answers(model, processor, batch, decoding)
                new = {key: text for key, text in answers.items() if key not in known}
                handle.write("".join(_line(log, key, text) for key, text in new.items()))
                handle.flush()
                os.fsync(handle.fileno())
                known |= new
    return {question.key: known[question.key] for question in benchmark.questions}


def _only_one(handle, log):
    """Lock the log until it is closed. Raises BadInput if another process has locked it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BadInput(f"another process is writing {shown(log)}: wait for it or stop it") from None


def in_batches(benchmark, size):
    """Batches of questions. Prompts of similar length, equal prompts and equal images among them stay together."""
    return generation.chunks(sorted(benchmark.questions, key=lambda q: (len(q.text), q.text, str(q.image))), size)


def _answers(model, processor, batch, decoding):
    prompts = [({"row_id": q.key, "image": q.opened(), "question": q.text}, True, True) for q in batch]
    try:
        texts = generation.generate(model, processor, prompts, decoding)
    except torch.OutOfMemoryError as error:
        problem = f"the device's memory does not hold {decoding.batch_size} questions at once"
        remedy = f"run the same command again with --batch-size {max(1, decoding.batch_size // 2)}"
        raise BadInput(f"{problem}: {remedy}; answers so far are kept") from error
    return {question.key: text for question, text in zip(batch, texts, strict=True)}


def _line(log, key, text):
    """One line of a log. Its check makes a line of another log, or a changed one, differ from what it should be."""
    check = hashlib.sha256(json.dumps([Path(log).name, key, text]).encode()).hexdigest()[:16]
    return json.dumps({"key": key, "answer": text, "check": check}) + "\n"


def read_log(log):
    """{key: answer} of a log. Cuts the log before the first line that a kill cut short or that is damaged."""
    log, known, whole = Path(log), {}, 0
    content = log.read_bytes() if log.exists() else b""
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        try:
            entry = json.loads(line)
            trusted = line == _line(log, entry["key"], entry["answer"]).encode()
        except (ValueError, KeyError, TypeError):
            trusted = False
        if not trusted:
            print(f"{shown(log)}, line {number}: cut short or damaged; its question and all after it are asked again")
            os.truncate(log, whole)
            break
        known[entry["key"]] = entry["answer"]
        whole += len(line)
    return known


def digest(benchmark):
    """SHA-256 of a benchmark's questions and of the contents of their images."""
    total = hashlib.sha256()
    for question in benchmark.questions:
        image = question.image
        if isinstance(image, Path):
            content = artifacts.content_hash(image)
        else:
            content = hashlib.sha256(image.encode() if isinstance(image, str) else image.tobytes()).hexdigest()
        total.update(f"{question.key}\0{question.text}\0{content}\n".encode())
    return total.hexdigest()


def check_adapter(model, processor, question, name):
    """Raises BadInput if the adapter changes no logit of a question's prompt."""
    row = {"row_id": question.key, "image": question.opened(), "question": question.text}
    batch = dict(packing.tokenised([packing.prompt_text(row, processor)], [row["image"]], processor).to(model.device))
    if models.adapter_effect(model, batch) == 0:
        raise BadInput(f"{name}: the adapter loads and changes nothing; was it trained, and on this model?")
