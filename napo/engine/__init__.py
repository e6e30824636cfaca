"""Any image-text model: rows, prompts, packing, log-probs, answers.

Read preferences, packing, tree_attention, logps.
"""
