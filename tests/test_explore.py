"""napo.explore: knobs that agree, clamp and say so, and a picture that follows."""

import base64
import builtins
import math

import numpy as np
import pytest

from napo import explore, losses
from napo.artifacts import BadInput


@pytest.fixture
def explorer():
    return explore.box_cox_explorer()


@pytest.fixture
def knob():
    """The explorer's knob for q, without a picture."""
    return explore.Knob("q", 0.5, *explore.Q_RANGE, 0.01, lambda: None)


def test_the_curves_are_the_formulas_and_their_slopes():
    margin, values, pulls = explore.box_cox_curves(losses, q=0.3, beta=0.5, margin_range=6)
    p = 1 / (1 + np.exp(-0.5 * margin.astype(float)))
    np.testing.assert_allclose(values["q"], (1 - p**0.3) / 0.3, rtol=1e-5)
    np.testing.assert_allclose(pulls["q"], -0.5 * p**0.3 * (1 - p), rtol=1e-5)
    np.testing.assert_allclose(values["BCE"], -np.log(p), rtol=1e-5)
    np.testing.assert_allclose(pulls["MAE"], -0.5 * p * (1 - p), rtol=1e-5)


@pytest.mark.parametrize("part", ["slider", "field"])
@pytest.mark.parametrize("name", ["q", "beta"])
def test_slider_and_field_move_each_other_and_the_picture(explorer, name, part):
    knob, before = explorer.knobs[name], bytes(explorer.image.value)
    getattr(knob, part).value = 0.83
    assert knob.slider.value == knob.field.value == knob.value == 0.83 and knob.note.value == ""
    after = bytes(explorer.image.value)
    assert after != before and after.startswith(b"\x89PNG")


@pytest.mark.parametrize(("typed", "clamped"), [(7.0, 1.0), (-2.0, 0.01), (0.0, 0.01), (math.inf, 1.0)])
def test_a_value_outside_is_clamped_and_says_so(knob, typed, clamped):
    knob.field.value = typed
    assert knob.slider.value == knob.field.value == knob.value == clamped
    assert knob.note.value == f"{typed:g} is outside 0.01 … 1: set to {clamped:g}"
    knob.field.value = 0.4
    assert knob.note.value == ""


def test_clamping_to_the_present_value_still_shows_it_in_the_field(knob):
    knob.field.value = 1.0
    knob.field.value = 5.0
    assert knob.field.value == 1.0 and "5 is outside" in knob.note.value


def test_a_first_value_outside_is_clamped_too():
    knob = explore.Knob("q", 3.0, 0.01, 1.0, 0.01, lambda: None)
    assert knob.slider.value == knob.field.value == knob.value == 1.0


def test_one_change_draws_once(explorer):
    calls = []
    knob = explore.Knob("q", 0.5, 0.01, 1.0, 0.01, lambda: calls.append(1))
    knob.field.value = 3.0
    assert len(calls) == 1
    before = explorer.image.value
    explorer.knobs["q"].slider.value = 0.2
    assert explorer.image.value != before


def test_the_display_carries_the_widget_and_its_present_picture(explorer):
    explorer.knobs["beta"].slider.value = 0.7
    bundle = explorer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert base64.b64decode(bundle["image/png"]) == explorer.image.value


def test_without_ipywidgets_the_message_names_the_extra(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "ipywidgets":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(BadInput, match=r"pip install 'napo\[notebooks\]'"):
        explore.box_cox_explorer()
