"""Answers in batches: against stock generation, resumed after a kill, logged before the next batch."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import official_data
import pytest
import torch
from tiny_models import tiny_llava

from napo.engine import generation, packing
from napo.evaluation import asking
from napo.official import benchmarks
from napo.profiles import DECODINGS, Decoding
from napo.workshop.files import BadInput

GREEDY = Decoding(1, 0.0, 8, batch_size=4)


@pytest.fixture(scope="module")
def loaded():
    return tiny_llava()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return official_data.vlind(tmp_path_factory.mktemp("data") / "vlind")


@pytest.fixture
def benchmark(folder):
    return benchmarks.read("vlind", folder)


def never():
    pytest.fail("a model was loaded")


def test_the_papers_decoding(shared):
    """FORMATS.md, section 0: VLind-Bench by 3 beams of at most 64 tokens; the others at temperature 0.2, 1024."""
    paper = DECODINGS["paper"]
    assert (paper["vlind"].num_beams, paper["vlind"].temperature, paper["vlind"].max_new_tokens) == (3, 0, 64)
    for name in ("objhal", "amber", "mmhal"):
        assert (paper[name].num_beams, paper[name].temperature, paper[name].max_new_tokens) == (3, 0.2, 1024)
    assert all(d.num_beams == 1 and d.temperature == 0 for d in DECODINGS["greedy"].values())
    assert all(d.num_beams == 3 and d.temperature == 0 for d in DECODINGS["beams"].values())


@pytest.mark.parametrize("num_beams", [1, 3])
def test_answers_are_those_of_stock_generation_one_by_one(loaded, benchmark, tmp_path, num_beams):
    model, processor = loaded
    decoding = replace(GREEDY, num_beams=num_beams)
    answers = asking.ask(benchmark, lambda: loaded, decoding, tmp_path / "log.jsonl")
    assert list(answers) == [question.key for question in benchmark.questions]
    for question in benchmark.questions[::3]:
        text = f"USER: <image> {question.text} ASSISTANT:"
        inputs = processor(text=[text], images=[question.opened()], return_tensors="pt")
        with torch.no_grad():
            out = model.generate(**inputs, do_sample=False, num_beams=num_beams, max_new_tokens=8)
        said = processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert answers[question.key] == said.strip()
    assert len(set(answers.values())) > 1


def test_sampling_depends_on_the_seed_and_not_on_what_was_drawn_before(loaded, benchmark, tmp_path):
    hot = replace(GREEDY, temperature=2.0, num_beams=2)
    runs = []
    for name, seed, before in (("a", 0, 1), ("b", 0, 2), ("c", 1, 1)):
        torch.manual_seed(before)
        runs.append(asking.ask(benchmark, lambda: loaded, replace(hot, seed=seed), tmp_path / name))
    assert runs[0] == runs[1] != runs[2]
    state = torch.get_rng_state()
    asking.ask(benchmark, lambda: loaded, hot, tmp_path / "d")
    assert torch.equal(state, torch.get_rng_state())  # nobody else's draws are disturbed


def test_every_batch_is_on_disk_before_the_next_and_none_is_asked_again(loaded, benchmark, tmp_path, monkeypatch):
    log, asked = tmp_path / "log.jsonl", []
    stock = generation.generate

    def stops_at_the_third(model, processor, prompts, settings):
        if len(asked) == 2 * GREEDY.batch_size:
            raise KeyboardInterrupt
        asked.extend(row["row_id"] for row, _, _ in prompts)
        assert len(asking.read_log(log)) == len(asked) - len(prompts)
        return stock(model, processor, prompts, settings)

    monkeypatch.setattr(generation, "generate", stops_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        asking.ask(benchmark, lambda: loaded, GREEDY, log)
    assert len(asking.read_log(log)) == 8

    def counts(model, processor, prompts, settings):
        asked.extend(row["row_id"] for row, _, _ in prompts)
        return stock(model, processor, prompts, settings)

    monkeypatch.setattr(generation, "generate", counts)
    answers = asking.ask(benchmark, lambda: loaded, GREEDY, log)
    assert sorted(asked) == sorted(question.key for question in benchmark.questions)  # each once
    assert answers == asking.ask(benchmark, lambda: loaded, GREEDY, tmp_path / "whole.jsonl")
    assert asking.ask(benchmark, never, GREEDY, log) == answers


def test_a_line_cut_short_by_a_kill_is_asked_again(loaded, benchmark, tmp_path):
    log = tmp_path / "log.jsonl"
    answers = asking.ask(benchmark, lambda: loaded, GREEDY, log)
    content = log.read_bytes()
    log.write_bytes(content[:-7])
    assert asking.ask(benchmark, lambda: loaded, GREEDY, log) == answers
    keys = [json.loads(line)["key"] for line in log.read_text().splitlines()]
    assert sorted(keys) == sorted(answers)


@pytest.fixture(scope="module")
def whole(loaded, folder, tmp_path_factory):
    """(bytes of the log of all questions, the answers)."""
    log = tmp_path_factory.mktemp("whole") / "log.jsonl"
    answers = asking.ask(benchmarks.read("vlind", folder), lambda: loaded, GREEDY, log)
    return log.read_bytes(), answers


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line.replace(b'"answer": "', b'"answer": "not '),
        lambda line: line.replace(b'"key": "', b'"key": "x'),
        lambda line: line[:20] + bytes([line[20] ^ 128]) + line[21:],
        lambda line: b'{"key": "7/a1"}\n',
        lambda line: b"[]\n",
        lambda line: b"\n",
        lambda line: line[:-1],  # two lines in one
    ],
)
def test_a_damaged_line_cuts_the_log_and_the_rest_is_asked_again(
    whole, loaded, benchmark, tmp_path, monkeypatch, capsys, damage
):
    content, answers = whole
    lines, log, asked = content.splitlines(keepends=True), tmp_path / "log.jsonl", []
    log.write_bytes(b"".join([*lines[:4], damage(lines[4]), *lines[5:]]))
    stock = generation.generate

    def counts(model, processor, prompts, settings):
        asked.extend(prompts)
        return stock(model, processor, prompts, settings)

    monkeypatch.setattr(generation, "generate", counts)
    assert asking.ask(benchmark, lambda: loaded, GREEDY, log) == answers
    assert log.read_bytes() == content and len(asked) == len(lines) - 4
    assert "log.jsonl, line 5: cut short or damaged" in capsys.readouterr().out


def test_any_flipped_bit_of_a_log_is_noticed(whole, tmp_path):
    content, answers = whole
    log, first = tmp_path / "log.jsonl", len(content.splitlines(keepends=True)[0])
    for place in range(first):
        log.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert asking.read_log(log) == {} and log.read_bytes() == b"", place


def test_a_line_of_another_log_is_not_trusted(whole, tmp_path):
    (tmp_path / "other.jsonl").write_bytes(whole[0])
    assert asking.read_log(tmp_path / "other.jsonl") == {}


def test_two_processes_do_not_share_a_log(loaded, benchmark, tmp_path):
    log = tmp_path / "log.jsonl"
    with open(log, "a") as handle:
        asking._only_one(handle, log)
        with pytest.raises(BadInput, match="another process is writing"):
            asking.ask(benchmark, lambda: loaded, GREEDY, log)


def test_out_of_memory_names_a_smaller_batch(loaded, benchmark, tmp_path, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(generation, "generate", full)
    with pytest.raises(BadInput, match="does not hold 4 questions at once.* --batch-size 2; answers so far are kept"):
        asking.ask(benchmark, lambda: loaded, GREEDY, tmp_path / "log.jsonl")


def test_the_digest_sees_every_word_and_every_pixel(folder, benchmark):
    first = asking.digest(benchmark)
    assert asking.digest(benchmarks.read("vlind", folder)) == first
    assert asking.digest(benchmarks.read("vlind", folder, prompts="paper")) != first
    picture = benchmark.questions[0].image
    content = picture.read_bytes()
    picture.write_bytes(content + b"\0")
    assert asking.digest(benchmark) != first
    picture.write_bytes(content)


def test_answers_are_a_table_that_is_made_once(loaded, benchmark, tmp_path):
    how = {"decodings": {"vlind": GREEDY}, "folder": tmp_path, "model": {"model": "tiny"}}
    path = asking.answer([benchmark], lambda: loaded, **how)
    assert asking.answer([benchmark], never, **how) == path
    assert not list(tmp_path.glob("answers-*.jsonl"))  # the log has done its work
    smaller = {"vlind": replace(GREEDY, batch_size=2)}  # how many at once changes no answer
    assert asking.answer([benchmark], never, smaller, tmp_path, how["model"]) == path
    with pytest.raises(pytest.fail.Exception):
        asking.answer([benchmark], never, how["decodings"], tmp_path, {"model": "another"})


KILLED = """
import os, signal, sys
from pathlib import Path
from napo.engine import generation
from napo.evaluation import asking
from napo.official import benchmarks
from napo.profiles import Decoding
from tiny_models import tiny_llava
data, log, trace, batches = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
stock, done = generation.generate, 0
def generate(model, processor, prompts, settings):
    global done
    if done == batches:
        os.kill(os.getpid(), signal.SIGKILL)
    done += 1
    with open(trace, "a") as handle:
        handle.write("".join(row["row_id"] + "\\n" for row, _, _ in prompts))
    return stock(model, processor, prompts, settings)
generation.generate = generate
asking.ask(benchmarks.read("vlind", data), tiny_llava, Decoding(1, 0.0, 8, batch_size=4), log)
"""


def test_killed_none_lost_none_asked_twice(root, folder, benchmark, loaded, tmp_path):
    log, trace = tmp_path / "log.jsonl", tmp_path / "asked.txt"
    environment = os.environ | {"PYTHONPATH": f"{root}:{root / 'tests'}"}
    command = [sys.executable, "-c", KILLED, folder, log, trace]
    for batches, status in (("3", -signal.SIGKILL), ("99", 0)):
        ended = subprocess.run([*command, batches], env=environment, capture_output=True, text=True)
        assert ended.returncode == status, ended.stderr
    asked = trace.read_text().splitlines()
    assert sorted(asked) == sorted(question.key for question in benchmark.questions)
    assert asking.read_log(log) == asking.ask(benchmark, lambda: loaded, GREEDY, tmp_path / "whole.jsonl")


def test_the_prompt_is_the_processors_own(loaded, benchmark):
    row = {"row_id": "x", "image": None, "question": benchmark.questions[0].text}
    assert packing.prompt_text(row, loaded[1]) == f"USER: <image> {row['question']} ASSISTANT:"
