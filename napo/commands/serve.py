"""`napo serve`, or `make explore`: serve the explorer on this machine. The exit status is Voila's."""

import importlib.util
import tempfile

from napo.commands import command
from napo.explorer.serve import free_port, serve
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
    port = free_port() if asked.port is None else asked.port
    with tempfile.TemporaryDirectory(prefix="napo-explorer-") as folder:
        return serve(folder, asked.profile, asked.runs_dir, port)
