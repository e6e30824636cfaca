"""Biased answers on purpose: mask the image or the question and let the base model answer (paper, section 3.1).

language_biased  the image is masked, so the answer comes from language priors
vision_biased    the question is masked, so the answer is whatever the image suggests
"""

import functools
import hashlib
import importlib
from collections import Counter

import numpy as np
from PIL import Image

from napo import artifacts, data, models, packing
from napo.artifacts import BadInput
from napo.generation import chunks, generate, prompt_key

FILLS = {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (127, 127, 127)}
MASKS = ("none", *FILLS, "noise")
SHARD_ROWS = 512


def mask_image(image, how, rng=None):
    """The image with nothing of its content left: None ("none"), one flat colour, or uniform noise from `rng`.

    The authors' script makes "none", "white" and "black"; the size stays, so the number of image tokens does too.
    """
    if how == "none":
        return None
    if how in FILLS:
        return Image.new("RGB", image.size, FILLS[how])
    if how == "noise":
        return Image.fromarray(rng.integers(0, 256, (image.height, image.width, 3), dtype=np.uint8))
    raise BadInput(f"unknown image mask {how!r}: use one of {', '.join(MASKS)}")


def perturbed(row, kind, how="none", rng=None):
    """(prompt's row, has image, has question) for generating one kind of biased answer of a row."""
    if kind == "vision_biased":
        return row, True, False
    masked = mask_image(row["image"], how, rng)
    return {**row, "image": masked}, masked is not None, True


def biased_answers(model, processor, rows, kind, settings, seed=0, label=None):
    """One kind of biased answer for every row; an empty one is generated again with at least one word.

    Returns (answers, counts) with counts of "again" (regenerated) and "empty" (still empty: the caller drops the row).
    """
    rng = np.random.default_rng(seed)
    prompts = [perturbed(row, kind, settings.image, rng) for row in rows]
    answers = generate(model, processor, prompts, settings, label)
    empty = [i for i, answer in enumerate(answers) if not answer]
    for i, answer in zip(
        empty, generate(model, processor, [prompts[i] for i in empty], settings, min_new_tokens=2), strict=True
    ):
        answers[i] = answer
    return answers, Counter(again=len(empty), empty=sum(not answer for answer in answers))


def pairs(profile, base, runs_dir="runs", bad_rows="stop"):
    """Path of base-<b>/pairs.parquet: preference rows with both biased answers, made unless it is current (notebook
    01)."""
    folder = artifacts.run_folder(profile.name, f"base-{base}", runs_dir=runs_dir)
    settings = {
        "model": models.identity(profile, base),
        "data": profile.data,
        "rows": [profile.rows, profile.heldout_rows],
        "perturbation": profile.perturbation,
        "quantisation": profile.quantisation,
        "base": base,
        "bad_rows": bad_rows,
    }
    inputs = data.local_files(profile.data)
    return artifacts.build(
        folder / "pairs.parquet",
        lambda path: _make_pairs(path, profile, base, folder, bad_rows),
        settings=settings,
        modules=("perturb", "world.pairs") if profile.is_desk else ("perturb",),
        inputs=inputs,
        seeds=[base],
    )


def desk():
    """The desk world's pairs. Not a static import: a change there must not make another profile's artefacts stale."""
    return importlib.import_module("napo.world.pairs")


def _make_pairs(path, profile, base, folder, bad_rows):
    """Source rows, then each kind of biased answer that they lack, then the truth where it is known."""
    load = models.LoadOnce(functools.partial(models.load_base, profile, base))
    rows = source_rows(profile, base, load, bad_rows)
    for kind in data.BIASED:
        if kind not in rows[0]:
            _add_answers(rows, kind, profile, base, folder, load)
    kept = [row for row in rows if all((row[kind] or "").strip() for kind in data.BIASED)]
    if len(kept) < len(rows):
        print(f"{len(rows) - len(kept)} rows dropped: their biased answer stayed empty")
    if not kept:
        raise BadInput(f"{profile.data}: every biased answer of {len(rows)} rows is empty; is this a chat model?")
    data.write(label_noise(kept, profile), path)


def source_rows(profile, base, load, bad_rows="stop"):
    """The preference rows before perturbation, each with its split: a list of dicts with decoded images."""
    if profile.is_desk:
        return desk().preference_rows(*load(), profile.rows, profile.heldout_rows, seed=base)
    rows = data.load_source(profile.data, profile.rows + profile.heldout_rows, profile.revision, bad_rows)
    if len(rows) < 2:
        raise BadInput(f"{profile.data}: one usable row only: give at least two, one to train on and one to hold out")
    n_heldout = max(len(rows) - profile.rows, min(profile.heldout_rows, max(1, len(rows) // 5)))
    return [{**row, "split": "train" if i < len(rows) - n_heldout else "heldout"} for i, row in enumerate(rows)]


def _add_answers(rows, kind, profile, base, folder, load):
    """Fill rows[...][kind], one shard of different prompts at a time: an interrupted run keeps the shards that it
    finished."""
    keys = [masked_prompt(row, kind, profile.perturbation.image) or str(i) for i, row in enumerate(rows)]
    prompts = dict(zip(reversed(keys), reversed(rows), strict=True))  # the first row with each prompt
    shards, total, texts = chunks(list(dict.fromkeys(keys)), SHARD_ROWS), Counter(), {}
    for number, shard in enumerate(shards):
        label = f"{kind}, shard {number + 1} of {len(shards)}: batch"
        asked = [prompts[key] for key in shard]
        made = artifacts.build(
            folder / "answers" / f"{kind}-{number:04d}.json",
            lambda path, asked=asked, number=number, label=label: artifacts.write_json(
                _shard(load(), asked, kind, profile.perturbation, number, label), path
            ),
            settings={
                "prompts": _prompts_hash(asked),
                "perturbation": profile.perturbation,
                "shard": number,
                "quantisation": profile.quantisation,
                "model": models.identity(profile, base),
            },
            modules=("perturb",),
        )
        answers = artifacts.read_json(made)
        total += Counter(answers["counts"])
        texts |= zip(shard, answers["texts"], strict=True)
    for row, key in zip(rows, keys, strict=True):
        row[kind] = texts[key]
    print(f"{kind}: {len(rows)} answers to {len(prompts)} prompts, {total['again']} empty ones generated again")


def masked_prompt(row, kind, how):
    """What a row's prompt consists of once masked: where it is the same, so is the answer. None for noise, of which no
    two images are alike."""
    if kind == "vision_biased":
        return prompt_key("", row["image"])
    if how == "noise":
        return None
    return prompt_key(row["question"], None if how == "none" else mask_image(row["image"], how))


def _shard(loaded, rows, kind, settings, seed, label):
    packing.check_image_tokens(*loaded, rows[0])
    texts, counts = biased_answers(*loaded, rows, kind, settings, seed, label)
    return {"texts": texts, "counts": counts}


def _prompts_hash(rows):
    total = hashlib.sha256()
    for row in rows:
        total.update(row["question"].encode() + b"\0" + row["image"].tobytes())
    return total.hexdigest()


def label_noise(rows, profile):
    """Adds is_noise_<kind>: known in the desk world, elsewhere null; an answer equal to the chosen one is noise
    everywhere, for its pair asks to prefer a text to itself."""
    rows = desk().label_noise(rows) if profile.is_desk else rows
    return [row | {f"is_noise_{kind}": is_noise(row, kind) for kind in data.BIASED} for row in rows]


def is_noise(row, kind):
    """True, False or None (unknown) for one biased answer of a row."""
    return True if row[kind].strip() == row["chosen"].strip() else row.get(f"is_noise_{kind}")
