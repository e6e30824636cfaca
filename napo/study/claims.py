"""The paper's claims as comparisons with a direction, and the rule that turns intervals into verdicts.

The claims are in claims.toml. The rule was fixed before any run. A component is reproduced if its paired 95 % interval
lies on the claimed side of its null value, contradicted if it lies on the other side, else inconclusive. A claim is
contradicted if one component is, not run if one was not run, reproduced if all are, else inconclusive. A claimed
absence is an equivalence test: the interval has to lie within the stated margin (two one-sided tests at 2.5 % each).
Fewer than MIN_BASES reporting bases cannot speak for new bases: the verdict is then inconclusive whatever the interval,
with the reason in `note`.
"""

import functools
import tomllib
from dataclasses import dataclass
from importlib import resources
from itertools import chain
from math import isfinite, isnan, nan

from napo.profiles import DEVELOPMENT_BASES
from napo.stats import auroc
from napo.stats.intervals import Estimate, differences, estimate, tost_p, units
from napo.stats.measures import MEASURES, run_values
from napo.study import markdown

MIN_BASES = 5
NOT_RUN = "not run: "
VERDICT = {"claimed": "reproduced", "opposite": "contradicted", "unclear": "inconclusive"}


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
    about_llava: str = ""  # what a test on the desk world says and does not say about LLaVA-1.5-7B


def read(text):
    """The claims of a text like claims.toml. Raises ValueError naming a claim that is incomplete or misspelt."""
    found = []
    for entry in tomllib.loads(text)["claim"]:
        try:
            parts = [[Separation(**c)] if "kind" in c else _differences(**c) for c in entry["components"]]
            found.append(Claim(**entry | {"components": tuple(chain(*parts))}))
        except (KeyError, TypeError) as error:
            raise ValueError(f"claims.toml, claim {entry.get('id')}: {error}") from error
    return tuple(found)


def _differences(measures, direction="", **settings):
    """One Difference per measure; without a direction towards the better side, with a margin an equivalence."""
    better = {"higher": "up", "lower": "down"}
    asked = direction or ("equivalent" if "margin" in settings else "")
    return [Difference(m, direction=asked or better[MEASURES[m].better], **settings) for m in measures]


CLAIMS = read(resources.files(__package__).joinpath("claims.toml").read_text(encoding="utf-8"))


def side(lo, hi, direction, null=0.0, margin=None):
    """The side an interval lies on: "claimed", "opposite", or "unclear" (also without an interval)."""
    if isnan(lo) or isnan(hi):
        return "unclear"
    if direction == "equivalent":
        claimed, opposite = -margin < lo and hi < margin, lo > margin or hi < -margin
    else:
        above, below = lo > null, hi < null
        claimed, opposite = {"up": (above, below), "down": (below, above)}[direction]
    return "claimed" if claimed else "opposite" if opposite else "unclear"


def claim_verdict(verdicts):
    """Verdict of a claim from the verdicts of its components."""
    for decisive in ("contradicted", "not run"):
        if decisive in verdicts:
            return decisive
    return "reproduced" if set(verdicts) == {"reproduced"} else "inconclusive"


def ledger(scores, noise=None, *, claims=CLAIMS):
    """Every claim with its components, intervals and verdicts, in the form of claims.json.

    scores  long frame: method, base, seed, flip_rate, benchmark, metric, example_id, value; rows without injected noise
            and of reporting bases count
    noise   frame: base, kind, part, is_noise, raw_margin, raw_mean_margin; None = notebook 02 was not run
    Returns a list of dicts, ready for JSON: numbers are finite or None.
    """
    scores = scores[~scores["base"].isin(DEVELOPMENT_BASES)]
    if noise is not None:
        noise = noise[~noise["base"].isin(DEVELOPMENT_BASES)]
    values = functools.cache(lambda name: run_values(scores, MEASURES[name]))
    return [_claim(claim, values, noise) for claim in claims]


def _claim(claim, values, noise):
    components = [
        _difference(c, values(c.measure)) if isinstance(c, Difference) else _separation(c, noise)
        for c in claim.components
    ]
    verdict = claim_verdict([component["verdict"] for component in components])
    fewest = {name: min(component[name] for component in components) for name in ("n_bases", "n_seeds")}
    entry = {"id": claim.id, "claim": claim.claim, "verdict": verdict, "components": components, **fewest}
    return entry | {"note": _reason(components, verdict), "about_llava": claim.about_llava}


def _reason(components, verdict):
    """Why a claim has its verdict: the notes of the components that decided it, each missing method named once."""
    notes = dict.fromkeys(c["note"] for c in components if c["note"] and c["verdict"] == verdict)
    lists = [note.removeprefix(NOT_RUN).split(", ") for note in notes if NOT_RUN in note]
    merged = [NOT_RUN + ", ".join(dict.fromkeys(chain(*lists)))] if lists else []
    return "; ".join(merged + [note for note in notes if NOT_RUN not in note])


def _difference(component, values):
    c = component
    runs = differences(values, c.treatment, c.control)
    entry = {"metric": c.measure, "comparison": f"{c.treatment} - {c.control}"}
    entry |= {"treatment": c.treatment, "control": c.control}
    if runs.empty:
        missing = [m for m in (c.treatment, c.control) if m not in set(values["method"])]
        reason = NOT_RUN + ", ".join(missing) if missing else "no base and seed in common"
        return _judged(c, entry, Estimate(nan), f"no {c.measure} scores" if values.empty else reason)
    if c.direction == "equivalent":
        entry["p_tost"] = _number(tost_p(units(runs)[0], c.margin))
    return _judged(c, entry, estimate(runs))


def _separation(component, noise):
    c = component
    entry = {"metric": f"AUROC of {c.margin_column}", "comparison": f"{c.kind}: noise - noise-free"}
    entry |= {"kind": c.kind, "margin_column": c.margin_column}
    if noise is None or c.margin_column not in noise:
        return _judged(c, entry, Estimate(nan), NOT_RUN + "notebook 02")
    rows = noise[(noise["kind"] == c.kind) & (noise["part"] == "measured")].dropna(subset=["is_noise"])
    return _judged(c, entry, auroc.auroc_over_bases(rows, c.margin_column), "truth unknown" if rows.empty else "")


def _judged(component, entry, found, missing=""):
    """The component's entry in the ledger, with its verdict. found: Estimate; missing: why there is no number."""
    where = side(found.lo, found.hi, component.direction, component.null, component.margin)
    verdict, note = VERDICT[where], ""
    if missing:
        verdict, note = "not run", missing
    elif found.n_bases < MIN_BASES:
        note = f"{markdown.bases(found.n_bases)}, {MIN_BASES} are needed to speak for new bases"
        verdict = "inconclusive"
    claimed = {"null": component.null, "direction": component.direction, "margin": component.margin}
    measured = {"effect": _number(found.value), "ci95": [_number(found.lo), _number(found.hi)]}
    judged = {"side": where, "verdict": verdict, **found.columns("over", "n_bases", "n_seeds"), "note": note}
    return entry | measured | claimed | judged


def _number(value):
    """value as a plain float, None if it is not finite."""
    return float(value) if isfinite(value) else None
