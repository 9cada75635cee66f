"""A Hugging Face hub for models on 127.0.0.1.

It answers what the real client asks for when it reads and writes models, and nothing else. Weights
are transferred by LFS, or by Xet if the hub has a store for it.

Tokens are the names of users: the bearer `alice` is alice, but `nobody` is a token that the hub
does not know. With `Faults` a test makes the hub misbehave: it cuts a body, replaces a header,
redirects elsewhere, or lets something happen between two requests.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit


if TYPE_CHECKING:
    from xet_store import XetStore


@dataclass
class Repo:
    """Commits are whole trees: path -> content."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    parents: dict[str, str | None] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    main: str = ""

    def commit(self, tree: dict[str, bytes]) -> str:
        # as in git, a commit is named by its content and its parent
        text = self.main
        for name, data in sorted(tree.items()):
            text += f" {name} {hashlib.sha256(data).hexdigest()}"
        oid = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self.commits[oid] = tree
        self.parents[oid] = self.main or None
        self.main = oid
        return oid

    def resolve(self, revision: str) -> str | None:
        oid = self.main if revision == "main" else self.tags.get(revision, revision)
        return oid if oid in self.commits else None


@dataclass
class Faults:
    """How the hub misbehaves; by default it does not."""

    cut_body_after: int | None = None
    """Close the connection after so many bytes of a file of weights."""
    cuts_left: int = 0
    """How often to do that."""
    headers: dict[str, str] = field(default_factory=dict)
    """Replace headers of every file."""
    redirect: str | None = None
    """Redirect every file to this address."""
    replace: dict[str, bytes] = field(default_factory=dict)
    """File name -> content to send instead."""
    before_commit: Callable[[], None] | None = None
    """Call this once, before the next commit."""
    blow_up: str | None = None
    """Send a compressed gigabyte for the file of this name, without its size."""
    status: int | None = None
    """Answer every request with this status."""


class Hub:
    """State and log of the server; `address` once it runs."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.log: list[str] = []
        # file name -> bytes of its bodies that were sent
        self.sent: dict[str, int] = {}
        self.faults = Faults()
        self.xet: XetStore | None = None
        # a false address of the store, for tests
        self.cas_address: str | None = None
        self.lock = threading.Lock()
        self.address = ""


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub without models."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
    )
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str = "", **extra: Any) -> None:
        self.status = status
        self.code = code
        self.extra = extra


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        byte_range = self.headers.get("Range", "")
        self.hub.log.append(f"{self.command} {path} {byte_range}".strip())
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            if self.hub.faults.status:
                raise _Refusal(self.hub.faults.status)
            for methods, pattern, answer in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in methods:
                    return answer(self, body, *match.groups())
            raise _Refusal(404)
        except _Refusal as refusal:
            headers = {}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            if "message" in refusal.extra:
                headers["X-Error-Message"] = refusal.extra.pop("message")
            return self._send(refusal.status, json.dumps(refusal.extra).encode(), headers)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    # --- who may do what

    def _user(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        if token == "nobody":
            raise _Refusal(401, message="Invalid credentials in Authorization header")
        return token

    def _repo(self, name: str, *, write: bool = False) -> Repo:
        user = self._user()
        repo = self.hub.repos.get(name)
        owner = name.partition("/")[0]
        if repo is None or (repo.private and user != owner):
            raise _Refusal(404 if user else 401, "RepoNotFound")
        if write and user != owner:
            raise _Refusal(403 if user else 401)
        return repo

    def _commit_of(self, repo: Repo, revision: str) -> str:
        oid = repo.resolve(revision)
        if oid is None:
            raise _Refusal(404, "RevisionNotFound")
        return oid

    # --- answers

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        user = self._user()
        owner = asked.get("organization") or user
        name = f"{owner}/{asked['name']}"
        if user is None or owner != user:
            raise _Refusal(403 if user else 401)
        with self.hub.lock:
            if name in self.hub.repos:
                raise _Refusal(409, url=f"{self.hub.address}/{name}")
            # older and newer clients say it differently
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            repo = Repo(private)
            repo.commit({".gitattributes": b"*.safetensors filter=lfs\n"})
            self.hub.repos[name] = repo
        self._json({"url": f"{self.hub.address}/{name}"})

    def validate_yaml(self, body: bytes) -> None:
        wrong = not json.loads(body)["content"].startswith("---\n")
        if wrong:
            raise _Refusal(400, errors=[{"message": "no metadata"}], warnings=[])
        self._json({"errors": [], "warnings": []})

    def preupload(self, body: bytes, name: str, _: str) -> None:
        tree = self._tree(self._repo(name, write=True))
        files = []
        for asked in json.loads(body)["files"]:
            path = asked["path"]
            mode = "lfs" if path.endswith(".safetensors") else "regular"
            entry = {"path": path, "uploadMode": mode, "shouldIgnore": False}
            # from this the client sees what it need not send again
            if path in tree:
                entry["oid"] = _oid(path, tree[path])
            files.append(entry)
        self._json({"files": files})

    def lfs_batch(self, body: bytes, name: str) -> None:
        self._repo(name, write=True)
        objects = []
        for entry in json.loads(body)["objects"]:
            # without an action the client knows that it need not send the file
            if entry["oid"] not in self.hub.lfs:
                address = f"{self.hub.address}/lfs/{entry['oid']}"
                entry["actions"] = {"upload": {"href": address}}
            objects.append(entry)
        self._json({"transfer": "basic", "objects": objects})

    def lfs_put(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Refusal(400)
        self.hub.lfs[oid] = body
        self._send(200, b"", {})

    def xet_token(self, _: bytes, name: str, kind: str, __: str) -> None:
        self._repo(name, write=kind == "write")
        if self.hub.xet is None:
            raise _Refusal(404)
        address = self.hub.cas_address or self.hub.xet.address
        body = json.dumps({"casUrl": address, "accessToken": "xet", "exp": 2_000_000_000})
        headers = {
            "Content-Type": "application/json",
            "X-Xet-Cas-Url": address,
            "X-Xet-Access-Token": "xet",
            "X-Xet-Token-Expiration": "2000000000",
        }
        self._send(200, body.encode(), headers)

    def commit(self, body: bytes, name: str, _: str) -> None:
        repo = self._repo(name, write=True)
        act = self.hub.faults.before_commit
        if act is not None:
            self.hub.faults.before_commit = None
            act()
        with self.hub.lock:
            tree = dict(self._tree(repo))
            for line in map(json.loads, body.splitlines()):
                kind, value = line["key"], line["value"]
                if kind == "header":
                    parent = value.get("parentCommit", repo.main)
                    if parent != repo.main:
                        raise _Refusal(412, error="the branch has moved")
                elif kind == "file":
                    tree[value["path"]] = base64.b64decode(value["content"])
                elif kind == "lfsFile":
                    tree[value["path"]] = self._stored(value["oid"])
                elif kind == "deletedFile":
                    del tree[value["path"]]
            oid = repo.commit(tree)
        self._json({"commitOid": oid, "commitUrl": f"{self.hub.address}/{name}/commit/{oid}"})

    def _stored(self, sha256: str) -> bytes:
        """Weights that were uploaded before the commit that names them."""
        if self.hub.xet is not None:
            return self.hub.xet.content(sha256)
        return self.hub.lfs[sha256]

    def info(self, _: bytes, name: str, revision: str | None = None) -> None:
        repo = self._repo(name)
        oid = self._commit_of(repo, revision or "main")
        siblings = [{"rfilename": path} for path in repo.commits[oid]]
        self._json(
            {
                "id": name,
                "sha": oid,
                "private": repo.private,
                "gated": False,
                "disabled": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "siblings": siblings,
            }
        )

    def refs(self, _: bytes, name: str) -> None:
        repo = self._repo(name)
        branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.main}
        tags = []
        for tag, oid in repo.tags.items():
            tags.append({"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": oid})
        self._json({"branches": [branch], "tags": tags, "converts": []})

    def tag(self, body: bytes, name: str, revision: str) -> None:
        repo = self._repo(name, write=True)
        tag = json.loads(body)["tag"]
        if tag in repo.tags:
            raise _Refusal(409)
        repo.tags[tag] = self._commit_of(repo, revision)
        self._send(200, b"", {})

    def file(self, _: bytes, name: str, revision: str, path: str) -> None:
        repo = self._repo(name)
        oid = self._commit_of(repo, revision)
        faults = self.hub.faults
        content = repo.commits[oid].get(path)
        if content is None:
            return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": oid})
        headers = {
            "ETag": f'"{_oid(path, content)}"',
            "X-Repo-Commit": oid,
            "Accept-Ranges": "bytes",
        }
        headers |= faults.headers
        if self.hub.xet and path.endswith(".safetensors"):
            token = f"{self.hub.address}/api/models/{name}/xet-read-token/{oid}"
            hash_of_xet, size = self.hub.xet.files[_oid(path, content)]
            headers |= {
                "X-Xet-Hash": hash_of_xet,
                "X-Linked-Size": str(size),
                "Link": f'<{token}>; rel="xet-auth"',
            }
        if faults.redirect:
            headers |= {
                "Location": faults.redirect,
                "X-Linked-Etag": headers["ETag"],
                "X-Linked-Size": str(len(content)),
            }
            return self._send(302, b"", headers)

        if path == faults.blow_up and self.command == "GET":
            return self._blow_up(headers)
        content = faults.replace.get(path, content)
        status = 200
        # the client asks for the rest of a file whose transfer was cut
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            first = int(asked[1])
            last = min(int(asked[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content = content[first : last + 1]
            status = 206
        is_cut = path.endswith(".safetensors") and faults.cuts_left
        cut = faults.cut_body_after if is_cut else None
        return self._send(status, content, headers, cut=cut, count_as=path)

    def _blow_up(self, headers: dict[str, str]) -> None:
        """A gigabyte of blanks, compressed to a megabyte."""
        self.send_response(200)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        packer = zlib.compressobj(wbits=31)
        block = b" " * (1 << 20)
        try:
            for _ in range(1024):
                self.wfile.write(packer.compress(block))
            self.wfile.write(packer.flush())
        except OSError:
            # the client has hung up
            return

    def _tree(self, repo: Repo) -> dict[str, bytes]:
        return repo.commits.get(repo.main, {})

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(
        self,
        status: int,
        content: bytes,
        headers: dict[str, str],
        cut: int | None = None,
        count_as: str | None = None,
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if cut is not None:
            self.hub.faults.cuts_left -= 1
            content = content[:cut]
            self.close_connection = True
        self.wfile.write(content)
        if count_as:
            self.hub.sent[count_as] = self.hub.sent.get(count_as, 0) + len(content)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


NAME = r"([\w.-]+/[\w.-]+)"
REVISION = r"([^/]+)"
# methods, pattern of the path, answer
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate_yaml),
    ("POST", f"/api/models/{NAME}/preupload/{REVISION}", _Handler.preupload),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/lfs/(\w+)", _Handler.lfs_put),
    ("POST", f"/api/models/{NAME}/commit/{REVISION}", _Handler.commit),
    ("GET", f"/api/models/{NAME}/xet-(read|write)-token/{REVISION}", _Handler.xet_token),
    ("GET", f"/api/models/{NAME}", _Handler.info),
    ("GET", f"/api/models/{NAME}/revision/{REVISION}", _Handler.info),
    ("GET", f"/api/models/{NAME}/refs", _Handler.refs),
    ("POST", f"/api/models/{NAME}/tag/{REVISION}", _Handler.tag),
    ("GET HEAD", f"/{NAME}/resolve/{REVISION}/(.+)", _Handler.file),
]


def _oid(path: str, content: bytes) -> str:
    """The hub's name for a content: sha256 for weights, which go by LFS, else git's blob hash."""
    if path.endswith(".safetensors"):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
