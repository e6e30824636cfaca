"""A user's mistake is one line and status 2; anything else passes through."""

import pytest

from napo import command
from napo.artifacts import BadInput


@command.exit_status
def main(arguments=None):
    if arguments == ["bad"]:
        raise BadInput("rows.parquet: row 3\n  has no answer")
    if arguments == ["broken"]:
        raise KeyError("a bug")
    return 130 if arguments == ["stopped"] else None


def test_statuses(capsys):
    assert [main(), main(["stopped"]), main(["bad"])] == [0, 130, 2]
    assert capsys.readouterr().err == "error: rows.parquet: row 3 has no answer\n"
    with pytest.raises(KeyError):
        main(["broken"])
