"""Every file of a finished run, damaged: the runner notices and makes it again, or no result reads what changed.

Damage: one bit flipped at a seeded place; cut to a half; emptied; gone.
"""

import json
import random
import shutil
from collections import Counter

import pytest
from attacked import Attacked, flip, stale

import napo
from napo.runner.notebooks import NOTEBOOKS
from napo.workshop.artifacts import PROVENANCE
from napo.workshop.files import BadInput

# What may change without a word, since no result reads it: a reason for each.
HARMLESS = {
    ".lock": "holds the number of the process that ran last, for a message",
    "record": "versions, times and settings in a record are for people; keys and hashes decide what is current",
}
OTHER_FIELDS = "key", "sha256", "notebook", "writes", "figures"  # of a record: what decides


def damaged(content, how, rng):
    return {"flipped": lambda: flip(content, rng), "halved": lambda: content[: len(content) // 2]}.get(how, bytes)()


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def harmless(file, before):
    """A key of HARMLESS if the damage of a file that nobody noticed changes no result; else None."""
    if file.name == ".lock":
        return ".lock"
    is_record = file.name == PROVENANCE or (file.suffix == ".json" and file.stem in {n.name for n in NOTEBOOKS})
    if is_record and file.exists() and deciding(file.read_bytes()) == deciding(before):
        return "record"
    return None


def deciding(text):
    """The fields of a record that decide whether an artefact is current."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    records = value.get("artefacts", {"": value}) if isinstance(value, dict) else {}
    return {name: {field: record.get(field) for field in OTHER_FIELDS} for name, record in records.items()}


def sweep(root, reference, place, hows, chosen=lambda file: True):
    """{how: [noticed, harmless]} over all files; raises AssertionError with those that passed in silence."""
    runs, silent, counts = place / "runs", [], {}
    shutil.copytree(reference, runs)
    assert stale(runs, root) == []
    for how in hows:
        noticed = passed = 0
        for file in files_of(runs):
            name, content = file.relative_to(runs).as_posix(), file.read_bytes()
            if not content or not chosen(file):
                continue
            new = damaged(content, how, random.Random(f"{name} {how}"))
            file.unlink() if how == "gone" else file.write_bytes(new)
            if stale(runs, root):
                noticed += 1
            elif harmless(file, content):
                passed += 1
            else:
                silent.append(f"{name} {how}")
            file.write_bytes(content)
        counts[how] = [noticed, passed]
    assert stale(runs, root) == []
    assert silent == [], "\n".join(silent)
    return counts


def report(counts, count):
    for how, (noticed, passed) in counts.items():
        count(f"damaged files: {how}, noticed", noticed)
        count(f"damaged files: {how}, read by no result", passed)


def every(step, folder):
    """Every `step`-th file of a folder, and all beside which no file of the same name lies."""
    files = files_of(folder)
    names = Counter(file.name for file in files)
    return {file for i, file in enumerate(files) if i % step == 0 or (names[file.name] == 1 and file.suffix != ".png")}


def test_a_flipped_bit_is_noticed_or_harmless(root, reference, tmp_path, count):
    """The quick part: about a third of the files."""
    names = {tmp_path / "runs" / file.relative_to(reference) for file in every(5, reference)}
    report(sweep(root, reference, tmp_path, ["flipped"], names.__contains__), count)


def test_a_flipped_bit_in_every_file_is_noticed_or_harmless(everything, root, reference, tmp_path, count):
    report(sweep(root, reference, tmp_path, ["flipped"]), count)


def test_other_damage_in_a_file_of_each_kind_is_noticed(root, reference, tmp_path, count):
    first = {}
    for file in files_of(reference):
        first.setdefault(file.name if file.name == PROVENANCE else file.suffix, file.relative_to(reference))
    chosen = {(tmp_path / "runs" / name) for name in first.values()}
    report(sweep(root, reference, tmp_path, ["halved", "emptied", "gone"], chosen.__contains__), count)


def test_other_damage_in_every_file_is_noticed_or_harmless(everything, root, reference, tmp_path, count):
    report(sweep(root, reference, tmp_path, ["halved", "emptied", "gone"]), count)


LAYERS = [
    ["claims.json", "report.md", "tables/*", "figures/table_*.png", "05_ablations.*"],
    ["cells/*/scores.parquet", "cells/*/answers.parquet", "cells/*/official.json", "cells/*/predictions/*/*"],
    ["benchmarks/*/*", "benchmarks/*/images/**/*.png", "benchmarks/provenance.json"],
    ["cells/*/adapter/*", "cells/*/steps.jsonl", "cells/*/provenance.json"],
    ["base-*/reference.parquet", "base-*/noise.parquet", "base-*/posterior.parquet", "base-*/noise_levels.parquet"],
    ["base-*/pairs.parquet", "base-*/bias.parquet", "base-*/answers/*"],
    ["base-*/provenance.json", "0*.json", "0*.ipynb"],
]


@pytest.mark.parametrize("layer", range(len(LAYERS)))
def test_what_is_damaged_is_made_again_bit_for_bit(everything, root, reference, tmp_path, layer, count):
    """All files of one layer at once: a flipped bit in one half of them, the other half cut or emptied or gone."""
    run, rng = Attacked(root, tmp_path, reference), random.Random(layer)
    files = {file for pattern in LAYERS[layer] for file in run.folder.glob(pattern) if file.is_file()}
    for file in sorted(files):
        how = rng.choice(("flipped", "flipped", "flipped", "halved", "emptied", "gone"))
        file.unlink() if how == "gone" else file.write_bytes(damaged(file.read_bytes(), how, rng))
    run.finish()
    run.compare(reference)
    count("damaged files: made again, equal to the last bit", len(files))
    assert run.problems == [], "\n".join(run.problems)


READ_LATER = ["noise.parquet", "posterior.parquet", "noise_levels.parquet", "scores.parquet", "steps.jsonl"]
READ_LATER += ["official.json", "answers.parquet", "predictions.json", "reference.parquet", "pairs.parquet"]


def test_a_stage_called_by_hand_refuses_or_mends_what_is_damaged(everything, root, reference, tmp_path, count):
    """The last stage from Python, without the runner: a damaged file is an error, or the report stays what it was."""
    runs = tmp_path / "runs"
    shutil.copytree(reference, runs)
    written = ["claims.json", "report.md", *(f"tables/{file.name}" for file in (runs / "smoke/tables").iterdir())]
    before, silent, tried = {name: (runs / "smoke" / name).read_bytes() for name in written}, [], 0
    for file in files_of(runs):
        if file.name not in READ_LATER:
            continue
        name, content = file.relative_to(runs).as_posix(), file.read_bytes()
        file.write_bytes(flip(content, random.Random(name)))
        tried += 1
        try:
            napo.Kit("smoke", runs_dir=str(runs)).report()
        except BadInput as error:
            if len(str(error).splitlines()) != 1:
                silent.append(f"{name}: {error}")
        else:
            silent += [f"{name} changed {w}" for w in written if (runs / "smoke" / w).read_bytes() != before[w]]
        file.write_bytes(content)
        for one, text in before.items():
            (runs / "smoke" / one).write_bytes(text)
    count("damaged files: read by a stage called by hand", tried)
    assert silent == [], "\n".join(silent)
