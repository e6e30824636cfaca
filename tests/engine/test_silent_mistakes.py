"""Packing done wrong on purpose: each mistake gives finite log-probs, and each must be far outside the tolerance of
test_tree_attention.py."""

import pytest
import torch
from packed_and_plain import distance, make_batch, measured, packed_against_plain, policy_of, ragged_rows

from napo.engine import tree_attention

FAMILIES = tuple(tree_attention.FAMILIES)


def not_restarted(kwargs, batch):
    length = batch["segments"].shape[1]
    plain = torch.arange(length).expand(len(batch["segments"]), length)
    kwargs["position_ids"] = plain if kwargs["position_ids"].ndim == 2 else plain.expand(3, -1, -1)


def only_one_axis_goes_on(kwargs, batch):
    """On a grid: positions of responses counted in tokens, as for a model without a grid."""
    kwargs["position_ids"] = torch.where(
        batch["segments"] > 0, batch["position_ids"].expand(3, -1, -1), kwargs["position_ids"]
    )


def siblings_seen(kwargs, batch):
    length = batch["segments"].shape[1]
    kwargs["attention_mask"] = torch.ones(length, length, dtype=torch.bool).tril().expand(1, 1, -1, -1)


def no_mask(kwargs, batch):
    kwargs["attention_mask"] = None


def no_mask_and_a_cache(kwargs, batch):
    kwargs |= {"attention_mask": None, "use_cache": True}


def mask_of_ones(kwargs, batch):
    kwargs["attention_mask"] = torch.ones_like(batch["segments"])


def zeros_and_ones_added(kwargs, batch):
    kwargs["attention_mask"] = kwargs["attention_mask"].to(torch.float64)


def truth_values_added(kwargs, batch):
    kwargs["attention_mask"] = kwargs["attention_mask"] == 0


MISTAKES = [
    ("llava", "sdpa", zeros_and_ones_added, 0.1),
    ("llava", "eager", truth_values_added, 0.1),
    ("llava", "sdpa", no_mask, 0.1),
    ("llava", "eager", no_mask, 0.1),
    ("llava", "sdpa", no_mask_and_a_cache, 1e-3),
    ("llava", "eager", no_mask_and_a_cache, 1e-3),
    ("llava", "sdpa", mask_of_ones, 1e-3),
    ("llava", "eager", mask_of_ones, 1e-3),
    ("llava", "sdpa", siblings_seen, 1e-3),
    *[(family, "sdpa", not_restarted, 1e-4) for family in FAMILIES],
    ("qwen2_5_vl", "sdpa", only_one_axis_goes_on, 1e-4),
    ("qwen3_vl", "sdpa", only_one_axis_goes_on, 1e-4),
]


@pytest.mark.parametrize("family, attention, mistake, at_least", MISTAKES)
def test_every_silent_mistake_is_seen(family, attention, mistake, at_least):
    policy, processor = policy_of(family, torch.float64, attention)
    rows = ragged_rows()
    plain = measured(policy, make_batch(processor, rows, packed=False))
    batch = make_batch(processor, rows, packed=True)

    def interfere(module, args, kwargs):
        mistake(kwargs, batch)
        return args, kwargs

    handle = tree_attention.inner_model(policy).register_forward_pre_hook(interfere, with_kwargs=True)
    wrong = measured(policy, batch)
    handle.remove()
    values, gradients = distance(wrong, plain)
    assert torch.isfinite(wrong[0]).all() and torch.isfinite(wrong[1]).all()
    assert gradients > at_least >= 1e3 * 1e-7
    assert values > 1e-7  # the log-probs alone would tell too, at 1e-12
    right = distance(measured(policy, batch), plain)
    assert right[1] < 1e-5 < gradients


def test_first_token_predicted_by_a_sibling_is_seen(monkeypatch):
    policy, processor = policy_of("llava")
    rows, stock = ragged_rows(), tree_attention.predictors
    monkeypatch.setattr(tree_attention, "predictors", lambda s: (*stock(s)[:2], stock(s)[1] - 1))
    values, gradients = packed_against_plain(policy, processor, rows)
    assert values > 1e-3 and gradients > 1e-3
