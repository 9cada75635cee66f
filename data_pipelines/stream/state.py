"""The state of a stream: which windows are finished, and how much of the open ones is used.

It names no ranks, so that any number of ranks can continue from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class StreamState:
    """Finished windows, and the number of batches used of each open one.

    Windows are numbered through all epochs. A rank takes every `world_size`-th window, so that the
    finished windows of one rank are one range, and the state stays below 1 kB however long a run
    is.
    """

    finished: list[tuple[int, int, int]] = field(default_factory=list)
    """Ranges of windows as (first, last, step)."""
    used: dict[int, int] = field(default_factory=dict)
    """Window -> batches that were taken of it."""

    def is_finished(self, window: int) -> bool:
        """Whether all batches of a window have been taken."""
        for first, last, step in self.finished:
            is_inside = first <= window <= last
            if is_inside and (window - first) % step == 0:
                return True
        return False

    def finish(self, window: int) -> None:
        """Note that all batches of a window have been taken."""
        # a finished window needs no count of its batches
        self.used.pop(window, None)

        if self.finished:
            first, last, step = self.finished[-1]
            # a range of one window has no step yet
            if window > last and (first == last or window == last + step):
                self.finished[-1] = (first, window, window - last)
                return
        self.finished.append((window, window, 1))

    def first_unfinished(self) -> int:
        """The lowest window that is not finished."""
        window = 0
        # jump over gapless ranges: a long run has finished millions of windows
        for first, last, step in sorted(self.finished):
            if first <= window and step == 1:
                window = max(window, last + 1)
        while self.is_finished(window):
            window += 1
        return window

    def first_untouched(self) -> int:
        """The lowest window above all of which any batch was taken."""
        ends = [last for _, last, _ in self.finished]
        return max([*ends, *self.used], default=-1) + 1

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        # JSON has no tuples, and only texts as keys
        finished = [list(entry) for entry in self.finished]
        used = {str(window): number for window, number in self.used.items()}
        return {"finished": finished, "used": used}

    @classmethod
    def merge(cls, states: list[dict[str, Any]]) -> StreamState:
        """The states of all ranks as one, from which any number of ranks can continue."""
        ranges = set()
        for state in states:
            ranges |= {tuple(entry) for entry in state["finished"]}
        union = cls(sorted(ranges))
        low = union.first_unfinished()

        # everything below `low` is one range; the finished windows above it are listed one by one
        below = [(0, low - 1, 1)] if low else []
        merged = cls(below)
        above: set[int] = set()
        for first, last, step in ranges:
            windows = range(first, last + 1, step)
            above.update(window for window in windows if window >= low)
        for window in sorted(above):
            merged.finish(window)

        # A rank that has resumed still holds what the other ranks had used at that checkpoint, so
        # the largest number is the newest.
        for state in states:
            for name, number in state["used"].items():
                window = int(name)
                if merged.is_finished(window):
                    continue
                known = merged.used.get(window, 0)
                merged.used[window] = max(number, known)
        return merged
