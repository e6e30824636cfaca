"""Reviews of MMHal-Bench's answers, by a chat model or by people who get the prompts in a file.

`napo score mmhal` reads the review file: 96 chat completions as the official script saves them, each with
{judge: kind, model, parameters, template hash} and the hash of its prompt. The prompt is the benchmark's own, one user
message without the image; `make data` fetches it. A judge has `ask(prompt)`, which returns a chat completion, and
`about`, which describes it for the record.
"""

import ast
import base64
import contextlib
import functools
import hashlib
import html
import ipaddress
import json
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import requests

from napo.official.mmhal import ITEMS, content
from napo.official.records import fault, integer_of, read_text, some, text_of, without
from napo.workshop import pretrained
from napo.workshop.files import BadInput, atomic, first_line, make_folder, shown
from napo.workshop.texts import printable

# SHA-256 of LLaVA-RLHF's template; RLAIF-V's copy is the same.
OFFICIAL_TEMPLATE = "2c73d8c50f1740d000fae62cfeed103c2f7a5bcfa904b27e6e09900e7ce600cc"
KEY_VARIABLE = "OPENAI_API_KEY"
RETRIED = {0, 408, 409, 429, 500, 502, 503, 504}  # 0: not reached
TIMEOUT = (20, 120)  # seconds: to connect, between bytes
LONGEST = 1 << 22  # bytes of a reply
SECRET = 8  # letters; a shorter key ("none", "EMPTY") is no secret, and removing it would change the reviews
PASSING = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)


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

    The key comes from the environment variable `key_variable` and goes into the header, never a ~/.netrc. Proxies and
    certificates of the environment count for https only. Replies that repeat the key are recorded without it.
    allow_http  send texts and key in clear to other machines too, not only to this one
    """

    url: str
    model: str
    key_variable: str = KEY_VARIABLE
    parameters: dict = field(default_factory=lambda: {"temperature": 0.0, "top_p": 1, "max_tokens": 512})
    tries: int = 6
    wait: float = 2.0  # seconds before the second try; doubles with each try
    allow_http: bool = False

    def __post_init__(self):
        remedy = "must be http(s)://host/path without user, password or query; keys come from the environment"
        try:
            address = urlsplit(self.url)
            good = (address.hostname or "").encode("idna") and address.port != 0
            requests.Request("POST", self.url).prepare()
        except ValueError:  # requests' InvalidURL is one
            good = False
        if not good or address.scheme not in ("http", "https") or "@" in self.url or {"?", "#"} & {*self.url}:
            raise BadInput(f"--url {remedy}")
        if address.scheme == "http" and not (self.allow_http or _is_loopback(address.hostname)):
            raise BadInput("--url is plain http, which sends the key in clear: use https, or --allow-http if you must")
        self.host, self.encrypted, self.key = address.hostname, address.scheme == "https", self._key()

    def _key(self):
        key = os.environ.get(self.key_variable, "")
        if key and not re.fullmatch(r"[!-~]+", key):
            raise BadInput(f"the key in {self.key_variable} has a blank, a line break or a letter that no header holds")
        return key

    @property
    def about(self):
        return {"kind": "endpoint", "model": self.model, "host": self.host, "parameters": self.parameters}

    def ask(self, prompt):
        """The completion. Raises BadInput if the server refuses or does not answer."""
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}], **self.parameters}
        for attempt in range(self.tries):
            if attempt:
                time.sleep(self.wait * 2 ** (attempt - 1))
            status, said = self._post(body)
            if status == 200:
                return self._completion(said)
            if status not in RETRIED:
                break
        hint = "" if self.key else f" (no key in the variable {self.key_variable})"
        raise BadInput(f"the judge at {self.host} answered: {printable(said)[:160]}{hint}")

    def _post(self, body):
        """(status, text); status 0 if the server cannot be reached. Only a text of status 200 may hold the key."""
        bearer = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        more = {"headers": bearer, "timeout": TIMEOUT, "allow_redirects": False, "stream": True}
        try:
            with requests.Session() as session:
                session.trust_env = self.encrypted
                session.auth = lambda request: request  # else requests takes the login of ~/.netrc
                with session.post(f"{self.url.rstrip('/')}/chat/completions", json=body, **more) as reply:
                    text = b""
                    for block in reply.iter_content(1 << 16):
                        text += block
                        if len(text) > LONGEST:
                            return -1, f"more than {LONGEST:,} bytes"
        except (requests.RequestException, ValueError) as error:
            return 0 if isinstance(error, PASSING) else -1, f"not reached ({type(error).__name__})"
        text = text.decode("utf-8", "replace")
        if reply.status_code == 200:
            return 200, text
        if reply.status_code in (401, 403):  # these replies repeat a part of the key
            text = "the key was refused"
        return reply.status_code, f"status {reply.status_code} {without_key(text, self.key)}"

    def _completion(self, text):
        reply = None
        with contextlib.suppress(ValueError, RecursionError):
            reply = json.loads(text)
        if (said := content(reply)) is None:
            raise BadInput(f"the judge {self.model} sent no text at choices[0].message.content: is it a chat endpoint?")
        model = str(reply.get("model", self.model))[:200]
        return completion(without_key(model, self.key), without_key(said, self.key))


def _is_loopback(host):
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def without_key(text, key):
    """`text` with [key] wherever the key stands: plain or escaped letter by letter (JSON, URL, HTML), or in base64."""
    return _spellings(key).sub("[key]", text) if len(key) >= SECRET else text


@functools.cache
def _spellings(key):
    letters = []
    for c in key:
        code, plain = ord(c), "|".join({re.escape(c), re.escape(html.escape(c))})
        letters.append(
            rf"(?:\\{{0,4}}(?:{plain}|u00{code:02x}|x{code:02x})|%(?:25)?{code:02x}|&#(?:{code}|x{code:x});)"
        )
    whole = ["".join(letters), key.encode().hex()]
    for start in range(3):  # within other text a key may begin at each of three places of a base64 group
        code = base64.b64encode(b"-" * start + key.encode()).decode()
        known = code[-(-start * 8 // 6) : (start + len(key)) * 8 // 6]  # letters that depend on the key alone
        whole.append(re.escape(known).replace(r"\+", "(?:[+-]|%2b)").replace("/", r"(?:\\?[/_]|%2f)"))
    return re.compile("|".join(whole), re.IGNORECASE)


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
        """The completion. Raises BadInput if the model cannot be loaded or has no chat template that works."""
        model, tokenizer = self._loaded
        chat = [{"role": "user", "content": prompt}]
        try:
            settings = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
            inputs = tokenizer.apply_chat_template(chat, **settings)
        except Exception as error:  # a template is a program of the model's makers
            reason = first_line(error)[:120]
            raise BadInput(f"{self.model}: its chat template fails ({reason}): choose another judge") from error
        pad = tokenizer.pad_token_id or tokenizer.eos_token_id
        written = model.generate(**inputs.to(model.device), **self.parameters, pad_token_id=pad)
        reply = written[0, inputs["input_ids"].shape[1] :]
        return completion(self.model, tokenizer.decode(reply, skip_special_tokens=True).strip())

    @functools.cached_property
    def _loaded(self):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        with pretrained.one_line(self.model, "name a chat model of the hub or a folder"):
            tokenizer = AutoTokenizer.from_pretrained(self.model, trust_remote_code=False)
            model = pretrained.load(AutoModelForCausalLM, self.model, dtype="auto").to(self.device)
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
    try:
        log = open(partial, "a", encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot write {shown(partial)}: {error.strerror}: give another file by --out") from None
    with log:
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
        with contextlib.suppress(ValueError, RecursionError, LookupError, TypeError):  # empty, cut short or not ours
            reply = json.loads(line)
            if reply["judge"] == about and content(reply) is not None:
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
