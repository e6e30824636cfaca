"""How noisy biased answers are as they come, by kind of question: `python -m napo.world.natural_noise --out F.json`.

Pairs are the desk profile's, held-out rows included, of the reporting bases. Beside it the labeller's own mistakes: the
share of original pairs whose chosen answer is, by the picture, the worse one.
"""

from dataclasses import replace

import pandas as pd

from napo import artifacts, perturb, profiles, report
from napo.data import BIASED
from napo.world import record
from napo.world.pairs import labeller_score
from napo.world.questions import parse
from napo.world.scenes import from_json

KINDS = (*BIASED, "rejected")
ASKED = (0.10, 0.40)  # where the share of noise ought to lie, for both kinds on three kinds of question at least


def measure(bases, runs_dir="runs"):
    """Long frame: base, question_kind, kind (of biased answer, or "rejected"), rows, noise (share of them that are
    right and to the point, or better than the chosen one)."""
    profile = replace(profiles.get("desk"), name="natural_noise", bases=tuple(bases))
    parts = []
    for base in bases:
        rows = artifacts.read_parquet(perturb.pairs(profile, base, runs_dir), "01")
        rows["is_noise_rejected"] = [is_mistaken(row) for row in rows.to_dict("records")]
        for kind in KINDS:
            found = rows.groupby("question_kind")[f"is_noise_{kind}"].agg(rows="size", noise="mean").reset_index()
            parts.append(found.assign(base=base, kind=kind))
    columns = ["base", "question_kind", "kind", "rows", "noise"]
    return pd.concat(parts, ignore_index=True)[columns]


def is_mistaken(row):
    """Whether the labeller chose the worse answer: as it would have judged the two by the picture."""
    scene, question = from_json(row["scene"]), parse(row["question"])
    return labeller_score(scene, question, row["chosen"]) < labeller_score(scene, question, row["rejected"])


def table(found):
    """The record as a Markdown table: the mean over bases with the smallest and the largest; those asked for in bold.
    found  {"noise": records of `measure`}"""
    spread = pd.DataFrame(found["noise"]).groupby(["question_kind", "kind"])["noise"].agg(["mean", "min", "max"])
    rows = []
    for question_kind in spread.index.unique("question_kind"):
        rows.append([question_kind, *(_cell(kind, *spread.loc[(question_kind, kind)]) for kind in KINDS)])
    head = [f"{kind} noise [least, most]" for kind in BIASED]
    return report.markdown_table(["question", *head, "labeller mistaken [least, most]"], rows)


def _cell(kind, mean, least, most):
    text = f"{mean:.3f} [{least:.2f}, {most:.2f}]"
    return f"**{text}**" if kind in BIASED and within(mean) else text


def within(rate):
    return ASKED[0] <= rate <= ASKED[1]


if __name__ == "__main__":
    record.command(__doc__, profiles.get("study").bases, "noise", measure, table)
