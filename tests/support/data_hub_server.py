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
    # a class of its own: several hubs may run at a time, and http.server makes the objects itself
    attributes = {"name": name, "folder": folder, "revisions": revisions, "log": log}
    handler = type("Handler", (_Handler,), attributes)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
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

        file = re.fullmatch(rf"/datasets/{self.name}/resolve/([^/]+)/(.+)", path)
        if file:
            return self._send_file(file[1], file[2])

        about = rf"/api/datasets/{self.name}(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?"
        match = re.fullmatch(about, path)
        if not match:
            return self._refuse("RepoNotFound")
        kind, revision, below = match.groups()
        if revision and revision not in self.revisions:
            return self._refuse("RevisionNotFound")
        if kind == "tree":
            is_recursive = "recursive" in url.query.lower()
            return self._send_json(self._tree(below or "", is_recursive))
        if kind == "paths-info":
            asked = self._asked_paths()
            everything = self._tree("", True)
            return self._send_json([entry for entry in everything if entry["path"] in asked])
        return self._send_json(self._info())

    do_HEAD = do_POST = do_GET

    def _asked_paths(self) -> list[str]:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length).decode()
        # versions of the client differ in how they send a list
        if body.startswith("{"):
            return json.loads(body)["paths"]
        return parse_qs(body)["paths"]

    def _info(self) -> dict[str, object]:
        siblings = []
        for entry in self._tree("", True):
            if entry["type"] == "file":
                siblings.append({"rfilename": entry["path"]})
        return {
            "id": self.name,
            "sha": COMMIT,
            "private": False,
            "gated": False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "lastModified": "2026-01-01T00:00:00.000Z",
            "siblings": siblings,
        }

    def _tree(self, below: str, recursive: bool) -> list[dict]:
        top = self.folder / below
        entries = []
        found = top.rglob("*") if recursive else top.glob("*")
        for path in sorted(found):
            name = path.relative_to(self.folder).as_posix()
            if path.is_dir():
                kind, oid, size = "directory", _oid(name.encode()), 0
            else:
                content = path.read_bytes()
                kind, oid, size = "file", _oid(content), len(content)
            entries.append({"type": kind, "path": name, "oid": oid, "size": size})
        return entries

    def _send_file(self, revision: str, name: str) -> None:
        if revision not in self.revisions:
            return self._refuse("RevisionNotFound")
        if not (self.folder / name).is_file():
            return self._refuse("EntryNotFound")
        content = (self.folder / name).read_bytes()
        headers = {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        status = 200
        # Parquet is read by its footer and then by columns, so most requests ask for a range
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            first = int(asked[1])
            last = min(int(asked[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content = content[first : last + 1]
            status = 206
        return self._send(status, content, headers)

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, code: str) -> None:
        headers = {
            "X-Error-Code": code,
            "X-Repo-Commit": COMMIT,
            "Content-Type": "application/json",
        }
        self._send(404, b"{}", headers)

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
