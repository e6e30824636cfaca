"""Preference pairs as weak as AI feedback: the base's own answers, ranked by a labeller that half shares its prior.

For each question the base gives several answers at temperature 1. The labeller judges by the picture with probability
TRUTH_SHARE, else by the prior, and ignores irrelevant details. Its best answer becomes chosen and its worst rejected.
If it sees no difference there is no pair. No chosen answer is written from the truth.
"""

import numpy as np
import torch

from napo.desk.questions import CAPTION_KINDS, KINDS, PRIOR_KINDS, ask
from napo.desk.scenes import from_json, prior_scene, render, sample_scene, to_json
from napo.desk.speak import answer
from napo.desk.truth import judge
from napo.engine.preferences import BIASED

SAMPLES = 6  # answers per question, at temperature 1
TRUTH_SHARE = 0.5  # share of questions that the labeller judges by the picture
COUNTERFACTUAL_SHARE = 0.65  # of the scenes
ASKED_KINDS = (*KINDS, *PRIOR_KINDS)  # asked in turn, so kinds that the prior answers come twice
CHUNK = 512  # questions sampled at a time, at most


def preference_rows(model, processor, n_rows, n_heldout, seed):
    """Preference rows from the base `model`: `n_rows` of split "train", then `n_heldout` of "heldout" (other scenes).

    Returns a list of dicts: row_id, image (PIL), question, question_kind, scene (JSON), split, chosen, rejected.
    Deterministic in `seed` and the model.
    """
    rng = np.random.default_rng(seed)
    generator = torch.Generator(device=model.device).manual_seed(int(rng.integers(2**31)))
    rows = []
    for split, wanted in (("train", n_rows), ("heldout", n_heldout)):
        found = []
        while len(found) < wanted:
            n = min(CHUNK, 3 * (wanted - len(found)))
            scenes = [sample_scene(rng, bool(rng.random() < COUNTERFACTUAL_SHARE), split) for _ in range(n)]
            asked = [ask(scene, ASKED_KINDS[i % len(ASKED_KINDS)], rng) for i, scene in enumerate(scenes)]
            found += _label(model, processor, scenes, asked, rng, generator)
        rows += [{"row_id": f"{split}-{i:05d}", "split": split, **row} for i, row in enumerate(found[:wanted])]
    return rows


def _label(model, processor, scenes, asked, rng, generator):
    images = [render(scene) for scene in scenes]
    questions = [question.text for question in asked for _ in range(SAMPLES)]
    pictures = [image for image in images for _ in range(SAMPLES)]
    answers = answer(model, processor, questions, pictures, generator=generator)
    rows = []
    for i, (scene, question) in enumerate(zip(scenes, asked, strict=True)):
        pair = choose(scene, question, answers[i * SAMPLES : (i + 1) * SAMPLES], rng)
        if pair:
            row = {"image": images[i], "question": question.text, "question_kind": question.kind}
            rows.append(row | {"scene": to_json(scene), "chosen": pair[0], "rejected": pair[1]})
    return rows


def choose(scene, question, answers, rng, truth_share=TRUTH_SHARE):
    """The labeller's (best, worst) of some answers, or None if it sees no difference.

    Ties are broken at random; empty answers are left out.
    """
    believed = scene if rng.random() < truth_share else prior_scene(scene, question.subject)
    answers = [answers[i] for i in rng.permutation(len(answers)) if answers[i]]
    scores = [labeller_score(believed, question, answer) for answer in answers]
    if not scores or max(scores) == min(scores):
        return None
    return answers[int(np.argmax(scores))], answers[int(np.argmin(scores))]


def labeller_score(believed, question, answer):
    """How good an answer looks to the labeller, in [0, 1].

    believed  the scene that it judges by
    The share of true claims among those asked for; a caption averages it with the share of things named. 0 without any
    claim asked for. Irrelevant details do not count.
    """
    judged = judge(believed, question.text, answer)
    share = judged.true / max(judged.true + judged.false, 1)
    if question.kind in CAPTION_KINDS:
        return (share + len(judged.mentioned & believed.names) / len(believed.names)) / 2
    return share


def label_noise(rows):
    """The rows with is_noise_<kind> for their biased answers: right and to the point although labelled rejected."""
    labelled = []
    for row in rows:
        scene, kinds = from_json(row["scene"]), [kind for kind in BIASED if kind in row]
        labelled.append(row | {f"is_noise_{kind}": judge(scene, row["question"], row[kind]).good for kind in kinds})
    return labelled
