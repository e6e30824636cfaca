"""A benchmark's data folder: finds files and images by name, wherever below the folder they lie."""

import functools
import os
from pathlib import Path

from napo.official.records import read_json
from napo.workshop.files import BadInput, shown

ADAPTED = "adapted.json"
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")


class DataFolder:
    """Files below a data folder, by name. Of several files with one name the one nearest to the top counts.

    read  the files that `path` returned so far: what a benchmark is made from
    """

    def __init__(self, name, folder):
        self.name, self.folder, self.read, self.missing = name, Path(folder), [], []

    @functools.cached_property
    def by_name(self):
        """File name -> path. Follows links to folders: images are often kept elsewhere."""
        # Two benchmarks also need COCO's files, which `make data` puts into coco/ beside them.
        coco = [self.folder.parent / "coco"] if self.name in ("objhal", "pope") else []
        found, seen, places = {}, set(), []
        for root in (self.folder, *coco):
            for place, folders, names in os.walk(root, followlinks=True):
                if (real := os.path.realpath(place)) in seen:  # a circle of links
                    folders.clear()
                else:
                    seen.add(real)
                    places.append((place, names))
        for place, names in sorted(places, key=lambda entry: entry[0].count(os.sep)):
            for name in names:
                found.setdefault(name, Path(place, name))
        return found

    @functools.cached_property
    def adapted(self):
        """Content of adapted.json; {} for official data."""
        return read_json(self.path(ADAPTED), dict) if ADAPTED in self.by_name else {}

    def path(self, *names):
        """The first of these files that exists. Raises BadInput if none does."""
        for name in names:
            if name in self.by_name:
                self.read.append(self.by_name[name])
                return self.by_name[name]
        raise BadInput(f"no {' or '.join(names)} below {shown(self.folder)}: run `make data` or give another by --data")

    def image(self, *names):
        """The first image with one of these names, whatever its ending; noted as missing if there is none."""
        stems = [Path(name).stem if name.lower().endswith(IMAGE_ENDINGS) else name for name in names]
        for image in (stem + ending for stem in stems for ending in IMAGE_ENDINGS):
            if image in self.by_name:
                return self.by_name[image]
        self.missing.append(names[0])
        return self.folder / names[0]

    def image_in(self, folder, stem):
        """The image `stem` of one folder, whatever its ending; noted as missing if there is none."""
        inside = Path(os.path.normpath(folder / stem)).is_relative_to(os.path.normpath(self.folder))
        for ending in IMAGE_ENDINGS if inside and "\0" not in stem else ():
            if (folder / (stem + ending)).is_file():
                return folder / (stem + ending)
        self.missing.append(f"{folder.name}/{stem}")
        return folder / stem

    def check_images(self):
        """Raises BadInput if an image is missing."""
        if self.missing:
            count = f"{self.name}: {len(set(self.missing))} images are missing below {shown(self.folder)}"
            remedy = "put the benchmark's images there (`make data` says where they are)"
            raise BadInput(f"{count}, the first is {self.missing[0]}; {remedy}")
