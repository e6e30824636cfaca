"""How noisy does a preference set look? `python -m napo.noise PAIRS.parquet --model MODEL`: forward passes only.

For each kind of rejected answer in the file: the probability per row that its label is wrong (`posterior.py`), the rate
with its interval, the most suspect rows. Written: posterior.parquet, rates.json, noise.md and noise.png.

Biased answers are judged by what the masked modality says for them, `rejected` by the base's own taste.
"""

import argparse
import contextlib
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from napo import (
    artifacts,
    command,
    data,
    evidence,
    logps,
    models,
    packing,
    perturb,
    plots,
    posterior,
    report,
    study_plots,
)
from napo.artifacts import BadInput
from napo.profiles import REJECTED_KINDS, Quantisation

SHOWN = 10  # suspect rows in the page
MIN_ROWS = 20  # fewer say nothing of a rate
CAVEAT = (
    "An estimate without any truth. A biased answer counts as noise as far as the model finds it likelier once it sees "
    "the image (language-biased) or the question (vision-biased) that was masked; one that is right by chance is not "
    "seen, so the rate is a lower bound. A rejected answer counts as noise as far as the model itself prefers it to "
    "the chosen one: that ranks rows, as a rate it is rough. Look at the suspects before believing any of it."
)


def check(pairs, model, out, *, rows=0, quantisation=None, device="cpu", batch_size=8, mask="none", seed=0):
    """Estimate the label noise of a preference file with a model; see the module's text for what is written in `out`.

    mask  what stood for the image when the language-biased answers were made (`perturb.mask_image`)
    Returns {kind: {"rate", "lo", "hi", "rows"}}. Raises BadInput.
    """
    dataset = data.load_source(str(pairs), rows)
    kinds = tuple(kind for kind in REJECTED_KINDS if kind in dataset.column_names)
    check_answers(dataset, kinds, pairs)
    loaded, processor = models.load(model, quantisation or Quantisation(four_bit=False), device)
    packing.check_image_tokens(loaded, processor, dataset[0])
    # plain sequences: any image-text model may be asked, also one of a family that packing does not know
    seen = logps.measure(loaded, processor, dataset, ("chosen", *kinds), batch_size, packed=False, label="log-probs")
    found = {}
    for kind in (kind for kind in kinds if kind in posterior.BIASED):
        how = {"batch_size": batch_size, "how": mask, "label": f"{kind}, masked"}
        found[kind] = evidence.measure(loaded, processor, dataset, seen, kind, **how)
    table, rates = estimates(seen, found, kinds, np.random.default_rng(seed))
    asked = ["row_id", "question", "chosen", *kinds]
    texts = dataset.select_columns(asked).to_pandas().set_index("row_id")
    write(Path(out), table, rates, texts, f"{Path(pairs).name} by {model}")
    return rates


def check_answers(dataset, kinds, pairs):
    """Raises BadInput where a row lacks one of the answers, or rows are too few to see two populations."""
    if len(dataset) < MIN_ROWS:
        raise BadInput(f"{pairs}: {len(dataset)} rows, an estimate needs at least {MIN_ROWS}")
    for kind in kinds:
        for row_id, answer in zip(dataset["row_id"], dataset[kind], strict=True):
            if not (answer or "").strip():
                raise BadInput(f"{pairs}: row {row_id} has no {kind} answer: give it one or drop the row")


def estimates(seen, evidences, kinds, rng):
    """(long frame row_id, kind, raw_margin, evidence, same, posterior; {kind: rate with interval}).

    seen  DataFrame of `logps.measure`;  evidences  {biased kind: DataFrame of `evidence.measure`}
    The evidence for a `rejected` answer is its raw margin over the chosen one.
    """
    frames, rates = [], {}
    for kind in kinds:
        margin = (seen["logps_chosen"] - seen[f"logps_{kind}"]).to_numpy(float)
        taste = -margin[:, None], np.zeros(len(seen), bool)
        log_odds, same = posterior.labelled(evidences[kind]) if kind in evidences else taste
        found = posterior.estimate(log_odds, same, rng=rng)
        columns = {"row_id": seen["row_id"], "kind": kind, "raw_margin": margin, "evidence": log_odds[:, 0]}
        frames.append(pd.DataFrame(columns | {"same": same, "posterior": found.posterior}))
        counts = {"rows": len(seen), "equal": int(same.sum())}
        rates[kind] = {"rate": found.rate, "lo": found.lo, "hi": found.hi} | counts
    return pd.concat(frames, ignore_index=True), rates


def write(out, table, rates, texts, title):
    """The four files of a check, each whole or not at all."""
    artifacts.make_folder(out)
    artifacts.write_parquet(table, out / "posterior.parquet")
    artifacts.write_json(rates, out / "rates.json")
    with artifacts.atomic(out / "noise.md") as path:
        path.write_text(page(table, rates, texts, title), encoding="utf-8")
    plots.save(study_plots.posterior_by_evidence(table, rates), out / "noise.png")


def page(table, rates, texts, title):
    """The findings as markdown: rates, then the most suspect rows of each kind."""
    lines = [
        f"# How noisy does it look? {title}",
        CAVEAT,
        report.markdown_table(
            ["kind", "estimated noise [95 %]", "rows", "of these equal to the chosen answer"],
            [[kind, report.number(r["rate"], r["lo"], r["hi"], 3), r["rows"], r["equal"]] for kind, r in rates.items()],
        ),
    ]
    for kind in rates:
        of_kind = table[(table["kind"] == kind) & ~table["same"]]
        of_kind = of_kind.sort_values(["posterior", "evidence"], ascending=False, kind="stable")
        suspects = [
            [
                r.row_id,
                f"{r.posterior:.3f}",
                *(_cell(texts.loc[r.row_id, name]) for name in ("question", "chosen", kind)),
            ]
            for r in of_kind.head(SHOWN).itertuples()
        ]
        suspects = report.markdown_table(["row", "probability", "question", "chosen", kind], suspects)
        lines.append(f"## Most suspect: {kind} (those equal to the chosen answer apart)\n\n{suspects}")
    return "\n\n".join(lines) + "\n\n![probability against evidence](noise.png)\n"


def _cell(text, longest=120):
    """A text as one cell of a table."""
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest - 1] + "…"


class Parser(argparse.ArgumentParser):
    """One line for a wrong call, as for any other bad input."""

    def error(self, message):
        raise BadInput(f"{message} (see {self.prog} --help)")


def parser():
    """The command's arguments."""
    top = Parser(prog="python -m napo.noise", description="How noisy does a preference set look to a model?")
    top.add_argument("pairs", metavar="PAIRS", help="parquet file or folder: image, question, chosen, rejected, …")
    top.add_argument("--model", required=True, help="hub id or local folder")
    top.add_argument("--out", default="", metavar="FOLDER", help="default: runs/noise/NAME OF PAIRS")
    top.add_argument("--rows", type=int, default=0, help="the first so many rows only; default: all")
    top.add_argument(
        "--mask", default="none", choices=perturb.MASKS, help="what stood for masked images; default: none"
    )
    top.add_argument("--four-bit", action="store_true", help="the language model in NF4, as in training")
    top.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    top.add_argument("--batch-size", type=int, default=8, help="rows at once; default: 8")
    return top


@command.exit_status
def main(arguments=None):
    """The command; returns the exit status: 0 done, 2 bad input (one line says which)."""
    asked = parser().parse_args(arguments)
    if asked.rows < 0 or asked.batch_size < 1:
        raise BadInput("--rows is a number from 0, --batch-size one from 1")
    models.check_device(asked.device)
    dtype = "bfloat16" if asked.device == "cuda" else "float32"
    quantisation = Quantisation(four_bit=asked.four_bit, compute_dtype=dtype, dtype=dtype)
    out = Path(asked.out) if asked.out else artifacts.run_folder("noise", Path(asked.pairs).stem)
    settings = {"rows": asked.rows, "quantisation": quantisation, "device": asked.device, "mask": asked.mask}
    with contextlib.redirect_stdout(sys.stderr):  # progress; the standard output is for the rates
        rates = check(asked.pairs, asked.model, out, batch_size=asked.batch_size, **settings)
    print(json.dumps({"rates": rates, "files": artifacts.shown(out)}, indent=1))
    return 0
