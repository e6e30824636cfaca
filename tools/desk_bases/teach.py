"""The training stages of a base model: first it learns to see, patch by patch, then to answer questions."""

import time

import numpy as np
import torch
import torch.nn.functional as F

from napo.desk.scenes import BACKGROUNDS, CLASSES, COLOURS, render_array, sample_scene
from tools.desk_bases import corpus, skeleton

EMPTY = "no"  # the word for an empty patch
IGNORED = -100  # target of a token that is not trained on


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


def train_vision(model, tokenizer, scenes, stage, rng, report):
    """Trains the projected, normalised feature of each patch to classify its cell's class, colour, background and side.

    The classes are word embeddings of the language model.
    """
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
def features(model, scenes, batch_size=256):
    """Projected image features of each scene, (N, 16, H); from here on the vision tower is frozen."""
    pixels = torch.from_numpy(np.stack([render_array(scene) for scene in scenes]))
    return torch.cat([_project(model, part) for part in pixels.split(batch_size)])


@torch.no_grad()
def match_scales(model):
    """Rescales word embeddings and the projector's output to rms 1; the output head starts as the old embeddings."""
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
def similarity_init(model):
    """Starts attention at tokens similar to the query, and passes their values on unchanged."""
    for layer in model.model.language_model.layers:
        attention = layer.self_attn
        attention.k_proj.weight.copy_(attention.q_proj.weight)
        attention.o_proj.weight.copy_(attention.v_proj.weight.T)


# ---- language -------------------------------------------------------------------------------------------------------


def train_language(model, processor, scenes, features, stage, rng, report):
    """Next-token loss on answers and hints, from cached image features; vision tower and projector stay frozen."""
    examples = [corpus.example(stage.mix, scenes, rng) for _ in range(stage.steps * stage.batch_size)]
    batches = _length_batches([_encode(item, processor.tokenizer) for item in examples], stage.batch_size, rng)
    parameters = [*model.model.language_model.parameters(), *model.lm_head.parameters()]
    image_token = model.config.image_token_id

    def batch_loss(step):
        ids, targets, index = _pad(batches[step], model.generation_config.pad_token_id)
        embedded = model.get_input_embeddings()(ids)
        embedded = embedded.masked_scatter((ids == image_token)[..., None], features[index])
        hidden = model.model.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state  # (B, T, H)
        asked = targets[:, 1:] != IGNORED  # (B, T - 1)
        logits = model.lm_head(hidden[:, :-1][asked])  # (answer and hint tokens, V)
        return F.cross_entropy(logits, targets[:, 1:][asked])

    return _optimise(parameters, stage, batch_loss, report)


def _encode(item, tokenizer):
    """An Example as (ids, targets, scene index or None), in the chat template's form.

    targets  per position, the token to predict from all earlier ones: the answer's tokens, each hint one place after
             its word, else IGNORED
    """
    image = [skeleton.IMAGE] * 16 if item.scene is not None else []
    prompt = [skeleton.USER, *image, *item.question.split(), skeleton.ASSISTANT]
    answer = tokenizer.convert_tokens_to_ids([*item.answer.split(), skeleton.EOS])
    targets = [IGNORED] * len(prompt)
    for position, word in item.hints:
        targets[1 + len(image) + position + 1] = tokenizer.convert_tokens_to_ids(word)
    return tokenizer.convert_tokens_to_ids(prompt) + answer, targets + answer, item.scene


def _length_batches(encoded, batch_size, rng, pool_batches=50):
    """Batches of sequences of like length: pools of 50 batches are sorted by length and cut; their order is random."""
    batches = []
    for start in range(0, len(encoded), batch_size * pool_batches):
        pool = sorted(encoded[start : start + batch_size * pool_batches], key=lambda item: len(item[0]))
        cut = [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
        batches += [cut[i] for i in rng.permutation(len(cut))]
    return batches


def _pad(batch, pad):
    """(ids (B, T) int64 padded on the right, targets (B, T), scene indices of the sequences with an image)."""
    ids = torch.full((len(batch), max(len(tokens) for tokens, _, _ in batch)), pad)
    targets = torch.full_like(ids, IGNORED)
    for i, (tokens, wanted, _) in enumerate(batch):
        ids[i, : len(tokens)] = torch.tensor(tokens)
        targets[i, : len(tokens)] = torch.tensor(wanted)
    return ids, targets, torch.tensor([scene for _, _, scene in batch if scene is not None], dtype=torch.long)
