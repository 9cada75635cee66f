"""Where a stream stands, without a word of ranks: which windows are finished, and what of the open ones is used."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class StreamState:
    """Finished windows as (first, last, step) ranges, and the number of batches used of each open one.

    Windows are numbered through all epochs. A rank takes every world_size-th, so that its own finished windows are
    one range and the state stays below 1 kB however long a run is.
    """

    finished: list[tuple[int, int, int]] = field(default_factory=list)
    used: dict[int, int] = field(default_factory=dict)

    def is_finished(self, window: int) -> bool:
        """Has this window been used up?"""
        return any(
            first <= window <= last and (window - first) % step == 0
            for first, last, step in self.finished
        )

    def finish(self, window: int) -> None:
        """Note that a window has been used up."""
        self.used.pop(window, None)
        first, last, step = self.finished[-1] if self.finished else (0, 0, 0)
        if self.finished and window > last and (first == last or window == last + step):
            self.finished[-1] = (first, window, window - last)
        else:
            self.finished.append((window, window, 1))

    def first_unfinished(self) -> int:
        """The lowest window that is not finished."""
        window = 0
        for first, last, step in sorted(self.finished):
            if first <= window and step == 1:
                window = max(window, last + 1)
        while self.is_finished(window):
            window += 1
        return window

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "finished": [list(entry) for entry in self.finished],
            "used": {str(w): n for w, n in self.used.items()},
        }

    @classmethod
    def merge(cls, states: list[dict[str, Any]]) -> StreamState:
        """The states of all ranks as one, which any number of ranks can go on from."""
        ranges = {tuple(entry) for state in states for entry in state["finished"]}
        whole = cls(sorted(ranges))
        low = whole.first_unfinished()
        above = {
            w for first, last, step in ranges for w in range(first, last + 1, step) if w >= low
        }
        merged = cls([(0, low - 1, 1)] if low else [])
        for window in sorted(above):
            merged.finish(window)
        for state in (
            states
        ):  # a rank that went on from a checkpoint still holds what the others had used by then
            for name, number in state["used"].items():
                if not merged.is_finished(window := int(name)):
                    merged.used[window] = max(number, merged.used.get(window, 0))
        return merged
