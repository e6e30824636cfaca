"""How soon the explorer reacts: `python benchmarks/explorer.py`; results in benchmarks/results/explorer.json.

browser   from the key press to the frame that shows the new picture, in headless Chromium: Voila and JupyterLab
kernel    the kernel's part: to compute the view (with the toy's three trainings where they are new) and to draw it, in
          seconds and in CPU seconds, which do not grow when the machine has other work
toy       one training, nothing remembered
Every press moves a knob to a value that was not there before. Target: 0.25 s on two cores; `load` and `niceness` say
what else these had to do.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "browser")]

import browsing  # noqa: E402

from napo.explorer import panels, toy, views, widgets  # noqa: E402
from napo.workshop import environment  # noqa: E402
from napo.workshop.files import write_json  # noqa: E402

TARGET = 0.25  # seconds
STOPWATCH = """() => {
  const image = document.querySelector('img.napo-image');
  window.reactions = [];
  let pressed = 0;
  document.addEventListener('keydown', () => { pressed = performance.now(); }, true);
  const shown = () => window.reactions.push((performance.now() - pressed) / 1000);
  const drawn = () => requestAnimationFrame(() => requestAnimationFrame(shown));
  new MutationObserver(() => image.decode().then(drawn)).observe(image, {attributeFilter: ['src']});
}"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presses", type=int, default=20, help="key presses for each knob (default 20)")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "explorer.json")
    asked = parser.parse_args()
    report = {
        "target_seconds": TARGET,
        "machine": {"processor": environment.device(), "platform": platform.platform()},
        "load_before": os.getloadavg()[0],
        "niceness": os.nice(0),
        **environment.snapshot(ROOT),
        "browser": {},
    }
    try:
        with browsing.browser() as running:
            report["browser_version"] = running.version
            for name, served in (("voila", browsing.voila), ("jupyterlab", in_lab)):
                report["browser"][name] = measured(running, served, name, asked.presses)
    except browsing.NoBrowser as missing:
        sys.exit(f"error: {missing}")
    report |= {"kernel": kernel(asked.presses), "toy": trainings(asked.presses)}
    report["load_after"] = os.getloadavg()[0]
    show(report)
    write_json(report, asked.output)
    print(f"written: {asked.output}")


def in_lab(folder):
    return browsing.lab(folder, "notebooks/00_box_cox.ipynb")


def measured(running, served, name, presses):
    """Knob -> summary of reactions on one page."""
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as address, browsing.page(running) as page:
        browsing.open_lab(page, address) if name == "jupyterlab" else page.goto(address)
        on_page = browsing.OnPage(page)
        page.wait_for_timeout(3000)  # the rest of the notebook, preheating of kernels
        page.evaluate(STOPWATCH)
        return {knob: summary(press(page, on_page, knob, presses)) for knob in widgets.LABELS}


def press(page, on_page, knob, presses):
    """Seconds until each press is seen; the first one, which warms up, is left out."""
    page.evaluate("() => { window.reactions.length = 0; }")
    on_page.slider(knob).focus()
    for i in range(presses + 1):
        page.keyboard.press("ArrowRight")
        page.wait_for_function("(n) => window.reactions.length >= n", arg=i + 1)
    return page.evaluate("() => window.reactions")[1:]


def kernel(presses):
    """Knob -> summaries of computing and drawing, without a browser."""
    board, found = panels.Board(), {}
    board.png(views.look(**widgets.START))
    for knob in widgets.LABELS:
        parts = {"compute": [], "draw": []}
        for i in range(presses):
            setting = widgets.START | {knob: widgets.START[knob] + 0.005 + 0.01 * i}  # never seen before
            view = timed(parts["compute"], lambda setting=setting: views.look(**setting))
            timed(parts["draw"], lambda view=view: board.png(view))
        found[knob] = {part: both(times) for part, times in parts.items()}
    return found


def trainings(presses):
    times = []
    for i in range(presses):
        timed(times, lambda i=i: toy.train(0.3 + 0.0001 * i, 0.123, 0.2))
    return both(times)


def timed(times, work):
    """What `work` returns; its (seconds, CPU seconds) are appended to `times`."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return result


def both(times):
    wall, cpu = zip(*times, strict=True)
    return {"seconds": summary(wall), "cpu_seconds": summary(cpu)}


def summary(seconds):
    ordered = sorted(seconds)
    return {
        "n": len(ordered),
        "median": round(statistics.median(ordered), 4),
        "p95": round(ordered[max(0, -(-95 * len(ordered) // 100) - 1)], 4),
        "max": round(ordered[-1], 4),
        "share_within_target": sum(s <= TARGET for s in ordered) / len(ordered),
    }


def show(report):
    print(f"seconds from key press to picture (load {report['load_before']:.1f} before, target {TARGET})")
    for place, knobs in report["browser"].items():
        for knob, row in knobs.items():
            print(f"  {place:11s} {knob:10s} median {row['median']:.3f}   p95 {row['p95']:.3f}   max {row['max']:.3f}")
    for knob, row in report["kernel"].items():
        cpu = {part: row[part]["cpu_seconds"]["median"] for part in row}
        print(f"  kernel      {knob:10s} CPU seconds: compute {cpu['compute']:.3f}, draw {cpu['draw']:.3f}")
    print(f"  one training of the toy: {report['toy']['seconds']['median']:.3f} s")


if __name__ == "__main__":
    main()
