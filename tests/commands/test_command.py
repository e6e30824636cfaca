"""One command with sub-commands: what it imports, what it lists, and its exit statuses."""

import os
import re
import subprocess
import sys

import pytest

from napo.__main__ import main as napo
from napo.commands import command
from napo.workshop.files import BadInput

HEAVY = {"torch", "transformers", "numpy", "pandas", "matplotlib", "papermill", "huggingface_hub", "requests"}


@command.exit_status
def main(arguments=None):
    if arguments == ["bad"]:
        raise BadInput("rows.parquet: row 3\n  has no answer")
    if arguments == ["broken"]:
        raise KeyError("a bug")
    if arguments == ["interrupted"]:
        raise KeyboardInterrupt
    if arguments == ["full"]:
        open("/dev/full", "w").write("x" * 10**6)
    return 1 if arguments == ["failed"] else None


def test_statuses(capsys):
    assert [main(), main(["failed"]), main(["bad"])] == [0, 1, 2]
    assert capsys.readouterr().err == "error: rows.parquet: row 3 has no answer\n"
    assert main(["interrupted"]) == 130
    assert capsys.readouterr().err == "stopped: run the same command again to go on\n"
    assert main(["full"]) == 2
    assert capsys.readouterr().err == "error: No space left on device; put that right and run the same command again\n"
    with pytest.raises(KeyError):
        main(["broken"])


def test_help_lists_every_command_in_one_line(capsys):
    assert napo(["--help"]) == 0
    listed = re.findall(r"^  (\w+) +\w.*$", capsys.readouterr().out, re.M)
    assert listed == "run noise evaluate score judge budget fetch share serve launch".split()


@pytest.mark.parametrize("arguments", [[], ["traim"]])
def test_an_unknown_command_is_one_line(arguments, capsys):
    assert napo(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and "use one of run, noise, evaluate" in said


@pytest.mark.parametrize("name", command.COMMANDS)
def test_each_command_has_its_help_and_refuses_a_wrong_call_in_one_line(name, capsys):
    with pytest.raises(SystemExit) as ended:
        napo([name, "--help"])
    assert ended.value.code == 0 and f"usage: napo {name}" in capsys.readouterr().out
    assert napo([name, "--nonsense"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1


@pytest.mark.parametrize(
    "imported",
    ["napo.__main__", *(f"napo.commands.{name}" for name in ("run", "score", "judge", "fetch", "serve"))],
)
def test_a_command_imports_only_what_it_needs(root, imported):
    heavy = HEAVY - ({"requests"} if imported.endswith(("judge", "fetch")) else set())
    script = f"import sys, {imported}; print({heavy} & set(sys.modules))"
    said = subprocess.check_output([sys.executable, "-c", script], text=True, cwd=root)
    assert said.strip() == "set()"


def test_the_overrides_of_a_profile_are_those_that_profiles_know():
    asked = command.parser("run")
    command.add_profile(asked, "desk", command.OVERRIDES)
    given = ["--profile", "paper", "--model", "m", "--rows", "7", "--report-to", "wandb", "--methods", "napo_paper"]
    profile = command.asked_profile(asked.parse_args(given))
    assert (profile.name, profile.model, profile.rows, profile.report_to) == ("paper", "m", 7, ("wandb",))
    assert profile.methods == ("base", "napo_paper")


def test_the_package_is_a_command(root):
    ended = subprocess.run([sys.executable, "-m", "napo", "run", "--profile", "dekc"], cwd=root, capture_output=True)
    assert (ended.returncode, ended.stdout) == (2, b"") and ended.stderr.startswith(b"error: unknown profile 'dekc'")


def test_help_prints_where_the_output_is_ascii(root):
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    said = subprocess.check_output([sys.executable, "-m", "napo", "--help"], cwd=root, env=environment, text=True)
    assert "usage: napo COMMAND \\u2026" in said


@pytest.mark.parametrize("name", ["../../x", "a/b", "", ".", "..", ".hidden", "a\\b", "a\nb", "\x1b[31m", "x" * 201])
def test_a_name_that_is_no_plain_one_is_refused(name):
    with pytest.raises(BadInput, match="cannot name a folder") as refused:
        command.plain_name(name, "--label")
    assert len(str(refused.value)) < 300 and str(refused.value).isprintable()
    assert command.plain_name("my model-b0_s1.5", "--label") == "my model-b0_s1.5"


@pytest.mark.parametrize("name", ["run", "budget", "launch"])
def test_an_unknown_device_is_refused(name, capsys):
    assert napo([name, "--device", "junk"]) == 2
    assert "invalid choice: 'junk'" in capsys.readouterr().err
