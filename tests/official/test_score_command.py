import json
import subprocess
import sys

import pytest

from napo.commands.score import main


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["coco"],
        ["vlind", "--predictions", "x"],
        ["amber", "--predictions", "x", "--amber-data", "y", "--task", "q"],
        ["vlind", "--predictions", "x", "--model-id", "m", "--min-votes", "two"],
        ["mmhal", "--reviews", "x", "--nonsense"],
        ["mmhal", "--reviews", "no/such/file.json"],
    ],
)
def test_wrong_calls_are_one_line(refused, arguments):
    refused(*arguments)


def test_examples_are_written(write, tmp_path, capsys):
    questions = [{"question_id": 1, "text": "Is there a dog?", "label": "yes"}]
    paths = [write("q.json", questions), write("a.jsonl", [{"question_id": 1, "answer": "Yes"}])]
    out = tmp_path / "examples.jsonl"
    assert main(["pope", "--questions", str(paths[0]), "--answers", str(paths[1]), "--examples", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {"benchmark", "metric", "example_id", "question_kind", "value"} == rows[0].keys()
    assert [row["value"] for row in rows] == [1, 1]
    assert json.loads(capsys.readouterr().out)["benchmark"] == "pope"


def test_examples_that_cannot_be_written(refused, write):
    write("file", "")
    questions = write("q.json", [{"question_id": 1, "text": "x", "label": "yes"}])
    answers = write("a.jsonl", [{"answer": "Yes"}])
    below_a_file = write("file", "x") / "examples.jsonl"
    refused("pope", "--questions", questions, "--answers", answers, "--examples", below_a_file)


def test_as_a_program(write):
    """Notices go to the error stream, so that what is printed stays one JSON object."""
    questions = write("q.json", [{"question_id": i, "text": "x", "label": "yes"} for i in (1, 2)])
    answers = write("a.jsonl", [{"question_id": 1, "answer": "Yes"}])
    command = [sys.executable, "-m", "napo", "score", "pope", "--questions", questions, "--answers", answers]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0 and json.loads(ended.stdout)["acc"] == 1
    assert ended.stderr == "note: 1 questions at the end have no answer and are left out (question_id 2)\n"
    ended = subprocess.run([*command[:-1], "none.jsonl"], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (2, "") and ended.stderr == "error: missing none.jsonl: check the path\n"


def test_any_text_can_be_shown(write, command):
    """JSON can hold half a character, which no stream could print as it is."""
    texts = ["half \ud83d", "\u20ac rating: 3 \u2028"] * 48
    reviews = [{"choices": [{"message": {"content": text}}]} for text in texts]
    found = command("mmhal", "--reviews", write("r.json", reviews))
    assert found["unparseable"][0] == {"item": 0, "review": "half \ud83d"}
