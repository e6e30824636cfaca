"""The desk world: rendered scenes whose truth is known, questions about them, and small LLaVA models with a language
prior."""
