"""The paper profile's settings, each with where it comes from: one table, made from napo/profiles.py.

    python -m napo.settings docs/paper.md        # writes the table into the page, between its two marks

"paper": printed there; "authors": only in their code; "ours": neither says, or LoRA on a 4-bit base asks for another.
"""

import dataclasses
import sys
from pathlib import Path

from napo import artifacts
from napo.artifacts import BadInput
from napo.profiles import ALPHA, METHODS, PROFILES
from napo.report import markdown_table

BEGIN, END = "<!-- settings:begin -->", "<!-- settings:end -->"

# Path of the setting in a Profile -> (what it is, source, why).
SOURCES = {
    "model": ("model", "paper", "LLaVA-v1.5-7B; this is the hub's port of it"),
    "revision": ("commit of the model", "ours", "recorded at first use in runs/<profile>/revisions.json"),
    "data": ("preference pairs", "paper", "83,132 pairs; Starrrrrry/RLAIF-V-Bias-Dataset brings its biased answers"),
    "data_revision": ("commit of the data", "ours", "recorded at first use"),
    "rows": ("training rows", "ours", "one GPU; ROWS=all for the paper's"),
    "heldout_rows": ("rows held out", "ours", "noise measurement, general ability"),
    "seeds": ("seeds", "ours", "neither says how many runs a printed number is of"),
    "methods": ("methods trained", "ours", "the paper's A1 and A3, the authors' code, DPO and SFT beside them"),
    "probe_rows": ("rows of the noise probe", "ours", "notebook 02; not in the paper"),
    "probe_epochs": ("epochs of the noise probe", "ours", "notebook 02; not in the paper"),
    "perturbation.image": (
        "masked image",
        "authors",
        "the first of their three (none, white, black); which one they used is not said",
    ),
    "perturbation.num_beams": ("beams of biased answers", "authors", "3, temperature 0"),
    "perturbation.max_new_tokens": ("longest biased answer, tokens", "authors", ""),
    "perturbation.batch_size": ("prompts at once", "ours", "fits the card; authors: 1 (3 for image variants)"),
    "quantisation.four_bit": ("language model in NF4", "ours", "one GPU; authors: bfloat16, all weights trained"),
    "quantisation.double_quant": ("double quantisation", "ours", "0.37 bit a weight less"),
    "quantisation.compute_dtype": ("compute type", "authors", "bf16"),
    "quantisation.dtype": ("type of what is not in 4 bits", "authors", "bf16; log-probs and losses are float32"),
    "lora.r": ("LoRA rank", "ours", "authors train every weight"),
    "lora.alpha": ("LoRA scale", "ours", "twice the rank"),
    "lora.targets": ("LoRA layers", "ours", "every linear layer of the language model, none of the vision tower"),
    "training.beta": ("β", "paper", ""),
    "training.learning_rate": ("learning rate", "ours", "LoRA; the paper's 5e-7 is for all weights"),
    "training.epochs": ("epochs", "ours", "paper: 4"),
    "training.batch_size": (
        "rows of a micro-batch",
        "authors",
        "1 per device (paper: batch 4); q and γ are of it, over all devices",
    ),
    "training.accumulation": ("micro-batches of a step", "ours", "authors: 4 on 8 GPUs, so 32 rows a step as well"),
    "training.warmup_ratio": ("warm-up, share of steps", "authors", ""),
    "training.schedule": ("schedule", "authors", ""),
    "training.weight_decay": ("weight decay", "authors", "AdamW"),
    "training.optimizer": ("optimizer", "authors", ""),
    "training.gradient_checkpointing": ("gradient checkpointing", "ours", "memory"),
    "training.max_length": ("longest prompt + answer, tokens", "authors", "image tokens are never cut"),
    "training.packed": ("prompt and image once a row", "ours", "exact: the same gradients as one sequence per answer"),
    "training.save_steps": ("steps between checkpoints", "ours", "what a kill loses at most"),
    "training.max_grad_norm": ("gradient clipping", "ours", "Trainer's default; neither names one"),
    "evaluation.benchmarks": ("benchmarks", "ours", "BENCHMARKS=data adds those of the paper that lie there"),
    "evaluation.items": ("examples at most", "ours", "of the desk world's benchmarks; official ones in full"),
    "evaluation.max_new_tokens": ("longest answer shown, tokens", "ours", "official benchmarks: the authors' lengths"),
    "evaluation.num_beams": ("beams of answers shown", "ours", "official benchmarks: the authors' 3"),
    "evaluation.batch_size": ("questions at once", "ours", "fits the card"),
    "evaluation.decoding": ("decoding of official benchmarks", "authors", "set to paper by BENCHMARKS=data"),
    "evaluation.similarity": ("AMBER's word similarity", "paper", "the official script's"),
}
# Settings of no consequence here: names, the desk world's, and how work is spread.
ELSEWHERE = (
    "name bases flip_rates noise_kinds noisy_methods noisy_seeds device workers threads report_to evaluation.seed"
    " evaluation.data"
).split()


def leaves(value, path=""):
    """{path: value} of a dataclass's fields, dataclasses within it taken apart."""
    found = {}
    for field in dataclasses.fields(value):
        inner, name = getattr(value, field.name), path + field.name
        found |= leaves(inner, name + ".") if dataclasses.is_dataclass(inner) else {name: inner}
    return found


def rows():
    """Lines of the table: setting, value of `paper`, of `paper_small` where it differs, source, why."""
    paper, small = leaves(PROFILES["paper"]), leaves(PROFILES["paper_small"])
    lines = [
        [label, shown(paper[path]), shown(small[path]) if small[path] != paper[path] else "", source, why]
        for path, (label, source, why) in SOURCES.items()
    ]
    return lines + of_the_objective()


def of_the_objective():
    """The settings that stand in METHODS and not in a profile."""
    authors = METHODS["napo_authors"].gamma
    return [
        ["α with a mean margin (language-biased)", shown(ALPHA["mean"]), "", "paper", "section 4"],
        ["α with a sum margin (vision-biased)", shown(ALPHA["sum"]), "", "paper", "section 4"],
        ["γ of napo_paper", METHODS["napo_paper"].gamma, "", "paper", "eq. 13, with the kit's rule at margin 0"],
        ["γ of napo_authors", shown(authors), "", "authors", "fixed weights of their command line"],
    ]


def shown(value):
    """A setting as the table prints it."""
    if isinstance(value, tuple):
        return ", ".join(map(shown, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return "–" if value in (None, "") else f"`{value}`" if not str(value).isalnum() else str(value)


def table():
    """The whole table in markdown."""
    return markdown_table(["setting", "`paper`", "`paper_small`, where it differs", "source", "why"], rows())


def placed(text):
    """A page with the table between its two marks. Raises BadInput where it has none."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise BadInput(f"no place for the table: the page needs the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main(arguments=None):
    """The command; returns the exit status."""
    names = sys.argv[1:] if arguments is None else arguments
    try:
        for name in names:
            text = placed(Path(name).read_text(encoding="utf-8"))
            with artifacts.atomic(name) as path:
                path.write_text(text, encoding="utf-8")
    except (BadInput, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
