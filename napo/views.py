"""What the explorer shows at one setting of its knobs: numbers of `napo.losses`, `napo.noise` and `napo.toy`."""

import functools
from dataclasses import dataclass

import numpy as np
import torch

from napo import losses, noise, toy
from napo.panels import nice_range


@dataclass(frozen=True)
class Rows:
    """The rows of a batch by their margins, without beta.

    margin       (N,) nats; sum over tokens: what the loss sees
    rule_margin  (N,) what q follows (eq. 10), in `rule_unit`: sum, or mean over tokens
    is_noise     (N,) bool; None where the truth is not known
    """

    margin: np.ndarray
    rule_margin: np.ndarray
    is_noise: np.ndarray | None
    other: str = "rejected"
    rule_name: str = "margin"
    rule_unit: str = "nats"
    unit: str = "nats"

    @property
    def labels(self):
        """What stands at the axes."""
        return self.other, self.rule_name, self.rule_unit, self.unit


@dataclass(frozen=True)
class View:
    """All that the picture shows. Dicts have the keys "BCE", "MAE" and "q".

    p, loss, pull    (P,) preference probabilities, L and |dL/dz| there
    row_p, weight    (N,) the rows' p and |dL/dz|;  noise_share: noise's share of all weight, None if not known
    rule_x, rule_q   (R,) margins and 1 - sigma(alpha beta margin);  mean_margin, rule: the batch's
    trained          toy.Trained;  accuracy: mean and half interval over steps, (T,) each
    """

    q: float
    beta: float
    alpha: float
    flip_rate: float
    rows: Rows
    p: np.ndarray
    loss: dict
    pull: dict
    row_p: np.ndarray
    weight: dict
    noise_share: dict | None
    rule_x: np.ndarray
    rule_q: np.ndarray
    mean_margin: float
    rule: float
    trained: dict
    accuracy: dict


def look(q, beta, alpha, flip_rate, rows=None):
    """What there is to see at one setting of the knobs. rows: Rows, None = the toy's own pairs. Returns View."""
    trained = {
        "BCE": toy.train(0.0, beta, flip_rate),
        "MAE": toy.train(1.0, beta, flip_rate),
        "q": toy.train(q, beta, flip_rate),
    }
    rows = rows or Rows(trained["q"].margin, trained["q"].margin, trained["q"].swapped)
    p = torch.linspace(0.002, 0.998, 200, dtype=torch.float64)
    loss, pull = loss_and_pull(torch.logit(p), q)
    row_z = beta * torch.tensor(rows.margin, dtype=torch.float64)
    _, weight = loss_and_pull(row_z, q)
    rule = functools.partial(noise.noise_coefficient, alpha=alpha)
    rule_x = np.linspace(*nice_range(rows.rule_margin), 60)
    return View(
        q=q,
        beta=beta,
        alpha=alpha,
        flip_rate=flip_rate,
        rows=rows,
        p=p.numpy(),
        loss=loss,
        pull=pull,
        row_p=torch.sigmoid(row_z).numpy(),
        weight=weight,
        noise_share=noise_share(weight, rows.is_noise),
        rule_x=rule_x,
        rule_q=np.array([rule(torch.tensor([beta * x])).item() for x in rule_x]),
        mean_margin=float(rows.rule_margin.mean()),
        rule=rule(torch.tensor(beta * rows.rule_margin)).item(),
        trained=trained,
        accuracy={name: run.mean_and_half_width() for name, run in trained.items()},
    )


def loss_and_pull(z, q):
    """L and |dL/dz| at z (N,) for BCE, MAE and q: two dicts of (N,) arrays, from `napo.losses` by autograd."""
    functions = {
        "BCE": lambda z: losses.dpo_loss(z, 1.0),
        "MAE": lambda z: losses.mae_loss(z, 1.0),
        "q": lambda z: losses.napo_loss(z, q, 1.0),
    }
    values, pulls = {}, {}
    for name, function in functions.items():
        leaf = z.detach().clone().requires_grad_()
        value = function(leaf)
        values[name] = value.detach().numpy()
        pulls[name] = torch.autograd.grad(value.sum(), leaf)[0].abs().numpy()
    return values, pulls


def noise_share(weight, is_noise):
    """Share of all weight that falls on noise, by loss; None where the truth is not known."""
    if is_noise is None:
        return None
    return {name: float(w[is_noise].sum() / max(w.sum(), 1e-300)) for name, w in weight.items()}


def rows_of(table):
    """The batches of notebook 02's table (`margins.noise_table`): dict name -> Rows, two margins of each kind.

    Only rows that the probe did not train on.
    """
    measured, batches = table[table["part"] == "measured"], {}
    for kind, rows in measured.groupby("kind"):
        truth = None if rows["is_noise"].isna().any() else rows["is_noise"].to_numpy(bool)
        for which, column, unit in (("mean", "mean_margin", "nats/token"), ("sum", "margin", "nats")):
            name = f"{kind.replace('_', '-')}, {which} margin"
            values = rows["margin"].to_numpy(float), rows[column].to_numpy(float)
            batches[name] = Rows(*values, truth, kind.replace("_", "-"), f"reward margin without β, {which}", unit)
    return batches


def described(view):
    """The picture in a sentence, for those who read rather than look."""
    end = {name: f"{mean[-1]:.3f} ± {half[-1]:.3f}" for name, (mean, half) in view.accuracy.items()}
    share = (
        ""
        if view.noise_share is None
        else (
            f" Noise is {view.rows.is_noise.mean():.0%} of the rows and gets of all weight "
            + ", ".join(f"{name} {view.noise_share[name]:.0%}" for name in ("BCE", "q", "MAE"))
            + "."
        )
    )
    return (
        f"q = {view.q:g}, β = {view.beta:g}, α = {view.alpha:g}, swap rate = {view.flip_rate:g}. "
        f"Eq. 10 gives these rows q = {view.rule:.3f}.{share} "
        f"Toy's test accuracy: BCE {end['BCE']}, this q {end['q']}, MAE {end['MAE']}."
    )
