"""The only place where numbers are chosen: `PROFILES`, one dial from a laptop to a GPU, and `METHODS`, what is
compared (written down in `methods.py`).

Sources are named beside each number: "paper" and "authors" (their code), "dev" = chosen on
development bases and seeds of the desk world, "ours" = a choice of this kit because 4-bit LoRA on one device differs
from their set-up.
"""

from dataclasses import dataclass, field, replace
from itertools import product

from napo import paper
from napo.artifacts import BadInput, repository_root
from napo.methods import ALPHA, CORRUPTED, KINDS, METHODS, REJECTED_KINDS, Method, Term

__all__ = ["ALPHA", "CORRUPTED", "KINDS", "METHODS", "REJECTED_KINDS", "Method", "Term"]


@dataclass(frozen=True)
class Perturbation:
    """How the biased answers are made."""

    image: str = "none"  # what stands for the masked image: "none" | "white" | "black" | "grey" | "noise"
    num_beams: int = 1
    max_new_tokens: int = 48
    batch_size: int = 64


@dataclass(frozen=True)
class Quantisation:
    """4-bit weights of the language model; vision tower, projector and output head stay as they are."""

    four_bit: bool = True
    double_quant: bool = True
    compute_dtype: str = "float32"
    dtype: str = "float32"  # of everything that is not quantised


@dataclass(frozen=True)
class Lora:
    """The adapter (peft's LoraConfig). Dropout stays 0: with it the first margin would not be 0."""

    r: int = 8
    alpha: int = 16
    targets: str = r".*\.(language_model|text_model)\..*\.(q|k|v|o|gate|up|down)_proj"  # two names of one thing


@dataclass(frozen=True)
class Training:
    """Settings of one training, the same for every method."""

    beta: float = 0.1
    learning_rate: float = 1e-3
    epochs: float = 4
    batch_size: int = 32  # rows per forward pass; q and gamma are means over it (and over devices)
    accumulation: int = 1
    warmup_ratio: float = 0.1  # authors
    schedule: str = "cosine"  # authors
    weight_decay: float = 0.01  # authors
    optimizer: str = "adamw_torch"
    gradient_checkpointing: bool = False
    max_length: int = 2048  # tokens of prompt + response (authors)
    packed: bool = True  # prompt and image once for all responses of a row; False: one sequence per response
    save_steps: int = 50
    max_grad_norm: float = 1.0


@dataclass(frozen=True)
class Decoding:
    """How answers to a benchmark are generated."""

    num_beams: int = 1
    temperature: float = 0.0  # 0: the likeliest answer; above: sampled, and repeatable on one machine only
    max_new_tokens: int = 64
    batch_size: int = 8
    seed: int = 0  # of the samples


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
    """What notebook 04 asks and how."""

    benchmarks: tuple[str, ...] = ("heldout_pairs",)
    items: int = 300  # examples per benchmark
    seed: int = 0  # of the desk world's test items
    max_new_tokens: int = 48
    num_beams: int = 1
    batch_size: int = 64
    decoding: str = ""  # a key of DECODINGS for official benchmarks; "" = as above, greedy or by beams
    data: str = ""  # folder of the official benchmarks' data, one sub-folder each; "" for the desk world's own
    similarity: str = "spacy"  # of AMBER's words (official): "spacy" | "exact" | "table:FILE"


@dataclass(frozen=True)
class Profile:
    """One setting of the dial: the same notebooks at one size."""

    name: str
    model: str = "desk"  # "desk", a hub id or a local folder
    data: str = "desk"  # "desk", a hub id, or a parquet file or folder
    revision: str | None = None  # of the model on the hub; None: recorded at first use (napo/preflight.py)
    data_revision: str | None = None  # of the data on the hub, likewise
    rows: int = 480  # training rows
    heldout_rows: int = 240  # rows that no training sees: noise measurement, held-out preferences
    bases: tuple[int, ...] = (0,)
    seeds: tuple[int, ...] = (0,)
    methods: tuple[str, ...] = ("base", "sft", "dpo_original", "dpo_all", "napo_paper", "napo_authors")
    flip_rates: tuple[float, ...] = (0.0,)
    noise_kinds: tuple[str, ...] = ("swap",)  # of the noise that is put in at a flip rate above 0
    noisy_methods: tuple[str, ...] = ()  # those trained at the flip rates above 0; () = all
    noisy_seeds: tuple[int, ...] = ()  # their seeds there; () = all
    probe_rows: int = 240  # training rows of the DPO probe in notebook 02
    probe_epochs: float = 2
    perturbation: Perturbation = field(default_factory=Perturbation)
    quantisation: Quantisation = field(default_factory=Quantisation)
    lora: Lora = field(default_factory=Lora)
    training: Training = field(default_factory=Training)
    evaluation: Evaluation = field(default_factory=Evaluation)
    device: str = "cpu"
    report_to: tuple[str, ...] = ()  # where Trainer logs besides steps.jsonl: "tensorboard", "wandb"; in no key
    workers: int = 2  # cells trained side by side; 1 on a GPU
    threads: int = 1  # of torch, per process: models this small are fastest on one; 0 = torch's own choice

    @property
    def is_desk(self):
        return self.data == "desk"

    @property
    def needs_nothing(self):
        """Whether it runs on what lies in this package: no GPU, no network, no file of the user's."""
        return self.is_desk and self.model == "desk" and self.device == "cpu"

    def cells(self):
        """Every training of the comparison and the untrained bases: a method that is not trained has one cell per base,
        one that is not among `noisy_methods` no cell with noise put in."""
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


NOISE_KINDS = ("swap", "leak")
NOISE_LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4)  # ours


@dataclass(frozen=True)
class Cell:
    """One training: a method on one base with one seed, and a share of rows with noise of one kind put in.

    noise_kind  "swap": in `flip_rate` of the rows the chosen answer and each rejected one change places in every loss
                term; "leak": in so many rows the biased answers are replaced by good ones (desk world only)
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


DESK_TRAINING = Training(beta=0.5, learning_rate=3e-3, epochs=4, batch_size=32)  # dev
# Trained with noise put in as well, at every rate and of both kinds; the others without.
NOISY_METHODS = (
    "dpo_all",
    "oracle",
    "napo_paper",
    "napo_authors",
    "robust_dpo",
    "napo_q0.5",
    "napo_q1",
    "napo_calibrated",
    "napo_row_weight",
)
DESK_BENCHMARKS = ("vqa_factual", "vqa_counterfactual", "objhal", "vlind", "amber", "pope", "heldout_pairs")

PROFILES = {
    "smoke": Profile(
        name="smoke",
        rows=24,
        heldout_rows=24,
        methods=("base", "dpo_all", "napo_paper"),
        workers=1,
        training=replace(DESK_TRAINING, epochs=1, batch_size=8),
        evaluation=Evaluation(DESK_BENCHMARKS, items=12, similarity="exact"),
    ),
    "desk": Profile(
        name="desk",
        bases=(0, 1, 2),
        methods=(
            "base",
            "sft",
            "dpo_original",
            "dpo_all",
            "oracle",
            "napo_paper",
            "napo_authors",
            "napo_calibrated",
        ),
        flip_rates=(0.0, 0.4),
        noise_kinds=("leak",),  # the paper's own notion of noise
        noisy_methods=("dpo_all", "oracle", "napo_paper"),
        training=DESK_TRAINING,
        evaluation=Evaluation(DESK_BENCHMARKS, items=300, similarity="exact", batch_size=256),
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
        evaluation=Evaluation(DESK_BENCHMARKS, items=300, similarity="exact", batch_size=256),
    ),
    "paper": Profile(
        name="paper",
        model="llava-hf/llava-1.5-7b-hf",  # paper: LLaVA-v1.5-7B
        data="openbmb/RLAIF-V-Dataset",  # paper: 83,132 pairs
        rows=10_000,  # ours: one GPU; ROWS=83132 for all
        heldout_rows=500,
        probe_rows=1000,
        probe_epochs=1,
        perturbation=Perturbation(  # authors: 3 beams, temperature 0
            num_beams=3,
            max_new_tokens=1024,
            batch_size=4,  # ours: the cache of 4 x 3 beams fits a 24 GB card (napo/budget.py)
        ),
        quantisation=Quantisation(
            compute_dtype="bfloat16", dtype="bfloat16"
        ),  # ours: NF4; authors: bf16, all weights trained
        lora=Lora(r=64, alpha=128),  # ours
        training=Training(
            beta=0.1,  # paper
            learning_rate=5e-5,  # ours: LoRA; the paper's full fine-tuning used 5e-7
            epochs=1,  # ours; paper: 4
            batch_size=1,  # authors: per device
            accumulation=32,  # authors: 4 accumulation steps on 8 GPUs
            gradient_checkpointing=True,
        ),
        evaluation=Evaluation(("heldout_pairs",), items=500, max_new_tokens=256, batch_size=4),
        device="cuda",
        workers=1,
        threads=0,
    ),
}
PROFILES["paper_small"] = replace(  # ours: a 12 GB card; the same data and objective
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
    """The profile of that name, with what the user overrides put in its place.

    An empty string or 0 keeps the profile's own value. `rows` is a number of training rows or "all" of the data, and
    also bounds the held-out rows; `benchmarks` is a folder with the data of official benchmarks, one sub-folder each,
    which then are asked with the paper's decoding; `report_to` names logging back ends, "tensorboard,wandb"; `methods`
    names methods, "dpo_original,napo_paper", or "tables" for all of the paper's Tables 1 to 4.
    Raises BadInput for an unknown name, no number of rows, or a folder without benchmarks.
    """
    if name not in PROFILES:
        raise BadInput(f"unknown profile {name!r}: use one of {', '.join(PROFILES)}")
    profile, rows = PROFILES[name], number_of_rows(rows)
    changes = {
        key: value for key, value in {"model": model, "data": data, "rows": rows, "device": device}.items() if value
    }
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
    """Methods as a user names them, in the order of METHODS; the base model is always among them."""
    names = {"base"}
    for name in text.replace(",", " ").split():
        names |= paper.methods() if name == "tables" else {name}
    for name in names:
        method(name)
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
        raise BadInput(f"unknown method {name!r}: use one of {', '.join(METHODS)}")
    return METHODS[name]
