"""Scenes: one to three coloured things on a 2x2 grid over a background, drawn at 48x48 pixels, and their prior.

The prior gives every class a typical colour, a typical background and a partner that usually stands beside it. A
factual scene follows the prior; a counterfactual one breaks the colour, the background, or both. The scene alone
decides its split, so splits are disjoint by construction. Some counterfactual (class, colour) pairs exist in one split
only.
"""

import hashlib
import json
import tomllib
from dataclasses import asdict, dataclass, replace
from importlib import resources

import numpy as np
from PIL import Image

WORLD = tomllib.loads(resources.files(__package__).joinpath("world.toml").read_text(encoding="utf-8"))
COLOURS, BACKGROUNDS = WORLD["colours"], WORLD["backgrounds"]  # name -> RGB
CELLS = ("top left", "top right", "bottom left", "bottom right")


@dataclass(frozen=True)
class Prior:
    """What is usual for a class, and its shape: ten lines of ten squares."""

    colour: str
    background: str
    partner: str
    shape: str


PRIOR = {name: Prior(**usual) for name, usual in WORLD["classes"].items()}
CLASSES = tuple(PRIOR)

SPLITS = ("train", "heldout", "dev", "test")
SPLIT_SHARES = (0.64, 0.12, 0.12, 0.12)
# Colours that many places after the typical one (cyclically) are reserved: no other split has that (class, colour)
# pair. Only the base's pre-training, where it learns to see, meets them too, in scenes of its own (split "base").
RESERVED_STEP = {4: "dev", 5: "test"}

IMAGE_SIZE, CELL_SIZE, GLYPH_SCALE = 48, 24, 2  # pixels; a glyph is 10 x 10 squares of 2 x 2 pixels
PIXEL_NOISE = 6.0  # standard deviation, of 255
THING_COUNTS = (0.35, 0.4, 0.25)  # shares of scenes with one, two and three things
PARTNER_SHARE = 0.7  # of the second things that are the first one's partner


@dataclass(frozen=True)
class Thing:
    """An object: its class, colour and grid cell (0..3 in reading order)."""

    name: str
    colour: str
    cell: int

    @property
    def is_typical(self):
        return self.colour == PRIOR[self.name].colour

    @property
    def where(self):
        return CELLS[self.cell]


@dataclass(frozen=True)
class Scene:
    """Things in reading order on a background; `seed` moves them by up to 4 pixels and draws the pixel noise."""

    things: tuple[Thing, ...]
    background: str
    seed: int = 0

    def find(self, name):
        """The thing of that class, or None."""
        return next((thing for thing in self.things if thing.name == name), None)

    @property
    def names(self):
        return frozenset(thing.name for thing in self.things)

    @property
    def absent(self):
        """Classes that are not there."""
        return [name for name in CLASSES if name not in self.names]

    def value(self, about, name):
        """The "colour" of the thing of that class, its cell ("where"), or the scene's "background"."""
        return self.background if about == "background" else getattr(self.find(name), about)


def to_json(scene):
    return json.dumps(asdict(scene), separators=(",", ":"))


def from_json(text):
    fields = json.loads(text)
    return Scene(tuple(Thing(**thing) for thing in fields["things"]), fields["background"], fields["seed"])


# ---- splits ---------------------------------------------------------------------------------------------------------


def reserved_for(thing):
    """The only split with this (class, colour) pair, or None if several may have it."""
    colours = list(COLOURS)
    step = (colours.index(thing.colour) - colours.index(PRIOR[thing.name].colour)) % len(colours)
    return RESERVED_STEP.get(step)


def split_of(scene):
    """The split of a scene: one of SPLITS, "base" (pre-training only) or None. Its `seed` does not matter.

    A hash of the scene names a split. A scene with another split's reserved pairs has none, or "base" instead of
    "train".
    """
    digest = hashlib.sha256(to_json(replace(scene, seed=0)).encode()).digest()
    share = int.from_bytes(digest[:4], "big") / 2**32
    split = SPLITS[int(np.searchsorted(np.cumsum(SPLIT_SHARES)[:-1], share, side="right"))]
    reserved = {reserved_for(thing) for thing in scene.things} - {None}
    if reserved <= {split}:
        return split
    return "base" if split == "train" else None


def sample_scene(rng, counterfactual, split="train"):
    """A random scene of one split ("base": of "train" or "base").

    counterfactual  False: typical colours, and the first class's typical background. True: the first thing's colour,
                    the background, or both are untypical (a third each). "uniform": random colours and background.
    """
    wanted = ("train", "base") if split == "base" else (split,)
    while True:
        scene = _draw_scene(rng, counterfactual, split)
        if split_of(scene) in wanted:
            return scene


def _draw_scene(rng, counterfactual, split):
    names = _draw_names(rng)
    colours = {name: PRIOR[name].colour for name in names}
    background = PRIOR[names[0]].background
    if counterfactual == "uniform":
        colours = {name: rng.choice(_allowed_colours(name, split)).item() for name in names}
        background = rng.choice(list(BACKGROUNDS)).item()
    elif counterfactual:
        broken = rng.integers(3)  # 0 colour, 1 background, 2 both
        if broken != 1:
            for name in names:
                if name == names[0] or rng.random() < 0.5:
                    colours[name] = rng.choice(_odd_colours(name, split)).item()
        if broken != 0:
            background = rng.choice([b for b in BACKGROUNDS if b != background]).item()
    return scattered([(name, colours[name]) for name in names], background, rng)


def scattered(coloured, background, rng):
    """The Scene of some (class, colour) pairs in random cells, with a random seed."""
    cells = rng.permutation(len(CELLS))[: len(coloured)].tolist()
    things = [Thing(*pair, cell) for pair, cell in zip(coloured, cells, strict=True)]
    return _ordered(things, background, int(rng.integers(2**31)))


def _ordered(things, background, seed):
    return Scene(tuple(sorted(things, key=lambda thing: thing.cell)), background, seed)


def _draw_names(rng):
    names = [rng.choice(CLASSES).item()]
    while len(names) <= rng.choice(len(THING_COUNTS), p=THING_COUNTS):
        partner = PRIOR[names[0]].partner
        name = partner if len(names) == 1 and rng.random() < PARTNER_SHARE else rng.choice(CLASSES).item()
        names += [name] if name not in names else []
    return names[:3]


def _odd_colours(name, split):
    """Untypical colours of a class: the reserved one in dev and test, those that are not reserved elsewhere."""
    home = split if split in RESERVED_STEP.values() else None
    return [c for c in COLOURS if c != PRIOR[name].colour and reserved_for(Thing(name, c, 0)) == home]


def _allowed_colours(name, split):
    return [c for c in COLOURS if split == "base" or reserved_for(Thing(name, c, 0)) in (None, split)]


# ---- the prior world ------------------------------------------------------------------------------------------------


def prior_scene(scene, subject="", with_partner=True):
    """The scene as the prior expects it when asked about `subject` (a class, or "" for the whole picture).

    The main thing is the subject, or the first thing if the subject is absent. All colours are typical, the background
    is typical of the main thing, and a partner stands in the first free cell: the subject itself if it is the absent
    partner of a thing in the scene, else the main thing's partner.
    """
    main = subject if subject in scene.names else scene.things[0].name
    things = [replace(thing, colour=PRIOR[thing.name].colour) for thing in scene.things]
    partner = subject if subject in missing_partners(scene) else PRIOR[main].partner
    if with_partner and partner not in scene.names:
        free = min(set(range(len(CELLS))) - {thing.cell for thing in things})
        things.append(Thing(partner, PRIOR[partner].colour, free))
    return _ordered(things, PRIOR[main].background, scene.seed)


def missing_partners(scene):
    """Absent classes that are the partner of a thing in the scene."""
    return [PRIOR[thing.name].partner for thing in scene.things if PRIOR[thing.name].partner not in scene.names]


# ---- drawing --------------------------------------------------------------------------------------------------------


def render(scene):
    """The scene as a 48x48 RGB PIL image; the same scene gives the same pixels on every machine."""
    return Image.fromarray(render_array(scene))


def render_array(scene):
    """The scene's pixels, (48, 48, 3) uint8."""
    rng = np.random.default_rng(scene.seed)
    pixels = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3))
    pixels[:] = BACKGROUNDS[scene.background]
    for thing in scene.things:
        mask = MASKS[thing.name]
        row, column = divmod(thing.cell, 2)
        top, left = rng.integers(0, CELL_SIZE - len(mask) + 1, 2) + (row * CELL_SIZE, column * CELL_SIZE)
        pixels[top : top + len(mask), left : left + len(mask)][mask] = COLOURS[thing.colour]
    noise = rng.standard_normal(pixels.shape, dtype=np.float32) * PIXEL_NOISE
    return np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)


def _mask(shape):
    """(20, 20) bool from ten lines of ten characters."""
    squares = np.array([[mark == "#" for mark in line] for line in shape.split()])
    return squares.repeat(GLYPH_SCALE, 0).repeat(GLYPH_SCALE, 1)


MASKS = {name: _mask(PRIOR[name].shape) for name in CLASSES}
