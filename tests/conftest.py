"""For all tests: no network, no display settings from outside, and the folder ../shared for those that need it."""

import os
from pathlib import Path

import pytest

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ.pop("MPLBACKEND", None)

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
if SHARED.is_dir():  # NLTK reads this once, when it is imported
    os.environ["NLTK_DATA"] = str(SHARED / "nltk_data")


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """../shared, beside the repository; without it the test is skipped, or fails if CI_REQUIRE_SHARED is set."""
    return shared_folder(SHARED, bool(os.environ.get("CI_REQUIRE_SHARED")))


def shared_folder(folder: Path, required: bool) -> Path:
    """`folder` if it is there; else skip, or fail if it is required."""
    if not folder.is_dir():
        (pytest.fail if required else pytest.skip)(f"needs the folder {folder.name}/ beside the repository")
    return folder
