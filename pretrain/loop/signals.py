"""Signals that ask a run to save and stop. The ranks agree on it at the end of a step.

This module has no heavy imports. The command listens for signals before it imports torch, because a
signal in those seconds would otherwise kill a rank.
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
    """A request to stop the run. `by` names the signal or callback; "" means no request."""

    by: str = ""


@contextmanager
def listening(stop: StopRequest) -> Iterator[None]:
    """Inside the block, SIGTERM, SIGUSR1 and Ctrl-C ask for a stop; then old handlers return.

    Repeated SIGTERM and SIGUSR1, which schedulers may send, count once. A second Ctrl-C interrupts
    immediately.
    """

    def ask(number: int, frame: object) -> None:
        name = signal.Signals(number).name
        if not stop.by:
            # os.write, because print is not safe in signal handlers
            os.write(2, f"{name}: saving and stopping at the end of this step\n".encode())
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.by = stop.by or name

    try:
        before = {number: signal.signal(number, ask) for number in ASKING}
    except ValueError:
        # Python allows signal handlers only in the main thread, whose owner handles them
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
