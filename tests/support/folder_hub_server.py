"""A folder hub behind http:// on 127.0.0.1, whose answers a test can bend."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class FolderServer:
    """A folder and how it is served; by default as it is."""

    folder: Path
    address: str = ""
    # path -> requests for it
    requests: dict[str, int] = field(default_factory=dict)
    # answer with this status, so many times
    status: int | None = None
    refusals_left: int = 0
    # say nothing at all
    is_silent: bool = False
    # paths that end like this are sent without an end, without their size
    endless: str | None = None
    # compress files, whatever the client asks for
    compresses: bool = False
    # send headers without an end, a few bytes at a time
    drips: bool = False
    # bytes that were sent of endless files
    endless_bytes: int = 0
    stop: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serve_folder(folder: Path) -> Iterator[FolderServer]:
    """Serve the files below a folder; a folder itself has no page."""
    state = FolderServer(folder)
    handler = type("Handler", (_Handler,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    # or the end of the test waits for a handler that sends without an end
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    state.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        state.stop.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: FolderServer

    def do_GET(self) -> None:
        state = self.state
        path = unquote(urlsplit(self.path).path)
        state.requests[path] = state.requests.get(path, 0) + 1
        if state.is_silent:
            state.stop.wait(60)
            return
        if state.status is not None and state.refusals_left != 0:
            state.refusals_left -= 1
            self._answer(state.status, b"")
            return

        if state.drips:
            self._drip()
            return

        file = state.folder / path.lstrip("/")
        if state.endless is not None and path.endswith(state.endless):
            self._send_without_end()
        elif not file.is_file():
            self._answer(404, b"")
        else:
            self._answer(200, file.read_bytes())

    do_HEAD = do_GET

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        if self.state.compresses:
            content = gzip.compress(content)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def _drip(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        number = 0
        while not self.state.stop.wait(0.05):
            number += 1
            try:
                self.wfile.write(b"X-%d: 1\r\n" % number)
            except OSError:
                return

    def _send_without_end(self) -> None:
        self.send_response(200)
        self.end_headers()
        block = b" " * (1 << 20)
        while not self.state.stop.is_set():
            try:
                self.wfile.write(block)
            except OSError:
                # the client has hung up, as it should
                return
            self.state.endless_bytes += len(block)

    def log_message(self, *_: object) -> None:
        """Print nothing."""
