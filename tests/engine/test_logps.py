"""Response log-probs against stock transformers: full logits and F.cross_entropy, one sequence at a time."""

import copy
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from tiny_models import tiny_llava
from tiny_rows import make_row

from napo.engine import logps, models, packing
from napo.methods import KINDS


@pytest.fixture(scope="module")
def model_and_processor():
    return tiny_llava(seed=1)


def rows_of_many_lengths(n):
    answers = ["y", "It is a very long answer indeed, longer than the rest.", "no cat", "two", "a b c d e f", "."]
    lengths = itertools.cycle(answers)
    return [
        make_row(i, question="why? " * (1 + 3 * (i % 3)), **{kind: next(lengths) for kind in KINDS}) for i in range(n)
    ]


def truth(model, processor, row, kind, shift=0):
    """Stock transformers: template, full logits, cross entropy after the prompt. `shift` makes a mistake."""
    turn = [
        {
            "role": "user",
            "content": [{"type": "image", "image": row["image"]}, {"type": "text", "text": row["question"]}],
        }
    ]
    prompt = processor.apply_chat_template(
        turn, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    response = processor.tokenizer(" " + row[kind] + "</s>", add_special_tokens=False, return_tensors="pt")["input_ids"]
    ids = torch.cat([prompt["input_ids"], response], dim=1)
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=prompt["pixel_values"], use_cache=False).logits[0]
    n_prompt = prompt["input_ids"].shape[1]
    predicts = logits[n_prompt - 1 + shift : ids.shape[1] - 1 + shift]
    labels = ids[0, n_prompt : n_prompt + len(predicts)]
    return -F.cross_entropy(predicts.double(), labels, reduction="sum").item()


def truths(model, processor, rows, kinds, **mistake):
    return {kind: torch.tensor([truth(model, processor, row, kind, **mistake) for row in rows]) for kind in kinds}


def largest_difference(got, expected):
    return max((got[kind].double() - expected[kind]).abs().max().item() for kind in expected)


@pytest.mark.parametrize("n_rows", [1, 2, 5])
@pytest.mark.parametrize("n_kinds", [1, 2, 3, 4])
def test_float32_equals_one_sequence_at_a_time(model_and_processor, n_rows, n_kinds):
    model, processor = model_and_processor
    rows, kinds = rows_of_many_lengths(n_rows), KINDS[:n_kinds]
    got = logps.response_logps(model, processor, rows, kinds, packed=False)
    assert list(got) == list(kinds) and all(v.shape == (n_rows,) and v.dtype == torch.float32 for v in got.values())
    expected = truths(model, processor, rows, kinds)
    assert max(((got[k] - expected[k]) / expected[k]).abs().max().item() for k in kinds) < 1e-6
    assert largest_difference(got, {k: v for k, v in expected.items() if abs(v).max() < 100}) < 1e-4


def test_per_token_error_in_float32_is_below_1e_5(model_and_processor):
    model, processor = model_and_processor
    rows = rows_of_many_lengths(6)
    got = logps.response_logps(model, processor, rows, KINDS)
    expected = truths(model, processor, rows, KINDS)
    for kind in KINDS:
        n_tokens = torch.tensor([len(row[kind]) + 2 for row in rows])
        assert ((got[kind] - expected[kind]) / n_tokens).abs().max() < 1e-5


def test_float64_model_is_tight(model_and_processor):
    """Log-probs are float32 by contract, so what is left of a float64 model is the rounding of its logits and sum."""
    model, processor = copy.deepcopy(model_and_processor[0]).double(), model_and_processor[1]
    rows = rows_of_many_lengths(4)
    got = logps.response_logps(model, processor, rows, KINDS)
    expected = truths(model, processor, rows, KINDS)
    for kind in KINDS:
        assert ((got[kind] - expected[kind]) / expected[kind]).abs().max() < 3e-7


@pytest.mark.parametrize("mistake", [-1, 1])
def test_a_shift_by_one_would_be_seen(model_and_processor, mistake):
    model, processor = model_and_processor
    rows = rows_of_many_lengths(3)
    got = logps.response_logps(model, processor, rows, KINDS)
    assert largest_difference(got, truths(model, processor, rows, KINDS, shift=mistake)) > 0.1


def test_padding_counted_as_response_would_be_seen(model_and_processor):
    """The same batch with a response mask that runs on over the padding is far from the truth; the kit's is not."""
    model, processor = model_and_processor
    rows = rows_of_many_lengths(3)
    encoded = [packing.encode(row, processor, KINDS) for row in rows]
    batch = packing.collate_plain(encoded, KINDS, processor.tokenizer.pad_token_id)
    expected = truths(model, processor, rows, KINDS)
    with torch.no_grad():
        right = logps.by_kind(logps.plain_logps(model, batch), KINDS)
        batch["response_mask"] = batch["response_mask"].cumsum(1) > 0
        wrong = logps.by_kind(logps.plain_logps(model, batch), KINDS)
    assert largest_difference(right, expected) < 1e-3 < 1 < largest_difference(wrong, expected)


def test_end_token_counts(model_and_processor):
    """Without the end token's own log-prob the sum is another, and a model that never stops would look as good."""
    model, processor = model_and_processor
    row = make_row()
    encoded = packing.encode(row, processor, ("chosen",))
    batch = packing.collate_plain([encoded], ("chosen",))
    with torch.no_grad():
        tokens, _ = logps.token_logps(model, batch)
    assert len(tokens) == len(" a red cat") + 1
    assert tokens.sum().item() == pytest.approx(truth(model, processor, row, "chosen"), rel=1e-6)


def test_what_stands_beside_a_row_does_not_change_it(model_and_processor):
    model, processor = model_and_processor
    rows = rows_of_many_lengths(5)
    together = logps.response_logps(model, processor, rows, KINDS)
    for i, row in enumerate(rows):
        alone = logps.response_logps(model, processor, [row], KINDS)
        for kind in KINDS:
            assert together[kind][i].item() == pytest.approx(alone[kind].item(), rel=2e-6)


def test_image_reaches_the_log_probs(model_and_processor):
    model, processor = model_and_processor
    one, other = make_row(0), {**make_row(0), "image": make_row(5)["image"]}
    got = logps.response_logps(model, processor, [one, other], ("chosen",))["chosen"]
    assert abs(got[0] - got[1]) > 1e-4


def test_bfloat16_model_gives_float32_log_probs_of_its_own_logits(model_and_processor):
    """The log-softmax is taken in float32: in bfloat16 the sums would be coarse by far more than this tolerance."""
    model, processor = copy.deepcopy(model_and_processor[0]).bfloat16(), model_and_processor[1]
    rows = [make_row(0, chosen="word " * 30)]
    encoded = packing.encode(rows[0], processor, ("chosen",))
    batch = packing.collate_plain([encoded], ("chosen",))
    inputs = {name: tensor for name, tensor in batch.items() if name != "response_mask"}
    with torch.no_grad():
        logits = model(**inputs).logits[0]
        got = logps.plain_logps(model, batch)
    assert logits.dtype == torch.bfloat16 and got.dtype == torch.float32
    first = len(encoded["prompt_ids"]) - 1
    labels = batch["input_ids"][0, first + 1 :]
    in_float32 = -F.cross_entropy(logits[first:-1].float(), labels, reduction="sum").item()
    in_bfloat16 = -F.cross_entropy(logits[first:-1], labels, reduction="sum").item()
    assert got.item() == pytest.approx(in_float32, rel=1e-5)
    assert abs(in_bfloat16 - in_float32) > 1e-4 * abs(in_float32)


def test_gradients_equal_those_of_the_full_logits(model_and_processor):
    """Through LoRA, in a padded batch, against one full-logits sequence after another."""
    model, processor = copy.deepcopy(model_and_processor[0]), model_and_processor[1]
    config = LoraConfig(r=4, target_modules=r".*language_model.*\.(q|v|down)_proj", init_lora_weights=False)
    policy = get_peft_model(model, config)
    rows, weights = rows_of_many_lengths(3), torch.tensor([0.3, -1.0, 2.0])
    trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    got = logps.response_logps(policy, processor, rows, ("chosen", "rejected"))
    (weights * (got["chosen"] - 0.5 * got["rejected"])).sum().backward()
    gradients = {name: p.grad.clone() for name, p in trained.items()}
    policy.zero_grad()
    for row, weight in zip(rows, weights, strict=True):
        for kind, sign in (("chosen", 1.0), ("rejected", -0.5)):
            encoded = packing.encode(row, processor, (kind,))
            ids = torch.cat([encoded["prompt_ids"], encoded["responses"][kind]])[None]
            n_prompt = len(encoded["prompt_ids"])
            labels = ids.clone()
            labels[:, :n_prompt] = -100
            logits = policy(input_ids=ids, **encoded["vision"], use_cache=False).logits
            loss = F.cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=-100, reduction="sum")
            (-weight * sign * loss).backward()
    for name, p in trained.items():
        assert (p.grad - gradients[name]).norm() <= 1e-5 * p.grad.norm(), name
    assert sum(g.norm() for g in gradients.values()) > 1


def test_slow_way_of_notebook_02_is_the_truth_too(model_and_processor):
    model, processor = model_and_processor
    for row in rows_of_many_lengths(3):
        got = logps.from_full_logits(model, processor, row, "rejected")
        assert got == pytest.approx(truth(model, processor, row, "rejected"), rel=2e-6)


def test_measured_table_has_a_line_per_row_whatever_the_batch_size(model_and_processor):
    model, processor = model_and_processor
    rows = rows_of_many_lengths(5)
    frame = logps.measure(model, processor, rows, KINDS, batch_size=2)
    assert frame["row_id"].tolist() == [row["row_id"] for row in rows]
    expected = logps.response_logps(model, processor, rows, KINDS)
    for kind in KINDS:
        np.testing.assert_allclose(frame[f"logps_{kind}"], expected[kind].detach().numpy(), rtol=2e-6)
        assert frame[f"tokens_{kind}"].tolist() == [len(row[kind]) + 2 for row in rows]
        assert frame[f"logps_{kind}"].dtype == np.float32


def test_reference_is_the_model_with_its_adapter_off(model_and_processor):
    model, processor = copy.deepcopy(model_and_processor[0]), model_and_processor[1]
    rows = rows_of_many_lengths(2)
    before = logps.measure(model, processor, rows, KINDS)
    policy = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    policy.train()
    after = logps.measure(policy, processor, rows, KINDS)
    with models.without_adapter(policy):
        reference = logps.measure(policy, processor, rows, KINDS)
    with models.without_adapter(policy.get_base_model()):  # a model without an adapter of its own stays as it is
        assert logps.measure(policy, processor, rows, KINDS).equals(after)
    assert (abs(after["logps_chosen"] - before["logps_chosen"]) > 1e-3).all()
    np.testing.assert_allclose(reference["logps_chosen"], before["logps_chosen"], rtol=1e-6)
    again = logps.measure(policy, processor, rows, KINDS)
    assert again.equals(after)
