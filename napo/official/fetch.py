"""Fetch the official files of the benchmarks into a data folder.

A rerun fetches only files that are missing or changed, and continues a file where an earlier run stopped. SOURCES.json
in the folder records each file's address, licence, size and SHA-256, and whether its hash was known ("verified") or
comes from the first fetch ("recorded on first fetch"); later fetches must then give the same file.

The library `pooch` would not do: it neither continues a file (COCO's images are 6 GB) nor checks git's blob ids, which
are all that is known of two of the files.
"""

import fnmatch
import hashlib
import os
import shutil
import zipfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from napo.workshop import artifacts
from napo.workshop.files import BadInput, atomic, make_folder, read_json, require, shown, write_json

RECORD = "SOURCES.json"
CHUNK = 1 << 16  # bytes; a broken connection loses less than this
TIMEOUT = (20, 120)  # seconds: to connect, between bytes
TRIES = 4


class Folder:
    """The data folder and its record."""

    def __init__(self, path):
        self.path = Path(path)
        make_folder(self.path)
        file = self.path / RECORD
        self.record = read_json(file) if file.exists() else {}

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
    return {"size": path.stat().st_size, "sha256": artifacts.content_hash(path)}


def fetch(sources, path, say=print, endpoint=None):
    """Fetch every source into the folder `path`; returns the sources that failed. A failure does not stop the others.

    endpoint  address of another hub than Hugging Face's
    """
    folder, failed = Folder(path), []
    for source in sources:
        try:
            _bring(source, folder, say, endpoint)
        except BadInput as error:
            failed.append(source)
            say(f"  not fetched: {error}")
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


def _bring_file(source, folder, say):
    archive = PurePosixPath(urlsplit(source.url).path).name
    name = f"{source.path}/{archive}" if source.members else source.path
    if folder.has(name, source.digest):
        return say(f"there    {name}")
    target = folder.path / name
    if source.digest and target.is_file() and _digest(target, source.digest) == source.digest:
        say(f"there    {name}")  # brought by hand
    else:
        say(f"fetching {name} [{source.licence}]")
        download(source.url, target, checked=bool(source.digest))
    _check(target, source.digest, folder.record.get(name))
    if not source.members:
        return folder.note(name, [target], source, url=source.url)
    archive_hash = artifacts.content_hash(target)
    paths = unpack(target, folder.path / source.path, source.members)
    folder.note(name, paths, source, url=source.url, archive_sha256=archive_hash)
    target.unlink()


def _check(file, digest, recorded):
    """Raises BadInput, and removes the file, if it is not the known file or not the one that was recorded."""
    expected, wanted = digest, "the known file"
    if not digest and recorded:
        before = recorded.get("archive_sha256") or next(iter(recorded["files"].values()))["sha256"]
        expected = f"sha256:{before}"
        wanted = f"what was first fetched (remove its entry from {RECORD} to accept it)"
    if expected and (actual := _digest(file, expected)) != expected:
        file.unlink()
        raise BadInput(f"{shown(file)} is not {wanted}: {actual} instead of {expected}; removed")


def _digest(file, like):
    """The file's digest, of the same kind as `like`: "sha256:…", or "git:…", the id that git gives to the contents."""
    if not like.startswith("git:"):
        return f"sha256:{artifacts.content_hash(file)}"
    header = f"blob {file.stat().st_size}\0".encode()
    with open(file, "rb") as handle:
        return f"git:{hashlib.file_digest(handle, lambda: hashlib.sha1(header)).hexdigest()}"


def download(url, target, checked=False):
    """Download `url` to `target`; continues the part that an interrupted run left beside it.

    It continues a part only if the server confirms by its ETag that the file is the same, or if the caller will check
    the whole against a known hash (`checked`). Raises BadInput.
    """
    import requests

    part, tag = target.with_name(target.name + ".part"), target.with_name(target.name + ".part.etag")
    make_folder(target.parent)
    for _ in range(TRIES):
        try:
            problem = _continue(url, part, tag, checked)
            if not problem:
                os.replace(part, target)
                return tag.unlink(missing_ok=True)
        except requests.RequestException as error:
            problem = type(error).__name__
        except OSError as error:
            raise BadInput(f"cannot write {shown(part)}: {error.strerror or error}; mend that and run again") from None
        if problem.startswith("status 4"):
            break
    raise BadInput(f"{url}: {problem}; run the same command again to go on")


def _continue(url, part, tag, checked):
    """One request; returns what is wrong, "" if the part is complete."""
    import requests

    have = part.stat().st_size if part.exists() and (checked or tag.exists()) else 0
    headers = {"Accept-Encoding": "identity"}  # so that ranges and sizes are of the file itself
    if have:
        headers["Range"] = f"bytes={have}-"
        headers |= {"If-Range": tag.read_text(encoding="utf-8")} if tag.exists() else {}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as reply:
        if reply.status_code == 416:  # the part is longer than the file: start again
            part.unlink()
            return "part too long"
        if reply.status_code not in (200, 206):
            return f"status {reply.status_code} {reply.reason}"
        continues = reply.status_code == 206
        if continues and not reply.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            part.unlink(missing_ok=True)
            return "the server sent another range than asked for"
        have = have if continues else 0
        etag = reply.headers.get("ETag", "")
        if etag and not etag.startswith("W/"):
            tag.write_text(etag, encoding="utf-8")
        else:  # nothing confirms that the file is still the same
            tag.unlink(missing_ok=True)
        with open(part, "ab" if continues else "wb") as handle:
            for block in reply.iter_content(CHUNK):
                handle.write(block)
        length = reply.headers.get("Content-Length")
    if length is not None and part.stat().st_size != have + int(length):
        return f"cut short at {part.stat().st_size} bytes"
    return ""


def unpack(archive, folder, patterns):
    """Unpack the files of a zip archive that match a pattern into `folder`; returns their paths. Raises BadInput."""
    written = []
    try:
        with zipfile.ZipFile(archive) as packed:
            for item in packed.infolist():
                if item.is_dir() or not any(fnmatch.fnmatchcase(item.filename, pattern) for pattern in patterns):
                    continue
                path = folder / item.filename
                if not path.resolve().is_relative_to(folder.resolve()):
                    raise BadInput(f"{shown(archive)} holds {item.filename!r}, outside its folder: not unpacked")
                with atomic(path) as temporary, packed.open(item) as source, open(temporary, "wb") as handle:
                    shutil.copyfileobj(source, handle)
                written.append(path)
    except (zipfile.BadZipFile, EOFError) as error:
        archive.unlink()
        raise BadInput(f"{shown(archive)} is no whole archive ({error}): removed; run the same command again") from None
    if written:
        return written
    raise BadInput(f"{shown(archive)} holds none of {', '.join(patterns)}: its layout has changed; fetch it by hand")


def _bring_images(source, folder, say):
    """Fetch and record each image by itself. Raises BadInput that counts those that failed."""
    items = read_json(require(folder.path / source.listed_in, "data"))
    missing = []
    say(f"fetching {source.path}/ ({len(items)} images) [{source.licence}]")
    for item in items:
        url = item[source.url_field]
        suffix = PurePosixPath(urlsplit(url).path).suffix or ".jpg"
        one = replace(source, kind="file", url=url, path=f"{source.path}/{item[source.name_field]}{suffix}")
        try:
            _bring_file(one, folder, say=lambda line: None)
        except BadInput as error:
            missing.append(str(error))
    if missing:
        raise BadInput(f"{len(missing)} of {len(items)} images of {source.path} are missing (first: {missing[0]})")


def _bring_dataset(source, folder, say, endpoint):
    """Fetch with huggingface_hub, which resumes and checks by itself, and unpack the archives."""
    if folder.has(source.path):
        return say(f"there    {source.path}/")
    say(f"fetching {source.path}/ from {source.repo} [{source.licence}]")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError

    target = folder.path / source.path
    try:
        hub = HfApi(endpoint=endpoint)
        commit = hub.dataset_info(source.repo, revision="main").sha
        hub.snapshot_download(source.repo, repo_type="dataset", revision=commit, local_dir=target)
    except (HTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise BadInput(f"{source.repo}: {reason[:200]}; run the same command again to go on") from None
    for archive in sorted(target.rglob("*.zip")):
        unpack(archive, archive.parent, ("*",))
    files = [file for file in sorted(target.rglob("*")) if file.is_file() and ".cache" not in file.parts]
    folder.note(source.path, files, source, repo=source.repo, commit=commit)
