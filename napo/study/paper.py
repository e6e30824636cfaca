"""The numbers that the paper prints, and which of them can be compared with a run of this kit.

Source: Zhang et al., "Debiasing Multimodal Large Language Models via Noise-Aware Preference Optimization", CVPR 2025,
arXiv 2503.17928, Tables 1-4, as printed, in paper.csv; paper_comparisons.csv names the lines that it compares. CB and
LP are VLind-Bench's unconditional accuracies (every printed CB is k/302). Units are the kit's: shares for VLind-Bench,
Object HalBench and MMHal's rate, percent for AMBER.
"""

from dataclasses import dataclass
from importlib import resources
from math import nan

import pandas as pd

from napo.stats.measures import MEASURES

SOURCE = "arXiv 2503.17928"
SMALL, LARGE = "llava-1.5-7b", "llava-1.5-13b"
EXAMPLES = {"vlind": 302, "objhal": 300, "amber": 1004, "mmhal": 96}
JUDGE = "gpt-4-0613"  # NaPO's scripts
SIMILARITY = "en_core_web_lg"
MISPRINT = (
    "the paper's Table 4 prints LP 41.4 for VB1 where its Table 2 prints 31.4 for the same run; Table 2 counts here"
)


def _printed(name):
    return pd.read_csv(resources.files(__package__) / name, dtype={"table": str}).fillna({"method": ""})


_LINES = _printed("paper.csv").set_index(["label", "table", "model", "method", "copied"])
TABLE_1 = tuple(_LINES)
PERCENT = TABLE_1[:4]  # printed in percent, shares in the kit; Tables 2-4 print these only
BENCHMARK = {name: MEASURES[name].benchmarks[0] for name in TABLE_1}


@dataclass(frozen=True)
class Row:
    """One printed line. `method` is the kit's name of the method, "" if it has none."""

    label: str
    table: str
    model: str
    method: str
    copied: int  # 1: Object HalBench copied from other papers: objects found by GPT, another denominator
    printed: dict  # measure -> number

    @property
    def values(self):
        """{measure: number in the kit's unit}."""
        return {name: round(x / 100, 6) if name in PERCENT else x for name, x in self.printed.items()}


ROWS = tuple(Row(*key, line.dropna().to_dict()) for key, line in _LINES.iterrows())


@dataclass(frozen=True)
class Comparison:
    """Two printed lines that the paper compares, by the kit's names of the methods."""

    table: str
    label: str
    treatment: str
    control: str

    def differences(self):
        """{measure: treatment minus control as printed for SMALL, in the kit's unit}, for what both lines have.

        Object HalBench is nan if only one of the two is copied: two protocols have no difference.
        """
        printed = {row.method: row for row in ROWS if row.model == SMALL}
        first, second = printed[self.treatment], printed[self.control]
        found = {m: round(value - second.values[m], 6) for m, value in first.values.items() if m in second.values}
        apart = first.copied != second.copied
        return {m: nan if apart and BENCHMARK[m] == "objhal" else value for m, value in found.items()}


COMPARISONS = tuple(Comparison(*line) for line in _printed("paper_comparisons.csv").itertuples(index=False))


def rows(model, methods=()):
    """The paper's rows for these methods and a model's size; the rows of Table 1 if it prints none of the methods.

    model  any name or id: with "13b" in it the larger model, else the smaller one
    """
    of_size = [row for row in ROWS if row.model == (LARGE if "13b" in model.lower() else SMALL)]
    known = [row for row in of_size if row.method in methods]
    return known or [row for row in of_size if row.table == "1"]


def reported(model, protocol, methods=()):
    """Records for `frames.results_table`: paper_row, table, measure, paper, differs ("" = same benchmark and protocol).

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
    """How the protocol of a printed number differs from ours: a list of phrases, empty if it does not."""
    benchmark, examples, adapted = BENCHMARK[measure], ours.get("examples", "unknown"), ours.get("adapted")
    similarity, judge = ours.get("similarity") or "unknown", ours.get("judge") or "unknown"
    apart = {
        f"paper: {row.model}": row.model not in model.lower(),
        "items of its own, not the benchmark's": adapted,
        f"{examples} examples, paper: {EXAMPLES[benchmark]}": not adapted and examples != EXAMPLES[benchmark],
        f"decoding {ours.get('decoding') or 'unknown'}": ours.get("decoding") != "paper",
        "weights in 4 bits, paper: bfloat16": ours.get("four_bit"),
        "paper: copied from work that finds objects by GPT": benchmark == "objhal" and row.copied,
        f"similarity: {similarity}, paper: spaCy {SIMILARITY}": benchmark == "amber" and SIMILARITY not in similarity,
        f"judge {judge}, paper: {JUDGE}": benchmark == "mmhal" and judge != JUDGE,
    }
    return [phrase for phrase, holds in apart.items() if holds]
