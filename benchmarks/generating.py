"""The ways to generate biased answers that `engine.py` times: batched or one prompt at a time, greedy or three beams.

text   16 prompts with the image masked;  image  8 prompts with the question masked: the image alone
A random model never ends an answer, so all answers have the same number of tokens.
"""

from dataclasses import dataclass

import geometry as geometries
import numpy as np
from PIL import Image

from napo.engine import generation
from napo.pairs import perturb

PROMPTS = {"text": 16, "image": 8}
KINDS = {"text": "language_biased", "image": "vision_biased"}
NAMES = ("batched", "batched_beams", "single", "single_beams")


@dataclass(frozen=True)
class Settings:
    """What `generation.generate` asks of its settings."""

    batch_size: int
    num_beams: int
    max_new_tokens: int


def prompts(what):
    """Prompts of one sort, with questions of many lengths, no two alike."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "row_id": str(i),
            "image": Image.fromarray(rng.integers(0, 256, (336, 336, 3), dtype=np.uint8)),
            "question": f"What is shown in picture {i}{', and where is it' * (i % 4)}?",
        }
        for i in range(PROMPTS[what])
    ]
    return [perturb.perturbed(row, KINDS[what]) for row in rows]


def contestants(geometry, what, tokens, device, names=NAMES):
    """dict name -> callable that returns all answers."""
    model, processor = geometries.build(geometry, device)
    asked = prompts(what)

    def caller(name):
        settings = Settings(1 if "single" in name else len(asked), 3 if "beams" in name else 1, tokens)
        return lambda: generation.generate(model, processor, asked, settings, min_new_tokens=tokens)

    return {name: caller(name) for name in names}


def agreement(calls):
    """Share of prompts with the same greedy answer in a batch and alone; None if one of the two does not take part."""
    if not {"batched", "single"} <= set(calls):
        return None
    pairs = list(zip(calls["batched"](), calls["single"](), strict=True))
    return sum(one == other for one, other in pairs) / len(pairs)
