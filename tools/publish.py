"""Publish a finished run: `python -m tools.publish --profile study` (or `make publish PROFILE=study`).

Copies figures, tables, claims and report to figures/study/, adds provenance.json, and rewrites the published blocks of
README.md (what was found, in a few lines) and docs/results.md (all of it) from there. `--pages-only` only rewrites the
blocks.
Exit status: 0 done, 2 bad input (one line says which).
"""

import argparse
import shutil
import sys
from pathlib import Path

import pandas as pd

from napo import profiles
from napo.runner.staleness import Session, is_current, last_record, notebook_key
from napo.study import estimate_verdict
from napo.study.markdown import CHAIR_NOTE
from napo.study.report import CORE, GROUPS, TRUST, claims_table, component_table, items_text, method_table, over_what
from napo.workshop import artifacts, environment
from napo.workshop.files import BadInput, atomic, read_json, repository_root, shown, write_json
from tools.findings import findings

BEGIN, END = "<!-- published:begin -->", "<!-- published:end -->"
PAGE_GROUPS = ("Questions", "Captions", "VLind-style statements")
PAGE_FIGURES = {  # file in figures/study -> its caption; the page links all other figures
    "comparison": "The main methods on six measures, with 95 % intervals",
    "noise_rates": "Counterfactual accuracy against noise in the labels, by method, for both kinds of noise",
    "table_1": "The paper's Table 1 as differences, ours beside the paper's",
    "table_2": "The paper's Table 2 as differences, ours beside the paper's",
    "table_3_4": "The paper's Tables 3 and 4 as differences, ours beside the paper's",
    "q_over_training": "q of each method over training, beside the true share of wrong labels",
    "estimated_noise": "The noise rate estimated before any training, against the true one",
    "margins_by_truth": "Margins of noisy and of noise-free negatives (the paper's Figure 4, with the truth known)",
    "answers": "Answers before and after training",
}


def publish(session, allow_dirty=False):
    """Copy a finished run to figures/study/ and rewrite README's block. session: Session. Returns the folder.

    Raises BadInput if the run is incomplete or stale, or if there are uncommitted changes and not `allow_dirty`.
    """
    state = environment.snapshot(session.root)
    if state["git_dirty"] is not False and not allow_dirty:
        what = "not in git" if state["git_commit"] is None else "with uncommitted changes"
        raise BadInput(
            f"{shown(session.root)} is {what}: commit first, so the results have a source (or --allow-dirty)"
        )
    records = {notebook.name: _finished(session, notebook) for notebook in session.notebooks}
    for page in PAGES:
        page_text(session.root, page, "")  # refuse a page without its markers before anything is written
    study = session.root / "figures" / "study"
    with atomic(study) as folder:
        folder.mkdir()
        for source in _sources(session, records.values()):
            shutil.copyfile(source, folder / source.name)
        _write_provenance(folder, session, state, records)
    write_pages(session.root)
    return study


def write_pages(root):
    """Rewrite the published blocks from figures/study/. Raises BadInput if a file or marker is missing."""
    for page, block in PAGES.items():
        text = page_text(root, page, block(root / "figures" / "study"))
        with atomic(root / page) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _finished(session, notebook):
    """The runner's record of one notebook. Raises BadInput if the notebook was not run to its end or is stale."""
    again = f"make reproduce PROFILE={session.profile}"
    record = last_record(session, notebook)
    try:
        current = is_current(session, notebook, notebook_key(session, notebook, record["parameters"]))
    except (OSError, ValueError, KeyError):
        raise BadInput(f"{notebook.name} of profile {session.profile} has not been run to its end: {again}") from None
    if not current or session.executed(notebook, ".partial.ipynb").exists():
        raise BadInput(f"{notebook.name} of profile {session.profile} is not up to date: {again}")
    return record


def _sources(session, records):
    """The files to copy: the figures that these runs drew (older ones may lie beside them), tables, claims, report."""
    drawn = [session.figures / name for record in records for name in record["figures"]]
    figures = sorted(path for path in drawn if path.suffix == ".png")
    tables = sorted((session.folder / "tables").glob("*.csv"))
    if not figures or not tables:
        again = f"make reproduce PROFILE={session.profile}"
        raise BadInput(f"the run of profile {session.profile} drew no figures or wrote no tables: {again}")
    undrawn = [name for name in PAGE_FIGURES if name not in {path.stem for path in figures}]
    if session.profile == "study" and undrawn:
        names = ", ".join(f"{name}.png" for name in undrawn)
        raise BadInput(
            f"the run of profile study did not draw {names}, which docs/results.md shows: make reproduce PROFILE=study"
        )
    return [*figures, *tables, session.folder / "claims.json", session.folder / "report.md"]


def _write_provenance(folder, session, state, records):
    files = {path.name: artifacts.content_hash(path) for path in sorted(folder.iterdir())}
    command = f"make reproduce PROFILE={session.profile}"
    kept = ("git_commit", "git_dirty", "created", "seconds", "device", "parameters")
    notebooks = {name: {key: record.get(key) for key in kept} for name, record in records.items()}
    about = {"profile": session.profile, "command": command, **state, "notebooks": notebooks, "files": files}
    write_json(about, folder / "provenance.json")


def results(study):
    """The block of docs/results.md: every figure, claim and main table, from the files of figures/study alone."""
    about, ledger = read_json(study / "provenance.json"), read_json(study / "claims.json")
    table, place = pd.read_csv(study / "methods.csv"), "../figures/study"
    page = (study / "report.md").read_text(encoding="utf-8")
    commit = (about["git_commit"] or "unknown")[:12] + (" with uncommitted changes" if about["git_dirty"] else "")
    pictures = {path.stem: f"{place}/{path.name}" for path in sorted(study.glob("*.png"))}
    parts = [
        f"Profile `{about['profile']}`, commit {commit}, {about['created'][:10]}; `{about['command']}` makes it again."
    ]
    parts += [claims_table(ledger), _folded("What each verdict rests on, with intervals", component_table(ledger))]
    parts += [f"![{text}]({pictures.pop(name)})" for name, text in PAGE_FIGURES.items() if name in pictures]
    if (study / "offer.csv").exists():
        verdict = estimate_verdict.verdict(pd.read_csv(study / "offer.csv"))
        parts += [f"{estimate_verdict.QUESTION} {verdict} {estimate_verdict.LIMITS}"]
    core = table[table["method"].isin(CORE)]
    for name in PAGE_GROUPS:
        text = method_table(core, GROUPS[name])
        parts += [text] if text else []
        parts += [items_text(core, GROUPS[name])] if text and "n_items" in table else []
    left = table["method"].nunique() - core["method"].nunique()
    more = f" {left} more methods stand in [the report]({place}/report.md)." if left else ""
    parts += [f"Mean [95 % interval{over_what(table)}]; ↑ higher is better, ↓ lower. {CHAIR_NOTE}{more}"]
    parts += ["How far to trust this:" + page.partition(TRUST)[2].rstrip()]
    links = [f"[{name}]({path})" for name, path in pictures.items()]
    parts += ["More: " + ", ".join([f"[the report]({place}/report.md)", *links]) + "."]
    return "\n\n".join(parts)


PAGES = {"README.md": findings, "docs/results.md": results}  # page -> its published block


def _folded(summary, text):
    """Markdown that opens with a click."""
    return f"<details>\n<summary>{summary}</summary>\n\n{text}\n\n</details>"


def page_text(root, page, block):
    """A page with its published block replaced. Raises BadInput unless both markers are there once, in order."""
    path = Path(root) / page
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end or BEGIN in tail or END in tail:
        raise BadInput(f"{shown(path)} needs the lines {BEGIN} and {END}, once each, around its published block")
    return f"{head}{BEGIN}\n{block}\n{END}{tail}"


def main(arguments=None, session=None):
    """The command; returns the exit status. Tests pass the session."""
    parser = argparse.ArgumentParser(prog="python -m tools.publish", description="Publish a finished run in git.")
    parser.add_argument("--profile", default="desk", help="smoke, desk (default), study or paper")
    parser.add_argument("--runs-dir", default="runs", help="default: runs")
    parser.add_argument("--allow-dirty", action="store_true", help="publish uncommitted code; recorded as such")
    parser.add_argument("--pages-only", action="store_true", help="rewrite the pages' blocks from figures/study/ only")
    asked = parser.parse_args(arguments)
    try:
        if asked.pages_only:
            write_pages(repository_root() if session is None else session.root)
            return 0
        profiles.get(asked.profile)
        study = publish(session or Session(asked.profile, asked.runs_dir), asked.allow_dirty)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"published {asked.profile} in {shown(study)}/, README.md and docs/results.md: look at them, then commit")
    return 0


if __name__ == "__main__":
    sys.exit(main())
