"""napo.study.claims: every path of the rule, on numbers that can be checked by hand."""

import json
from math import nan

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from napo.stats import measures
from napo.study import claims, paper
from napo.study.claims import Claim, Difference, Separation

UP = Difference("Acc_CB", "a", "b", "up")
DOWN = Difference("Acc_CB", "a", "b", "down")


def scores(effects, control=0.5, bases=range(5), seeds=(0,)):
    """Scores of control `b` and treatment `a` where base i has the difference effects[i]; 100 yes/no items a run."""
    rows = []
    for base, effect in zip(bases, effects, strict=True):
        for seed in seeds:
            for method, share in (("b", control), ("a", control + effect)):
                for item in range(100):
                    value = float(item < round(100 * share))
                    rows.append((method, base, seed, 0.0, "vlind", "CB", str(item), "", value))
    return pd.DataFrame(rows, columns=[*measures.RUN, "benchmark", "metric", "example_id", "question_kind", "value"])


def judge(component, frame, noise=None):
    """The one entry of a ledger of one claim, and its one component."""
    (entry,) = claims.ledger(frame, noise, claims=(Claim("X", "x", (component,)),))
    return entry, entry["components"][0]


@pytest.mark.parametrize(
    ("lo", "hi", "direction", "null", "expected"),
    [
        (0.01, 0.2, "up", 0.0, "claimed"),
        (-0.2, -0.01, "up", 0.0, "opposite"),
        (-0.01, 0.2, "up", 0.0, "unclear"),
        (0.0, 0.2, "up", 0.0, "unclear"),  # touching the null is not beyond it
        (-0.2, -0.01, "down", 0.0, "claimed"),
        (0.01, 0.2, "down", 0.0, "opposite"),
        (-0.04, 0.01, "up", -0.05, "claimed"),  # non-inferiority
        (-0.09, -0.06, "up", -0.05, "opposite"),
        (0.45, 0.55, "up", 0.5, "unclear"),
        (nan, nan, "up", 0.0, "unclear"),
    ],
)
def test_the_side_an_interval_lies_on(lo, hi, direction, null, expected):
    assert claims.side(lo, hi, direction, null) == expected


@pytest.mark.parametrize(
    ("lo", "hi", "expected"),
    [
        (-0.04, 0.03, "claimed"),
        (-0.04, 0.05, "unclear"),
        (0.04, 0.09, "unclear"),
        (0.06, 0.09, "opposite"),
        (-0.2, -0.06, "opposite"),
    ],
)
def test_an_absence_is_an_interval_within_the_margin(lo, hi, expected):
    assert claims.side(lo, hi, "equivalent", margin=0.05) == expected


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["reproduced", "reproduced"], "reproduced"),
        (["reproduced", "inconclusive"], "inconclusive"),
        (["reproduced", "contradicted", "inconclusive", "not run"], "contradicted"),
        (["reproduced", "not run"], "not run"),
        (["not run", "not run"], "not run"),
    ],
)
def test_a_claim_follows_from_its_components(verdicts, expected):
    assert claims.claim_verdict(verdicts) == expected


def test_reproduced_with_effect_and_interval_worked_by_hand():
    entry, component = judge(UP, scores([0.10, 0.12, 0.08, 0.11, 0.09]))
    # mean 0.10, sd 0.0158114, se 0.0070711, t(.975, 4) = 2.776445: half-width 0.0196324
    assert component["effect"] == pytest.approx(0.10)
    assert component["ci95"] == pytest.approx([0.0803676, 0.1196324], abs=1e-6)
    assert (entry["verdict"], component["verdict"], component["side"]) == ("reproduced", "reproduced", "claimed")
    assert (entry["n_bases"], entry["n_seeds"], component["over"], component["note"]) == (5, 1, "bases", "")


def test_the_same_numbers_contradict_the_opposite_claim():
    entry, component = judge(DOWN, scores([0.10, 0.12, 0.08, 0.11, 0.09]))
    assert (entry["verdict"], component["side"]) == ("contradicted", "opposite")


def test_an_interval_over_the_null_is_inconclusive():
    entry, component = judge(UP, scores([0.2, -0.1, 0.1, -0.2, 0.1]))
    assert component["ci95"][0] < 0 < component["ci95"][1] and entry["verdict"] == "inconclusive"


def test_few_bases_are_inconclusive_however_clear_and_say_why():
    entry, component = judge(UP, scores([0.1, 0.11, 0.12, 0.1], bases=range(4)))
    assert component["side"] == "claimed" and component["verdict"] == entry["verdict"] == "inconclusive"
    assert component["note"] == entry["note"] == "4 reporting bases, 5 are needed to speak for new bases"
    entry, component = judge(UP, scores([0.1], bases=[0], seeds=(0, 1, 2)))
    assert (component["over"], component["n_seeds"], entry["n_bases"]) == ("seeds", 3, 1)
    assert component["note"].startswith("1 reporting base,") and entry["verdict"] == "inconclusive"


def test_a_single_run_has_an_effect_but_no_interval():
    _, component = judge(UP, scores([0.1], bases=[0]))
    assert component["effect"] == pytest.approx(0.1) and component["ci95"] == [None, None]


def test_development_bases_do_not_count():
    frame = scores([0.10, 0.12, 0.08, 0.11, 0.09, -0.5, -0.5], bases=[0, 1, 2, 3, 4, 100, 101])
    _, component = judge(UP, frame)
    assert component["effect"] == pytest.approx(0.10) and component["n_bases"] == 5


def test_swapped_labels_are_not_mixed_into_the_claims():
    frame = pd.concat([scores([0.1] * 5), scores([-0.4] * 5).assign(flip_rate=0.4)])
    assert judge(UP, frame)[1]["effect"] == pytest.approx(0.1)


def test_missing_methods_are_named():
    entry, component = judge(Difference("Acc_CB", "a", "mdpo", "up"), scores([0.1] * 5))
    assert entry["verdict"] == component["verdict"] == "not run"
    assert component["note"] == entry["note"] == "not run: mdpo" and component["effect"] is None
    assert judge(Difference("CHAIRi", "a", "b", "up"), scores([0.1] * 5))[1]["note"] == "no CHAIRi scores"


def test_a_claim_names_each_missing_method_once():
    pair = Difference("Acc_CB", "a", "mdpo", "up"), Difference("Acc_CB", "random", "mdpo", "up")
    (entry,) = claims.ledger(scores([0.1] * 5), claims=(Claim("X", "x", pair),))
    assert entry["note"] == "not run: mdpo, random"


def test_equivalence_reports_its_margin_and_p():
    effects = [0.01, -0.02, 0.0, 0.01, 0.0]
    component = judge(Difference("Acc_CB", "a", "b", "equivalent", margin=0.05), scores(effects))[1]
    one_sided = [
        scipy_stats.ttest_1samp(effects, m, alternative=a).pvalue for m, a in ((-0.05, "greater"), (0.05, "less"))
    ]
    assert component["p_tost"] == pytest.approx(max(one_sided)) and component["p_tost"] < 0.025
    assert (component["margin"], component["verdict"]) == (0.05, "reproduced")


def noise_frame(n_bases, shift):
    """50 measured rows a base; noise rows have margins smaller by `shift`; probe rows would say the opposite."""
    rng, frames = np.random.default_rng(0), []
    for base in range(n_bases):
        is_noise = np.arange(50) < 20
        margin = rng.normal(size=50) - shift * is_noise
        frames.append(
            pd.DataFrame(dict(base=base, kind="vision_biased", is_noise=is_noise, raw_margin=margin, part="measured"))
        )
        frames.append(frames[-1].assign(part="probe", raw_margin=-margin))
    return pd.concat(frames).astype({"is_noise": "boolean"})


def test_separation_is_an_auroc_per_base_on_measured_rows():
    component = Separation("vision_biased", "raw_margin")
    assert judge(component, scores([0.1] * 5), noise_frame(5, 3))[1]["verdict"] == "reproduced"
    assert judge(component, scores([0.1] * 5), noise_frame(5, -3))[1]["verdict"] == "contradicted"
    one = judge(component, scores([0.1] * 5), noise_frame(1, 3))[1]
    assert (one["over"], one["verdict"], one["n_bases"]) == ("rows", "inconclusive", 1)
    assert one["ci95"][0] > 0.5  # clear for this base, and still not a verdict
    assert judge(component, scores([0.1] * 5), None)[1]["verdict"] == "not run"


def test_separation_without_known_truth_is_not_run():
    unknown = noise_frame(1, 3).assign(is_noise=pd.array([None] * 100, dtype="boolean"))
    assert judge(Separation("vision_biased", "raw_margin"), scores([0.1] * 5), unknown)[1]["verdict"] == "not run"


def test_the_ledger_has_the_contracts_form_and_is_strict_json():
    entries = claims.ledger(scores([0.1] * 5), noise_frame(5, 3))
    text = json.dumps(entries, allow_nan=False)
    assert [entry["id"] for entry in json.loads(text)] == [f"C{i}" for i in range(1, 11)]
    for entry in entries:
        assert {"id", "claim", "verdict", "components", "n_bases", "n_seeds"} <= set(entry) and entry["components"]
        for component in entry["components"]:
            assert {"metric", "comparison", "effect", "ci95", "null", "direction", "verdict"} <= set(component)
            assert component["verdict"] in {"reproduced", "contradicted", "inconclusive", "not run"}


def test_every_claim_states_what_it_says_of_the_papers_model():
    sentences = [claim.about_llava for claim in claims.CLAIMS]
    assert len(set(sentences)) == 10 and all(s.endswith(".") for s in sentences)
    assert [c["about_llava"] for c in claims.ledger(scores([0.1] * 5))] == sentences


def test_every_component_names_a_known_measure_and_directions_follow_what_is_better():
    for claim in claims.CLAIMS:
        for c in claim.components:
            if isinstance(c, Difference) and c.direction != "equivalent" and claim.id != "C10":
                assert c.direction == {"higher": "up", "lower": "down"}[measures.MEASURES[c.measure].better], claim.id


MODALITY_BIAS, HALLUCINATION = paper.PERCENT[:2], paper.PERCENT[2:]  # of the paper's Table 2
CLAIMED = {  # what the words of a claim speak of, where that is less than all four measures of the paper's Table 2
    "C1": MODALITY_BIAS,
    "C2": HALLUCINATION,
    ("C6", "lb_napo", "vb_napo"): ("Acc_LP",),
    ("C6", "vb_napo", "lb_napo"): ("Acc_CB", *HALLUCINATION),
}


def printed(treatment, control):
    """Treatment minus control by the paper's rows of LLaVA-1.5-7B, for the measures that both print."""
    rows = {row.method: row.values for row in paper.ROWS if row.model == paper.SMALL}
    first, second = rows[treatment], rows[control]
    return {name: first[name] - second[name] for name in first if name in second}


@pytest.mark.parametrize("claim", [c for c in claims.CLAIMS if c.id not in ("C3", "C9", "C10")], ids=lambda c: c.id)
def test_components_are_the_measures_on_which_the_paper_has_the_claimed_sign(claim):
    components = [c for c in claim.components if c.null == 0]  # without C2's coverage, a non-inferiority
    for pair in dict.fromkeys((c.treatment, c.control) for c in components):
        spoken_of = CLAIMED.get((claim.id, *pair), CLAIMED.get(claim.id, paper.PERCENT))
        better = {"higher": 1, "lower": -1}
        gains = {name: better[measures.MEASURES[name].better] * printed(*pair)[name] for name in spoken_of}
        held = {c.measure for c in components if (c.treatment, c.control) == pair}
        assert held == {name for name, gain in gains.items() if gain > 0}, pair


def test_the_paper_prints_what_c2_says_of_coverage_and_c3_of_an_absence():
    assert printed("napo_paper", "dpo_original")["AMBER_Cover"] > 0
    (c3,) = (claim for claim in claims.CLAIMS if claim.id == "C3")
    assert [(c.measure, c.direction, c.margin) for c in c3.components] == [
        (name, "equivalent", 0.05) for name in MODALITY_BIAS
    ]
    assert all(abs(printed("mdpo", "base")[c.measure]) < c.margin for c in c3.components)


COMPONENT = '{treatment = "a", control = "b", measures = ["CHAIRi"]}'


def test_a_component_points_to_the_better_side_unless_it_says_otherwise():
    (claim,) = claims.read(f'[[claim]]\nid = "X"\nclaim = "x"\ncomponents = [{COMPONENT}]')
    assert claim.components == (Difference("CHAIRi", "a", "b", "down"),)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("CHAIRi", "CHAIRx"),
        ("measures", "measure"),
        ('control = "b", ', ""),
        ("claim =", "clame ="),
        ("components", "c"),
    ],
)
def test_a_misspelt_claim_is_named(right, wrong):
    text = f'[[claim]]\nid = "X"\nclaim = "x"\ncomponents = [{COMPONENT}]'
    with pytest.raises(ValueError, match="claims.toml, claim X: .*"):
        claims.read(text.replace(right, wrong))
