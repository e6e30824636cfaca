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
        softmax = OnlineSoftmax(states, weight, ctx.needs_input_grad[0])
        columns = max(1, CHUNK_ELEMENTS // len(states))
        for start in range(0, len(weight), columns):
            block = slice(start, start + columns)
            logits = torch.nn.functional.linear(states, weight[block], None if bias is None else bias[block])  # (N, n)
            softmax.add(logits, weight[block], targets[:, None] - start)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(softmax.gradient(weight[targets]))
        return softmax.logps()

    @staticmethod
    def backward(ctx, upstream):
        (gradient,) = ctx.saved_tensors
        return (upstream[:, None] * gradient).to(gradient.dtype), None, None, None


class OnlineSoftmax:
    """A softmax that reads a vocabulary block by block, in float32 at least.

    highest  (N, 1) largest logit so far
    target   (N, 1) the target's logit, 0 until its block comes
    rest     (N, 1) sum of exp(logit - highest) over all tokens but the target. The target is kept apart: for a target
             that is almost certain, 1 - p(target) would be pure rounding error, above all in bfloat16
    others   (N, H) the same sum with exp(logit - highest) W[token]; None if no gradient is wanted
    """

    def __init__(self, states, weight, wants_gradient):
        dtype, column = at_least_float32(states.dtype), (len(states), 1)
        self.highest = states.new_full(column, -torch.inf, dtype=dtype)
        self.rest, self.target = (states.new_zeros(column, dtype=dtype) for _ in range(2))
        self.others = torch.zeros_like(states, dtype=dtype) if wants_gradient else None

    def add(self, logits, weight, target):
        """Takes in one block: logits (N, n), which are overwritten, weights (n, H), and the target's place in the
        block, (N, 1), outside 0..n-1 if it is in another block."""
        logits = logits.to(self.rest.dtype)
        inside, place = (target >= 0) & (target < len(weight)), target.clamp(0, len(weight) - 1)
        self.target = torch.where(inside, logits.gather(1, place), self.target)
        highest = torch.maximum(self.highest, logits.amax(dim=1, keepdim=True))
        shrink, self.highest = (self.highest - highest).exp_(), highest
        exponentials = logits.sub_(highest).exp_()
        exponentials.scatter_(1, place, exponentials.gather(1, place).masked_fill_(inside, 0))
        self.rest = self.rest * shrink + exponentials.sum(dim=1, keepdim=True)
        if self.others is None:
            return
        self.others *= shrink
        if weight.dtype == self.others.dtype:
            self.others.addmm_(exponentials, weight)
        else:
            self.others += torch.mm(exponentials.to(weight.dtype), weight)

    def total(self):
        return self.rest + (self.target - self.highest).exp()

    def logps(self):
        """(N,) of the targets, once all blocks are in."""
        return (self.target - self.highest - self.total().log()).squeeze(1)

    def gradient(self, target_weight):
        """(N, H) of the log-probs with respect to the states, in the dtype of `target_weight`, W[target]."""
        return ((self.rest * target_weight - self.others) / self.total()).to(target_weight.dtype)
