"""`napo evaluate`: a benchmark's folder and a model in; predictions, scores and one JSON object out."""

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import replace

import official_data
import pandas as pd
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny_llava, tiny_llava

from napo.commands import evaluate
from napo.commands.score import main as score_main
from napo.engine import generation, models
from napo.evaluation.evaluate import COLUMNS as CELL_COLUMNS
from napo.official.benchmarks import read
from napo.profiles import Lora, Quantisation

COLUMNS = ["method", "base", "seed", "flip_rate", "benchmark", "metric", "example_id", "question_kind", "value"]


def save_adapter(folder, scale=0.5, seed=0, **shape):
    """A random LoRA for the tiny model of that shape; scale 0 leaves it as it starts: without effect."""
    model = models.attach_lora(tiny_llava(**shape)[0], Lora(r=4, alpha=8), seed)
    torch.manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, scale) if scale else None
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny model, its adapter, and the data of every benchmark."""
    place = tmp_path_factory.mktemp("place")
    save_tiny_llava(place / "llava")
    save_adapter(place / "cells" / "napo_paper-b3-s1-f0.2" / "adapter")
    for name, write in official_data.WRITERS.items():
        write(place / "data" / name)
    return place


def run(place, benchmark, out, *more, adapter=True):
    """Exit status of the command."""
    data = place / "data" / benchmark
    arguments = [benchmark, "--model", str(place / "llava"), "--data", str(data), "--out", str(out)]
    if adapter:
        arguments += ["--adapter", str(place / "cells" / "napo_paper-b3-s1-f0.2" / "adapter")]
    return evaluate.main([*arguments, "--device", "cpu", *more])


@pytest.fixture
def short(monkeypatch):
    """Answers of few tokens, for time."""
    stock = generation.answer_batch

    def cut(model, processor, texts, images, settings, min_new_tokens=None):
        return stock(model, processor, texts, images, replace(settings, max_new_tokens=6), min_new_tokens)

    monkeypatch.setattr(generation, "answer_batch", cut)


def test_vlind_end_to_end(place, tmp_path, short, capsys):
    out = tmp_path / "out"
    assert run(place, "vlind", out) == 0
    captured = capsys.readouterr()
    printed = json.loads(captured.out)
    assert printed["num_instances"] == 2 and printed["num_images"] == 4
    predictions = out / "predictions" / "vlind" / "predictions.json"
    assert score_main(["vlind", "--predictions", str(predictions), "--model-id", "napo_paper-b3-s1-f0.2"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert {key: again[key] for key in ("S_CK", "S_LP", "Acc_CB", "Acc_LP")} == {
        key: printed[key] for key in ("S_CK", "S_LP", "Acc_CB", "Acc_LP")
    }
    table = pd.read_parquet(out / "scores.parquet")
    assert list(table.columns) == COLUMNS and len(table) == 2 * 4
    assert table.iloc[0][COLUMNS[:5]].tolist() == ["napo_paper", 3, 1, 0.2, "vlind"]  # as the cell's folder says
    assert set(table["metric"]) == {"CK", "VP", "CB", "LP"} and set(table["example_id"]) == {"7", "9"}
    page = (out / "results.md").read_text()
    assert "2 examples, paper: 302" in page and "| napo_paper | Acc_CB ↑ |" in page and "0.589[a]" in page
    protocol = json.loads((out / "scores.json").read_text())["protocol"]
    assert protocol["decoding"] == "paper" and protocol["four_bit"] is False


def test_the_adapter_speaks_and_is_never_merged(place, tmp_path, short):
    """Against peft's own use of the same folder, one prompt at a time, with the paper's 3 beams."""
    assert run(place, "vlind", tmp_path) == 0
    answers = pd.read_parquet(tmp_path / "answers.parquet").set_index("key")["answer"]
    base, processor = models.load(str(place / "llava"), Quantisation(four_bit=False))
    policy = PeftModel.from_pretrained(base, str(place / "cells" / "napo_paper-b3-s1-f0.2" / "adapter"))
    differs = 0
    for question in read("vlind", place / "data" / "vlind", prompts="paper").questions[:6]:
        text = [f"USER: <image> {question.text} ASSISTANT:"]
        inputs = processor(text=text, images=[question.opened()], return_tensors="pt")
        said = []
        for on in (True, False):
            with torch.no_grad(), contextlib.nullcontext() if on else policy.disable_adapter():
                out = policy.generate(**inputs, do_sample=False, num_beams=3, max_new_tokens=6)
            new = out[0, inputs["input_ids"].shape[1] :]
            said.append(processor.tokenizer.decode(new, skip_special_tokens=True).strip())
        assert answers[question.key] == said[0]
        differs += said[0] != said[1]
    assert differs


def test_four_bits_and_the_adapter_beside_them(place):
    adapter = str(place / "cells" / "napo_paper-b3-s1-f0.2" / "adapter")
    call = ["vlind", "--model", str(place / "llava"), "--adapter", adapter, "--device", "cpu", "--four-bit"]
    wanted = evaluate.parser().parse_args(call, evaluate.Request())
    question = read("vlind", place / "data" / "vlind").questions[0]
    model, _ = evaluate.load_model(wanted, question)
    assert isinstance(model, PeftModel) and models.four_bit_layers(model)
    assert any("lora_A" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("decoding", ["greedy", "beams"])
def test_pope_end_to_end(place, tmp_path, short, capsys, decoding):
    assert run(place, "pope", tmp_path, "--decoding", decoding, "--label", "mine", adapter=False) == 0
    splits = json.loads(capsys.readouterr().out)["splits"]
    assert set(splits) == {"random", "popular", "adversarial"} and splits["random"]["acc"] == 0.5
    table = pd.read_parquet(tmp_path / "scores.parquet")
    assert table["example_id"].nunique() == 12 and set(table["method"]) == {"mine"}


@pytest.mark.parametrize(("name", "more"), [("objhal", []), ("amber", ["--task", "a", "--similarity", "exact"])])
def test_captions_end_to_end_with_nltk(place, tmp_path, shared, monkeypatch, capsys, name, more):
    """What the model says is put in its mouth: a random one names nothing that exists."""
    pytest.importorskip("nltk")
    monkeypatch.setenv("NLTK_DATA", str(shared / "nltk_data"))
    monkeypatch.setattr("nltk.data.path", [str(shared / "nltk_data")])
    said = "A dog and a kitten on the grass."
    monkeypatch.setattr(generation, "answer_batch", lambda model, processor, texts, *rest: [said] * len(texts))
    assert run(place, name, tmp_path, *more) == 0
    printed = json.loads(capsys.readouterr().out)
    if name == "objhal":  # images 40, 41, 42 hold, with their captions' dog: dog; cat, dog; table, dog
        assert printed["CHAIRs"] == pytest.approx(2 / 3) and printed["CHAIRi"] == pytest.approx(2 / 6)
    else:
        assert printed["CHAIR"] == pytest.approx(200 / 4.001) and printed["Cover"] == pytest.approx(200 / 3.001)
    assert set(pd.read_parquet(tmp_path / "scores.parquet")["benchmark"]) == {name}


def test_mmhal_waits_for_its_judge(place, tmp_path, short, capsys):
    assert run(place, "mmhal", tmp_path, "--decoding", "greedy") == 0
    captured = capsys.readouterr()
    assert "napo judge" in captured.err and "reviewed" in captured.err
    assert json.loads(captured.out)["files"].keys() == {"predictions"}
    lines = (tmp_path / "predictions" / "mmhal" / "mmhal-bench_answer.jsonl").read_text().splitlines()
    assert len(lines) == 96 and not (tmp_path / "scores.parquet").exists()
    reviews = [{"model": "gpt-4-0613", "choices": [{"message": {"content": f"Rating: {i % 7}"}}]} for i in range(96)]
    (tmp_path / "reviews.json").write_text(json.dumps(reviews))
    assert run(place, "mmhal", tmp_path, "--decoding", "greedy", "--reviews", str(tmp_path / "reviews.json")) == 0
    assert json.loads(capsys.readouterr().out)["score"] == pytest.approx(sum(i % 7 for i in range(96)) / 96)
    assert len(pd.read_parquet(tmp_path / "scores.parquet")) == 96 * 4


def test_a_second_call_asks_nothing_and_another_model_asks_again(place, tmp_path, short, monkeypatch, capsys):
    assert run(place, "pope", tmp_path) == 0
    first = (tmp_path / "scores.parquet").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(models, "load", lambda *a, **k: pytest.fail("a model was loaded"))
        assert run(place, "pope", tmp_path) == 0
    assert (tmp_path / "scores.parquet").read_bytes() == first
    before = pd.read_parquet(tmp_path / "answers.parquet")["answer"].tolist()
    assert run(place, "pope", tmp_path, adapter=False) == 0
    assert pd.read_parquet(tmp_path / "answers.parquet")["answer"].tolist() != before


def test_a_trial_of_few_examples_scores_nothing(place, tmp_path, short, capsys):
    assert run(place, "amber", tmp_path, "--limit", "1") == 0
    captured = capsys.readouterr()
    assert "first 1 examples only" in captured.err
    assert len(json.loads((tmp_path / "predictions" / "amber" / "predictions.json").read_text())) == 1


# ---- bad input ------------------------------------------------------------------------------------------------------


def refused(status, capsys, message):
    captured = capsys.readouterr()
    assert status == 2 and captured.out == ""
    *progress, last = captured.err.splitlines()
    assert last.startswith("error: ") and message in last, captured.err
    assert all("Loading weights" in line or not line.strip() for line in progress), captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mme", "--model", "m"], "invalid choice: 'mme' (choose from "),
        (["vlind"], "required: --model"),
        (["vlind", "--model", "m", "--data", "no/such"], "no folder no/such with the data of vlind"),
        (["vlind", "--model", "m", "--adapter", "no/such"], "no adapter in no/such: name the folder"),
        (["vlind", "--model", "m", "--batch-size", "0"], "--batch-size"),
        (["vlind", "--model", "m", "--label", "../../x"], "--label '../../x' cannot name a folder"),
        (["vlind", "--model", ".."], "the model's name (give a --label) '..' cannot name a folder"),
        (["vlind", "--model", "m", "--dtype", "int8"], "invalid choice: 'int8'"),
        (["vlind", "--model", "m", "--decoding", "warm"], "invalid choice: 'warm'"),
        (["vlind", "--model", "m", "--device", "tpu"], "unknown device 'tpu'"),
        (["vlind", "--model", "m", "--colour", "red"], "unrecognized arguments: --colour red"),
    ],
)
def test_wrong_calls_are_one_line(capsys, arguments, message):
    refused(evaluate.main(arguments), capsys, message)


def test_a_model_that_is_not_there(place, tmp_path, capsys):
    arguments = ["pope", "--model", "no/model", "--data", str(place / "data" / "pope"), "--out", str(tmp_path / "out")]
    refused(evaluate.main(arguments), capsys, "cannot load the model 'no/model'")
    assert not (tmp_path / "out" / "answers.parquet").exists()


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (lambda folder: save_adapter(folder, scale=0), "the adapter loads and changes nothing"),
        (lambda folder: save_adapter(folder, hidden=32), "no adapter of this model"),
        (lambda folder: save_adapter(folder, layers=1), "weights do not belong to this model or are missing"),
        (lambda folder: renamed(save_adapter(folder)), "weights do not belong to this model or are missing"),
        (lambda folder: cut(save_adapter(folder)), "no adapter of this model"),
    ],
)
def test_wrong_adapters(place, tmp_path, capsys, adapter, message):
    adapter(tmp_path / "adapter")
    status = run(place, "pope", tmp_path / "out", "--adapter", str(tmp_path / "adapter"), adapter=False)
    refused(status, capsys, message)
    assert not (tmp_path / "out" / "answers.parquet").exists()


def renamed(folder):
    """As by another version of a library: the names fit nothing, and peft says so in a warning only."""
    file = folder / "adapter_model.safetensors"
    save_file({name.replace("language_model", "text"): weight for name, weight in load_file(file).items()}, file)


def cut(folder):
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def test_a_missing_and_a_broken_image(place, tmp_path, capsys):
    folder = official_data.amber(tmp_path / "data" / "amber")
    arguments = ["amber", "--model", str(place / "llava"), "--data", str(folder), "--out", str(tmp_path / "out")]
    (folder / "image" / "AMBER_2.jpg").write_bytes(b"\xff\xd8 cut")
    refused(evaluate.main([*arguments, "--limit", "2"]), capsys, "AMBER_2.jpg: not a readable image")
    (folder / "image" / "AMBER_2.jpg").unlink()
    refused(evaluate.main([*arguments, "--limit", "2"]), capsys, "amber: 1 images are missing")
    assert not (tmp_path / "out" / "predictions").exists()


def test_what_scores_need_is_asked_for_before_the_model(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(models, "load", lambda *a, **k: pytest.fail("a model was loaded"))
    status = run(place, "amber", tmp_path, "--similarity", "table:no.json")
    refused(status, capsys, "no.json")
    folder = official_data.objhal(tmp_path / "data" / "objhal")
    (tmp_path / "data" / "coco" / "annotations" / "captions_val2014.json").unlink()
    status = run(place, "objhal", tmp_path, "--data", str(folder))
    refused(status, capsys, "no captions_val2014.json below")


def test_the_module_is_a_command(place, root, tmp_path):
    arguments = ["pope", "--model", str(place / "llava"), "--data", str(tmp_path / "none")]
    command = [sys.executable, "-m", "napo", "evaluate", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=os.environ | {"PYTHONPATH": str(root)})
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: no folder") and done.stderr.count("\n") == 1


def test_the_long_table_of_a_request_is_that_of_a_cell():
    assert CELL_COLUMNS == COLUMNS
