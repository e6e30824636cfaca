"""The command line: `napo COMMAND …` or `python -m napo COMMAND …`. Only the module of that command is imported."""

import importlib
import sys

from napo.commands import command
from napo.workshop import console
from napo.workshop.files import BadInput


@command.exit_status
def main(arguments=None):
    """Run one command; returns its exit status. arguments: None = the process's own, which prepares its streams too."""
    if arguments is None:
        console.prepare_streams()
        arguments = sys.argv[1:]
    name, *rest = arguments or [""]
    if name in ("-h", "--help"):
        print("usage: napo COMMAND …   (napo COMMAND --help tells its arguments)\n")
        print("\n".join(f"  {known:9} {does}" for known, does in command.COMMANDS.items()))
        return 0
    if name not in command.COMMANDS:
        wrong = f"unknown command {name!r}" if name else "no command"
        raise BadInput(f"{wrong}: use one of {', '.join(command.COMMANDS)}")
    return importlib.import_module(f"napo.commands.{name}").main(rest)


if __name__ == "__main__":
    sys.exit(main())
