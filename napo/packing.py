"""Rows to tensors: prompt and response tokens from the processor's own chat template, one sequence per response.

A row is a dict with `image` (PIL), `question` and one text per kind of response. A masked modality is simply left out
of the conversation: no `image` is a text-only prompt, no `question` is the image token and nothing else (paper,
section 3.1).
"""

import torch

from napo.artifacts import BadInput


def conversation(row, image=True, question=True):
    """The user's turn of a row as chat messages; `image` and `question` say what is in it."""
    content = []
    if image:
        content.append({"type": "image"})
    if question:
        content.append({"type": "text", "text": row["question"]})
    return [{"role": "user", "content": content}]


def prompt_text(row, processor, image=True, question=True):
    """The prompt of a row as text, ending where the response starts."""
    if question:
        refuse_image_token(row, "question", row["question"], processor)
    return processor.apply_chat_template(conversation(row, image, question), add_generation_prompt=True)


def refuse_image_token(row, name, text, processor):
    """Raises BadInput where a text holds the image token: the model would look for one more image."""
    token = getattr(processor, "image_token", None)
    if token and token in text:
        raise BadInput(
            f"row {row.get('row_id')}: {name} contains {token}: take it out, the chat template places the image"
        )


def tokenised(texts, images, processor, **settings):
    """Prompts as the model reads them: tensors of the processor, image tokens included, with one start token."""
    start = processor.tokenizer.bos_token
    written = start is not None and texts[0].startswith(start)  # by the template: the tokenizer must not add another
    return processor(text=texts, images=images, return_tensors="pt", add_special_tokens=not written, **settings)


def response_ids(text, row, processor):
    """Token ids of a response as they follow the row's prompt, with the end token last.

    Prompt and response are tokenised together, because a tokenizer may treat the first word of a text differently.
    """
    tokenizer = processor.tokenizer
    prompt = prompt_text(row, processor)
    answered = [*conversation(row), {"role": "assistant", "content": [{"type": "text", "text": text}]}]
    rendered = processor.apply_chat_template(answered)
    end = rendered.find(text, len(prompt)) + len(text)
    if not rendered.startswith(prompt) or end < len(prompt) + len(text):
        raise BadInput(
            f"row {row.get('row_id')}: the chat template does not put the response after the prompt unchanged"
        )
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ids = tokenizer(rendered[:end], add_special_tokens=False)["input_ids"]
    if ids[: len(prompt_ids)] == prompt_ids:
        ids = ids[len(prompt_ids) :]
    else:  # the tokenizer merged across the border; generation starts after the prompt's own tokens, so do the same
        ids = tokenizer(rendered[len(prompt) : end], add_special_tokens=False)["input_ids"]
    return [*ids, tokenizer.eos_token_id]


def encode(row, processor, kinds, max_length=None):
    """One row as token ids and image tensors.

    Returns dict: `row_id`, `prompt_ids` (P,) int64, `responses` {kind: (T,) int64, end token last}, `vision` {name:
    tensor}, `n_cut` = responses cut at the end to keep prompt + response within max_length.
    Raises BadInput, naming the row, for an empty response or a prompt that alone reaches max_length: image tokens are
    never cut.
    """
    inputs = tokenised([prompt_text(row, processor)], [row["image"]], processor)
    prompt_ids = inputs.pop("input_ids")[0]
    inputs.pop("attention_mask")
    room = None if max_length is None else max_length - len(prompt_ids)
    if room is not None and room < 2:
        raise BadInput(
            f"row {row.get('row_id')}: the prompt has {len(prompt_ids)} tokens, max_length is {max_length}: image "
            "tokens are never cut, so raise Training.max_length in napo/profiles.py or drop the row"
        )
    responses, n_cut = {}, 0
    for kind in kinds:
        if not row[kind].strip():
            raise BadInput(f"row {row.get('row_id')}: {kind} is empty: drop the row or give it an answer")
        refuse_image_token(row, kind, row[kind], processor)
        ids = response_ids(row[kind], row, processor)
        n_cut += room is not None and len(ids) > room
        responses[kind] = torch.tensor(ids[:room])
    return {
        "row_id": row.get("row_id"),
        "prompt_ids": prompt_ids,
        "responses": responses,
        "vision": dict(inputs),
        "n_cut": n_cut,
    }


def check_image_tokens(model, processor, row):
    """Raises BadInput where processor and model disagree on the number of image tokens (found before any training
    step)."""
    inputs = tokenised([prompt_text(row, processor)], [row["image"]], processor).to(model.device)
    try:
        with torch.no_grad():
            model(**inputs)
    except ValueError as error:
        raise BadInput(
            f"row {row.get('row_id')}: processor and model disagree on the image tokens ({error}); "
            "load both from the same folder or hub revision"
        ) from error


def collate_plain(encoded_rows, kinds, pad_token_id=0):
    """A batch with one sequence per response, row by row: S = B * K sequences, padded on the right.

    Returns dict of input_ids (S, T) int64, attention_mask (S, T) int64, response_mask (S, T) bool (true at the tokens
    whose log-probs count, end token included), and the processor's image tensors, repeated for each of a row's K
    responses.
    """
    prompts = [row["prompt_ids"] for row in encoded_rows for _ in kinds]
    responses = [row["responses"][kind] for row in encoded_rows for kind in kinds]
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
    input_ids = torch.full((len(prompts), max(lengths)), pad_token_id)
    response_mask = torch.zeros_like(input_ids, dtype=torch.bool)
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        input_ids[i, : lengths[i]] = torch.cat([prompt, response])
        response_mask[i, len(prompt) : lengths[i]] = True
    attention_mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    names = encoded_rows[0]["vision"]
    vision = {n: torch.cat([row["vision"][n] for row in encoded_rows for _ in kinds]) for n in names}
    return {"input_ids": input_ids, "attention_mask": attention_mask, "response_mask": response_mask, **vision}
