"""POPE: "Is there a … in the image?", yes or no. Metric: RUCAIBox/POPE evaluate.py; yes is the positive class."""

import re

from napo.artifacts import BadInput
from napo.score.records import Result, blank, integer_of, long_rows, repeated, some, text_of, where


def says_no(answer):
    """The official reading: does the first sentence hold one of the exact words No, no, not?

    Only what stands before the first full stop counts, commas are removed, words are split at blanks; all else is yes.
    So "NO", "None", "no!", "Not here", "No\\nmore", "" and ". No" are yes, and "yes, no doubt" is no.
    """
    words = answer.split(".")[0].replace(",", "").split(" ")
    return any(word in words for word in ("No", "not", "no"))


def score(questions, answers):
    """Result of the official evaluator, which pairs question and answer by their place in the files.

    questions  records {question_id, text, label: yes or no}
    answers    records {answer or text, question_id and question if known}, in the order of the questions
    Raises BadInput if order or number show that answers would be held against other questions' labels.
    """
    labels = [_label(questions, i) for i in range(len(questions))]
    texts = [text_of(answers, i, "answer", "text") for i in range(len(answers))]
    notices = _check_order(questions, answers)
    said_yes = [not says_no(text) for text in texts]
    # Like zip in the official script: what is longer is cut, except that yes_ratio looks at every answer.
    pairs = list(zip(said_yes, labels, strict=False))
    tp, fp = pairs.count((True, True)), pairs.count((True, False))
    tn, fn = pairs.count((False, False)), pairs.count((False, True))
    ids = [question.get("question_id", i) for i, question in enumerate(questions)]
    notices += blank(
        [(ids[i] if i < len(ids) else i, text) for i, text in enumerate(texts)], "read as yes, question_id"
    )
    examples = []
    for example_id, (yes, label) in zip(ids, pairs, strict=False):
        examples += long_rows("pope", example_id, "yes" if label else "no", {"accuracy": yes == label, "said_yes": yes})
    summary, printed, undefined = _numbers(tp, fp, tn, fn, sum(said_yes) / len(said_yes))
    details = {"TP": tp, "FP": fp, "TN": tn, "FN": fn}
    return Result("pope", summary, printed, examples, notices + undefined, details)


def _label(questions, i):
    label = text_of(questions, i, "label")
    if label not in ("yes", "no"):  # the official script would take anything but "no" for yes
        raise BadInput(
            f"{where(questions, i)}: label {label!r:.40} is neither yes nor no: is this POPE's question file?"
        )
    return label == "yes"


def _check_order(questions, answers):
    n = min(len(questions), len(answers))
    by_id = [i for i in range(n) if "question_id" in questions[i] and "question_id" in answers[i]]
    by_text = [i for i in range(n) if isinstance(questions[i].get("text"), str) and "question" in answers[i]]
    asked = [integer_of(questions, i, "question_id", digits=True) for i in by_id]
    told = [integer_of(answers, i, "question_id", digits=True) for i in by_id]
    notices = repeated(answers, [str(a.get("question_id", f"#{i}")) for i, a in enumerate(answers)], "question_id")
    for i, question, answer in zip(by_id, asked, told, strict=True):
        if question != answer:
            raise BadInput(
                f"{where(answers, i)}: answers question_id {answer}, the question there is {question}; the official "
                "script pairs them by place: put the answers into the order of the questions, one for each"
            )
    for i in by_text:
        if _wording(questions[i]["text"]) != _wording(text_of(answers, i, "question")):
            raise BadInput(
                f"{where(answers, i)}: answers {answers[i]['question']!r:.80}, but the question there is "
                f"{questions[i]['text']!r:.80}: shuffled, or questions of another version"
            )
    return notices + _check_number(questions, answers, set(by_id) | set(by_text), n)


def _check_number(questions, answers, recognised, n):
    if len(questions) == len(answers):
        return []
    if len(recognised) < n:
        raise BadInput(
            f"{len(answers)} answers for {len(questions)} questions, and nothing tells which is for which: "
            "give every answer its question_id"
        )
    if len(answers) < len(questions):
        missing = [question.get("question_id", i) for i, question in enumerate(questions)][n:]
        return [f"{len(missing)} questions at the end have no answer and are left out (question_id {some(missing)})"]
    extra = [answer.get("question_id", i) for i, answer in enumerate(answers)][n:]
    return [f"{len(extra)} answers beyond the last question count in yes_ratio only (question_id {some(extra)})"]


def _wording(text):
    """A question without its article: editions of POPE differ in a and an."""
    return re.sub(r"\b(a|an)\b ", "", text.strip())


def _numbers(tp, fp, tn, fn, yes_ratio):
    """The numbers, the official lines, and notices; None where the official script would divide by zero."""
    undefined = []
    precision = tp / (tp + fp) if tp + fp else None
    recall = tp / (tp + fn) if tp + fn else None
    f1 = 2 * precision * recall / (precision + recall) if precision and recall else None
    for name, value in (("precision", precision), ("recall", recall), ("f1", f1)):
        if value is None:
            undefined.append(f"{name} is undefined (no true or no predicted yes); the official script stops there")
    acc = (tp + tn) / (tp + tn + fp + fn)
    summary = {"acc": acc, "precision": precision, "recall": recall, "f1": f1, "yes_ratio": yes_ratio}
    printed = ["TP\tFP\tTN\tFN\t", f"{tp}\t{fp}\t{tn}\t{fn}"]
    names = ("Accuracy", "Precision", "Recall", "F1 score", "Yes ratio")
    printed += [f"{name}: {value}" for name, value in zip(names, summary.values(), strict=True) if value is not None]
    return summary, printed, undefined
