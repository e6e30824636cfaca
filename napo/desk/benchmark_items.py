"""The desk world's benchmarks: their items and scores.

vqa_factual         questions that the prior answers correctly or not at all (where, count)
vqa_counterfactual  questions that the prior answers wrongly; both: accuracy, irrelevant (0/1), tokens (words)
objhal              captions, short and detailed, of annotated scenes, as in Object HalBench
vlind               VLind-Bench's four steps on counterfactual scenes; every rendering counts as a good image
amber               captions, with the prior's expectations as AMBER's list of likely hallucinations, and questions for
                    absent things
pope                "is there a ... in the image ?", half of them yes; adversarial: the absent thing is expected

The official scorers (`napo.official`) score all but the first two. `layout.write` puts items into a folder in the
official layout; `python -m napo evaluate NAME --data FOLDER` then asks and scores the same.
"""

import functools
import json
from dataclasses import dataclass

import numpy as np

from napo.desk import layout
from napo.desk.language import Claim
from napo.desk.questions import CAPTION_KINDS, PRIOR_KINDS, ask, defies_prior, question, statement_question
from napo.desk.scenes import PRIOR, Scene, missing_partners, prior_scene, render, sample_scene, scattered, split_of
from napo.desk.truth import judge
from napo.official.benchmarks import Benchmark, Question
from napo.official.records import long_rows

VQA = ("vqa_factual", "vqa_counterfactual")
GOOD_IMAGES = 3  # renderings of each VLind instance


@dataclass(frozen=True)
class Item:
    """One question for a model. `step`: the part of its example, "" if the example is one question."""

    benchmark: str
    example_id: str
    question: str
    question_kind: str
    scene: Scene
    step: str = ""

    @property
    def key(self):
        """Unique name among the items of a benchmark."""
        return f"{self.example_id}/{self.step}" if self.step else self.example_id

    @property
    def image(self):
        return render(self.scene)


@functools.cache  # a grid's worker asks for the same items in every cell
def items(name, n, seed=0, split="test"):
    """A tuple of the items of `n` examples of a benchmark, on scenes of one split.

    split  "test" for reporting, "dev" for choosing settings
    A VLind example has 6 + 2 * GOOD_IMAGES items, any other has one, so VLind gets n / 3 examples.
    Raises ValueError for an unknown name.
    """
    rng = np.random.default_rng([seed, NAMES.index(name)])
    examples = -(-n // 3) if name == "vlind" else n
    return tuple(item for i in range(examples) for item in _MAKERS[name](f"{name}-{split}-{i:04d}", i, rng, split))


def _factual(example_id, i, rng, split):
    kinds = (*PRIOR_KINDS, "where", "count")
    return [_vqa_item("vqa_factual", example_id, kinds[i % len(kinds)], rng, split)]


def _counterfactual(example_id, i, rng, split):
    return [_vqa_item("vqa_counterfactual", example_id, PRIOR_KINDS[i % len(PRIOR_KINDS)], rng, split)]


def _vqa_item(benchmark, example_id, kind, rng, split):
    counterfactual = benchmark == "vqa_counterfactual"
    while True:
        scene = sample_scene(rng, counterfactual, split)
        asked = ask(scene, kind, rng)
        if kind not in PRIOR_KINDS or defies_prior(scene, asked) == counterfactual:
            return Item(benchmark, example_id, asked.text, kind, scene)


def _caption(example_id, i, rng, split):
    scene, kind = sample_scene(rng, bool(i // 2 % 2), split), CAPTION_KINDS[i % 2]
    return [Item("objhal", example_id, question(kind).text, kind, scene)]


def _amber(example_id, i, rng, split):
    """Captions at even places, questions for absent things at odd ones: AMBER's answer is always no."""
    scene = sample_scene(rng, bool(i // 2 % 2), split)
    asked = question("existence", _absent(scene, rng, True)) if i % 2 else question("caption")
    return [Item("amber", example_id, asked.text, asked.kind, scene)]


def _pope(example_id, i, rng, split):
    """Yes and no in turns; the example's id begins with POPE's split."""
    scene, of_pope = sample_scene(rng, bool(i // 4 % 2), split), ("random", "adversarial")[i // 2 % 2]
    named = scene.things[rng.integers(len(scene.things))].name
    asked = named if i % 2 == 0 else _absent(scene, rng, of_pope == "adversarial")
    return [Item("pope", f"{of_pope}/{i + 1}", question("existence", asked).text, "existence", scene)]


def _absent(scene, rng, expected):
    """An absent class; if `expected`, one whose partner is present, if there is one."""
    return rng.choice(expected and missing_partners(scene) or scene.absent).item()


def _vlind(example_id, i, rng, split):
    """One instance: a thing with an untypical colour or background."""
    about = ("colour", "background")[i % 2]
    scene, subject = _broken_scene(about, rng, split)
    true = Claim(about, subject, scene.value(about, subject))
    false = Claim(about, subject, getattr(PRIOR[subject], about))
    absent = rng.choice(scene.absent).item()
    usual = prior_scene(scene, subject, with_partner=False)
    asked = [
        ("a1", usual, statement_question(false, "common sense")),
        ("a2", usual, statement_question(true, "common sense")),
        ("b1", scene, statement_question(Claim("exists", subject), "image")),
        ("b2", scene, statement_question(Claim("exists", absent), "image")),
        ("c1", scene, statement_question(true, "context", context=true)),
        ("c2", scene, statement_question(false, "context", context=true)),
    ]
    for k in range(GOOD_IMAGES):
        image = _redrawn(scene, rng, split) if k else scene
        asked += [(f"d1:{k}", image, statement_question(true)), (f"d2:{k}", image, statement_question(false))]
    return [Item("vlind", example_id, posed.text, about, image, step) for step, image, posed in asked]


def _broken_scene(about, rng, split):
    while True:
        scene = sample_scene(rng, True, split)
        subject = scene.things[rng.integers(len(scene.things))].name
        if scene.value(about, subject) != getattr(PRIOR[subject], about):
            return scene, subject


def _redrawn(scene, rng, split):
    """The same things in other cells on the same background, in the same split."""
    while True:
        drawn = scattered([(thing.name, thing.colour) for thing in scene.things], scene.background, rng)
        if split_of(drawn) == split:
            return drawn


_MAKERS = {
    "vqa_factual": _factual,
    "vqa_counterfactual": _counterfactual,
    "objhal": _caption,
    "vlind": _vlind,
    "amber": _amber,
    "pope": _pope,
}
NAMES = tuple(_MAKERS)  # the place of a name is part of the seed of its items: new ones come last


def asked(name, items):
    """The items as a Benchmark without a data folder: images are rendered, predictions are JSON lines."""

    def predictions(answers, model_id):
        rows = [{"question_id": i.key, "question": i.question, "answer": answers[i.key]} for i in items]
        return {"predictions.jsonl": "".join(json.dumps(row | {"model_id": model_id}) + "\n" for row in rows)}

    questions = [Question(item.key, item.example_id, item.question, item.image) for item in items]
    return Benchmark(name, None, tuple(questions), predictions, {"about": layout.ABOUT})


# ---- scores ---------------------------------------------------------------------------------------------------------


def vqa_scores(items, answers):
    """Long rows (dicts of benchmark, metric, example_id, question_kind, value) for a model's answers to VQA items."""
    rows = []
    for item, answer in zip(items, answers, strict=True):
        judged = judge(item.scene, item.question, answer)
        values = {"accuracy": judged.right, "irrelevant": judged.irrelevant > 0, "tokens": len(answer.split())}
        rows += long_rows(item.benchmark, item.example_id, item.question_kind, values)
    return rows
