"""The labels of a training: noise put into them at a known rate, and what a method makes of its estimate."""

import importlib
from dataclasses import replace

import numpy as np

from napo import logps, noise, posterior
from napo.artifacts import BadInput
from napo.profiles import NOISE_KINDS


def check_noise(cell, profile):
    """Raises BadInput for noise that cannot be put in."""
    if cell.noise_kind not in NOISE_KINDS:
        raise BadInput(f"unknown noise_kind {cell.noise_kind!r}: use one of {', '.join(NOISE_KINDS)}")
    if cell.noise_kind == "leak" and not profile.is_desk:
        raise BadInput(
            f"noise_kind 'leak' needs rows whose truth is known, profile {profile.name} has none: use 'swap', or the "
            "desk world"
        )
    if not 0 <= cell.flip_rate < 0.5:
        raise BadInput(f"flip_rate={cell.flip_rate:g}: give a share of the rows from 0 up to, but not, 0.5")


def calibrated(method, rates, probe, beta):
    """The method with the alpha of each of its NaPO terms set so that q is the kind's estimated noise rate once its
    reward margin is what the probe of notebook 02 came to; unchanged unless `estimate` is "alpha".

    rates  dict kind -> estimated noise rate;  probe  DataFrame of `margins.noise_table`
    """
    if method.estimate != "alpha":
        return method
    column = {"sum": "margin", "mean": "mean_margin"}
    terms = []
    for term in method.terms:
        if term.kind in rates:
            settled = probe.loc[(probe["kind"] == term.kind) & (probe["part"] == "probe"), column[term.margin]].mean()
            psi = max(beta * settled, noise.SCORE_FLOOR)
            term = replace(term, alpha=noise.calibrated_alpha(rates[term.kind], psi))
        terms.append(term)
    return replace(method, terms=tuple(terms))


def with_leak(rows, reference, rate, seed, model, processor, training):
    """Desk rows with good answers leaked into `rate` of them, and their reference log-probs measured.

    Returns (list of rows, reference frame). Swaps of the same seed and rate would fall on the same rows.
    """
    rows = [dict(row) for row in rows]
    leaked = desk_leak().leak(rows, rate, np.random.default_rng([seed, 1]))
    changed = [new for new, old in zip(leaked, rows, strict=True) if new is not old]
    if not changed:
        return leaked, reference
    settings = {"reference": True, "packed": training.packed}
    size, length = training.batch_size, training.max_length
    found = logps.measure(model, processor, changed, posterior.BIASED, size, length, **settings).set_index("row_id")
    reference = reference.set_index("row_id")
    columns = [f"{name}_{kind}" for kind in posterior.BIASED for name in ("logps", "tokens")]
    reference.loc[found.index, columns] = found[columns]
    return leaked, reference.reset_index()


def desk_leak():
    """The desk world's leak. Not a static import: a change there must not make other profiles' artefacts stale."""
    return importlib.import_module("napo.world.leak")


def drawn(method, seed, step):
    """The method with one term, drawn for this step, in place of all (`draw_term`), else the method."""
    if not method.draw_term:
        return method
    number = int(np.random.default_rng([seed, 2, step]).integers(len(method.terms)))
    return replace(method, gamma=tuple(float(i == number) for i in range(len(method.terms))))
