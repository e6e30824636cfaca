"""Hub repositories: which commit, which files of which size, under which licence; and parquet shards one by one.

huggingface_hub does the work: it caches, goes on with a file that was cut short, and gives a file its name only when
it is whole. Here its errors become one line with a remedy, and what needs no network is read off its cache.
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

from napo.artifacts import BadInput, progress

# What the repositories' own pages say. The released biased data are built on RLAIF-V: its terms go on to hold for them.
LICENCES = {
    "openbmb/RLAIF-V-Dataset": "CC BY-NC 4.0 (no commercial use)",
    "Starrrrrry/RLAIF-V-Bias-Dataset": "Apache-2.0 by its page; built on RLAIF-V, CC BY-NC 4.0 (no commercial use)",
    "llava-hf/llava-1.5-7b-hf": "Llama 2 Community License",
    "llava-hf/llava-1.5-13b-hf": "Llama 2 Community License",
}
WEIGHTS = (".safetensors",)
BESIDE_WEIGHTS = (".json", ".jinja", ".model", ".txt")  # configuration, tokenizer, templates
ROWS_FILES = (".parquet",)
MARGIN = 2 * 2**30  # bytes that stay free on a disk


@dataclass(frozen=True)
class Repository:
    """A model or data set of the hub at one commit."""

    name: str
    kind: str  # "model" | "dataset"
    commit: str
    files: dict[str, int]  # name -> bytes
    licence: str

    def needed(self):
        """The files that are read: weights in safetensors and what lies beside them, or parquet files."""
        endings = ROWS_FILES if self.kind == "dataset" else WEIGHTS + BESIDE_WEIGHTS
        return {name: size for name, size in self.files.items() if name.endswith(endings)}

    def missing(self):
        """Those of them that are not in the cache."""
        known = {"revision": self.commit, "repo_type": self.kind}
        return {
            name: size
            for name, size in self.needed().items()
            if not isinstance(try_to_load_from_cache(self.name, name, **known), str)
        }


def look_up(name, kind="model", revision=None):
    """The Repository `name` at a revision (default: its main branch). Raises BadInput if it cannot be had.

    Without network, or where HF_HUB_OFFLINE is set, what the cache holds of it.
    """
    what = {"model": "model", "dataset": "data set"}[kind]
    try:
        info = HfApi().repo_info(name, repo_type=kind, revision=revision, files_metadata=True)
    except GatedRepoError:
        raise BadInput(
            f"{what} {name} is gated: accept its terms on its page of the hub, then run `hf auth login`"
        ) from None
    except RevisionNotFoundError:
        raise BadInput(f"{what} {name} has no revision {revision}: check it on the hub") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise BadInput(
            f"no {what} {name!r}, neither here nor on the hub: mend the name, or run `hf auth login` if it is private"
        ) from None
    except (OfflineModeIsEnabled, HTTPError, OSError) as error:
        return _cached(name, kind, revision, what, error)
    files = {item.rfilename: item.size or 0 for item in info.siblings}
    return _checked(Repository(name, kind, info.sha, files, licence(name, info)), what)


def licence(name, info=None):
    """What is known of a repository's licence: this kit's note, or what its card says."""
    card = getattr(info, "card_data", None) or {}
    return LICENCES.get(name) or card.get("license") or "not stated: see its page on the hub"


def _cached(name, kind, revision, what, error):
    """The same without network. Raises BadInput if the cache holds nothing of it."""
    offline = isinstance(error, OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE
    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        repositories = ()
    revisions = [r for repo in repositories if (repo.repo_id, repo.repo_type) == (name, kind) for r in repo.revisions]
    wanted = revision or "main"
    for known in revisions:
        if wanted in known.refs or known.commit_hash.startswith(wanted):
            files = {f.file_path.relative_to(known.snapshot_path).as_posix(): f.size_on_disk for f in known.files}
            return _checked(Repository(name, kind, known.commit_hash, files, licence(name)), what)
    reason = "HF_HUB_OFFLINE is set" if offline else f"the hub cannot be reached ({type(error).__name__})"
    remedy = "unset it" if offline else "check the network"
    option = "MODEL" if kind == "model" else "DATA"
    raise BadInput(f"{what} {name!r}: {reason} and the cache has none: {remedy}, or give a local path by {option}=...")


def _checked(repository, what):
    endings = ROWS_FILES if repository.kind == "dataset" else WEIGHTS
    if not any(name.endswith(endings) for name in repository.files):
        reason = "only safetensors are loaded, never pickles" if repository.kind == "model" else "only parquet is read"
        raise BadInput(f"{what} {repository.name} has no {endings[0]} file: {reason}; give another")
    return repository


def parquet_files(name, revision=None, rows=0):
    """Local paths of a data set's parquet files, in order, as many as `rows` need (0: all), fetched where missing.

    Raises BadInput if one cannot be had whole.
    """
    repository = look_up(name, "dataset", revision)
    names, paths, found = sorted(repository.needed()), [], 0
    steps = progress(len(names), f"{name}: file") if repository.missing() else None
    for file in names:
        paths.append(_fetched(repository, file))
        found += _number_of_rows(paths[-1])
        if steps:
            steps.step()
        if rows and found >= rows:
            break
    return paths


def _fetched(repository, file):
    """Path of one file. The hub's client names a file only when it is whole; its size is checked all the same."""
    try:
        path = Path(hf_hub_download(repository.name, file, repo_type=repository.kind, revision=repository.commit))
    except (HTTPError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise BadInput(f"{repository.name}: {file} ({reason}): run the same command again to go on") from None
    if path.stat().st_size != repository.files[file]:
        raise BadInput(
            f"{repository.name}: {file} has {path.stat().st_size} bytes instead of {repository.files[file]}: "
            f"delete {path} and run the same command again"
        )
    return path


def _number_of_rows(path):
    try:
        return pq.read_metadata(path).num_rows
    except (pyarrow.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInput(f"{path} is cut short or damaged ({reason}): delete it and run the same command again") from None
