"""Leaked answers: the stated share, good by the rule of `truth`, in both kinds; other rows unchanged."""

import math

import numpy as np
import pytest

from napo.desk.leak import leak
from napo.desk.questions import KINDS, ask
from napo.desk.scenes import from_json, sample_scene, to_json
from napo.desk.truth import judge


def make_rows(rng, n=20):
    rows = []
    for i in range(n):
        scene = sample_scene(rng, True)
        question = ask(scene, KINDS[i % len(KINDS)], rng)
        rows.append({"row_id": f"{i}", "question": question.text, "scene": to_json(scene), "chosen": "yes ."})
        rows[-1] |= {"language_biased": "no .", "vision_biased": "there are two objects ."}
        rows[-1] |= {"is_noise_language_biased": False, "is_noise_vision_biased": None}
    return rows


def test_leak_replaces_both_answers_in_the_share_of_rows(rng):
    rows = make_rows(rng)
    leaked = leak(rows, 0.4, np.random.default_rng(0))
    noisy = [(old, new) for old, new in zip(rows, leaked, strict=True) if new is not old]
    assert len(noisy) == 8 and [row["row_id"] for row in leaked] == [row["row_id"] for row in rows]
    for old, new in noisy:
        for kind in ("language_biased", "vision_biased"):
            assert judge(from_json(new["scene"]), new["question"], new[kind]).good and new[f"is_noise_{kind}"] is True
        assert (new["chosen"], old["language_biased"], old["is_noise_language_biased"]) == ("yes .", "no .", False)


def test_a_higher_rate_leaks_into_the_same_rows_and_more(rng):
    rows = make_rows(rng)
    changed = [
        {new["row_id"] for new, old in zip(leak(rows, rate, np.random.default_rng(3)), rows, strict=True) if new != old}
        for rate in (0.0, 0.1, 0.3)
    ]
    assert changed[0] == set() < changed[1] < changed[2]


@pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan])
def test_a_rate_that_is_no_share_is_refused(rng, rate):
    with pytest.raises(ValueError, match="rate of leaked answers"):
        leak(make_rows(rng, 2), rate, rng)
