"""The official benchmarks: what they ask (`benchmarks.py`), their scorers (one file each), where to get their files."""
