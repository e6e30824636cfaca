"""The objective of a method on one batch: loss terms, each with its q, weighted by gamma (paper, section 4)."""

from dataclasses import dataclass

import torch

from napo import losses
from napo.q import loss_weights, noise_coefficient

LOSSES = {  # Term.loss -> the values (B,) of a term from (margin, q, term, beta)
    "dpo": lambda margin, q, term, beta: losses.dpo_loss(margin, beta),
    "napo": lambda margin, q, term, beta: losses.napo_loss(margin, q, beta),
    "cdpo": lambda margin, q, term, beta: losses.cdpo_loss(margin, term.epsilon, beta),
    "robust_dpo": lambda margin, q, term, beta: losses.robust_dpo_loss(margin, term.epsilon, beta),
    "ipo": lambda margin, q, term, beta: losses.ipo_loss(margin, beta),
    "dr_dpo": lambda margin, q, term, beta: losses.dr_dpo_loss(margin, term.beta_prime, beta),
}


def margins(policy_logps, reference_logps, n_tokens, kind):
    """Margins of one kind: log-ratio of policy to reference, chosen minus kind.

    Returns (margin, mean_margin), (B,) each: nats, nats per token.
    """
    chosen_logratio = policy_logps["chosen"] - reference_logps["chosen"]
    rejected_logratio = policy_logps[kind] - reference_logps[kind]
    margin = chosen_logratio - rejected_logratio
    mean_margin = chosen_logratio / n_tokens["chosen"] - rejected_logratio / n_tokens[kind]
    return margin, mean_margin


@dataclass(frozen=True)
class Labels:
    """What is known about the labels of a batch, beside its log-probs.

    flipped  (B,) bool: rows whose chosen and rejected answers change places, in every term; None: none of them
    weights  dict kind -> (B,): how much each pair counts (the oracle gives 0 to known noise); None: all count 1
    row_q    dict kind -> (B,): q of each row, in place of eq. 10's; None: eq. 10
    """

    flipped: torch.Tensor | None = None
    weights: dict | None = None
    row_q: dict | None = None


def objective(method, policy_logps, reference_logps, n_tokens, beta, labels=None, gather=lambda x: x):
    """The loss of one batch under a method, and what to log of it.

        L = sum_kind gamma_kind * L_kind(margin),   margin = chosen minus rejected log-ratio of policy to reference

    *_logps, n_tokens  dict kind -> (B,): nats summed over tokens; number of tokens
    labels   Labels; None: every label counts as it stands
    gather   concatenates a (B,) tensor over devices, so that q and gamma are of the micro-batch of all of them
    Returns (loss (), metrics {name: float}).
    """
    labels = labels or Labels()
    sign = 1.0 if labels.flipped is None else 1.0 - 2.0 * labels.flipped.float()
    pairs = {t.kind: [sign * m for m in margins(policy_logps, reference_logps, n_tokens, t.kind)] for t in method.terms}
    gamma = term_weights(method, {kind: beta * gather(margin.detach()) for kind, (margin, _) in pairs.items()})
    loss, metrics = policy_logps["chosen"].new_zeros(()), {}
    for term in method.terms:
        margin, mean_margin = pairs[term.kind]  # (B,) nats, (B,) nats per token
        q = term_q(term, method.convention, gather((margin if term.margin == "sum" else mean_margin).detach()), beta)
        q = q if labels.row_q is None else labels.row_q.get(term.kind, q)
        values = LOSSES[term.loss](margin, q, term, beta)  # (B,)
        weight = torch.ones_like(values) if labels.weights is None else labels.weights[term.kind].float()
        loss = loss + gamma[term.kind] * (weight * values).sum() / weight.sum().clamp(min=1)
        metrics |= pair_metrics(term, policy_logps, reference_logps, margin, beta, gamma[term.kind], q)
    if method.sft_weight:
        labelled_chosen = swap(policy_logps["chosen"], policy_logps.get("rejected"), labels.flipped)
        tokens = swap(n_tokens["chosen"], n_tokens.get("rejected"), labels.flipped)
        loss = loss + method.sft_weight * losses.sft_loss(labelled_chosen, tokens).mean()
    chosen_logratio = policy_logps["chosen"] - reference_logps["chosen"]
    if method.anchor_weight:
        loss = loss + method.anchor_weight * losses.anchor_loss(chosen_logratio, beta).mean()
    chosen_reward = beta * chosen_logratio
    metrics |= {"rewards/chosen": chosen_reward.mean().item(), "logps/chosen": policy_logps["chosen"].mean().item()}
    return loss, metrics | over_pairs(metrics, [term.kind for term in method.terms])


def over_pairs(metrics, kinds):
    """Margin and accuracy over all pairs of the batch, under TRL's two names without a kind."""
    names = ("rewards/margins", "rewards/accuracies") if kinds else ()
    return {name: sum(metrics[f"{name}_{kind}"] for kind in kinds) / len(kinds) for name in names}


def swap(chosen, rejected, flipped):
    """Values of the answer that the label prefers: `rejected` in flipped rows, else `chosen`; (B,)."""
    return chosen if flipped is None else torch.where(flipped, rejected, chosen)


def term_weights(method, psi_by_kind):
    """gamma of each term by the method's rule: dict kind -> float or () tensor."""
    kinds = [term.kind for term in method.terms]
    if method.gamma == "equal":
        return dict.fromkeys(kinds, 1 / max(len(kinds), 1))
    if method.gamma in ("dynamic", "literal"):
        return loss_weights(psi_by_kind, literal=method.gamma == "literal")
    return dict(zip(kinds, method.gamma, strict=True))


def term_q(term, convention, margin, beta):
    """q of a term: its fixed value, or eq. 10 on the gathered margin ("paper": times beta, "authors": bare)."""
    if term.q is not None:
        return torch.tensor(term.q)
    psi = margin if convention == "authors" else beta * margin
    return noise_coefficient(psi, term.scale, convention)


def pair_metrics(term, policy_logps, reference_logps, margin, beta, gamma, q):
    """Metrics of one pair under TRL's names. Margins and accuracies follow the labels and change sign in flipped rows;
    rewards and log-probs belong to the texts."""
    kind = term.kind
    rejected_reward = beta * (policy_logps[kind] - reference_logps[kind])
    metrics = {
        f"rewards/{kind}": rejected_reward.mean().item(),
        f"rewards/margins_{kind}": beta * margin.mean().item(),
        f"rewards/accuracies_{kind}": (margin > 0).float().mean().item(),
        f"logps/{kind}": policy_logps[kind].mean().item(),
        f"noise/gamma_{kind}": float(gamma),
    }
    return metrics | ({f"noise/q_{kind}": q.mean().item()} if term.loss == "napo" else {})
