"""What every command of the package does with a user's mistake."""

import functools
import sys

from napo.artifacts import BadInput


def exit_status(main):
    """Decorator of a command's main(arguments=None): returns its exit status, 0 unless main gives another, and 2 after
    one line on standard error where the input is bad."""

    @functools.wraps(main)
    def status(arguments=None):
        try:
            return main(arguments) or 0
        except BadInput as error:
            print("error: " + " ".join(str(error).split()), file=sys.stderr)
            return 2

    return status
