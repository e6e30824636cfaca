import sys
import types

import pytest

from napo.official import similarity
from napo.workshop.files import BadInput

VECTORS = {
    "a": [4, 3],
    "b": [1, 0],
    "b9": [9, 1],
    "zero": [0, 0],
    "book": [1, 0],
    "air": [0, 1],
    "air-conditioning": [1, 0],
    "tree-house": [1, 0],
}


@pytest.fixture
def table(write):
    def of(vectors=VECTORS, threshold=0.8):
        return similarity.get(f"table:{write('vectors.json', vectors)}", threshold)[0]

    return of


def test_table(table):
    similar = table()
    assert similar("b", "b9") and similar("b9", "b")
    assert not similar("a", "b")  # cosine 0.8 is not above 0.8
    assert table(threshold=0.79)("a", "b")
    assert similar("unknown", "unknown") and similar("zero", "zero")  # equal words
    assert not similar("unknown", "b") and not similar("zero", "b")


def test_hyphenated_words_are_their_pieces(table):
    """spaCy cuts them, so a vector of the whole word is never looked up; the mean of the pieces' vectors is."""
    similar = table()
    assert similar("e-book", "book") and not similar("air-conditioning", "b") and similar("air-conditioning", "air")
    assert not similar("tree-house", "b")


def test_exact():
    similar, about = similarity.get("exact")
    assert similar("a", "a") and not similar("a", "A") and "exact" in about


def test_spacy_is_asked_as_the_official_script_does(monkeypatch):
    class Doc:
        def __init__(self, text):
            self.text = text

        def similarity(self, other):
            return {("dog", "puppy"): 0.81, ("dog", "cat"): 0.8}.get((self.text, other.text), 0.0)

    loaded = []
    fake = types.SimpleNamespace(load=lambda name: loaded.append(name) or Doc, __version__="3.8")
    monkeypatch.setitem(sys.modules, "spacy", fake)
    similar, about = similarity.get("spacy")
    assert similar("dog", "puppy") and not similar("dog", "cat")
    assert loaded == ["en_core_web_lg"] and about == "spaCy 3.8 en_core_web_lg, above 0.8"


def test_without_spacy(monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(BadInput, match="python -m spacy download en_core_web_lg"):
        similarity.get("spacy")


@pytest.mark.parametrize(
    "vectors", [{"a": "x"}, {"a": [1], "b": [1, 2]}, {"a": 1}, {"a": [10**400]}, [], "{", "[" * 100_000]
)
def test_damaged_tables(write, vectors):
    with pytest.raises(BadInput, match="vectors.json"):
        similarity.get(f"table:{write('vectors.json', vectors)}")


@pytest.mark.parametrize("name", ["", "glove", "table:"])
def test_unknown(name):
    with pytest.raises(BadInput, match="use spacy, exact or table:FILE"):
        similarity.get(name)
