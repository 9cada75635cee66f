"""Models on the Hugging Face hub, through its own client.

Cache, token and offline mode (HF_HUB_OFFLINE=1) are those of the client. Only files that the
manifest names are downloaded, whatever else the hub lists.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelInfo,
    constants,
    get_session,
    hf_hub_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import tqdm

from ...core.errors import EvenfieldError
from ...core.files import DISK_REMEDIES, FileError, file_errors
from ...core.hub_client import limited_patience
from ...core.storage import SILENCE
from ..package.manifest import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    BadModelError,
    Manifest,
    parse_manifest,
)
from ..package.weights import one_line
from .remote import (
    BUGS,
    HubError,
    cache_of_this_process,
    check_before_download,
    download_order,
    size_limit,
    too_large,
)


COMMIT = re.compile(r"[0-9a-f]{40}")
ETAG = re.compile(r'(W/)?"?[A-Za-z0-9_-]{8,128}"?')
# seconds; a hub may process large files before it answers
SILENCE_AFTER_UPLOAD = 100.0
TAKEN = 409  # the HTTP status for a name in use
WEB_ADDRESSES = ("http://", "https://")
# hf_xet also accepts local:// and would write there; the tests add it to this tuple
STORES = WEB_ADDRESSES


def fetch(repo: str, revision: str | None, *, force: bool = False) -> tuple[Path, str]:
    """Download a model into the client's cache; returns its folder and its commit.

    Files in the cache are downloaded again only with `force`.

    Raises HubError if the hub does not have the model, refuses the request or cannot be reached,
    and BadModelError if the model is damaged or malicious.
    """
    if force and constants.HF_HUB_OFFLINE:
        raise HubError(
            "cannot be downloaded again while HF_HUB_OFFLINE is set",
            file=repo,
            remedy="unset it, or leave out --force",
        )
    try:
        return _fetch(repo, revision, force, None)
    except FileError as error:
        cache = cache_of_this_process(error) / "hugging-face"
        return _fetch(repo, revision, force, cache)


def _fetch(repo: str, revision: str | None, force: bool, cache: Path | None) -> tuple[Path, str]:
    """Implement `fetch` with another cache, or with the client's own for None."""
    where = f"{repo}@{revision}" if revision else repo
    download = partial(_download, where, repo, force=force, cache=cache)
    manifest_path = download(MANIFEST, revision, limit=MAX_MANIFEST_BYTES)
    # the cache has one folder per commit, named by the commit
    folder = manifest_path.parent
    commit = folder.name
    with file_errors(manifest_path):
        manifest = parse_manifest(f"{where}/{MANIFEST}", manifest_path.read_bytes())

    weight_bytes = 0
    for name in download_order(manifest):
        # by commit, not by name, because main may move while the files arrive
        limit = size_limit(manifest, name, weight_bytes)
        path = download(name, commit, limit=limit)
        if name == "config.json":
            with file_errors(path):
                config_text = path.read_bytes()
            weight_bytes = check_before_download(where, manifest, config_text)
    return folder, commit


def publish(
    folder: Path, manifest: Manifest, repo: str, *, private: bool, tag: str | None, message: str
) -> str:
    """Upload all files in one commit, then set the tag; returns the commit.

    The commit is based on the state found on the hub. If someone else commits in between, nothing
    is changed. Raises HubError if the hub refuses, or if the tag is taken.
    """
    api = HfApi(library_name="evenfield")
    with _client_errors(repo), _checked_responses(repo, patience=SILENCE_AFTER_UPLOAD):
        api.create_repo(repo, private=private, exist_ok=True)
        # read before anything is sent, because the commit is valid only on top of this state
        current = api.model_info(repo)
        if private and not current.private:
            raise HubError(
                "exists already and is public",
                file=repo,
                remedy="make it private on its page first, or choose another name",
            )
        taken = [ref.name for ref in api.list_repo_refs(repo).tags]
        if tag in taken:
            raise HubError("the tag is taken", file=f"{repo}@{tag}", remedy="choose another tag")

        operations: list[Any] = []
        for name in _outdated_files(repo, current, manifest):
            operations.append(CommitOperationDelete(name))
        for name in [*manifest.files, MANIFEST]:
            operation = CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name)
            operations.append(operation)

        # one commit, so that readers never see a manifest next to another model's weights
        parent = current.sha
        commit = api.create_commit(repo, operations, commit_message=message, parent_commit=parent)
        if tag:
            _set_tag(api, repo, tag, str(commit.oid), message)
    return str(commit.oid)


def _set_tag(api: HfApi, repo: str, tag: str, commit: str, message: str) -> None:
    try:
        api.create_tag(repo, tag=tag, revision=commit, tag_message=message)
    except HfHubHTTPError as error:
        if error.response is None or error.response.status_code != TAKEN:
            raise
        # the tag was free before the upload, so someone else has set it in the meantime
        raise HubError(
            f"somebody else took the tag in between; the model is published as {commit}",
            file=f"{repo}@{tag}",
            remedy="publish again with another tag",
        ) from error


def _download(
    where: str,
    repo: str,
    name: str,
    revision: str | None,
    *,
    force: bool,
    cache: Path | None,
    limit: int,
) -> Path:
    """The path of one file of at most `limit` bytes, from the cache or the hub.

    `where` is the reference, for messages. Raises BadModelError for a larger file.
    """

    class LimitedBar(tqdm):
        """The client's progress bar, the only place where it reports how much has arrived."""

        # counted here, because a disabled bar does not count
        arrived: float = 0

        def update(self, n: float | None = 1) -> bool | None:
            result = super().update(n)
            self.arrived += n or 0
            if self.arrived > limit:
                raise too_large(where, name, f"more than {limit:,}", limit)
            return bool(result)

    def check_size(headers: Any) -> None:
        _check_stated_size(where, name, headers, limit)

    with _client_errors(where), _checked_responses(where, check_size):
        path = hf_hub_download(
            repo,
            name,
            revision=revision,
            force_download=force,
            cache_dir=cache,
            tqdm_class=LimitedBar,
        )
        return Path(path)


def _check_stated_size(where: str, name: str, headers: Any, limit: int) -> None:
    """Refuse a file whose stated size is too large, before any content arrives."""
    # a response without a commit is not about a file; it may be an error page
    if headers.get("X-Repo-Commit") is None:
        return
    # a redirect states the size of its target in a separate header
    stated = headers.get("X-Linked-Size") or headers.get("Content-Length", "")
    is_about_file = "Location" not in headers or "X-Linked-Size" in headers
    if is_about_file and stated.isdecimal() and int(stated) > limit:
        raise too_large(where, name, int(stated), limit)


def _outdated_files(repo: str, current: ModelInfo, manifest: Manifest) -> list[str]:
    """Files of the current model on the hub that the new model lacks, such as old shards."""
    present = {sibling.rfilename for sibling in current.siblings or []}
    if MANIFEST not in present:
        return []
    path = Path(hf_hub_download(repo, MANIFEST, revision=current.sha))
    try:
        old = parse_manifest(repo, path.read_bytes())
    except BadModelError:
        # evenfield did not write this, so it is left alone
        return []

    # the hub refuses to delete files that do not exist
    there = set(old.files) & present
    return sorted(there - set(manifest.files))


@contextmanager
def _checked_responses(
    where: str, check_more: Callable[[Any], None] | None = None, patience: float = SILENCE
) -> Iterator[None]:
    """Check the headers of every response that the client receives inside the block.

    The client derives file names in its cache from the commit and ETag of a response, and it
    follows redirects. A malicious hub could make it write outside the cache, or read local files.

    `check_more` is also called with the headers of every response. A server that is silent for
    `patience` seconds is asked once more, and then HubError is raised.
    """

    def check(response: Any) -> None:
        _check_headers(where, response.headers)
        if check_more is not None:
            check_more(response.headers)

    # the list is changed in place, because other threads may have added their own checks
    hooks = get_session().event_hooks["response"]
    hooks.append(check)
    try:
        with limited_patience(patience) as told:
            try:
                yield
            except EvenfieldError:
                raise
            except Exception as error:
                if told.silence is None:
                    raise
                raise HubError(
                    f"not in the cache, and the Hugging Face hub at {constants.ENDPOINT} gives "
                    f"{told.silence}",
                    file=where,
                    remedy="check the network and HF_ENDPOINT, or try again later",
                ) from error
    finally:
        hooks.remove(check)


def _check_headers(where: str, headers: Any) -> None:
    commit = headers.get("X-Repo-Commit")
    # responses without a commit are not about a file, and name nothing in the cache
    if commit is not None:
        tags = [headers[key] for key in ("ETag", "X-Linked-Etag") if key in headers]
        tags_are_valid = all(ETAG.fullmatch(tag) for tag in tags)
        if not COMMIT.fullmatch(commit) or not tags_are_valid:
            raise _malicious(where, "sends an invalid commit or ETag")

    target = headers.get("Location", "")
    # a redirect without a scheme stays on the hub; a scheme in the query does not count
    has_scheme = "://" in target.partition("?")[0]
    if has_scheme and not target.startswith(WEB_ADDRESSES):
        raise _malicious(where, f"redirects to {target[:80]}, which is not a web address")

    store = headers.get("X-Xet-Cas-Url")
    if store is not None and not store.startswith(STORES):
        raise _malicious(where, f"keeps its files at {store[:80]}, which is not a web address")


def _malicious(where: str, what: str) -> HubError:
    return HubError(f"the hub {what}", file=where, remedy="do not use this hub")


@contextmanager
def _client_errors(where: str) -> Iterator[None]:
    """Convert exceptions of the hub's client into HubError about `where`.

    Errors of the local disk become FileError.
    """
    try:
        yield
    except (EvenfieldError, *BUGS):
        raise
    except Exception as error:
        if isinstance(error, OSError) and _is_of_disk(error):
            # a local file: the disk of the cache may be full or protected
            file = error.filename or constants.HF_HUB_CACHE
            raise FileError(error.strerror or str(error), file=file) from error
        message, remedy = _explain(error)
        raise HubError(message, file=where, remedy=remedy) from error


def _is_of_disk(error: OSError) -> bool:
    """Whether an error is about a local file; connection errors are OSErrors too."""
    return error.filename is not None or error.errno in DISK_REMEDIES


# the first matching class is used, so subclasses come before their bases
EXPLANATIONS: list[tuple[type[Exception], str, str]] = [
    (
        OfflineModeIsEnabled,
        "HF_HUB_OFFLINE keeps evenfield from asking the Hugging Face hub",
        "unset HF_HUB_OFFLINE",
    ),
    (
        GatedRepoError,
        "its owner asks you to accept terms on its page first",
        "accept them, then log in with `hf auth login`",
    ),
    (
        RevisionNotFoundError,
        "the hub has no such revision",
        "look at the model's page for its tags and commits",
    ),
    (
        RepositoryNotFoundError,
        "no such model on the hub, or it is private",
        "check the name, log in with `hf auth login`",
    ),
    (
        EntryNotFoundError,
        "is on the hub, but does not have all files of an evenfield model",
        "ask its owner to publish it again",
    ),
]
STATUS_EXPLANATIONS: dict[int, tuple[str, str]] = {
    401: ("the hub does not know your token", "log in again with `hf auth login`"),
    403: ("the hub forbids it", "use a token that may write there"),
    409: ("the hub refuses, it exists already", "choose another name or tag"),
    412: ("somebody else published in between", "look at what they did, then publish again"),
}


def _explain(error: Exception) -> tuple[str, str]:
    """Message and remedy for an error of the client."""
    if isinstance(error, LocalEntryNotFoundError):
        return _explain_absence(error)
    for kind, message, remedy in EXPLANATIONS:
        if isinstance(error, kind):
            return message, remedy
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        if status in STATUS_EXPLANATIONS:
            return STATUS_EXPLANATIONS[status]
    reason = f"{type(error).__name__}: {one_line(error, 300)}"
    return f"the Hugging Face hub failed ({reason})", "try again; finished files are kept"


def _explain_absence(error: LocalEntryNotFoundError) -> tuple[str, str]:
    """Message and remedy if the hub did not answer and the cache has no copy."""
    if constants.HF_HUB_OFFLINE:
        return (
            "no such folder, not in the cache, and HF_HUB_OFFLINE keeps evenfield from asking the "
            "Hugging Face hub",
            "unset HF_HUB_OFFLINE, or download it first with `evenfield hub pull`",
        )

    cause = error.__cause__
    if isinstance(cause, HfHubHTTPError) and cause.response is not None:
        response = cause.response
        reason = f"answers {response.status_code} {response.reason_phrase}".strip()
    elif isinstance(cause, FileMetadataError):
        reason = "sends answers that its client does not understand"
    else:
        detail = one_line(cause if isinstance(cause, Exception) else error, 100)
        reason = f"does not answer ({detail})"
    return (
        f"no such folder, not in the cache, and the Hugging Face hub {reason}; the model may well "
        "be there",
        "check the network, or try again later",
    )
