"""Natural noise of biased answers, by kind of question: `python -m experiments.natural_noise --out FILE.json`.

Measured on the desk profile's pairs of the reporting bases, held-out rows included. It also counts the labeller's own
mistakes: the share of original pairs whose chosen answer is the worse one by the picture.
"""

from dataclasses import replace

import pandas as pd

from experiments import record
from napo import profiles
from napo.desk.pairs import labeller_score
from napo.desk.questions import parse
from napo.desk.scenes import from_json
from napo.engine.preferences import BIASED
from napo.pairs import perturb
from napo.study import markdown
from napo.workshop.files import read_parquet

KINDS = (*BIASED, "rejected")
ASKED = (0.10, 0.40)  # goal for the share of noise, for both kinds on at least three kinds of question


def measure(bases, runs_dir="runs"):
    """Long frame: base, question_kind, kind (of biased answer, or "rejected"), rows, noise.

    noise  share of the rows whose answer is right and to the point; for "rejected": better than the chosen one
    """
    profile = replace(profiles.get("desk"), name="natural_noise", bases=tuple(bases))
    parts = []
    for base in bases:
        rows = read_parquet(perturb.pairs(profile, base, runs_dir), "01")
        rows["is_noise_rejected"] = [is_mistaken(row) for row in rows.to_dict("records")]
        for kind in KINDS:
            found = rows.groupby("question_kind")[f"is_noise_{kind}"].agg(rows="size", noise="mean").reset_index()
            parts.append(found.assign(base=base, kind=kind))
    columns = ["base", "question_kind", "kind", "rows", "noise"]
    return pd.concat(parts, ignore_index=True)[columns]


def is_mistaken(row):
    """Whether the labeller, judging by the picture, would have preferred the rejected answer."""
    scene, question = from_json(row["scene"]), parse(row["question"])
    return labeller_score(scene, question, row["chosen"]) < labeller_score(scene, question, row["rejected"])


def table(found):
    """The record as a Markdown table: mean over bases with minimum and maximum; means within ASKED in bold.

    found  {"noise": records of `measure`}
    """
    spread = pd.DataFrame(found["noise"]).groupby(["question_kind", "kind"])["noise"].agg(["mean", "min", "max"])
    rows = []
    for question_kind in spread.index.unique("question_kind"):
        rows.append([question_kind, *(_cell(kind, *spread.loc[(question_kind, kind)]) for kind in KINDS)])
    head = [f"{kind} noise [least, most]" for kind in BIASED]
    return markdown.table(["question", *head, "labeller mistaken [least, most]"], rows)


def _cell(kind, mean, least, most):
    text = f"{mean:.3f} [{least:.2f}, {most:.2f}]"
    return f"**{text}**" if kind in BIASED and within(mean) else text


def within(rate):
    return ASKED[0] <= rate <= ASKED[1]


if __name__ == "__main__":
    record.command(__doc__, profiles.get("study").bases, "noise", measure, table)
