"""The numbers that the explorer shows at one setting of its knobs, from `napo.losses`, `napo.q` and the toy."""

from dataclasses import dataclass

import numpy as np
import torch

from napo import losses
from napo.explorer import toy
from napo.explorer.panels import nice_range
from napo.q import noise_coefficient


@dataclass(frozen=True)
class Rows:
    """The rows of a batch by their margins, without beta."""

    margin: np.ndarray  # (N,) nats; summed over tokens: the loss depends on it
    rule_margin: np.ndarray  # (N,) in `rule_unit`; summed or averaged over tokens: q depends on it (eq. 10)
    is_noise: np.ndarray | None  # (N,) bool; None if the truth is not known
    other: str = "rejected"
    rule_name: str = "margin"
    rule_unit: str = "nats"


@dataclass(frozen=True)
class View:
    """Everything that the picture shows. Dicts have the keys "BCE", "MAE" and "q"."""

    q: float
    beta: float
    alpha: float
    flip_rate: float
    rows: Rows
    p: np.ndarray  # (P,) preference probabilities
    loss: dict  # (P,) L there
    pull: dict  # (P,) |dL/dz| there
    row_p: np.ndarray  # (N,) the rows' p
    weight: dict  # (N,) the rows' |dL/dz|
    noise_share: dict | None  # share of the weight that falls on noise; None: unknown
    rule_x: np.ndarray  # (R,) margins
    rule_q: np.ndarray  # (R,) 1 - sigma(alpha beta margin) there
    mean_margin: float  # of the rows
    rule: float  # their q
    steps: np.ndarray  # (T,) of the toy's training
    accuracy: dict  # (T,) each: mean and half width of its interval


def look(q, beta, alpha, flip_rate, rows=None):
    """The View at one setting of the knobs. rows: Rows, None = the toy's own pairs."""
    trained = {name: toy.train(value, beta, flip_rate) for name, value in (("BCE", 0.0), ("MAE", 1.0), ("q", q))}
    rows = rows or Rows(trained["q"].margin, trained["q"].margin, trained["q"].swapped)
    p = torch.linspace(0.002, 0.998, 200, dtype=torch.float64)
    row_z = beta * torch.tensor(rows.margin, dtype=torch.float64)
    (loss, pull), (_, weight) = loss_and_pull(torch.logit(p), q), loss_and_pull(row_z, q)
    share = None
    if rows.is_noise is not None:
        share = {name: float(w[rows.is_noise].sum() / max(w.sum(), 1e-300)) for name, w in weight.items()}
    rule_x = np.linspace(*nice_range(rows.rule_margin), 60)
    batches = [torch.tensor([beta * x]) for x in rule_x] + [torch.tensor(beta * rows.rule_margin)]
    *rule_q, rule = (noise_coefficient(psi, alpha).item() for psi in batches)
    knobs = {"q": q, "beta": beta, "alpha": alpha, "flip_rate": flip_rate}
    by_p = {"p": p.numpy(), "loss": loss, "pull": pull}
    by_row = {"row_p": torch.sigmoid(row_z).numpy(), "weight": weight, "noise_share": share}
    by_rule = {"rule_x": rule_x, "rule_q": np.array(rule_q), "mean_margin": float(rows.rule_margin.mean())}
    accuracy = {name: run.mean_and_half_width() for name, run in trained.items()}
    return View(rows=rows, steps=trained["q"].steps, accuracy=accuracy, **knobs, **by_p, **by_row, **by_rule, rule=rule)


def loss_and_pull(z, q):
    """L and |dL/dz| at z (N,), by autograd: two dicts of (N,) arrays with the keys BCE, MAE and q."""
    leaf = z.detach().clone().requires_grad_()
    found = {"BCE": losses.dpo_loss(leaf, 1.0), "MAE": losses.mae_loss(leaf, 1.0), "q": losses.napo_loss(leaf, q, 1.0)}
    slopes = {name: torch.autograd.grad(value.sum(), leaf)[0] for name, value in found.items()}
    values = {name: value.detach().numpy() for name, value in found.items()}
    return values, {name: slope.abs().numpy() for name, slope in slopes.items()}


def rows_of(table):
    """The batches of `probe.noise_table` that the probe did not train on: {name: Rows}, two margins per kind."""
    measured, batches = table[table["part"] == "measured"], {}
    for kind, rows in measured.groupby("kind"):
        truth = None if rows["is_noise"].isna().any() else rows["is_noise"].to_numpy(bool)
        kind = kind.replace("_", "-")
        for which, column, unit in (("mean", "mean_margin", "nats/token"), ("sum", "margin", "nats")):
            values = rows["margin"].to_numpy(float), rows[column].to_numpy(float)
            batches[f"{kind}, {which} margin"] = Rows(*values, truth, kind, f"reward margin without β, {which}", unit)
    return batches


def described(view):
    """The picture in words, for screen readers and for whoever prefers to read."""
    end = {name: f"{mean[-1]:.3f} ± {half[-1]:.3f}" for name, (mean, half) in view.accuracy.items()}
    share = ""
    if view.noise_share is not None:
        of_weight = ", ".join(f"{name} {view.noise_share[name]:.0%}" for name in ("BCE", "q", "MAE"))
        share = f" Noise is {view.rows.is_noise.mean():.0%} of the rows; its share of the weight: {of_weight}."
    return (
        f"q = {view.q:g}, β = {view.beta:g}, α = {view.alpha:g}, swap rate = {view.flip_rate:g}. "
        f"Eq. 10 gives these rows q = {view.rule:.3f}.{share} "
        f"Toy's test accuracy: BCE {end['BCE']}, this q {end['q']}, MAE {end['MAE']}."
    )
