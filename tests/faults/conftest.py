"""A quick part runs with all tests; NAPO_FAULTS=all (`make faults`) runs everything and prints counts."""

import os
from collections import Counter

import pytest
import smoke_run

EVERYTHING = os.environ.get("NAPO_FAULTS") == "all"


@pytest.fixture(scope="session")
def everything():
    """For what only `make faults` runs."""
    if not EVERYTHING:
        pytest.skip("runs with make faults")


@pytest.fixture(scope="session")
def reference(root, tmp_path_factory):
    """The runs folder of an undisturbed smoke run."""
    runs, ended = smoke_run.finished(root, tmp_path_factory)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    return runs


@pytest.fixture
def count(record_property):
    """count(what, how many): adds to the table that is printed at the end."""
    return lambda what, number=1: record_property(f"fault {what}", number)


def pytest_terminal_summary(terminalreporter):
    """The counts of all tests, from whichever process ran them."""
    total = Counter()
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, number in report.user_properties if report.when == "call" else ():
            if name.startswith("fault "):
                total[name.removeprefix("fault ")] += number
    if total:
        terminalreporter.section("faults tried")
        for name in sorted(total):
            terminalreporter.write_line(f"{name:50} {total[name]:,}")
