"""A run's report: `report.md`, tables and claims.json. Every number is generated; `tools/publish.py` publishes it."""

from pathlib import Path

from napo.noise.detectors import NOISE_DETECTORS, noise_table, with_detectors
from napo.stats.measures import MEASURES
from napo.study import claims, frames, markdown, paper, sections
from napo.study.markdown import ARROW, CHAIR_NOTE, number
from napo.workshop.files import atomic, write_json

_SHOWN = (*frames.GROUPS_UNDER_NOISE, "AMBER", "Is it there? (POPE)", "MMHal-Bench", "Held-out preferences")
GROUPS = {group: tuple(name for name, m in MEASURES.items() if m.group == group) for group in _SHOWN}
CORE = (  # shown first, and in the README; the report shows every method
    *("base", "sft", "dpo_original", "dpo_all", "oracle", "mdpo", "napo_paper", "napo_authors", "napo_q1"),
    *("robust_dpo", "napo_calibrated"),
)
PAPER_NOTE = (
    f"Paper: {paper.SOURCE}; all weights trained on eight GPUs, where this kit trains LoRA. For all rows the authors' "
    "scripts wrap a question in LLaVA's conversation v1 with its system sentence; this kit uses the model's chat "
    "template."
)
TRUST = "## How far to trust this"


def method_table(table, measures):
    """Methods × measures as Markdown, from the frame of `frames.estimates`; "" if it has none of the measures."""
    here = [name for name in measures if name in set(table["measure"])]
    if not here:
        return ""
    cells = {(row.method, row.measure): row for row in table.itertuples()}
    labels = dict(zip(table["method"], table["method_label"], strict=True))
    rows = [[label, *(_cell(cells.get((method, name))) for name in here)] for method, label in labels.items()]
    return markdown.table(["method", *(MEASURES[n].label + ARROW[MEASURES[n].better] for n in here)], rows)


def _cell(row):
    return number(row.value, row.lo, row.hi, 1 if row.measure in ("tokens", "words") else 2) if row else "–"


def items_text(table, measures):
    """How many items each run was asked, per measure: "Items of each run: 300 (CHAIR_s, coverage), 100 (S_CB)." """
    here = table[table["measure"].isin(measures)]
    found = {name: rows["measure_label"].unique() for name, rows in here.groupby("n_items", sort=False)}
    return "Items of each run: " + ", ".join(f"{n} ({', '.join(labels)})" for n, labels in found.items()) + "."


def over_what(table):
    """What the intervals of a frame of `frames.estimates` are over: " over seeds"."""
    return f" over {' or '.join(table['over'].unique())}" if len(table) else ""


def results_page(table, heading):
    """The frame of `frames.results_table` as a page: numbers with intervals beside the paper's.

    A mark explains each of the paper's numbers that has another benchmark or protocol.
    """
    reasons = list(dict.fromkeys(reason for reason in table["differs"].dropna() if reason))
    marks = {reason: f"[{chr(ord('a') + i)}]" for i, reason in enumerate(reasons)}
    printed = list(dict.fromkeys(table["paper_row"].dropna()))
    rows = []
    for _, lines in table.groupby(["method", "measure"], sort=False):
        line = lines.iloc[0]
        digits = 1 if MEASURES[line["measure"]].scale == 100 or line["measure"] == "tokens" else 3
        beside = {r.paper_row: number(r.paper, digits=digits) + marks.get(r.differs, "") for r in lines.itertuples()}
        ours = number(line["value"], line["lo"], line["hi"], digits)
        row = [line["method"], line["label"] + ARROW[line["better"]], ours, line["over"], line["n"]]
        rows.append(row + [beside.get(label, "–") for label in printed])
    header = ["model", "measure", "value [95 %]", "interval over", "examples", *(f"paper: {p}" for p in printed)]
    notes = [f"{mark} not the same protocol: {reason}." for reason, mark in marks.items()]
    notes += [PAPER_NOTE] if printed else []
    return "\n\n".join([f"# {heading}", markdown.table(header, rows), *notes]) + "\n"


def claims_table(ledger):
    """One line per claim as Markdown, with what it says about the paper's model if the ledger holds that."""
    rows = [[c["id"], c["claim"], f"**{c['verdict']}**", c["n_bases"], c.get("note", "")] for c in ledger]
    header = ["", "claim", "verdict", "bases", "why"]
    if any(c.get("about_llava") for c in ledger):
        rows = [[*row, c["about_llava"]] for row, c in zip(rows, ledger, strict=True)]
        header.append("what this says and does not say about LLaVA-1.5-7B")
    return markdown.table(header, rows)


def component_table(ledger):
    """One line per component that was run, as Markdown."""
    ran = [(claim["id"], c) for claim in ledger for c in claim["components"] if c["verdict"] != "not run"]
    rows = [
        [name, c["metric"], c["comparison"], number(c["effect"], *c["ci95"], digits=3), _claimed(c)]
        + [c["over"], c["verdict"]]
        for name, c in ran
    ]
    header = ["claim", "measure", "comparison", "effect [95 %]", "claimed", "interval over", "verdict"]
    return markdown.table(header, rows) if rows else "None was run."


def _claimed(component):
    """What a component claims of its effect: "> 0", "within ±0.05"."""
    if component["margin"]:
        return f"within ±{component['margin']:g}"
    return {"up": "> ", "down": "< "}[component["direction"]] + f"{component['null']:g}".replace("-", "−")


def page(profile, table, noise, ledger, study=None):
    """report.md as text. table, noise: frames of `frames.estimates` and `noise_table`; study: `Study` or None."""
    parts = [
        f"# What the `{profile.name}` run found",
        f"Written by notebook 05; `make reproduce PROFILE={profile.name}` makes it again. Every number is generated.",
        "## Setting",
        _setting(profile),
        "## Methods",
        f"Mean [95 % interval{over_what(table)}]. ↑ higher is better, ↓ lower.",
    ]
    for title, measures in GROUPS.items():
        text = method_table(table, measures)
        parts += [f"### {title}", text, items_text(table, measures)] if text else []
        parts += [CHAIR_NOTE] if text and "CHAIRs" in measures else []
    parts += ["## Noise", _noise_text(noise)]
    for title, body in sections.texts(study) if study else ():
        parts += [f"## {title}", body]
    parts += ["## Claims", claims_table(ledger), "### Components", component_table(ledger)]
    parts += [TRUST, "\n".join(f"- {line}" for line in trust(profile, ledger, study))]
    return "\n\n".join(parts) + "\n"


def _setting(profile):
    t, weights = profile.training, "4-bit NF4" if profile.quantisation.four_bit else "unquantised"
    numbers = f"{t.beta:g}, {t.learning_rate:g}, {t.epochs:g}, {t.batch_size} × {t.accumulation}"
    rows = [
        ["model, data", markdown.plain(f"{profile.model}, {profile.data}")],
        ["rows", f"{profile.rows} to train on, {profile.heldout_rows} held out"],
        ["bases; seeds", f"{', '.join(map(str, profile.bases))}; {', '.join(map(str, profile.seeds))}"],
        ["trained", f"LoRA r = {profile.lora.r} on {weights} weights, {profile.device}"],
        ["β, learning rate, epochs, batch", numbers],
        ["masked image", profile.perturbation.image],
    ]
    return markdown.table(["setting", "value"], rows)


NOISE_HEADER = (  # the intervals of the AUROCs name what they are over
    *("kind", "small value of", "AUROC [95 %]", "over", "within question kinds", "over"),
    *("within question kinds, other than the chosen answer", "over", "estimated noise rate", "calibration error"),
)


def _noise_text(noise):
    if noise is None or noise.empty:
        return "The truth of these rows is not known, or notebook 02 was not run: no noise rate, no AUROC."
    rates = [
        f"{r.kind}: {number(r.noise_rate, r.rate_lo, r.rate_hi)} of {r.n_rows} rows, interval over {r.rate_over}"
        for r in noise.drop_duplicates("kind").itertuples()
    ]
    rows = [
        [r.kind, NOISE_DETECTORS[r.detector], number(r.auroc, r.lo, r.hi), r.over]
        + [number(r.within_kinds, r.within_lo, r.within_hi), r.within_over]
        + [number(r.within_other, r.within_other_lo, r.within_other_hi), r.within_other_over]
        + [number(r.estimated_rate, r.estimated_rate_lo, r.estimated_rate_hi)]
        + [number(r.calibration, r.calibration_lo, r.calibration_hi)]
        for r in noise.itertuples()
    ]
    return (
        f"Share of negatives that are in truth good answers: {'; '.join(rates)}.\n\n"
        "How well a small value finds them (0.5 = not at all). Raw margins are the base's alone, before training. "
        "Within question kinds: only rows of one base and one kind of question are compared.\n\n"
        + markdown.table(NOISE_HEADER, rows)
    )


def trust(profile, ledger, study=None):
    """Sentences on what the run can and cannot say. study: `sections.Study`, whose comparisons count too."""
    ran = [c for claim in ledger for c in claim["components"] if c["verdict"] != "not run"]
    made = {"for the claims": len(ran)} | (sections.comparisons(study) if study else {})
    parts = f" ({', '.join(f'{n} {what}' for what, n in made.items() if n)})" if any(made.values()) else ""
    n_bases = max((c["n_bases"] for c in ran), default=0)
    spoken = "intervals speak for new bases."
    if n_bases < claims.MIN_BASES:
        spoken = f"no verdict can speak for new bases, which takes {claims.MIN_BASES}; an interval over seeds or rows "
        spoken += "speaks for this base only."
    four_bit = profile.quantisation.four_bit
    lines = {
        f"{sum(made.values())} comparisons were made{parts}; none is corrected for their number.": True,
        f"At most {markdown.bases(n_bases)}: {spoken}": True,
        "The rule for verdicts was fixed before the run; see `napo/study/claims.py`.": True,
        "The desk world (rendered scenes, models of under a million parameters) tests the mechanics and the noise "
        "behaviour of the method. It says nothing about the scores of LLaVA-1.5-7B.": profile.is_desk,
        "Trained: LoRA on a 4-bit base on one device; the paper trained all weights on 8 GPUs.": four_bit,
    }
    return [line for line, holds in lines.items() if holds]


def write(folder, profile, scores, noise=None, study=None, *, rng):
    """Write tables/*.csv, claims.json and report.md into `folder`, each whole or not at all.

    scores, noise  frames of all cells and of all bases;  study  `sections.Study`, or None;  rng  of the bootstrap
    Returns (ledger, frame of `frames.estimates`, frame of `noise_table` or None).
    """
    folder = Path(folder)
    ledger, table = claims.ledger(scores, noise), frames.estimates(scores)
    if not profile.is_desk:
        ledger = [claim | {"about_llava": ""} for claim in ledger]  # it tells what the desk world says about LLaVA
    noisy = None if noise is None else noise_table(noise, rng, beta=profile.training.beta)
    ledger = with_detectors(ledger, noisy)
    with atomic(folder / "tables") as written:
        written.mkdir()
        for name, frame in {"methods": table, "noise": noisy, **(sections.tables(study) if study else {})}.items():
            if frame is not None and len(frame):
                frame.to_csv(written / f"{name}.csv", index=False)
    write_json(ledger, folder / "claims.json")
    with atomic(folder / "report.md") as temporary:
        temporary.write_text(page(profile, table, noisy, ledger, study), encoding="utf-8")
    return ledger, table, noisy
