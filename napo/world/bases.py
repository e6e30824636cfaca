"""Base models from nothing: `python -m napo.world.bases --seed 0 --out DIR` trains one in minutes on a CPU core.

1. vision   vision tower and projector learn, patch by patch, to name what they see in the language model's own word
embeddings
2. align    the language model learns to look: true answers about scenes with colours and backgrounds at random, first
            about everything alike, then mostly about what is hard (is there a ..., true or false)
3. bias     a short fine-tuning on mostly prior-true scenes and prior-true, rambling answers gives it its language prior

Binding (which colour belongs to which thing) appears late and suddenly: captions first, then where, colour, existence.
"""

import argparse
import hashlib
import importlib.metadata
import platform
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from napo import artifacts, models
from napo.profiles import Quantisation
from napo.world import benchmarks, corpus, skeleton, speak
from napo.world.scenes import BACKGROUNDS, CLASSES, COLOURS, render_array, sample_scene

FOLDER = Path(__file__).parent / "bases"
RECORD = "training.json"
MEASURED_ITEMS = 240  # per benchmark, of the dev split
EMPTY = "no"  # the word that names a patch with nothing on it


@dataclass(frozen=True)
class Stage:
    """One stretch of training."""

    name: str
    steps: int
    learning_rate: float  # the peak of a one-cycle schedule
    batch_size: int = 64
    mix: corpus.Mix | None = None  # None: the vision stage
    scenes: str = "uniform"  # or "biased"


@dataclass(frozen=True)
class Recipe:
    """Everything that is chosen about the training of a base."""

    scenes: int = 8192  # in each pool
    counterfactual_share: float = 0.4  # of the scenes of the biased pool
    stages: tuple[Stage, ...] = ()


TRUE = corpus.Mix(corpus.EVEN)
EXISTENCE = replace(
    TRUE,
    kinds=dict(
        existence=4.0,
        statement=4.0,
        where=1.5,
        colour=1.0,
        caption=0.7,
        detailed_caption=0.7,
        background=0.4,
        count=0.4,
    ),
    unasked=0.04,
    no_image=0.06,
)
STATEMENTS = replace(
    TRUE,
    kinds=dict.fromkeys(corpus.KINDS, 0.5) | {"existence": 1.5, "statement": 8.0},
    unasked=0.04,
    no_image=0.08,
    common_sense=0.12,
    context=0.10,
)
BALANCED = replace(
    TRUE,
    kinds=corpus.EVEN | {"colour": 1.5, "existence": 2.0, "statement": 4.0},
    unasked=0.05,
    common_sense=0.15,
)
BIASED = replace(
    TRUE, kinds=corpus.EVEN | {"existence": 2.0, "statement": 2.0}, context=0.08, prior=0.85, partner=0.6, ramble=1.0
)
RECIPE = Recipe(
    stages=(
        Stage("vision", 450, 2e-3, batch_size=128),
        Stage("align 1", 600, 2e-3, mix=TRUE),
        Stage("align 2", 700, 2e-3, mix=EXISTENCE),
        Stage("align 3", 1800, 2e-3, mix=STATEMENTS),
        Stage("align 4", 600, 1.5e-3, mix=BALANCED),
        Stage("bias", 400, 1e-3, mix=BIASED, scenes="biased"),
    )
)


def train(seed, recipe=RECIPE, report=print):
    """A base model trained from nothing.

    report  called with one line of progress at a time
    Returns (model, processor, history): history has per stage its name, steps, seconds and the mean loss of its last
    50 steps, in nats. Deterministic for a seed, a number of torch threads and a machine.
    """
    processor = skeleton.make_processor()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = skeleton.make_model(processor.tokenizer)
    pools = {name: _scene_pool(name, recipe, _rng(seed, name)) for name in ("uniform", "biased")}
    history, features = [], {}
    for stage in recipe.stages:
        started, rng = time.perf_counter(), _rng(seed, stage.name)
        if stage.mix is None:
            losses = _train_vision(model, processor.tokenizer, pools["uniform"], stage, rng, report)
            _match_scales(model)
            _similarity_init(model)
            features = {name: _features(model, scenes) for name, scenes in pools.items()}
        else:
            losses = _train_language(model, processor, pools[stage.scenes], features[stage.scenes], stage, rng, report)
        seconds = round(time.perf_counter() - started, 1)
        history.append(
            {"stage": stage.name, "steps": stage.steps, "seconds": seconds, "loss": float(np.mean(losses[-50:]))}
        )
    return model.eval(), processor, history


def _rng(seed, name):
    """A random source of its own for each stage and pool: changing one leaves the others as they were."""
    return np.random.default_rng([seed, *name.encode()])


def _scene_pool(name, recipe, rng):
    if name == "uniform":
        return [sample_scene(rng, "uniform", "base") for _ in range(recipe.scenes)]
    return [sample_scene(rng, bool(rng.random() < recipe.counterfactual_share)) for _ in range(recipe.scenes)]


# ---- optimisation ---------------------------------------------------------------------------------------------------


def _optimise(parameters, stage, batch_loss, report):
    """AdamW on a one-cycle schedule over the losses that `batch_loss(step)` returns; returns their values."""
    optimizer = torch.optim.AdamW(parameters, lr=stage.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, stage.learning_rate, total_steps=stage.steps, pct_start=0.1
    )
    losses, started = [], time.perf_counter()
    for step in range(stage.steps):
        loss = batch_loss(step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == stage.steps:
            left = (time.perf_counter() - started) / (step + 1) * (stage.steps - step - 1)
            recent = np.mean(losses[-50:])
            report(f"{stage.name:8s} step {step + 1}/{stage.steps}  loss {recent:.3f}  about {left:.0f} s left")
    return losses


# ---- vision ---------------------------------------------------------------------------------------------------------


def _train_vision(model, tokenizer, scenes, stage, rng, report):
    """Each patch's projected, normalised feature classifies its cell's class, colour, background and side against
    word embeddings."""
    pixels = torch.from_numpy(np.stack([render_array(scene) for scene in scenes]))  # (N, 48, 48, 3) uint8
    labels = torch.tensor([_patch_labels(scene) for scene in scenes])  # (N, 16, 5)
    embeddings = model.get_input_embeddings().weight
    groups = [torch.tensor(tokenizer.convert_tokens_to_ids(list(words))) for words, _ in PATCH_WORDS]
    parameters = [*model.model.vision_tower.parameters(), *model.model.multi_modal_projector.parameters(), embeddings]

    def batch_loss(step):
        index = torch.from_numpy(rng.integers(len(scenes), size=stage.batch_size))
        features = _normalised(_project(model, pixels[index]))  # (B, 16, H)
        losses = []
        for group, (_, weight) in enumerate(PATCH_WORDS):
            logits = features @ embeddings[groups[group]].T  # (B, 16, words)
            losses.append(
                weight * F.cross_entropy(logits.flatten(0, 1), labels[index, :, group].flatten(), ignore_index=-1)
            )
        return sum(losses)

    return _optimise([p for p in parameters if p.requires_grad], stage, batch_loss, report)


PATCH_WORDS = (
    ((*CLASSES, EMPTY), 1.0),
    (tuple(COLOURS), 1.0),
    (tuple(BACKGROUNDS), 1.0),
    (("top", "bottom"), 1.0),
    (("left", "right"), 1.0),
)


def _patch_labels(scene):
    """(16, 5) indices into PATCH_WORDS for the 4x4 patches, four to a cell; the colour of an empty cell is -1."""
    in_cell = {thing.cell: thing for thing in scene.things}
    background = list(BACKGROUNDS).index(scene.background)
    labels = []
    for patch in range(16):
        row, column = patch // 8, patch % 4 // 2
        thing = in_cell.get(2 * row + column)
        name = CLASSES.index(thing.name) if thing else len(CLASSES)
        labels.append([name, list(COLOURS).index(thing.colour) if thing else -1, background, row, column])
    return labels


def _project(model, pixels):
    """(B, 48, 48, 3) uint8 -> projected patch features (B, 16, H)."""
    values = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    return torch.stack(list(model.model.get_image_features(pixel_values=values, return_dict=True).pooler_output))


def _normalised(features):
    return features * features.pow(2).mean(-1, keepdim=True).add(1e-6).rsqrt()


@torch.no_grad()
def _features(model, scenes, batch_size=256):
    """What the language model gets to see of each scene, (N, 16, H): the tower is frozen from here on."""
    pixels = torch.from_numpy(np.stack([render_array(scene) for scene in scenes]))
    return torch.cat([_project(model, part) for part in pixels.split(batch_size)])


@torch.no_grad()
def _match_scales(model):
    """Word embeddings to rms 1, the projector's output by the same measure; the output head starts as the old
    embeddings."""
    embeddings, last = model.get_input_embeddings().weight, model.model.multi_modal_projector.linear_2
    model.lm_head.weight.copy_(embeddings)
    embeddings /= embeddings.pow(2).mean().sqrt()
    probe = _project(
        model,
        torch.from_numpy(
            np.stack([render_array(sample_scene(np.random.default_rng(i), "uniform")) for i in range(64)])
        ),
    )
    factor = probe.pow(2).mean().rsqrt()
    last.weight *= factor
    last.bias *= factor


@torch.no_grad()
def _similarity_init(model):
    """Attention that starts by looking for what is like the query, and hands on what it finds."""
    for layer in model.model.language_model.layers:
        attention = layer.self_attn
        attention.k_proj.weight.copy_(attention.q_proj.weight)
        attention.o_proj.weight.copy_(attention.v_proj.weight.T)


# ---- language -------------------------------------------------------------------------------------------------------


def _train_language(model, processor, scenes, features, stage, rng, report):
    """Next-token loss on answers, from cached image features; the vision tower and the projector stay as they are."""
    examples = [corpus.example(stage.mix, scenes, rng) for _ in range(stage.steps * stage.batch_size)]
    batches = _length_batches([_encode(item, processor.tokenizer) for item in examples], stage.batch_size, rng)
    parameters = [*model.model.language_model.parameters(), *model.lm_head.parameters()]
    image_token = model.config.image_token_id

    def batch_loss(step):
        ids, answer_mask, index = _pad(batches[step], model.generation_config.pad_token_id)
        embedded = model.get_input_embeddings()(ids)
        embedded = embedded.masked_scatter((ids == image_token)[..., None], features[index])
        hidden = model.model.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state  # (B, T, H)
        logits = model.lm_head(hidden[:, :-1][answer_mask[:, 1:]])  # (answer tokens, V)
        return F.cross_entropy(logits, ids[:, 1:][answer_mask[:, 1:]])

    return _optimise(parameters, stage, batch_loss, report)


def _encode(item, tokenizer):
    """An Example as (prompt ids, answer ids, scene index or None), in the chat template's form."""
    image = [skeleton.IMAGE] * 16 if item.scene is not None else []
    prompt = [skeleton.USER, *image, *item.question.split(), skeleton.ASSISTANT]
    answer = [*item.answer.split(), skeleton.EOS]
    return tokenizer.convert_tokens_to_ids(prompt), tokenizer.convert_tokens_to_ids(answer), item.scene


def _length_batches(encoded, batch_size, rng, pool_batches=50):
    """Batches of sequences of like length: pools of 50 batches are sorted by length and cut; their order is random."""
    batches = []
    for start in range(0, len(encoded), batch_size * pool_batches):
        pool = sorted(encoded[start : start + batch_size * pool_batches], key=lambda item: len(item[0]) + len(item[1]))
        cut = [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
        batches += [cut[i] for i in rng.permutation(len(cut))]
    return batches


def _pad(batch, pad):
    """(ids (B, T) int64 padded on the right, answer mask (B, T) bool, scene indices of the sequences with an image)."""
    ids = torch.full((len(batch), max(len(prompt) + len(answer) for prompt, answer, _ in batch)), pad)
    answer_mask = torch.zeros_like(ids, dtype=torch.bool)
    for i, (prompt, answer, _) in enumerate(batch):
        ids[i, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        answer_mask[i, len(prompt) : len(prompt) + len(answer)] = True
    return ids, answer_mask, torch.tensor([scene for _, _, scene in batch if scene is not None], dtype=torch.long)


# ---- a base on disk --------------------------------------------------------------------------------------------------


def make(seed, folder, recipe=RECIPE, report=print):
    """Train the base of a seed and write it: fp16 safetensors, processor and training.json, whole or not at all.

    Returns the record that training.json holds: seed, seconds, stages, hash of the weights, versions, recipe and bias.
    """
    started = time.perf_counter()
    model, processor, history = train(seed, recipe, report)
    seconds = round(time.perf_counter() - started)
    record = {"seed": seed, "seconds": seconds, "threads": torch.get_num_threads(), "stages": history}
    with artifacts.atomic(folder) as partial:
        model.half().save_pretrained(partial)
        processor.save_pretrained(partial)
        record |= {"sha256": sha256(partial / "model.safetensors"), "versions": versions(), "recipe": asdict(recipe)}
        record["bias"] = {name: measure(partial, Quantisation(four_bit=name == "nf4")) for name in ("fp32", "nf4")}
        artifacts.write_json(record, partial / RECORD)
    return record


def measure(folder, quantisation, n=MEASURED_ITEMS, split="dev"):
    """Headline numbers of a stored base on the benchmarks; accuracy and irrelevant details of the VQA by question
    kind."""
    model, processor = models.load(str(folder), quantisation)
    rows = []
    for name in benchmarks.NAMES:
        items = benchmarks.items(name, n, split=split)
        answers = speak.answer(model, processor, [item.question for item in items], [item.image for item in items])
        rows += benchmarks.score(name, items, answers)
    by_kind = {}
    for row in rows:
        if row["benchmark"].startswith("vqa") and row["metric"] in ("accuracy", "irrelevant"):
            key = f"{row['benchmark']}/{row['metric']}/{row['question_kind']}"
            by_kind.setdefault(key, []).append(row["value"])
    return benchmarks.summarise(rows) | {"by_kind": {key: float(np.mean(values)) for key, values in by_kind.items()}}


def versions():
    packages = ("torch", "transformers", "numpy")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load_base(base):
    """The folder of a shipped base. Raises BadInput if it is not there."""
    folder = FOLDER / f"base-{base}"
    if not (folder / "model.safetensors").exists():
        raise artifacts.BadInput(f"no base {base} in napo/world/bases: make it with `make bases BASES={base}`")
    return folder


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, help="folder to write (default: the package's own bases/base-<seed>)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads; the weights depend on their number")
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    folder = settings.out or FOLDER / f"base-{settings.seed}"
    record = make(settings.seed, folder, report=lambda line: print(line, flush=True))
    print(f"{folder}: trained in {record['seconds']} s; VQA accuracy on factual and counterfactual items:")
    for name, bias in record["bias"].items():
        factual, counterfactual = (bias[f"vqa_{part}"]["accuracy"] for part in ("factual", "counterfactual"))
        print(f"  {name}  {factual:.2f}  {counterfactual:.2f}")


if __name__ == "__main__":
    main()
