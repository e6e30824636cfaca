"""Which files prediction files and scores depend on."""

import json

import official_data
import pandas as pd
import pytest

from napo.evaluation import scoring
from napo.official import benchmarks
from napo.workshop.files import BadInput

COCO = {f"{kind}_{part}2014.json" for kind in ("instances", "captions") for part in ("train", "val")}
POPE = {f"coco_pope_{split}.json" for split in benchmarks.POPE_SPLITS}


def read(name, folder, task="a"):
    return benchmarks.read(name, official_data.WRITERS[name](folder / name), task=task)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("vlind", {"data.json"}),
        ("objhal", {"objhal_300_index.jsonl", "synonyms_refine.txt"} | COCO),
        ("amber", {"query_all.json", "annotations.json", "relation.json", "safe_words.txt"}),
        ("mmhal", {"mmhal-bench_answer_template.json"}),
        ("pope", POPE),
    ],
)
def test_scores_depend_on_every_official_file_that_is_read(tmp_path, name, files):
    assert {file.name for file in scoring.annotations(read(name, tmp_path))} == files


def test_scores_depend_on_a_table_of_similarities_and_on_adapted_json(tmp_path):
    folder = official_data.amber(tmp_path / "amber")
    (folder / "adapted.json").write_text('{"words": "blanks"}')
    chosen = scoring.Scoring(f"table:{tmp_path / 'vectors.json'}")
    found = scoring.annotations(benchmarks.read("amber", folder, task="g"), chosen)
    assert tmp_path / "vectors.json" in found and folder / "adapted.json" in found


def test_what_scoring_needs_is_missed_before_anything_is_asked(tmp_path):
    benchmark = read("objhal", tmp_path)
    (tmp_path / "coco" / "annotations" / "captions_val2014.json").unlink()
    with pytest.raises(BadInput, match="no captions_val2014.json below"):
        scoring.check(benchmark)


def test_prediction_files_are_written_again_when_an_official_file_changes(tmp_path):
    folder = official_data.vlind(tmp_path / "vlind")
    answers = tmp_path / "answers.parquet"

    def votes():
        benchmark = benchmarks.read("vlind", folder)
        rows = [("vlind", question.key, "True") for question in benchmark.questions]
        pd.DataFrame(rows, columns=["benchmark", "key", "answer"]).to_parquet(answers)
        predictions = scoring.predict([benchmark], answers, tmp_path, "m")
        records = json.loads((predictions / "vlind" / "predictions.json").read_text())
        return records[0]["aggregated_human_label_good_images"]["9"]

    assert votes() == 3
    text = (folder / "data.json").read_text()
    (folder / "data.json").write_text(text.replace('"9": 3', '"9": 2'))  # asks the same questions
    assert votes() == 2
