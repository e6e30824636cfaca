"""Draws benchmarks/results/engine-*.json: step time and peak memory, each as a multiple of the packed step's."""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

RESULTS = Path(__file__).resolve().parent / "results"
LABELS = {
    "packed": "packed (this kit)",
    "authors": "authors' scheme",
    "trl_answers": "TRL's DPOTrainer, answer positions",
    "trl": "TRL's DPOTrainer as on this machine",
    "limit_head": "limit with head",
    "limit": "limit, no head",
}


def load(folder=RESULTS):
    """[(label of a setting, record, machine)] of all result files."""
    out = []
    for file in sorted(folder.glob("engine-*.json")):
        report = json.loads(file.read_text())
        for record in report["records"]:
            tokens = "ragged" if isinstance(record["tokens"], list) else f"{record['tokens']} tokens"
            out.append((f"{record['geometry']}\n{tokens}", record, report["machine"]["processor"]))
    return out


def time_ratio(record, name):
    """(median, min, max) of CPU seconds over the packed step's (wall seconds on a GPU), or None if it was not run."""
    if name == "packed":
        return 1.0, 1.0, 1.0
    ratio = record["time"].get(name, {}).get("cpu_ratio_to_packed")
    return ratio and (ratio["median"], ratio["min"], ratio["max"])


def memory_ratio(record, name):
    """Peak memory of a step over the packed step's, three times (one measurement), or None."""
    peaks = {key: value.get("step_mib") for key, value in record.get("memory_with_checkpointing", {}).items()}
    return (peaks[name] / peaks["packed"],) * 3 if peaks.get(name) and peaks.get("packed") else None


def bars(axes, settings, ratio, title):
    width = 0.8 / len(LABELS)
    for k, (name, label) in enumerate(LABELS.items()):
        found = [(i, ratio(record, name)) for i, (_, record, _) in enumerate(settings)]
        found = [(i, value) for i, value in found if value]
        if not found:
            continue
        x = np.array([i for i, _ in found]) + (k - (len(LABELS) - 1) / 2) * width
        middle, low, high = np.array([value for _, value in found]).T
        axes.bar(x, middle, width, yerr=[middle - low, high - middle], label=label)
        for at, value in zip(x, middle, strict=True):
            axes.annotate(f"{value:.2g}", (at, value), ha="center", va="bottom", fontsize=7)
    axes.set_xticks(range(len(settings)), [label for label, _, _ in settings])
    axes.set_title(title, fontsize=10)
    axes.axhline(1, color="grey", linewidth=0.8)


def main():
    settings = load()
    if not settings:
        sys.exit("error: no results: run `make bench` first")
    with_memory = [setting for setting in settings if setting[1].get("memory_with_checkpointing")]
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4), width_ratios=[3, 2], constrained_layout=True)
    bars(left, settings, time_ratio, "time of a training step, times the packed step's (median, range)")
    bars(right, with_memory, memory_ratio, "peak memory above the weights, times the packed step's")
    left.legend(fontsize=8)
    figure.suptitle("; ".join(sorted({machine for _, _, machine in settings})), fontsize=8)
    figure.savefig(RESULTS / "engine.png", dpi=130)
    print(f"written: {RESULTS / 'engine.png'}")


if __name__ == "__main__":
    main()
