"""What scoring costs, in CPU seconds of a whole command, start and imports included: `python benchmarks/scorers.py`.

AMBER's 1,004 captions with a table of vectors, its 14,216 answers, Object HalBench's 300 captions, VLind-Bench's 302
instances, POPE's 3,000 answers, MMHal-Bench's 96 reviews. Needs the folder with official data and predictions
(--shared, default ../shared); VLind's 302 instances are made here, with all twelve images good, the most there can be.
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from napo.official import vlind  # noqa: E402
from napo.workshop import environment  # noqa: E402
from napo.workshop.files import write_json  # noqa: E402

TARGETS = {"amber_captions": 10, "objhal": 5, "vlind": 2}  # CPU seconds, asked for in the project's plan


def vlind_predictions(n=302, seed=0):
    """Random answers to `n` instances, all of whose images are good."""
    rng = random.Random(seed)

    def said():
        answer = rng.choice(["True", "False", "NA"])
        return {"response": f"{answer}.", "answer": answer}

    votes = {image: 3 for image in vlind.STYLES["all"]}
    return [
        {"global_id": str(i), "concept": f"concept {i % 10}", "aggregated_human_label_good_images": votes}
        | {f"m_pred_{step}": said() for step in vlind.SINGLE}
        | {f"m_pred_{step}": {image: said() for image in votes} for step in vlind.PER_IMAGE}
        for i in range(n)
    ]


def commands(shared, scratch):
    """{name: arguments of python -m napo score}."""
    oracle, data = shared / "benchmarks/oracle", shared / "benchmarks/data"
    predictions = scratch / "vlind.json"
    predictions.write_text(json.dumps(vlind_predictions()))
    amber = ["amber", "--amber-data", data / "amber", "--predictions"]
    objhal = ["--coco", oracle / "objhal/coco_synth_101", "--synonyms", data / "objhal/synonyms_refine.txt"]
    table = ["--similarity", f"table:{oracle / 'amber/vectors.json'}"]
    pope = ["--questions", data / "pope/coco_pope_random.json", "--answers", oracle / "pope/answers_coco_random.jsonl"]
    return {
        "amber_captions": [*amber, oracle / "amber/gen_1004.json", "--task", "g", *table],
        "amber_answers": [*amber, oracle / "amber/disc_14216.json", "--task", "d"],
        "objhal": ["objhal", "--predictions", oracle / "objhal/obj_halbench_answer_101.jsonl", *objhal],
        "vlind": ["vlind", "--predictions", predictions, "--model-id", "m"],
        "pope": ["pope", *pope],
        "mmhal": ["mmhal", "--reviews", oracle / "mmhal/reviews_mixed"],
    }


def cpu_seconds(arguments, variables):
    """User and system seconds of one run."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "napo", "score", *map(str, arguments)]
    subprocess.run(command, cwd=ROOT, env=variables, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/scorers.json")
    asked = parser.parse_args()
    if not (asked.shared / "benchmarks").is_dir():
        sys.exit(f"error: {asked.shared} holds no benchmarks/: name the folder with --shared")
    variables = os.environ | {"NLTK_DATA": str((asked.shared / "nltk_data").resolve()), "OMP_NUM_THREADS": "1"}
    measured = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, arguments in commands(asked.shared.resolve(), Path(scratch)).items():
            seconds = [cpu_seconds(arguments, variables) for _ in range(asked.repeats)]
            found = {"median": statistics.median(seconds), "least": min(seconds), "most": max(seconds)}
            measured[name] = {key: round(value, 3) for key, value in found.items()} | {"target": TARGETS.get(name)}
            print(f"{name:15} {found['median']:6.2f} CPU s (at most {TARGETS.get(name, '-')} asked)", flush=True)
    about = environment.snapshot(ROOT)
    write_json({"cpu_seconds": measured, "repeats": asked.repeats, "load": os.getloadavg(), **about}, asked.output)


if __name__ == "__main__":
    main()
