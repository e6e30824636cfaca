"""`napo noise PAIRS --model MODEL`: estimate how noisy the labels of a preference set are. Forward passes only.

Writes posterior.parquet (one line per row and kind), rates.json, noise.md (with the most suspect rows) and noise.png.
"""

import contextlib
import json
import sys
from pathlib import Path

import numpy as np
import torch

from napo.commands import command
from napo.engine import logps, models, packing, preferences, row_check
from napo.methods import REJECTED_KINDS
from napo.noise import evidence, posterior
from napo.noise.check import check_answers, estimates
from napo.pairs import perturb
from napo.profiles import Quantisation
from napo.study import markdown, noise_plots, plot_style
from napo.workshop import artifacts
from napo.workshop.files import BadInput, atomic, make_folder, shown, write_json

SHOWN = 10  # suspect rows in the page


def check(pairs, model, out, *, rows=0, quantisation=None, device="cpu", batch_size=8, mask="none"):
    """Estimate the label noise of a preference file with a model, and write the four files into the folder `out`.

    mask  the image that stood in for the real one when the language-biased answers were made (`perturb.mask_image`)
    Returns {kind: {"rate", "lo", "hi", "rows", "equal"}}. Raises BadInput.
    """
    fits = models.LoadOnce(lambda: row_check.of_model(str(model)))
    dataset = preferences.load_source(str(pairs), rows, unfit=lambda row: fits()(row))
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
    table, rates = estimates(seen, found, kinds, np.random.default_rng(0))
    texts = dataset.select_columns(["row_id", "question", "chosen", *kinds]).to_pandas().set_index("row_id")
    make_folder(out)
    with atomic(out / "posterior.parquet") as path:
        table.to_parquet(path, index=False)
    write_json(rates, out / "rates.json")
    with atomic(out / "noise.md") as path:
        path.write_text(page(table, rates, texts, f"{Path(pairs).name} by {model}"), encoding="utf-8")
    plot_style.save(noise_plots.posterior_by_evidence(table, rates), out / "noise.png")
    return rates


def page(table, rates, texts, title):
    """The page in markdown: rates, then the most suspect rows of each kind."""
    header = ["kind", "estimated noise [95 %]", "rows", "rows whose answer equals the chosen one"]
    rows = [[kind, markdown.number(r["rate"], r["lo"], r["hi"], 3), r["rows"], r["equal"]] for kind, r in rates.items()]
    suspects = "\n\n".join(_suspects(table[table["kind"] == kind], kind, texts) for kind in rates)
    return command.template("noise").format(
        title=markdown.plain(title), rates=markdown.table(header, rows), suspects=suspects
    )


def _suspects(table, kind, texts):
    """The section with a kind's most suspect rows."""
    ranked = table[~table["same"]].sort_values(["posterior", "evidence"], ascending=False, kind="stable")
    columns, rows = ["question", "chosen", kind], []
    for row in ranked.head(SHOWN).itertuples():
        foreign = [markdown.plain(_shortened(str(text))) for text in (row.row_id, *texts.loc[row.row_id, columns])]
        rows.append([foreign[0], f"{row.posterior:.3f}", *foreign[1:]])
    listed = markdown.table(["row", "probability", *columns], rows)
    return f"## Most suspect: {kind} (without those equal to the chosen answer)\n\n{listed}"


def _shortened(text, longest=120):
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest - 1] + "…"


def parser():
    top = command.parser("noise")
    top.add_argument("pairs", metavar="PAIRS", help="parquet file or folder: image, question, chosen, rejected, …")
    top.add_argument("--model", required=True, help="hub id or local folder")
    top.add_argument("--out", default="", metavar="FOLDER", help="default: runs/noise/NAME OF PAIRS")
    top.add_argument("--rows", type=int, default=0, help="only the first so many rows; default: all")
    top.add_argument("--mask", default="none", choices=perturb.MASKS, help="what masked images became; default: none")
    top.add_argument("--four-bit", action="store_true", help="the language model in NF4, as in training")
    top.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    top.add_argument("--batch-size", type=int, default=8, help="rows at once; default: 8")
    return top


@command.exit_status
def main(arguments=None):
    asked = parser().parse_args(arguments)
    if asked.rows < 0 or asked.batch_size < 1:
        raise BadInput("--rows must be at least 0, --batch-size at least 1")
    models.check_device(asked.device)
    dtype = "bfloat16" if asked.device == "cuda" else "float32"
    quantisation = Quantisation(four_bit=asked.four_bit, compute_dtype=dtype, dtype=dtype)
    out = Path(asked.out) if asked.out else artifacts.run_folder("noise", Path(asked.pairs).stem)
    settings = {"rows": asked.rows, "quantisation": quantisation, "device": asked.device, "mask": asked.mask}
    with contextlib.redirect_stdout(sys.stderr):  # progress: stdout carries the rates
        rates = check(asked.pairs, asked.model, out, batch_size=asked.batch_size, **settings)
    print(json.dumps({"rates": rates, "files": shown(out)}, indent=1))
