"""VLind-Bench: does a model answer from the image, or from what it expects?

Each instance has four pairs of true-or-false statements: commonsense knowledge (a), visual perception (b), commonsense
bias (c) and, once per good image, language prior (d). Metric: klee972/VLind-Bench eval/score_pipeline.py. The paper's
columns CB and LP are Acc_CB and Acc_LP, over all instances; S_CB and S_LP count only instances that passed the steps
before.
"""

import re

from napo.official.records import Result, blank, compared, counted, fault, long_rows, ratio, reading_notices
from napo.workshop.files import BadInput

IMAGES = [str(i) for i in range(12)]
STYLES = {"all": IMAGES, "photorealistic": IMAGES[:4], "illustration": IMAGES[4:8], "cartoon": IMAGES[8:]}
SINGLE = ("a1_image", "a2_image", "b1", "b2", "c1_image", "c2_image")  # one answer each
PAIRS = tuple(zip(SINGLE[::2], SINGLE[1::2], strict=True))
PER_IMAGE = ("d1", "d2")  # {image id: answer}
COLUMNS = ("S_CK", "S_VP", "S_CB", "S_LP", "Acc_CB", "Acc_LP")
PUBLISHED = 302  # instances with a usable image at two votes (paper.md, section 5)


def infer_true_or_false(response):
    """The official reading of a response: "True", "False" or "NA".

    Commas and full stops are removed, then the first word that is exactly true or false decides. So "not true" is True,
    and "True!", '"True"', "**True**" and a word after a tab are NA.
    """
    for word in response.lower().replace("\n", " ").replace(",", "").replace(".", "").split(" "):
        if word in ("true", "false"):
            return word.capitalize()
    return "NA"


def good_images(instance, min_votes=2, style="all"):
    """Ids of the images that at least `min_votes` annotators accepted, in the file's order; none beyond "11"."""
    votes = instance["aggregated_human_label_good_images"]
    return [image for image, vote in votes.items() if vote >= min_votes and image in STYLES[style]]


def score(predictions, model_id, min_votes=2, style="all", annotations=None):
    """Result of the official scorer for one model's answers.

    predictions  records of data.json, each with the model's answers (official keys "<id>_pred_…" or NaPO's "<id>_…")
    annotations  records of data.json, to report missing and unknown instances
    Raises BadInput for answers that are missing or of a wrong type, and if no instance has a good image.
    """
    _refuse_other_models(predictions, model_id)
    identities = identities_of(predictions)
    notices = reading_notices(predictions, identities, "global_id")
    scored, skipped = [], []
    for i, identity in enumerate(identities):
        if images := _good(predictions, i, min_votes, style):
            scored.append((identity, *_instance(predictions, i, model_id, images)))
        else:
            skipped.append(identity)  # in no denominator
    if not scored:
        problem = f"no instance has an image with {min_votes} votes in style {style}"
        raise BadInput(f"{problem}: lower --min-votes or change --style")
    notices += [f"{len(skipped)} instances without a good image were left out"] if skipped else []
    notices += _odd_answers(predictions, model_id, identities)
    if annotations is not None:
        known = identities_of(annotations)
        if set(identities).isdisjoint(known):
            raise BadInput("no prediction belongs to these annotations: data.json of another version?")
        missing, extra = "instances of data.json are not in the predictions", "instances are not in data.json"
        notices += compared(known, missing, identities, extra, "global_id")
    elif (min_votes, style) == (2, "all") and len(scored) != PUBLISHED:
        notices.append(f"{len(scored)} instances have a good image; the published data have {PUBLISHED}")
    return _result(scored, model_id, notices)


def identities_of(records):
    """Ids as text (files hold them as text or as numbers); a record's place where it has none."""
    return [str(record.get("global_id", i)) for i, record in enumerate(records)]


def _refuse_other_models(predictions, model_id):
    """Raises BadInput for a model id that no record knows; names those that the records know."""
    keys = {key for record in predictions for key in record}
    if keys.isdisjoint((f"{model_id}_pred_a1_image", f"{model_id}_a1_image")):
        known = {m.group(1) for key in keys if (m := re.fullmatch(r"(.+?)(?:_pred)?_a1_image", key))}
        remedy = f"use --model-id {' or '.join(sorted(known))}" if known else "is this a VLind prediction file?"
        raise BadInput(f"no answers of a model {model_id!r} in {len(predictions)} records: {remedy}")


def _good(predictions, i, min_votes, style):
    name = "aggregated_human_label_good_images"
    votes = predictions[i].get(name)
    if not isinstance(votes, dict) or not all(type(vote) in (int, float) for vote in votes.values()):
        raise fault(predictions, i, f"{name!r} must map image ids to numbers of votes: take it from data.json")
    images = good_images(predictions[i], min_votes, style)
    if images and not isinstance(predictions[i].get("concept"), str):
        raise fault(predictions, i, "no 'concept': take the record from data.json")
    return images


def _instance(predictions, i, model_id, images):
    """(concept, CK, VP, CB, list of LP per good image): 1 if the first statement is judged True, the second False."""

    def right(first, second, image=None):
        said = [_answer(predictions, i, model_id, step, image) for step in (first, second)]
        return int(said == ["True", "False"])

    return predictions[i]["concept"], *(right(*pair) for pair in PAIRS), [right(*PER_IMAGE, image) for image in images]


def _answer(predictions, i, model_id, step, image=None):
    """The field "answer" of one step; the response itself is not parsed again. Raises BadInput."""
    found, name = _said(predictions[i], model_id, step), f"{step} of {model_id}"
    if image is not None:
        found = found.get(image) if isinstance(found, dict) else found
        name = f"{step} for image {image} of {model_id}"
    if found is None:
        votes = " with the same --min-votes as here" if image is not None else ""
        raise fault(predictions, i, f"no answer {name}: ask the model again{votes}")
    if not isinstance(found, dict) or not isinstance(found.get("answer"), str):
        raise fault(predictions, i, f'{name} must be {{"response": text, "answer": text}}: ask the model again')
    return found["answer"]


def _said(record, model_id, step):
    return record.get(f"{model_id}_pred_{step}", record.get(f"{model_id}_{step}"))


def _odd_answers(predictions, model_id, identities):
    """Notices about answers that are empty, unknown or contradicted by their response."""
    answers = [
        (identity, found.get("answer"), found.get("response"))
        for identity, record in zip(identities, predictions, strict=True)
        for found in _all_answers(record, model_id)
    ]
    said = [given for given in answers if isinstance(given[2], str)]
    odd = [identity for identity, answer, _ in answers if answer not in ("True", "False", "NA")]
    contradictory = [identity for identity, answer, response in said if infer_true_or_false(response) != answer]
    differ = "answers are not what the official parser reads in their response, but count"
    return [
        *blank([(identity, response) for identity, _, response in said], "global_id"),
        *counted(odd, "answers are none of True, False, NA and count as wrong", "global_id"),
        *counted(contradictory, differ, "global_id"),
    ]


def _all_answers(record, model_id):
    for step in SINGLE + PER_IMAGE:
        found = _said(record, model_id, step)
        if isinstance(found, dict):
            yield from [found] if "answer" in found else [v for v in found.values() if isinstance(v, dict)]


def _result(scored, model_id, notices):
    total = _totals(scored)
    columns = _columns(total)
    # The official script multiplies by 100 before it divides by the number of instances.
    percent = [columns[name] * 100 for name in COLUMNS[:4]]
    percent += [total[name] * 100 / total["n"] for name in ("c", "d_macro")]
    summary = {**columns, "num_instances": total["n"], "num_images": total["images"]}
    details = {"S_LP_micro": ratio(total["d_pass_micro"], total["bc_pass_micro"]) or 0.0, "counts": total}
    concepts = dict.fromkeys(concept for _, concept, *_ in scored)
    details["per_concept"] = {name: _columns(_totals([row for row in scored if row[1] == name])) for name in concepts}
    examples = []
    for identity, concept, ck, vp, cb, lp in scored:
        examples += long_rows("vlind", identity, concept, {"CK": ck, "VP": vp, "CB": cb, "LP": sum(lp) / len(lp)})
    printed = [f"{model_id} scores:", " ".join(f"{value:.1f} &" for value in percent)]
    return Result("vlind", summary, printed, examples, notices, details)


def _totals(scored):
    """Sums over instances, in their order; scored: (id, concept, a, b, c, d per image)."""
    names = "n images a b c d_macro d_micro c_pass bc_pass d_pass_macro d_pass_micro bc_pass_micro".split()
    total = dict.fromkeys(names, 0)
    for _, _, a, b, c, d in scored:
        c_pass = c * a  # needs commonsense knowledge, not perception
        bc_pass, d_macro = b * c_pass, sum(d) / len(d)  # each instance weighs the same, whatever its number of images
        add = [1, len(d), a, b, c, d_macro, sum(d), c_pass, bc_pass]
        for name, value in zip(names, add + [n * bc_pass for n in (d_macro, sum(d), len(d))], strict=True):
            total[name] += value
    return total


def _columns(t):
    """The six columns; 0 if no instance passed the steps before, as in the official script."""
    return {
        "S_CK": t["a"] / t["n"],
        "S_VP": t["b"] / t["n"],  # of all instances, also those that fail commonsense knowledge
        "S_CB": ratio(t["c_pass"], t["a"]) or 0.0,
        "S_LP": ratio(t["d_pass_macro"], t["bc_pass"]) or 0.0,
        "Acc_CB": t["c"] / t["n"],
        "Acc_LP": t["d_macro"] / t["n"],
    }
