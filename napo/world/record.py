"""A measurement of the desk world as a command: measures on some bases, writes the record, prints its table."""

import argparse
from pathlib import Path

from napo import artifacts


def command(description, bases, name, measure, table):
    """Runs `measure(bases, runs_dir)`, a frame; writes {"bases": ..., name: its records} where --out says and prints
    table(record). bases  those measured unless --bases says otherwise"""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--bases", type=int, nargs="+", default=list(bases))
    parser.add_argument("--runs-dir", default="runs")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the record")
    asked = parser.parse_args()
    found = {"bases": asked.bases, name: measure(asked.bases, asked.runs_dir).to_dict("records")}
    artifacts.write_json(found, asked.out)
    print(table(found))
