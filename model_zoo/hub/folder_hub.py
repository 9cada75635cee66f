"""A hub that is a folder, on a disk or behind an address that fsspec knows, s3:// for instance.

    ROOT/owner/name/snapshots/REVISION/   the files of a model; the manifest is written last
    ROOT/owner/name/refs/NAME             the revision of a name: main, or a tag

A revision is the hash of the manifest. Publishing the same model twice therefore makes one
snapshot, and no published file ever changes.

Models behind an address are downloaded into the cache, file by file. A file that is in the cache
with the right hash is not downloaded again.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
from fsspec.utils import get_protocol
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from ...core.errors import EvenfieldError, MissingPackageError
from ...core.files import file_errors, write_atomically
from ..package.folder import folder_revision
from ..package.manifest import (
    MANIFEST,
    BadModelError,
    FileEntry,
    Manifest,
    parse_manifest,
    read_verified,
)
from ..package.weights import one_line
from .remote import BUGS, HubError, cache_folder, check_before_download, download_order


# bytes that are read at once; downloads smaller than this show no progress bar
CHUNK = 8 << 20
REVISION = re.compile(r"[A-Za-z0-9][\w.-]{0,99}", re.ASCII)
# the extra that installs the storage library of a protocol; fsspec knows more protocols than these
EXTRAS = {"s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3")}

Advance = Callable[[int], None]  # takes the number of bytes that have arrived


class FolderHub:
    """The models below one root.

    Methods raise HubError when the root cannot be used or holds no such model, BadModelError when
    a model on it is damaged.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = str(root)
        with self._storage_errors(self.root):
            self.fs, self.path = fsspec.url_to_fs(self.root)
        # models on a disk are read where they are, without a copy in the cache
        self.on_disk = self.fs.protocol == "file" or "file" in self.fs.protocol

    # --- publishing

    def publish(self, folder: Path, manifest: Manifest, repo: str, tag: str | None) -> str:
        """Upload the files of a verified model folder; returns the revision. A tag never moves."""
        revision = folder_revision(folder)
        if tag is not None:
            tagged = self._read_ref(repo, tag)
            if tagged not in (None, revision):
                raise HubError(
                    f"the tag already names revision {tagged}",
                    file=f"{repo}@{tag}",
                    remedy="choose another tag",
                )

        snapshot = self._snapshot(repo, revision)
        if not self._exists(f"{snapshot}/{MANIFEST}"):
            # the manifest comes last: a snapshot without one is unfinished, and is never read
            for name in [*manifest.files, MANIFEST]:
                with file_errors(folder / name):
                    data = (folder / name).read_bytes()
                self._upload(repo, f"{snapshot}/{name}", data)

        # main comes last: it never names a snapshot whose tag could not be set
        names = ["main"] if tag is None else [tag, "main"]
        for name in names:
            self._upload(repo, self._ref(repo, name), revision.encode())
        return revision

    # --- loading

    def revision(self, repo: str, name: str | None) -> str:
        """The revision that main, a tag or a revision names.

        When the hub cannot be reached, it is the revision that the name had the last time.
        """
        wanted = name or "main"
        # so that a model that was loaded once also loads without the network
        remembered = self._cache(repo) / "refs" / wanted
        try:
            found = self._read_ref(repo, wanted)
        except HubError:
            with file_errors(remembered):
                if not remembered.is_file():
                    raise
                return remembered.read_text().strip()

        if found is None and name and self._exists(f"{self._snapshot(repo, name)}/{MANIFEST}"):
            # the name is itself a revision
            found = name
        if found is None:
            raise self._not_found(repo, name)

        if not self.on_disk:
            with file_errors(remembered):
                remembered.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(remembered, found)
        return found

    def fetch(self, repo: str, revision: str, *, force: bool = False) -> Path:
        """The folder of a snapshot: itself on a disk, else a verified copy in the cache.

        `force` downloads again what the cache holds.
        """
        snapshot = self._snapshot(repo, revision)
        if self.on_disk:
            return Path(snapshot)
        target = self._cache(repo) / "snapshots" / revision
        with file_errors(target):
            # the manifest is written last, so with it the copy is complete
            if (target / MANIFEST).is_file() and not force:
                return target

        where = f"{repo}@{revision}"
        with self._storage_errors(where):
            text = self.fs.cat_file(f"{snapshot}/{MANIFEST}")
        if hashlib.sha256(text).hexdigest()[:16] != revision:
            raise BadModelError(
                f"{MANIFEST} is not the one that was published",
                file=where,
                remedy="do not use this model",
            )
        manifest = parse_manifest(f"{where}/{MANIFEST}", text)

        with file_errors(target), _progress(where, manifest) as advance:
            target.mkdir(parents=True, exist_ok=True)
            for name in download_order(manifest):
                entry = manifest.files[name]
                if force or not self._is_cached(target, name, entry):
                    self._download(f"{snapshot}/{name}", target / name, entry, advance)
                if name == "config.json":
                    check_before_download(where, manifest, (target / name).read_bytes())
            # last, as on the hub: a copy that was interrupted is continued the next time
            write_atomically(target / MANIFEST, text)
        return target

    def _is_cached(self, folder: Path, name: str, entry: FileEntry) -> bool:
        """Whether the cache holds the file with the right hash; a wrong one is deleted."""
        if not (folder / name).is_file():
            return False
        try:
            read_verified(folder, name, entry)
        except BadModelError:
            (folder / name).unlink()
            return False
        return True

    def _download(self, source: str, target: Path, entry: FileEntry, advance: Advance) -> None:
        """Copy a file under a temporary name; it gets its own only if its hash is right."""
        partial = target.with_name(f".{target.name}.part{os.getpid()}")
        # hashed while it arrives: large weights are not read a second time
        digest = hashlib.sha256()
        try:
            with self._storage_errors(source):
                remote = self.fs.open(source, "rb")
            with remote, partial.open("wb") as local:
                while True:
                    # only reading can fail because of the hub; writing fails because of this disk
                    with self._storage_errors(source):
                        chunk = remote.read(CHUNK)
                    if not chunk:
                        break
                    local.write(chunk)
                    digest.update(chunk)
                    advance(len(chunk))
                    # more bytes than stated: it cannot be right any more, and may have no end
                    if entry.bytes is not None and local.tell() > entry.bytes:
                        break
            if digest.hexdigest() != entry.sha256:
                raise BadModelError(
                    f"does not match its sha256 in {MANIFEST}, nothing was kept",
                    file=source,
                    remedy="download the model again, or publish it again if that does not help",
                )
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    # --- files of the hub

    def _snapshot(self, repo: str, revision: str) -> str:
        return f"{self.path}/{repo}/snapshots/{revision}"

    def _ref(self, repo: str, name: str) -> str:
        return f"{self.path}/{repo}/refs/{name}"

    def _cache(self, repo: str) -> Path:
        """Where this hub's models are kept; hubs with equal names of models do not mix."""
        root_hash = hashlib.sha256(self.root.encode()).hexdigest()[:12]
        return cache_folder() / root_hash / repo

    def _upload(self, repo: str, path: str, data: bytes) -> None:
        with self._storage_errors(repo):
            if self.on_disk:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                write_atomically(Path(path), data)
            else:
                # an object of a store appears whole or not at all
                self.fs.pipe_file(path, data)

    def _exists(self, path: str) -> bool:
        with self._storage_errors(path):
            return self.fs.exists(path)

    def _read_ref(self, repo: str, name: str) -> str | None:
        """The revision that a name stands for; None when there is no such name."""
        path = self._ref(repo, name)
        with self._storage_errors(repo):
            # fsspec caches listings, and somebody else may have published in the meantime
            self.fs.invalidate_cache()
            if not self.fs.exists(path):
                return None
            revision = self.fs.cat_file(path).decode("ascii", "replace").strip()
        if not REVISION.fullmatch(revision):
            raise HubError(
                "is damaged, it does not contain a revision",
                file=path,
                remedy="publish the model again",
            )
        return revision

    def _not_found(self, repo: str, name: str | None) -> HubError:
        """The error for a missing model or revision; it lists the revisions that exist."""
        snapshots = f"{self.path}/{repo}/snapshots"
        with self._storage_errors(repo):
            paths = self.fs.ls(snapshots, detail=False) if self.fs.exists(snapshots) else []
        if not paths:
            return HubError(f"no such model in the folder hub {self.root}", file=repo)
        known = sorted(path.rpartition("/")[2] for path in paths)
        return HubError(
            f"no revision {name} in the folder hub {self.root}",
            file=f"{repo}@{name}",
            remedy=f"it has: {', '.join(known)}",
        )

    @contextmanager
    def _storage_errors(self, where: str) -> Iterator[None]:
        """Turn what a storage library raises into a HubError about `where`."""
        try:
            yield
        except (EvenfieldError, *BUGS):
            raise
        except ImportError as error:
            protocol = get_protocol(self.root)
            if protocol in EXTRAS:
                package, extra = EXTRAS[protocol]
                needed_for = f"the folder hub {self.root}"
                raise MissingPackageError(package, needed_for=needed_for, extra=extra) from error
            raise HubError(
                f"the folder hub needs another package ({one_line(error)})", file=self.root
            ) from error
        except Exception as error:
            raise HubError(
                f"the folder hub {self.root} cannot be used ({one_line(error, 300)})",
                file=where,
                remedy="check its address, the network and your credentials",
            ) from error


@contextmanager
def _progress(where: str, manifest: Manifest) -> Iterator[Advance]:
    """A progress bar for a download that takes a while; yields what to call with new bytes."""
    total = sum(entry.bytes or 0 for entry in manifest.files.values())
    if total < CHUNK:
        yield lambda num_bytes: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task(f"downloading {where}", total=total)
        yield lambda num_bytes: bar.advance(task, num_bytes)
