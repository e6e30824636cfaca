"""Fetch the benchmarks' official files: python -m napo.fetch [GROUP …], or `make data`.

Resumable: what is there and unchanged is not fetched again, a file cut short goes on where it stopped. SOURCES.json in
the data folder records address, licence, size and SHA-256 of each file, and whether its hash was known beforehand
("verified") or is what came on the first fetch ("recorded on first fetch"); later fetches must then equal it.
"""

import argparse
import fnmatch
import hashlib
import os
import sys
import zipfile
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from napo import artifacts
from napo.artifacts import BadInput, repository_root, shown
from napo.fetch_table import GROUPS, TABLE, ByHand, HubDataset, ListedImages, Source

RECORD = "SOURCES.json"
KNOWN, FIRST = "verified", "recorded on first fetch"
CHUNK = 1 << 16  # bytes; what is lost of a connection that breaks is less
TIMEOUT = (20, 120)  # seconds to connect, between bytes
TRIES = 4


class Folder:
    """The data folder and its record."""

    def __init__(self, path):
        self.path = Path(path)
        artifacts.make_folder(self.path)
        file = self.path / RECORD
        self.record = artifacts.read_json(file) if file.exists() else {}

    def has(self, name, digest=None):
        """Whether the file or unpacked archive `name` lies here as recorded, and as `digest` wants it."""
        entry = self.record.get(name)
        if not entry or (digest and entry["digest"] != digest):
            return False
        return all(self._same(path, kept) for path, kept in entry["files"].items())

    def _same(self, path, kept):
        file = self.path / path
        return file.is_file() and file.stat().st_size == kept["size"] and artifacts.content_hash(file) == kept["sha256"]

    def note(self, name, files, source, digest, **more):
        """Record that `name` is here, consisting of `files` (paths in this folder)."""
        described = {
            str(path): {"size": (self.path / path).stat().st_size, "sha256": artifacts.content_hash(self.path / path)}
            for path in files
        }
        self.record[name] = {
            "licence": source.licence,
            "digest": digest,
            "hash": KNOWN if digest else FIRST,
            "fetched": datetime.now(UTC).isoformat(timespec="seconds"),
            **more,
            "files": described,
        }
        artifacts.write_json(self.record, self.path / RECORD)


def fetch(sources, path, say=print, endpoint=None):
    """Bring every source into the folder `path`; returns the sources that could not be had.

    One that fails does not stop the others. `endpoint`: another hub than Hugging Face's.
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
    if isinstance(source, ByHand):
        there = "there" if (folder.path / source.path).exists() else "to be done"
        say(f"by hand ({there}) {shown(folder.path / source.path)}: {source.what}: {source.url}")
    elif isinstance(source, HubDataset):
        _bring_dataset(source, folder, say, endpoint)
    elif isinstance(source, ListedImages):
        _bring_images(source, folder, say)
    else:
        _bring_file(source, folder, say)


# ---- one file -------------------------------------------------------------------------------------------------------


def _bring_file(source, folder, say):
    archive = PurePosixPath(urlsplit(source.url).path).name
    name = f"{source.path}/{archive}" if source.members else source.path
    if folder.has(name, source.digest):
        return say(f"there    {name}")
    target = folder.path / name
    if _is_known(target, source.digest):
        say(f"there    {name}")  # brought by hand
    else:
        say(f"fetching {name} [{source.licence}]")
        download(source.url, target, checked=bool(source.digest))
    found = _check(target, source.digest, folder.record.get(name))
    paths = unpack(target, folder.path / source.path, source.members) if source.members else [target]
    files = [path.relative_to(folder.path).as_posix() for path in paths]
    folder.note(name, files, source, source.digest, url=source.url, archive_sha256=found if source.members else None)
    if source.members:
        target.unlink()


def _is_known(file, digest):
    return bool(digest) and file.is_file() and digest in (_git_id(file), f"sha256:{artifacts.content_hash(file)}")


def _check(file, digest, recorded):
    """The file's SHA-256. Raises BadInput, and removes the file, if it is not what is known or was recorded."""
    found = artifacts.content_hash(file)
    expected = digest
    if digest is None and recorded:
        before = recorded.get("archive_sha256") or next(iter(recorded["files"].values()))["sha256"]
        expected = f"sha256:{before}"
    actual = _git_id(file) if expected and expected.startswith("git:") else f"sha256:{found}"
    if expected and actual != expected:
        file.unlink()
        known = "the known file" if digest else f"what was first fetched (remove its entry from {RECORD} to accept it)"
        raise BadInput(f"{shown(file)} is not {known}: {actual} instead of {expected}; removed")
    return found


def _git_id(file):
    """git:<id>, the id that git gives to a file's contents."""
    total = hashlib.sha1(f"blob {file.stat().st_size}\0".encode())
    with open(file, "rb") as handle:
        while block := handle.read(CHUNK):
            total.update(block)
    return f"git:{total.hexdigest()}"


def download(url, target, checked=False):
    """Write what `url` holds to `target`, going on with a part that an interrupted run left beside it.

    A part is only continued if the server says that the file is still the same (its ETag), or if the whole will be
    `checked` against a known hash. Raises BadInput.
    """
    import requests

    part, tag = target.with_name(target.name + ".part"), target.with_name(target.name + ".part.etag")
    artifacts.make_folder(target.parent)
    problem = ""
    for _ in range(TRIES):
        try:
            complete, problem = _continue(url, part, tag, checked)
            if complete:
                os.replace(part, target)
                return tag.unlink(missing_ok=True)
        except requests.RequestException as error:
            problem = f"{type(error).__name__}"
        except OSError as error:
            raise BadInput(f"cannot write {shown(part)}: {error.strerror or error}; run again when put right") from None
        if problem.startswith("status 4"):
            break
    raise BadInput(f"{url}: {problem}; run the same command again to go on")


def _continue(url, part, tag, checked):
    """(whether the part is complete, what is wrong if not) after one request."""
    import requests

    have = part.stat().st_size if part.exists() and (checked or tag.exists()) else 0
    headers = {"Accept-Encoding": "identity"}  # so that ranges and sizes are of the file itself
    if have:
        headers["Range"] = f"bytes={have}-"
        headers |= {"If-Range": tag.read_text(encoding="utf-8")} if tag.exists() else {}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as reply:
        if reply.status_code not in (200, 206):
            if reply.status_code == 416:  # the part is no part of that file: start anew
                part.unlink()
                return False, "part too long"
            return False, f"status {reply.status_code} {reply.reason}"
        goes_on = reply.status_code == 206 and reply.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if reply.status_code == 206 and not goes_on:
            part.unlink(missing_ok=True)
            return False, "the server sent another range than asked for"
        have = have if goes_on else 0
        _keep_tag(tag, reply.headers.get("ETag"))
        with open(part, "ab" if goes_on else "wb") as handle:
            for block in reply.iter_content(CHUNK):
                handle.write(block)
        length = reply.headers.get("Content-Length")
    if length is not None and part.stat().st_size != have + int(length):
        return False, f"cut short at {part.stat().st_size} bytes"
    return True, ""


def _keep_tag(tag, value):
    """Without a strong ETag nothing tells whether the file is still the same, so its part is not continued."""
    if value and not value.startswith("W/"):
        tag.write_text(value, encoding="utf-8")
    else:
        tag.unlink(missing_ok=True)


def unpack(archive, folder, patterns):
    """Files of a zip archive that fit a pattern, each written whole into `folder`. Raises BadInput."""
    written = []
    try:
        with zipfile.ZipFile(archive) as packed:
            wanted = [item for item in packed.infolist() if not item.is_dir() and _fits(item.filename, patterns)]
            for item in wanted:
                path = folder / item.filename
                if not path.resolve().is_relative_to(folder.resolve()):
                    raise BadInput(
                        f"{shown(archive)} holds {item.filename!r}, which would leave its folder; not unpacked"
                    )
                with artifacts.atomic(path) as temporary, packed.open(item) as source, open(temporary, "wb") as handle:
                    while block := source.read(CHUNK):
                        handle.write(block)
                written.append(path)
    except (zipfile.BadZipFile, EOFError) as error:
        archive.unlink()
        raise BadInput(f"{shown(archive)} is no whole archive ({error}); removed, run the same command again") from None
    if not written:
        raise BadInput(f"{shown(archive)} holds none of {', '.join(patterns)}: its layout has changed")
    return written


def _fits(name, patterns):
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


# ---- many files -----------------------------------------------------------------------------------------------------


def _bring_images(source, folder, say):
    """Each image is recorded by itself; those that are gone from where they were are named together."""
    items = artifacts.read_json(artifacts.require(folder.path / source.listed_in, "data"))
    missing = []
    say(f"fetching {source.path}/ ({len(items)} images) [{source.licence}]")
    for item in items:
        suffix = PurePosixPath(urlsplit(item[source.address]).path).suffix or ".jpg"
        one = Source(source.group, item[source.address], f"{source.path}/{item[source.name]}{suffix}", source.licence)
        try:
            _bring_file(one, folder, say=lambda line: None)
        except BadInput as error:
            missing.append(str(error))
    if missing:
        raise BadInput(f"{len(missing)} of {len(items)} images of {source.path} (first: {missing[0]})")


def _bring_dataset(source, folder, say, endpoint):
    """By huggingface_hub, which resumes and checks by itself."""
    if folder.has(source.path):
        return say(f"there    {source.path}/")
    say(f"fetching {source.path}/ from {source.repo} [{source.licence}]")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError  # HTTPError: of the client that it uses

    target = folder.path / source.path
    try:
        hub = HfApi(endpoint=endpoint)
        commit = hub.dataset_info(source.repo, revision=source.revision).sha
        hub.snapshot_download(source.repo, repo_type="dataset", revision=commit, local_dir=target)
    except (HTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise BadInput(f"{source.repo}: {reason[:200]}; run the same command again to go on") from None
    for archive in sorted(target.rglob("*.zip")):
        unpack(archive, archive.parent, ("*",))
    files = [file for file in sorted(target.rglob("*")) if file.is_file() and ".cache" not in file.parts]
    names = [file.relative_to(folder.path).as_posix() for file in files]
    folder.note(source.path, names, source, None, repo=source.repo, commit=commit)


# ---- command --------------------------------------------------------------------------------------------------------


def table(sources):
    """The sources as lines of text, licence and what is known of the hash included."""
    lines = []
    for source in sources:
        where = getattr(source, "url", None) or getattr(source, "repo", None) or f"addresses in {source.listed_in}"
        digest = getattr(source, "digest", None)
        known = (digest or "hash not known").partition(":")[0] + (" known" if digest else "")
        lines.append(f"{source.group:7} {source.path:45} {source.licence}; {known}; {where}")
    return lines


def main(arguments=None, sources=TABLE):
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m napo.fetch", description="Fetch the benchmarks' official files.")
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {' '.join(GROUPS)}; default: all")
    parser.add_argument("--to", default=repository_root() / "data", help="default: data/ in the repository")
    parser.add_argument("--large", action="store_true", help="also what has many gigabytes (COCO's images, for POPE)")
    parser.add_argument("--list", action="store_true", help="only show the table: places, licences, hashes")
    asked = parser.parse_args(arguments)
    try:
        chosen = _chosen(sources, asked)
        if asked.list:
            print("\n".join(table(chosen)))
            return 0
        failed = fetch(chosen, asked.to)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if failed:
        print(
            f"error: {len(failed)} of {len(chosen)} sources are missing; run the same command to go on", file=sys.stderr
        )
        return 1
    print(f"all there: {shown(asked.to)}/, recorded in {RECORD}")
    return 0


def _chosen(sources, asked):
    groups = {source.group for source in sources}
    unknown = [group for group in asked.groups if group not in groups]
    if unknown:
        raise BadInput(f"unknown group {unknown[0]!r}: use {', '.join(sorted(groups))}")
    return [s for s in sources if (not asked.groups or s.group in asked.groups) and (asked.large or not s.large)]


if __name__ == "__main__":
    sys.exit(main())
