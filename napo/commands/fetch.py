"""`napo fetch [GROUP …]`, or `make data`: fetch the official files of the benchmarks."""

from napo.commands import command
from napo.official import fetch
from napo.official.sources import GROUPS, TABLE
from napo.workshop.files import BadInput, repository_root, shown


def parser():
    top = command.parser("fetch")
    top.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {' '.join(GROUPS)}; default: all")
    top.add_argument("--to", default=repository_root() / "data", help="default: data/ in the repository")
    top.add_argument("--large", action="store_true", help="also files of many gigabytes (COCO's images, for POPE)")
    top.add_argument("--list", action="store_true", help="only show the table: places, licences, hashes")
    return top


@command.exit_status
def main(arguments=None, sources=TABLE):
    asked = parser().parse_args(arguments)
    chosen = _chosen(sources, asked)
    if asked.list:
        print("\n".join(fetch.table(chosen)))
        return 0
    if failed := fetch.fetch(chosen, asked.to):
        names = ", ".join(source.path for source in failed[:5]) + (", …" if len(failed) > 5 else "")
        raise BadInput(f"{len(failed)} of {len(chosen)} sources are missing ({names}): run again to go on from here")
    print(f"all there: {shown(asked.to)}/, recorded in {fetch.RECORD}")


def _chosen(sources, asked):
    groups = {source.group for source in sources}
    if unknown := set(asked.groups) - groups:
        raise BadInput(f"unknown group {min(unknown)!r}: use {', '.join(sorted(groups))}")
    return [s for s in sources if (not asked.groups or s.group in asked.groups) and (asked.large or not s.large)]
