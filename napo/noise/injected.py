"""Injected noise: wrong labels in a known share of the training rows, and the reference log-probs that follow.

swap  the chosen and each rejected answer change places, in every loss term
leak  good answers replace the biased ones (desk world only)
"""

from dataclasses import asdict, dataclass

import numpy as np

from napo.desk.leak import leak
from napo.engine import logps, models, preferences
from napo.engine.preferences import BIASED
from napo.noise import reference_logps
from napo.profiles import NOISE_KINDS
from napo.q import draw_flips
from napo.workshop import artifacts
from napo.workshop.files import BadInput, read_parquet


@dataclass(frozen=True)
class Injection:
    """Noise of one kind in a share of the rows. A seed draws the rows, the same ones for both kinds."""

    kind: str = "swap"
    rate: float = 0.0
    seed: int = 0

    @property
    def name(self):
        """Stem of its files under base-<b>/injected/."""
        return f"{self.kind}-f{self.rate:g}-s{self.seed}" if self.rate else "none"

    @property
    def settings(self):
        """Its part of an artefact's settings. Empty at rate 0, where kind and seed change nothing."""
        return asdict(self) if self.rate else {}

    @property
    def rng(self):
        return np.random.default_rng([self.seed, 1])

    @property
    def leaks(self):
        """Whether it replaces any answers."""
        return self.kind == "leak" and self.rate > 0


def of_cell(cell):
    """The Injection of a cell of the comparison."""
    return Injection(cell.noise_kind, cell.flip_rate, cell.seed)


def check(injection, profile):
    """Raises BadInput for an unknown kind, a leak without known truth, or a rate outside [0, 0.5)."""
    if injection.kind not in NOISE_KINDS:
        raise BadInput(f"unknown noise_kind {injection.kind!r}: use one of {', '.join(NOISE_KINDS)}")
    if injection.kind == "leak" and not profile.is_desk:
        problem = f"noise_kind 'leak' needs rows whose truth is known, profile {profile.name} has none"
        raise BadInput(f"{problem}: use 'swap', or the desk world")
    if not 0 <= injection.rate < 0.5:
        raise BadInput(f"flip_rate={injection.rate:g}: give a share of the rows, at least 0 and below 0.5")


def drawn(n_rows, injection):
    """(n_rows,) bool: the rows that an injection changes."""
    return draw_flips(n_rows, injection.rate, injection.rng)


def inject(rows, injection):
    """(rows with their answers replaced, (n,) bool: rows whose chosen and rejected answers change places).

    A swap changes no row: the objective exchanges the answers. A leak returns a list and swaps none.
    """
    if injection.leaks:
        return leak(list(rows), injection.rate, injection.rng), np.zeros(len(rows), bool)
    return rows, drawn(len(rows), injection)


def reference(profile, base, injection, runs_dir="runs"):
    """Path of the training rows' reference log-probs under an injection.

    Swaps need base-<b>/reference.parquet only. A leak gets base-<b>/injected/<name>.parquet, made unless current.
    """
    clean = reference_logps.current(profile, base, runs_dir)
    if not injection.leaks:
        return clean
    pairs = clean.with_name("pairs.parquet")

    def make(path):
        rows = list(preferences.part(preferences.read(pairs), "train"))
        model, processor = models.load_base(profile, base)
        leaked, _ = inject(rows, injection)
        changed = [leaked[i] for i in np.flatnonzero(drawn(len(rows), injection))]
        with_leak(changed, read_parquet(clean, "02"), model, processor, profile.training).to_parquet(path, index=False)

    depends = reference_logps.made_from(profile, base, runs_dir)
    settings = depends["settings"] | {"injection": injection.settings}
    path = clean.parent / "injected" / f"{injection.name}.parquet"
    return artifacts.build(path, make, settings=settings, stage="noise", desk=True, inputs=[pairs, clean])


def with_leak(changed, reference, model, processor, training):
    """The reference frame with the log-probs of some rows' biased answers measured again.

    changed  list of rows with other biased answers than in `reference`;  model  the base;  training  profiles.Training
    """
    if not changed:
        return reference
    how = reference_logps.measured_by(training)
    found = logps.measure(model, processor, changed, BIASED, **how).set_index("row_id")
    reference = reference.set_index("row_id")
    columns = [f"{name}_{kind}" for kind in BIASED for name in ("logps", "tokens")]
    reference.loc[found.index, columns] = found[columns]
    return reference.reset_index()
