"""MMHal-Bench: a judge's ratings from 0 to 6 of 96 answers; below 3 is hallucinated.

Metric: llava-rlhf/LLaVA-RLHF Eval/summarize_gpt_mmhal.py and RLHF-V/RLAIF-V eval/summarize_gpt_mmhal_review.py.
The reviews themselves come from judge.py.
"""

from pathlib import Path

from napo.artifacts import BadInput, shown
from napo.score.records import Result, long_rows, read_predictions, some, where

ITEMS = 96
TYPES = ("attribute", "adversarial", "comparison", "counting", "relation", "environment", "holistic", "other")
REVIEWS = ".mmhal_test_eval"  # in the name of a review file in a folder
HALLUCINATED_BELOW = 3


def parse_rating(review):
    """The rating 0..6 that a review gives; None if it gives none or several.

    A rating is "rating: " and a digit, in any case, anywhere: "Rating: 10" is 1, "Rating: 3.5" is 3, "overrating: 6"
    is 6; "Rating:5", "**Rating:** 3" and two blanks are none. The same rating twice is one.
    """
    found = [rating for rating in range(7) if f"rating: {rating}" in review.lower()]
    return found[0] if len(found) == 1 else None


def read_reviews(path):
    """The reviews of a file, or of the one review file in a folder. Raises BadInput."""
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*.json") if REVIEWS in str(file.relative_to(path)))
        if len(files) != 1:
            names = f" ({some(file.name for file in files)})" if files else ""
            raise BadInput(
                f"{shown(path)} holds {len(files)} review files *{REVIEWS}*.json{names}: name the file to score"
            )
        path = files[0]
    return read_predictions(path)


def score(reviews):
    """Result of the official summaries.

    reviews  96 records of a chat completion each, {choices: [{message: {content}}]}, in the order of the questions;
             what judge.py adds ({judge: …}) is shown with the score
    Unparseable reviews count as 0, hence as hallucinated, as officially; they are counted and shown.
    Raises BadInput unless there are 96: types are known by place only.
    """
    if len(reviews) != ITEMS:
        raise BadInput(f"{len(reviews)} reviews where the benchmark has {ITEMS}: judge the missing answers first")
    texts = [content(reviews, i) for i in range(ITEMS)]
    parsed = [parse_rating(text) for text in texts]
    ratings = [rating or 0 for rating in parsed]
    unparseable = [i for i, rating in enumerate(parsed) if rating is None]
    by_type = {name: ratings[i :: len(TYPES)] for i, name in enumerate(TYPES)}
    hallucinated = [int(rating < HALLUCINATED_BELOW) for rating in ratings]
    informative = [rating - 3 if rating >= 3 else rating for rating in ratings]
    summary = {
        "score": sum(ratings) / ITEMS,
        "hal_rate": sum(hallucinated) / ITEMS,
        "informativeness": sum(informative) / ITEMS / 3,
        "per_type": {name: sum(found) / len(found) for name, found in by_type.items()},
        "per_item": ratings,
    }
    details = {"unparseable": [{"item": i, "review": texts[i]} for i in unparseable], "judge": _judge(reviews)}
    examples = []
    for i, values in enumerate(zip(ratings, hallucinated, informative, strict=True)):
        named = dict(zip(("score", "hallucinated", "informativeness"), values, strict=True))
        examples += long_rows("mmhal", i, TYPES[i % len(TYPES)], named | {"unparseable": i in unparseable})
    return Result("mmhal", summary, _printed(summary), examples, _notices(reviews, unparseable, details), details)


def content(reviews, i):
    """The text of review `i`. Raises BadInput."""
    try:
        text = reviews[i]["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        text = None
    if not isinstance(text, str):
        raise BadInput(f"{where(reviews, i)}: no text at choices[0].message.content: ask the judge again for item {i}")
    return text


def _judge(reviews):
    """What is known of the judge: the names that the replies give, and what judge.py recorded."""
    recorded = [review.get("judge") for review in reviews if isinstance(review.get("judge"), dict)]
    distinct = [known for i, known in enumerate(recorded) if known not in recorded[:i]]
    replied = sorted({str(review["model"]) for review in reviews if review.get("model")})
    return {"model_in_replies": replied, "recorded": distinct, "n_recorded": len(recorded)}


def _notices(reviews, unparseable, details):
    notices = list(getattr(reviews, "notices", []))
    if unparseable:
        notices.append(f"{len(unparseable)} reviews give no single rating and count as 0 (item {some(unparseable)})")
    judge = details["judge"]
    if len(judge["model_in_replies"]) > 1 or len(judge["recorded"]) > 1:
        notices.append(f"reviews of more than one judge: {some(judge['model_in_replies'] or judge['recorded'])}")
    if not judge["recorded"]:
        notices.append("the review file does not say with which parameters and prompt the judge was asked")
    elif judge["n_recorded"] < len(reviews):
        notices.append(f"only {judge['n_recorded']} reviews say how the judge was asked")
    return notices


def _printed(summary):
    means = ",".join(str(round(mean, 2)) for mean in summary["per_type"].values())
    return [
        f"Informativeness: {summary['informativeness'] * 100:.2f}",
        f"Average score: {summary['score']:.2f}",
        f"Hallucination rate: {summary['hal_rate']:.2f}",
        f"Average score for each question type: {means}",
    ]
