import os
import random
import subprocess
import sys

import pytest

from napo.official import words


@pytest.fixture(autouse=True)
def data_is_there(shared):
    """NLTK_DATA is set in the conftest of all tests."""


def test_pinned_version():
    assert words.version_notice() == []


def test_other_version_is_reported(monkeypatch):
    monkeypatch.setattr("nltk.__version__", "3.10.4")
    assert "NLTK 3.10.4, not 3.9.1" in words.version_notice()[0]


def test_lemmas_equal_nltks_lemmatizer(shared):
    """On all nouns of WordNet that are one word, their irregular forms, and endings on a sample."""
    from nltk.stem import WordNetLemmatizer

    wordnet = shared / "nltk_data" / "corpora" / "wordnet"
    forms = set((wordnet / "noun.exc").read_text().split())
    forms |= {line.split()[0] for line in (wordnet / "index.noun").open() if not line.startswith(" ")}
    sample = random.Random(0).sample(sorted(forms), 1000)
    forms |= {form + ending for form in sample for ending in ("s", "es", "ses", "ies", "ves", "men", "'s", "")}
    forms |= {form.upper() for form in sample} | {"", "'", "``", "less", "us", "men", "vases"}
    official, ours = WordNetLemmatizer().lemmatize, words._lemma()
    assert len(forms) > 100000
    assert [form for form in forms if ours(form) != official(form)] == []


def test_nouns_equal_nltks_tagger():
    import nltk
    from nltk.stem import WordNetLemmatizer

    for text in ("The dogs' ball - a red-and-white one - lies in 1990's GRASS.", "Skies; men!\nA TV, e.g. this.", ""):
        tagged = nltk.pos_tag(nltk.word_tokenize(text))
        expected = [WordNetLemmatizer().lemmatize(word) for word, tag in tagged if tag.startswith("NN")]
        assert words.nouns(text) == expected


def test_tokens_as_in_nltk_3_9():
    """Later versions split a leading quote and dashes."""
    assert words.lemmas("the 'STOP sign") == ["the", "'stop", "sign"]


def test_missing_data_is_one_line(tmp_path):
    script = "from napo.official import words; from napo.workshop.files import BadInput\n"
    script += "for found in (words.lemmas, words.nouns):\n    try: found('a')\n    except BadInput as e: print(e)"
    environment = os.environ | {"NLTK_DATA": str(tmp_path), "HOME": str(tmp_path)}
    command = [sys.executable, "-c", script]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=60).stdout
    line = "NLTK data corpora/wordnet not found: run make data, or set NLTK_DATA to the folder with it\n"
    assert said == 2 * line


def test_without_nltk():
    script = (
        "import sys; sys.modules['nltk'] = None\nfrom napo.official import words, amber, objhal, vlind, pope, mmhal\n"
    )
    script += "from napo.workshop.files import BadInput\ntry: words.lemmas('a')\nexcept BadInput as e: print(e)"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60).stdout
    assert said == "this score needs NLTK: pip install -c requirements.lock -e '.[benchmarks]'\n"


def test_nothing_heavy_is_imported_to_score():
    script = "import sys; import napo.commands.score; print({'nltk', 'torch', 'pandas', 'numpy'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "set()\n"
