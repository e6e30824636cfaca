"""Packed rows equal plain sequences, for every family (that mistakes would be seen: test_silent_mistakes.py)."""

import pytest
import torch
import torch.nn.functional as F
from packed_and_plain import (
    distance,
    exact_norms,
    exact_softmax,
    image_gradients,
    make_batch,
    measured,
    packed_against_plain,
    policy_of,
    ragged_rows,
)
from tiny_models import tiny_llava
from torch.overrides import TorchFunctionMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from napo.engine import logps, models, packing, tree_attention
from napo.methods import KINDS
from napo.workshop.files import BadInput

FAMILIES = tuple(tree_attention.FAMILIES)


def test_mask_by_hand():
    """Prompt of 2, responses of 2 and 1, one padding token."""
    segments = torch.tensor([[0, 0, 1, 1, 2, -1]])
    allowed = tree_attention.mask(segments, "sdpa", torch.float32)
    assert allowed.shape == (1, 1, 6, 6) and allowed.dtype == torch.bool
    assert allowed[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],  # not its sibling
        [1, 1, 0, 0, 0, 1],  # padding sees something, so that no softmax is over nothing
    ]
    added = tree_attention.mask(segments, "eager", torch.float64)
    assert added.dtype == torch.float64
    assert torch.equal(added == 0, allowed) and (added[~allowed] == torch.finfo(torch.float64).min).all()
    with pytest.raises(ValueError, match="flash_attention_2"):
        tree_attention.mask(segments, "flash_attention_2", torch.float32)


def test_first_tokens_of_all_responses_are_predicted_by_the_last_prompt_token():
    segments = torch.tensor([[0, 0, 1, 1, 2, -1], [0, 0, 0, 1, 2, 2]])
    row, position, predictor = tree_attention.predictors(segments)
    found = list(zip(row.tolist(), position.tolist(), predictor.tolist(), strict=True))
    assert found == [(0, 2, 1), (0, 3, 2), (0, 4, 1), (1, 3, 2), (1, 4, 2), (1, 5, 4)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("checkpointing", [False, "not reentrant"])
def test_packed_equals_plain_in_float64(family, attention, checkpointing):
    """Three ragged rows with padding, stock norms (they compute in float32, hence the gradients' tolerance)."""
    policy, processor = policy_of(family, torch.float64, attention, checkpointing)
    with exact_softmax():
        values, gradients = packed_against_plain(policy, processor, ragged_rows())
    assert values <= 1e-12 and gradients <= 1e-7


def test_packed_equals_plain_with_the_older_checkpointing():
    values, gradients = packed_against_plain(*policy_of("llava", checkpointing="reentrant"), ragged_rows())
    assert values <= 1e-12 and gradients <= 1e-7


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_equals_plain_to_the_last_digits_where_nothing_computes_in_float32(attention):
    policy, processor = policy_of("llava", torch.float64, attention)
    with exact_softmax():
        values, gradients = packed_against_plain(exact_norms(policy), processor, ragged_rows())
    assert values <= 1e-13 and gradients <= 1e-13


@pytest.mark.parametrize("family", FAMILIES)
def test_the_images_gradient_equals_the_sum_over_its_plain_copies(family):
    """What a trained vision side would learn from. Qwen's vision towers turn positions in float32: 1e-11, not 1e-15."""
    policy, processor = policy_of(family)
    packed, plain = (image_gradients(exact_norms(policy), processor, ragged_rows(), each) for each in (True, False))
    assert packed.shape == plain.shape and (packed - plain).norm() <= 1e-10 * plain.norm() > 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention, shortest", [("sdpa", 64), ("sdpa", 1), ("eager", 64)])  # eager is never cut
@pytest.mark.parametrize("checkpointing", [False, "not reentrant"])
def test_packed_equals_plain_in_float32(monkeypatch, family, attention, shortest, checkpointing):
    """Cut into a stretch for each response too, as rows of real size are: these rows are too short for that at 64."""
    monkeypatch.setattr(tree_attention, "SHORTEST", shortest)
    policy, processor = policy_of(family, torch.float32, attention, checkpointing)
    assert (len(make_batch(processor, ragged_rows(), packed=True)["stretches"]) > 3) == (shortest == 1)
    values, gradients = packed_against_plain(policy, processor, ragged_rows())
    assert values <= 1e-5 and gradients <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("checkpointing", [False, "not reentrant"])
def test_packed_equals_plain_in_four_bits(family, attention, checkpointing):
    policy, processor = policy_of(family, torch.float32, attention, checkpointing, four_bit=True)
    four_bit = models.four_bit_layers(policy)
    assert len(four_bit) == 7 * tree_attention.causal_lm(policy).config.get_text_config().num_hidden_layers > 0
    assert all(layer.weight.dtype == torch.uint8 and layer.weight.quant_state for layer in four_bit)
    values, gradients = packed_against_plain(policy, processor, ragged_rows())
    assert values <= 1e-5 and gradients <= 1e-5


def test_stretches_by_hand(monkeypatch):
    """Two rows, prompts of 2 and 3: the second response begins at 4 in one, at 5 in the other."""
    segments = torch.tensor([[0, 0, 1, 1, 2, 2, 3, -1], [0, 0, 0, 1, 1, 2, 3, 3]])
    monkeypatch.setattr(tree_attention, "SHORTEST", 1)
    assert tree_attention.stretches(segments[:1]) == ((2, ()), (2, (0,)), (2, (0,)), (2, (0,)))
    assert tree_attention.stretches(segments) == (
        (2, ()),
        (2, (0,)),
        (2, (0, 1)),
        (2, (0, 1)),
    )  # its prompt goes on to 3
    monkeypatch.setattr(tree_attention, "SHORTEST", 3)
    assert tree_attention.stretches(segments) == ((2, ()), (6, (0,)))
    monkeypatch.setattr(tree_attention, "SHORTEST", 2)
    assert tree_attention.stretches(segments[:, :6]) == ((2, ()), (2, (0,)), (2, (0, 1)))


class AttentionCalls(TorchFunctionMode):
    """Notes (queries, keys, whether there is no mask) of every call of torch's sdpa that comes up while it is on."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.scaled_dot_product_attention:
            self.seen.append((args[0].shape[2], args[1].shape[2], (kwargs or {}).get("attn_mask") is None))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("shortest", [1, 64])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, "not reentrant"])
def test_nobody_looks_at_keys_that_no_row_needs(monkeypatch, family, shortest, checkpointing):
    """Prompts take the causal path without a mask; a response sees no stretch that is its siblings' in all rows. Layers
    that are computed again do the same."""
    monkeypatch.setattr(tree_attention, "SHORTEST", shortest)
    policy, processor = policy_of(family, checkpointing=checkpointing)
    batch, calls, stock = make_batch(processor, ragged_rows(1), packed=True), [], tree_attention.attend_by_stretches

    def spied(*arguments, **settings):
        with AttentionCalls() as noted:
            out = stock(*arguments, **settings)
        calls.extend(noted.seen)
        return out

    monkeypatch.setattr(tree_attention, "attend_by_stretches", spied)
    measured(policy, batch)
    prompt, *answers = ((batch["segments"] == k).sum().item() for k in range(5))
    answers = answers if shortest == 1 else [sum(answers)]
    of_a_layer = [(prompt, prompt, True), *((n, prompt + n, False) for n in answers)]
    assert calls == of_a_layer * (4 if checkpointing else 2)  # two layers


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_outside_the_branches_is_the_stock_one(family):
    """The vision tower's calls, and all those of plain sequences, come from transformers with what it gives them."""
    policy, processor = policy_of(family)
    for packed in (True, False):
        batch, stretched = make_batch(processor, ragged_rows(), packed), AttentionCalls()
        with torch.no_grad(), stretched:
            logps.batch_logps(policy, batch)
        with_branches = [keys for _, keys, _ in stretched.seen if keys == batch["input_ids"].shape[1]]
        assert len(with_branches) == 2  # of two layers, each seen as one call before it is cut


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n_rows", [1, 3])
@pytest.mark.parametrize("checkpointing", [False, "not reentrant"])
def test_packed_equals_plain_however_finely_it_is_cut(monkeypatch, family, n_rows, checkpointing):
    monkeypatch.setattr(tree_attention, "SHORTEST", 1)
    policy, processor = policy_of(family, checkpointing=checkpointing)
    assert len(make_batch(processor, ragged_rows(n_rows), packed=True)["stretches"]) > 3
    values, gradients = packed_against_plain(policy, processor, ragged_rows(n_rows))
    assert values <= 1e-12 and gradients <= 1e-7


@pytest.mark.parametrize("family", FAMILIES)
def test_a_users_own_model_is_the_same_after_packed_log_probs(family):
    """With gradients and gradient checkpointing: same logits, same answers, same configuration, same attributes."""
    policy, processor = policy_of(family, torch.float32, checkpointing="not reentrant")
    model, rows = policy.get_base_model(), ragged_rows(2)
    batch = make_batch(processor, rows, packed=False)
    inputs = {name: tensor for name, tensor in batch.items() if name != "response_mask"}
    prompts = packing.tokenised([packing.prompt_text(rows[0], processor)], [rows[0]["image"]], processor)

    def state():
        policy.eval()
        with torch.no_grad():
            logits, answer = model(**inputs).logits, model.generate(**prompts, max_new_tokens=5)
        modules = {name: sorted(vars(module)) for name, module in model.named_modules()}
        configs = [config.to_json_string() for config in (model.config, model.generation_config)]
        attention = [m.config._attn_implementation for m in model.modules() if hasattr(m, "config")]
        return logits, answer, modules, configs, attention, dict(ALL_ATTENTION_FUNCTIONS)

    before = state()
    found = logps.response_logps(policy.train(), processor, rows, KINDS, packed=True)
    sum(values.sum() for values in found.values()).backward()
    after = state()
    assert torch.equal(after[0], before[0]) and torch.equal(after[1], before[1])
    assert after[2:] == before[2:]


@pytest.mark.parametrize("n_rows, n_kinds", [(1, 1), (1, 4), (2, 2), (5, 3)])
def test_any_number_of_rows_and_kinds(n_rows, n_kinds):
    policy, processor = policy_of("llava")
    kinds = KINDS[:n_kinds]
    results = [measured(policy, make_batch(processor, ragged_rows(n_rows), packed, kinds)) for packed in (True, False)]
    assert results[0][0].shape == (n_rows * n_kinds,)
    values, gradients = distance(*results)
    assert values <= 1e-12 and gradients <= 1e-7


def test_log_probs_by_their_public_name():
    policy, processor = policy_of("llava")
    rows = ragged_rows(2)
    with torch.no_grad():
        sums = logps.packed_sums(policy, make_batch(processor, rows, "shared"))  # (rows, kinds)
        plain = logps.response_logps(policy, processor, rows, KINDS, packed=False)
        default = logps.response_logps(policy, processor, rows, KINDS)
    assert list(default) == list(plain) == list(KINDS)
    for k, kind in enumerate(KINDS):
        assert default[kind].shape == (2,)
        torch.testing.assert_close(default[kind], plain[kind], rtol=1e-12, atol=0)
        assert torch.equal(default[kind], sums[:, k])


# ---- several rows in one sequence -----------------------------------------------------------------------------------


def shareable_rows():
    """One long row and four short ones, of which two or more fit beside one another."""
    rows = ragged_rows(5)
    rows[0] |= {kind: "a long answer, longer than all the others, and then some more of it" for kind in KINDS}
    return rows


def test_mask_and_predictors_of_two_rows_in_one_sequence():
    """Row 0: prompt of 2, responses of 1 and 1; row 1: prompt of 1, responses of 1 and 2; one padding token."""
    segments = torch.tensor([[0, 0, 1, 2, 0, 1, 2, 2, -1]])
    rows = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, -1]])
    allowed = tree_attention.mask(segments, "sdpa", torch.float32, rows)[0, 0].int().tolist()
    assert allowed[4] == [0, 0, 0, 0, 1, 0, 0, 0, 0]  # nothing of the row before it
    assert allowed[7] == [0, 0, 0, 0, 1, 0, 1, 1, 0]
    found = [column.tolist() for column in tree_attention.predictors(segments)]
    assert found == [[0] * 5, [2, 3, 5, 6, 7], [1, 1, 4, 4, 6]]


@pytest.mark.parametrize("family", tree_attention.SHARING)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("checkpointing", [False, "not reentrant"])
def test_rows_that_share_sequences_equal_plain_ones(family, attention, checkpointing):
    policy, processor = policy_of(family, torch.float64, attention, checkpointing)
    batch = make_batch(processor, shareable_rows(), "shared")
    assert len(batch["input_ids"]) < 5 and sorted(set(batch["rows"].flatten().tolist())) == [-1, 0, 1, 2, 3, 4]
    with exact_softmax():
        values, gradients = packed_against_plain(policy, processor, shareable_rows(), "shared")
    assert values <= 1e-12 and gradients <= 1e-7


def test_only_families_that_take_images_in_the_order_of_rows_share_sequences():
    shared = {family: tree_attention.may_share(policy_of(family)[0]) for family in FAMILIES}
    assert shared == {family: family in ("llava", "llava_onevision") for family in FAMILIES}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_row_that_sees_its_neighbour_is_noticed(monkeypatch, attention):
    policy, processor = policy_of("llava", torch.float64, attention)
    stock = tree_attention.mask
    monkeypatch.setattr(tree_attention, "mask", lambda segments, kind, dtype, *rest: stock(segments, kind, dtype))
    values, gradients = packed_against_plain(policy, processor, shareable_rows(), "shared")
    assert values > 1e-3 and gradients > 1e-3


def test_images_in_another_order_than_the_rows_are_noticed(monkeypatch):
    policy, processor = policy_of("llava")
    stock = packing.stack_images
    monkeypatch.setattr(packing, "stack_images", lambda rows, n: stock(sorted(rows, key=lambda r: r["row_id"]), n))
    values, gradients = packed_against_plain(policy, processor, shareable_rows(), "shared")
    assert values > 1e-3 and gradients > 1e-3


# ---- what is refused ------------------------------------------------------------------------------------------------


def refused(model, match):
    with pytest.raises(BadInput, match=match) as refusal:
        tree_attention.check_exact(model)
    assert "packed=False" in str(refusal.value) and "\n" not in str(refusal.value)


def test_what_is_not_known_to_be_exact_is_refused_and_runs_unpacked_on_request():
    model, processor = tiny_llava()
    tree_attention.check_exact(model)
    text = model.config.text_config
    model.config.model_type = "gemma3"
    refused(model, "model family 'gemma3'")
    rows = ragged_rows(1)
    with pytest.raises(BadInput, match="gemma3"):
        logps.response_logps(model, processor, rows, KINDS)
    assert torch.isfinite(logps.response_logps(model, processor, rows, KINDS, packed=False)["chosen"]).all()
    model.config.model_type = "llava"
    text.rope_parameters = {**text.rope_parameters, "rope_type": "dynamic"}
    refused(model, "rope type 'dynamic'")
    text.rope_parameters = {**text.rope_parameters, "rope_type": "default"}
    text.layer_types = ["full_attention", "sliding_attention"]
    refused(model, "sliding attention")
    text.layer_types = None
    text._attn_implementation = "flash_attention_2"
    refused(model, "flash_attention_2")
