"""Draws benchmarks/results/engine-*.json: a step's time and peak memory, and generation, as multiples of this kit's."""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

RESULTS = Path(__file__).resolve().parent / "results"
STEP = {
    "packed": "packed (this kit)",
    "authors": "authors' scheme: four sequences, full logits",
    "trl": "TRL's DPOTrainer with its reference pass, patched to score answers only, as on a GPU",
    "trl_cpu": "TRL's DPOTrainer as it comes, without a GPU",
    "limit_head": "bare forward + backward, with head",
    "limit": "bare forward + backward",
}
GENERATION = {
    "batched": "batched, greedy (this kit)",
    "batched_beams": "batched, 3 beams (this kit)",
    "single": "one at a time, greedy",
    "single_beams": "one at a time, 3 beams (authors)",
}


def load(folder=RESULTS):
    """[(case's name, record)] of all result files."""
    files = sorted(folder.glob("engine-*.json"))
    return [item for file in files for item in json.loads(file.read_text(encoding="utf-8"))["cases"].items()]


def time_ratio(record, name):
    """(median, min, max) of seconds over ours, CPU seconds but on a GPU; None if it was not run."""
    row = record["summary"].get(name)
    clock = "wall" if record["machine"]["device"] == "cuda" else "cpu"
    ratio = row and row.get(f"{clock}_ratio", {"median": 1.0, "min": 1.0, "max": 1.0})
    return ratio and (ratio["median"], ratio["min"], ratio["max"])


def memory_ratio(record, name):
    """Peak memory of a step over the packed step's, three times (it is measured once); None if it was not run."""
    peaks = {key: value.get("step_mib") for key, value in record["memory_with_checkpointing"].items()}
    return (peaks[name] / peaks["packed"],) * 3 if peaks.get(name) and peaks.get("packed") else None


def bars(axes, cases, labels, ratio, title):
    """One group of bars for each case, one bar for each of `labels` (name -> legend)."""
    width = 0.84 / len(labels)
    for k, (name, label) in enumerate(labels.items()):
        found = [(i, value) for i, (_, record) in enumerate(cases) if (value := ratio(record, name))]
        if not found:
            continue
        x = np.array([i for i, _ in found]) + (k - (len(labels) - 1) / 2) * width
        middle, low, high = np.array([value for _, value in found]).T
        axes.bar(x, middle, width, yerr=[middle - low, high - middle], error_kw={"lw": 0.8}, label=label, color=f"C{k}")
        for at, value, top in zip(x, middle, high, strict=True):
            text = f"{value:.2f}" if value < 9.95 else f"{value:.0f}"
            axes.annotate(text, (at, top), (0, 2), textcoords="offset points", ha="center", fontsize=6, rotation=90)
    axes.set_xticks(range(len(cases)), [case.replace("-", "\n", 1) for case, _ in cases], fontsize=8)
    axes.set_title(title, fontsize=9)
    axes.set_yscale("log")
    axes.set_yticks([0.5, 1, 2, 5, 10, 20, 50], ["0.5", "1", "2", "5", "10", "20", "50"], fontsize=8)
    axes.yaxis.set_minor_locator(plt.NullLocator())
    axes.set_ylim(0.5, 2 * axes.get_ylim()[1])
    axes.axhline(1, color="grey", linewidth=0.8)


def circumstances(cases):
    """One line: on which machines, with how many threads, and what else they had to do."""
    machines = sorted({f"{r['machine']['processor']}, {r['machine']['threads']} of them used" for _, r in cases})
    loads = [load for _, record in cases for load in record["load_averages"]]
    return f"{'; '.join(machines)}; load average {min(loads):.1f} to {max(loads):.1f} meanwhile"


def main(folder=RESULTS):
    cases = load(folder)
    timed = [case for case in cases if "packed" in case[1].get("summary", {})]
    weighed = [case for case in timed if case[1].get("memory_with_checkpointing")]
    generated = [case for case in cases if "batched" in case[1].get("summary", {})]
    if not timed and not generated:
        sys.exit("error: no results: run `make bench` first")
    layout, shape = [["time", "time"], ["memory", "generation"]], {"width_ratios": (3, 1)}
    figure, axes = plt.subplot_mosaic(layout, figsize=(13, 7.5), gridspec_kw=shape, constrained_layout=True)
    bars(axes["time"], timed, STEP, time_ratio, "time of a training step, times the packed step's")
    bars(
        axes["memory"], weighed, STEP, memory_ratio, "peak memory of a step above the weights, times the packed step's"
    )
    bars(axes["generation"], generated, GENERATION, time_ratio, "time of generation, times ours")
    for name, part, columns in (("time", timed, 3), ("memory", weighed, 0), ("generation", generated, 1)):
        if not part:
            axes[name].text(0.5, 0.5, "not run", transform=axes[name].transAxes, ha="center", fontsize=9)
        elif columns:
            axes[name].legend(fontsize=7, loc="upper right", ncols=columns)
    figure.suptitle(f"{circumstances(cases)} (bars: median; lines: range)", fontsize=8)
    figure.savefig(folder / "engine.png", dpi=130)
    print(f"written: {folder / 'engine.png'}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
