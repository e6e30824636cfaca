"""The claims ledger: what the paper claims, as comparisons with a direction, and a rule from intervals to verdicts.

The rule was fixed before any run. A component is reproduced if its paired 95 % interval lies on the claimed side of its
null value, contradicted if on the other side, else inconclusive. A claim is contradicted if one component is, not run
if one was not run, reproduced if all are, else inconclusive. An absence is an equivalence test: the interval has to lie
within the stated margin (two one-sided tests at 2.5 % each). Fewer than MIN_BASES reporting bases cannot speak for new
bases: whatever their interval says, the verdict stays inconclusive, with the reason in `note`.
"""

from dataclasses import dataclass
from math import isfinite, isnan

from napo import auroc, stats

MIN_BASES = 5
DEVELOPMENT_BASES = (100, 101)  # settings were chosen on them; nothing is reported on them
MARGIN = 0.05  # largest difference of two shares that counts as none (C2 coverage, C3); chosen before the run
NOT_RUN = "not run: "
VERDICT = {"claimed": "reproduced", "opposite": "contradicted", "unclear": "inconclusive"}
MODALITY_BIAS = ("Acc_CB", "Acc_LP")  # the paper's CB and LP are the unconditional accuracies
HALLUCINATION = ("CHAIRs", "CHAIRi")


@dataclass(frozen=True)
class Difference:
    """A component: treatment minus control of one measure, paired within base and seed."""

    measure: str
    treatment: str
    control: str
    direction: str  # "up" | "down" | "equivalent"
    null: float = 0.0
    margin: float | None = None  # of "equivalent"


@dataclass(frozen=True)
class Separation:
    """A component: AUROC of a small margin as a detector of noise, on measured rows of one kind."""

    kind: str
    margin_column: str
    direction: str = "up"
    null: float = 0.5
    margin: float | None = None


@dataclass(frozen=True)
class Claim:
    id: str
    claim: str
    components: tuple
    about_llava: str = ""  # what the test on the desk world says and does not say about LLaVA-1.5-7B


def _better(treatment, control, *measures):
    """Components that say: treatment beats control on each measure."""
    direction = {"higher": "up", "lower": "down"}
    return tuple(Difference(m, treatment, control, direction[stats.MEASURES[m].better]) for m in measures)


ALL_FOUR = MODALITY_BIAS + HALLUCINATION

# Where the paper's own table has the opposite sign on a measure (LB1 < LB2 on CB, VB1 and VB2 on CHAIR_i, …), that
# measure is no component: it was not claimed. Every measure with the claimed sign is one (tests/test_claims.py).
CLAIMS = (
    Claim(
        "C1",
        "NaPO on the biased data lowers modality bias more than DPO on the original pairs",
        _better("napo_paper", "dpo_original", *MODALITY_BIAS),
        "It says whether the order follows from the objectives and the pairs alone; not that LLaVA-1.5-7B "
        "gains, nor how much.",
    ),
    Claim(
        "C2",
        "It also hallucinates less in captions, without covering less of what is there",
        (
            *_better("napo_paper", "dpo_original", *HALLUCINATION),
            Difference("Cover", "napo_paper", "dpo_original", "up", null=-MARGIN),
        ),
        "It speaks of captions with at most three objects; LLaVA's captions are long, and hallucination "
        "grows with length.",
    ),
    Claim(
        "C3",
        "mDPO, which also works on the image condition, does not remove the bias",
        tuple(Difference(m, "mdpo", "base", "equivalent", margin=MARGIN) for m in MODALITY_BIAS),
        "It tests mDPO's loss on crops of tiny pictures; why LLaVA scores near zero after mDPO, bias or "
        "answer format, it cannot say.",
    ),
    Claim(
        "C4",
        "Dynamic loss weights help (A1 against A2)",
        _better("napo_paper", "napo_equal", *ALL_FOUR),
        "It tests the rule for γ; which term the rule favours depends on the scale of the margins, and "
        "LLaVA's is another.",
    ),
    Claim(
        "C5",
        "On the noisy pairs the NaPO loss beats the DPO loss (A2 against A3, LB1 against LB2, VB1 against VB2)",
        (
            *_better("napo_equal", "dpo_all", *ALL_FOUR),
            *_better("lb_napo", "lb_dpo", "Acc_LP", *HALLUCINATION),
            *_better("vb_napo", "vb_dpo", *MODALITY_BIAS, "CHAIRs"),
        ),
        "It tests the loss where the noise is known; of LLaVA's pairs neither rate nor kind of noise is "
        "known, and the gain depends on both.",
    ),
    Claim(
        "C6",
        "Language-biased data helps LP more, vision-biased data helps CB and hallucination more; together they add up",
        (
            *_better("lb_napo", "vb_napo", "Acc_LP"),
            *_better("vb_napo", "lb_napo", "Acc_CB", "CHAIRs"),
            *_better("napo_paper", "lb_napo", *ALL_FOUR),
            *_better("napo_paper", "vb_napo", "Acc_LP", *HALLUCINATION),
        ),
        "Vision-biased answers are short captions here; LLaVA's are long descriptions, and what these add or "
        "cost is not said.",
    ),
    Claim(
        "C7",
        "At equal data volume the biased data still wins (one of the three losses drawn per batch)",
        _better("random", "dpo_original", *ALL_FOUR),
        "It says what biased pairs are worth beside feedback as weak as ours; RLAIF-V's feedback may be "
        "better and leave them less.",
    ),
    Claim(
        "C8",
        "The right margin matters for q: mean for language-biased, sum for vision-biased answers",
        (
            *_better("lb_napo", "lb_napo_sum", *ALL_FOUR),
            *_better("vb_napo", "vb_napo_mean", *ALL_FOUR),
        ),
        "It compares the margins on answers of a few words; on LLaVA's answers of a hundred words sum and "
        "mean differ more.",
    ),
    Claim(
        "C9",
        "Noisy negatives have smaller raw margins than noise-free ones",
        (Separation("language_biased", "raw_mean_margin"), Separation("vision_biased", "raw_margin")),
        ("It checks every row where the paper labelled a hundred by hand; LLaVA's own raw margins were not measured."),
    ),
    Claim(
        "C10",
        "The NaPO loss on the clean original pairs, instead of DPO, makes the result collapse",
        tuple(Difference(m, "napo_on_clean", "napo_paper", "down") for m in MODALITY_BIAS),
        "The paper's collapse is one of full fine-tuning; with LoRA, and α on the original pairs by our "
        "choice, its absence would not refute it.",
    ),
)


def side(lo, hi, direction, null=0.0, margin=None):
    """Where an interval lies: on the "claimed" side, on the "opposite" one, or "unclear" (also without an interval)."""
    if isnan(lo) or isnan(hi):
        return "unclear"
    if direction == "equivalent":
        if -margin < lo and hi < margin:
            return "claimed"
        return "opposite" if lo > margin or hi < -margin else "unclear"
    if direction not in ("up", "down"):
        raise ValueError(f"unknown direction {direction!r}: use 'up', 'down' or 'equivalent'")
    above, below = lo > null, hi < null
    claimed, opposite = (above, below) if direction == "up" else (below, above)
    return "claimed" if claimed else "opposite" if opposite else "unclear"


def claim_verdict(verdicts):
    """Verdict of a claim from its components' verdicts, by the rule above."""
    for decisive in ("contradicted", "not run"):
        if decisive in verdicts:
            return decisive
    return "reproduced" if set(verdicts) == {"reproduced"} else "inconclusive"


def ledger(scores, noise=None, *, development_bases=DEVELOPMENT_BASES, flip_rate=0.0, claims=CLAIMS):
    """Every claim with its components, intervals and verdicts, in the form of claims.json.

    scores  long frame: method, base, seed, flip_rate, benchmark, metric, example_id, value
    noise   frame: base, kind, part, is_noise, raw_margin, raw_mean_margin; None = notebook 02 was not run
    Returns a list of dicts, ready for JSON: numbers are finite or None.
    """
    scores = scores[~scores["base"].isin(development_bases)]
    if noise is not None:
        noise = noise[~noise["base"].isin(development_bases)]
    values = {name: stats.run_values(scores, stats.MEASURES[name]) for name in _measures(claims)}
    return [_claim(claim, values, noise, flip_rate) for claim in claims]


def _measures(claims):
    components = [component for claim in claims for component in claim.components]
    return dict.fromkeys(c.measure for c in components if isinstance(c, Difference))


def _claim(claim, values, noise, flip_rate):
    components = [
        _difference(c, values[c.measure], flip_rate) if isinstance(c, Difference) else _separation(c, noise)
        for c in claim.components
    ]
    verdict = claim_verdict([component["verdict"] for component in components])
    return {
        "id": claim.id,
        "claim": claim.claim,
        "verdict": verdict,
        "components": components,
        "n_bases": min(component["n_bases"] for component in components),
        "n_seeds": min(component["n_seeds"] for component in components),
        "note": _reason(components, verdict),
        "about_llava": claim.about_llava,
    }


def _reason(components, verdict):
    """Why a claim has its verdict: the notes of the components that decided it, each missing method named once."""
    notes = dict.fromkeys(c["note"] for c in components if c["note"] and c["verdict"] == verdict)
    missing = dict.fromkeys(
        name for note in notes if NOT_RUN in note for name in note.removeprefix(NOT_RUN).split(", ")
    )
    merged = [NOT_RUN + ", ".join(missing)] if missing else []
    return "; ".join(merged + [note for note in notes if NOT_RUN not in note])


def _difference(component, values, flip_rate):
    c = component
    runs = stats.differences(values, c.treatment, c.control, flip_rate)
    entry = {
        "metric": c.measure,
        "comparison": f"{c.treatment} - {c.control}",
        "treatment": c.treatment,
        "control": c.control,
    }
    if runs.empty:
        missing = [m for m in (c.treatment, c.control) if m not in set(values["method"])]
        reason = NOT_RUN + ", ".join(missing) if missing else "no base and seed in common"
        return _judged(c, entry, stats.Estimate(float("nan")), f"no {c.measure} scores" if values.empty else reason)
    if c.direction == "equivalent":
        entry["p_tost"] = _number(stats.tost_p(stats.units(runs)[0], c.margin))
    return _judged(c, entry, stats.estimate(runs))


def _separation(component, noise):
    c = component
    entry = {"metric": f"AUROC of {c.margin_column}", "comparison": f"{c.kind}: noise - noise-free"}
    entry |= {"kind": c.kind, "margin_column": c.margin_column}
    if noise is None or c.margin_column not in noise:
        return _judged(c, entry, stats.Estimate(float("nan")), NOT_RUN + "notebook 02")
    rows = noise[(noise["kind"] == c.kind) & (noise["part"] == "measured")].dropna(subset=["is_noise"])
    estimate = auroc.auroc_over_bases(rows, c.margin_column)
    return _judged(c, entry, estimate, "truth unknown" if rows.empty else "")


def _judged(component, entry, estimate, missing=""):
    """The component's entry in the ledger, with its verdict; `missing` says why there is no number."""
    where = side(estimate.lo, estimate.hi, component.direction, component.null, component.margin)
    verdict, note = VERDICT[where], ""
    if missing:
        verdict, note = "not run", missing
    elif estimate.n_bases < MIN_BASES:
        some = f"{estimate.n_bases} reporting base{'s'[: estimate.n_bases != 1]}"
        verdict, note = "inconclusive", f"{some}, {MIN_BASES} are needed to speak for new bases"
    return entry | {
        "effect": _number(estimate.value),
        "ci95": [_number(estimate.lo), _number(estimate.hi)],
        "null": component.null,
        "direction": component.direction,
        "margin": component.margin,
        "side": where,
        "verdict": verdict,
        "over": estimate.over,
        "n_bases": estimate.n_bases,
        "n_seeds": estimate.n_seeds,
        "note": note,
    }


def _number(value):
    """value as a plain float, None where it is not finite."""
    return float(value) if isfinite(value) else None
