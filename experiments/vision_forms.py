"""Is there a form in which vision-biased pairs help? `python -m experiments.vision_forms --out FILE.json`.

A form selects some of these pairs and may replace their rejected answers. Each form is trained together with the
original pairs and compared with these alone. The forms in BESIDE_BOTH are also trained together with original and
language-biased pairs, and compared with those two. Reporting bases see only the forms in CONFIRMED, which the
development bases chose.
"""

import functools

import numpy as np

from experiments import headroom
from napo.desk import speak
from napo.desk.questions import CAPTION_KINDS, KINDS, ask
from napo.desk.scenes import from_json
from napo.engine import logps
from napo.methods import Method
from napo.profiles import DEVELOPMENT_BASES
from napo.stats import measures
from napo.study import markdown

ARMS = {  # pairs that a form does not use are dropped
    "vb": Method("DPO, original pairs and a form of vision-biased ones", headroom.TERMS["vb"], drop_noise=True),
    "all": Method("DPO, all pairs, a form of vision-biased ones", headroom.TERMS["all"], drop_noise=True),
}
OTHER = {"vb": "dpo_original", "all": "dpo_lb"}  # the same without vision-biased pairs
KIND = "vision_biased"


def form(function):
    """Decorator: a form from function(rows, model, processor, rng) -> [(rejected answer, whether to use the pair)].

    A pair with an empty answer or two equal answers is never used. The docstring is the form's row in the table.
    """

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
    """Only pairs whose rejected answer is not right (needs the truth)"""
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
    """Only the half that the base finds likeliest after the whole question, per token"""
    frame = logps.measure(model, processor, rows, (KIND,), batch_size=32)
    per_token = (frame[f"logps_{KIND}"] / frame[f"tokens_{KIND}"]).to_numpy()
    return [(row[KIND], value >= np.median(per_token)) for row, value in zip(rows, per_token, strict=True)]


@form
def other_question(rows, model, processor, rng):
    """Replaced by the base's answer to another question about the picture"""
    questions = [_another(row, rng) for row in rows]
    answers = speak.answer(model, processor, questions, [row["image"] for row in rows])
    return [(answer, True) for answer in answers]


def _another(row, rng):
    others = [kind for kind in KINDS if kind not in (row["question_kind"], *CAPTION_KINDS)]
    return ask(from_json(row["scene"]), rng.choice(others).item(), rng).text


@form
def appended(rows, *_):
    """Replaced by the chosen answer followed by the vision-biased one"""
    return [(f"{row['chosen']} {row[KIND]}", True) for row in rows]


@form
def appended_without_captions(rows, *_):
    """The same, only for questions that do not ask for a caption"""
    return [(f"{row['chosen']} {row[KIND]}", row["question_kind"] not in CAPTION_KINDS) for row in rows]


_FORMS = (as_they_are, without_noise, without_captions, captions_only, cut, likely, other_question, appended)
FORMS = {change.__name__: change for change in (*_FORMS, appended_without_captions)}
BESIDE_BOTH = ("as_they_are", "cut", "other_question", "appended")
CONFIRMED = ("as_they_are", "other_question", "appended")


def arms(development):
    """[(arm, form, arm to compare with)] for development bases, or for the others."""
    beside = {"vb": FORMS if development else CONFIRMED, "all": BESIDE_BOTH if development else CONFIRMED}
    return [(arm, form, OTHER[arm]) for arm, forms in beside.items() for form in forms]


def runs(numbers, seeds):
    """All runs on the bases with these numbers: each form, and the arms to compare with."""
    compared = arms(set(numbers) <= set(DEVELOPMENT_BASES))
    trained = [*dict.fromkeys((other, "") for *_, other in compared), *((arm, form) for arm, form, _ in compared)]
    return [headroom.Run(arm, noise, base, seed) for seed in seeds for base in numbers for arm, noise in trained]


def scores_of(run, profile, runs_dir="runs"):
    """Path of the run's scores.parquet, made unless current."""
    return headroom.scores_of(run, profile, runs_dir, ARMS.get(run.arm), FORMS.get(run.noise))


def comparisons(scores):
    """The pairs (arm, arm to compare with) whose runs are in the scores."""
    compared = [(f"{arm}+{form}", other) for development in (True, False) for arm, form, other in arms(development)]
    return [pair for pair in dict.fromkeys(compared) if set(pair) <= set(scores["method"])]


def table(found):
    """The record as a Markdown table: difference of each form from training without it, in percentage points."""
    beside = {"vb": "original", "all": "original and language-biased"}
    head = ["beside pairs", "vision-biased pairs", *(measures.MEASURES[name].label for name in headroom.MEASURES)]
    rows = []
    for better in dict.fromkeys(record["better"] for record in found["comparisons"]):
        arm, form = better.split("+")
        records = {record["measure"]: record for record in found["comparisons"] if record["better"] == better}
        points = [headroom.points(records[name]) for name in headroom.MEASURES]
        rows.append([beside[arm], FORMS[form].__doc__, *points])
    return markdown.table(head, rows)


if __name__ == "__main__":
    from experiments import vision_forms  # under its own name: the grid's processes import what they run

    headroom.command(__doc__, vision_forms.runs, vision_forms.scores_of, comparisons, table)
