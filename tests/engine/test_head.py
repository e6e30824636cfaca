"""The chunked head: float32 at least, equal to cross entropy, and no vocabulary in what backward keeps."""

import pytest
import torch
import torch.nn.functional as F
from packed_and_plain import make_batch, measured, policy_of, ragged_rows
from torch.utils._python_dispatch import TorchDispatchMode

from napo.engine import head


def problem(n=7, vocabulary=11, hidden=5, dtype=torch.float64, bias=False):
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(hidden, vocabulary, bias=bias).to(dtype).requires_grad_(False)
    layer.weight.data = torch.randn(vocabulary, hidden, generator=generator).to(dtype)
    states = torch.randn(n, hidden, generator=generator).to(dtype).requires_grad_()
    return layer, states, torch.randint(vocabulary, (n,), generator=generator)


def gradients_of(values, states):
    weights = torch.linspace(-1, 2, len(values)).to(values.dtype)
    return torch.autograd.grad((weights * values).sum(), states)[0]


@pytest.mark.parametrize("elements", [1, 22, 33, 2**22])  # one token a chunk, a chunk that does not divide, all at once
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("frozen", [True, False])
def test_equals_cross_entropy_whatever_the_chunk(monkeypatch, elements, bias, frozen):
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", elements)
    layer, states, targets = problem(bias=bias)
    layer.weight.requires_grad_(not frozen)
    values = head.target_logps(states, targets, layer)
    expected = -F.cross_entropy(layer(states), targets, reduction="none")
    torch.testing.assert_close(values, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(gradients_of(values, states), gradients_of(expected, states), rtol=1e-12, atol=1e-13)


def test_a_trained_head_gets_its_gradient():
    layer, states, targets = problem()
    layer.weight.requires_grad_()
    head.target_logps(states, targets, layer).sum().backward()
    found = layer.weight.grad.clone()
    layer.weight.grad = None
    (-F.cross_entropy(layer(states), targets, reduction="sum")).backward()
    torch.testing.assert_close(found, layer.weight.grad, rtol=1e-12, atol=1e-13)


def test_only_torchs_own_frozen_linear_takes_the_cheap_backward():
    class Adapted(torch.nn.Linear):
        pass

    layer, _, _ = problem()
    assert head.is_frozen_linear(layer)
    assert not head.is_frozen_linear(Adapted(5, 11).requires_grad_(False))
    assert not head.is_frozen_linear(layer.requires_grad_())
    with torch.no_grad():
        assert head.is_frozen_linear(layer)


def test_extreme_logits_stay_finite():
    layer, states, targets = problem(dtype=torch.float32)
    big = (states * 1e4).detach().requires_grad_()
    values = head.target_logps(big, targets, layer)
    assert torch.isfinite(values).all() and torch.isfinite(gradients_of(values, big)).all()
    torch.testing.assert_close(values, -F.cross_entropy(layer(big), targets, reduction="none"), rtol=1e-5, atol=1e-5)


def test_bfloat16_gives_float32_log_probs_and_bfloat16_gradients():
    layer, states, targets = problem(dtype=torch.bfloat16)
    values = head.target_logps(states, targets, layer)
    assert values.dtype == torch.float32
    expected = -F.cross_entropy(layer(states).float(), targets, reduction="none")
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)
    found, stock = gradients_of(values, states), gradients_of(expected, states)
    assert found.dtype == torch.bfloat16 and (found - stock).norm() < 0.01 * stock.norm()


def test_nothing_to_predict():
    layer, states, targets = problem()
    for frozen in (True, False):
        layer.weight.requires_grad_(not frozen)
        assert head.target_logps(states[:0], targets[:0], layer).shape == (0,)


def test_a_sure_model_still_gets_its_gradient_in_bfloat16():
    """Where p is near 1 the gradient is the small 1 - p: as the difference of two vectors it would be rounding."""
    layer, states, _ = problem(n=40, hidden=64, dtype=torch.bfloat16)
    sure = (3 * states).detach().requires_grad_()
    targets = layer(sure).argmax(1)
    exact = torch.nn.Linear(64, 11, bias=False).double().requires_grad_(False)
    exact.weight.data = layer.weight.double()
    inputs = sure.detach().double().requires_grad_()
    known = -F.cross_entropy(exact(inputs), targets, reduction="none")
    values = head.target_logps(sure, targets, layer)
    close = ((known > -0.05) & (known < -1e-6)).nonzero()[:, 0]
    assert len(close) > 5
    found = torch.autograd.grad(values.sum(), sure)[0].double()[close]
    expected = torch.autograd.grad(known.sum(), inputs)[0][close]
    assert ((found - expected).norm(dim=1) / expected.norm(dim=1)).median() < 0.1


class LargestLogits(TorchDispatchMode):
    """Remembers the size of the largest product with rows of the head's weight: tokens x rows."""

    def __init__(self, weight):
        super().__init__()
        self.weight, self.elements = weight, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        parts = [t for t in args if torch.is_tensor(t) and t.ndim == 2 and same_storage(t, self.weight)]
        if parts and torch.is_tensor(out) and out.shape[-1] == parts[0].numel() // self.weight.shape[1]:
            self.elements = max(self.elements, 0 if same_storage(out, self.weight) else out.numel())
        return out


def same_storage(one, other):
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


@pytest.mark.parametrize("packed", [True, False])
def test_a_step_never_holds_more_logits_than_a_chunk_and_keeps_none(monkeypatch, packed):
    policy, processor = policy_of("llava", torch.float32)
    weight = policy.get_base_model().lm_head.weight
    vocabulary = len(weight)
    batch, kept = make_batch(processor, ragged_rows(), packed), []
    n_tokens = (batch["segments"] > 0).sum().item() if packed else batch["response_mask"].sum().item()
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", 40 * n_tokens)

    def keep(tensor):
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), LargestLogits(weight) as largest:
        measured(policy, batch)
    assert largest.elements == 40 * n_tokens < vocabulary * n_tokens  # blocks of forty tokens of the vocabulary
    assert kept and not any(shape and shape[-1] in (40, vocabulary) for shape in kept)


def test_many_tokens_go_through_in_pieces(monkeypatch):
    monkeypatch.setattr(head, "CHUNK_TOKENS", 3)
    layer, states, targets = problem()
    values = head.target_logps(states, targets, layer)
    expected = -F.cross_entropy(layer(states), targets, reduction="none")
    torch.testing.assert_close(values, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(gradients_of(values, states), gradients_of(expected, states), rtol=1e-12, atol=1e-13)
