"""A hub that is a folder, on a disk or behind an address that fsspec knows, s3:// for instance.

    ROOT/owner/name/snapshots/REVISION/   the files of a model; the manifest is written last
    ROOT/owner/name/refs/NAME             the revision of a name: main, or a tag

A revision is the hash of the manifest. Publishing the same model twice therefore makes one
snapshot, and no published file ever changes. The revision is computed again at every load: a folder
that was put under the name of a revision by other means is refused.

Models behind an address are downloaded into the cache, file by file. A file that is in the cache
with the right hash is not downloaded again. A revision that is in the cache as a whole is loaded
without the hub.
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


# bytes that are read at once; downloads smaller than this show no progress bar
CHUNK = 8 << 20
# the extra that installs the storage library of a protocol; fsspec knows more protocols than these
EXTRAS = {"s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3")}

# a ref holds a revision and perhaps a line end
MAX_REF_BYTES = 1000
# after which nobody writes a temporary file any more
LEFTOVER_SECONDS = 3600.0

Advance = Callable[[int], None]  # takes the number of bytes that have arrived


class DamagedRefError(HubError):
    """A name on a hub that names no revision."""


class FolderHub:
    """The models below one root.

    Methods raise HubError when the root cannot be used or holds no such model, its subclass
    UnreachableHubError when the root does not answer, and BadModelError when a model on it is
    damaged.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = str(root)
        self.on_disk = False  # until the file system is known
        with self._storage_errors(self.root):
            self.fs, self.path = file_system(self.root)
        # models on a disk are read where they are, without a copy in the cache
        self.on_disk = self.fs.protocol == "file" or "file" in self.fs.protocol

    # --- publishing

    def publish(self, folder: Path, manifest: Manifest, repo: str, tag: str | None) -> str:
        """Upload the files of a verified model folder; returns the revision. A tag never moves."""
        self._refuse_links(repo)
        revision = folder_revision(folder)
        if tag is not None:
            # before the upload, which may take long
            self._check_tag_is_free(repo, tag, revision)

        if self.on_disk:
            # a folder in the place of main is found now, and not after the upload
            with suppress(DamagedRefError):
                self._read_ref(repo, "main")
        self._upload_model(folder, manifest, repo, revision)
        if tag is not None:
            self._claim_tag(repo, tag, revision)
        # main comes last: it never names a snapshot whose tag could not be set
        self._upload(repo, self._ref(repo, "main"), revision.encode())
        return revision

    def _upload_model(self, folder: Path, manifest: Manifest, repo: str, revision: str) -> None:
        """Write all files of a snapshot, also over files that others put in their place."""
        snapshot = self._snapshot(repo, revision)
        if self.on_disk and (Path(snapshot).is_symlink() or Path(snapshot).is_file()):
            # A file cannot hold a model. Writing would go through a link, into a folder that is
            # not of this hub.
            with file_errors(snapshot):
                Path(snapshot).unlink()

        # the manifest comes last: a snapshot without the right one is never read
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
        """Whether a disk hub has the right file. Elsewhere it is cheaper to send than to look."""
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
        """Set a tag. Of two publishers who do so at the same moment, one gets the error."""
        path = self._ref(repo, tag)
        try:
            self._create(repo, path, revision.encode())
        except UnreachableHubError:
            # Most stores can create a file only if there is none. Where one cannot, or has one,
            # the look afterwards decides.
            if self._tagged(repo, tag) is None:
                self._upload(repo, path, revision.encode())
        self._check_tag_is_free(repo, tag, revision)

    def _tagged(self, repo: str, tag: str) -> str | None:
        """The revision of a tag; None for one that is free, or damaged and to be set again."""
        try:
            return self._read_ref(repo, tag)
        except DamagedRefError:
            return None

    def _create(self, repo: str, path: str, data: bytes) -> None:
        """Write a file that does not exist yet; raises UnreachableHubError when it does."""
        with self._storage_errors(repo):
            if self.on_disk:
                _create_file(Path(path), data)
            else:
                self.fs.pipe_file(path, data, mode="create")

    # --- loading

    def revision(self, repo: str, name: str | None) -> str:
        """The revision that main, a tag or a revision names.

        When the hub cannot be reached, it is the revision that the name had the last time.
        """
        self._refuse_links(repo)
        wanted = name or "main"
        if REVISION.fullmatch(wanted):
            # never a tag, which could name another revision
            return self._stated_revision(repo, wanted)

        # so that a model that was loaded once also loads without the network
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
            # only a convenience: a cache that cannot be written does not end a load
            with suppress(OSError):
                remembered.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(remembered, found)
        return found

    def _stated_revision(self, repo: str, revision: str) -> str:
        """A revision that the hub or the cache has."""
        if not self.on_disk and self._is_cached(repo, revision):
            # a revision means the same bytes for ever, so there is nothing to ask
            return revision
        if not self._has_snapshot(repo, revision):
            raise self._not_found(repo, revision)
        return revision

    def fetch(self, repo: str, revision: str, *, force: bool = False) -> Path:
        """The folder of a snapshot: itself on a disk, else a verified copy in the cache.

        `force` downloads again what the cache holds. A cache that cannot be written is replaced by
        a temporary one, with a warning.

        Raises BadModelError when the snapshot is not the one that the revision names.
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
        """The folder of a revision on a disk, which must hold what the revision names."""
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
        """Whether the cache has a whole copy of a revision, and of no other."""
        folder = self._cache(repo) / "snapshots" / revision
        try:
            # the manifest is written last, so with it the copy is complete
            if folder.is_symlink() or not (folder / MANIFEST).is_file():
                return False
            return folder_revision(folder) == revision
        except (FileError, OSError):
            return False

    def _is_damaged(self, folder: Path) -> bool:
        """Whether a file of a copy in the cache is not what its manifest says."""
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
            # last, as on the hub: a copy that was interrupted is continued the next time
            write_atomically(target / MANIFEST, text)
        return target

    def _is_right(self, folder: Path, name: str, entry: FileEntry) -> bool:
        """Whether the cache holds the file with the right hash; a wrong one is deleted."""
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
        """Copy a file under a temporary name; it gets its own only if its hash is right."""

        def copy() -> None:
            # hashed while it arrives: large weights are not read a second time
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
        """The content of a file of the hub, which may have `limit` bytes."""
        # Only reading can fail because of the hub. What the caller does with a chunk is outside
        # of the block, since a generator does not see errors of its caller.
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
        """Raise HubError for a folder of a model that leads out of a hub on a disk.

        The root may be a link: it is what a user names.
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
        """Where this hub's models are kept; hubs with equal names of models do not mix."""
        # a new password does not make another hub
        address = without_secrets(self.root)
        root_hash = hashlib.sha256(address.encode()).hexdigest()[:12]
        return (base or cache_folder()) / root_hash / repo

    def _upload(self, repo: str, path: str, data: bytes) -> None:
        with self._storage_errors(repo):
            if self.on_disk:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                write_atomically(Path(path), data)
            else:
                # an object of a store appears whole or not at all
                self.fs.pipe_file(path, data)

    def _read(self, where: str, path: str, limit: int) -> bytes | None:
        """The content of a small file; None when the hub answers that there is none."""
        with self._storage_errors(where):
            # fsspec caches listings, and somebody else may have published in the meantime
            self.fs.invalidate_cache()
            if self.on_disk and not Path(path).is_file():
                # also a pipe or a device, which could be read for ever
                return None
            try:
                return read_small_file(self.fs, path, limit)
            except TooLargeError as error:
                name = path.rpartition("/")[2]
                shown = f"more than {limit:,}"
                raise too_large(where, name, shown, limit, is_stated=False) from error

    def _has_snapshot(self, repo: str, revision: str) -> bool:
        if self.on_disk and Path(self._snapshot(repo, revision)).is_file():
            # wrong, which is found where it is fetched
            return True
        path = f"{self._snapshot(repo, revision)}/{MANIFEST}"
        return self._read(repo, path, MAX_MANIFEST_BYTES) is not None

    def _read_ref(self, repo: str, name: str) -> str | None:
        """The revision that a name refers to; None when there is no such name."""
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
        """The error for a missing model or revision; it lists the revisions that exist."""
        # a name whose files are gone is listed too, and is no remedy
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
        """Tags and revisions of a model, as far as the hub lists them; web servers do not."""
        if is_web_address(self.root):
            return []
        known = []
        for folder in ("refs", "snapshots"):
            try:
                paths = self.fs.ls(f"{self.path}/{repo}/{folder}", detail=False)
            except BUGS:
                raise
            except Exception:
                # only for a better message; the error that it belongs to is on its way
                continue
            known += sorted(path.rpartition("/")[2] for path in paths)
        return known

    @contextmanager
    def _storage_errors(self, where: str) -> Iterator[None]:
        """Turn what a storage library raises into a HubError about `where`."""
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
    """Raise HubError for a name on a disk that is neither absent nor a file."""
    if path.is_symlink():
        raise DamagedRefError("is a link, and not a file", file=path, remedy=publish_again)
    if path.is_dir():
        # nobody knows what is in it, so publishing does not remove it
        raise HubError(
            "is a folder, and not a file with a revision",
            file=path,
            remedy="remove it, and publish the model again",
        )


def _may_pass(error: BaseException) -> bool:
    """Whether a download that ended with this error may succeed the next time."""
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
    """Remove the temporary files of a publication that was killed long ago.

    Those of another publisher, who is writing the same model now, are younger.
    """
    for leftover in snapshot.glob(".*.tmp"):
        is_temporary = re.fullmatch(r"\..+\.[0-9a-f]{8}\.tmp", leftover.name)
        # what cannot be looked at or removed does no harm
        with suppress(OSError):
            age = time.time() - leftover.lstat().st_mtime
            if is_temporary and age > LEFTOVER_SECONDS:
                leftover.unlink()


def _create_file(path: Path, data: bytes) -> None:
    """Write a new file in one step; FileExistsError when there is one already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_bytes(data)
        try:
            # a rename would replace the file of another publisher; a link does not
            os.link(temporary, path)
        except PermissionError:
            # file systems without hard links
            with path.open("xb") as file:
                file.write(data)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _progress(where: str, manifest: Manifest) -> Iterator[Advance]:
    """A progress bar for a download that takes a while; yields what to call with new bytes."""
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
