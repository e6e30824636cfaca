"""Widgets to turn the knobs of NaPO. They compute nothing: `napo.losses` does, and `napo.plots` draws."""

import base64

from napo import plots
from napo.artifacts import BadInput

Q_RANGE, BETA_RANGE = (0.01, 1.0), (0.01, 1.0)
MARGIN = 40.0  # nats; the explorer shows margins from minus to plus this
SCREEN_DPI = 100


def _widgets():
    try:
        import ipywidgets
    except ImportError as error:
        raise BadInput("ipywidgets is missing: pip install 'napo[notebooks]', then restart the kernel") from error
    return ipywidgets


class Knob:
    """A slider with a number field beside it; both show one value, which stays within its range.

    A typed value outside is clamped, and `note` says so. `on_change` is called with no argument after each change.
    """

    def __init__(self, name, value, low, high, step, on_change):
        w, value = _widgets(), min(max(value, low), high)
        self.name, self.low, self.high, self._on_change = name, low, high, on_change
        self.slider = w.FloatSlider(value, min=low, max=high, step=step, description=name, readout=False)
        self.field = w.FloatText(value, step=step, description=f"{name} =", layout={"width": "170px"})
        self.note = w.Label("", layout={"width": "360px"})
        self.slider.add_class(f"napo-{name}")
        self.field.add_class(f"napo-{name}-field")
        self.slider.observe(lambda change: self._set(change["new"]), "value")
        self.field.observe(lambda change: self._set(change["new"]), "value")
        self.value, self._busy = value, False
        self.row = w.HBox([self.slider, self.field, self.note])

    def _set(self, wanted):
        """Take a value from either widget, bring both to what it becomes, and tell."""
        if self._busy:
            return
        inside = min(max(wanted, self.low), self.high) if wanted == wanted else self.value
        self.note.value = (
            "" if inside == wanted else f"{wanted:g} is outside {self.low:g} … {self.high:g}: set to {inside:g}"
        )
        self._busy = True
        self.slider.value = self.field.value = self.value = inside
        self._busy = False
        self._on_change()


def box_cox_curves(losses, q, beta, margin_range=MARGIN, points=201):
    """Loss and its gradient by the margin for BCE, MAE and q.

    losses  module or object with dpo_loss(margin, beta), mae_loss(margin, beta), napo_loss(margin, q, beta), of torch
    Returns margin (N,) nats, dict name -> (N,) loss, dict name -> (N,) dL/dmargin; names "BCE", "MAE", "q".
    """
    import torch

    margin = torch.linspace(-margin_range, margin_range, points, requires_grad=True)
    values = {
        "BCE": losses.dpo_loss(margin, beta),
        "MAE": losses.mae_loss(margin, beta),
        "q": losses.napo_loss(margin, q, beta),
    }
    pulls = {name: torch.autograd.grad(value.sum(), margin)[0].numpy() for name, value in values.items()}
    return margin.detach().numpy(), {name: value.detach().numpy() for name, value in values.items()}, pulls


def box_cox_explorer(losses=None, q=0.5, beta=0.1, margin_range=MARGIN):
    """Sliders for q and beta on the loss between BCE and MAE and on its pull.

    losses  where the losses come from; None = napo.losses
    Returns a widget (of ipywidgets) that also carries its picture as a PNG, for readers without a kernel. Its parts are
    `.knobs` ("q", "beta") and `.image`.  Raises BadInput without ipywidgets.
    """
    w = _widgets()
    if losses is None:
        from napo import losses

    class Explorer(w.VBox):
        def _repr_mimebundle_(self, **kwargs):
            picture = base64.b64encode(self.image.value).decode()
            return super()._repr_mimebundle_(**kwargs) | {"image/png": picture}

    def redraw():
        now = knobs["q"].value, knobs["beta"].value
        figure = plots.box_cox(*box_cox_curves(losses, *now, margin_range), *now)
        image.value = plots.png(figure, SCREEN_DPI)

    image = w.Image(format="png", width=800, layout={"max_width": "100%"})
    knobs = {
        "q": Knob("q", q, *Q_RANGE, 0.01, redraw),
        "beta": Knob("beta", beta, *BETA_RANGE, 0.01, redraw),
    }
    explorer = Explorer([*(knob.row for knob in knobs.values()), image])
    explorer.knobs, explorer.image = knobs, image
    redraw()
    return explorer
