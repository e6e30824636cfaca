"""Random command lines for every sub-command: done, or refused in one line with status 2. No work is done."""

import random
import signal

import pytest
from mutations import Tries

from napo.__main__ import main
from napo.commands import budget, command, evaluate, fetch, judge, launch, noise, run, score, serve, share
from napo.official.records import Result

MODULES = {"run": run, "noise": noise, "evaluate": evaluate, "score": score, "judge": judge, "budget": budget}
MODULES |= {"fetch": fetch, "share": share, "serve": serve, "launch": launch}
WORK = {  # what a command would do once its arguments are accepted
    "run": ["run_all"],
    "noise": ["check"],
    "evaluate": ["evaluate_model"],
    "score": ["score"],
    "judge": ["judge.review"],
    "budget": [],
    "fetch": ["fetch.fetch"],
    "share": ["write_adapter", "write_data", "push"],
    "serve": ["serve"],
    "launch": ["train_together"],
}
VALUES = ["", " ", "x", "-1", "0", "1", "3", "1e9", "99999999999999999999", "nan", "all", "None", "true", "é"]
VALUES += ["../../x", "/etc/passwd", "/dev/null", "/dev/zero/x", ".", ".."]
VALUES += ["~", "a\nb", "\x1b[31m", "x" * 5000]
VALUES += ["$(id)", "`id`", "'", '"', "{}", "[]", "rows=3", "rows=", "=", "rows=x=y", "data=.", "methods=nonsense", "-"]
VALUES += ["smoke", "desk", "paper", "cpu", "cuda", "junk", "napo_paper", "base", "00", "3", "07", "--", "--help=1"]
VALUES += ["vlind", "pope", "amber", "local", "endpoint", "read"]
VALUES += ["write", "data", "adapter", "http://[::1", "file:///x"]


def options(parser):
    """All option strings of a parser and of its sub-parsers, and the names of these."""
    found = []
    for action in parser._actions:
        found += [option for option in action.option_strings if option not in ("-h", "--help")]
        for name, sub in getattr(action, "choices", None).items() if hasattr(action, "_name_parser_map") else ():
            found += [name, *options(sub)]
    return found


def line(name, rng):
    known, given = options(MODULES[name].parser()), []
    for _ in range(rng.choice((0, 1, 2, 3, 3, 4, 6, 9))):
        kind = rng.random()
        if kind < 0.45:
            given += [rng.choice(known or ["-x"]), rng.choice(VALUES)]
        elif kind < 0.55:
            given.append(f"{rng.choice(known or ['-x'])}={rng.choice(VALUES)}")
        else:
            given.append(rng.choice([*VALUES, *known]))
    return given


def plausible(name, rng):
    """A right call, with up to two of its words replaced."""
    right = {
        "run": "02 03 --profile smoke -p rows=3 --execution-timeout 5",
        "noise": "pairs.parquet --model model --rows 5 --mask white --device cpu --batch-size 2",
        "evaluate": "vlind --model model --adapter adapter --data data --out out --device cpu --limit 3",
        "score": "vlind --predictions p.json --model-id m --min-votes 2 --style all",
        "judge": "endpoint --answers a.json --out o.json --model m --url http://127.0.0.1:9/v1",
        "budget": "--profile smoke --rows 10 all --device cpu",
        "fetch": "amber --to data --list",
        "share": "adapter --to out --profile smoke --method dpo_all --seed 0 --base 0",
        "serve": "--profile smoke --port 8899 --runs-dir runs",
        "launch": "--profile smoke --method dpo_all --seed 0 --device cpu",
    }[name].split()
    for _ in range(rng.choice((0, 1, 1, 2))):
        right[rng.randrange(len(right))] = rng.choice(VALUES)
    return right


def ended(arguments):
    """The exit status; --help ends by itself."""
    try:
        return main(arguments)
    except SystemExit as leaving:
        return leaving.code


@pytest.fixture
def no_work(monkeypatch, tmp_path):
    """The commands check their arguments and then do nothing; the working directory is empty."""
    for name, functions in WORK.items():
        for function in functions:
            holder, _, attribute = function.rpartition(".")
            place = getattr(MODULES[name], holder) if holder else MODULES[name]
            nothing = {"score": Result("vlind", {}), "launch": "folder"}.get(name, {})
            monkeypatch.setattr(place, attribute, lambda *_, nothing=nothing, **__: nothing)
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def attack(name, seeds, capsys, count):
    tries = Tries()
    for seed in seeds:
        rng = random.Random(f"{name} {seed}")
        arguments = (plausible if seed % 2 else line)(name, rng)
        tries.command(f"{name} {arguments!r:.200}", lambda given=arguments: ended([name, *given]), capsys)
    tries.done(f"command lines, {name}", count)


@pytest.mark.parametrize("name", command.COMMANDS)
def test_some_command_lines(name, no_work, capsys, count):
    attack(name, range(12), capsys, count)


@pytest.mark.parametrize("name", command.COMMANDS)
def test_many_command_lines(everything, name, no_work, capsys, count):
    attack(name, range(12, 60), capsys, count)


def test_every_command_is_attacked():
    assert MODULES.keys() == WORK.keys() == command.COMMANDS.keys()
