"""The state of a stream: which windows are finished, and how much of each open window is used.

It does not depend on the number of ranks, so any number of ranks can resume from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class StreamState:
    """The finished windows, and the number of batches used from each open window.

    Windows are numbered consecutively through all epochs. A rank takes every `world_size`-th
    window, so its finished windows form a single range, and the state stays below 1 kB however
    long the run is.
    """

    finished: list[tuple[int, int, int]] = field(default_factory=list)
    """Ranges of windows as (first, last, step); `last` is included."""
    used: dict[int, int] = field(default_factory=dict)
    """Window -> number of batches that were taken from it."""

    def is_finished(self, window: int) -> bool:
        """Whether all batches of a window have been taken."""
        for first, last, step in self.finished:
            is_inside = first <= window <= last
            if is_inside and (window - first) % step == 0:
                return True
        return False

    def finish(self, window: int) -> None:
        """Record that all batches of a window have been taken."""
        self.used.pop(window, None)

        if self.finished:
            first, last, step = self.finished[-1]
            # any step fits a range of one window
            if window > last and (first == last or window == last + step):
                self.finished[-1] = (first, window, window - last)
                return
        self.finished.append((window, window, 1))

    def first_unfinished(self) -> int:
        """The lowest window that is not finished."""
        window = 0
        # skip contiguous ranges, because a long run has finished millions of windows
        for first, last, step in sorted(self.finished):
            if first <= window and step == 1:
                window = max(window, last + 1)
        while self.is_finished(window):
            window += 1
        return window

    def first_untouched(self) -> int:
        """The number after the highest window from which any batch was taken."""
        ends = [last for _, last, _ in self.finished]
        return max([*ends, *self.used], default=-1) + 1

    def to_dict(self) -> dict[str, Any]:
        """The state as JSON content."""
        # JSON has no tuples, and its keys are strings
        finished = [list(entry) for entry in self.finished]
        used = {str(window): number for window, number in self.used.items()}
        return {"finished": finished, "used": used}

    @classmethod
    def merge(cls, states: list[dict[str, Any]]) -> StreamState:
        """Merge the states of all ranks (from `to_dict`) into one.

        Any number of ranks can resume from the result.
        """
        ranges = set()
        for state in states:
            ranges |= {tuple(entry) for entry in state["finished"]}
        union = cls(sorted(ranges))
        low = union.first_unfinished()

        # all windows below `low` form one range; finished windows above it are added one by one
        below = [(0, low - 1, 1)] if low else []
        merged = cls(below)
        above: set[int] = set()
        for first, last, step in ranges:
            windows = range(first, last + 1, step)
            above.update(window for window in windows if window >= low)
        for window in sorted(above):
            merged.finish(window)

        # After a resume, each rank also holds the old counts of windows that now belong to other
        # ranks. The largest count is the most recent.
        for state in states:
            for name, number in state["used"].items():
                window = int(name)
                if merged.is_finished(window):
                    continue
                known = merged.used.get(window, 0)
                merged.used[window] = max(number, known)
        return merged
