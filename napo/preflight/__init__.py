"""Checks before any work starts: device, model, data, disk and memory. Read checks, disk, budget."""
