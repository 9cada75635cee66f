"""What all downloads share: where they are kept, and what is checked before the weights come."""

from __future__ import annotations

import os
from pathlib import Path

from ..package.folder import build
from ..package.manifest import BadModelError, Manifest, json_object


CACHE_VARIABLE = "EVENFIELD_CACHE"
SPARE = 1 << 20  # bytes that headers of weights may take


def cache_folder() -> Path:
    """Where models from folder hubs behind an address, and models of the zoo that were built here, are kept."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen) if chosen else Path.home() / ".cache" / "evenfield"


def check_before_download(where: str, manifest: Manifest, config_text: bytes) -> None:
    """BadModelError when the weights are said to be larger than the architecture can fill."""
    stated = sum(manifest.files[name].bytes or 0 for name in manifest.weights)
    config = json_object(f"{where}/config.json", config_text)
    potential, _ = build(f"{where}/config.json", config, stated or None)
    needed = sum(tensor.nbytes for tensor in potential.state_dict().values())
    if stated > needed + SPARE * len(manifest.weights):
        raise BadModelError(
            f"{where}: its weights are said to take {stated:,} bytes, where its architecture fills {needed:,}: "
            "nothing was fetched, do not use it"
        )
