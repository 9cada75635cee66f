"""A hub that is a folder, on a disk or behind any address that fsspec knows, s3:// for instance.

    ROOT/owner/name/snapshots/REVISION/   the files of a model; the manifest is written last
    ROOT/owner/name/refs/NAME             the revision that a name stands for: main, or a tag

A revision is the hash of the manifest, so the same model published twice is one snapshot and no file ever changes.
What is not on this machine is fetched into the cache file by file; one that is there and right is not fetched again.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from ...core.files import write_atomically
from ..package.folder import folder_revision
from ..package.manifest import (
    MANIFEST,
    REFETCH,
    BadModelError,
    Manifest,
    is_weights,
    parse_manifest,
    read_verified,
)
from .remote import cache_folder, check_before_download


PIECE = 8 << 20
REVISION = re.compile(r"[A-Za-z0-9][\w.-]{0,99}", re.ASCII)


class FolderHub:
    """One root; what goes wrong on the way to it is a BadModelError that names it."""

    def __init__(self, root: Path | str) -> None:
        self.root = str(root)
        with self._reaching(self.root):
            self.fs, self.path = fsspec.url_to_fs(self.root)
        self.on_disk = self.fs.protocol == "file" or "file" in self.fs.protocol

    def publish(self, folder: Path, manifest: Manifest, repo: str, tag: str | None) -> str:
        """Put the files of a verified model folder up; returns the revision. A tag never moves."""
        revision = folder_revision(folder)
        if tag is not None and (there := self._read_ref(repo, tag)) not in (None, revision):
            raise BadModelError(
                f"{repo}@{tag}: the tag stands for {there} already: choose another one"
            )
        home = f"{self.path}/{repo}"
        with self._reaching(repo):
            if not self.fs.exists(f"{home}/snapshots/{revision}/{MANIFEST}"):
                for name in [*manifest.files, MANIFEST]:
                    self._put(f"{home}/snapshots/{revision}/{name}", (folder / name).read_bytes())
            for ref in filter(None, (tag, "main")):
                self._put(f"{home}/refs/{ref}", revision.encode())
        return revision

    def revision(self, repo: str, name: str | None) -> str:
        """The revision that main, a tag or a revision stands for; from the cache when the hub is out of reach."""
        wanted = name or "main"
        remembered = self._cache(repo) / "refs" / wanted
        try:
            found: str | None = self._read_ref(repo, wanted)
        except BadModelError:
            if not remembered.is_file():
                raise
            return remembered.read_text().strip()
        if (
            found is None
            and name
            and self._exists(f"{self.path}/{repo}/snapshots/{name}/{MANIFEST}")
        ):
            found = name
        if found is None:
            raise BadModelError(self._nothing(repo, name))
        if not self.on_disk:
            remembered.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(remembered, found)
        return found

    def fetch(self, repo: str, revision: str, *, force: bool = False) -> Path:
        """The folder of a snapshot: where it lies, or a copy in the cache that is verified as it comes."""
        there = f"{self.path}/{repo}/snapshots/{revision}"
        if self.on_disk:
            return Path(there)
        target = self._cache(repo) / "snapshots" / revision
        if (target / MANIFEST).is_file() and not force:
            return target
        where = f"{repo}@{revision}"
        with self._reaching(where):
            text = self.fs.cat_file(f"{there}/{MANIFEST}")
        if hashlib.sha256(text).hexdigest()[:16] != revision:
            raise BadModelError(
                f"{where}: its {MANIFEST} is another one than it was published with: do not use it"
            )
        manifest = parse_manifest(f"{where}/{MANIFEST}", text)
        target.mkdir(parents=True, exist_ok=True)
        with _progress(where, manifest) as advance:
            for name in sorted(
                manifest.files, key=lambda n: (n != "config.json", is_weights(n), n)
            ):
                self._get(f"{there}/{name}", target, name, manifest, advance, force=force)
                if name == "config.json":
                    check_before_download(where, manifest, (target / name).read_bytes())
        write_atomically(target / MANIFEST, text)
        return target

    def _get(
        self,
        there: str,
        target: Path,
        name: str,
        manifest: Manifest,
        advance: Progress | None,
        *,
        force: bool,
    ) -> None:
        entry, partial = manifest.files[name], target / f".{name}.part{os.getpid()}"
        if (target / name).is_file() and not force:
            try:
                read_verified(target, name, entry)
                return
            except BadModelError:
                (target / name).unlink()
        try:
            with (
                self._reaching(there),
                self.fs.open(there, "rb") as source,
                partial.open("wb") as copy,
            ):
                digest = hashlib.sha256()
                while piece := source.read(PIECE):
                    copy.write(piece)
                    digest.update(piece)
                    if entry.bytes is not None and copy.tell() > entry.bytes:
                        break
                    if advance is not None:
                        advance.advance(advance.task_ids[0], len(piece))
            if digest.hexdigest() != entry.sha256:
                raise BadModelError(
                    f"{there}: does not match its sha256 in {MANIFEST}, nothing was kept: {REFETCH}"
                )
            partial.replace(target / name)
        finally:
            partial.unlink(missing_ok=True)

    def _put(self, there: str, data: bytes) -> None:
        if self.on_disk:
            Path(there).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(Path(there), data)
        else:
            self.fs.pipe_file(there, data)  # an object appears whole or not at all

    def _exists(self, there: str) -> bool:
        with self._reaching(there):
            return self.fs.exists(there)

    def _read_ref(self, repo: str, name: str) -> str | None:
        path = f"{self.path}/{repo}/refs/{name}"
        with self._reaching(repo):
            self.fs.invalidate_cache()
            revision = (
                self.fs.cat_file(path).decode("ascii", "replace").strip()
                if self.fs.exists(path)
                else None
            )
        if revision is not None and not REVISION.fullmatch(revision):
            raise BadModelError(
                f"{path}: is damaged, it names no revision: publish the model again"
            )
        return revision

    def _nothing(self, repo: str, name: str | None) -> str:
        with self._reaching(repo):
            home = f"{self.path}/{repo}/snapshots"
            known = (
                [p.rpartition("/")[2] for p in self.fs.ls(home, detail=False)]
                if self.fs.exists(home)
                else []
            )
        if not known:
            return f"{repo}: no such model in the folder hub {self.root}"
        return f"{repo}@{name}: no revision {name} in the folder hub {self.root}; it has: {', '.join(sorted(known))}"

    def _cache(self, repo: str) -> Path:
        return cache_folder() / hashlib.sha256(self.root.encode()).hexdigest()[:12] / repo

    @contextmanager
    def _reaching(self, what: str) -> Iterator[None]:
        """Whatever a storage library raises becomes one line."""
        try:
            yield
        except BadModelError:
            raise
        except Exception as error:
            said = " ".join(str(error).split())[:300] or type(error).__name__
            raise BadModelError(
                f"{what}: the folder hub {self.root} cannot be used ({said}): check its name, the network and your "
                "credentials"
            ) from None


@contextmanager
def _progress(where: str, manifest: Manifest) -> Iterator[Progress | None]:
    """A bar for a download that takes a while."""
    total = sum(entry.bytes or 0 for entry in manifest.files.values())
    if total < PIECE:
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, transient=True) as bar:
        bar.add_task(f"fetching {where}", total=total)
        yield bar
