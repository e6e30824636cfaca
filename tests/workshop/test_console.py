"""napo.workshop.console: streams, limits and signals, each in a process of its own."""

import os
import signal
import subprocess
import sys

import pytest

STREAMS = "import os, sys\nfrom napo.workshop import console\nconsole.prepare_streams()\n"
WAITS = """
import sys, time
from napo.commands import command

@command.exit_status
def main():
    try:
        print("waits", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        {then}
    finally:
        time.sleep(0.5)

sys.exit(main())
"""


def shell(command, *values, **environment):
    """Run a line of bash in which "$0" is this Python."""
    command = ["bash", "-c", command, sys.executable, *values]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=60)


def test_a_stream_takes_what_it_cannot_encode():
    ended = shell('"$0" -c "$1"', STREAMS + "print('3 · q'); print('·', file=sys.stderr)", PYTHONIOENCODING="ascii")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "3 \\xb7 q\n", "\\xb7\n")


def test_a_reader_that_leaves_ends_nothing():
    code = STREAMS + "[print(i, flush=i % 2 > 0) for i in range(99999)]; print('went on', file=sys.stderr)"
    ended = shell('"$0" -c "$1" | head -n 1; exit ${PIPESTATUS[0]}', code)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "0\n", "went on\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&- 2>&-"])
def test_nothing_takes_the_place_of_a_closed_stream(closed, tmp_path):
    code = STREAMS + "import subprocess\nprint('lost')\nfile = open(sys.argv[1], 'w')\nassert file.fileno() > 2\n"
    code += "subprocess.run(['cat'], input=b'', check=True)\nfile.write('done')"
    assert shell(f'"$0" -c "$1" "$2" {closed}', code, tmp_path / "file").returncode == 0
    assert (tmp_path / "file").read_text() == "done"


@pytest.mark.parametrize("limit, remedy", [("-n 64", "ulimit -n 1024"), ("-f 100", "ulimit -f unlimited")])
def test_low_limits_are_refused_in_one_line(limit, remedy):
    ended = shell(f'ulimit {limit}; exec "$0" -m napo run')
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: ") and ended.stderr.endswith(f"({remedy})\n")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("then", ["pass", "raise", "raise OSError(5, 'a consequence')", "time.sleep(60)"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_command_with_one_line(number, then):
    """However many, and whatever becomes of the first. A command that is done all the same is done."""
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS.format(then=then)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "waits\n"
    for signalled in (number, number, signal.SIGTERM):
        process.send_signal(signalled)
    _, err = process.communicate(timeout=30)
    done = then == "pass"
    assert (process.returncode, err) == ((0, "") if done else (130, "stopped: run the same command again to go on\n"))
