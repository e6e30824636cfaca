"""An estimate of the label noise before any training: for every row the probability that its label is wrong.

A biased answer was generated with one modality masked; noise is an answer that reads as if nothing had been masked. For
each row three stories are told, and each gives the pair of answers a probability under the base model:

    clean     the chosen answer follows from everything,  the rejected one from the masked prompt
    leaked    both follow from everything                 (a good answer among the rejected)
    swapped   the rejected answer does, the chosen does not  (labels exchanged)

Beside "clean" the other two are likelier by exp(e) and exp(e - e_chosen), e the evidence of `evidence.py`. Only the
shares of the stories are unknown; they are fitted by expectation maximisation. Nothing else is, and no truth is used.

What it cannot see: an answer made without the question or the image that is right by chance. That is noise too, and no
forward pass tells it from a bias. The rate is therefore a lower bound where such answers are common: in the desk world
among the vision-biased (`napo/world/NOTES.md`). Answers equal to the chosen one are noise for certain.

Pairs without a masked modality (`rejected`) have the raw margin only: the base's own taste, read as the odds that the
label is right. That ranks rows; as a rate it is rough.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import special

from napo import artifacts, data, evidence, logps, models

BIASED = ("language_biased", "vision_biased")


@dataclass(frozen=True)
class Posterior:
    """posterior (n,) probability per row that its label is wrong; rate, its mean, with the bounds of its interval."""

    posterior: np.ndarray
    rate: float
    lo: float = float("nan")
    hi: float = float("nan")


def estimate(log_odds, same, *, rng=None, resamples=200, level=0.95):
    """Posterior of one kind of rejected answer, without truth.

    log_odds  (n, K) nats: how much likelier each story of a wrong label makes the row's answers than the right label
              (`stories`)
    same      (n,) bool: rows whose rejected answer is the chosen one, noise for certain and no part of the fit
    rng       np.random.Generator: with it the rate gets its percentile interval from refits on resampled rows
    """
    log_odds, same = np.asarray(log_odds, float), np.asarray(same, bool)
    found = _posterior(log_odds, same)
    if rng is None:
        return Posterior(found, float(found.mean()))
    draws = (rng.integers(0, len(same), len(same)) for _ in range(resamples))
    rates = [_posterior(log_odds[rows], same[rows]).mean() for rows in draws]
    lo, hi = np.quantile(rates, [(1 - level) / 2, (1 + level) / 2])
    return Posterior(found, float(found.mean()), float(lo), float(hi))


def stories(chosen_evidence, evidence):
    """(n, 2) log-odds of "leaked" and "swapped" against "clean", from evidence (n,) of the answers as labelled."""
    return np.stack([evidence, evidence - chosen_evidence], axis=1)


def _posterior(log_odds, same):
    """(n,) posterior: 1 for `same` rows, the fitted mixture's for the others."""
    out = np.ones(len(same))
    if not same.all():
        out[~same] = 1 - shares(log_odds[~same])[:, 0]
    return out


def shares(log_odds, iterations=1000, tolerance=1e-6):
    """Responsibilities (n, 1 + K) of "clean" and the other stories once their shares fit the rows best; the likelihood
    is concave in the shares, so where the search starts does not matter."""
    scores = np.concatenate([np.zeros((len(log_odds), 1)), log_odds], axis=1)
    likelihood = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights = np.full(scores.shape[1], 1 / scores.shape[1])
    for _ in range(iterations):
        found = likelihood * weights
        found /= found.sum(axis=1, keepdims=True)
        before, weights = weights, np.maximum(found.mean(axis=0), 1e-9)
        if np.abs(weights - before).max() < tolerance:
            break
    return found


def of_rows(rows, reference, flipped, model, processor, *, how="none", batch_size=32):
    """The reference log-probs with a column posterior_<kind> per biased kind, estimated on one data set.

    reference  DataFrame of `logps.measure`; rows, those in it that count
    flipped    (n,) bool: rows whose chosen and rejected answers changed places; the labels are what is estimated
    model      the base;  how  what stood for the masked image
    Returns (DataFrame with those rows, dict kind -> estimated noise rate).
    """
    columns, rates = {}, {}
    for kind in BIASED:
        seen = evidence.measure(model, processor, rows, reference, kind, batch_size=batch_size, how=how)
        found = estimate(*labelled(seen, flipped))
        columns[f"posterior_{kind}"], rates[kind] = found.posterior, found.rate
    row_ids = seen["row_id"]
    return reference.set_index("row_id").loc[row_ids].reset_index().assign(**columns), rates


def labelled(seen, flipped=None):
    """What `estimate` reads of a DataFrame of `evidence.measure`, for the answers as they are labelled: (log_odds
    (n, 2), same (n,))."""
    chosen, other = seen["chosen_evidence"].to_numpy(float), seen["evidence"].to_numpy(float)
    swap = np.zeros(len(seen), bool) if flipped is None else np.asarray(flipped, bool)
    return stories(np.where(swap, other, chosen), np.where(swap, chosen, other)), seen["same"].to_numpy(bool)


def table(profile, base, runs_dir="runs"):
    """Path of base-<b>/posterior.parquet, one record per row and kind of biased answer, made unless current (notebook
    02).

    Columns: base, row_id, kind, chosen_evidence, evidence (nats), same, posterior.
    """
    folder = artifacts.run_folder(profile.name, f"base-{base}", runs_dir=runs_dir)
    pairs, reference = artifacts.require(folder / "pairs.parquet", "01"), logps.reference(profile, base, runs_dir)
    mask = profile.perturbation.image
    return artifacts.build(
        folder / "posterior.parquet",
        lambda path: _make_table(profile, base, pairs, reference, mask).to_parquet(path, index=False),
        settings={"model": models.identity(profile, base), "quantisation": profile.quantisation, "mask": mask},
        modules=("posterior",),
        inputs=[pairs, reference],
    )


def _make_table(profile, base, pairs, reference_path, mask):
    rows, reference = data.read(pairs), artifacts.read_parquet(reference_path, "02")
    model, processor = models.load_base(profile, base)
    settings = {"batch_size": profile.training.batch_size, "how": mask}
    frames = []
    for kind in BIASED:
        label = f"base {base}: {kind}, masked"
        seen = evidence.measure(model, processor, rows, reference, kind, label=label, **settings)
        frames.append(seen.assign(base=base, kind=kind, posterior=estimate(*labelled(seen)).posterior))
    columns = ["base", "row_id", "kind", "chosen_evidence", "evidence", "same", "posterior"]
    return pd.concat(frames, ignore_index=True)[columns]


def beside(noise, profile, runs_dir="runs"):
    """The rows of `margins.noise_table` of a profile's bases with the columns of theirs that `table` adds. Raises
    MissingArtifact."""
    folders = [artifacts.run_folder(profile.name, f"base-{base}", runs_dir=runs_dir) for base in profile.bases]
    found = pd.concat([artifacts.read_parquet(folder / "posterior.parquet", "02") for folder in folders])
    return noise.merge(found, on=["base", "row_id", "kind"], validate="one_to_one")


# ---- how good an estimate is, where the truth is known --------------------------------------------------------------


def calibration_error(posterior, is_noise, n_bins=10):
    """Expected calibration error: how far the mean posterior lies from the true share of noise, over bins of equally
    many rows, weighted by their rows.

    posterior (n,) in [0, 1];  is_noise (n,) bool.  Returns a float in [0, 1], 0 for a perfect estimate.
    """
    posterior, is_noise = np.asarray(posterior, float), np.asarray(is_noise, float)
    bins = np.array_split(np.argsort(posterior, kind="stable"), min(n_bins, len(posterior)))
    gaps = [len(rows) * abs(posterior[rows].mean() - is_noise[rows].mean()) for rows in bins]
    return float(sum(gaps) / len(posterior))


def paper_estimate(psi, alpha):
    """What eq. 10 says of each row by itself: 1 - sigmoid(alpha * psi), (n,)."""
    return special.expit(-alpha * np.asarray(psi, float))
