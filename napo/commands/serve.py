"""`napo serve`, or `make explore`: serve the explorer on this machine. Ctrl-C or SIGTERM ends it."""

import importlib.util

from napo import profiles
from napo.commands import command
from napo.explorer.serve import free_port, serve, write_page
from napo.workshop import console
from napo.workshop.files import BadInput


def parser():
    top = command.parser("serve")
    command.add_profile(top, "desk")
    top.add_argument("--port", type=int, help="default: 8866, or the next free one")
    return top


@command.exit_status
def main(arguments=None):
    asked = parser().parse_args(arguments)
    if importlib.util.find_spec("voila") is None:
        raise BadInput("voila is missing: pip install 'napo[notebooks]'")
    profiles.get(asked.profile)  # a known name
    port = free_port(asked.port)
    with console.scratch("explorer") as folder:
        serve(write_page(folder, asked.profile, asked.runs_dir), port)
