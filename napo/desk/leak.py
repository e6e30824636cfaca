"""Leaked answers: injected noise of the paper's own kind, biased answers that happen to be good.

Swapped labels, the other kind of injected noise, need no truth: napo/noise/injected.py.
"""

from napo.desk.questions import full_answer, parse
from napo.desk.scenes import from_json
from napo.engine.preferences import BIASED


def leak(rows, rate, rng):
    """The rows, with a good answer in place of both biased ones in exactly round(rate * n) of them.

    rows  list of dicts of the desk world, with question and scene (JSON); unchanged rows stay the same objects
    Raises ValueError if rate leaves [0, 1].
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"the rate of leaked answers must lie in [0, 1], got {rate:g}")
    rows = list(rows)
    for i in rng.permutation(len(rows))[: round(rate * len(rows))]:
        good = full_answer(from_json(rows[i]["scene"]), parse(rows[i]["question"]))
        rows[i] = {**rows[i], **dict.fromkeys(BIASED, good), **{f"is_noise_{kind}": True for kind in BIASED}}
    return rows
