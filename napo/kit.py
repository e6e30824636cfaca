"""`Kit`: the stages of one profile as methods. Notebooks and short scripts call it.

    kit = napo.Kit("desk")
    kit.pairs(); kit.reference(); kit.probe(); kit.posterior()
    adapter = kit.train("napo_paper")
    scores = kit.evaluate("napo_paper")

Every stage resumes: it makes only what is missing or stale. A `Kit` computes nothing itself; each method calls a room.
"""

from dataclasses import replace
from functools import cached_property, partial

import numpy as np
import pandas as pd

from napo import profiles
from napo.comparison import cells
from napo.engine import logps, models, preferences
from napo.evaluation import evaluate
from napo.explorer import views, widgets
from napo.methods import CORRUPTED, METHODS
from napo.noise import injected, noise_levels, posterior, probe, reference_logps
from napo.pairs import perturb
from napo.preflight import checks
from napo.stats import measures
from napo.study import frames, paper, plot_style, report, sections
from napo.workshop import artifacts, grid
from napo.workshop.files import read_parquet, require, shown


class Markdown(str):
    """Text that a notebook renders."""

    def _repr_markdown_(self):
        return str(self)


class Kit:
    """One profile with its folders.

    profile    name of a profile: "smoke", "desk", "study", "paper", "paper_small"
    model, data, rows, device, methods, benchmarks   in place of the profile's own, as `napo.profile` takes them
    runs_dir   artefacts go to <runs_dir>/<profile>/
    Attributes: `profile` (all settings), `folder` (of its artefacts), `figures` (of its figures), `base` (its first).

    Where a method takes a `cell`, give a method's name or a `Cell` of `cell()`. Where it takes a `base`, None is the
    first. The first stage checks device, model, data and disk, and raises BadInput with the remedy.
    """

    def __init__(
        self, profile="desk", *, model="", data="", rows="", device="", methods="", benchmarks="", runs_dir="runs"
    ):
        overrides = {"model": model, "data": data, "rows": rows, "device": device}
        self.profile = profiles.get(profile, **overrides, methods=methods, benchmarks=benchmarks)
        self.runs_dir, self.base = runs_dir, self.profile.bases[0]
        self.folder = artifacts.run_folder(profile, runs_dir=runs_dir)
        self.figures = artifacts.figures_folder(profile, runs_dir)
        pd.options.display.html.use_mathjax = False  # "$" in the text of a row begins no formula

    # ---- 01: pairs --------------------------------------------------------------------------------------------------

    def pairs(self, bad_rows="stop"):
        """Make base-<b>/pairs.parquet of every base: preference rows with both biased answers.

        bad_rows  "stop": raise BadInput on an unusable row of the source; "drop": leave such rows out
        Returns the rows of the first base.
        """
        self._on_bases(perturb.pairs, "bases", bad_rows=bad_rows)
        return self.rows()

    def bias(self):
        """Answers of the untrained bases to the desk world's questions, in 4 bits and in full precision: one frame."""
        return pd.concat(map(pd.read_parquet, self._on_bases(evaluate.bias_table, "bias")), ignore_index=True)

    # ---- 02: noise --------------------------------------------------------------------------------------------------

    def reference(self):
        """Make base-<b>/reference.parquet of every base: its log-probs of every answer. Returns those of the first."""
        self._after_pairs(reference_logps.build, "reference log-probs")
        return self.logps()

    def probe(self):
        """Make base-<b>/noise.parquet of every base: raw margins, and reward margins after a short DPO. One frame."""
        paths = self._after_pairs(probe.noise_table, "probes")
        return pd.concat(map(pd.read_parquet, paths), ignore_index=True)

    def posterior(self):
        """Make base-<b>/posterior.parquet of every base: the probability per row that its label is wrong. One frame."""
        paths = self._after_pairs(posterior.table, "masked log-probs")
        return pd.concat(map(pd.read_parquet, paths), ignore_index=True)

    def levels(self):
        """Make base-<b>/noise_levels.parquet: the estimate at known rates of injected noise. One frame.

        Empty outside the desk world, where the true rate is unknown.
        """
        if self.profile.is_desk:
            self._after_pairs(noise_levels.table, "injected noise")
        return noise_levels.read(self.profile, self.runs_dir)

    def explorer(self):
        """The explorer's widget on the rows that no probe has seen."""
        return widgets.Explorer(views.rows_of(self.noise()), beta=self.profile.training.beta)

    # ---- 03: training -----------------------------------------------------------------------------------------------

    def train(self, cell, report_to=""):
        """Train one cell. Returns the folder of its adapter, for peft's `PeftModel.from_pretrained`.

        report_to  logging back ends besides steps.jsonl: "tensorboard,wandb"
        """
        models.free()
        folder = cells.train_cell(self.cell(cell), self._logging(report_to), self.runs_dir)
        print(shown(folder))
        return folder / "adapter"

    def train_all(self, report_to=""):
        """Train every cell of the profile, side by side on its workers. Returns the cells."""
        trained = [cell for cell in self.cells() if METHODS[cell.method].trained]
        sharing = [cell for cell in trained if _shares_inputs(cell)]
        bases = list(dict.fromkeys(cell.base for cell in sharing))
        share = partial(_make_shared_inputs, sharing, self._prepared, self.runs_dir)
        self._grid(bases, share, "shared inputs")
        self._on_cells(cells.train_cell, trained, "trainings", self._logging(report_to))
        return trained

    # ---- 04: evaluation ---------------------------------------------------------------------------------------------

    def evaluate(self, cell):
        """Ask one cell's model every benchmark of the profile. Returns its scores, one line per example and metric."""
        models.free()
        evaluate.evaluate_cell(self.cell(cell), self._prepared, self.runs_dir)
        return self.scores(cell)

    def evaluate_all(self):
        """Evaluate every cell of the profile, side by side on its workers. Returns the scores of `scores()`."""
        self.benchmarks()  # written once, before several workers read them
        self._on_cells(evaluate.evaluate_cell, self.cells(), "evaluations")
        return self.scores()

    def benchmarks(self):
        """The benchmarks that put questions to the models, as a list."""
        return evaluate.cell_benchmarks(self._prepared, self.runs_dir)

    def results(self, cell):
        """One cell on every measure, with intervals over examples, beside the paper's numbers where these compare."""
        cell, beside = self.cell(cell), []
        if not self.profile.is_desk:
            protocol = evaluate.protocol(self._prepared, self.benchmarks())
            beside = paper.reported(self.profile.model, protocol, [cell.method])
        table = frames.results_table(self.scores(cell), self.rng(), beside)
        return self.markdown(report.results_page(table, f"{cell.name}, by example"))

    def paired(self, treatment, control):
        """Two cells on the same examples: per measure the difference, its interval, a test and a verdict; a frame."""
        return frames.paired(self.scores(treatment), self.scores(control), self.rng())

    def cost(self, cell):
        """What a training did to general ability: one cell beside its untrained base, three lines of `paired`."""
        cell = self.cell(cell)
        return frames.general_ability(self.paired(cell, self.cell("base", cell.base)))

    # ---- 05: findings -----------------------------------------------------------------------------------------------

    def study(self):
        """The frames of the finished run that notebook 05 draws, as a `sections.Study`."""
        return sections.gather(self.profile, self.scores(), self.runs_dir)

    def report(self, study=None):
        """Write tables/, claims.json and report.md of the finished run.

        Returns (ledger of the ten claims, frame of methods × measures, frame of noise detectors).
        """
        study = study or self.study()
        return report.write(self.folder, self.profile, self.scores(), self.noise(), study, rng=self.rng())

    def claims(self):
        """The paper's ten claims with verdicts, a list of dicts; written to claims.json by `report`."""
        return self.report()[0]

    # ---- what is there ----------------------------------------------------------------------------------------------

    def cells(self):
        """Every cell of the comparison, trained or not."""
        return self.profile.cells()

    def cell(self, method, base=None, seed=None, flip_rate=0.0, noise_kind="swap"):
        """A method on a base with a seed, with injected noise in a share of its rows. A Cell comes back as it is.

        Raises BadInput for an unknown method.
        """
        if isinstance(method, profiles.Cell):
            return method
        profiles.method(method)
        base, seed = self._base(base), self.profile.seeds[0] if seed is None else seed
        return profiles.Cell(method, base, seed, flip_rate, noise_kind)

    def rows(self, base=None, part=None):
        """The preference rows of a base, as a Dataset; part: "train" or "heldout" (no training sees these)."""
        rows = preferences.read(require(self._base_file(base, "pairs.parquet"), "01"))
        return preferences.part(rows, part) if part else rows

    def logps(self, base=None):
        """The reference log-probs of a base, by row_id. Raises BadInput if they are missing or stale."""
        path = reference_logps.current(self._prepared, self._base(base), self.runs_dir)
        return read_parquet(path, "02").set_index("row_id")

    def noise(self):
        """Margins, noise estimates and truth of every row of every base: what `probe` and `posterior` made."""
        table = pd.concat(read_parquet(self._base_file(base, "noise.parquet"), "02") for base in self.profile.bases)
        return posterior.beside(table, self.profile, self.runs_dir)

    def steps(self, cell):
        """What a cell's training logged, one line per step; empty for an untrained method."""
        cell = self.cell(cell)
        if not METHODS[cell.method].trained:
            return pd.DataFrame()
        return pd.read_json(require(self._cell_file(cell, "steps.jsonl"), "03"), lines=True)

    def scores(self, cell=None):
        """Scores of one cell; without one, of all cells without injected noise or with swaps."""
        if cell is None:
            return evaluate.load_scores(self.profile, self.runs_dir)
        return read_parquet(self._cell_file(self.cell(cell), "scores.parquet"), "04")

    def run_values(self, measure):
        """The value of one measure, by its name, for every run of `scores()`."""
        return measures.run_values(self.scores(), measures.MEASURES[measure])

    def answers(self, cell):
        """A cell's answers to the benchmarks."""
        return read_parquet(self._cell_file(self.cell(cell), "answers.parquet"), "04")

    def model(self, base=None):
        """(model, processor) of a base, quantised as the profile says."""
        model, processor = models.load_base(self._prepared, self._base(base))
        if self.profile.quantisation.four_bit:
            models.check_quantised(model)
        return model, processor

    def policy(self, cell):
        """(policy, processor) as a cell's training starts: the base with a fresh adapter."""
        cell = self.cell(cell)
        model, processor = self.model(cell.base)
        return models.attach_lora(model, self.profile.lora, cell.seed), processor

    def trained(self, cell):
        """(policy, processor) after a cell's training. Raises BadInput if its adapter changes nothing."""
        return evaluate.load_cell(self.cell(cell), self._prepared, self.runs_dir)

    def parameters(self, model):
        """How many parameters each part of a model has, how many are in 4 bits, how many are trained."""
        return pd.DataFrame(models.parameter_table(model))

    @property
    def tolerance(self):
        """Nats by which rounding may change a log-prob of a sequence at the profile's precision."""
        return logps.TOLERANCE[self.profile.quantisation.dtype]

    def rng(self):
        """A random source for bootstraps, always from the same start."""
        return np.random.default_rng(0)

    def markdown(self, text):
        """Text that a notebook renders as Markdown."""
        return Markdown(text)

    def save(self, figure, name):
        """Write a figure to `figures`/<name>. Returns it, so that a cell shows it."""
        return plot_style.save(figure, self.figures / name)

    # ---- inside -----------------------------------------------------------------------------------------------------

    @cached_property
    def _prepared(self):
        """The profile once everything is checked, its hub repositories pinned."""
        return checks.prepared(self.profile, self.runs_dir)

    def _logging(self, report_to):
        return replace(self._prepared, report_to=tuple(report_to.replace(",", " ").split()))

    def _base(self, base):
        return self.base if base is None else base

    def _base_file(self, base, name):
        return self.folder / f"base-{self._base(base)}" / name

    def _cell_file(self, cell, name):
        return self.folder / "cells" / cell.name / name

    def _grid(self, items, worker, label):
        """Results of worker(item) for every item, on the profile's workers."""
        models.free()  # with one worker the items run in this process
        return grid.run(items, worker, workers=self.profile.workers, label=label) if items else []

    def _on_bases(self, stage, label, **settings):
        """Paths of stage(profile, base) for every base, printed."""
        worker = partial(stage, self._prepared, runs_dir=self.runs_dir, **settings)
        paths = self._grid(self.profile.bases, worker, label)
        print("\n".join(map(shown, paths)))
        return paths

    def _after_pairs(self, stage, label):
        for base in self.profile.bases:
            require(self._base_file(base, "pairs.parquet"), "01")
        return self._on_bases(stage, label)

    def _on_cells(self, stage, of_cells, label, profile=None):
        """stage(cell) for every one of some cells."""
        self._grid(of_cells, partial(stage, profile=profile or self._prepared, runs_dir=self.runs_dir), label)


# ---- what trainings share -------------------------------------------------------------------------------------------


def _shares_inputs(cell):
    """Whether a training reads artefacts that other trainings read too, and that no earlier notebook makes."""
    method = METHODS[cell.method]
    return bool(method.estimate) or CORRUPTED in method.kinds or injected.of_cell(cell).leaks


def _make_shared_inputs(of_cells, profile, runs_dir, base):
    """Make what the trainings on one base share, so that no two workers make the same file."""
    for cell in of_cells:
        if cell.base == base:
            cells.training_inputs(cell, profile, runs_dir)
