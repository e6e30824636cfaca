"""The paper's numbers, in one place, and where one of ours may stand beside them.

Source: Zhang et al., "Debiasing Multimodal Large Language Models via Noise-Aware Preference Optimization", CVPR 2025,
arXiv 2503.17928, Tables 1, 2 and 4. CB and LP are VLind-Bench's unconditional accuracies (every printed CB is k/302).
Units here are the kit's: shares for VLind-Bench, Object HalBench and MMHal's rate, percent for AMBER.
"""

from dataclasses import dataclass
from math import nan

SOURCE = "arXiv 2503.17928"
TABLE_1 = ("Acc_CB", "Acc_LP", "CHAIRs", "CHAIRi", "AMBER_CHAIR", "AMBER_Cover", "AMBER_Hal", "AMBER_Cog",
           "MMHal_score", "MMHal_hal")  # fmt: skip
TABLE_2 = TABLE_1[:4]
PERCENT = ("Acc_CB", "Acc_LP", "CHAIRs", "CHAIRi")  # printed in percent, shares in the kit
BENCHMARK = {name: "vlind" for name in TABLE_1[:2]} | {name: "objhal" for name in TABLE_1[2:4]}
BENCHMARK |= {name: "amber" for name in TABLE_1[4:8]} | {name: "mmhal" for name in TABLE_1[8:]}
EXAMPLES = {"vlind": 302, "objhal": 300, "amber": 1004, "mmhal": 96}
JUDGE = "gpt-4-0613"  # NaPO's scripts
SIMILARITY = "en_core_web_lg"


@dataclass(frozen=True)
class Row:
    """One printed line. `method` is the kit's name for what was trained, "" where it has none."""

    label: str
    table: str
    model: str
    method: str
    printed: tuple[float, ...]
    copied: bool = False  # Object HalBench from other papers: objects found by GPT, another denominator

    @property
    def values(self):
        """{measure: number in the kit's unit}."""
        named = zip(TABLE_1 if self.table == "1" else TABLE_2, self.printed, strict=True)
        return {name: round(value / 100, 6) if name in PERCENT else value for name, value in named}


SMALL, LARGE = "llava-1.5-7b", "llava-1.5-13b"
ROWS = (
    Row("LLaVA-v1.5-7B", "1", SMALL, "base", (0.0, 0.0, 53.6, 25.2, 7.8, 51.0, 36.4, 4.2, 2.11, 0.54), copied=True),
    Row("DPO on RLAIF-V", "1", SMALL, "dpo_original", (39.4, 25.4, 32.0, 8.5, 4.9, 52.0, 23.4, 1.6, 3.23, 0.38)),
    Row("mDPO on RLAIF-V", "1", SMALL, "mdpo", (0.3, 0.4, 35.3, 10.5, 4.2, 53.1, 22.4, 2.2, 3.28, 0.42)),
    Row("NaPO", "1", SMALL, "napo_paper", (58.9, 44.0, 25.7, 6.2, 4.0, 54.1, 20.7, 1.4, 3.31, 0.35)),
    Row("LLaVA-v1.5-13B", "1", LARGE, "base", (31.5, 20.9, 53.3, 14.5, 8.5, 50.9, 37.6, 4.2, 3.03, 0.47)),
    Row("DPO on RLAIF-V", "1", LARGE, "dpo_original", (37.1, 21.2, 25.8, 6.3, 3.3, 50.5, 19.9, 1.3, 3.39, 0.35)),
    Row("mDPO on RLAIF-V", "1", LARGE, "mdpo", (32.8, 16.9, 30.3, 9.1, 3.4, 52.6, 18.1, 1.4, 3.72, 0.30)),
    Row("NaPO", "1", LARGE, "napo_paper", (42.1, 25.1, 23.7, 5.9, 3.5, 55.7, 19.0, 1.2, 3.55, 0.33)),
    Row("GPT-4V", "1", "gpt-4v", "", (91.1, 75.6, 13.6, 7.3, 4.6, 67.1, 30.7, 2.6, 3.49, 0.28), copied=True),
    Row("A2: without γ", "2", SMALL, "napo_equal", (50.0, 38.2, 27.7, 8.0)),
    Row("A3: A2 with DPO", "2", SMALL, "dpo_all", (43.4, 32.2, 29.0, 8.3)),
    Row("LB1: no vision-biased data", "2", SMALL, "lb_napo", (40.4, 36.4, 28.0, 6.4)),
    Row("LB2: LB1 with DPO", "2", SMALL, "lb_dpo", (44.7, 29.9, 28.3, 6.8)),
    Row("VB1: no language-biased data", "2", SMALL, "vb_napo", (62.3, 31.4, 26.3, 7.6)),  # LP: Table 4 prints 41.4
    Row("VB2: VB1 with DPO", "2", SMALL, "vb_dpo", (55.3, 28.5, 27.7, 7.4)),
    Row("Random: one loss per batch", "3", SMALL, "random", (51.3, 40.9, 28.3, 7.2)),
    Row("LB1 with the sum margin", "4", SMALL, "lb_napo_sum", (34.8, 22.2, 28.7, 7.1)),
    Row("VB1 with the mean margin", "4", SMALL, "vb_napo_mean", (52.3, 29.5, 28.7, 7.8)),
)


def methods(model=SMALL):
    """The kit's names of everything that the tables print of a model."""
    return {row.method for row in ROWS if row.model == model and row.method}


MISPRINT = (
    "the paper's Table 4 prints LP 41.4 for VB1 where its Table 2 prints 31.4 for the same run; Table 2 counts here"
)


@dataclass(frozen=True)
class Comparison:
    """Two printed lines that the paper sets against each other, by the kit's names of what was trained."""

    table: str
    label: str
    treatment: str
    control: str

    def differences(self, model=SMALL):
        """{measure: treatment minus control as printed, in the kit's unit}, for the measures that both lines have; nan
        for Object HalBench where one of the two is copied and the other is not: two protocols have no difference."""
        printed = {row.method: row for row in ROWS if row.model == model}
        first, second = printed[self.treatment], printed[self.control]
        found = {m: round(value - second.values[m], 6) for m, value in first.values.items() if m in second.values}
        apart = [m for m in found if BENCHMARK[m] == "objhal"] if first.copied != second.copied else []
        return found | dict.fromkeys(apart, nan)


COMPARISONS = (
    Comparison("1", "base model − DPO", "base", "dpo_original"),
    Comparison("1", "mDPO − DPO", "mdpo", "dpo_original"),
    Comparison("1", "NaPO − DPO", "napo_paper", "dpo_original"),
    Comparison("2", "A2, no γ − A1", "napo_equal", "napo_paper"),
    Comparison("2", "A3, DPO loss − A1", "dpo_all", "napo_paper"),
    Comparison("2", "LB1, no vision − A1", "lb_napo", "napo_paper"),
    Comparison("2", "LB2, DPO loss − LB1", "lb_dpo", "lb_napo"),
    Comparison("2", "VB1, no language − A1", "vb_napo", "napo_paper"),
    Comparison("2", "VB2, DPO loss − VB1", "vb_dpo", "vb_napo"),
    Comparison("3", "Random − DPO", "random", "dpo_original"),
    Comparison("4", "LB1 by the sum − LB1", "lb_napo_sum", "lb_napo"),
    Comparison("4", "VB1 by the mean − VB1", "vb_napo_mean", "vb_napo"),
)


def rows(model, methods=()):
    """The paper's rows for a model size: those of these methods, or the four of Table 1 if none is known.

    model  any name of it: an id with "13b" in it is the larger one, else the smaller
    """
    of_size = [row for row in ROWS if row.model == (LARGE if "13b" in model.lower() else SMALL)]
    known = [row for row in of_size if row.method in methods]
    return known or [row for row in of_size if row.table == "1"]


def reported(model, protocol, methods=()):
    """Records for `stats.results_table`: paper_row, table, measure, paper, differs ("" = same benchmark and protocol).

    protocol  {benchmark: {"examples", "decoding", "four_bit", "adapted", "similarity", "judge"}} of our run
    """
    records = []
    for row in rows(model, methods):
        for measure, value in row.values.items():
            found = differs(measure, row, model, protocol.get(BENCHMARK[measure], {}))
            place = {"paper_row": row.label, "table": row.table, "measure": measure, "paper": value}
            records.append(place | {"differs": "; ".join(found)})
    return records


def differs(measure, row, model, ours):
    """What is not the same between a printed number and ours: a list of phrases, empty where the protocol is."""
    benchmark, found = BENCHMARK[measure], []
    if row.model not in model.lower():
        found.append(f"paper: {row.model}")
    if ours.get("adapted"):
        found.append("items of its own, not the benchmark's")
    elif ours.get("examples") != EXAMPLES[benchmark]:
        found.append(f"{ours.get('examples', 'unknown')} examples, paper: {EXAMPLES[benchmark]}")
    if ours.get("decoding") != "paper":
        found.append(f"decoding {ours.get('decoding') or 'unknown'}")
    if ours.get("four_bit"):
        found.append("weights in 4 bits, paper: bfloat16")
    if benchmark == "objhal" and row.copied:
        found.append("paper: copied from work that finds objects by GPT")
    if benchmark == "amber" and SIMILARITY not in (ours.get("similarity") or ""):
        found.append(f"similarity: {ours.get('similarity') or 'unknown'}, paper: spaCy {SIMILARITY}")
    if benchmark == "mmhal" and ours.get("judge") != JUDGE:
        found.append(f"judge {ours.get('judge') or 'unknown'}, paper: {JUDGE}")
    return found
