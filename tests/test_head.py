"""The chunked head: float32 at least, equal to cross entropy, and no vocabulary in what backward keeps."""

import pytest
import torch
import torch.nn.functional as F
from packed_and_plain import make_batch, measured, policy_of, ragged_rows
from torch.utils._python_dispatch import TorchDispatchMode

from napo import head


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


class LargestWithVocabulary(TorchDispatchMode):
    """Remembers the most rows of any tensor, other than the head's weight, whose last dimension is the vocabulary."""

    def __init__(self, weight):
        super().__init__()
        self.vocabulary, self.weight, self.rows = len(weight), weight.data_ptr(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if torch.is_tensor(tensor) and tensor.ndim and tensor.shape[-1] == self.vocabulary:
                if tensor.data_ptr() == self.weight:
                    continue
                self.rows = max(self.rows, tensor.numel() // self.vocabulary)
        return out


@pytest.mark.parametrize("packed", [True, False])
def test_a_step_never_holds_more_logits_than_a_chunk_and_keeps_none(monkeypatch, packed):
    policy, processor = policy_of("llava", torch.float32)
    weight = policy.get_base_model().lm_head.weight
    vocabulary = len(weight)
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", 8 * vocabulary)
    batch, kept = make_batch(processor, ragged_rows(), packed), []

    def keep(tensor):
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), LargestWithVocabulary(weight) as largest:
        measured(policy, batch)
    assert 0 < largest.rows <= 8 < batch["input_ids"].numel()
    assert kept and not any(shape and shape[-1] == vocabulary for shape in kept)
