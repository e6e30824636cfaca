"""`napo share`: write a trained adapter, or the data with their biased answers, as a folder with a card.

    napo share adapter --profile paper --method napo_paper --to FOLDER [--push you/name]
    napo share data --profile paper --to FOLDER [--push you/name]

Every number on a card is read from the run: settings and versions from provenance.json, scores from scores.parquet.
Nothing is uploaded without --push.
"""

import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from huggingface_hub import CardData, HfApi, RepoCard
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled
from peft import PeftConfig

from napo import profiles
from napo.commands import command
from napo.comparison.cells import cell_folder
from napo.engine import preferences
from napo.methods import ALPHA, METHODS
from napo.preflight import checks
from napo.study import frames, markdown
from napo.workshop import artifacts, hub
from napo.workshop.files import BadInput, atomic, first_line, provenance, read_parquet, require, shown


def adapter_card(cell, profile, runs_dir="runs"):
    """README.md of an adapter, with scores if it is evaluated. Raises MissingArtifact if the cell is not trained."""
    folder = cell_folder(profile, cell, runs_dir)
    adapter, file, scores = require(folder / "adapter", "03"), folder / "scores.parquet", []
    if file.exists():
        scores = list(frames.results_table(read_parquet(file, "04"), np.random.default_rng(0)).itertuples())
    facts = {"cell": cell, "method": METHODS[cell.method], "alpha": ALPHA, "scores": scores}
    return _card("adapter", profile, adapter, facts | {"arrows": markdown.ARROW, "number": markdown.number})


def data_card(profile, base=0, runs_dir="runs"):
    """README.md of the preference pairs with their biased answers."""
    pairs = require(pairs_of(profile, base, runs_dir), "01")
    return _card("data", profile, pairs, {"rows": preferences.read(pairs)})


def _card(name, profile, path, facts):
    """A card: the Jinja template of that name and the one on origin, for the artefact at `path`."""
    text = command.template(name) + command.template("origin")
    facts |= {"profile": profile, "model": named(profile.model), "data": named(profile.data), "is_local": is_local}
    facts |= {"licence": source_licence, "record": provenance(path), "plain": markdown.plain}
    return f"{RepoCard.from_template(CardData(), template_str=text, **facts)}\n"


def source_licence(name):
    """The licence of a hub repository; of local files only their owner knows it."""
    return "of your own files: state it before you share this" if is_local(name) else hub.licence(name)


def is_local(name):
    """Whether a name is a path: it exists here, or cannot be a hub id (owner/name)."""
    return Path(name).exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) or name.endswith(".parquet")


def named(name):
    """A hub id unchanged; of a local path only the last part, since a card should not reveal folders."""
    return Path(name).absolute().name if is_local(name) else name


def pairs_of(profile, base, runs_dir):
    return artifacts.run_folder(profile.name, f"base-{base}", "pairs.parquet", runs_dir=runs_dir)


def write_adapter(cell, profile, to, runs_dir="runs"):
    """Write the folder `to`: the adapter in peft's format and its card. Raises BadInput."""
    text = adapter_card(cell, profile, runs_dir)
    adapter = cell_folder(profile, cell, runs_dir) / "adapter"
    check_replaceable(to, "adapter_config.json")
    with atomic(to) as folder:
        config = PeftConfig.from_pretrained(str(adapter))
        config.base_model_name_or_path = named(profile.model)
        config.save_pretrained(str(folder))
        shutil.copyfile(adapter / "adapter_model.safetensors", folder / "adapter_model.safetensors")
        (folder / "README.md").write_text(text, encoding="utf-8")
    return Path(to)


def write_data(profile, to, base=0, runs_dir="runs"):
    """Write the folder `to`: the pairs as parquet and their card. Raises BadInput."""
    text = data_card(profile, base, runs_dir)
    pairs = pairs_of(profile, base, runs_dir)
    check_replaceable(to, "data/pairs.parquet")
    named_paths = pq.ParquetFile(pairs).read(["image.path"])["image"].combine_chunks().field("path").to_pylist()
    if any(path and Path(path).name != path for path in named_paths):
        raise BadInput(f"{shown(pairs)} names places of pictures on this machine: run notebook 01 again")
    with atomic(to) as folder:
        (folder / "data").mkdir(parents=True)
        shutil.copyfile(pairs, folder / "data" / "pairs.parquet")
        (folder / "README.md").write_text(text, encoding="utf-8")
    return Path(to)


def check_replaceable(to, own):
    """Raises BadInput if `to` holds anything but an earlier export (the file `own`, a card), or is a run's artefact."""
    to = Path(to)
    written_here = (to / own).is_file() and (to / "README.md").is_file() and not provenance(to.absolute())
    if to.exists() and not written_here and (not to.is_dir() or any(to.iterdir())):
        raise BadInput(f"{shown(to)} holds something else: give a new folder by --to")


def push(folder, name, kind):
    """Upload a folder to the private repository `name` of this kind, as the hub names it. Returns the address."""
    try:
        api = HfApi()
        address = api.create_repo(name, repo_type=kind, private=True, exist_ok=True)
        api.upload_folder(repo_id=name, repo_type=kind, folder_path=str(folder), commit_message="Upload with its card")
    except (HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled, OSError) as error:
        failed = f"cannot push {shown(folder)} to {name} ({first_line(error)[:120]})"
        raise BadInput(f"{failed}: run `hf auth login`, check name and network") from error
    return str(address)


def parser():
    """The command's arguments; the profile's overrides are those that the run was given."""
    top = command.parser("share")
    top.add_argument("what", choices=("adapter", "data"))
    top.add_argument("--to", required=True, metavar="FOLDER", help="folder to write; an earlier export is replaced")
    top.add_argument("--push", default="", metavar="NAME", help="also upload to this repository of the hub (private)")
    command.add_profile(top, "paper", ("model", "data", "rows", "device"))
    top.add_argument("--method", default="napo_paper", help="of the adapter; default: napo_paper")
    top.add_argument("--seed", type=int, default=0)
    top.add_argument("--base", type=int, default=0)
    return top


@command.exit_status
def main(arguments=None):
    asked = parser().parse_args(arguments)
    profile = command.asked_profile(asked)
    profile = checks.at_commits(profile, checks.pinned(profile, asked.runs_dir))
    if asked.what == "adapter":
        profiles.method(asked.method)
        write_adapter(profiles.Cell(asked.method, asked.base, asked.seed), profile, asked.to, asked.runs_dir)
    else:
        write_data(profile, asked.to, asked.base, asked.runs_dir)
    print(shown(asked.to))
    if asked.push:
        print(push(asked.to, asked.push, "model" if asked.what == "adapter" else "dataset"))
