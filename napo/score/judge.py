"""Who rates MMHal-Bench's answers: an OpenAI-compatible endpoint, a local chat model, or somebody elsewhere.

    python -m napo.score.judge endpoint --url URL --model NAME …   the key comes from the environment only
    python -m napo.score.judge local --model NAME_OR_FOLDER …
    python -m napo.score.judge write … / read …                    prompts out, reviews back in

All write the review file that `python -m napo.score mmhal` reads: 96 chat completions as the official script saves
them, each with {judge: kind, model, parameters, template hash} and the hash of its prompt. The prompt is the
benchmark's own (one user message, the judge never sees the image); `make data` fetches it.
"""

import argparse
import ast
import hashlib
import json
import sys
from pathlib import Path

from napo import artifacts
from napo.artifacts import BadInput, shown
from napo.score.chat import KEY_VARIABLE, Endpoint, LocalChat, as_completion
from napo.score.mmhal import ITEMS
from napo.score.records import integer_of, read_predictions, read_text, some, text_of, where

# Of LLaVA-RLHF's template, which RLAIF-V's copy equals byte for byte.
OFFICIAL_TEMPLATE = "2c73d8c50f1740d000fae62cfeed103c2f7a5bcfa904b27e6e09900e7ce600cc"


def sha256(text):
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


# ---- prompts --------------------------------------------------------------------------------------------------------


def read_template(path):
    """The judge's prompt with four places {}: a text file, or the official script that holds it as `template`.

    Raises BadInput.
    """
    text = read_text(path)
    if Path(path).suffix == ".py":
        text = _assigned(text, path)
    if text.count("{}") != 4:
        raise BadInput(f"{shown(path)} has {text.count('{}')} places {{}} for the four parts: get it with make data")
    return text


def _assigned(source, path):
    """The value of the script's `template`; the script is not run."""
    try:
        for node in ast.parse(source).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "template":
                return str(ast.literal_eval(node.value))
    except (SyntaxError, ValueError):
        pass
    raise BadInput(f"{shown(path)} assigns no text to `template`: use eval_gpt_mmhal.py, or a text file")


def make_prompts(items, answers, template):
    """The 96 prompts.

    items    records of mmhal-bench_answer_template.json
    answers  as many records {answer, text or model_answer}, in the same order, from which "Assistant:" is removed
    Raises BadInput for another number, or an order that question_id or prompt contradict.
    """
    if len(items) != ITEMS or len(answers) != ITEMS:
        raise BadInput(
            f"{len(answers)} answers for {len(items)} questions, both must be {ITEMS}: answer all, each once"
        )
    return [template.format(*_parts(items, answers, i)) for i in range(ITEMS)]


def _parts(items, answers, i):
    item, answer = items[i], answers[i]
    question = text_of(items, i, "question")
    asked = answer.get("prompt", answer.get("question"))
    if ("question_id" in answer and str(answer["question_id"]) not in (str(i), str(item.get("image_id")))) or (
        isinstance(asked, str) and question not in asked
    ):
        raise BadInput(
            f"{where(answers, i)}: is not about question {i} ({question!r:.60}); answers are taken by place: put them "
            "into the order of the questions"
        )
    contents = item.get("image_content")
    if not isinstance(contents, list):
        raise BadInput(f"{where(items, i)}: no list 'image_content': is this mmhal-bench_answer_template.json?")
    text = text_of(answers, i, "answer", "text", "model_answer").replace("Assistant:", "").strip()
    return ", ".join(map(str, contents)), question, text_of(items, i, "gt_answer"), text


# ---- reviewing ------------------------------------------------------------------------------------------------------


def review(prompts, judge, template_hash, path):
    """Ask the judge for every prompt and write the review file; what an interrupted run got is kept and not asked
    again."""
    path = Path(path)
    about = judge.about | {"template_sha256": template_hash}
    partial = path.with_name(path.name + ".partial")
    known = _kept(partial, about)
    artifacts.make_folder(path.parent)
    with open(partial, "a", encoding="utf-8") as log:
        for prompt in prompts:
            if sha256(prompt) not in known:
                reply = judge.ask(prompt) | {"judge": about, "prompt_sha256": sha256(prompt)}
                known[reply["prompt_sha256"]] = reply
                log.write(json.dumps(reply) + "\n")
                log.flush()
    _write([known[sha256(prompt)] for prompt in prompts], path)
    partial.unlink()


def _write(reviews, path):
    """The review file. Escaped, because replies can hold half characters that no file could."""
    with artifacts.atomic(path) as temporary:
        temporary.write_text(json.dumps(reviews, indent=1) + "\n", encoding="utf-8")


def _kept(partial, about):
    """Replies of this judge from an interrupted run, by prompt hash; a line that was cut short is dropped."""
    replies = {}
    for line in read_text(partial).split("\n") if partial.exists() else []:
        try:
            reply = json.loads(line)
        except ValueError:
            continue
        if reply.get("judge") == about:
            replies[reply["prompt_sha256"]] = reply
    if partial.exists():  # rewritten, so that the next line does not continue half a line
        with artifacts.atomic(partial) as temporary:
            lines = (json.dumps(reply) + "\n" for reply in replies.values())
            temporary.write_text("".join(lines), encoding="utf-8")
    return replies


def write_prompts(prompts, path):
    """The prompts for a judge elsewhere: JSON lines {item, prompt_sha256, prompt}."""
    lines = [{"item": i, "prompt_sha256": sha256(prompt), "prompt": prompt} for i, prompt in enumerate(prompts)]
    with artifacts.atomic(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def read_replies(replies, prompts, name, template_hash):
    """Reviews from somebody elsewhere as chat completions.

    replies  records {item, text} in any order, one for each prompt; prompt_sha256, where given, must be the prompt's
    name     who judged, as it shall stand in the record
    Raises BadInput for missing, repeated and unknown items, and for replies to other prompts.
    """
    found = {}
    for i in range(len(replies)):
        item = integer_of(replies, i, "item")
        if not 0 <= item < len(prompts) or item in found:
            raise BadInput(
                f"{where(replies, i)}: item {item} is {'there twice' if item in found else 'unknown'}: one review each"
            )
        if replies[i].get("prompt_sha256", sha256(prompts[item])) != sha256(prompts[item]):
            raise BadInput(
                f"{where(replies, i)}: reviews another prompt than item {item} has now: write the prompts again"
            )
        about = {"kind": "exchange", "model": name, "parameters": None, "template_sha256": template_hash}
        text = as_completion(name, text_of(replies, i, "text"))
        found[item] = text | {"judge": about, "prompt_sha256": sha256(prompts[item])}
    missing = [item for item in range(len(prompts)) if item not in found]
    if missing:
        raise BadInput(f"{len(missing)} items have no review (item {some(missing)}): have them judged too")
    return [found[item] for item in range(len(prompts))]


# ---- command --------------------------------------------------------------------------------------------------------


def _parser():
    parser = argparse.ArgumentParser(prog="python -m napo.score.judge", description="Have MMHal-Bench's answers rated.")
    ways = parser.add_subparsers(dest="way", required=True)
    for way in ("endpoint", "local", "write", "read"):
        one = ways.add_parser(way)
        one.add_argument("--answers", required=True, help="the model's 96 answers, JSON lines or list")
        one.add_argument("--items", default="data/mmhal/mmhal-bench_answer_template.json")
        one.add_argument("--template", default="data/mmhal/eval_gpt_mmhal.py", help="the judge's prompt")
        one.add_argument("--out", required=True, help="review file (write: prompts), *.mmhal_test_eval.json")
        if way in ("endpoint", "local"):
            one.add_argument("--model", required=True)
    ways.choices["endpoint"].add_argument("--url", default="https://api.openai.com/v1")
    ways.choices["endpoint"].add_argument(
        "--key-variable", default=KEY_VARIABLE, help="environment variable with the key"
    )
    ways.choices["local"].add_argument("--device", default="cpu")
    ways.choices["read"].add_argument("--replies", required=True, help="JSON lines {item, text}")
    ways.choices["read"].add_argument("--name", required=True, help="who judged")
    return parser


def run(asked):
    """Carry out a parsed command. Raises BadInput."""
    template = read_template(asked.template)
    items = read_predictions(asked.items)
    prompts = make_prompts(items, read_predictions(asked.answers), template)
    if asked.way == "endpoint":
        review(prompts, Endpoint(asked.url, asked.model, asked.key_variable), sha256(template), asked.out)
    elif asked.way == "local":
        review(prompts, LocalChat(asked.model, asked.device), sha256(template), asked.out)
    elif asked.way == "write":
        write_prompts(prompts, asked.out)
    else:
        replies = read_replies(read_predictions(asked.replies), prompts, asked.name, sha256(template))
        _write(replies, asked.out)
    if sha256(template) != OFFICIAL_TEMPLATE:
        print("note: this is not the official prompt; scores are not comparable", file=sys.stderr)
    print(f"wrote {shown(asked.out)}")


def main(arguments=None):
    """The command; returns the exit status."""
    asked = _parser().parse_args(arguments)
    try:
        run(asked)
    except BadInput as error:
        print("error: " + " ".join(str(error).split("\n")), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
