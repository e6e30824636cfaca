"""Chat models that judge: ask(prompt) returns a chat completion; `about` is what the record says of the judge."""

import json
import os
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from napo.artifacts import BadInput

KEY_VARIABLE = "OPENAI_API_KEY"
RETRIED = {0, 408, 409, 429, 500, 502, 503, 504}  # 0: not reached


@dataclass
class Endpoint:
    """An OpenAI-compatible server. The key is read from the environment variable `key_variable` when asking, sent in
    the header, and blotted out wherever a reply repeats it."""

    url: str
    model: str
    key_variable: str = KEY_VARIABLE
    parameters: dict = field(default_factory=lambda: {"temperature": 0.0, "top_p": 1, "max_tokens": 512})
    tries: int = 6
    wait: float = 2.0  # seconds before the second try, doubled each time

    def __post_init__(self):
        address = urlsplit(self.url)
        if address.scheme not in ("http", "https") or not address.hostname or address.username or address.query:
            raise BadInput(
                "--url must be http(s)://host/path without user, password or query; keys come from the environment"
            )

    @property
    def about(self):
        return {
            "kind": "endpoint",
            "model": self.model,
            "host": urlsplit(self.url).hostname,
            "parameters": self.parameters,
        }

    def ask(self, prompt):
        """The completion. Raises BadInput if the server refuses or stays silent."""
        key = os.environ.get(self.key_variable, "")
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}], **self.parameters}
        said = ""
        for attempt in range(self.tries):
            if attempt:
                time.sleep(self.wait * 2 ** (attempt - 1))
            status, text = self._post(body, key)
            said = _blotted(text, key)
            if status == 200:
                return _completion(said, self.model)
            if status not in RETRIED:
                break
        hint = "" if key else f" (no key in the variable {self.key_variable})"
        raise BadInput(f"the judge at {urlsplit(self.url).hostname} answered: {' '.join(said.split())[:200]}{hint}")

    def _post(self, body, key):
        """(status, text); status 0 if the server was not reached."""
        import requests

        headers = {"Authorization": f"Bearer {key}"} if key else {}
        url = self.url.rstrip("/") + "/chat/completions"
        try:
            reply = requests.post(url, json=body, headers=headers, timeout=120, allow_redirects=False)
        except (requests.RequestException, UnicodeError) as error:
            return 0, f"not reached ({type(error).__name__})"
        if reply.status_code in (401, 403):  # such replies repeat a part of the key
            return reply.status_code, f"status {reply.status_code}: the key was refused"
        return reply.status_code, reply.text if reply.status_code == 200 else f"status {reply.status_code} {reply.text}"


def _blotted(text, key):
    return text.replace(key, "[key]") if key else text


def _completion(text, model):
    try:
        reply = json.loads(text)
        message = reply["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        message = None
    if not isinstance(message, str):
        raise BadInput(f"the judge {model} sent no text at choices[0].message.content: is it a chat endpoint?")
    return as_completion(reply.get("model", model), message)


def as_completion(model, text):
    return {"model": model, "choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}


@dataclass
class LocalChat:
    """Any chat model that transformers loads; greedy, so repeatable."""

    model: str
    device: str = "cpu"
    parameters: dict = field(default_factory=lambda: {"do_sample": False, "max_new_tokens": 512})
    loaded: tuple | None = None  # (model, tokenizer), else they are loaded by name

    @property
    def about(self):
        return {"kind": "local", "model": self.model, "parameters": self.parameters}

    def ask(self, prompt):
        """The completion. Raises BadInput if the model cannot be loaded or has no chat template."""
        model, tokenizer = self.loaded = self.loaded or self._load()
        chat = [{"role": "user", "content": prompt}]
        inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        inputs = inputs.to(model.device)
        written = model.generate(
            **inputs, **self.parameters, pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id
        )
        reply = written[0, inputs["input_ids"].shape[1] :]
        return as_completion(self.model, tokenizer.decode(reply, skip_special_tokens=True).strip())

    def _load(self):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.model)
            model = AutoModelForCausalLM.from_pretrained(self.model, dtype="auto").to(self.device).eval()
        except (OSError, ValueError) as error:
            reason = (str(error).splitlines() or ["unreadable"])[0]
            raise BadInput(
                f"cannot load judge {self.model} ({reason}): name a chat model of the hub or a folder"
            ) from None
        if not tokenizer.chat_template:
            raise BadInput(f"{self.model} has no chat template: choose a chat model as judge")
        return model, tokenizer
