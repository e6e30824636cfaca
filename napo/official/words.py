"""Words of a text as the official scripts take them, by NLTK 3.9.1 and its data; other versions change scores.

NLTK is imported when first needed, because the desk world passes its own function for words to the scorers.
"""

import functools

from napo.workshop.files import BadInput, repository_root

VERSION = "3.9.1"
PUNKT = "tokenizers/punkt_tab/english/collocations.tab"
WORDNET = "corpora/wordnet/index.noun"
TAGGER = "taggers/averaged_perceptron_tagger_eng/averaged_perceptron_tagger_eng.weights.json"


def lemmas(caption):
    """WordNet's noun lemmas of the lower-cased tokens of a caption, punctuation included (Object HalBench).

    Quirks that change scores: "men" stays "men", "vases" becomes "vas", "dining-table" is one word.
    """
    lemma = _lemma()
    return [lemma(token) for token in _tokens(caption.lower())]


def nouns(response):
    """Lemmas of the tokens that the tagger takes for nouns, in order, with repeats and with case (AMBER)."""
    lemma, tagger = _lemma(), _tagger()
    return [lemma(word) for word, tag in tagger.tag(_tokens(response)) if tag.startswith("NN")]


def version_notice():
    """A notice if NLTK has another version than the official scores."""
    found = _nltk().__version__
    notice = f"words come from NLTK {found}, not {VERSION}: scores may differ in the third digit"
    return [] if found == VERSION else [notice]


@functools.cache
def _nltk():
    """The package. It searches NLTK_DATA first, and last the folder of `make data`. Raises BadInput."""
    try:
        import nltk
    except ImportError:
        raise BadInput("this score needs NLTK: pip install -c requirements.lock -e '.[benchmarks]'") from None
    nltk.data.path.append(str(repository_root() / "data" / "nltk_data"))
    return nltk


@functools.cache
def _find(resource):
    try:
        return _nltk().data.find(resource)
    except LookupError:
        name = "/".join(resource.split("/")[:2])
        raise BadInput(f"NLTK data {name} not found: run make data, or set NLTK_DATA to the folder with it") from None


def _tokens(text):
    _find(PUNKT)
    return _nltk().word_tokenize(text)


@functools.cache
def _tagger():
    """NLTK's default tagger, loaded once; nltk.pos_tag loads it for each text."""
    _find(TAGGER)
    from nltk.tag.perceptron import PerceptronTagger

    return PerceptronTagger()


@functools.cache
def _lemma():
    """lemma(word) of WordNetLemmatizer, with a cache."""
    index = _find(WORDNET)
    if _nltk().__version__ == VERSION:
        return functools.cache(_noun_lemmatizer(index, _find(WORDNET.replace("index.noun", "noun.exc"))))
    from nltk.stem import WordNetLemmatizer

    return functools.cache(WordNetLemmatizer().lemmatize)


def _noun_lemmatizer(index, exceptions):
    """lemma(word) by NLTK 3.9.1's own rules on the two files for nouns.

    WordNetLemmatizer loads all of WordNet, which takes longer than scoring 300 captions.
    """
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    reader = WordNetCorpusReader.__new__(WordNetCorpusReader)
    names = (line.split(" ", 1)[0] for line in _lines(index) if not line.startswith(" "))
    reader._lemma_pos_offset_map = dict.fromkeys(names, ("n",))
    reader._exception_map = {"n": {form: lemmas for form, *lemmas in map(str.split, _lines(exceptions))}}
    return lambda word: min(reader._morphy(word, "n"), key=len, default=word)


def _lines(pointer):
    """Lines of a file that NLTK found in a folder or a zip archive."""
    with pointer.open() as file:
        return file.read().decode("utf-8").splitlines()
