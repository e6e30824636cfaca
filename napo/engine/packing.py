"""Rows to tensors: prompt and response tokens from the processor's own chat template, packed or one sequence each.

A row is a dict with `image` (PIL), `question` and one text per kind of response. A masked modality is left out of the
conversation: a prompt without image is text alone, one without question is the image token alone (paper, section 3.1).

Packed, a row is one sequence with branches, [prompt with its image tokens][response 1]...[response K], so that the
prompt and its image are computed once. Short rows may share a sequence. `tree_attention.py` says who attends to whom
and at which positions.
"""

import functools

import torch

from napo.engine import tree_attention
from napo.workshop.files import BadInput

TILED = {"pixel_values": 5, "pixel_attention_mask": 4}  # dimensions of an image tensor that holds several tiles a row


def conversation(row, image=True, question=True):
    """The user's turn of a row as chat messages, with image, question or both."""
    content = [{"type": "image"}] if image else []
    content += [{"type": "text", "text": row["question"]}] if question else []
    return [{"role": "user", "content": content}]


def prompt_text(row, processor, image=True, question=True):
    """The prompt of a row as text; it ends where the response starts."""
    if question:
        refuse_image_token(row, "question", row["question"], processor)
    return processor.apply_chat_template(conversation(row, image, question), add_generation_prompt=True)


def refuse_image_token(row, name, text, processor):
    """Raises BadInput if a text holds the image token, for which the model would expect one more image."""
    token = getattr(processor, "image_token", None)
    if token and token in text:
        raise BadInput(
            f"row {row.get('row_id')}: {name} contains {token}: take it out, the chat template places the image"
        )


def tokenised(texts, images, processor, **settings):
    """Prompts as the model reads them: the processor's tensors, image tokens included, with one start token."""
    start = processor.tokenizer.bos_token
    written = start is not None and texts[0].startswith(start)  # by the template: the tokenizer must not add another
    images = images and [[image] for image in images]  # some families would take a flat list as one prompt's images
    return processor(text=texts, images=images, return_tensors="pt", add_special_tokens=not written, **settings)


def response_ids(text, row, processor, prompt=None):
    """Token ids of a response after the row's prompt, end token last.

    Prompt and response are tokenised together, because a tokenizer may treat the first word of a text differently.
    prompt  of `tokenised_prompt`, if it is known already
    """
    tokenizer = processor.tokenizer
    prompt, prompt_ids = prompt or tokenised_prompt(row, processor)
    answered = [*conversation(row), {"role": "assistant", "content": [{"type": "text", "text": text}]}]
    rendered = processor.apply_chat_template(answered)
    end = rendered.find(text, len(prompt)) + len(text)
    if not rendered.startswith(prompt) or end < len(prompt) + len(text):
        raise BadInput(
            f"row {row.get('row_id')}: the chat template does not put the response after the prompt unchanged"
        )
    ids = tokenizer(rendered[:end], add_special_tokens=False)["input_ids"]
    if ids[: len(prompt_ids)] == prompt_ids:
        ids = ids[len(prompt_ids) :]
    else:  # the tokenizer merged across the border; generation starts after the prompt's own tokens, so do the same
        ids = tokenizer(rendered[len(prompt) : end], add_special_tokens=False)["input_ids"]
    return [*ids, tokenizer.eos_token_id]


def tokenised_prompt(row, processor):
    """A row's prompt as text and as token ids, in which its image is still one token."""
    prompt = prompt_text(row, processor)
    return prompt, processor.tokenizer(prompt, add_special_tokens=False)["input_ids"]


def encode(row, processor, kinds, max_length=None):
    """One row as token ids and image tensors.

    Returns a dict: `row_id`; `prompt_ids` (P,) int64; `responses` {kind: (T,) int64, end token last}; `vision` {name:
    tensor}; `token_types` {name: (P,)} if the processor marks image tokens; `n_cut`, the number of responses that were
    cut at the end to keep prompt and response within max_length.
    Raises BadInput, which names the row, for an empty response, an image token in a text, or a prompt that alone
    reaches max_length: image tokens are never cut.
    """
    name = f"row {row.get('row_id')}"
    prompt = tokenised_prompt(row, processor)
    inputs = dict(tokenised([prompt[0]], [row["image"]], processor))
    prompt_ids = inputs.pop("input_ids")[0]
    inputs.pop("attention_mask")
    token_types = {key: inputs.pop(key)[0] for key in list(inputs) if key.endswith("token_type_ids")}
    room = None if max_length is None else max_length - len(prompt_ids)
    if room is not None and room < 2:
        raise BadInput(
            f"{name}: the prompt has {len(prompt_ids)} tokens, max_length is {max_length}: image "
            "tokens are never cut, so raise Training.max_length in napo/profiles.py or drop the row"
        )
    responses, n_cut = {}, 0
    for kind in kinds:
        if not row[kind].strip():
            raise BadInput(f"{name}: {kind} is empty: drop the row or give it an answer")
        refuse_image_token(row, kind, row[kind], processor)
        ids = response_ids(row[kind], row, processor, prompt)
        if len(ids) < 2:
            raise BadInput(f"{name}: {kind} tokenises to nothing ({row[kind]!r}): drop the row or mend the answer")
        n_cut += room is not None and len(ids) > room
        responses[kind] = torch.tensor(ids[:room])
    return {
        "row_id": row.get("row_id"),
        "prompt_ids": prompt_ids,
        "responses": responses,
        "vision": inputs,
        "token_types": token_types,
        "n_cut": n_cut,
    }


def check_image_tokens(model, processor, row):
    """Raises BadInput if processor and model disagree on the number of image tokens; to be called before any step."""
    inputs = tokenised([prompt_text(row, processor)], [row["image"]], processor).to(model.device)
    try:
        with torch.no_grad():
            tree_attention.inner_model(model)(**inputs, use_cache=False)
    except (ValueError, RuntimeError, IndexError) as error:  # families differ in how they notice
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadInput(
            f"row {row.get('row_id')}: processor and model disagree on the image tokens ({reason}); "
            "load both from the same folder or hub revision"
        ) from error


def collation(model, packed=True):
    """The function (encoded rows, kinds, pad_token_id) -> batch for a model: packed, in shared sequences if that is
    exact, or plain."""
    return functools.partial(collate_packed, shared=tree_attention.may_share(model)) if packed else collate_plain


def collate_packed(encoded_rows, kinds, pad_token_id=0, shared=False):
    """A batch of packed rows, [prompt][response 1]...[response K] each, in B sequences padded on the right to length S.

    shared  False: one sequence per row. True: short rows stand one after another in sequences as long as the longest
            row, which leaves little padding (`tree_attention.may_share` says for which models)
    Returns a dict:
        input_ids     (B, S) int64
        segments      (B, S) int64: 0 prompt, 1..K responses, -1 padding
        rows          (B, S) int64: number of the row in the batch, -1 padding
        position_ids  (B, S) int64: they start again at each row, and after its prompt for each response
        kinds, n_rows
        stretches     of `tree_attention.stretches`; None if rows share sequences
        and the processor's image tensors, in the order in which the rows stand
    """
    packed = [_packed(row, kinds, number) for number, row in enumerate(encoded_rows)]
    lengths = [len(row["input_ids"]) for row in packed]
    sequences = first_fit(lengths) if shared else [[number] for number in range(len(packed))]
    fillers = {"input_ids": pad_token_id, "segments": -1, "rows": -1}  # at padding; 0 in the other columns
    batch = {
        name: pad([torch.cat([packed[i][name] for i in sequence]) for sequence in sequences], fillers.get(name, 0))
        for name in packed[0]
    }
    assert batch["input_ids"].shape == batch["segments"].shape == batch["position_ids"].shape
    batch["kinds"], batch["n_rows"] = tuple(kinds), len(packed)
    batch["stretches"] = tree_attention.stretches(batch["segments"]) if len(sequences) == len(packed) else None
    return batch | stack_images([encoded_rows[number] for sequence in sequences for number in sequence], 1)


def _packed(row, kinds, number):
    """One row's columns, each (length,): token ids, the part and the row that each token belongs to, its position, and
    the processor's marks of image tokens (0 at responses)."""
    parts = [row["prompt_ids"], *(row["responses"][kind] for kind in kinds)]
    starts = [0] + [len(row["prompt_ids"])] * len(kinds)
    input_ids = torch.cat(parts)
    n_answered = len(input_ids) - len(row["prompt_ids"])
    return {
        "input_ids": input_ids,
        "segments": torch.cat([torch.full((len(part),), number) for number, part in enumerate(parts)]),
        "rows": torch.full_like(input_ids, number),
        "position_ids": torch.cat([s + torch.arange(len(part)) for s, part in zip(starts, parts, strict=True)]),
        **{name: torch.nn.functional.pad(marks, (0, n_answered)) for name, marks in row["token_types"].items()},
    }


def first_fit(lengths):
    """Groups items, the longest first, each in the first group where it fits; no group exceeds the longest item.

    Returns lists of item numbers.
    """
    groups, room = [], []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        fitting = next((g for g, left in enumerate(room) if lengths[number] <= left), None)
        if fitting is None:
            groups.append([number])
            room.append(max(lengths) - lengths[number])
        else:
            groups[fitting].append(number)
            room[fitting] -= lengths[number]
    return groups


def collate_plain(encoded_rows, kinds, pad_token_id=0):
    """A batch with one sequence per response, row by row: S = B * K sequences, padded on the right to length T.

    Returns a dict of input_ids (S, T) int64, attention_mask (S, T) int64, response_mask (S, T) bool (true at response
    tokens, end token included), and the processor's image tensors, repeated for each of a row's K responses.
    """
    prompts = [row["prompt_ids"] for row in encoded_rows for _ in kinds]
    responses = [row["responses"][kind] for row in encoded_rows for kind in kinds]
    input_ids = pad([torch.cat(pair) for pair in zip(prompts, responses, strict=True)], pad_token_id)
    response_mask = torch.zeros_like(input_ids, dtype=torch.bool)
    attention_mask = torch.zeros_like(input_ids)
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        response_mask[i, len(prompt) : len(prompt) + len(response)] = True
        attention_mask[i, : len(prompt) + len(response)] = 1
    batch = {"input_ids": input_ids, "attention_mask": attention_mask, "response_mask": response_mask}
    for name in encoded_rows[0]["token_types"]:
        marks = pad([row["token_types"][name] for row in encoded_rows for _ in kinds], 0)  # (S, longest prompt)
        batch[name] = torch.nn.functional.pad(marks, (0, input_ids.shape[1] - marks.shape[1]))
    return batch | stack_images(encoded_rows, len(kinds))


def pad(sequences, value):
    """1-D tensors -> (number, longest), filled up on the right."""
    return torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=value)


def stack_images(encoded_rows, repeats):
    """The processor's image tensors of all rows, one after another, each row's `repeats` times.

    Images cut into several tiles (rows, tiles, channels, height, width) are filled up with empty tiles, which the
    models that cut tiles leave out. Raises BadInput if two images of a batch have sizes that cannot be joined.
    """
    out = {}
    for row in encoded_rows:
        check_one_size(row, encoded_rows[0])
    for name in encoded_rows[0]["vision"]:
        tensors = [row["vision"][name] for row in encoded_rows]
        if tensors[0].ndim == TILED.get(name):
            tensors = [with_tiles(tensor, max(t.shape[1] for t in tensors)) for tensor in tensors]
        out[name] = torch.cat([tensor for tensor in tensors for _ in range(repeats)])
    return out


def check_one_size(row, first):
    """Raises BadInput if the images of two encoded rows cannot stand in one tensor (their tiles may differ)."""
    for name, tensor in row["vision"].items():
        start = 2 if tensor.ndim == TILED.get(name) else 1
        size, other = (tuple(each.shape[start:]) for each in (tensor, first["vision"][name]))
        if size != other:
            raise BadInput(
                f"row {row['row_id']}: {name} of size {size} cannot share a batch with {other} of row "
                f"{first['row_id']}: make the processor resize and crop to one size, or set batch_size=1"
            )


def with_tiles(tensor, number):
    """(1, tiles, ...) filled up with empty tiles to (1, number, ...)."""
    missing = tensor.new_zeros(len(tensor), number - tensor.shape[1], *tensor.shape[2:])
    return torch.cat([tensor, missing], dim=1)
