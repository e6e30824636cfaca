"""The methods that are compared: their loss terms, the weights of these, and the pairs that count.

Sources: "paper" is printed there, "authors" is their code.
"""

from dataclasses import asdict, dataclass, replace

KINDS = ("chosen", "rejected", "language_biased", "vision_biased")
REJECTED_KINDS = KINDS[1:]
CORRUPTED = "corrupted_image"  # no column of the data: the chosen answer again, beside a crop of its image (mDPO)

# alpha of eq. 10 by the margin it multiplies (paper, section 4; its Table 4 gives none for exchanged margins).
ALPHA = {"mean": 0.5, "sum": 0.01}


@dataclass(frozen=True)
class Term:
    """One loss term of an objective: chosen against one kind of rejected answer."""

    kind: str
    loss: str = "dpo"  # "dpo" | "napo" | "cdpo" | "robust_dpo" | "ipo" | "dr_dpo"
    margin: str = "sum"  # which margin q follows: "sum" | "mean"
    q: float | None = None  # fixed q; None = adaptive (eq. 10)
    alpha: float | None = None  # of eq. 10; None = ALPHA of the margin (`scale`)
    epsilon: float = 0.1  # share of swapped labels that cDPO and robust DPO assume (robust DPO's own experiments)
    beta_prime: float = 1.0  # of Dr. DPO (its authors' default)

    @property
    def scale(self):
        """alpha of eq. 10, its own or its margin's."""
        return ALPHA[self.margin] if self.alpha is None else self.alpha


@dataclass(frozen=True)
class Method:
    """An objective: loss terms, their weights, and which pairs count."""

    label: str
    terms: tuple[Term, ...] = ()
    gamma: str | tuple[float, ...] = "equal"  # "equal" | "dynamic" | "literal" | one fixed weight per term
    convention: str = "paper"  # of q: "paper" | "authors"
    sft_weight: float = 0.0  # weight of -log p(chosen) per token
    anchor_weight: float = 0.0  # weight of mDPO's anchor
    drop_noise: bool = False  # oracle: a pair whose negative is known noise gets weight 0
    draw_term: bool = False  # one term, drawn for each step, stands for all (paper's Table 3)
    estimate: str = ""  # the noise estimate sets: "alpha" of each term | "q" of each row | "weight" and q of each row

    @property
    def trained(self):
        return bool(self.terms) or self.sft_weight > 0

    @property
    def settings(self):
        """Every number that a result of the method depends on, as plain data for an artefact's key."""
        chosen = {name: value for name, value in asdict(self).items() if name != "label"}
        return chosen | {"terms": [asdict(term) | {"alpha": term.scale} for term in self.terms]}

    @property
    def kinds(self):
        """The kinds of response whose log-probs the objective needs."""
        return ("chosen", *(term.kind for term in self.terms))


def _dpo(*kinds):
    return tuple(Term(kind) for kind in kinds)


def _all(loss):
    return tuple(Term(kind, loss) for kind in REJECTED_KINDS)


def _fixed(q):
    terms = (ORIGINAL, *(replace(term, q=q) for term in (LANGUAGE, VISION)))
    return Method(f"fixed q = {q:g}, equal weights", terms)


ORIGINAL = Term("rejected", "dpo")
LANGUAGE = Term("language_biased", "napo", margin="mean")  # psi_mu, alpha 0.5 (paper, section 4)
VISION = Term("vision_biased", "napo", margin="sum")  # psi_sigma, alpha 0.01 (paper, section 4)
NAPO_TERMS = (ORIGINAL, LANGUAGE, VISION)
FIXED_Q = (0.1, 0.3, 0.5, 0.7, 1.0)

METHODS = {
    "base": Method("base model"),
    "sft": Method("SFT on chosen", sft_weight=1.0),
    "dpo_original": Method("DPO, original pairs", _dpo("rejected")),
    "dpo_all": Method("DPO, all pairs", _dpo(*REJECTED_KINDS)),  # paper's A3
    "oracle": Method("DPO, all pairs, noise dropped", _dpo(*REJECTED_KINDS), drop_noise=True),
    "napo_paper": Method("NaPO (paper)", NAPO_TERMS, gamma="dynamic"),  # paper's A1
    "napo_authors": Method("NaPO (authors' code)", NAPO_TERMS, gamma=(0.04, 0.48, 0.48), convention="authors"),
    "napo_equal": Method("NaPO, equal weights", NAPO_TERMS),  # paper's A2
    "napo_literal": Method("NaPO, weights by eq. 13 to the letter", NAPO_TERMS, gamma="literal"),
    "napo_fixed": Method("NaPO, weights 0.04-0.48-0.48", NAPO_TERMS, gamma=(0.04, 0.48, 0.48)),  # authors' weights
    "lb_napo": Method("NaPO, no vision-biased pairs", (ORIGINAL, LANGUAGE), gamma="dynamic"),  # paper's LB1
    "lb_dpo": Method("DPO, no vision-biased pairs", _dpo("rejected", "language_biased")),  # paper's LB2
    "vb_napo": Method("NaPO, no language-biased pairs", (ORIGINAL, VISION), gamma="dynamic"),  # paper's VB1
    "vb_dpo": Method("DPO, no language-biased pairs", _dpo("rejected", "vision_biased")),  # paper's VB2
    "lb_napo_sum": Method(
        "NaPO, no vision-biased pairs, q by the sum", (ORIGINAL, replace(LANGUAGE, margin="sum")), gamma="dynamic"
    ),
    "vb_napo_mean": Method(
        "NaPO, no language-biased pairs, q by the mean", (ORIGINAL, replace(VISION, margin="mean")), gamma="dynamic"
    ),
    "random": Method("NaPO, one term per batch", NAPO_TERMS, draw_term=True),  # paper's Table 3
    # Paper, appendix A. Neither paper nor scripts name the margin that q follows on the original pairs. Length is not
    # what is wrong with these answers, so we use the mean margin.
    "napo_on_clean": Method(
        "NaPO on the original pairs too",
        (Term("rejected", "napo", margin="mean"), LANGUAGE, VISION),
        gamma="dynamic",
    ),
    "cdpo": Method("cDPO, all pairs", _all("cdpo")),
    "robust_dpo": Method("robust DPO, all pairs", _all("robust_dpo")),
    "ipo": Method("IPO, all pairs", _all("ipo")),
    "dr_dpo": Method("Dr. DPO, all pairs", _all("dr_dpo")),
    "mdpo": Method("mDPO, original pairs", _dpo("rejected", CORRUPTED), gamma=(1.0, 1.0), anchor_weight=1.0),
    **{f"napo_q{q:g}": _fixed(q) for q in FIXED_Q},
    "napo_calibrated": Method("NaPO, α by the noise estimate", NAPO_TERMS, estimate="alpha"),
    "napo_row_q": Method("NaPO, q per row by the noise estimate", NAPO_TERMS, estimate="q"),
    "napo_row_weight": Method("NaPO, q and weight per row by the noise estimate", NAPO_TERMS, estimate="weight"),
}

# What the paper's Tables 1 to 4 print of LLaVA-1.5-7B (`study/paper.py` has the numbers).
TABLE_METHODS = (
    *("base", "dpo_original", "mdpo", "napo_paper", "napo_equal", "dpo_all", "lb_napo", "lb_dpo", "vb_napo", "vb_dpo"),
    *("random", "lb_napo_sum", "vb_napo_mean"),
)
