"""Answers from a model, in batches, greedy or sampled from a torch.Generator (which `generate` of transformers cannot
take)."""

import torch

MAX_ANSWER_TOKENS = 48


def prompt(processor, question, image=True):
    """The chat prompt of a question (text; "" = masked), with or without an image."""
    content = [{"type": "image"}] if image else []
    content += [{"type": "text", "text": question}] if question else []
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def answer(model, processor, questions, images, *, generator=None, temperature=1.0, batch_size=256):
    """One answer per question, as text.

    questions  list of str;  images  list of PIL images, or None for no image at all
    generator  torch.Generator to sample from at `temperature`; None = greedy
    """
    order = sorted(range(len(questions)), key=lambda i: len(questions[i].split()))  # batches of like length
    answers = [""] * len(questions)
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        texts = [prompt(processor, questions[i], images is not None) for i in part]
        pictures = {"images": [images[i] for i in part]} if images is not None else {}
        inputs = processor(text=texts, **pictures, padding=True, padding_side="left", return_tensors="pt").to(
            model.device
        )
        tokens = generate(model, dict(inputs), generator, temperature)
        decoded = processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        for i, text in zip(part, decoded, strict=True):
            answers[i] = text.strip()
    return answers


@torch.no_grad()
def generate(model, inputs, generator=None, temperature=1.0, max_new_tokens=MAX_ANSWER_TOKENS):
    """New tokens (B, T) int64 for left-padded inputs; after its end token a sequence is padded."""
    eos, pad = model.generation_config.eos_token_id, model.generation_config.pad_token_id
    mask, tokens, cache = inputs.pop("attention_mask"), [], None
    positions = (mask.cumsum(1) - 1).clamp(min=0)  # (B, T), counted without the padding
    ended = torch.zeros(len(mask), dtype=torch.bool, device=mask.device)
    while len(tokens) < max_new_tokens and not ended.all():
        out = model(
            **inputs,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        token = _pick(out.logits[:, -1].float(), generator, temperature).masked_fill(ended, pad)  # (B,)
        tokens.append(token)
        ended |= token == eos
        cache, inputs = out.past_key_values, {"input_ids": token[:, None]}
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        positions = positions[:, -1:] + 1
    return torch.stack(tokens, dim=1)


def _pick(logits, generator, temperature):
    if generator is None:
        return logits.argmax(dim=-1)
    return torch.multinomial((logits / temperature).softmax(dim=-1), 1, generator=generator)[:, 0]
