"""The truth: judges any answer against its scene, by one formal rule per question kind.

An answer is read as claims (`language.read`). A claim is *asked for* if it has the kind that the question wants and is
about the question's subject. It is *presupposed* if it only repeats that the subject is there. Any other claim is an
irrelevant detail.

| question kind    | asked for                                      | right                              |
|------------------|------------------------------------------------|------------------------------------|
| colour           | colour of the subject                          | at least one claim asked for, and  |
| background       | background of the subject                      | all of them true                   |
| where            | cell of the subject                            |                                    |
| existence        | the subject is there, or not; bare yes or no   |                                    |
| count            | how many things                                |                                    |
| statement        | true or false                                  | the same, by the statement's basis |
| caption          | things and their colours                       | the same, and something is named   |
| detailed_caption | things, colours, cells, background, count      | the same, everything is named, and |
|                  |                                                | a cell, background or count said   |

*To the point*: no irrelevant detail, no repeated claim, no broken sentence. *Good*: right and to the point. A good
answer that was labelled rejected is noise. A contradiction ("the frog is red . the frog is blue .") contains a false
claim and an empty answer makes none, so neither is ever right.
"""

from typing import NamedTuple

from napo.desk.language import Claim, read
from napo.desk.questions import CAPTION_KINDS, OF_THINGS, holds, parse, statement_holds
from napo.desk.scenes import WORLD

ASKED = WORLD["asked"]  # kind of question -> kinds of claims that answer it
DETAILS = {"where", "background", "count"}  # a detailed caption needs one of them


class Judgement(NamedTuple):
    """The verdict on an answer."""

    right: bool  # by the table above
    to_the_point: bool
    irrelevant: int  # claims not asked for
    mentioned: frozenset  # classes that the answer says are there
    hallucinated: frozenset  # mentioned classes that are absent
    true: int  # claims asked for that are true
    false: int  # … that are false

    @property
    def good(self):
        """The noise rule: a good answer that was labelled rejected is noise."""
        return self.right and self.to_the_point


def judge(scene, question, answer):
    """The Judgement of an answer to a question (its text) about a scene. Raises ValueError for an unknown question."""
    asked = parse(question)
    claims, broken = read(answer)
    wanted = [claim for claim in claims if is_asked_for(asked, claim)]
    irrelevant = sum(claim not in wanted and not is_presupposed(asked, claim) for claim in claims)
    true = sum(is_true(scene, asked, claim) for claim in wanted)
    mentioned = frozenset(claim.subject for claim in claims if claim.about in ("exists", *OF_THINGS))
    enough = bool(mentioned) or asked.kind != "caption"
    if asked.kind == "detailed_caption":
        enough = mentioned >= scene.names and any(claim.about in DETAILS for claim in wanted)
    return Judgement(
        right=enough and bool(wanted) and true == len(wanted),
        to_the_point=irrelevant == 0 and broken == 0 and len(set(claims)) == len(claims),
        irrelevant=irrelevant,
        mentioned=mentioned,
        hallucinated=mentioned - scene.names,
        true=true,
        false=len(wanted) - true,
    )


def is_asked_for(asked, claim):
    any_subject = asked.kind in (*CAPTION_KINDS, "count", "statement") or claim.about == "reply"
    return claim.about in ASKED[asked.kind] and (any_subject or claim.subject == asked.subject)


def is_presupposed(asked, claim):
    """Whether a claim only says that the subject is there: neither an answer nor an irrelevant detail."""
    return claim == Claim("exists", asked.subject) and asked.kind in OF_THINGS


def is_true(scene, asked, claim):
    """Whether a claim that was asked for is true."""
    if claim.about == "verdict":
        return claim.value == ("true" if statement_holds(scene, asked) else "false")
    if claim.about == "reply":
        return claim.value == ("yes" if asked.subject in scene.names else "no")
    return holds(scene, claim)
