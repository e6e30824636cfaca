"""POPE: "Is there a … in the image?", yes or no; yes is the positive class. Metric: RUCAIBox/POPE evaluate.py."""

import re

from napo.official.records import Result, blank, counted, fault, integer_of, long_rows, ratio, reading_notices, text_of
from napo.workshop.files import BadInput


def says_no(answer):
    """Whether the official script reads an answer as no: its first sentence has one of the exact words No, no, not.

    The sentence ends at the first full stop, commas are removed, blanks separate words. All other answers are yes:
    "NO", "None", "no!", "Not here", "No\\nmore", "" and ". No" are yes, and "yes, no doubt" is no.
    """
    words = answer.split(".")[0].replace(",", "").split(" ")
    return any(word in words for word in ("No", "not", "no"))


def score(questions, answers):
    """Result of the official evaluator, which pairs questions and answers by their place in the files.

    questions  records {question_id, text, label: yes or no}
    answers    records {answer or text, question_id and question if known}, in the order of the questions
    Raises BadInput if ids, texts or numbers show that answers would meet other questions' labels.
    """
    labels = [_label(questions, i) for i in range(len(questions))]
    texts = [text_of(answers, i, "answer", "text") for i in range(len(answers))]
    ids = [question.get("question_id", i) for i, question in enumerate(questions)]
    answered = [str(answer.get("question_id", f"#{i}")) for i, answer in enumerate(answers)]
    notices = reading_notices(answers, answered, "question_id") + _check_order(questions, answers, ids)
    said_yes = [not says_no(text) for text in texts]
    # As in the official script, zip cuts the longer list; only yes_ratio counts every answer.
    pairs = list(zip(said_yes, labels, strict=False))
    notices += blank(zip([*ids, *range(len(ids), len(texts))], texts, strict=False), "read as yes, question_id")
    examples = []
    for example_id, (yes, label) in zip(ids, pairs, strict=False):
        examples += long_rows("pope", example_id, "yes" if label else "no", {"accuracy": yes == label, "said_yes": yes})
    counts = {"TP": pairs.count((True, True)), "FP": pairs.count((True, False))}
    counts |= {"TN": pairs.count((False, False)), "FN": pairs.count((False, True))}
    summary = _numbers(*counts.values()) | {"yes_ratio": sum(said_yes) / len(said_yes)}
    stops = "is undefined (no true or no predicted yes); the official script stops there"
    notices += [f"{name} {stops}" for name, value in summary.items() if value is None]
    return Result("pope", summary, _printed(counts, summary), examples, notices, counts)


def _label(questions, i):
    label = text_of(questions, i, "label")
    if label not in ("yes", "no"):  # the official script takes any other label for yes
        raise fault(questions, i, f"label {label!r:.40} is not yes or no: is this POPE's question file?")
    return label == "yes"


def _check_order(questions, answers, ids):
    """Notices about missing and extra answers. Raises BadInput if an answer is not to the question at its place."""
    n = min(len(questions), len(answers))
    by_id = [i for i in range(n) if "question_id" in questions[i] and "question_id" in answers[i]]
    by_text = [i for i in range(n) if isinstance(questions[i].get("text"), str) and "question" in answers[i]]
    for i in by_id:
        asked, told = (integer_of(rows, i, "question_id", digits=True) for rows in (questions, answers))
        if asked != told:
            problem = f"answers question_id {told}, the question there is {asked}; the official script pairs by place"
            raise fault(answers, i, f"{problem}: put the answers into the order of the questions, one for each")
    for i in by_text:
        asked, told = questions[i]["text"], text_of(answers, i, "question")
        if _wording(asked) != _wording(told):
            problem = f"answers {told!r:.80}, but the question there is {asked!r:.80}"
            raise fault(answers, i, f"{problem}: shuffled, or questions of another version")
    if len(questions) != len(answers) and len({*by_id, *by_text}) < n:
        problem = f"{len(answers)} answers for {len(questions)} questions, and nothing tells which is for which"
        raise BadInput(f"{problem}: give every answer its question_id")
    extra = [answer.get("question_id", i) for i, answer in enumerate(answers)][n:]
    notices = counted(ids[n:], "questions at the end have no answer and are left out", "question_id")
    return notices + counted(extra, "answers beyond the last question count in yes_ratio only", "question_id")


def _wording(text):
    """A question without its articles: editions of POPE differ in a and an."""
    return re.sub(r"\b(a|an)\b ", "", text.strip())


def _numbers(tp, fp, tn, fn):
    """The official numbers; None where the official script divides by zero."""
    precision, recall = ratio(tp, tp + fp), ratio(tp, tp + fn)
    f1 = 2 * precision * recall / (precision + recall) if precision and recall else None
    return {"acc": (tp + tn) / (tp + tn + fp + fn), "precision": precision, "recall": recall, "f1": f1}


def _printed(counts, summary):
    names = ("Accuracy", "Precision", "Recall", "F1 score", "Yes ratio")
    defined = [(name, value) for name, value in zip(names, summary.values(), strict=True) if value is not None]
    head = ["TP\tFP\tTN\tFN\t", "\t".join(map(str, counts.values()))]
    return head + [f"{name}: {value}" for name, value in defined]
