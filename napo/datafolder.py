"""A folder of official files that somebody fetched: files and images by name, wherever below it they lie."""

import functools
import json
import os
from pathlib import Path

from napo.artifacts import BadInput, shown

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")


class DataFolder:
    """The files below a data folder, by name; of several with one name the one nearest to the top counts.

    also  folders that are looked through after it, if they are there: COCO's files serve two benchmarks
    """

    def __init__(self, folder, *also):
        self.folder, self.also, self.missing = Path(folder), also, []

    @functools.cached_property
    def by_name(self):
        """File name -> path. Links to folders are followed: images are often kept elsewhere."""
        found = {}
        for root in (self.folder, *self.also):
            places = sorted(os.walk(root, followlinks=True), key=lambda entry: entry[0].count(os.sep))
            for place, _, names in places:
                for name in names:
                    found.setdefault(name, Path(place, name))
        return found

    def path(self, *names):
        """The first of these files that is there. Raises BadInput if none is."""
        for name in names:
            if name in self.by_name:
                return self.by_name[name]
        raise BadInput(f"no {' or '.join(names)} below {shown(self.folder)}: run `make data` or give another by --data")

    def image(self, *names):
        """The first image there with one of these names, whatever its ending; else it is noted as missing."""
        for name in names:
            stem = Path(name).stem if name.lower().endswith(IMAGE_ENDINGS) else name
            for ending in IMAGE_ENDINGS:
                if stem + ending in self.by_name:
                    return self.by_name[stem + ending]
        self.missing.append(names[0])
        return self.folder / names[0]

    def image_in(self, folder, stem):
        """The image `stem` of one folder, whatever its ending; else it is noted as missing."""
        for ending in IMAGE_ENDINGS:
            if (folder / (stem + ending)).is_file():
                return folder / (stem + ending)
        self.missing.append(str((folder / stem).relative_to(self.folder)))
        return folder / stem

    def check_images(self, name):
        """Raises BadInput if an image that the benchmark asks about is not there."""
        if self.missing:
            raise BadInput(
                f"{name}: {len(set(self.missing))} images are missing below {shown(self.folder)}, the first is "
                f"{self.missing[0]}; put the benchmark's images there (the licences differ: see `make data`)"
            )


def read_records(path):
    """Rows of a JSON array or of JSON lines, whatever the ending says. Raises BadInput that names the line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if text.lstrip().startswith("["):
            return json.loads(text)
        return [_line(path, number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInput(f"{shown(path)} cannot be read ({error}): get it again") from error


def _line(path, number, line):
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise BadInput(f"{shown(path)}, line {number}: not JSON ({error}); get the file again") from error
