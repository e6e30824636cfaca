"""Answers of desk models in batches, greedy or sampled from a torch.Generator.

`generate` of transformers takes no generator.
"""

import torch

from napo.engine import generation, packing

MAX_ANSWER_TOKENS = 48


def answer(model, processor, questions, images, *, generator=None, temperature=1.0, batch_size=256):
    """One answer per question, as text.

    questions  list of str, "" = masked;  images  list of PIL images, or None for no image at all
    generator  torch.Generator to sample from at `temperature`; None = greedy
    """
    order = sorted(range(len(questions)), key=lambda i: (len(questions[i].split()), questions[i]))  # like with like
    prompts = [packing.prompt_text({"question": q}, processor, images is not None, bool(q)) for q in questions]
    answers = [""] * len(questions)
    for part in generation.chunks(order, batch_size):
        pictures = images and [images[i] for i in part]
        texts = [prompts[i] for i in part]
        inputs = packing.tokenised(texts, pictures, processor, padding=True, padding_side="left").to(model.device)
        tokens = generate(model, dict(inputs), generator, temperature)
        decoded = processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        for i, text in zip(part, decoded, strict=True):
            answers[i] = text.strip()
    return answers


@torch.no_grad()
def generate(model, inputs, generator, temperature):
    """New tokens (B, MAX_ANSWER_TOKENS) int64 for left-padded inputs, padded after each end token.

    A sequence that has ended leaves the batch.
    """
    mask, cache = inputs.pop("attention_mask"), None
    positions = (mask.cumsum(1) - 1).clamp(min=0)  # (B, T), counted without the padding
    tokens = mask.new_full((len(mask), MAX_ANSWER_TOKENS), model.generation_config.pad_token_id)
    running = torch.arange(len(mask), device=mask.device)
    for step in range(MAX_ANSWER_TOKENS):
        state = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache, "use_cache": True}
        out = model(**inputs, **state, logits_to_keep=1)
        logits = out.logits[:, -1].float()  # (running, V)
        if generator is None:
            token = logits.argmax(dim=-1)
        else:
            token = torch.multinomial((logits / temperature).softmax(dim=-1), 1, generator=generator)[:, 0]
        tokens[running, step] = token
        goes_on = token != model.generation_config.eos_token_id
        running, cache, inputs = running[goes_on], out.past_key_values, {"input_ids": token[goes_on, None]}
        if not len(running):
            break
        cache.batch_select_indices(goes_on)
        mask = torch.nn.functional.pad(mask[goes_on], (0, 1), value=1)
        positions = positions[goes_on, -1:] + 1
    return tokens
