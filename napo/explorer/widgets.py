"""Sliders and buttons for the knobs of NaPO. `views.py` computes, `panels.py` draws."""

import base64

from napo.explorer import panels, views
from napo.workshop.files import BadInput

RANGES = {"q": (0.01, 1.0), "beta": (0.01, 1.0), "alpha": (0.01, 1.0), "flip_rate": (0.0, 0.45)}
LABELS = {"q": "q", "beta": "β", "alpha": "α", "flip_rate": "swap rate"}
START = {"q": 0.5, "beta": 0.1, "alpha": 0.5, "flip_rate": 0.2}
STEP = 0.01
TOY = "the toy's pairs"
NO_PRESET = ""
LANGUAGE, VISION = "language-biased, mean margin", "vision-biased, sum margin"
PRESETS = {
    "Figure 3: BCE end (DPO)": {"q": 0.01},
    **{f"Figure 3: q = {q:g}": {"q": q} for q in (0.1, 0.3, 0.5, 0.7, 0.9)},
    "Figure 3: MAE end": {"q": 1.0},
    "Figure 4: language bias, α = 0.5": {"beta": 0.1, "alpha": 0.5, "rows": LANGUAGE},
    "Figure 4: vision bias, α = 0.01": {"beta": 0.1, "alpha": 0.01, "rows": VISION},
}


def _widgets():
    try:
        import ipywidgets
    except ImportError as error:
        raise BadInput("ipywidgets is missing: pip install 'napo[notebooks]', then restart the kernel") from error
    return ipywidgets


class Knob:
    """A slider with a number field beside it; both show one value, which stays within its range.

    A typed value outside the range is clamped, and `note` says so. `on_change()` runs after the value has changed.
    """

    def __init__(self, name, value, low, high, on_change, label=None):
        w, value, label = _widgets(), min(max(value, low), high), label or name
        self.name, self.low, self.high, self._on_change = name, low, high, on_change
        wide = {"description_width": "80px"}
        self.slider = w.FloatSlider(value, min=low, max=high, step=STEP, description=label, readout=False, style=wide)
        self.field = w.FloatText(value, step=STEP, description=f"{label} =", style=wide, layout={"width": "190px"})
        self.note = w.Label("")
        for part, ending in ((self.slider, ""), (self.field, "-field"), (self.note, "-note")):
            part.add_class(f"napo-{name}{ending}")
        for part in (self.slider, self.field):
            part.observe(lambda change: self._set(change["new"]), "value")
        self.value, self._busy = value, False
        self.row = w.HBox([self.slider, self.field, self.note])

    def show(self, wanted):
        """Set the value without calling `on_change`; `note` says if it was clamped."""
        wanted = round(wanted, 6)  # a browser counts steps in floats: 0.09999999999999999
        inside = min(max(wanted, self.low), self.high) if wanted == wanted else self.value
        clamped = f"{wanted:g} is outside {self.low:g} … {self.high:g}: set to {inside:g}"
        self.note.value = "" if inside == wanted else clamped
        self._busy = True
        self.slider.value = self.field.value = self.value = inside
        self._busy = False

    def _set(self, wanted):
        if not self._busy:
            before = self.value
            self.show(wanted)
            if self.value != before:
                self._on_change()


class Explorer:
    """Four linked panels with knobs for q, beta, alpha and the toy's swap rate: a widget, with a PNG for no kernel.

    batches  {name: views.Rows} to choose from (`views.rows_of`); None = the toy's own pairs
    start    first values of the knobs, in place of those in START
    Parts: `knobs` by name, `presets`, `batch`, `reset`, `follow`, `image`, `readout`; `view` is the View that is drawn.
    Raises BadInput without ipywidgets.
    """

    def __init__(self, batches=None, **start):
        w = _widgets()
        self._busy = False
        self.batches, self.start, self.board = batches or {TOY: None}, START | start, panels.Board()
        self.knobs = {name: Knob(name, self.start[name], *RANGES[name], self._by_hand, LABELS[name]) for name in LABELS}
        options = [("presets: the paper's figures", NO_PRESET), *((name, name) for name in PRESETS)]
        self.presets = w.Dropdown(options=options, value=NO_PRESET, layout={"width": "260px"})
        self.batch = w.Dropdown(options=list(self.batches), description="rows", layout={"width": "340px"})
        self.reset = w.Button(description="Reset", tooltip="back to the first values")
        self.follow = w.Button(description="q from eq. 10", tooltip="set q to what these rows give")
        self.image = w.Image(format="png", layout={"width": "940px", "max_width": "100%", "object_fit": "contain"})
        self.readout = w.HTML("")
        self._wire()
        chosen = [self.batch] if len(self.batches) > 1 else []
        buttons = w.HBox([self.presets, self.reset, self.follow, *chosen], layout={"flex_flow": "row wrap"})
        self.box = w.VBox([*(knob.row for knob in self.knobs.values()), buttons, self.image, self.readout])
        self._draw()

    def _wire(self):
        for name in ("presets", "batch", "reset", "follow", "image", "readout"):
            getattr(self, name).add_class(f"napo-{name}")
        self.presets.observe(lambda change: self._busy or self.set(PRESETS.get(change["new"], {})), "value")
        self.batch.observe(lambda change: self._draw(), "value")
        self.reset.on_click(lambda button: self._by_hand(self.start | {"rows": next(iter(self.batches))}))
        self.follow.on_click(lambda button: self._by_hand({"q": round(self.view.rule, 2)}))

    def set(self, values):
        """Set several knobs and, by "rows" (a name of `batches`), the rows; then draw once."""
        self._busy = True
        for name in values.keys() & self.knobs.keys():
            self.knobs[name].show(values[name])
        if values.get("rows") in self.batches:
            self.batch.value = values["rows"]
        self._busy = False
        self._draw()

    def _by_hand(self, values=()):
        """Set and draw, and leave the preset."""
        self._busy, self.presets.value = True, NO_PRESET
        self.set(dict(values))

    def _draw(self):
        if self._busy:
            return
        values = {name: knob.value for name, knob in self.knobs.items()}
        self.view = views.look(**values, rows=self.batches[self.batch.value])
        self.image.value = self.board.png(self.view)
        self.readout.value = views.described(self.view)

    def figure(self):
        """The present picture, to be saved."""
        return panels.explorer(self.view)

    def _repr_mimebundle_(self, **kwargs):
        picture = base64.b64encode(self.image.value).decode()
        return self.box._repr_mimebundle_(**kwargs) | {"image/png": picture}
