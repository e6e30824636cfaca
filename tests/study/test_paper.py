"""The paper's numbers against the page they were taken from, and what marks one of ours as not comparable."""

import re

import numpy as np
import pandas as pd
import pytest

from napo.methods import METHODS
from napo.stats import measures
from napo.study import frames, paper, report

SAME = {"examples": 302, "decoding": "paper", "adapted": "", "similarity": "", "judge": ""}


@pytest.fixture(scope="module")
def page(shared):
    return (shared / "paper.md").read_text()


def numbers(text):
    return tuple(float(found) for found in re.findall(r"\d+\.\d+", text))


def row(label, model=paper.SMALL):
    return next(r for r in paper.ROWS if r.label == label and r.model == model)


def test_table_1_is_the_papers(page):
    for name, label in (
        ("base", "LLaVA-v1.5-7B"),
        ("DPO on RLAIF-V", "DPO on RLAIF-V"),
        ("mDPO on RLAIF-V", "mDPO on RLAIF-V"),
        ("NaPO objective on RLAIF-V-Bias", "NaPO"),
    ):
        line = next(line for line in page.splitlines() if line.startswith(f"| {name} |"))
        assert numbers(line) == tuple(row(label).printed.values())
    large = page[page.index("LLaVA-v1.5-13B: base") : page.index("### Table 2")].replace("v1.5", "")
    expected = [r for r in paper.ROWS if r.model == paper.LARGE] + [row("GPT-4V", "gpt-4v")]
    assert numbers(large.replace("-4V", "")) == tuple(number for r in expected for number in r.printed.values())


@pytest.mark.parametrize(
    ("line", "label"),
    [
        ("A2 A1 without", "A2: without γ"),
        ("A3 A2 with DPO", "A3: A2 with DPO"),
        ("LB1 without", "LB1: no vision-biased data"),
        ("LB2 LB1", "LB2: LB1 with DPO"),
        ("VB1 without", "VB1: no language-biased data"),
        ("VB2 VB1", "VB2: VB1 with DPO"),
        ("RLAIF-V-Bias (Random)", "Random: one loss per batch"),
        ("LB with", "LB1 with the sum margin"),
        ("VB with", "VB1 with the mean margin"),
    ],
)
def test_the_other_tables_are_the_papers(page, line, label):
    found = next(text for text in page.splitlines() if text.startswith(f"| {line}"))
    assert numbers(found) == tuple(row(label).printed.values())


def test_the_misprint_is_the_papers(page):
    printed = re.search(r"prints LP ([\d.]+) for the VB default where Table 2 prints ([\d.]+)", page).groups()
    assert tuple(re.findall(r"\d+\.\d", paper.MISPRINT)) == printed
    assert row("VB1: no language-biased data").values["Acc_LP"] == float(printed[1]) / 100


def test_comparisons_are_differences_of_printed_lines():
    for comparison in paper.COMPARISONS:
        found = comparison.differences()
        assert set(paper.PERCENT) <= set(found), comparison.label
    first = next(c for c in paper.COMPARISONS if c.label == "NaPO − DPO").differences()
    assert first["Acc_CB"] == 0.195 and first["AMBER_Cog"] == -0.2


def test_two_protocols_of_object_halbench_have_no_difference():
    found = {c.label: c.differences() for c in paper.COMPARISONS}
    undrawn = {(label, m) for label, values in found.items() for m, value in values.items() if np.isnan(value)}
    assert undrawn == {("base model − DPO", "CHAIRs"), ("base model − DPO", "CHAIRi")}
    assert found["base model − DPO"]["AMBER_Hal"] == 13.0 and found["base model − DPO"]["Acc_CB"] == -0.394


def test_units_are_the_kits():
    values = row("NaPO").values
    assert values["Acc_CB"] == 0.589 and values["CHAIRi"] == 0.062  # shares
    assert values["AMBER_CHAIR"] == 4.0 and values["MMHal_score"] == 3.31  # percent, points
    assert set(paper.TABLE_1) <= set(measures.MEASURES)
    for name, measure in measures.MEASURES.items():
        if name in paper.BENCHMARK:
            assert measure.benchmarks == (paper.BENCHMARK[name],)


def test_methods_of_rows_are_the_kits_or_not_yet_there():
    known = {r.method for r in paper.ROWS} & set(METHODS)
    assert {"base", "dpo_original", "dpo_all", "napo_paper", "napo_equal"} <= known


def test_cb_values_are_k_of_302():
    """The reason to compare CB with Acc_CB at all."""
    for r in paper.ROWS:
        if r.table == "1" and r.method:
            assert any(round(100 * k / 302, 1) == r.printed["Acc_CB"] for k in range(303)), r


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"examples": 40}, "40 examples, paper: 302"),
        ({"adapted": "desk world"}, "items of its own, not the benchmark's"),
        ({"decoding": "greedy"}, "decoding greedy"),
        ({"four_bit": True}, "weights in 4 bits, paper: bfloat16"),
    ],
)
def test_what_differs_is_named(change, reason):
    assert "; ".join(paper.differs("Acc_CB", row("NaPO"), "llava-hf/llava-1.5-7b-hf", SAME | change)) == reason


def test_each_benchmark_has_its_own_conditions():
    model = "llava-hf/llava-1.5-7b-hf"
    amber = SAME | {"examples": 1004, "similarity": "exact match of words"}
    assert paper.differs("AMBER_Cog", row("NaPO"), model, amber) == [
        "similarity: exact match of words, paper: spaCy en_core_web_lg"
    ]
    assert not paper.differs(
        "AMBER_Cog", row("NaPO"), model, amber | {"similarity": "spaCy 3.8 en_core_web_lg, above 0.8"}
    )
    mmhal = SAME | {"examples": 96, "judge": "gpt-4o"}
    assert paper.differs("MMHal_hal", row("NaPO"), model, mmhal) == ["judge gpt-4o, paper: gpt-4-0613"]
    objhal = SAME | {"examples": 300}
    assert paper.differs("CHAIRs", row("NaPO"), model, objhal) == []
    assert "GPT" in paper.differs("CHAIRs", row("LLaVA-v1.5-7B"), model, objhal)[0]  # another protocol in one column
    assert paper.differs("CHAIRs", row("NaPO"), "my/phi-vision", objhal) == ["paper: llava-1.5-7b"]


def test_rows_beside_a_model_follow_its_size_and_method():
    assert [r.label for r in paper.rows("x/llava-1.5-13b-hf", ["napo_paper"])] == ["NaPO"]
    assert paper.rows("x/llava-1.5-13b-hf", ["napo_paper"])[0].model == paper.LARGE
    assert [r.method for r in paper.rows("llava-1.5-7b", ["mine"])] == ["base", "dpo_original", "mdpo", "napo_paper"]


def test_the_page_marks_what_is_not_comparable_and_only_that():
    rows = [
        dict(method="mine", base=0, seed=0, flip_rate=0.0, benchmark="vlind", metric=metric, example_id=str(i),
             question_kind="", value=float(i % 2))
        for metric in ("CK", "VP", "CB", "LP") for i in range(302)
    ]  # fmt: skip
    model = "llava-hf/llava-1.5-7b-hf"
    pages = []
    for how in (SAME, SAME | {"decoding": "greedy"}):
        beside = paper.reported(model, {"vlind": how}, ["napo_paper"])
        table = frames.results_table(pd.DataFrame(rows), np.random.default_rng(0), beside)
        pages.append(report.results_page(table, "mine"))
    line = next(line for line in pages[0].splitlines() if "| Acc_CB" in line)
    assert line == "| mine | Acc_CB ↑ | 0.500 [0.444, 0.556] | examples | 302 | 0.589 |"
    assert "not the same protocol" not in pages[0] and paper.SOURCE in pages[0]
    assert "0.589[a]" in pages[1] and "[a] not the same protocol: decoding greedy." in pages[1]
    assert "0.440[a]" in pages[1] and "[b]" not in pages[1]
