"""The frames behind the report's tables and figures. Intervals are over bases where there are several."""

from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd

from napo.comparison.cells import cell_folder
from napo.engine.preferences import BIASED
from napo.evaluation import evaluate
from napo.methods import METHODS
from napo.noise import detectors
from napo.profiles import DEVELOPMENT_BASES
from napo.q import implied_noise_rate
from napo.stats import intervals
from napo.stats.measures import MEASURES, example_parts, over_examples, paired_examples, run_values
from napo.study import paper
from napo.workshop.files import BadInput, require

WATCHED = ("napo_paper", "napo_authors", "napo_calibrated", "napo_row_q", "napo_literal")  # their q and gamma
CONTROL, PAPER = "dpo_all", "napo_paper"
COMPARED = {"gain": CONTROL, "over_paper": PAPER}  # column of `noise_curves` -> control of its paired difference
COMPARED_COLUMNS = [f"{column}{bound}" for column in COMPARED for bound in ("", "_lo", "_hi")]
GROUPS_UNDER_NOISE = ("Questions", "Captions", "VLind-style statements")
UNDER_NOISE = tuple(name for name, measure in MEASURES.items() if measure.group in GROUPS_UNDER_NOISE)
POINTS = 12  # of a curve over training: the steps between two are averaged
GUARDED = ("POPE_acc", "AMBER_acc", "chosen_logp")  # general ability: no method aims at these
ROC_GRID = np.linspace(0, 1, 101)
ESTIMATE = ["value", "lo", "hi", "over", "n_bases", "n_seeds"]
ESTIMATE_COLUMNS = ["method", "method_label", "measure", "measure_label", "better", *ESTIMATE, "n_items"]
DIFFERENCE_COLUMNS = ["treatment", "control", "measure", "measure_label", "better", *ESTIMATE]
RESULT_COLUMNS = "method measure label better value lo hi over n paper_row table paper differs".split()
PAIRED_COLUMNS = "measure label better treatment control value lo hi n_examples test p won lost verdict".split()


def estimates(scores, measures=tuple(MEASURES), *, flip_rate=0.0):
    """Every method on every measure with its interval: the frame that `plots.comparison` draws.

    scores  long frame: method, base, seed, flip_rate, benchmark, metric, example_id, value
    Returns a frame ESTIMATE_COLUMNS in the order of METHODS; n_items is the number of examples that each run was
    asked. Methods and measures without scores are absent. Untrained methods count at every flip rate.
    """
    lines, known = [], list(METHODS)
    for name, runs in _runs(scores, measures):
        at_rate = runs["flip_rate"] == runs["method"].isin(intervals.SEEDLESS).map({True: 0.0, False: flip_rate})
        of_methods = dict(list(runs[at_rate].groupby("method")))
        for method in sorted(of_methods, key=lambda name: known.index(name) if name in known else len(known)):
            of_method, label = of_methods[method], METHODS[method].label if method in METHODS else method
            line = {"method": method, "method_label": label, "n_items": int(of_method["n_examples"].max())}
            lines.append(line | _of_measure(name) | intervals.estimate(of_method).columns(*ESTIMATE))
    return pd.DataFrame(lines, columns=ESTIMATE_COLUMNS)


def differences(scores, pairs, measures=tuple(MEASURES), *, flip_rate=0.0):
    """Paired differences of methods on every measure that was scored, at one flip rate.

    scores  long frame as in `estimates`;  pairs  (treatment, control), …
    Returns a frame DIFFERENCE_COLUMNS; value nan if one of the two was not run.
    """
    lines = []
    for name, runs in _runs(scores, measures):
        for treatment, control in pairs:
            found = intervals.paired_difference(runs, treatment, control, flip_rate)
            lines.append({"treatment": treatment, "control": control} | _of_measure(name) | found.columns(*ESTIMATE))
    return pd.DataFrame(lines, columns=DIFFERENCE_COLUMNS)


def results_table(scores, rng, reported=()):
    """Every measure that the scores hold with its interval, beside the numbers reported elsewhere.

    scores    long frame at one flip rate; a single run has its interval over examples, several over bases or seeds
    reported  records {measure, paper_row, table, paper, differs}; `differs` is "" if benchmark and protocol agree
    Returns a frame RESULT_COLUMNS: one line per reported number, or one line where there is none.
    """
    lines = []
    for method, (name, measure) in product(scores["method"].unique(), MEASURES.items()):
        of_method = scores[scores["method"] == method]
        runs = run_values(of_method, measure)
        if runs.empty:
            continue
        found = over_examples(of_method, measure, rng) if len(runs) == 1 else intervals.estimate(runs)
        line = {"method": method, "measure": name, "label": measure.label, "better": measure.better}
        line |= found.columns() | {"n": int(runs["n_examples"].max())}
        lines += [line | beside for beside in reported if beside["measure"] == name] or [line]
    return pd.DataFrame(lines, columns=RESULT_COLUMNS)


def paired(treatment, control, rng):
    """Two runs on the same examples: both values, difference, test and verdict of every measure that either has.

    treatment, control  long frames of one run each;  rng of the bootstrap
    Returns a frame PAIRED_COLUMNS. Raises BadInput if the two were asked different examples.
    """
    lines = []
    for name, measure in MEASURES.items():
        if all(example_parts(scores, measure).empty for scores in (treatment, control)):
            continue
        try:
            found = paired_examples(treatment, control, measure, rng)
        except ValueError as error:
            raise BadInput(f"{error}; run notebook 04 again") from error
        lines.append({"measure": name, "label": measure.label, "better": measure.better} | vars(found))
        lines[-1]["verdict"] = found.verdict
    return pd.DataFrame(lines, columns=PAIRED_COLUMNS)


def general_ability(compared):
    """GUARDED before and after a training, from `paired` with the base as control; "not asked" without scores."""
    lines = compared.set_index("measure").reindex(GUARDED).rename(columns={"control": "before", "treatment": "after"})
    lines = lines.assign(label=[MEASURES[name].label for name in GUARDED]).fillna({"verdict": "not asked"})
    return lines[["label", "before", "after", "value", "lo", "hi", "n_examples", "verdict"]]


def _runs(scores, measures):
    """(measure, `run_values` of the reporting bases) for each measure that was scored."""
    reporting = scores[~scores["base"].isin(DEVELOPMENT_BASES)]
    found = ((name, run_values(reporting, MEASURES[name])) for name in measures)
    return ((name, runs) for name, runs in found if len(runs))


def _of_measure(name):
    return {"measure": name, "measure_label": MEASURES[name].label, "better": MEASURES[name].better}


def noise_curves(profile, runs_dir="runs", measures=UNDER_NOISE):
    """Every method that was trained with injected noise, at every rate and kind, with the seeds that have all rates.

    Returns a frame: noise_kind, flip_rate, ESTIMATE_COLUMNS, the paired differences at the same noise to CONTROL (gain,
    gain_lo, gain_hi) and to the paper's NaPO (over_paper, …), seeds (their names). Empty if no noise is injected.
    """
    if max(profile.flip_rates) == 0:
        return pd.DataFrame(columns=["noise_kind", "flip_rate", *ESTIMATE_COLUMNS, *COMPARED_COLUMNS, "seeds"])
    methods, seeds = profile.noisy_methods or profile.methods, profile.noisy_seeds or profile.seeds
    noisy = replace(profile, methods=methods, seeds=seeds)  # scores of other cells are not even read
    parts = []
    for noise_kind in profile.noise_kinds:
        scores = evaluate.load_scores(noisy, runs_dir, noise_kind)
        for rate in profile.flip_rates:
            found = estimates(scores, measures, flip_rate=rate)
            parts.append(_compared(scores, found, rate).assign(noise_kind=noise_kind, flip_rate=rate))
    return pd.concat(parts, ignore_index=True).assign(seeds=", ".join(map(str, seeds)))


def _compared(scores, found, rate):
    """A frame of `estimates` with COMPARED_COLUMNS."""
    methods, measures = found["method"].unique(), found["measure"].unique()
    beside = differences(scores, list(product(methods, COMPARED.values())), measures, flip_rate=rate)
    for column, control in COMPARED.items():
        names = {"treatment": "method", "value": column, "lo": f"{column}_lo", "hi": f"{column}_hi"}
        to_control = beside[beside["control"] == control].rename(columns=names)
        found = found.merge(to_control[["measure", *names.values()]], on=["method", "measure"], how="left")
    return found


def steps(profile, methods, runs_dir="runs"):
    """The logged q, gamma and true noise of every step of some methods, without and with the most injected noise.

    Returns a frame method, base, seed, noise_kind ("" without noise), flip_rate, step, name ("q" | "gamma" | "true"),
    kind, value. q is given as the noise rate that it implies (`q.implied_noise_rate`).
    """
    rates = {0.0, max(profile.flip_rates)}
    cells = [c for c in profile.cells() if c.method in methods and METHODS[c.method].trained and c.flip_rate in rates]
    columns = ["method", "base", "seed", "noise_kind", "flip_rate", "step", "name", "kind", "value"]
    found = [_steps_of(cell, cell_folder(profile, cell, runs_dir))[columns] for cell in cells]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=columns)


def _steps_of(cell, folder):
    wide = pd.read_json(require(folder / "steps.jsonl", "03"), lines=True)
    watched = [column for column in wide if column.startswith("noise/")]
    long = wide.melt("step", watched, "column", "value")
    long[["name", "kind"]] = long.pop("column").str.removeprefix("noise/").str.split("_", n=1, expand=True)
    if METHODS[cell.method].convention == "authors":
        long["value"] = long["value"].where(long["name"] != "q", implied_noise_rate(long["value"], "authors"))
    about = {"method": cell.method, "base": cell.base, "seed": cell.seed, "flip_rate": cell.flip_rate}
    return long.assign(**about, noise_kind=cell.noise_kind if cell.flip_rate else "")


def over_training(watched):
    """Curves of `steps`: at most POINTS means of neighbouring steps, with their intervals over bases.

    Returns a frame method, noise_kind, flip_rate, name, kind, step, value, lo, hi, over.
    """
    groups = ["method", "noise_kind", "flip_rate", "name", "kind"]
    per_point = max(1, -(-int(watched["step"].max()) // POINTS)) if len(watched) else 1
    points = watched.assign(point=(watched["step"] - 1) // per_point).groupby([*groups, "point", "base", "seed"])
    per_run = points.agg(value=("value", "mean"), step=("step", "mean")).reset_index()
    lines = [
        dict(zip(groups, key, strict=False)) | {"step": runs["step"].mean()} | intervals.estimate(runs).columns()
        for key, runs in per_run.groupby([*groups, "point"])
    ]
    return pd.DataFrame(lines, columns=[*groups, "step", "value", "lo", "hi", "over"])


def q_use(watched):
    """How much of its range q uses, and whether it follows the noise, from a frame of `steps`.

    Returns a frame: method, kind, noise_kind, flip_rate; q_lo, q_hi (2.5 and 97.5 % of all steps); q, true (means);
    correlation, lo, hi: of q with the batch's true noise over a training, mean over bases, nan if one never moves.
    """
    lines, groups = [], ["method", "kind", "noise_kind", "flip_rate"]
    for key, part in watched[watched["kind"].isin(BIASED)].groupby(groups):
        wide = part.pivot_table(index=["base", "seed", "step"], columns="name", values="value")
        if "q" not in wide or "true" not in wide:
            continue
        runs = wide.groupby(["base", "seed"]).apply(lambda run: run["q"].corr(run["true"])).rename("value")
        found = intervals.estimate(runs.reset_index())
        lo, hi = wide["q"].quantile([0.025, 0.975])
        line = {"q_lo": lo, "q_hi": hi, "q": wide["q"].mean(), "true": wide["true"].mean(), "correlation": found.value}
        lines.append(dict(zip(groups, key, strict=True)) | line | found.columns("lo", "hi"))
    return pd.DataFrame(lines, columns=[*groups, "q_lo", "q_hi", "q", "true", "correlation", "lo", "hi"])


def paper_tables(scores):
    """The comparisons of the paper's Tables 1-4 as differences, treatment minus control, ours beside the paper's.

    Returns a frame table, label, DIFFERENCE_COLUMNS, paper (its own difference: one run each, no interval); value nan
    if one of the two was not run.
    """
    printed = pd.DataFrame(
        {"table": c.table, "label": c.label, "treatment": c.treatment, "control": c.control, "measure": m, "paper": p}
        for c in paper.COMPARISONS
        for m, p in c.differences().items()
    )
    pairs = dict.fromkeys((c.treatment, c.control) for c in paper.COMPARISONS)
    ours = differences(scores, pairs, printed["measure"].unique())
    found = printed.merge(ours, on=["treatment", "control", "measure"])
    return found[["table", "label", *DIFFERENCE_COLUMNS, "paper"]]


def roc(noisy, beta=None):
    """ROC curves of every detector of noise (a small value means noise), mean over bases.

    noisy  frame of `probe.noise_table` and `posterior.beside`; measured rows with known truth count
    Returns a frame kind, detector, false_positives, true_positives.
    """
    curves, columns = [], ["kind", "detector", "false_positives", "true_positives"]
    for kind, of_kind in detectors.known_rows(noisy, beta).groupby("kind"):
        of_bases = [rows for _, rows in of_kind.groupby("base") if rows["is_noise"].nunique() == 2]
        for detector in (name for name in detectors.NOISE_DETECTORS if name in of_kind and of_bases):
            found = np.mean([_roc(rows[detector], rows["is_noise"]) for rows in of_bases], axis=0)
            line = {"kind": kind, "detector": detector, "false_positives": ROC_GRID, "true_positives": found}
            curves.append(pd.DataFrame(line))
    return pd.concat(curves, ignore_index=True) if curves else pd.DataFrame(columns=columns)


def _roc(values, truth):
    """Share of the noise found, (101,), at each share of false alarms of ROC_GRID."""
    values, truth = values.to_numpy(float), truth.to_numpy(bool)
    levels = np.unique(values)
    found, alarms = (np.searchsorted(np.sort(values[side]), levels, "right") / side.sum() for side in (truth, ~truth))
    return np.interp(ROC_GRID, np.r_[0.0, alarms], np.r_[0.0, found])
