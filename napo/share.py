"""A trained adapter, or the data with their biased answers, as a folder with its card; to the hub only when asked.

    python -m napo.share adapter --profile paper --method napo_paper --to FOLDER [--push you/name]
    python -m napo.share data --profile paper --to FOLDER [--push you/name]

The card's every number is read off the run: settings and versions from provenance.json, scores from scores.parquet.
"""

import argparse
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from huggingface_hub import CardData, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled
from peft import PeftConfig

from napo import artifacts, command, data, hub, preflight, profiles, stats, train
from napo.artifacts import BadInput
from napo.profiles import ALPHA, METHODS
from napo.report import markdown_table, number

KIT = "noise-aware preference optimisation (Zhang et al., CVPR 2025, arXiv 2503.17928)"
NOT_THE_PAPERS = (
    "The paper trained all weights on 8 GPUs; this is LoRA on a {base} base, so its numbers are not the paper's."
)
MERGING = (
    "It was trained, and is evaluated, on the base in 4 bits. To merge it, load the base as above, or in 4 bits and "
    "unpack it (`base = base.dequantize()`); do not merge it into a 4-bit base, whose rounding takes most of a small "
    "adapter away."
)


# ---- cards ----------------------------------------------------------------------------------------------------------


def adapter_card(cell, profile, runs_dir="runs"):
    """README.md of an adapter: base, data, method, convention, settings, scores with intervals, versions, licences.

    Raises MissingArtifact where the cell has not been trained.
    """
    folder = train.cell_folder(profile, cell, runs_dir)
    adapter, method = artifacts.require(folder / "adapter", "03"), METHODS[cell.method]
    base = commits(profile)
    head = {
        "base_model": named(profile.model),
        "library_name": "peft",
        "pipeline_tag": "image-text-to-text",
        "datasets": [] if is_local(profile.data) else [profile.data],
        "license": "other",
        "license_name": "see-licences-below",
        "tags": ["napo", "preference-optimization", "lora"],
    }
    four_bit = profile.quantisation.four_bit
    text = [
        f"# {method.label}, {named(profile.model).rpartition('/')[2]}",
        f"A LoRA adapter trained by {KIT}. {NOT_THE_PAPERS.format(base='4-bit NF4' if four_bit else 'frozen')}",
        "## Use",
        f"```python\n{use(profile)}\n```",
        *([MERGING] if four_bit else []),
        "## Training",
        markdown_table(["setting", "value"], described(cell, profile, base)),
        "## Scores",
        scores_table(folder),
        *made_with(adapter),
        *licences(profile, with_model=True),
    ]
    return front_matter(head) + "\n\n".join(text) + "\n"


def data_card(profile, base=0, runs_dir="runs"):
    """README.md of the preference pairs with their biased answers."""
    pairs = artifacts.require(pairs_of(profile, base, runs_dir), "01")
    rows, settings = data.read(pairs), profile.perturbation
    noise = {kind: [flag for flag in rows[f"is_noise_{kind}"] if flag] for kind in data.BIASED}
    head = {
        "license": "other",
        "license_name": "see-licences-below",
        "task_categories": ["image-text-to-text"],
        "tags": ["napo", "preference", "modality-bias"],
    }
    beams = f"{settings.num_beams} beams" if settings.num_beams > 1 else "greedy"
    about = [
        ["source", f"{named(profile.data)}{at(profile.data_revision)}"],
        ["rows", f"{len(rows):,}: {rows['split'].count('train'):,} train, {rows['split'].count('heldout'):,} heldout"],
        [
            "answers by",
            f"{named(profile.model)}{at(profile.revision)}, {beams}, at most {settings.max_new_tokens} tokens",
        ],
        ["language_biased", f"answer with the image masked ({settings.image})"],
        ["vision_biased", "answer with the question masked"],
        *([kind + " equal to the chosen answer", f"{len(found):,} rows (noise)"] for kind, found in noise.items()),
    ]
    text = [
        f"# Preference pairs with biased answers, from {named(profile.data)}",
        f"Rows of preference pairs, each with two more rejected answers for {KIT}. Such answers are noisy: some are "
        "right by chance. `is_noise_*` is true where that is known, null where not.",
        markdown_table(["", ""], about),
        *made_with(pairs),
        *licences(profile, with_model=True),
    ]
    return front_matter(head) + "\n\n".join(text) + "\n"


def front_matter(head):
    """A card's YAML head, empty fields left out."""
    return f"---\n{CardData(**{name: value for name, value in head.items() if value}).to_yaml()}\n---\n\n"


def use(profile):
    """How people load the adapter, in stock transformers and peft."""
    return (
        "from peft import PeftModel\n"
        "from transformers import AutoModelForImageTextToText, AutoProcessor\n\n"
        f'base = AutoModelForImageTextToText.from_pretrained("{named(profile.model)}", dtype="bfloat16")\n'
        'model = PeftModel.from_pretrained(base, "THIS_REPOSITORY")  # or .merge_and_unload()\n'
        f'processor = AutoProcessor.from_pretrained("{named(profile.model)}")'
    )


def described(cell, profile, base):
    """Rows of the table of settings."""
    method, training, lora = METHODS[cell.method], profile.training, profile.lora
    terms = "; ".join(
        f"{term.loss} on {term.kind}"
        + (f" (q by the {term.margin} margin, α {ALPHA[term.margin]:g})" if term.loss == "napo" else "")
        for term in method.terms
    )
    gamma = method.gamma if isinstance(method.gamma, str) else ", ".join(f"{weight:g}" for weight in method.gamma)
    return [
        ["base model", f"{named(profile.model)}{at(base['model'])}"],
        ["data", f"{named(profile.data)}{at(base['data'])}"],
        ["method", f"{cell.method}: {terms or 'SFT on chosen'}"],
        ["convention of q", method.convention],
        ["γ", gamma],
        ["β", f"{training.beta:g}"],
        ["training rows", f"{profile.rows:,} at most"],
        ["epochs, rows a step", f"{training.epochs:g}, {training.batch_size * training.accumulation}"],
        ["learning rate, schedule", f"{training.learning_rate:g}, {training.schedule}"],
        ["LoRA", f"rank {lora.r}, scale {lora.alpha}, every linear layer of the language model"],
        ["base in 4 bits (NF4)", "yes" if profile.quantisation.four_bit else "no"],
        ["seed, labels swapped", f"{cell.seed}, {cell.flip_rate:g}"],
    ]


def scores_table(folder):
    """Every measure of the cell with its interval over examples; a line that says so where none was taken."""
    file = folder / "scores.parquet"
    if not file.exists():
        return "Not evaluated yet (notebook 04)."
    table = stats.results_table(pd.read_parquet(file), np.random.default_rng(0))
    rows = [
        [r.label, {"higher": "↑", "lower": "↓"}.get(r.better, ""), number(r.value, r.lo, r.hi, 3), r.over, r.n]
        for r in table.itertuples()
    ]
    return markdown_table(["measure", "", "value [95 %]", "interval over", "n"], rows)


def made_with(path):
    """Section with commit, device and versions of the artefact, from its provenance."""
    record = artifacts.provenance(path)
    versions = ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items())
    commit = f"{record.get('git_commit') or 'unknown'}{' (with changes)' if record.get('git_dirty') else ''}"
    rows = [["kit, commit", commit], ["device", record.get("device", "unknown")], ["versions", versions]]
    return ["## Made with", markdown_table(["", ""], [*rows, ["date", record.get("created", "unknown")]])]


def licences(profile, with_model):
    """Section with the licences of what this was made from."""
    rows = [[named(profile.data), source_licence(profile.data)]]
    rows += [[named(profile.model), source_licence(profile.model)]] if with_model else []
    return [
        "## Licences",
        markdown_table(["made from", "licence"], rows),
        "What is made from them keeps to their terms; RLAIF-V's exclude commercial use.",
    ]


def source_licence(name):
    return "of your own files: state it before you share this" if is_local(name) else hub.licence(name)


def is_local(name):
    """Whether a model or data set lies, or lay, on this machine: it is there, or cannot be a hub id (owner/name)."""
    return Path(name).exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) or name.endswith(".parquet")


def named(name):
    """A hub id as it is, a local path by its last part: where it lay is nobody's business."""
    return Path(name).absolute().name if is_local(name) else name


def at(revision):
    return f" at {revision}" if revision else ""


def commits(profile):
    return {"model": profile.revision, "data": profile.data_revision}


def pairs_of(profile, base, runs_dir):
    return artifacts.run_folder(profile.name, f"base-{base}", "pairs.parquet", runs_dir=runs_dir)


# ---- folders and the hub --------------------------------------------------------------------------------------------


def write_adapter(cell, profile, to, runs_dir="runs"):
    """Folder `to` with the adapter in peft's own format, its steps and its card."""
    card = adapter_card(cell, profile, runs_dir)
    check_replaceable(to, "adapter_config.json")
    with artifacts.atomic(to) as folder:
        shutil.copytree(train.cell_folder(profile, cell, runs_dir) / "adapter", folder)
        config = PeftConfig.from_pretrained(str(folder))
        config.base_model_name_or_path = named(profile.model)
        config.save_pretrained(str(folder))
        (folder / "README.md").write_text(card, encoding="utf-8")
    return Path(to)


def write_data(profile, to, base=0, runs_dir="runs"):
    """Folder `to` with the pairs as parquet and their card."""
    card = data_card(profile, base, runs_dir)
    check_replaceable(to, "data/pairs.parquet")
    with artifacts.atomic(to) as folder:
        (folder / "data").mkdir(parents=True)
        shutil.copyfile(pairs_of(profile, base, runs_dir), folder / "data" / "pairs.parquet")
        (folder / "README.md").write_text(card, encoding="utf-8")
    return Path(to)


def check_replaceable(to, own):
    """Raises BadInput if `to` holds anything but what this command wrote there before (it has the file `own`)."""
    to = Path(to)
    written_here = (to / own).is_file() and (to / "README.md").is_file()
    if to.exists() and not written_here and (not to.is_dir() or any(to.iterdir())):
        raise BadInput(f"{artifacts.shown(to)} holds something else: give a new folder by --to")


def push(folder, name, kind):
    """Upload a folder to the hub as repository `name` ("model" or "dataset"), private; returns its address.

    Raises BadInput in one line where it cannot be.
    """
    try:
        api = HfApi()
        address = api.create_repo(name, repo_type=kind, private=True, exist_ok=True)
        api.upload_folder(repo_id=name, repo_type=kind, folder_path=str(folder), commit_message="Upload with its card")
    except (HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise BadInput(
            f"cannot push {artifacts.shown(folder)} to {name} ({reason}): run `hf auth login`, check name and network"
        ) from error
    return str(address)


# ---- command --------------------------------------------------------------------------------------------------------


def parser():
    top = argparse.ArgumentParser(prog="python -m napo.share", description="An adapter or the data, with a card.")
    top.add_argument("what", choices=("adapter", "data"))
    top.add_argument("--to", required=True, metavar="FOLDER", help="folder to write; replaced if it is there")
    top.add_argument("--push", default="", metavar="NAME", help="also upload to this repository of the hub (private)")
    top.add_argument("--profile", default="paper", help="default: paper")
    top.add_argument("--method", default="napo_paper", help="of the adapter; default: napo_paper")
    top.add_argument("--seed", type=int, default=0)
    top.add_argument("--base", type=int, default=0)
    for name in ("model", "data", "rows", "device"):
        top.add_argument(f"--{name}", default="", help="as they were given to the run")
    top.add_argument("--runs-dir", default="runs", help="default: runs")
    return top


def recorded(profile, runs_dir):
    """The profile with the commits that its run recorded."""
    file = artifacts.run_folder(profile.name, preflight.REVISIONS, runs_dir=runs_dir)
    known = artifacts.read_json(file) if file.exists() else {}
    found = {"revision": known.get(f"model {profile.model}"), "data_revision": known.get(f"dataset {profile.data}")}
    return replace(profile, **{name: commit for name, commit in found.items() if commit})


@command.exit_status
def main(arguments=None):
    """The command; returns the exit status: 0 done, 2 bad input (one line says which)."""
    asked = parser().parse_args(arguments)
    overrides = {name: getattr(asked, name) for name in ("model", "data", "rows", "device")}
    profile = recorded(profiles.get(asked.profile, **overrides), asked.runs_dir)
    if asked.what == "adapter":
        profiles.method(asked.method)
        write_adapter(profiles.Cell(asked.method, asked.base, asked.seed), profile, asked.to, asked.runs_dir)
    else:
        write_data(profile, asked.to, asked.base, asked.runs_dir)
    print(artifacts.shown(asked.to))
    if asked.push:
        print(push(asked.to, asked.push, "model" if asked.what == "adapter" else "dataset"))


if __name__ == "__main__":
    sys.exit(main())
