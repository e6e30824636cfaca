"""Rows that a model cannot take, found from its processor alone, before the model is loaded or anything generated."""

import functools

from PIL import Image
from transformers import AutoConfig

from napo.engine import models, packing, preferences, processors
from napo.workshop import pretrained
from napo.workshop.files import BadInput

ANSWERS = ("chosen", "rejected", *preferences.BIASED)


def of_base(profile, base):
    """The check for a profile's base model. Training cuts long answers but never a prompt: at most max_length."""
    return of_model(models.source(profile, base), profile.revision, profile.training.max_length)


def of_model(name, revision=None, longest=None):
    """The check for a model, and for its own longest sequence. Raises BadInput if the processor cannot be loaded.

    longest  tokens of a prompt; None: prompt and answers are checked together
    """
    pretrained.check(name, revision)
    with pretrained.one_line(name):
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False).get_text_config()
        limits = filter(None, [longest, getattr(config, "max_position_embeddings", None)])
        return RowCheck(processors.load(name, revision), min(limits, default=None), whole=longest is None)


class RowCheck:
    """Function from a row to the reason why the model cannot take it; None if it can.

    longest  tokens of a prompt and its image at most; None: any number
    whole    True: tokens of prompt and response together. False: training cuts long responses
    """

    def __init__(self, processor, longest=None, whole=False):
        self.processor, self.longest, self.whole = processor, longest, whole
        self.image_tokens = functools.cache(self._image_tokens)
        added = processor.tokenizer.added_tokens_decoder.values()
        self.special = {*processor.tokenizer.all_special_tokens} | {token.content for token in added if token.special}

    def __call__(self, row):
        texts = {name: row[name] for name in ("question", *ANSWERS) if row.get(name)}
        for name, text in texts.items():
            if token := self.special_token(text):
                return f"{name} contains {token}, which the model does not read as text"
        try:
            prompt = packing.tokenised_prompt(row, self.processor)
            length = len(prompt[1]) + self.image_tokens(row["image"].size)
            if self.whole:
                answers = [texts[kind] for kind in ANSWERS if kind in texts]
                length += max(len(packing.response_ids(text, row, self.processor, prompt)) for text in answers)
        except BadInput as error:
            return str(error).removeprefix(f"row {row['row_id']}: ")
        if self.longest and length > self.longest - (0 if self.whole else 2):
            what = "prompt and longest answer have" if self.whole else "the prompt has"
            return f"{what} {length} tokens, the limit is {self.longest}"
        return None

    def special_token(self, text):
        """A special token of the processor that a text contains; None if there is none."""
        return next((token for token in sorted(self.special) if token in text), None)

    def _image_tokens(self, size):
        """Tokens that an image of a size in pixels adds to a prompt, which holds one for it; with the start token."""
        row = {"question": "?", "image": Image.new("RGB", size)}
        text, ids = packing.tokenised_prompt(row, self.processor)
        return len(packing.encode_prompt(text, row["image"], self.processor)["prompt_ids"]) - len(ids)
