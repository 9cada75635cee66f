"""How long a call is repeated, on a clock that stands still between the tries."""

from __future__ import annotations

import pytest

from evenfield.core import storage
from evenfield.core.storage import retried


class Clock:
    """Time passes only in calls and in sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(storage, "time", found)
    return found


@pytest.mark.parametrize(
    ("seconds_of_try", "tries"),
    # the last one is a request that asks twice inside
    [(0.1, 3), (10.0, 2), (20.0, 1), (25.0, 1)],
)
def test_silent_server_is_not_asked_beyond_the_time_in_all(clock, seconds_of_try, tries):
    asked = []

    def ask() -> None:
        asked.append(clock.now)
        clock.now += seconds_of_try
        raise TimeoutError

    with pytest.raises(TimeoutError):
        retried(ask, seconds=storage.SMALL_FILE_SECONDS)
    assert len(asked) == tries
    assert clock.now <= storage.SMALL_FILE_SECONDS


def test_without_a_limit_long_tries_are_repeated(clock):
    answers = iter([TimeoutError(), TimeoutError(), 7])

    def download() -> int:
        clock.now += 1000.0
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert retried(download) == 7
