"""A signal asks a run to save and stop; the ranks agree on it at the end of a step.

This module imports nothing heavy: the command listens before it imports torch, because a signal in
those seconds would otherwise kill a rank.
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
    """Who asked the run to stop: the name of a signal, or what a callback wrote; "" for nobody."""

    by: str = ""


@contextmanager
def listening(stop: StopRequest) -> Iterator[None]:
    """Inside the block SIGTERM, SIGUSR1 and Ctrl-C ask for a stop; afterwards the old handlers act.

    SIGTERM and SIGUSR1 may come repeatedly, as schedulers send them, and count once. A second
    Ctrl-C interrupts immediately.
    """

    def ask(number: int, frame: object) -> None:
        name = signal.Signals(number).name
        if not stop.by:
            # os.write, because print is not safe in a signal handler
            os.write(2, f"{name}: saving and stopping at the end of this step\n".encode())
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.by = stop.by or name

    try:
        before = {number: signal.signal(number, ask) for number in ASKING}
    except ValueError:
        # Python allows handlers in the main thread only: whoever owns it handles the signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
