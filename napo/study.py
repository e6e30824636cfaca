"""What the study's figures and tables show, as frames: methods under noise, q over training, the paper's tables, ROC.

Intervals are those of `stats.py`: over bases, where there are several.
"""

from dataclasses import replace

import numpy as np
import pandas as pd

from napo import artifacts, claims, detectors, evaluate, noise, offer, paper, report, stats, train
from napo.posterior import BIASED
from napo.profiles import METHODS

WATCHED = ("napo_paper", "napo_authors", "napo_calibrated", "napo_row_q", "napo_literal")  # their q and gamma
CONTROL = "dpo_all"  # what the methods are compared with under noise
COMPARED = {"gain": CONTROL, "over_paper": offer.PAPER}  # column of `noise_curves` -> what its difference is to
COMPARED_COLUMNS = [f"{column}{bound}" for column in COMPARED for bound in ("", "_lo", "_hi")]
UNDER_NOISE = (
    *("acc_counterfactual", "acc_factual", "acc_overall", "irrelevant", "words", "CHAIRs", "CHAIRi", "Cover", "tokens"),
    *("S_CK", "S_VP", "S_CB", "S_LP", "Acc_CB", "Acc_LP"),
)
MOST_CELLS = 900  # of the study's list: why noise is put in with fewer seeds (tests/test_study.py)
POINTS = 12  # of a curve over training: the steps between two are averaged
ROC_GRID = np.linspace(0, 1, 101)


# ---- methods under noise --------------------------------------------------------------------------------------------


def noise_curves(profile, runs_dir="runs", measures=UNDER_NOISE):
    """Every method that was trained with noise put in, at every rate and kind, with the seeds that have all rates.

    Returns a frame noise_kind, flip_rate, the columns of `report.estimates`, and gain, gain_lo, gain_hi, over_paper,
    over_paper_lo, over_paper_hi: the paired differences to CONTROL and to the paper's NaPO at the same noise, and
    seeds, the names of the seeds that it holds. Empty where the profile puts in none.
    """
    if max(profile.flip_rates) == 0:
        return pd.DataFrame(columns=["noise_kind", "flip_rate", *report.ESTIMATE_COLUMNS, *COMPARED_COLUMNS, "seeds"])
    methods, seeds = profile.noisy_methods or profile.methods, profile.noisy_seeds or profile.seeds
    noisy = replace(profile, methods=methods, seeds=seeds)  # the other cells' scores are not even read
    parts = []
    for noise_kind in profile.noise_kinds:
        scores = evaluate.load_scores(noisy, runs_dir, noise_kind)
        for rate in profile.flip_rates:
            found = report.estimates(scores, measures, flip_rate=rate)
            parts.append(found.assign(noise_kind=noise_kind, flip_rate=rate, **_differences(scores, found, rate)))
    return pd.concat(parts, ignore_index=True).assign(seeds=", ".join(map(str, seeds)))


def _differences(scores, table, rate):
    """Paired differences to COMPARED for each line of a frame of `report.estimates`: dict column -> list."""
    reporting = scores[~scores["base"].isin(claims.DEVELOPMENT_BASES)]
    values = {name: stats.run_values(reporting, stats.MEASURES[name]) for name in table["measure"].unique()}
    out = {}
    for column, control in COMPARED.items():
        found = [stats.paired_difference(values[r.measure], r.method, control, rate) for r in table.itertuples()]
        out |= {column: [f.value for f in found], f"{column}_lo": [f.lo for f in found]}
        out |= {f"{column}_hi": [f.hi for f in found]}
    return out


# ---- q and gamma over training --------------------------------------------------------------------------------------


def steps(profile, methods, runs_dir="runs", flip_rates=None):
    """The logged q, gamma and true noise of every step of the trainings of some methods.

    flip_rates  which of the profile's; None: without noise put in, and with the most of it
    Returns a frame method, base, seed, noise_kind ("" without noise), flip_rate, step, name ("q" | "gamma" | "true"),
    kind, value. q is given as the noise rate that it names (`noise.implied_noise_rate`).
    """
    rates = {0.0, max(profile.flip_rates)} if flip_rates is None else set(flip_rates)
    cells = [c for c in profile.cells() if c.method in methods and METHODS[c.method].trained and c.flip_rate in rates]
    frames = [_steps_of(cell, train.cell_folder(profile, cell, runs_dir)) for cell in cells]
    columns = ["method", "base", "seed", "noise_kind", "flip_rate", "step", "name", "kind", "value"]
    return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)


def _steps_of(cell, folder):
    wide = pd.read_json(artifacts.require(folder / "steps.jsonl", "03"), lines=True)
    watched = [column for column in wide if column.startswith("noise/")]
    long = wide.melt("step", watched, "column", "value")
    long[["name", "kind"]] = long.pop("column").str.removeprefix("noise/").str.split("_", n=1, expand=True)
    if METHODS[cell.method].convention == "authors":
        long["value"] = long["value"].where(long["name"] != "q", noise.implied_noise_rate(long["value"], "authors"))
    about = {"method": cell.method, "base": cell.base, "seed": cell.seed, "flip_rate": cell.flip_rate}
    return long.assign(**about, noise_kind=cell.noise_kind if cell.flip_rate else "")


def over_training(watched):
    """Curves of a frame of `steps`: at most POINTS means of neighbouring steps, with their intervals over bases.

    Returns a frame method, noise_kind, flip_rate, name, kind, step, value, lo, hi, over.
    """
    groups = ["method", "noise_kind", "flip_rate", "name", "kind"]
    per_point = max(1, -(-int(watched["step"].max()) // POINTS)) if len(watched) else 1
    watched = watched.assign(point=(watched["step"] - 1) // per_point)
    per_run = watched.groupby([*groups, "point", "base", "seed"], as_index=False).agg(
        value=("value", "mean"), step=("step", "mean")
    )
    rows = []
    for key, runs in per_run.groupby([*groups, "point"]):
        found = stats.estimate(runs)
        line = dict(zip(groups, key, strict=False)) | {"step": runs["step"].mean()}
        rows.append(line | {"value": found.value, "lo": found.lo, "hi": found.hi, "over": found.over})
    return pd.DataFrame(rows, columns=[*groups, "step", "value", "lo", "hi", "over"])


def q_use(watched):
    """How much of its range q uses, and whether it follows the noise.

    watched  frame of `steps`
    Returns a frame method, kind, noise_kind, flip_rate, q_lo, q_hi (2.5 and 97.5 % of all steps), q, true (means),
    correlation, lo, hi (of q with the batch's true noise over the steps of a training, mean over bases; nan where one
    of them never moves).
    """
    rows = []
    groups = ["method", "kind", "noise_kind", "flip_rate"]
    for key, part in watched[watched["kind"].isin(BIASED)].groupby(groups):
        wide = part.pivot_table(index=["base", "seed", "step"], columns="name", values="value")
        if "q" not in wide or "true" not in wide:
            continue
        runs = wide.groupby(["base", "seed"]).apply(lambda run: _correlation(run["q"], run["true"])).rename("value")
        found = stats.estimate(runs.reset_index())
        lo, hi = wide["q"].quantile([0.025, 0.975])
        line = dict(zip(groups, key, strict=True)) | {"q_lo": lo, "q_hi": hi, "q": wide["q"].mean()}
        line |= {"true": wide["true"].mean(), "correlation": found.value, "lo": found.lo, "hi": found.hi}
        rows.append(line)
    return pd.DataFrame(rows, columns=[*groups, "q_lo", "q_hi", "q", "true", "correlation", "lo", "hi"])


def _correlation(a, b):
    return np.nan if a.std() == 0 or b.std() == 0 else float(np.corrcoef(a, b)[0, 1])


# ---- the paper's tables ---------------------------------------------------------------------------------------------


def paper_tables(scores):
    """The comparisons of the paper's Tables 1-4, ours beside the paper's: differences, treatment minus control.

    scores  long frame of cells
    Returns a frame table, label, treatment, control, measure, measure_label, better, value, lo, hi, over, n_bases, and
    paper (its own difference, one run each, no interval); value nan where one of the two was not run.
    """
    reporting = scores[~scores["base"].isin(claims.DEVELOPMENT_BASES)]
    values, rows = {}, []
    for comparison in paper.COMPARISONS:
        for name, printed in comparison.differences().items():
            measure = stats.MEASURES[name]
            if name not in values:
                values[name] = stats.run_values(reporting, measure)
            if values[name].empty:
                continue
            found = stats.paired_difference(values[name], comparison.treatment, comparison.control)
            line = {"table": comparison.table, "label": comparison.label}
            line |= {"treatment": comparison.treatment, "control": comparison.control, "measure": name}
            line |= {"measure_label": measure.label, "better": measure.better, "value": found.value, "lo": found.lo}
            rows.append(line | {"hi": found.hi, "over": found.over, "n_bases": found.n_bases, "paper": printed})
    return pd.DataFrame(rows)


# ---- detectors ------------------------------------------------------------------------------------------------------


def roc(noisy, beta=None):
    """ROC curves of every detector of noise, a small value against the truth, mean over bases.

    noisy  frame of `margins.noise_table` and `posterior.beside`; measured rows with known truth count
    Returns a frame kind, detector, false_positives, true_positives.
    """
    noisy = detectors.known_rows(noisy, beta)
    rows = []
    for kind, of_kind in noisy.groupby("kind"):
        for detector in (name for name in detectors.NOISE_DETECTORS if name in of_kind):
            curves = [_roc(of_base[detector], of_base["is_noise"]) for _, of_base in of_kind.groupby("base")]
            curves = [curve for curve in curves if curve is not None]
            if curves:
                line = {"kind": kind, "detector": detector, "false_positives": ROC_GRID}
                rows.append(pd.DataFrame(line | {"true_positives": np.mean(curves, axis=0)}))
    columns = ["kind", "detector", "false_positives", "true_positives"]
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=columns)


def _roc(values, truth):
    """Share of the noise found, (101,), at each share of false alarms of ROC_GRID; None where all rows are alike."""
    values, truth = values.to_numpy(float), truth.to_numpy(bool)
    if truth.all() or not truth.any():
        return None
    levels = np.unique(values)
    found, alarms = (np.searchsorted(np.sort(values[side]), levels, "right") / side.sum() for side in (truth, ~truth))
    return np.interp(ROC_GRID, np.r_[0.0, alarms], np.r_[0.0, found])


# ---- the page -------------------------------------------------------------------------------------------------------


def sections(curves, use, levels, tables, offered):
    """The study's part of report.md: a list of (title, markdown); what was not run says so.

    curves, use, tables, offered  frames of `noise_curves`, `q_use`, `paper_tables`, `offer.table`
    levels  frame of `noise_levels.table`, all bases
    """
    return [
        (offer.QUESTION, offer.text(offered)),
        ("Methods under noise", _curves_text(curves)),
        ("q against the noise", _use_text(use)),
        ("The estimate against the noise", _levels_text(levels)),
        (TABLES, _tables_text(tables)),
    ]


def comparisons(curves, tables, offered):
    """How many differences the sections hold, for `report.trust`; some stand in more than one of them."""
    under_noise = 0 if curves.empty else int((_noise_once(curves)["method"] != CONTROL).sum())
    counted = {"of methods under noise": under_noise, "of the noise estimates": len(offered)}
    return counted | {"in the paper's tables": int(tables["value"].notna().sum()) if len(tables) else 0}


def _noise_once(curves):
    """The frame of `noise_curves` with noise rate 0 for one kind only: there the kinds are the same runs."""
    return curves[(curves["noise_kind"] == curves["noise_kind"].iloc[0]) | (curves["flip_rate"] > 0)]


TABLES = "The paper's tables, ours beside the paper's"
NO_NOISE = "This profile puts in no noise: `make reproduce PROFILE=study`."


def _curves_text(curves):
    if curves.empty:
        return NO_NOISE
    seeds = str(curves["seeds"].iloc[0])
    parts = [f"Difference to {METHODS[CONTROL].label} at the same noise [95 % interval over bases]."]
    if seeds.isdecimal():
        parts.append(
            f"Noise levels are run with seed {seeds} alone, and compared with that seed without noise: so the list of "
            f"trainings stays under {MOST_CELLS} cells. What another seed would change, these intervals do not hold."
        )
    curves = _noise_once(curves)
    for measure, part in curves.groupby("measure", sort=False):
        levels = part[["noise_kind", "flip_rate"]].drop_duplicates().itertuples(index=False, name=None)
        levels = sorted(levels, key=lambda level: (level[1] > 0, level))
        lines = []
        for label, of_method in part[part["method"] != CONTROL].groupby("method_label", sort=False):
            cells = of_method.set_index(["noise_kind", "flip_rate"])
            found = (cells.loc[level, ["gain", "gain_lo", "gain_hi"]] for level in levels)
            lines.append([label, *(report.number(*numbers) for numbers in found)])
        header = ["method", *(_put_in(*level) for level in levels)]
        better = report.ARROW[stats.MEASURES[measure].better]
        parts.append(f"**{stats.MEASURES[measure].label}{better}**\n\n" + report.markdown_table(header, lines))
    n = int((curves["method"] != CONTROL).sum())
    parts.append(f"{n} comparisons; none is corrected for their number. {report.CHAIR_NOTE}")
    return "\n\n".join(parts)


def _put_in(noise_kind, rate):
    return f"{noise_kind} {rate:.0%}" if rate else "none"


def _use_text(use):
    if use.empty:
        return "No training with an adaptive q was run, or the truth is not known."
    lines = [
        [METHODS[r.method].label, r.kind, _put_in(r.noise_kind, r.flip_rate)]
        + [f"{r.q_lo:.2f} to {r.q_hi:.2f}", f"{r.q:.2f}", f"{r.true:.2f}", report.number(r.correlation, r.lo, r.hi)]
        for r in use.itertuples()
    ]
    header = ["method", "kind", "noise put in", "q, 95 % of the steps", "mean q", "true noise", "correlation [95 %]"]
    return (
        "q as the noise rate that it names (of the authors' q, half), beside the true share of wrong labels; the "
        "correlation is over the steps of a training, with the batch's own noise.\n\n"
        + report.markdown_table(header, lines)
    )


def _levels_text(levels):
    if levels.empty:
        return "The truth of these rows is not known."
    lines = []
    levels = levels[(levels["noise_kind"] == levels["noise_kind"].iloc[0]) | (levels["rate"] > 0)]  # 0 once
    for (kind, noise_kind, rate), part in levels.groupby(["kind", "noise_kind", "rate"]):
        found = [stats.t_interval(part[name]) for name in ("true", "estimated", "auroc", "calibration")]
        lines.append([kind, _put_in(noise_kind, rate), *(report.number(*each) for each in found)])
    header = ["kind", "noise put in", "true rate", "estimated rate", "AUROC", "calibration error"]
    return (
        "The kit's estimate (`posterior.py`), from forward passes of the untrained base alone; mean [95 % interval "
        "over bases]. Answers that are right by chance, most of the noise among the vision-biased, cannot be seen that "
        "way: there the rate is a lower bound.\n\n" + report.markdown_table(header, lines)
    )


def _tables_text(tables):
    if tables.empty:
        return "None of these comparisons was run."
    lines = [
        [r.table, r.label, r.measure_label + report.ARROW[r.better], report.number(r.value, r.lo, r.hi, 3)]
        + [report.number(r.paper, digits=3)]
        for r in tables.itertuples()
    ]
    header = ["table", "difference", "measure", "ours [95 %]", f"paper ({paper.SOURCE})"]
    return (
        "Ours: the desk world's counterparts of the benchmarks; the paper's: one run each on LLaVA-1.5-7B, no "
        "interval. Directions can be compared, sizes cannot. AMBER in percent, the others as shares; – is not run. "
        f"{int(tables['value'].notna().sum())} comparisons of ours, none corrected for their number. "
        f"One number is open: {paper.MISPRINT}. {_left_out(tables)}\n\n" + report.markdown_table(header, lines)
    )


def _left_out(tables):
    """Which numbers of the paper's tables have no line or no difference in a frame of `paper_tables`, and why."""
    there = set(tables["measure"])
    missing = [name for name in paper.TABLE_1 if name not in there]
    judged, others = ([m for m in missing if (paper.BENCHMARK[m] == "mmhal") is which] for which in (True, False))
    said = []
    if tables["paper"].isna().any():
        said.append(
            "The paper's Object HalBench numbers of the base model are copied from other work, where objects were "
            "extracted by GPT: no difference is drawn between two protocols, ours stands alone there."
        )
    if judged:
        said.append("MMHal-Bench needs a chat model as judge and has no counterpart in the desk world: it has no line.")
    if others:
        labels = ", ".join(stats.MEASURES[m].label for m in others)
        said.append(f"Not scored in this run, so without a line: {labels}.")
    return " ".join(said)
