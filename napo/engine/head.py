"""From hidden states to the log-probs of the tokens that follow, block by block: never all logits at once.

With a frozen output head the gradient of a token's log-prob with respect to its hidden state is one vector,
W[target] - softmax(W state) W. The forward pass stores it, so that backward does not compute the vocabulary again. The
softmax runs over the vocabulary in blocks that fit the processor's cache; its sums are rescaled whenever a larger logit
turns up.
"""

import torch
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 2**19  # logits held at once: 2 MiB in float32
CHUNK_TOKENS = 1024  # tokens that go through the vocabulary together


def target_logps(states, targets, head):
    """Log-prob of each target token.

    states   (N, H) hidden states that predict the targets
    targets  (N,) int64
    head     the model's output layer; a plain Linear without trainable weights gets the cheap backward
    Returns (N,) nats, float32 (float64 for a float64 model).
    """
    assert states.shape[0] == targets.shape[0]
    if not len(states):
        return states.new_zeros(0, dtype=at_least_float32(states.dtype))
    if is_frozen_linear(head):
        pieces = zip(states.split(CHUNK_TOKENS), targets.split(CHUNK_TOKENS), strict=True)
        return torch.cat([FrozenHead.apply(s, head.weight, head.bias, t) for s, t in pieces])
    chunk = max(1, CHUNK_ELEMENTS // head.out_features)
    pieces = zip(states.split(chunk), targets.split(chunk), strict=True)
    return torch.cat([checkpoint(_whole_logps, s, t, head, use_reentrant=False) for s, t in pieces])


def is_frozen_linear(head):
    """Whether the head is torch's own Linear, neither quantised nor adapted, and no weight of it is being trained."""
    trained = torch.is_grad_enabled() and any(p.requires_grad for p in head.parameters())
    return type(head) is torch.nn.Linear and not trained


def at_least_float32(dtype):
    return torch.promote_types(dtype, torch.float32)


def _whole_logps(states, targets, head):
    """Log-probs of one chunk by autograd, for a trained, adapted or quantised head."""
    logits = head(states)
    logits = logits.to(at_least_float32(logits.dtype))  # (n, V)
    return logits.gather(1, targets[:, None]).squeeze(1) - logits.logsumexp(dim=1)


class FrozenHead(torch.autograd.Function):
    """Log-probs under a frozen linear head. Forward also computes their gradients, (N, H), for backward."""

    @staticmethod
    def forward(ctx, states, weight, bias, targets):
        logps, gradient = _online_softmax(states, weight, bias, targets[:, None], ctx.needs_input_grad[0])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return logps

    @staticmethod
    def backward(ctx, upstream):
        (gradient,) = ctx.saved_tensors
        return (upstream[:, None] * gradient).to(gradient.dtype), None, None, None


def _online_softmax(states, weight, bias, targets, wants_gradient):
    """(log-probs (N,), their gradients (N, H) or None), in one pass over the vocabulary; targets (N, 1).

    The target is kept apart from the sum over the other tokens: for a target that is almost certain, 1 - p(target)
    would be pure rounding error, above all in bfloat16.
    """
    dtype, column = at_least_float32(states.dtype), (len(states), 1)
    highest = states.new_full(column, -torch.inf, dtype=dtype)  # logit so far
    target = states.new_zeros(column, dtype=dtype)  # the target's logit, once its block has come
    rest = states.new_zeros(column, dtype=dtype)  # sum of exp(logit - highest) over all tokens but the target
    others = torch.zeros_like(states, dtype=dtype) if wants_gradient else None  # the same sum, times W[token]
    columns = max(1, CHUNK_ELEMENTS // len(states))
    for start in range(0, len(weight), columns):
        block = slice(start, start + columns)
        rows, place = weight[block], targets - start
        logits = torch.nn.functional.linear(states, rows, None if bias is None else bias[block]).to(dtype)  # (N, n)
        inside, place = (place >= 0) & (place < len(rows)), place.clamp(0, len(rows) - 1)
        target = torch.where(inside, logits.gather(1, place), target)
        before, highest = highest, torch.maximum(highest, logits.amax(dim=1, keepdim=True))
        shrink, exponentials = (before - highest).exp_(), logits.sub_(highest).exp_()
        exponentials.scatter_(1, place, exponentials.gather(1, place).masked_fill_(inside, 0))
        rest = rest * shrink + exponentials.sum(dim=1, keepdim=True)
        if wants_gradient and rows.dtype == dtype:
            others.mul_(shrink).addmm_(exponentials, rows)
        elif wants_gradient:
            others.mul_(shrink).add_(torch.mm(exponentials.to(rows.dtype), rows))
    total = rest + (target - highest).exp()
    logps = (target - highest - total.log()).squeeze(1)
    if not wants_gradient:
        return logps, None
    of_target = weight[targets.squeeze(1)]
    return logps, ((rest * of_target - others) / total).to(weight.dtype)
