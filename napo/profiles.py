"""The one place where numbers are chosen: PROFILES, one dial from a laptop to a GPU. (METHODS stand in `methods.py`.)

Each field says who chose the value of the profile `paper`: "paper" (printed there), "authors" (only in their code) or
"ours" (neither says, or LoRA on a 4-bit base asks for another), and why. `docs/paper.md` prints them as a table.
"""

import textwrap
from dataclasses import dataclass, field, replace
from itertools import product

from napo.methods import METHODS, TABLE_METHODS
from napo.workshop import environment
from napo.workshop.files import BadInput, repository_root


def setting(default, about, source, why=""):
    """A field with what it sets, who chose the paper profile's value ("paper", "authors", "ours"), and why."""
    return field(default=default, metadata={"about": about, "source": source, "why": why})


def group(kind):
    """A field that holds settings of its own."""
    return field(default_factory=kind)


@dataclass(frozen=True)
class Perturbation:
    """How the biased answers are made. image: "none" | "white" | "black" | "grey" | "noise"."""

    image: str = setting(
        "none",
        "masked image",
        "authors",
        "the first of their three (none, white, black); they do not say which they used",
    )
    num_beams: int = setting(1, "beams of biased answers", "authors", "3, temperature 0")
    max_new_tokens: int = setting(48, "longest biased answer, tokens", "authors")
    batch_size: int = setting(64, "prompts at once", "ours", "fits the card; authors: 1 (3 for image variants)")


@dataclass(frozen=True)
class Quantisation:
    """4-bit weights of the language model; vision tower, projector and output head stay as they are."""

    four_bit: bool = setting(True, "language model in NF4", "ours", "one GPU; authors: bfloat16, all weights trained")
    double_quant: bool = setting(True, "double quantisation", "ours", "0.37 bit a weight less")
    compute_dtype: str = setting("float32", "compute type", "authors", "bf16")
    dtype: str = setting(
        "float32", "type of what is not in 4 bits", "authors", "bf16; log-probs and losses are float32"
    )


@dataclass(frozen=True)
class Lora:
    """The adapter (peft's LoraConfig). Dropout stays 0: with dropout the first margin would not be 0."""

    r: int = setting(8, "LoRA rank", "ours", "authors train every weight")
    alpha: int = setting(16, "LoRA scale", "ours", "twice the rank")
    targets: str = setting(  # families call the language model by one of two names
        r".*\.(language_model|text_model)\..*\.(q|k|v|o|gate|up|down)_proj",
        "LoRA layers",
        "ours",
        "every linear layer of the language model, none of the vision tower",
    )


@dataclass(frozen=True)
class Training:
    """Settings of one training, the same for every method."""

    beta: float = setting(0.1, "β", "paper")
    learning_rate: float = setting(1e-3, "learning rate", "ours", "LoRA; the paper's 5e-7 is for all weights")
    epochs: float = setting(4, "epochs", "ours", "paper: 4")
    batch_size: int = setting(
        32, "rows of a micro-batch", "authors", "1 per device (paper: batch 4); q and γ are of it, over all devices"
    )
    accumulation: int = setting(1, "micro-batches of a step", "ours", "authors: 4 on 8 GPUs, so 32 rows a step as well")
    warmup_ratio: float = setting(0.1, "warm-up, share of steps", "authors")
    schedule: str = setting("cosine", "schedule", "authors")
    weight_decay: float = setting(0.01, "weight decay", "authors", "AdamW")
    optimizer: str = setting("adamw_torch", "optimizer", "authors")
    gradient_checkpointing: bool = setting(False, "gradient checkpointing", "ours", "memory")
    max_length: int = setting(2048, "longest prompt + answer, tokens", "authors", "image tokens are never cut")
    packed: bool = setting(
        True, "prompt and image once a row", "ours", "exact: the same gradients as one sequence per answer"
    )
    save_steps: int = setting(50, "steps between checkpoints", "ours", "what a kill loses at most")
    max_grad_norm: float = setting(1.0, "gradient clipping", "ours", "Trainer's default; neither names one")


@dataclass(frozen=True)
class Decoding:
    """How answers to an official benchmark are generated. At temperature 0: the likeliest; else sampled by the seed."""

    num_beams: int = 1
    temperature: float = 0.0
    max_new_tokens: int = 64
    batch_size: int = 8
    seed: int = 0


# Official benchmarks, by name. NaPO did not run POPE; there and for "beams" without sampling the choice is ours.
MAX_NEW_TOKENS = {"vlind": 64, "objhal": 1024, "amber": 1024, "mmhal": 1024, "pope": 64}  # authors; pope: ours
DECODINGS = {
    "paper": {  # authors: VLind-Bench by 3 beams; the others by the default of their script, 3 beams at temperature 0.2
        name: Decoding(3, 0.0 if name in ("vlind", "pope") else 0.2, tokens) for name, tokens in MAX_NEW_TOKENS.items()
    },
    "beams": {name: Decoding(3, 0.0, tokens) for name, tokens in MAX_NEW_TOKENS.items()},
    "greedy": {name: Decoding(1, 0.0, tokens) for name, tokens in MAX_NEW_TOKENS.items()},
}


@dataclass(frozen=True)
class Evaluation:
    """What notebook 04 asks, and how.

    seed  of the desk world's test items;  decoding  a key of DECODINGS for official benchmarks, "" for these settings
    data  folder of the official benchmarks' files, "" for the desk world's own;  similarity  "spacy" | "exact" |
    "table:FILE"
    """

    benchmarks: tuple[str, ...] = setting(
        ("heldout_pairs",), "benchmarks", "ours", "BENCHMARKS=data adds those of the paper that lie there"
    )
    items: int = setting(300, "examples at most", "ours", "of the desk world's benchmarks; official ones in full")
    seed: int = 0
    max_new_tokens: int = setting(
        48, "longest answer shown, tokens", "ours", "official benchmarks: the authors' lengths"
    )
    num_beams: int = setting(1, "beams of answers shown", "ours", "official benchmarks: the authors' 3")
    batch_size: int = setting(64, "questions at once", "ours", "fits the card")
    decoding: str = setting("", "decoding of official benchmarks", "authors", "set to paper by BENCHMARKS=data")
    data: str = ""
    similarity: str = setting("spacy", "AMBER's word similarity", "paper", "the official script's")


@dataclass(frozen=True)
class Profile:
    """One setting of the dial: the same notebooks at one size.

    model, data    "desk", a hub id or a local path;  revisions: commits on the hub, None = recorded at first use
    flip_rates     shares of training rows with injected noise, of `noise_kinds`; only `noisy_methods` with
                   `noisy_seeds` are trained at rates above 0, () = all
    report_to      logging back ends of Trainer besides steps.jsonl; in no key
    workers        cells trained side by side; 1 on a GPU
    threads        of torch, per process: models as small as the desk's are fastest on one; 0 = torch's own choice
    """

    name: str
    model: str = setting("desk", "model", "paper", "LLaVA-v1.5-7B; this is the hub's port of it")
    data: str = setting(
        "desk", "preference pairs", "paper", "83,132 pairs; Starrrrrry/RLAIF-V-Bias-Dataset brings its biased answers"
    )
    revision: str | None = setting(None, "commit of the model", "ours", "recorded at first use in revisions.json")
    data_revision: str | None = setting(None, "commit of the data", "ours", "recorded at first use")
    rows: int = setting(480, "training rows", "ours", "one GPU; ROWS=all for the paper's")
    heldout_rows: int = setting(240, "rows held out", "ours", "noise measurement, general ability")
    bases: tuple[int, ...] = (0,)
    seeds: tuple[int, ...] = setting((0,), "seeds", "ours", "neither says how many runs a printed number is of")
    methods: tuple[str, ...] = setting(
        ("base", "sft", "dpo_original", "dpo_all", "napo_paper", "napo_authors"),
        "methods trained",
        "ours",
        "the paper's A1 and A3, the authors' code, DPO and SFT beside them",
    )
    flip_rates: tuple[float, ...] = (0.0,)
    noise_kinds: tuple[str, ...] = ("swap",)
    noisy_methods: tuple[str, ...] = ()
    noisy_seeds: tuple[int, ...] = ()
    probe_rows: int = setting(240, "rows of the noise probe", "ours", "notebook 02; not in the paper")
    probe_epochs: float = setting(2, "epochs of the noise probe", "ours", "notebook 02; not in the paper")
    perturbation: Perturbation = group(Perturbation)
    quantisation: Quantisation = group(Quantisation)
    lora: Lora = group(Lora)
    training: Training = group(Training)
    evaluation: Evaluation = group(Evaluation)
    device: str = "cpu"
    report_to: tuple[str, ...] = ()
    workers: int = 2
    threads: int = 1

    @property
    def computing(self):
        """What decides how numbers round, for an artefact's key."""
        return {"quantisation": self.quantisation, "threads": self.threads} | environment.computed_on(self.device)

    @property
    def is_desk(self):
        return self.data == "desk"

    @property
    def needs_nothing(self):
        """Whether it runs on what lies in this package: no GPU, no network, no file of the user's."""
        return self.is_desk and self.model == "desk" and self.device == "cpu"

    def cells(self):
        """Every training of the comparison, and the untrained base models.

        An untrained method gets one cell per base. Only `noisy_methods` are also trained with injected noise.
        """
        noisy, noisy_seeds = self.noisy_methods or self.methods, self.noisy_seeds or self.seeds
        levels = [(rate, kind) for rate in self.flip_rates for kind in (self.noise_kinds if rate else ("swap",))]
        out = []
        for method in self.methods:
            if not METHODS[method].trained:
                out += [Cell(method, base, self.seeds[0]) for base in self.bases]
                continue
            for base, seed, (rate, kind) in product(self.bases, self.seeds, levels):
                if not rate or (method in noisy and seed in noisy_seeds):
                    out.append(Cell(method, base, seed, rate, kind))
        return out


@dataclass(frozen=True)
class Cell:
    """One training: a method on one base with one seed, and a share of rows with injected noise of one kind.

    noise_kind  "swap": in `flip_rate` of the rows the chosen answer and each rejected one change places in every loss
                term; "leak": in as many rows the biased answers are replaced by good ones (desk world only)
    """

    method: str
    base: int = 0
    seed: int = 0
    flip_rate: float = 0.0
    noise_kind: str = "swap"

    @property
    def name(self):
        """Also the cell's folder under runs/<profile>/cells/."""
        kind = "" if self.noise_kind == "swap" else f"-{self.noise_kind}"
        return f"{self.method}-b{self.base}-s{self.seed}-f{self.flip_rate:g}{kind}"


DEVELOPMENT_BASES = (100, 101)  # the desk profiles' settings were chosen on them; nothing is reported on them
NOISE_KINDS = ("swap", "leak")
NOISE_LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4)
NOISY_METHODS = (  # of the study: also trained with injected noise, at every rate and of both kinds
    *("dpo_all", "oracle", "napo_paper", "napo_authors", "robust_dpo", "napo_q0.5", "napo_q1", "napo_calibrated"),
    "napo_row_weight",
)
DESK_TRAINING = Training(beta=0.5, learning_rate=3e-3, epochs=4, batch_size=32)
DESK_BENCHMARKS = ("vqa_factual", "vqa_counterfactual", "objhal", "vlind", "amber", "pope", "heldout_pairs")
DESK_EVALUATION = Evaluation(DESK_BENCHMARKS, items=300, similarity="exact", batch_size=256)

PROFILES = {
    "smoke": Profile(
        name="smoke",
        rows=24,
        heldout_rows=24,
        methods=("base", "dpo_all", "napo_paper"),
        workers=1,
        training=replace(DESK_TRAINING, epochs=1, batch_size=8),
        evaluation=replace(DESK_EVALUATION, items=12, batch_size=64),
    ),
    "desk": Profile(
        name="desk",
        bases=(0, 1, 2),
        methods=(
            *("base", "sft", "dpo_original", "dpo_all", "oracle", "napo_paper", "napo_authors", "napo_calibrated"),
        ),
        flip_rates=(0.0, 0.4),
        noise_kinds=("leak",),  # the paper's own notion of noise
        noisy_methods=("dpo_all", "oracle", "napo_paper"),
        training=DESK_TRAINING,
        evaluation=DESK_EVALUATION,
    ),
    "study": Profile(
        name="study",
        bases=(0, 1, 2, 3, 4),
        seeds=(0, 1, 2),
        methods=tuple(METHODS),
        flip_rates=NOISE_LEVELS,
        noise_kinds=NOISE_KINDS,
        noisy_methods=NOISY_METHODS,
        noisy_seeds=(0,),
        training=DESK_TRAINING,
        evaluation=DESK_EVALUATION,
    ),
    "paper": Profile(
        name="paper",
        model="llava-hf/llava-1.5-7b-hf",
        data="openbmb/RLAIF-V-Dataset",
        rows=10_000,
        heldout_rows=500,
        probe_rows=1000,
        probe_epochs=1,
        perturbation=Perturbation(num_beams=3, max_new_tokens=1024, batch_size=4),
        quantisation=Quantisation(compute_dtype="bfloat16", dtype="bfloat16"),
        lora=Lora(r=64, alpha=128),
        training=Training(learning_rate=5e-5, epochs=1, batch_size=1, accumulation=32, gradient_checkpointing=True),
        evaluation=Evaluation(items=500, max_new_tokens=256, batch_size=4),
        device="cuda",
        workers=1,
        threads=0,
    ),
}
PROFILES["paper_small"] = replace(  # a 12 GB card; the same data and objective
    PROFILES["paper"],
    name="paper_small",
    rows=1000,
    perturbation=replace(PROFILES["paper"].perturbation, batch_size=2),
    lora=Lora(r=16, alpha=32),
    training=replace(PROFILES["paper"].training, max_length=1024),
    evaluation=replace(PROFILES["paper"].evaluation, batch_size=1),
)
ALL_ROWS = 10**9  # more than any file has


def get(name, *, model="", data="", rows="", device="", benchmarks="", report_to="", methods=""):
    """The profile of that name, with a user's overrides; an empty string keeps the profile's own value.

    rows        number of training rows, or "all" of the data; it also bounds the held-out rows
    benchmarks  folder with the official benchmarks' files, one sub-folder each; asked with the paper's decoding
    report_to   logging back ends, "tensorboard,wandb"
    methods     names, "dpo_original,napo_paper", or "tables" for all of the paper's Tables 1 to 4
    Raises BadInput for an unknown name, no number of rows, or a folder without benchmarks.
    """
    if name not in PROFILES:
        raise BadInput(f"unknown profile {name!r}: use one of {', '.join(PROFILES)}")
    profile, rows = PROFILES[name], number_of_rows(rows)
    given = {"model": model, "data": data, "rows": rows, "device": device}
    changes = {key: value for key, value in given.items() if value}
    if rows == ALL_ROWS and (data or profile.data) == "desk":
        raise BadInput("rows=all: the desk world makes as many rows as it is asked for; give a number")
    if rows:
        changes["heldout_rows"] = min(profile.heldout_rows, rows)
    if report_to:
        changes["report_to"] = tuple(report_to.replace(",", " ").split())
    if methods:
        changes["methods"] = chosen_methods(methods)
    if device and device != "cuda":
        changes["quantisation"] = replace(profile.quantisation, compute_dtype="float32", dtype="float32")
    if benchmarks:
        changes["evaluation"] = _official(profile, benchmarks)
    return replace(profile, **changes)


def chosen_methods(text):
    """Methods as a user names them, in the order of METHODS; the base model is always among them. Raises BadInput."""
    names = {"base"}
    for name in text.replace(",", " ").split():
        names |= set(TABLE_METHODS) if name == "tables" else {method(name) and name}
    return tuple(name for name in METHODS if name in names)


def number_of_rows(text):
    """A number of rows as a user gives it: 0 for none given. Raises BadInput."""
    if text == "all":
        return ALL_ROWS
    if str(text or 0).isdecimal():
        return int(text or 0)
    raise BadInput(f"rows={text}: give a number of training rows, all, or nothing for the profile's own")


def _official(profile, folder):
    """The profile's evaluation with the official benchmarks that a folder holds."""
    if profile.is_desk:
        raise BadInput(
            f"profile {profile.name} asks the desk world's own benchmarks: use benchmarks with profile paper"
        )
    found = tuple(name for name in MAX_NEW_TOKENS if (repository_root() / folder / name).is_dir())
    if not found:
        raise BadInput(f"no folder of a benchmark ({', '.join(MAX_NEW_TOKENS)}) in {folder}: run `make data` first")
    kept = tuple(name for name in profile.evaluation.benchmarks if name not in MAX_NEW_TOKENS)
    return replace(profile.evaluation, benchmarks=(*found, *kept), decoding="paper", data=str(folder))


def method(name):
    """The method of that name. Raises BadInput for an unknown one."""
    if name not in METHODS:
        known = textwrap.shorten(", ".join(METHODS), 160, placeholder=" ...")
        raise BadInput(f"unknown method {name[:60]!r}: use one of {known} (napo/methods.py lists all)")
    return METHODS[name]
