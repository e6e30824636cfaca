"""Noise put in on purpose, the paper's own notion of it: biased answers that are by chance good ones.

Swapped labels, the other kind of noise, need no truth and are drawn in training (`noise.draw_flips`).
"""

from napo.world.questions import full_answer, parse
from napo.world.scenes import from_json

BIASED = ("language_biased", "vision_biased")


def leak(rows, rate, rng):
    """The rows with both biased answers replaced by one that is right and to the point, so by noise, in exactly
    round(rate * n) of them; the others stay the same objects.

    rows  list of dicts of the desk world: question, scene (JSON), and whatever else
    Raises ValueError if rate leaves [0, 1].
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"the rate of leaked answers must lie in [0, 1], got {rate:g}")
    rows = list(rows)
    for i in rng.permutation(len(rows))[: round(rate * len(rows))]:
        good = full_answer(from_json(rows[i]["scene"]), parse(rows[i]["question"]))
        rows[i] = {**rows[i], **dict.fromkeys(BIASED, good), **{f"is_noise_{kind}": True for kind in BIASED}}
    return rows
