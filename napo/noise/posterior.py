"""The noise estimate: for every row the probability that its label is wrong, before any training.

A biased answer was generated with one modality masked. It is noise if it reads as if nothing had been masked. Each row
follows one of three stories; the base model gives its two answers a probability under each:

    clean     the chosen answer follows from the whole prompt, the rejected answer from the masked prompt
    leaked    both answers follow from the whole prompt: a good answer was labelled rejected
    swapped   the rejected answer follows from the whole prompt, the chosen one from the masked prompt

Against "clean", a leak is exp(e) times as likely and a swap exp(e - e_chosen) times, with e the evidence for the
rejected answer (`evidence.py`). Expectation maximisation fits the shares of the stories. Nothing else is fitted and no
truth is used.

The estimate misses one kind of noise: an answer made without the image or the question that is right by chance. No
forward pass tells it from a bias, so the rate is a lower bound where such answers are common, as among the
vision-biased answers of the desk world (docs/desk-world.md). Answers equal to the chosen one are certain noise.

Pairs without a masked modality (`rejected`) have only their raw margin. Read as log-odds that the label is right, it
ranks rows well but gives a rough rate.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from napo.engine import models, preferences
from napo.engine.preferences import BIASED
from napo.noise import evidence, injected, reference_logps
from napo.workshop import artifacts
from napo.workshop.files import read_parquet, require

COLUMNS = ["base", "row_id", "kind", "chosen_evidence", "evidence", "same", "posterior"]


@dataclass(frozen=True)
class Posterior:
    """The estimate of one kind of rejected answer."""

    posterior: np.ndarray  # (n,): probability per row that its label is wrong
    rate: float  # its mean, with interval
    lo: float
    hi: float


# ---- the estimate ---------------------------------------------------------------------------------------------------


def estimate(log_odds, same, *, rng=None, resamples=200, level=0.95):
    """Posterior of one kind of rejected answer, without truth.

    log_odds  (n, K) nats: log-likelihood ratio of each story of a wrong label against "clean" (`stories`)
    same      (n,) bool: rows whose rejected answer equals the chosen one; certain noise, left out of the fit
    rng       np.random.Generator for the rate's percentile interval, from refits on resampled rows; None: no interval
    """
    log_odds, same = np.asarray(log_odds, float), np.asarray(same, bool)
    found, lo, hi = _posterior(log_odds, same), np.nan, np.nan
    if rng is not None:
        draws = (rng.integers(0, len(same), len(same)) for _ in range(resamples))
        rates = [_posterior(log_odds[rows], same[rows]).mean() for rows in draws]
        lo, hi = np.quantile(rates, [(1 - level) / 2, (1 + level) / 2])
    return Posterior(found, float(found.mean()), float(lo), float(hi))


def _posterior(log_odds, same):
    """(n,) posterior: 1 for `same` rows, from the fitted mixture for the others."""
    out = np.ones(len(same))
    if not same.all():
        out[~same] = 1 - shares(log_odds[~same])[:, 0]
    return out


def shares(log_odds, iterations=1000, tolerance=1e-6):
    """Responsibilities (n, 1 + K) of "clean" and the other stories at the maximum-likelihood shares."""
    scores = np.concatenate([np.zeros((len(log_odds), 1)), log_odds], axis=1)
    likelihood = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights = np.full(scores.shape[1], 1 / scores.shape[1])  # any would do: the log-likelihood is concave in them
    for _ in range(iterations):
        found = likelihood * weights
        found /= found.sum(axis=1, keepdims=True)
        before, weights = weights, np.maximum(found.mean(axis=0), 1e-9)
        if np.abs(weights - before).max() < tolerance:
            break
    return found


def stories(chosen_evidence, evidence):
    """(n, 2) log-odds of "leaked" and "swapped" against "clean", from the evidence (n,) for the answers as labelled."""
    return np.stack([evidence, evidence - chosen_evidence], axis=1)


def labelled(seen, flipped=None):
    """(log_odds (n, 2), same (n,)) for `estimate`, from a DataFrame of `evidence.measure`.

    flipped  (n,) bool: rows whose two answers change places; None: none of them
    """
    chosen, other = seen["chosen_evidence"].to_numpy(float), seen["evidence"].to_numpy(float)
    if flipped is not None:
        chosen, other = np.where(flipped, other, chosen), np.where(flipped, chosen, other)
    return stories(chosen, other), seen["same"].to_numpy(bool)


# ---- of a base's rows -----------------------------------------------------------------------------------------------


def table(profile, base, runs_dir="runs"):
    """Path of base-<b>/posterior.parquet, one record per row and biased answer, made unless current (notebook 02).

    Columns: base, row_id, kind, chosen_evidence, evidence (nats), same, posterior.
    """
    reference = reference_logps.build(profile, base, runs_dir)
    return _build(reference.with_name("posterior.parquet"), profile, base, reference, label=f"base {base}")


def of_training(profile, base, injection, runs_dir="runs"):
    """Path of base-<b>/injected/<name>-posterior.parquet: the estimate on the training rows under an injection.

    Columns as `table`. Made unless current; every method that uses the estimate reads the same file.
    """
    reference = injected.reference(profile, base, injection, runs_dir)
    folder = artifacts.run_folder(profile.name, f"base-{base}", "injected", runs_dir=runs_dir)
    return _build(folder / f"{injection.name}-posterior.parquet", profile, base, reference, injection)


def _build(path, profile, base, reference, injection=None, label=None):
    """Path of a table, made from all rows, or from the training rows under an injection; label of progress lines."""
    folder = path.parent.parent if injection else path.parent
    pairs, how = require(folder / "pairs.parquet", "01"), estimated_by(profile)
    settings = profile.computing | {"model": models.identity(profile, base), "by": how}
    settings |= {"injection": injection.settings} if injection else {}

    def make(temporary):
        rows, flipped = preferences.read(pairs), None
        if injection:
            rows, flipped = injected.inject(preferences.part(rows, "train"), injection)
        (model, processor), known, frames = models.load_base(profile, base), read_parquet(reference, "02"), []
        for kind in BIASED:
            line = label and f"{label}: {kind}, masked"
            seen = evidence.measure(model, processor, rows, known, kind, label=line, **how)
            frames.append(seen.assign(base=base, kind=kind, posterior=estimate(*labelled(seen, flipped)).posterior))
        pd.concat(frames, ignore_index=True)[COLUMNS].to_parquet(temporary, index=False)

    desk = injection is not None and profile.is_desk
    return artifacts.build(path, make, settings=settings, stage="noise", desk=desk, inputs=[pairs, reference])


def estimated_by(profile):
    """Arguments of `evidence.measure` from a profile's settings."""
    return {"batch_size": profile.training.batch_size, "how": profile.perturbation.image}


def beside(noise, profile, runs_dir="runs"):
    """The rows of `probe.noise_table` with the columns that `table` adds. Raises MissingArtifact."""
    found = reference_logps.of_bases("posterior.parquet", profile, runs_dir)
    return noise.merge(found, on=["base", "row_id", "kind"], validate="one_to_one")
