"""What all hubs share: their errors, the cache, and checks before the weights are downloaded."""

from __future__ import annotations

import os
from pathlib import Path

from ...core.errors import EvenfieldError
from ..package.folder import build
from ..package.manifest import BadModelError, Manifest, is_weights, json_object


CACHE_VARIABLE = "EVENFIELD_CACHE"
# bytes that the header of a file of weights may take
SPARE = 1 << 20
# What only a mistake in code raises. Storage and hub clients have many classes of errors, most of
# them derived from Exception itself, so a list of those would have gaps.
BUGS = (AssertionError, AttributeError, NameError, NotImplementedError, TypeError)


class HubError(EvenfieldError):
    """A reference that leads to no model, or a hub that refuses or cannot be reached."""


def cache_folder() -> Path:
    """Where models from remote folder hubs, and zoo models built on this machine, are kept."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    return Path.home() / ".cache" / "evenfield"


def download_order(manifest: Manifest) -> list[str]:
    """The config first, because it is checked before anything else comes; the weights last."""

    def rank(name: str) -> tuple[bool, bool, str]:
        # False sorts before True
        return name != "config.json", is_weights(name), name

    return sorted(manifest.files, key=rank)


def check_before_download(where: str, manifest: Manifest, config_text: bytes) -> None:
    """Raise BadModelError when the stated weights are larger than the architecture can fill.

    `where` is the reference, for messages. Without this check a hub could fill the disk.
    """
    # a manifest may leave sizes out
    stated = sum(manifest.files[name].bytes or 0 for name in manifest.weights)
    config = json_object(f"{where}/config.json", config_text)
    potential, _ = build(f"{where}/config.json", config, stated or None)

    tensors = potential.state_dict().values()
    needed = sum(tensor.nbytes for tensor in tensors)
    if stated > needed + SPARE * len(manifest.weights):
        raise BadModelError(
            f"its manifest states {stated:,} bytes of weights, but its architecture has {needed:,}",
            file=where,
            remedy="no weights were downloaded; do not use this model",
        )
