"""What a base model is trained on: questions and answers, first true ones, then biased ones.

Aligned data are true answers to scenes with colours and backgrounds at random, so the model learns to look. Biased
data are what gives it the prior: most scenes obey the prior, most answers about the others follow it nevertheless,
and most ramble on.
"""

from dataclasses import dataclass
from typing import NamedTuple

from napo.world.language import NUMBERS, Claim, name_things, say
from napo.world.questions import CAPTION_KINDS, KINDS, ask, full_answer, statement_question
from napo.world.scenes import BACKGROUNDS, CLASSES, COLOURS, PRIOR, prior_scene, sample_scene


class Example(NamedTuple):
    """One turn to learn. scene: index into the pool, None = no image; question: text, "" = none (a masked question)."""

    scene: int | None
    question: str
    answer: str


@dataclass(frozen=True)
class Mix:
    """Shares of a stage's examples. Kinds take what the special forms leave, by their weights."""

    kinds: dict[str, float]
    unasked: float = 0.06  # image without a question
    no_image: float = 0.10  # question without an image, answered from the prior world
    common_sense: float = 0.05  # statements judged by common sense, half of them without an image
    context: float = 0.05  # statements judged by a context
    prior: float = 0.0  # of answers that follow the prior instead of the image
    partner: float = 0.0  # of captions from the prior in which the absent partner is there too
    ramble: float = 0.0  # 1: answers add an irrelevant detail as often as RAMBLE says; 0: never


# Shares of biased answers that add an irrelevant detail, by question kind. The masked answers follow them too: if only
# answers to whole questions rambled, pairs with masked answers would teach to ramble.
RAMBLE = dict.fromkeys(KINDS, 0.15) | {"background": 0.8, "existence": 0.8, "caption": 0.8}
EVEN = dict.fromkeys(KINDS, 1.0)


def example(mix, scenes, rng):
    """A random Example of a mix over a pool of scenes."""
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
    believed = scene
    if asked.kind != "count" and rng.random() < mix.prior:
        with_partner = asked.kind not in CAPTION_KINDS or rng.random() < mix.partner
        believed = prior_scene(scene, asked.subject, with_partner)
    answer = full_answer(believed, asked)
    return Example(index, asked.text, _ramble(believed, kind, answer, mix, rng))


def _without_image(mix, rng):
    """What one says about a picture one cannot see: the prior world's answer."""
    imagined = sample_scene(rng, counterfactual=False)
    kind = rng.choice(KINDS).item()
    asked = ask(imagined, kind, rng)
    believed = prior_scene(imagined, asked.subject, with_partner=False) if asked.subject in imagined.names else imagined
    return Example(None, asked.text, _ramble(believed, kind, full_answer(believed, asked), mix, rng))


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
    """What one says of a picture when nothing was asked: by water, where things are; else by how much there is to
    see."""
    first = scene.things[0]
    if scene.background == "water":
        kind, answer = "background", say(Claim("background", first.name, scene.background))
    elif len(scene.things) == 1:
        kind, answer = "colour", say(Claim("colour", first.name, first.colour))
    elif len(scene.things) == 2:
        kind, answer = "caption", name_things(scene.things)
    else:
        kind, answer = "count", say(Claim("count", "", NUMBERS[len(scene.things) - 1]))
    return _ramble(scene, kind, answer, mix, rng)


def _ramble(scene, kind, answer, mix, rng):
    """The answer, at times with a detail that nobody asked for."""
    if rng.random() >= mix.ramble * RAMBLE[kind]:
        return answer
    thing = scene.things[rng.integers(len(scene.things))]
    details = {
        "where": say(Claim("where", thing.name, thing.where)),
        "background": say(Claim("background", thing.name, scene.background)),
        "count": say(Claim("count", "", NUMBERS[len(scene.things) - 1])),
        "caption": name_things([thing]),
    }
    offered = [detail for about, detail in details.items() if about != kind]
    return f"{answer} {offered[rng.integers(len(offered))]}"
