"""A signal asks a run to save and stop; the ranks agree on it at the end of a step. Imports nothing heavy.

The command listens before it imports torch, so that a signal in the first seconds is not the death of a rank.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


ASKING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@dataclass
class StopRequest:
    """Which signal asked, empty while none did; also a callback may ask."""

    by: str = ""


@contextmanager
def listening(stop: StopRequest) -> Iterator[None]:
    """SIGTERM, SIGUSR1 and Ctrl-C ask for a stop; the handlers of before come back at the end.

    Any number of SIGTERM and SIGUSR1 asks once, so that a scheduler may repeat itself; a second Ctrl-C acts at once.
    """

    def ask(number: int, frame: object) -> None:
        name = signal.Signals(number).name
        if not stop.by:
            os.write(2, f"{name}: saving and stopping at the end of this step\n".encode())
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.by = stop.by or name

    try:
        before = {number: signal.signal(number, ask) for number in ASKING}
    except ValueError:  # not in the main thread: whoever owns it owns the signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
