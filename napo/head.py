"""From hidden states to the log-probs of the tokens that follow, in chunks: never all logits at once.

With a frozen output head the gradient of a token's log-prob with respect to its hidden state is one vector,
W[target] - softmax(W state) W. It is stored in the forward pass, so backward does not compute the vocabulary again.
"""

import torch
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 2**22  # logits held at once: 16 MiB in float32


def target_logps(states, targets, head):
    """Log-prob of each target token, in float32 at least, whatever the model computes in.

    states   (N, H) hidden states that predict the targets
    targets  (N,) int64
    head     the model's output layer; a plain Linear without trainable weights takes the cheap backward
    Returns (N,) nats, float32 (float64 for a float64 model).
    """
    assert states.shape[0] == targets.shape[0]
    chunk = max(1, CHUNK_ELEMENTS // head.out_features)
    if is_frozen_linear(head):
        return FrozenHead.apply(states, head.weight, head.bias, targets, chunk)
    if not len(states):
        return states.new_zeros(0, dtype=at_least_float32(states.dtype))
    pieces = zip(states.split(chunk), targets.split(chunk), strict=True)
    return torch.cat([checkpoint(_whole_logps, s, t, head, use_reentrant=False) for s, t in pieces])


def is_frozen_linear(head):
    """Whether the head is torch's own Linear (neither quantised nor adapted) and none of it is trained now."""
    trained = torch.is_grad_enabled() and any(p.requires_grad for p in head.parameters())
    return type(head) is torch.nn.Linear and not trained


def at_least_float32(dtype):
    return torch.promote_types(dtype, torch.float32)


def _whole_logps(states, targets, head):
    """The same by autograd, of one chunk: what a trained, adapted or quantised head needs."""
    logits = head(states)
    logits = logits.to(at_least_float32(logits.dtype))  # (n, V)
    return logits.gather(1, targets[:, None]).squeeze(1) - logits.logsumexp(dim=1)


class FrozenHead(torch.autograd.Function):
    """Log-probs under a frozen linear head; what backward needs is computed along with them, (N, H)."""

    @staticmethod
    def forward(ctx, states, weight, bias, targets, chunk):
        wants_gradient = ctx.needs_input_grad[0]
        logps = states.new_empty(len(states), dtype=at_least_float32(states.dtype))
        gradient = torch.empty_like(states) if wants_gradient else None
        for start in range(0, len(states), chunk):
            part = slice(start, start + chunk)
            logits = torch.nn.functional.linear(states[part], weight, bias).to(logps.dtype)  # (n, V)
            target = targets[part, None]
            logits -= logits.amax(dim=1, keepdim=True)
            logps[part] = logits.gather(1, target).squeeze(1)
            exponentials = logits.exp_()
            total = exponentials.sum(dim=1, keepdim=True)
            logps[part] -= total.squeeze(1).log()
            if wants_gradient:
                softmax = exponentials.div_(total)
                softmax.scatter_add_(1, target, -torch.ones_like(total))  # softmax - onehot
                torch.mm(softmax.to(weight.dtype), weight, out=gradient[part])
        if wants_gradient:
            ctx.save_for_backward(gradient.neg_())
        return logps

    @staticmethod
    def backward(ctx, upstream):
        (gradient,) = ctx.saved_tensors
        return (upstream[:, None] * gradient).to(gradient.dtype), None, None, None, None
