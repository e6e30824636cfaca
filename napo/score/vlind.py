"""VLind-Bench: does a model answer from the image, or from what it expects?

Four pairs of true-or-false statements per instance: commonsense knowledge (a), visual perception (b), commonsense bias
(c) and, once per good image, language prior (d). Metric: klee972/VLind-Bench eval/score_pipeline.py. The paper's
columns CB and LP are Acc_CB and Acc_LP, unconditional; S_CB and S_LP count only instances that passed the steps before.
"""

import re

from napo.artifacts import BadInput
from napo.score.records import Result, blank, long_rows, repeated, some, where

STYLES = {
    "all": [str(i) for i in range(12)],
    "photorealistic": ["0", "1", "2", "3"],
    "illustration": ["4", "5", "6", "7"],
    "cartoon": ["8", "9", "10", "11"],
}
SINGLE = ("a1_image", "a2_image", "b1", "b2", "c1_image", "c2_image")  # one answer each
PAIRS = tuple(zip(SINGLE[::2], SINGLE[1::2], strict=True))
PER_IMAGE = ("d1", "d2")  # {image id: answer}
COLUMNS = ("S_CK", "S_VP", "S_CB", "S_LP", "Acc_CB", "Acc_LP")
PUBLISHED = 302  # instances with a usable image at two votes (paper.md, section 5)


def infer_true_or_false(response):
    """The official reading of a response: "True", "False" or "NA".

    The first word that is exactly true or false decides, commas and full stops removed anywhere; so "not true" is True,
    while "True!", '"True"', "**True**" and a word after a tab are not seen.
    """
    for word in response.lower().replace("\n", " ").replace(",", "").replace(".", "").split(" "):
        if word in ("true", "false"):
            return word.capitalize()
    return "NA"


def good_images(instance, min_votes=2, style="all"):
    """Ids of the images that at least `min_votes` annotators accepted, in the file's order; ids beyond "11" never
    count."""
    votes = instance["aggregated_human_label_good_images"]
    return [image for image, vote in votes.items() if vote >= min_votes and image in STYLES[style]]


def score(predictions, model_id, min_votes=2, style="all", annotations=None):
    """Result of the official scorer for one model's answers.

    predictions  records of data.json, each with the model's answers (official keys "<id>_pred_…" or NaPO's "<id>_…")
    annotations  records of data.json; with them, missing and unknown instances are reported
    Raises BadInput if answers are missing or of a wrong type, or if no instance has a good image.
    """
    _refuse_other_models(predictions, model_id)
    identities = [_identity(record, i) for i, record in enumerate(predictions)]
    notices = list(getattr(predictions, "notices", [])) + repeated(predictions, identities, "global_id")
    scored, skipped = [], []
    for i in range(len(predictions)):
        images = _good(predictions, i, min_votes, style)
        if images:
            scored.append((identities[i], *_instance(predictions, i, model_id, images), len(images)))
        else:
            skipped.append(identities[i])  # left out everywhere, in no denominator
    if not scored:
        raise BadInput(
            f"no instance has an image with {min_votes} votes in style {style}: lower --min-votes or change --style"
        )
    notices += _notices(predictions, model_id, identities, skipped, annotations)
    if annotations is None and (min_votes, style) == (2, "all") and len(scored) != PUBLISHED:
        notices.append(f"{len(scored)} instances have a good image; the published data have {PUBLISHED}")
    return _result(scored, model_id, notices)


def _identity(record, i):
    """As text, because it is not settled whether the files hold it as text or as a number."""
    return str(record.get("global_id", i))


def _refuse_other_models(predictions, model_id):
    """Refuse a model id that no record knows, naming those that are there."""
    if any(f"{model_id}{infix}a1_image" in record for record in predictions for infix in ("_pred_", "_")):
        return
    keys = {key for record in predictions for key in record}
    known = {m.group(1) for key in keys if (m := re.fullmatch(r"(.+?)(?:_pred)?_a1_image", key))}
    remedy = f"use --model-id {' or '.join(sorted(known))}" if known else "is this a VLind prediction file?"
    raise BadInput(f"no answers of a model {model_id!r} in {len(predictions)} records: {remedy}")


def _good(predictions, i, min_votes, style):
    votes = predictions[i].get("aggregated_human_label_good_images")
    if not isinstance(votes, dict) or not all(type(vote) in (int, float) for vote in votes.values()):
        raise BadInput(
            f"{where(predictions, i)}: 'aggregated_human_label_good_images' must map image ids to numbers of votes: "
            "take it from data.json"
        )
    images = good_images(predictions[i], min_votes, style)
    if images and not isinstance(predictions[i].get("concept"), str):
        raise BadInput(f"{where(predictions, i)}: no 'concept': take the record from data.json")
    return images


def _instance(predictions, i, model_id, images):
    """(concept, CK, VP, CB, list of d per good image), each 0 or 1: the first statement judged True, the second
    False."""
    said = {step: _answer(predictions, i, model_id, step) for step in SINGLE}
    per_image = {step: {k: _answer(predictions, i, model_id, step, k) for k in images} for step in PER_IMAGE}
    pairs = [int(said[first] == "True" and said[second] == "False") for first, second in PAIRS]
    lp = [int(per_image["d1"][k] == "True" and per_image["d2"][k] == "False") for k in images]
    return predictions[i]["concept"], *pairs, lp


def _answer(predictions, i, model_id, step, image=None):
    """Only "answer" is read, and only "True" and "False" count; the response itself is not parsed again."""
    record = predictions[i]
    found = record.get(f"{model_id}_pred_{step}", record.get(f"{model_id}_{step}"))
    name = f"{step}" if image is None else f"{step} for image {image}"
    if image is not None and isinstance(found, dict):
        found = found.get(image)
    if found is None:
        remedy = "ask the model again with the same --min-votes as here" if image else "ask the model again"
        raise BadInput(f"{where(predictions, i)}: no answer {name} of {model_id}: {remedy}")
    if not isinstance(found, dict) or not isinstance(found.get("answer"), str):
        raise BadInput(f'{where(predictions, i)}: {name} of {model_id} must be {{"response": text, "answer": text}}')
    return found["answer"]


def _notices(predictions, model_id, identities, skipped, annotations):
    notices = [f"{len(skipped)} instances without a good image were left out"] if skipped else []
    odd, contradictory, answers = [], [], []
    for identity, record in zip(identities, predictions, strict=True):
        for found in _all_answers(record, model_id):
            odd += [identity] * (found.get("answer") not in ("True", "False", "NA"))
            response = found.get("response")
            answers += [(identity, response)] * isinstance(response, str)
            contradictory += [identity] * (
                isinstance(response, str) and infer_true_or_false(response) != found.get("answer")
            )
    notices += blank(answers, "global_id")
    if odd:
        notices.append(f"{len(odd)} answers are none of True, False, NA and count as wrong (global_id {some(odd)})")
    if contradictory:
        notices.append(
            f"{len(contradictory)} answers are not what the official parser reads in their response "
            f"(global_id {some(contradictory)}); the answer counts"
        )
    return notices + _against(identities, annotations)


def _all_answers(record, model_id):
    for step in SINGLE + PER_IMAGE:
        found = record.get(f"{model_id}_pred_{step}", record.get(f"{model_id}_{step}"))
        if isinstance(found, dict):
            yield from [found] if "answer" in found else [v for v in found.values() if isinstance(v, dict)]


def _against(identities, annotations):
    if annotations is None:
        return []
    known = [_identity(record, i) for i, record in enumerate(annotations)]
    given, asked = set(identities), set(known)
    missing = [identity for identity in known if identity not in given]
    extra = [identity for identity in identities if identity not in asked]
    if len(extra) == len(identities):
        raise BadInput("no prediction belongs to these annotations: data.json of another version?")
    return [
        f"{len(found)} instances {what} (global_id {some(found)})"
        for found, what in ((missing, "of data.json are not in the predictions"), (extra, "are not in data.json"))
        if found
    ]


# ---- the six columns ------------------------------------------------------------------------------------------------


def _result(scored, model_id, notices):
    total = _totals([row[1:] for row in scored])
    per_concept = {
        concept: _columns(_totals([row[1:] for row in scored if row[1] == concept]))
        for concept in dict.fromkeys(row[1] for row in scored)
    }
    columns = _columns(total)
    # The official script multiplies by 100 before it divides by the number of instances.
    shown_percent = [columns[name] * 100 for name in COLUMNS[:4]]
    shown_percent += [total[name] * 100 / total["n"] for name in ("c", "d_macro")]
    examples = []
    for identity, concept, ck, vp, cb, lp, _ in scored:
        examples += long_rows("vlind", identity, concept, {"CK": ck, "VP": vp, "CB": cb, "LP": sum(lp) / len(lp)})
    return Result(
        benchmark="vlind",
        summary={**columns, "num_instances": total["n"], "num_images": total["images"]},
        printed=[f"{model_id} scores:", " ".join(f"{value:.1f} &" for value in shown_percent)],
        examples=examples,
        notices=notices,
        details={
            "S_LP_micro": _ratio(total["d_pass_micro"], total["bc_pass_micro"]),
            "counts": total,
            "per_concept": per_concept,
        },
    )


def _totals(rows):
    """Sums over instances, in their order; rows: (concept, a, b, c, d per image, number of images)."""
    names = "n images a b c d_macro d_micro c_pass bc_pass d_pass_macro d_pass_micro bc_pass_micro".split()
    total = dict.fromkeys(names, 0)
    for _, a, b, c, d, n_images in rows:
        c_pass = c * a  # needs commonsense knowledge, not perception
        bc_pass = b * c_pass
        d_macro = sum(d) / n_images  # an instance weighs the same however many good images it has
        passed = (d_macro * bc_pass, sum(d) * bc_pass, n_images * bc_pass)
        add = (1, n_images, a, b, c, d_macro, sum(d), c_pass, bc_pass, *passed)
        for name, value in zip(names, add, strict=True):
            total[name] += value
    return total


def _columns(t):
    return {
        "S_CK": t["a"] / t["n"],
        "S_VP": t["b"] / t["n"],  # of all instances, whatever commonsense knowledge says
        "S_CB": _ratio(t["c_pass"], t["a"]),
        "S_LP": _ratio(t["d_pass_macro"], t["bc_pass"]),
        "Acc_CB": t["c"] / t["n"],
        "Acc_LP": t["d_macro"] / t["n"],
    }


def _ratio(passed, candidates):
    """0 where nothing passed the steps before, as in the official script."""
    return passed / candidates if candidates else 0.0
