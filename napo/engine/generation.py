"""Answers of a model, in batches: greedy or beam search, identical prompts once, similar lengths together."""

import hashlib

import torch

from napo.engine import packing, preferences
from napo.workshop.progress import progress


@torch.no_grad()
def generate(model, processor, prompts, settings, label=None, min_new_tokens=None):
    """Answers to a list of (row, has image, has question) prompts, decoded and stripped, in order.

    Identical prompts are answered once. Batches hold prompts of similar length, in characters: token counts would need
    every image to be processed first. They are padded on the left, which changes no greedy answer.
    settings  has num_beams, max_new_tokens, batch_size. Decoding is greedy or beam search; with a `temperature` above 0
              it is sampled, by `seed`
    label     of a progress bar; None: none is shown
    """
    model.eval()
    texts = [packing.prompt_text(row, processor, image, question) for row, image, question in prompts]
    images = [row["image"] if image else None for row, image, _ in prompts]
    keys = [prompt_key(text, image) for text, image in zip(texts, images, strict=True)]
    first = {key: i for i, key in reversed(list(enumerate(keys)))}
    batches = []
    for with_image in (False, True):  # the two cannot share a batch
        of_kind = [i for i in first.values() if (images[i] is not None) == with_image]
        batches += chunks(sorted(of_kind, key=lambda i: (len(texts[i]), i)), settings.batch_size)
    answers = {}
    for batch in progress(batches, label) if label else batches:
        seen = [images[i] for i in batch if images[i] is not None] or None
        answered = answer_batch(model, processor, [texts[i] for i in batch], seen, settings, min_new_tokens)
        answers |= zip((keys[i] for i in batch), answered, strict=True)
    return [answers[key] for key in keys]


def answer_batch(model, processor, texts, images, settings, min_new_tokens=None):
    """Answers to prompts that fit one batch; `images` is None or one per prompt."""
    inputs = packing.tokenised(texts, images, processor, padding=True, padding_side="left").to(model.device)
    temperature = getattr(settings, "temperature", 0.0)
    with torch.random.fork_rng(enabled=temperature > 0):
        if temperature > 0:  # seeded by the batch's first prompt, so that samples do not depend on earlier batches
            key = prompt_key(f"{settings.seed} {texts[0]}", images[0] if images else None)
            torch.manual_seed(int(key[:15], 16))
        generated = model.generate(
            **inputs,
            do_sample=temperature > 0,
            temperature=temperature or None,
            top_p=None,
            top_k=None,
            num_beams=settings.num_beams,
            max_new_tokens=settings.max_new_tokens,
            min_new_tokens=min_new_tokens,
            pad_token_id=processor.tokenizer.pad_token_id,
            use_cache=True,  # configurations of trained checkpoints often switch it off
        )
    new = generated[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.tokenizer.batch_decode(new, skip_special_tokens=True)]


def prompt_key(text, image):
    """Key of a prompt: prompts with the same key get the same greedy answer."""
    pixels = b"" if image is None else preferences.image_bytes(image)
    return hashlib.sha256(text.encode() + b"\0" + pixels).hexdigest()


def chunks(items, size):
    """`items` in lists of `size`, the last one shorter."""
    return [items[start : start + size] for start in range(0, len(items), size)]
