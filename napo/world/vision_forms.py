"""Is there a form in which vision-biased pairs help? `python -m napo.world.vision_forms --out FILE.json`.

A form says which of these pairs are used and what stands in them as the rejected answer. It is trained beside the
original pairs and compared with these alone; the forms of BESIDE_BOTH are also trained beside original and
language-biased pairs, and compared with those two. Reporting bases see only the forms of CONFIRMED, which the
development bases chose.
"""

import functools

import numpy as np

from napo import logps, report, stats
from napo.claims import DEVELOPMENT_BASES
from napo.profiles import Method
from napo.world import headroom, speak
from napo.world.questions import CAPTION_KINDS, KINDS, ask
from napo.world.scenes import from_json

ARMS = {  # pairs that a form does not use are dropped
    "vb": Method("DPO, original pairs and a form of vision-biased ones", headroom.TERMS["vb"], drop_noise=True),
    "all": Method("DPO, all pairs, a form of vision-biased ones", headroom.TERMS["all"], drop_noise=True),
}
OTHER = {"vb": "dpo_original", "all": "dpo_lb"}  # the same without vision-biased pairs
KIND = "vision_biased"


def form(function):
    """A form from function(rows, model, processor, rng), which gives for each row (rejected answer, whether its pair is
    used). A pair with an empty answer, or with two that are equal, is never used."""

    @functools.wraps(function)
    def change(rows, model, processor, rng):
        found = function(rows, model, processor, rng)
        return [
            {
                **row,
                KIND: answer or row[KIND],
                f"is_noise_{KIND}": not (used and answer and answer != row["chosen"]),
                "is_noise_language_biased": False,  # none of these is dropped
            }
            for row, (answer, used) in zip(rows, found, strict=True)
        ]

    return change


@form
def as_they_are(rows, *_):
    """Every pair"""
    return [(row[KIND], True) for row in rows]


@form
def without_noise(rows, *_):
    """Only pairs whose rejected answer is not right (nobody knows this but the truth)"""
    return [(row[KIND], not row[f"is_noise_{KIND}"]) for row in rows]


@form
def without_captions(rows, *_):
    """Only questions that do not ask for a caption"""
    return [(row[KIND], row["question_kind"] not in CAPTION_KINDS) for row in rows]


@form
def captions_only(rows, *_):
    """Only questions that ask for a caption"""
    return [(row[KIND], row["question_kind"] in CAPTION_KINDS) for row in rows]


@form
def cut(rows, *_):
    """Cut to as many words as the chosen answer has"""
    return [(" ".join(row[KIND].split()[: len(row["chosen"].split())]), True) for row in rows]


@form
def likely(rows, model, processor, _):
    """Only the half that the base itself finds likeliest beside the whole question, per token"""
    frame = logps.measure(model, processor, rows, (KIND,), batch_size=32)
    per_token = (frame[f"logps_{KIND}"] / frame[f"tokens_{KIND}"]).to_numpy()
    return [(row[KIND], value >= np.median(per_token)) for row, value in zip(rows, per_token, strict=True)]


@form
def other_question(rows, model, processor, rng):
    """In its place what the base says of the same picture when it is asked something else"""
    questions = [_another(row, rng) for row in rows]
    answers = speak.answer(model, processor, questions, [row["image"] for row in rows])
    return [(answer, True) for answer in answers]


def _another(row, rng):
    others = [kind for kind in KINDS if kind not in (row["question_kind"], *CAPTION_KINDS)]
    return ask(from_json(row["scene"]), rng.choice(others).item(), rng).text


@form
def appended(rows, *_):
    """In its place the chosen answer, and then the vision-biased one"""
    return [(f"{row['chosen']} {row[KIND]}", True) for row in rows]


@form
def appended_without_captions(rows, *_):
    """The same, only for questions that do not ask for a caption"""
    return [(f"{row['chosen']} {row[KIND]}", row["question_kind"] not in CAPTION_KINDS) for row in rows]


FORMS = {
    change.__name__: change
    for change in (
        as_they_are,
        without_noise,
        without_captions,
        captions_only,
        cut,
        likely,
        other_question,
        appended,
        appended_without_captions,
    )
}
BESIDE_BOTH = ("as_they_are", "cut", "other_question", "appended")
CONFIRMED = ("as_they_are", "other_question", "appended")


def arms(development):
    """[(arm, form, what it is compared with)] for development bases, or for the others."""
    beside = {"vb": FORMS if development else CONFIRMED, "all": BESIDE_BOTH if development else CONFIRMED}
    return [(arm, form, OTHER[arm]) for arm, forms in beside.items() for form in forms]


def runs(numbers, seeds):
    compared = arms(set(numbers) <= set(DEVELOPMENT_BASES))
    trained = [*dict.fromkeys((other, "") for *_, other in compared), *((arm, form) for arm, form, _ in compared)]
    return [headroom.Run(arm, noise, base, seed) for seed in seeds for base in numbers for arm, noise in trained]


def scores_of(run, profile, runs_dir="runs"):
    """Path of the run's scores.parquet, made unless it is current."""
    if run.arm not in ARMS:
        return headroom.scores_of(run, profile, runs_dir)
    return headroom.scores_of(run, profile, runs_dir, ARMS[run.arm], FORMS[run.noise], ("world.vision_forms",))


def comparisons(scores):
    """Those of the (arm, other arm) pairs that were run."""
    compared = [(f"{arm}+{form}", other) for development in (True, False) for arm, form, other in arms(development)]
    return [pair for pair in dict.fromkeys(compared) if set(pair) <= set(scores["method"])]


def table(found):
    """A row for each arm and form, its difference from the same pairs without it in points of percent."""
    beside = {"vb": "original", "all": "original and language-biased"}
    head = ["beside pairs", "vision-biased pairs", *(stats.MEASURES[name].label for name in headroom.MEASURES)]
    rows = []
    for better in dict.fromkeys(record["better"] for record in found["comparisons"]):
        arm, form = better.split("+")
        records = {record["measure"]: record for record in found["comparisons"] if record["better"] == better}
        points = [headroom.points(records[name]) for name in headroom.MEASURES]
        rows.append([beside[arm], FORMS[form].__doc__, *points])
    return report.markdown_table(head, rows)


if __name__ == "__main__":
    from napo.world import vision_forms  # under its own name: the grid's processes import what they run

    headroom.command(__doc__, vision_forms.runs, vision_forms.scores_of, comparisons, table)
