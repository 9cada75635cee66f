"""What all hubs share: their errors, the cache, and checks before the weights are downloaded."""

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
# bytes that the header of a file of weights may take
SPARE = 1 << 20
# the revision of a model on a folder hub, see folder_revision
REVISION = re.compile(r"[0-9a-f]{16}", re.ASCII)
# What only a mistake in code raises. Storage and hub clients have many classes of errors, most of
# them derived from Exception itself, so a list of those would have gaps.
BUGS = (AssertionError, AttributeError, NameError, NotImplementedError, TypeError)


class HubError(EvenfieldError):
    """A reference that leads to no model, or a hub that refuses."""


class UnreachableHubError(HubError):
    """A hub that does not answer, or answers that it fails: nobody knows what it holds."""


# --- the cache


def cache_folder() -> Path:
    """Where models from remote folder hubs, and zoo models built on this machine, are kept."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return local_path(chosen)
    try:
        return Path.home() / ".cache" / "evenfield"
    except RuntimeError:
        # a user without a home, as in many containers; names in /tmp that others can guess are
        # not safe to read models from
        return _temporary_cache()


def cache_of_this_process(problem: FileError) -> Path:
    """A folder that takes the place of a cache that cannot be written.

    It is removed when the process ends. A cache saves time; a load does not depend on it.
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
        # a forked worker ends earlier, and its parent still reads the files
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


# --- before a download


def download_order(manifest: Manifest) -> list[str]:
    """The config first, because it is checked before anything else comes; the weights last."""

    def rank(name: str) -> tuple[bool, bool, str]:
        # False sorts before True
        return name != "config.json", is_weights(name), name

    return sorted(manifest.files, key=rank)


def size_limit(manifest: Manifest, name: str, weight_bytes: int) -> int:
    """The most bytes that a file of a model may have.

    It is the stated size, which a manifest of format 1 leaves out. `weight_bytes` is what
    `check_before_download` returned; 0 as long as only the config is wanted.
    """
    stated = manifest.files[name].bytes
    if stated is not None:
        return stated
    return weight_bytes if is_weights(name) else MAX_TEXT_BYTES


def too_large(
    where: str, name: str, num_bytes: int | str, limit: int, *, is_stated: bool = True
) -> BadModelError:
    """The error for a file that a hub sends or announces with more bytes than it may have.

    is_stated: the manifest states the limit; else it is one of ours.
    """
    shown = num_bytes if isinstance(num_bytes, str) else f"{num_bytes:,}"
    if name == MANIFEST or not is_stated:
        message = f"{name} has {shown} bytes, {limit:,} are allowed"
    else:
        message = f"{name} has {shown} bytes, but {MANIFEST} states {limit:,}"
    return BadModelError(message, file=where, remedy="nothing was kept; do not use this model")


def check_before_download(where: str, manifest: Manifest, config_text: bytes) -> int:
    """The most bytes that a file of weights of this architecture can have.

    `where` is the reference, for messages. Without this check a hub could fill the disk.

    Raises BadModelError when the stated weights are larger than the architecture can fill.
    """
    # a manifest may leave sizes out
    stated = sum(manifest.files[name].bytes or 0 for name in manifest.weights)
    config = json_object(f"{where}/config.json", config_text)
    architecture, _, dtype = read_config(f"{where}/config.json", config, stated or None)

    # a few constants are stored with more digits, for which the spare bytes have room
    needed = architecture.num_weights * dtype.itemsize
    if stated > needed + SPARE * len(manifest.weights):
        raise BadModelError(
            f"its manifest states {stated:,} bytes of weights, but its architecture has {needed:,}",
            file=where,
            remedy="no weights were downloaded; do not use this model",
        )
    return needed + SPARE
