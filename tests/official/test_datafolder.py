"""A data folder finds files below it, whatever links and names say."""

import pytest

from napo.official.datafolder import DataFolder
from napo.workshop.files import BadInput


def test_files_are_found_through_links_and_circles_end(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/x.png").write_bytes(b"x")
    data = tmp_path / "data"
    (data / "deep/er").mkdir(parents=True)
    (data / "images").symlink_to(tmp_path / "elsewhere")
    for name in "abc":  # without an end to circles: 3 ** 40 folders
        (data / name).symlink_to(data)
    for place in ("y.json", "deep/er/y.json"):
        (data / place).write_text("{}")
    files = DataFolder("amber", data)
    assert files.image("x") == data / "images/x.png" and files.path("y.json") == data / "y.json"


@pytest.mark.parametrize("stem", ["../../secret", "/etc/secret", "a/../../../secret", "\0"])
def test_a_picture_outside_is_missing(tmp_path, stem):
    (tmp_path / "secret.png").write_bytes(b"x")
    (tmp_path / "data/images").mkdir(parents=True)
    files = DataFolder("vlind", tmp_path / "data")
    files.image_in(tmp_path / "data/images", stem.replace("/etc", str(tmp_path)))
    with pytest.raises(BadInput, match="1 images are missing"):
        files.check_images()
