"""Seeded damage to bytes and to values, and the only two ends that it may have."""

import contextlib
import copy
import signal
import sys
import threading

from napo.workshop.files import BadInput

JUNK = [None, True, False, 0, -1, 1.5, 10**30, float("nan"), "", " ", "x", "True", [], {}, [None], {"a": 1}, [[[]]]]
JUNK += ["half \ud83d", "\x1b[31mred", "nul \x00", "<script>alert(1)</script>", "$x^{$", "../../../etc/passwd"]
JUNK += ["<image>", "ä" * 3000, "1e999", "-0", "²", "\u202e"]
LONGEST = 300  # of the one line, paths apart


class Hang(BaseException):
    """Something took too long."""


def damaged_bytes(content, rng):
    """A copy with flipped bits, a piece cut out, doubled, zeroed or replaced, or the end missing."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        place, size = rng.randrange(len(content) + 1), rng.choice((1, 2, 16, 200))
        piece = content[place : place + size]
        new = rng.choice((b"", piece * 2, bytes(len(piece)), rng.randbytes(size), b"\xff\xfe", None))
        if new is not None:
            content[place : place + size] = new
        elif piece:
            content[place] ^= 1 << rng.randrange(8)
    if rng.random() < 0.15:
        del content[rng.randrange(len(content) + 1) :]
    return bytes(content)


def damaged_value(value, rng):
    """A copy with one part removed, repeated, renamed, moved or replaced, at any depth."""
    if not isinstance(value, list | dict) or not value or rng.random() < 0.15:
        return rng.choice(JUNK)
    places = list(value) if isinstance(value, dict) else range(len(value))
    place, other, value = rng.choice(places), rng.choice(places), copy.copy(value)
    match rng.randrange(7):
        case 0:
            del value[place]
        case 1 if isinstance(value, list):
            value.insert(other, value[place])
        case 1:
            value[f"{place} "] = value.pop(place)
        case 2:
            value[place], value[other] = value[other], value[place]
        case _:
            value[place] = damaged_value(value[place], rng)
    return value


@contextlib.contextmanager
def limited(seconds=60):
    """Raises Hang if the block takes longer. By SIGUSR1, since the commands use SIGALRM themselves."""

    def hang(*_):
        raise Hang(f"took longer than {seconds} s")

    before = signal.signal(signal.SIGUSR1, hang)
    timer = threading.Timer(seconds, signal.pthread_kill, (threading.main_thread().ident, signal.SIGUSR1))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGUSR1, before)


class Tries:
    """Counts inputs and notes each that ends in another way than with a result or with one line."""

    def __init__(self, place=""):
        self.refused, self.accepted, self.faults, self.place = 0, 0, [], str(place)

    def function(self, name, call):
        """call() -> its result, or None if it raised BadInput with one short line."""
        try:
            with limited():
                found = call()
        except BadInput as error:
            self.refused += 1
            return self.line(name, str(error))
        except (Exception, Hang) as error:
            self.faults.append(f"{name}: {type(error).__name__}: {str(error)[:300]}")
            return None
        self.accepted += 1
        return found

    def command(self, name, call, capsys):
        """call() -> exit status. The standard output of status 0; None for status 2 and one line on standard error."""
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(errors="backslashreplace")  # as the command's own streams are
        try:
            with limited():
                status = call()
        except (Exception, Hang) as error:
            capsys.readouterr()
            self.faults.append(f"{name}: {type(error).__name__}: {str(error)[:300]}")
            return None
        out, err = capsys.readouterr()
        if status == 0:
            self.accepted += 1
            return out
        self.refused += 1
        if status != 2 or not err.startswith("error: "):
            self.faults.append(f"{name}: status {status}, {err[-300:]!r}")
        return self.line(name, err.removesuffix("\n"))

    def line(self, name, text):
        """Note a message that is no single short line of printable text. Lists of bad rows may be longer."""
        short = text.replace(self.place, "") if self.place else text
        if not text or text.splitlines() != [text] or not text.isprintable():
            self.faults.append(f"{name}: not one printable line: {text[:400]!r}")
        elif len(short) > LONGEST and "bad row" not in short:
            self.faults.append(f"{name}: {len(short)} characters: {short[:400]!r}")

    def note(self, good, fault):
        if not good:
            self.faults.append(fault)

    def done(self, what, count):
        """Count them, and fail with the list of faults."""
        count(f"inputs: {what}, refused in one line", self.refused)
        count(f"inputs: {what}, accepted", self.accepted)
        count("inputs", self.refused + self.accepted)
        assert not self.faults, f"{len(self.faults)} faults:\n" + "\n".join(self.faults[:30])
        assert self.refused > 0
