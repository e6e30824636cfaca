"""What a run found, as a page to read (`report.md`), tables and claims.json. No number is typed by hand.

`publish.py` puts it into git.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from napo import artifacts, claims, paper, stats
from napo.detectors import NOISE_DETECTORS, noise_table, with_detectors
from napo.profiles import METHODS

GROUPS = {  # measures that are always shown together
    "Questions": ("acc_counterfactual", "acc_factual", "acc_overall", "irrelevant", "words"),
    "Captions": ("CHAIRs", "CHAIRi", "Cover", "tokens"),
    "VLind-style statements": ("S_CK", "S_VP", "S_CB", "S_LP", "Acc_CB", "Acc_LP"),
    "AMBER": ("AMBER_CHAIR", "AMBER_Cover", "AMBER_Hal", "AMBER_Cog", "AMBER_acc"),
    "Is it there? (POPE)": ("POPE_acc", "POPE_yes"),
    "MMHal-Bench": ("MMHal_score", "MMHal_hal"),
    "Held-out preferences": ("pref_rejected", "pref_language_biased", "pref_vision_biased", "chosen_logp"),
}
CORE = (  # shown first, and in the README; every method stands in the report
    *("base", "sft", "dpo_original", "dpo_all", "oracle", "mdpo", "napo_paper", "napo_authors", "napo_q1"),
    *("robust_dpo", "napo_calibrated"),
)
CHAIR_NOTE = "CHAIR falls by itself when captions mention less: read it with coverage and length."
PAPER_NOTE = (
    f"Paper: {paper.SOURCE}; all weights trained on eight GPUs, where this kit trains LoRA. In all rows the authors' "
    "scripts frame a question by LLaVA's conversation v1 with its system sentence; here the model's chat template does."
)
TRUST = "## How far to trust this"
ARROW = {"higher": " ↑", "lower": " ↓", "neither": ""}
ESTIMATE_COLUMNS = "method method_label measure measure_label better value lo hi over n_bases n_seeds n_items".split()


# ---- tables ---------------------------------------------------------------------------------------------------------


def estimates(scores, measures=tuple(stats.MEASURES), *, flip_rate=0.0, development_bases=claims.DEVELOPMENT_BASES):
    """Every method on every measure with its interval: the frame that `plots.comparison` draws.

    scores  long frame: method, base, seed, flip_rate, benchmark, metric, example_id, value
    Returns a frame method, method_label, measure, measure_label, better, value, lo, hi, over, n_bases, n_seeds, n_items
    (examples that each run was asked), in the order of METHODS; methods and measures without scores are absent.
    Untrained methods count at every flip rate.
    """
    rows = []
    for name in measures:
        measure = stats.MEASURES[name]
        runs = stats.run_values(scores[~scores["base"].isin(development_bases)], measure)
        at_rate = runs["flip_rate"] == runs["method"].isin(stats.SEEDLESS).map({True: 0.0, False: flip_rate})
        for method, of_method in sorted(runs[at_rate].groupby("method"), key=lambda item: _place(item[0])):
            label = METHODS[method].label if method in METHODS else method
            row = {"method": method, "method_label": label, "measure": name, "measure_label": measure.label}
            row |= {"better": measure.better, "n_items": int(of_method["n_examples"].max())}
            rows.append(row | asdict(stats.estimate(of_method)))
    return pd.DataFrame(rows, columns=ESTIMATE_COLUMNS)


def _place(method):
    """Sort key: METHODS' order, unknown ones last."""
    known = list(METHODS)
    return known.index(method) if method in known else len(known), method


def number(value, lo=None, hi=None, digits=2):
    """ "0.41 [0.35, 0.47]"; without an interval "0.41"; "–" for nothing."""
    if value is None or not np.isfinite(value):
        return "–"
    bounds = [] if lo is None or hi is None or not (np.isfinite(lo) and np.isfinite(hi)) else [lo, hi]
    head, *tail = (f"{x + 0.0:.{digits}f}".replace("-", "−") for x in (value, *bounds))
    return f"{head} [{', '.join(tail)}]" if tail else head


def markdown_table(header, rows):
    """Lines of a markdown table; `|` in cells is escaped."""
    lines = [list(header), ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def method_table(table, measures):
    """Methods × measures as markdown, from the frame of `estimates`; "" if none of the measures is there."""
    here = [name for name in measures if name in set(table["measure"])]
    if not here:
        return ""
    cells = {(row.method, row.measure): row for row in table.itertuples()}
    labels = dict(zip(table["method"], table["method_label"], strict=True))
    rows = [
        [label, *(_cell(cells[method, name]) if (method, name) in cells else "–" for name in here)]
        for method, label in labels.items()
    ]
    return markdown_table(["method", *(stats.MEASURES[n].label + ARROW[stats.MEASURES[n].better] for n in here)], rows)


def items_text(table, measures):
    """How many items each run was asked, per measure: "Items of each run: 300 (CHAIR_s, coverage), 100 (S_CB)." """
    here = table[table["measure"].isin(measures)]
    found = {name: rows["measure_label"].unique() for name, rows in here.groupby("n_items", sort=False)}
    return "Items of each run: " + ", ".join(f"{n} ({', '.join(labels)})" for n, labels in found.items()) + "."


def results_page(table, heading):
    """The frame of `stats.results_table` as a page: numbers with intervals beside the paper's, marked where these are
    not of the same benchmark and protocol."""
    reasons = list(dict.fromkeys(reason for reason in table["differs"].dropna() if reason))
    marks = {reason: f"[{chr(ord('a') + i)}]" for i, reason in enumerate(reasons)}
    printed = list(dict.fromkeys(table["paper_row"].dropna()))
    rows = []
    for _, lines in table.groupby(["method", "measure"], sort=False):
        line = lines.iloc[0]
        percent = stats.MEASURES[line["measure"]].scale == 100
        digits = 1 if percent or line["measure"] == "tokens" else 3
        beside = {r.paper_row: number(r.paper, digits=digits) + marks.get(r.differs, "") for r in lines.itertuples()}
        rows.append(
            [
                line["method"],
                line["label"] + ARROW[line["better"]],
                number(line["value"], line["lo"], line["hi"], digits),
            ]
            + [line["over"], line["n"], *(beside.get(label, "–") for label in printed)]
        )
    header = ["model", "measure", "value [95 %]", "interval over", "examples", *(f"paper: {p}" for p in printed)]
    notes = [f"{mark} not the same protocol: {reason}." for reason, mark in marks.items()]
    return (
        "\n\n".join([f"# {heading}", markdown_table(header, rows), *notes, *([PAPER_NOTE] if printed else [])]) + "\n"
    )


def _cell(row):
    return number(row.value, row.lo, row.hi, 1 if row.measure in ("tokens", "words") else 2)


def claims_table(ledger):
    """One line per claim as markdown, with what it says about the paper's model where the ledger holds that."""
    rows = [[c["id"], c["claim"], f"**{c['verdict']}**", c["n_bases"], c.get("note", "")] for c in ledger]
    header = ["", "claim", "verdict", "bases", "why"]
    if any(c.get("about_llava") for c in ledger):
        rows = [[*row, c["about_llava"]] for row, c in zip(rows, ledger, strict=True)]
        header.append("what this says and does not say about LLaVA-1.5-7B")
    return markdown_table(header, rows)


def component_table(ledger):
    """One line per component that was run, as markdown."""
    rows = []
    for claim in ledger:
        for c in (c for c in claim["components"] if c["verdict"] != "not run"):
            wanted = (
                f"within ±{c['margin']:g}"
                if c["margin"]
                else {"up": "> ", "down": "< "}[c["direction"]] + f"{c['null']:g}".replace("-", "−")
            )
            effect = number(c["effect"], *c["ci95"], digits=3)
            rows.append([claim["id"], c["metric"], c["comparison"], effect, wanted, c["over"], c["verdict"]])
    header = ["claim", "measure", "comparison", "effect [95 %]", "claimed", "interval over", "verdict"]
    return markdown_table(header, rows) if rows else "None was run."


# ---- the page -------------------------------------------------------------------------------------------------------


def markdown(profile, table, noise, ledger, command, sections=(), comparisons=None):
    """report.md as text. profile: Profile; table, noise: frames of `estimates`, `noise_table`; ledger: of claims;
    sections: (title, markdown) of what else was looked at; comparisons: of `trust`."""
    parts = [
        f"# What the `{profile.name}` run found",
        f"Written by notebook 05; `{command}` makes it again. Every number below is generated.",
        "## Setting",
        _setting(profile),
        "## Methods",
        f"Mean [95 % interval{over_what(table)}]. ↑ higher is better, ↓ lower.",
    ]
    for title, measures in GROUPS.items():
        text = method_table(table, measures)
        parts += [f"### {title}", text, items_text(table, measures)] if text else []
        parts += [CHAIR_NOTE] if text and "CHAIRs" in measures else []
    parts += [
        "## Noise",
        _noise_text(noise),
        *(text for title, body in sections for text in (f"## {title}", body)),
        "## Claims",
        claims_table(ledger),
        "### Components",
        component_table(ledger),
    ]
    parts += [TRUST, "\n".join(f"- {line}" for line in trust(profile, ledger, comparisons))]
    return "\n\n".join(parts) + "\n"


def over_what(table):
    """ " over seeds": what the intervals of a frame of `estimates` are over."""
    over = list(dict.fromkeys(table["over"])) if len(table) else []
    return f" over {' or '.join(over)}" if over else ""


def _setting(profile):
    t, weights = profile.training, "4-bit NF4" if profile.quantisation.four_bit else "unquantised"
    numbers = f"{t.beta:g}, {t.learning_rate:g}, {t.epochs:g}, {t.batch_size} × {t.accumulation}"
    rows = [
        ["model, data", f"{profile.model}, {profile.data}"],
        ["rows", f"{profile.rows} to train on, {profile.heldout_rows} held out"],
        ["bases; seeds", f"{', '.join(map(str, profile.bases))}; {', '.join(map(str, profile.seeds))}"],
        ["trained", f"LoRA r = {profile.lora.r} on {weights} weights, {profile.device}"],
        ["β, learning rate, epochs, batch", numbers],
        ["masked image", profile.perturbation.image],
    ]
    return markdown_table(["setting", "value"], rows)


def _noise_text(noise):
    if noise is None or noise.empty:
        return "The truth of these rows is not known, or notebook 02 was not run: no noise rate, no AUROC."
    kinds = noise.drop_duplicates("kind")
    rates = [
        f"{r.kind}: {number(r.noise_rate, r.rate_lo, r.rate_hi)} of {r.n_rows} rows, interval over {r.rate_over}"
        for r in kinds.itertuples()
    ]
    rows = [
        [r.kind, NOISE_DETECTORS[r.detector], number(r.auroc, r.lo, r.hi), r.over]
        + [number(r.within_kinds, r.within_lo, r.within_hi), r.within_over]
        + [number(r.within_other, r.within_other_lo, r.within_other_hi), r.within_other_over]
        + [number(r.estimated_rate, r.estimated_rate_lo, r.estimated_rate_hi)]
        + [number(r.calibration, r.calibration_lo, r.calibration_hi)]
        for r in noise.itertuples()
    ]
    header = ["kind", "small value of", "AUROC [95 %]", "over", "within question kinds", "over"]
    header += [
        "within question kinds, other than the chosen answer",
        "over",
        "noise rate it names",
        "calibration error",
    ]
    return (
        "Share of negatives that are in truth good answers: " + "; ".join(rates) + ".\n\n"
        "How well a small value finds them (0.5 = not at all); raw margins are the base's alone, before training. "
        "Within question kinds: only rows of one base and one kind of question are compared.\n\n"
        + markdown_table(header, rows)
    )


def trust(profile, ledger, comparisons=None):
    """Sentences on what the run can and cannot say, from what it was. comparisons: {what: number of those made beside
    the ledger's}."""
    ran = [c for claim in ledger for c in claim["components"] if c["verdict"] != "not run"]
    made = {"for the claims": len(ran), **(comparisons or {})}
    parts = f" ({', '.join(f'{n} {what}' for what, n in made.items() if n)})" if any(made.values()) else ""
    n_bases = max((c["n_bases"] for c in ran), default=0)
    lines = [
        f"{sum(made.values())} comparisons were made{parts}; none is corrected for their number.",
        f"At most {n_bases} reporting base{'s'[: n_bases != 1]}: "
        + ("intervals speak for new bases." if n_bases >= claims.MIN_BASES else "no verdict can speak for new bases, "
           f"which takes {claims.MIN_BASES}; an interval over seeds or rows speaks for this base only."),
        "The rule for verdicts was fixed before the run; it stands in `napo/claims.py`.",
    ]  # fmt: skip
    if profile.is_desk:
        lines.append(
            "The desk world (rendered scenes, models of under a million parameters) tests the mechanics and the noise "
            "behaviour of the method. It says nothing about the scores of LLaVA-1.5-7B."
        )
    if profile.quantisation.four_bit:
        lines.append("Trained: LoRA on a 4-bit base on one device; the paper trained all weights on 8 GPUs.")
    return lines


def write(folder, profile, scores, noise=None, *, rng, command=None, sections=(), tables=None, comparisons=None):
    """Notebook 05's last act: tables/*.csv, claims.json and report.md in `folder`, each whole or not at all.

    profile  Profile;  scores, noise  all cells' and all bases' frames;  rng  of the bootstrap
    sections, tables  what else goes into the page, (title, markdown), and into tables/, {name: frame}
    comparisons  how many these hold, {what: number}
    Returns (ledger, estimates frame, noise table or None).
    """
    folder = Path(folder)
    ledger, table = claims.ledger(scores, noise), estimates(scores)
    if not profile.is_desk:
        ledger = [claim | {"about_llava": ""} for claim in ledger]  # what the desk world says of it is not the question
    noisy = None if noise is None else noise_table(noise, rng, beta=profile.training.beta)
    ledger = with_detectors(ledger, noisy)
    with artifacts.atomic(folder / "tables") as written:
        written.mkdir()
        for name, frame in {"methods": table, "noise": noisy, **(tables or {})}.items():
            if frame is not None and len(frame):
                frame.to_csv(written / f"{name}.csv", index=False)
    artifacts.write_json(ledger, folder / "claims.json")
    command = command or f"make reproduce PROFILE={profile.name}"
    page = markdown(profile, table, noisy, ledger, command, sections, comparisons)
    with artifacts.atomic(folder / "report.md") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return ledger, table, noisy
