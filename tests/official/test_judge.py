"""Judges of MMHal-Bench, against a server on the loopback address and a tiny model."""

import base64
import html
import json
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import byte_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from napo.commands.judge import main
from napo.official import judge, mmhal
from napo.official.judge import Endpoint, LocalChat
from napo.workshop.files import BadInput

TEMPLATE = "Rate it.\n{}|{}|{}|{}\n"
KEY = "sk-very-secret-0123456789"


@pytest.fixture
def items():
    return [
        {"question": f"What is {i}?", "gt_answer": f"Thing {i}.", "image_content": ["Dog", "Cat"], "image_id": f"x{i}"}
        for i in range(96)
    ]


@pytest.fixture
def answers():
    return [{"question_id": i, "prompt": f"What is {i}?", "text": f"Assistant: I see {i}."} for i in range(96)]


@pytest.fixture
def prompts(items, answers):
    return judge.make_prompts(items, answers, TEMPLATE)


@pytest.fixture
def server():
    """A chat endpoint that answers by `server.reply(body) -> (status, object)` and keeps what it was sent."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.server.seen.append((self.path, self.headers.get("Authorization"), body))
            status, value = self.server.reply(body)
            text = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *arguments):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.seen, running.url = [], f"http://127.0.0.1:{running.server_port}/v1"
    running.reply = lambda body: (200, completion("Rating: 4"))
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


def completion(text, model="gpt-x-0314"):
    return {"model": model, "choices": [{"message": {"role": "assistant", "content": text}}], "usage": {}}


def files_below(folder):
    return "".join(path.read_text() for path in folder.rglob("*") if path.is_file())


class TestPrompts:
    def test_parts_stand_in_their_order(self, prompts):
        assert prompts[3] == "Rate it.\nDog, Cat|What is 3?|Thing 3.|I see 3.\n"

    def test_braces_of_an_answer_stay(self, items, answers):
        answers[0]["text"] = "{} {0} {x}"
        assert judge.make_prompts(items, answers, TEMPLATE)[0].endswith("|{} {0} {x}\n")

    def test_answer_goes_before_text(self, items, answers):
        answers[0]["answer"] = "this"
        assert "|this\n" in judge.make_prompts(items, answers, TEMPLATE)[0]

    def test_official_answers(self, oracle, data):
        from napo.official.records import read_predictions

        items = read_predictions(data / "mmhal" / "mmhal-bench_answer_template.json")
        answers = read_predictions(oracle("mmhal")[0] / "answers_text.jsonl")
        found = judge.make_prompts(items, answers, TEMPLATE)
        assert len(found) == 96 and "Assistant:" not in "".join(found)
        assert items[1]["question"] in found[1] and f"|{items[1]['gt_answer']}|" in found[1]

    @pytest.mark.parametrize("change", [{"question_id": 4}, {"prompt": "What is 4?"}])
    def test_shuffled(self, items, answers, change):
        answers[3] |= change
        with pytest.raises(BadInput, match="record 3: is not about question 3"):
            judge.make_prompts(items, answers, TEMPLATE)

    def test_missing_answers(self, items, answers):
        with pytest.raises(BadInput, match="95 answers for 96 questions"):
            judge.make_prompts(items, answers[:95], TEMPLATE)

    def test_template_of_a_script_that_is_not_run(self, write):
        script = write("eval.py", f"import nothing_such\ntemplate = '''{TEMPLATE}'''\nraise SystemExit\n")
        assert judge.read_template(script) == judge.read_template(write("t.txt", TEMPLATE)) == TEMPLATE
        for text in ("template = 1 + x", "prompt = ''", "template = '{}'", "template = ("):
            with pytest.raises(BadInput, match="eval.py"):
                judge.read_template(write("eval.py", text))


class TestEndpoint:
    def run(self, server, prompts, path, monkeypatch=None, **options):
        judge.review(prompts, Endpoint(server.url, "gpt-x", wait=0, **options), judge.sha256(TEMPLATE), path)
        return mmhal.score(mmhal.read_reviews(path))

    def test_reviews_and_what_is_stored_with_them(self, server, prompts, tmp_path):
        result = self.run(server, prompts, tmp_path / "r.json")
        assert result.summary["score"] == 4 and result.notices == []
        about = result.details["judge"]["recorded"][0]
        assert about["model"] == "gpt-x" and about["template_sha256"] == judge.sha256(TEMPLATE)
        assert about["parameters"] == {"temperature": 0.0, "top_p": 1, "max_tokens": 512}
        assert result.details["judge"]["model_in_replies"] == ["gpt-x-0314"]
        path, authorization, body = server.seen[0]
        assert path == "/v1/chat/completions" and authorization is None
        assert body["messages"] == [{"role": "user", "content": prompts[0]}] and body["temperature"] == 0
        reviews = mmhal.read_reviews(tmp_path / "r.json")
        assert [review["prompt_sha256"] for review in reviews] == [judge.sha256(prompt) for prompt in prompts]

    def test_key_goes_to_the_server_and_nowhere_else(self, server, prompts, tmp_path, monkeypatch, capsys):
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        server.reply = lambda body: (200, completion(f"Rating: 4 {KEY}", model=KEY))
        result = self.run(server, prompts, tmp_path / "r.json")
        assert server.seen[0][1] == f"Bearer {KEY}"
        said = capsys.readouterr()
        assert KEY not in files_below(tmp_path) + str(result) + said.out + said.err
        assert result.summary["score"] == 4

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 503])
    def test_refusals_do_not_show_the_key(self, server, prompts, tmp_path, monkeypatch, status):
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        server.reply = lambda body: (
            status,
            {"error": f"wrong key {KEY[:9]}...{KEY[-4:]} {KEY if status < 401 else ''}"},
        )
        with pytest.raises(BadInput) as caught:
            self.run(server, prompts, tmp_path / "r.json", tries=2)
        assert f"status {status}" in str(caught.value) and KEY not in str(caught.value) + files_below(tmp_path)
        assert "sk-very" not in str(caught.value) or status not in (401, 403)
        assert len(server.seen) == (2 if status == 503 else 1)
        assert not (tmp_path / "r.json").exists()

    @pytest.mark.parametrize("key", [KEY + "\n", KEY + "\u20ac", KEY + "\u00e9", KEY + " x", "\x00" + KEY])
    def test_a_key_that_no_header_can_hold_is_refused_at_once(self, server, monkeypatch, key):
        monkeypatch.setattr(judge.os, "environ", {"OPENAI_API_KEY": key})
        with pytest.raises(BadInput, match="the key in OPENAI_API_KEY has") as caught:
            Endpoint(server.url, "m")
        assert KEY not in str(caught.value) and "\n" not in str(caught.value) and not server.seen

    def test_a_login_of_netrc_is_not_sent(self, server, prompts, tmp_path, monkeypatch):
        (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password other\ndefault login me password other\n")
        monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
        for key in ("", KEY):
            monkeypatch.setenv("OPENAI_API_KEY", key)
            for encrypted in (False, True):  # True: as for https, where requests looks into the environment
                judge_there = Endpoint(server.url, "m")
                judge_there.encrypted = encrypted
                judge_there.ask(prompts[0])
        assert [seen[1] for seen in server.seen] == [None, None, f"Bearer {KEY}", f"Bearer {KEY}"]

    def test_no_proxy_of_the_environment_sees_plain_http(self, server, prompts, monkeypatch):
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        assert Endpoint(server.url, "m", tries=1).ask(prompts[0])

    def test_the_key_is_removed_in_every_spelling(self, server, prompts, monkeypatch):
        key = "sk-a/b+c=d%e&f<Zz0123>~x?"
        monkeypatch.setenv("OPENAI_API_KEY", key)
        coded = base64.b64encode
        spelled = [
            key,
            key.upper(),
            json.dumps(key)[1:-1].replace("/", "\\/"),
            "".join(f"\\u{ord(c):04x}" for c in key),
            "".join(f"\\\\u{ord(c):04X}" for c in key),
            quote(key),
            quote(quote(key, safe="")),
            "".join(f"%{ord(c):02x}" for c in key),
            html.escape(key),
            "".join(f"&#{ord(c)};" for c in key),
            key.encode().hex(),
            *(coded(text.encode()).decode() for text in (key, f"me:{key}", f"{key}!", f"x{key}yz")),
            base64.urlsafe_b64encode(key.encode()).decode(),
            quote(coded(key.encode()).decode(), safe=""),
        ]
        for one in spelled:
            server.reply = lambda body, one=one: (200, completion(f"Rating: 4 ({one})", model=f"m {one}"))
            said = json.dumps(Endpoint(server.url, "m").ask(prompts[0]))
            assert "[key]" in said and said.count("[key]") == 2, one
            core = coded(key.encode()).decode()[4:-6]
            assert not re.search("|".join(map(re.escape, (key, key.encode().hex(), core))), said, re.IGNORECASE), one
            server.reply = lambda body, one=one: (400, {"error": one})
            with pytest.raises(BadInput, match="status 400") as caught:
                Endpoint(server.url, "m").ask(prompts[0])
            assert "[key]" in str(caught.value), one

    def test_a_dummy_key_changes_no_review(self, server, prompts, monkeypatch):
        monkeypatch.setenv("OPENAI_API_KEY", "4")
        assert "Rating: 4" in json.dumps(Endpoint(server.url, "m").ask(prompts[0]))

    def test_goes_on_where_it_stopped(self, server, prompts, tmp_path):
        server.reply = lambda body: (200, completion("Rating: 4")) if len(server.seen) <= 10 else (400, {})
        with pytest.raises(BadInput, match="status 400.*no key in the variable OPENAI_API_KEY"):
            self.run(server, prompts, tmp_path / "r.json")
        with open(tmp_path / "r.json.partial", "a") as partial:
            partial.write('{"judge": ')  # cut short
        server.reply = lambda body: (200, completion("Rating: 2"))
        result = self.run(server, prompts, tmp_path / "r.json")
        assert result.summary["per_item"] == [4] * 10 + [2] * 86
        assert len(server.seen) == 97 and [path.name for path in tmp_path.iterdir()] == ["r.json"]

    def test_another_judge_starts_anew(self, server, prompts, tmp_path):
        server.reply = lambda body: (200, completion("Rating: 4")) if len(server.seen) <= 10 else (400, {})
        with pytest.raises(BadInput):
            self.run(server, prompts, tmp_path / "r.json")
        server.reply = lambda body: (200, completion("Rating: 2"))
        result = self.run(server, prompts, tmp_path / "r.json", parameters={"temperature": 1.0})
        assert result.summary["score"] == 2

    def test_busy_server_is_asked_again(self, server, prompts, tmp_path):
        server.reply = lambda body: (429, {}) if len(server.seen) % 3 else (200, completion("Rating: 5"))
        assert self.run(server, prompts, tmp_path / "r.json").summary["score"] == 5

    @pytest.mark.parametrize("value", [{}, {"choices": []}, completion(None), [], "x", b"[" * 100_000, b"{", b"\xff"])
    def test_replies_without_text(self, server, prompts, tmp_path, value):
        server.reply = lambda body: (200, value)
        with pytest.raises(BadInput, match="no text at choices"):
            self.run(server, prompts, tmp_path / "r.json")

    def test_nobody_there(self, prompts):
        with pytest.raises(BadInput, match="not reached"):
            Endpoint("http://127.0.0.1:9", "m", tries=2, wait=0).ask(prompts[0])

    def test_endless_replies_are_refused(self, server, prompts, monkeypatch):
        monkeypatch.setattr(judge, "LONGEST", 1000)
        server.reply = lambda body: (200, completion("x" * 2000))
        with pytest.raises(BadInput, match="more than 1,000 bytes"):
            Endpoint(server.url, "m").ask(prompts[0])
        assert len(server.seen) == 1

    def test_a_refusal_steers_no_terminal(self, server, prompts):
        server.reply = lambda body: (400, b"\x1b[2J\r\nbad")
        with pytest.raises(BadInput) as caught:
            Endpoint(server.url, "m").ask(prompts[0])
        assert "\x1b" not in str(caught.value) and "\n" not in str(caught.value)

    @pytest.mark.parametrize("line", ["[]", "1", '{"judge": 1}', "[" * 100_000])
    def test_damaged_lines_of_an_interrupted_run_are_asked_again(self, server, prompts, tmp_path, line):
        (tmp_path / "r.json.partial").write_text(line + "\n")
        assert self.run(server, prompts, tmp_path / "r.json").summary["score"] == 4

    @pytest.mark.parametrize("url", ["http://example.org/v1", "http://127.0.0.1.example.org", "http://10.0.0.1:80/v1"])
    def test_plain_http_goes_to_this_machine_only_unless_asked_for(self, url):
        with pytest.raises(BadInput, match="plain http.* use https, or --allow-http"):
            Endpoint(url, "m")
        assert Endpoint(url, "m", allow_http=True).host in url
        for own in ("http://localhost:1/v1", "http://127.0.0.2/v1", "http://[::1]:8000/v1", "https://example.org/v1"):
            Endpoint(own, "m")

    @pytest.mark.parametrize(
        "url",
        [
            *("127.0.0.1", "ftp://x/v1", "http://user:key@x/v1", "http://x/v1?key=1", "https://x/v1#key", "https://@x"),
            *("http://[::1", "https://", "https://x:99999/v1", "https://x:y/v1", "https://[/v1", "https://.x./", ""),
            *("https://\ud800/v1", f"https://{'a' * 70}.org/v1", "https://a..b/v1"),
        ],
    )
    def test_addresses_hold_no_secrets_and_are_ones(self, url):
        with pytest.raises(BadInput, match="keys come from the environment") as caught:
            Endpoint(url, "m")
        assert "user" not in str(caught.value).replace("user, password", "")

    def test_redirections_are_not_followed(self, server, prompts, monkeypatch):
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        server.reply = lambda body: (307, {"to": "elsewhere"})
        with pytest.raises(BadInput, match="status 307"):
            Endpoint(server.url, "m").ask(prompts[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random chat model on disk."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}U: {{ m['content'] }}\n{% endfor %}A:"
    folder = tmp_path_factory.mktemp("judge")
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    return folder


class TestLocalChat:
    def test_reviews(self, folder, prompts, tmp_path):
        local = LocalChat(str(folder), parameters={"do_sample": False, "max_new_tokens": 3})
        judge.review(prompts, local, judge.sha256(TEMPLATE), tmp_path / "r.json")
        result = mmhal.score(mmhal.read_reviews(tmp_path / "r.json"))
        assert len(result.details["unparseable"]) == 96  # a random model rates nothing
        assert result.details["judge"]["recorded"][0]["parameters"]["max_new_tokens"] == 3
        replies = [review["choices"][0]["message"]["content"] for review in mmhal.read_reviews(tmp_path / "r.json")]
        assert replies[0] == local.ask(prompts[0])["choices"][0]["message"]["content"] != ""
        assert not any("Rate it" in reply for reply in replies)  # the prompt is no part of the reply

    def test_no_such_model_or_device(self, folder, prompts, tmp_path):
        for local in (LocalChat(str(tmp_path / "none")), LocalChat(str(folder), device="junk")):
            with pytest.raises(BadInput, match="cannot load the model"):
                local.ask(prompts[0])

    def changed(self, folder, place, **config):
        shutil.copytree(folder, place)
        known = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(json.dumps(known | config))
        return LocalChat(str(place))

    def test_its_files_run_nothing_and_open_no_pickle(self, folder, prompts, tmp_path, monkeypatch):
        monkeypatch.setattr("builtins.input", lambda *asked: pytest.fail("asked on standard input"))
        monkeypatch.setattr(torch, "load", lambda *asked, **more: pytest.fail("a pickle was opened"))
        own = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
        with pytest.raises(BadInput, match="code of its own, which is never run"):
            self.changed(folder, tmp_path / "code", model_type="evil", auto_map=own).ask(prompts[0])
        local = self.changed(folder, tmp_path / "pickle")
        weights = load_file(tmp_path / "pickle/model.safetensors")
        (tmp_path / "pickle/model.safetensors").unlink()
        torch.save(weights, tmp_path / "pickle/pytorch_model.bin")
        with pytest.raises(BadInput, match="no file named model.safetensors"):
            local.ask(prompts[0])
        few = dict(list(weights.items())[1:])
        save_file(few, tmp_path / "pickle/model.safetensors", {"format": "pt"})
        with pytest.raises(BadInput, match="1 weights are missing"):
            local.ask(prompts[0])

    def test_a_chat_template_that_fails(self, folder, prompts):
        local = LocalChat(str(folder))
        local._loaded[1].chat_template = "{{ 1 / 0 }}"
        with pytest.raises(BadInput, match="its chat template fails .division by zero"):
            local.ask(prompts[0])


class TestExchange:
    def test_there_and_back(self, items, answers, write, tmp_path, capsys):
        common = ["--answers", write("a.jsonl", answers), "--items", write("items.json", items)]
        common += ["--template", write("t.txt", TEMPLATE)]
        assert self.run("write", *common, "--out", tmp_path / "prompts.jsonl") == 0
        assert "not the official prompt" in capsys.readouterr().err
        asked = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
        assert len(asked) == 96 and asked[5]["prompt"].startswith("Rate it.")
        replies = [
            {"item": row["item"], "text": f"Rating: {row['item'] % 7}", "prompt_sha256": row["prompt_sha256"]}
            for row in reversed(asked)
        ]
        back = ["--replies", write("replies.jsonl", replies), "--name", "two experts", "--out", tmp_path / "r.json"]
        assert self.run("read", *common, *back) == 0
        result = mmhal.score(mmhal.read_reviews(tmp_path / "r.json"))
        assert result.summary["per_item"] == [i % 7 for i in range(96)]
        assert result.details["judge"]["recorded"][0]["model"] == "two experts"

    def run(self, *arguments):
        return main([str(argument) for argument in arguments])

    @pytest.mark.parametrize(
        "change, problem",
        [
            (lambda replies: replies.pop(), "1 items have no review .item 95"),
            (lambda replies: replies.append(replies[3]), "item 3 is there twice"),
            (lambda replies: replies.append({"item": 96, "text": "x"}), "item 96 is unknown"),
            (lambda replies: replies[0].update(prompt_sha256="old"), "reviews another prompt than item 0"),
            (lambda replies: replies[0].update(text=None), "'text' is"),
            (lambda replies: replies[0].update(item="0"), "'item' is"),
        ],
    )
    def test_wrong_replies(self, prompts, change, problem):
        replies = [{"item": i, "text": "Rating: 3"} for i in range(96)]
        change(replies)
        with pytest.raises(BadInput, match=problem):
            judge.read_replies(replies, prompts, "x", "hash")

    def test_a_folder_is_never_replaced_and_urls_are_checked_by_the_command_too(
        self, items, answers, write, tmp_path, capsys
    ):
        arguments = ["--answers", write("a.jsonl", answers), "--items", write("i.json", items)]
        arguments += ["--template", write("t.txt", TEMPLATE)]
        (tmp_path / "precious").mkdir()
        (tmp_path / "precious/x").write_text("x")
        assert self.run("write", *arguments, "--out", tmp_path / "precious") == 2
        assert (tmp_path / "precious/x").read_text() == "x"
        for url in ("http://[::1", "http://example.org/v1", "http://127.0.0.1:9/\x1b[2J"):
            judged = [*arguments, "--model", "m", "--out", "/dev/null/r.json", "--url", url]
            capsys.readouterr()
            assert self.run("endpoint", *judged) == 2 and capsys.readouterr().err.count("\n") == 1

    def test_refused_in_one_line(self, items, answers, write, capsys):
        arguments = ["write", "--answers", write("a.jsonl", answers[:5]), "--items", write("i.json", items)]
        assert self.run(*arguments, "--template", write("t.txt", TEMPLATE), "--out", "x.jsonl") == 2
        assert capsys.readouterr().err.count("\n") == 1
