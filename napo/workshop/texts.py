"""Texts from outside as they may be shown: one line, nothing that steers a terminal."""

import unicodedata

STEERING = ("Cc", "Cf", "Cs", "Zl", "Zp")  # Unicode's classes of control and format characters
JOINERS = "\u200c\u200d"  # they belong to words and emoji


def printable(text) -> str:
    """`text` as one line; control characters, also those that turn the writing direction, show as escapes: \\x1b."""
    return "".join(map(_shown, " ".join(str(text).split())))


def _shown(character):
    if unicodedata.category(character) not in STEERING or character in JOINERS:
        return character
    return character.encode("unicode_escape").decode()
