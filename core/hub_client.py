"""A limit on how long the Hugging Face client waits for a silent hub.

The client has various time limits for single requests, and repeats requests up to six times. With a
silent server, this takes minutes.
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


# No further request is made after a silence of this many times the limit of one request. So a
# server gets two requests.
MOST_SILENCE = 1.5
# logger that reports each failed attempt, and messages from the server
LOGGER = "huggingface_hub.utils._http"
PHASES = ("connect", "read", "write", "pool")


@dataclass
class Patience:
    """The outcome of a block under `limited_patience`."""

    silence: str | None = None
    """The reason if the hub was given up, whatever error the libraries raised; None otherwise."""


@contextmanager
def limited_patience(seconds: float = SILENCE) -> Iterator[Patience]:
    """Limit how long the Hugging Face client waits inside the block, per request and in total.

    seconds: time without a byte from the server, for one request. If the user has set a longer
        limit in HF_HUB_DOWNLOAD_TIMEOUT or HF_HUB_ETAG_TIMEOUT, it is used instead.

    The total limit starts again with each answer, so large files may take as long as they need.
    Failed attempts are not logged; if none succeeds, a single error is raised.
    """
    # slow to import, and most models and data are local
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import OfflineModeIsEnabled

    class SilentHubError(OfflineModeIsEnabled):
        """Makes the client behave as if it were offline: it stops trying and uses the cache."""

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

    # the lists are changed in place, because other threads may have added their own functions
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
    """Drop the client's warnings about failed attempts inside the block, only in this thread.

    A filter is used, because a log level would apply to the whole process.
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
