"""`napo judge`: have the answers to MMHal-Bench rated, by an endpoint, a local chat model or people elsewhere.

napo judge endpoint --url URL --model NAME …   (the key comes from the environment only)
napo judge local --model NAME_OR_FOLDER …
napo judge write …   and   napo judge read …   (prompts out, reviews back in)
"""

import sys
from pathlib import Path

from napo.commands import command
from napo.official import judge
from napo.official.judge import KEY_VARIABLE, Endpoint, LocalChat
from napo.official.records import read_predictions
from napo.workshop.files import BadInput, shown


def parser():
    top = command.parser("judge")
    ways = top.add_subparsers(dest="way", required=True)
    for way in ("endpoint", "local", "write", "read"):
        one = ways.add_parser(way)
        one.add_argument("--answers", required=True, help="the model's 96 answers, JSON lines or list")
        one.add_argument("--items", default="data/mmhal/mmhal-bench_answer_template.json")
        one.add_argument("--template", default="data/mmhal/eval_gpt_mmhal.py", help="the judge's prompt")
        one.add_argument("--out", required=True, help="review file (write: prompts), *.mmhal_test_eval.json")
        if way in ("endpoint", "local"):
            one.add_argument("--model", required=True)
    add = {way: one.add_argument for way, one in ways.choices.items()}
    add["endpoint"]("--url", default="https://api.openai.com/v1")
    add["endpoint"]("--key-variable", default=KEY_VARIABLE, help="environment variable with the key")
    add["endpoint"]("--allow-http", action="store_true", help="send texts and key without encryption to any machine")
    add["local"]("--device", default="cpu")
    add["read"]("--replies", required=True, help="JSON lines {item, text}")
    add["read"]("--name", required=True, help="who judged")
    return top


@command.exit_status
def main(arguments=None):
    asked = parser().parse_args(arguments)
    if Path(asked.out).is_dir():
        raise BadInput(f"--out {shown(asked.out)} is a folder: name a file")
    template = judge.read_template(asked.template)
    digest = judge.sha256(template)
    prompts = judge.make_prompts(read_predictions(asked.items), read_predictions(asked.answers), template)
    if asked.way == "endpoint":
        endpoint = Endpoint(asked.url, asked.model, asked.key_variable, allow_http=asked.allow_http)
        judge.review(prompts, endpoint, digest, asked.out)
    elif asked.way == "local":
        judge.review(prompts, LocalChat(asked.model, asked.device), digest, asked.out)
    elif asked.way == "write":
        judge.write_prompts(prompts, asked.out)
    else:
        replies = judge.read_replies(read_predictions(asked.replies), prompts, asked.name, digest)
        judge.write_reviews(replies, asked.out)
    if digest != judge.OFFICIAL_TEMPLATE:
        print("note: this is not the official prompt; scores are not comparable", file=sys.stderr)
    print(f"wrote {shown(asked.out)}")
