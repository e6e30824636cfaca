"""Notebook 01: biased answers, made by masking one modality."""
