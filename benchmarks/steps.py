"""The training steps that `engine.py` times: forward and backward of LoRA for one row with an image and four answers.

packed   one sequence with branches (this kit), log-probs at answer positions through the chunked head
authors  four full sequences, full logits, log-softmax at every position (the authors' scheme); no reference pass
trl      trl.DPOTrainer.training_step on the three pairs, with TRL's reference pass for images, as it works on a GPU:
         only answer positions go through the head
trl_cpu  the same on a machine without Triton, where TRL 1.16 scores every position
limit    the bare forward and backward of the unique tokens: the same sequence as packed, plain causal attention, no
         output head. Packed needs the head too, but its answers skip one another's keys, so with long answers it may be
         the cheaper of the two
limit_head  limit, with logits and cross entropy at as many positions as there are answer tokens
"""

import importlib.util
import tempfile
from copy import deepcopy

import geometry as geometries
import torch.nn.functional as F

from napo.engine import logps, packing
from napo.methods import KINDS, REJECTED_KINDS
from napo.profiles import Lora

RAGGED = (100, 20, 60, 200)
TRL = ("trl", "trl_cpu")
NAMES = ("packed", "authors", *TRL, "limit", "limit_head")


def loss_of(values):
    """DPO's loss on the three pairs, reference log-probs taken as stored zeros; values (4,) in the order of KINDS."""
    return -F.logsigmoid(0.1 * (values[0] - values[1:])).mean()


def packed_batch(policy, processor, row):
    encoded = packing.encode(row, processor, KINDS)
    return on(policy, packing.collate_packed([encoded], KINDS, processor.tokenizer.pad_token_id))


def packed_step(policy, processor, row):
    batch = packed_batch(policy, processor, row)
    module = logps.ResponseLogps(policy)
    return lambda: loss_of(module(**batch)).backward()


def authors_step(policy, processor, row):
    encoded = packing.encode(row, processor, KINDS)
    batch = on(policy, packing.collate_plain([encoded], KINDS))
    response_mask = batch.pop("response_mask")[:, 1:]

    def step():
        logits = policy(**batch, use_cache=False).logits[:, :-1]
        token_logps = logits.log_softmax(-1).gather(2, batch["input_ids"][:, 1:, None]).squeeze(2)
        loss_of((token_logps * response_mask).sum(1).float()).backward()

    return step


def limit_step(policy, processor, row, head=False):
    batch = packed_batch(policy, processor, row)
    model, n_answers = policy.get_base_model(), int((batch["segments"] > 0).sum())
    inputs = {name: batch[name] for name in ("input_ids", "pixel_values")}

    def step():
        hidden = model.model(**inputs, use_cache=False).last_hidden_state
        if head:
            logits = model.lm_head(hidden[0, -n_answers - 1 : -1])
            F.cross_entropy(logits.float(), batch["input_ids"][0, -n_answers:]).backward()
        else:
            hidden.float().mean().backward()

    return step


def trl_step(model, processor, row, geometry, checkpointing, answers_only=False):
    """TRL's own trainer on the same base (a copy: it patches the model), its own LoRA, collator and training step."""
    import trl
    import trl.trainer.utils
    from datasets import Dataset
    from peft import LoraConfig

    prompt = packing.prompt_text(row, processor)
    pairs = [
        {"prompt": prompt, "images": [row["image"]], "chosen": f" {row['chosen']}</s>", "rejected": f" {row[kind]}</s>"}
        for kind in REJECTED_KINDS
    ]
    on_cpu = next(model.parameters()).device.type == "cpu"
    trainer = trl.DPOTrainer(
        model=model,
        args=trl.DPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=len(pairs),
            gradient_checkpointing=checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
            max_length=None,
            bf16=False,
            use_cpu=on_cpu,
            report_to=[],
            dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_list([{"id": i, **pair, "images": []} for i, pair in enumerate(pairs)]),
        processing_class=processor,
        peft_config=LoraConfig(
            r=geometry.lora_r, lora_alpha=2 * geometry.lora_r, target_modules=Lora().targets, lora_dropout=0.0
        ),
    )
    trainer.create_optimizer()
    if checkpointing:  # as Trainer.train does when it begins
        trainer.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    stock = trl.trainer.utils._use_triton
    batch = trainer.data_collator([dict(pair) for pair in pairs])
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()

    def step():
        trl.trainer.utils._use_triton = (lambda device: True) if answers_only else stock  # decides which positions
        try:
            trainer.training_step(trainer.model, dict(batch))
        finally:
            trl.trainer.utils._use_triton = stock
        trainer.model.zero_grad(set_to_none=True)

    return step


def on(policy, batch):
    return logps.to_device(batch, policy.device)


def has_trl():
    return importlib.util.find_spec("trl") is not None


def steps(geometry, tokens, device, names, checkpointing=False):
    """dict name -> callable that does one step and leaves no gradient behind."""
    model, processor = geometries.build(geometry, device)
    row, out = geometries.row(tokens), {}
    for name in TRL:
        if name in names:
            copy = deepcopy(model)
            out[name] = trl_step(copy, processor, row, geometry, checkpointing, answers_only=name == "trl")
    policy = geometries.policy(model, geometry, checkpointing)
    makers = {
        "packed": packed_step,
        "authors": authors_step,
        "limit": limit_step,
        "limit_head": lambda *args: limit_step(*args, head=True),
    }

    def cleared(step):
        def run():
            step()
            policy.zero_grad(set_to_none=True)

        return run

    out |= {name: cleared(makers[name](policy, processor, row)) for name in names if name not in TRL}
    return {name: out[name] for name in names}
