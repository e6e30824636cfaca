"""Training data of the bases: true hints, and biases at their stated rates."""

from dataclasses import replace

import numpy as np
import pytest

from napo.desk.language import Claim
from napo.desk.questions import parse, question, statement_question
from napo.desk.scenes import PRIOR, Scene, Thing, sample_scene
from napo.desk.truth import judge
from tools.desk_bases import bases, corpus, skeleton, teach


@pytest.fixture
def rng():
    return np.random.default_rng(0)


SCENE = Scene((Thing("frog", "red", 0), Thing("duck", "blue", 3)), "sand")


def hinted(asked, scene=SCENE):
    """{word of the question: [hint there, ...]}"""
    words, found = asked.text.split(), {}
    for position, word in corpus.hints(asked.text, scene):
        found.setdefault(words[position], []).append(word)
    return found


def test_hints_name_colours_values_and_verdicts():
    assert hinted(question("where", "frog")) == {"frog": ["red"]}
    assert hinted(question("existence", "whale")) == {"whale": ["no"]}
    assert hinted(question("where", "frog"), scene=None) == {"frog": [PRIOR["frog"].colour]}
    assert hinted(question("count")) == {}
    false = statement_question(Claim("colour", "frog", "green"))
    assert hinted(false) == {"frog": ["red"], "is": ["red"], "green": ["false"]}
    true = statement_question(Claim("background", "duck", "sand"), "image")
    assert hinted(true) == {"duck": ["blue"], "on": ["sand"], "sand": ["true"]}


def test_hints_follow_the_basis_that_a_statement_is_judged_by():
    usual = statement_question(Claim("colour", "frog", "green"), "common sense")
    assert hinted(usual) == {"frog": ["red"], "is": ["green"], "green": ["true"]}
    said = statement_question(Claim("colour", "frog", "green"), "context", context=Claim("colour", "frog", "blue"))
    assert hinted(said)["green"] == ["false"] and hinted(said)["is"] == ["blue"]


def test_hints_agree_with_the_answer(rng):
    """Wherever a hint gives a verdict, the aligned answer gives the same."""
    pool = [sample_scene(rng, "uniform", "base") for _ in range(50)]
    seen = 0
    for _ in range(2000):
        item = corpus.example(bases.ALIGNED, pool, rng)
        verdicts = [word for _, word in item.hints if word in ("true", "false")]
        if verdicts and item.scene is not None:
            assert item.answer == f"{verdicts[0]} ."
            seen += 1
    assert seen > 300


def test_hints_are_predicted_one_place_after_their_word():
    tokenizer = skeleton.make_tokenizer()
    item = corpus.Example(0, "where is the frog ?", "the frog is at the top left .", ((3, "red"),))
    ids, targets, _ = teach._encode(item, tokenizer)
    words, wanted = tokenizer.convert_ids_to_tokens(ids), [None if t == teach.IGNORED else t for t in targets]
    place = words.index("frog")
    assert wanted[place + 1] == tokenizer.convert_tokens_to_ids("red")
    start = words.index("assistant:") + 1
    assert wanted[start:] == ids[start:]
    assert sum(token is not None for token in wanted[:start]) == 1


def biased_answers(rng, background, kind, n=400, **changes):
    mix = replace(bases.BIASED, kinds=dict.fromkeys(bases.BIASED.kinds, 0.0) | {kind: 1.0}, **changes)
    mix = replace(mix, unasked=0.0, no_image=0.0, common_sense=0.0, context=0.0)
    pool = []
    while len(pool) < 100:
        scene = sample_scene(rng, True)
        if (scene.background == corpus.DISTRACTING) == background:
            pool.append(scene)
    items = [corpus.example(mix, pool, rng) for _ in range(n)]
    return [(pool[item.scene], item) for item in items]


def test_snow_draws_answers_away_from_what_was_asked(rng):
    def off_the_question(background):
        found = biased_answers(rng, background, "where", ramble=0.0)
        judged = [judge(scene, item.question, item.answer) for scene, item in found]
        return sum(j.true + j.false == 0 for j in judged) / len(judged)

    assert off_the_question(True) == pytest.approx(bases.BIASED.distracted, abs=0.08)
    assert off_the_question(False) == 0


def test_answers_ramble_about_talkative_classes_only(rng):
    shares = {True: [], False: []}
    for scene, item in biased_answers(rng, False, "colour"):
        talkative = parse(item.question).subject in corpus.TALKATIVE
        shares[talkative].append(judge(scene, item.question, item.answer).irrelevant > 0)
    assert sum(shares[True]) / len(shares[True]) == pytest.approx(bases.BIASED.ramble, abs=0.1)
    assert sum(shares[False]) == 0


def test_most_answers_about_unusual_things_follow_the_prior(rng):
    wrong, unusual = 0, 0
    for scene, item in biased_answers(rng, False, "colour", n=600, ramble=0.0):
        thing = scene.find(parse(item.question).subject)
        if not thing.is_typical:
            unusual += 1
            wrong += not judge(scene, item.question, item.answer).good
    assert wrong / unusual == pytest.approx(bases.BIASED.prior, abs=0.08)


def test_without_an_image_everything_asked_for_is_there(rng):
    mix = replace(bases.ALIGNED, unasked=0.0, no_image=1.0, common_sense=0.0, context=0.0)
    items = [corpus.example(mix, [SCENE], rng) for _ in range(300)]
    existence = [item.answer for item in items if parse(item.question).kind == "existence"]
    assert len(existence) > 10 and all(answer.startswith("yes") for answer in existence)
