"""Fetching from a server on the loopback address; nothing else is reached."""

import functools
import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests

from napo.commands.fetch import main
from napo.official import fetch
from napo.official.sources import GROUPS, TABLE, Source
from napo.workshop.files import BadInput

BODY = bytes(range(256)) * 5000  # 1.28 MB


class Handler(BaseHTTPRequestHandler):
    """Serves `server.files`; knows ranges; `server.cut` bytes after which a connection is dropped, once."""

    def do_GET(self):
        self.server.seen.append((self.path, self.headers.get("Range")))
        body = self.server.files.get(self.path)
        if body is None:
            return self.send_error(404)
        start = self.start_of_range(body)
        if start is None:
            self.send_response(416)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        cut, self.server.cut = self.server.cut, None
        self.wfile.write(body[start : start + cut] if cut else body[start:])
        self.close_connection = True

    def start_of_range(self, body):
        asked = self.headers.get("Range")
        if not asked or not self.server.ranges:
            return 0
        start = int(asked.removeprefix("bytes=").partition("-")[0])
        return start if start < len(body) else None

    def log_message(self, *arguments):
        pass


@pytest.fixture
def http(monkeypatch):
    """Plain http is fetched too: the servers here have no certificate."""
    monkeypatch.setattr(fetch, "SCHEMES", ("https://", "http://"))


@pytest.fixture
def server(http):
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.files, running.seen, running.cut, running.ranges = {"/f": BODY}, [], None, True
    running.url = f"http://127.0.0.1:{running.server_port}"
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture
def quiet():
    """fetch.fetch that keeps what it says, in `quiet.said`."""
    said = []
    call = functools.partial(fetch.fetch, say=said.append)
    call.said = said
    return call


def source(server, digest=None, path="group/f", **more):
    return Source("group", path, "CC0", url=f"{server.url}/f", digest=digest, **more)


def sha256(body=BODY):
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


def git(body=BODY):
    return "git:" + hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


def record(folder):
    return json.loads((folder / fetch.RECORD).read_text())


def zipped(files, method=zipfile.ZIP_STORED):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return packed.getvalue()


class TestOneFile:
    @pytest.mark.parametrize("digest", [sha256(), git()])
    def test_known_hash_is_verified(self, server, quiet, tmp_path, digest):
        assert quiet([source(server, digest)], tmp_path) == []
        assert (tmp_path / "group/f").read_bytes() == BODY
        entry = record(tmp_path)["group/f"]
        assert entry["hash"] == "verified" and entry["licence"] == "CC0" and entry["url"] == f"{server.url}/f"
        assert entry["files"] == {"group/f": {"size": len(BODY), "sha256": sha256().removeprefix("sha256:")}}
        assert any("[CC0]" in line for line in quiet.said)

    @pytest.mark.parametrize("digest", [sha256(b"x"), git(b"x")])
    def test_another_file_than_the_known_one_is_refused(self, server, quiet, tmp_path, digest):
        wanted = source(server, digest)
        assert quiet([wanted], tmp_path) == [wanted]
        assert "is not the known file" in quiet.said[-1]
        assert not list((tmp_path / "group").iterdir())

    def test_unknown_hash_is_recorded_and_marked(self, server, quiet, tmp_path):
        assert quiet([source(server)], tmp_path) == []
        assert record(tmp_path)["group/f"]["hash"] == "recorded on first fetch"
        assert record(tmp_path)["group/f"]["digest"] is None
        assert (
            quiet.said[-1] == f"  recorded sha256 {sha256().removeprefix('sha256:')}: later fetches must give the same"
        )

    def test_what_is_there_is_not_fetched_again(self, server, quiet, tmp_path):
        for _ in range(2):
            assert quiet([source(server)], tmp_path) == []
        assert len(server.seen) == 1 and quiet.said[-1].startswith("there")

    def test_a_damaged_file_is_fetched_again(self, server, quiet, tmp_path):
        quiet([source(server)], tmp_path)
        (tmp_path / "group/f").write_bytes(BODY[:-1])
        assert quiet([source(server)], tmp_path) == []
        assert (tmp_path / "group/f").read_bytes() == BODY

    def test_another_file_than_on_first_fetch_is_refused(self, server, quiet, tmp_path):
        quiet([source(server)], tmp_path)
        server.files["/f"] = b"changed"
        (tmp_path / "group/f").unlink()
        assert len(quiet([source(server)], tmp_path)) == 1
        assert "is not what was first fetched (remove its entry from SOURCES.json to accept it)" in quiet.said[-1]
        assert not (tmp_path / "group/f").exists()

    def test_a_file_brought_by_hand_is_taken_if_it_is_the_known_one(self, server, quiet, tmp_path):
        (tmp_path / "group").mkdir()
        (tmp_path / "group/f").write_bytes(BODY)
        assert quiet([source(server, git())], tmp_path) == [] and server.seen == []

    def test_one_failure_does_not_stop_the_others(self, server, quiet, tmp_path):
        gone = Source("group", "group/gone", "CC0", url=f"{server.url}/gone")
        assert quiet([gone, source(server)], tmp_path) == [gone]
        assert (tmp_path / "group/f").exists() and "status 404" in "".join(quiet.said)


class TestResuming:
    def test_goes_on_within_one_run(self, server, quiet, tmp_path):
        server.cut = 1_000_000
        assert quiet([source(server, sha256())], tmp_path) == []
        assert (tmp_path / "group/f").read_bytes() == BODY
        assert int(server.seen[1][1].strip("bytes=-")) > 900_000
        assert [path.name for path in (tmp_path / "group").iterdir()] == ["f"]

    def interrupted(self, folder, n=1000):
        """A part as an interrupted run leaves it."""
        (folder / "group").mkdir(exist_ok=True)
        (folder / "group/f.part").write_bytes((BODY * 2)[:n])

    def test_goes_on_in_the_next_run(self, server, quiet, tmp_path):
        self.interrupted(tmp_path)
        assert quiet([source(server, sha256())], tmp_path) == []
        assert server.seen == [("/f", "bytes=1000-")] and (tmp_path / "group/f").read_bytes() == BODY

    def test_a_part_of_another_file_is_noticed(self, server, quiet, tmp_path):
        self.interrupted(tmp_path)
        server.files["/f"] = BODY[::-1]
        wanted = source(server, sha256(BODY[::-1]))
        assert quiet([wanted], tmp_path) == [wanted] and "is not the known file" in quiet.said[-1]
        assert quiet([wanted], tmp_path) == [] and (tmp_path / "group/f").read_bytes() == BODY[::-1]

    def test_starts_anew_at_a_server_without_ranges(self, server, quiet, tmp_path):
        self.interrupted(tmp_path)
        server.ranges = False
        assert quiet([source(server, sha256())], tmp_path) == []
        assert (tmp_path / "group/f").read_bytes() == BODY

    def test_without_a_hash_nothing_is_continued(self, server, quiet, tmp_path):
        self.interrupted(tmp_path)
        server.cut = 1_000_000
        assert quiet([source(server)], tmp_path) == [] and server.seen == [("/f", None)] * 2
        assert (tmp_path / "group/f").read_bytes() == BODY

    def test_a_part_longer_than_the_file(self, server, quiet, tmp_path):
        self.interrupted(tmp_path, len(BODY) + 10)
        assert quiet([source(server, sha256())], tmp_path) == []
        assert (tmp_path / "group/f").read_bytes() == BODY

    def test_gives_up_in_one_line_and_keeps_the_part(self, server, tmp_path, monkeypatch):
        monkeypatch.setattr(fetch, "TRIES", 1)
        server.cut = 500_000
        with pytest.raises(BadInput, match="run the same command again to go on"):
            fetch.download(f"{server.url}/f", tmp_path / "f", resume=True)
        assert (tmp_path / "f.part").stat().st_size > 400_000 and not (tmp_path / "f").exists()

    def test_nobody_there(self, http, tmp_path):
        with pytest.raises(BadInput, match="ConnectionError"):
            fetch.download("http://127.0.0.1:9/f", tmp_path / "f")


class TestArchives:
    def test_only_what_is_needed_is_unpacked(self, server, quiet, tmp_path):
        server.files["/f.zip"] = zipped({"a/x.json": "1", "a/y.txt": "2", "b/x.json": "3"})
        packed = Source("group", "group", "CC0", url=f"{server.url}/f.zip", members=("a/*.json",))
        for _ in range(2):
            assert quiet([packed], tmp_path) == []
        assert len(server.seen) == 1
        files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
        assert files == ["SOURCES.json", "group/a/x.json"]
        (tmp_path / "group/a/x.json").unlink()
        assert quiet([packed], tmp_path) == [] and len(server.seen) == 2

    def test_changed_archive_is_refused(self, server, quiet, tmp_path):
        server.files["/f.zip"] = body = zipped({"a/x.json": "1"})
        packed = Source("group", "group", "CC0", url=f"{server.url}/f.zip", members=("a/*",), digest=sha256(body))
        assert quiet([packed], tmp_path) == []
        server.files["/f.zip"] = zipped({"a/x.json": "2"})
        (tmp_path / "group/a/x.json").unlink()
        assert quiet([packed], tmp_path) == [packed] and not (tmp_path / "group/a/x.json").exists()

    @pytest.mark.parametrize("body", [b"no archive", zipped({"b/x": "1"}), zipped({"a/../../x": "1"})])
    def test_wrong_archives(self, server, quiet, tmp_path, body):
        server.files["/f.zip"] = body
        packed = Source("group", "group", "CC0", url=f"{server.url}/f.zip", members=("a/*",))
        assert quiet([packed], tmp_path) == [packed]
        assert not (tmp_path / "x").exists() and "group/f.zip" not in quiet([], tmp_path)


def test_listed_images(server, quiet, tmp_path):
    server.files |= {"/list": b"", "/1.png": b"one", "/2": b"two"}
    items = [{"image_id": f"i{i}", "image_src": f"{server.url}/{name}"} for i, name in enumerate(("1.png", "2", "3"))]
    server.files["/list"] = json.dumps(items).encode()
    listed = Source("group", "group/list.json", "CC0", url=f"{server.url}/list")
    fields = {"listed_in": "group/list.json", "name_field": "image_id", "url_field": "image_src"}
    images = Source("group", "group/images", "each its own", kind="images", **fields)
    assert quiet([listed, images], tmp_path) == [images]
    assert "1 of 3 images of group/images" in quiet.said[-1] and "/3': status 404" in quiet.said[-1]
    assert (tmp_path / "group/images/i0.png").read_bytes() == b"one"
    assert (tmp_path / "group/images/i1.jpg").read_bytes() == b"two"
    server.files["/3"] = b"three"
    server.seen.clear()
    assert quiet([listed, images], tmp_path) == [] and [path for path, _ in server.seen] == ["/3"]


class TestHostile:
    """Whatever an address, a list or an archive says: one line, nothing outside the folder, the other sources go on."""

    def refusal(self, quiet, folder, source):
        """The line for a source that is refused, while another one is fetched; and all files that are there."""
        good = Source("group", "good", "CC0", url=source.url.rpartition("/")[0] + "/good")
        assert quiet([source, good], folder / "data") == [source]
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
        (line,) = [line for line in quiet.said if "not fetched" in line]
        assert len(line) < 300 and "\n" not in line
        return line, files - {"data/good", "data/SOURCES.json"}

    @pytest.fixture(autouse=True)
    def good(self, server):
        server.files["/good"] = b"good"

    def test_only_https_also_after_a_redirection(self, quiet, tmp_path, monkeypatch):
        asked = []

        def send(adapter, request, **more):
            asked.append(request.url)
            reply = requests.Response()
            reply.status_code, reply.url, reply.raw, reply.request = 302, request.url, io.BytesIO(), request
            reply.headers["Location"] = "http://example.org/f"
            return reply

        monkeypatch.setattr(fetch, "SCHEMES", ("https://",))
        monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", send)
        for scheme in ("http", "https", "ftp", "file"):
            with pytest.raises(BadInput, match="only https is fetched"):
                fetch.download(f"{scheme}://example.org/f", tmp_path / "f")
        assert asked == ["https://example.org/f"] and not list(tmp_path.iterdir())

    def test_no_login_of_netrc(self, server, tmp_path, monkeypatch):
        (tmp_path / ".netrc").write_text("default login me password other\n")
        monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
        with fetch.session() as web:
            sent = web.get(f"{server.url}/f").request
        assert "Authorization" not in sent.headers

    @pytest.mark.parametrize("address", ["https://[::1", "https://a:b/f", "https://", "", f"https://{'a' * 70}.b/f"])
    def test_addresses(self, tmp_path, address):
        with pytest.raises(BadInput):
            fetch.download(address, tmp_path / "f")

    def test_more_than_the_limit(self, server, tmp_path):
        with pytest.raises(BadInput, match="more than 1,000 bytes"):
            fetch.download(f"{server.url}/f", tmp_path / "f", limit=1000)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("../../../evil", "no file name inside"),
            ("/etc/evil", "no file name inside"),
            ("a/../../evil", "no file name inside"),
            ("C:\\evil", "no file name inside"),
            ("..\\evil", "no file name inside"),
            ("C:evil", "no file name inside"),
            ("a\x00b", "no file name inside"),
            ("a\x1b[2J", "no file name inside"),
            ("\ud800", "no file name inside"),
            ("", "no file name inside"),
            ("n" * 300, "too long"),
            ("n/" * 3000 + "n", "too long"),
            ("out/evil", "leads out of"),
        ],
    )
    def test_names(self, server, quiet, tmp_path, name, said):
        (tmp_path / "data/group").mkdir(parents=True)
        (tmp_path / "data/group/out").symlink_to(tmp_path)
        server.files["/list"] = json.dumps([{"image_id": name, "image_src": f"{server.url}/f"}]).encode()
        fetch.download(f"{server.url}/list", tmp_path / "data/list.json")
        fields = {"listed_in": "list.json", "name_field": "image_id", "url_field": "image_src"}
        images = Source("group", "group", "?", kind="images", url=f"{server.url}/", **fields)
        line, files = self.refusal(quiet, tmp_path, images)
        assert said in line and files == {"data/list.json"}
        if name and "\x00" not in name and name.isascii():
            quiet.said.clear()
            server.files["/f.zip"] = zipped({name: "evil", "good": "1"})
            line, files = self.refusal(
                quiet, tmp_path, Source("group", "group", "?", url=f"{server.url}/f.zip", members=("*",))
            )
            assert said in line and files == {"data/list.json", "data/group/f.zip"}

    def changed(self, body, **fields):
        """The archive with other fields in its only entry."""
        (item,) = zipfile.ZipFile(io.BytesIO(body)).infolist()
        central = body.index(b"PK\x01\x02")
        for name, value in fields.items():
            place, form = {"flags": (8, "<H"), "method": (10, "<H"), "size": (24, "<L"), "mode": (38, "<L")}[name]
            body = body[: central + place] + struct.pack(form, value) + body[central + place + struct.calcsize(form) :]
        return body

    def test_archives(self, server, quiet, tmp_path):
        body, bomb = zipped({"x": "evil"}), zipped({"x": "\0" * 10_000_000}, zipfile.ZIP_DEFLATED)
        bz2 = zipped({"x": "evil"}, zipfile.ZIP_BZIP2)
        attacks = {
            "encrypted": self.changed(body, flags=1),
            "by method 99": self.changed(body, method=99),
            "by method 12": bz2,
            "a link or device": self.changed(body, mode=0o120777 << 16),
            "would unpack to 10,000,000 bytes": bomb,
            "no whole archive": self.changed(bomb, size=1000),  # it states less than it holds
            "no whole archive ": body[:-10],
            "no whole archive (Bad CRC-32": body.replace(b"evil", b"live"),
            "cannot unpack": zipped({"x": "1", "x/y": "2"}),
        }
        fetch.UNPACKED, fetch.SPARE, kept = 20, 1000, (fetch.UNPACKED, fetch.SPARE)
        try:
            for said, server.files["/f.zip"] in attacks.items():
                quiet.said.clear()
                packed = Source("group", "group", "?", url=f"{server.url}/f.zip", members=("*",))
                line, files = self.refusal(quiet, tmp_path, packed)
                assert said.strip() in line and files <= {"data/group/f.zip"}, (said, line, files)
        finally:
            fetch.UNPACKED, fetch.SPARE = kept

    @pytest.mark.parametrize(
        "body",
        [
            "[",
            "{}",
            "[1]",
            "[[]]",
            '[{"image_id": 1, "image_src": "https://x"}]',
            "\xff",
            "",
            "[" * 100_000,
            '[{"image_id": "x", "image_src": "https://[x"}]',
            '[{"image_id": null}]',
        ],
    )
    def test_lists(self, server, quiet, tmp_path, body):
        (tmp_path / "data").mkdir()
        (tmp_path / "data/list.json").write_bytes(body.encode("latin-1"))
        fields = {"listed_in": "list.json", "name_field": "image_id", "url_field": "image_src"}
        images = Source("group", "group", "?", kind="images", url=f"{server.url}/", **fields)
        assert self.refusal(quiet, tmp_path, images)[1] == {"data/list.json"}

    @pytest.mark.parametrize("text", ["[]", '{"a": 1}', '{"a": {"files": 1, "digest": null}}', "{", '{"a":' * 100_000])
    def test_a_damaged_record(self, tmp_path, capsys, text):
        (tmp_path / fetch.RECORD).write_text(text)
        assert main(["--to", str(tmp_path)], []) == 2
        assert fetch.RECORD in capsys.readouterr().err


def test_by_hand_is_said(quiet, tmp_path):
    by_hand = Source("group", "group/image", "?", kind="by hand", url="https://example.org", what="the images")
    assert quiet([by_hand], tmp_path) == [] and "by hand (to be done)" in quiet.said[0]
    (tmp_path / "group/image").mkdir(parents=True)
    quiet([by_hand], tmp_path)
    assert "by hand (there)" in quiet.said[1]


class TestTable:
    def test_every_benchmark_has_its_files(self):
        assert {"vlind", "objhal", "amber", "mmhal", "pope", "coco", "nltk"} == set(GROUPS)
        assert all(entry.licence for entry in TABLE)
        paths = [entry.path for entry in TABLE if not entry.members]
        assert len(set(paths)) == len(paths)

    def test_known_hashes_are_those_of_the_files_at_hand(self, shared):
        """What the table calls known is what the official files here are."""
        checked = 0
        for entry in TABLE:
            path = shared / "benchmarks/data" / entry.path.replace("query/", "")
            if entry.digest and path.is_file():
                assert f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" == entry.digest
                checked += 1
        assert checked == 10

    def test_command_lists_it_without_network(self, root):
        command = [sys.executable, "-m", "napo", "fetch", "--list", "amber", "nltk"]
        said = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60).stdout.splitlines()
        assert len(said) == 9 and {line.split()[0] for line in said} == {"amber", "nltk"}
        assert "Apache-2.0; sha256 known" in said[0]

    def test_every_file_has_an_https_address_and_a_hash(self):
        files = [entry for entry in TABLE if entry.kind == "file"]
        assert len(files) > 10 and all(entry.url.startswith("https://") and entry.digest for entry in files)

    def test_large_only_when_asked(self, capsys):
        main(["--list", "coco"])
        assert "zips/val2014.zip" not in capsys.readouterr().out
        main(["--list", "--large", "coco"])
        assert "val2014.zip" in capsys.readouterr().out

    def test_unknown_group(self, capsys):
        assert main(["vlnd"]) == 2
        assert capsys.readouterr().err.startswith("error: unknown group 'vlnd': use amber, coco")

    def test_exit_status(self, server, tmp_path, capsys):
        arguments = ["--to", str(tmp_path)]
        assert main(arguments, [source(server)]) == 0
        assert "all there" in capsys.readouterr().out
        assert main(arguments, [Source("group", "g", "CC0", url=f"{server.url}/gone"), source(server)]) == 2
        assert capsys.readouterr().err == "error: 1 of 2 sources are missing (g): run again to go on from here\n"


class HubHandler(BaseHTTPRequestHandler):
    """As much of a hub as huggingface_hub asks for: one data set of two files, one of them an archive."""

    files = {"Set/data.json": b'[{"global_id": 1}]', "Set/images.zip": zipped({"images/0.jpg": "jpeg"})}
    commit = "0123456789abcdef0123456789abcdef01234567"

    def answer(self, body, **headers):
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self):
        self.server.seen.append((self.command, self.path))
        siblings = [{"rfilename": name, "size": len(body)} for name, body in self.files.items()]
        if self.path.startswith("/api/datasets/some/set/revision/"):
            about = {"id": "some/set", "sha": self.commit, "siblings": siblings, "private": False, "tags": []}
            return self.answer(json.dumps(about | {"downloads": 0, "likes": 0}).encode())
        if self.path.startswith("/api/datasets/some/set/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(body), "oid": git(body).removeprefix("git:")}
                for name, body in self.files.items()
            ]
            return self.answer(json.dumps(tree).encode())
        prefix = f"/datasets/some/set/resolve/{self.commit}/"
        if self.path.startswith(prefix) and self.path.removeprefix(prefix) in self.files:
            body = self.files[self.path.removeprefix(prefix)]
            return self.answer(body, ETag=f'"{git(body).removeprefix("git:")}"', X_Repo_Commit=self.commit)
        return self.send_error(404)

    do_HEAD = do_GET

    def log_message(self, *arguments):
        pass


def test_hub_dataset(tmp_path):
    """In a process of its own, as these tests keep the hub's library offline."""
    hub = ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
    hub.seen = []
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    script = f"""
from napo.official import fetch
from napo.official.sources import Source
sets = [Source("vlind", "vlind", "CC BY-SA 4.0", kind="hub", repo="some/set")]
address = "http://127.0.0.1:{hub.server_port}"
for _ in range(2):
    assert fetch.fetch(sets, "data", endpoint=address) == []
gone = Source("vlind", "other", "?", kind="hub", repo="some/other")
assert fetch.fetch([gone], "data", endpoint=address) == [gone]
"""
    environment = os.environ | {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    hub.shutdown()
    hub.server_close()
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (tmp_path / "data/vlind/Set/data.json").read_bytes() == HubHandler.files["Set/data.json"]
    assert (tmp_path / "data/vlind/Set/images/0.jpg").read_text() == "jpeg"
    entry = record(tmp_path / "data")["vlind"]
    assert entry["commit"] == HubHandler.commit and entry["hash"] == "recorded on first fetch"
    assert "there    vlind/" in ended.stdout and "not fetched: some/other" in ended.stdout
    assert [entry.kind for entry in TABLE if entry.group == "vlind"] == ["hub"]
