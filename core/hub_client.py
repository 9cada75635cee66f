"""Patience with the Hugging Face hub: its client tries a silent server for minutes.

The client has limits for single requests, which differ, and repeats them up to six times.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from .storage import SILENCE


# After a silence of so many times the limit of one request no further one is made: a server gets
# two of them.
MOST_SILENCE = 1.5
# what tells of each failed try, and of what the server wants to say
LOGGER = "huggingface_hub.utils._http"
PHASES = ("connect", "read", "write", "pool")


@dataclass
class Patience:
    """How it ended."""

    silence: str | None = None
    """What to tell about a hub that was given up, whatever libraries made of the error."""


@contextmanager
def limited_patience(seconds: float = SILENCE) -> Iterator[Patience]:
    """Bound how long the client waits inside the block, for one answer and in all.

    seconds: without a byte, for one request. Limits that a user set in HF_HUB_DOWNLOAD_TIMEOUT or
    HF_HUB_ETAG_TIMEOUT count if they are longer.

    Each answer gives new patience, so that large files may take as long as they need. The client
    logs no tries: if none succeeds, an error says so once.
    """
    # slow to import, and most models and data are local
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import OfflineModeIsEnabled

    class SilentHubError(OfflineModeIsEnabled):
        """The client treats it as a hub that is switched off: no further try, and the cache."""

    longest = max(seconds, constants.HF_HUB_DOWNLOAD_TIMEOUT, constants.HF_HUB_ETAG_TIMEOUT)
    patience = Patience()
    waiting_since: float | None = None

    def before(request: Any) -> None:
        nonlocal waiting_since
        now = time.monotonic()
        if waiting_since is None:
            waiting_since = now
        elif now - waiting_since > MOST_SILENCE * longest:
            patience.silence = f"no answer within {now - waiting_since:.0f} s"
            raise SilentHubError(patience.silence)
        limits = dict(request.extensions.get("timeout") or {})
        for phase in PHASES:
            given = limits.get(phase)
            limits[phase] = longest if given is None else min(given, longest)
        request.extensions["timeout"] = limits

    def after(response: Any) -> None:
        nonlocal waiting_since
        waiting_since = None

    # the lists are changed in place: other threads may have their own functions in them
    hooks = get_session().event_hooks
    hooks["request"].append(before)
    hooks["response"].append(after)
    try:
        with _quiet_retries():
            yield patience
    finally:
        hooks["request"].remove(before)
        hooks["response"].remove(after)


@contextmanager
def _quiet_retries() -> Iterator[None]:
    """Drop the client's warnings about failed tries inside the block, in this thread alone.

    Log levels belong to the whole process, and therefore to the caller.
    """
    own_thread = threading.get_ident()

    def is_shown(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or record.thread != own_thread

    logger = logging.getLogger(LOGGER)
    logger.addFilter(is_shown)
    try:
        yield
    finally:
        logger.removeFilter(is_shown)
