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
from dataclasses import dataclass, replace

import numpy as np

from napo.desk import layout
from napo.desk.language import Claim
from napo.desk.questions import CAPTION_KINDS, PRIOR_KINDS, ask, defies_prior, question, statement_question
from napo.desk.scenes import CELLS, CLASSES, PRIOR, Scene, missing_partners, prior_scene, render, sample_scene, split_of
from napo.desk.truth import judge
from napo.official.benchmarks import Benchmark, Question

VQA = ("vqa_factual", "vqa_counterfactual")
NAMES = (*VQA, "objhal", "vlind", "amber", "pope")
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


def items(name, n, seed=0, split="test"):
    """The items of `n` examples of a benchmark, on scenes of one split.

    split  "test" for reporting, "dev" for choosing settings
    A VLind example has 6 + 2 * GOOD_IMAGES items, any other has one, so VLind gets n / 3 examples.
    Raises ValueError for an unknown name.
    """
    return list(_items(name, n, seed, split))


@functools.cache  # a grid's worker asks for the same items in every cell
def _items(name, n, seed, split):
    rng = np.random.default_rng([seed, NAMES.index(name)])
    examples = -(-n // 3) if name == "vlind" else n
    return tuple(item for i in range(examples) for item in _MAKERS[name](f"{name}-{split}-{i:04d}", i, rng, split))


def _factual(example_id, i, rng, split):
    kinds = (*PRIOR_KINDS, "where", "count")
    return [_vqa_item("vqa_factual", example_id, kinds[i % len(kinds)], rng, split, counterfactual=False)]


def _counterfactual(example_id, i, rng, split):
    return [
        _vqa_item("vqa_counterfactual", example_id, PRIOR_KINDS[i % len(PRIOR_KINDS)], rng, split, counterfactual=True)
    ]


def _vqa_item(benchmark, example_id, kind, rng, split, counterfactual):
    while True:
        scene = sample_scene(rng, counterfactual, split)
        asked = ask(scene, kind, rng)
        if kind not in PRIOR_KINDS or defies_prior(scene, asked) == counterfactual:
            return Item(benchmark, example_id, asked.text, kind, scene)


def _caption(example_id, i, rng, split):
    scene = sample_scene(rng, bool(i // 2 % 2), split)
    kind = CAPTION_KINDS[i % 2]
    return [Item("objhal", example_id, question(kind).text, kind, scene)]


def _amber(example_id, i, rng, split):
    """Captions at even places, questions for absent things at odd ones: AMBER's answer is always no."""
    scene = sample_scene(rng, bool(i // 2 % 2), split)
    if i % 2 == 0:
        return [Item("amber", example_id, question("caption").text, "caption", scene)]
    return [Item("amber", example_id, question("existence", _absent(scene, rng, True)).text, "existence", scene)]


def _pope(example_id, i, rng, split):
    """Yes and no in turns; the example's id begins with POPE's split."""
    scene, of_pope = sample_scene(rng, bool(i // 4 % 2), split), ("random", "adversarial")[i // 2 % 2]
    named = scene.things[rng.integers(len(scene.things))].name
    asked = named if i % 2 == 0 else _absent(scene, rng, of_pope == "adversarial")
    return [Item("pope", f"{of_pope}/{i + 1}", question("existence", asked).text, "existence", scene)]


def _absent(scene, rng, expected):
    """An absent class; if `expected`, one whose partner is present, if there is one."""
    if expected and missing_partners(scene):
        return rng.choice(missing_partners(scene)).item()
    return rng.choice([name for name in CLASSES if name not in scene.names]).item()


def _vlind(example_id, i, rng, split):
    """One instance: a thing with an untypical colour or background."""
    about = ("colour", "background")[i % 2]
    scene, subject = _broken_scene(about, rng, split)
    true = Claim(about, subject, scene.find(subject).colour if about == "colour" else scene.background)
    false = Claim(about, subject, getattr(PRIOR[subject], about))
    absent = rng.choice([name for name in CLASSES if name not in scene.names]).item()
    usual = prior_scene(scene, subject, with_partner=False)
    good = [scene] + [_redrawn(scene, rng, split) for _ in range(GOOD_IMAGES - 1)]
    asked = [
        ("a1", usual, statement_question(false, "common sense")),
        ("a2", usual, statement_question(true, "common sense")),
        ("b1", scene, statement_question(Claim("exists", subject, ""), "image")),
        ("b2", scene, statement_question(Claim("exists", absent, ""), "image")),
        ("c1", scene, statement_question(true, "context", context=true)),
        ("c2", scene, statement_question(false, "context", context=true)),
    ]
    for k, image in enumerate(good):
        asked += [(f"d1:{k}", image, statement_question(true)), (f"d2:{k}", image, statement_question(false))]
    return [Item("vlind", example_id, posed.text, about, image, step) for step, image, posed in asked]


def _broken_scene(about, rng, split):
    while True:
        scene = sample_scene(rng, True, split)
        subject = scene.things[rng.integers(len(scene.things))].name
        usual = PRIOR[subject]
        if (scene.find(subject).colour, scene.background)[about == "background"] != getattr(usual, about):
            return scene, subject


def _redrawn(scene, rng, split):
    """The same things in other cells on the same background, in the same split."""
    while True:
        cells = rng.permutation(len(CELLS))[: len(scene.things)]
        things = [replace(thing, cell=int(cell)) for thing, cell in zip(scene.things, cells, strict=True)]
        drawn = Scene(tuple(sorted(things, key=lambda thing: thing.cell)), scene.background, int(rng.integers(2**31)))
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
    return [row for item, answer in zip(items, answers, strict=True) for row in _vqa_rows(item, answer)]


def _vqa_rows(item, answer):
    judged = judge(item.scene, item.question, answer)
    keys = {"benchmark": item.benchmark, "example_id": item.example_id, "question_kind": item.question_kind}
    values = {"accuracy": judged.right, "irrelevant": judged.irrelevant > 0, "tokens": len(answer.split())}
    return [{**keys, "metric": metric, "value": float(value)} for metric, value in values.items()]
