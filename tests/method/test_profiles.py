"""The declared cells of every profile: how many, their names, and which have injected noise."""

from collections import Counter
from dataclasses import replace

import pytest

from napo import profiles
from napo.methods import METHODS
from napo.profiles import NOISY_METHODS, PROFILES, Cell
from napo.study import paper
from napo.workshop.files import BadInput


def test_every_cell_has_a_name_of_its_own():
    cells = [cell for profile in PROFILES.values() for cell in profile.cells()]
    assert len({cell.name for cell in cells}) == len(set(cells))
    assert Cell("napo_paper", 3, 1, 0.2).name == "napo_paper-b3-s1-f0.2"
    assert Cell("napo_paper", 3, 1, 0.2, "leak").name == "napo_paper-b3-s1-f0.2-leak"


def test_the_study_is_the_declared_list():
    study = profiles.get("study")
    cells = study.cells()
    assert len(cells) == len(set(cells)) <= 900
    clean = Counter(cell.method for cell in cells if cell.flip_rate == 0)
    assert clean == {name: 15 if METHODS[name].trained else 5 for name in METHODS}
    noisy = Counter((c.method, c.noise_kind, c.flip_rate) for c in cells if c.flip_rate)
    assert set(noisy.values()) == {5} and {method for method, _, _ in noisy} == set(NOISY_METHODS)
    assert {(kind, rate) for _, kind, rate in noisy} == {(k, r) for k in ("swap", "leak") for r in (0.1, 0.2, 0.3, 0.4)}


def test_cells_of_a_profile_with_one_rate_are_as_they_were():
    profile = replace(
        profiles.get("smoke"), methods=("base", "dpo_all"), bases=(0, 1), seeds=(2, 3), flip_rates=(0.25,)
    )
    trained = [Cell("dpo_all", base, seed, 0.25) for base in (0, 1) for seed in (2, 3)]
    assert profile.cells() == [Cell("base", 0, 2), Cell("base", 1, 2), *trained]


def test_every_method_that_a_claim_names_exists():
    from napo.study import claims

    named = {
        name
        for claim in claims.CLAIMS
        for c in claim.components
        if isinstance(c, claims.Difference)
        for name in (c.treatment, c.control)
    }
    assert named <= METHODS.keys()


def test_methods_can_be_chosen_by_name_or_as_the_papers_tables():
    chosen = profiles.get("paper", methods="napo_paper, dpo_original").methods
    assert chosen == ("base", "dpo_original", "napo_paper")
    tables = profiles.get("paper", methods="tables").methods
    assert set(tables) == {row.method for row in paper.ROWS if row.model == paper.SMALL and row.method}
    assert {"mdpo", "random", "lb_napo_sum", "vb_dpo", "napo_equal"} <= set(tables)
    assert profiles.get("paper", methods="").methods == PROFILES["paper"].methods
    with pytest.raises(BadInput, match="unknown method 'nape': use one of base, sft"):
        profiles.get("paper", methods="nape")


def test_every_notebook_that_reads_the_list_of_methods_takes_it(root):
    """Else a run with METHODS=... would train other cells than it evaluates."""
    for name in ("03_train", "04_evaluate", "05_ablations"):
        text = (root / "notebooks" / f"{name}.ipynb").read_text()
        assert 'methods = \\"\\"' in text and ("methods=methods" in text or '\\"methods\\": methods' in text), name
    assert '--methods="$$NAPO_METHODS"' in (root / "Makefile").read_text()


@pytest.mark.parametrize("name", METHODS)
def test_no_two_methods_are_the_same_or_share_a_label(name):
    others = [other for other in METHODS if other != name]
    assert all(METHODS[name] != METHODS[other] and METHODS[name].label != METHODS[other].label for other in others)
