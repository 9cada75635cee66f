"""Models on the Hugging Face hub, through its own client: its cache, its token, its offline mode (HF_HUB_OFFLINE=1).

A model is fetched by its manifest, never by listing: what the manifest does not name is not downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    get_session,
    hf_hub_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..package.manifest import MANIFEST, BadModelError, Manifest, is_weights, parse_manifest
from .remote import check_before_download


COMMIT = re.compile(r"[0-9a-f]{40}")
STORES = ("http://", "https://")  # hf_xet also takes local://, and would write there
ETAG = re.compile(r'(W/)?"?[A-Za-z0-9_-]{8,128}"?')


def fetch(repo: str, revision: str | None, *, force: bool = False) -> tuple[Path, str]:
    """Folder of a model in the client's cache, and its commit. Shards that are there already are not fetched again."""
    where = f"{repo}@{revision}" if revision else repo

    def download(name: str, revision: str | None) -> Path:
        with _one_line(where), _checked_answers(where):
            return Path(hf_hub_download(repo, name, revision=revision, force_download=force))

    text = download(MANIFEST, revision)
    folder, commit = text.parent, text.parent.name
    manifest = parse_manifest(f"{where}/{MANIFEST}", text.read_bytes())
    for name in sorted(manifest.files, key=lambda n: (n != "config.json", is_weights(n), n)):
        path = download(name, commit)
        if name == "config.json":
            check_before_download(where, manifest, path.read_bytes())
    return folder, commit


def publish(
    folder: Path, manifest: Manifest, repo: str, *, private: bool, tag: str | None, message: str
) -> str:
    """All files in one commit, on top of what is there now or not at all; then the tag. Returns the commit."""
    api = HfApi(library_name="evenfield")
    with _one_line(repo), _checked_answers(repo):
        api.create_repo(repo, private=private, exist_ok=True)
        there = api.model_info(repo)
        if private and not there.private:
            raise BadModelError(
                f"{repo}: exists and is public: make it private first, or choose another name"
            )
        if tag and tag in [ref.name for ref in api.list_repo_refs(repo).tags]:
            raise BadModelError(f"{repo}@{tag}: the tag is taken: choose another one")
        operations: list[Any] = [
            CommitOperationDelete(name) for name in _stale(repo, there, manifest)
        ]
        operations += [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name)
            for name in [*manifest.files, MANIFEST]
        ]
        commit = api.create_commit(
            repo, operations, commit_message=message, parent_commit=there.sha
        )
        if tag:
            api.create_tag(repo, tag=tag, revision=commit.oid, tag_message=message)
    return str(commit.oid)


def _stale(repo: str, there: Any, manifest: Manifest) -> list[str]:
    """Files of the model that stands there now and not of the new one, old shards for instance."""
    present = {sibling.rfilename for sibling in there.siblings or []}
    if MANIFEST not in present:
        return []
    try:
        text = Path(hf_hub_download(repo, MANIFEST, revision=there.sha)).read_bytes()
        old = parse_manifest(repo, text).files
    except BadModelError:
        return []  # not ours: left as it is
    return sorted((set(old) & present) - set(manifest.files))


@contextmanager
def _checked_answers(where: str) -> Iterator[None]:
    """Answers whose headers would lead the client out of its cache, or to another kind of address, end the transfer.

    The client builds file names of its cache from the commit and the ETag that a server states.
    """

    def check(response: Any) -> None:
        headers = response.headers
        commit, target = headers.get("X-Repo-Commit"), headers.get("Location", "")
        store = headers.get("X-Xet-Cas-Url")
        tags = [headers[key] for key in ("ETag", "X-Linked-Etag") if key in headers]
        if commit is not None and not (
            COMMIT.fullmatch(commit) and all(ETAG.fullmatch(tag) for tag in tags)
        ):
            raise BadModelError(
                f"{where}: the hub states a commit or an ETag that is none: do not use this hub"
            )
        if "://" in target.partition("?")[0] and not target.startswith(("http://", "https://")):
            raise BadModelError(
                f"{where}: the hub redirects to {target[:80]}, which is no web address: do not use it"
            )
        if store is not None and not store.startswith(STORES):
            raise BadModelError(
                f"{where}: the hub keeps its files at {store[:80]}, which is no web address: do not use it"
            )

    hooks = get_session().event_hooks[
        "response"
    ]  # changed in place: other threads may have theirs in it
    hooks.append(check)
    try:
        yield
    finally:
        hooks.remove(check)


@contextmanager
def _one_line(where: str) -> Iterator[None]:
    """Whatever the client raises becomes a BadModelError with the mend."""
    try:
        yield
    except BadModelError:
        raise
    except Exception as error:
        raise BadModelError(f"{where}: {_explain(error)}") from None


def _explain(error: Exception) -> str:
    status = (
        error.response.status_code
        if isinstance(error, HfHubHTTPError) and error.response is not None
        else None
    )
    if isinstance(error, LocalEntryNotFoundError):
        return "no folder here, not in the cache, and the Hugging Face hub is out of reach or fails: check the network"
    if isinstance(error, GatedRepoError):
        return (
            "its owner asks you to accept terms on its page first; then log in with `hf auth login`"
        )
    if isinstance(error, RevisionNotFoundError):
        return "the hub has no such revision: look at the model's page for its tags and commits"
    if isinstance(error, RepositoryNotFoundError):
        return "no such model on the hub, or it is private: check the name, log in with `hf auth login`"
    if isinstance(error, EntryNotFoundError):
        return "is on the hub, but not all files of an evenfield model are there: ask its owner to publish it again"
    if status == 412:
        return "somebody else published in between: look at what they did, then publish again"
    if status == 409:
        return "the hub refuses, it exists already: choose another name or tag"
    if status == 401:
        return "the hub does not know your token: log in again with `hf auth login`"
    if status == 403:
        return "the hub forbids it: your token may not write there"
    said = " ".join(str(error).split())[:300]
    return f"the Hugging Face hub failed ({type(error).__name__}: {said}): try again; what has come is kept"
