"""How a method uses what is known about label noise: a calibrated alpha, a weight per pair, or q per row."""

from dataclasses import replace

import numpy as np
import torch

from napo.engine.preferences import BIASED, column
from napo.methods import CORRUPTED
from napo.q import SCORE_FLOOR, calibrated_alpha, row_q


def calibrated(method, rates, probe, beta):
    """The method with alpha of each NaPO term set so that q equals the estimated noise rate at the probe's margin.

    rates  dict kind -> estimated noise rate;  probe  DataFrame of `probe.noise_table`
    """
    of_margin = {"sum": "margin", "mean": "mean_margin"}
    terms = []
    for term in method.terms:
        if term.kind in rates:
            trained_on = (probe["kind"] == term.kind) & (probe["part"] == "probe")
            psi = max(beta * probe.loc[trained_on, of_margin[term.margin]].mean(), SCORE_FLOOR)
            term = replace(term, alpha=calibrated_alpha(rates[term.kind], psi))
        terms.append(term)
    return replace(method, terms=tuple(terms))


def weights(method, rows, flipped, posterior):
    """How much each pair counts: dict kind -> (n,), or None if all pairs count alike.

    The oracle drops the pairs whose label is known to be wrong. A method with estimate "weight" gives each biased pair
    the probability that its label is right.
    rows  training rows;  flipped  (n,) bool;  posterior  dict kind -> (n,), empty without an estimate
    """
    if method.drop_noise:
        wrong = {kind: flipped | _known_noise(rows, kind) for kind in method.kinds if kind != CORRUPTED}
        return {kind: (~flags).astype(float) for kind, flags in wrong.items()}
    if method.estimate == "weight":
        return {kind: 1 - posterior[kind].astype(np.float32) for kind in BIASED}
    return None


def _known_noise(rows, kind):
    """(n,) bool: rows whose answer of a kind is known noise; none where nothing is known."""
    name = f"is_noise_{kind}"
    if name not in rows[0]:
        return np.zeros(len(rows), bool)
    return np.array([bool(flag) for flag in column(rows, name)])


def q_per_row(method, posterior):
    """q of each row, dict kind -> (n,) in [0.01, 1]: the probability that its label is wrong. None: eq. 10 sets q."""
    if method.estimate not in ("q", "weight"):
        return None
    return {kind: row_q(torch.as_tensor(posterior[kind])).numpy() for kind in BIASED}
