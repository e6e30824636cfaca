"""Reviews of MMHal-Bench's answers, by a chat model or by people who get the prompts in a file.

`napo score mmhal` reads the review file: 96 chat completions as the official script saves them, each with
{judge: kind, model, parameters, template hash} and the hash of its prompt. The prompt is the benchmark's own, one user
message without the image; `make data` fetches it. A judge has `ask(prompt)`, which returns a chat completion, and
`about`, which describes it for the record.
"""

import ast
import contextlib
import functools
import hashlib
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from napo.official.mmhal import ITEMS, content
from napo.official.records import fault, integer_of, read_text, some, text_of, without
from napo.workshop.files import BadInput, atomic, make_folder, shown

# SHA-256 of LLaVA-RLHF's template; RLAIF-V's copy is the same.
OFFICIAL_TEMPLATE = "2c73d8c50f1740d000fae62cfeed103c2f7a5bcfa904b27e6e09900e7ce600cc"
KEY_VARIABLE = "OPENAI_API_KEY"
RETRIED = {0, 408, 409, 429, 500, 502, 503, 504}  # 0: not reached


def sha256(text):
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


# ---- prompts --------------------------------------------------------------------------------------------------------


def read_template(path):
    """The judge's prompt, with four places {}, from a text file or the official script. Raises BadInput."""
    text = read_text(path)
    if Path(path).suffix == ".py":
        text = _assigned(text, path)
    if text.count("{}") != 4:
        raise BadInput(f"{shown(path)} has {text.count('{}')} places {{}} for the four parts: get it with make data")
    return text


def _assigned(source, path):
    """The script's variable `template`, without running the script. Raises BadInput."""
    with contextlib.suppress(SyntaxError, ValueError):
        for node in ast.parse(source).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "template":
                return str(ast.literal_eval(node.value))
    raise BadInput(f"{shown(path)} assigns no text to `template`: use eval_gpt_mmhal.py, or a text file")


def make_prompts(items, answers, template):
    """The 96 prompts.

    items    records of mmhal-bench_answer_template.json
    answers  96 records {answer, text or model_answer} in the same order; "Assistant:" is removed from them
    Raises BadInput for another number, and if question_id or prompt contradict the order.
    """
    if len(items) != ITEMS or len(answers) != ITEMS:
        counts = f"{len(answers)} answers for {len(items)} questions, both must be {ITEMS}"
        raise BadInput(f"{counts}: answer each question once")
    return [template.format(*_parts(items, answers, i)) for i in range(ITEMS)]


def _parts(items, answers, i):
    item, answer = items[i], answers[i]
    question = text_of(items, i, "question")
    asked = answer.get("prompt", answer.get("question"))
    other_id = "question_id" in answer and str(answer["question_id"]) not in (str(i), str(item.get("image_id")))
    if other_id or (isinstance(asked, str) and question not in asked):
        problem = f"is not about question {i} ({question!r:.60})"
        raise fault(answers, i, f"{problem}: put the answers into the order of the questions")
    contents = item.get("image_content")
    if not isinstance(contents, list):
        raise fault(items, i, "no list 'image_content': is this mmhal-bench_answer_template.json?")
    text = text_of(answers, i, "answer", "text", "model_answer").replace("Assistant:", "").strip()
    return ", ".join(map(str, contents)), question, text_of(items, i, "gt_answer"), text


# ---- judges ---------------------------------------------------------------------------------------------------------


@dataclass
class Endpoint:
    """An OpenAI-compatible server.

    The key comes from the environment variable `key_variable`. It is sent in the header and removed from replies that
    repeat it.
    """

    url: str
    model: str
    key_variable: str = KEY_VARIABLE
    parameters: dict = field(default_factory=lambda: {"temperature": 0.0, "top_p": 1, "max_tokens": 512})
    tries: int = 6
    wait: float = 2.0  # seconds before the second try; doubles with each try

    def __post_init__(self):
        address = urlsplit(self.url)
        if address.scheme not in ("http", "https") or not address.hostname or address.username or address.query:
            remedy = "keys come from the environment"
            raise BadInput(f"--url must be http(s)://host/path without user, password or query; {remedy}")

    @property
    def about(self):
        host = urlsplit(self.url).hostname
        return {"kind": "endpoint", "model": self.model, "host": host, "parameters": self.parameters}

    def ask(self, prompt):
        """The completion. Raises BadInput if the server refuses or does not answer."""
        key = os.environ.get(self.key_variable, "")
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}], **self.parameters}
        for attempt in range(self.tries):
            if attempt:
                time.sleep(self.wait * 2 ** (attempt - 1))
            status, said = self._post(body, key)
            if status == 200:
                return self._completion(said)
            if status not in RETRIED:
                break
        hint = "" if key else f" (no key in the variable {self.key_variable})"
        raise BadInput(f"the judge at {urlsplit(self.url).hostname} answered: {' '.join(said.split())[:200]}{hint}")

    def _post(self, body, key):
        """(status, text without the key); status 0 if the server cannot be reached."""
        import requests

        headers = {"Authorization": f"Bearer {key}"} if key else {}
        url = self.url.rstrip("/") + "/chat/completions"
        try:
            reply = requests.post(url, json=body, headers=headers, timeout=120, allow_redirects=False)
        except (requests.RequestException, UnicodeError) as error:
            return 0, f"not reached ({type(error).__name__})"
        said = reply.text if reply.status_code == 200 else f"status {reply.status_code} {reply.text}"
        if reply.status_code in (401, 403):  # these replies repeat a part of the key
            said = f"status {reply.status_code}: the key was refused"
        return reply.status_code, said.replace(key, "[key]") if key else said

    def _completion(self, text):
        with contextlib.suppress(ValueError):
            reply = json.loads(text)
            if (said := content(reply)) is not None:
                return completion(reply.get("model", self.model), said)
        raise BadInput(f"the judge {self.model} sent no text at choices[0].message.content: is it a chat endpoint?")


@dataclass
class LocalChat:
    """Any chat model that transformers loads. It decodes greedily, so its reviews are repeatable."""

    model: str
    device: str = "cpu"
    parameters: dict = field(default_factory=lambda: {"do_sample": False, "max_new_tokens": 512})

    @property
    def about(self):
        return {"kind": "local", "model": self.model, "parameters": self.parameters}

    def ask(self, prompt):
        """The completion. Raises BadInput if the model cannot be loaded or has no chat template."""
        model, tokenizer = self._loaded
        chat = [{"role": "user", "content": prompt}]
        inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        pad = tokenizer.pad_token_id or tokenizer.eos_token_id
        written = model.generate(**inputs.to(model.device), **self.parameters, pad_token_id=pad)
        reply = written[0, inputs["input_ids"].shape[1] :]
        return completion(self.model, tokenizer.decode(reply, skip_special_tokens=True).strip())

    @functools.cached_property
    def _loaded(self):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.model)
            model = AutoModelForCausalLM.from_pretrained(self.model, dtype="auto").to(self.device).eval()
        except (OSError, ValueError) as error:
            problem = f"cannot load judge {self.model} ({(str(error).splitlines() or ['unreadable'])[0]})"
            raise BadInput(f"{problem}: name a chat model of the hub or a folder") from None
        if not tokenizer.chat_template:
            raise BadInput(f"{self.model} has no chat template: choose a chat model as judge")
        return model, tokenizer


def completion(model, text):
    """A chat completion in the API's form."""
    return {"model": model, "choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}


# ---- reviewing ------------------------------------------------------------------------------------------------------


def review(prompts, judge, template_hash, path):
    """Ask the judge every prompt and write the review file. Resumes an interrupted run."""
    path = Path(path)
    about = judge.about | {"template_sha256": template_hash}
    partial = path.with_name(path.name + ".partial")
    make_folder(path.parent)
    known = _replies_so_far(partial, about)
    with open(partial, "a", encoding="utf-8") as log:
        log.write("\n")  # ends a line that was cut short
        for prompt in prompts:
            digest = sha256(prompt)
            if digest not in known:
                known[digest] = judge.ask(prompt) | {"judge": about, "prompt_sha256": digest}
                log.write(json.dumps(known[digest]) + "\n")
                log.flush()
    write_reviews([known[sha256(prompt)] for prompt in prompts], path)
    partial.unlink()


def _replies_so_far(partial, about):
    """Replies of this judge from an interrupted run, by prompt hash."""
    replies = {}
    for line in read_text(partial).split("\n") if partial.exists() else []:
        with contextlib.suppress(ValueError):  # an empty line, or one that was cut short
            reply = json.loads(line)
            if reply.get("judge") == about:
                replies[reply["prompt_sha256"]] = reply
    return replies


def write_reviews(reviews, path):
    """The review file. JSON escapes protect half characters (lone surrogates) in replies."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(reviews, indent=1) + "\n", encoding="utf-8")


def write_prompts(prompts, path):
    """Prompts for a judge elsewhere: JSON lines {item, prompt_sha256, prompt}."""
    lines = [{"item": i, "prompt_sha256": sha256(prompt), "prompt": prompt} for i, prompt in enumerate(prompts)]
    with atomic(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def read_replies(replies, prompts, name, template_hash):
    """Reviews from a judge elsewhere, as chat completions.

    replies  records {item, text}, one for each prompt, in any order; prompt_sha256, if given, must be the prompt's
    name     the judge's name for the record
    Raises BadInput for missing, repeated and unknown items, and for replies to other prompts.
    """
    about, found = {"kind": "exchange", "model": name, "parameters": None, "template_sha256": template_hash}, {}
    for i, reply in enumerate(replies):
        item = integer_of(replies, i, "item")
        if not 0 <= item < len(prompts) or item in found:
            problem = "there twice" if item in found else "unknown"
            raise fault(replies, i, f"item {item} is {problem}: give one review for each item")
        digest = sha256(prompts[item])
        if reply.get("prompt_sha256", digest) != digest:
            raise fault(replies, i, f"reviews another prompt than item {item} has now: write the prompts again")
        text = text_of(replies, i, "text")
        found[item] = completion(name, text) | {"judge": about, "prompt_sha256": digest}
    if missing := without(range(len(prompts)), found):
        raise BadInput(f"{len(missing)} items have no review (item {some(missing)}): have them judged too")
    return [found[item] for item in range(len(prompts))]
