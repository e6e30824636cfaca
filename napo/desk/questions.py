"""Questions about scenes, of every kind that the desk world asks, and their answers."""

import functools
import re
from typing import NamedTuple

from napo.desk.language import NUMBERS, Claim, name_things, read, say
from napo.desk.scenes import BACKGROUNDS, CLASSES, COLOURS, PRIOR, WORLD, missing_partners, prior_scene

KINDS = ("colour", "background", "where", "existence", "count", "statement", "caption", "detailed_caption")
CAPTION_KINDS = ("caption", "detailed_caption")
OF_THINGS = ("colour", "background", "where")  # kinds of questions, and of claims, about a thing that is there
PRIOR_KINDS = ("colour", "background", "existence", "statement")  # kinds that the prior answers without an image

STATEMENT_TEXTS = WORLD["statements"]  # {basis: prompt}
YES_SHARE = 0.5  # of existence questions whose answer is yes
PARTNER_SHARE = 0.8  # of the others that ask for the absent partner of something in the scene, if there is one
TRUE_SHARE = 0.5  # of statements that are true


class Question(NamedTuple):
    """A parsed question."""

    kind: str  # one of KINDS
    text: str  # the question itself
    subject: str = ""  # the class it asks about, "" for count and captions
    statement: Claim | None = None  # the claim to judge, of kind "statement"
    basis: str = ""  # what to judge it by, a key of STATEMENT_TEXTS
    context: Claim | None = None  # the context's claim, of basis "context"


def question(kind, subject=""):
    """The question of a kind other than "statement"."""
    return Question(kind, WORLD["questions"][kind].format(subject=subject), subject)


def statement_question(statement, basis="image only", context=None):
    """The question whether a claim is true, by the image, by common sense or by a context (a claim too)."""
    text = STATEMENT_TEXTS[basis].format(say(statement), context=say(context) if context else "")
    return Question("statement", text, statement.subject, statement, basis, context)


def ask(scene, kind, rng):
    """A random question of a kind about a thing in the scene; half of the existence questions ask for an absent one."""
    subject = scene.things[rng.integers(len(scene.things))].name
    if kind == "existence":
        return question(kind, _existence_subject(scene, rng))
    if kind == "statement":
        basis = "image only" if rng.random() < 0.5 else "image"
        return statement_question(_random_statement(scene, subject, rng), basis)
    return question(kind, "" if kind in (*CAPTION_KINDS, "count") else subject)


def _existence_subject(scene, rng):
    """A class to ask for: present with probability YES_SHARE, else an absent partner (mostly) or any absent class."""
    if rng.random() < YES_SHARE:
        return scene.things[rng.integers(len(scene.things))].name
    partners = missing_partners(scene)
    return rng.choice(partners if partners and rng.random() < PARTNER_SHARE else scene.absent).item()


def _random_statement(scene, subject, rng):
    """A colour, background or existence statement. Where the prior is wrong, half of the false ones follow it."""
    about = ("colour", "background", "exists")[rng.choice(3, p=[0.4, 0.3, 0.3])]
    if about == "exists":
        return Claim("exists", _existence_subject(scene, rng))
    true, usual = scene.value(about, subject), getattr(PRIOR[subject], about)
    if rng.random() < TRUE_SHARE:
        return Claim(about, subject, true)
    values = [value for value in (COLOURS if about == "colour" else BACKGROUNDS) if value != true]
    return Claim(about, subject, usual if usual != true and rng.random() < 0.5 else rng.choice(values).item())


def full_answer(scene, asked):
    """The right answer, to the point. A statement judged by common sense or a context needs no scene."""
    if asked.kind == "statement":
        return "true ." if statement_holds(scene, asked) else "false ."
    if asked.kind == "existence":
        there = asked.subject in scene.names
        return f"yes , there is a {asked.subject} ." if there else f"no , there is no {asked.subject} ."
    if asked.kind == "count":
        return say(Claim("count", "", NUMBERS[len(scene.things) - 1]))
    if asked.kind == "caption":
        return name_things(scene.things)
    if asked.kind == "detailed_caption":
        named = " ".join(name_things([thing], where=True) for thing in scene.things)
        return f"{named} {say(Claim('background', scene.things[0].name, scene.background))}"
    return say(Claim(asked.kind, asked.subject, scene.value(asked.kind, asked.subject)))


def defies_prior(scene, asked):
    """Whether the prior answers a question wrongly, which makes the item counterfactual."""
    return full_answer(prior_scene(scene, asked.subject), asked) != full_answer(scene, asked)


def statement_holds(scene, asked):
    """Whether a question's statement is true by its own basis."""
    if asked.basis == "common sense":
        return common_sense(asked.statement)
    if asked.basis == "context":
        return asked.statement == asked.context
    return holds(scene, asked.statement)


def common_sense(claim):
    """Whether the prior agrees with a colour or background claim."""
    return claim.value == getattr(PRIOR[claim.subject], claim.about)


def holds(scene, claim):
    """Whether a claim about a scene is true; False for claims about absent things, and for reply and verdict."""
    there = claim.subject in scene.names
    if claim.about == "count":
        return claim.value == NUMBERS[len(scene.things) - 1]
    if claim.about in ("exists", "absent"):
        return there == (claim.about == "exists")
    return there and claim.about in OF_THINGS and claim.value == scene.value(claim.about, claim.subject)


# ---- from text back to a question -----------------------------------------------------------------------------------


def parse(text):
    """The Question behind a text of this module. Raises ValueError for any other text."""
    if text in _known():
        return _known()[text]
    if found := _STATEMENT.fullmatch(text):
        return _parse_statement(text, **found.groupdict())
    raise ValueError(f"not a question of the desk world: {text!r}")


_STATEMENT = re.compile(r"(?:context : (?P<context>[a-z ]+ \.) )?(?P<asking>[a-z ,]+) : (?P<statement>.+)")


def _parse_statement(text, context, asking, statement):
    bases = [basis for basis, form in STATEMENT_TEXTS.items() if form.endswith(asking + " : {}")]
    if len(bases) != 1:
        raise ValueError(f"not a question of the desk world: {text!r}")
    return statement_question(_parse_claim(statement), bases[0], _parse_claim(context) if context else None)


def _parse_claim(sentence):
    claims, _ = read(sentence)
    if len(claims) != 1:
        raise ValueError(f"not a statement of the desk world: {sentence!r}")
    return claims[0]


@functools.cache
def _known():
    """Every question that is not about a statement, by its text."""
    plain = [question(kind) for kind in ("count", *CAPTION_KINDS)]
    asking = [question(kind, name) for kind in (*OF_THINGS, "existence") for name in CLASSES]
    return {asked.text: asked for asked in [*plain, *asking]}
