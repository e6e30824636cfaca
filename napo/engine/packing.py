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
from napo.workshop.files import BadInput, first_line

TILED = {"pixel_values": 5, "pixel_attention_mask": 4}  # dimensions of an image tensor that holds several tiles a row


def fault(row, problem):
    """The error that names a row, to be raised."""
    return BadInput(f"row {row.get('row_id')}: {problem}")


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
        raise fault(row, f"{name} contains {token}: take it out, the chat template places the image")


def tokenised(texts, images, processor, **settings):
    """Prompts as the model reads them: the processor's tensors, image tokens included, with one start token."""
    start = processor.tokenizer.bos_token
    written = start is not None and texts[0].startswith(start)  # by the template: the tokenizer must not add another
    images = images and [[image] for image in images]  # some families would take a flat list as one prompt's images
    return processor(text=texts, images=images, return_tensors="pt", add_special_tokens=not written, **settings)


def response_ids(text, row, processor, prompt=None):
    """Token ids of a response after the row's prompt, end token last.

    Both are tokenised together: a tokenizer may treat a text's first word differently. prompt  of `tokenised_prompt`
    """
    tokenizer = processor.tokenizer
    prompt, prompt_ids = prompt or tokenised_prompt(row, processor)
    answer = {"role": "assistant", "content": [{"type": "text", "text": text}]}
    rendered = processor.apply_chat_template([*conversation(row), answer])
    end = rendered.find(text, len(prompt)) + len(text)
    if not rendered.startswith(prompt) or end < len(prompt) + len(text):
        raise fault(row, "the chat template does not put the response after the prompt unchanged")
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
    prompt = tokenised_prompt(row, processor)
    encoded = {"row_id": row.get("row_id")} | encode_prompt(prompt[0], row["image"], processor)
    length = len(encoded["prompt_ids"])
    room = None if max_length is None else max_length - length
    if room is not None and room < 2:
        problem = f"the prompt has {length} tokens, max_length is {max_length}: image tokens are never cut"
        raise fault(row, f"{problem}, so raise Training.max_length in napo/profiles.py or drop the row")
    responses, n_cut = {}, 0
    for kind in kinds:
        if not row[kind].strip():
            raise fault(row, f"{kind} is empty: drop the row or give it an answer")
        refuse_image_token(row, kind, row[kind], processor)
        ids = response_ids(row[kind], row, processor, prompt)
        if len(ids) < 2:
            raise fault(row, f"{kind} tokenises to nothing ({row[kind]!r}): drop the row or mend the answer")
        n_cut += room is not None and len(ids) > room
        responses[kind] = torch.tensor(ids[:room])
    return encoded | {"responses": responses, "n_cut": n_cut}


def encode_prompt(prompt, image, processor):
    """A prompt's `prompt_ids`, `vision` and `token_types`, as in `encode`; image: None without one."""
    inputs = dict(tokenised([prompt], [image] if image is not None else None, processor))
    prompt_ids = inputs.pop("input_ids")[0]
    inputs.pop("attention_mask")
    token_types = {key: inputs.pop(key)[0] for key in list(inputs) if key.endswith("token_type_ids")}
    return {"prompt_ids": prompt_ids, "vision": inputs, "token_types": token_types}


def check_image_tokens(model, processor, row):
    """Raises BadInput if processor and model disagree on the number of image tokens; to be called before any step."""
    inputs = tokenised([prompt_text(row, processor)], [row["image"]], processor).to(model.device)
    try:
        with torch.no_grad():
            tree_attention.inner_model(model)(**inputs, use_cache=False)
    except (ValueError, RuntimeError, IndexError) as error:  # families differ in how they notice
        problem = f"processor and model disagree on the image tokens ({first_line(error)})"
        raise fault(row, f"{problem}; load both from the same folder or hub revision") from error


def collation(model, packed=True):
    """The function (encoded rows, kinds, pad_token_id) -> batch: packed, shared where that is exact, or plain."""
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
    batch["kinds"], batch["n_rows"] = tuple(kinds), len(packed)
    batch["stretches"] = tree_attention.stretches(batch["segments"]) if len(sequences) == len(packed) else None
    return batch | stack_images([encoded_rows[number] for sequence in sequences for number in sequence], 1)


def _packed(row, kinds, number):
    """One row's columns, each (length,), as in `collate_packed`; the processor's marks are 0 at responses."""
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
    """Lists of item numbers: the longest first, each in the first list where it fits; none exceeds the longest item."""
    groups, limit = [], max(lengths)
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        filled = (group for group in groups if sum(lengths[i] for i in group) + lengths[number] <= limit)
        if (fitting := next(filled, None)) is None:
            groups.append(fitting := [])
        fitting.append(number)
    return groups


def collate_plain(encoded_rows, kinds, pad_token_id=0):
    """A batch with one sequence per response, row by row: S = B * K sequences, padded on the right to length T.

    Returns a dict of input_ids and attention_mask (S, T) int64, response_mask (S, T) bool (end token included), and the
    processor's image tensors, repeated for each of a row's K responses.
    """
    pairs = [(row["prompt_ids"], row["responses"][kind]) for row in encoded_rows for kind in kinds]
    places = [torch.arange(len(prompt) + len(response)) for prompt, response in pairs]
    batch = {
        "input_ids": pad([torch.cat(pair) for pair in pairs], pad_token_id),
        "attention_mask": pad([torch.ones_like(place) for place in places], 0),
        "response_mask": pad([place >= len(prompt) for place, (prompt, _) in zip(places, pairs, strict=True)], False),
    }
    for name in encoded_rows[0]["token_types"]:
        marks = pad([row["token_types"][name] for row in encoded_rows for _ in kinds], 0)  # (S, longest prompt)
        batch[name] = torch.nn.functional.pad(marks, (0, batch["input_ids"].shape[1] - marks.shape[1]))
    return batch | stack_images(encoded_rows, len(kinds))


def pad(sequences, value):
    """1-D tensors -> (number, longest), filled up on the right."""
    return torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=value)


def stack_images(encoded_rows, repeats):
    """The processor's image tensors of all rows, one after another, each row's `repeats` times.

    Images cut into several tiles get more, empty ones, which models leave out. Raises BadInput for unequal sizes.
    """
    out = {}
    for row in encoded_rows:
        check_one_size(row, encoded_rows[0])
    for name in encoded_rows[0]["vision"]:
        tensors = [row["vision"][name] for row in encoded_rows]
        if tensors[0].ndim == TILED.get(name):
            tiles, others = max(tensor.shape[1] for tensor in tensors), (0, 0) * (tensors[0].ndim - 2)
            tensors = [torch.nn.functional.pad(tensor, (*others, 0, tiles - tensor.shape[1])) for tensor in tensors]
        out[name] = torch.cat([tensor for tensor in tensors for _ in range(repeats)])
    return out


def check_one_size(row, first):
    """Raises BadInput if the images of two encoded rows cannot stand in one tensor (their tiles may differ)."""
    for name, tensor in row["vision"].items():
        start = 2 if tensor.ndim == TILED.get(name) else 1
        size, other = (tuple(each.shape[start:]) for each in (tensor, first["vision"][name]))
        if size != other:
            problem = f"{name} of size {size} cannot share a batch with {other} of row {first['row_id']}"
            raise fault(row, f"{problem}: make the processor resize and crop to one size, or set batch_size=1")
