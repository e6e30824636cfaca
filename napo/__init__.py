"""NaPO: noise-aware preference optimisation for multimodal language models.

Six notebooks on a thin package. `Kit` runs their stages; the other public names are the method and its steps one by
one. All of them are imported when first used, so `import napo` is fast and needs no torch.
"""

import importlib
import logging

__version__ = "0.1.0"

_PUBLIC = {  # name -> (module, attribute); no name is also that of a module here, which would hide it
    "Kit": ("napo.kit", "Kit"),
    "profile": ("napo.profiles", "get"),
    "METHODS": ("napo.methods", "METHODS"),
    "dpo_loss": ("napo.losses", "dpo_loss"),
    "napo_loss": ("napo.losses", "napo_loss"),
    "noise_coefficient": ("napo.q", "noise_coefficient"),
    "loss_weights": ("napo.q", "loss_weights"),
    "objective": ("napo.objectives", "objective"),
    "load_model": ("napo.engine.models", "load"),
    "response_logps": ("napo.engine.logps", "response_logps"),
    "generate": ("napo.engine.generation", "generate"),
    "make_pairs": ("napo.pairs.perturb", "pairs"),
    "estimate_noise": ("napo.noise.posterior", "table"),
    "train_cell": ("napo.comparison.cells", "train_cell"),
    "evaluate_cell": ("napo.evaluation.evaluate", "evaluate_cell"),
    "load_scores": ("napo.evaluation.evaluate", "load_scores"),
}
__all__ = ["__version__", *_PUBLIC]

# On CPUs with AVX512-BF16 bitsandbytes warns at import that it misses a kernel, which this package never calls (see
# engine.models.guard_repacking). transformers and peft import bitsandbytes too, so this must come before either.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: "gemm_4bit_forward" not in record.msg)


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'napo' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__():
    return sorted({*globals(), *__all__})
