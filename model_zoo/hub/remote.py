"""Code that all hubs share: errors, the cache, and checks before weights are downloaded."""

from __future__ import annotations

import atexit
import functools
import os
import re
import shutil
import tempfile
import warnings
from pathlib import Path

from ...core.addresses import local_path
from ...core.errors import EvenfieldError, EvenfieldWarning
from ...core.files import FileError
from ..package.folder import read_config
from ..package.manifest import (
    MANIFEST,
    MAX_TEXT_BYTES,
    BadModelError,
    Manifest,
    is_weights,
    json_object,
)


CACHE_VARIABLE = "EVENFIELD_CACHE"
# bytes reserved for the header of a file of weights
SPARE = 1 << 20
# the revision of a model on a folder hub, see folder_revision
REVISION = re.compile(r"[0-9a-f]{16}", re.ASCII)
# Exceptions that indicate a programming error, and are not converted to HubError. A list of the
# errors of storage and hub clients would have gaps, since most derive directly from Exception.
BUGS = (AssertionError, AttributeError, NameError, NotImplementedError, TypeError)


class HubError(EvenfieldError):
    """A reference does not lead to a model, or a hub refuses."""


class UnreachableHubError(HubError):
    """A hub does not answer or reports a failure, so its content is unknown."""


# --- the cache


def cache_folder() -> Path:
    """The cache for models from remote folder hubs, and for zoo models built on this machine.

    The environment variable EVENFIELD_CACHE overrides the default, ~/.cache/evenfield.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return local_path(chosen)
    try:
        return Path.home() / ".cache" / "evenfield"
    except RuntimeError:
        # The user has no home, as in many containers. A predictable name in /tmp would not be safe,
        # because others could put models there.
        return _temporary_cache()


def cache_of_this_process(problem: FileError) -> Path:
    """A temporary folder to use instead of a cache that cannot be written. Warns about it.

    It is removed when the process ends.
    """
    folder = _temporary_cache()
    warnings.warn(
        f"the cache cannot be used ({problem}); what is downloaded is kept in {folder} until this "
        f"process ends. Name another cache with {CACHE_VARIABLE}, or with HF_HOME for models of "
        "the Hugging Face hub.",
        EvenfieldWarning,
        stacklevel=2,
    )
    return folder


@functools.cache
def _temporary_cache() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="evenfield-cache-"))
    owner = os.getpid()

    def remove() -> None:
        # a forked worker may end earlier while its parent still reads the files
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


# --- before a download


def download_order(manifest: Manifest) -> list[str]:
    """File names in download order: config.json first, because it is checked; weights last."""

    def rank(name: str) -> tuple[bool, bool, str]:
        # False sorts before True
        return name != "config.json", is_weights(name), name

    return sorted(manifest.files, key=rank)


def size_limit(manifest: Manifest, name: str, weight_bytes: int) -> int:
    """The largest allowed size of a file, in bytes.

    It is the size that the manifest states; manifests of format 1 state none. `weight_bytes` is the
    result of `check_before_download`, or 0 before the config is downloaded.
    """
    stated = manifest.files[name].bytes
    if stated is not None:
        return stated
    return weight_bytes if is_weights(name) else MAX_TEXT_BYTES


def too_large(
    where: str, name: str, num_bytes: int | str, limit: int, *, is_stated: bool = True
) -> BadModelError:
    """The error for a file that a hub sends or announces with more bytes than allowed.

    `is_stated` says whether the limit comes from the manifest or is one of evenfield's own.
    """
    shown = num_bytes if isinstance(num_bytes, str) else f"{num_bytes:,}"
    if name == MANIFEST or not is_stated:
        message = f"{name} has {shown} bytes, {limit:,} are allowed"
    else:
        message = f"{name} has {shown} bytes, but {MANIFEST} states {limit:,}"
    return BadModelError(message, file=where, remedy="nothing was kept; do not use this model")


def check_before_download(where: str, manifest: Manifest, config_text: bytes) -> int:
    """The largest possible size in bytes of a file of weights of this architecture.

    `where` is the reference, for messages. Without this check, a hub could fill the disk.

    Raises BadModelError if the stated weights are larger than the architecture needs.
    """
    # manifests of format 1 leave sizes out
    stated = sum(manifest.files[name].bytes or 0 for name in manifest.weights)
    config = json_object(f"{where}/config.json", config_text)
    architecture, _, dtype = read_config(f"{where}/config.json", config, stated or None)

    # a few constants have a larger dtype, for which the spare bytes leave room
    needed = architecture.num_weights * dtype.itemsize
    if stated > needed + SPARE * len(manifest.weights):
        raise BadModelError(
            f"its manifest states {stated:,} bytes of weights, but its architecture has {needed:,}",
            file=where,
            remedy="no weights were downloaded; do not use this model",
        )
    return needed + SPARE
