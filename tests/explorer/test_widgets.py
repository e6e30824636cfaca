"""napo.explorer.widgets: knobs that agree, clamp and say so, and a picture, a description and a view that follow."""

import base64
import builtins
import math

import numpy as np
import pytest

from napo.explorer import panels, views, widgets
from napo.workshop.files import BadInput

ROWS = views.Rows(np.array([-1.0, 2.0, 3.0]), np.array([-0.1, 0.2, 0.3]), np.array([True, False, False]))


@pytest.fixture
def explorer():
    return widgets.Explorer()


@pytest.fixture
def knob():
    """A knob alone, which counts what it tells."""
    told = []
    knob = widgets.Knob("q", 0.5, *widgets.RANGES["q"], lambda: told.append(1))
    knob.told = told
    return knob


@pytest.mark.parametrize("part", ["slider", "field"])
@pytest.mark.parametrize("name", list(widgets.LABELS))
def test_slider_and_field_move_each_other_the_picture_and_the_words(explorer, name, part):
    knob, before, words = explorer.knobs[name], bytes(explorer.image.value), explorer.readout.value
    getattr(knob, part).value = 0.43
    assert knob.slider.value == knob.field.value == knob.value == getattr(explorer.view, name) == 0.43
    assert knob.note.value == "" and explorer.readout.value != words
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
    knob = widgets.Knob("q", 3.0, 0.01, 1.0, lambda: None)
    assert knob.slider.value == knob.field.value == knob.value == 1.0


def test_a_browsers_rounding_is_no_change(knob):
    knob.slider.value = 0.5000000000000001
    assert knob.value == 0.5 and knob.told == []
    knob.slider.value = 0.09999999999999999
    assert knob.value == knob.field.value == 0.1 and len(knob.told) == 1


def test_no_number_keeps_the_old_one(knob):
    knob.field.value = math.nan
    assert knob.value == 0.5 and knob.told == []


def test_one_change_tells_once(knob):
    knob.field.value = 3.0
    assert len(knob.told) == 1


@pytest.fixture
def drawn(monkeypatch):
    """Settings that were drawn, in order."""
    settings, look = [], views.look
    monkeypatch.setattr(views, "look", lambda **given: settings.append(given) or look(**given))
    return settings


def test_presets_set_several_knobs_and_draw_once(drawn):
    explorer = widgets.Explorer({widgets.LANGUAGE: ROWS, widgets.VISION: ROWS}, beta=0.7)
    explorer.presets.value = "Figure 4: vision bias, α = 0.01"
    assert len(drawn) == 2
    assert drawn[-1] == {"q": 0.5, "beta": 0.1, "alpha": 0.01, "flip_rate": 0.2, "rows": ROWS}
    assert explorer.batch.value == widgets.VISION
    explorer.knobs["q"].slider.value = 0.2
    assert explorer.presets.value == widgets.NO_PRESET and len(drawn) == 3


def test_every_preset_is_within_range_and_names_a_figure():
    for name, values in widgets.PRESETS.items():
        assert name.startswith("Figure ")
        for knob in values.keys() - {"rows"}:
            low, high = widgets.RANGES[knob]
            assert low <= values[knob] <= high
    assert {values["q"] for values in widgets.PRESETS.values() if "q" in values} >= {0.1, 0.3, 0.5, 0.7, 0.9}


def test_reset_goes_back_to_the_first_values_and_draws_once(drawn):
    explorer = widgets.Explorer({"a": ROWS, "b": None}, q=0.3)
    explorer.presets.value = "Figure 3: q = 0.9"
    explorer.batch.value = "b"
    explorer.knobs["flip_rate"].field.value = 0.4
    before = len(drawn)
    explorer.reset.click()
    assert len(drawn) == before + 1 and drawn[-1] == widgets.START | {"q": 0.3, "rows": ROWS}
    assert (explorer.presets.value, explorer.batch.value) == (widgets.NO_PRESET, "a")


def test_q_can_be_taken_from_the_rule(explorer):
    explorer.set({"alpha": 0.2})
    rule = explorer.view.rule
    explorer.follow.click()
    assert explorer.knobs["q"].value == round(rule, 2) != 0.5


def test_other_rows_are_drawn_when_they_are_chosen(drawn):
    explorer = widgets.Explorer({"a": ROWS, "b": None})
    before = bytes(explorer.image.value)
    explorer.batch.value = "b"
    assert drawn[-1]["rows"] is None and explorer.image.value != before


def test_the_display_carries_the_widget_and_its_present_picture(explorer):
    explorer.knobs["beta"].slider.value = 0.7
    bundle = explorer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert base64.b64decode(bundle["image/png"]) == explorer.image.value == panels.Board().png(explorer.view)


def test_each_slider_has_a_labelled_field_beside_it(explorer):
    for name, label in widgets.LABELS.items():
        slider, field, note = explorer.knobs[name].row.children
        assert slider.description == label and field.description == f"{label} ="
        assert f"napo-{name}-note" in note._dom_classes


def test_without_ipywidgets_the_message_names_the_extra(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "ipywidgets":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(BadInput, match=r"pip install 'napo\[notebooks\]'"):
        widgets.Explorer()
