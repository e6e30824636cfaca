"""Words as the official scripts take them, by NLTK 3.9.1 (another version changes scores) and its data.

NLTK is imported when first needed: the desk world passes word extraction of its own to the scorers.
"""

import functools

from napo.artifacts import BadInput, repository_root

VERSION = "3.9.1"
PUNKT = "tokenizers/punkt_tab/english/collocations.tab"
WORDNET = "corpora/wordnet/index.noun"
TAGGER = "taggers/averaged_perceptron_tagger_eng/averaged_perceptron_tagger_eng.weights.json"


def lemmas(caption):
    """Lower-cased tokens of a caption as WordNet's noun lemmas, punctuation included (Object HalBench).

    Quirks that count: "men" stays men, "vases" becomes "vas", "dining-table" is one word.
    """
    lemma = _lemma()
    return [lemma(token) for token in _tokens(caption.lower())]


def nouns(response):
    """Lemmas of the tokens that the tagger takes for nouns, in order, repeats kept, case kept (AMBER)."""
    lemma, tagger = _lemma(), _tagger()
    return [lemma(word) for word, tag in tagger.tag(_tokens(response)) if tag.startswith("NN")]


def version_notice():
    """A notice if NLTK is not the version whose scores are official."""
    found = _nltk().__version__
    if found == VERSION:
        return []
    return [f"words were taken by NLTK {found}, not {VERSION}: scores may differ in the third digit"]


@functools.cache
def _nltk():
    """The package, looking for data in NLTK_DATA first and where `make data` puts them last. Raises BadInput."""
    try:
        import nltk
    except ImportError:
        raise BadInput("this score needs NLTK: pip install -c requirements.lock -e '.[benchmarks]'") from None
    nltk.data.path.append(str(repository_root() / "data" / "nltk_data"))
    return nltk


def _find(resource):
    try:
        return _nltk().data.find(resource)
    except LookupError:
        name = "/".join(resource.split("/")[:2])
        raise BadInput(f"NLTK data {name} not found: run make data, or set NLTK_DATA to the folder with it") from None


@functools.cache
def _tokenizer():
    _find(PUNKT)
    return _nltk().word_tokenize


def _tokens(text):
    return _tokenizer()(text)


@functools.cache
def _tagger():
    """NLTK's default tagger, loaded once; nltk.pos_tag loads it anew for every text."""
    _find(TAGGER)
    from nltk.tag.perceptron import PerceptronTagger

    return PerceptronTagger()


@functools.cache
def _lemma():
    """lemma(word) of WordNetLemmatizer, remembered for each word."""
    if _nltk().__version__ == VERSION:
        return functools.cache(_NounLemmatizer(_find(WORDNET), _find(WORDNET.replace("index.noun", "noun.exc"))))
    _find(WORDNET)
    from nltk.stem import WordNetLemmatizer

    return functools.cache(WordNetLemmatizer().lemmatize)


class _NounLemmatizer:
    """NLTK 3.9.1's own rules on the two files that they read for nouns.

    WordNetLemmatizer loads all of WordNet first, which takes longer than scoring 300 captions.
    """

    def __init__(self, index, exceptions):
        from nltk.corpus.reader.wordnet import WordNetCorpusReader

        self._reader = WordNetCorpusReader.__new__(WordNetCorpusReader)
        names = (line.split(" ", 1)[0] for line in _lines(index) if not line.startswith(" "))
        self._reader._lemma_pos_offset_map = dict.fromkeys(names, ("n",))
        self._reader._exception_map = {"n": {form: lemmas for form, *lemmas in map(str.split, _lines(exceptions))}}

    def __call__(self, word):
        return min(self._reader._morphy(word, "n"), key=len, default=word)


def _lines(pointer):
    """Lines of a file that NLTK found, in a folder or a zip archive."""
    with pointer.open() as file:
        return file.read().decode("utf-8").splitlines()
