"""From values per example to numbers with intervals. Read `measures.py`, then `intervals.py`."""
