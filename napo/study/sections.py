"""The study's part of the report: methods under noise, q over training, noise estimates, the paper's tables."""

from dataclasses import dataclass

import pandas as pd

from napo.methods import METHODS
from napo.noise import noise_levels
from napo.stats.intervals import t_interval
from napo.stats.measures import MEASURES
from napo.study import estimate_verdict, frames, markdown, paper
from napo.study.frames import CONTROL

MOST_CELLS = 900  # of the study's list: why noise is injected with fewer seeds (tests/study/test_frames.py)
TABLES = "The paper's tables, ours beside the paper's"
NO_NOISE = "This profile injects no noise: `make reproduce PROFILE=study`."


@dataclass(frozen=True)
class Study:
    """The frames of one run; a frame is empty if the profile did not run it."""

    curves: pd.DataFrame  # `frames.noise_curves`
    steps: pd.DataFrame  # `frames.steps` of frames.WATCHED
    q: pd.DataFrame  # `frames.q_use`
    levels: pd.DataFrame  # `noise_levels.read`
    tables: pd.DataFrame  # `frames.paper_tables`
    estimates: pd.DataFrame  # `estimate_verdict.table`


def gather(profile, scores, runs_dir="runs"):
    """The Study of a run. scores: long frame of its cells. Raises MissingArtifact."""
    curves, steps = frames.noise_curves(profile, runs_dir), frames.steps(profile, frames.WATCHED, runs_dir)
    levels, tables = noise_levels.read(profile, runs_dir), frames.paper_tables(scores)
    estimates = estimate_verdict.table(scores, frames.UNDER_NOISE, curves)
    return Study(curves, steps, frames.q_use(steps), levels, tables, estimates)


def tables(found):
    """{file name: frame} for the run's folder tables/."""
    named = {"noise_rates": found.curves, "q": found.q, "noise_levels": found.levels}
    return named | {"paper_tables": found.tables, "offer": found.estimates}


def texts(found):
    """The sections of report.md: a list of (title, Markdown). Each says so if it was not run."""
    return [
        (estimate_verdict.QUESTION, estimate_verdict.text(found.estimates)),
        ("Methods under noise", _curves_text(found.curves)),
        ("q against the noise", _q_text(found.q)),
        ("The estimate against the noise", _levels_text(found.levels)),
        (TABLES, _tables_text(found.tables)),
    ]


def comparisons(found):
    """How many differences the sections hold, for `report.trust`; some stand in more than one section."""
    under_noise = 0 if found.curves.empty else int((_clean_once(found.curves)["method"] != CONTROL).sum())
    counted = {"of methods under noise": under_noise, "of the noise estimates": len(found.estimates)}
    return counted | {"in the paper's tables": int(found.tables["value"].notna().sum()) if len(found.tables) else 0}


def _clean_once(frame, rate="flip_rate"):
    """The frame with noise rate 0 for one kind of noise only: there the kinds are the same runs."""
    return frame[(frame["noise_kind"] == frame["noise_kind"].iloc[0]) | (frame[rate] > 0)]


def _curves_text(curves):
    if curves.empty:
        return NO_NOISE
    seeds = str(curves["seeds"].iloc[0])
    parts = [f"Difference to {METHODS[CONTROL].label} at the same noise [95 % interval over bases]."]
    if seeds.isdecimal():
        parts.append(
            f"Injected noise is run with seed {seeds} alone and compared with the same seed without noise, which keeps "
            f"the list under {MOST_CELLS} trainings. These intervals do not include the variation between seeds."
        )
    curves = _clean_once(curves)
    others = curves[curves["method"] != CONTROL]
    for measure, part in others.groupby("measure", sort=False):
        parts.append(f"**{MEASURES[measure].label}{markdown.ARROW[MEASURES[measure].better]}**\n\n{_gains(part)}")
    return "\n\n".join([*parts, f"{markdown.not_corrected(len(others))} {markdown.CHAIR_NOTE}"])


def _gains(part):
    """Methods × levels of noise: the differences of one measure as a Markdown table."""
    levels = part[["noise_kind", "flip_rate"]].drop_duplicates().itertuples(index=False, name=None)
    levels = sorted(levels, key=lambda level: (level[1] > 0, level))
    lines = []
    for label, of_method in part.groupby("method_label", sort=False):
        cells = of_method.set_index(["noise_kind", "flip_rate"])
        lines.append([label, *(markdown.number(*cells.loc[at, ["gain", "gain_lo", "gain_hi"]]) for at in levels)])
    return markdown.table(["method", *(markdown.level(*level, "none") for level in levels)], lines)


def _q_text(use):
    if use.empty:
        return "No training with an adaptive q was run, or the truth is not known."
    lines = [
        [METHODS[r.method].label, r.kind, markdown.level(r.noise_kind, r.flip_rate, "none")]
        + [f"{r.q_lo:.2f} to {r.q_hi:.2f}", f"{r.q:.2f}", f"{r.true:.2f}", markdown.number(r.correlation, r.lo, r.hi)]
        for r in use.itertuples()
    ]
    header = ["method", "kind", "injected noise", "q, 95 % of the steps", "mean q", "true noise", "correlation [95 %]"]
    return (
        "q as the noise rate that it implies (half of the authors' q), beside the true share of wrong labels. The "
        "correlation with the batch's own noise is over the steps of a training.\n\n" + markdown.table(header, lines)
    )


def _levels_text(levels):
    if levels.empty:
        return "The truth of these rows is not known."
    lines = []
    for (kind, noise_kind, rate), part in _clean_once(levels, "rate").groupby(["kind", "noise_kind", "rate"]):
        means = (t_interval(part[name]) for name in ("true", "estimated", "auroc", "calibration"))
        lines.append([kind, markdown.level(noise_kind, rate, "none"), *(markdown.number(*mean) for mean in means)])
    header = ["kind", "injected noise", "true rate", "estimated rate", "AUROC", "calibration error"]
    return (
        "The kit's estimate (`napo/noise/posterior.py`), from forward passes of the untrained base alone; mean [95 % "
        "interval over bases]. It cannot see answers that are right by chance, which are most of the noise among the "
        "vision-biased: there the rate is a lower bound.\n\n" + markdown.table(header, lines)
    )


def _tables_text(tables):
    if tables.empty:
        return "None of these comparisons was run."
    lines = [
        [r.table, r.label, r.measure_label + markdown.ARROW[r.better], markdown.number(r.value, r.lo, r.hi, 3)]
        + [markdown.number(r.paper, digits=3)]
        for r in tables.itertuples()
    ]
    header = ["table", "difference", "measure", "ours [95 %]", f"paper ({paper.SOURCE})"]
    return (
        "Ours: the desk world's counterparts of the benchmarks. The paper's: one run each on LLaVA-1.5-7B, without "
        "intervals. Compare directions, not sizes. AMBER is in percent, the others are shares; – was not run. "
        f"{int(tables['value'].notna().sum())} comparisons of ours, none corrected for their number. "
        f"One number is open: {paper.MISPRINT}. {_left_out(tables)}\n\n" + markdown.table(header, lines)
    )


def _left_out(tables):
    """Which numbers of the paper's tables have no line, or no difference, in a frame of `paper_tables`, and why."""
    missing = [name for name in paper.TABLE_1 if name not in set(tables["measure"])]
    judged = [name for name in missing if paper.BENCHMARK[name] == "mmhal"]
    others = [MEASURES[name].label for name in missing if name not in judged]
    said = {
        "The paper copies its Object HalBench numbers of the base model from other work, which extracts objects by "
        "GPT. Two protocols have no difference, so ours stands alone there.": tables["paper"].isna().any(),
        "MMHal-Bench needs a chat model as judge and has no counterpart in the desk world: it has no line.": judged,
        f"Not scored in this run, so without a line: {', '.join(others)}.": others,
    }
    return " ".join(sentence for sentence, holds in said.items() if holds)
