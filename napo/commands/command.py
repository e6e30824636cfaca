"""What all commands share: their names, the parser, the arguments that choose a profile, and the exit status.

Exit status: 0 done, 1 the work was tried and failed, 2 bad input (one line says which), 130 interrupted.
"""

import argparse
import functools
import sys
import textwrap
from pathlib import Path

from napo import profiles
from napo.workshop import console
from napo.workshop.files import BadInput, shown
from napo.workshop.texts import printable

COMMANDS = {
    "run": "run the notebooks that are not up to date",
    "noise": "estimate how noisy the labels of a preference set are",
    "evaluate": "ask a model the questions of a benchmark and score its answers",
    "score": "score prediction files as the official scripts do",
    "judge": "have the answers to MMHal-Bench rated",
    "budget": "predict the rows and the memory of a run",
    "fetch": "fetch the official files of the benchmarks",
    "share": "write an adapter or the data with a card; upload it on request",
    "serve": "serve the explorer on this machine",
    "launch": "train one cell in several processes, under `accelerate launch`",
}
OVERRIDES = {  # the keyword arguments of profiles.get
    "model": "hub id or local folder",
    "data": "hub id, parquet file or folder",
    "rows": "number of training rows, or all",
    "device": "cpu or cuda",
    "benchmarks": "folder with official benchmarks, to be asked too",
    "report_to": "logging back ends: tensorboard,wandb",
    "methods": "methods to train, separated by commas; tables: all of the paper's Tables 1 to 4",
}


class Parser(argparse.ArgumentParser):
    """argparse's parser of one command; a wrong call raises BadInput."""

    def error(self, message):
        raise BadInput(f"{textwrap.shorten(message, 200, placeholder=' ...')} (see {self.prog} --help)")


def parser(name):
    """An empty parser for the command `name`."""
    return Parser(prog=f"napo {name}", description=f"{COMMANDS[name][0].upper()}{COMMANDS[name][1:]}.")


def add_profile(top, default, overrides=()):
    """Add --profile, --runs-dir and an option for each of the named `overrides`."""
    top.add_argument("--profile", default=default, help=f"{', '.join(profiles.PROFILES)}; default: {default}")
    top.add_argument("--runs-dir", default="runs", metavar="FOLDER", help="default: runs")
    for name in overrides:
        choices = ("", "cpu", "cuda") if name == "device" else None
        about = {"help": f"{OVERRIDES[name]}; default: the profile's own", "metavar": name.upper()}
        top.add_argument(f"--{name.replace('_', '-')}", default="", choices=choices, **about)


def given_overrides(asked):
    """{name: value} of the overrides that the command line gives."""
    return {name: value for name, value in vars(asked).items() if name in OVERRIDES and value}


def plain_name(text, what):
    """`text`, which becomes the name of a folder. Raises BadInput for one that would lie elsewhere or be hidden."""
    if not text or text.startswith(".") or not text.isprintable() or set(text) & set("/\\") or len(text.encode()) > 200:
        raise BadInput(f"{what} {text[:100]!r} cannot name a folder: use letters, digits, - and _")
    return text


def asked_profile(asked):
    """The profile that the command line asks for. Raises BadInput."""
    return profiles.get(asked.profile, **given_overrides(asked))


def template(name):
    """The text of pages/NAME.md, with placeholders."""
    return (Path(__file__).parent / "pages" / f"{name}.md").read_text(encoding="utf-8")


def exit_status(main):
    """Decorator of a command's main(arguments=None), which returns None or a status: errors become one line."""

    @functools.wraps(main)
    def status(*arguments, **places):
        try:
            with console.stoppable():
                return main(*arguments, **places) or 0
        except BadInput as error:
            print(f"error: {printable(error)}", file=sys.stderr, flush=True)
            return 2
        except OSError as error:  # of the machine: a full disk, a limit, a folder that may not be written
            if error.strerror is None:
                raise
            place = f"{shown(error.filename)}: " if isinstance(error.filename, str) else ""
            print(f"error: {place}{error.strerror}; put that right and run the same command again", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("stopped: run the same command again to go on", file=sys.stderr, flush=True)
            return 130

    return status
