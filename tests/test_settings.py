"""Every setting of the paper's profile stands in the table with its source, and the page shows the table as it is."""

import re

import pytest

from napo import settings
from napo.artifacts import BadInput
from napo.profiles import PROFILES


def test_every_setting_has_a_source_or_a_reason_to_be_left_out():
    known = set(settings.leaves(PROFILES["paper"]))
    assert known == set(settings.SOURCES) | set(settings.ELSEWHERE)
    assert not set(settings.SOURCES) & set(settings.ELSEWHERE)
    assert {source for _, source, _ in settings.SOURCES.values()} == {"paper", "authors", "ours"}


def test_the_page_shows_the_table_as_it_is(root):
    page = (root / "docs" / "paper.md").read_text()
    assert settings.placed(page) == page, "run: python -m napo.settings docs/paper.md"
    assert "has not been run" in page.lower() and "No CUDA machine was at hand" in page


def test_values_are_the_profiles(root):
    lines = {line.split(" | ")[0]: line for line in settings.table().splitlines()}
    assert "| β | 0.1 |" in lines["| β"] + " |" and "5e-05" in lines["| learning rate"]
    assert re.search(r"LoRA rank \| 64 \| 16 \| ours", settings.table())
    assert "`openbmb/RLAIF-V-Dataset`" in lines["| preference pairs"]


def test_commands_of_the_page_are_there(root):
    page = (root / "docs" / "paper.md").read_text()
    for module in set(re.findall(r"-m napo\.(\w+)", page)):
        assert (root / "napo" / f"{module}.py").exists(), module
    for file in set(re.findall(r"(?:configs|benchmarks|tests)/[\w.]+", page)):
        assert (root / file).exists(), file
    for profile in set(re.findall(r"PROFILE=(\w+)", page)):
        assert profile in PROFILES


def test_a_page_without_a_place_is_refused(tmp_path, capsys):
    with pytest.raises(BadInput, match="no place for the table"):
        settings.placed("nothing here")
    (tmp_path / "page.md").write_text(f"a\n{settings.BEGIN}\nold\n{settings.END}\nb\n")
    assert settings.main([str(tmp_path / "page.md")]) == 0
    text = (tmp_path / "page.md").read_text()
    assert text.startswith("a\n") and text.endswith("\nb\n") and "old" not in text and "learning rate" in text
    assert settings.main([str(tmp_path / "none.md")]) == 2 and "error:" in capsys.readouterr().err
