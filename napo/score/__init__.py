"""Official benchmark scores, one file per benchmark; command line: python -m napo.score (see __main__).

vlind, objhal, amber, mmhal, pope  score(records, ...) -> records.Result, pure functions on loaded records
records     reading prediction files; what is wrong with them is a BadInput or a notice
words       tokens, lemmas and nouns by NLTK, as the official scripts take them
similarity  when AMBER takes two words for the same thing
judge       MMHal-Bench's prompts out, a judge's reviews in; chat  the judges: an endpoint, a local chat model
"""
