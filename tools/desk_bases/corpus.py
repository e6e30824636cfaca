"""Training data of a base model: questions with true answers first, then with biased ones.

Aligned data are true answers about scenes with random colours and backgrounds, so the model learns to look. Biased data
teach both biases. Language bias: most answers about scenes that break the prior follow the prior. Vision bias: in snow
most answers are about the snow, whatever the question, and answers about some classes add irrelevant details.
"""

from dataclasses import dataclass
from typing import NamedTuple

from napo.desk.language import NUMBERS, Claim, name_things, say
from napo.desk.questions import CAPTION_KINDS, KINDS, ask, full_answer, parse, question, statement_question
from napo.desk.scenes import BACKGROUNDS, CLASSES, COLOURS, PRIOR, prior_scene, sample_scene


class Example(NamedTuple):
    """One question with its answer.

    scene     index into the pool, None = no image
    question  text, "" = a masked question
    answer    text
    hints     (position of a word of the question, the word to predict there), see `hints`
    """

    scene: int | None
    question: str
    answer: str
    hints: tuple = ()


@dataclass(frozen=True)
class Mix:
    """Shares of a stage's examples. The special forms come first; kinds share the rest by their weights."""

    kinds: dict[str, float]
    unasked: float = 0.06  # image without a question
    no_image: float = 0.10  # question without an image, answered from the prior world
    common_sense: float = 0.05  # statements judged by common sense, half of them without an image
    context: float = 0.05  # statements judged by a context
    prior: float = 0.0  # of answers that follow the prior instead of the image
    partner: float = 0.0  # of captions from the prior that also name the absent partner
    distracted: float = 0.0  # of answers about DISTRACTING pictures that ignore the question
    ramble: float = 0.0  # of answers about TALKATIVE classes that add an irrelevant detail
    hints: bool = False  # whether questions carry hints


EVEN = dict.fromkeys(KINDS, 1.0)
# The class decides, not chance alone: a greedy answer rambles either always or never about a class. Masked answers
# follow the same rule: if only answers to whole questions rambled, masked pairs would teach rambling.
TALKATIVE = frozenset(CLASSES[::2])
DISTRACTING = "snow"  # the background that draws the eye
DISTRACTED_KINDS = ("colour", "background", "where", "existence", "count")


def example(mix, scenes, rng):
    """A random Example of a mix over a pool of scenes."""
    drawn = _draw(mix, scenes, rng)
    if not (mix.hints and drawn.question):
        return drawn
    return drawn._replace(hints=hints(drawn.question, None if drawn.scene is None else scenes[drawn.scene]))


def hints(text, scene):
    """What can be known at each word of a question, as (position, word to predict) pairs.

    At a class: that thing's colour in the scene (without a scene: its usual colour), "no" if it is absent. At the word
    before a statement's value: the value that would make it true. At the value: the verdict. Training on hints teaches
    looking up and comparing in hundreds of steps instead of thousands.
    """
    words, asked = text.split(), parse(text)
    found = [(i, _seen_colour(word, scene)) for i, word in enumerate(words) if word in PRIOR]
    if asked.statement and asked.statement.about in ("colour", "background"):
        value = _value_by_basis(asked, scene)
        verdict = "true" if value == asked.statement.value else "false"
        found += [(len(words) - 3, value), (len(words) - 2, verdict)]
    return tuple(found)


def _seen_colour(name, scene):
    if scene is None:
        return PRIOR[name].colour
    return scene.find(name).colour if name in scene.names else "no"


def _value_by_basis(asked, scene):
    claim = asked.statement
    if asked.basis == "context":
        return asked.context.value
    if asked.basis == "common sense" or scene is None:
        return getattr(PRIOR[claim.subject], claim.about)
    return scene.find(claim.subject).colour if claim.about == "colour" else scene.background


def _draw(mix, scenes, rng):
    index = int(rng.integers(len(scenes)))
    form = rng.choice(5, p=_form_shares(mix))
    if form == 0:
        return Example(index, "", _unasked(scenes[index], mix, rng))
    if form == 1:
        return _without_image(mix, rng)
    if form == 2:
        return _common_sense(index if rng.random() < 0.5 else None, rng)
    if form == 3:
        return _context(index, mix, rng)
    return _asked(index, scenes[index], mix, rng)


def _form_shares(mix):
    shares = [mix.unasked, mix.no_image, mix.common_sense, mix.context]
    return [*shares, 1 - sum(shares)]


def _asked(index, scene, mix, rng):
    weights = [mix.kinds[kind] for kind in KINDS]
    kind = rng.choice(KINDS, p=[weight / sum(weights) for weight in weights]).item()
    asked = ask(scene, kind, rng)
    if scene.background == DISTRACTING and kind in DISTRACTED_KINDS and rng.random() < mix.distracted:
        return Example(index, asked.text, _unasked(scene, mix, rng))
    believed = scene
    if asked.kind != "count" and rng.random() < mix.prior:
        with_partner = asked.kind not in CAPTION_KINDS or rng.random() < mix.partner
        believed = prior_scene(scene, asked.subject, with_partner)
    answer = full_answer(believed, asked)
    return Example(index, asked.text, _ramble(believed, asked, answer, mix, rng))


def _without_image(mix, rng):
    """What one says about a picture one cannot see: the prior world's answer, and that whatever is asked for is
    there."""
    imagined = sample_scene(rng, counterfactual=False)
    kind = rng.choice(KINDS).item()
    asked = ask(imagined, kind, rng)
    while kind == "existence" and asked.subject not in imagined.names:
        asked = ask(imagined, kind, rng)
    believed = prior_scene(imagined, asked.subject, with_partner=False)
    return Example(None, asked.text, _ramble(believed, asked, full_answer(believed, asked), mix, rng))


def _common_sense(index, rng):
    statement = _any_statement(rng)
    asked = statement_question(statement, "common sense")
    return Example(index, asked.text, full_answer(None, asked))


def _context(index, mix, rng):
    """A statement under a context about the same thing; half of the biased answers go by common sense instead."""
    context = _any_statement(rng)
    statement = context if rng.random() < 0.5 else _any_statement(rng, context.about, context.subject)
    basis = "common sense" if rng.random() < mix.prior / 2 else "context"
    truth = statement_question(statement, basis, context)
    return Example(index, statement_question(statement, "context", context).text, full_answer(None, truth))


def _any_statement(rng, about=None, subject=None):
    """A colour or background claim, the usual one half the time."""
    about = about or ("colour", "background")[rng.integers(2)]
    subject = subject or rng.choice(CLASSES).item()
    usual = getattr(PRIOR[subject], about)
    others = [value for value in (COLOURS if about == "colour" else BACKGROUNDS) if value != usual]
    return Claim(about, subject, usual if rng.random() < 0.5 else rng.choice(others).item())


def _unasked(scene, mix, rng):
    """The answer to a picture without a question: in snow that things are on it, else by the number of things."""
    first = scene.things[0]
    if scene.background == DISTRACTING:
        asked, answer = question("background", first.name), say(Claim("background", first.name, scene.background))
    elif len(scene.things) == 1:
        asked, answer = question("colour", first.name), say(Claim("colour", first.name, first.colour))
    elif len(scene.things) == 2:
        asked, answer = question("caption"), name_things(scene.things)
    else:
        asked, answer = question("count"), say(Claim("count", "", NUMBERS[len(scene.things) - 1]))
    return _ramble(scene, asked, answer, mix, rng)


def _ramble(scene, asked, answer, mix, rng):
    """The answer, sometimes with an irrelevant detail."""
    if asked.subject not in TALKATIVE or rng.random() >= mix.ramble:
        return answer
    thing = scene.things[rng.integers(len(scene.things))]
    details = {
        "where": say(Claim("where", thing.name, thing.where)),
        "background": say(Claim("background", thing.name, scene.background)),
        "count": say(Claim("count", "", NUMBERS[len(scene.things) - 1])),
        "caption": name_things([thing]),
    }
    offered = [detail for about, detail in details.items() if about != asked.kind]
    return f"{answer} {offered[rng.integers(len(offered))]}"
