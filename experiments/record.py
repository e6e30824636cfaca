"""The command line of a measurement: measures some bases, writes the record, prints its table."""

import argparse
from pathlib import Path

from napo.workshop.files import write_json


def command(description, bases, name, measure, table):
    """Writes {"bases": ..., name: records of measure(bases, runs_dir)} to --out and prints table(record).

    bases  default of --bases
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--bases", type=int, nargs="+", default=list(bases))
    parser.add_argument("--runs-dir", default="runs")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the record")
    asked = parser.parse_args()
    found = {"bases": asked.bases, name: measure(asked.bases, asked.runs_dir).to_dict("records")}
    write_json(found, asked.out)
    print(table(found))
