"""A hub that takes connections and says nothing is asked twice, and then given up."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from huggingface_hub import constants, get_session
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import http_backoff

from evenfield.core.hub_client import limited_patience


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    """Limits of the client that a test can wait for, and a client that may ask."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.1)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@contextmanager
def silent_server() -> Iterator[tuple[str, list[socket.socket]]]:
    """Address, and the connections that were taken."""
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def take() -> None:
            while True:
                try:
                    taken.append(listening.accept()[0])
                except OSError:
                    return

        threading.Thread(target=take, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", taken
        listening.shutdown(socket.SHUT_RDWR)
    for connection in taken:
        connection.close()


def test_a_silent_server_is_given_up():
    with silent_server() as (address, taken):
        with limited_patience(0.2), pytest.raises(OfflineModeIsEnabled, match="no answer within"):
            # the client itself would try six times, without a limit for any of them
            http_backoff("GET", address, base_wait_time=0.2, max_wait_time=0.2, timeout=None)
        assert 1 <= len(taken) <= 3


def test_the_silence_is_told_whatever_libraries_make_of_it():
    with silent_server() as (address, _), limited_patience(0.2) as patience:
        assert patience.silence is None
        with pytest.raises(ValueError, match="no such data set"):
            try:
                http_backoff("GET", address, base_wait_time=0.2, max_wait_time=0.2)
            except OfflineModeIsEnabled:
                raise ValueError("no such data set") from None
        assert "no answer within" in (patience.silence or "")


def test_answers_give_new_patience_and_nothing_is_left_behind():
    class Busy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(503)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    before = [list(hooks) for hooks in get_session().event_hooks.values()]
    with HTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        with limited_patience(0.2):
            # longer than the patience for a server that says nothing
            answer = get_session().get(address)
            for _ in range(4):
                answer = get_session().get(address)
        assert answer.status_code == 503
        server.shutdown()
    assert [list(hooks) for hooks in get_session().event_hooks.values()] == before


def test_failed_tries_are_not_logged_and_logging_is_as_before():
    told = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    logger = logging.getLogger(http_backoff.__module__)
    listener, level, filters = Listener(), logger.level, list(logger.filters)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"

    def ask() -> None:
        # nobody listens there any more
        with pytest.raises(Exception, match="refused"):
            http_backoff("GET", address, max_retries=1, base_wait_time=0, max_wait_time=0)

    logger.addHandler(listener)
    try:
        with limited_patience(0.2):
            ask()
            assert told == []
            # the caller's other threads are none of our business
            other = threading.Thread(target=ask)
            other.start()
            other.join()
            assert any("Retrying" in text for text in told)
        told.clear()
        ask()
        assert any("Retrying" in text for text in told)
    finally:
        logger.removeHandler(listener)
    assert (logger.level, logger.filters) == (level, filters)
