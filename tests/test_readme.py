"""README, CONTRIBUTING and CITATION.cff: their code runs, their commands, options, variables and links exist."""

import itertools
import math
import re

import pytest
import yaml
from photographs import write_upstream
from tiny_models import save_tiny_llava

import napo
from napo.__main__ import main

DOCS = ("paper", "own-data", "benchmarks", "how-it-works", "results", "desk-world")
PAGES = ("README.md", "CONTRIBUTING.md", *(f"docs/{name}.md" for name in DOCS))
ROWS = 6


def blocks(root, language, page="README.md"):
    """The fenced blocks of one language on a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", (root / page).read_text(encoding="utf-8"), re.M | re.S)


def commands(root):
    """Every command line in the pages' sh blocks and tables, without comments."""
    text = "\n".join((root / page).read_text(encoding="utf-8") for page in PAGES)
    lines = [line for page in PAGES for block in blocks(root, "sh", page) for line in block.splitlines()]
    return [line.partition("#")[0].strip() for line in lines] + re.findall(r"`((?:make|python -m) [^`]+)`", text)


def test_own_data_and_model_in_a_few_lines(root, tmp_path, monkeypatch):
    """The block as it stands, but for the two names, the number of rows and the device."""
    (block,) = [block for block in blocks(root, "python", "docs/own-data.md") if "napo.Kit(" in block]
    assert len(block.splitlines()) <= 10
    model, data = save_tiny_llava(tmp_path / "model"), write_upstream(tmp_path / "mine.parquet", 2 * ROWS)
    for written, ours in (
        ('"path/or/hub-id"', repr(str(model))),
        ('"my_rows.parquet"', repr(str(data))),
        ("rows=1000", f'rows={ROWS}, device="cpu", runs_dir={str(tmp_path / "runs")!r}'),
    ):
        assert block.count(written) == 1
        block = block.replace(written, ours)
    names = {}
    exec(block, names)
    assert (names["adapter"] / "adapter_model.safetensors").is_file() and tmp_path in names["adapter"].parents
    scores = names["scores"]
    assert len(scores) and scores["value"].notna().all() and scores["example_id"].nunique() == ROWS


def test_readme_shows_the_same_lines_for_the_desk_world(root):
    """Its calls are those of the page on own data, which the test above runs."""
    (short,) = [block for block in blocks(root, "python") if "napo.Kit(" in block]
    (long,) = [block for block in blocks(root, "python", "docs/own-data.md") if "napo.Kit(" in block]
    calls = [re.findall(r"kit\.\w+\([^)]*\)", block) for block in (short, long)]
    assert calls[0] == calls[1] and len(calls[0]) == 4


def test_losses_for_any_trainer(root):
    (block,) = [block for block in blocks(root, "python", "docs/own-data.md") if "napo_loss" in block]
    names = {}
    exec(block, names)
    p = (0.1 * names["margin"]).sigmoid()
    q = 1 - (0.5 * 0.1 * names["mean_margin"].mean()).sigmoid()
    by_hand = (-p.log().mean() + ((1 - p**q) / q).mean()) / 2  # equal margins, equal weights
    assert math.isclose(names["loss"].item(), by_hand.item(), rel_tol=1e-5)


def test_make_is_asked_for_targets_and_variables_that_it_has(root):
    makefile = (root / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.M))
    variables = set(re.findall(r"^([A-Z_]+) \??=", makefile, re.M))
    asked = [line.split()[1:] for line in commands(root) if line.startswith("make ")]
    assert len(asked) > 10
    for words in asked:
        assert {word for word in words if word.isalpha()} <= targets, words
        assert {word.partition("=")[0] for word in words if "=" in word} <= variables, words


def test_commands_have_the_options_that_they_are_shown_with(root, capsys):
    asked = [line.split()[3:] for line in commands(root) if line.startswith("python -m napo ")]
    assert len(asked) > 12
    for name, *words in asked:
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        before = itertools.takewhile(lambda word: not word.startswith("-"), words)
        if not options:
            continue
        with pytest.raises(SystemExit) as ended:
            main([name, *before, "--help"])
        assert ended.value.code == 0
        known = set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out))
        assert options <= known, (name, words)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(root, page):
    text = re.sub(r"^```.*?^```", "", (root / page).read_text(encoding="utf-8"), flags=re.M | re.S)
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert not [link for link in links if link and not (root / page).parent.joinpath(link).exists()]


def test_citation(root):
    """What CFF 1.2.0 asks for, this package's version and licence, and the paper as README cites it."""
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys() and citation["cff-version"] == "1.2.0"
    assert citation["version"] == napo.__version__ and citation["license"] == "Apache-2.0"
    (paper,) = citation["references"]
    (entry,) = blocks(root, "bibtex")
    authors = " and ".join(f"{person['family-names']}, {person['given-names']}" for person in paper["authors"])
    for written in (paper["title"], authors, f"{paper['start']}--{paper['end']}", str(paper["year"])):
        assert f"{{{written}}}" in entry
