"""Prediction files: reading them, naming what is wrong with them, and the result that every scorer returns."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from napo.artifacts import BadInput, shown

SHOWN = 5  # so many offenders are named in one message


@dataclass
class Result:
    """What a scorer found.

    summary   official numbers before rounding (None where undefined), the keys of design.md first
    printed   the lines that the official script prints
    examples  long rows {benchmark, metric, example_id, question_kind, value}, one per example and metric
    notices   one line each: what the official script would silently get wrong, how many and which
    details   more numbers, json-able
    """

    benchmark: str
    summary: dict
    printed: list[str] = field(default_factory=list)
    examples: list[dict] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    details: dict = field(default_factory=dict)

    def as_json(self):
        """The object that the command line prints."""
        return self.summary | self.details | {"printed": self.printed, "notices": self.notices}


class Records(list):
    """Records (dicts) of one file or folder, which remember where they stood."""

    def __init__(self, records=(), places=()):
        super().__init__(records)
        self.places = list(places)
        self.notices = []


def where(records: Sequence[dict], index: int) -> str:
    """How messages name a record: its file and line, or its number."""
    places = getattr(records, "places", None)
    return places[index] if places else f"record {index}"


def long_rows(benchmark, example_id, question_kind, values):
    """Rows of the long per-example table for one example; values: {metric: number}."""
    keys = {"benchmark": benchmark, "example_id": str(example_id), "question_kind": question_kind}
    return [{**keys, "metric": metric, "value": float(value)} for metric, value in values.items()]


# ---- reading --------------------------------------------------------------------------------------------------------


def read_predictions(path: str | Path) -> Records:
    """Records of a JSON list, of JSON lines, or of a folder of such files (chunks, in the order of their numbers).

    Raises BadInput if a file is missing, damaged or holds no records; names file and line.
    """
    path = Path(path)
    if not path.is_dir():
        return _read_file(path)
    found, files = Records(), []
    for file in sorted((f for f in path.iterdir() if f.suffix in (".json", ".jsonl")), key=_natural):
        if file.suffix == ".json" and file.read_bytes().lstrip()[:1] != b"[":
            found.notices.append(f"{shown(file)} is no list of records and was left out")
        elif not file.read_bytes().strip():
            found.notices.append(f"{shown(file)} is empty: the answers of that chunk are missing")
        else:
            read = _read_file(file)
            found.extend(read)
            found.places += read.places
            files += [file.name] * len(read)
    if not found:
        raise BadInput(
            f"{shown(path)} holds no predictions (*.json, *.jsonl): name the folder or file with the answers"
        )
    found.files = files
    return found


def _natural(path):
    """Sort key that puts chunk 10 after chunk 9; sorted as strings, eleven chunks would be misordered."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def read_text(path: str | Path) -> str:
    """A UTF-8 file. Raises BadInput."""
    path = Path(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise BadInput(f"missing {shown(path)}: check the path") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{shown(path)} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None
    except OSError as error:
        raise BadInput(f"cannot read {shown(path)}: {error.strerror}") from None


def read_json(path: str | Path, kind: type = list):
    """Value of an annotation file, of the type `kind`. Raises BadInput."""
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{shown(path)} is not valid JSON ({error}): get it again") from None
    if not isinstance(value, kind):
        names = {list: "a list", dict: "an object"}
        raise BadInput(f"{shown(path)} holds {type(value).__name__}, not {names[kind]}: is it the right file?")
    return value


def _read_file(path):
    text, name = read_text(path), shown(path)
    if text.lstrip()[:1] == "[":
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{shown(path)} is damaged or cut short ({error}): write it again") from None
        places = [f"{name}, record {i}" for i in range(len(values))]
    else:
        lines = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
        places = [f"{name}, line {i}" for i, _ in lines]
        values = [_line(line, place) for (_, line), place in zip(lines, places, strict=True)]
    for value, place in zip(values, places, strict=True):
        if not isinstance(value, dict):
            raise BadInput(f"{place}: {type(value).__name__} where a record (a JSON object) belongs")
    if not values:
        raise BadInput(f"{shown(path)} holds no records: nothing to score")
    return Records(values, places)


def _line(text, place):
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{place}: not a complete JSON record ({error}): cut short? write the file again") from None


# ---- looking into records -------------------------------------------------------------------------------------------


def text_of(records: Sequence[dict], index: int, *names: str) -> str:
    """The first of the fields `names` that record `index` has, which must be text. Raises BadInput."""
    record = records[index]
    for name in names:
        if name in record:
            if isinstance(record[name], str):
                return record[name]
            raise BadInput(
                f"{where(records, index)}: {name!r} is {_kind(record[name])} where text belongs: put that right"
            )
    raise BadInput(f"{where(records, index)}: no field {' or '.join(map(repr, names))}: is this the right file?")


def integer_of(records: Sequence[dict], index: int, *names: str, digits: bool = False) -> int:
    """The same for a whole number; with `digits` a text of digits will do. Raises BadInput."""
    record = records[index]
    for name in names:
        if name in record:
            value = record[name]
            if digits and isinstance(value, str) and re.fullmatch(r"\s*\d{1,18}\s*", value):
                return int(value)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
            raise BadInput(
                f"{where(records, index)}: {name!r} is {_kind(value)} {value!r:.40} where a whole number belongs"
            )
    raise BadInput(f"{where(records, index)}: no field {' or '.join(map(repr, names))}: is this the right file?")


def _kind(value):
    return {type(None): "null", bool: "a boolean", str: "text", list: "a list", dict: "an object"}.get(
        type(value), "a number"
    )


def some(items: Iterable) -> str:
    """A few of `items`, for a message."""
    items = list(items)
    return ", ".join(map(str, items[:SHOWN])) + (", …" if len(items) > SHOWN else "")


def repeated(records: Sequence[dict], identities: Sequence, what: str) -> list[str]:
    """Notices about identities that occur more than once in one file.

    Raises BadInput if the same identity lies in several files of a folder: a merged file beside its chunks.
    """
    counts = {identity: n for identity, n in Counter(identities).items() if n > 1}
    if not counts:
        return []
    _refuse_merged(records, identities, counts, what)
    extra = sum(counts.values()) - len(counts)
    return [f"{extra} repeated records ({what} {some(counts)}): each counts, as in the official script"]


def _refuse_merged(records, identities, counts, what):
    files = getattr(records, "files", None) or [""] * len(identities)
    lies_in = {}
    for identity, file in zip(identities, files, strict=True):
        lies_in.setdefault(identity, set()).add(file)
    spread = [identity for identity in counts if len(lies_in[identity]) > 1]
    if spread:
        names = " and ".join(sorted(lies_in[spread[0]])[:3])
        raise BadInput(
            f"{len(spread)} records lie in more than one file of the folder ({what} {some(spread)}; {names}): "
            "a merged file beside its chunks? keep one of them"
        )


def blank(answers: Iterable[tuple[object, str]], what: str) -> list[str]:
    """A notice about empty answers; answers: (id, text)."""
    empty = [identity for identity, text in answers if not text.strip()]
    return [f"{len(empty)} empty answers ({what} {some(empty)})"] if empty else []
