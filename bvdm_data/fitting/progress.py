"""One bar for all parts of a fit, with the time that is left over all of them."""

import math
import shutil
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

_EVERY, _LINE = 1.0, 10.0  # seconds between two states of the bar, and between two lines of a log
_BAR = 16  # characters
_LONG, _WARM = 30.0, 3.0  # seconds: of a part that tells how busy the machine is, and when it does


class Part:
    """A part of the work, which is counted as on a bar of tqdm."""

    def __init__(self, name: str, total: int, done: int, until: float) -> None:
        """Begin it, with what a run before has done; ``until``: when it ends at the latest."""
        self.name, self.total, self.done, self.until, self.words = name, total, done, until, ""
        self._begin, self._end = time.monotonic(), 0.0
        self._ticks: list[tuple[float, int]] = []  # after the first unit, which is slow; the last

    def update(self, count: int = 1) -> None:
        """Count units that are done."""
        self.done += count
        self._ticks = [*self._ticks[:1], (time.monotonic(), self.done)]

    def set_postfix(self, **words: object) -> None:
        """Set what is shown beside the count."""
        self.words = "".join(f", {name} {word}" for name, word in words.items())

    def close(self) -> None:
        """End it."""
        self._end = self._end or time.monotonic()

    def measure_seconds(self) -> float:
        """Return the seconds that it has taken."""
        return (self._end or time.monotonic()) - self._begin

    def measure_rate(self) -> float | None:
        """Return the seconds that a unit takes; None where that is not known yet."""
        if len(self._ticks) < 2:
            return None
        (start, first), (now, last) = self._ticks
        return (now - start) / (last - first)

    def measure_left(self) -> float | None:
        """Return the seconds that are left; None where that is not known yet."""
        rate = 0.0 if self._end else self.measure_rate()
        if rate is None:
            return None
        return min(rate * (self.total - self.done), max(self.until - time.monotonic(), 0))


class Progress:
    """Parts of a long work, named at its start, and the time that is left over all of them.

    A thread shows it: on a screen as one line that changes every second, else as lines.
    """

    def __init__(self, seconds: Mapping[str, float], *, shown: bool = True) -> None:
        """Begin with the parts in their order, and the seconds that each may take."""
        self.seconds, self.parts = dict(seconds), dict[str, Part]()
        self._begin, self.until = time.monotonic(), math.inf  # when all is to be over
        self._most = 0.0  # share that was shown: estimates vary, but it never falls
        self.shown, self._stop = shown, threading.Event()
        self._is_screen = sys.stderr.isatty()
        self._thread = threading.Thread(target=self._show_always, daemon=True)
        if shown:
            self._thread.start()

    def __enter__(self) -> "Progress":
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop showing it."""
        self._stop.set()
        if self.shown:
            self._thread.join()
            self._write("", end="")

    def start(self, name: str, total: int = 1, done: int = 0, until: float = math.inf) -> Part:
        """Begin a part; the one before has ended."""
        for part in self.parts.values():
            part.close()
        self.parts[name] = Part(name, total, done, until)
        return self.parts[name]

    def say(self, text: str) -> None:
        """Print a line, above the bar."""
        if self.shown:
            self._write(text)

    def describe(self) -> str:
        """Name the parts that are ahead, with the time that each takes."""
        ahead = {name: time for name, time in self.seconds.items() if name not in self.parts}
        words = ", ".join(f"{name} {format_seconds(time)}" for name, time in ahead.items())
        return f"{words}: about {format_seconds(self.measure_left())} in all"

    def measure_spent(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self._begin

    def measure_left(self) -> float:
        """Return the seconds that are left: measured in this part, planned for those ahead."""
        left, busy = 0.0, 1.0
        for name, planned in self.seconds.items():
            part = self.parts.get(name)
            spent, own = (part.measure_seconds(), part.measure_left()) if part else (0.0, None)
            left += max(planned * busy - spent, 0) if own is None else own
            if own is not None and planned > _LONG and spent > _WARM:
                busy = max((spent + own) / planned, 1.0)
        return left

    def _show_always(self) -> None:
        while not self._stop.wait(_EVERY if self._is_screen else _LINE):
            for part in [*self.parts.values()][-1:]:
                left = self.measure_left()
                self._most = max(self._most, 1 - left / (left + self.measure_spent()))
                share = self._most
                bar = f" [{'#' * round(_BAR * share):{_BAR}}]" if self._is_screen else ""
                total = f"/{part.total}" if part.until == math.inf else ""
                count = f" {part.done}{total}" if part.total > 1 else ""
                text = f"{share:4.0%}{bar} {format_seconds(left)} left: {part.name}{count}"
                self._write(text + part.words, end="" if self._is_screen else "\n")

    def _write(self, text: str, end: str = "\n") -> None:
        width = shutil.get_terminal_size().columns - 1
        line = f"\r{text:{width}}" if self._is_screen else text
        sys.stderr.write((line if end else line[: width + 1] + "\r" * self._is_screen) + end)
        sys.stderr.flush()


def open_bar(
    progress: bool | Progress, name: str, total: int, done: int = 0, until: float = math.inf
) -> Any:
    """Return what a part is counted on: a part of the whole, or a bar of its own."""
    if isinstance(progress, Progress):
        return progress.start(name.partition("-")[0], total, done, until)
    return tqdm(total=total, initial=done, desc=name, disable=not progress)


def format_seconds(seconds: float) -> str:
    """Return a time in words, such as 40 s, 12 min or 1.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
