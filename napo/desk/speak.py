"""Answers of desk models in batches, greedy or sampled from a torch.Generator.

`generate` of transformers takes no generator.
"""

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
    order = sorted(range(len(questions)), key=lambda i: (len(questions[i].split()), questions[i]))  # like with like
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
    """New tokens (B, max_new_tokens) int64 for left-padded inputs, padded after each end token.

    A sequence that has ended leaves the batch.
    """
    mask, cache = inputs.pop("attention_mask"), None
    positions = (mask.cumsum(1) - 1).clamp(min=0)  # (B, T), counted without the padding
    tokens = mask.new_full((len(mask), max_new_tokens), model.generation_config.pad_token_id)
    running = torch.arange(len(mask), device=mask.device)
    for step in range(max_new_tokens):
        state = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache, "use_cache": True}
        out = model(**inputs, **state, logits_to_keep=1)
        token = _pick(out.logits[:, -1].float(), generator, temperature)  # (running,)
        tokens[running, step] = token
        goes_on = token != model.generation_config.eos_token_id
        running, cache, inputs = running[goes_on], out.past_key_values, {"input_ids": token[goes_on, None]}
        if not len(running):
            break
        cache.batch_select_indices(goes_on)
        mask = torch.nn.functional.pad(mask[goes_on], (0, 1), value=1)
        positions = positions[goes_on, -1:] + 1
    return tokens


def _pick(logits, generator, temperature):
    if generator is None:
        return logits.argmax(dim=-1)
    return torch.multinomial((logits / temperature).softmax(dim=-1), 1, generator=generator)[:, 0]
