"""NaPO: noise-aware preference optimisation for multimodal language models, as notebooks on a thin package."""

__version__ = "0.1.0"
