"""Notebook 04: ask a model questions (`asking.py`), score its answers (`scoring.py`), for each cell (`evaluate.py`)."""
