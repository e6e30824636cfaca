"""Whether AMBER takes two words for the same thing: by spaCy's vectors (official), a table of vectors, or equality."""

import functools
import re
from pathlib import Path

from napo.official.records import read_json
from napo.workshop.files import BadInput, shown

MODEL = "en_core_web_lg"


def get(name, threshold=0.8):
    """(similar(a, b) -> bool, description) for "spacy", "exact" or "table:FILE".

    threshold  words are similar if their similarity is above it
    Raises BadInput if spaCy or its model is not installed, and for a damaged table.
    """
    if name == "exact":
        return (lambda a, b: a == b), "exact match of words"
    if name == "spacy":
        value, about = _spacy()
    elif path := table_file(name):
        value, about = _table(path)
    else:
        raise BadInput(f"unknown similarity {name!r}: use spacy, exact or table:FILE")
    return functools.cache(lambda a, b: bool(value(a, b) > threshold)), f"{about}, above {threshold}"


def table_file(name):
    """Path of the table in "table:FILE"; None for any other name."""
    kind, _, file = name.partition(":")
    return Path(file) if kind == "table" and file else None


def _spacy():
    """spaCy as in the official script: 1.0 for equal strings, 0.0 for a word without vector."""
    try:
        import spacy

        nlp = functools.cache(spacy.load(MODEL))
    except (ImportError, OSError):
        remedy = f"python -m spacy download {MODEL}, or use --similarity exact or table:FILE (other scores)"
        raise BadInput(f"similarity spacy needs spaCy's {MODEL}: {remedy}") from None
    return (lambda a, b: nlp(a).similarity(nlp(b))), f"spaCy {spacy.__version__} {MODEL}"


def _table(path):
    """Cosine of the vectors in a JSON object {word: [numbers]}; 1.0 for equal words, 0.0 for a word without vector.

    spaCy splits "air-conditioning" at its hyphen and averages the vectors of the pieces. So does this function: it
    never uses the vector of a whole hyphenated word.
    """
    import numpy as np

    vectors = {}
    for word, numbers in read_json(path, dict).items():
        try:
            vectors[word] = np.asarray(numbers, dtype=float)
        except (TypeError, ValueError, OverflowError):
            raise BadInput(f"{shown(path)}: {word!r:.80} has no vector of numbers") from None
    if len({vector.shape for vector in vectors.values()}) > 1 or any(v.ndim != 1 for v in vectors.values()):
        raise BadInput(f"{shown(path)}: vectors of different lengths: write one list of numbers per word")

    @functools.cache
    def vector(word):
        pieces = re.split(r"(?<=[^\W\d_])(-)(?=[^\W\d_])", word)
        total = sum(vectors[piece] for piece in pieces if piece in vectors)
        return total, np.linalg.norm(total)

    def cosine(a, b):
        (vector_a, norm_a), (vector_b, norm_b) = vector(a), vector(b)
        if a == b:
            return 1.0
        return float(vector_a @ vector_b / (norm_a * norm_b)) if norm_a and norm_b else 0.0

    return cosine, f"vectors of {path.name}"
