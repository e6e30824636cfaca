"""Notebook 03: the trainings that are compared, cell by cell. Read cells, then labels."""
