"""Cost of a training step and of the biased answers, in this kit and in others: `make bench`, or `--help`.

A case is a geometry (G1 and G2 for two cores, 7B for a GPU) and either the number of tokens in each answer of a step
(`G1-100`; `ragged`: four lengths) or the sort of prompts that are answered (`G1-text`, `G1-image`). `steps.py` and
`generating.py` list the participants. They take turns in one process, and ratios are taken within one repeat, so that a
busy machine slows all alike. The peak memory of each step, with gradient checkpointing, is measured in a fresh process.

Results go to benchmarks/results/engine-<device>.json after each repeat. An interrupted run resumes; a case measured by
this code on this machine is measured again only with --again.
"""

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import warnings
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

import generating  # noqa: E402
import geometry as geometries  # noqa: E402
import measuring  # noqa: E402
import steps  # noqa: E402

from napo.workshop import artifacts, environment  # noqa: E402
from napo.workshop.files import read_json, write_json  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
LENGTHS = {"20": 20, "100": 100, "200": 200, "ragged": steps.RAGGED}
CASES = {
    "cpu": [*(f"{size}-{length}" for size in ("G1", "G2") for length in LENGTHS), "G1-text", "G1-image"],
    "cuda": [*(f"7B-{length}" for length in LENGTHS), "7B-text", "7B-image"],
}
OWN_FILES = [Path(module.__file__) for module in (generating, geometries, measuring, steps)]
NOT_RUN = "not run: no CUDA device was at hand"
TRL_MISSING = "TRL is not installed, so it is left out (`make bench` installs it into .venv/trl)"


def parts(case):
    """(geometry, what) of "G1-100". Exits for what is no case."""
    size, _, what = case.partition("-")
    known = (*LENGTHS, *generating.PROMPTS)
    if size not in geometries.GEOMETRIES or what not in known:
        sizes = ", ".join(geometries.GEOMETRIES)
        sys.exit(f"error: no case {case!r}: one of {sizes}, a dash, and one of {', '.join(known)}")
    return geometries.GEOMETRIES[size], what


def is_generation(case):
    return parts(case)[1] in generating.PROMPTS


def participants(case, asked):
    """Names of those that take part, ours first."""
    names = generating.NAMES if is_generation(case) else steps.NAMES
    absent = () if steps.has_trl() else steps.TRL
    if asked.device == "cuda":
        absent = (*absent, "trl_cpu")  # there TRL needs no patch: the two are one
    return [name for name in names if name not in (*asked.without, *absent)]


def contestants(case, asked, names, **more):
    """dict name -> callable, which returns the answers for generation, and nothing of interest for a step."""
    size, what = parts(case)
    if is_generation(case):
        return generating.contestants(size, what, asked.new_tokens, asked.device, names)
    return steps.steps(size, LENGTHS[what], asked.device, names, **more)


def settings(case, asked):
    """Everything besides code that a case's figures depend on."""
    size, what = parts(case)
    if is_generation(case):
        return {"geometry": size, "prompts": generating.PROMPTS[what], "new_tokens": asked.new_tokens}
    trl = importlib.metadata.version("trl") if steps.has_trl() else "not installed: not run"
    return {"geometry": size, "answer_tokens": LENGTHS[what], "trl": trl}


def read(output, device):
    return read_json(output) if output.is_file() else {"device": device, "cases": {}}


def known_record(case, asked, output):
    """The record of a case so far, by this code on this machine, or a new one."""
    chosen = settings(case, asked)
    machine = {
        "processor": environment.device(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "device": asked.device,
    }
    now = environment.snapshot(ROOT)
    key = artifacts.key(settings=[chosen, machine, now["versions"]], stage="pairs", inputs=OWN_FILES)  # with the engine
    found = read(output, asked.device)["cases"].get(case, {})
    if found.get("key") == key and not asked.again:
        return found
    return {"key": key, **chosen, "machine": machine, **now, "niceness": os.nice(0), "load_averages": [], "seconds": {}}


def store(case, record, asked, output):
    """Put a case's record into the result file; the other records stay as they are."""
    report = read(output, asked.device)
    report.pop("status", None)
    order = CASES[asked.device]
    cases = report["cases"] | {case: record}
    report["cases"] = dict(sorted(cases.items(), key=lambda item: order.index(item[0]) if item[0] in order else 99))
    write_json(report, output)


def run_case(case, asked, output):
    """Time the missing repeats of a case, then measure its peaks. Returns its record."""
    record, names = known_record(case, asked, output), participants(case, asked)
    seconds = record["seconds"]
    missing = asked.repeats - min((len(seconds.get(name, ())) for name in names), default=0)
    if missing > 0:
        calls = contestants(case, asked, names)
        if any(len(seconds.get(name, ())) != len(seconds.get(names[0], ())) for name in names):
            seconds.clear()  # others took part: ratios are of one repeat

        def done(load):
            record["load_averages"].append(round(load, 2))
            record["summary"] = measuring.summary(seconds, names[0])
            store(case, record, asked, output)

        if is_generation(case) and "same_answers_one_by_one" not in record:
            record["same_answers_one_by_one"] = generating.agreement(calls)
        measuring.interleaved(calls, missing, asked.device, seconds, done)
        del calls
        gc.collect()
    peaks = record.setdefault("memory_with_checkpointing", {})
    for name in [] if is_generation(case) or asked.no_memory else names:
        if "step_mib" not in peaks.get(name, {}):
            peaks[name] = peak_in_a_fresh_process(case, name, asked)
            store(case, record, asked, output)
    return record


def peak_in_a_fresh_process(case, name, asked):
    """`measuring.peak_memory` in a process where nothing has run before. Returns its dict, or {"failed": reason}."""
    command = [sys.executable, __file__, "--case", case, "--device", asked.device, "--memory-of", name]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["killed"])[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def show(case, record):
    """One block of lines for the terminal."""
    print(f"{case}:")
    for name, row in record["summary"].items():
        clock = "wall" if record["machine"]["device"] == "cuda" else "cpu"
        ratio = row.get(f"{clock}_ratio", {"median": 1.0, "min": 1.0, "max": 1.0})
        peak = record.get("memory_with_checkpointing", {}).get(name, {}).get("step_mib")
        print(
            f"  {name:13s} {row['wall_seconds']['median']:8.3f} s {row['cpu_seconds']['median']:8.3f} CPU s  "
            f"{ratio['median']:5.2f} x ({ratio['min']:.2f}-{ratio['max']:.2f})"
            + (f"  {peak} MiB above the weights" if peak else ""),
            flush=True,
        )


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", help=f"default: all of the device; on a CPU {', '.join(CASES['cpu'])}")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--without", nargs="+", default=[], choices=(*steps.NAMES[1:], *generating.NAMES[1:]))
    parser.add_argument("--again", action="store_true", help="measure anew what has been measured")
    parser.add_argument("--no-memory", action="store_true", help="time only")
    parser.add_argument("--new-tokens", type=int, default=100, help="generated for each prompt (default 100)")
    parser.add_argument("--memory-of", choices=steps.NAMES, help="print one peak and stop")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for engine-<device>.json")
    return parser.parse_args()


def main():
    asked = arguments()
    warnings.simplefilter("ignore")
    cases = asked.case or CASES[asked.device]
    for case in cases:
        parts(case)
    if asked.device == "cuda":
        if not torch.cuda.is_available():
            sys.exit("error: --device cuda, and torch sees no GPU")
        torch.cuda.init()
    if asked.memory_of:
        step = contestants(cases[0], asked, [asked.memory_of], checkpointing=True)[asked.memory_of]
        print(json.dumps(measuring.peak_memory(step, asked.device)))
        return
    if not steps.has_trl():
        print(TRL_MISSING)
    for case in cases:
        show(case, run_case(case, asked, asked.results / f"engine-{asked.device}.json"))
    on_gpu = asked.results / "engine-cuda.json"
    if not on_gpu.exists():
        write_json({"device": "cuda", "status": NOT_RUN, "cases": {}}, on_gpu)
    print(f"written: {asked.results / f'engine-{asked.device}.json'}")


if __name__ == "__main__":
    main()
