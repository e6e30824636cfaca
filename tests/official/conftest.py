import json

import pytest

from napo.commands.score import main


@pytest.fixture
def oracle(shared):
    """oracle(benchmark) -> (its folder, its cases)."""

    def of(benchmark):
        folder = shared / "benchmarks" / "oracle" / benchmark
        return folder, json.loads((folder / "expected.json").read_text())["cases"]

    return of


@pytest.fixture
def data(shared):
    """The official annotation files."""
    return shared / "benchmarks" / "data"


@pytest.fixture
def command(capsys):
    """command(*arguments) -> the object that `napo score` prints; asserts that it succeeds."""

    def run(*arguments):
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def refused(capsys):
    """refused(*arguments) -> the one line with which the command refuses its input."""

    def run(*arguments):
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as ended:
            status = ended.code
        out, err = capsys.readouterr()
        assert status == 2 and out == ""
        assert err.count("\n") == 1 and err.startswith("error: ") and "Traceback" not in err
        return err

    return run


@pytest.fixture
def write(tmp_path):
    """write(name, value) -> path of a file: lists as JSON lines if the name ends so, else as JSON; text as it is."""

    def to(name, value):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(value, str):
            path.write_text(value)
        elif name.endswith(".jsonl"):
            path.write_text("".join(json.dumps(row) + "\n" for row in value))
        else:
            path.write_text(json.dumps(value))
        return path

    return to
