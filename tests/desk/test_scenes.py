"""Scenes, their splits and their pixels."""

import hashlib
import itertools

import numpy as np
import pytest

from napo.desk import scenes
from napo.desk.scenes import PRIOR, Scene, Thing, prior_scene, render, sample_scene, split_of

SCENE = Scene((Thing("frog", "red", 0), Thing("whale", "blue", 3)), "grass", seed=7)


def test_rendering_is_the_same_everywhere():
    pixels = np.asarray(render(SCENE))
    assert pixels.shape == (48, 48, 3) and pixels.dtype == np.uint8
    assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == "39e6005ea60af6aa"
    assert (np.asarray(render(SCENE)) == pixels).all()


def test_things_are_drawn_in_their_cells():
    blank = np.asarray(render(Scene((), "grass", seed=7))).astype(int)
    changed = (np.abs(np.asarray(render(SCENE)).astype(int) - blank) > 60).any(-1)
    quarters = [changed[:24, :24], changed[:24, 24:], changed[24:, :24], changed[24:, 24:]]
    assert [bool(quarter.any()) for quarter in quarters] == [True, False, False, True]


def test_shapes_differ():
    for one, other in itertools.combinations(scenes.MASKS.values(), 2):
        assert one.shape == other.shape == (20, 20) and (one != other).mean() > 0.1


def test_json_round_trip(rng):
    for counterfactual in (False, True, "uniform"):
        scene = sample_scene(rng, counterfactual)
        assert scenes.from_json(scenes.to_json(scene)) == scene


@pytest.mark.parametrize("split", [*scenes.SPLITS, "base"])
def test_sampled_scenes_lie_in_their_split(split, rng):
    allowed = {split, "train"} if split == "base" else {split}
    for counterfactual in (False, True):
        assert {split_of(sample_scene(rng, counterfactual, split)) for _ in range(30)} <= allowed


def test_reserved_pairs_are_met_in_their_split_only(rng):
    reserved = {split: set() for split in scenes.SPLITS}
    for split, found in reserved.items():
        for _ in range(150):
            found |= {scenes.reserved_for(thing) for thing in sample_scene(rng, True, split).things}
    assert reserved["train"] == reserved["heldout"] == {None}
    assert reserved["dev"] == {None, "dev"} and reserved["test"] == {None, "test"}


def test_counterfactual_scenes_break_the_prior_and_factual_ones_do_not(rng):
    for _ in range(100):
        scene = sample_scene(rng, False)
        assert all(thing.is_typical for thing in scene.things)
        assert scene.background in {PRIOR[thing.name].background for thing in scene.things}
        scene = sample_scene(rng, True)
        odd = not all(thing.is_typical for thing in scene.things)
        assert odd or any(scene.background != PRIOR[thing.name].background for thing in scene.things)


def test_prior_scene_by_hand():
    expected = prior_scene(SCENE, "whale")
    assert expected.background == "water"
    assert {(thing.name, thing.colour) for thing in expected.things} == {
        ("frog", "green"),
        ("whale", "blue"),
        ("duck", "yellow"),  # the whale's partner
    }
    assert prior_scene(SCENE, "duck").find("duck")  # an absent partner is expected when it is asked for
    assert not prior_scene(SCENE, "boot").find("boot")
