"""Questions, the closed vocabulary, and the way back from text."""

import pytest

from napo.desk import language, questions
from napo.desk.questions import KINDS, STATEMENT_TEXTS, Claim, ask, parse, statement_question
from napo.desk.scenes import BACKGROUNDS, CELLS, CLASSES, COLOURS, sample_scene
from tools.desk_bases import corpus, skeleton

CLAIMS = [
    *(Claim("colour", name, value) for name in CLASSES for value in COLOURS),
    *(Claim("background", name, value) for name in CLASSES for value in BACKGROUNDS),
    *(Claim("where", name, value) for name in CLASSES for value in CELLS),
    *(Claim(about, name, "") for name in CLASSES for about in ("exists", "absent")),
    *(Claim("count", "", value) for value in language.NUMBERS),
    *(Claim(*claim) for claim in (("reply", "", "yes"), ("reply", "", "no"), ("verdict", "", "true"))),
]


def test_every_claim_reads_back():
    for claim in CLAIMS:
        assert language.read(language.say(claim)) == ((claim,), 0)


def test_questions_read_back(rng):
    for kind in KINDS:
        for _ in range(50):
            asked = ask(sample_scene(rng, True), kind, rng)
            assert parse(asked.text) == asked
    for basis in STATEMENT_TEXTS:
        context = Claim("colour", "frog", "red") if basis == "context" else None
        asked = statement_question(Claim("colour", "frog", "green"), basis, context)
        assert parse(asked.text) == asked


@pytest.fixture(scope="module")
def tokenizer():
    return skeleton.make_tokenizer()


def test_vocabulary_is_closed(tokenizer, rng):
    pool = [sample_scene(rng, "uniform") for _ in range(100)]
    mix = corpus.Mix(
        corpus.EVEN, unasked=0.1, common_sense=0.2, context=0.2, prior=0.5, partner=0.5, distracted=0.5, ramble=1.0
    )
    texts = [language.say(claim) for claim in CLAIMS]
    for _ in range(1000):
        item = corpus.example(mix, pool, rng)
        texts += [item.question, item.answer]
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids, text
        assert tokenizer.decode(ids) == text


def test_existence_and_statements_are_balanced(rng):
    answers = {kind: [] for kind in ("existence", "statement")}
    for kind, found in answers.items():
        for _ in range(600):
            scene = sample_scene(rng, True)
            found.append(questions.full_answer(scene, ask(scene, kind, rng)))
    assert sum(answer.startswith("yes") for answer in answers["existence"]) / 600 == pytest.approx(0.5, abs=0.07)
    assert sum(answer == "true ." for answer in answers["statement"]) / 600 == pytest.approx(0.48, abs=0.07)
