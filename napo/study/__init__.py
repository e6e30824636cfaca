"""Notebook 05: tables, claims, figures and the report. Read `claims.py`, then `frames.py` and `report.py`."""
