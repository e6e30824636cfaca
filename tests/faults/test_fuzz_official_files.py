"""Damaged official files: question lists, image lists and archives. Nothing is written outside the folder."""

import io
import json
import random
import shutil
import stat
import zipfile
import zlib

import official_data
import pytest
from mutations import Tries, damaged_bytes, damaged_value

from napo.official import benchmarks, fetch
from napo.official.sources import Source


def is_list(path):
    return path.suffix in (".json", ".jsonl", ".txt")


def spoil(file, rng):
    """Damage one file as a value if it is JSON, else as bytes."""
    if file.suffix == ".json" and rng.random() < 0.7:
        text = file.read_text()
        lines = text.count("\n") > 1 and not text.startswith("[") and text.startswith("{")
        value = [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
        value = damaged_value(value, rng)
        is_lines = lines and isinstance(value, list)
        file.write_text("\n".join(map(json.dumps, value)) if is_lines else json.dumps(value))
    else:
        file.write_bytes(damaged_bytes(file.read_bytes(), rng))


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """name -> folder of a small benchmark in the official layout, with what lies beside it."""
    place = tmp_path_factory.mktemp("official")
    return {name: write(place / name / name) for name, write in official_data.WRITERS.items()}


def attack_questions(name, seeds, official, tmp_path, count):
    tries = Tries(tmp_path)
    for seed in seeds:
        rng, place = random.Random(f"{name} {seed}"), tmp_path / f"{seed}"
        shutil.copytree(official[name].parent, place)
        folder = place / name
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        lists = [path for path in files if is_list(path)]
        file = rng.choice(lists if rng.random() < 0.8 else files)
        spoil(file, rng)
        task = rng.choice("agd") if name == "amber" else "g"

        def asked(folder=folder, task=task):
            found = benchmarks.read(name, folder, task=task)
            return [question.opened().size for question in found.questions], found

        if found := tries.function(f"{name} {seed} {file.name}", asked):
            sizes, benchmark = found
            keys = [question.key for question in benchmark.questions]
            tries.note(len(sizes) == len(set(keys)), f"{name} {seed}: two questions with one key")
            tries.note(
                all(isinstance(q.text, str) for q in benchmark.questions), f"{name} {seed}: a question is no text"
            )
        shutil.rmtree(place)
    tries.done(f"official files, {name}", count)


@pytest.mark.parametrize("name", official_data.WRITERS)
def test_some_damaged_question_lists(name, official, tmp_path, count):
    attack_questions(name, range(15), official, tmp_path, count)


@pytest.mark.parametrize("name", official_data.WRITERS)
def test_many_damaged_question_lists(everything, name, official, tmp_path, count):
    attack_questions(name, range(15, 75), official, tmp_path, count)


# ---- fetching --------------------------------------------------------------------------------------------------------

NAMES = ["../../evil", "/evil", "a/b", "..", ".", "", "x" * 300, "a\x00b", "con\n", "~", "%2e%2e/evil", "id0", 7, None]
URLS = ["https://example.org/a.jpg", "http://example.org/a.jpg", "file:///etc/passwd", "ftp://x/y", "https://", "", 3]
URLS += ["https://example.org/a.jpg/../../evil", "https://user:secret@example.org/a", "https://[::1", "javascript:1"]


def outside(place, inner):
    """Files in `place` that are not in its folder `inner`."""
    return [path for path in place.rglob("*") if path.is_file() and inner not in path.parents]


def attack_lists(seeds, tmp_path, monkeypatch, count):
    """A fetched list of images is damaged: names and addresses of its entries, or the file itself."""

    def download(url, target, *_, **__):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"image")

    monkeypatch.setattr(fetch, "download", download)
    source = Source("mmhal", "m/images", "-", "images", listed_in="m/list.json", name_field="id", url_field="url")
    tries = Tries(tmp_path)
    for seed in seeds:
        rng, place = random.Random(f"list {seed}"), tmp_path / f"{seed}"
        inner = place / "data"
        (inner / "m").mkdir(parents=True)
        value = [{"id": f"id{i}", "url": f"https://example.org/{i}.jpg"} for i in range(4)]
        for _ in range(rng.choice((1, 2))):
            if rng.random() < 0.6 and isinstance(value, list) and value:
                value[rng.randrange(len(value))] = {"id": rng.choice(NAMES), "url": rng.choice(URLS)}
            else:
                value = damaged_value(value, rng)
        text = json.dumps(value).encode()
        (inner / "m/list.json").write_bytes(damaged_bytes(text, rng) if rng.random() < 0.2 else text)
        said = []
        failed = tries.function(f"list {seed}", lambda i=inner, s=said: fetch.fetch([source], i, say=s.append))
        if failed:
            tries.refused, tries.accepted = tries.refused + 1, tries.accepted - 1
            tries.line(f"list {seed}", said[-1])
        tries.note(not outside(place, inner), f"list {seed}: wrote {outside(place, inner)}")
        shutil.rmtree(place)
    tries.done("lists of images", count)


def archive(rng):
    """Bytes of a zip archive with odd entries, or damaged."""
    held = io.BytesIO()
    names = ["a.txt", "sub/b.txt", "../evil", "/evil", "C:\\evil"]
    names += ["..\\evil", "x" * 300, "sub/../../evil", "a\x00b", "."]
    with zipfile.ZipFile(held, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as packed:
        packed.writestr("good.txt", b"good" * 50)
        for name in rng.sample(names, rng.randint(0, 3)):
            item = zipfile.ZipInfo(name)
            if rng.random() < 0.2:
                item.external_attr = (stat.S_IFLNK | 0o777) << 16
            packed.writestr(item, rng.choice((b"x", b"/etc/passwd", b"")))
        if rng.random() < 0.05:
            packed.writestr("zeros", bytes(60_000_000), zipfile.ZIP_DEFLATED)
    content = held.getvalue()
    if rng.random() < 0.2:  # encrypted, or an unknown method, in both headers
        place, value = rng.choice(((6, 1), (8, 99)))
        start = content.find(b"PK\x01\x02")
        content = bytearray(content)
        content[place] = content[start + place + 2] = value
    return damaged_bytes(bytes(content), rng) if rng.random() < 0.5 else bytes(content)


def attack_archives(seeds, tmp_path, count):
    tries = Tries(tmp_path)
    for seed in seeds:
        place = tmp_path / f"{seed}"
        inner = place / "data/m"
        inner.mkdir(parents=True)
        file = inner / "archive.zip"
        file.write_bytes(archive(random.Random(f"zip {seed}")))
        paths = tries.function(f"zip {seed}", lambda f=file, i=inner: fetch.unpack(f, i, ("*",)))
        tries.note(not outside(place, inner), f"zip {seed}: wrote {outside(place, inner)}")
        for path in paths or ():
            tries.note(path.is_file() and not path.is_symlink(), f"zip {seed}: {path} is no file")
        good = inner / "good.txt"
        tries.note(
            not good.exists() or zlib.crc32(good.read_bytes()) == zlib.crc32(b"good" * 50), f"zip {seed}: changed"
        )
        size = sum(path.stat().st_size for path in inner.rglob("*") if path.is_file())
        tries.note(size < 200_000_000, f"zip {seed}: {size} bytes")
        shutil.rmtree(place)
    tries.done("archives", count)


def test_some_damaged_lists_and_archives(tmp_path, monkeypatch, count):
    attack_lists(range(30), tmp_path, monkeypatch, count)
    attack_archives(range(30), tmp_path, count)


def test_many_damaged_lists_and_archives(everything, tmp_path, monkeypatch, count):
    attack_lists(range(30, 150), tmp_path, monkeypatch, count)
    attack_archives(range(30, 150), tmp_path, count)
