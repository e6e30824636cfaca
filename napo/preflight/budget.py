"""Rows and memory of a profile's run, predicted from the model's configuration before the run starts.

No row is read, so the lengths are guesses (TYPICAL); a training predicts its memory again from its rows.
"""

import pyarrow.parquet as pq

from napo.engine import memory, models, preferences, tree_attention
from napo.methods import KINDS, METHODS
from napo.preflight import checks, disk
from napo.workshop import pretrained
from napo.workshop.files import BadInput

TYPICAL = {"image": 576, "question": 40, "answer": 110}  # tokens; ours, for rows like RLAIF-V's
PROMPT = TYPICAL["image"] + TYPICAL["question"]


def rows_of(profile):
    """(training rows, held-out rows), bounded by the rows of local files and of known data sets."""
    files = preferences.local_files(profile.data)
    for file in files:
        checks.check_parquet(file)
    known = sum(pq.read_metadata(file).num_rows for file in files) if files else disk.KNOWN_ROWS.get(profile.data)
    wanted = profile.rows + profile.heldout_rows
    n_rows = min(wanted, known) if known else wanted
    heldout = max(n_rows - profile.rows, min(profile.heldout_rows, max(1, n_rows // 5)))
    return n_rows - heldout, heldout


def stages(profile, skeleton):
    """{stage: bytes at its peak}."""
    settings, quantisation = profile.perturbation, profile.quantisation
    new_tokens = min(settings.max_new_tokens, profile.training.max_length)
    sequences = settings.batch_size * settings.num_beams
    generation = memory.predict_generation(skeleton, quantisation, sequences, PROMPT, new_tokens)
    answers = len(KINDS)
    prompts = 1 if profile.training.packed else answers
    tokens = profile.training.batch_size * (prompts * PROMPT + answers * TYPICAL["answer"])
    training = memory.predict(skeleton, quantisation, profile.lora, profile.training, tokens)
    trained = sum(METHODS[name].trained for name in profile.methods)
    return {
        "01 biased answers": generation["total"],
        "02 log-probs and probe": training["total"],
        f"03 {trained} trainings": training["total"],
        "04 held-out pairs": training["weights"] + training["adapter"] + training["activations"] // 2,
    }


def describe(profile, skeleton):
    """Lines to print before a run: rows, then the peak memory of each stage."""
    n_rows, n_heldout = rows_of(profile)
    memory_of = [f"  {stage:24} {size / 2**30:5.1f} GiB" for stage, size in stages(profile, skeleton).items()]
    return [f"{n_rows:,} training rows and {n_heldout:,} held out; predicted peak memory:", *memory_of]


def announced(profile, runs_dir="runs"):
    """The lines of `describe`. Raises BadInput as `checks.prepared` does, and if a stage needs more than is free."""
    profile = checks.prepared(profile, runs_dir)
    skeleton = skeleton_of(profile)
    check_trainable(skeleton, profile)
    stage, needed = max(stages(profile, skeleton).items(), key=lambda item: item[1])
    available = memory.available(profile.device)
    if needed > available:
        why = f"{stage} needs about {memory.in_words(needed)} and {memory.in_words(available)} are free"
        raise BadInput(f"{why}: lower its batch_size in napo/profiles.py, or use PROFILE=paper_small")
    return describe(profile, skeleton)


def skeleton_of(profile):
    """The profile's model without its weights. Raises BadInput if no configuration of an image-text model is found."""
    name = models.source(profile, profile.bases[0])
    with pretrained.one_line(name):
        return models.skeleton(name, profile.revision)


def check_trainable(skeleton, profile):
    """Raises BadInput for a model that no training accepts: of an unknown family, or without a layer for LoRA."""
    if profile.training.packed:
        tree_attention.check_exact(skeleton)
    if not memory.adapter_parameters(skeleton, profile.lora):
        raise BadInput(f"LoRA finds no layer to adapt with targets {profile.lora.targets!r} in {profile.model!r}")
