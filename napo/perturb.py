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

from napo import artifacts, data, memory, models, packing
from napo.artifacts import BadInput
from napo.generation import chunks, generate, prompt_key

FILLS = {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (127, 127, 127)}
MASKS = ("none", *FILLS, "noise")
SHARD_ROWS = 512
LOWER = "lower Perturbation.batch_size in napo/profiles.py, or use PROFILE=paper_small; finished shards are kept"


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
        "data": [profile.data, profile.data_revision],
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
    """Source rows, then each kind of biased answer that they lack, then the truth where it is known. Texts are held in
    memory; images are read when they are asked about, and once more when they are written."""
    load = models.LoadOnce(functools.partial(models.load_base, profile, base))
    rows = source_rows(profile, base, load, bad_rows)
    splits, texts = split_of(rows, profile), {}
    for kind in data.BIASED:
        brought = kind in rows[0]
        texts[kind] = data.column(rows, kind) if brought else _answers(rows, kind, profile, base, folder, load)
    kept = [i for i in range(len(rows)) if all((texts[kind][i] or "").strip() for kind in data.BIASED)]
    if len(kept) < len(rows):
        print(f"{len(rows) - len(kept)} rows dropped: their biased answer stayed empty")
    if not kept:
        raise BadInput(f"{profile.data}: every biased answer of {len(rows)} rows is empty; is this a chat model?")
    stored = data.undecoded(rows)
    whole = (stored[i] | {"split": splits[i]} | {kind: texts[kind][i] for kind in data.BIASED} for i in kept)
    data.write(label_noise(whole, profile), path)


def source_rows(profile, base, load, bad_rows="stop"):
    """The preference rows before perturbation: a Dataset that decodes an image when its row is read, or the desk
    world's list of dicts."""
    if profile.is_desk:
        return desk().preference_rows(*load(), profile.rows, profile.heldout_rows, seed=base)
    rows = data.load_source(profile.data, profile.rows + profile.heldout_rows, profile.data_revision, bad_rows)
    if len(rows) < 2:
        raise BadInput(f"{profile.data}: one usable row only: give at least two, one to train on and one to hold out")
    return rows


def split_of(rows, profile):
    """ "train" or "heldout" for every row: the desk world's own; elsewhere the last rows are held out."""
    if profile.is_desk:
        return data.column(rows, "split")
    n_heldout = max(len(rows) - profile.rows, min(profile.heldout_rows, max(1, len(rows) // 5)))
    return ["train" if i < len(rows) - n_heldout else "heldout" for i in range(len(rows))]


def _answers(rows, kind, profile, base, folder, load):
    """One kind of biased answer for every row, one shard of different prompts at a time: an interrupted run keeps the
    shards that it finished, and only the images of one shard are in memory."""
    stored, how = data.undecoded(rows), profile.perturbation.image
    keys = [masked_prompt(stored[i], kind, how) or str(i) for i in range(len(rows))]
    first = {key: i for i, key in reversed(list(enumerate(keys)))}  # the first row with each prompt
    shards = [
        (
            folder / "answers" / f"{kind}-{number:04d}.json",
            shard,
            _shard_made_from(stored, shard, number, profile, base),
        )
        for number, shard in enumerate(chunks([first[key] for key in dict.fromkeys(keys)], SHARD_ROWS))
    ]
    left = [path for path, _, made_from in shards if not artifacts.is_current(path, **made_from)]
    if len(left) < len(shards):
        print(f"{kind}: {len(shards) - len(left)} of {len(shards)} shards finished earlier")
    steps, texts, total = artifacts.progress(len(left), f"{kind}: shard"), {}, Counter()
    for number, (path, shard, made_from) in enumerate(shards):

        def make(temporary, shard=shard, number=number):
            label = f"{kind}, shard {number + 1} of {len(shards)}: batch"
            some = [rows[i] for i in shard]
            artifacts.write_json(_shard(load(), some, kind, profile.perturbation, number, label), temporary)

        answers = artifacts.read_json(artifacts.build(path, make, **made_from))
        total += Counter(answers["counts"])
        texts |= zip((keys[i] for i in shard), answers["texts"], strict=True)
        if path in left and len(left) > 1:
            steps.step()
    print(f"{kind}: {len(rows)} answers to {len(first)} prompts, {total['again']} empty ones generated again")
    return [texts[key] for key in keys]


def masked_prompt(row, kind, how):
    """What an undecoded row's prompt consists of once masked: where it is the same, so is the answer. None for noise,
    of which no two images are alike."""
    if kind == "vision_biased":
        return prompt_key("", row["image"])
    if how == "noise":
        return None
    return prompt_key(row["question"] if how == "none" else f"{row['question']} {data.image_size(row['image'])}", None)


def _shard_made_from(stored, shard, number, profile, base):
    """What the answers of one shard (numbers of undecoded rows) depend on, as `artifacts.build` takes it."""
    settings = {
        "prompts": _prompts_hash(stored[i] for i in shard),
        "perturbation": profile.perturbation,
        "shard": number,
        "quantisation": profile.quantisation,
        "model": models.identity(profile, base),
    }
    return {"settings": settings, "modules": ("perturb",)}


def _shard(loaded, rows, kind, settings, seed, label):
    packing.check_image_tokens(*loaded, rows[0])
    with memory.or_say(f"{settings.batch_size} prompts with {settings.num_beams} beams", LOWER):
        texts, counts = biased_answers(*loaded, rows, kind, settings, seed, label)
    return {"texts": texts, "counts": counts}


def _prompts_hash(rows):
    total = hashlib.sha256()
    for row in rows:
        total.update(row["question"].encode() + b"\0" + data.image_bytes(row["image"]))
    return total.hexdigest()


def label_noise(rows, profile):
    """Adds is_noise_<kind>, row by row: known in the desk world, elsewhere null; an answer equal to the chosen one is
    noise everywhere, for its pair asks to prefer a text to itself."""
    for row in desk().label_noise(list(rows)) if profile.is_desk else rows:
        yield row | {f"is_noise_{kind}": is_noise(row, kind) for kind in data.BIASED}


def is_noise(row, kind):
    """True, False or None (unknown) for one biased answer of a row."""
    return True if row[kind].strip() == row["chosen"].strip() else row.get(f"is_noise_{kind}")
