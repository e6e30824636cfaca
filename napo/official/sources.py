"""The official files that `make data` fetches: `TABLE`, read from sources.toml."""

from dataclasses import dataclass

from napo.official.records import shipped


@dataclass(frozen=True)
class Source:
    """One entry of sources.toml.

    group     what the user asks for: a benchmark, coco or nltk
    path      its place in the data folder; for an archive, the folder to unpack into
    kind      "file" at `url`; "hub", the data set `repo` of the Hugging Face hub, whose archives are unpacked in place;
              "images" from the fetched JSON list `listed_in`, whose fields `name_field` and `url_field` give each
              image's name and address; "by hand" if no program may or can fetch it, with a text `what` to do
    digest    "sha256:…" or "git:…" (blob id); None if not known
    members   glob patterns of the files to unpack; empty if it is no archive
    large     fetched only with --large
    """

    group: str
    path: str
    licence: str
    kind: str = "file"
    url: str = ""
    digest: str | None = None
    members: tuple[str, ...] = ()
    large: bool = False
    repo: str = ""
    listed_in: str = ""
    name_field: str = ""
    url_field: str = ""
    what: str = ""


TABLE = tuple(Source(**entry) for entry in shipped("sources.toml")["source"])
GROUPS = tuple(dict.fromkeys(source.group for source in TABLE))
