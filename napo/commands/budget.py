"""`napo budget`: rows of a run and memory of its stages, predicted from the model's configuration."""

from napo import profiles
from napo.commands import command
from napo.preflight.budget import describe, skeleton_of


def parser():
    top = command.parser("budget")
    command.add_profile(top, "paper", ("model", "data", "device", "methods"))
    sizes = ["1000", "10000", "all"]
    top.add_argument("--rows", dest="sizes", nargs="+", default=sizes, help="numbers, or all; default: 1000 10000 all")
    return top


@command.exit_status
def main(arguments=None):
    asked = parser().parse_args(arguments)
    for rows in asked.sizes:
        profile = profiles.get(asked.profile, rows=rows, **command.given_overrides(asked))
        print("\n".join(describe(profile, skeleton_of(profile))))
