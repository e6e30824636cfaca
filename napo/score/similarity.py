"""When AMBER takes two words for the same thing: spaCy's vectors as in the official script, a table, or not at all."""

import functools
import re
from pathlib import Path

from napo.artifacts import BadInput, shown
from napo.score.records import read_json

MODEL = "en_core_web_lg"


def get(name, threshold=0.8):
    """(similar(a, b) -> bool, description) for "spacy", "exact" or "table:FILE"; strictly above the threshold.

    Raises BadInput if spaCy or its model is not installed, or the table is damaged.
    """
    if name == "exact":
        return (lambda a, b: a == b), "exact match of words"
    if name == "spacy":
        value, about = _spacy()
    elif name.startswith("table:") and len(name) > len("table:"):
        value, about = _table(Path(name.removeprefix("table:")))
    else:
        raise BadInput(f"unknown similarity {name!r}: use spacy, exact or table:FILE")
    return above(value, threshold), f"{about}, above {threshold}"


def above(value, threshold):
    """similar(a, b) from a similarity value(a, b), remembered for each pair of words."""
    return functools.cache(lambda a, b: bool(value(a, b) > threshold))


def _spacy():
    """spaCy as the official script uses it: identical strings 1.0, a word without vector 0.0."""
    try:
        import spacy

        nlp = functools.cache(spacy.load(MODEL))
    except (ImportError, OSError):
        raise BadInput(
            f"similarity spacy needs spaCy's {MODEL}: python -m spacy download {MODEL}, "
            "or use --similarity exact or table:FILE (other scores)"
        ) from None
    return (lambda a, b: nlp(a).similarity(nlp(b))), f"spaCy {spacy.__version__} {MODEL}"


def _table(path):
    """Cosine of the vectors in a JSON object {word: [numbers]}; equal words 1.0, 0.0 if a word has no vector.

    spaCy cuts "air-conditioning" at its hyphen and averages what vectors the pieces have. The table is read the same
    way, so a vector for the whole of a hyphenated word is never used.
    """
    import numpy as np

    vectors = {}
    for word, numbers in read_json(path, dict).items():
        try:
            vectors[word] = np.asarray(numbers, dtype=float)
        except (TypeError, ValueError):
            raise BadInput(f"{shown(path)}: {word!r} has no vector of numbers") from None
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
