"""Progress as plain lines, for a terminal, a papermill log or a notebook."""

import collections
import time
from collections.abc import Iterable, Iterator

PAUSE = 2.0  # least seconds between two lines
RECENT = 20  # steps that give the pace: those of an earlier run return at once and would distort it


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class progress:
    """Print "label 12/40 · 0:31 · about 1:10 left", at most one line per PAUSE, and a last line at the end.

    Use `for row in progress(rows, "generate"):`, or `steps = progress(40, "train")` and `steps.step()` after each.
    An iterable without a length only counts up. The last RECENT steps give the time left.
    """

    def __init__(self, iterable_or_total: Iterable | int, label: str):
        self.items = range(iterable_or_total) if isinstance(iterable_or_total, int) else iterable_or_total
        self.total = len(self.items) if hasattr(self.items, "__len__") else None
        self.label, self.done = label, 0
        self.started = self.printed = time.monotonic()
        self.recent = collections.deque([(self.started, 0)], maxlen=RECENT + 1)

    def __iter__(self) -> Iterator:
        for item in self.items:
            yield item
            self.step()

    def step(self, n: int = 1) -> None:
        """Count `n` more steps."""
        self.done += n
        now = time.monotonic()
        self.recent.append((now, self.done))
        if now - self.printed >= PAUSE or self.done == self.total:
            self.printed = now
            total = "" if self.total is None else f"/{self.total}"
            print(f"{self.label} {self.done}{total} · {clock(now - self.started)}{self._left()}", flush=True)

    def _left(self) -> str:
        """The time left, at the pace of the recent steps."""
        if self.total is None or self.done == self.total:
            return ""
        (began, before), (now, done) = self.recent[0], self.recent[-1]
        return f" · about {clock((now - began) / max(done - before, 1) * (self.total - done))} left"
