"""Fetch the official files of the benchmarks into a data folder, by https only.

A rerun fetches only what is missing or changed, and continues a file of known hash where an earlier run stopped.
SOURCES.json in the folder records each file's address, licence, size and SHA-256, and whether its hash was known
("verified") or comes from the first fetch ("recorded on first fetch"); later fetches must then give the same file. No
list and no archive can write outside its folder, or more than it should.

The library `pooch` would not do: it neither continues a file (COCO's images are 6 GB), refuses redirections to http,
bounds what an archive unpacks to, nor checks git's blob ids, which are all that is known of one of the files.
"""

import fnmatch
import hashlib
import os
import re
import shutil
import stat
import unicodedata
import zipfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import requests

from napo.official.records import read_json, read_records, text_of
from napo.workshop.files import BadInput, content_hash, first_line, make_folder, shown, write_json
from napo.workshop.texts import STEERING

RECORD = "SOURCES.json"
SCHEMES = ("https://",)
CHUNK = 1 << 16  # bytes; a broken connection loses less than this
TIMEOUT = (20, 120)  # seconds: to connect, between bytes
TRIES = 4
LARGEST_FILE, LARGEST_IMAGE = 16 * 2**30, 2**26  # bytes to download
UNPACKED, SPARE = 20, 2**26  # an archive unpacks to at most so many times its size, and so many bytes more
LONGEST_NAME = 240  # bytes of one part of a path


class Folder:
    """The data folder and its record."""

    def __init__(self, path):
        self.path = Path(path)
        make_folder(self.path)
        file = self.path / RECORD
        self.record = read_json(file, dict) if file.exists() else {}
        try:
            for entry in self.record.values():
                _ = entry["digest"], [kept["size"] + len(kept["sha256"]) for kept in entry["files"].values()][0]
        except (LookupError, TypeError, AttributeError):
            raise BadInput(f"{shown(file)} is damaged: delete it and run the same command again") from None

    def has(self, name, digest=None):
        """Whether the files of `name` (a file, archive or data set) are here as recorded, with this digest if known."""
        entry = self.record.get(name)
        if not entry or (digest and entry["digest"] != digest):
            return False
        files = [(self.path / path, kept) for path, kept in entry["files"].items()]
        return all(path.is_file() and _size_and_hash(path) == kept for path, kept in files)

    def note(self, name, paths, source, **more):
        """Record that `name` is here and consists of the files `paths`."""
        files = {path.relative_to(self.path).as_posix(): _size_and_hash(path) for path in paths}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        known = "verified" if source.digest else "recorded on first fetch"
        entry = {"licence": source.licence, "digest": source.digest, "hash": known, "fetched": now}
        self.record[name] = entry | more | {"files": files}
        write_json(self.record, self.path / RECORD)


def _size_and_hash(path):
    return {"size": path.stat().st_size, "sha256": content_hash(path)}


def fetch(sources, path, say=print, endpoint=None):
    """Fetch every source into the folder `path`; returns the sources that failed. A failure does not stop the others.

    endpoint  address of another hub than Hugging Face's
    """
    folder, failed = Folder(path), []
    for source in sources:
        try:
            _bring(source, folder, say, endpoint)
        except (BadInput, OSError) as error:
            failed.append(source)
            say(f"  not fetched: {first_line(error)}")
    return failed


def _bring(source, folder, say, endpoint):
    if source.kind == "by hand":
        place = folder.path / source.path
        state = "there" if place.exists() else "to be done"
        say(f"by hand ({state}) {shown(place)}: {source.what}: {source.url}")
    elif source.kind == "hub":
        _bring_dataset(source, folder, say, endpoint)
    elif source.kind == "images":
        _bring_images(source, folder, say)
    else:
        _bring_file(source, folder, say)


def table(sources):
    """One line of text for each source: place, licence, whether its hash is known, address."""
    lines = []
    for source in sources:
        where = source.url or source.repo or f"addresses in {source.listed_in}"
        known = f"{source.digest.partition(':')[0]} known" if source.digest else "hash not known"
        lines.append(f"{source.group:7} {source.path:45} {source.licence}; {known}; {where}")
    return lines


def _bring_file(source, folder, say, limit=LARGEST_FILE):
    """Fetch a file, or an archive (its hash must be known) and what is needed of it."""
    archive = PurePosixPath(urlsplit(source.url).path).name
    name = f"{source.path}/{archive}" if source.members else source.path
    if folder.has(name, source.digest):
        return say(f"there    {name}")
    target, known, wanted = folder.path / name, source.digest, "the known file"
    before = folder.record.get(name, {"files": {}})["files"].get(name)
    if before and not known:
        known = f"sha256:{before['sha256']}"
        wanted = f"what was first fetched (remove its entry from {RECORD} to accept it)"
    if known and target.is_file() and _digest(target, known) == known:
        say(f"there    {name}")  # brought by hand
    else:
        say(f"fetching {name} [{source.licence}]")
        download(source.url, target, bool(known), limit)
    if known and (actual := _digest(target, known)) != known:
        target.unlink()
        raise BadInput(f"{shown(target)} is not {wanted}: {actual} instead of {known}; removed")
    if not known:
        say(f"  recorded sha256 {content_hash(target)}: later fetches must give the same")
    if not source.members:
        return folder.note(name, [target], source, url=source.url)
    folder.note(name, unpack(target, folder.path / source.path, source.members), source, url=source.url)
    target.unlink()


def _digest(file, like):
    """The file's digest, of the same kind as `like`: "sha256:…", or "git:…", the id that git gives to the contents."""
    if not like.startswith("git:"):
        return f"sha256:{content_hash(file)}"
    header = f"blob {file.stat().st_size}\0".encode()
    with open(file, "rb") as handle:
        return f"git:{hashlib.file_digest(handle, lambda: hashlib.sha1(header)).hexdigest()}"


def session():
    """A session of requests for https alone, also after a redirection, without the logins of ~/.netrc."""
    made = requests.Session()
    for scheme in {*made.adapters} - {*SCHEMES}:
        del made.adapters[scheme]
    made.auth, made.rebuild_auth = (lambda request: request), (lambda request, reply: None)
    return made


def download(url, target, resume=False, limit=LARGEST_FILE):
    """Download `url` to `target`. Raises BadInput, also for more than `limit` bytes.

    resume  continue the part that an interrupted run left; safe only if the caller checks the whole by its hash
    """
    part = target.with_name(target.name + ".part")
    make_folder(target.parent)
    for _ in range(TRIES):
        try:
            with session() as web:
                problem = _continue(web, url, part, resume, limit)
            if not problem:
                return os.replace(part, target)
        except requests.exceptions.InvalidSchema:
            problem = "only https is fetched"
        except (requests.RequestException, ValueError) as error:
            problem = type(error).__name__
        except OSError as error:
            raise BadInput(f"cannot write {shown(part)}: {error.strerror or error}; mend that and run again") from None
        if problem.startswith(("status 4", "only", "more")):
            break
    if not resume:
        part.unlink(missing_ok=True)
    raise BadInput(f"{url[:150]!r}: {problem}; run the same command again to go on")


def _continue(web, url, part, resume, limit):
    """One request; returns what is wrong, "" if the part is complete."""
    have = part.stat().st_size if resume and part.exists() else 0
    headers = {"Accept-Encoding": "identity"}  # so that ranges and sizes are of the file itself
    if have:
        headers["Range"] = f"bytes={have}-"
    with web.get(url, headers=headers, stream=True, timeout=TIMEOUT) as reply:
        continues = reply.status_code == 206
        if reply.status_code not in (200, 206, 416):
            return f"status {reply.status_code}"
        if reply.status_code == 416 or (
            continues and not reply.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        ):
            part.unlink(missing_ok=True)
            return "the server has another range than the part"
        with open(part, "ab" if continues else "wb") as handle:
            for block in reply.iter_content(CHUNK):
                handle.write(block)
                if handle.tell() > limit:
                    part.unlink()
                    return f"more than {limit:,} bytes"
        length = reply.headers.get("Content-Length")
    if length is not None and part.stat().st_size != (have if continues else 0) + int(length):
        return f"cut short at {part.stat().st_size} bytes"
    return ""


def inside(folder, name):
    """Path of a list's or an archive's file `name` in `folder`. Raises BadInput if it leads elsewhere or cannot be."""
    parts = name.split("/")
    steers = any(unicodedata.category(letter) in STEERING for letter in name)
    if steers or "\\" in name or re.match("[A-Za-z]:", name) or {"", ".", ".."} & {*parts}:
        raise BadInput(f"{name[:80]!r} is no file name inside {shown(folder)}: not written")
    if len(name.encode()) > 4 * LONGEST_NAME or max(len(part.encode()) for part in parts) > LONGEST_NAME:
        raise BadInput(f"{name[:80]!r}… is too long a file name: not written")
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise BadInput(f"{name[:80]!r} leads out of {shown(folder)} by a link: not written")
    return folder / name


def unpack(archive, folder, patterns):
    """Unpack the files of a zip archive that match a pattern into `folder`, all or none; returns their paths.

    Every name, kind and size is checked first; zipfile never unpacks more of a file than its stated size. Raises
    BadInput.
    """
    place = archive.with_name(f"{archive.name}.unpacked")
    shutil.rmtree(place, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as packed:
            names = {item.filename: item for item in packed.infolist() if not item.is_dir()}
            names = {name: names[name] for name in names if any(fnmatch.fnmatchcase(name, one) for one in patterns)}
            targets = {name: inside(folder, name) for name in names}
            if problem := _problem(names.values(), archive.stat().st_size):
                raise BadInput(f"{shown(archive)} {problem}: not unpacked")
            for name in names:
                packed.extract(name, place)
        for name, target in targets.items():
            make_folder(target.parent)
            os.replace(place / name, target)
    except OSError as error:
        raise BadInput(f"cannot unpack {shown(archive)} ({first_line(error)[:150]}): mend that and run again") from None
    except BadInput:
        raise
    except Exception as error:  # a damaged or hostile archive may raise anything in zipfile
        archive.unlink()
        reason = first_line(error)[:100]
        raise BadInput(
            f"{shown(archive)} is no whole archive ({reason}): removed; run the same command again"
        ) from None
    finally:
        shutil.rmtree(place, ignore_errors=True)
    if targets:
        return list(targets.values())
    raise BadInput(f"{shown(archive)} holds none of {', '.join(patterns)}: its layout has changed; fetch it by hand")


def _problem(items, packed_size):
    """Why files of an archive of `packed_size` bytes are not unpacked; None if they can be."""
    for item in items:
        if item.flag_bits & 1:
            return f"has an encrypted file {item.filename[:80]!r}"
        if item.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            return f"has {item.filename[:80]!r} packed by method {item.compress_type}, where only deflate is read"
        if stat.S_IFMT(item.external_attr >> 16) not in (0, stat.S_IFREG):
            return f"has a link or device {item.filename[:80]!r}"
    size, limit = sum(item.file_size for item in items), UNPACKED * packed_size + SPARE
    return f"would unpack to {size:,} bytes, more than {limit:,}" if size > limit else None


def _bring_images(source, folder, say):
    """Fetch and record each image by itself. Raises BadInput that counts those that failed."""
    items = read_records(folder.path / source.listed_in)
    missing = []
    say(f"fetching {source.path}/ ({len(items)} images) [{source.licence}], to be recorded in {RECORD}")
    for i in range(len(items)):
        try:
            name, url = text_of(items, i, source.name_field), text_of(items, i, source.url_field)
            name = name and name + (PurePosixPath(urlsplit(url).path).suffix or ".jpg")
            path = inside(folder.path / source.path, name).relative_to(folder.path).as_posix()
            one = replace(source, kind="file", url=url, path=path)
            _bring_file(one, folder, lambda line: None, LARGEST_IMAGE)
        except (BadInput, ValueError, OSError) as error:
            missing.append(first_line(error))
    if missing:
        raise BadInput(f"{len(missing)} of {len(items)} images of {source.path} are missing (first: {missing[0]})")


def _bring_dataset(source, folder, say, endpoint):
    """Fetch with huggingface_hub, which resumes by itself, the commit of the first fetch; unpack the archives."""
    if folder.has(source.path):
        return say(f"there    {source.path}/")
    say(f"fetching {source.path}/ from {source.repo} [{source.licence}]")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError

    target, before = folder.path / source.path, folder.record.get(source.path, {"files": {}})
    try:
        hub = HfApi(endpoint=endpoint)
        commit = hub.dataset_info(source.repo, revision=before.get("commit", "main")).sha
        hub.snapshot_download(source.repo, repo_type="dataset", revision=commit, local_dir=target)
    except (HTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise BadInput(f"{source.repo}: {first_line(error)[:200]}; run the same command again to go on") from None
    for archive in sorted(target.rglob("*.zip")):
        unpack(archive, archive.parent, ("*",))
    files = [file for file in sorted(target.rglob("*")) if file.is_file() and ".cache" not in file.parts]
    for name, kept in before["files"].items():
        if not (folder.path / name).is_file() or _size_and_hash(folder.path / name) != kept:
            raise BadInput(f"{name} is not what was first fetched (remove {source.path} from {RECORD} to accept it)")
    folder.note(source.path, files, source, repo=source.repo, commit=commit)
    say(f"  recorded commit {commit} and the sha256 of {len(files)} files: later fetches must give the same")
