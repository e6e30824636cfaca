"""Every setting of the paper's profile stands in the table with its source, and the page shows the table as it is."""

import re

import pytest

from napo.profiles import PROFILES
from napo.workshop.files import BadInput
from tools import paper_settings

# Settings of no consequence for the paper profile: names, the desk world's, and how work is spread.
WITHOUT_A_SOURCE = set(
    "name bases flip_rates noise_kinds noisy_methods noisy_seeds device workers threads report_to".split()
) | {"evaluation.seed", "evaluation.data"}


def test_every_setting_has_a_source_or_a_reason_to_be_left_out():
    found = paper_settings.leaves(PROFILES["paper"])
    assert {path for path, (_, about) in found.items() if not about} == WITHOUT_A_SOURCE
    assert {about["source"] for _, about in found.values() if about} == {"paper", "authors", "ours"}


def test_the_page_shows_the_table_as_it_is(root):
    page = (root / "docs" / "paper.md").read_text()
    assert paper_settings.placed(page) == page, "run: python -m tools.paper_settings docs/paper.md"


def test_values_are_the_profiles():
    lines = {line[0]: line for line in paper_settings.rows()}
    assert lines["β"][1] == "0.1" and lines["learning rate"][1] == "5e-05"
    assert lines["LoRA rank"][1:4] == ["64", "16", "ours"]
    assert lines["preference pairs"][1] == "`openbmb/RLAIF-V-Dataset`"


def test_files_and_profiles_that_the_page_names_are_there(root):
    page = (root / "docs" / "paper.md").read_text()
    for file in set(re.findall(r"(?:configs|benchmarks|tests|napo)/[\w./]+\w", page)):
        assert (root / file).exists(), file
    assert set(re.findall(r"PROFILE=(\w+)", page)) <= set(PROFILES)


def test_a_page_without_a_place_is_refused(tmp_path):
    with pytest.raises(BadInput, match="no place for the table"):
        paper_settings.placed("nothing here")
    page = tmp_path / "page.md"
    page.write_text(f"a\n{paper_settings.BEGIN}\nold\n{paper_settings.END}\nb\n")
    paper_settings.main([str(page)])
    text = page.read_text()
    assert text.startswith("a\n") and text.endswith("\nb\n") and "old" not in text and "learning rate" in text
