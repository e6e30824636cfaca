"""Notebook 02: how noisy are the labels? Read reference_logps, probe, evidence, posterior; the others judge these."""
