"""README's findings: what the published study found, one sentence each, from the files of figures/study alone.

A sentence whose methods were not run is left out.
"""

import pandas as pd

from napo.study.markdown import number
from napo.workshop.files import read_json

LEAK = "measure == 'acc_counterfactual' and noise_kind == 'leak'"


def findings(study):
    """README's published block. study  folder of the published files"""
    about, ledger = read_json(study / "provenance.json"), read_json(study / "claims.json")
    methods = _read(study, "methods").set_index(["measure", "method"])["value"]
    sentences = [
        _accuracy(methods),
        _price(methods),
        _loss(ledger),
        _q(_read(study, "q")),
        _noise(_read(study, "noise_rates"), methods),
        _verdicts(ledger),
        _margins(_read(study, "noise")),
    ]
    lines = [f"- {sentence}" for sentence in sentences if sentence]
    return f"Profile `{about['profile']}`, on the desk world:\n\n" + "\n".join(lines)


def _read(study, name):
    """A published table; empty where the run wrote none."""
    file = study / f"{name}.csv"
    return pd.read_csv(file) if file.exists() else pd.DataFrame()


def _values(methods, measure, names):
    """A measure's values by method, in order; [] if one method is missing."""
    found = [methods.get((measure, name)) for name in names]
    return [] if None in found else found


def _accuracy(methods):
    right = _values(methods, "acc_counterfactual", ("base", "dpo_original", "dpo_all", "napo_paper"))
    return right and (
        "Where a picture defies common sense the base model is right in {:.0%} of the questions. DPO on the original "
        "pairs brings it to {:.0%}, DPO with the biased pairs beside them to {:.0%}, NaPO to {:.0%}."
    ).format(*right)


def _price(methods):
    wrong = _values(methods, "CHAIRs", ("base", "dpo_all", "napo_paper"))
    return wrong and (
        "The price: {:.0%} of the base's captions name a thing that is not there, {:.0%} after DPO with the biased "
        "pairs, {:.0%} after NaPO."
    ).format(*wrong)


def _loss(ledger):
    """NaPO's loss beside DPO's on the same pairs with equal weights (claim C5)."""
    for c in (c for claim in ledger for c in claim["components"]):
        if (c["metric"], c["comparison"]) == ("Acc_CB", "napo_equal - dpo_all") and c["effect"] is not None:
            effect = number(c["effect"], *c["ci95"], digits=3)
            return (
                "We see no gain from the loss itself: with the same pairs and equal weights, NaPO's loss changes "
                f"Acc_CB by {effect} against DPO's."
            )
    return ""


def _q(table):
    table = table[table["method"] == "napo_paper"] if len(table) else table
    return len(table) and (
        f"The paper's q stays between {table['q_lo'].min():.2f} and {table['q_hi'].max():.2f} (95 % of all steps), "
        f"while the true share of wrong labels runs from {table['true'].min():.2f} to {table['true'].max():.2f}."
    )


def _noise(table, methods):
    """Who withstands the most injected noise, and what the row weights gain without it."""
    leaks = table.query(LEAK) if len(table) else table
    names = ("napo_paper", "dpo_all", "oracle", "napo_row_weight")
    clean = _values(methods, "acc_counterfactual", ("napo_row_weight", "napo_paper"))
    if leaks.empty or not set(names) <= set(leaks["method"]) or not clean:
        return ""
    rate = leaks["flip_rate"].max()
    most = leaks[leaks["flip_rate"] == rate].set_index("method")["value"]
    return (
        "With {:.0%} of the biased answers replaced by good ones, NaPO falls to {:.0%}, DPO to {:.0%}. Dropping the "
        "wrong pairs keeps {:.0%}. Weighting each pair by the kit's own noise estimate keeps {:.0%}, and gains nothing "
        "without injected noise ({:.0%} against {:.0%}); we added this method after seeing first results."
    ).format(rate, *most.loc[list(names)], *clean)


def _verdicts(ledger):
    found = {}
    for claim in ledger:
        found.setdefault(claim["verdict"], []).append(claim["id"])
    verdicts = "; ".join(f"{verdict}: {', '.join(ids)}" for verdict, ids in found.items())
    return f"Of the paper's {len(ledger)} claims: {verdicts}."


def _margins(table):
    """What C9's AUROC is worth among questions of one kind."""
    columns = ["kind", "detector"]
    row = table[(table[columns] == ["language_biased", "raw_mean_margin"]).all(axis=1)] if len(table) else table
    if row.empty:
        return ""
    row = row.iloc[0]
    everywhere = number(row["auroc"], row["lo"], row["hi"])
    within = number(row["within_kinds"], row["within_lo"], row["within_hi"])
    return (
        f"Read C9 with care: the raw margin finds noisy language-biased answers with an AUROC of {everywhere}, but "
        f"among questions of one kind with {within}."
    )
