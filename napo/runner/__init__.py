"""The notebooks through papermill. Read notebooks.py (the table), staleness.py (what must run), run.py."""
