"""A hub in a folder, on a disk or at an address that fsspec supports, such as s3://.

    ROOT/owner/name/snapshots/REVISION/   the files of a model; the manifest is written last
    ROOT/owner/name/refs/NAME             the revision that NAME refers to: main, or a tag

A revision is the hash of the manifest. Publishing the same model twice therefore makes a single
snapshot, and published files never change. The revision is recomputed at every load, and a folder
whose content does not match its name is refused.

Models at a remote address are downloaded into the cache, file by file. Files that are already in
the cache with the right hash are not downloaded again. A revision that is completely in the cache
is loaded without contacting the hub.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fsspec.utils import get_protocol
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

from ...core.addresses import without_secrets
from ...core.errors import EvenfieldError, MissingPackageError
from ...core.files import DISK_REMEDIES, FileError, file_errors, whole_file, write_atomically
from ...core.rich_console import PlainColumn
from ...core.storage import (
    TooLargeError,
    TooSlowError,
    chunks,
    file_system,
    is_temporary,
    is_web_address,
    opened,
    read_small_file,
    reason_of,
    retried,
    seconds_for,
)
from ..package.folder import folder_revision
from ..package.manifest import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    BadModelError,
    FileEntry,
    Manifest,
    parse_manifest,
    read_manifest,
    read_verified,
    revision_of,
)
from .remote import (
    BUGS,
    REVISION,
    HubError,
    UnreachableHubError,
    cache_folder,
    cache_of_this_process,
    check_before_download,
    download_order,
    size_limit,
    too_large,
)


# bytes per read; smaller downloads show no progress bar
CHUNK = 8 << 20
# protocol -> its storage library, and the extra that installs it; fsspec supports more protocols
EXTRAS = {"s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3")}

# a ref holds a revision and perhaps a newline
MAX_REF_BYTES = 1000
# older temporary files are no longer being written
LEFTOVER_SECONDS = 3600.0

Advance = Callable[[int], None]  # takes the number of bytes that have arrived


class DamagedRefError(HubError):
    """A ref on a hub does not contain a revision."""


class FolderHub:
    """The models under one root.

    Methods raise HubError if the root cannot be used or has no such model, its subclass
    UnreachableHubError if the root does not answer, and BadModelError if a model is damaged.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = str(root)
        self.on_disk = False  # until the file system is known
        with self._storage_errors(self.root):
            self.fs, self.path = file_system(self.root)
        # models on a disk are read in place, without a copy in the cache
        self.on_disk = self.fs.protocol == "file" or "file" in self.fs.protocol

    # --- publishing

    def publish(self, folder: Path, manifest: Manifest, repo: str, tag: str | None) -> str:
        """Upload the files of a verified model folder; returns the revision.

        Raises HubError if `tag` already names another revision: tags never move.
        """
        self._refuse_links(repo)
        revision = folder_revision(folder)
        if tag is not None:
            # checked before the upload, which may take long
            self._check_tag_is_free(repo, tag, revision)

        if self.on_disk:
            # a folder in place of the ref main is reported now, not after the upload
            with suppress(DamagedRefError):
                self._read_ref(repo, "main")
        self._upload_model(folder, manifest, repo, revision)
        if tag is not None:
            self._claim_tag(repo, tag, revision)
        # main comes last, so it never names a snapshot whose tag could not be set
        self._upload(repo, self._ref(repo, "main"), revision.encode())
        return revision

    def _upload_model(self, folder: Path, manifest: Manifest, repo: str, revision: str) -> None:
        """Write all files of a snapshot, and replace any wrong files in their place."""
        snapshot = self._snapshot(repo, revision)
        if self.on_disk and (Path(snapshot).is_symlink() or Path(snapshot).is_file()):
            # A file cannot hold a model, and a link would lead to a folder outside the hub.
            with file_errors(snapshot):
                Path(snapshot).unlink()

        # the manifest comes last, because a snapshot without the right one is never read
        for name, entry in manifest.files.items():
            if not self._holds(snapshot, name, entry):
                content = read_verified(folder, name, entry)
                self._upload(repo, f"{snapshot}/{name}", content)
        with file_errors(folder / MANIFEST):
            content = (folder / MANIFEST).read_bytes()
        self._upload(repo, f"{snapshot}/{MANIFEST}", content)
        if self.on_disk:
            _remove_leftovers(Path(snapshot))

    def _holds(self, snapshot: str, name: str, entry: FileEntry) -> bool:
        """Whether a hub on disk already has the right file.

        The answer is False for remote hubs, where uploading is cheaper than checking.
        """
        if not self.on_disk or (Path(snapshot) / name).is_symlink():
            return False
        try:
            read_verified(Path(snapshot), name, entry)
        except (BadModelError, FileError):
            return False
        return True

    def _check_tag_is_free(self, repo: str, tag: str, revision: str) -> None:
        tagged = self._tagged(repo, tag)
        if tagged not in (None, revision):
            raise HubError(
                f"the tag already names revision {tagged}",
                file=f"{repo}@{tag}",
                remedy="choose another tag",
            )

    def _claim_tag(self, repo: str, tag: str, revision: str) -> None:
        """Set a tag. If two publishers set it at the same moment, one of them gets HubError."""
        path = self._ref(repo, tag)
        try:
            self._create(repo, path, revision.encode())
        except UnreachableHubError:
            # Most stores support creating a file only if it does not exist. If the store does not
            # support this, or if the file exists, the check below decides.
            if self._tagged(repo, tag) is None:
                self._upload(repo, path, revision.encode())
        self._check_tag_is_free(repo, tag, revision)

    def _tagged(self, repo: str, tag: str) -> str | None:
        """The revision of a tag; None if the tag is free, or damaged and to be replaced."""
        try:
            return self._read_ref(repo, tag)
        except DamagedRefError:
            return None

    def _create(self, repo: str, path: str, data: bytes) -> None:
        """Write a new file; raises UnreachableHubError if it already exists."""
        with self._storage_errors(repo):
            if self.on_disk:
                _create_file(Path(path), data)
            else:
                self.fs.pipe_file(path, data, mode="create")

    # --- loading

    def revision(self, repo: str, name: str | None) -> str:
        """The revision that `name` refers to: a tag, a revision, or None for main.

        If the hub cannot be reached, the last known revision of the name is used.
        """
        self._refuse_links(repo)
        wanted = name or "main"
        if REVISION.fullmatch(wanted):
            # never interpreted as a tag, which could name another revision
            return self._stated_revision(repo, wanted)

        # lets a model that was loaded before also load without the network
        remembered = self._cache(repo) / "refs" / wanted
        try:
            found = self._read_ref(repo, wanted)
        except UnreachableHubError:
            last = _read_remembered(remembered)
            if last is None:
                raise
            return last

        if found is None:
            raise self._not_found(repo, name)
        if not self.on_disk:
            # optional: a cache that cannot be written must not stop the load
            with suppress(OSError):
                remembered.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(remembered, found)
        return found

    def _stated_revision(self, repo: str, revision: str) -> str:
        """Return `revision` if the hub or the cache has it, else raise HubError."""
        if not self.on_disk and self._is_cached(repo, revision):
            # a revision always means the same bytes, so the hub need not be contacted
            return revision
        if not self._has_snapshot(repo, revision):
            raise self._not_found(repo, revision)
        return revision

    def fetch(self, repo: str, revision: str, *, force: bool = False) -> Path:
        """The folder of a snapshot: in place on a disk, else a verified copy in the cache.

        With `force`, files in the cache are downloaded again. If the cache cannot be written, a
        temporary one is used, with a warning.

        Raises BadModelError if the content of the snapshot does not match the revision.
        """
        if self.on_disk:
            self._refuse_links(repo)
            return self._checked_snapshot(repo, revision)
        cached = self._cache(repo) / "snapshots" / revision
        if not force and self._is_cached(repo, revision) and not self._is_damaged(cached):
            return cached

        try:
            return self._download_model(repo, revision, self._cache(repo), force)
        except FileError as error:
            cache = self._cache(repo, cache_of_this_process(error))
            return self._download_model(repo, revision, cache, force)

    def _checked_snapshot(self, repo: str, revision: str) -> Path:
        """The folder of a revision on a disk, after checking that its content matches."""
        folder = Path(self._snapshot(repo, revision))
        where = f"{repo}@{revision}"
        remedy = f"do not use it; who has this model can publish it again, which repairs {folder}"
        if folder.is_symlink():
            raise BadModelError("is a link to another folder", file=where, remedy=remedy)
        if folder.is_file():
            raise BadModelError(
                "is a file, and not the folder of a model", file=where, remedy=remedy
            )
        if not (folder / MANIFEST).is_file():
            raise self._not_found(repo, revision)
        if folder_revision(folder) != revision:
            raise BadModelError(
                f"holds another model than its revision says (its {MANIFEST} was exchanged)",
                file=where,
                remedy=remedy,
            )
        return folder

    def _is_cached(self, repo: str, revision: str) -> bool:
        """Whether the cache has a complete copy of exactly this revision."""
        folder = self._cache(repo) / "snapshots" / revision
        try:
            # the manifest is written last, so a copy with a manifest is complete
            if folder.is_symlink() or not (folder / MANIFEST).is_file():
                return False
            return folder_revision(folder) == revision
        except (FileError, OSError):
            return False

    def _is_damaged(self, folder: Path) -> bool:
        """Whether any file of a cached copy does not match its manifest."""
        try:
            for name, entry in read_manifest(folder).files.items():
                read_verified(folder, name, entry)
        except (BadModelError, FileError, OSError):
            return True
        return False

    def _download_model(self, repo: str, revision: str, cache: Path, force: bool) -> Path:
        snapshot = self._snapshot(repo, revision)
        where = f"{repo}@{revision}"
        text = self._read(where, f"{snapshot}/{MANIFEST}", MAX_MANIFEST_BYTES)
        if text is None:
            raise self._not_found(repo, revision)
        if revision_of(text) != revision:
            raise BadModelError(
                f"{MANIFEST} is not the one that was published",
                file=where,
                remedy="do not use this model",
            )
        manifest = parse_manifest(f"{where}/{MANIFEST}", text)

        target = cache / "snapshots" / revision
        weight_bytes = 0
        with file_errors(target), _progress(where, manifest) as advance:
            if target.is_symlink() or target.is_file():
                target.unlink()
            target.mkdir(parents=True, exist_ok=True)
            for name in download_order(manifest):
                entry = manifest.files[name]
                if force or not self._is_right(target, name, entry):
                    limit = size_limit(manifest, name, weight_bytes)
                    self._download(
                        where, f"{snapshot}/{name}", target / name, entry, limit, advance
                    )
                if name == "config.json":
                    config_text = (target / name).read_bytes()
                    weight_bytes = check_before_download(where, manifest, config_text)
            # last, as on the hub, so that an interrupted download is resumed the next time
            write_atomically(target / MANIFEST, text)
        return target

    def _is_right(self, folder: Path, name: str, entry: FileEntry) -> bool:
        """Whether the cache holds the file with the right hash. A wrong file is deleted."""
        if not (folder / name).is_file():
            return False
        try:
            read_verified(folder, name, entry)
        except BadModelError:
            (folder / name).unlink()
            return False
        return True

    def _download(
        self,
        where: str,
        source: str,
        target: Path,
        entry: FileEntry,
        limit: int,
        advance: Advance,
    ) -> None:
        """Download a file under a temporary name, and rename it if its hash is right."""

        def copy() -> None:
            # hashed while it arrives, so that large weights are not read a second time
            digest = hashlib.sha256()
            with whole_file(target) as partial:
                with partial.open("wb") as local:
                    for chunk in self._chunks(where, source, limit):
                        local.write(chunk)
                        digest.update(chunk)
                        advance(len(chunk))
                if digest.hexdigest() != entry.sha256:
                    raise BadModelError(
                        f"does not match its sha256 in {MANIFEST}, nothing was kept",
                        file=source,
                        remedy="download it again; if that does not help, publish it again",
                    )

        retried(copy, _may_pass)

    def _chunks(self, where: str, source: str, limit: int) -> Iterator[bytes]:
        """Yield the content of a file on the hub in chunks, at most `limit` bytes in all."""
        # Only errors of reading are converted. A generator does not see errors of its caller.
        with self._storage_errors(where):
            try:
                seconds = seconds_for(limit)
                with opened(self.fs, source, seconds) as remote:
                    yield from chunks(remote, limit, seconds, CHUNK)
            except TooLargeError as error:
                name = source.rpartition("/")[2]
                raise too_large(where, name, f"more than {limit:,}", limit) from error

    # --- files of the hub

    def _refuse_links(self, repo: str) -> None:
        """Raise HubError if a folder of a model is a link, which would lead out of a disk hub.

        The root itself may be a link, because the user chose it.
        """
        if not self.on_disk:
            return
        folder = Path(self.path)
        folders = []
        for part in repo.split("/"):
            folder = folder / part
            folders.append(folder)
        for own in [*folders, folder / "refs", folder / "snapshots"]:
            if own.is_symlink():
                raise HubError(
                    "is a link, and a hub reads and writes only what is in its own folder",
                    file=own,
                    remedy="put the folder itself there",
                )

    def _snapshot(self, repo: str, revision: str) -> str:
        return f"{self.path}/{repo}/snapshots/{revision}"

    def _ref(self, repo: str, name: str) -> str:
        return f"{self.path}/{repo}/refs/{name}"

    def _cache(self, repo: str, base: Path | None = None) -> Path:
        """The cache folder of a model. It differs between hubs, even for the same model name."""
        # a hub stays the same hub if its password changes
        address = without_secrets(self.root)
        root_hash = hashlib.sha256(address.encode()).hexdigest()[:12]
        return (base or cache_folder()) / root_hash / repo

    def _upload(self, repo: str, path: str, data: bytes) -> None:
        with self._storage_errors(repo):
            if self.on_disk:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                write_atomically(Path(path), data)
            else:
                # an object in a store appears completely or not at all
                self.fs.pipe_file(path, data)

    def _read(self, where: str, path: str, limit: int) -> bytes | None:
        """The content of a small file; None if the hub says that it does not exist."""
        with self._storage_errors(where):
            # fsspec caches listings, but someone else may have published in the meantime
            self.fs.invalidate_cache()
            if self.on_disk and not Path(path).is_file():
                # covers pipes and devices too, which could be read forever
                return None
            try:
                return read_small_file(self.fs, path, limit)
            except TooLargeError as error:
                name = path.rpartition("/")[2]
                shown = f"more than {limit:,}"
                raise too_large(where, name, shown, limit, is_stated=False) from error

    def _has_snapshot(self, repo: str, revision: str) -> bool:
        if self.on_disk and Path(self._snapshot(repo, revision)).is_file():
            # wrong, but `fetch` reports it
            return True
        path = f"{self._snapshot(repo, revision)}/{MANIFEST}"
        return self._read(repo, path, MAX_MANIFEST_BYTES) is not None

    def _read_ref(self, repo: str, name: str) -> str | None:
        """The revision that a name refers to; None if there is no such name."""
        path = self._ref(repo, name)
        publish_again = "publish the model again"
        if name != "main":
            publish_again += f" with --tag {name}"
        if self.on_disk:
            _check_ref(Path(path), publish_again)
        content = self._read(f"{repo}@{name}", path, MAX_REF_BYTES)
        if content is None:
            return None
        revision = content.decode("ascii", "replace").strip()
        if not REVISION.fullmatch(revision):
            raise DamagedRefError(
                "is damaged, it does not contain a revision",
                file=path,
                remedy=publish_again,
            )
        return revision

    def _not_found(self, repo: str, name: str | None) -> HubError:
        """The error for a missing model or revision. It lists existing revisions."""
        # `name` itself may be listed although its files are gone
        known = [revision for revision in self._known_revisions(repo) if revision != name]
        if name is not None and known:
            return HubError(
                f"no revision {name} in the folder hub {self.root}",
                file=f"{repo}@{name}",
                remedy=f"it has: {', '.join(known)}",
            )
        place = repo if name is None else f"{repo}@{name}"
        return HubError(f"no such model in the folder hub {self.root}", file=place)

    def _known_revisions(self, repo: str) -> list[str]:
        """Tags and revisions of a model, if the hub can list them; web servers cannot."""
        if is_web_address(self.root):
            return []
        known = []
        for folder in ("refs", "snapshots"):
            try:
                paths = self.fs.ls(f"{self.path}/{repo}/{folder}", detail=False)
            except BUGS:
                raise
            except Exception:
                # the list only improves an error message, so failures are ignored
                continue
            known += sorted(path.rpartition("/")[2] for path in paths)
        return known

    @contextmanager
    def _storage_errors(self, where: str) -> Iterator[None]:
        """Convert exceptions of storage libraries into HubError about `where`."""
        try:
            yield
        except TooSlowError as error:
            raise UnreachableHubError(
                f"the folder hub {self.root} {error.message}",
                file=where,
                remedy="check the network, or try again later",
            ) from error
        except (EvenfieldError, *BUGS):
            raise
        except ImportError as error:
            protocol = get_protocol(self.root)
            if protocol in EXTRAS:
                package, extra = EXTRAS[protocol]
                needed_for = f"the folder hub {without_secrets(self.root)}"
                raise MissingPackageError(package, needed_for=needed_for, extra=extra) from error
            raise HubError(
                f"the folder hub needs another package ({reason_of(error)})", file=self.root
            ) from error
        except Exception as error:
            if self.on_disk and isinstance(error, OSError) and error.errno in DISK_REMEDIES:
                raise HubError(
                    f"the folder hub {self.root} cannot be used ({reason_of(error)})",
                    file=where,
                    remedy=DISK_REMEDIES[error.errno],
                ) from error
            if is_temporary(error):
                raise UnreachableHubError(
                    f"the folder hub {self.root} does not answer ({reason_of(error)}); "
                    "the model may well be there",
                    file=where,
                    remedy="check the network, or try again later",
                ) from error
            remedy = "check its address, the network and your credentials"
            if self.on_disk:
                remedy = "check that it is a folder that you may read and write"
            raise UnreachableHubError(
                f"the folder hub {self.root} cannot be used ({reason_of(error)})",
                file=where,
                remedy=remedy,
            ) from error


def _check_ref(path: Path, publish_again: str) -> None:
    """Raise HubError if a ref on a disk exists but is not a regular file."""
    if path.is_symlink():
        raise DamagedRefError("is a link, and not a file", file=path, remedy=publish_again)
    if path.is_dir():
        # its content is unknown, so publishing does not remove it
        raise HubError(
            "is a folder, and not a file with a revision",
            file=path,
            remedy="remove it, and publish the model again",
        )


def _may_pass(error: BaseException) -> bool:
    """Whether a download that failed with this error may succeed on a retry."""
    cause = error.__cause__
    return isinstance(error, UnreachableHubError) and cause is not None and is_temporary(cause)


def _read_remembered(path: Path) -> str | None:
    """The revision that a name had when the hub last answered."""
    try:
        revision = path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return revision if REVISION.fullmatch(revision) else None


def _remove_leftovers(snapshot: Path) -> None:
    """Remove old temporary files of publications that were killed.

    Temporary files of a publisher who is writing the same model now are younger and are kept.
    """
    for leftover in snapshot.glob(".*.tmp"):
        is_temporary = re.fullmatch(r"\..+\.[0-9a-f]{8}\.tmp", leftover.name)
        # a leftover that cannot be removed does no harm
        with suppress(OSError):
            age = time.time() - leftover.lstat().st_mtime
            if is_temporary and age > LEFTOVER_SECONDS:
                leftover.unlink()


def _create_file(path: Path, data: bytes) -> None:
    """Write a new file in one step; raises FileExistsError if it already exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_bytes(data)
        try:
            # a rename would replace another publisher's file; creating a link fails instead
            os.link(temporary, path)
        except PermissionError:
            # this file system has no hard links
            with path.open("xb") as file:
                file.write(data)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _progress(where: str, manifest: Manifest) -> Iterator[Advance]:
    """Show a progress bar for a large download.

    Yields a function to be called with the number of bytes that have arrived.
    """
    total = sum(entry.bytes or 0 for entry in manifest.files.values())
    if total < CHUNK:
        yield lambda num_bytes: None
        return
    columns = (
        PlainColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task(f"downloading {where}", total=total)
        yield lambda num_bytes: bar.advance(task, num_bytes)
