"""The reading half of a Hugging Face hub with one data set, on 127.0.0.1."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


COMMIT = "c0ffee" + "0" * 34


@contextmanager
def serve(
    name: str, folder: Path, revisions: tuple[str, ...] = ("main", COMMIT)
) -> Iterator[tuple[str, list[str]]]:
    """Address and request log of a hub that holds `folder` as the data set `name`."""
    log: list[str] = []

    class Handler(_Handler):
        pass

    Handler.name, Handler.folder, Handler.revisions, Handler.log = name, folder, revisions, log
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", log
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    name: str
    folder: Path
    revisions: tuple[str, ...]
    log: list[str]

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.log.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
        if match := re.fullmatch(rf"/datasets/{self.name}/resolve/([^/]+)/(.+)", path):
            return self._send_file(match[1], match[2])
        match = re.fullmatch(
            rf"/api/datasets/{self.name}(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?", path
        )
        if not match:
            return self._refuse("RepoNotFound")
        kind, revision, below = match.groups()
        if revision and revision not in self.revisions:
            return self._refuse("RevisionNotFound")
        if kind == "tree":
            return self._send_json(self._tree(below or "", "recursive" in url.query.lower()))
        if kind == "paths-info":
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length).decode()
            asked = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
            return self._send_json(
                [entry for entry in self._tree("", True) if entry["path"] in asked]
            )
        return self._send_json(
            {
                "id": self.name,
                "sha": COMMIT,
                "private": False,
                "gated": False,
                "disabled": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "lastModified": "2026-01-01T00:00:00.000Z",
                "siblings": [
                    {"rfilename": e["path"]} for e in self._tree("", True) if e["type"] == "file"
                ],
            }
        )

    do_HEAD = do_POST = do_GET

    def _tree(self, below: str, recursive: bool) -> list[dict]:
        top = self.folder / below
        entries = []
        for path in sorted(top.rglob("*") if recursive else top.glob("*")):
            name = path.relative_to(self.folder).as_posix()
            if path.is_dir():
                entries.append(
                    {"type": "directory", "path": name, "oid": _oid(name.encode()), "size": 0}
                )
            else:
                content = path.read_bytes()
                entries.append(
                    {"type": "file", "path": name, "oid": _oid(content), "size": len(content)}
                )
        return entries

    def _send_file(self, revision: str, name: str) -> None:
        if revision not in self.revisions:
            return self._refuse("RevisionNotFound")
        if not (self.folder / name).is_file():
            return self._refuse("EntryNotFound")
        content = (self.folder / name).read_bytes()
        headers = {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        status = 200
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(found[1]), min(int(found[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        return self._send(status, content, headers)

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, code: str) -> None:
        self._send(
            404,
            b"{}",
            {"X-Error-Code": code, "X-Repo-Commit": COMMIT, "Content-Type": "application/json"},
        )

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Quiet."""


def _oid(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()
