"""Training and the log-probs it starts from take the packed path unless told otherwise, and both paths learn the same.

DDP is met here in one process, with a reduction that shows; two processes that train together: test_two_processes.py.
"""

import math
from dataclasses import replace

import pytest
import torch
from packed_and_plain import make_batch, measured, policy_of, ragged_rows
from tiny_families import tiny_family
from tiny_models import tiny_llava
from tiny_rows import make_row

from napo.engine import logps, packing, tree_attention
from napo.methods import KINDS, METHODS
from napo.profiles import PROFILES, Lora, Training
from napo.training import trainer
from napo.training.training_set import TrainingSet
from napo.workshop.files import BadInput

TRAINING = Training(beta=0.5, learning_rate=0.1, epochs=2, batch_size=3, optimizer="sgd", max_length=256)


def fit(family, folder, training=TRAINING, method="napo_paper"):
    """(adapter's weights as one vector, logged steps) of a short training on six ragged rows."""
    model, processor = tiny_llava(seed=1) if family == "llava" else tiny_family(family)
    rows = ragged_rows(6)
    reference = logps.measure(model, processor, rows, KINDS, 2, packed=training.packed)
    data, settings = TrainingSet(rows, reference), trainer.Fit(training, Lora(r=4))
    policy, steps = trainer.fit(model, processor, METHODS[method], data, settings, folder)
    return torch.cat([p.detach().flatten() for p in policy.parameters() if p.requires_grad]), steps


def test_packed_is_what_every_profile_trains_with():
    assert all(profile.training.packed for profile in PROFILES.values())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_both_paths_learn_the_same(tmp_path, checkpointing):
    training = replace(TRAINING, gradient_checkpointing=checkpointing)
    packed, steps = fit("llava", tmp_path / "packed", training)
    plain, plain_steps = fit("llava", tmp_path / "plain", replace(training, packed=False))
    assert len(steps) == len(plain_steps) == 4
    for one, other in zip(steps, plain_steps, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
    assert (packed - plain).norm() < 1e-4 * plain.norm()


@pytest.mark.parametrize("family", [name for name in tree_attention.FAMILIES if name != "llava"])
def test_every_family_trains_packed_and_starts_at_the_known_loss(tmp_path, family):
    _, steps = fit(family, tmp_path / "c", replace(TRAINING, epochs=1, batch_size=6, learning_rate=1e-3), "dpo_all")
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)


def test_training_computes_each_row_as_one_sequence(tmp_path, monkeypatch):
    seen, stock = [], logps.packed_sums
    monkeypatch.setattr(
        logps, "packed_sums", lambda m, batch: seen.append(batch["input_ids"].shape[0]) or stock(m, batch)
    )
    monkeypatch.setattr(logps, "plain_logps", None)
    fit("llava", tmp_path / "c", replace(TRAINING, epochs=1), "dpo_all")
    assert seen == [2, 2, 2, 3, 3]  # the reference in batches of 2, then two steps of 3 rows


def test_a_model_that_is_not_known_to_be_exact_is_refused_before_any_step_and_trains_unpacked(tmp_path, monkeypatch):
    monkeypatch.delitem(tree_attention.FAMILIES, "llava")
    unpacked = replace(TRAINING, packed=False, epochs=1)
    _, steps = fit("llava", tmp_path / "plain", unpacked)
    assert len(steps) == 2
    model, processor = tiny_llava(seed=1)
    with pytest.raises(BadInput, match="model family 'llava'.*packed=False"):
        data, settings = TrainingSet([make_row()], None), trainer.Fit(TRAINING, Lora(r=4))
        trainer.fit(model, processor, METHODS["sft"], data, settings, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def tripled(state, bucket):
    """In place of the mean over processes, which of one process would be the gradient itself."""
    reduced = torch.futures.Future()
    reduced.set_result(3 * bucket.buffer())
    return reduced


def test_gradients_pass_through_ddp_only_where_everything_happens_inside_it(tmp_path):
    """Calling the model from outside gives the right loss and gradients that no other process ever hears of."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        policy, processor = policy_of("llava", torch.float32)
        batch = make_batch(processor, ragged_rows(), packed=True)
        values, bare = measured(policy, batch)
        wrapped = torch.nn.parallel.DistributedDataParallel(logps.ResponseLogps(policy))
        wrapped.register_comm_hook(None, tripled)
        found = measured(policy, batch, wrapped)
        outside = measured(policy, batch, lambda **batch: logps.batch_logps(wrapped.module.model, batch))
    finally:
        torch.distributed.destroy_process_group()
    close = {"rtol": 1e-6, "atol": 1e-7}
    torch.testing.assert_close(found, (values, 3 * bare), **close)
    torch.testing.assert_close(outside, (values, bare), **close)  # not reduced


def test_answers_that_reach_the_limit_are_cut_alike_in_both_paths():
    model, processor = tiny_llava(seed=1)
    rows = ragged_rows(3)
    longest = max(len(packing.encode(row, processor, ())["prompt_ids"]) for row in rows)
    with torch.no_grad():
        packed, plain = (
            logps.response_logps(model, processor, rows, KINDS, packed=packed, max_length=longest + 4)
            for packed in (True, False)
        )
    for kind in KINDS:
        torch.testing.assert_close(packed[kind], plain[kind], rtol=1e-5, atol=0)
