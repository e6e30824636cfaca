"""What a cell trains on: noise, weights and q of each row, written out independently of the rooms that make them."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from napo import methods
from napo.comparison import cells, labels
from napo.desk.leak import leak
from napo.engine import logps, models, preferences
from napo.engine.preferences import BIASED
from napo.methods import KINDS, METHODS
from napo.noise import evidence, injected, posterior, probe, reference_logps
from napo.pairs import perturb
from napo.profiles import PROFILES, Cell
from napo.training import crops
from napo.workshop.files import BadInput, MissingArtifact, read_parquet

CELLS = [
    Cell("dpo_all"),
    Cell("dpo_all", 0, 1, 0.4, "swap"),
    Cell("dpo_all", 0, 1, 0.4, "leak"),
    Cell("oracle"),
    Cell("oracle", 0, 1, 0.4, "swap"),
    Cell("oracle", 0, 1, 0.4, "leak"),
    Cell("napo_calibrated", 0, 1, 0.4, "swap"),
    Cell("napo_row_q", 0, 1, 0.4, "leak"),
    Cell("napo_row_weight", 0, 1, 0.4, "swap"),
    Cell("napo_row_weight"),
    Cell("mdpo"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(profile, runs folder) of base 0 of the desk world after notebooks 01 and 02, 16 training rows."""
    runs = tmp_path_factory.mktemp("cells")
    profile = replace(PROFILES["smoke"], rows=16, heldout_rows=4, probe_rows=8)
    perturb.pairs(profile, 0, runs)
    reference_logps.build(profile, 0, runs)
    probe.noise_table(profile, 0, runs)
    return profile, runs


@pytest.fixture(scope="module")
def base(world):
    """(model, processor, training rows as dicts, their reference log-probs)."""
    profile, runs = world
    folder = runs / "smoke" / "base-0"
    rows = [dict(row) for row in preferences.read(folder / "pairs.parquet") if row["split"] == "train"]
    return *models.load_base(profile, 0), rows, pd.read_parquet(folder / "reference.parquet")


def expected(cell, world, base):
    """(rows, reference, flipped, weight(kind, i), q(kind, i), alpha(term)) of a cell, row by row."""
    profile, (model, processor, rows, reference), method = world[0], base, METHODS[cell.method]
    n, rng, measured = len(rows), np.random.default_rng([cell.seed, 1]), reference_logps.measured_by(profile.training)
    if cell.noise_kind == "leak":
        old, rows = rows, leak(rows, cell.flip_rate, rng)
        changed = [new for new, before in zip(rows, old, strict=True) if new is not before]
        assert len(changed) == round(cell.flip_rate * n)
        again = logps.measure(model, processor, changed, BIASED, **measured).set_index("row_id")
        reference = reference.set_index("row_id")
        for kind in BIASED:
            for name in (f"logps_{kind}", f"tokens_{kind}"):
                reference.loc[again.index, name] = again[name]
        reference, flipped = reference.reset_index(), [False] * n
    else:
        swapped = set(rng.permutation(n)[: round(cell.flip_rate * n)].tolist())
        flipped = [i in swapped for i in range(n)]
    found = {}
    for kind in BIASED if method.estimate else ():
        seen = evidence.measure(model, processor, rows, reference, kind, batch_size=profile.training.batch_size)
        odds = []
        for chosen, other, swap in zip(seen["chosen_evidence"], seen["evidence"], flipped, strict=True):
            chosen, other = (other, chosen) if swap else (chosen, other)
            odds.append([other, other - chosen])
        found[kind] = posterior.estimate(np.array(odds), seen["same"]).posterior

    def weight(kind, i):
        if method.drop_noise:
            return 0.0 if flipped[i] or rows[i].get(f"is_noise_{kind}") else 1.0
        if method.estimate == "weight" and kind in found:
            return 1 - torch.tensor(found[kind][i], dtype=torch.float32).item()
        return 1.0

    def q(kind, i):
        p = found[kind][i] if method.estimate in ("q", "weight") and kind in found else None
        return p if p is None else min(max(p, 0.01), 1.0)

    def alpha(term):
        if method.estimate != "alpha" or term.kind not in found:
            return term.scale
        table = read_parquet(world[1] / "smoke" / "base-0" / "noise.parquet").query("part == 'probe'")
        column = "mean_margin" if term.margin == "mean" else "margin"
        psi = profile.training.beta * table[table["kind"] == term.kind][column].mean()
        rate = min(max(found[term.kind].mean(), 0.01), 0.49)
        return np.log((1 - rate) / rate) / max(psi, 0.01)

    return rows, reference, flipped, weight, q, alpha


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_a_training_set_is_what_the_cell_says(cell, world, base):
    profile, runs = world
    paths = cells.training_inputs(cell, profile, runs)
    data, method = cells.training_set(cell, profile, paths)
    rows, reference, flipped, weight, q, alpha = expected(cell, world, base)
    assert [[row[kind] for kind in KINDS] for row in data.rows] == [[row[kind] for kind in KINDS] for row in rows]
    assert data.flipped.tolist() == flipped
    row_ids = [row["row_id"] for row in rows]
    mine, other = (frame.set_index("row_id").loc[row_ids] for frame in (data.reference, reference))
    pd.testing.assert_frame_equal(mine[list(other)], other)
    numbers = range(len(rows))
    for kind in METHODS[cell.method].kinds[1:]:
        known = (data.weights or {}).get(kind, np.ones(len(rows)))
        assert known.tolist() == pytest.approx([weight(kind, i) for i in numbers], abs=1e-6)
        if (data.row_q or {}).get(kind) is None:
            assert q(kind, 0) is None
        else:
            assert data.row_q[kind].tolist() == pytest.approx([q(kind, i) for i in numbers], abs=1e-6)
    assert [term.scale for term in method.terms] == pytest.approx([alpha(t) for t in METHODS[cell.method].terms])


def test_the_cells_above_differ_where_they_should(world):
    """Else the comparison would hold for constants too."""
    profile, runs = world

    def made(cell):
        return cells.training_set(cell, profile, cells.training_inputs(cell, profile, runs))

    weights = made(Cell("napo_row_weight", 0, 1, 0.4, "swap"))[0].weights
    assert all(values.std() > 0.1 for values in weights.values())
    clean, swapped, leaked = (made(cell)[0].weights for cell in CELLS[3:6])
    assert clean["language_biased"].sum() > swapped["language_biased"].sum() > 0
    assert (swapped["language_biased"] == leaked["language_biased"]).all()  # both kinds fall on the same rows
    assert swapped["rejected"].sum() < leaked["rejected"].sum() == 16  # a leak leaves the original pairs as they are
    calibrated = made(Cell("napo_calibrated", 0, 1, 0.4, "swap"))[1]
    assert [term.scale for term in calibrated.terms[1:]] != [term.scale for term in METHODS["napo_paper"].terms[1:]]


def test_crops_come_with_their_own_log_probs(world, base):
    """mDPO's image term: the chosen answers given the crops, one by one on the plain path."""
    profile, runs = world
    model, processor, rows, _ = base
    data, _ = cells.training_set(Cell("mdpo"), profile, cells.training_inputs(Cell("mdpo"), profile, runs))
    for row in rows[:5]:
        plain = logps.response_logps(model, processor, [crops.corrupted(row)], ("chosen",), packed=False)["chosen"]
        known = data.reference.set_index("row_id").loc[row["row_id"]]
        assert known["logps_corrupted_image"] == pytest.approx(plain.item(), abs=1e-3)
        assert known["tokens_corrupted_image"] == known["tokens_chosen"]


@pytest.mark.parametrize(
    "cell",
    [
        Cell("oracle", 0, 0, 0.4, "leak"),
        Cell("napo_calibrated", 0, 1, 0.4, "swap"),
        Cell("napo_row_q", 0, 1, 0.4, "leak"),
        Cell("napo_row_weight", 0, 1, 0.4, "swap"),
        Cell("mdpo"),
    ],
    ids=lambda cell: cell.name,
)
def test_each_kind_of_cell_trains_and_is_then_finished(cell, world):
    profile, runs = world
    folder = cells.train_cell(cell, profile, runs)
    steps = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    assert len(steps) == 2 and all(np.isfinite(step["loss"]) for step in steps)
    assert cells.is_finished(cell, profile, runs) and not list(folder.glob("checkpoints-*"))
    assert not cells.is_finished(replace(cell, seed=2), profile, runs)


def test_q_equals_the_estimated_rate_at_the_probes_margin():
    table = pd.DataFrame(
        {
            "kind": ["language_biased"] * 3 + ["vision_biased"] * 3,
            "part": ["probe", "probe", "measured"] * 2,
            "margin": [9.0, 9.0, 9.0, 4.0, 8.0, 99.0],
            "mean_margin": [1.0, 3.0, 99.0, 9.0, 9.0, 9.0],
        }
    )
    beta, rates, method = 0.5, {"language_biased": 0.25, "vision_biased": 0.1}, METHODS["napo_calibrated"]
    found = labels.calibrated(method, rates, table, beta)
    settled = {"language_biased": beta * 2.0, "vision_biased": beta * 6.0}
    for term in found.terms[1:]:
        assert 1 / (1 + np.exp(term.alpha * settled[term.kind])) == pytest.approx(rates[term.kind])
    assert found.terms[0] == method.terms[0]
    falling = labels.calibrated(method, rates, table.assign(margin=-1.0, mean_margin=-1.0), beta)
    for term in falling.terms[1:]:  # no margin to follow: as if it were 0.01
        assert term.alpha == pytest.approx(np.log(1 / rates[term.kind] - 1) / 0.01)


def test_every_choice_that_changes_a_result_is_in_the_key(world, monkeypatch):
    """Alpha, threads, the mask and the injection; before, a changed ALPHA left every trained adapter current."""
    profile, runs = world
    cell = Cell("napo_row_weight", 0, 1, 0.2, "swap")

    def key(cell=cell, profile=profile):
        return str(cells.cell_checkpoints(cell, profile, runs))

    before = key()
    assert key() == before
    assert key(replace(cell, flip_rate=0.3)) != before and key(replace(cell, noise_kind="leak")) != before
    assert key(profile=replace(profile, lora=replace(profile.lora, r=4))) != before
    for name in ("mean", "sum"):
        with monkeypatch.context() as patch:
            patch.setitem(methods.ALPHA, name, 0.123)
            assert key() != before
    settings = cells.cell_settings(profile, cell)
    assert cells.cell_settings(replace(profile, threads=2), cell) != settings


def test_a_changed_estimate_makes_its_cells_stale(world, tmp_path):
    """The estimate is an input of its own: cells that use it follow it, others do not read it."""
    profile, runs = world
    shutil.copytree(runs, tmp_path / "runs")
    uses, other = Cell("napo_row_q"), Cell("napo_paper")
    before = [cells.cell_checkpoints(cell, profile, tmp_path / "runs") for cell in (uses, other)]
    paths = cells.training_inputs(uses, profile, tmp_path / "runs")
    assert "posterior" in paths and "posterior" not in cells.training_inputs(other, profile, tmp_path / "runs")
    white = replace(profile, perturbation=replace(profile.perturbation, image="white"))
    posterior.of_training(white, 0, injected.of_cell(uses), tmp_path / "runs")
    table = read_parquet(paths["posterior"])
    assert (table["posterior"] >= 0).all() and (table["posterior"] <= 1).all()
    after = [cells.cell_checkpoints(cell, white, tmp_path / "runs") for cell in (uses, other)]
    assert before[0] != after[0] and before[1] == after[1]


def test_a_damaged_estimate_is_made_again(world, tmp_path):
    profile, runs = world
    shutil.copytree(runs, tmp_path / "runs")
    cell = Cell("napo_row_q", 0, 1, 0.4, "leak")
    path = cells.training_inputs(cell, profile, tmp_path / "runs")["posterior"]
    sound = path.read_bytes()
    path.write_bytes(sound[: len(sound) // 2])
    assert cells.training_inputs(cell, profile, tmp_path / "runs")["posterior"].read_bytes() == sound


def test_what_cannot_be_trained_is_refused(world, tmp_path):
    profile, runs = world
    with pytest.raises(BadInput, match="unknown noise_kind 'typo'"):
        cells.train_cell(Cell("dpo_all", noise_kind="typo"), profile, runs)
    with pytest.raises(BadInput, match="no rule for swapped labels"):
        cells.train_cell(Cell("mdpo", flip_rate=0.2), profile, runs)
    shutil.copytree(runs, tmp_path / "runs")
    (tmp_path / "runs" / "smoke" / "base-0" / "noise.parquet").unlink()
    with pytest.raises(MissingArtifact, match="noise.parquet"):
        cells.train_cell(Cell("napo_calibrated"), profile, tmp_path / "runs")
