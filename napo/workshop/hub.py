"""Hub repositories: their commit, files and licence, and the parquet shards of a data set, one by one.

huggingface_hub downloads, caches and resumes. Here its errors become one line with a remedy, and without a network its
cache answers.
"""

from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet as pq
from huggingface_hub import HfApi, constants, hf_hub_download, scan_cache_dir, try_to_load_from_cache
from huggingface_hub.errors import (
    CacheNotFound,
    GatedRepoError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from napo.workshop.files import BadInput, first_line
from napo.workshop.progress import progress
from napo.workshop.texts import printable

# From the pages of the repositories. The released biased data are built on RLAIF-V, so its terms hold for them too.
LICENCES = {
    "openbmb/RLAIF-V-Dataset": "CC BY-NC 4.0 (no commercial use)",
    "Starrrrrry/RLAIF-V-Bias-Dataset": "Apache-2.0 by its page; built on RLAIF-V, CC BY-NC 4.0 (no commercial use)",
    "llava-hf/llava-1.5-7b-hf": "Llama 2 Community License",
    "llava-hf/llava-1.5-13b-hf": "Llama 2 Community License",
}
# Endings of the files to download. Weights or rows come first; configuration, tokenizer and templates lie beside them.
NEEDED = {"model": (".safetensors", ".json", ".jinja", ".model", ".txt"), "dataset": (".parquet",)}
ONLY = {"model": "only safetensors are loaded, never pickles", "dataset": "only parquet is read"}
MARGIN = 2 * 2**30  # bytes to leave free on a disk
WHAT = {"model": "model", "dataset": "data set"}
REFUSALS = {  # GatedRepoError is a RepositoryNotFoundError, so it comes first
    GatedRepoError: "{what} {name} is gated: accept its terms on its page of the hub, then run `hf auth login`",
    RevisionNotFoundError: "{what} {name} has no revision {revision}: check it on the hub",
    (RepositoryNotFoundError, HFValidationError): "no {what} {name!r}, neither here nor on the hub: "
    "mend the name, or run `hf auth login` if it is private",
}


@dataclass(frozen=True)
class Repository:
    """A model or data set of the hub at one commit."""

    name: str
    kind: str  # "model" | "dataset"
    commit: str
    files: dict[str, int]  # name -> bytes
    licence: str

    def needed(self):
        """{name: bytes} of the files to download: weights as safetensors with their configuration, or parquet files."""
        return {name: size for name, size in self.files.items() if name.endswith(NEEDED[self.kind])}

    def missing(self):
        """{name: bytes} of the needed files that are not in the cache."""
        known = {"revision": self.commit, "repo_type": self.kind}
        cached = {name for name in self.needed() if isinstance(try_to_load_from_cache(self.name, name, **known), str)}
        return {name: size for name, size in self.needed().items() if name not in cached}


def look_up(name, kind="model", revision=None):
    """The Repository `name` at a revision (default: its main branch), from the hub or else from the cache.

    Raises BadInput if neither has it, or if it has no file that can be read.
    """
    try:
        info = HfApi().repo_info(name, repo_type=kind, revision=revision, files_metadata=True)
    except (GatedRepoError, RevisionNotFoundError, RepositoryNotFoundError, HFValidationError) as error:
        refusal = next(text for classes, text in REFUSALS.items() if isinstance(error, classes))
        raise BadInput(refusal.format(what=WHAT[kind], name=name, revision=revision)) from None
    except (HTTPError, OSError) as error:
        found = _cached(name, kind, revision, error)
    else:
        files = {item.rfilename: item.size or 0 for item in info.siblings}
        found = Repository(name, kind, info.sha, files, licence(name, info))
    ending = NEEDED[kind][0]
    if not any(file.endswith(ending) for file in found.files):
        raise BadInput(f"{WHAT[kind]} {name} has no {ending} file: {ONLY[kind]}; give another")
    return found


def licence(name, info=None):
    """A repository's licence by LICENCES, else by its card, in one line."""
    card = getattr(info, "card_data", None) or {}
    return printable(LICENCES.get(name) or card.get("license") or "not stated: see its page on the hub")[:120]


def _cached(name, kind, revision, error):
    """The Repository as the cache has it. Raises BadInput if it has none."""
    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        repositories = ()
    wanted = revision or "main"
    for known in [r for repo in repositories if (repo.repo_id, repo.repo_type) == (name, kind) for r in repo.revisions]:
        if wanted in known.refs or known.commit_hash.startswith(wanted):
            files = {f.file_path.relative_to(known.snapshot_path).as_posix(): f.size_on_disk for f in known.files}
            return Repository(name, kind, known.commit_hash, files, licence(name))
    reason, remedy = f"the hub cannot be reached ({type(error).__name__})", "check the network"
    if isinstance(error, OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
        reason, remedy = "HF_HUB_OFFLINE is set", "unset it"
    local = f"give a local path by {'MODEL' if kind == 'model' else 'DATA'}=..."
    raise BadInput(f"{WHAT[kind]} {name!r}: {reason} and the cache has none: {remedy}, or {local}")


def parquet_files(name, revision=None, rows=0):
    """Local paths of a data set's first parquet files, as many as hold `rows` rows (0: all). Fetches missing ones.

    Raises BadInput if one cannot be fetched whole.
    """
    repository = look_up(name, "dataset", revision)
    names, paths, found = sorted(repository.needed()), [], 0
    steps = progress(len(names), f"{name}: file") if repository.missing() else None
    for file in names:
        paths.append(_fetched(repository, file))
        try:
            found += pq.read_metadata(paths[-1]).num_rows
        except (pyarrow.ArrowException, OSError) as error:
            problem = f"{paths[-1]} is cut short or damaged ({first_line(error)})"
            raise BadInput(f"{problem}: delete it and run the same command again") from None
        if steps:
            steps.step()
        if rows and found >= rows:
            break
    return paths


def _fetched(repository, file):
    """Path of one file, its size checked."""
    again = "run the same command again"
    try:
        path = Path(hf_hub_download(repository.name, file, repo_type=repository.kind, revision=repository.commit))
    except (HTTPError, OSError) as error:
        raise BadInput(f"{repository.name}: {file} ({first_line(error)[:200]}): {again} to resume") from None
    size, expected = path.stat().st_size, repository.files[file]
    if size != expected:
        raise BadInput(f"{repository.name}: {file} has {size} bytes instead of {expected}: delete {path} and {again}")
    return path
