"""A disk that is full, or files that may not grow: one line, nothing lost, and the same command goes on later."""

import os
import resource
import subprocess

import pytest
from attacked import Attacked, undo

KIB = 1024


@pytest.fixture
def disk(tmp_path):
    """disk(kilobytes): a folder on a tmpfs of that size; again with another number: the same disk, resized."""
    place = tmp_path / "disk"
    place.mkdir()

    def sized(kilobytes):
        how = ["-o", f"{'remount,' if os.path.ismount(place) else ''}size={kilobytes}k"]
        made = subprocess.run(["mount", *how, "-t", "tmpfs", "tmpfs", str(place)], capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"no tmpfs can be mounted here: {made.stderr.strip()}")
        return place

    yield sized
    if os.path.ismount(place):
        subprocess.run(["umount", "-l", str(place)], check=True)


def used(folder):
    """Kilobytes that the files of a folder take on a tmpfs, in whole pages."""
    return sum(-(-file.stat().st_size // 4096) * 4 for file in folder.rglob("*") if file.is_file())


def refused(run, what, **how):
    """Start the run, which must end with status 2 and one line."""
    status = run.ended(run.start(**how), 600)
    errors = run.errors.read_text()
    run.check(status == 2 and errors.startswith("error: ") and errors.count("\n") == 1, f"{what}: {status}, {errors}")
    run.after(what, status)


def test_full_disk_of_several_sizes(everything, root, reference, disk, tmp_path, count):
    """Each run dies for want of room in a later place than the one before; the last one has room enough."""
    place = disk(100_000)
    run = Attacked(root, place / "run", reference)
    undo(run, "01", "02", "03", "04", "05")
    whole, left = used(reference), used(run.runs)
    for share in (0.0, 0.02, 0.1, 0.3, 0.6, 0.9):
        size = left + 64 + int(share * (whole - left))
        disk(size)
        refused(run, f"a disk of {size} kB")
        count("full disks")
    disk(100_000)
    run.finish()
    run.compare(reference)
    assert run.problems == [], "\n".join(run.problems)


def test_files_that_may_not_grow(everything, root, reference, tmp_path, count):
    """`ulimit -f`: no file of the run may be larger than some kilobytes."""
    run = Attacked(root, tmp_path, reference)
    undo(run, "02", "03", "04", "05")
    for kilobytes in (1, 16, 60):
        limit = kilobytes * KIB
        refused(
            run,
            f"ulimit -f {kilobytes}",
            before=lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit,) * 2),
        )
        count("low limits of file size")
    run.finish()
    run.compare(reference)
    assert run.problems == [], "\n".join(run.problems)


def test_few_open_files(everything, root, reference, tmp_path, count):
    """`ulimit -n 64`: the run says so in one line or gets by."""
    run = Attacked(root, tmp_path, reference)
    undo(run, "05")
    runner = run.start(before=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)))
    status, errors = run.ended(runner, 600), run.errors.read_text()
    run.check(status in (0, 2) and errors.count("\n") <= 1, f"ulimit -n 64: {status}, {errors}")
    run.finish()
    run.compare(reference)
    count("low limits of open files")
    assert run.problems == [], "\n".join(run.problems)
