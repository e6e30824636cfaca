"""Benchmarks' questions put to a model, in batches; every answer is on disk before the next batch is asked.

The log is JSON lines {"key", "answer"}. After a kill the same call reads it and asks what is missing: no answer is lost
but those of the batch that was under way, none is asked for again. Batches are the same however often a run stops.
"""

import fcntl
import hashlib
import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import torch

from napo import artifacts, generation, models, packing
from napo.artifacts import BadInput, make_folder, progress, shown

COLUMNS = ["benchmark", "key", "example_id", "question", "answer"]


def answer(asked, load, decodings, folder, model):
    """Path of folder/answers.parquet: benchmark, key, example_id, question, answer, made unless it is current.

    asked      list of benchmarks.Benchmark;  decodings  {benchmark name: profiles.Decoding}
    load       () -> (model, processor), called only if a question is left to ask
    model      what tells the model, json-able: weights, adapter, quantisation
    While it runs, answers are kept in folder/answers-<benchmark>-<key>.jsonl.
    """
    settings = {
        benchmark.name: {
            "model": model,
            "decoding": asdict(replace(decodings[benchmark.name], batch_size=0)),
            "questions": digest(benchmark),
        }
        for benchmark in asked
    }

    def make(path):
        tables = [pd.DataFrame(columns=COLUMNS, dtype=str)]
        for benchmark in asked:
            key = artifacts.key(settings=settings[benchmark.name], modules=())
            log = folder / f"answers-{benchmark.name}-{key[:16]}.jsonl"
            answers = ask(benchmark, load, decodings[benchmark.name], log)
            rows = [(benchmark.name, q.key, q.example_id, q.text, answers[q.key]) for q in benchmark.questions]
            tables.append(pd.DataFrame(rows, columns=COLUMNS))
        pd.concat(tables, ignore_index=True).to_parquet(path, index=False)

    path = artifacts.build(folder / "answers.parquet", make, settings=settings, modules=("asking",))
    for log in folder.glob("answers-*.jsonl"):
        log.unlink()
    return path


def ask(benchmark, load, decoding, log):
    """{question key: answer} of all questions of a benchmark.

    load      () -> (model, processor), called only if something is left to ask
    decoding  profiles.Decoding
    log       Path of the answers so far; the caller names it by what the answers depend on
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
                known |= _write(handle, {key: text for key, text in answers.items() if key not in known})
    return {question.key: known[question.key] for question in benchmark.questions}


def _only_one(handle, log):
    """Hold the log until it is closed. Raises BadInput if another process does."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BadInput(f"another process is writing {shown(log)}: wait for it or stop it") from None


def in_batches(benchmark, size):
    """The questions with prompts of like length together; the same prompt about the same image stays together too."""
    order = enumerate(benchmark.questions)
    questions = sorted(order, key=lambda item: (len(item[1].text), item[1].text, str(item[1].image), item[0]))
    return generation.chunks([question for _, question in questions], size)


def _answers(model, processor, batch, decoding):
    prompts = [({"row_id": q.key, "image": q.opened(), "question": q.text}, True, True) for q in batch]
    try:
        texts = generation.generate(model, processor, prompts, decoding)
    except torch.OutOfMemoryError as error:
        smaller = max(1, decoding.batch_size // 2)
        raise BadInput(
            f"the device's memory does not hold {decoding.batch_size} questions at once: run the same command again "
            f"with --batch-size {smaller}; answers so far are kept"
        ) from error
    return {question.key: text for question, text in zip(batch, texts, strict=True)}


def _write(handle, answers):
    """Append to the log and wait until it is on the disk; returns `answers`."""
    handle.write("".join(json.dumps({"key": key, "answer": text}) + "\n" for key, text in answers.items()))
    handle.flush()
    os.fsync(handle.fileno())
    return answers


def read_log(log):
    """{key: answer} of a log; a last line that a kill cut short is cut off. Raises BadInput if the log is damaged."""
    log, known, whole = Path(log), {}, 0
    if not log.exists():
        return known
    content = log.read_bytes()
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break
        try:
            entry = json.loads(line)
            known[entry["key"]] = entry["answer"]
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(
                f"{shown(log)}, line {number}: damaged ({error}); delete the file to ask all again"
            ) from error
        whole += len(line)
    if whole < len(content):
        os.truncate(log, whole)
    return known


def digest(benchmark):
    """SHA-256 of a benchmark's questions, image contents included: what its answers depend on besides the model."""
    total, seen = hashlib.sha256(), {}
    for question in benchmark.questions:
        image = str(question.image) if isinstance(question.image, Path) else id(question.image)
        if image not in seen:
            seen[image] = _image_hash(question.image)
        total.update(f"{question.key}\0{question.text}\0{seen[image]}\n".encode())
    return total.hexdigest()


def _image_hash(image):
    if isinstance(image, Path):
        with open(image, "rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    return hashlib.sha256(image.encode() if isinstance(image, str) else image.tobytes()).hexdigest()


def check_adapter(model, processor, question, name):
    """Raises BadInput if switching the adapter on changes no logit of a question's prompt: loaded, and does nothing."""
    row = {"row_id": question.key, "image": question.opened(), "question": question.text}
    batch = dict(packing.tokenised([packing.prompt_text(row, processor)], [row["image"]], processor).to(model.device))
    if models.adapter_effect(model, batch) == 0:
        raise BadInput(f"{name}: the adapter loads and changes nothing; was it trained, and on this model?")
