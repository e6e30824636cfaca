"""Biased answers: mask the image or the question and let the base model answer (paper, section 3.1).

language_biased  the image is masked, so the answer comes from language priors
vision_biased    the question is masked, so the answer is whatever the image suggests
"""

import functools
import hashlib
from collections import Counter

import numpy as np
from PIL import Image

from napo.desk import pairs as desk_pairs
from napo.engine import memory, models, packing, preferences, row_check
from napo.engine.generation import chunks, generate, prompt_key
from napo.workshop import artifacts
from napo.workshop.files import BadInput, read_json, write_json
from napo.workshop.progress import progress

FILLS = {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (127, 127, 127)}
MASKS = ("none", *FILLS, "noise")
SHARD_ROWS = 512
LOWER = "lower Perturbation.batch_size in napo/profiles.py, or use PROFILE=paper_small; finished shards are kept"


def mask_image(image, how, rng=None):
    """The image without its content: None ("none"), one flat colour, or uniform noise from `rng`.

    A mask keeps the size and so the number of image tokens. The authors' script has "none", "white" and "black".
    Raises BadInput for an unknown mask.
    """
    if how == "none":
        return None
    if how in FILLS:
        return Image.new("RGB", image.size, FILLS[how])
    if how == "noise":
        return Image.fromarray(rng.integers(0, 256, (image.height, image.width, 3), dtype=np.uint8))
    raise BadInput(f"unknown image mask {how!r}: use one of {', '.join(MASKS)}")


def perturbed(row, kind, how="none", rng=None):
    """(row, has image, has question): the masked prompt that generates one kind of biased answer of a row."""
    if kind == "vision_biased":
        return row, True, False
    masked = mask_image(row["image"], how, rng)
    return {**row, "image": masked}, masked is not None, True


def biased_answers(model, processor, rows, kind, settings, seed=0, label=None):
    """One kind of biased answer for every row; empty answers are generated again with at least one word.

    Returns (answers, counts): counts "again" (generated again) and "empty" (still empty; the caller drops the row).
    """
    rng = np.random.default_rng(seed)
    prompts = [perturbed(row, kind, settings.image, rng) for row in rows]
    answers = generate(model, processor, prompts, settings, label)
    empty = [i for i, answer in enumerate(answers) if not answer]
    again = generate(model, processor, [prompts[i] for i in empty], settings, min_new_tokens=2)
    for i, answer in zip(empty, again, strict=True):
        answers[i] = answer
    return answers, Counter(again=len(empty), empty=sum(not answer for answer in answers))


def pairs(profile, base, runs_dir="runs", bad_rows="stop"):
    """Path of base-<b>/pairs.parquet: preference rows with both biased answers, made unless current (notebook 01).

    bad_rows  "stop": raise BadInput on an unusable row of the source; "drop": leave such rows out
    """
    folder = artifacts.run_folder(profile.name, f"base-{base}", runs_dir=runs_dir)
    settings = {
        **_generated_by(profile, base),
        "data": [profile.data, profile.data_revision],
        "rows": [profile.rows, profile.heldout_rows],
        "base": base,
        "bad_rows": bad_rows,
        "longest_prompt": None if profile.is_desk else profile.training.max_length,
    }
    return artifacts.build(
        folder / "pairs.parquet",
        lambda path: _make_pairs(path, profile, base, folder, bad_rows),
        settings=settings,
        stage="pairs",
        desk=profile.is_desk,
        inputs=preferences.local_files(profile.data),
        seeds=[base],
    )


def _generated_by(profile, base):
    """Settings that every generated answer depends on."""
    return profile.computing | {"model": models.identity(profile, base), "perturbation": profile.perturbation}


def _make_pairs(path, profile, base, folder, bad_rows):
    """Source rows, then the biased answers that they lack, then the truth where it is known.

    Keeps all texts in memory but no images: these are read when prompted and again when written.
    """
    load = models.LoadOnce(functools.partial(models.load_base, profile, base))
    check = models.LoadOnce(functools.partial(row_check.of_base, profile, base))
    rows = source_rows(profile, base, load, bad_rows, lambda row: check()(row))
    splits, texts = split_of(rows, profile), {}
    for kind in preferences.BIASED:
        brought = kind in rows[0]
        texts[kind] = preferences.column(rows, kind) if brought else _answers(rows, kind, profile, base, folder, load)

    def usable(text):
        return (text or "").strip() and (profile.is_desk or not check().special_token(text))

    kept = [i for i in range(len(rows)) if all(usable(texts[kind][i]) for kind in preferences.BIASED)]
    if len(kept) < len(rows):
        print(f"{len(rows) - len(kept)} rows dropped: their biased answer stayed empty, or spells a special token")
    if not kept:
        raise BadInput(f"{profile.data}: every biased answer of {len(rows)} rows is empty; is this a chat model?")
    stored = preferences.undecoded(rows)
    whole = (stored[i] | {"split": splits[i]} | {kind: texts[kind][i] for kind in preferences.BIASED} for i in kept)
    preferences.write(label_noise(whole, profile), path)


def source_rows(profile, base, load, bad_rows="stop", unfit=None):
    """The preference rows without biased answers: a Dataset that decodes images lazily, or the desk world's list.

    bad_rows, unfit  of `preferences.load_source`
    """
    if profile.is_desk:
        return desk_pairs.preference_rows(*load(), profile.rows, profile.heldout_rows, seed=base)
    n_rows = profile.rows + profile.heldout_rows
    rows = preferences.load_source(profile.data, n_rows, profile.data_revision, bad_rows, unfit)
    if len(rows) < 2:
        raise BadInput(f"{profile.data}: one usable row only: give at least two, one to train on and one to hold out")
    return rows


def split_of(rows, profile):
    """ "train" or "heldout" for every row. The desk world names its own split; elsewhere the last rows are held out."""
    if profile.is_desk:
        return preferences.column(rows, "split")
    n_heldout = max(len(rows) - profile.rows, min(profile.heldout_rows, max(1, len(rows) // 5)))
    return ["train" if i < len(rows) - n_heldout else "heldout" for i in range(len(rows))]


def _answers(rows, kind, profile, base, folder, load):
    """One kind of biased answer for every row, generated in shards of distinct prompts.

    An interrupted run keeps its finished shards. Only one shard's images are in memory at a time.
    """
    stored, how = preferences.undecoded(rows), profile.perturbation.image
    keys = [masked_prompt(stored[i], kind, how) or str(i) for i in range(len(rows))]
    first = {key: i for i, key in reversed(list(enumerate(keys)))}  # the first row with each prompt
    shards = []
    for number, shard in enumerate(chunks([first[key] for key in dict.fromkeys(keys)], SHARD_ROWS)):
        settings = _generated_by(profile, base) | {"prompts": _prompts_hash(stored[i] for i in shard), "shard": number}
        path = folder / "answers" / f"{kind}-{number:04d}.json"
        shards.append((path, shard, {"settings": settings, "stage": "pairs"}))
    left = [path for path, _, made_from in shards if not artifacts.is_current(path, **made_from)]
    if len(left) < len(shards):
        print(f"{kind}: {len(shards) - len(left)} of {len(shards)} shards finished earlier")
    steps, texts, total = progress(len(left), f"{kind}: shard"), {}, Counter()
    for number, (path, shard, made_from) in enumerate(shards):

        def make(temporary, shard=shard, number=number):
            label, how = f"{kind}, shard {number + 1} of {len(shards)}: batch", profile.perturbation
            (model, processor), some = load(), [rows[i] for i in shard]
            packing.check_image_tokens(model, processor, some[0])
            with memory.or_say(f"{how.batch_size} prompts with {how.num_beams} beams", LOWER):
                answers, counts = biased_answers(model, processor, some, kind, how, number, label)
            write_json({"texts": answers, "counts": counts}, temporary)

        answers = read_json(artifacts.build(path, make, **made_from))
        total += Counter(answers["counts"])
        texts |= zip((keys[i] for i in shard), answers["texts"], strict=True)
        if path in left and len(left) > 1:
            steps.step()
    print(f"{kind}: {len(rows)} answers to {len(first)} prompts, {total['again']} empty ones generated again")
    return [texts[key] for key in keys]


def masked_prompt(row, kind, how):
    """Key of an undecoded row's masked prompt: rows with the same key get the same answer. None: a prompt of its own,
    as every noise mask differs."""
    if kind == "vision_biased":
        return prompt_key("", row["image"])
    if how == "noise":
        return None
    size = "" if how == "none" else f" {preferences.image_size(row['image'])}"
    return prompt_key(row["question"] + size, None)


def _prompts_hash(rows):
    total = hashlib.sha256()
    for row in rows:
        total.update(row["question"].encode() + b"\0" + preferences.image_bytes(row["image"]))
    return total.hexdigest()


def label_noise(rows, profile):
    """The rows with is_noise_<kind>: the truth in the desk world, elsewhere null (unknown).

    An answer equal to the chosen one is always noise: no text is better than itself.
    """
    for row in desk_pairs.label_noise(list(rows)) if profile.is_desk else rows:
        equal = {kind: row[kind].strip() == row["chosen"].strip() for kind in preferences.BIASED}
        yield row | {f"is_noise_{kind}": same or row.get(f"is_noise_{kind}") for kind, same in equal.items()}
