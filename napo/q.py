"""From reward margins to q (eq. 10) and to the loss weights gamma (eq. 13).

Two quantities never share a name: the *raw margin* of the base alone, and the *reward margin* psi = beta * margin of
policy against reference. q and gamma follow psi during training. Before training only the raw margin differs from 0.
"""

import numpy as np
import torch

# The range of q: paper, section 4; authors' code, whose q also has twice the slope and starts at 1.
Q_RANGE = {"paper": (0.01, 1.0), "authors": (0.001, 1.0)}
SCORE_FLOOR = 0.01  # the lower cut of eq. 13


def noise_coefficient(psi, alpha, convention="paper"):
    """The Box-Cox parameter q of a batch, from its margins (eq. 10). Small margins look noisy and raise q.

        paper:    q = 1 - sigmoid(alpha * mean(psi)),       cut to [0.01, 1];  0.5 at margin 0
        authors:  q = 2 (1 - sigmoid(alpha * mean(m))),     cut to [0.001, 1]; 1 at margin 0

    psi    (B,)  "paper": reward margin beta * margin; "authors": the bare margin m. Sum or mean over tokens
    alpha  scale; 0.5 with mean margins, 0.01 with sum margins (paper, section 4)
    Returns (), float32, without gradient.  Raises ValueError for an unknown convention or an empty batch.
    Example: psi = [0, 0] gives 0.5 ("paper") and 1.0 ("authors").
    """
    if convention not in Q_RANGE:
        raise ValueError(f"unknown convention {convention!r}: use one of {', '.join(map(repr, Q_RANGE))}")
    if psi.numel() == 0:
        raise ValueError("q of an empty batch is not defined: psi has no elements")
    scale = 2.0 if convention == "authors" else 1.0
    q = scale * torch.sigmoid(-alpha * psi.detach().double().mean())
    return q.clamp(*Q_RANGE[convention]).float()


def loss_weights(psi_by_kind, literal=False):
    """The weight gamma of each kind's loss term, from the batch's mean reward margins (eq. 13).

        s_i = max(mean(psi_i), 0.01),   gamma_i = s_i / sum(s)         (the kit's rule: equal weights at the start)
        gamma_i = mean(psi_i) / sum(mean(psi)), cut to [0.01, 1]       (literal=True; 0/0 at the start counts as equal)

    psi_by_kind  dict kind -> (B,) reward margins, summed over tokens; no gradient flows through them
    Returns dict kind -> (), float32; the kit's rule sums to 1.  Raises ValueError without kinds.
    Example: means {0, 0, 0} give 1/3 each; means {0.3, 0.1} give 0.75 and 0.25.
    """
    if not psi_by_kind:
        raise ValueError("loss weights need at least one kind")
    score = torch.stack([psi.detach().double().mean() for psi in psi_by_kind.values()])
    if not literal:
        score = score.clamp(min=SCORE_FLOOR)
    total = score.sum()
    gamma = score / total if total != 0 else torch.full_like(score, 1 / len(score))
    if literal:
        gamma = gamma.clamp(0.01, 1.0)
    return dict(zip(psi_by_kind, gamma.float(), strict=True))


def row_q(posterior):
    """q of each row: the probability that its label is wrong, cut to the paper's range [0.01, 1].

    posterior  (B,)  in [0, 1].  Returns (B,), float32, without gradient.
    """
    return posterior.detach().clamp(*Q_RANGE["paper"]).float()


def calibrated_alpha(rate, psi):
    """The alpha with which eq. 10 ("paper") gives q = `rate` once the mean reward margin is `psi`.

        alpha = log((1 - rate) / rate) / psi

    rate  estimated share of wrong labels, cut to [0.01, 0.49];  psi  mean reward margin late in a training, above 0
    Returns a float.  Raises ValueError unless psi is above 0.
    Example: rate = 0.25 at psi = 2 gives log(3) / 2 = 0.549.
    """
    if not psi > 0:
        raise ValueError(f"psi must be above 0 for alpha to follow a noise rate, got {psi:g}")
    rate = float(np.clip(rate, 0.01, 0.49))
    return float(np.log((1 - rate) / rate) / psi)


def implied_noise_rate(q, convention="paper"):
    """The noise rate that q stands for, if we read q as the probability that the preference is wrong.

    "paper": q = 1 - P(preference right), so q itself; "authors": half of q.
    """
    return q / 2 if convention == "authors" else q


def raw_margins(chosen_logps, rejected_logps, chosen_tokens, rejected_tokens):
    """Raw margins of the base alone, before any training (the axis of the paper's Figure 4).

    logps   (B,)  nats, summed;  tokens (B,) number of response tokens
    Returns (raw_margin, raw_mean_margin), (B,) each: nats, nats per token.
    """
    raw_margin = chosen_logps - rejected_logps
    raw_mean_margin = chosen_logps / chosen_tokens - rejected_logps / rejected_tokens
    return raw_margin, raw_mean_margin


def draw_flips(n_rows, flip_rate, rng):
    """The rows whose labels are swapped: exactly round(flip_rate * n_rows) of them, drawn without replacement.

    Returns (n_rows,) bool.  Raises ValueError if flip_rate leaves [0, 0.5): beyond it labels mean the opposite.
    """
    if not 0 <= flip_rate < 0.5:
        raise ValueError(f"flip_rate must lie in [0, 0.5), got {flip_rate:g}")
    flipped = np.zeros(n_rows, dtype=bool)
    flipped[rng.permutation(n_rows)[: round(flip_rate * n_rows)]] = True
    return flipped
