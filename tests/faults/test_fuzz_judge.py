"""Damaged replies of a judge on the loopback address: recorded as they were sent, or refused in one line.

Whatever the judge sends, the key is in no file and in no message.
"""

import json
import random
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from mutations import Tries, damaged_bytes, damaged_value

from napo.commands.judge import main
from napo.official import judge

KEY = 'sk-"secret"/äß+0123456789'.replace("ä", "a").replace("ß", "s")
GOOD = {"model": "gpt-x", "choices": [{"message": {"role": "assistant", "content": "Fine. Rating: 4"}}], "usage": {}}
SPELLINGS = [
    KEY,
    json.dumps(KEY)[1:-1],
    KEY.replace("/", "\\/"),
    urllib.parse.quote(KEY, safe=""),
    "".join(f"\\u{ord(letter):04x}" for letter in KEY),
    f"Bearer {KEY}",
    " ".join(KEY),
]


@pytest.fixture(scope="module")
def server():
    """Answers every question with `server.reply`: (status, headers, bytes)."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            status, headers, body = self.server.reply
            self.send_response_only(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = True

        def log_message(self, *arguments):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture
def call(server, tmp_path, monkeypatch):
    """The command line that has 96 answers judged by the server; one prompt for all, so that one reply decides."""
    items = [{"question": "What?", "gt_answer": "It.", "image_content": ["Dog"], "image_id": "x"}] * 96
    answers = [{"text": "I see it."}] * 96
    for name, value in (("items", items), ("answers", answers)):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    (tmp_path / "template.txt").write_text("Rate it.\n{}|{}|{}|{}\n")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(judge.time, "sleep", lambda seconds: None)
    url = f"http://127.0.0.1:{server.server_port}/v1"
    files = {name: tmp_path / name for name in ("items.json", "answers.json", "template.txt", "out.json")}
    given = [part for name, path in files.items() for part in (f"--{name.partition('.')[0]}", str(path))]
    return ["endpoint", "--url", url, "--model", "gpt-x", *given]


def reply(rng):
    """(status, headers, body), damaged in one of many ways."""
    value, headers = GOOD, {}
    status = rng.choice((200, 200, 200, 200, 400, 401, 403, 404, 418, 429, 500, 503, 302, 204))
    for _ in range(rng.choice((0, 1, 1, 2))):
        value = damaged_value(value, rng)
    body = json.dumps(value).encode()
    match rng.randrange(8):
        case 0:
            body = damaged_bytes(body, rng)
        case 1:
            body = rng.choice(
                (b"[" * 50000, b'{"a":' * 30000, b"", b"null", b"1e999", b"\xff\xfe\x00", b"<html>no</html>")
            )
        case 2 | 3:
            said = json.dumps(GOOD | {"choices": [{"message": {"content": "KEY rating: 2"}}]})
            body = said.replace("KEY", rng.choice(SPELLINGS)).encode()
        case 4:
            wrong = [{"Content-Encoding": "gzip"}, {"Content-Length": "99999"}, {"Content-Length": "3"}]
            wrong += [
                {"Content-Type": "text/html; charset=utf-7"},
                {"Location": "http://127.0.0.1:9/"},
                {"X": "y" * 70000},
            ]
            wrong += [{"Content-Type": "application/json; charset=nonsense"}, {"Transfer-Encoding": "chunked"}]
            headers = rng.choice(wrong)
    return status, headers, body


def bare(text):
    """A text without what may stand between a key's letters, with its escapes read."""
    with_escapes = text.encode("ascii", "backslashreplace").decode("unicode_escape", "replace")
    return [seen.replace("\\", "") for seen in (text, with_escapes, urllib.parse.unquote(text))]


def attack(seeds, call, server, tmp_path, capsys, count):
    tries, out = Tries(tmp_path), tmp_path / "out.json"
    key = KEY.replace("\\", "")
    for seed in seeds:
        server.reply = status, headers, body = reply(random.Random(f"judge {seed}"))
        said = tries.command(f"{seed}", lambda: main(call), capsys)
        written = "".join(path.read_text() for path in tmp_path.glob("out*"))
        tries.note(not any(key in seen for seen in bare(written + (said or ""))), f"{seed}: the key is in a file")
        if said is not None:
            tries.note(status == 200, f"{seed}: a reply of status {status} was recorded")
            texts = {review["choices"][0]["message"]["content"] for review in json.loads(out.read_text())}
            sent = json.loads(body)["choices"][0]["message"]["content"] if not headers else None
            known = sent is None or sent in texts or any(key in seen for seen in bare(sent))
            tries.note(known, f"{seed}: {texts} for {sent!r:.100}")
        for path in tmp_path.glob("out*"):
            path.unlink()
    tries.done("replies of a judge", count)


def test_some_damaged_replies(call, server, tmp_path, capsys, count):
    attack(range(60), call, server, tmp_path, capsys, count)


def test_many_damaged_replies(everything, call, server, tmp_path, capsys, count):
    attack(range(60, 300), call, server, tmp_path, capsys, count)


def test_an_undamaged_reply_is_recorded(call, server, tmp_path):
    server.reply = 200, {}, json.dumps(GOOD).encode()
    assert main(call) == 0 and len(json.loads((tmp_path / "out.json").read_text())) == 96
