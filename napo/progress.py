"""Progress as plain lines that read well in a terminal, in a papermill log and in a notebook."""

import collections
import time
from collections.abc import Iterable, Iterator

PAUSE = 2.0  # seconds between two lines at least
RECENT = 20  # steps that tell the pace: those of a run that goes on, done earlier, pass in no time


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class progress:
    """Print "label 12/40 · 0:31 · about 1:10 left", at most one line per PAUSE, and a last line when all is done.

    Either `for row in progress(rows, "generate"):`, or `steps = progress(40, "train")` and `steps.step()` after each.
    An iterable without a length counts up only. What is left is told from the last RECENT steps.
    """

    def __init__(self, iterable_or_total: Iterable | int, label: str):
        counted = isinstance(iterable_or_total, int)
        self.items = range(iterable_or_total) if counted else iterable_or_total
        self.total = (
            iterable_or_total if counted else len(iterable_or_total) if hasattr(iterable_or_total, "__len__") else None
        )
        self.label, self.done = label, 0
        self.started = self.printed = time.monotonic()
        self.recent = collections.deque([(self.started, 0)], maxlen=RECENT + 1)

    def __iter__(self) -> Iterator:
        for item in self.items:
            yield item
            self.step()

    def step(self, n: int = 1) -> None:
        """Count `n` more as done."""
        self.done += n
        now = time.monotonic()
        self.recent.append((now, self.done))
        if now - self.printed >= PAUSE or self.done == self.total:
            self.printed = now
            print(self.line(now - self.started), flush=True)

    def line(self, elapsed: float) -> str:
        """The line after `elapsed` seconds."""
        if self.total is None:
            return f"{self.label} {self.done} · {clock(elapsed)}"
        (began, before), (now, done) = self.recent[0], self.recent[-1]
        left = (now - began) / max(done - before, 1) * (self.total - self.done)
        ending = f" · about {clock(left)} left" if self.done < self.total else ""
        return f"{self.label} {self.done}/{self.total} · {clock(elapsed)}{ending}"
