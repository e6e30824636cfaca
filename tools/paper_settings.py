"""The paper profile's settings as one table, each with its source: `python -m tools.paper_settings docs/paper.md`.

The table is made from the fields of `napo/profiles.py` and replaces what stands between the page's two marks.
"""

import dataclasses
import sys
from pathlib import Path

from napo.methods import ALPHA, METHODS
from napo.profiles import PROFILES
from napo.study import markdown
from napo.workshop.files import BadInput, atomic

BEGIN, END = "<!-- settings:begin -->", "<!-- settings:end -->"


def leaves(profile, path=""):
    """{path: (value, metadata)} of a dataclass's fields; dataclasses within it are taken apart."""
    found = {}
    for field in dataclasses.fields(profile):
        value, name = getattr(profile, field.name), path + field.name
        found |= leaves(value, name + ".") if dataclasses.is_dataclass(value) else {name: (value, field.metadata)}
    return found


def rows():
    """Lines of the table: setting, value in `paper`, value in `paper_small` where it differs, source, why."""
    paper, small = leaves(PROFILES["paper"]), leaves(PROFILES["paper_small"])
    lines = [
        [about["about"], shown(value), shown(small[path][0]) if small[path][0] != value else "", about["source"]]
        + [about["why"]]
        for path, (value, about) in paper.items()
        if about
    ]
    return lines + of_the_methods()


def of_the_methods():
    """The settings that stand in METHODS and not in a profile."""
    return [
        ["α with a mean margin (language-biased)", shown(ALPHA["mean"]), "", "paper", "section 4"],
        ["α with a sum margin (vision-biased)", shown(ALPHA["sum"]), "", "paper", "section 4"],
        ["γ of napo_paper", METHODS["napo_paper"].gamma, "", "paper", "eq. 13, with the kit's rule at margin 0"],
        ["γ of napo_authors", shown(METHODS["napo_authors"].gamma), "", "authors", "weights of their command line"],
    ]


def shown(value):
    """A setting as the table prints it."""
    if isinstance(value, tuple):
        return ", ".join(map(shown, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return "–" if value in (None, "") else f"`{value}`" if not str(value).isalnum() else str(value)


def placed(text):
    """A page with the table between its two marks. Raises BadInput if the marks are missing."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise BadInput(f"no place for the table: the page needs the lines {BEGIN} and {END}")
    table = markdown.table(["setting", "`paper`", "`paper_small`, where it differs", "source", "why"], rows())
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def main(pages):
    """Rewrites the table of each page."""
    for name in pages:
        text = placed(Path(name).read_text(encoding="utf-8"))
        with atomic(name) as path:
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
