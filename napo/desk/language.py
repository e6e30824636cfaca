"""The desk world's language: claims about a scene, sentences that make them, and reading claims back from any text.

Words are lower case and separated by single spaces, punctuation included, so a word-level tokenizer loses nothing.
"""

import re
from typing import NamedTuple

from napo.desk.scenes import BACKGROUNDS, CELLS, CLASSES, COLOURS, WORLD

NUMBERS = ("one", "two", "three", "four")
FORMS = WORLD["sentences"]  # kind of claim -> the sentence that makes it


class Claim(NamedTuple):
    """One statement that a sentence makes."""

    about: str  # a key of FORMS, or "count"
    subject: str = ""  # the class it is about, "" for count, reply and verdict
    value: str = ""  # colour, background, cell, number word, "yes"/"no" or "true"/"false"; else ""


def say(claim):
    """The sentence that makes a claim."""
    if claim.about == "count":
        return "there is one object ." if claim.value == "one" else f"there are {claim.value} objects ."
    return FORMS[claim.about].format(subject=claim.subject, value=claim.value)


def name_things(things, where=False):
    """One sentence that names things and colours: "there is a red frog and a blue whale ."."""
    phrases = [f"a {thing.colour} {thing.name}" + (f" at the {thing.where}" if where else "") for thing in things]
    return f"there is {' and '.join(phrases)} ."


def _any(words):
    return f"({'|'.join(words)})"


_CLASS, _COLOUR, _BACKGROUND, _CELL = _any(CLASSES), _any(COLOURS), _any(BACKGROUNDS), _any(CELLS)
_PHRASE = f"a (?:{_COLOUR} )?{_CLASS}(?: at the {_CELL})?"
_PHRASES = re.compile(_PHRASE)
_NAMING = re.compile(f"there is {_PHRASE}(?: and {_PHRASE})*")
_PATTERNS = [
    (re.compile(f"the {_CLASS} is {_COLOUR}"), lambda subject, value: Claim("colour", subject, value)),
    (re.compile(f"the {_CLASS} is on {_BACKGROUND}"), lambda subject, value: Claim("background", subject, value)),
    (re.compile(f"the {_CLASS} is at the {_CELL}"), lambda subject, value: Claim("where", subject, value)),
    (re.compile(f"there is a {_CLASS} in the image"), lambda subject: Claim("exists", subject)),
    (re.compile(f"yes , there is a {_CLASS}"), lambda subject: Claim("exists", subject)),
    (re.compile(f"(?:no , )?there is no {_CLASS}"), lambda subject: Claim("absent", subject)),
    (re.compile("there is (one) object"), lambda value: Claim("count", "", value)),
    (re.compile(f"there are {_any(NUMBERS[1:])} objects"), lambda value: Claim("count", "", value)),
    (re.compile("(yes|no)"), lambda value: Claim("reply", "", value)),
    (re.compile("(true|false)"), lambda value: Claim("verdict", "", value)),
]


def read(text):
    """(claims of its sentences in order, number of sentences that fit no form) of any text.

    Sentences end with a full stop; one that is cut off fits no form.
    """
    *sentences, rest = [part.strip() for part in " ".join(text.split()).split(".")]
    found = [_read_sentence(sentence) for sentence in sentences]
    return tuple(claim for claims in found for claim in claims or ()), found.count(None) + bool(rest)


def _read_sentence(sentence):
    """The claims of one sentence without its full stop, or None if it fits no form."""
    if _NAMING.fullmatch(sentence):
        return [claim for match in _PHRASES.finditer(sentence) for claim in _phrase_claims(*match.groups())]
    for pattern, claim in _PATTERNS:
        if match := pattern.fullmatch(sentence):
            return [claim(*match.groups())]
    return None


def _phrase_claims(colour, subject, cell):
    claims = [Claim("exists", subject), Claim("colour", subject, colour), Claim("where", subject, cell)]
    return [claim for claim in claims if claim.value is not None]


_WORDS = (
    "what colour is the on ? where how many objects are there a an in image statement : context based common sense , "
    "true or false forget and just follow describe detail . yes no one object at"
)
VOCABULARY = tuple(dict.fromkeys(" ".join([_WORDS, *NUMBERS, *CLASSES, *COLOURS, *BACKGROUNDS, *CELLS]).split()))
