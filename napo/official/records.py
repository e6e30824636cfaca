"""Prediction files: reading them, naming faulty records in messages, and the result that every scorer returns."""

import json
import re
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from napo.workshop.files import BadInput, shown

SHOWN = 5  # items that a message names


@dataclass
class Result:
    """What a scorer returns."""

    benchmark: str
    summary: dict  # official numbers before rounding, None where undefined
    printed: list[str] = field(default_factory=list)  # the lines that the official script prints
    examples: list[dict] = field(default_factory=list)  # rows of `long_rows`, one per example and metric
    notices: list[str] = field(default_factory=list)  # one for each fault that the official script passes over
    details: dict = field(default_factory=dict)  # more numbers, json-able

    def as_json(self):
        """The object that `napo score` prints."""
        return self.summary | self.details | {"printed": self.printed, "notices": self.notices}


class Records(list):
    """Records (dicts) of a file or folder, with the place of each ("FILE, line N") and notices from reading."""

    def __init__(self, records=(), places=()):
        super().__init__(records)
        self.places, self.notices = list(places), []


def fault(records: Sequence[dict], index: int, problem: str) -> BadInput:
    """The error that names a record, by its file and line or by its number; to be raised."""
    places = getattr(records, "places", None)
    return BadInput(f"{places[index] if places else f'record {index}'}: {problem}")


def long_rows(benchmark, example_id, question_kind, values):
    """Rows {benchmark, metric, example_id, question_kind, value} of one example; values: {metric: number}."""
    keys = {"benchmark": benchmark, "example_id": str(example_id), "question_kind": question_kind}
    return [{**keys, "metric": metric, "value": float(value)} for metric, value in values.items()]


def ratio(part, whole):
    """part / whole; None where that is undefined."""
    return part / whole if whole else None


def read_predictions(path: str | Path) -> Records:
    """Records of a file, or of all files (chunks) in a folder, in the order of their numbers.

    Raises BadInput if a file is missing or damaged, or if there are no records.
    """
    path = Path(path)
    if not path.is_dir():
        return read_records(path)
    found = Records()
    for file in sorted(path.iterdir(), key=_natural):
        if file.suffix not in (".json", ".jsonl"):
            continue
        if file.suffix == ".json" and file.read_bytes().lstrip()[:1] != b"[":
            found.notices.append(f"{shown(file)} is no list of records and was left out")
        elif not file.read_bytes().strip():
            found.notices.append(f"{shown(file)} is empty: the answers of that chunk are missing")
        else:
            read = read_records(file)
            found.extend(read)
            found.places += read.places
    if not found:
        raise BadInput(f"{shown(path)} holds no predictions (*.json, *.jsonl): name the folder or file of the answers")
    return found


def _natural(path):
    """Sort key that puts chunk 10 after chunk 9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def read_records(path: str | Path) -> Records:
    """Records of a JSON list or of JSON lines, whatever the file's ending. Raises BadInput that names the line."""
    text, name = read_text(path), shown(path)
    if text.lstrip()[:1] == "[":
        values = _parsed(text, f"{name} is damaged or cut short")
        places = [f"{name}, record {i}" for i in range(len(values))]
    else:
        lines = [(f"{name}, line {i}", line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
        places = [place for place, _ in lines]
        values = [_parsed(line, f"{place}: not a complete JSON record") for place, line in lines]
    for value, place in zip(values, places, strict=True):
        if not isinstance(value, dict):
            raise BadInput(f"{place}: {type(value).__name__} where a record (a JSON object) belongs: use another file")
    if not values:
        raise BadInput(f"{name} holds no records: use another file")
    return Records(values, places)


def shipped(name: str) -> dict:
    """Content of a .toml file beside this module."""
    return tomllib.loads(resources.files(__package__).joinpath(name).read_text(encoding="utf-8"))


def read_text(path: str | Path) -> str:
    """A UTF-8 file. Raises BadInput."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise BadInput(f"missing {shown(path)}: check the path") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{shown(path)} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None
    except OSError as error:
        raise BadInput(f"cannot read {shown(path)}: {error.strerror}") from None


def read_json(path: str | Path, kind: type = list):
    """The list or dict (`kind`) of an annotation file. Raises BadInput."""
    value = _parsed(read_text(path), f"{shown(path)} is not valid JSON")
    if not isinstance(value, kind):
        wanted = "a list" if kind is list else "an object"
        raise BadInput(f"{shown(path)} holds {type(value).__name__}, not {wanted}: is it the right file?")
    return value


def _parsed(text, problem):
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{problem} ({error}): fetch or write the file again") from None


def text_of(records: Sequence[dict], index: int, *names: str) -> str:
    """The first of the fields `names` in record `index`. Raises BadInput if there is none, or if it is no text."""
    name, value = _field(records, index, names)
    if not isinstance(value, str):
        raise fault(records, index, f"{name!r} is {_kind(value)} where text belongs: correct the record")
    return value


def integer_of(records: Sequence[dict], index: int, *names: str, digits: bool = False) -> int:
    """The same for a whole number; `digits` also accepts a text of digits. Raises BadInput."""
    name, value = _field(records, index, names)
    if digits and isinstance(value, str) and re.fullmatch(r"\s*\d{1,18}\s*", value):
        value = int(value)
    if type(value) is not int:  # nor bool
        problem = f"{name!r} is {_kind(value)} {value!r:.40} where a whole number belongs"
        raise fault(records, index, f"{problem}: correct the record")
    return value


def _field(records, index, names):
    for name in names:
        if name in records[index]:
            return name, records[index][name]
    raise fault(records, index, f"no field {' or '.join(map(repr, names))}: is this the right file?")


def _kind(value):
    names = {type(None): "null", bool: "a boolean", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")


def some(items: Iterable) -> str:
    """The first few of `items`, for a message."""
    items = list(items)
    return ", ".join(map(str, items[:SHOWN])) + (", …" if len(items) > SHOWN else "")


def without(items: Iterable, others: Iterable) -> list:
    """The items that are not among `others`."""
    others = set(others)
    return [item for item in items if item not in others]


def counted(items: Sequence, text: str, what: str) -> list[str]:
    """A notice that counts `items` and names the first; none if there are no items: "2 TEXT (WHAT 7, 9)"."""
    return [f"{len(items)} {text} ({what} {some(items)})"] if items else []


def blank(answers: Iterable[tuple[object, str]], what: str) -> list[str]:
    """A notice about empty answers; answers: (id, text)."""
    return counted([identity for identity, text in answers if not text.strip()], "empty answers", what)


def compared(known: Sequence, missing: str, given: Sequence, extra: str, what: str) -> list[str]:
    """Notices about `known` items that are not given, and given ones that are not known; texts as in `counted`."""
    return counted(without(known, given), missing, what) + counted(without(given, known), extra, what)


def reading_notices(records: Sequence[dict], identities: Sequence, what: str) -> list[str]:
    """Notices from reading `records`, and one about identities that occur more than once.

    Raises BadInput if several files of a folder hold the same identity: a merged file beside its chunks.
    """
    repeated = {identity: n for identity, n in Counter(identities).items() if n > 1}
    lies_in = defaultdict(set)
    for identity, place in zip(identities, getattr(records, "places", ()), strict=False):
        lies_in[identity].add(place.rpartition(", ")[0])
    if spread := [identity for identity in repeated if len(lies_in[identity]) > 1]:
        names = " and ".join(Path(file).name for file in sorted(lies_in[spread[0]])[:3])
        problem = f"{len(spread)} records lie in more than one file of the folder ({what} {some(spread)}; {names})"
        raise BadInput(f"{problem}: a merged file beside its chunks? keep one of them")
    extra = f"{sum(repeated.values()) - len(repeated)} repeated records ({what} {some(repeated)})"
    notice = f"{extra}: each counts, as in the official script"
    return getattr(records, "notices", []) + ([notice] if repeated else [])
