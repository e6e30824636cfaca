"""`napo run [NN …]`: run the notebooks that are not up to date, headless and resumable.

napo run --profile desk
napo run 02 03 --profile paper --rows 1000 -p bad_rows=drop
"""

import sys

from napo import profiles
from napo.commands import command
from napo.runner.notebooks import select
from napo.runner.run import NotebookFailed, run_all
from napo.runner.staleness import Session
from napo.workshop import console


def parser():
    top = command.parser("run")
    top.add_argument("wanted", nargs="*", metavar="NN", help="numbers of notebooks; default: all")
    command.add_profile(top, "desk", command.OVERRIDES)
    top.add_argument("-p", dest="given", action="append", default=[], metavar="NAME=VALUE", help="notebook parameter")
    top.add_argument("--force", action="store_true", help="make everything again, also what is up to date")
    top.add_argument("--execution-timeout", type=int, metavar="SECONDS", help="limit of a cell; default: none")
    return top


def announce(asked):
    """Check all that the profile needs before any notebook runs, and print the predicted memory. Raises BadInput."""
    given = dict(item.partition("=")[::2] for item in asked.given)
    profile = profiles.get(asked.profile, **{name: given[name] for name in command.OVERRIDES if name in given})
    if not profile.needs_nothing:
        from napo.preflight import budget  # imports torch: a run with nothing to do should take no seconds

        print("\n".join(budget.announced(profile, asked.runs_dir)), flush=True)


@command.exit_status
def main(arguments=None, *, known_profile=None, **places):
    """The command; returns the exit status.

    Tests pass `known_profile`, which checks a profile's name instead of `announce`, and the `places` of a Session:
    root, package and notebooks.
    """
    asked = parser().parse_args(arguments)
    asked.given += [f"{name}={value}" for name, value in command.given_overrides(asked).items()]
    session = Session(asked.profile, asked.runs_dir, timeout=asked.execution_timeout, **places)
    try:
        selected = select(session.notebooks, asked.wanted)
        console.check_limits()
        known_profile(asked.profile) if known_profile else announce(asked)
        run_all(session, selected, asked.given, asked.force)
    except NotebookFailed as error:
        if console.is_stopping():
            raise
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
