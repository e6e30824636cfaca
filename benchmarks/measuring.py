"""Time and memory of callables that are compared: their seconds interleaved, their peaks in a fresh process."""

import ctypes
import gc
import os
import statistics
import time

import torch

from napo.engine import memory


def synchronise(device):
    if device == "cuda":
        torch.cuda.synchronize()


def interleaved(contestants, repeats, device, seconds, done):
    """Calls each of `contestants` (dict name -> callable) in turn, `repeats` times, after one warm-up each.

    seconds  dict name -> list of (wall, CPU) seconds, CPU of all threads; new pairs are appended
    done     called after each repeat with the load average before it
    """
    for call in contestants.values():
        call()
    for _ in range(repeats):
        load = os.getloadavg()[0]
        for name, call in contestants.items():
            synchronise(device)
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            synchronise(device)
            pair = (round(time.perf_counter() - wall, 4), round(time.process_time() - cpu, 4))
            seconds.setdefault(name, []).append(pair)
        done(load)


def summary(seconds, ours):
    """Medians and ranges of times and of their ratios to `ours`, taken within each repeat."""
    out = {}
    for name, pairs in seconds.items():
        walls, cpus = zip(*pairs, strict=True)
        row = {"wall_seconds": spread(walls), "cpu_seconds": spread(cpus)}
        if name != ours:
            for i, clock in enumerate(("wall", "cpu")):
                ratios = [a[i] / b[i] for a, b in zip(pairs, seconds[ours], strict=True)]
                row[f"{clock}_ratio"] = spread(ratios)
        out[name] = row
    return out


def spread(values):
    return {"median": round(statistics.median(values), 4), "min": round(min(values), 4), "max": round(max(values), 4)}


def peak_memory(step, device):
    """MiB that the second step holds at its peak above what is held before it (weights, adapter)."""
    if device == "cpu":  # every tensor to its own pages, so that resident memory follows what is held
        ctypes.CDLL("libc.so.6").mallopt(-3, 1 << 16)
    step()
    gc.collect()
    synchronise(device)
    if device == "cpu":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = memory.held(device)
    step()
    synchronise(device)
    return {"step_mib": mib(memory.peak(device) - before), "held_mib": mib(before)}


def mib(n_bytes):
    return round(n_bytes / 2**20, 1)
