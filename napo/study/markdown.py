"""Numbers, intervals, tables and foreign texts as Markdown."""

import html
import re

import numpy as np

from napo.workshop.texts import printable

ARROW = {"higher": " ↑", "lower": " ↓", "neither": ""}
CHAIR_NOTE = "CHAIR falls by itself when captions mention less: read it with coverage and length."


def number(value, lo=None, hi=None, digits=2):
    """ "0.41 [0.35, 0.47]"; without an interval "0.41"; "–" for None or nan."""
    if value is None or not np.isfinite(value):
        return "–"
    bounds = [] if lo is None or hi is None or not (np.isfinite(lo) and np.isfinite(hi)) else [lo, hi]
    head, *tail = (f"{x + 0.0:.{digits}f}".replace("-", "−") for x in (value, *bounds))
    return f"{head} [{', '.join(tail)}]" if tail else head


# What begins emphasis, code, a link, a picture or a heading; a line at a word's edge; an address that is made a link.
MARKUP = re.compile(r"[\\`*\[\]!#~]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.", re.IGNORECASE)


def plain(text):
    """A foreign text that Markdown shows as it is, in one line: no markup, HTML, formula, link, terminal code."""
    shown = html.escape(MARKUP.sub(r"\\\g<0>", printable(text)), quote=False)
    return shown.replace("$", "&#36;").replace("@", "&#64;")


def table(header, rows):
    """Lines of a Markdown table, a line per row; `|` in cells is escaped. Foreign texts go through `plain` first."""
    lines = [list(header), ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(printable(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def level(noise_kind, flip_rate, none="no injected noise"):
    """A level of injected noise in words: "swap 40%"."""
    return f"{noise_kind} {flip_rate:.0%}" if flip_rate else none


def bases(n):
    """ "1 reporting base", "5 reporting bases"."""
    return f"{n} reporting base{'s'[: n != 1]}"


def not_corrected(n):
    """The sentence under every table of comparisons."""
    return f"{n} comparisons; none is corrected for their number."
