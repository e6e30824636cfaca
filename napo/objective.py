"""The objective of a method on one batch: its loss terms, each with its q, weighted by gamma (paper, section 4)."""

import torch

from napo import losses, noise
from napo.profiles import ALPHA

LOSSES = {  # Term.loss -> the values (B,) of a term from (margin, q, term, beta)
    "dpo": lambda margin, q, term, beta: losses.dpo_loss(margin, beta),
    "napo": lambda margin, q, term, beta: losses.napo_loss(margin, q, beta),
    "cdpo": lambda margin, q, term, beta: losses.cdpo_loss(margin, term.epsilon, beta),
    "robust_dpo": lambda margin, q, term, beta: losses.robust_dpo_loss(margin, term.epsilon, beta),
    "ipo": lambda margin, q, term, beta: losses.ipo_loss(margin, beta),
    "dr_dpo": lambda margin, q, term, beta: losses.dr_dpo_loss(margin, term.beta_prime, beta),
}


def margins(policy_logps, reference_logps, n_tokens, kind):
    """Bare log-ratio differences of one kind, chosen minus kind: (margin, mean_margin), (B,) each, nats and nats per
    token."""
    chosen_logratio = policy_logps["chosen"] - reference_logps["chosen"]
    rejected_logratio = policy_logps[kind] - reference_logps[kind]
    margin = chosen_logratio - rejected_logratio
    mean_margin = chosen_logratio / n_tokens["chosen"] - rejected_logratio / n_tokens[kind]
    return margin, mean_margin


def objective(
    method,
    policy_logps,
    reference_logps,
    n_tokens,
    beta,
    flipped=None,
    kept=None,
    gather=lambda x: x,
    posterior=None,
):
    """The loss of one batch under a method, and what to log of it.

    *_logps, n_tokens  dict kind -> (B,): nats summed over tokens; number of tokens
    flipped  (B,) bool: rows whose chosen and rejected answers changed places, in every term
    kept     dict kind -> (B,) bool or weight: pairs that count (the oracle drops those known as noise)
    gather   concatenates a (B,) tensor over devices, so that q and gamma speak for the micro-batch of all of them
    posterior  dict kind -> (B,) probability that the pair's label is wrong: q of each row, in place of eq. 10's
    Returns (loss (), metrics {name: float}).
    """
    sign = 1.0 if flipped is None else 1.0 - 2.0 * flipped.float()
    pairs = {t.kind: [sign * m for m in margins(policy_logps, reference_logps, n_tokens, t.kind)] for t in method.terms}
    gamma = term_weights(method, {kind: beta * gather(margin.detach()) for kind, (margin, _) in pairs.items()})
    loss, metrics = policy_logps["chosen"].new_zeros(()), {}
    for term in method.terms:
        margin, mean_margin = pairs[term.kind]
        q = term_q(term, method.convention, gather((margin if term.margin == "sum" else mean_margin).detach()), beta)
        q = q if posterior is None or term.kind not in posterior else noise.row_q(posterior[term.kind])
        values = LOSSES[term.loss](margin, q, term, beta)
        weight = torch.ones_like(values) if kept is None else kept[term.kind].float()
        loss = loss + gamma[term.kind] * (weight * values).sum() / weight.sum().clamp(min=1)
        metrics |= pair_metrics(term, policy_logps, reference_logps, margin, beta, gamma[term.kind], q)
    if method.sft_weight:
        labelled_chosen = swap(policy_logps["chosen"], policy_logps.get("rejected"), flipped)
        tokens = swap(n_tokens["chosen"], n_tokens.get("rejected"), flipped)
        loss = loss + method.sft_weight * losses.sft_loss(labelled_chosen, tokens).mean()
    chosen_logratio = policy_logps["chosen"] - reference_logps["chosen"]
    if method.anchor_weight:
        loss = loss + method.anchor_weight * losses.anchor_loss(chosen_logratio, beta).mean()
    chosen_reward = beta * chosen_logratio
    metrics |= {"rewards/chosen": chosen_reward.mean().item(), "logps/chosen": policy_logps["chosen"].mean().item()}
    return loss, metrics | over_pairs(metrics, [term.kind for term in method.terms])


def over_pairs(metrics, kinds):
    """TRL's two names without a kind: margin and accuracy over all pairs of the batch, whatever their kind."""
    names = ("rewards/margins", "rewards/accuracies") if kinds else ()
    return {name: sum(metrics[f"{name}_{kind}"] for kind in kinds) / len(kinds) for name in names}


def swap(chosen, rejected, flipped):
    """What is labelled chosen: `chosen`, and `rejected` in the flipped rows; (B,) each."""
    return chosen if flipped is None else torch.where(flipped, rejected, chosen)


def term_weights(method, psi_by_kind):
    """gamma of each term: dict kind -> float or () tensor, by the method's rule."""
    kinds = [term.kind for term in method.terms]
    if method.gamma == "equal":
        return dict.fromkeys(kinds, 1 / max(len(kinds), 1))
    if method.gamma in ("dynamic", "literal"):
        return noise.loss_weights(psi_by_kind, literal=method.gamma == "literal")
    return dict(zip(kinds, method.gamma, strict=True))


def term_q(term, convention, margin, beta):
    """q of a term: its fixed value, or eq. 10 on the gathered margin ("paper": times beta, "authors": bare)."""
    if term.q is not None:
        return torch.tensor(term.q)
    psi = margin if convention == "authors" else beta * margin
    alpha = ALPHA[term.margin] if term.alpha is None else term.alpha
    return noise.noise_coefficient(psi, alpha, convention)


def pair_metrics(term, policy_logps, reference_logps, margin, beta, gamma, q):
    """TRL's metric names, per kind of rejected answer. Margins and accuracies follow the labels, so they change sign in
    flipped rows; rewards and log-probs are those of the texts."""
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
