"""What a profile's run will take, before it starts: memory and time of each stage, from the model's configuration.

    python -m napo.budget --profile paper --rows 1000 10000 all

Memory is counted as in napo/memory.py. Time is arithmetic over what this device does in a second (measured when asked:
a matrix product and a copy) times EFFICIENCY, which is a guess: `benchmarks/real_size.py` puts a measured step beside
it. Before any row is read, its length is a guess too (TYPICAL); a training plans again with the rows it has.
"""

import argparse
import sys
import time
from dataclasses import dataclass, replace

import pyarrow.parquet as pq
import torch

from napo import branches, command, data, memory, models, preflight, profiles, room
from napo.artifacts import BadInput
from napo.profiles import KINDS, METHODS
from napo.progress import clock

EFFICIENCY = 0.4  # ours, a guess: share of the device's speed that a pass through a 4-bit model reaches
TYPICAL = {"image": 576, "question": 40, "answer": 110}  # tokens; ours, for rows like RLAIF-V's
WITH_ANSWERS = ("Starrrrrry/RLAIF-V-Bias-Dataset",)  # data that bring their biased answers
DEQUANTISED = 4.5  # bytes moved for a 4-bit weight when one token passes: read, written as bfloat16, read again


@dataclass(frozen=True)
class Speed:
    """What a device does in a second."""

    flops: float  # multiplications and additions of a large matrix product
    bandwidth: float  # bytes copied, read and written each counted


def rows_of(profile):
    """(training rows, held-out rows) as far as it can be known beforehand: of local files, or of known data sets."""
    files = data.local_files(profile.data)
    there = sum(pq.read_metadata(file).num_rows for file in files) if files else room.KNOWN_ROWS.get(profile.data)
    wanted = profile.rows + profile.heldout_rows
    n_rows = min(wanted, there) if there else wanted
    heldout = max(n_rows - profile.rows, min(profile.heldout_rows, max(1, n_rows // 5)))
    return n_rows - heldout, heldout


def prompt_tokens():
    return TYPICAL["image"] + TYPICAL["question"]


def row_tokens(profile):
    """Tokens of one row with all its answers, as a training reads it."""
    if profile.training.packed:
        return prompt_tokens() + len(KINDS) * TYPICAL["answer"]
    return len(KINDS) * (prompt_tokens() + TYPICAL["answer"])


def forward_flops(skeleton, tokens, scored, images):
    """Floating point operations of one forward pass, multiplications and additions each counted.

    tokens  that the decoder reads, of which `scored` go through the output head;  images  through the vision tower
    """
    text, tower = skeleton.config.get_text_config(), getattr(skeleton.config, "vision_config", None)
    attention = 4 * text.num_hidden_layers * key_width_of_queries(text) * tokens * (tokens + 1) / 2
    head = 2 * scored * text.hidden_size * text.vocab_size
    in_tower = images * TYPICAL["image"] * 2 * outside_decoder(skeleton) if tower else 0
    return 2 * tokens * memory.decoder_linear_weights(skeleton) + attention + head + in_tower


def key_width_of_queries(text):
    return (
        text.num_attention_heads
        * memory.key_width(text)
        // (getattr(text, "num_key_value_heads", None) or text.num_attention_heads)
    )


def outside_decoder(skeleton):
    """Number of weights of vision tower and projector."""
    inner, decoder = skeleton.model, skeleton.get_decoder()
    return sum(p.numel() for child in inner.children() if child is not decoder for p in child.parameters())


def seconds_of_training(profile, skeleton, speed, n_rows):
    """Seconds of one method's training: forward, the same again for the gradient, once more with checkpointing."""
    scored = len(KINDS) * TYPICAL["answer"]
    images = 1 if profile.training.packed else len(KINDS)
    passes = 3 if profile.training.gradient_checkpointing else 2
    a_row = passes * forward_flops(skeleton, row_tokens(profile), scored, images)
    return profile.training.epochs * n_rows * a_row / (speed.flops * EFFICIENCY)


def seconds_of_measuring(profile, skeleton, speed, n_rows):
    """Seconds of the log-probs of all answers of some rows, without gradient."""
    images = 1 if profile.training.packed else len(KINDS)
    a_row = forward_flops(skeleton, row_tokens(profile), len(KINDS) * TYPICAL["answer"], images)
    return n_rows * a_row / (speed.flops * EFFICIENCY)


def seconds_of_generating(profile, skeleton, speed, n_rows):
    """Seconds of both biased answers: prompts at the speed of products, then token by token at that of copies."""
    if profile.data in WITH_ANSWERS:
        return 0.0
    settings, text = profile.perturbation, skeleton.config.get_text_config()
    sequences = settings.batch_size * settings.num_beams
    prompts = settings.num_beams * (
        forward_flops(skeleton, prompt_tokens(), 1, 1) + forward_flops(skeleton, TYPICAL["question"], 1, 0)
    )
    size = getattr(torch, profile.quantisation.dtype).itemsize
    a_weight = DEQUANTISED if profile.quantisation.four_bit else size
    cached = 2 * size * text.num_hidden_layers * memory.key_width(text) * (prompt_tokens() + TYPICAL["answer"] / 2)
    a_step = memory.decoder_linear_weights(skeleton) * a_weight + sequences * cached
    steps = 2 * n_rows / settings.batch_size * min(TYPICAL["answer"], settings.max_new_tokens)
    return n_rows * prompts / (speed.flops * EFFICIENCY) + steps * a_step / (speed.bandwidth * EFFICIENCY)


def stages(profile, skeleton, speed=None):
    """A dict for each stage: stage, gib (at the peak), seconds (None without a Speed)."""
    n_rows, n_heldout = rows_of(profile)
    settings, quantisation = profile.perturbation, profile.quantisation
    trained = sum(METHODS[name].trained for name in profile.methods)
    tokens = profile.training.batch_size * row_tokens(profile)
    training = memory.predict(skeleton, quantisation, profile.lora, profile.training, tokens)
    generation = memory.predict_generation(
        skeleton,
        quantisation,
        settings.batch_size * settings.num_beams,
        prompt_tokens(),
        min(settings.max_new_tokens, profile.training.max_length),
    )
    measuring = training | {"optimizer": 0, "activations": training["activations"] // 2}
    measuring["total"] = sum(value for name, value in measuring.items() if name != "total")
    evaluated = len(profile.methods) * n_heldout
    table = [
        ("01 biased answers", generation, lambda: seconds_of_generating(profile, skeleton, speed, n_rows + n_heldout)),
        ("02 log-probs and probe", training, lambda: _noise_seconds(profile, skeleton, speed, n_rows + n_heldout)),
        (f"03 {trained} trainings", training, lambda: trained * seconds_of_training(profile, skeleton, speed, n_rows)),
        ("04 held-out pairs", measuring, lambda: seconds_of_measuring(profile, skeleton, speed, evaluated)),
    ]
    return [
        {"stage": name, "gib": parts["total"] / 2**30, "seconds": seconds() if speed else None}
        for name, parts, seconds in table
    ]


def _noise_seconds(profile, skeleton, speed, n_rows):
    """Seconds of notebook 02: log-probs of the base and of a probe for every row, and the probe's short training."""
    training = replace(profile.training, epochs=profile.probe_epochs)
    probe = seconds_of_training(replace(profile, training=training), skeleton, speed, min(profile.probe_rows, n_rows))
    return 2 * seconds_of_measuring(profile, skeleton, speed, n_rows) + probe


def describe(profile, skeleton, speed=None):
    """Lines to print before a run: rows, then memory and time of each stage."""
    n_rows, n_heldout = rows_of(profile)
    lines = [f"{n_rows:,} training rows and {n_heldout:,} held out; predicted, not measured:"]
    for stage in stages(profile, skeleton, speed):
        took = f", about {clock(stage['seconds'])}" if speed else ""
        lines.append(f"  {stage['stage']:24} {stage['gib']:5.1f} GiB{took}")
    return lines


def announced(profile, runs_dir="runs"):
    """The lines of `describe` for a profile that was found fit to run, where its first checks are made. Raises
    BadInput as `preflight.prepared` does, and where a stage needs more memory than the GPU has."""
    profile = preflight.prepared(profile, runs_dir)
    skeleton = skeleton_of(profile)
    check_trainable(skeleton, profile)
    lines = describe(profile, skeleton, speed_here(profile))
    worst = max(stages(profile, skeleton), key=lambda stage: stage["gib"])
    available = memory.available(profile.device)
    if worst["gib"] * 2**30 > available:
        raise BadInput(
            f"{worst['stage']} needs about {worst['gib']:.1f} GiB and {memory.in_words(available)} are free: lower its "
            "batch_size in napo/profiles.py, or use PROFILE=paper_small"
        )
    return lines


def skeleton_of(profile):
    """The profile's model without its weights. Raises BadInput if its configuration cannot be had or is not of a model
    that sees images."""
    name = models.source(profile, profile.bases[0])
    try:
        return models.skeleton(name, profile.revision)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BadInput(
            f"no configuration of a model that sees images in {name!r}: {reason} (give a local folder by MODEL=... or "
            "check the network)"
        ) from error


def check_trainable(skeleton, profile):
    """Raises BadInput where a training would be refused hours later: an unknown family, no layer for LoRA."""
    if profile.training.packed:
        branches.check_exact(skeleton)
    if not memory.adapter_parameters(skeleton, profile.lora):
        raise BadInput(f"LoRA finds no layer to adapt with targets {profile.lora.targets!r} in {profile.model!r}")


def measure_speed(device, dtype="float32", seconds=0.5):
    """Speed of this machine's device, from a matrix product and a copy repeated for a moment."""
    size = 4096 if device == "cuda" else 768
    a = torch.randn(size, size, device=device).to(getattr(torch, dtype))
    copied = torch.empty(64 * 2**20, dtype=torch.uint8, device=device)
    product = _per_second(lambda: a @ a, device, seconds)
    return Speed(2 * size**3 * product, 2 * copied.numel() * _per_second(copied.clone, device, seconds))


def _per_second(work, device, seconds):
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    work()
    wait()
    started, times = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        work()
        wait()
        times += 1
    return times / (time.perf_counter() - started)


@command.exit_status
def main(arguments=None):
    """The command; returns the exit status."""
    top = argparse.ArgumentParser(prog="python -m napo.budget", description="Predict memory and time of a run.")
    top.add_argument("--profile", default="paper", help="default: paper")
    top.add_argument("--rows", nargs="+", default=["1000", "10000", "all"], help="default: 1000 10000 all")
    for name in ("model", "data", "device", "methods"):
        top.add_argument(f"--{name}", default="", help="instead of the profile's own")
    asked = top.parse_args(arguments)
    overrides = {name: getattr(asked, name) for name in ("model", "data", "device", "methods")}
    for rows in asked.rows:
        profile = profiles.get(asked.profile, **overrides, rows=rows)
        skeleton = skeleton_of(profile)
        speed = speed_here(profile)
        print("\n".join(describe(profile, skeleton, speed)))


def speed_here(profile):
    """Speed of the profile's device; None where this machine does not have it."""
    if preflight.device_problem(profile.device, profile.quantisation, preflight.gpu_facts()):
        return None
    return measure_speed(profile.device, profile.quantisation.compute_dtype)


if __name__ == "__main__":
    sys.exit(main())
