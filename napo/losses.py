"""Losses on preference margins: pure functions of (B,) vectors, one value per pair.

`margin` is always the bare difference of log-ratios, chosen minus rejected, in nats; a loss multiplies it by `beta`.
Values and gradients are computed in float64 inside and returned in float32, because the textbook forms lose every digit
in float32: (1 - p**q) / q is 0 from z = 17 on, and autograd's gradient of its expm1 form is exactly 0 below z = -17.
"""

import math

import torch
import torch.nn.functional as F


def dpo_loss(margin, beta):
    """Binary cross entropy of the preference probability: DPO, the limit q -> 0 of `napo_loss` (eq. 2 of Rafailov
    2023).

        L = -log sigmoid(beta * margin)

    margin  (B,)  nats; chosen minus rejected log-ratio of policy to reference
    Returns (B,), float32.
    Example: margin = 0 gives log 2 = 0.6931.
    """
    return -F.logsigmoid(beta * margin.double()).float()


def mae_loss(margin, beta):
    """Mean absolute error of the preference probability: NaPO at q = 1, symmetric and so robust to swapped pairs.

        L = 1 - sigmoid(beta * margin),   L(margin) + L(-margin) = 1

    margin  (B,)  nats
    Returns (B,), float32.
    """
    return torch.sigmoid(-beta * margin.double()).float()


def napo_loss(margin, q, beta):
    """Negative Box-Cox loss of the preference probability, one value per pair (eq. 9).

        L = (1 - p**q) / q,   p = sigmoid(beta * margin),   dL/dz = -p**q (1 - p),   z = beta * margin

    q -> 0 gives -log p (DPO); q = 1 gives 1 - p (MAE, robust to swapped pairs).

    margin  (B,)  nats; chosen minus rejected log-ratio of policy to reference
    q       () or (B,), in (0, 1]; a number or a tensor, no gradient flows through it
    Returns (B,), float32.  Raises ValueError if q leaves (0, 1].
    Example: margin = 0 gives 0.5 at q = 1 and log 2 as q -> 0.
    """
    q = torch.as_tensor(q, dtype=torch.float64, device=margin.device).detach()
    if not bool(((q > 0) & (q <= 1)).all()):
        raise ValueError(f"q must lie in (0, 1], got values in [{q.min().item():g}, {q.max().item():g}]")
    return _BoxCox.apply(beta * margin.double(), q).float()


class _BoxCox(torch.autograd.Function):
    """(1 - p**q) / q with the gradient written out: autograd's own is 0 where expm1 saturates."""

    @staticmethod
    def forward(ctx, z, q):
        ctx.save_for_backward(z, q)
        return -torch.expm1(q * F.logsigmoid(z)) / q

    @staticmethod
    def backward(ctx, grad_output):
        z, q = ctx.saved_tensors
        slope = -torch.exp(q * F.logsigmoid(z) + F.logsigmoid(-z))
        return grad_output * slope, None


def sft_loss(logps, n_tokens):
    """Negative log-likelihood per token of one response a row, for supervised fine-tuning on the chosen answers.

    logps     (B,)  nats, summed over the response's tokens
    n_tokens  (B,)  number of response tokens, at least 1
    Returns (B,), float32, nats per token.
    """
    return -(logps / n_tokens).float()


# ---- what NaPO is compared with -------------------------------------------------------------------------------------


def cdpo_loss(margin, epsilon, beta):
    """Conservative DPO: cross entropy against a label that is wrong with probability epsilon (Mitchell 2023, "A note
    on DPO with noisy preferences & relationship to IPO"; TRL's `sigmoid` with label smoothing).

        L = -(1 - epsilon) log sigmoid(z) - epsilon log sigmoid(-z),   z = beta * margin

    margin  (B,)  nats;  epsilon  assumed share of swapped pairs, in [0, 0.5)
    Returns (B,), float32.  Raises ValueError if epsilon leaves [0, 0.5).
    Example: lowest where sigmoid(z) = 1 - epsilon; margin = 0 gives log 2 for every epsilon.
    """
    right, wrong = _both_labels(margin, epsilon, beta)
    return ((1 - epsilon) * right + epsilon * wrong).float()


def robust_dpo_loss(margin, epsilon, beta):
    """Robust DPO: its mean over labels swapped with probability epsilon is the DPO loss of the right labels (Chowdhury
    2024, arXiv 2403.00409; TRL's `robust`).

        L = (-(1 - epsilon) log sigmoid(z) + epsilon log sigmoid(-z)) / (1 - 2 epsilon),   z = beta * margin

    margin  (B,)  nats;  epsilon  assumed share of swapped pairs, in [0, 0.5)
    Returns (B,), float32; it has no lower bound.  Raises ValueError if epsilon leaves [0, 0.5).
    Example: (1 - epsilon) L(margin) + epsilon L(-margin) = dpo_loss(margin); margin = 0 gives log 2.
    """
    right, wrong = _both_labels(margin, epsilon, beta)
    return (((1 - epsilon) * right - epsilon * wrong) / (1 - 2 * epsilon)).float()


def _both_labels(margin, epsilon, beta):
    """DPO's loss under the label and under its opposite, (B,) float64 each."""
    if not 0 <= epsilon < 0.5:
        raise ValueError(f"epsilon must lie in [0, 0.5), got {epsilon:g}")
    z = beta * margin.double()
    return -F.logsigmoid(z), -F.logsigmoid(-z)


def ipo_loss(margin, beta):
    """Identity preference optimisation: squared distance of the margin from 1 / (2 beta) (Azar 2023, arXiv
    2310.12036).

        L = (margin - 1 / (2 beta))**2

    The margin is the paper's, summed over tokens; TRL's `ipo` divides each log-ratio by its number of tokens first.

    margin  (B,)  nats;  beta  the paper's tau, above 0
    Returns (B,), float32, nats squared.
    Example: margin = 0 gives 1 / (4 beta**2); margin = 1 / (2 beta) gives 0.
    """
    return ((margin.double() - 1 / (2 * beta)) ** 2).float()


def dr_dpo_loss(margin, beta_prime, beta):
    """Dr. DPO: a soft minimum over the batch in place of the mean, so that pairs of large loss count less (Wu 2024,
    arXiv 2407.07880).

        L = -beta' log mean(exp(-l / beta')),   l = dpo_loss(margin, beta)

    The value belongs to the batch, so every pair gets the same; the slope reaches each pair by its share of the sum.

    margin  (B,)  nats;  beta_prime  above 0; towards infinity L becomes the mean
    Returns (B,), float32.  Raises ValueError if beta_prime is not above 0.
    Example: equal margins give dpo_loss(margin).
    """
    if not beta_prime > 0:
        raise ValueError(f"beta_prime must be above 0, got {beta_prime:g}")
    exponents = F.logsigmoid(beta * margin.double()) / beta_prime  # (B,)
    softmin = -beta_prime * (torch.logsumexp(exponents, 0) - math.log(len(exponents)))
    return softmin.expand(len(exponents)).float()


def anchor_loss(chosen_logratio, beta, delta=0.0):
    """mDPO's anchor: the chosen answer must not become less likely than the reference makes it (Wang 2024,
    arXiv 2406.11839). mDPO's conditional term is `dpo_loss` on the margin of the chosen answer with its image over the
    same answer with a corrupted one.

        L = -log sigmoid(beta * chosen_logratio - delta)

    chosen_logratio  (B,)  nats, policy minus reference;  delta  in units of reward; 0 in their experiments
    Returns (B,), float32.
    Example: chosen_logratio = 0 at delta = 0 gives log 2.
    """
    return -F.logsigmoid(beta * chosen_logratio.double() - delta).float()
