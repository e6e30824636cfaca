"""What one training step costs, packed and by others: `make bench`, or `python benchmarks/engine.py --help`.

Four ways to forward and backward of LoRA for one row with an image, a question and four answers:
packed   one sequence with branches (this kit), log-probs at answer positions through the chunked head
authors  four full sequences, full logits, log-softmax at every position (the authors' scheme); no reference pass
trl      trl.DPOTrainer.training_step on the three pairs, with the reference pass that it makes for images. Without
         Triton, so on a CPU, TRL 1.16 scores every position, not only the answers
trl_answers  the same made to score answer positions only, as TRL does on a GPU: the fairer comparison on a CPU
limit    the bare forward and backward of the unique tokens: the same sequence as packed, plain causal attention, no
         output head (a lower bound that no exact scheme can reach, as log-probs need the head)
and `limit_head`, the same with logits and cross entropy at as many positions as there are answer tokens.

All in one process, interleaved; the ratios are taken within one repeat, so that a busy machine slows them all alike.
"""

import argparse
import ctypes
import gc
import importlib.metadata
import importlib.util
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from copy import deepcopy
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import geometry as geometries  # noqa: E402

from napo import artifacts, circumstances, logps, packing  # noqa: E402
from napo.profiles import KINDS, REJECTED_KINDS, Lora  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
RAGGED = (100, 20, 60, 200)
NAMES = ("packed", "authors", "trl", "trl_answers", "limit", "limit_head")
TRL = ("trl", "trl_answers")


def loss_of(values):
    """DPO's loss on the three pairs, reference log-probs taken as stored zeros; values (4,) in the order of KINDS."""
    return -F.logsigmoid(0.1 * (values[0] - values[1:])).mean()


def packed_step(policy, processor, row):
    batch = on(policy, packing.collate([row], processor, KINDS))
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
    batch = on(policy, packing.collate([row], processor, KINDS))
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
            out[name] = trl_step(copy, processor, row, geometry, checkpointing, answers_only=name == "trl_answers")
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


def synchronise(device):
    if device == "cuda":
        torch.cuda.synchronize()


def timed(contestants, repeats, device):
    """dict name -> list of (wall seconds, CPU seconds), interleaved, after one warm-up each."""
    for step in contestants.values():
        step()
    out = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, step in contestants.items():
            synchronise(device)
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            synchronise(device)
            out[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return out


def summary(seconds):
    """Medians with spread of times and of their ratios to the packed step, repeat by repeat."""
    out = {}
    for name, pairs in seconds.items():
        walls, cpus = zip(*pairs, strict=True)
        row = {"wall_seconds": spread(walls), "cpu_seconds": spread(cpus)}
        if name != "packed":
            for i, clock in enumerate(("wall", "cpu")):
                ratios = [a[i] / b[i] for a, b in zip(pairs, seconds["packed"], strict=True)]
                row[f"{clock}_ratio_to_packed"] = spread(ratios)
        out[name] = row
    return out


def spread(values):
    return {"median": round(statistics.median(values), 4), "min": round(min(values), 4), "max": round(max(values), 4)}


def peak_memory(geometry, tokens, device, name):
    """MiB above what is held before the step (weights, adapter), with gradient checkpointing; the second step's."""
    if device == "cpu":  # every tensor to its own pages, so that resident memory follows what is held
        ctypes.CDLL("libc.so.6").mallopt(-3, 1 << 16)
    step = steps(geometry, tokens, device, [name], checkpointing=True)[name]
    step()
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return {"step_mib": mib(torch.cuda.max_memory_allocated() - before), "held_mib": mib(before)}
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    before = resident("VmRSS")
    step()
    return {"step_mib": mib(resident("VmHWM") - before), "held_mib": mib(before)}


def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field)))


def mib(n_bytes):
    return round(n_bytes / 2**20, 1)


def memory_in_a_fresh_process(args, geometry, tokens, name):
    """`peak_memory` where nothing has run before. Returns its dict, or what went wrong."""
    command = [
        sys.executable,
        __file__,
        "--geometry",
        geometry,
        "--tokens",
        json.dumps(tokens),
        "--device",
        args.device,
    ]
    done = subprocess.run([*command, "--memory-of", name], capture_output=True, text=True)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["killed"])[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(args, geometry, tokens, names):
    """One record of the result file."""
    contestants = steps(geometries.GEOMETRIES[geometry], tokens, args.device, names)
    record = {"geometry": geometry, "tokens": tokens, "repeats": args.repeats}
    record |= {"time": summary(timed(contestants, args.repeats, args.device))}
    del contestants
    gc.collect()
    if tokens in args.memory_tokens:
        record["memory_with_checkpointing"] = {
            name: memory_in_a_fresh_process(args, geometry, tokens, name) for name in names
        }
    return record


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", nargs="+", default=["G1", "G2"], choices=geometries.GEOMETRIES)
    parser.add_argument("--tokens", nargs="+", type=json.loads, default=[20, 100, 200, list(RAGGED)])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--without", nargs="+", default=[], choices=NAMES[1:])
    parser.add_argument("--memory-tokens", nargs="*", type=json.loads, default=[100], help="lengths to take peaks at")
    parser.add_argument("--memory-of", choices=NAMES, help="print one peak and stop")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for engine-<geometry>-<device>.json")
    return parser.parse_args()


def main():
    args = arguments()
    warnings.simplefilter("ignore")
    if args.memory_of:
        peak = peak_memory(geometries.GEOMETRIES[args.geometry[0]], args.tokens[0], args.device, args.memory_of)
        print(json.dumps(peak))
        return
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: --device cuda, and torch sees no GPU")
    names = [name for name in NAMES if name not in args.without and (name not in TRL or has_trl())]
    trl = importlib.metadata.version("trl") if has_trl() else None
    if trl is None:
        print(
            "TRL is not installed, so it is left out (pip install 'trl==1.16.*' --no-deps --target DIR, PYTHONPATH=DIR)"
        )
    for geometry in args.geometry:
        output = args.results / f"engine-{geometry}-{args.device}.json"
        report = {
            "machine": {"processor": circumstances.device(), "platform": platform.platform(), "device": args.device},
            "threads": torch.get_num_threads(),
            "trl": trl or "not installed: not run",
            **circumstances.circumstances(ROOT),
            "records": [],
        }
        for tokens in args.tokens:
            report["records"].append(compare(args, geometry, tokens, names))
            show(report["records"][-1])
            artifacts.write_json(report, output)
        print(f"written: {output}")


def show(record):
    """One block of lines for the terminal."""
    print(f"{record['geometry']}, answers of {record['tokens']} tokens:")
    for name, row in record["time"].items():
        ratio = row.get("cpu_ratio_to_packed", {"median": 1.0, "min": 1.0, "max": 1.0})
        memory = record.get("memory_with_checkpointing", {}).get(name, {}).get("step_mib", "-")
        print(
            f"  {name:11s} {row['wall_seconds']['median']:8.3f} s   {ratio['median']:5.2f} x packed in CPU seconds "
            f"({ratio['min']:.2f}-{ratio['max']:.2f})   {memory} MiB above the weights",
            flush=True,
        )


if __name__ == "__main__":
    main()
