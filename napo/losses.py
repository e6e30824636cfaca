"""Losses on preference margins: pure functions of (B,) vectors, one value per pair.

`margin` is always the bare difference of log-ratios, chosen minus rejected, in nats; a loss multiplies it by `beta`.
Values and gradients are computed in float64 inside and returned in float32, because the textbook forms lose every digit
in float32: (1 - p**q) / q is 0 from z = 17 on, and autograd's gradient of its expm1 form is exactly 0 below z = -17.
"""

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
