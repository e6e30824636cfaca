"""Masking a modality: each mask, empty answers, shards that survive an interruption, and upstream's own answers."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from photographs import jpeg, photograph, write_upstream
from PIL import Image
from tiny_models import save_tiny_llava
from tiny_rows import make_row

from napo.engine import preferences
from napo.pairs import perturb
from napo.profiles import Perturbation, get
from napo.workshop import artifacts, code_hash
from napo.workshop.files import BadInput


@pytest.fixture(autouse=True)
def small_photographs(monkeypatch):
    monkeypatch.setattr("photographs.photograph", lambda name: photograph(name).resize((32, 24)))


def make_profile(tmp_path, rows=4, **changes):
    """The paper profile on a tiny model and 8 rows; answers of 6 tokens, greedy."""
    if not (tmp_path / "llava").exists():
        save_tiny_llava(tmp_path / "llava")
    profile = get("paper", model=str(tmp_path / "llava"), data=str(tmp_path / "data.parquet"), rows=rows, device="cpu")
    settings = Perturbation(max_new_tokens=6, batch_size=4)
    return dataclasses.replace(profile, **{"heldout_rows": 4, "perturbation": settings} | changes)


@pytest.fixture
def counted(monkeypatch):
    """Every call of `generate` in perturb, as the number of its prompts; the answers are numbered, not generated."""
    calls = []

    def generate(model, processor, prompts, settings, label=None, min_new_tokens=None):
        calls.append(len(prompts))
        return [f"answer {len(calls)}.{i}" for i in range(len(prompts))]

    monkeypatch.setattr(perturb, "generate", generate)
    monkeypatch.setattr(perturb.models, "load", lambda *a, **k: (None, None))
    monkeypatch.setattr(perturb.packing, "check_image_tokens", lambda *a: None)
    return calls


def test_flat_masks_keep_the_size_and_nothing_of_the_content():
    image = make_row()["image"]
    for how, colour in {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (127, 127, 127)}.items():
        masked = perturb.mask_image(image, how)
        assert masked.size == image.size and masked.mode == "RGB"
        assert masked.getcolors() == [(image.width * image.height, colour)]
    assert perturb.mask_image(image, "none") is None


def test_noise_mask_is_uniform_of_the_image_size_and_repeats_with_its_generator():
    image = Image.new("RGB", (80, 50))
    first, again, other = (perturb.mask_image(image, "noise", np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert first.size == (80, 50) and first.tobytes() == again.tobytes() != other.tobytes()
    pixels = np.asarray(first, float)
    assert abs(pixels.mean() - 127.5) < 3 and abs(pixels.std() - 73.9) < 2
    assert pixels.min() == 0 and pixels.max() == 255


def test_unknown_mask_is_refused():
    with pytest.raises(BadInput, match="unknown image mask 'blur': use one of none, white, black, grey, noise"):
        perturb.mask_image(make_row()["image"], "blur")


def test_each_kind_masks_its_modality():
    row = make_row()
    masked, has_image, has_question = perturb.perturbed(row, "language_biased")
    assert masked["image"] is None and not has_image and has_question and masked["question"] == row["question"]
    masked, has_image, has_question = perturb.perturbed(row, "language_biased", "black")
    assert masked["image"].getextrema() == ((0, 0),) * 3 and has_image and has_question
    for how in perturb.MASKS:
        same, has_image, has_question = perturb.perturbed(row, "vision_biased", how)
        assert same["image"] is row["image"] and has_image and not has_question


def fake_generate(monkeypatch, first, second):
    """`generate` that answers `first`, and `second` when asked for at least one word."""
    asked = []

    def generate(model, processor, prompts, settings, label=None, min_new_tokens=None):
        asked.append((len(prompts), min_new_tokens))
        return [second if min_new_tokens else first(row) for row, _, _ in prompts]

    monkeypatch.setattr(perturb, "generate", generate)
    monkeypatch.setattr(perturb.models, "load", lambda *a, **k: (None, None))
    monkeypatch.setattr(perturb.packing, "check_image_tokens", lambda *a: None)
    return asked


def test_empty_answers_are_generated_again_with_at_least_a_word(monkeypatch):
    asked = fake_generate(monkeypatch, lambda row: "" if row["row_id"].endswith(("1", "3")) else "bear", "brown")
    rows = [make_row(i) for i in range(5)]
    answers, counts = perturb.biased_answers(None, None, rows, "language_biased", Perturbation())
    assert answers == ["bear", "brown", "bear", "brown", "bear"]
    assert asked[0] == (5, None) and asked[1][0] == 2 and asked[1][1] >= 1
    assert counts["again"] == 2 and counts["empty"] == 0


def test_answers_that_stay_empty_are_counted_and_their_rows_dropped(monkeypatch, tmp_path, capsys):
    fake_generate(monkeypatch, lambda row: "" if row["row_id"].endswith(("1", "3")) else "bear", "")
    write_upstream(tmp_path / "data.parquet", 8, question=lambda i: f"what is {i}?")
    pairs = preferences.read(perturb.pairs(make_profile(tmp_path), 0, runs_dir=tmp_path / "runs"))
    assert list(pairs["row_id"]) == [f"data.parquet:{i}" for i in (0, 2, 4, 5, 6, 7)]
    said = capsys.readouterr().out
    assert "2 rows dropped" in said and "2 empty ones generated again" in said


def test_a_model_that_says_nothing_is_refused(monkeypatch, tmp_path):
    fake_generate(monkeypatch, lambda row: "", "")
    write_upstream(tmp_path / "data.parquet", 8)
    with pytest.raises(BadInput, match="every biased answer of 8 rows is empty"):
        perturb.pairs(make_profile(tmp_path), 0, runs_dir=tmp_path / "runs")
    assert not (tmp_path / "runs" / "paper" / "base-0" / "pairs.parquet").exists()


def test_an_answer_equal_to_the_chosen_one_is_kept_and_labelled_noise(monkeypatch, tmp_path):
    fake_generate(monkeypatch, lambda row: row["chosen"] if row["row_id"].endswith(("0", "6")) else "bear", "")
    write_upstream(tmp_path / "data.parquet", 8, question=lambda i: f"what is {i}?")
    pairs = preferences.read(perturb.pairs(make_profile(tmp_path), 0, runs_dir=tmp_path / "runs"))
    assert len(pairs) == 8
    for kind in preferences.BIASED:
        expected = [True if i in (0, 6) else None for i in range(8)]
        assert list(pairs[f"is_noise_{kind}"]) == expected


def test_rows_that_bring_their_biased_answers_need_no_model(monkeypatch, tmp_path):
    write_upstream(
        tmp_path / "data.parquet", 8, question_only=lambda i: f"prior {i}", image_only=lambda i: f"details {i}"
    )
    monkeypatch.setattr(perturb.models, "load", lambda *a, **k: pytest.fail("a model was loaded"))
    pairs = preferences.read(perturb.pairs(make_profile(tmp_path), 0, runs_dir=tmp_path / "runs"))
    assert list(pairs["language_biased"]) == [f"prior {i}" for i in range(8)]
    assert list(pairs["vision_biased"]) == [f"details {i}" for i in range(8)]


def test_upstream_rows_without_their_biased_answer_are_dropped_with_a_count(tmp_path, capsys):
    write_upstream(
        tmp_path / "data.parquet",
        8,
        question_only=lambda i: None if i == 2 else "prior",
        image_only=lambda i: "" if i == 5 else "details",
    )
    pairs = preferences.read(perturb.pairs(make_profile(tmp_path), 0, runs_dir=tmp_path / "runs"))
    assert list(pairs["row_id"]) == [f"data.parquet:{i}" for i in (0, 1, 3, 4, 6, 7)]
    assert "2 rows dropped" in capsys.readouterr().out


def test_rows_that_the_model_cannot_take_are_found_before_anything_is_generated(monkeypatch, tmp_path, counted):
    questions = {2: "what is <image> ?", 5: "long " * 80}
    write_upstream(tmp_path / "data.parquet", 8, question=lambda i: questions.get(i, f"what is {i}?"))
    profile = make_profile(tmp_path)
    profile = dataclasses.replace(profile, training=dataclasses.replace(profile.training, max_length=200))
    with pytest.raises(BadInput, match="2 bad row") as bad:
        perturb.pairs(profile, 0, runs_dir=tmp_path / "runs")
    assert "row 2 (data.parquet:2) question contains <image>" in str(bad.value) and not counted
    assert "row 5 (data.parquet:5) the prompt has" in str(bad.value) and "the limit is 200" in str(bad.value)
    pairs = preferences.read(perturb.pairs(profile, 0, runs_dir=tmp_path / "runs", bad_rows="drop"))
    assert list(pairs["row_id"]) == [f"data.parquet:{i}" for i in (0, 1, 3, 4, 6, 7)]


def test_an_answer_that_spells_a_special_token_is_dropped(monkeypatch, tmp_path, capsys):
    fake_generate(monkeypatch, lambda row: "an <image>" if row["row_id"].endswith("1") else "bear", "")
    write_upstream(tmp_path / "data.parquet", 8, question=lambda i: f"what is {i}?")
    assert len(preferences.read(perturb.pairs(make_profile(tmp_path), 0, runs_dir=tmp_path / "runs"))) == 7
    assert "1 rows dropped" in capsys.readouterr().out


def test_only_the_missing_kind_is_generated(tmp_path, counted):
    write_upstream(tmp_path / "data.parquet", 8, question_only=lambda i: f"prior {i}")
    pairs = preferences.read(perturb.pairs(make_profile(tmp_path), 0, runs_dir=tmp_path / "runs"))
    assert list(pairs["language_biased"]) == [f"prior {i}" for i in range(8)]
    assert counted[0] == 8 and list(pairs["vision_biased"]) == [f"answer 1.{i}" for i in range(8)]


@pytest.mark.parametrize(
    ("n_file", "rows", "heldout", "expected"),
    [
        (30, 8, 8, (8, 8)),
        (16, 8, 8, (8, 8)),
        (12, 8, 8, (8, 4)),
        (10, 8, 8, (8, 2)),
        (5, 8, 8, (4, 1)),
        (30, 20, 5, (20, 5)),
    ],
)
def test_training_rows_never_exceed_what_was_asked_for(tmp_path, counted, n_file, rows, heldout, expected):
    write_upstream(tmp_path / "data.parquet", n_file)
    profile = make_profile(tmp_path, rows, heldout_rows=heldout)
    pairs = preferences.read(perturb.pairs(profile, 0, runs_dir=tmp_path / "runs"))
    train, held_out = preferences.part(pairs, "train"), preferences.part(pairs, "heldout")
    assert (len(train), len(held_out)) == expected
    assert not set(train["row_id"]) & set(held_out["row_id"])


def test_one_row_cannot_be_split(tmp_path, counted):
    write_upstream(tmp_path / "data.parquet", 1)
    with pytest.raises(BadInput, match="data.parquet: one usable row only"):
        perturb.pairs(make_profile(tmp_path), 0, runs_dir=tmp_path / "runs")


def test_processor_of_another_model_is_named_before_anything_is_generated(tmp_path):
    write_upstream(tmp_path / "data.parquet", 8)
    profile = make_profile(tmp_path)
    settings = json.loads((tmp_path / "llava" / "processor_config.json").read_text())
    (tmp_path / "llava" / "processor_config.json").write_text(json.dumps(settings | {"patch_size": 6}))
    with pytest.raises(BadInput, match=r"row data\.parquet:0: processor and model disagree on the image tokens"):
        perturb.pairs(profile, 0, runs_dir=tmp_path / "runs")


def test_an_interrupted_run_keeps_the_shards_that_it_finished(monkeypatch, tmp_path):
    write_upstream(tmp_path / "data.parquet", 8, question=lambda i: f"what is {i}?")
    profile, calls = make_profile(tmp_path), []
    monkeypatch.setattr(perturb, "SHARD_ROWS", 3)
    state = {"die_at": 5}

    def generate(model, processor, prompts, settings, label=None, min_new_tokens=None):
        if prompts:
            calls.append(len(prompts))
        if len(calls) == state["die_at"]:
            raise KeyboardInterrupt
        return [f"{row['row_id']} {image} {question}" for row, image, question in prompts]

    monkeypatch.setattr(perturb, "generate", generate)
    monkeypatch.setattr(perturb.models, "load", lambda *a, **k: (None, None))
    monkeypatch.setattr(perturb.packing, "check_image_tokens", lambda *a: None)
    with pytest.raises(KeyboardInterrupt):
        perturb.pairs(profile, 0, runs_dir=tmp_path / "runs")
    folder = tmp_path / "runs" / "paper" / "base-0"
    assert calls == [3, 3, 2, 3, 3] and not (folder / "pairs.parquet").exists()
    state["die_at"] = 0
    calls.clear()
    pairs = preferences.read(perturb.pairs(profile, 0, runs_dir=tmp_path / "runs"))
    assert calls == [3, 2]  # the interrupted shard and the one after it
    for row in pairs:
        assert row["language_biased"] == f"{row['row_id']} False True"
        assert row["vision_biased"] == f"{row['row_id']} True False"
    calls.clear()
    perturb.pairs(profile, 0, runs_dir=tmp_path / "runs")
    assert calls == []


KILLED = """
import os, signal, sys
from pathlib import Path
import test_perturb
from napo.pairs import perturb
folder, shards = Path(sys.argv[1]), int(sys.argv[2])
stock, done = perturb.generate, 0
def generate(model, processor, prompts, *settings, **more):
    global done
    if "min_new_tokens" in more:  # the empty ones again
        return stock(model, processor, prompts, *settings, **more)
    if done == shards:
        os.kill(os.getpid(), signal.SIGKILL)
    done += 1
    with open(folder / "asked.txt", "a") as trace:
        trace.write("".join(f"{row['row_id']} {image}\\n" for row, image, _ in prompts))
    return stock(model, processor, prompts, *settings, **more)
perturb.generate, perturb.SHARD_ROWS = generate, 3
perturb.pairs(test_perturb.make_profile(folder), 0, runs_dir=folder / "runs")
"""


def test_killed_no_row_is_lost_and_none_asked_twice(root, tmp_path, monkeypatch):
    """SIGKILL as the fifth shard begins; the second run makes the same bytes as one that nobody stopped."""
    for name in ("killed", "whole"):
        (tmp_path / name).mkdir()
        make_profile(tmp_path / name)
        write_upstream(tmp_path / name / "data.parquet", 8, question=lambda i: f"what is {i}?")
    environment = os.environ | {"PYTHONPATH": f"{root}:{root / 'tests'}:{root / 'tests' / 'pairs'}"}
    folder = tmp_path / "killed"

    def run(shards):
        command = [sys.executable, "-c", KILLED, folder, str(shards)]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True)
        return ended.returncode, (folder / "asked.txt").read_text().splitlines()

    status, asked = run(4)
    assert status == -signal.SIGKILL and len(asked) == 3 + 3 + 2 + 3
    assert not (folder / "runs/paper/base-0/pairs.parquet").exists()
    status, asked = run(99)
    assert status == 0 and len(set(asked)) == len(asked) == 16
    monkeypatch.setattr(perturb, "SHARD_ROWS", 3)
    perturb.pairs(make_profile(tmp_path / "whole"), 0, runs_dir=tmp_path / "whole" / "runs")
    made = [tmp_path / name / "runs/paper/base-0/pairs.parquet" for name in ("killed", "whole")]
    assert made[0].read_bytes() == made[1].read_bytes()


@pytest.mark.parametrize("image, n_questions", [("none", 2), ("white", 4), ("noise", 8)])
def test_the_same_masked_prompt_is_generated_once_over_all_shards(tmp_path, counted, monkeypatch, image, n_questions):
    """Two questions, two sizes of image: 2 prompts without an image, 4 with a white one, 8 of noise."""
    monkeypatch.setattr(perturb, "SHARD_ROWS", 3)
    monkeypatch.setattr("photographs.photograph", lambda name: photograph(name).resize((32, 24 + 8 * (len(name) % 2))))
    write_upstream(tmp_path / "data.parquet", 8, question=lambda i: f"what is {i // 4}?", image_only=lambda i: "x")
    profile = make_profile(tmp_path)
    profile = dataclasses.replace(profile, perturbation=dataclasses.replace(profile.perturbation, image=image))
    pairs = list(preferences.read(perturb.pairs(profile, 0, runs_dir=tmp_path / "runs")))
    assert sum(counted) == n_questions
    seen = {}
    for row in pairs:
        key = {"none": row["question"], "white": (row["question"], row["image"].size), "noise": row["row_id"]}[image]
        assert seen.setdefault(key, row["language_biased"]) == row["language_biased"]
    assert len(seen) == n_questions == len(set(seen.values()))


def test_the_same_picture_is_looked_at_once(tmp_path, counted):
    picture = jpeg(photograph("moon").resize((32, 24)))
    same = {"bytes": picture, "path": "moon.jpg"}
    write_upstream(tmp_path / "data.parquet", 8, image=lambda i: same, question_only=lambda i: "x")
    pairs = preferences.read(perturb.pairs(make_profile(tmp_path), 0, runs_dir=tmp_path / "runs"))
    assert sum(counted) == 1 and len(set(pairs["vision_biased"])) == 1


def test_a_damaged_shard_is_generated_again(tmp_path, counted):
    write_upstream(tmp_path / "data.parquet", 8)
    path = perturb.pairs(make_profile(tmp_path), 0, runs_dir=tmp_path / "runs")
    first = len(counted)
    (path.parent / "answers" / "vision_biased-0000.json").write_text("{")
    path.unlink()
    perturb.pairs(make_profile(tmp_path), 0, runs_dir=tmp_path / "runs")
    assert len([n for n in counted[first:] if n]) == 1


def test_other_questions_masks_or_models_are_generated_anew(tmp_path, counted):
    write_upstream(tmp_path / "data.parquet", 8, question=lambda i: f"what is {i}?")
    profile = make_profile(tmp_path)

    def generated(profile):
        before = len(counted)
        perturb.pairs(profile, 0, runs_dir=tmp_path / "runs")
        return sum(counted[before:])

    assert generated(profile) == 16 and generated(profile) == 0
    white = dataclasses.replace(profile, perturbation=dataclasses.replace(profile.perturbation, image="white"))
    assert generated(white) == 16
    assert generated(profile) == 16
    write_upstream(tmp_path / "data.parquet", 8, question=lambda i: f"another {i}?")
    assert generated(profile) == 16
    config = json.loads((tmp_path / "llava" / "config.json").read_text())
    (tmp_path / "llava" / "config.json").write_text(json.dumps(config | {"note": "another model"}))
    assert generated(profile) == 16


def test_answers_depend_on_the_code_that_masks(tmp_path, counted):
    """The key of a shard must cover masking as well as generation, or a mended mask would keep its old answers."""
    write_upstream(tmp_path / "data.parquet", 8)
    path = perturb.pairs(make_profile(tmp_path), 0, runs_dir=tmp_path / "runs")
    record = artifacts.provenance(path.parent / "answers" / "language_biased-0000.json")
    assert {"pairs", "engine"} <= set(code_hash.rooms_of(record["stage"]))


def test_generated_by_a_real_model_twice_gives_the_same_bytes(tmp_path):
    write_upstream(tmp_path / "data.parquet", 8)
    made = [perturb.pairs(make_profile(tmp_path), 0, runs_dir=tmp_path / name).read_bytes() for name in ("a", "b")]
    assert made[0] == made[1]


def test_desk_answer_equal_to_a_wrong_chosen_answer_is_noise(monkeypatch):
    def truth(rows):
        return [row | {"is_noise_language_biased": False, "is_noise_vision_biased": False} for row in rows]

    monkeypatch.setattr(perturb.desk_pairs, "label_noise", truth)
    rows = [{"chosen": "no .", "language_biased": "no . ", "vision_biased": "a frog ."}]
    (row,) = perturb.label_noise(rows, get("desk"))
    assert row["is_noise_language_biased"] is True and row["is_noise_vision_biased"] is False
