"""Fit an adapter to preference rows with a method's objective. Read training_set, then trainer.

One row's way through a training step: engine/preferences, engine/packing, training_set, engine/logps (which asks
tree_attention and head), objective, trainer.
"""
